//! `check`: what a monitoring system asks every few minutes. One line, and a status: the interface of Nagios' plugins, which
//! Icinga, Zabbix and others call, too.
//!
//! Critical is what somebody has to see to now: data is out of reach, or redundancy is missing and nothing is being done about
//! it. A warning is what mends itself if all goes well, and what can wait until the morning.

use raidd::api::{ArrayState, Health, MemberState, Status, SyncAction};
use serde::Serialize;

use crate::render;

/// As plugins say it; the greatest of several counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(into = "&'static str")]
pub enum Level {
    /// Nothing to be seen to.
    Ok,
    /// Something to be looked at.
    Warning,
    /// Something to be done at once.
    Critical,
    /// Nobody can tell.
    Unknown,
}

impl Level {
    /// The exit status.
    pub fn status(self) -> u8 {
        match self {
            Level::Ok => 0,
            Level::Warning => 1,
            Level::Critical => 2,
            Level::Unknown => 3,
        }
    }

    fn word(self) -> &'static str {
        match self {
            Level::Ok => "OK",
            Level::Warning => "WARNING",
            Level::Critical => "CRITICAL",
            Level::Unknown => "UNKNOWN",
        }
    }
}

impl From<Level> for &'static str {
    fn from(level: Level) -> &'static str {
        level.word()
    }
}

/// What is said of one array.
#[derive(Debug, Serialize)]
pub struct Judged {
    name: String,
    level: Level,
    /// What is wrong, the worst first; empty where nothing is.
    reasons: Vec<String>,
    #[serde(skip)]
    summary: String,
    #[serde(skip)]
    figures: String,
}

/// What is said of all that were asked for.
#[derive(Debug, Serialize)]
pub struct Verdict {
    /// The worst.
    pub level: Level,
    arrays: Vec<Judged>,
    #[serde(skip_serializing_if = "Option::is_none")]
    why: Option<String>,
}

impl Verdict {
    /// Of these arrays.
    pub fn of(arrays: &[Status]) -> Verdict {
        if arrays.is_empty() {
            return Verdict::unknown(
                "raidd knows of no array: raidctl create makes one, raidctl assemble starts one",
            );
        }
        let arrays: Vec<_> = arrays.iter().map(judge).collect();
        let level = arrays.iter().map(|array| array.level).max().unwrap_or(Level::Unknown);
        Verdict { level, arrays, why: None }
    }

    /// Where nobody can tell.
    pub fn unknown(why: impl Into<String>) -> Verdict {
        Verdict { level: Level::Unknown, arrays: Vec::new(), why: Some(why.into()) }
    }

    /// The line, with its figures behind a `|`, which is in none of the texts.
    pub fn line(&self) -> String {
        let mut arrays: Vec<_> = self.arrays.iter().collect();
        arrays.sort_by_key(|array| std::cmp::Reverse(array.level));
        let said = arrays.iter().map(|array| match array.reasons.is_empty() {
            true => array.summary.clone(),
            false => format!("{}: {}", array.summary, array.reasons.join(", ")),
        });
        let said: Vec<_> = self.why.iter().cloned().chain(said).collect();
        let text: String =
            said.join("; ").chars().map(|c| if c.is_control() || c == '|' { ' ' } else { c }).collect();
        let figures: Vec<_> = self.arrays.iter().map(|array| array.figures.as_str()).collect();
        match figures.is_empty() {
            true => format!("RAID {} - {text}\n", self.level.word()),
            false => format!("RAID {} - {text} | {}\n", self.level.word(), figures.join(" ")),
        }
    }
}

fn judge(array: &Status) -> Judged {
    let mut reasons: Vec<(Level, String)> = Vec::new();
    let mut say = |level, why: String| reasons.push((level, why));
    let is_filled = array.sync.action == SyncAction::Recovery && !array.sync_paused;
    // One that replaces a member stands beside it, in the same slot.
    let holders = || array.members.iter().filter(|member| member.state != MemberState::Replacing);
    let (all, missing) =
        (holders().count(), holders().filter(|member| member.state != MemberState::InSync).count());
    let percent = render::percent(&array.sync);
    match (array.state, array.health) {
        (ArrayState::Inactive, _) => say(Level::Critical, "it does not run".to_owned()),
        (_, Health::Failed) => say(Level::Critical, "data is out of reach".to_owned()),
        (_, Health::Degraded) if is_filled => {
            say(Level::Warning, format!("a member is being filled, {percent} done"));
        }
        (_, Health::Degraded) => {
            say(
                Level::Critical,
                format!("{missing} of {all} members missing, and nothing is being done about it"),
            );
        }
        (_, Health::Optimal) => {}
    }
    if array.sync.action == SyncAction::Resync {
        say(Level::Warning, format!("redundancy is being made right, {percent} done"));
    }
    if array.sync.mismatches > 0 && array.sync.action != SyncAction::Resync {
        say(Level::Warning, format!("{} sectors disagree", array.sync.mismatches));
    }
    array.warnings.iter().for_each(|warning| say(Level::Warning, warning.clone()));
    reasons.sort_by_key(|(level, _)| std::cmp::Reverse(*level));
    let level = reasons.first().map_or(Level::Ok, |(level, _)| *level);

    let name = &array.name;
    let errors: u64 = array.members.iter().map(|member| member.read_errors + member.write_errors).sum();
    let corrected: u64 = array.members.iter().map(|member| member.corrected_errors).sum();
    let mut figures = vec![
        format!("'{name}_missing'={missing};;;0;{all}"),
        format!("'{name}_errors'={errors}c"),
        format!("'{name}_corrected'={corrected}c"),
        format!("'{name}_mismatches'={};;;0", array.sync.mismatches),
    ];
    figures.extend(array.redundancy.map(|left| format!("'{name}_redundancy'={left};;;0")));
    if array.sync.action != SyncAction::Idle {
        figures.push(format!("'{name}_sync'={percent};;;0;100"));
    }
    Judged {
        name: name.clone(),
        level,
        reasons: reasons.into_iter().map(|(_, why)| why).collect(),
        summary: format!("{name} {} {}", array.level, array.health),
        figures: figures.join(" "),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use raidd::api::Member;

    fn array(change: impl FnOnce(&mut Status)) -> Status {
        let members: Vec<_> = (0..4)
            .map(|slot| {
                format!(
                    r#"{{"slot":{slot},"path":"/dev/sd{slot}","state":"in_sync","read_errors":0,"write_errors":0,"corrected_errors":0}}"#
                )
            })
            .collect();
        let text = format!(
            r#"{{"name":"vol0","uuid":"u","level":"raid6","layout":null,"chunk_bytes":0,"size_bytes":1,"member_size_bytes":1,
            "metadata":"1.2","events":1,"consistency_policy":"bitmap","state":"clean","health":"optimal","nbd_uri":null,
            "connections":0,"members":[{}],"spares":[],"sync":{{"action":"idle","done_bytes":0,"total_bytes":0,
            "bytes_per_sec":0,"eta_seconds":null,"mismatches":0}},"redundancy":2}}"#,
            members.join(",")
        );
        let mut array = serde_json::from_str(&text).unwrap();
        change(&mut array);
        array
    }

    fn lose(array: &mut Status) {
        array.health = Health::Degraded;
        array.redundancy = Some(1);
        array.members[2] = Member { path: None, state: MemberState::Missing, ..array.members[2].clone() };
    }

    #[test]
    fn all_is_well() {
        let verdict = Verdict::of(&[array(|_| {})]);
        assert_eq!(verdict.level, Level::Ok);
        assert_eq!(
            verdict.line(),
            "RAID OK - vol0 raid6 optimal | 'vol0_missing'=0;;;0;4 'vol0_errors'=0c 'vol0_corrected'=0c \
             'vol0_mismatches'=0;;;0 'vol0_redundancy'=2;;;0\n"
        );
    }

    #[test]
    fn a_lost_member_is_critical_until_something_is_done_about_it() {
        let lost = Verdict::of(&[array(|_| {}), array(lose)]);
        assert_eq!(lost.level, Level::Critical);
        assert!(
            lost.line()
                .starts_with("RAID CRITICAL - vol0 raid6 degraded: 1 of 4 members missing, and nothing"),
            "{}",
            lost.line()
        );
        let filled = |array: &mut Status| {
            lose(array);
            array.sync.action = SyncAction::Recovery;
            (array.sync.done_bytes, array.sync.total_bytes) = (1, 4);
        };
        let verdict = Verdict::of(&[array(filled)]);
        assert_eq!(verdict.level, Level::Warning);
        assert!(
            verdict.line().contains("25.0% done") && verdict.line().contains("'vol0_sync'=25.0%;;;0;100")
        );
        let held = Verdict::of(&[array(|array| {
            filled(array);
            array.sync_paused = true;
        })]);
        assert_eq!(held.level, Level::Critical);
    }

    #[test]
    fn what_is_worse_counts() {
        for (change, level) in [
            ((|array| array.state = ArrayState::Inactive) as fn(&mut Status), Level::Critical),
            (|array| array.health = Health::Failed, Level::Critical),
            (|array| array.sync.mismatches = 8, Level::Warning),
            (|array| array.sync.action = SyncAction::Resync, Level::Warning),
            (|array| array.sync.action = SyncAction::Check, Level::Ok),
            (
                |array| {
                    let new = Member { state: MemberState::Replacing, ..array.members[0].clone() };
                    array.members.push(new);
                },
                Level::Ok,
            ),
            (|array| array.warnings.push("something | else\n".to_owned()), Level::Warning),
        ] {
            let verdict = Verdict::of(&[array(change)]);
            assert_eq!(verdict.level, level, "{verdict:?}");
            let line = verdict.line();
            assert!(line.contains("'vol0_missing'=0;;;0;4 "), "{line}");
            assert!(line.matches('\n').count() == 1 && line.matches('|').count() == 1, "{line}");
        }
    }

    #[test]
    fn who_knows_nothing_says_so() {
        assert_eq!(Verdict::of(&[]).level.status(), 3);
        assert_eq!(Verdict::unknown("why").line(), "RAID UNKNOWN - why\n");
    }
}
