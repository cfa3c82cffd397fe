//! Replaying partial parity logs, in memory: a RAID5 that was being written when it stopped, with a log of what was
//! under way, has its torn parity told by the log. Reads of those sectors of parity give what the log makes of them,
//! until that is written to the members (`ppl_log`), which a read-only array never does.
//!
//! As md does it (raid5-ppl.c, `ppl_recover_entry`): from each member's current header, every entry whose checksum holds
//! makes new parity for its rows, of the partial parity and of the data chunks that were being written, unless one of
//! those is missing. Missing is also what a member does not hold: above what is rebuilt of it, or in bad blocks. An entry
//! whose checksum does not hold is of a log write that was cut off, and what it was for has not begun. (md compares
//! everything then if it can; but that is of no use to whoever lacks a member, and not needed.)

use super::load::{Found, read_bytes};
use crate::io::{Device, Pool};
use crate::layout::{Geometry, Parity};
use crate::md::{Superblock, ppl};
use crate::parity;
use crate::units::{SECTOR_BYTES, Sector};

/// Sectors that are replayed at a time, 64 KiB.
const RUN_SECTORS: u64 = 128;
/// Sectors of parity that all logs together may tell of, 128 MiB: all that md's stripe cache holds at its largest.
const REPLAYED_MAX: u64 = 1 << 18;

/// The rows of a stripe that an entry is about.
struct Span {
    /// The array sector that it begins with.
    first: u64,
    height: u64,
    /// Data chunks that were being written, at most.
    count: u64,
    /// Array sectors from here on were not written.
    end: u64,
}

/// Replays all logs. False if one of a member in sync has no valid header: then nobody tells what was being written.
pub(super) async fn replay<D: Device>(
    truth: &Superblock,
    geometry: &Geometry,
    slots: &[(Option<usize>, Option<usize>)],
    found: &mut [Found<D>],
    pool: &Pool,
) -> bool {
    let Geometry::Parity(geometry) = geometry else { return true };
    let signature = ppl::signature(&truth.set_uuid);
    let (mut told, mut replayed) = (true, 0);
    for index in slots.iter().filter_map(|&(main, other)| main.or(other)) {
        let log = std::mem::take(&mut found[index].ppl_log);
        let in_sync = found[index].superblock.recovered() == Sector::MAX;
        let Some(current) = ppl::current_entries(&log, signature) else {
            told &= !in_sync;
            continue;
        };
        for entry in current.entries.iter().filter(|entry| entry.checksum_ok) {
            let Some(span) = span(geometry, entry) else { continue };
            replayed += span.height;
            if replayed > REPLAYED_MAX {
                return false;
            }
            let partial = &log[entry.parity.clone()];
            replay_span(geometry, slots, found, index, pool, &span, partial).await;
        }
    }
    told
}

/// Works out the parity of one entry's rows, for the member `index`.
async fn replay_span<D: Device>(
    geometry: &Parity,
    slots: &[(Option<usize>, Option<usize>)],
    found: &mut [Found<D>],
    index: usize,
    pool: &Pool,
    span: &Span,
    partial: &[u8],
) {
    let mut line = 0;
    while line < span.height {
        let (changed, len) = span.run(geometry.chunk().0, line);
        let place = geometry.locate(Sector(span.first + line));
        let row = geometry.stripe(place.stripe).sector + place.offset;
        let mut data = Vec::new();
        for &sector in &changed {
            data.push(data_run(geometry, slots, found, pool, sector, len).await);
        }
        for number in 0..len {
            // Where something that was being written is not there, parity stays as it is.
            let sectors: Option<Vec<&[u8]>> = data.iter().map(|run| run.sector(number)).collect();
            let Some(mut sources) = sectors.filter(|sectors| !sectors.is_empty()) else { continue };
            sources.extend(partial.chunks_exact(SECTOR_BYTES as usize).nth((line + number) as usize));
            let mut made = [0; SECTOR_BYTES as usize];
            parity::xor(&sources, &mut made);
            found[index].replayed.insert(row.0 + number, made);
        }
        line += len;
    }
}

impl Span {
    /// The array sectors in line `line` that were being written, and for how many lines it is the same chunks.
    fn run(&self, chunk: u64, line: u64) -> (Vec<u64>, u64) {
        let mut len = RUN_SECTORS.min(self.height - line).min(chunk - (self.first + line) % chunk);
        let mut changed = Vec::new();
        for sector in (0..self.count).map(|d| self.first + line + d * chunk).filter(|&at| at < self.end) {
            changed.push(sector);
            len = len.min(self.end - sector);
        }
        (changed, len)
    }
}

/// None for an entry that makes no sense in this geometry.
fn span(geometry: &Parity, entry: &ppl::Entry) -> Option<Span> {
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
    let makes_sense = end <= geometry.array_sectors().0 && height <= chunk && count <= all;
    makes_sense.then_some(Span { first, height, count, end })
}

/// What was read of one data chunk; sectors that are not there are holes.
enum Run {
    Whole(Vec<u8>),
    Sectors(Vec<Option<Vec<u8>>>),
}

impl Run {
    fn sector(&self, number: u64) -> Option<&[u8]> {
        match self {
            Run::Whole(bytes) => bytes.chunks_exact(SECTOR_BYTES as usize).nth(number as usize),
            Run::Sectors(sectors) => sectors[number as usize].as_deref(),
        }
    }
}

/// Array sectors that lie in one chunk, from its data member.
async fn data_run<D: Device>(
    geometry: &Parity,
    slots: &[(Option<usize>, Option<usize>)],
    found: &[Found<D>],
    pool: &Pool,
    sector: u64,
    len: u64,
) -> Run {
    let place = geometry.locate(Sector(sector));
    let stripe = geometry.stripe(place.stripe);
    let (main, other) = slots[stripe.data[place.data].index()];
    let Some(index) = main.or(other) else { return Run::Sectors((0..len).map(|_| None).collect()) };
    let member = &found[index];
    let rows = stripe.sector + place.offset;
    let held = |from: u64, to: u64| {
        to <= member.superblock.recovered().0
            && !member.bad.iter().any(|bad| bad.start < to && from < bad.end)
    };
    let read = async |row: u64, len: u64| {
        let at = member.superblock.data_offset + Sector(row);
        read_bytes(&member.device, &member.label, pool, at.bytes(), len * SECTOR_BYTES).await.ok()
    };
    if held(rows.0, rows.0 + len)
        && let Some(bytes) = read(rows.0, len).await
    {
        return Run::Whole(bytes);
    }
    let mut sectors = Vec::new();
    for row in rows.0..rows.0 + len {
        sectors.push(if held(row, row + 1) { read(row, 1).await } else { None });
    }
    Run::Sectors(sectors)
}
