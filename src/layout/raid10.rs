//! Where RAID10 puts the copies of an array's chunks.
//!
//! A layout has near and far copies. Laid out near, each chunk follows the one before, each as many times as there are
//! near copies, over all members and then on to the next row. All of that is repeated for each far copy, on other
//! members: each far copy of what one member has is `near` members further up and around. It is repeated either behind
//! all of the first ("far": every member falls into sections), or row by row ("offset"). Far copies go around all members
//! or, with far sets, around the members of a set; what remains when sets do not divide the members joins the last set.
//!
//! The kernel accepts combinations in which that does not work out: copies of a chunk on one member, or two chunks in one
//! place. mdadm creates none of them, and an array cannot live with them, so they are refused here.
//!
//! Invariants:
//! - The copies of a chunk are on different members, and every member sector belongs to at most one array sector.
//! - Copies are listed near by near, each followed by its far copies. That is md's order: a resync copies from the first.

use super::{LayoutError, MAX_SECTORS, Place, Places, Shape};
use crate::units::{MemberSlot, Sector};

const OFFSET: u32 = 1 << 16;
const FAR_SETS_SHIFT: u32 = 17;

/// Near and far copies of a layout number.
pub(super) const fn copy_counts(layout: u32) -> (u32, u32) {
    (layout & 0xff, layout >> 8 & 0xff)
}

/// Whether far copies lie in the next row.
pub(super) const fn is_offset(layout: u32) -> bool {
    layout & OFFSET != 0
}

/// The layout number of so many copies, without far sets.
pub(super) const fn layout(near: u8, far: u8, offset: bool) -> u32 {
    near as u32 | (far as u32) << 8 | if offset { OFFSET } else { 0 }
}

/// The geometry of a RAID10 array.
#[derive(Clone, Debug)]
pub(super) struct Raid10 {
    near: u64,
    far: u64,
    offset: bool,
    slots: u64,
    chunk: u64,
    /// Chunks of the array.
    chunks: u64,
    /// Rows of a section: what a member holds of one far copy.
    rows: u64,
    /// For each member the one that has the next far copy of what it has; and the way back.
    next: Vec<u16>,
    previous: Vec<u16>,
}

impl Raid10 {
    /// Checks everything about the shape but the limits on sizes and number of slots.
    pub(super) fn new(shape: &Shape) -> Result<Raid10, LayoutError> {
        let &Shape { level, layout, chunk, slots, member, .. } = shape;
        let (near, far) = copy_counts(layout);
        let sets = layout >> FAR_SETS_SHIFT;
        if near == 0 || far == 0 || sets > 2 {
            return Err(LayoutError::UnknownLayout { level, layout });
        }
        if near * far < 2 || near * far > u32::from(slots) {
            return Err(LayoutError::CopyCount { copies: near * far, slots });
        }
        super::check_power_of_two(level, chunk)?;
        super::check_one_chunk(member, chunk)?;
        let set_size = match sets {
            0 => u32::from(slots),
            1 => u32::from(slots) / far,
            _ => near * far,
        };
        let next = far_members(u32::from(slots), near, set_size);
        let offset = is_offset(layout) && far > 1;
        if !copies_keep_apart(&next, near, far, offset) {
            return Err(LayoutError::CopiesCollide { layout, slots });
        }
        let mut previous = vec![0; next.len()];
        for (from, to) in (0u16..).zip(&next) {
            previous[usize::from(*to)] = from;
        }

        let (near, far, slots) = (u64::from(near), u64::from(far), u64::from(slots));
        let rows = member.0 / chunk.0 / far;
        let chunks = rows * slots / near; // below 2^54 * 2^11
        match chunks.checked_mul(chunk.0) {
            Some(0) => Err(LayoutError::MemberTooSmall { member, chunk }),
            Some(sectors) if sectors <= MAX_SECTORS => {
                Ok(Raid10 { near, far, offset, slots, chunk: chunk.0, chunks, rows, next, previous })
            }
            _ => Err(LayoutError::TooLarge),
        }
    }

    /// Sectors of the array.
    pub(super) fn array_sectors(&self) -> u64 {
        self.chunks * self.chunk
    }

    /// Copies of each chunk.
    pub(super) fn copies(&self) -> usize {
        (self.near * self.far) as usize
    }

    /// Sectors of each member that copies use. The kernel computes it the long way round, as the room that all copies of
    /// all chunks need, evenly spread and rounded up to a chunk; as there are no more copies than members, that is all
    /// rows of all sections, always.
    pub(super) fn used_member_sectors(&self) -> u64 {
        self.rows * self.far * self.chunk
    }

    /// The copies of an array sector, and how many sectors follow it contiguously on all of them.
    pub(super) fn locate(&self, array: u64) -> (Places, u64) {
        let (number, offset) = (array / self.chunk, array % self.chunk);
        let mut copies = Places::with_capacity(self.copies());
        for near in number * self.near..(number + 1) * self.near {
            let (row, mut slot) = (near / self.slots, (near % self.slots) as u16);
            for section in 0..self.far {
                let sector = self.member_row(row, section) * self.chunk + offset;
                copies.push(Place { slot: MemberSlot(slot), sector: Sector(sector) });
                slot = self.next[usize::from(slot)];
            }
        }
        (copies, self.chunk - offset)
    }

    /// The array sector of which a copy lies at a place. None if none does.
    pub(super) fn array_at(&self, place: Place) -> Option<u64> {
        let (member_row, offset) = (place.sector.0 / self.chunk, place.sector.0 % self.chunk);
        let (row, section) = if self.offset {
            (member_row / self.far, member_row % self.far)
        } else {
            (member_row % self.rows, member_row / self.rows)
        };
        if section >= self.far || row >= self.rows {
            return None;
        }
        let mut slot = place.slot.0;
        for _ in 0..section {
            slot = self.previous[usize::from(slot)];
        }
        let number = (row * self.slots + u64::from(slot)) / self.near;
        (number < self.chunks).then_some(number * self.chunk + offset)
    }

    /// Whether a copy of every chunk is on one of the present members.
    pub(super) fn survives(&self, present: &[bool]) -> bool {
        // Every `slots` chunks at the latest, copies begin on the same member again.
        (0..self.chunks.min(self.slots)).all(|number| {
            let (copies, _) = self.locate(number * self.chunk);
            copies.iter().any(|copy| present[copy.slot.index()])
        })
    }

    /// Where a row of the near layout is in its n-th far copy.
    fn member_row(&self, row: u64, section: u64) -> u64 {
        if self.offset { row * self.far + section } else { section * self.rows + row }
    }
}

/// For each member the one that has the next far copy of what it has.
fn far_members(slots: u32, near: u32, set_size: u32) -> Vec<u16> {
    let remainder = slots % set_size;
    let last_set = (slots / set_size - 1) * set_size;
    (0..slots)
        .map(|slot| {
            let further = slot + near;
            let next = if remainder != 0 && further > last_set {
                last_set + (further - last_set) % (set_size + remainder)
            } else {
                slot / set_size * set_size + further % set_size
            };
            next as u16
        })
        .collect()
}

/// Whether the copies of each chunk are on different members, and no two chunks in one place.
fn copies_keep_apart(next: &[u16], near: u32, far: u32, offset: bool) -> bool {
    if far == 1 {
        return true; // no more copies than members, one after the other
    }
    let slots = next.len();
    if offset && !slots.is_multiple_of(near as usize) {
        return false; // near copies would go on in the next row, which is a far copy
    }
    let mut has_next = vec![false; slots];
    for slot in next {
        if std::mem::replace(&mut has_next[usize::from(*slot)], true) {
            return false;
        }
    }
    let mut last_chunk_on = vec![usize::MAX; slots];
    (0..slots).all(|chunk| {
        (0..near as usize).all(|copy| {
            let mut slot = (chunk * near as usize + copy) % slots;
            (0..far).all(|_| {
                let fresh = std::mem::replace(&mut last_chunk_on[slot], chunk) != chunk;
                slot = usize::from(next[slot]);
                fresh
            })
        })
    })
}
