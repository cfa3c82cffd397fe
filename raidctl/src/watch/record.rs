//! What has been seen so far: of each array the last look, what it did since the one before, and the last minutes of that for
//! the sparklines; and whether raidd answers.
//!
//! Invariants:
//! - A look that failed is a gap in every series, so that places in them are moments.
//! - An array is known by its UUID: one that is made anew under the same name has a history of its own.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use raidd::api::{DaemonStatus, Traffic};

use super::look::{Look, Seen};
use crate::activity::{Activity, p99_us, per_second, together};
use crate::info::busy;

/// Looks that are remembered: five minutes of them, at one a second.
pub const SAMPLES_MAX: usize = 300;

/// Everything that was seen.
pub struct Record {
    interval: Duration,
    arrays: Vec<Recorded>,
    daemon: Option<DaemonStatus>,
    busy: Vec<f64>,
    trouble: Option<String>,
    seen: Option<Instant>,
}

/// One array.
pub struct Recorded {
    /// The last look.
    pub seen: Seen,
    /// What clients had of it of late; none: nobody can tell yet.
    pub clients: Option<Clients>,
    /// What it and its members did since the look before; none: nobody counts, or there was no look before.
    pub activity: Option<Activity>,
    /// Bytes a second that clients read.
    pub reads: Series,
    /// Bytes a second that they wrote.
    pub writes: Series,
    /// What 99 of 100 of their reads and writes took no longer than, in microseconds.
    pub latencies: Series,
}

/// What clients had of an array since the look before.
#[derive(Clone, Copy, Debug)]
pub struct Clients {
    /// Bytes that they read, a second.
    pub read_bytes_per_sec: u64,
    /// Bytes that they wrote, a second.
    pub written_bytes_per_sec: u64,
    /// What 99 of 100 of their reads and writes took no longer than, in microseconds; none: there were none, or nobody counts.
    pub p99_us: Option<u64>,
}

impl Record {
    /// Nothing was seen yet; there will be a look every `interval`.
    pub fn new(interval: Duration) -> Record {
        Record { interval, arrays: Vec::new(), daemon: None, busy: Vec::new(), trouble: None, seen: None }
    }

    /// The arrays, in the order of their names.
    pub fn arrays(&self) -> &[Recorded] {
        &self.arrays
    }

    /// Their names.
    pub fn names(&self) -> Vec<&str> {
        self.arrays.iter().map(|array| array.seen.status.name.as_str()).collect()
    }

    /// The daemon; none: it does not tell.
    pub fn daemon(&self) -> Option<&DaemonStatus> {
        self.daemon.as_ref()
    }

    /// What part of the time since the look before each reactor was busy.
    pub fn busy(&self) -> &[f64] {
        &self.busy
    }

    /// Why there is nothing newer to be seen, where the last look failed.
    pub fn trouble(&self) -> Option<&str> {
        self.trouble.as_deref()
    }

    /// How old it is what is seen, where it should be newer.
    pub fn age(&self, now: Instant) -> Option<Duration> {
        let age = now.saturating_duration_since(self.seen?);
        let patience = 3 * self.interval + Duration::from_secs(2);
        (self.trouble.is_some() || age > patience).then_some(age)
    }

    /// What a whole series spans.
    pub fn span(&self) -> Duration {
        self.interval * SAMPLES_MAX as u32
    }

    /// Notes a look that failed.
    pub fn miss(&mut self, why: String) {
        self.trouble = Some(why);
        for array in &mut self.arrays {
            for series in [&mut array.reads, &mut array.writes, &mut array.latencies] {
                series.push(None);
            }
        }
    }

    /// Notes a look.
    pub fn note(&mut self, look: Look, now: Instant) {
        let since = self.seen.map_or(Duration::ZERO, |seen| now.saturating_duration_since(seen));
        let mut known = std::mem::take(&mut self.arrays);
        let recorded = look.arrays.into_iter().map(|seen| {
            let place = known.iter().position(|known| known.seen.status.uuid == seen.status.uuid);
            Recorded::after(place.map(|place| known.swap_remove(place)), seen, since)
        });
        self.arrays = recorded.collect();
        self.busy = match (&self.daemon, &look.daemon) {
            (Some(before), Some(now)) => {
                let pairs = before.reactors.iter().zip(&now.reactors);
                pairs.filter_map(|(before, now)| busy(before, now)).collect()
            }
            _ => Vec::new(),
        };
        self.daemon = look.daemon;
        (self.trouble, self.seen) = (None, Some(now));
    }
}

impl Recorded {
    fn after(before: Option<Recorded>, seen: Seen, since: Duration) -> Recorded {
        let then = before.as_ref().map(|before| &before.seen);
        let counts = (then.and_then(|then| then.stats.as_ref()), seen.stats.as_ref());
        let traffic = (then.and_then(|then| then.status.traffic), seen.status.traffic);
        let activity = match counts {
            (Some(then), Some(now)) => Some(Activity::between(Some(then), now)),
            _ => None,
        };
        let clients = match (&activity, traffic) {
            (Some(activity), _) => Some(counted(activity)),
            (None, (Some(then), Some(now))) if counts.1.is_none() => Some(only_bytes(&then, &now, since)),
            _ => None,
        };
        let (mut reads, mut writes, mut latencies) = match before {
            Some(before) => (before.reads, before.writes, before.latencies),
            None => Default::default(),
        };
        reads.push(clients.map(|clients| clients.read_bytes_per_sec));
        writes.push(clients.map(|clients| clients.written_bytes_per_sec));
        latencies.push(clients.and_then(|clients| clients.p99_us));
        Recorded { seen, clients, activity, reads, writes, latencies }
    }
}

fn counted(activity: &Activity) -> Clients {
    let done = together(&activity.clients.reads, &activity.clients.writes);
    let rate = |bytes| per_second(bytes, activity.over) as u64;
    Clients {
        read_bytes_per_sec: rate(activity.clients.reads.bytes),
        written_bytes_per_sec: rate(activity.clients.writes.bytes),
        p99_us: p99_us(&done),
    }
}

/// Of a raidd that does not count operations.
fn only_bytes(then: &Traffic, now: &Traffic, since: Duration) -> Clients {
    let rate = |now: u64, then: u64| per_second(now.saturating_sub(then), since) as u64;
    Clients {
        read_bytes_per_sec: rate(now.client_read_bytes, then.client_read_bytes),
        written_bytes_per_sec: rate(now.client_written_bytes, then.client_written_bytes),
        p99_us: None,
    }
}

/// What was measured at each look, the last [`SAMPLES_MAX`] of them.
#[derive(Clone, Debug, Default)]
pub struct Series {
    samples: VecDeque<Option<u64>>,
    /// Samples there ever were.
    count: usize,
}

impl Series {
    /// Notes one; none: nobody can tell.
    fn push(&mut self, sample: Option<u64>) {
        if self.samples.len() == SAMPLES_MAX {
            self.samples.pop_front();
        }
        self.samples.push_back(sample);
        self.count += 1;
    }

    /// All of it in so many columns, newest first: each is the highest of its stretch. A stretch keeps its borders, so
    /// that columns move, but do not change, when there is more.
    pub fn columns(&self, columns: usize) -> Vec<Option<u64>> {
        let stretch = SAMPLES_MAX.div_ceil(columns.max(1));
        let first = self.count - self.samples.len();
        let mut highest: Vec<Option<u64>> = Vec::new();
        for place in 0..columns {
            // Of the stretch that the newest is in, and those before it.
            let Some(number) = (self.count.saturating_sub(1) / stretch).checked_sub(place) else { break };
            let (from, to) = ((number * stretch).max(first), ((number + 1) * stretch).min(self.count));
            if from >= to {
                break;
            }
            highest.push((from..to).filter_map(|index| self.samples[index - first]).max());
        }
        highest
    }

    /// The highest of all.
    pub fn peak(&self) -> Option<u64> {
        self.samples.iter().flatten().max().copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn series(samples: impl IntoIterator<Item = Option<u64>>) -> Series {
        let mut series = Series::default();
        samples.into_iter().for_each(|sample| series.push(sample));
        series
    }

    #[test]
    fn a_series_fits_any_width() {
        assert_eq!(series([]).columns(10), []);
        let few = series([Some(1), None, Some(3)]);
        assert_eq!(few.columns(SAMPLES_MAX), [Some(3), None, Some(1)]);
        assert_eq!(few.columns(1), [Some(3)]);
        assert_eq!(few.columns(0), []);
        assert_eq!(few.peak(), Some(3));
        assert_eq!(series([None]).peak(), None);
        let many = series((0..1000).map(Some));
        assert_eq!(many.columns(SAMPLES_MAX).len(), SAMPLES_MAX);
        assert_eq!(many.columns(10_000).last(), Some(&Some(700)));
        let narrow = many.columns(100);
        assert_eq!(narrow.len(), 100);
        assert_eq!(narrow[..3], [Some(999), Some(998), Some(995)]);
    }

    #[test]
    fn a_column_keeps_what_it_shows() {
        let mut grows = series((0..500).map(|sample| Some(sample % 7)));
        let before = grows.columns(60);
        for _ in 0..5 {
            grows.push(Some(0));
        }
        let after = grows.columns(60);
        assert_eq!(after[1..59], before[..58], "it has moved by one, and nothing else");
    }
}
