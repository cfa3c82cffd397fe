//! What an array and its members have done since it was started: counts that only rise, for whoever takes differences of
//! them, and how long things took.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// What one array has done since it was started here.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Stats {
    /// Its name.
    pub name: String,
    /// Milliseconds since it was started.
    pub uptime_ms: u64,
    /// Milliseconds of these with a slot that had no member in sync.
    pub degraded_ms: u64,
    /// Milliseconds of these in which data was out of reach, or no write was taken though nobody had wished that.
    pub unavailable_ms: u64,
    /// *Failover duration*: microseconds that the slowest of the clients' reads and writes took that were under way when a
    /// member in sync failed the last time. Null: none has.
    pub failover_us: Option<u64>,
    /// Requests of clients that are under way.
    pub in_flight: u64,
    /// The clients' reads.
    pub reads: Operations,
    /// Their writes.
    pub writes: Operations,
    /// Their flushes.
    pub flushes: Operations,
    /// Their other requests: zeroing and trimming. No bytes are counted for them.
    pub others: Operations,
    /// Reads that took longer than usual and were asked of other members, too.
    pub hedged_reads: u64,
    /// Members in the order of their slots, then spares.
    pub members: Vec<MemberStats>,
}

/// Operations of one kind.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Operations {
    /// How many have ended, well or not.
    pub count: u64,
    /// How many of them failed.
    pub errors: u64,
    /// Bytes read or written.
    pub bytes: u64,
    /// Microseconds that all of them took together.
    pub total_us: u64,
    /// The longest of them, in microseconds.
    pub max_us: u64,
    /// How many took no longer than each of [`LATENCY_BOUNDS_US`], in its order.
    pub within: Vec<u64>,
}

/// Latencies that operations are counted by, in microseconds: powers of two from 16 us to 16.8 s.
pub const LATENCY_BOUNDS_US: [u64; 21] = {
    let mut bounds = [0; 21];
    let mut index = 0;
    while index < bounds.len() {
        bounds[index] = 16 << index;
        index += 1;
    }
    bounds
};

/// What one member has done.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct MemberStats {
    /// Its slot; null for a spare.
    pub slot: Option<u16>,
    /// Its path; null where the slot has no member.
    pub path: Option<String>,
    /// Operations that are under way.
    pub in_flight: u64,
    /// Reads of data and parity, for whatever purpose.
    pub reads: Operations,
    /// Writes of data and parity, and of zeroes.
    pub writes: Operations,
    /// Flushes.
    pub flushes: Operations,
    /// Errors by what was wrong.
    pub errors: ErrorCounts,
}

/// Errors by what was wrong.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ErrorCounts {
    /// The medium did not give or take the data.
    pub media: u64,
    /// There was no answer in time.
    pub timeout: u64,
    /// The device was gone.
    pub gone: u64,
    /// Anything else.
    pub other: u64,
}

impl Operations {
    /// What has been done since `before`, which is an earlier count of the same operations. All of it where it is not: after a
    /// restart counts begin anew. The longest is not known of a part, and left as it is.
    #[must_use]
    pub fn since(&self, before: &Operations) -> Operations {
        if before.count > self.count || before.within.len() != self.within.len() {
            return self.clone();
        }
        Operations {
            count: self.count - before.count,
            errors: self.errors.saturating_sub(before.errors),
            bytes: self.bytes.saturating_sub(before.bytes),
            total_us: self.total_us.saturating_sub(before.total_us),
            max_us: self.max_us,
            within: self
                .within
                .iter()
                .zip(&before.within)
                .map(|(now, then)| now.saturating_sub(*then))
                .collect(),
        }
    }

    /// What they took on average, in microseconds. None: there were none.
    pub fn mean_us(&self) -> Option<u64> {
        self.total_us.checked_div(self.count)
    }

    /// What so many per thousand of them took no longer than, in microseconds: the next bound, or the longest. None: there were
    /// none.
    pub fn quantile_us(&self, per_mille: u64) -> Option<u64> {
        let rank = (self.count * per_mille).div_ceil(1000).max(1);
        let within = self.within.iter().position(|&count| count >= rank);
        let bound = within.map_or(self.max_us, |index| LATENCY_BOUNDS_US[index].min(self.max_us));
        (self.count > 0).then_some(bound)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Operations that took so long, by hand.
    fn operations(latencies_us: &[u64]) -> Operations {
        Operations {
            count: latencies_us.len() as u64,
            total_us: latencies_us.iter().sum(),
            max_us: latencies_us.iter().copied().max().unwrap_or(0),
            within: LATENCY_BOUNDS_US
                .map(|bound| latencies_us.iter().filter(|&&us| us <= bound).count() as u64)
                .to_vec(),
            ..Operations::default()
        }
    }

    #[test]
    fn latencies_are_told_by_the_next_bound() {
        assert_eq!((LATENCY_BOUNDS_US[0], LATENCY_BOUNDS_US[20]), (16, 16_777_216));
        let some = operations(&[10, 20, 30, 1000]);
        assert_eq!(
            (some.mean_us(), some.quantile_us(500), some.quantile_us(990)),
            (Some(265), Some(32), Some(1000))
        );
        assert_eq!(operations(&[30_000_000]).quantile_us(500), Some(30_000_000), "longer than any bound");
        assert_eq!((operations(&[]).mean_us(), operations(&[]).quantile_us(500)), (None, None));
    }

    #[test]
    fn what_was_done_since_is_a_difference() {
        let (before, after) = (operations(&[10, 500]), operations(&[10, 500, 100, 100]));
        let since = after.since(&before);
        assert_eq!((since.count, since.total_us, since.quantile_us(990)), (2, 200, Some(128)));
        assert_eq!(before.since(&after), before, "it was started anew");
        assert_eq!(after.since(&Operations::default()), after);
    }
}
