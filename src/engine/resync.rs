//! Resync: making redundancy agree, after the creation of an array or after an unclean stop.
//!
//! A task of its own goes through the rows window by window, each under its row lock: parity is made from the data, and
//! copies from the first of them; what agrees already is not written. Clients are served meanwhile, by the rules of
//! `plan::Trust` for rows that it has not come to.
//!
//! Invariants:
//! - The cursor moves only past rows that agree (or, after an error, are in `suspect`).
//! - A checkpoint names a cursor only after all members were flushed (law 3).
//! - On disk nothing below the checkpoint is called unsynced, and nothing above it is written without being so: while the
//!   array is idle the superblocks carry the checkpoint, and while it is active they say dirty from 0.

use std::ops::Range;
use std::time::Duration;

use super::array::{Array, sectors};
use super::mirror::part_of;
use super::mutant::{self, Mutant};
use super::plan::{Place, Situation, Trust};
use super::ranges::RowSet;
use super::solve;
use super::state::{Phase, Resync};
use super::stripe::OUT_OF_REACH;
use super::sync::SyncAction;
use crate::io::{Device, Fua, IoError, Runtime};
use crate::layout::{Copies, Geometry, Parity};
use crate::units::{SECTOR_BYTES, Sector, StripeIndex};

impl<D: Device + 'static, R: Runtime> Array<D, R> {
    pub(super) async fn run_resync(&self) -> Result<(), IoError> {
        tracing::info!(array = self.name(), "resync started");
        let end = self.state.borrow().resync.as_ref().map_or(0, |resync| resync.end);
        self.begin_progress(SyncAction::Resync, self.resync_place().map_or(0, |rows| rows.start), end);
        self.sync.scrub.borrow_mut().begin_resync();
        let mut recorded = self.state.borrow().resync.as_ref().map_or(0, |resync| resync.checkpoint);
        loop {
            if !self.goes_on() {
                return Ok(());
            }
            let Some(rows) = self.resync_place() else { break };
            let began = self.runtime.now();
            // Held until the rows are off the list: nobody sees them agree and yet be called unsynced.
            let guard = self.locks.lock_unless(Mutant::ResyncWithoutLock, rows.clone()).await;
            let mismatched = self.resync_rows(&rows).await?;
            if let Some(resync) = &mut self.state.borrow_mut().resync {
                resync.pending.remove(&rows);
            }
            drop(guard);
            self.sync.scrub.borrow_mut().count_resynced(mismatched);
            self.note_progress(rows.end);
            if rows.end - recorded.min(rows.end) >= (end / 16).max(1) {
                recorded = rows.end;
                self.write_resync_checkpoint().await?;
            }
            self.pace(Sector(rows.end - rows.start).bytes(), began).await;
        }
        // Nobody may write that nothing awaits resync before what was done for it is durable.
        if !mutant::is(Mutant::CheckpointAheadOfFlush) {
            self.flush_members().await?;
        }
        self.state.borrow_mut().resync = None;
        tracing::info!(array = self.name(), "resync ended");
        self.end_progress(SyncAction::Resync);
        self.watch_idle_bits();
        self.checkpoint_resync().await?;
        // Not some seconds later: whoever leaves now and comes back would be filled as a whole.
        self.clear_idle_bits(Duration::ZERO).await
    }

    /// Makes rows agree that a failed write has torn. What still cannot be written is tried again later.
    pub(super) async fn resync_suspects(&self) -> Result<(), IoError> {
        let mut from = 0;
        while self.goes_on() {
            let next = self.state.borrow().suspect.next_from(from);
            let Some(rows) = next else { return Ok(()) };
            let rows = rows.start..rows.end.min(rows.start + self.fill_window());
            from = rows.end;
            let _rows = self.locks.lock(rows.clone()).await;
            let _marked = self.mark(&rows).await?;
            self.resync_rows(&rows).await?;
            if self.state.borrow().suspect.overlaps(&rows) {
                self.kick_later();
            }
        }
        Ok(())
    }

    async fn write_resync_checkpoint(&self) -> Result<(), IoError> {
        let cursor = self.state.borrow().resync.as_ref().map(Resync::cursor);
        if !mutant::is(Mutant::CheckpointAheadOfFlush) {
            self.flush_members().await?;
        }
        if let (Some(resync), Some(cursor)) = (&mut self.state.borrow_mut().resync, cursor) {
            resync.checkpoint = cursor;
        }
        self.checkpoint_resync().await
    }

    /// The next window; none if nothing is left to do.
    fn resync_place(&self) -> Option<Range<u64>> {
        let rows = self.state.borrow().resync.as_ref()?.pending.next_from(0)?;
        Some(rows.start..rows.end.min(rows.start + self.fill_window()))
    }

    /// Makes the redundancy of these rows agree, and says how many sectors did not. The rows are locked.
    async fn resync_rows(&self, rows: &Range<u64>) -> Result<u64, IoError> {
        let result = match &self.geometry {
            Geometry::Parity(parity) => self.resync_stripe(parity, rows).await,
            Geometry::Copies(copies) => self.resync_copies(copies, rows).await,
        };
        if let Err(error) = &result {
            if self.state.borrow().phase == Phase::ReadOnly {
                return result;
            }
            // What cannot be made to agree stays under suspicion, and the array dirty; the rest is worth saving.
            tracing::error!(array = self.name(), ?rows, %error, "rows could not be resynced");
            self.state.borrow_mut().suspect.insert(rows.clone());
            return Ok(rows.end - rows.start);
        }
        self.state.borrow_mut().suspect.remove(rows);
        result
    }

    async fn resync_stripe(&self, parity: &Parity, rows: &Range<u64>) -> Result<u64, IoError> {
        let chunk = parity.chunk().0;
        // A window may begin in one stripe and end in the next where chunks are no multiple of it.
        let (mut at, mut mismatched) = (rows.start, 0);
        while at < rows.end {
            let stop = rows.end.min((at / chunk + 1) * chunk);
            for rows in self.cut(at..stop) {
                mismatched += self.resync_band(&parity.stripe(StripeIndex(at / chunk)), &rows).await?;
            }
            at = stop;
        }
        Ok(mismatched)
    }

    async fn resync_band(&self, stripe: &crate::layout::Stripe, rows: &Range<u64>) -> Result<u64, IoError> {
        let mut avoid = Vec::new();
        loop {
            let situation = self.situation(stripe, rows, &[], &avoid);
            let lost: Vec<_> = situation.lost().collect();
            if !self.can_resync(&situation, lost.len()) {
                return Err(OUT_OF_REACH);
            }
            let data = (0..stripe.data.len()).filter(|i| !lost.contains(i)).map(Place::Data);
            let parities = [(Place::P, Some(situation.p)), (Place::Q, situation.q)];
            let parities = parities.into_iter().filter_map(|(place, cell)| cell?.readable.then_some(place));
            let reads: Vec<_> = data.chain(parities).collect();
            // What is read, what is worked out, and new parity beside the old.
            let count = reads.len() + lost.len() + 2;
            let mut band = self.band(stripe, rows, count).await;
            if !self.read_places(stripe, rows, &reads, &mut band, &mut avoid).await {
                continue;
            }
            let writable = (situation.p.writable, situation.q.is_some_and(|q| q.writable));
            return self.resync_parity(stripe, rows, &lost, band, writable).await;
        }
    }

    /// Rows whose data can all be read, or, on a new array, worked out.
    fn can_resync(&self, situation: &Situation, lost: usize) -> bool {
        let trusts = situation.trust != Trust::Unclean || mutant::is(Mutant::RecoverUntrusted);
        lost == 0 || trusts && super::plan::read(situation).is_ok()
    }

    async fn resync_parity(
        &self,
        stripe: &crate::layout::Stripe,
        rows: &Range<u64>,
        lost: &[usize],
        mut band: solve::Band,
        (p, q): (bool, bool),
    ) -> Result<u64, IoError> {
        if lost.len() == 1 && band.p.is_some() {
            // Q may disagree with P where nothing was ever written; P decides what the missing data is.
            let stale = band.q.take();
            solve::lost_data(stripe, lost, &mut band);
            band.q = stale;
        } else {
            solve::lost_data(stripe, lost, &mut band);
        }
        let (old_p, old_q) = (band.p.take(), band.q.take());
        solve::parity(stripe, &[], &mut band);
        let mut writes = Vec::new();
        let mut mismatched = 0;
        let fresh = [(Some(stripe.p), p, old_p, band.p.take()), (stripe.q, q, old_q, band.q.take())];
        for (slot, writable, old, new) in fresh {
            let (Some(slot), Some(new), true) = (slot, new, writable) else { continue };
            let new = new.freeze();
            if old.is_some_and(|old| *old == *new) {
                writes.extend(self.replacement(slot).map(|member| (member, new)));
                continue;
            }
            mismatched = rows.end - rows.start;
            writes.extend(self.writers(slot).map(|member| (member, new.clone())));
        }
        // What parity says of data that could not be read is the data from now on: parity has just been made of it.
        for &i in lost {
            let Some(data) = band.data[i].take() else { continue };
            let data = data.freeze();
            writes.extend(self.writers(stripe.data[i]).map(|member| (member, data.clone())));
        }
        // A write that failed on a member may have reached the one that is to replace it.
        for (i, &slot) in stripe.data.iter().enumerate() {
            if let Some(member) = self.replacement(slot)
                && let Some(data) = band.data[i].take()
            {
                writes.push((member, data.freeze()));
            }
        }
        let first = Sector(rows.start);
        let writes = writes.into_iter().map(|(member, data)| async move {
            let result = member.write(first, vec![data], Fua::No).await;
            (member, rows.clone(), result)
        });
        let written = futures_util::future::join_all(writes).await;
        self.settle(rows, written, true)?;
        self.persist().await?;
        Ok(mismatched)
    }

    async fn resync_copies(&self, copies: &Copies, rows: &Range<u64>) -> Result<u64, IoError> {
        let step = sectors(self.window_bytes());
        let mut mismatched = 0;
        let len = Sector(rows.end - rows.start);
        for extent in self.whole_extents(copies, Sector(rows.start), len, None) {
            let mut at = 0;
            while at < extent.len.0 {
                let stop = extent.len.0.min(at + step);
                mismatched += self.resync_extent(&part_of(&extent, at..stop)).await?;
                at = stop;
            }
        }
        Ok(mismatched)
    }

    async fn resync_extent(&self, extent: &crate::layout::Extent) -> Result<u64, IoError> {
        let len = (extent.len.0 * SECTOR_BYTES) as usize;
        let bufs = self.memory.scratch.alloc_all(&vec![len; extent.copies.len()]).await;
        let copies = self.read_all_copies(extent, bufs).await;
        let Some((_, _, first)) = copies.first() else { return Ok(0) };
        let block = sectors(self.block_bytes);
        if first.is_err() && extent.len.0 > block {
            // Block by block: what can be read of the first copy is the truth, and has been served as such.
            drop(copies);
            let mut mismatched = 0;
            for at in (0..extent.len.0).step_by(block as usize) {
                let part = part_of(extent, at..extent.len.0.min(at + block));
                mismatched += Box::pin(self.resync_extent(&part)).await?;
            }
            return Ok(mismatched);
        }
        // The first that can be read is the truth. One that cannot be read is written, which may mend it.
        let (mut truth, mut right) = (None, 0);
        let mut differing = Vec::new();
        let mut copies = copies;
        if mutant::is(Mutant::ResyncFromOtherCopy) {
            copies.reverse();
        }
        for (member, sector, result) in copies {
            match (result, &truth) {
                (Ok(copy), None) => (truth, right) = (Some(copy.freeze()), 1),
                (Ok(copy), Some(truth)) if *copy == **truth => right += 1,
                _ => differing.push((member, sector)),
            }
        }
        let Some(truth) = truth else { return Err(OUT_OF_REACH) };
        // A write that failed on a member may have reached the one that is to replace it.
        let replacements = extent.copies.iter();
        let replacements =
            replacements.filter_map(|place| Some((self.replacement(place.slot)?, place.sector)));
        let replacements: Vec<_> = replacements.collect();
        let mismatched = differing.len() as u64 * extent.len.0;
        let writes = differing.into_iter().chain(replacements).map(|(member, sector)| {
            let truth = truth.clone();
            async move {
                let own = sector.0..(sector + extent.len).0;
                let result = member.write(sector, vec![truth], Fua::No).await;
                (member, own, result)
            }
        });
        let written = futures_util::future::join_all(writes.collect::<Vec<_>>()).await;
        let rows = extent.array.0..(extent.array + extent.len).0;
        self.settle_beside(&rows, written, true, right)?;
        self.persist().await?;
        Ok(mismatched)
    }

    /// What a resync from `from` (in the units of the row locks) would be.
    /// `narrowed`: the array was in use before, so only what its bitmap tells can disagree.
    pub(super) fn resync_from(&self, from: Sector, trust: Trust, narrowed: bool) -> Resync {
        let end = self.lock_rows();
        // A checkpoint may lie anywhere; what is resynced twice does no harm.
        let cursor = from.0.min(end);
        let mut pending = RowSet::from_iter(std::iter::once(cursor..end));
        if let Some(intent) = self.intent.as_ref().filter(|_| narrowed) {
            let marked = intent.borrow().marked();
            let mut rest = 0;
            for rows in marked.ranges() {
                if rest < rows.start {
                    pending.remove(&(rest..rows.start));
                }
                rest = rows.end;
            }
            if rest < end {
                pending.remove(&(rest..end));
            }
        }
        let checkpoint = pending.next_from(0).map_or(end, |rows| rows.start);
        Resync { trust, pending, end, checkpoint }
    }

    /// How many rows there are, in the units of the row locks.
    pub(super) fn lock_rows(&self) -> u64 {
        match &self.geometry {
            Geometry::Parity(parity) => parity.stripe_count() * parity.chunk().0,
            Geometry::Copies(copies) => copies.array_sectors().0,
        }
    }
}
