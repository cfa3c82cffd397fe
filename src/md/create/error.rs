//! Why an array cannot be created: what, why, and what to do.

use std::fmt;

use thiserror::Error;

use crate::units::{MemberSlot, Sector};

/// A device of an array that is being created.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NewMember {
    /// The member of this slot.
    Slot(MemberSlot),
    /// The spare of this index.
    Spare(usize),
}

impl NewMember {
    /// Its number in the role table.
    pub(super) fn dev_number(self, raid_disks: u32) -> u32 {
        match self {
            NewMember::Slot(slot) => u32::from(slot.0),
            NewMember::Spare(index) => raid_disks + u32::try_from(index).expect("at most 1920 devices"),
        }
    }
}

impl fmt::Display for NewMember {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            NewMember::Slot(slot) => write!(f, "member {slot}"),
            NewMember::Spare(index) => write!(f, "spare {index}"),
        }
    }
}

/// Why an array cannot be created.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum CreateError {
    /// No such level.
    #[error("there is no level {0}; take one of 0, 1, 4, 5, 6, 10")]
    Level(i32),
    /// A chunk that the level cannot have.
    #[error(
        "a chunk of {} bytes does not do at level {level}; take a {} of 4 KiB to 1 GiB",
        .chunk.0.saturating_mul(512), if *.level == 0 { "multiple" } else { "power of two" }
    )]
    Chunk {
        /// The chunk wanted, in sectors.
        chunk: Sector,
        /// The level.
        level: i32,
    },
    /// A layout that the level does not have, or not with so few members.
    #[error(
        "level {level} has no layout {layout:#x} with this number of members; leave it out to get the usual one"
    )]
    Layout {
        /// md's number of the layout.
        layout: u32,
        /// The level.
        level: i32,
    },
    /// Fewer slots than the level is made of.
    #[error("level {level} needs {least} members, not {slots}; add some ('missing' may stand for a few)")]
    TooFewSlots {
        /// The level.
        level: i32,
        /// Slots wanted.
        slots: usize,
        /// Slots needed.
        least: usize,
    },
    /// More devices than a superblock can list.
    #[error("{0} devices are more than an array can have, which is 1920")]
    TooManyDevices(usize),
    /// More missing than redundancy makes up for.
    #[error(
        "with {missing} members missing there is no array at level {level}, which can start without {spared} of these; name more devices"
    )]
    TooManyMissing {
        /// The level.
        level: i32,
        /// Slots without a device.
        missing: usize,
        /// Of these, slots that may be without.
        spared: usize,
    },
    /// P and Q could disagree and never be resynced.
    #[error(
        "a RAID6 with one member missing could not have its parity initialised; name all members, or call two missing and give one as a spare, or assume that it is clean"
    )]
    Raid6OneMissing,
    /// A device that does not hold what it should.
    #[error(
        "{member} has {} KiB, but metadata and data need {} KiB; take a larger device{}",
        .device.0 / 2, .least.0.div_ceil(2), " or a smaller size"
    )]
    DeviceTooSmall {
        /// Which device.
        member: NewMember,
        /// Its size.
        device: Sector,
        /// What it should have.
        least: Sector,
    },
    /// A size below one chunk.
    #[error("a size of {} KiB a member is less than the least, {} KiB; take a larger one", .size.0 / 2, .unit.0 / 2)]
    SizeTooSmall {
        /// The size wanted.
        size: Sector,
        /// The least there can be.
        unit: Sector,
    },
    /// RAID0 uses all there is.
    #[error("level 0 uses all of each member, so it takes no size; leave it out")]
    SizeAtLevel0,
    /// Beyond what Linux addresses.
    #[error("the array would be too large for Linux or for its bitmap; use smaller or fewer members")]
    ArrayTooLarge,
    /// One or the other.
    #[error("an array has a write-intent bitmap or a partial parity log, not both; choose one")]
    BitmapAndPpl,
    /// Nothing to resync.
    #[error("level 0 has no redundancy for a write-intent bitmap to help with; leave it out")]
    BitmapAtLevel0,
    /// Only RAID5 has one.
    #[error("a partial parity log is for level 5, not {0}; use a bitmap")]
    PplAtLevel(i32),
    /// A name that does not fit, or that nobody could type.
    #[error(
        "{0:?} cannot be an array's name: it takes 1 to 31 bytes without control characters; choose another"
    )]
    Name(String),
}
