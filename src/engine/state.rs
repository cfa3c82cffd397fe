//! What an array is at the moment: two machines (phase and health), its resync, and who may be failed.

use std::ops::Range;
use std::rc::Rc;
use std::time::Duration;

use super::array::Array;
use super::member::{Member, MemberState};
use super::plan::Trust;
use super::ranges::RowSet;
use crate::io::{Device, IoError, IoErrorKind, Runtime};
use crate::layout::{Geometry, Level};
use crate::units::{EventCount, MemberSlot, Sector};

/// Whether the array takes writes, and what its superblocks say.
///
/// Moves: clean -> active (the first write, once all superblocks say dirty) -> clean (idle, all members flushed, all
/// superblocks say clean); any -> read-only (the last usable copy cannot keep what it is given); clean -> stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// The superblocks say clean (or name what still awaits resync), and so it is.
    Clean,
    /// The superblocks say dirty: data may be written.
    Active,
    /// No write is taken. The reason is in `State::read_only`.
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
    /// How far it has come: member sectors where there is parity, else array sectors.
    pub cursor: u64,
    pub end: u64,
    /// What the superblocks say of it while the array is clean.
    pub checkpoint: u64,
    pub mismatched_sectors: u64,
    pub started: Duration,
    pub started_at: u64,
}

/// The changing part of an array.
pub(super) struct State {
    pub phase: Phase,
    /// Why it is read-only.
    pub read_only: Option<String>,
    /// Writes that have been let in and not ended.
    pub in_flight: usize,
    /// Requests of any kind under way, for a stop to wait for.
    pub busy: usize,
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
    pub bitmap_is_stale: bool,
    /// The task that marks an idle array clean is running.
    pub settling: bool,
    /// A flush of the last usable copy has failed; no later one may say otherwise.
    pub flush_lost: bool,
}

impl<D: Device + 'static, R: Runtime> Array<D, R> {
    /// All members that sit in a slot and are not faulty, and the spares: those whose superblocks are kept.
    pub(super) fn live_members(&self) -> Vec<Rc<Member<D>>> {
        let seated = self.seats.iter().flat_map(|seat| [&seat.member, &seat.replacement]).flatten();
        let all = seated.chain(&self.spares);
        all.filter(|member| member.state.get() != MemberState::Faulty).cloned().collect()
    }

    /// The in-sync member of a slot.
    pub(super) fn in_sync(&self, slot: MemberSlot) -> Option<&Rc<Member<D>>> {
        self.seats[slot.index()].member.as_ref().filter(|member| member.in_sync())
    }

    /// Who in this slot holds these rows: the member, or else what is to replace it.
    pub(super) fn reader(&self, slot: MemberSlot, rows: &Range<u64>) -> Option<Rc<Member<D>>> {
        let seat = &self.seats[slot.index()];
        [&seat.member, &seat.replacement].into_iter().flatten().find(|member| member.holds(rows)).cloned()
    }

    /// Whether a read or write of these slots must be cut where members begin or cease to hold what they should.
    pub(super) fn cuts(&self, rows: &Range<u64>) -> Vec<u64> {
        let mut cuts = Vec::new();
        for member in self.seats.iter().flat_map(|seat| [&seat.member, &seat.replacement]).flatten() {
            let mut own = Vec::new();
            member.cuts(rows, &mut own);
            cuts.append(&mut own);
        }
        cuts.sort_unstable();
        cuts.dedup();
        cuts
    }

    fn present(&self, without: Option<MemberSlot>) -> Vec<bool> {
        let slots = (0..self.seats.len() as u16).map(MemberSlot);
        slots.map(|slot| Some(slot) != without && self.in_sync(slot).is_some()).collect()
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

    /// What the redundancy of these rows (in the units of the row locks) is worth.
    pub(super) fn trust(&self, rows: &Range<u64>) -> Trust {
        let state = self.state.borrow();
        if state.suspect.overlaps(rows) {
            return Trust::Unclean;
        }
        match &state.resync {
            Some(resync) if rows.end > resync.cursor => resync.trust,
            _ => Trust::Consistent,
        }
    }

    /// Law 8: whether the array could go on without this member. Not where it is the last to hold some data: in rows
    /// whose parity is not trusted, every data member is.
    pub(super) fn can_fail(&self, slot: MemberSlot) -> bool {
        if self.level() == Level::Raid0 {
            return false;
        }
        if let Geometry::Parity(_) = self.geometry {
            let state = self.state.borrow();
            let torn = state.resync.as_ref().is_some_and(|resync| resync.trust == Trust::Unclean);
            if torn || !state.suspect.is_empty() {
                return false;
            }
        }
        self.geometry.survives(&self.present(Some(slot)))
    }

    /// Takes a member out of service. Only decides; `persist` makes it durable, and nothing is acknowledged before.
    pub(super) fn fail_member(&self, member: &Member<D>, why: &str) {
        assert!(member.slot.is_none_or(|slot| !member.in_sync() || self.can_fail(slot)), "law 8");
        if member.state.replace(MemberState::Faulty) == MemberState::Faulty {
            return;
        }
        tracing::error!(array = self.name(), member = member.label, why, "member failed");
        let mut state = self.state.borrow_mut();
        state.wanted += 1;
        self.end_pointless_resync(&mut state);
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
    }

    /// The resync_offset that the superblocks are to carry.
    pub(super) fn resync_offset(&self, active: bool) -> Sector {
        let state = self.state.borrow();
        match &state.resync {
            _ if active || !state.suspect.is_empty() => Sector::ZERO,
            None => Sector::MAX,
            Some(resync) => Sector(resync.checkpoint),
        }
    }

    /// Operator's `fail`: takes the member of this path out of service, durably.
    pub async fn fail(&self, label: &str) -> Result<(), super::Refusal> {
        let seated = self.seats.iter().flat_map(|seat| [&seat.member, &seat.replacement]).flatten();
        let Some(member) = seated.chain(&self.spares).find(|member| member.label == label).cloned() else {
            let why = format!("{label} is no member of {}; see raidctl status {}", self.name(), self.name());
            return Err(super::Refusal::NotNow(why));
        };
        if self.state.borrow().phase == Phase::ReadOnly {
            let why =
                format!("{}: the array is read-only; its members' states cannot be changed", self.name());
            return Err(super::Refusal::NotNow(why));
        }
        // Counted, so that no superblock is written behind the last one of a stop.
        let _busy =
            self.enter(true).map_err(|error| super::Refusal::NotNow(format!("{}: {error}", self.name())))?;
        match member.state.get() {
            MemberState::Faulty => return Ok(()),
            MemberState::InSync if !self.can_fail(member.slot.expect("a member in sync has a slot")) => {
                return Err(super::Refusal::NotNow(self.why_not_fail(label)));
            }
            _ => {}
        }
        self.fail_member(&member, "the operator said so");
        self.persist().await.map_err(|error| super::Refusal::WriteFailed {
            member: label.to_owned(),
            what: "recording the failure in the superblocks",
            error,
        })
    }

    fn why_not_fail(&self, label: &str) -> String {
        let name = self.name();
        let state = self.state.borrow();
        let torn = state.resync.as_ref().is_some_and(|resync| resync.trust == Trust::Unclean);
        if self.level() != Level::Raid0 && (torn || !state.suspect.is_empty()) {
            return format!(
                "{label}: {name} is being resynced after an unclean stop, and until then this member's data cannot \
                 be worked out from the others; wait until raidctl status {name} shows no resync"
            );
        }
        format!("{label}: {name} would lose data without this member; nothing was changed")
    }

    /// Refuses what a phase does not allow.
    pub(super) fn check_open(&self, to_write: bool) -> Result<(), IoError> {
        match self.state.borrow().phase {
            Phase::Stopped => Err(IoError::new(IoErrorKind::ShuttingDown, "the array is being stopped")),
            Phase::ReadOnly if to_write => Err(IoError::new(IoErrorKind::ReadOnly, "the array is read-only")),
            _ => Ok(()),
        }
    }
}
