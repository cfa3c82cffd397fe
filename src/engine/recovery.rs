//! Recovery: filling members, window by window, with what they should hold: spares that have taken a vacant slot, members
//! that have come back, and replacements.
//!
//! Clients are served meanwhile. What they write goes to members being filled at once, wherever the cursor is; read is
//! only what lies below it.
//!
//! Invariants:
//! - A window is worked out and written under its row locks, so nothing that a client writes is overwritten by what was
//!   read before. Several windows are in flight; a cursor moves in their order.
//! - A window that has been begun is ended: a write that is still under way is never left behind without its lock.
//! - On disk a member's recovery_offset follows a flush that has covered all below it (law 3: `flush_members` sets the
//!   checkpoint), and a member is called in sync only after a flush that has covered all of it.
//! - What redundancy cannot bring back is recorded in the bad-block log of the member that should hold it; the rest is
//!   saved.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::ops::Range;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use futures_util::future::join_all;

use super::array::{Array, sectors};
use super::events::Event;
use super::member::{Member, MemberState};
use super::mutant::{self, Mutant};
use super::plan::{self, OutOfReach, Place};
use super::solve;
use super::stripe::{LINE_SECTORS, OUT_OF_REACH};
use super::sync::SyncAction;
use crate::io::{Buf, Device, Fua, IoError, Runtime};
use crate::layout::{Copies, Geometry, Place as MemberPlace, Stripe};
use crate::units::{MemberSlot, Sector, StripeIndex};

/// Windows of a recovery that are worked on at the same time.
const WINDOWS_IN_FLIGHT: usize = 4;

/// Windows of a recovery by the bitmap that are passed over before somebody else has a turn.
const SKIPPED_WINDOWS: u64 = 256;

/// A recovery's way through the rows.
struct Pass<D> {
    next: Cell<u64>,
    /// Whom it fills. Who is seated later has nothing of the windows that are done, and waits for the next pass.
    members: Vec<Rc<Member<D>>>,
    /// All windows below it are done.
    whole_below: Cell<u64>,
    /// Windows above it that are done, too.
    ahead: RefCell<BTreeMap<u64, u64>>,
    checkpoint: Cell<u64>,
    end: u64,
    outcome: Cell<Result<(), IoError>>,
}

impl<D> Pass<D> {
    /// A window is done; the windows that are now done with all below them, in order.
    fn complete(&self, rows: Range<u64>) -> Vec<Range<u64>> {
        let mut ahead = self.ahead.borrow_mut();
        ahead.insert(rows.start, rows.end);
        let mut out = Vec::new();
        while let Some(end) = ahead.remove(&self.whole_below.get()) {
            out.push(self.whole_below.replace(end)..end);
        }
        out
    }
}

impl<D: Device + 'static, R: Runtime> Array<D, R> {
    /// Sectors of a member that the array uses.
    pub(super) fn used_sectors(&self) -> u64 {
        match &self.geometry {
            Geometry::Parity(parity) => parity.stripe_count() * parity.chunk().0,
            Geometry::Copies(copies) => copies.used_member_sectors().0,
        }
    }

    /// Fills whoever is to be filled, from the lowest cursor to the end.
    pub(super) async fn recover(&self) -> Result<(), IoError> {
        let end = self.used_sectors();
        let Some(from) = self.filling().iter().map(|(_, cursor)| cursor.0).min() else { return Ok(()) };
        tracing::info!(array = self.name(), from, end, "recovery started");
        self.begin_progress(SyncAction::Recovery, from, end);
        let complete = self.fill(from.min(end), end).await?;
        if complete {
            self.complete_filled(end).await?;
            tracing::info!(array = self.name(), "recovery ended");
            self.end_progress(SyncAction::Recovery);
        }
        Ok(())
    }

    /// False if it was interrupted.
    async fn fill(&self, from: u64, end: u64) -> Result<bool, IoError> {
        let pass = Pass {
            members: self.filling().into_iter().map(|(member, _)| member).collect(),
            next: Cell::new(from),
            whole_below: Cell::new(from),
            ahead: RefCell::default(),
            checkpoint: Cell::new(from),
            end,
            outcome: Cell::new(Ok(())),
        };
        // Each of them awaits what it must without holding up the others, locks and lanes in hand as they may have.
        join_all((0..WINDOWS_IN_FLIGHT).map(|_| self.fill_windows(&pass))).await;
        pass.outcome.get().map(|()| pass.whole_below.get() == end)
    }

    /// Fills one window after the other, until none is left or the pass is given up.
    async fn fill_windows(&self, pass: &Pass<D>) {
        let step = self.fill_window();
        while pass.outcome.get().is_ok() && self.goes_on() && !self.filling().is_empty() {
            let start = pass.next.get();
            if start >= pass.end {
                return;
            }
            let skip = self.skip_unmarked(start, pass);
            if skip > start {
                pass.next.set(skip);
                for rows in pass.complete(start..skip) {
                    self.advance(&rows, &pass.members);
                }
                yield_now().await;
                continue;
            }
            let rows = start..pass.end.min(start + step);
            pass.next.set(rows.end);
            let began = self.runtime.now();
            let worked = self.fill_rows(&rows, &pass.members).await;
            let Ok(moved) = worked else {
                pass.outcome.set(worked.map(drop));
                return;
            };
            for rows in pass.complete(rows.clone()) {
                self.advance(&rows, &pass.members);
            }
            let whole = pass.whole_below.get();
            self.note_progress(whole);
            if whole - pass.checkpoint.get() >= (pass.end / 16).max(1) && whole < pass.end {
                pass.checkpoint.set(whole);
                if let Err(error) = self.checkpoint_recovery().await {
                    pass.outcome.set(Err(error));
                    return;
                }
            }
            if moved {
                let share = Sector(rows.end - rows.start).bytes() * WINDOWS_IN_FLIGHT as u64;
                self.pace(share, began).await;
            }
        }
    }

    /// A window has been filled: those it was filled for who had come to its beginning have come to its end.
    fn advance(&self, rows: &Range<u64>, members: &[Rc<Member<D>>]) {
        for member in members {
            if member.cursor().is_some_and(|cursor| cursor.0 >= rows.start) {
                member.advance(Sector(rows.end));
            }
        }
    }

    /// Where the next row lies that anybody here may have missed.
    fn skip_unmarked(&self, start: u64, pass: &Pass<D>) -> u64 {
        let Some(intent) =
            self.intent.as_ref().filter(|_| pass.members.iter().all(|member| member.guided.get()))
        else {
            return start;
        };
        let is_marked = |rows: Range<u64>| intent.borrow().is_marked(&rows);
        match &self.geometry {
            Geometry::Copies(copies) if copies.chunk().is_some() => {
                // Not in the order of the array: step by step, but not for too long at once.
                let step = self.fill_window();
                let mut at = start;
                while at < pass.end && at - start < SKIPPED_WINDOWS * step {
                    let rows = at..pass.end.min(at + step);
                    let slots = pass.members.iter().filter_map(|member| member.slot.get());
                    let mut pieces = slots.flat_map(|slot| self.copy_pieces(copies, slot, &rows));
                    if pieces.any(|(_, array)| is_marked(array)) {
                        break;
                    }
                    at = rows.end;
                }
                at
            }
            _ => intent.borrow().next_marked(start).map_or(pass.end, |row| row.clamp(start, pass.end)),
        }
    }

    async fn checkpoint_recovery(&self) -> Result<(), IoError> {
        if mutant::is(Mutant::CheckpointAheadOfFlush) {
            let filling = self.filling();
            filling.iter().for_each(|(member, cursor)| member.checkpoint.set(*cursor));
        } else {
            self.flush_members().await?;
        }
        self.state.borrow_mut().wanted += 1;
        self.persist().await
    }

    /// Those who hold everything now are in sync. First their own superblocks say that they are whole, durably, and only
    /// then does anybody count on it: a generation in which the original of a replacement, or somebody else, is faulty
    /// may reach the others and not them.
    async fn complete_filled(&self, end: u64) -> Result<(), IoError> {
        let whole = |(member, cursor): (Rc<Member<D>>, Sector)| (cursor.0 >= end).then_some(member);
        let filled: Vec<_> = self.filling().into_iter().filter_map(whole).collect();
        if !mutant::is(Mutant::InSyncWithoutFlush) {
            self.flush_members().await?;
        }
        filled.iter().for_each(|member| member.filled.set(true));
        self.state.borrow_mut().wanted += 1;
        self.persist().await?;
        for member in filled {
            let Some(slot) = member.slot.get() else { continue }; // It failed meanwhile.
            match member.state.get() {
                MemberState::Recovering(_) => member.state.set(MemberState::InSync),
                MemberState::Replacing(_) => self.roster.borrow_mut().complete_replacement(slot),
                MemberState::InSync | MemberState::Spare | MemberState::Faulty => continue,
            }
            member.guided.set(false);
            tracing::info!(array = self.name(), member = member.label, %slot, "member is in sync");
            self.tell(Event::SpareActive { member: member.label.clone() });
            self.state.borrow_mut().wanted += 1;
        }
        self.persist().await?;
        self.watch_idle_bits();
        // Not some seconds later: whoever leaves now and comes back would be filled as a whole.
        self.clear_idle_bits(Duration::ZERO).await
    }

    pub(super) fn fill_window(&self) -> u64 {
        sectors(match &self.geometry {
            Geometry::Parity(parity) => self.window_bytes().min(parity.chunk().bytes()),
            Geometry::Copies(_) => self.window_bytes(),
        })
    }

    /// Fills those of the members that do not hold these rows yet. False if there was nothing to do.
    async fn fill_rows(&self, rows: &Range<u64>, members: &[Rc<Member<D>>]) -> Result<bool, IoError> {
        let lacks = |member: &Rc<Member<D>>| member.cursor().is_some_and(|cursor| cursor.0 < rows.end);
        let targets: Vec<_> = members.iter().filter(|member| lacks(member)).cloned().collect();
        let mut moved = false;
        match &self.geometry {
            Geometry::Parity(parity) => {
                let missed = |member: &Member<D>| !member.guided.get() || self.is_marked(rows);
                let targets: Vec<_> = targets.into_iter().filter(|member| missed(member)).collect();
                let chunk = parity.chunk().0;
                let mut at = rows.start;
                while at < rows.end && !targets.is_empty() {
                    let stop = rows.end.min((at / chunk + 1) * chunk);
                    self.fill_stripe(&parity.stripe(StripeIndex(at / chunk)), &(at..stop), &targets).await?;
                    (at, moved) = (stop, true);
                }
            }
            Geometry::Copies(copies) => {
                for member in targets {
                    moved |= self.fill_copy(copies, &member, rows).await?;
                }
            }
        }
        Ok(moved)
    }

    fn is_marked(&self, rows: &Range<u64>) -> bool {
        self.intent.as_ref().is_none_or(|intent| intent.borrow().is_marked(rows))
    }

    async fn fill_stripe(
        &self,
        stripe: &Stripe,
        rows: &Range<u64>,
        targets: &[Rc<Member<D>>],
    ) -> Result<(), IoError> {
        let _rows = self.locks.lock_unless(Mutant::FillWithoutLock, rows.clone()).await;
        let slots: Vec<_> = targets.iter().filter_map(|member| member.slot.get()).collect();
        match self.work_out(stripe, rows, &slots, Vec::new()).await {
            Ok(cells) => self.write_filled(rows, targets, cells).await,
            Err(_) => self.fill_lines(stripe, rows, targets).await,
        }
    }

    /// Line by line, and each member for itself, so that no more is given up than must be. The rows are locked.
    async fn fill_lines(
        &self,
        stripe: &Stripe,
        rows: &Range<u64>,
        targets: &[Rc<Member<D>>],
    ) -> Result<(), IoError> {
        let mut at = rows.start;
        while at < rows.end {
            let line = at..rows.end.min((at / LINE_SECTORS + 1) * LINE_SECTORS);
            at = line.end;
            for target in targets {
                let Some(slot) = target.slot.get() else { continue };
                let target = std::slice::from_ref(target);
                match self.work_out(stripe, &line, &[slot], Vec::new()).await {
                    Ok(cells) => self.write_filled(&line, target, cells).await?,
                    Err(error) => self.give_up(target, &line, error)?,
                }
            }
        }
        Ok(())
    }

    /// These rows are out of reach: the members that should hold them do not.
    fn give_up(&self, targets: &[Rc<Member<D>>], rows: &Range<u64>, error: IoError) -> Result<(), IoError> {
        for member in targets.iter().filter(|member| member.takes_writes()) {
            tracing::error!(
                array = self.name(),
                member = member.label,
                ?rows,
                "rows are lost: too many members cannot give them"
            );
            if !self.record_bad(member, rows) {
                return Err(error);
            }
        }
        Ok(())
    }

    async fn write_filled(
        &self,
        rows: &Range<u64>,
        targets: &[Rc<Member<D>>],
        cells: Vec<(MemberSlot, Buf)>,
    ) -> Result<(), IoError> {
        let writes = cells.into_iter().flat_map(|(slot, cell)| {
            let cell = cell.freeze();
            let here =
                targets.iter().filter(move |member| member.slot.get() == Some(slot) && member.takes_writes());
            here.map(move |member| (member.clone(), cell.clone()))
        });
        let writes = writes.map(|(member, cell)| async move {
            let result = member.write(Sector(rows.start), vec![cell], Fua::No).await;
            (member, rows.clone(), result)
        });
        let written = join_all(writes.collect::<Vec<_>>()).await;
        self.settle(rows, written, false)?;
        self.persist().await
    }

    /// What these slots should hold there, read or worked out from the rest of the stripe. The rows are locked.
    pub(super) async fn work_out(
        &self,
        stripe: &Stripe,
        rows: &Range<u64>,
        slots: &[MemberSlot],
        mut avoid: Vec<MemberSlot>,
    ) -> Result<Vec<(MemberSlot, Buf)>, IoError> {
        let places: Vec<(MemberSlot, Place)> =
            slots.iter().map(|&slot| (slot, place_of(stripe, slot))).collect();
        loop {
            let situation = self.situation(stripe, rows, &[], &avoid);
            let all_readable = places.iter().all(|&(_, place)| situation.cell(place).readable);
            let (lost, reads) = if all_readable {
                (Vec::new(), places.iter().map(|&(_, place)| place).collect())
            } else {
                let reads = plan::read(&situation).map_err(|OutOfReach| OUT_OF_REACH)?;
                (situation.lost().collect::<Vec<_>>(), reads)
            };
            let mut band = self.band(stripe, rows, reads.len() + lost.len() + 2).await;
            if !self.read_places(stripe, rows, &reads, &mut band, &mut avoid).await {
                continue;
            }
            let wants_parity = places.iter().any(|(_, place)| matches!(place, Place::P | Place::Q));
            match (all_readable, wants_parity) {
                (true, _) => {}
                (false, false) => solve::lost_data(stripe, &lost, &mut band),
                (false, true) => solve::lost_data_and_parity(stripe, &lost, &mut band),
            }
            let cells = places.iter().map(|&(slot, place)| {
                let cell = match place {
                    Place::Data(i) => band.data[i].take(),
                    Place::P => band.p.take(),
                    Place::Q => band.q.take(),
                };
                (slot, cell.expect("read or worked out"))
            });
            return Ok(cells.collect());
        }
    }

    /// Fills rows of one member of an array of copies. False if there was nothing to do.
    async fn fill_copy(
        &self,
        copies: &Copies,
        member: &Rc<Member<D>>,
        rows: &Range<u64>,
    ) -> Result<bool, IoError> {
        let Some(slot) = member.slot.get() else { return Ok(false) }; // It has failed.
        let mut moved = false;
        for (sector, array) in self.copy_pieces(copies, slot, rows) {
            if !member.takes_writes() {
                break;
            }
            if member.guided.get() && !self.is_marked(&array) {
                continue;
            }
            moved = true;
            let _rows = self.locks.lock_unless(Mutant::FillWithoutLock, array.clone()).await;
            match self.copy_of(copies, &array, None).await {
                Ok(data) => {
                    let own = sector.0..sector.0 + array.end - array.start;
                    let result = member.write(sector, vec![data.freeze()], Fua::No).await;
                    self.settle_beside(&array, vec![(member.clone(), own, result)], false, 1)?;
                    self.persist().await?;
                }
                Err(error) => {
                    let targets = std::slice::from_ref(member);
                    let mut at = 0;
                    let len = array.end - array.start;
                    while at < len {
                        let stop = len.min(at + LINE_SECTORS);
                        let line = array.start + at..array.start + stop;
                        let place = sector + Sector(at);
                        let own = place.0..place.0 + stop - at;
                        match self.copy_of(copies, &line, None).await {
                            Ok(data) => {
                                let result = member.write(place, vec![data.freeze()], Fua::No).await;
                                self.settle_beside(&line, vec![(member.clone(), own, result)], false, 1)?;
                            }
                            Err(_) => self.give_up(targets, &own, error)?,
                        }
                        at = stop;
                    }
                    self.persist().await?;
                }
            }
        }
        Ok(moved)
    }

    /// The pieces of a member's rows that are contiguous in the array, too: (where on the member, what of the array).
    pub(super) fn copy_pieces(
        &self,
        copies: &Copies,
        slot: MemberSlot,
        rows: &Range<u64>,
    ) -> Vec<(Sector, Range<u64>)> {
        let mut pieces = Vec::new();
        let mut at = rows.start;
        while at < rows.end {
            let chunk_end = copies.chunk().map_or(rows.end, |chunk| (at / chunk.0 + 1) * chunk.0);
            let stop = rows.end.min(chunk_end);
            if let Some(array) = copies.array_at(MemberPlace { slot, sector: Sector(at) }) {
                let len = (stop - at).min(copies.array_sectors().0 - array.0);
                pieces.push((Sector(at), array.0..array.0 + len));
            }
            at = stop;
        }
        pieces
    }

    /// A range of the array that lies within one extent, from the first copy that can be read, but not from `except`. The
    /// rows are locked.
    pub(super) async fn copy_of(
        &self,
        copies: &Copies,
        array: &Range<u64>,
        except: Option<MemberSlot>,
    ) -> Result<Buf, IoError> {
        let len = Sector(array.end - array.start);
        let extent = copies.extents(Sector(array.start), len).next().expect("a range that is not empty");
        assert!(extent.len == len, "a range within one extent");
        let mut last = OUT_OF_REACH;
        for place in extent.copies.iter().filter(|place| Some(place.slot) != except) {
            let rows = place.sector.0..place.sector.0 + len.0;
            let Some(source) = self.reader(place.slot, &rows) else { continue };
            let buf = self.memory.scratch.alloc(len.bytes() as usize).await;
            match self.read_member(&source, place.sector, buf).await {
                Ok(buf) => return Ok(buf),
                Err(error) => last = error,
            }
        }
        Err(last)
    }
}

/// Lets others have a turn.
async fn yield_now() {
    let mut is_first = true;
    std::future::poll_fn(|context| {
        if !std::mem::replace(&mut is_first, false) {
            return Poll::Ready(());
        }
        context.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

/// What a slot is to a stripe.
pub(super) fn place_of(stripe: &Stripe, slot: MemberSlot) -> Place {
    if slot == stripe.p {
        return Place::P;
    }
    if stripe.q == Some(slot) {
        return Place::Q;
    }
    let data = stripe.data.iter().position(|&data| data == slot);
    Place::Data(data.expect("every slot has a place in every stripe"))
}
