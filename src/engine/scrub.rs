//! Scrub: looking for redundancy that disagrees (check), and mending it (repair), in the background.
//!
//! md's repair trusts the data and makes parity, and the other copies, anew. Where redundancy can tell who lies, raidd
//! goes further and mends the liar: on a RAID6 row in which exactly one member disagrees with P and Q together, and on
//! a RAID1 or RAID10 with three copies or more by majority. Only if every differing byte of the line names the same
//! member, twice, read anew under the row lock; else the row is undecided, and repair does as md does.
//!
//! Invariants:
//! - Check writes no data.
//! - Rows whose redundancy is not trusted (they await resync, or a failed write tore them) are neither judged nor
//!   mended.
//! - Mismatches are counted as md counts them: parity, 8 sectors for each 4 KiB line that disagrees; copies, a request
//!   of 128 sectors for each copy that differs.

use std::collections::VecDeque;
use std::ops::Range;
use std::rc::Rc;

use super::array::Array;
use super::member::Member;
use super::mirror::part_of;
use super::plan::{Place, Trust};
use super::recovery::place_of;
use super::solve::{self, Band};
use super::stripe::{LINE_SECTORS, OUT_OF_REACH, slot_of};
use super::sync::SyncAction;
use crate::io::{Buf, Device, Fua, IoError, Runtime, Slice};
use crate::layout::{Copies, Extent, Geometry, Stripe};
use crate::parity::{self, Change};
use crate::units::{MemberSlot, SECTOR_BYTES, Sector, StripeIndex};

const LINE_BYTES: usize = (LINE_SECTORS * SECTOR_BYTES) as usize;

/// What md compares copies in.
const REQUEST_SECTORS: u64 = 128;

/// Findings that are kept; the oldest go first.
const FINDINGS_MAX: usize = 1024;

/// Redundancy that disagreed somewhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// Where: sectors of the members' data areas where there is parity, else of the array.
    pub rows: Range<u64>,
    /// Where in the array: what the liar holds of it, where it holds data, else everything between the first and the last
    /// sector that these rows hold. In sectors.
    pub array: Range<u64>,
    /// The member that lies, where that can be told: its slot.
    pub liar: Option<MemberSlot>,
    /// Its path at that time.
    pub path: Option<String>,
    /// It was made to agree.
    pub repaired: bool,
}

/// The scrub that is wanted, and what the last one found.
#[derive(Default)]
pub(super) struct ScrubState {
    /// Whether to mend, while one is wanted.
    wanted: Option<bool>,
    /// Where to go on: in the units of the row locks.
    cursor: u64,
    mismatched_sectors: u64,
    /// What a resync found, if there was one since the last scrub began or went on.
    resynced_sectors: Option<u64>,
    findings: VecDeque<Finding>,
    /// When the last one ended, by the wall clock.
    completed: Option<std::time::Duration>,
}

impl ScrubState {
    /// Whether one is, and whether it is to mend.
    pub fn wanted(&self) -> Option<bool> {
        self.wanted
    }

    /// A scrub begins, or goes on where it was: what a resync has found meanwhile is none of its business.
    fn begin(&mut self) {
        self.resynced_sectors = None;
        if self.cursor == 0 {
            self.mismatched_sectors = 0;
            self.findings.clear();
        }
    }

    pub fn begin_resync(&mut self) {
        self.resynced_sectors = Some(0);
    }

    pub fn count_resynced(&mut self, sectors: u64) {
        *self.resynced_sectors.get_or_insert(0) += sectors;
    }

    fn find(&mut self, finding: Finding) {
        if let Some(last) = self.findings.back_mut()
            && last.rows.end == finding.rows.start
            && (last.liar, &last.path, last.repaired) == (finding.liar, &finding.path, finding.repaired)
        {
            last.rows.end = finding.rows.end;
            last.array = last.array.start.min(finding.array.start)..last.array.end.max(finding.array.end);
            return;
        }
        if self.findings.len() == FINDINGS_MAX {
            self.findings.pop_front();
        }
        self.findings.push_back(finding);
    }
}

impl<D: Device + 'static, R: Runtime> Array<D, R> {
    /// Begins a scrub; one that runs goes on as the new one from where it is. False if the array has no redundancy.
    pub fn scrub(&self, repair: bool) -> bool {
        if !self.keeps_redundancy() || !self.may_sync() {
            return false;
        }
        {
            let mut scrub = self.sync.scrub.borrow_mut();
            if scrub.wanted.is_none() {
                scrub.begin();
            }
            scrub.wanted = Some(repair);
        }
        self.kick();
        true
    }

    /// Stops a scrub; the next one goes on from where it was.
    pub fn stop_scrub(&self) {
        self.sync.scrub.borrow_mut().wanted = None;
    }

    /// Sectors that disagreed, by the last or the running scrub or resync.
    pub fn mismatched_sectors(&self) -> u64 {
        let scrub = self.sync.scrub.borrow();
        scrub.resynced_sectors.unwrap_or(scrub.mismatched_sectors)
    }

    /// What scrubs found, oldest first.
    pub fn findings(&self) -> Vec<Finding> {
        self.sync.scrub.borrow().findings.iter().cloned().collect()
    }

    /// When the last whole scrub ended: time since 1970.
    pub fn last_scrub(&self) -> Option<std::time::Duration> {
        self.sync.scrub.borrow().completed
    }

    pub(super) async fn scrub_on(&self) -> Result<(), IoError> {
        let Some(repair) = self.sync.scrub.borrow().wanted else { return Ok(()) };
        self.sync.scrub.borrow_mut().begin();
        let (from, end) = (self.sync.scrub.borrow().cursor, self.lock_rows());
        tracing::info!(array = self.name(), repair, from, end, "scrub started");
        self.begin_progress(if repair { SyncAction::Repair } else { SyncAction::Check }, from, end);
        let mut cursor = from;
        while cursor < end {
            let wanted = self.sync.scrub.borrow().wanted;
            if !self.goes_on() || wanted.is_none() || self.resync_or_recovery_is_due() {
                return Ok(());
            }
            let began = self.runtime.now();
            let rows = cursor..end.min(cursor + self.fill_window());
            let result = match &self.geometry {
                Geometry::Parity(parity) => {
                    let chunk = parity.chunk().0;
                    let rows = cursor..rows.end.min((cursor / chunk + 1) * chunk);
                    cursor = rows.end;
                    self.scrub_stripe(&parity.stripe(StripeIndex(rows.start / chunk)), &rows, repair).await
                }
                Geometry::Copies(copies) => {
                    cursor = rows.end;
                    self.scrub_copies(copies, &rows, repair).await
                }
            };
            if let Err(error) = result {
                tracing::warn!(array = self.name(), ?rows, %error, "rows could not be scrubbed");
            }
            self.sync.scrub.borrow_mut().cursor = cursor;
            self.note_progress(cursor);
            self.pace(Sector(cursor - rows.start).bytes(), began).await;
        }
        let mismatched_sectors = self.mismatched_sectors();
        tracing::info!(array = self.name(), mismatched_sectors, "scrub ended");
        let repair = {
            let mut scrub = self.sync.scrub.borrow_mut();
            scrub.cursor = 0;
            scrub.completed = Some(self.runtime.wall());
            scrub.wanted.take()
        };
        self.end_progress(if repair == Some(true) { SyncAction::Repair } else { SyncAction::Check });
        Ok(())
    }

    fn resync_or_recovery_is_due(&self) -> bool {
        self.state.borrow().resync.is_some() || !self.filling().is_empty() || self.spare_is_due()
    }

    fn note_finding(
        &self,
        rows: Range<u64>,
        array: Range<u64>,
        liar: Option<MemberSlot>,
        repaired: bool,
        sectors: u64,
    ) {
        let path = liar.and_then(|slot| self.in_sync(slot)).map(|member| member.label.clone());
        tracing::warn!(array = self.name(), ?rows, liar = path, repaired, "mismatch");
        let mut scrub = self.sync.scrub.borrow_mut();
        scrub.mismatched_sectors += sectors;
        scrub.find(Finding { rows, array, liar, path, repaired });
    }

    async fn scrub_stripe(&self, stripe: &Stripe, rows: &Range<u64>, repair: bool) -> Result<(), IoError> {
        let _rows = self.locks.lock(rows.clone()).await;
        for part in self.cut(rows.clone()) {
            self.scrub_band(stripe, &part, repair).await?;
        }
        Ok(())
    }

    /// The same for rows that every member either holds or does not. The rows are locked.
    async fn scrub_band(&self, stripe: &Stripe, rows: &Range<u64>, repair: bool) -> Result<(), IoError> {
        let Some(lines) = self.mismatched_lines(stripe, rows).await? else { return Ok(()) };
        for line in lines {
            // Read once more: what a scrub accuses somebody of must be there twice.
            let Some(again) = self.mismatched_lines(stripe, &line).await? else { continue };
            if again.is_empty() {
                continue;
            }
            let liar = self.liar_of(stripe, &line).await?;
            let repaired = repair && self.repair_line(stripe, &line, liar).await?;
            let array = array_range(stripe, &line, liar, self.shape.chunk.0);
            self.note_finding(line.clone(), array, liar, repaired, line.end - line.start);
        }
        Ok(())
    }

    /// All cells of some rows. None if somebody is missing or cannot be read, or the rows are not trusted: then there is
    /// nothing to compare.
    async fn whole_band(&self, stripe: &Stripe, rows: &Range<u64>) -> Option<Band> {
        let situation = self.situation(stripe, rows, &[], &[]);
        let places: Vec<Place> = self.slots().map(|slot| place_of(stripe, slot)).collect();
        let whole = places.iter().all(|&place| situation.cell(place).readable);
        if !whole || situation.trust != Trust::Consistent {
            return None;
        }
        let mut band = self.band(stripe, rows, places.len() + 2).await;
        let mut avoid = Vec::new();
        self.read_places(stripe, rows, &places, &mut band, &mut avoid).await.then_some(band)
    }

    async fn mismatched_lines(
        &self,
        stripe: &Stripe,
        rows: &Range<u64>,
    ) -> Result<Option<Vec<Range<u64>>>, IoError> {
        let Some(mut band) = self.whole_band(stripe, rows).await else { return Ok(None) };
        let (old_p, old_q) = (band.p.take(), band.q.take());
        solve::parity(stripe, &[], &mut band);
        let agrees = |old: &Option<Buf>, new: &Option<Buf>, at: usize, end: usize| match (old, new) {
            (Some(old), Some(new)) => old[at..end] == new[at..end],
            _ => true,
        };
        let mut lines = Vec::new();
        for at in (0..band.len).step_by(LINE_BYTES) {
            let end = band.len.min(at + LINE_BYTES);
            if !agrees(&old_p, &band.p, at, end) || !agrees(&old_q, &band.q, at, end) {
                let sector = |at: usize| rows.start + at as u64 / SECTOR_BYTES;
                lines.push(sector(at)..sector(end));
            }
        }
        Ok(Some(lines))
    }

    /// Who alone, if what it holds were different, would make a RAID6 line agree.
    async fn liar_of(&self, stripe: &Stripe, line: &Range<u64>) -> Result<Option<MemberSlot>, IoError> {
        if stripe.q.is_none() {
            return Ok(None);
        }
        let Some(mut band) = self.whole_band(stripe, line).await else { return Ok(None) };
        let (old_p, old_q) = (band.p.take().expect("read"), band.q.take().expect("read"));
        solve::parity(stripe, &[], &mut band);
        let (new_p, new_q) = (band.p.take().expect("made"), band.q.take().expect("made"));
        match (*old_p == *new_p, *old_q == *new_q) {
            (true, true) => return Ok(None),
            (false, true) => return Ok(Some(stripe.p)),
            (true, false) => return Ok(stripe.q),
            (false, false) => {}
        }
        // The change of one data cell that mends P, byte by byte, must mend Q as well.
        let mut suspects = Vec::new();
        for (i, &slot) in stripe.data.iter().enumerate() {
            let mut mended_q: Vec<u8> = new_q.to_vec();
            let old = band.data[i].as_deref().expect("read");
            let new: Vec<u8> =
                old.iter().zip(old_p.iter().zip(&new_p[..])).map(|(d, (a, b))| d ^ a ^ b).collect();
            let change = Change { old, new: &new, exponent: stripe.exponents[i] };
            parity::update(&[change], None, Some(&mut mended_q));
            if mended_q == *old_q {
                suspects.push(slot);
            }
        }
        Ok(if let [liar] = suspects[..] { Some(liar) } else { None })
    }

    /// Makes a line agree: the liar is given what the others say it should hold; without one, parity what the data says.
    async fn repair_line(
        &self,
        stripe: &Stripe,
        line: &Range<u64>,
        liar: Option<MemberSlot>,
    ) -> Result<bool, IoError> {
        let cells = match liar {
            Some(slot) => self.work_out(stripe, line, &[slot], vec![slot]).await?,
            None => {
                let Some(mut band) = self.whole_band(stripe, line).await else { return Ok(false) };
                drop((band.p.take(), band.q.take()));
                solve::parity(stripe, &[], &mut band);
                let p = band.p.take().map(|p| (slot_of(stripe, Place::P), p));
                p.into_iter().chain(stripe.q.zip(band.q.take())).collect()
            }
        };
        let writes = cells.into_iter().flat_map(|(slot, cell)| {
            let cell = cell.freeze();
            self.writers(slot).map(move |member| (member, Sector(line.start), cell.clone()))
        });
        self.write_repairs(line, writes.collect(), 0).await
    }

    /// Writes what is right, beside so many copies that are right already.
    async fn write_repairs(
        &self,
        rows: &Range<u64>,
        writes: Vec<(Rc<Member<D>>, Sector, Slice)>,
        right: usize,
    ) -> Result<bool, IoError> {
        let writes = writes.into_iter().map(|(member, sector, data)| async move {
            let own = sector.0..sector.0 + super::array::sectors(data.len() as u64);
            let result = member.write(sector, vec![data], Fua::No).await;
            (member, own, result)
        });
        // Whoever is away must hear of it when it returns.
        let _marked = self.mark(rows).await?;
        let written = futures_util::future::join_all(writes).await;
        self.settle_beside(rows, written, true, right)?;
        self.persist().await?;
        Ok(true)
    }

    async fn scrub_copies(&self, copies: &Copies, rows: &Range<u64>, repair: bool) -> Result<(), IoError> {
        let len = Sector(rows.end - rows.start);
        for extent in self.whole_extents(copies, Sector(rows.start), len, None) {
            let mut at = 0;
            while at < extent.len.0 {
                let stop = extent.len.0.min(at + REQUEST_SECTORS);
                self.scrub_request(&part_of(&extent, at..stop), repair).await?;
                at = stop;
            }
        }
        Ok(())
    }

    async fn scrub_request(&self, extent: &Extent, repair: bool) -> Result<(), IoError> {
        let rows = extent.array.0..(extent.array + extent.len).0;
        let _rows = self.locks.lock(rows.clone()).await;
        if self.trust(&rows) != Trust::Consistent {
            return Ok(());
        }
        let Some(first) = self.all_copies(extent).await? else { return Ok(()) };
        if first.iter().all(|(_, _, copy)| *copy == first[0].2) {
            return Ok(());
        }
        // Once more: what a scrub accuses somebody of must be there twice.
        let Some(again) = self.all_copies(extent).await? else { return Ok(()) };
        let same = first.iter().zip(&again).all(|(a, b)| a.2 == b.2);
        let votes = |copy: &[u8]| again.iter().filter(|(_, _, other)| other == copy).count();
        // With a majority its copy is right; else, as md has it, the first.
        let right = again.iter().position(|(_, _, copy)| same && votes(copy) * 2 > again.len());
        let truth = &again[right.unwrap_or(0)].2;
        let differing: Vec<_> = again.iter().filter(|(_, _, copy)| copy != truth).collect();
        if differing.is_empty() {
            return Ok(());
        }
        let liar = match (right, &differing[..]) {
            (Some(_), [(member, ..)]) => member.slot.get(),
            _ => None,
        };
        let mut repaired = false;
        if repair {
            let mut good = self.memory.scratch.alloc(truth.len()).await;
            good.copy_from_slice(truth);
            let good = good.freeze();
            let writes = differing.iter().map(|(member, sector, _)| (member.clone(), *sector, good.clone()));
            repaired = self.write_repairs(&rows, writes.collect(), again.len() - differing.len()).await?;
        }
        let sectors = differing.len() as u64 * extent.len.0;
        self.note_finding(rows.clone(), rows, liar, repaired, sectors);
        Ok(())
    }

    /// Every copy that should be there. None if one of them cannot be read: mending is for others.
    async fn all_copies(
        &self,
        extent: &Extent,
    ) -> Result<Option<Vec<(Rc<Member<D>>, Sector, Vec<u8>)>>, IoError> {
        let len = extent.len.bytes() as usize;
        let bufs = self.memory.scratch.alloc_all(&vec![len; extent.copies.len()]).await;
        let copies = self.read_all_copies(extent, bufs).await;
        if copies.is_empty() {
            return Err(OUT_OF_REACH);
        }
        let read =
            copies.into_iter().map(|(member, sector, result)| Some((member, sector, result.ok()?.to_vec())));
        Ok(read.collect())
    }
}

/// The array's sectors that a line of a stripe holds: those of the liar, where it holds data.
fn array_range(stripe: &Stripe, line: &Range<u64>, liar: Option<MemberSlot>, chunk: u64) -> Range<u64> {
    let count = stripe.data.len() as u64;
    let place = liar.and_then(|liar| stripe.data.iter().position(|&slot| slot == liar));
    let (first, last) = place.map_or((0, count - 1), |place| (place as u64, place as u64));
    let sector = |data: u64, row: u64| (stripe.index.0 * count + data) * chunk + row - stripe.sector.0;
    sector(first, line.start)..sector(last, line.end)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_found_in_the_array() {
        let slots = |slots: [u16; 3]| slots.map(MemberSlot).to_vec();
        let stripe = Stripe {
            index: StripeIndex(2),
            sector: Sector(256),
            data: slots([3, 0, 1]),
            p: MemberSlot(2),
            q: None,
            exponents: Vec::new(),
        };
        let range = |liar: Option<u16>| array_range(&stripe, &(264..272), liar.map(MemberSlot), 128);
        let base = 2 * 3 * 128;
        assert_eq!(range(Some(0)), base + 128 + 8..base + 128 + 16, "the second chunk of data");
        assert_eq!(range(Some(2)), base + 8..base + 256 + 16, "parity: all that it is of");
        assert_eq!(range(None), range(Some(2)));
    }
}
