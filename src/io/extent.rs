//! What a device can say about its ranges, besides their bytes: which are allocated, healthy, dirty.

use std::ops::Range;

/// A question about ranges. What the answer's state means depends on it; 0 is always "nothing to report".
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ExtentKind {
    /// Whether there is space behind it, and whether it is known to read as zeroes: [`HOLE`], [`ZERO`].
    Allocation,
    /// Whether its redundancy is whole: [`DEGRADED`], [`RECOVERING`], [`BAD`], [`UNSYNCED`].
    Health,
    /// Whether the write-intent bitmap has it marked: [`DIRTY`].
    Dirty,
}

impl ExtentKind {
    /// All of them.
    pub const ALL: [ExtentKind; 3] = [ExtentKind::Allocation, ExtentKind::Health, ExtentKind::Dirty];
}

/// [`ExtentKind::Allocation`]: no space is behind it; a write may find none.
pub const HOLE: u32 = 1 << 0;
/// [`ExtentKind::Allocation`]: it reads as zeroes.
pub const ZERO: u32 = 1 << 1;

/// [`ExtentKind::Health`]: fewer members hold it than should.
pub const DEGRADED: u32 = 1 << 0;
/// [`ExtentKind::Health`]: a member is being filled and the recovery has not come there yet.
pub const RECOVERING: u32 = 1 << 1;
/// [`ExtentKind::Health`]: known to be out of reach; a read there fails until it is written anew.
pub const BAD: u32 = 1 << 2;
/// [`ExtentKind::Health`]: a resync has yet to make its redundancy agree with its data.
pub const UNSYNCED: u32 = 1 << 3;

/// [`ExtentKind::Dirty`]: marked, so that a resync after a crash would look at it.
pub const DIRTY: u32 = 1 << 0;

/// A run of bytes in one state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Not 0.
    pub len_bytes: u64,
    /// Bits as the question defines them.
    pub state: u32,
}

/// Extents one behind the other, neighbours in the same state merged.
#[derive(Debug)]
pub struct Extents {
    runs: Vec<Extent>,
    max: usize,
}

impl Extents {
    /// None yet, and room for `max` (not 0).
    pub fn new(max: usize) -> Extents {
        assert!(max > 0);
        Extents { runs: Vec::new(), max }
    }

    /// Adds a run; false if there is no room for it.
    pub fn push(&mut self, len_bytes: u64, state: u32) -> bool {
        if len_bytes == 0 {
            return true;
        }
        if let Some(last) = self.runs.last_mut()
            && last.state == state
        {
            last.len_bytes += len_bytes;
            return true;
        }
        let has_room = self.runs.len() < self.max;
        if has_room {
            self.runs.push(Extent { len_bytes, state });
        }
        has_room
    }

    /// Whether nothing has been added yet.
    pub fn is_empty(&self) -> bool {
        self.runs.is_empty()
    }

    /// All of them; at least one.
    pub fn finish(self) -> Vec<Extent> {
        assert!(!self.runs.is_empty(), "an answer about a range says something of it");
        self.runs
    }
}

/// The answer of who has nothing to report.
pub fn nothing_to_report(range: &Range<u64>) -> Vec<Extent> {
    vec![Extent { len_bytes: range.end - range.start, state: 0 }]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_merge_and_the_room_is_kept() {
        let mut extents = Extents::new(2);
        assert!(extents.push(512, HOLE) && extents.push(0, ZERO) && extents.push(512, HOLE));
        assert!(extents.push(1, 0));
        assert!(!extents.push(1, ZERO) && extents.push(7, 0));
        let expected = [Extent { len_bytes: 1024, state: HOLE }, Extent { len_bytes: 8, state: 0 }];
        assert_eq!(extents.finish(), expected);
    }
}
