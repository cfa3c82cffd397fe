//! The health watch: what is not wrong yet, but will be, or has been for too long. A member that is slower than its peers,
//! errors that keep being corrected, a scrub that is overdue, redundancy that nobody restores.
//!
//! Invariants:
//! - Nothing here changes anything: it warns, and says what to do.
//! - A concern is told once when it arises, as an event, and is in status and metrics until it is over.
//! - What is compared are means over at least [`SAMPLES_MIN`] reads of each member, twice in a row: one slow read concerns
//!   nobody.

use std::time::Duration;

use crate::api::{Concern, ConcernKind, Health, MemberState, Operations, Stats, Status, SyncAction};

/// Reads of a member that its mean is made of, at least.
const SAMPLES_MIN: u64 = 50;

/// So many times slower than the median of its peers is slow,
const SLOW_TIMES: u64 = 5;

/// and so many no more.
const SLOW_NO_MORE_TIMES: u64 = 3;

/// A mean below this is no cause for concern, whatever the peers do.
const SLOW_US_MIN: u64 = 2_000;

/// Looks in a row that have to agree.
const LOOKS: u8 = 2;

/// Sectors corrected within [`CORRECTIONS_TIME`] that are a cause for concern.
const CORRECTIONS_MAX: u64 = 4;
const CORRECTIONS_TIME: Duration = Duration::from_secs(86_400);

/// How long redundancy may be gone with nothing being done about it.
const DEGRADED_TIME: Duration = Duration::from_secs(3600);

/// An array that is never scrubbed by itself should be by hand within this.
const UNSCHEDULED_SCRUB_SECONDS: u64 = 100 * 86_400;

/// What is remembered of a member between looks.
#[derive(Debug)]
struct Memory {
    path: String,
    /// Its reads when its peers were last compared.
    reads: Operations,
    /// How often in a row it was found slow, or was not although it is held to be.
    looks: u8,
    is_slow: bool,
    /// Corrected sectors at the beginning of the present stretch of [`CORRECTIONS_TIME`], and when that was.
    corrected: (u64, Duration),
}

/// The watch over one array.
#[derive(Debug, Default)]
pub(super) struct Watch {
    members: Vec<Memory>,
    idle_degraded_since: Option<Duration>,
}

impl Watch {
    /// What concerns its owner. `now` is of a clock that only goes forward; `unix_seconds` the time of day.
    pub fn look(&mut self, status: &Status, stats: &Stats, now: Duration, unix_seconds: u64) -> Vec<Concern> {
        let mut out = Vec::new();
        self.compare(status, stats, now);
        let of = |kind, device: Option<&str>, text: String| Concern {
            kind,
            device: device.map(str::to_owned),
            text,
        };
        let name = &status.name;
        for memory in self.members.iter().filter(|memory| memory.is_slow) {
            let path = &memory.path;
            out.push(of(
                ConcernKind::SlowMember,
                Some(path),
                format!(
                    "{path} takes {SLOW_TIMES} times as long as its peers to read, or longer: look at it with smartctl -a \
                     {path}; raidctl replace {name} {path} NEW puts another disk in its place"
                ),
            ));
        }
        for member in &status.members {
            let Some(path) = &member.path else { continue };
            let before = self.members.iter().find(|memory| memory.path == *path);
            let grown = before.map_or(0, |memory| member.corrected_errors.saturating_sub(memory.corrected.0));
            if grown >= CORRECTIONS_MAX && member.state == MemberState::InSync {
                out.push(of(
                    ConcernKind::CorrectedErrors,
                    Some(path),
                    format!(
                        "{grown} sectors of {path} could not be read and were mended within a day: its medium is failing; \
                         raidctl replace {name} {path} NEW puts another disk in its place"
                    ),
                ));
            }
        }
        if let Some(text) = overdue_scrub(status, unix_seconds) {
            out.push(of(ConcernKind::ScrubOverdue, None, text));
        }
        let idle = status.health == Health::Degraded && status.sync.action != SyncAction::Recovery;
        let since = if idle { Some(self.idle_degraded_since.unwrap_or(now)) } else { None };
        self.idle_degraded_since = since;
        if since.is_some_and(|since| now.saturating_sub(since) >= DEGRADED_TIME) {
            out.push(of(
                ConcernKind::RedundancyLost,
                None,
                format!(
                    "it has been degraded for more than an hour, and nothing is being done about it: raidctl add {name} DEV \
                     gives it another disk"
                ),
            ));
        }
        out
    }

    /// Who is slower than the others, by what each has read since they were last compared.
    fn compare(&mut self, status: &Status, stats: &Stats, now: Duration) {
        let in_sync: Vec<_> = status
            .members
            .iter()
            .filter(|member| member.state == MemberState::InSync)
            .filter_map(|member| Some((member.path.as_deref()?, member.corrected_errors)))
            .collect();
        self.members.retain(|memory| in_sync.iter().any(|(path, _)| *path == memory.path));
        let reads = |path: &str| {
            let member = stats.members.iter().find(|member| member.path.as_deref() == Some(path));
            member.map(|member| member.reads.clone()).unwrap_or_default()
        };
        for &(path, corrected) in &in_sync {
            match self.members.iter_mut().find(|memory| memory.path == path) {
                Some(memory) if now.saturating_sub(memory.corrected.1) >= CORRECTIONS_TIME => {
                    memory.corrected = (corrected, now);
                }
                Some(_) => {}
                None => self.members.push(Memory {
                    path: path.to_owned(),
                    reads: reads(path),
                    looks: 0,
                    is_slow: false,
                    corrected: (corrected, now),
                }),
            }
        }
        let since: Vec<_> =
            self.members.iter().map(|memory| reads(&memory.path).since(&memory.reads)).collect();
        // Those who are hardly read, as write-mostly ones, cannot be judged, nor do they count as peers.
        let means: Vec<Option<u64>> =
            since.iter().map(|reads| reads.mean_us().filter(|_| reads.count >= SAMPLES_MIN)).collect();
        if means.iter().flatten().count() < 2 {
            return;
        }
        for index in 0..self.members.len() {
            let Some(mean) = means[index] else { continue };
            let mut peers: Vec<u64> = means
                .iter()
                .enumerate()
                .filter_map(|(other, mean)| mean.filter(|_| other != index))
                .collect();
            peers.sort_unstable();
            let median = peers[(peers.len() - 1) / 2];
            let memory = &mut self.members[index];
            memory.reads = reads(&memory.path);
            let limit = if memory.is_slow { SLOW_NO_MORE_TIMES } else { SLOW_TIMES };
            let found = mean >= SLOW_US_MIN && mean >= median.saturating_mul(limit);
            memory.looks = if found == memory.is_slow { 0 } else { memory.looks + 1 };
            if memory.looks >= LOOKS {
                (memory.is_slow, memory.looks) = (found, 0);
            }
        }
    }
}

/// Why a scrub is overdue, and what to do.
fn overdue_scrub(status: &Status, unix_seconds: u64) -> Option<String> {
    let name = &status.name;
    if !matches!(status.level.as_str(), "raid1" | "raid4" | "raid5" | "raid6" | "raid10")
        || matches!(status.sync.action, SyncAction::Check | SyncAction::Repair)
    {
        return None;
    }
    let last = status.last_scrub_unix_seconds.or(status.created_unix_seconds)?;
    let age = unix_seconds.saturating_sub(last);
    let days = age / 86_400;
    match status.tuning.as_ref().and_then(|tuning| tuning.scrub_interval_ms).unwrap_or(0) / 1000 {
        0 if age >= UNSCHEDULED_SCRUB_SECONDS => Some(format!(
            "no scrub has looked at all of it for {days} days: raidctl scrub {name}, or raidctl tune {name} scrub_interval=30d \
             to have it done"
        )),
        interval if interval > 0 && age >= interval.saturating_mul(2) => Some(format!(
            "the scheduled scrub is overdue, as it waits until the array is healthy and idle: raidctl scrub {name} begins it now"
        )),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::{LATENCY_BOUNDS_US, Member, MemberStats, Tuning};

    const HOUR: Duration = Duration::from_secs(3600);

    fn status() -> Status {
        let text = r#"{"name":"v","uuid":"","level":"raid5","layout":null,"chunk_bytes":0,"size_bytes":0,
            "member_size_bytes":0,"metadata":"1.2","events":0,"consistency_policy":"bitmap","state":"clean",
            "health":"optimal","nbd_uri":null,"connections":0,"members":[],"spares":[],"sync":{"action":"idle",
            "done_bytes":0,"total_bytes":0,"bytes_per_sec":0,"eta_seconds":null,"mismatches":0}}"#;
        let mut status: Status = serde_json::from_str(text).unwrap();
        status.members = (0..3)
            .map(|slot| Member {
                slot,
                path: Some(format!("/dev/d{slot}")),
                state: MemberState::InSync,
                read_errors: 0,
                write_errors: 0,
                corrected_errors: 0,
            })
            .collect();
        status
    }

    /// Each member has read so often, and took so long each time.
    fn stats(reads: [(u64, u64); 3]) -> Stats {
        let member = |(slot, (count, us)): (usize, (u64, u64))| MemberStats {
            slot: Some(slot as u16),
            path: Some(format!("/dev/d{slot}")),
            reads: Operations {
                count,
                total_us: count * us,
                within: vec![count; LATENCY_BOUNDS_US.len()],
                ..Operations::default()
            },
            ..MemberStats::default()
        };
        Stats { members: reads.into_iter().enumerate().map(member).collect(), ..Stats::default() }
    }

    fn kinds(concerns: &[Concern]) -> Vec<(ConcernKind, Option<&str>)> {
        concerns.iter().map(|concern| (concern.kind, concern.device.as_deref())).collect()
    }

    #[test]
    fn a_member_that_stands_out_is_told_of_until_it_does_no_more() {
        let (mut watch, status) = (Watch::default(), status());
        let mut look = |reads| kinds(&watch.look(&status, &stats(reads), HOUR, 0)).len();
        assert_eq!(look([(0, 0); 3]), 0);
        assert_eq!(look([(100, 1000), (100, 1000), (100, 20_000)]), 0, "once is nothing");
        // Too few to tell: neither for nor against.
        assert_eq!(look([(110, 1000), (110, 1000), (110, 20_000)]), 0);
        assert_eq!(look([(200, 1000), (200, 1000), (200, 20_000)]), 1);
        assert_eq!(look([(300, 1000), (300, 1000), (300, 20_000)]), 1);
        // The same total: as if the last hundreds had taken next to nothing.
        assert_eq!(look([(400, 1000), (400, 1000), (400, 15_100)]), 1, "once better is nothing, either");
        assert_eq!(look([(500, 1000), (500, 1000), (500, 12_200)]), 0);
    }

    #[test]
    fn fast_members_and_lonely_ones_are_left_alone() {
        let (mut watch, status) = (Watch::default(), status());
        for round in 1..5 {
            let n = round * 100;
            assert_eq!(watch.look(&status, &stats([(n, 10), (n, 10), (n, 1500)]), HOUR, 0), []);
        }
        let mut watch = Watch::default();
        for round in 1..5 {
            let n = round * 100;
            assert_eq!(watch.look(&status, &stats([(n, 90_000), (0, 0), (3, 1)]), HOUR, 0), []);
        }
    }

    #[test]
    fn corrections_are_counted_within_a_day() {
        let (mut watch, mut status) = (Watch::default(), status());
        status.members[1].corrected_errors = 70;
        assert_eq!(watch.look(&status, &stats([(0, 0); 3]), HOUR, 0), [], "before it was watched");
        status.members[1].corrected_errors = 73;
        assert_eq!(watch.look(&status, &stats([(0, 0); 3]), 2 * HOUR, 0), []);
        status.members[1].corrected_errors = 74;
        let concerns = watch.look(&status, &stats([(0, 0); 3]), 3 * HOUR, 0);
        assert_eq!(kinds(&concerns), [(ConcernKind::CorrectedErrors, Some("/dev/d1"))]);
        assert!(
            concerns[0].text.contains("4 sectors") && concerns[0].text.contains("raidctl replace v /dev/d1")
        );
        assert_eq!(watch.look(&status, &stats([(0, 0); 3]), 26 * HOUR, 0), [], "a day later");
    }

    #[test]
    fn a_scrub_is_overdue_by_its_schedule_or_after_long() {
        let (mut watch, mut status) = (Watch::default(), status());
        let mut late =
            |status: &Status, seconds| watch.look(status, &stats([(0, 0); 3]), HOUR, seconds).len();
        status.created_unix_seconds = Some(1000);
        assert_eq!((late(&status, 1000 + UNSCHEDULED_SCRUB_SECONDS - 1), late(&status, 9_000_000)), (0, 1));
        status.last_scrub_unix_seconds = Some(8_000_000);
        assert_eq!(late(&status, 9_000_000), 0);
        status.tuning = Some(Tuning { scrub_interval_ms: Some(600_000), ..Tuning::default() });
        assert_eq!((late(&status, 8_001_199), late(&status, 8_001_200)), (0, 1));
        status.sync.action = SyncAction::Check;
        assert_eq!(late(&status, 8_001_200), 0, "it is under way");
        status.sync.action = SyncAction::Idle;
        status.level = "raid0".into();
        assert_eq!(late(&status, 8_001_200), 0);
    }

    #[test]
    fn redundancy_may_be_gone_for_a_while_or_being_restored() {
        let (mut watch, mut status) = (Watch::default(), status());
        let mut look = |status: &Status, hours: u32| {
            kinds(&watch.look(status, &stats([(0, 0); 3]), HOUR * hours, 0)).len()
        };
        status.health = Health::Degraded;
        assert_eq!((look(&status, 1), look(&status, 2)), (0, 1));
        status.sync.action = SyncAction::Recovery;
        assert_eq!(look(&status, 3), 0);
        status.sync.action = SyncAction::Idle;
        assert_eq!((look(&status, 4), look(&status, 5)), (0, 1), "counted from then on");
    }
}
