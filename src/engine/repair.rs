//! Read errors on members that are in sync: what could not be read is worked out from the others, written back, and read
//! again.
//!
//! Whoever meets such an error serves itself from redundancy and reports it here; a task of its own does the mending,
//! under row locks, so nobody waits for it. It reads line by line, and mends only what still cannot be read: a one-off
//! error leaves no trace.
//!
//! Invariants (laws 4 and 5):
//! - Nothing is mended in rows whose redundancy is not trusted, nor from a member that does not hold them.
//! - A line that reads after it was written counts as corrected. One that does not is recorded as bad, or its member
//!   fails; so does a member on which too many lines had to be corrected of late.

use std::cell::{Cell, RefCell};
use std::ops::Range;
use std::rc::Rc;
use std::time::Duration;

use super::array::Array;
use super::member::Member;
use super::plan::Trust;
use super::stripe::LINE_SECTORS;
use crate::io::{Buf, Device, Fua, IoError, IoErrorKind, Runtime, Slice};
use crate::layout::Geometry;
use crate::units::{MemberSlot, Sector, StripeIndex};

/// Ranges that one run of the task sees to; what comes on top is met again when it is read again.
const RANGES_MAX: usize = 64;

/// So many corrections count as too many; md's max_read_errors. What lies longer back counts half, hour by hour.
const CORRECTIONS_MAX: u64 = 20;
const CORRECTIONS_HALVED_EVERY: Duration = Duration::from_secs(3600);

/// Corrections on a member, the older the less.
#[derive(Default)]
pub(super) struct Corrections {
    count: u64,
    since: Duration,
}

impl Corrections {
    /// Counts one; true if it is one too many.
    fn note(&mut self, now: Duration) -> bool {
        let hours = (now.saturating_sub(self.since)).as_secs() / CORRECTIONS_HALVED_EVERY.as_secs();
        if hours > 0 {
            self.count = self.count.checked_shr(hours.try_into().unwrap_or(u32::MAX)).unwrap_or(0);
            self.since = now;
        }
        self.count += 1;
        self.count > CORRECTIONS_MAX
    }
}

/// What is to be mended: slots, and rows of their members.
#[derive(Default)]
pub(super) struct Mending {
    /// Those that have been seen to stay here until the task ends: two members that cannot be read in the same rows would
    /// call for each other for ever.
    ranges: RefCell<Vec<(MemberSlot, Range<u64>)>>,
    running: Cell<bool>,
}

impl<D: Device + 'static, R: Runtime> Array<D, R> {
    /// Reads from a member, and sees to what an error there means for it. The error itself is the caller's.
    pub(super) async fn read_member(
        &self,
        member: &Rc<Member<D>>,
        sector: Sector,
        buf: Buf,
    ) -> Result<Buf, IoError> {
        let rows = sector.0..sector.0 + super::array::sectors(buf.len() as u64);
        let result = member.read(sector, buf).await;
        result.inspect_err(|error| self.judge_read(member, rows, error))
    }

    /// Sees to what a failed read of these rows means for a member.
    pub(super) fn judge_read(&self, member: &Rc<Member<D>>, rows: Range<u64>, error: &IoError) {
        self.note_absence(member, error);
        let is_parity = matches!(self.geometry, Geometry::Parity(_));
        if error.kind != IoErrorKind::Media || !member.in_sync() {
            return;
        }
        let slot = member.slot.get().expect("a member in sync has a slot");
        if !is_parity
            && member.is_failfast()
            && self.can_do_without(slot)
            && self.state.borrow().read_only.is_none()
        {
            self.fail_member(member, "a read of it failed, and it is failfast");
            return;
        }
        // On a new array parity now decides what is there. It must not come back as something else.
        let decided = is_parity && self.trust(&rows) == Trust::Initial && self.record_bad(member, &rows);
        if !decided {
            self.mend_later(slot, rows);
        }
    }

    fn mend_later(&self, slot: MemberSlot, rows: Range<u64>) {
        if !self.keeps_redundancy() || self.state.borrow().read_only.is_some() {
            return;
        }
        {
            let mut ranges = self.mending.ranges.borrow_mut();
            let known = ranges
                .iter()
                .any(|(other, all)| *other == slot && all.start <= rows.start && rows.end <= all.end);
            if known || ranges.len() >= RANGES_MAX {
                return;
            }
            ranges.push((slot, rows));
        }
        if self.mending.running.replace(true) {
            return;
        }
        let weak = self.weak.clone();
        self.runtime.spawn(async move {
            let Some(array): Option<Rc<Self>> = weak.upgrade() else { return };
            for number in 0.. {
                let next = array.mending.ranges.borrow().get(number).cloned();
                let Some((slot, rows)) = next else { break };
                // Counted, so that a stop waits for it. What is not mended now is when it is read again.
                let Ok(busy) = array.enter(true) else { break };
                array.mend(slot, &rows).await;
                drop(busy);
            }
            array.mending.ranges.borrow_mut().clear();
            array.mending.running.set(false);
        });
    }

    async fn mend(&self, slot: MemberSlot, rows: &Range<u64>) {
        let mut at = rows.start;
        while at < rows.end {
            let line = at..rows.end.min((at / LINE_SECTORS + 1) * LINE_SECTORS);
            at = line.end;
            if self.state.borrow().read_only.is_some() {
                return;
            }
            let Some(member) = self.in_sync(slot).filter(|member| member.holds(&line)) else { return };
            if let Err(error) = self.mend_line(&member, slot, &line).await {
                tracing::warn!(array = self.name(), member = member.label, ?line, %error, "could not be mended");
            }
        }
        if let Err(error) = self.persist().await {
            tracing::warn!(array = self.name(), %error, "what was found while mending could not be recorded");
        }
    }

    async fn mend_line(
        &self,
        member: &Rc<Member<D>>,
        slot: MemberSlot,
        line: &Range<u64>,
    ) -> Result<(), IoError> {
        match &self.geometry {
            Geometry::Parity(parity) => {
                let chunk = parity.chunk().0;
                let mut at = line.start;
                while at < line.end {
                    let rows = at..line.end.min((at / chunk + 1) * chunk);
                    at = rows.end;
                    let _rows = self.locks.lock(rows.clone()).await;
                    if self.reads_well(member, &rows).await || self.trust(&rows) != Trust::Consistent {
                        continue;
                    }
                    let stripe = parity.stripe(StripeIndex(rows.start / chunk));
                    let cells = self.work_out(&stripe, &rows, &[slot], vec![slot]).await?;
                    let (_, cell) = cells.into_iter().next().expect("one was asked for");
                    self.rewrite(member, &rows, cell.freeze()).await;
                }
            }
            Geometry::Copies(copies) => {
                for (sector, array) in self.copy_pieces(copies, slot, line) {
                    let rows = sector.0..sector.0 + array.end - array.start;
                    let _rows = self.locks.lock(array.clone()).await;
                    if self.reads_well(member, &rows).await || self.trust(&array) != Trust::Consistent {
                        continue;
                    }
                    let good = self.copy_of(copies, &array, Some(slot)).await?;
                    self.rewrite(member, &rows, good.freeze()).await;
                }
            }
        }
        Ok(())
    }

    async fn reads_well(&self, member: &Rc<Member<D>>, rows: &Range<u64>) -> bool {
        let buf = self.memory.scratch.alloc(Sector(rows.end - rows.start).bytes() as usize).await;
        let result = member.read(Sector(rows.start), buf).await;
        // What is no error of the media is not mended by writing.
        result.map_or_else(|error| error.kind != IoErrorKind::Media || !member.in_sync(), |_| true)
    }

    /// Writes what should be there and reads it back.
    async fn rewrite(&self, member: &Rc<Member<D>>, rows: &Range<u64>, good: Slice) {
        let first = Sector(rows.start);
        let len = good.len();
        let written = member.write(first, vec![good.clone()], Fua::No).await;
        let fine = match written {
            Err(_) => false,
            Ok(()) => {
                let buf = self.memory.scratch.alloc(len).await;
                member.read(first, buf).await.is_ok_and(|back| *back == *good)
            }
        };
        if !member.in_sync() {
            return;
        }
        let slot = member.slot.get().expect("a member in sync has a slot");
        if !fine {
            if !self.record_bad(member, rows) && self.can_fail(slot) {
                self.fail_member(member, "it cannot hold what is written to it");
            }
            return;
        }
        member.corrected.set(member.corrected.get() + rows.end - rows.start);
        tracing::warn!(array = self.name(), member = member.label, ?rows, "read error corrected");
        if member.corrections.borrow_mut().note(self.runtime.now()) && self.can_do_without(slot) {
            self.fail_member(member, "too many read errors had to be corrected");
        }
    }
}
