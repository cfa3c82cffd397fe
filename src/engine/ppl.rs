//! Replaying partial parity logs, in memory: a RAID5 that was being written when it stopped, with a log of what was
//! under way, has its torn parity told by the log. Reads of those sectors of parity give what the log makes of them,
//! until that is written to the members (`ppl_log`), which a read-only array never does.
//!
//! As md does it (raid5-ppl.c, `ppl_recover_entry`): from each member's current header, every entry whose checksum holds
//! makes new parity for its rows, of the partial parity and of the data chunks that were being written, unless one of
//! those is missing. Missing is also what a member does not hold: above what is rebuilt of it, or in bad blocks. An entry
//! whose checksum does not hold is of a log write that was cut off, and what it was for has not begun. (md compares
//! everything then if it can; but that is of no use to whoever lacks a member, and not needed.)
//!
//! A sector that was being written and cannot be read is lost as if its member were: it becomes what the rest of its row
//! makes of it, which is right unless its write was cut off. (md fails the member.) Left alone, it might read again one
//! day, and parity that fits neither it nor the rest would make anything of its neighbours.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::ops::Range;

use super::error::Refusal;
use super::load::{Found, Source};
use crate::io::{Device, IoErrorKind};
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

/// Who sits in each slot: the member, and one that is to replace it.
type Slots = [(Option<usize>, Option<usize>)];

/// Replays all logs. False if one of a member in sync has no valid header, or if too much of a row cannot be read: then
/// nobody tells what was being written, or what of it there is.
pub(super) async fn replay<D: Device>(
    truth: &Superblock,
    geometry: &Geometry,
    slots: &Slots,
    found: &mut [Found<D>],
    source: Source<'_>,
) -> bool {
    let Geometry::Parity(geometry) = geometry else { return true };
    let replay = Replay { geometry, slots, source, silent: RefCell::default() };
    let signature = ppl::signature(&truth.set_uuid);
    let (mut told, mut replayed, mut lost) = (true, 0, BTreeSet::new());
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
            lost.extend(replay.span(found, index, &span, partial).await);
        }
    }
    // Parity that no log vouches for makes nothing.
    if !told || lost.is_empty() {
        return told;
    }
    let array = truth.name();
    tracing::warn!(array, sectors = lost.len(), "unreadable where it was being written: made of the rest");
    // Not before all is replayed: another entry may tell the same row's parity.
    for sector in lost {
        told &= replay.restore(found, sector).await;
    }
    told
}

/// What is the same for all entries.
struct Replay<'a> {
    geometry: &'a Parity,
    slots: &'a Slots,
    source: Source<'a>,
    /// Members that do not answer, and are not asked again.
    silent: RefCell<BTreeSet<usize>>,
}

impl Replay<'_> {
    /// Works out the parity of one entry's rows, for the member `index`. Gives the array sectors that could not be read
    /// where nothing else is missing.
    async fn span<D: Device>(
        &self,
        found: &mut [Found<D>],
        index: usize,
        span: &Span,
        partial: &[u8],
    ) -> Vec<u64> {
        let (mut line, mut lost) = (0, Vec::new());
        while line < span.height {
            let (changed, len) = span.run(self.geometry.chunk().0, line);
            let (_, row) = self.place(span.first + line);
            let mut data = Vec::new();
            for &sector in &changed {
                data.push(self.data(found, sector, len).await);
            }
            for number in 0..len {
                // Where something that was being written is not there, parity stays as it is.
                let cells = data.iter().map(|run| run.cell(number));
                if data.is_empty() || cells.clone().any(|cell| cell == Cell::NotHeld) {
                    continue;
                }
                let unreadable = cells.clone().zip(&changed).filter(|&(cell, _)| cell == Cell::Unreadable);
                let before = lost.len();
                lost.extend(unreadable.map(|(_, sector)| sector + number));
                if lost.len() > before {
                    continue;
                }
                let mut sources: Vec<&[u8]> = cells.filter_map(Cell::bytes).collect();
                sources.extend(partial.chunks_exact(SECTOR_BYTES as usize).nth((line + number) as usize));
                let mut made = [0; SECTOR_BYTES as usize];
                parity::xor(&sources, &mut made);
                found[index].replayed.insert(row + number, made);
            }
            line += len;
        }
        lost
    }

    /// Makes an array sector of the rest of its row. False if that cannot be read either.
    async fn restore<D: Device>(&self, found: &mut [Found<D>], sector: u64) -> bool {
        let (lost, row) = self.place(sector);
        let stripe = self.geometry.stripe(self.geometry.locate(Sector(sector)).stripe);
        let mut runs = Vec::new();
        for slot in
            stripe.data.iter().chain([&stripe.p]).map(|slot| slot.index()).filter(|&slot| slot != lost)
        {
            runs.push(self.rows(found, slot, row..row + 1).await);
        }
        let cells: Vec<Cell<'_>> = runs.iter().map(|run| run.cell(0)).collect();
        if cells.last() == Some(&Cell::NotHeld) {
            return true; // Parity that nobody holds agrees with everything.
        }
        let sources: Vec<&[u8]> = cells.iter().filter_map(|cell| cell.bytes()).collect();
        if sources.len() < cells.len() {
            return false;
        }
        let mut made = [0; SECTOR_BYTES as usize];
        parity::xor(&sources, &mut made);
        let (main, other) = self.slots[lost];
        found[main.or(other).expect("it was there a moment ago")].replayed.insert(row, made);
        true
    }

    /// The slot of an array sector, and its row.
    fn place(&self, sector: u64) -> (usize, u64) {
        let place = self.geometry.locate(Sector(sector));
        let stripe = self.geometry.stripe(place.stripe);
        (stripe.data[place.data].index(), (stripe.sector + place.offset).0)
    }

    /// Array sectors that lie in one chunk, from its data member.
    async fn data<D: Device>(&self, found: &[Found<D>], sector: u64, len: u64) -> Run {
        let (slot, row) = self.place(sector);
        self.rows(found, slot, row..row + len).await
    }

    /// Rows of a slot's member, with what has been replayed of them.
    async fn rows<D: Device>(&self, found: &[Found<D>], slot: usize, rows: Range<u64>) -> Run {
        let (main, other) = self.slots[slot];
        let Some(index) = main.or(other) else {
            return Run::Sectors(rows.map(|_| Err(Missing::NotHeld)).collect());
        };
        let member = &found[index];
        let held = |from: u64, to: u64| {
            to <= member.superblock.recovered().0
                && !member.bad.iter().any(|bad| bad.start < to && from < bad.end)
        };
        let is_plain = member.replayed.range(rows.clone()).next().is_none();
        if is_plain
            && held(rows.start, rows.end)
            && let Some(bytes) = self.read(member, index, rows.clone()).await
        {
            return Run::Whole(bytes);
        }
        let mut sectors = Vec::new();
        for row in rows {
            sectors.push(match member.replayed.get(&row) {
                _ if !held(row, row + 1) => Err(Missing::NotHeld),
                Some(bytes) => Ok(bytes.to_vec()),
                None => self.read(member, index, row..row + 1).await.ok_or(Missing::Unreadable),
            });
        }
        Run::Sectors(sectors)
    }

    async fn read<D: Device>(&self, member: &Found<D>, index: usize, rows: Range<u64>) -> Option<Vec<u8>> {
        if self.silent.borrow().contains(&index) {
            return None;
        }
        let at = member.superblock.data_offset + Sector(rows.start);
        let len_bytes = (rows.end - rows.start) * SECTOR_BYTES;
        let read = self.source.read(&member.device, &member.label, at.bytes(), len_bytes).await;
        if let Err(Refusal::Unreadable { error, .. }) = &read
            && error.kind == IoErrorKind::Timeout
        {
            self.silent.borrow_mut().insert(index);
        }
        read.ok()
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

/// What was read of one member.
enum Run {
    Whole(Vec<u8>),
    Sectors(Vec<Result<Vec<u8>, Missing>>),
}

#[derive(Clone, Copy)]
enum Missing {
    NotHeld,
    Unreadable,
}

/// One sector of it.
#[derive(Clone, Copy, PartialEq)]
enum Cell<'a> {
    Bytes(&'a [u8]),
    NotHeld,
    Unreadable,
}

impl<'a> Cell<'a> {
    fn bytes(self) -> Option<&'a [u8]> {
        match self {
            Cell::Bytes(bytes) => Some(bytes),
            Cell::NotHeld | Cell::Unreadable => None,
        }
    }
}

impl Run {
    fn cell(&self, number: u64) -> Cell<'_> {
        match self {
            Run::Whole(bytes) => {
                let mut sectors = bytes.chunks_exact(SECTOR_BYTES as usize);
                Cell::Bytes(sectors.nth(number as usize).expect("a sector of the run"))
            }
            Run::Sectors(sectors) => match &sectors[number as usize] {
                Ok(bytes) => Cell::Bytes(bytes),
                Err(Missing::NotHeld) => Cell::NotHeld,
                Err(Missing::Unreadable) => Cell::Unreadable,
            },
        }
    }
}
