//! Writing bands where there are partial parity logs (`ppl_log`): what is logged of a band, and in which steps it is
//! written.
//!
//! A log tells what of a row stays; so what was being written on a member that is missing after the crash is anything
//! there. That is nobody's loss while it was not acknowledged, but some of it was: the rest of a block of which a part is
//! written. And while a member is missing already, every crash would do that.
//!
//! Invariants:
//! - Such chunks are written one at a time, those that are missing after the others: in each step only one chunk of a
//!   row changes, so it has its old sectors or its new ones, whoever is missing.
//! - Nothing is written while a failure of a member is not on record: it would come back as in sync, with parity that no
//!   log tells of. For the same reason an entry is kept until all that came of the write is on record.

use std::ops::Range;

use super::array::Array;
use super::mutant::{self, Mutant};
use super::plan::{self, Situation};
use super::ppl_log::Entry;
use super::solve::{self, Band};
use super::stripe::Written;
use crate::io::{Device, Fua, IoError, Runtime, Slice};
use crate::layout::{Geometry, Stripe};
use crate::units::{MemberSlot, Sector};

impl<D: Device + 'static, R: Runtime> Array<D, R> {
    /// Whether the chunks of a band must not be written together, and can be written one by one.
    pub(super) fn goes_chunk_by_chunk(
        &self,
        stripe: &Stripe,
        rows: &Range<u64>,
        situation: &Situation,
        has_edge: bool,
    ) -> bool {
        if !self.logs_writes() || !situation.p.writable {
            return false;
        }
        let new: Vec<usize> = (0..situation.data.len()).filter(|&i| situation.data[i].new).collect();
        if new.len() < 2 {
            return false;
        }
        let is_here = |&i: &usize| situation.data[i].readable && self.will_be_there(stripe.data[i], rows);
        if !has_edge && new.iter().all(is_here) {
            return false;
        }
        new.iter().all(|&only| {
            let mut step = situation.clone();
            step.data.iter_mut().enumerate().for_each(|(i, cell)| cell.new = i == only);
            plan::write(&step).is_ok()
        })
    }

    /// Whether the next start would find these rows on this member, if it finds the member.
    fn will_be_there(&self, slot: MemberSlot, rows: &Range<u64>) -> bool {
        self.in_sync(slot).is_some_and(|member| {
            let is_recorded = !member.log_is_due.get() && !member.log_shrinks.get();
            member.holds(rows) && is_recorded
        })
    }

    /// Writes a band's new chunks one by one.
    pub(super) async fn write_chunks(
        &self,
        stripe: &Stripe,
        rows: Range<u64>,
        new: &[Option<Slice>],
        fua: Fua,
    ) -> Result<(), IoError> {
        let mut order: Vec<usize> = (0..new.len()).filter(|&i| new[i].is_some()).collect();
        order.sort_by_key(|&i| self.reader(stripe.data[i], &rows).is_none());
        for only in order {
            let step = new.iter().enumerate().map(|(i, new)| new.clone().filter(|_| i == only));
            let step: Vec<_> = step.collect();
            Box::pin(self.write_band(stripe, rows.clone(), &step, false, fua)).await?;
        }
        Ok(())
    }

    /// Writes a band whose parity is worked out: first to the log, then to its members.
    pub(super) async fn write_logged(
        &self,
        written: Written<'_>,
        mut band: Band,
        writable: (bool, bool),
        consistent: bool,
        fua: Fua,
    ) -> Result<(), IoError> {
        self.persist().await?;
        self.until_closed().await?;
        let parity_slot = written.stripe.p;
        let mut entry = self.entry(&written, &mut band, writable.0);
        let late = entry.take_if(|_| mutant::is(Mutant::DataBeforePpl));
        let mut logged = match entry {
            Some(entry) => self.log(parity_slot, entry).await?,
            None => None,
        };
        if mutant::is(Mutant::ReusePplEarly) {
            logged = None;
        }
        let fua = if self.logs_writes() { Fua::Yes } else { fua };
        let result = self.write_cells(written, band, writable, consistent, fua).await;
        if let Some(entry) = late {
            logged = self.log(parity_slot, entry).await?;
        }
        let recorded = self.persist().await;
        if result.is_err() || recorded.is_err() {
            self.close_logs().await;
        }
        drop(logged);
        result.and(recorded)
    }

    fn entry(&self, written: &Written<'_>, band: &mut Band, has_parity: bool) -> Option<Entry> {
        let Geometry::Parity(parity) = &self.geometry else { return None };
        let Written { stripe, rows, new } = written;
        if !self.logs_writes() || !has_parity || band.p.is_none() {
            return None;
        }
        let first = new.iter().position(Option::is_some)?;
        let count = new.iter().flatten().count();
        assert!(new[first..first + count].iter().all(Option::is_some), "a write has no gaps");
        let mut partial = None;
        if count < new.len() {
            let mut buf = band.take();
            solve::partial_parity(new, band.p.as_ref().expect("just seen"), &mut buf);
            partial = Some(buf.freeze());
        }
        let start = stripe.index.0 * parity.stripe_sectors().0 + first as u64 * parity.chunk().0;
        Some(Entry {
            data_sector: Sector(start + rows.start - stripe.sector.0),
            data_size: (count * band.len) as u32,
            parity_disk: u32::from(stripe.p.0),
            partial,
        })
    }
}
