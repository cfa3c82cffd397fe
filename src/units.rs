//! The number types of the house: what a number counts is its type.
//!
//! md counts in sectors of 512 bytes, whatever the device says its block size is; clients count in bytes. Mixing
//! the two up is the classic RAID bug, so neither is a bare integer where they meet.

use std::fmt;
use std::ops::{Add, AddAssign, Sub};

/// Bytes in an md sector, always.
pub const SECTOR_BYTES: u64 = 512;

/// A place or a length in sectors of 512 bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Sector(pub u64);

impl Sector {
    /// The first sector, or no length.
    pub const ZERO: Sector = Sector(0);
    /// md's "everything": a resync_offset of this says that the array is clean.
    pub const MAX: Sector = Sector(u64::MAX);

    /// The same place or length in bytes. Panics if that does not fit 64 bits.
    pub const fn bytes(self) -> u64 {
        self.0.checked_mul(SECTOR_BYTES).expect("a sector number within 2^55")
    }

    /// The whole sectors in so many bytes.
    pub const fn floor(bytes: u64) -> Sector {
        Sector(bytes / SECTOR_BYTES)
    }

    /// The sectors that so many bytes need.
    pub const fn ceil(bytes: u64) -> Sector {
        Sector(bytes.div_ceil(SECTOR_BYTES))
    }

    /// Rounded down to a multiple of `unit`.
    pub const fn round_down(self, unit: Sector) -> Sector {
        Sector(self.0 - self.0 % unit.0)
    }
}

impl Add for Sector {
    type Output = Sector;
    fn add(self, other: Sector) -> Sector {
        Sector(self.0 + other.0)
    }
}

impl AddAssign for Sector {
    fn add_assign(&mut self, other: Sector) {
        self.0 += other.0;
    }
}

impl Sub for Sector {
    type Output = Sector;
    fn sub(self, other: Sector) -> Sector {
        Sector(self.0 - other.0)
    }
}

impl fmt::Display for Sector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// The number of a stripe: one chunk on every member, counted from the start of the data area.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StripeIndex(pub u64);

/// A member's position in the array, md's "role" or "raid device" number, from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MemberSlot(pub u16);

impl MemberSlot {
    /// As an index into a table with one entry a slot.
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

impl fmt::Display for MemberSlot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// The superblock's count of metadata updates; the higher one is the fresher.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EventCount(pub u64);

impl fmt::Display for EventCount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}
