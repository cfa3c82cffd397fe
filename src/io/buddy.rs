//! Which pages of an arena are free: a buddy allocator over bitmaps, that allocates nothing itself.
//!
//! For each order (a block of 2^order pages) there is a set of free blocks. A set is a bitmap with summaries above it, so
//! that the lowest free block is found in as many steps as there are levels: three for a gigabyte of pages.
//!
//! Invariants:
//! - Free blocks do not overlap, and no two buddies are free at a time: they are one block of the next order.
//! - The lowest address goes first, so that the arena does not crumble, and what has just been used is used again while it
//!   is in the processor's cache.

/// The free blocks of an arena.
pub(super) struct Buddies {
    /// By order.
    free: Vec<BitSet>,
    free_pages: usize,
}

impl Buddies {
    /// `pages` free pages, in blocks of `1 << (orders - 1)` pages. Panics unless they are whole ones.
    pub fn new(pages: usize, orders: usize) -> Buddies {
        let top = orders - 1;
        assert!(pages.is_multiple_of(1 << top));
        let mut free: Vec<BitSet> = (0..orders).map(|order| BitSet::new(pages >> order)).collect();
        (0..pages >> top).for_each(|index| assert!(free[top].insert(index)));
        Buddies { free, free_pages: pages }
    }

    /// Pages that nobody has.
    pub fn free_pages(&self) -> usize {
        self.free_pages
    }

    /// The first page of a block of this order, which is the caller's from now on.
    pub fn take(&mut self, order: usize) -> Option<usize> {
        let (from, index) =
            (order..self.free.len()).find_map(|from| Some((from, self.free[from].first()?)))?;
        self.free[from].remove(index);
        let page = index << from;
        for half in (order..from).rev() {
            self.free[half].insert((page >> half) + 1);
        }
        self.free_pages -= 1 << order;
        Some(page)
    }

    /// Takes a block back. Panics if it is free already.
    pub fn give(&mut self, page: usize, order: usize) {
        self.free_pages += 1 << order;
        let (mut index, mut order) = (page >> order, order);
        while order + 1 < self.free.len() && self.free[order].remove(index ^ 1) {
            index >>= 1;
            order += 1;
        }
        assert!(self.free[order].insert(index), "a block was given back twice");
    }
}

/// A set of numbers below a bound.
struct BitSet {
    /// The bits, then for each level a bit for each word of the one below that is not zero.
    levels: Vec<Vec<u64>>,
}

impl BitSet {
    fn new(bound: usize) -> BitSet {
        let mut levels = vec![vec![0; bound.div_ceil(64).max(1)]];
        while levels[levels.len() - 1].len() > 1 {
            levels.push(vec![0; levels[levels.len() - 1].len().div_ceil(64)]);
        }
        BitSet { levels }
    }

    fn first(&self) -> Option<usize> {
        let mut index = 0;
        for level in self.levels.iter().rev() {
            let word = level[index];
            if word == 0 {
                return None; // the topmost; below it no word that is pointed to is zero
            }
            index = index * 64 + word.trailing_zeros() as usize;
        }
        Some(index)
    }

    /// False if it was there.
    fn insert(&mut self, index: usize) -> bool {
        let mut place = index;
        for level in &mut self.levels {
            let (word, bit) = (&mut level[place / 64], 1 << (place % 64));
            let before = std::mem::replace(word, *word | bit);
            if before != 0 {
                return before & bit == 0 || place != index;
            }
            place /= 64;
        }
        true
    }

    /// False if it was not there.
    fn remove(&mut self, index: usize) -> bool {
        let mut place = index;
        for level in &mut self.levels {
            let (word, bit) = (&mut level[place / 64], 1 << (place % 64));
            if place == index && *word & bit == 0 {
                return false;
            }
            *word &= !bit;
            if *word != 0 {
                return true;
            }
            place /= 64;
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        #[test]
        fn a_bit_set_agrees_with_a_tree(steps in prop::collection::vec((any::<bool>(), 0usize..5000), 0..300)) {
            let (mut set, mut model) = (BitSet::new(5000), BTreeSet::new());
            for (insert, index) in steps {
                if insert {
                    prop_assert_eq!(set.insert(index), model.insert(index));
                } else {
                    prop_assert_eq!(set.remove(index), model.remove(&index));
                }
                prop_assert_eq!(set.first(), model.first().copied());
            }
        }

        #[test]
        fn blocks_do_not_overlap_and_all_come_back(orders in prop::collection::vec(0usize..9, 1..200)) {
            let mut buddies = Buddies::new(1024, 9);
            let mut taken: Vec<(usize, usize)> = Vec::new();
            for (step, order) in orders.into_iter().enumerate() {
                if let Some(page) = buddies.take(order) {
                    let block = page..page + (1 << order);
                    prop_assert!(block.end <= 1024 && page.is_multiple_of(1 << order));
                    prop_assert!(taken.iter().all(|&(other, size)| other + (1 << size) <= page || block.end <= other));
                    taken.push((page, order));
                } else {
                    prop_assert!(buddies.free_pages() < 1024);
                }
                if step % 3 == 2 {
                    let (page, order) = taken.swap_remove(step % taken.len());
                    buddies.give(page, order);
                }
                let out: usize = taken.iter().map(|&(_, order)| 1 << order).sum();
                prop_assert_eq!(buddies.free_pages(), 1024 - out);
            }
            taken.into_iter().for_each(|(page, order)| buddies.give(page, order));
            prop_assert_eq!((0..4).map(|_| buddies.take(8)).collect::<Option<Vec<_>>>(), Some(vec![0, 256, 512, 768]));
        }
    }

    #[test]
    #[should_panic(expected = "given back twice")]
    fn what_is_free_cannot_be_given_back() {
        let mut buddies = Buddies::new(4, 2);
        // Its buddy is out, so it stays what it is.
        let (page, _buddy) = (buddies.take(0).unwrap(), buddies.take(0).unwrap());
        buddies.give(page, 0);
        buddies.give(page, 0);
    }
}
