//! Replaying partial parity logs, in memory: a RAID5 that was being written when it stopped, with a log of what was
//! under way, has its torn parity told by the log. The array is served read-only, so nothing is written back; reads of
//! those sectors of parity give what the log makes of them.
//!
//! As md does it (raid5-ppl.c, `ppl_recover_entry`): from each member's current header, every entry whose checksum holds
//! makes new parity for its rows, of the partial parity and of the data chunks that were being written, unless one of
//! those is missing. Missing is also what a member does not hold: above what is rebuilt of it, or in bad blocks.

use super::error::Refusal;
use super::load::{Found, read_bytes};
use crate::io::{Device, Pool};
use crate::layout::{Geometry, Parity};
use crate::md::{Superblock, ppl};
use crate::parity;
use crate::units::{SECTOR_BYTES, Sector};

/// The sectors of parity that an entry makes: (member sector, the array sectors whose data goes into it).
struct Line {
    parity: Sector,
    changed: Vec<Sector>,
}

/// Replays all logs. False if one of a member in sync has no valid header or an entry that is damaged: then there may
/// be torn parity that nobody tells of.
pub(super) async fn replay<D: Device>(
    truth: &Superblock,
    geometry: &Geometry,
    slots: &[(Option<usize>, Option<usize>)],
    found: &mut [Found<D>],
    pool: &Pool,
) -> Result<bool, Refusal> {
    let Geometry::Parity(geometry) = geometry else { return Ok(true) };
    let signature = ppl::signature(&truth.set_uuid);
    let mut told = true;
    for index in slots.iter().filter_map(|&(main, _)| main) {
        let log = std::mem::take(&mut found[index].ppl_log);
        let in_sync = found[index].superblock.recovered() == Sector::MAX;
        let Some(current) = ppl::current_entries(&log, signature) else {
            told &= !in_sync;
            continue;
        };
        told &= !in_sync || current.entries.iter().all(|entry| entry.checksum_ok);
        for entry in current.entries.iter().filter(|entry| entry.checksum_ok) {
            let partial = &log[entry.parity.clone()];
            for (number, line) in lines(geometry, entry).into_iter().enumerate() {
                let mut data = Vec::new();
                for &sector in &line.changed {
                    data.extend(data_sector(geometry, slots, found, pool, sector).await?);
                }
                if data.len() < line.changed.len() || line.changed.is_empty() {
                    continue; // What was being written is not all there: its parity stays as it is.
                }
                let at = number * SECTOR_BYTES as usize;
                let sources = data.iter().map(|sector| &sector[..]);
                let sources: Vec<&[u8]> =
                    sources.chain(partial.get(at..at + SECTOR_BYTES as usize)).collect();
                let mut made = [0; SECTOR_BYTES as usize];
                parity::xor(&sources, &mut made);
                found[index].replayed.insert(line.parity.0, made);
            }
        }
    }
    Ok(told)
}

/// The rows that an entry is about, sector by sector. None for an entry that makes no sense in this geometry.
fn lines(geometry: &Parity, entry: &ppl::Entry) -> Vec<Line> {
    let chunk = geometry.chunk().0;
    let first = entry.data_sector.0;
    let (data, partial) =
        (u64::from(entry.data_size) / SECTOR_BYTES, u64::from(entry.pp_size) / SECTOR_BYTES);
    let all = geometry.data_count() as u64;
    let (count, height, end) = if partial >= chunk {
        (all, chunk, first.saturating_add(data))
    } else {
        // Without partial parity the stripe was written in full.
        let count = data.checked_div(partial).unwrap_or(all);
        let height = if partial > 0 { partial } else { data / all };
        (
            count,
            height,
            first.saturating_add(count.saturating_sub(1).saturating_mul(chunk)).saturating_add(height),
        )
    };
    if end > geometry.array_sectors().0 || height > chunk || count > all {
        return Vec::new();
    }
    let line = |number: u64| {
        let changed = (0..count).map(|d| first + number + d * chunk).filter(|&sector| sector < end);
        let place = geometry.locate(Sector(first + number));
        let parity = geometry.stripe(place.stripe).sector + place.offset;
        Line { parity, changed: changed.map(Sector).collect() }
    };
    (0..height).map(line).collect()
}

/// One array sector from its data member, if that is here.
async fn data_sector<D: Device>(
    geometry: &Parity,
    slots: &[(Option<usize>, Option<usize>)],
    found: &[Found<D>],
    pool: &Pool,
    sector: Sector,
) -> Result<Option<Vec<u8>>, Refusal> {
    let place = geometry.locate(sector);
    let stripe = geometry.stripe(place.stripe);
    let Some(index) = slots[stripe.data[place.data].index()].0 else { return Ok(None) };
    let member = &found[index];
    let row = stripe.sector + place.offset;
    if row >= member.superblock.recovered() || member.bad.iter().any(|bad| bad.contains(&row.0)) {
        return Ok(None);
    }
    let at = member.superblock.data_offset + row;
    read_bytes(&member.device, &member.label, pool, at.bytes(), SECTOR_BYTES).await.map(Some)
}
