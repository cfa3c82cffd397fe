//! Where RAID0 puts an array's chunks when its members differ in size.
//!
//! The array is a sequence of zones. The first one stripes over all members as far as the smallest one reaches, the next
//! one over the rest as far as the smallest of those reaches, and so on. Which member a later zone begins with depends
//! on the layout: "original" (1) counts chunks from the start of the array, "alternate" (2) from the start of the zone.
//! Linux changed from one to the other by accident (3.14), hence the field; arrays that are older than the field do not
//! say which one they are, and if it makes a difference they are refused.
//!
//! With a chunk that is no power of two the array ends before its last zone does: Linux rounds each member down to the
//! chunk, and for the array's size masks that with the chunk less one (raid0.c, `raid0_size`), as if it were one. What
//! lies behind is not served, as the kernel does not serve it.
//!
//! Invariants:
//! - The zones' array ranges follow one another without gap from 0, their member ranges likewise; none is empty.
//! - Every member reaches to the end of each zone that it is in, and is in all zones that begin before its end.

use super::{LayoutError, Place, Shape};
use crate::units::{MemberSlot, Sector};

/// The chunk number within the array says which member is first.
pub(super) const ORIGINAL: u32 = 1;
/// The chunk number within the zone does.
pub(super) const ALTERNATE: u32 = 2;

/// A part of the array that is striped over the same members throughout.
#[derive(Clone, Debug)]
struct Zone {
    /// Array sectors before it.
    array_start: u64,
    /// Array sectors up to its end.
    array_end: u64,
    /// Where it begins on each of its members.
    member_start: u64,
    /// Where it ends there.
    member_end: u64,
    /// Its members, ascending.
    slots: Vec<u16>,
}

/// The geometry of a RAID0 array.
#[derive(Clone, Debug)]
pub(super) struct Raid0 {
    chunk: u64,
    original: bool,
    zones: Vec<Zone>,
    /// Where the array ends: at the last zone's end, or before.
    array: u64,
}

impl Raid0 {
    /// Checks everything about the shape but the number of slots.
    pub(super) fn new(shape: &Shape) -> Result<Raid0, LayoutError> {
        let chunk = shape.chunk.0;
        if chunk == 0 {
            return Err(LayoutError::ZeroChunk { level: shape.level });
        }
        if shape.raid0_members.len() != usize::from(shape.slots) {
            return Err(LayoutError::MemberSizes { sizes: shape.raid0_members.len(), slots: shape.slots });
        }
        let mut sizes = Vec::with_capacity(shape.raid0_members.len());
        for member in &shape.raid0_members {
            super::check_size(*member)?;
            super::check_one_chunk(*member, shape.chunk)?;
            sizes.push(member.round_down(shape.chunk).0);
        }
        let total = sizes.iter().try_fold(0u64, |sum, size| sum.checked_add(*size));
        super::check_size(Sector(total.ok_or(LayoutError::TooLarge)?))?;
        let zones = zones(&sizes);
        let same_either_way = zones.len() == 1 || zones[1].slots.len() == 1;
        let original = match shape.layout {
            _ if same_either_way => true,
            ORIGINAL => true,
            ALTERNATE => false,
            0 => return Err(LayoutError::AmbiguousZones { zones: zones.len() }),
            layout => return Err(LayoutError::UnknownLayout { level: shape.level, layout }),
        };
        let array = sizes.iter().map(|size| size & !(chunk - 1)).sum();
        Ok(Raid0 { chunk, original, zones, array })
    }

    /// Sectors of the array.
    pub(super) fn array_sectors(&self) -> u64 {
        self.array
    }

    /// Where an array sector lies, and how many follow it contiguously there.
    pub(super) fn locate(&self, array: u64) -> (Place, u64) {
        let zone = &self.zones[self.zones.partition_point(|zone| zone.array_end <= array)];
        let width = zone.slots.len() as u64;
        let (number, offset) = ((array - zone.array_start) / self.chunk, array % self.chunk);
        let slot = zone.slots[((number + self.turn(zone)) % width) as usize];
        let sector = zone.member_start + number / width * self.chunk + offset;
        (Place { slot: MemberSlot(slot), sector: Sector(sector) }, self.chunk - offset)
    }

    /// The array sector that lies at a place. None if none does.
    pub(super) fn array_at(&self, place: Place) -> Option<u64> {
        let sector = place.sector.0;
        let zone = self.zones.get(self.zones.partition_point(|zone| zone.member_end <= sector))?;
        let position = zone.slots.binary_search(&place.slot.0).ok()? as u64;
        let width = zone.slots.len() as u64;
        let (row, offset) = ((sector - zone.member_start) / self.chunk, sector % self.chunk);
        let turned = (position + width - self.turn(zone)) % width;
        let array = zone.array_start + (row * width + turned) * self.chunk + offset;
        (array < self.array).then_some(array)
    }

    /// Whether no zone misses a member.
    pub(super) fn survives(&self, present: &[bool]) -> bool {
        self.zones.iter().all(|zone| zone.slots.iter().all(|slot| present[usize::from(*slot)]))
    }

    /// Which of its members a zone begins with.
    fn turn(&self, zone: &Zone) -> u64 {
        if self.original { zone.array_start / self.chunk % zone.slots.len() as u64 } else { 0 }
    }
}

/// The zones of members that have so many sectors, which are whole chunks within the limits.
fn zones(sizes: &[u64]) -> Vec<Zone> {
    let mut ends = sizes.to_vec();
    ends.sort_unstable();
    ends.dedup();
    let mut zones = Vec::with_capacity(ends.len());
    let (mut array_start, mut member_start) = (0, 0);
    for end in ends {
        let slots: Vec<u16> =
            (0u16..).zip(sizes).filter(|(_, size)| **size > member_start).map(|(slot, _)| slot).collect();
        let array_end = array_start + (end - member_start) * slots.len() as u64;
        zones.push(Zone { array_start, array_end, member_start, member_end: end, slots });
        (array_start, member_start) = (array_end, end);
    }
    zones
}
