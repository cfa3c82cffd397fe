//! The partial parity log of RAID5: what is needed to repair the parity of rows whose write was cut off.
//!
//! Each member has a log for the rows whose parity it holds. A log is headers, each followed by the partial parities of
//! its entries, back to back. A header is 4096 bytes:
//!
//! | at | | |
//! |---|---|---|
//! | 0 | 512 x 0xff | reserved |
//! | 512 | u32 | signature: CRC-32C of the array's UUID |
//! | 516 | u32 | 0 |
//! | 520 | u64 | generation |
//! | 528 | u32 | entries, at most 148 |
//! | 532 | u32 | CRC-32C of the header with this field 0 |
//! | 536 | 24 each | entries: u64 data sector, u32 pp_size, u32 data_size, u32 parity_disk, u32 checksum |
//!
//! Invariants: only the *current* header counts, the last one reached by walking from the start of the log over valid
//! headers with the right signature and generations that do not fall (Linux, raid5-ppl.c, `ppl_load_distributed`). An
//! entry whose partial parity is damaged is told apart, never left out in silence.

use std::mem::{offset_of, size_of};
use std::ops::Range;

use zerocopy::byteorder::little_endian::{U32, U64};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::units::{SECTOR_BYTES, Sector};

/// Bytes of a header, without the partial parities behind it.
pub const PPL_HEADER_BYTES: usize = 4096;
/// Entries that a header has room for.
pub const PPL_ENTRIES_MAX: usize = 148;

/// The header whose entries are to be replayed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Current {
    /// Where it lies, in bytes from the start of the log.
    pub header_offset: usize,
    /// Its generation, which counts up over all members of the array.
    pub header_generation: u64,
    /// What was being written.
    pub entries: Vec<Entry>,
}

/// Consecutive lines of one row that were being written.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Entry {
    /// The first array sector that was written.
    pub data_sector: Sector,
    /// Bytes of partial parity: as many as lines; 0 where all data chunks were written.
    pub pp_size: u32,
    /// Bytes of data that were written, over all data chunks.
    pub data_size: u32,
    /// The slot that holds the row's parity.
    pub parity_disk: u32,
    /// Whether the partial parity is what was logged. If not, the entry cannot be replayed.
    pub checksum_ok: bool,
    /// The partial parity's bytes within the log; empty where `checksum_ok` is false because they are beyond it.
    pub parity: Range<usize>,
}

/// An entry that is to be written into a header; sizes as in [`Entry`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NewEntry<'a> {
    /// The first array sector that will be written.
    pub data_sector: Sector,
    /// Bytes of data that will be written, over all data chunks.
    pub data_size: u32,
    /// The slot that holds the row's parity.
    pub parity_disk: u32,
    /// The partial parity, which must follow the header on the member.
    pub parity: &'a [u8],
}

/// What marks the logs of an array: the CRC-32C of its UUID.
pub fn signature(set_uuid: &[u8; 16]) -> u32 {
    crc32c(set_uuid)
}

/// The current header's entries in a member's log, of which `log` is all of it. `None` where there is no valid header at
/// the start: the log says nothing, not even that nothing was being written.
pub fn current_entries(log: &[u8], signature: u32) -> Option<Current> {
    let mut current: Option<(usize, &RawHeader)> = None;
    let mut place = 0;
    while let Some(header) = header_at(log, place, signature) {
        if current.is_some_and(|(_, last)| last.generation.get() > header.generation.get()) {
            break;
        }
        current = Some((place, header));
        place = header.entries().iter().fold(place + PPL_HEADER_BYTES, |end, entry| {
            end.saturating_add(entry.pp_size.get() as usize / SECTOR_BYTES as usize * SECTOR_BYTES as usize)
        });
    }
    let (header_offset, header) = current?;
    let mut start = header_offset + PPL_HEADER_BYTES;
    let mut entries = Vec::with_capacity(header.entries().len());
    for raw in header.entries() {
        let end = start.saturating_add(raw.pp_size.get() as usize);
        let parity = log.get(start..end);
        entries.push(Entry {
            data_sector: Sector(raw.data_sector.get()),
            pp_size: raw.pp_size.get(),
            data_size: raw.data_size.get(),
            parity_disk: raw.parity_disk.get(),
            checksum_ok: parity.is_some_and(|parity| crc32c(parity) == raw.checksum.get()),
            parity: if parity.is_some() { start..end } else { 0..0 },
        });
        start = end;
    }
    Some(Current { header_offset, header_generation: header.generation.get(), entries })
}

/// A header for these entries. Their partial parities must follow it on the member, in this order.
///
/// Panics if there are more than [`PPL_ENTRIES_MAX`] entries.
pub fn encode_header(signature: u32, generation: u64, entries: &[NewEntry<'_>]) -> Vec<u8> {
    assert!(entries.len() <= PPL_ENTRIES_MAX, "{} entries", entries.len());
    let mut header = RawHeader::new_zeroed();
    header.reserved = [0xff; 512];
    header.signature = U32::new(signature);
    header.generation = U64::new(generation);
    header.entries_count = U32::new(u32::try_from(entries.len()).expect("at most 148"));
    for (raw, entry) in header.entries.iter_mut().zip(entries) {
        *raw = RawEntry {
            data_sector: U64::new(entry.data_sector.0),
            pp_size: U32::new(u32::try_from(entry.parity.len()).expect("partial parity of one chunk")),
            data_size: U32::new(entry.data_size),
            parity_disk: U32::new(entry.parity_disk),
            checksum: U32::new(crc32c(entry.parity)),
        };
    }
    header.checksum = U32::new(crc32c(header.as_bytes()));
    header.as_bytes().to_vec()
}

/// The header of a log that holds nothing, as at creation and after every start.
pub fn empty_header(signature: u32) -> Vec<u8> {
    encode_header(signature, 0, &[])
}

fn header_at(log: &[u8], place: usize, signature: u32) -> Option<&RawHeader> {
    let bytes = log.get(place..place.checked_add(PPL_HEADER_BYTES)?)?;
    let header = RawHeader::ref_from_bytes(bytes).ok()?;
    let mut blank = bytes.to_vec();
    blank[offset_of!(RawHeader, checksum)..][..4].fill(0);
    let valid = header.signature.get() == signature
        && header.entries_count.get() as usize <= PPL_ENTRIES_MAX
        && header.checksum.get() == crc32c(&blank);
    valid.then_some(header)
}

fn crc32c(bytes: &[u8]) -> u32 {
    let crc = crc_fast::checksum(crc_fast::CrcAlgorithm::Crc32Iscsi, bytes);
    u32::try_from(crc).expect("a CRC-32 has 32 bits")
}

#[repr(C)]
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
struct RawHeader {
    reserved: [u8; 512],
    signature: U32,
    zero: U32,
    generation: U64,
    entries_count: U32,
    checksum: U32,
    entries: [RawEntry; PPL_ENTRIES_MAX],
    rest: [u8; 8],
}

#[repr(C)]
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy)]
struct RawEntry {
    data_sector: U64,
    pp_size: U32,
    data_size: U32,
    parity_disk: U32,
    checksum: U32,
}

const _: () = {
    assert!(size_of::<RawHeader>() == PPL_HEADER_BYTES);
    assert!(size_of::<RawEntry>() == 24);
    assert!(offset_of!(RawHeader, signature) == 512);
    assert!(offset_of!(RawHeader, generation) == 520);
    assert!(offset_of!(RawHeader, entries_count) == 528);
    assert!(offset_of!(RawHeader, checksum) == 532);
    assert!(offset_of!(RawHeader, entries) == 536);
};

impl RawHeader {
    fn entries(&self) -> &[RawEntry] {
        &self.entries[..self.entries_count.get() as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIGNATURE: u32 = 0x1234_5678;

    fn log_of(headers: &[(u64, &[&[u8]])]) -> Vec<u8> {
        let mut log = Vec::new();
        for (generation, parities) in headers {
            let entries: Vec<_> = parities
                .iter()
                .map(|parity| NewEntry { data_sector: Sector(8), data_size: 4096, parity_disk: 2, parity })
                .collect();
            log.extend(encode_header(SIGNATURE, *generation, &entries));
            parities.iter().for_each(|parity| log.extend_from_slice(parity));
        }
        log.resize(1 << 20, 0);
        log
    }

    #[test]
    fn the_check_value_of_crc32c() {
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
        assert_eq!(crc32c(b""), 0);
    }

    #[test]
    fn the_last_header_that_grows_is_current() {
        let (a, b) = ([1; 4096], [2; 8192]);
        let log = log_of(&[(5, &[&a]), (6, &[&a, &[], &b]), (4, &[&b])]);
        let current = current_entries(&log, SIGNATURE).unwrap();
        assert_eq!((current.header_offset, current.header_generation), (8192, 6));
        assert_eq!(current.entries.len(), 3);
        assert!(current.entries.iter().all(|entry| entry.checksum_ok));
        assert_eq!(current.entries[1].parity.len(), 0);
        assert_eq!(log[current.entries[2].parity.clone()], b);
        assert_eq!(current_entries(&log, 1), None, "another array's");
        assert_eq!(current_entries(&log[..4095], SIGNATURE), None);

        let empty = current_entries(&empty_header(SIGNATURE), SIGNATURE).unwrap();
        assert_eq!((empty.header_generation, empty.entries.len()), (0, 0));
    }

    #[test]
    fn damage_is_told_apart() {
        let a = [1; 4096];
        let mut log = log_of(&[(5, &[&a, &a])]);
        log[5000] ^= 1;
        let ok: Vec<_> =
            current_entries(&log, SIGNATURE).unwrap().entries.iter().map(|e| e.checksum_ok).collect();
        assert_eq!(ok, [false, true]);
        let cut = current_entries(&log[..8192 + 100], SIGNATURE).unwrap();
        assert_eq!((cut.entries[1].checksum_ok, cut.entries[1].parity.clone()), (false, 0..0));
        log[0] ^= 1;
        assert_eq!(current_entries(&log, SIGNATURE), None);
    }
}
