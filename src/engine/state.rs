//! What an array is at the moment: two machines (phase and health), its resync, and who may be failed.

use std::ops::Range;
use std::time::Duration;

use super::array::Array;
use super::member::{Member, MemberState};
use super::mutant::{self, Mutant};
use super::plan::Trust;
use super::ranges::RowSet;
use crate::io::{Device, IoError, IoErrorKind, Runtime};
use crate::layout::{Geometry, Level};
use crate::units::{EventCount, MemberSlot, Sector};

const READ_ONLY: IoError = IoError::new(IoErrorKind::ReadOnly, "the array is read-only");

/// Whether the array takes writes, and what its superblocks say.
///
/// Moves: clean -> active (the first write, once all superblocks say dirty) -> clean (idle, all members flushed, all
/// superblocks say clean); any -> read-only (the last usable copy cannot keep what it is given, or the operator
/// said so: `read_only`) -> clean (the operator took it back); clean -> stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// The superblocks say clean (or name what still awaits resync), and so it is.
    Clean,
    /// The superblocks say dirty: data may be written.
    Active,
    /// No write is taken. The reason is in `State::read_only`, once those under way have ended.
    ReadOnly,
    /// It is being stopped: nothing is taken any more.
    Stopped,
}

/// How much redundancy is left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Health {
    /// Every slot has a member in sync.
    Optimal,
    /// Some slot has none, but all data is there.
    Degraded,
    /// Data is out of reach.
    Failed,
}

/// Redundancy that is being made to agree.
#[derive(Clone, Debug)]
pub(super) struct Resync {
    /// What rows that it has not come to are worth.
    pub trust: Trust,
    /// The rows that it has not come to: member sectors where there is parity, else array sectors.
    pub pending: RowSet,
    pub end: u64,
    /// What the superblocks say of it while the array is clean.
    pub checkpoint: u64,
}

impl Resync {
    /// Below it nothing is pending.
    pub fn cursor(&self) -> u64 {
        self.pending.next_from(0).map_or(self.end, |rows| rows.start)
    }
}

/// The changing part of an array.
pub(super) struct State {
    pub phase: Phase,
    /// Why it is read-only.
    pub read_only: Option<String>,
    /// It is read-only by the operator's word alone, who may take it back.
    pub is_protected: bool,
    /// Writes that have been let in and not ended.
    pub in_flight: usize,
    /// Requests of any kind under way, for a stop to wait for.
    pub busy: usize,
    /// Those of them that change something.
    pub writing: usize,
    pub last_write: Duration,
    /// Counts writes let in; tells whether anybody wrote during an await.
    pub writes: u64,
    pub resync: Option<Resync>,
    /// Rows that a failed write has left torn, in the units of the row locks. While there are any, the superblocks say
    /// dirty, so that they are resynced at the next start whatever happens.
    pub suspect: RowSet,
    pub events: EventCount,
    /// Counts changes that must reach the superblocks, and how many of them have.
    pub wanted: u64,
    pub written: u64,
    /// The resync_offset that the superblocks carry; none while a generation is being written, or after one was given
    /// up half-way.
    pub recorded: Option<Sector>,
    /// A member's superblock claims rows that are not believed since the start. Until all superblocks have been written once
    /// they say dirty: one that a crash leaves a generation behind would be believed again.
    pub distrusts: bool,
    /// What was read of the members at the start may be in their caches alone, where a daemon that was killed has left it.
    /// They are flushed before anything is built on it.
    pub unflushed: bool,
    /// The task that marks an idle array clean is running.
    pub settling: bool,
    /// A flush of the last usable copy has failed; no later one may say otherwise.
    pub flush_lost: bool,
}

impl<D: Device + 'static, R: Runtime> Array<D, R> {
    fn present(&self, without: Option<MemberSlot>) -> Vec<bool> {
        self.slots().map(|slot| Some(slot) != without && self.in_sync(slot).is_some()).collect()
    }

    /// How much redundancy is left.
    pub fn health(&self) -> Health {
        let present = self.present(None);
        if present.iter().all(|&present| present) {
            Health::Optimal
        } else if self.geometry.survives(&present) {
            Health::Degraded
        } else {
            Health::Failed
        }
    }

    /// How many more members may fail, whichever they are, before data is out of reach. Parity that awaits a resync stands in
    /// for nobody; copies that do still hold what they hold.
    pub fn redundancy(&self) -> u16 {
        let left = match &self.geometry {
            Geometry::Parity(_) if self.state.borrow().resync.is_some() => 0,
            geometry => geometry.redundancy(&self.present(None)),
        };
        u16::try_from(left).expect("no more copies than members")
    }

    /// What the redundancy of these rows (in the units of the row locks) is worth.
    pub(super) fn trust(&self, rows: &Range<u64>) -> Trust {
        let state = self.state.borrow();
        if state.suspect.overlaps(rows) {
            return Trust::Unclean;
        }
        match &state.resync {
            Some(resync) if resync.pending.overlaps(rows) => resync.trust,
            _ => Trust::Consistent,
        }
    }

    /// Law 8: whether the array could go on without this member. Not where it is the last to hold some data: in rows
    /// whose parity is not trusted, every data member is.
    pub(super) fn can_fail(&self, slot: MemberSlot) -> bool {
        if mutant::is(Mutant::FailLastCopy) {
            return true;
        }
        if self.level() == Level::Raid0 {
            return false;
        }
        if let Geometry::Parity(_) = self.geometry {
            let state = self.state.borrow();
            let torn = state.resync.as_ref().is_some_and(|resync| resync.trust == Trust::Unclean);
            if (torn || !state.suspect.is_empty()) && !mutant::is(Mutant::FailWhileUnclean) {
                return false;
            }
        }
        self.geometry.survives(&self.present(Some(slot)))
    }

    /// Whether nothing at all would be lost without this member, not even where others have bad ranges: for members that
    /// are failed although they could go on.
    pub(super) fn can_do_without(&self, slot: MemberSlot) -> bool {
        self.can_fail(slot)
            && self.slots().filter(|&other| other != slot).all(|other| self.covers_bad(other, slot))
    }

    /// Whether what a member is known not to hold is there without this other one.
    fn covers_bad(&self, other: MemberSlot, without: MemberSlot) -> bool {
        let Some(member) = self.in_sync(other) else { return true };
        let bad: Vec<Range<u64>> = member.bad.borrow().ranges().collect();
        let holds =
            |slot: MemberSlot, rows: &Range<u64>| slot != without && self.reader(slot, rows).is_some();
        bad.into_iter().all(|rows| match &self.geometry {
            Geometry::Parity(_) => {
                let present: Vec<_> = self.slots().map(|slot| holds(slot, &rows)).collect();
                self.geometry.survives(&present)
            }
            Geometry::Copies(copies) => {
                self.copy_pieces(copies, other, &rows).into_iter().all(|(_, array)| {
                    let mut extents = copies.extents(Sector(array.start), Sector(array.end - array.start));
                    extents.all(|extent| {
                        let len = extent.len.0;
                        extent
                            .copies
                            .iter()
                            .any(|place| holds(place.slot, &(place.sector.0..place.sector.0 + len)))
                    })
                })
            }
        })
    }

    /// Takes a member out of service. Only decides; `persist` makes it durable, and nothing is acknowledged before.
    pub(super) fn fail_member(&self, member: &Member<D>, why: &str) {
        let slot = member.slot.get();
        assert!(slot.is_none_or(|slot| !member.in_sync() || self.can_fail(slot)), "law 8");
        let before = member.state.replace(MemberState::Faulty);
        if before == MemberState::Faulty {
            return;
        }
        let absent = matches!(member.last_blame.get(), Some(IoErrorKind::Timeout | IoErrorKind::Gone));
        member.is_absent.set(absent);
        tracing::error!(array = self.name(), member = member.label, why, "member failed");
        if before == MemberState::InSync {
            self.clients.note_failure(self.runtime.now());
        }
        self.tell_failure(member, before);
        if let Some(slot) = slot {
            self.roster.borrow_mut().promote_replacement(slot);
        }
        {
            let mut state = self.state.borrow_mut();
            state.wanted += 1;
            self.end_pointless_resync(&mut state);
        }
        // What follows from it (who takes over, who records it where nobody writes) is for the sync task.
        self.kick();
    }

    /// Counts changes of members.
    pub(super) fn changes(&self) -> u64 {
        self.state.borrow().wanted
    }

    /// Whether members have changed since these were counted. If so, what was seen of them before no longer holds: a
    /// request that has waited for one that hangs may find others in their places now.
    pub(super) fn have_changed(&self, changes: &mut u64) -> bool {
        std::mem::replace(changes, self.changes()) != *changes
    }

    /// A member that does not answer or is not there any more is failed by whatever notices it first, be it a read.
    pub(super) fn note_absence(&self, member: &Member<D>, error: &IoError) {
        let absent = matches!(error.kind, IoErrorKind::Timeout | IoErrorKind::Gone);
        let slot = member.slot.get();
        if absent
            && member.takes_writes()
            && self.state.borrow().read_only.is_none()
            && slot.is_none_or(|slot| !member.in_sync() || self.can_fail(slot))
        {
            self.fail_member(member, "it does not answer");
        }
    }

    /// A new array that has lost all its redundancy has nothing left to make agree: what parity says of the missing
    /// data *is* that data, and rows written since the creation are consistent.
    fn end_pointless_resync(&self, state: &mut State) {
        let Geometry::Parity(parity) = &self.geometry else { return };
        let missing = self.present(None).iter().filter(|&&present| !present).count();
        if missing >= parity.parity_count()
            && state.resync.as_ref().is_some_and(|resync| resync.trust == Trust::Initial)
        {
            state.resync = None;
        }
    }

    /// After the last usable copy could not keep what it was given: no more writes until the operator acts.
    pub(super) fn stop_writing(&self, why: &str) {
        let mut state = self.state.borrow_mut();
        tracing::error!(array = self.name(), why, "the array is read-only now");
        if state.phase != Phase::Stopped {
            state.phase = Phase::ReadOnly;
        }
        state.read_only = Some(why.to_owned());
        state.is_protected = false;
        drop(state);
        self.standing.gave_up.set(true);
        self.note_standing();
    }

    /// The resync_offset that the superblocks are to carry.
    pub(super) fn resync_offset(&self, active: bool) -> Sector {
        let state = self.state.borrow();
        match &state.resync {
            _ if active || state.distrusts || !state.suspect.is_empty() || self.replay_is_due() => {
                Sector::ZERO
            }
            None => Sector::MAX,
            Some(resync) => Sector(resync.checkpoint),
        }
    }

    /// Refuses what a phase does not allow.
    pub(super) fn check_open(&self, to_write: bool) -> Result<(), IoError> {
        match self.state.borrow().phase {
            Phase::Stopped => Err(IoError::new(IoErrorKind::ShuttingDown, "the array is being stopped")),
            Phase::ReadOnly if to_write => Err(READ_ONLY),
            _ => Ok(()),
        }
    }

    /// Refuses a write that was let in before the array became read-only, at the last moment: what has not ended in time
    /// on the last usable copy may still land there, over what would be acknowledged now.
    pub(super) fn check_writable(&self) -> Result<(), IoError> {
        match self.state.borrow().read_only {
            Some(_) => Err(READ_ONLY),
            None => Ok(()),
        }
    }
}
