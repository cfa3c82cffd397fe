//! WHEN superblocks are written (`md::superblock` says what they are): dirty before the first write, clean after a
//! flush, and every change of members before anybody is told of a success that depends on it.
//!
//! Invariants:
//! - All live members are written in parallel and waited for, in one lane; so their event counts are never more than one
//!   apart, whenever a crash comes.
//! - The event count only rises, and only when all survivors have taken it. One that a crash has left a generation behind
//!   is given what it missed before there is another; and what was found at the start is durable before anything is built on it.
//! - What members were believed to hold until a start that distrusts it is taken back by all of them before any says clean.
//! - A generation that was given up half-way is followed by two: whoever took the first and has failed since must not
//!   be as fresh as those who say so.
//! - Between the last look at who is writing and the first "clean" that is written there is no await.
//! - A member that cannot take its superblock fails, and the others are written again; the last usable copy is never
//!   failed, the array goes read-only instead.

use std::rc::Rc;
use std::time::Duration;

use futures_util::future::join_all;

use super::array::Array;
use super::member::{Member, MemberState};
use super::mutant::{self, Mutant};
use super::state::{Phase, Resync, State};
use crate::io::{Device, Fua, IoError, IoErrorKind, Runtime};
use crate::layout::Level;
use crate::md::superblock::pack_time;
use crate::md::{Features, Role, SUPERBLOCK_OFFSET_BYTES, Superblock};
use crate::units::{EventCount, Sector};

/// How long after the last write an array is marked clean; md's safe_mode_delay.
const SAFE_MODE_DELAY: Duration = Duration::from_millis(200);

/// A write that has been let in: while there is one, the array stays active.
pub(super) struct Ticket<'a, D: Device + 'static, R: Runtime> {
    array: &'a Array<D, R>,
}

impl<D: Device + 'static, R: Runtime> Drop for Ticket<'_, D, R> {
    fn drop(&mut self) {
        let now = self.array.runtime.now();
        let mut state = self.array.state.borrow_mut();
        state.in_flight -= 1;
        state.last_write = now;
    }
}

impl<D: Device + 'static, R: Runtime> Array<D, R> {
    /// Lets a write in: on return all superblocks say dirty, durably (law 2), and stay so while the ticket lives.
    pub(super) async fn activate(&self) -> Result<Ticket<'_, D, R>, IoError> {
        if self.level() == Level::Raid0 {
            // Without redundancy nothing can disagree: md never changes these superblocks, nor do we.
            return Ok(self.ticket());
        }
        if self.state.borrow().phase != Phase::Active {
            let _lane = self.lane.lock(0..1).await;
            self.check_open(true)?;
            if self.state.borrow().phase == Phase::Clean {
                self.begin_logs().await?;
                if !mutant::is(Mutant::WriteBeforeDirty) {
                    self.write_generation(true).await?;
                }
                self.check_open(true)?;
                self.state.borrow_mut().phase = Phase::Active;
                self.watch_for_idleness();
                self.watch_idle_bits();
            }
            return Ok(self.ticket());
        }
        Ok(self.ticket())
    }

    fn ticket(&self) -> Ticket<'_, D, R> {
        let mut state = self.state.borrow_mut();
        state.in_flight += 1;
        state.writes += 1;
        Ticket { array: self }
    }

    /// Returns once every member failure so far is durable in the superblocks of all survivors.
    pub(super) async fn persist(&self) -> Result<(), IoError> {
        let wanted = self.state.borrow().wanted;
        if self.state.borrow().written >= wanted || mutant::is(Mutant::ForgetToRecordFailure) {
            return Ok(());
        }
        if mutant::is(Mutant::AcknowledgeBeforePersist) {
            self.persist_later();
            return Ok(());
        }
        let _lane = self.lane.lock(0..1).await;
        if self.state.borrow().written >= wanted {
            return Ok(());
        }
        let active = self.state.borrow().phase != Phase::Clean;
        self.write_generation(active).await
    }

    /// A deliberate fault's way: somebody will see to it.
    fn persist_later(&self) {
        let (weak, runtime) = (self.weak.clone(), self.runtime.clone());
        self.runtime.spawn(async move {
            runtime.sleep(Duration::from_millis(2)).await;
            let Some(array) = weak.upgrade() else { return };
            let Ok(_busy) = array.enter(true) else { return };
            let _lane = array.lane.lock(0..1).await;
            let active = array.state.borrow().phase != Phase::Clean;
            if let Err(error) = array.write_generation(active).await {
                tracing::error!(%error, "not recorded");
            }
        });
    }

    /// Writes one generation of superblocks to all live members, again without those that fail, until all have it.
    /// The caller holds the lane.
    pub(super) async fn write_generation(&self, active: bool) -> Result<(), IoError> {
        self.catch_up().await?;
        let mut torn = self.state.borrow_mut().recorded.take().is_none();
        loop {
            let (generation, events) = {
                let state = self.state.borrow();
                (state.wanted, EventCount(state.events.0 + 1))
            };
            // What superblocks point to comes before them.
            self.write_bad_block_logs().await?;
            self.stamp_bitmap(events).await?;
            let members = self.live_members();
            let resync_offset = self.resync_offset(active);
            let writes = members.iter().map(|member| self.write_superblock(member, events, resync_offset));
            let results = join_all(writes).await;
            let failures =
                members.iter().zip(results).filter_map(|(member, result)| Some((member, result.err()?)));
            if !self.settle_metadata(failures.collect())? {
                let mut state = self.state.borrow_mut();
                state.events = events;
                state.written = state.written.max(generation);
                if std::mem::take(&mut torn) | std::mem::take(&mut state.distrusts) {
                    continue;
                }
                state.recorded = Some(resync_offset);
                return Ok(());
            }
            // Whoever got this generation has it; the next one says who did not.
            self.state.borrow_mut().events = events;
        }
    }

    /// Gives members that missed the last generation before the array was assembled what the others have: would the next
    /// one be torn, too, they would be two behind, and stale.
    async fn catch_up(&self) -> Result<(), IoError> {
        self.make_findings_durable().await?;
        let mut members = self.live_members();
        members.retain(|member| member.lags.get());
        if members.is_empty() {
            return Ok(());
        }
        let (events, recorded) = {
            let state = self.state.borrow();
            (state.events, state.recorded.unwrap_or(Sector::ZERO))
        };
        let results =
            join_all(members.iter().map(|member| self.write_superblock(member, events, recorded))).await;
        let failures =
            members.iter().zip(results).filter_map(|(member, result)| Some((member, result.err()?)));
        self.settle_metadata(failures.collect())?;
        members.iter().for_each(|member| member.lags.set(false));
        Ok(())
    }

    /// Flushes the members for the first time since the start. A superblock or a bit that was found may be one that a killed daemon
    /// had under way: read from the disk's cache, and gone when the power fails. The next generation would be the second that
    /// the member misses, and data would be written under a bit that is not there. The caller holds the lane.
    pub(super) async fn make_findings_durable(&self) -> Result<(), IoError> {
        if !self.state.borrow().unflushed {
            return Ok(());
        }
        let members = self.live_members();
        let results = join_all(members.iter().map(|member| member.flush())).await;
        for (member, result) in members.iter().zip(results) {
            if let Err(error) = result {
                self.settle_flush(member, error)?;
            }
        }
        self.state.borrow_mut().unflushed = false;
        Ok(())
    }

    /// Whether the array could not go on without it (law 8).
    fn is_last_copy(&self, member: &Member<D>) -> bool {
        member.slot.get().is_some_and(|slot| member.in_sync() && !self.can_fail(slot))
    }

    /// Decides what a failed flush means: its member fails, unless it is the last usable copy. Then the array takes no more writes,
    /// and no later flush may say otherwise: what this one covered may be gone.
    fn settle_flush(&self, member: &Rc<Member<D>>, error: IoError) -> Result<(), IoError> {
        if !self.is_last_copy(member) {
            self.fail_member(member, "it could not be flushed");
            return Ok(());
        }
        self.stop_writing("the last usable copy could not be flushed");
        self.state.borrow_mut().flush_lost = true;
        Err(error)
    }

    /// Decides what failed metadata writes mean. True if members were failed, so that it must be written again.
    pub(super) fn settle_metadata(&self, failures: Vec<(&Rc<Member<D>>, IoError)>) -> Result<bool, IoError> {
        let mut failed = false;
        for (member, error) in failures {
            member.note_write_error("metadata write", &error);
            if !error.blames_media() {
                return Err(error);
            }
            if self.is_last_copy(member) {
                self.stop_writing("the last usable copy cannot take a superblock");
                return Err(error);
            }
            self.fail_member(member, "it could not take its metadata");
            failed = true;
        }
        Ok(failed)
    }

    async fn write_superblock(
        &self,
        member: &Member<D>,
        events: EventCount,
        resync_offset: Sector,
    ) -> Result<(), IoError> {
        let superblock = self.superblock_of(member, events, resync_offset);
        let bytes = superblock.encode();
        let len = bytes.len().next_multiple_of(self.block_bytes as usize);
        let mut buf = self.memory.metadata.alloc(len).await;
        buf.zero();
        buf[..bytes.len()].copy_from_slice(&bytes);
        member.write_metadata(SUPERBLOCK_OFFSET_BYTES, vec![buf.freeze()], Fua::Yes).await
    }

    /// What a member's superblock says with this count and resync_offset.
    pub(super) fn superblock_of(
        &self,
        member: &Member<D>,
        events: EventCount,
        resync_offset: Sector,
    ) -> Superblock {
        let wall = self.runtime.wall();
        let mut superblock = member.superblock.clone();
        superblock.events = events;
        superblock.utime = pack_time(wall.as_secs(), wall.subsec_micros());
        superblock.resync_offset = resync_offset;
        superblock.dev_roles = self.roles(superblock.dev_roles.len());
        superblock.corrected_reads = member.corrected.get().try_into().unwrap_or(u32::MAX);
        let filling = match member.state.get() {
            MemberState::Recovering(_) if member.filled.get() => Features::NONE,
            MemberState::Replacing(_) if member.filled.get() => Features::REPLACEMENT,
            MemberState::Recovering(_) if member.guided.get() => {
                Features(Features::RECOVERY_OFFSET.0 | Features::RECOVERY_BITMAP.0)
            }
            MemberState::Recovering(_) => Features::RECOVERY_OFFSET,
            MemberState::Replacing(_) => Features(Features::RECOVERY_OFFSET.0 | Features::REPLACEMENT.0),
            MemberState::InSync | MemberState::Spare | MemberState::Faulty => Features::NONE,
        };
        let bad = if member.log_is_used.get() { Features::BAD_BLOCKS } else { Features::NONE };
        superblock.feature_map =
            Features(superblock.feature_map.0 & !Features::OF_ONE_MEMBER.0 | filling.0 | bad.0);
        // A recovery that the bitmap guides begins anew: what has been filled is no prefix.
        let filled = if member.guided.get() { Sector::ZERO } else { member.checkpoint.get() };
        superblock.recovery_offset =
            if filling.contains(Features::RECOVERY_OFFSET) { filled } else { Sector::MAX };
        superblock
    }

    /// The table of roles: who is listed here is in the array, whatever its own superblock says.
    fn roles(&self, len: usize) -> Vec<Role> {
        let roster = self.roster.borrow();
        let longest = roster.all().map(|member| member.superblock.dev_number as usize + 1).max();
        let mut roles = vec![Role::Spare; len.max(longest.unwrap_or(0))];
        for member in roster.all() {
            roles[member.superblock.dev_number as usize] = match (member.state.get(), member.slot.get()) {
                (MemberState::Faulty, _) => Role::Faulty,
                (MemberState::Spare, _) | (_, None) => Role::Spare,
                (_, Some(slot)) => Role::Active(slot),
            };
        }
        roles
    }

    /// Flushes every live member (law 3). One that fails to is failed, and that is durable on return.
    pub(super) async fn flush_members(&self) -> Result<(), IoError> {
        if self.state.borrow().flush_lost {
            return Err(IoError::new(
                IoErrorKind::Media,
                "an earlier flush failed; what it covered may be lost",
            ));
        }
        let mut members = self.live_members();
        if mutant::is(Mutant::ForgetOneFlush) && members.len() > 1 {
            members.pop();
        }
        let cursors: Vec<_> = members.iter().map(|member| member.cursor()).collect();
        let results = join_all(members.iter().map(|member| member.flush())).await;
        let mut lost = None;
        let read_only = self.state.borrow().read_only.is_some();
        for ((member, cursor), result) in members.iter().zip(cursors).zip(results) {
            let Err(error) = result else {
                // All that had been filled before is durable now (law 3).
                member.checkpoint.set(member.checkpoint.get().max(cursor.unwrap_or(Sector::ZERO)));
                continue;
            };
            if read_only {
                // Nobody's state is changed any more, as that would have to be written.
                self.state.borrow_mut().flush_lost = true;
                lost = Some(error);
            } else if let Err(error) = self.settle_flush(member, error) {
                lost = Some(error);
            }
        }
        match lost {
            Some(error) => Err(error),
            None => self.persist().await,
        }
    }

    /// Marks the array clean some time after the last write.
    fn watch_for_idleness(&self) {
        {
            let mut state = self.state.borrow_mut();
            if state.settling {
                return;
            }
            state.settling = true;
        }
        let weak = self.weak.clone();
        let runtime = self.runtime.clone();
        self.runtime.spawn(async move {
            loop {
                runtime.sleep(SAFE_MODE_DELAY).await;
                let Some(array) = weak.upgrade() else { return };
                let idle_at = array.state.borrow().last_write + SAFE_MODE_DELAY;
                if idle_at <= runtime.now()
                    && let Err(error) = array.go_clean().await
                {
                    tracing::warn!(array = array.name(), %error, "could not be marked clean");
                }
                let mut state = array.state.borrow_mut();
                if state.phase != Phase::Active {
                    state.settling = false;
                    return;
                }
            }
        });
    }

    /// Clean in two phases (law 2): all members flushed, then, if nobody has written meanwhile, the superblocks.
    /// Does nothing while somebody writes or rows are suspect.
    pub(super) async fn go_clean(&self) -> Result<(), IoError> {
        // A stop waits for this to end, and does the rest itself.
        let Ok(_busy) = self.enter(true) else { return Ok(()) };
        let hurries = mutant::is(Mutant::CleanWhileWriting);
        let may_be_clean = |state: &State| {
            state.phase == Phase::Active && (state.in_flight == 0 || hurries) && state.suspect.is_empty()
        };
        let (writes, cursor) = {
            let state = self.state.borrow();
            if !may_be_clean(&state) {
                return Ok(());
            }
            (state.writes, state.resync.as_ref().map(Resync::cursor))
        };
        if !mutant::is(Mutant::CleanWithoutFlush) {
            self.flush_members().await?;
        }
        let _lane = self.lane.lock(0..1).await;
        {
            let mut state = self.state.borrow_mut();
            if !may_be_clean(&state) || (state.writes != writes && !hurries) {
                return Ok(());
            }
            // From here on a write waits for the lane, and marks the array dirty again behind us.
            state.phase = Phase::Clean;
            // As far as it had come when the flush began: a resync does not stand still meanwhile.
            if let (Some(resync), Some(cursor)) = (&mut state.resync, cursor) {
                resync.checkpoint = resync.checkpoint.max(cursor);
            }
        }
        self.write_generation(false).await
    }

    /// Writes the resync's checkpoint, or that nothing awaits resync any more, if the array is idle; an active one says
    /// "dirty" anyway. What is said has been flushed.
    pub(super) async fn checkpoint_resync(&self) -> Result<(), IoError> {
        let _lane = self.lane.lock(0..1).await;
        if self.state.borrow().phase != Phase::Clean {
            return Ok(());
        }
        self.write_generation(false).await
    }

    /// Of an idle array whose superblocks still say less than is the case, as they had to be written while rows were
    /// suspect: says it.
    pub(super) async fn record_agreement(&self) -> Result<(), IoError> {
        let is_settled = {
            let state = self.state.borrow();
            state.phase == Phase::Clean && state.suspect.is_empty()
        };
        if !is_settled || self.says_all() {
            return Ok(());
        }
        self.flush_members().await?;
        self.checkpoint_resync().await
    }

    /// Whether the superblocks say how far redundancy agrees in an array that nobody writes.
    pub(super) fn says_all(&self) -> bool {
        self.state.borrow().recorded == Some(self.resync_offset(false))
    }

    /// Before the last superblocks are written: the resync has come as far as it is, and members have been filled as far
    /// as they are. True if that is farther than when they were found.
    pub(super) fn take_stock(&self) -> bool {
        if let Some(resync) = &mut self.state.borrow_mut().resync {
            resync.checkpoint = resync.cursor();
        }
        self.filling().iter().any(|(member, cursor)| *cursor > member.superblock.recovered())
    }

    /// Stops the array: nothing new is let in, what is under way is waited for, and the superblocks say clean. The
    /// members are released when the last reference to the array is dropped.
    pub async fn stop(&self) -> Result<(), IoError> {
        let was = {
            let mut state = self.state.borrow_mut();
            std::mem::replace(&mut state.phase, Phase::Stopped)
        };
        while self.state.borrow().busy > 0 {
            self.runtime.sleep(Duration::from_millis(1)).await;
        }
        self.end_sync_task().await;
        self.flush_members().await?;
        // What has never been written to here is left as it is.
        let is_touched = self.state.borrow().events != self.truth.events;
        if is_touched && was != Phase::ReadOnly && was != Phase::Stopped {
            self.clear_idle_bits(Duration::ZERO).await?;
        }
        let _lane = self.lane.lock(0..1).await;
        let has_progressed = self.take_stock();
        // A failure that was recorded on the way here has made the superblocks say dirty, whatever they said before.
        if self.level() == Level::Raid0
            || was == Phase::ReadOnly
            || was == Phase::Stopped
            || self.says_all() && !has_progressed && !self.replay_is_due()
        {
            return Ok(());
        }
        if self.replay_is_due() {
            if !self.logs.as_ref().is_some_and(|logs| logs.is_started.get()) {
                return Ok(());
            }
            self.begin_logs().await?;
        }
        self.write_generation(false).await
    }
}
