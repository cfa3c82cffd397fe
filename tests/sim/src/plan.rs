//! What a seed says: the array, its clients, what befalls them.

use crate::disk::Platter;
use crate::random::Random;
use crate::setup::{Making, SHAPES, Shape, planned};
use crate::store::Store;

/// How far faults go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Profile {
    /// Faults stay within what redundancy survives: no error is allowed, and redundancy is whole at the end.
    Within,
    /// They exceed it: errors and refusals are allowed, wrong bytes never.
    Beyond,
}

impl Profile {
    /// Its name on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Profile::Within => "within",
            Profile::Beyond => "beyond",
        }
    }
}

/// What can be left out of a run, to see whether it matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Crashes of any kind.
    Crashes = 1,
    /// Disks that die, or are failed by the operator.
    Failures = 2,
    /// Unreadable sectors.
    Unreadable = 4,
    /// Slow disks.
    Slowness = 8,
    /// Full disks.
    Full = 16,
    /// Zeroing and discarding.
    Zeroing = 32,
    /// NBD sessions between client and array.
    Sessions = 64,
    /// Disks that hang.
    Hangs = 128,
    /// Members that come and go as the operator says.
    Members = 256,
    /// Scrubs.
    Scrubs = 512,
}

impl Part {
    /// All of them, with the names they have on the command line.
    pub const ALL: [(Part, &'static str); 10] = [
        (Part::Crashes, "crashes"),
        (Part::Failures, "failures"),
        (Part::Unreadable, "unreadable"),
        (Part::Slowness, "slowness"),
        (Part::Full, "full"),
        (Part::Zeroing, "zeroing"),
        (Part::Sessions, "sessions"),
        (Part::Hangs, "hangs"),
        (Part::Members, "members"),
        (Part::Scrubs, "scrubs"),
    ];
}

/// What narrows a run down: the outcome of shrinking, or of curiosity.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Narrow {
    /// No more client operations than this.
    pub ops: Option<u64>,
    /// No more clients than this.
    pub workers: Option<usize>,
    /// `Part`s that are left out.
    pub without: u32,
}

impl Narrow {
    /// Whether this is left out.
    pub fn is_without(&self, part: Part) -> bool {
        self.without & part as u32 != 0
    }
}

/// A run, as its seed plans it.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The seed.
    pub seed: u64,
    /// How far faults go.
    pub profile: Profile,
    /// What is left out.
    pub narrow: Narrow,
    /// The array.
    pub shape: Shape,
    /// Disks that are in no array at first.
    pub others: usize,
    /// Data bytes of each disk.
    pub member_bytes: Vec<usize>,
    /// How it is made.
    pub making: Making,
    /// The slot that is missing when it is made.
    pub missing: Option<usize>,
    /// Bytes that clients' requests are multiples of.
    pub grain: u64,
    /// Clients, each with one request at a time.
    pub workers: usize,
    /// Client operations in each era, a time between two starts.
    pub eras: Vec<u64>,
    /// Whether clients are behind NBD sessions.
    pub sessions: bool,
    /// One of the director's looks in so many brings a fault.
    pub trouble: u64,
    /// Writes after which somebody flushes.
    pub unflushed_max: u64,
    /// Write everything before anything else.
    pub fill: bool,
}

impl Plan {
    /// The plan of a seed.
    pub fn new(seed: u64, profile: Profile, narrow: Narrow) -> Plan {
        let dice = Random::new(seed ^ 0x706c_616e);
        let (shape, block) = (Plan::shape(&dice, profile), *dice.pick(&[512, 512, 4096]));
        let zero = dice.one_in(2);
        let bitmap_kib = *dice.pick(&[None, Some(0), Some(16), Some(64)]);
        let assume_clean = !zero && dice.one_in(4);
        let making = Making { block, zero, assume_clean, bitmap_kib, uuid: 7 };
        let grain = match dice.below(16) {
            0 => 1,
            1 => 32,
            2 | 3 => 128,
            _ => 512,
        };
        let kib = dice.between(1, if grain < 512 { 2 } else { 8 }) * 24;
        // A RAID1 counts in units of 64 KiB.
        let kib = kib.max(if shape.level == 1 { 64 } else { shape.chunk_kib * 4 });
        let others = if shape.level == 0 { 0 } else { dice.below(4) as usize };
        let odd = |_| match shape.level {
            0 => dice.below(5) * 16,
            _ if dice.one_in(4) => dice.below(3) * 4,
            _ => 0,
        };
        let member_bytes = (0..shape.slots + others).map(|slot| ((kib + odd(slot)) << 10) as usize).collect();
        let eras = (0..dice.between(1, 6)).map(|_| dice.between(10, 250)).collect();
        let workers = *dice.pick(&[1, 2, 3, 4, 6, 8, 12]);
        let mut plan = Plan {
            seed,
            profile,
            narrow,
            shape,
            others,
            member_bytes,
            making,
            missing: None,
            grain,
            workers: workers.min(narrow.workers.unwrap_or(usize::MAX)),
            eras,
            sessions: dice.one_in(6) && !narrow.is_without(Part::Sessions),
            trouble: dice.between(1, 12),
            unflushed_max: *dice.pick(&[5, 15, 40]),
            fill: dice.one_in(2),
        };
        if shape.spare_slots > 0 && dice.one_in(10) {
            plan.missing = Some(dice.below(shape.slots as u64) as usize);
        }
        // Whoever is to come later must be large enough.
        let largest = plan.member_bytes.iter().copied().max().expect("a disk");
        let latecomers = plan.missing.into_iter().chain(shape.slots..shape.slots + others);
        latecomers.for_each(|disk| plan.member_bytes[disk] = largest);
        if !plan.is_possible() {
            plan.missing = None;
        }
        assert!(plan.is_possible(), "{plan:?}");
        plan
    }

    fn shape(dice: &Random, profile: Profile) -> Shape {
        loop {
            let mut shape = *dice.pick(SHAPES);
            if profile == Profile::Beyond && shape.level == 0 {
                continue;
            }
            if dice.one_in(2) {
                // The same layout on other disks.
                let least = if shape.level == 6 { 4 } else { 2 };
                shape.slots = dice.between(least, 8) as usize;
                shape.chunk_kib = match shape.level {
                    0 => *dice.pick(&[4, 12, 20, 64]),
                    1 => 0,
                    _ => *dice.pick(&[4, 4, 8, 16, 32]),
                };
                let copies = (shape.layout & 0xff) * (shape.layout >> 8 & 0xff);
                match shape.level {
                    1 => shape.spare_slots = shape.slots - 1,
                    10 if copies as usize > shape.slots => continue,
                    _ => {}
                }
            }
            return shape;
        }
    }

    fn is_possible(&self) -> bool {
        let platters: Vec<_> = (0..self.shape.slots)
            .map(|slot| (Some(slot) != self.missing).then(|| self.blank(slot)))
            .collect();
        planned(&self.shape, &platters, &self.making).is_some()
    }

    fn blank(&self, slot: usize) -> Platter {
        Platter::new(slot as u64, Store::recycled(self.shape.data_offset() + self.member_bytes[slot], 512))
    }

    /// The disks, as they come: full of garbage, or of zeroes where members are taken for clean.
    pub fn platters(&self) -> Vec<Platter> {
        let unit = self.making.block as usize;
        let platter = |slot: usize| {
            let mut store = Store::recycled(self.shape.data_offset() + self.member_bytes[slot], unit);
            let dice = Random::new(self.seed ^ slot as u64);
            let bytes = store.bytes_mut();
            bytes[..64 << 10].fill(0);
            let data = &mut bytes[self.shape.data_offset()..];
            if self.making.assume_clean {
                data.fill(0);
            } else {
                for word in data.chunks_exact_mut(8) {
                    word.copy_from_slice(&dice.bits().to_le_bytes());
                }
            }
            Platter::new(slot as u64, store)
        };
        (0..self.shape.slots + self.others).map(platter).collect()
    }

    /// Client operations in all.
    pub fn ops(&self) -> u64 {
        self.eras.iter().sum::<u64>().min(self.narrow.ops.unwrap_or(u64::MAX))
    }
}
