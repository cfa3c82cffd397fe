//! A set of rows, kept as disjoint ranges.

use std::collections::BTreeMap;
use std::ops::Range;

/// Disjoint, non-touching ranges, by their starts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct RowSet {
    ranges: BTreeMap<u64, u64>,
}

impl FromIterator<Range<u64>> for RowSet {
    fn from_iter<I: IntoIterator<Item = Range<u64>>>(ranges: I) -> RowSet {
        let mut set = RowSet::default();
        ranges.into_iter().filter(|rows| !rows.is_empty()).for_each(|rows| set.insert(rows));
        set
    }
}

impl RowSet {
    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// Whether any of these rows is in the set.
    pub fn overlaps(&self, rows: &Range<u64>) -> bool {
        self.ranges.range(..rows.end).next_back().is_some_and(|(_, &end)| end > rows.start)
    }

    /// All of it, ascending.
    pub fn ranges(&self) -> impl Iterator<Item = Range<u64>> + '_ {
        self.ranges.iter().map(|(&start, &end)| start..end)
    }

    /// The first range that ends behind `row`, without what lies before it.
    pub fn next_from(&self, row: u64) -> Option<Range<u64>> {
        let around = self.ranges.range(..=row).next_back().filter(|(_, end)| **end > row);
        let found = around.or_else(|| self.ranges.range(row..).next());
        found.map(|(&start, &end)| start.max(row)..end)
    }

    /// How many rows there are.
    pub fn count(&self) -> u64 {
        self.ranges().map(|rows| rows.end - rows.start).sum()
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
                prop_assert_eq!(set.count(), model.iter().filter(|&&there| there).count() as u64);
                let first = (start as usize..80).find(|&row| model[row]).map(|row| row as u64);
                prop_assert_eq!(set.next_from(start).map(|rows| rows.start), first);
                prop_assert_eq!(set.ranges().collect::<RowSet>(), set.clone());
            }
        }
    }
}
