//! A picture of an array for whoever asks. Facts only; words are `api`'s.

use super::array::Array;
use super::choice::ReadPolicy;
use super::hedge::Hedge;
use super::member::{Member, MemberState};
use super::state::{Health, Phase};
use super::sync::{Progress, SyncAction};
use crate::io::{Device, Runtime};
use crate::layout::{Geometry, Shape};
use crate::units::{EventCount, MemberSlot, SECTOR_BYTES, Sector};

/// Everything about an array at one moment.
#[derive(Clone, Debug)]
pub struct ArrayStatus {
    /// Its name.
    pub name: String,
    /// As stored.
    pub uuid: [u8; 16],
    /// Level, layout, chunk.
    pub shape: Shape,
    /// Bytes of content.
    pub size_bytes: u64,
    /// Sectors of each member that it uses.
    pub member_sectors: Sector,
    /// The superblocks' count.
    pub events: EventCount,
    /// Whether it has a write-intent bitmap.
    pub has_bitmap: bool,
    /// Whether it has a partial parity log.
    pub has_ppl: bool,
    /// Whether writes are kept in it: not while rows await resync.
    pub ppl_is_open: bool,
    /// Seconds since 1970.
    pub created_seconds: u64,
    /// What the superblocks say.
    pub phase: Phase,
    /// Why it takes no writes, if so.
    pub read_only: Option<String>,
    /// It is read-only by the operator's word alone.
    pub is_protected: bool,
    /// How much redundancy is left.
    pub health: Health,
    /// How many more members may fail, whichever they are.
    pub redundancy: u16,
    /// One a slot.
    pub members: Vec<MemberStatus>,
    /// The others.
    pub spares: Vec<MemberStatus>,
    /// The sync action under way, if any.
    pub sync: Option<SyncStatus>,
    /// Bytes that clients have read and written, and that members have been read and written for it and for all else.
    pub client_bytes: (u64, u64),
    /// The members' part of it.
    pub member_bytes: (u64, u64),
    /// Some redundancy awaits resync, whether one is under way or not.
    pub resync_is_due: bool,
    /// Sync actions are held where they are.
    pub is_paused: bool,
    /// Sectors that disagreed, by the last or the running scrub or resync.
    pub mismatched_sectors: u64,
    /// When the last whole scrub since the array was started ended: time since 1970.
    pub last_scrub: Option<std::time::Duration>,
    /// How long a member has for an operation.
    pub member_timeout: std::time::Duration,
    /// Every write is durable when it is answered.
    pub write_through: bool,
    /// Which copy of a mirror is read.
    pub read_policy: ReadPolicy,
    /// When a read is asked of other members, too.
    pub hedge: Hedge,
    /// Bytes a second of each member, below which clients do not push a sync action, and above which it does not go.
    pub recovery_bytes_per_sec: std::ops::RangeInclusive<u64>,
    /// Rows are torn by a failed write and will be resynced at the next start.
    pub has_suspect_rows: bool,
}

/// One member.
#[derive(Clone, Debug)]
pub struct MemberStatus {
    /// Its slot, if it has one.
    pub slot: Option<MemberSlot>,
    /// Its path; none where the slot is empty.
    pub path: Option<String>,
    /// None: missing.
    pub state: Option<MemberState>,
    /// Reads that failed.
    pub read_errors: u64,
    /// Writes and flushes that failed.
    pub write_errors: u64,
    /// Sectors that could not be read, and were mended.
    pub corrected_sectors: u64,
    /// Sectors that it is known not to hold.
    pub bad_sectors: u64,
    /// Where on the device its data begins.
    pub data_offset: Sector,
}

/// A sync action under way, in bytes of each member (resync and scrub of copies: of the array).
#[derive(Clone, Debug)]
pub struct SyncStatus {
    /// What is being done.
    pub action: SyncAction,
    /// Done.
    pub done_bytes: u64,
    /// In all.
    pub total_bytes: u64,
    /// Since it was started here.
    pub bytes_per_sec: u64,
}

impl<D: Device + 'static, R: Runtime> Array<D, R> {
    /// The array as it is.
    pub fn status(&self) -> ArrayStatus {
        let state = self.state.borrow();
        let superblock = &self.truth;
        let sync = self.sync.progress.get().or_else(|| self.due_action()).map(|progress| {
            let elapsed = (self.runtime.now() - progress.started).as_millis().max(1) as u64;
            SyncStatus {
                action: progress.action,
                done_bytes: progress.done * SECTOR_BYTES,
                total_bytes: progress.total * SECTOR_BYTES,
                bytes_per_sec: progress.done.saturating_sub(progress.started_at) * SECTOR_BYTES * 1000
                    / elapsed,
            }
        });
        ArrayStatus {
            name: self.name.clone(),
            uuid: superblock.set_uuid,
            shape: self.shape.clone(),
            size_bytes: self.size_bytes(),
            member_sectors: match &self.geometry {
                Geometry::Copies(copies) if copies.copies() == 1 => Sector::ZERO,
                geometry => geometry.used_member_sectors(),
            },
            events: state.events,
            has_bitmap: self.has_bitmap(),
            has_ppl: superblock.has_ppl(),
            ppl_is_open: self.logs_writes(),
            created_seconds: crate::md::superblock::unpack_seconds(superblock.ctime),
            // Clean is what the superblocks say, not what they are about to.
            phase: match state.phase {
                Phase::Clean if state.recorded.is_none() => Phase::Active,
                phase => phase,
            },
            read_only: state.read_only.clone(),
            is_protected: state.is_protected,
            health: self.health(),
            redundancy: self.redundancy(),
            members: self.member_statuses(),
            spares: self
                .roster
                .borrow()
                .others
                .iter()
                .map(|member| member_status(None, Some(member)))
                .collect(),
            sync,
            client_bytes: (self.clients.reads.bytes(), self.clients.writes.bytes()),
            member_bytes: (self.traffic.member_read.get(), self.traffic.member_written.get()),
            resync_is_due: state.resync.is_some(),
            is_paused: self.sync.paused.get(),
            mismatched_sectors: self.mismatched_sectors(),
            last_scrub: self.last_scrub(),
            member_timeout: self.deadlines.timeout(),
            write_through: self.write_through.get(),
            read_policy: self.read_policy(),
            hedge: self.hedge(),
            recovery_bytes_per_sec: self.sync.bytes_per_sec_min.get()..=self.sync.bytes_per_sec_max.get(),
            has_suspect_rows: !state.suspect.is_empty(),
        }
    }

    /// What is about to be done, or would be if the array were not paused or read-only.
    fn due_action(&self) -> Option<Progress> {
        let state = self.state.borrow();
        let (action, done, total) = if let Some(resync) = &state.resync {
            (SyncAction::Resync, resync.cursor(), resync.end)
        } else if let Some(cursor) = self.filling().iter().map(|(_, cursor)| cursor.0).min() {
            (SyncAction::Recovery, cursor, self.used_sectors())
        } else {
            let repair = self.sync.scrub.borrow().wanted()?;
            (if repair { SyncAction::Repair } else { SyncAction::Check }, 0, self.lock_rows())
        };
        let started = self.runtime.now();
        Some(Progress { action, done: done.min(total), total, started, started_at: done })
    }

    fn member_statuses(&self) -> Vec<MemberStatus> {
        let mut out = Vec::new();
        for (slot, seat) in self.roster.borrow().seats.iter().enumerate() {
            let slot = Some(MemberSlot(slot as u16));
            if seat.member.is_some() || seat.replacement.is_none() {
                out.push(member_status(slot, seat.member.as_deref()));
            }
            out.extend(seat.replacement.as_deref().map(|member| member_status(slot, Some(member))));
        }
        out
    }

    /// The paths of all members that it holds.
    pub fn member_paths(&self) -> Vec<String> {
        self.roster.borrow().all().map(|member| member.label.clone()).collect()
    }
}

fn member_status<D>(slot: Option<MemberSlot>, member: Option<&Member<D>>) -> MemberStatus {
    MemberStatus {
        slot,
        path: member.map(|member| member.label.clone()),
        state: member.map(|member| member.state.get()),
        read_errors: member.map_or(0, |member| member.read_errors.get()),
        write_errors: member.map_or(0, |member| member.write_errors.get()),
        corrected_sectors: member.map_or(0, |member| member.corrected.get()),
        bad_sectors: member.map_or(0, |member| member.bad.borrow().count()),
        data_offset: member.map_or(Sector::ZERO, |member| member.superblock.data_offset),
    }
}
