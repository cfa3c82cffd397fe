//! From the engine's facts to the documents of `api`.

use std::ops::Range;
use std::time::Duration;

use super::array_home::DiskArray;
use super::config::NbdListener;
use super::saved::SavedArray;
use crate::api::{
    ArrayState, ConsistencyPolicy, ErrorCounts, Finding, Findings, Health, Hedge, Member, MemberState,
    MemberStats, Operations, ReadPolicy, Spare, Stats, Status, SyncAction, SyncStatus, Traffic, Tuning,
};
use crate::engine::{self, ArrayStats, ArrayStatus, MemberStatus, Phase};
use crate::layout::{Level, layout_name};
use crate::md::format_uuid;
use crate::units::Sector;

/// What is said of an array that runs.
pub fn status(facts: &ArrayStatus, listeners: &[NbdListener], connections: u64) -> Status {
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
        nbd_uri: listeners.first().map(|listener| listener.uri(&facts.name)),
        connections,
        members: facts.members.iter().map(member).collect(),
        spares: facts.spares.iter().map(spare).collect(),
        sync,
        created_unix_seconds: Some(facts.created_seconds),
        updated_unix_seconds: None,
        warnings: warnings(facts),
        sync_paused: facts.is_paused,
        tuning: Some(Tuning {
            recovery_min: Some(*facts.recovery_bytes_per_sec.start()),
            recovery_max: Some(*facts.recovery_bytes_per_sec.end()),
            member_timeout_ms: Some(millis(facts.member_timeout)),
            write_through: Some(facts.write_through),
            read_policy: Some(match facts.read_policy {
                engine::ReadPolicy::RoundRobin => ReadPolicy::RoundRobin,
                engine::ReadPolicy::LeastPending => ReadPolicy::LeastPending,
                engine::ReadPolicy::Latency => ReadPolicy::Latency,
                engine::ReadPolicy::Prefer(slot) => ReadPolicy::Prefer(slot.0),
            }),
            hedge: Some(match facts.hedge {
                engine::Hedge::Off => Hedge::Off,
                engine::Hedge::Auto => Hedge::Auto,
                engine::Hedge::After(patience) => Hedge::AfterMs(millis(patience)),
            }),
            ..Tuning::default()
        }),
        last_scrub_unix_seconds: facts.last_scrub.map(|when| when.as_secs()),
        device: None,
        redundancy: Some(facts.redundancy),
        traffic: Some(Traffic {
            client_read_bytes: facts.client_bytes.0,
            client_written_bytes: facts.client_bytes.1,
            member_read_bytes: facts.member_bytes.0,
            member_written_bytes: facts.member_bytes.1,
        }),
        concerns: Vec::new(),
    }
}

/// What an array has done since it was started.
pub fn stats(name: &str, facts: &ArrayStats) -> Stats {
    let members = facts.members.iter().map(|member| MemberStats {
        slot: member.slot.map(|slot| slot.0),
        path: Some(member.path.clone()),
        in_flight: member.in_flight as u64,
        reads: operations(&member.reads),
        writes: operations(&member.writes),
        flushes: operations(&member.flushes),
        errors: {
            let engine::Errors { media, timeout, gone, other } = member.errors;
            ErrorCounts { media, timeout, gone, other }
        },
    });
    Stats {
        name: name.to_owned(),
        uptime_ms: millis(facts.times.up),
        degraded_ms: millis(facts.times.degraded),
        unavailable_ms: millis(facts.times.unavailable),
        failover_us: facts.failover.map(|failover| u64::try_from(failover.as_micros()).unwrap_or(u64::MAX)),
        in_flight: facts.in_flight as u64,
        reads: operations(&facts.reads),
        writes: operations(&facts.writes),
        flushes: operations(&facts.flushes),
        others: operations(&facts.others),
        hedged_reads: facts.hedged_reads,
        members: members.collect(),
    }
}

fn operations(facts: &engine::Operations) -> Operations {
    let engine::Operations { count, errors, bytes, total_us, max_us, ref within } = *facts;
    // It is counted to within a sixteenth, so that one alone may seem to have taken longer than all together.
    Operations { count, errors, bytes, total_us, max_us: max_us.min(total_us), within: within.clone() }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// What the daemon knows of an array beside the engine: settings that are its own, and what was before the last start.
pub fn add_saved(status: &mut Status, saved: Option<&SavedArray>) {
    let own = saved.map(|saved| saved.tuning.clone()).unwrap_or_default();
    if let Some(tuning) = &mut status.tuning {
        tuning.scrub_interval_ms = Some(own.scrub_interval_ms.unwrap_or(0));
        tuning.auto_re_add = Some(own.auto_re_add.unwrap_or_default());
        tuning.spare_group = own.spare_group;
    }
    let before = saved.and_then(|saved| saved.last_scrub_unix_seconds);
    status.last_scrub_unix_seconds = status.last_scrub_unix_seconds.or(before);
}

fn warnings(facts: &ArrayStatus) -> Vec<String> {
    let name = &facts.name;
    let mut out = Vec::new();
    out.extend(facts.read_only.as_ref().map(|why| match facts.is_protected {
        true => format!("the array is read-only: {why}, and raidctl readwrite {name} takes that back"),
        false => format!("the array is read-only: {why}"),
    }));
    if facts.has_suspect_rows {
        out.push(
            "a write failed on some members only; these rows will be resynced at the next start".to_owned(),
        );
    }
    let is = |state: engine::MemberState| move |member: &&MemberStatus| member.state == Some(state);
    let filled = facts.members.iter().any(|member| {
        matches!(member.state, Some(engine::MemberState::Recovering(_) | engine::MemberState::Replacing(_)))
    });
    let has_spare = facts.spares.iter().any(|member| is(engine::MemberState::Spare)(&member));
    let redundant = facts.shape.level.is_redundant();
    match facts.health {
        engine::Health::Failed => out.push(format!(
            "too many members are missing or faulty, and data is out of reach: bring them back, then stop {name} and \
             assemble it again"
        )),
        engine::Health::Degraded if redundant && !filled && !has_spare => out.push(format!(
            "degraded, and there is no spare to take over: add a device with raidctl add {name} DEV"
        )),
        _ => {}
    }
    for member in facts.members.iter().chain(&facts.spares) {
        let path = member.path.as_deref().unwrap_or("a member");
        if member.bad_sectors > 0 {
            out.push(format!(
                "{} sectors of {path} are recorded as bad: raidctl replace {name} {path} NEW puts another disk in its place",
                member.bad_sectors
            ));
        }
    }
    for member in facts.members.iter().chain(&facts.spares).filter(is(engine::MemberState::Faulty)) {
        let path = member.path.as_deref().unwrap_or("a member");
        out.push(format!("{path} is faulty: raidctl remove {name} {path} lets go of it"));
    }
    if facts.is_paused {
        out.push(format!("sync actions are paused: raidctl resume {name} lets them go on"));
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

/// What scrubs of an array found.
pub fn findings(array: &DiskArray) -> Findings {
    let bytes = |range: &Range<u64>| (Sector(range.start).bytes(), Sector(range.end - range.start).bytes());
    let has_parity = matches!(array.level(), Level::Raid4 | Level::Raid5 | Level::Raid6);
    let finding = |found: engine::Finding| {
        let (array_offset_bytes, array_len_bytes) = bytes(&found.array);
        let rows = has_parity.then(|| bytes(&found.rows));
        Finding {
            array_offset_bytes,
            array_len_bytes,
            member_offset_bytes: rows.map(|(offset, _)| offset),
            member_len_bytes: rows.map(|(_, len)| len),
            slot: found.liar.map(|slot| slot.0),
            device: found.path,
            repaired: found.repaired,
        }
    };
    Findings {
        name: array.name().to_owned(),
        mismatches: array.mismatched_sectors(),
        findings: array.findings().into_iter().map(finding).collect(),
    }
}

/// What is said of an array that should run and does not.
pub fn inactive(last: &Status, why: Option<String>) -> Status {
    let mut status = last.clone();
    status.state = ArrayState::Inactive;
    status.nbd_uri = None;
    status.connections = 0;
    status.sync = SyncStatus::idle(0);
    (status.sync_paused, status.tuning, status.redundancy) = (false, None, None);
    status.concerns.clear();
    status.warnings = why.into_iter().collect();
    for member in &mut status.members {
        member.state = MemberState::Missing;
    }
    status
}
