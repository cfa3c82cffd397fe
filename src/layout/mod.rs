//! Where on the members an array's sectors lie: the arithmetic of every md layout that raidd serves.
//!
//! A [`Shape`] is what the superblocks say, a [`Geometry`] what follows from it. There are two kinds, as the engine has
//! two ways to keep data: [`Copies`] (levels 0, 1, 10), where a sector lies somewhere as it is, once or several times,
//! and [`Parity`] (4, 5, 6), where members hold data and what makes up for lost data. Member sectors are counted from
//! the start of a member's data area throughout; the data offset is the caller's.
//!
//! Pure and total: whatever a superblock says, [`Geometry::new`] gives a geometry or an error. Behind it sizes are
//! bounded, so no arithmetic overflows, and asking for what lies outside the array is the caller's mistake: a panic.
//!
//! Invariants, of every geometry:
//! - No two array sectors share a member sector, nor does parity share one with data.
//! - The copies of a sector, and the chunks of a stripe, are on different members.
//!
//! The formulas are Linux's (`raid0.c`, `raid10.c` and `raid5.c` in `drivers/md`, 6.1); `tables.rs` says how they were
//! checked.

mod copies;
mod level;
mod names;
mod parity;
mod raid0;
mod raid10;

#[cfg(test)]
mod naive;
#[cfg(test)]
mod tables;
#[cfg(test)]
mod tests;

pub use copies::{Copies, Extent, Place, Places};
pub use level::Level;
pub use names::{default_layout, layout_name, parse_layout};
pub use parity::{Location, Parity, Stripe};

use crate::units::Sector;

/// The most members that an array can have: the entries that fit the role table of a 4 KiB superblock.
pub const MAX_SLOTS: u16 = 1920;

/// The most sectors of a member or of an array: 2^63 bytes, what fits the kernel's file offsets.
pub const MAX_SECTORS: u64 = 1 << 54;

/// What the superblocks of an array say that decides where its sectors lie.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shape {
    /// The level.
    pub level: Level,
    /// md's layout field; its meaning depends on the level. RAID1 and RAID4 ignore it, as the kernel does.
    pub layout: u32,
    /// Sectors of a chunk. RAID1 has none and ignores it.
    pub chunk: Sector,
    /// Members of the array: md's `raid_disks`.
    pub slots: u16,
    /// Sectors of each member that the array may use: the component size, md's `size`. RAID0 does not use it.
    pub member: Sector,
    /// RAID0 only: the data sectors of each member by slot, md's `data_size`.
    pub raid0_members: Vec<Sector>,
}

/// Where an array's sectors lie.
#[derive(Clone, Debug)]
pub enum Geometry {
    /// Levels 0, 1 and 10.
    Copies(Copies),
    /// Levels 4, 5 and 6.
    Parity(Parity),
}

/// Why there is no geometry of a shape.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LayoutError {
    /// The level needs more members.
    #[error("{level} of {slots} members: it needs at least {least}")]
    TooFewMembers {
        /// The array's level.
        level: Level,
        /// Its members.
        slots: u16,
        /// How many it needs.
        least: u16,
    },
    /// The level cannot have so many members.
    #[error("{level} of {slots} members: it can have no more than {most}")]
    TooManyMembers {
        /// The array's level.
        level: Level,
        /// Its members.
        slots: u16,
        /// How many it can have.
        most: u16,
    },
    /// The layout number means nothing.
    #[error("{level} has no layout {layout} ({layout:#x})")]
    UnknownLayout {
        /// The array's level.
        level: Level,
        /// md's layout field.
        layout: u32,
    },
    /// The chunk is zero.
    #[error("{level} needs a chunk size, and it is 0")]
    ZeroChunk {
        /// The array's level.
        level: Level,
    },
    /// The chunk is not what the level needs.
    #[error("a chunk of {chunk} sectors: {level} needs a power of two, and at least 8 (4 KiB)")]
    ChunkSize {
        /// The array's level.
        level: Level,
        /// Sectors of the chunk.
        chunk: Sector,
    },
    /// RAID1 with members of no size.
    #[error("the component size is 0: there is no room for data on the members")]
    ZeroMember,
    /// Not one chunk fits a member.
    #[error("{member} sectors of each member do not hold a chunk of {chunk} sectors for every copy")]
    MemberTooSmall {
        /// Sectors of the member.
        member: Sector,
        /// Sectors of a chunk.
        chunk: Sector,
    },
    /// A size is beyond what a device can have.
    #[error("a member or the array would be larger than 8 EiB")]
    TooLarge,
    /// RAID0 needs the size of each of its members.
    #[error("the sizes of {sizes} members are known, and raid0 of {slots} needs all")]
    MemberSizes {
        /// How many sizes there are.
        sizes: usize,
        /// Members of the array.
        slots: u16,
    },
    /// RAID0 whose members differ in size, and which does not say how.
    #[error(
        "the members of this raid0 differ in size ({zones} zones), and its superblock does not say whether its layout is \
         original (1) or alternate (2): the wrong one would mix up its data"
    )]
    AmbiguousZones {
        /// Parts of the array that are striped over different members.
        zones: usize,
    },
    /// RAID10 without a second copy, or with more copies than members.
    #[error("raid10 with {copies} copies of each chunk on {slots} members: it needs 2 to {slots}")]
    CopyCount {
        /// Near copies times far copies.
        copies: u32,
        /// Members of the array.
        slots: u16,
    },
    /// RAID10 with copies of a chunk on one member, or two chunks in one place.
    #[error(
        "raid10 layout {layout:#x} does not work with {slots} members: copies would share a member or a place"
    )]
    CopiesCollide {
        /// md's layout field.
        layout: u32,
        /// Members of the array.
        slots: u16,
    },
}

impl Geometry {
    /// The geometry of a shape. Any values may be in it; the error says which one cannot be.
    pub fn new(shape: &Shape) -> Result<Geometry, LayoutError> {
        check_slots(shape.level, shape.slots, 1, MAX_SLOTS)?;
        if shape.level != Level::Raid0 {
            check_size(shape.member)?;
        }
        if shape.level.parity_count() > 0 {
            Parity::new(shape).map(Geometry::Parity)
        } else {
            Copies::new(shape).map(Geometry::Copies)
        }
    }

    /// Sectors of the array.
    pub fn array_sectors(&self) -> Sector {
        match self {
            Geometry::Copies(copies) => copies.array_sectors(),
            Geometry::Parity(parity) => parity.array_sectors(),
        }
    }

    /// Members of the array.
    pub fn slots(&self) -> u16 {
        match self {
            Geometry::Copies(copies) => copies.slots(),
            Geometry::Parity(parity) => parity.slots(),
        }
    }

    /// Sectors of a chunk. RAID1 has none.
    pub fn chunk(&self) -> Option<Sector> {
        match self {
            Geometry::Copies(copies) => copies.chunk(),
            Geometry::Parity(parity) => Some(parity.chunk()),
        }
    }

    /// Sectors of each member that the array uses, from the start of the data area; RAID0, where they differ, zero.
    pub fn used_member_sectors(&self) -> Sector {
        match self {
            Geometry::Copies(copies) => copies.used_member_sectors(),
            Geometry::Parity(parity) => parity.used_member_sectors(),
        }
    }

    /// Whether every sector of the array can be had from the members that are present: as it is or reconstructed.
    /// Panics if `present` does not have one entry a slot.
    pub fn survives(&self, present: &[bool]) -> bool {
        assert_eq!(present.len(), usize::from(self.slots()), "one entry a slot");
        match self {
            Geometry::Copies(copies) => copies.survives(present),
            Geometry::Parity(parity) => {
                present.iter().filter(|present| !**present).count() <= parity.parity_count()
            }
        }
    }

    /// How many more members may be lost, whichever they are, so that the array still survives. Panics as `survives` does.
    pub fn redundancy(&self, present: &[bool]) -> usize {
        if !self.survives(present) {
            return 0;
        }
        match self {
            Geometry::Parity(parity) => {
                parity.parity_count() - present.iter().filter(|present| !**present).count()
            }
            Geometry::Copies(copies) => copies.fewest_copies(present) - 1,
        }
    }
}

fn check_slots(level: Level, slots: u16, least: u16, most: u16) -> Result<(), LayoutError> {
    if slots < least {
        return Err(LayoutError::TooFewMembers { level, slots, least });
    }
    if slots > most {
        return Err(LayoutError::TooManyMembers { level, slots, most });
    }
    Ok(())
}

fn check_size(sectors: Sector) -> Result<(), LayoutError> {
    if sectors.0 > MAX_SECTORS { Err(LayoutError::TooLarge) } else { Ok(()) }
}

fn check_power_of_two(level: Level, chunk: Sector) -> Result<(), LayoutError> {
    match chunk {
        Sector::ZERO => Err(LayoutError::ZeroChunk { level }),
        Sector(sectors) if sectors.is_power_of_two() && sectors >= parity::MIN_CHUNK_SECTORS => Ok(()),
        _ => Err(LayoutError::ChunkSize { level, chunk }),
    }
}

fn check_one_chunk(member: Sector, chunk: Sector) -> Result<(), LayoutError> {
    if member < chunk { Err(LayoutError::MemberTooSmall { member, chunk }) } else { Ok(()) }
}
