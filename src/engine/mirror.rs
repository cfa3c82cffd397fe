//! Levels 0, 1 and 10: every sector has one or several copies, and no arithmetic.
//!
//! The row locks are over array sectors here. A write goes to all copies; a read to one of them, in turn, and where the
//! copies may differ (a resync has not come there) to the one that resync copies from.

use std::ops::Range;
use std::rc::Rc;

use smallvec::SmallVec;

use super::array::{Array, cut_slices, sectors};
use super::join::join_each;
use super::member::{Member, MemberState};
use super::mutant::{self, Mutant};
use super::plan::Trust;
use super::stripe::{LINE_SECTORS, Lone, OUT_OF_REACH, Unreadable, square_edges};
use crate::io::{Buf, Device, Fua, IoError, IoErrorKind, Runtime, Slice};
use crate::layout::{Copies, Extent, Geometry};
use crate::units::{MemberSlot, Sector};

/// Results of one write on each member that it went to, with the rows of that member.
pub(super) type Written<D> = Vec<(Rc<Member<D>>, Range<u64>, Result<(), IoError>)>;

/// A copy: its member, where it lies there, and what was read.
pub(super) type CopyRead<D> = (Rc<Member<D>>, Sector, Result<Buf, IoError>);

/// An extent that could not be read from this slot; its buffer is gone.
struct Loss {
    error: IoError,
    unreadable: Option<Unreadable>,
}

impl<D: Device + 'static, R: Runtime> Array<D, R> {
    /// The member to read a range from that one member holds as a whole and in one piece, where its copies agree; and what
    /// [`read_copies`](Array::read_copies) is to avoid if it cannot.
    pub(super) fn lone_copy(&self, copies: &Copies, offset_bytes: u64, len_bytes: u64) -> Option<Lone<D>> {
        let (start, len) = (Sector(sectors(offset_bytes)), Sector(sectors(len_bytes)));
        let extent = copies.extents(start, len).next().filter(|extent| extent.len == len)?;
        let rows = start.0..start.0 + len.0;
        if self.trust(&rows) != Trust::Consistent {
            return None;
        }
        let holders = extent.copies.iter().filter_map(|place| {
            let member = self.reader(place.slot, &(place.sector.0..place.sector.0 + len.0))?;
            Some((place.slot, member, place.sector))
        });
        let mut holders: SmallVec<[_; 4]> = holders.collect();
        let (slot, member, sector) = holders.swap_remove(self.choose(&holders)?);
        Some(((member, sector), Unreadable { slot, rows }))
    }

    /// Reads a range, not from where it is to be avoided: the array sectors of an extent, and the slot of a copy.
    pub(super) async fn read_copies(
        &self,
        copies: &Copies,
        offset_bytes: u64,
        mut buf: Buf,
        mut avoid: Vec<Unreadable>,
    ) -> Result<Buf, IoError> {
        let len = buf.len();
        let all = sectors(offset_bytes)..sectors(offset_bytes + len as u64);
        // Cut where errors are to be told apart: sectors.
        let mut step = None;
        let mut changes = self.changes();
        loop {
            let start = Sector(sectors(offset_bytes));
            let mut reads = Vec::new();
            for extent in self.whole_extents(copies, start, Sector(sectors(len as u64)), step) {
                let rest = buf.split_off(extent.len.bytes() as usize);
                reads.push(self.read_extent(extent, buf, &avoid));
                buf = rest;
            }
            let (pieces, lost): (Vec<_>, Vec<_>) =
                join_each(reads.into_iter()).await.into_iter().partition(Result::is_ok);
            if lost.is_empty() {
                return Ok(pieces.into_iter().flatten().reduce(Buf::join).expect("a read has a piece"));
            }
            for loss in lost.into_iter().filter_map(Result::err) {
                match loss.unreadable {
                    Some(_) if step.is_none() && self.trust(&all) != Trust::Consistent => {
                        // Copies that may differ must not be mixed otherwise than a resync would.
                        step = Some(sectors(self.block_bytes));
                        avoid.clear();
                        break;
                    }
                    Some(unreadable) => avoid.push(unreadable),
                    None if self.have_changed(&mut changes) => {
                        step = None;
                        avoid.clear();
                        break;
                    }
                    None if step.is_some() => return Err(loss.error),
                    // Copies that cannot be read in different places may still do for each other.
                    None => {
                        step = Some(LINE_SECTORS);
                        avoid.clear();
                        break;
                    }
                }
            }
            // A buffer that was lost to an error may be anybody's; begin anew, with nothing else in hand.
            drop(pieces);
            buf = self.memory.rescue.alloc(len).await;
        }
    }

    /// The extents of a range, cut so that each copy of each is either wholly held or not.
    pub(super) fn whole_extents(
        &self,
        copies: &Copies,
        start: Sector,
        len: Sector,
        step: Option<u64>,
    ) -> Vec<Extent> {
        let mut out = Vec::new();
        for extent in copies.extents(start, len) {
            let mut cuts: Vec<u64> = Vec::new();
            for place in &extent.copies {
                let rows = place.sector.0..place.sector.0 + extent.len.0;
                cuts.extend(self.cuts(&rows).into_iter().map(|cut| cut - rows.start));
            }
            cuts.extend([0, extent.len.0]);
            if let Some(step) = step {
                cuts.extend((0..extent.len.0).step_by(step as usize));
            }
            cuts.sort_unstable();
            cuts.dedup();
            out.extend(cuts.windows(2).map(|cut| part_of(&extent, cut[0]..cut[1])));
        }
        out
    }

    async fn read_extent(&self, extent: Extent, buf: Buf, avoid: &[Unreadable]) -> Result<Buf, Loss> {
        let rows = extent.array.0..(extent.array + extent.len).0;
        let place_of = |slot: MemberSlot| Unreadable { slot, rows: rows.clone() };
        let holders = extent.copies.iter().filter(|place| !avoid.contains(&place_of(place.slot)));
        let holders = holders.filter_map(|place| {
            let rows = place.sector.0..place.sector.0 + extent.len.0;
            Some((place.slot, self.reader(place.slot, &rows)?, place.sector))
        });
        let mut holders: SmallVec<[_; 4]> = holders.collect();
        if self.trust(&rows) != Trust::Consistent && !mutant::is(Mutant::AnyCopyUntrusted) {
            holders.truncate(1);
        }
        let Some(chosen) = self.choose(&holders) else {
            return Err(Loss { error: OUT_OF_REACH, unreadable: None });
        };
        let (slot, member, sector) = holders.swap_remove(chosen);
        let result = self.read_member(&member, sector, buf).await;
        result.map_err(|error| Loss { error, unreadable: Some(Unreadable { slot, rows }) })
    }

    pub(super) async fn write_copies(
        &self,
        copies: &Copies,
        offset_bytes: u64,
        data: &[Slice],
        fua: Fua,
    ) -> Result<(), IoError> {
        let block = self.block_bytes;
        let len: u64 = data.iter().map(|slice| slice.len() as u64).sum();
        let part = offset_bytes..offset_bytes + len;
        let square = part.start - part.start % block..part.end.next_multiple_of(block);
        let rows = sectors(square.start)..sectors(square.end);
        let _rows = self.locks.lock_unless(Mutant::WriteWithoutLock, rows.clone()).await;
        let _marked = self.mark(&rows).await?;
        let data = if part == square {
            data.to_vec()
        } else {
            let mut edges = self.memory.edges.alloc_all(&[block as usize; 2]).await;
            let old = |start: u64, buf: Buf| self.read_copies(copies, start, buf, Vec::new());
            square_edges(&part, &square, block, data.to_vec(), &mut edges, old).await?
        };
        let mut extents = copies.extents(Sector(rows.start), Sector(rows.end - rows.start)).peekable();
        if let Some(extent) = extents.next_if(|extent| extent.array + extent.len == Sector(rows.end)) {
            return self.write_extent(extent, data, fua).await;
        }
        let writes = extents.map(|extent| {
            let from = (extent.array.0 - rows.start) * crate::units::SECTOR_BYTES;
            let part = cut_slices(&data, from, extent.len.bytes());
            self.write_extent(extent, part, fua)
        });
        join_each(writes).await.into_iter().collect()
    }

    /// Writes all copies of an extent. Its rows are locked.
    async fn write_extent(&self, extent: Extent, data: Vec<Slice>, fua: Fua) -> Result<(), IoError> {
        let rows = extent.array.0..(extent.array + extent.len).0;
        let targets = extent
            .copies
            .iter()
            .flat_map(|place| self.writers(place.slot).map(|member| (member, place.sector)));
        let writes = targets.map(|(member, sector)| {
            let data = data.clone();
            let own = sector.0..sector.0 + extent.len.0;
            async move { (member.clone(), own, member.write(sector, data, fua).await) }
        });
        self.check_writable()?;
        let written = join_each(writes).await;
        if !written.iter().any(|(member, ..)| member.in_sync()) {
            return Err(OUT_OF_REACH);
        }
        self.settle(&rows, written, true)
    }

    /// The one place where a finished write changes who is trusted (laws 1 and 8). `consistent`: had all gone well, the
    /// rows' redundancy would agree now. The change is durable once `persist` returns.
    pub(super) fn settle(
        &self,
        rows: &Range<u64>,
        written: Written<D>,
        consistent: bool,
    ) -> Result<(), IoError> {
        self.settle_beside(rows, written, consistent, 0)
    }

    /// The same, where so many copies were right already and have not been written.
    pub(super) fn settle_beside(
        &self,
        rows: &Range<u64>,
        written: Written<D>,
        consistent: bool,
        right: usize,
    ) -> Result<(), IoError> {
        let mut torn = None;
        let safe = written.iter().filter(|(member, _, result)| member.in_sync() && result.is_ok());
        let kept = right + safe.count();
        for (member, own, result) in written {
            let Err(error) = result else {
                self.forget_bad(&member, &own);
                continue;
            };
            match member.slot.get() {
                _ if !member.takes_writes() => {} // It has failed already.
                Some(_) if member.in_sync() && !error.blames_media() => torn = Some(error),
                Some(slot)
                    if error.kind == IoErrorKind::Media
                        && !matches!(member.state.get(), MemberState::Replacing(_))
                        && self.can_spare(slot, rows, kept, consistent)
                        && self.record_bad(&member, &own) => {}
                Some(slot)
                    if member.in_sync() && self.can_fail(slot) && !self.can_spare(slot, rows, kept, true) =>
                {
                    // Others do not hold these very rows: what was written is lost, whoever is to blame.
                    torn = Some(error);
                    self.note_absence(&member, &error);
                }
                Some(slot) if member.in_sync() && !self.can_fail(slot) => torn = Some(error),
                _ => self.fail_member(&member, "a write to it failed"),
            }
        }
        let mut state = self.state.borrow_mut();
        match torn {
            Some(error) => {
                // Some members have it and some do not, and none of them is out: the rows disagree until they are
                // written again, or resynced.
                if self.keeps_redundancy() && !mutant::is(Mutant::ForgetSuspects) {
                    state.suspect.insert(rows.clone());
                }
                drop(state);
                if error.kind == IoErrorKind::Timeout {
                    // It may land at any time, also on what would be written there later.
                    self.stop_writing("a write to the last usable copy has not ended in time");
                } else {
                    self.kick_later();
                }
                Err(error)
            }
            None => {
                // What is to replace a member may differ from it where a write has reached only one of them; that only a
                // resync mends, which writes both.
                if consistent && !self.roster.borrow().has_replacements() {
                    state.suspect.remove(rows);
                }
                Ok(())
            }
        }
    }

    /// Whether these rows (in the units of the row locks) can do without what a slot should hold there, so that it may be
    /// recorded as bad. `kept`: copies of what was just written that are safe elsewhere; `consistent`: parity goes with it.
    fn can_spare(&self, slot: MemberSlot, rows: &Range<u64>, kept: usize, consistent: bool) -> bool {
        let Geometry::Parity(_) = &self.geometry else { return self.keeps_redundancy() && kept > 0 };
        let holds =
            |other: MemberSlot| other != slot && self.in_sync(other).is_some_and(|member| member.holds(rows));
        let present: Vec<_> = self.slots().map(holds).collect();
        let trusted = consistent || self.trust(rows) == Trust::Consistent;
        trusted && self.geometry.survives(&present)
    }

    /// Reads every copy of an extent that somebody holds, in their order; with each what came of it. Its rows are locked.
    pub(super) async fn read_all_copies(&self, extent: &Extent, bufs: Vec<Buf>) -> Vec<CopyRead<D>> {
        let holders = extent.copies.iter().filter_map(|place| {
            let rows = place.sector.0..place.sector.0 + extent.len.0;
            Some((place.sector, self.reader(place.slot, &rows)?))
        });
        let reads = holders.zip(bufs).map(|((sector, member), buf)| async move {
            let result = self.read_member(&member, sector, buf).await;
            (member, sector, result)
        });
        join_each(reads).await
    }
}

/// A part of an extent, in sectors from its beginning.
pub(super) fn part_of(extent: &Extent, part: Range<u64>) -> Extent {
    let mut out = extent.clone();
    out.array += Sector(part.start);
    out.len = Sector(part.end - part.start);
    for place in &mut out.copies {
        place.sector += Sector(part.start);
    }
    out
}
