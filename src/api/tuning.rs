//! What of a running array can be tuned, and how people write it: `recovery_max=100M member_timeout=2s`.
//!
//! Invariants:
//! - A setting that is not named stays as it is.
//! - Every limit is checked here, with the same sentence for raidctl and for the server.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{Hedge, ReadPolicy, parse_duration_ms, parse_size};

/// The shortest time that a member may be given for an operation: less fails disks for a hiccup.
pub const MEMBER_TIMEOUT_MS_MIN: u64 = 1000;
/// The longest: clients wait so long for a disk that hangs.
pub const MEMBER_TIMEOUT_MS_MAX: u64 = 600_000;

/// The shortest time between scheduled scrubs: with less, one would follow the other.
pub const SCRUB_INTERVAL_MS_MIN: u64 = 60_000;
/// The longest: ten years.
pub const SCRUB_INTERVAL_MS_MAX: u64 = 3650 * 86_400_000;

/// The longest name of a group that shares spares.
const SPARE_GROUP_BYTES_MAX: usize = 64;

/// What becomes of a member that disappeared (its device was gone, or did not answer) and is there again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum AutoReAdd {
    /// It is left to the operator.
    Off,
    /// It is caught up by the bitmap, where that is possible.
    #[default]
    On,
    /// Where it is not, it is added anew, as a spare.
    Spare,
}

/// Settings of an array; none: as it is, and in what is remembered: the default.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Tuning {
    /// Bytes a second of each member, below which clients do not push a sync action.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recovery_min: Option<u64>,
    /// Bytes a second of each member, above which a sync action does not go.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recovery_max: Option<u64>,
    /// Milliseconds that a member has for an operation before it counts as failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub member_timeout_ms: Option<u64>,
    /// Milliseconds after the end of a scrub when the next one begins by itself; 0: never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scrub_interval_ms: Option<u64>,
    /// What becomes of a member that disappeared and is there again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub auto_re_add: Option<AutoReAdd>,
    /// Whether every write is durable when it is answered, as if all had asked for that (FUA): for clients that may outlive
    /// this machine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub write_through: Option<bool>,
    /// Which copy of a mirror is read: `round-robin`, `least-pending`, `latency` or `prefer=SLOT`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, pattern = "^(round-robin|least-pending|latency|prefer=[0-9]{1,3})$")]
    pub read_policy: Option<ReadPolicy>,
    /// When a read is asked of other members, too: `off`, `auto` or a time like `20ms`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, pattern = "^(off|auto|[1-9][0-9]{0,3}ms)$")]
    pub hedge: Option<Hedge>,
    /// The group of arrays that share their spares: one that has lost a member and has none gets another's. Empty: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(pattern = "^[A-Za-z0-9._-]{0,64}$")]
    pub spare_group: Option<String>,
}

impl Tuning {
    /// Every key, with the words that it takes where there are such: ending with `=` where something is to follow.
    pub const KEYS: &[(&str, &[&str])] = &[
        ("recovery_min", &[]),
        ("recovery_max", &[]),
        ("member_timeout", &[]),
        ("scrub_interval", &["never"]),
        ("auto_re_add", &["on", "off", "spare"]),
        ("write_through", &["on", "off"]),
        ("read_policy", &["round-robin", "least-pending", "latency", "prefer="]),
        ("hedge", &["off", "auto"]),
        ("spare_group", &["none"]),
    ];

    /// Settings as people write them: `KEY=VALUE` each. A key that is given twice counts the second time.
    ///
    /// # Errors
    /// A line that says what is wrong with which of them.
    pub fn parse<'a>(words: impl IntoIterator<Item = &'a str>) -> Result<Tuning, String> {
        let mut tuning = Tuning::default();
        for word in words {
            let (key, value) = word
                .split_once('=')
                .ok_or_else(|| format!("setting {word:?} has no value: write it like recovery_max=100M"))?;
            match key {
                "recovery_min" => tuning.recovery_min = Some(speed(value)?),
                "recovery_max" => tuning.recovery_max = Some(speed(value)?),
                "member_timeout" => tuning.member_timeout_ms = Some(parse_duration_ms(value)?),
                "auto_re_add" => tuning.auto_re_add = Some(AutoReAdd::parse(value)?),
                "scrub_interval" => tuning.scrub_interval_ms = Some(interval(value)?),
                "write_through" => tuning.write_through = Some(switch(key, value)?),
                "read_policy" => tuning.read_policy = Some(ReadPolicy::parse(value)?),
                "hedge" => tuning.hedge = Some(Hedge::parse(value)?),
                "spare_group" => {
                    tuning.spare_group = Some(if value == "none" { String::new() } else { value.to_owned() });
                }
                _ => {
                    return Err(format!(
                        "there is no setting {key:?}: choose recovery_min, recovery_max, member_timeout, scrub_interval, \
                         auto_re_add, write_through, read_policy, hedge or spare_group"
                    ));
                }
            }
        }
        tuning.check()?;
        Ok(tuning)
    }

    /// Refuses what is out of bounds. An error is one line for people.
    pub fn check(&self) -> Result<(), String> {
        if self.recovery_max == Some(0) {
            return Err("recovery_max=0 would stop every recovery: use raidctl pause for that".to_owned());
        }
        if let (Some(min), Some(max)) = (self.recovery_min, self.recovery_max)
            && min > max
        {
            return Err(format!(
                "recovery_min is {min} bytes a second, more than recovery_max, {max}: lower it, or raise the other"
            ));
        }
        if self
            .member_timeout_ms
            .is_some_and(|ms| !(MEMBER_TIMEOUT_MS_MIN..=MEMBER_TIMEOUT_MS_MAX).contains(&ms))
        {
            return Err("member_timeout is out of bounds: choose between 1s and 10m".to_owned());
        }
        if self
            .scrub_interval_ms
            .is_some_and(|ms| ms > 0 && !(SCRUB_INTERVAL_MS_MIN..=SCRUB_INTERVAL_MS_MAX).contains(&ms))
        {
            return Err("scrub_interval is out of bounds: choose between 1m and 3650d, or never".to_owned());
        }
        let is_legal = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
        if let Some(group) = &self.spare_group
            && !(group.len() <= SPARE_GROUP_BYTES_MAX && group.bytes().all(is_legal))
        {
            return Err(format!(
                "spare_group={group:?} is no name for a group: use up to {SPARE_GROUP_BYTES_MAX} letters, digits, dots, dashes \
                 and underscores, or none"
            ));
        }
        Ok(())
    }

    /// These settings, and where they say nothing the others.
    #[must_use]
    pub fn or(self, other: Tuning) -> Tuning {
        Tuning {
            recovery_min: self.recovery_min.or(other.recovery_min),
            recovery_max: self.recovery_max.or(other.recovery_max),
            member_timeout_ms: self.member_timeout_ms.or(other.member_timeout_ms),
            scrub_interval_ms: self.scrub_interval_ms.or(other.scrub_interval_ms),
            auto_re_add: self.auto_re_add.or(other.auto_re_add),
            write_through: self.write_through.or(other.write_through),
            read_policy: self.read_policy.or(other.read_policy),
            hedge: self.hedge.or(other.hedge),
            spare_group: self.spare_group.or(other.spare_group),
        }
    }
}

/// `on` or `off`.
fn switch(key: &str, text: &str) -> Result<bool, String> {
    match text {
        "on" => Ok(true),
        "off" => Ok(false),
        _ => Err(format!("{key}={text} makes no sense: choose on or off")),
    }
}

/// Bytes a second: `100M`, or `100M/s`.
fn speed(text: &str) -> Result<u64, String> {
    parse_size(text.strip_suffix("/s").unwrap_or(text))
}

impl AutoReAdd {
    /// The word for it.
    pub const fn as_str(self) -> &'static str {
        match self {
            AutoReAdd::Off => "off",
            AutoReAdd::On => "on",
            AutoReAdd::Spare => "spare",
        }
    }

    fn parse(text: &str) -> Result<AutoReAdd, String> {
        let all = [AutoReAdd::Off, AutoReAdd::On, AutoReAdd::Spare];
        let found = all.into_iter().find(|policy| policy.as_str() == text);
        found.ok_or_else(|| format!("auto_re_add={text} makes no sense: choose on, off or spare"))
    }
}

/// A stretch of time; `0` and `never` for none.
fn interval(text: &str) -> Result<u64, String> {
    if ["0", "never", "off"].contains(&text) { Ok(0) } else { parse_duration_ms(text) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_read_as_people_write_them() {
        assert_eq!(
            Tuning::parse(["recovery_min=1M", "recovery_max=200M/s", "member_timeout=1s"]),
            Ok(Tuning {
                recovery_min: Some(1 << 20),
                recovery_max: Some(200 << 20),
                member_timeout_ms: Some(1000),
                ..Tuning::default()
            })
        );
        let interval = |text: &str| Tuning::parse([text]).unwrap().scrub_interval_ms;
        assert_eq!(interval("scrub_interval=30d"), Some(30 * 86_400_000));
        assert_eq!((interval("scrub_interval=0"), interval("scrub_interval=never")), (Some(0), Some(0)));
        assert_eq!(Tuning::parse(["member_timeout=10m"]).unwrap().member_timeout_ms, Some(600_000));
        for (words, fragment) in [
            (&["recovery_max"][..], "has no value"),
            (&["recovery_max="], "size"),
            (&["recovery_max=fast"], "size"),
            (&["recovery_max=0"], "raidctl pause"),
            (&["recovery_min=2M", "recovery_max=1M"], "more than"),
            (&["member_timeout=999ms"], "between 1s and 10m"),
            (&["member_timeout=11m"], "between 1s and 10m"),
            (&["member_timeout=5"], "5s"),
            (&["auto_re_add=yes"], "on, off or spare"),
            (&["write_through=yes"], "on or off"),
            (&["read_policy=best"], "least-pending"),
            (&["hedge=on"], "off, auto"),
            (&["spare_group=a b"], "letters, digits"),
            (&["scrub_interval=59s"], "between 1m and 3650d"),
            (&["scrub_interval=3651d"], "between 1m and 3650d"),
            (&["colour=red"], "recovery_min, recovery_max, member_timeout"),
        ] {
            let error = Tuning::parse(words.iter().copied()).unwrap_err();
            assert!(error.contains(fragment) && !error.contains('\n'), "{words:?}: {error}");
        }
    }

    #[test]
    fn the_keys_are_those_that_are_taken() {
        let refusal = Tuning::parse(["colour=red"]).unwrap_err();
        let (_, choice) = refusal.split_once("choose ").unwrap();
        let told: Vec<_> = choice.split([',', ' ']).filter(|word| !["", "or"].contains(word)).collect();
        assert_eq!(Tuning::KEYS.iter().map(|(key, _)| *key).collect::<Vec<_>>(), told);
        for (key, words) in Tuning::KEYS {
            assert!(
                !Tuning::parse([&*format!("{key}=?")]).is_err_and(|error| error.contains("no setting")),
                "{key}"
            );
            for word in *words {
                let number = if word.ends_with('=') { "1" } else { "" };
                Tuning::parse([&*format!("{key}={word}{number}")]).unwrap();
            }
        }
    }

    #[test]
    fn what_is_not_named_stays() {
        let old = Tuning::parse(["recovery_min=1M", "member_timeout=5s"]).unwrap();
        let new = Tuning::parse(["member_timeout=2s"]).unwrap();
        assert_eq!(new.clone().or(old), Tuning::parse(["recovery_min=1M", "member_timeout=2s"]).unwrap());
        assert_eq!(serde_json::to_string(&new).unwrap(), r#"{"member_timeout_ms":2000}"#);
    }
}
