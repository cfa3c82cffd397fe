//! Arrays whose sectors are on one member or several, as they are: levels 0, 1 and 10.

use smallvec::SmallVec;

use super::raid0::Raid0;
use super::raid10::Raid10;
use super::{LayoutError, Level, Shape};
use crate::units::{MemberSlot, Sector};

/// A place on a member.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Place {
    /// The member.
    pub slot: MemberSlot,
    /// The sector, counted from the start of the member's data area (the data offset is not in it).
    pub sector: Sector,
}

/// The places of some copies: for as many as arrays usually have, nothing is allocated.
pub type Places = SmallVec<[Place; 4]>;

/// A piece of the array that is contiguous on every member that has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Where in the array it begins.
    pub array: Sector,
    /// How long it is. Never zero.
    pub len: Sector,
    /// Where it begins on each member that has a copy, in md's order: a resync copies from the first.
    pub copies: Places,
}

/// The geometry of an array of level 0, 1 or 10.
#[derive(Clone, Debug)]
pub struct Copies {
    slots: u16,
    array: Sector,
    chunk: Option<Sector>,
    plan: Plan,
}

#[derive(Clone, Debug)]
enum Plan {
    Raid0(Raid0),
    Raid1,
    Raid10(Raid10),
}

impl Copies {
    /// Checks everything that depends on the level; the sizes within [`MAX_SECTORS`](super::MAX_SECTORS) and the number
    /// of slots have been checked already.
    pub(super) fn new(shape: &Shape) -> Result<Copies, LayoutError> {
        let (array, plan) = match shape.level {
            Level::Raid0 => {
                let raid0 = Raid0::new(shape)?;
                (raid0.array_sectors(), Plan::Raid0(raid0))
            }
            Level::Raid1 if shape.member == Sector::ZERO => return Err(LayoutError::ZeroMember),
            Level::Raid1 => (shape.member.0, Plan::Raid1),
            Level::Raid10 => {
                let raid10 = Raid10::new(shape)?;
                (raid10.array_sectors(), Plan::Raid10(raid10))
            }
            Level::Raid4 | Level::Raid5 | Level::Raid6 => unreachable!("{} has parity", shape.level),
        };
        let chunk = (shape.level != Level::Raid1).then_some(shape.chunk);
        Ok(Copies { slots: shape.slots, array: Sector(array), chunk, plan })
    }

    /// Sectors of a chunk. RAID1 has none.
    pub fn chunk(&self) -> Option<Sector> {
        self.chunk
    }

    /// Members of the array.
    pub fn slots(&self) -> u16 {
        self.slots
    }

    /// Copies of each sector: 1 with RAID0, all members with RAID1.
    pub fn copies(&self) -> usize {
        match &self.plan {
            Plan::Raid0(_) => 1,
            Plan::Raid1 => usize::from(self.slots),
            Plan::Raid10(raid10) => raid10.copies(),
        }
    }

    /// Sectors of the array.
    pub fn array_sectors(&self) -> Sector {
        self.array
    }

    /// Sectors of each member that the array uses, which is what the kernel records as the component size. Zero with
    /// RAID0, where members differ and the kernel records zero.
    pub fn used_member_sectors(&self) -> Sector {
        match &self.plan {
            Plan::Raid0(_) => Sector::ZERO,
            Plan::Raid1 => self.array,
            Plan::Raid10(raid10) => Sector(raid10.used_member_sectors()),
        }
    }

    /// The pieces that a range of the array falls into, ascending: cut at chunk ends, which zones end at too. RAID1's is
    /// never cut. Panics if the range does not lie within the array.
    pub fn extents(&self, start: Sector, len: Sector) -> impl Iterator<Item = Extent> + '_ {
        let end = start.0.checked_add(len.0).filter(|end| *end <= self.array.0);
        let end = end.unwrap_or_else(|| panic!("{len} sectors from {start} of an array of {}", self.array));
        let mut at = start.0;
        std::iter::from_fn(move || {
            if at == end {
                return None;
            }
            let (copies, contiguous) = self.locate(at);
            let len = contiguous.min(end - at);
            let extent = Extent { array: Sector(at), len: Sector(len), copies };
            at += len;
            Some(extent)
        })
    }

    /// The array sector that lies at a place, the way back from [`extents`](Copies::extents). None if none does: behind
    /// the used part of a member, or where RAID10 has nothing to fill a row with. Panics if there is no such slot.
    pub fn array_at(&self, place: Place) -> Option<Sector> {
        assert!(place.slot.0 < self.slots, "slot {} of {}", place.slot, self.slots);
        match &self.plan {
            Plan::Raid0(raid0) => raid0.array_at(place).map(Sector),
            Plan::Raid1 => (place.sector < self.array).then_some(place.sector),
            Plan::Raid10(raid10) => raid10.array_at(place).map(Sector),
        }
    }

    /// Whether every sector of the array is on one of the members that are present.
    pub(super) fn survives(&self, present: &[bool]) -> bool {
        match &self.plan {
            Plan::Raid0(raid0) => raid0.survives(present),
            Plan::Raid1 => present.contains(&true),
            Plan::Raid10(raid10) => raid10.survives(present),
        }
    }

    /// Copies that members which are present hold of the sector that has the fewest.
    pub(super) fn fewest_copies(&self, present: &[bool]) -> usize {
        // Who holds a chunk's copies comes round again after as many chunks as there are members.
        let chunk = self.chunk().unwrap_or(Sector(1));
        let once_round = Sector(chunk.0 * u64::from(self.slots)).min(self.array);
        let held =
            |extent: Extent| extent.copies.iter().filter(|place| present[usize::from(place.slot.0)]).count();
        self.extents(Sector::ZERO, once_round).map(held).min().unwrap_or(0)
    }

    /// The copies of an array sector, and how many sectors follow it contiguously on all of them.
    fn locate(&self, array: u64) -> (Places, u64) {
        match &self.plan {
            Plan::Raid0(raid0) => {
                let (place, contiguous) = raid0.locate(array);
                (Places::from_slice(&[place]), contiguous)
            }
            Plan::Raid1 => {
                let copy = |slot| Place { slot: MemberSlot(slot), sector: Sector(array) };
                ((0..self.slots).map(copy).collect(), self.array.0 - array)
            }
            Plan::Raid10(raid10) => raid10.locate(array),
        }
    }
}
