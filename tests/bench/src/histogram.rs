//! Latencies in nanoseconds, counted in buckets that are at most 1/64 of their value wide.
//!
//! - Below 64 ns a bucket is one nanosecond; above, each power of two has 64 buckets.
//! - A quantile is the lower edge of its bucket, so it is at most 1.6 % too small.
//! - Recording never allocates; what lies beyond the last bucket is counted in it.

/// Buckets in each power of two.
const FINENESS: u64 = 64;
const FINENESS_LOG2: u32 = FINENESS.ilog2();
/// Up to 2^36 ns, more than a minute.
const BUCKETS: usize = (FINENESS as usize) * (36 - FINENESS_LOG2 as usize + 1);

/// How often each latency was seen.
#[derive(Clone)]
pub struct Histogram {
    counts: Vec<u64>,
    seen: u64,
    total_ns: u64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { counts: vec![0; BUCKETS], seen: 0, total_ns: 0 }
    }
}

/// The bucket that a latency falls into.
fn bucket(ns: u64) -> usize {
    if ns < FINENESS {
        return ns as usize;
    }
    let shift = ns.ilog2() - FINENESS_LOG2;
    let row = u64::from(shift) + 1;
    ((row * FINENESS + (ns >> shift) - FINENESS) as usize).min(BUCKETS - 1)
}

/// The smallest latency of a bucket.
fn lower_edge(bucket: usize) -> u64 {
    let (row, column) = (bucket as u64 / FINENESS, bucket as u64 % FINENESS);
    if row == 0 { column } else { (FINENESS + column) << (row - 1) }
}

impl Histogram {
    /// Counts one request.
    pub fn record(&mut self, ns: u64) {
        self.counts[bucket(ns)] += 1;
        self.seen += 1;
        self.total_ns += ns;
    }

    /// Adds what another one has counted.
    pub fn merge(&mut self, other: &Self) {
        for (ours, theirs) in self.counts.iter_mut().zip(&other.counts) {
            *ours += theirs;
        }
        self.seen += other.seen;
        self.total_ns += other.total_ns;
    }

    /// How many requests were counted.
    pub fn seen(&self) -> u64 {
        self.seen
    }

    /// The mean in microseconds; 0 when nothing was counted.
    pub fn mean_us(&self) -> f64 {
        if self.seen == 0 { 0.0 } else { self.total_ns as f64 / self.seen as f64 / 1e3 }
    }

    /// The latency in microseconds that a share of the requests (0.0 to 1.0) did not exceed.
    pub fn quantile_us(&self, share: f64) -> f64 {
        let wanted = ((self.seen as f64 * share).ceil() as u64).max(1);
        let mut below = 0;
        let found = self.counts.iter().position(|count| {
            below += count;
            below >= wanted
        });
        found.map_or(0.0, |bucket| lower_edge(bucket) as f64 / 1e3)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_latency_is_in_the_bucket_whose_edges_enclose_it() {
        for ns in (0..5000).chain((12..36).flat_map(|bit| [(1 << bit) - 1, 1 << bit, (1 << bit) + 1])) {
            let found = bucket(ns);
            assert!(lower_edge(found) <= ns, "{ns} lies below bucket {found}");
            assert!(ns < lower_edge(found + 1), "{ns} lies above bucket {found}");
        }
    }

    #[test]
    fn a_bucket_is_at_most_a_64th_of_its_value_wide() {
        for index in FINENESS as usize..BUCKETS - 1 {
            let (low, high) = (lower_edge(index), lower_edge(index + 1));
            assert!((high - low) * FINENESS <= low, "bucket {index}: {low}..{high}");
        }
    }

    #[test]
    fn what_is_too_slow_for_the_last_bucket_is_counted_in_it() {
        let mut histogram = Histogram::default();
        histogram.record(u64::from(u32::MAX) << 8);
        assert_eq!(histogram.seen(), 1);
        assert!(histogram.quantile_us(0.5) > 60e6);
    }

    #[test]
    fn quantiles_of_two_merged_histograms() {
        let (mut fast, mut slow) = (Histogram::default(), Histogram::default());
        (0..99).for_each(|_| fast.record(1024));
        slow.record(1 << 20);
        fast.merge(&slow);
        assert_eq!(fast.seen(), 100);
        assert_eq!(fast.quantile_us(0.5), 1.024);
        assert_eq!(fast.quantile_us(0.99), 1.024);
        assert_eq!(fast.quantile_us(0.999), 1048.576);
        assert!((fast.mean_us() - (99.0 * 1.024 + 1048.576) / 100.0).abs() < 1e-9);
    }

    #[test]
    fn nothing_seen_is_no_latency() {
        assert_eq!((Histogram::default().mean_us(), Histogram::default().quantile_us(0.99)), (0.0, 0.0));
    }
}
