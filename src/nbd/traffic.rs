//! What a client's requests are like, as far as it matters to where they are best served.
//!
//! A small request costs twice as much when it crosses from the connection's reactor to the array's. Of a large read nearly
//! all is copying, once from a member and once into the socket; two reactors do that faster than one.
//!
//! Invariant: a change is told of only after so many requests in a row that what it costs to act on it (the connection is
//! drained once, some 0.1 ms) is a few hundredths of their own time.

/// What a client's requests are like.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Traffic {
    /// Of any kind.
    #[default]
    Mixed,
    /// Large reads, and nothing else for some time.
    LargeReads,
}

/// The shortest read that gains by a second reactor.
const LARGE_READ_BYTES: u64 = 512 << 10;

/// So many large reads in a row are a stream of them: some ms.
const LARGE_READS_IN_A_ROW: u32 = 32;

/// So many others in a row end it: a few ms of a busy client.
const OTHERS_IN_A_ROW: u32 = 1024;

/// Looks for a change of the traffic.
#[derive(Debug)]
pub(super) struct TrafficWatch {
    now: Traffic,
    /// Requests in a row that are not like it.
    unlike: u32,
}

impl TrafficWatch {
    /// Of a client whose traffic is like this.
    pub(super) fn new(now: Traffic) -> TrafficWatch {
        TrafficWatch { now, unlike: 0 }
    }

    /// A request was taken, which reads so much (0 if it does something else).
    pub(super) fn note(&mut self, read_bytes: u64) {
        let is_large = read_bytes >= LARGE_READ_BYTES;
        let is_like = is_large == (self.now == Traffic::LargeReads);
        self.unlike = if is_like { 0 } else { self.unlike.saturating_add(1) };
    }

    /// Now is no time for it: waits for as many again.
    pub(super) fn begin_anew(&mut self) {
        self.unlike = 0;
    }

    /// What the traffic has become, if it has changed.
    pub(super) fn change(&self) -> Option<Traffic> {
        match self.now {
            Traffic::Mixed => (self.unlike >= LARGE_READS_IN_A_ROW).then_some(Traffic::LargeReads),
            Traffic::LargeReads => (self.unlike >= OTHERS_IN_A_ROW).then_some(Traffic::Mixed),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noted(watch: &mut TrafficWatch, read_bytes: u64, count: u32) -> Option<Traffic> {
        (0..count).for_each(|_| watch.note(read_bytes));
        watch.change()
    }

    #[test]
    fn a_stream_of_large_reads_begins_and_ends_after_many_in_a_row() {
        let mut watch = TrafficWatch::new(Traffic::Mixed);
        for _ in 0..10 {
            assert_eq!(noted(&mut watch, 1 << 20, LARGE_READS_IN_A_ROW - 1), None);
            assert_eq!(noted(&mut watch, 0, 1), None, "a write in between");
        }
        assert_eq!(noted(&mut watch, LARGE_READ_BYTES - 1, 10_000), None);
        assert_eq!(noted(&mut watch, LARGE_READ_BYTES, LARGE_READS_IN_A_ROW), Some(Traffic::LargeReads));
        assert_eq!(noted(&mut watch, LARGE_READ_BYTES, 5), Some(Traffic::LargeReads), "until it is acted on");

        let mut watch = TrafficWatch::new(Traffic::LargeReads);
        for _ in 0..3 {
            assert_eq!(noted(&mut watch, 4096, OTHERS_IN_A_ROW - 1), None);
            assert_eq!(noted(&mut watch, 1 << 20, 1), None);
        }
        assert_eq!(noted(&mut watch, 0, OTHERS_IN_A_ROW), Some(Traffic::Mixed));
    }
}
