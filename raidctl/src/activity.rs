//! What an array and its members did in a stretch of time: the difference of two counts, or all since the array's start.
//!
//! Invariants:
//! - A stretch is measured by the daemon's clock, so that an answer that comes late makes no rate wrong.
//! - Counts that began anew in between (the array was stopped and started) tell of the time since then, and nothing else.

use std::time::Duration;

use raidd::api::{ErrorCounts, LATENCY_BOUNDS_US, MemberStats, Operations, Stats};

/// The shortest stretch that is divided by.
const STRETCH_MIN: Duration = Duration::from_millis(1);

/// What was done in a stretch of time.
#[derive(Clone, Debug, Default)]
pub struct Activity {
    /// How long it was.
    pub over: Duration,
    /// What clients had the array do.
    pub clients: Work,
    /// What that, and all that goes on in the background, came to on the members: in the order of [`Stats::members`].
    pub members: Vec<MemberWork>,
}

/// Reads and writes of an array or a member.
#[derive(Clone, Debug, Default)]
pub struct Work {
    /// Reads.
    pub reads: Operations,
    /// Writes.
    pub writes: Operations,
    /// Operations of any kind that failed.
    pub errors: u64,
    /// Operations that are under way at the end.
    pub in_flight: u64,
}

/// What one member did.
#[derive(Clone, Debug, Default)]
pub struct MemberWork {
    /// Its slot; none for a spare.
    pub slot: Option<u16>,
    /// Its path; none where the slot has no member.
    pub path: Option<String>,
    /// What it did.
    pub work: Work,
}

impl Activity {
    /// From `before` until `now`; since the array's start where there is no `before`, or that was another start.
    pub fn between(before: Option<&Stats>, now: &Stats) -> Activity {
        let before = before.filter(|before| before.uptime_ms <= now.uptime_ms);
        let began_ms = before.map_or(0, |before| before.uptime_ms);
        let nothing = Stats::default();
        let then = before.unwrap_or(&nothing);
        let failed = |stats: &Stats| {
            [&stats.reads, &stats.writes, &stats.flushes, &stats.others].iter().map(|done| done.errors).sum()
        };
        let clients = Work {
            reads: now.reads.since(&then.reads),
            writes: now.writes.since(&then.writes),
            errors: risen(failed(now), failed(then)),
            in_flight: now.in_flight,
        };
        let members = now.members.iter().map(|member| {
            let then = then.members.iter().find(|then| is_same(member, then));
            of_member(then.unwrap_or(&MemberStats::default()), member)
        });
        Activity {
            over: Duration::from_millis(now.uptime_ms - began_ms),
            clients,
            members: members.collect(),
        }
    }
}

/// A member is known by its path, which it keeps when it gets a slot.
fn is_same(now: &MemberStats, then: &MemberStats) -> bool {
    now.path == then.path && (now.path.is_some() || now.slot == then.slot)
}

fn of_member(then: &MemberStats, now: &MemberStats) -> MemberWork {
    let failed = |ErrorCounts { media, timeout, gone, other }| media + timeout + gone + other;
    MemberWork {
        slot: now.slot,
        path: now.path.clone(),
        work: Work {
            reads: now.reads.since(&then.reads),
            writes: now.writes.since(&then.writes),
            errors: risen(failed(now.errors), failed(then.errors)),
            in_flight: now.in_flight,
        },
    }
}

/// All of it where it has fallen: it began anew.
fn risen(now: u64, then: u64) -> u64 {
    now.checked_sub(then).unwrap_or(now)
}

/// How many of something that is a second.
pub fn per_second(count: u64, over: Duration) -> f64 {
    count as f64 / over.max(STRETCH_MIN).as_secs_f64()
}

/// What 99 of 100 took no longer than, in microseconds. None: there were none, or raidd counts by bounds that are not known here.
pub fn p99_us(done: &Operations) -> Option<u64> {
    let is_known = done.within.len() == LATENCY_BOUNDS_US.len();
    is_known.then(|| done.quantile_us(990)).flatten()
}

/// Operations of two kinds as those of one.
pub fn together(a: &Operations, b: &Operations) -> Operations {
    let within = |side: &Operations, index: usize| side.within.get(index).copied().unwrap_or(side.count);
    Operations {
        count: a.count + b.count,
        errors: a.errors + b.errors,
        bytes: a.bytes + b.bytes,
        total_us: a.total_us + b.total_us,
        max_us: a.max_us.max(b.max_us),
        within: (0..a.within.len().max(b.within.len()))
            .map(|index| within(a, index) + within(b, index))
            .collect(),
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// So many operations of 4 KiB that took so long each.
    pub fn operations(count: u64, took_us: u64) -> Operations {
        Operations {
            count,
            errors: 0,
            bytes: count * 4096,
            total_us: count * took_us,
            max_us: took_us,
            within: LATENCY_BOUNDS_US.map(|bound| if took_us <= bound { count } else { 0 }).to_vec(),
        }
    }

    fn member(slot: Option<u16>, path: Option<&str>, reads: u64, media: u64) -> MemberStats {
        MemberStats {
            slot,
            path: path.map(str::to_owned),
            reads: operations(reads, 100),
            errors: ErrorCounts { media, ..ErrorCounts::default() },
            ..MemberStats::default()
        }
    }

    fn stats(uptime_ms: u64, reads: u64, members: Vec<MemberStats>) -> Stats {
        let flushes = Operations { errors: reads / 10, ..Operations::default() };
        Stats { uptime_ms, reads: operations(reads, 100), flushes, members, ..Stats::default() }
    }

    #[test]
    fn a_stretch_is_the_difference_of_two_counts() {
        let before =
            stats(10_000, 100, vec![member(Some(0), Some("/a"), 50, 1), member(None, Some("/b"), 0, 0)]);
        let now =
            stats(12_000, 300, vec![member(Some(0), Some("/a"), 70, 4), member(Some(1), Some("/b"), 10, 0)]);
        let done = Activity::between(Some(&before), &now);
        assert_eq!(
            (done.over, done.clients.reads.count, done.clients.errors),
            (Duration::from_secs(2), 200, 20)
        );
        assert!((per_second(done.clients.reads.count, done.over) - 100.0).abs() < 1e-9);
        assert_eq!(p99_us(&done.clients.reads), Some(100), "no longer than the longest");
        let members: Vec<_> =
            done.members.iter().map(|member| (member.work.reads.count, member.work.errors)).collect();
        assert_eq!(members, [(20, 3), (10, 0)], "a spare that got a slot is the same member");
    }

    #[test]
    fn a_restart_begins_anew() {
        let before = stats(10_000, 100, vec![member(Some(0), Some("/a"), 50, 9)]);
        let now = stats(500, 3, vec![member(Some(0), Some("/a"), 2, 1)]);
        let done = Activity::between(Some(&before), &now);
        assert_eq!((done.over, done.clients.reads.count), (Duration::from_millis(500), 3));
        assert_eq!((done.members[0].work.reads.count, done.members[0].work.errors), (2, 1));
        let whole = Activity::between(None, &before);
        assert_eq!((whole.over, whole.clients.reads.count), (Duration::from_secs(10), 100));
        assert!(per_second(7, Duration::ZERO).is_finite());
    }

    #[test]
    fn two_kinds_are_counted_together() {
        let both = together(&operations(99, 20), &operations(1, 5000));
        assert_eq!((both.count, both.mean_us(), p99_us(&both)), (100, Some(69), Some(32)));
        assert_eq!(p99_us(&together(&operations(1, 20), &operations(1, 5000))), Some(5000));
        assert_eq!(p99_us(&together(&Operations::default(), &operations(1, 20))), Some(20));
        assert_eq!(p99_us(&Operations::default()), None);
        let unknown = Operations { within: vec![1; 30], ..operations(1, 20) };
        assert_eq!(p99_us(&unknown), None);
    }
}
