//! The bytes of a simulated disk: what is written and what is durable, kept apart by the *unit*, the sector that the disk
//! writes in one piece.
//!
//! Every unit has the versions it has had since the last one that is known to be durable. A crash of the machine leaves
//! any of them, each unit for itself. A flush makes durable what was answered before it began.
//!
//! Invariants:
//! - `bytes` is what a read gives. A unit's chain of versions holds what each write since the durable one has replaced,
//!   newest first; a unit without a chain is durable as it is.

use std::cell::RefCell;

use crate::random::Random;

const NONE: u32 = u32::MAX;

/// The bytes of a disk.
#[derive(Clone)]
pub struct Store {
    bytes: Vec<u8>,
    unit: usize,
    /// By unit: the newest of its versions.
    newest: Vec<u32>,
    versions: Vec<Version>,
    free: Vec<u32>,
    /// What each version has replaced, in the order of `versions`.
    replaced: Vec<u8>,
    /// Units that have versions.
    volatile: Vec<u32>,
    clock: u64,
}

#[derive(Clone, Copy)]
struct Version {
    older: u32,
    write: u64,
    /// When its write was answered; 0 if it was not.
    answered: u64,
}

/// What a machine crash does to what is not durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Luck {
    /// All of it got to the media all the same.
    All,
    /// None of it.
    None,
    /// Some, in any order.
    Some,
    /// Nearly all: one unit in a few is lost.
    Most,
}

thread_local! {
    /// Memory of stores that are gone, for the next.
    static USED: RefCell<Vec<Store>> = const { RefCell::new(Vec::new()) };
}

impl Store {
    /// A disk with this content, which is durable.
    pub fn new(bytes: Vec<u8>, unit: usize) -> Store {
        let units = bytes.len().div_ceil(unit);
        Store {
            bytes,
            unit,
            newest: vec![NONE; units],
            versions: Vec::new(),
            free: Vec::new(),
            replaced: Vec::new(),
            volatile: Vec::new(),
            clock: 1,
        }
    }

    /// A disk of so many bytes, in the memory of one that is gone; its content is whatever that had, up to `garbage`.
    pub fn recycled(len: usize, unit: usize) -> Store {
        let used = USED.with_borrow_mut(Vec::pop);
        let Some(mut store) = used else { return Store::new(vec![0; len], unit) };
        store.bytes.resize(len, 0);
        store.unit = unit;
        store.newest.clear();
        store.newest.resize(len.div_ceil(unit), NONE);
        store.forget();
        store.clock = 1;
        store
    }

    /// Keeps the memory for the next.
    pub fn recycle(self) {
        USED.with_borrow_mut(|used| {
            if used.len() < 16 {
                used.push(self);
            }
        });
    }

    fn forget(&mut self) {
        self.versions.clear();
        self.free.clear();
        self.replaced.clear();
        self.volatile.clear();
    }

    /// What a read gives.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Changes the content behind everybody's back, durably.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.bytes
    }

    /// Bytes of a unit.
    pub fn unit(&self) -> usize {
        self.unit
    }

    /// Puts bytes there, into the cache. Whole units.
    pub fn put(&mut self, write: u64, at: usize, data: &[u8]) {
        self.change(write, at, data.len());
        self.bytes[at..at + data.len()].copy_from_slice(data);
    }

    /// Puts zeroes there, into the cache.
    pub fn put_zeroes(&mut self, write: u64, at: usize, len: usize) {
        self.change(write, at, len);
        self.bytes[at..at + len].fill(0);
    }

    fn change(&mut self, write: u64, at: usize, len: usize) {
        assert!((at | len).is_multiple_of(self.unit), "a write of part of a unit: {at}+{len}");
        for number in at / self.unit..(at + len) / self.unit {
            let older = self.newest[number];
            if older != NONE && self.versions[older as usize].write == write {
                continue;
            }
            if older == NONE {
                self.volatile.push(number as u32);
            }
            let version = Version { older, write, answered: 0 };
            let start = number * self.unit;
            let content = &self.bytes[start..start + self.unit];
            self.newest[number] = match self.free.pop() {
                Some(slot) => {
                    self.versions[slot as usize] = version;
                    self.replaced[slot as usize * self.unit..][..self.unit].copy_from_slice(content);
                    slot
                }
                None => {
                    self.versions.push(version);
                    self.replaced.extend_from_slice(content);
                    self.versions.len() as u32 - 1
                }
            };
        }
    }

    /// A write is answered: a flush covers it from now on; with `durable` it is durable already.
    pub fn answer(&mut self, write: u64, at: usize, len: usize, durable: bool) {
        self.clock += 1;
        let now = self.clock;
        for number in at / self.unit..(at + len) / self.unit {
            let mut version = self.newest[number];
            while version != NONE && self.versions[version as usize].write != write {
                version = self.versions[version as usize].older;
            }
            if version == NONE {
                continue; // Something later is durable there.
            }
            self.versions[version as usize].answered = now;
            if durable {
                self.settle(number, version);
            }
        }
        if durable {
            let newest = &self.newest;
            self.volatile.retain(|&number| newest[number as usize] != NONE);
            self.tidy();
        }
    }

    /// Nothing is under way any more: a flush covers all that is there.
    pub fn answer_all(&mut self) {
        self.clock += 1;
        for version in self.versions.iter_mut().filter(|version| version.answered == 0) {
            version.answered = self.clock;
        }
    }

    /// This version of a unit is durable: it and what it replaced are no longer kept.
    fn settle(&mut self, number: usize, version: u32) {
        if self.newest[number] == version {
            self.newest[number] = NONE;
        } else {
            let mut later = self.newest[number];
            while self.versions[later as usize].older != version {
                later = self.versions[later as usize].older;
            }
            self.versions[later as usize].older = NONE;
        }
        let mut gone = version;
        while gone != NONE {
            self.free.push(gone);
            gone = self.versions[gone as usize].older;
        }
    }

    fn tidy(&mut self) {
        if self.volatile.is_empty() {
            self.forget();
        }
    }

    /// When a flush begins that covers all that was answered by now.
    pub fn begin_flush(&self) -> u64 {
        self.clock
    }

    /// A flush that began then has ended.
    pub fn end_flush(&mut self, begun: u64) {
        let volatile = std::mem::take(&mut self.volatile);
        for &number in &volatile {
            let mut version = self.newest[number as usize];
            while version != NONE {
                let Version { older, answered, .. } = self.versions[version as usize];
                if answered != 0 && answered <= begun {
                    self.settle(number as usize, version);
                    break;
                }
                version = older;
            }
        }
        self.volatile = volatile;
        let newest = &self.newest;
        self.volatile.retain(|&number| newest[number as usize] != NONE);
        self.tidy();
    }

    /// The machine crashes: of what is not durable, some is lost. Says how many units are not as they were.
    pub fn lose(&mut self, luck: Luck, dice: &Random) -> u64 {
        let mut lost = 0;
        self.volatile.sort_unstable();
        for number in std::mem::take(&mut self.volatile) {
            let number = number as usize;
            let newest = std::mem::replace(&mut self.newest[number], NONE);
            let mut count = 0;
            let mut version = newest;
            while version != NONE {
                count += 1;
                version = self.versions[version as usize].older;
            }
            let back = match luck {
                Luck::All => 0,
                Luck::None => count,
                Luck::Some => dice.below(count + 1),
                Luck::Most => {
                    if dice.one_in(6) {
                        dice.between(1, count)
                    } else {
                        0
                    }
                }
            };
            if back > 0 {
                version = newest;
                for _ in 1..back {
                    version = self.versions[version as usize].older;
                }
                let old = &self.replaced[version as usize * self.unit..][..self.unit];
                self.bytes[number * self.unit..][..self.unit].copy_from_slice(old);
                lost += 1;
            }
        }
        self.forget();
        lost
    }

    /// Everything is durable as it is.
    pub fn settle_all(&mut self) {
        for number in std::mem::take(&mut self.volatile) {
            self.newest[number as usize] = NONE;
        }
        self.forget();
    }
}
