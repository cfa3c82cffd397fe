//! From the engine's facts to the documents of `api`.

use super::config::NbdAddress;
use crate::api::{
    ArrayState, ConsistencyPolicy, Health, Member, MemberState, Spare, Status, SyncAction, SyncStatus,
};
use crate::engine::{self, ArrayStatus, MemberStatus, Phase};
use crate::layout::{Level, layout_name};
use crate::md::format_uuid;

/// What is said of an array that runs.
pub fn status(facts: &ArrayStatus, addresses: &[NbdAddress], connections: u64) -> Status {
    let level = facts.shape.level;
    let sync = facts.sync.as_ref().map_or(SyncStatus::idle(facts.mismatched_sectors), |sync| {
        let left = sync.total_bytes - sync.done_bytes;
        SyncStatus {
            action: match sync.action {
                engine::SyncAction::Resync => SyncAction::Resync,
                engine::SyncAction::Recovery => SyncAction::Recovery,
                engine::SyncAction::Check => SyncAction::Check,
                engine::SyncAction::Repair => SyncAction::Repair,
            },
            done_bytes: sync.done_bytes,
            total_bytes: sync.total_bytes,
            bytes_per_sec: sync.bytes_per_sec,
            eta_seconds: left.checked_div(sync.bytes_per_sec),
            mismatches: facts.mismatched_sectors,
        }
    });
    Status {
        name: facts.name.clone(),
        uuid: format_uuid(&facts.uuid),
        level: level.name().to_owned(),
        layout: layout_name(level, facts.shape.layout),
        chunk_bytes: facts.shape.chunk.bytes(),
        size_bytes: facts.size_bytes,
        member_size_bytes: facts.member_sectors.bytes(),
        metadata: "1.2".to_owned(),
        events: facts.events.0,
        consistency_policy: match level {
            Level::Raid0 => ConsistencyPolicy::None,
            _ if facts.has_ppl => ConsistencyPolicy::Ppl,
            _ if facts.has_bitmap => ConsistencyPolicy::Bitmap,
            _ => ConsistencyPolicy::Resync,
        },
        state: match facts.phase {
            Phase::Clean => ArrayState::Clean,
            Phase::Active => ArrayState::Active,
            Phase::ReadOnly => ArrayState::ReadOnly,
            Phase::Stopped => ArrayState::Inactive,
        },
        health: match facts.health {
            engine::Health::Optimal => Health::Optimal,
            engine::Health::Degraded => Health::Degraded,
            engine::Health::Failed => Health::Failed,
        },
        nbd_uri: addresses.first().map(|address| address.uri(&facts.name)),
        connections,
        members: facts.members.iter().map(member).collect(),
        spares: facts.spares.iter().map(spare).collect(),
        sync,
        created_unix_seconds: Some(facts.created_seconds),
        updated_unix_seconds: None,
        warnings: warnings(facts),
    }
}

fn warnings(facts: &ArrayStatus) -> Vec<String> {
    let mut out = Vec::new();
    out.extend(facts.read_only.as_ref().map(|why| format!("the array is read-only: {why}")));
    if facts.has_suspect_rows {
        out.push(
            "a write failed on some members only; these rows will be resynced at the next start".to_owned(),
        );
    }
    out
}

fn state_of(facts: &MemberStatus) -> MemberState {
    match facts.state {
        None => MemberState::Missing,
        Some(engine::MemberState::InSync) => MemberState::InSync,
        Some(engine::MemberState::Recovering(_)) => MemberState::Recovering,
        Some(engine::MemberState::Replacing(_)) => MemberState::Replacing,
        Some(engine::MemberState::Spare) => MemberState::Spare,
        Some(engine::MemberState::Faulty) => MemberState::Faulty,
    }
}

fn member(facts: &MemberStatus) -> Member {
    Member {
        slot: facts.slot.map_or(0, |slot| slot.0),
        path: facts.path.clone(),
        state: state_of(facts),
        read_errors: facts.read_errors,
        write_errors: facts.write_errors,
        corrected_errors: facts.corrected_sectors,
    }
}

fn spare(facts: &MemberStatus) -> Spare {
    Spare { slot: None, path: facts.path.clone(), state: state_of(facts) }
}

/// What is said of an array that should run and does not.
pub fn inactive(last: &Status, why: Option<String>) -> Status {
    let mut status = last.clone();
    status.state = ArrayState::Inactive;
    status.nbd_uri = None;
    status.connections = 0;
    status.sync = SyncStatus::idle(0);
    status.warnings = why.into_iter().collect();
    for member in &mut status.members {
        member.state = MemberState::Missing;
    }
    status
}
