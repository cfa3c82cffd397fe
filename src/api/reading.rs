//! How reads are spread over members, as people write it: `read_policy=prefer=0 hedge=20ms`. In documents they are the same
//! words.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::text::parse_duration_ms;

/// The shortest and the longest time after which a read may be asked of others: in milliseconds.
pub const HEDGE_MS_MIN: u64 = 1;
/// See [`HEDGE_MS_MIN`].
pub const HEDGE_MS_MAX: u64 = 60_000;

/// Which copy of a mirror is read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum ReadPolicy {
    /// They take turns.
    #[default]
    RoundRobin,
    /// The one with the fewest operations under way.
    LeastPending,
    /// The one that is likely to answer first, by what its reads took of late.
    Latency,
    /// The member of this slot.
    Prefer(u16),
}

/// When a read is asked of other members, too.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Hedge {
    /// When it fails.
    #[default]
    Off,
    /// When it takes much longer than the member's reads usually do.
    Auto,
    /// After so many milliseconds.
    AfterMs(u64),
}

impl ReadPolicy {
    /// The policy of these words. An error is one line for people.
    pub fn parse(text: &str) -> Result<ReadPolicy, String> {
        let slot = text.strip_prefix("prefer=").and_then(|slot| slot.parse().ok());
        match (text, slot) {
            ("round-robin", _) => Ok(ReadPolicy::RoundRobin),
            ("least-pending", _) => Ok(ReadPolicy::LeastPending),
            ("latency", _) => Ok(ReadPolicy::Latency),
            (_, Some(slot)) => Ok(ReadPolicy::Prefer(slot)),
            _ => Err(format!(
                "read_policy={text} makes no sense: choose round-robin, least-pending, latency or prefer=SLOT"
            )),
        }
    }
}

impl fmt::Display for ReadPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ReadPolicy::RoundRobin => f.write_str("round-robin"),
            ReadPolicy::LeastPending => f.write_str("least-pending"),
            ReadPolicy::Latency => f.write_str("latency"),
            ReadPolicy::Prefer(slot) => write!(f, "prefer={slot}"),
        }
    }
}

impl Hedge {
    /// The policy of these words. An error is one line for people.
    pub fn parse(text: &str) -> Result<Hedge, String> {
        match text {
            "off" => return Ok(Hedge::Off),
            "auto" => return Ok(Hedge::Auto),
            _ => {}
        }
        match parse_duration_ms(text) {
            Ok(ms) if (HEDGE_MS_MIN..=HEDGE_MS_MAX).contains(&ms) => Ok(Hedge::AfterMs(ms)),
            _ => Err(format!("hedge={text} makes no sense: choose off, auto, or a time between 1ms and 60s")),
        }
    }
}

impl fmt::Display for Hedge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Hedge::Off => f.write_str("off"),
            Hedge::Auto => f.write_str("auto"),
            Hedge::AfterMs(ms) => write!(f, "{ms}ms"),
        }
    }
}

impl TryFrom<String> for ReadPolicy {
    type Error = String;

    fn try_from(text: String) -> Result<ReadPolicy, String> {
        ReadPolicy::parse(&text)
    }
}

impl From<ReadPolicy> for String {
    fn from(policy: ReadPolicy) -> String {
        policy.to_string()
    }
}

impl TryFrom<String> for Hedge {
    type Error = String;

    fn try_from(text: String) -> Result<Hedge, String> {
        Hedge::parse(&text)
    }
}

impl From<Hedge> for String {
    fn from(hedge: Hedge) -> String {
        hedge.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_mean_what_they_say_and_are_said_again() {
        for text in ["round-robin", "least-pending", "latency", "prefer=0", "prefer=12"] {
            assert_eq!(ReadPolicy::parse(text).unwrap().to_string(), text);
        }
        for text in ["off", "auto", "1ms", "60000ms"] {
            assert_eq!(Hedge::parse(text).unwrap().to_string(), text);
        }
        assert_eq!(Hedge::parse("2s"), Ok(Hedge::AfterMs(2000)));
        for text in ["prefer", "prefer=", "prefer=-1", "prefer=70000", "fast", ""] {
            assert!(ReadPolicy::parse(text).unwrap_err().contains("least-pending"), "{text}");
        }
        for text in ["on", "0ms", "61s", "5", ""] {
            assert!(Hedge::parse(text).unwrap_err().contains("between 1ms and 60s"), "{text}");
        }
        assert_eq!(serde_json::to_string(&ReadPolicy::Prefer(3)).unwrap(), r#""prefer=3""#);
        assert!(serde_json::from_str::<Hedge>("7").is_err());
    }
}
