//! What was done and how long it took: counts of operations, of clients and of each member, since the array was started; and
//! how long it could not do all that it should.
//!
//! Times are from when the array took a request, or gave one to a member, until it had the answer, by the array's clock. They
//! are counted in microseconds by `hdrhistogram`, to within a sixteenth.
//!
//! Invariants:
//! - Nothing here decides anything about data, and nothing is kept over a stop.
//! - Counts only rise. An operation is counted when it has ended, well or not; what is dropped unended counts as failed.

use std::cell::{Cell, RefCell};
use std::time::Duration;

use hdrhistogram::Histogram;

use super::array::Array;
use super::state::Health;
use crate::io::{Device, IoErrorKind, Runtime};

/// What takes longer is counted as this long: more than any deadline.
const LONGEST_US: u64 = 3_600_000_000;

/// Operations of one kind.
pub(super) struct Tally {
    errors: Cell<u64>,
    bytes: Cell<u64>,
    total_us: Cell<u64>,
    latencies: RefCell<Histogram<u64>>,
}

impl Default for Tally {
    fn default() -> Self {
        let latencies = Histogram::new_with_bounds(1, LONGEST_US, 1).expect("bounds that make sense");
        Tally {
            errors: Cell::default(),
            bytes: Cell::default(),
            total_us: Cell::default(),
            latencies: RefCell::new(latencies),
        }
    }
}

impl Tally {
    /// One has ended that took so long.
    pub fn note(&self, took: Duration, bytes: u64, is_ok: bool) {
        let us = u64::try_from(took.as_micros()).unwrap_or(LONGEST_US);
        self.latencies.borrow_mut().saturating_record(us);
        self.total_us.set(self.total_us.get() + us);
        match is_ok {
            true => self.bytes.set(self.bytes.get() + bytes),
            false => self.errors.set(self.errors.get() + 1),
        }
    }

    /// Bytes of those that went well.
    pub fn bytes(&self) -> u64 {
        self.bytes.get()
    }

    /// How they stand, with how many took no longer than each of these times in microseconds, which ascend.
    pub fn operations(&self, bounds_us: &[u64]) -> Operations {
        let latencies = self.latencies.borrow();
        // From 0 each time: a bound has what is like it counted with it, which must not be counted with the next one, too.
        let within = bounds_us.iter().map(|&bound| latencies.count_between(0, bound)).collect();
        Operations {
            count: latencies.len(),
            errors: self.errors.get(),
            bytes: self.bytes.get(),
            total_us: self.total_us.get(),
            max_us: latencies.max(),
            within,
        }
    }
}

/// Operations of one kind, at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Operations {
    /// How many have ended.
    pub count: u64,
    /// How many of them failed.
    pub errors: u64,
    /// Bytes of those that did not.
    pub bytes: u64,
    /// What all took together, in microseconds.
    pub total_us: u64,
    /// What the longest took, in microseconds.
    pub max_us: u64,
    /// How many took no longer than each of the times that were asked for.
    pub within: Vec<u64>,
}

/// What clients have asked for.
#[derive(Default)]
pub(super) struct Clients {
    pub reads: Tally,
    pub writes: Tally,
    pub flushes: Tally,
    pub others: Tally,
    /// Those under way.
    pub in_flight: Cell<usize>,
    /// When a member in sync failed the last time.
    failed_at: Cell<Option<Duration>>,
    /// What the slowest read or write took that was under way then.
    failover: Cell<Duration>,
}

/// What a client may ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Read,
    Write,
    Flush,
    /// Zeroing and trimming.
    Other,
}

impl Clients {
    fn of(&self, kind: Kind) -> &Tally {
        match kind {
            Kind::Read => &self.reads,
            Kind::Write => &self.writes,
            Kind::Flush => &self.flushes,
            Kind::Other => &self.others,
        }
    }

    /// A request has begun.
    pub fn begin(&self) {
        self.in_flight.set(self.in_flight.get() + 1);
    }

    /// One that began then has ended now.
    pub fn end(&self, kind: Kind, began: Duration, now: Duration, bytes: u64, is_ok: bool) {
        self.in_flight.set(self.in_flight.get() - 1);
        let took = now.saturating_sub(began);
        self.of(kind).note(took, bytes, is_ok);
        if matches!(kind, Kind::Read | Kind::Write) && self.failed_at.get().is_some_and(|at| began <= at) {
            self.failover.set(self.failover.get().max(took));
        }
    }

    /// A member in sync has failed.
    pub fn note_failure(&self, now: Duration) {
        self.failed_at.set(Some(now));
        self.failover.set(Duration::ZERO);
    }

    /// What the slowest read or write took that was under way when a member in sync failed the last time; none: none has.
    pub fn failover(&self) -> Option<Duration> {
        self.failed_at.get().map(|_| self.failover.get())
    }
}

/// What one member has been asked for.
#[derive(Default)]
pub(super) struct Work {
    pub reads: Tally,
    pub writes: Tally,
    pub flushes: Tally,
    pub errors: Cell<Errors>,
}

/// Errors by what was wrong.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Errors {
    /// The medium.
    pub media: u64,
    /// No answer in time.
    pub timeout: u64,
    /// The device was gone.
    pub gone: u64,
    /// Anything else.
    pub other: u64,
}

impl Work {
    /// An operation has failed.
    pub fn note_error(&self, kind: IoErrorKind) {
        let mut errors = self.errors.get();
        let count = match kind {
            IoErrorKind::Media => &mut errors.media,
            IoErrorKind::Timeout => &mut errors.timeout,
            IoErrorKind::Gone => &mut errors.gone,
            // A question, not a failure: who asks does without.
            IoErrorKind::Unsupported => return,
            _ => &mut errors.other,
        };
        *count += 1;
        self.errors.set(errors);
    }
}

/// How long something has held, by a clock that is told.
#[derive(Debug, Default)]
struct Stopwatch {
    before: Cell<Duration>,
    since: Cell<Option<Duration>>,
}

impl Stopwatch {
    /// It holds now, or not.
    fn note(&self, holds: bool, now: Duration) {
        match self.since.get() {
            None if holds => self.since.set(Some(now)),
            Some(since) if !holds => {
                self.before.set(self.before.get() + now.saturating_sub(since));
                self.since.set(None);
            }
            _ => {}
        }
    }

    fn total(&self, now: Duration) -> Duration {
        self.before.get() + self.since.get().map_or(Duration::ZERO, |since| now.saturating_sub(since))
    }
}

/// Since when an array is what it should be, or how long it was not.
#[derive(Debug, Default)]
pub(super) struct Standing {
    started: Duration,
    /// No write is taken, for no other reason than that it cannot be kept.
    pub gave_up: Cell<bool>,
    degraded: Stopwatch,
    unavailable: Stopwatch,
}

impl Standing {
    pub fn since(started: Duration) -> Standing {
        Standing { started, ..Standing::default() }
    }
}

/// How long an array has been what since it was started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Times {
    /// Since it was started.
    pub up: Duration,
    /// With a slot that had no member in sync.
    pub degraded: Duration,
    /// With data out of reach, or taking no writes because they could not be kept.
    pub unavailable: Duration,
}

impl<D: Device + 'static, R: Runtime> Array<D, R> {
    /// Members or what may be written have changed.
    pub(super) fn note_standing(&self) {
        let now = self.runtime.now();
        let health = self.health();
        self.standing.degraded.note(health != Health::Optimal, now);
        self.standing.unavailable.note(health == Health::Failed || self.standing.gave_up.get(), now);
    }

    /// How long it has been what.
    pub(super) fn times(&self) -> Times {
        self.note_standing();
        let now = self.runtime.now();
        Times {
            up: now.saturating_sub(self.standing.started),
            degraded: self.standing.degraded.total(now),
            unavailable: self.standing.unavailable.total(now),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(count: u64) -> Duration {
        Duration::from_millis(count)
    }

    #[test]
    fn operations_are_counted_by_what_they_took() {
        let tally = Tally::default();
        tally.note(Duration::from_micros(10), 512, true);
        tally.note(ms(1), 4096, true);
        tally.note(ms(100), 4096, false);
        tally.note(Duration::from_secs(100_000), 1, true);
        let all = tally.operations(&[16, 1024, 1 << 20]);
        assert_eq!((all.count, all.errors, all.bytes), (4, 1, 512 + 4096 + 1));
        assert_eq!(all.within, [1, 2, 3]);
        for us in [17, 33, 1025, 1030, 1 << 20, (1 << 20) + 1] {
            let tally = Tally::default();
            (0..10).for_each(|_| tally.note(Duration::from_micros(us), 1, true));
            let bounds: Vec<u64> = (4..25).map(|shift| 1 << shift).collect();
            let within = tally.operations(&bounds).within;
            assert!(within.is_sorted() && within.ends_with(&[10]), "{us}: {within:?}");
        }
        assert!(all.max_us >= LONGEST_US && all.total_us == 100_000_000_000 + 101_010);
    }

    #[test]
    fn failover_is_the_longest_wait_of_those_who_were_waiting() {
        let clients = Clients::default();
        let note = |kind, began, now, bytes, is_ok| {
            clients.begin();
            clients.end(kind, began, now, bytes, is_ok);
        };
        note(Kind::Read, ms(0), ms(900), 1, true);
        assert_eq!(clients.failover(), None);
        clients.note_failure(ms(1000));
        assert_eq!(clients.failover(), Some(Duration::ZERO));
        note(Kind::Write, ms(600), ms(1100), 1, true);
        note(Kind::Read, ms(700), ms(1050), 1, true);
        note(Kind::Other, ms(0), ms(5000), 0, true);
        note(Kind::Read, ms(1001), ms(9000), 1, true);
        assert_eq!(clients.failover(), Some(ms(500)), "of reads and writes that had begun before");
        clients.note_failure(ms(9500));
        assert_eq!(clients.failover(), Some(Duration::ZERO), "the last one is told of");
    }

    #[test]
    fn a_stopwatch_adds_up() {
        let watch = Stopwatch::default();
        watch.note(false, ms(1));
        watch.note(true, ms(10));
        watch.note(true, ms(15));
        assert_eq!(watch.total(ms(20)), ms(10));
        watch.note(false, ms(30));
        watch.note(true, ms(100));
        assert_eq!(watch.total(ms(101)), ms(21));
    }
}
