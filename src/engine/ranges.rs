//! A set of rows, kept as disjoint ranges.

use std::collections::BTreeMap;
use std::ops::Range;

/// Disjoint, non-touching ranges, by their starts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct RowSet {
    ranges: BTreeMap<u64, u64>,
}

impl RowSet {
    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// Whether any of these rows is in the set.
    pub fn overlaps(&self, rows: &Range<u64>) -> bool {
        self.ranges.range(..rows.end).next_back().is_some_and(|(_, &end)| end > rows.start)
    }

    pub fn insert(&mut self, rows: Range<u64>) {
        let (mut start, mut end) = (rows.start, rows.end);
        while let Some((&low, &high)) = self.ranges.range(..=end).next_back() {
            if high < start {
                break;
            }
            self.ranges.remove(&low);
            (start, end) = (start.min(low), end.max(high));
        }
        self.ranges.insert(start, end);
    }

    pub fn remove(&mut self, rows: &Range<u64>) {
        while let Some((&low, &high)) = self.ranges.range(..rows.end).next_back() {
            if high <= rows.start {
                break;
            }
            self.ranges.remove(&low);
            if high > rows.end {
                self.ranges.insert(rows.end, high);
            }
            if low < rows.start {
                self.ranges.insert(low, rows.start);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn agrees_with_a_row_by_row_set(
            steps in prop::collection::vec((any::<bool>(), 0u64..60, 1u64..20), 0..60),
        ) {
            let (mut set, mut model) = (RowSet::default(), [false; 80]);
            for (insert, start, len) in steps {
                let rows = start..start + len;
                model[start as usize..(start + len) as usize].fill(insert);
                if insert { set.insert(rows) } else { set.remove(&rows) }
                for row in 0..80u64 {
                    prop_assert_eq!(set.overlaps(&(row..row + 1)), model[row as usize]);
                }
                prop_assert_eq!(set.is_empty(), !model.contains(&true));
            }
        }
    }
}
