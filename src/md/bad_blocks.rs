//! The bad-block log: sectors that a member could not be made to hold.
//!
//! It lies at `superblock + bblog_offset`: 64-bit entries, the first sector shifted left by ten with the length in the
//! low bits; all ones is an unused entry and ends the log. **On the member sectors count from the start of the
//! device**, here from the start of the data area, as everything else above does. It means something only while the
//! superblock has the feature `BAD_BLOCKS`; what it holds otherwise is left over.
//!
//! Invariants: what [`parse`] gives is ascending, without overlaps and without empty ranges; at most 512 entries are
//! looked at.

use thiserror::Error;

use crate::units::{SECTOR_BYTES, Sector};

/// Entries that md keeps: one page of them, however much is reserved.
pub const BAD_BLOCKS_MAX: usize = 512;

/// The longest range that one entry says, in its units.
const ENTRY_LENGTH_MAX: u64 = 512;
const UNUSED: u64 = u64::MAX;
/// Shifts above this would move an entry's sector out of 64 bits.
const SHIFT_MAX: u8 = 10;

/// Why a bad-block log cannot be believed, or not be written.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum BadBlocksError {
    /// An entry of no length, or beyond any disk.
    #[error("entry {index} of the bad-block log ({entry:#018x}) is impossible: the log is damaged")]
    Entry {
        /// Its number in the log.
        index: usize,
        /// What it says.
        entry: u64,
    },
    /// A unit that is no unit.
    #[error("the bad-block log counts in units of 2^{0} sectors, which is impossible")]
    Shift(u8),
    /// More ranges than the log has entries.
    #[error("{need} entries of bad blocks do not fit a log of {room}; the member should be replaced")]
    Full {
        /// Entries they take.
        need: usize,
        /// Entries there are.
        room: usize,
    },
}

/// Reads a log: the bad ranges as (first sector of the data area, sectors). `log` is what the superblock reserves for
/// it, `shift` its `bblog_shift`. What lies before the data area is left out, as nothing is read from there.
pub fn parse(log: &[u8], shift: u8, data_offset: Sector) -> Result<Vec<(Sector, Sector)>, BadBlocksError> {
    if shift > SHIFT_MAX {
        return Err(BadBlocksError::Shift(shift));
    }
    let mut ranges = Vec::new();
    let (entries, _) = log.as_chunks::<8>();
    for (index, bytes) in entries.iter().take(BAD_BLOCKS_MAX).enumerate() {
        let entry = u64::from_le_bytes(*bytes);
        if entry == UNUSED {
            break;
        }
        let (first, length) = ((entry >> 10) << shift, (entry & 0x3ff) << shift);
        if length == 0 {
            return Err(BadBlocksError::Entry { index, entry });
        }
        let end = first.checked_add(length).ok_or(BadBlocksError::Entry { index, entry })?;
        let start = first.max(data_offset.0);
        if start < end {
            ranges.push((start - data_offset.0, end - data_offset.0));
        }
    }
    ranges.sort_unstable();
    let mut joined: Vec<(u64, u64)> = Vec::with_capacity(ranges.len());
    for (start, end) in ranges {
        match joined.last_mut() {
            Some(last) if start <= last.1 => last.1 = last.1.max(end),
            _ => joined.push((start, end)),
        }
    }
    Ok(joined.into_iter().map(|(start, end)| (Sector(start), Sector(end - start))).collect())
}

/// The bytes of a log of `log_sectors` (the superblock's `bblog_size`) that says these ranges: (first sector of the data
/// area, sectors). A unit of several sectors is bad as a whole when one of its sectors is.
///
/// Errors: [`BadBlocksError::Full`] where there are too many; then the member cannot be kept.
///
/// Panics if a range ends beyond 2^54 sectors, which no parsed member has.
pub fn encode(
    ranges: &[(Sector, Sector)],
    shift: u8,
    data_offset: Sector,
    log_sectors: u16,
) -> Result<Vec<u8>, BadBlocksError> {
    if shift > SHIFT_MAX {
        return Err(BadBlocksError::Shift(shift));
    }
    let bytes = usize::from(log_sectors) * SECTOR_BYTES as usize;
    let room = (bytes / 8).min(BAD_BLOCKS_MAX);
    let mut log = Vec::with_capacity(bytes);
    let mut need = 0;
    for (start, length) in ranges {
        let start = *start + data_offset;
        let end = (start + *length).0.div_ceil(1 << shift);
        assert!(end <= 1 << 54, "a bad range that ends at unit {end}");
        let mut unit = start.0 >> shift;
        while unit < end && need <= room {
            let units = (end - unit).min(ENTRY_LENGTH_MAX);
            log.extend_from_slice(&(unit << 10 | units).to_le_bytes());
            need += 1;
            unit += units;
        }
    }
    if need > room {
        return Err(BadBlocksError::Full { need, room });
    }
    log.resize(bytes, 0xff);
    Ok(log)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const DATA: Sector = Sector(2048);

    fn log_of(entries: &[u64]) -> Vec<u8> {
        entries.iter().flat_map(|entry| entry.to_le_bytes()).collect()
    }

    #[test]
    fn sectors_count_from_the_device() {
        let log =
            log_of(&[(2048 + 100) << 10 | 8, (2048 + 108) << 10 | 512, 10 << 10 | 5, UNUSED, 1 << 10 | 1]);
        assert_eq!(parse(&log, 0, DATA), Ok(vec![(Sector(100), Sector(520))]));
        assert_eq!(parse(&log_of(&[2040 << 10 | 16]), 0, DATA), Ok(vec![(Sector(0), Sector(8))]));
        assert_eq!(parse(&log_of(&[300 << 10 | 1]), 3, DATA), Ok(vec![(Sector(352), Sector(8))]));
        assert_eq!(parse(&[], 0, DATA), Ok(vec![]));
    }

    #[test]
    fn damage_is_an_error() {
        assert_eq!(parse(&[0; 8], 0, DATA), Err(BadBlocksError::Entry { index: 0, entry: 0 }));
        let far = (u64::MAX >> 10) << 10 | 512;
        assert_eq!(parse(&log_of(&[far]), 10, DATA), Err(BadBlocksError::Entry { index: 0, entry: far }));
        assert_eq!(parse(&[], 11, DATA), Err(BadBlocksError::Shift(11)));
    }

    #[test]
    fn a_full_log_says_so() {
        let ranges: Vec<_> = (0..513).map(|n| (Sector(n * 16), Sector(8))).collect();
        assert!(encode(&ranges[..512], 0, DATA, 8).is_ok());
        assert!(matches!(encode(&ranges, 0, DATA, 8), Err(BadBlocksError::Full { room: 512, .. })));
        assert!(matches!(encode(&ranges, 0, DATA, 16), Err(BadBlocksError::Full { room: 512, .. })));
        let huge = [(Sector(0), Sector(1 << 50))];
        assert!(matches!(encode(&huge, 0, DATA, 8), Err(BadBlocksError::Full { .. })));
        assert_eq!(encode(&[], 0, DATA, 1), Ok(vec![0xff; 512]));
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(steps in prop::collection::vec((1u64..2000, 1u64..1500), 0..60)) {
            let mut ranges = Vec::new();
            let mut place = 0;
            for (gap, length) in steps {
                ranges.push((Sector(place + gap), Sector(length)));
                place += gap + length;
            }
            let log = encode(&ranges, 0, DATA, 8).unwrap();
            prop_assert_eq!(log.len(), 4096);
            prop_assert_eq!(parse(&log, 0, DATA), Ok(ranges));
        }

        #[test]
        fn larger_units_cover_at_least_as_much(start in 0u64..10_000, length in 1u64..3000, shift in 0u8..=10) {
            let log = encode(&[(Sector(start), Sector(length))], shift, DATA, 8).unwrap();
            let read = parse(&log, shift, DATA).unwrap();
            prop_assert_eq!(read.len(), 1);
            let (first, sectors) = read[0];
            prop_assert!(first.0 <= start && first.0 + sectors.0 >= start + length);
            prop_assert!(sectors.0 < length + (2 << shift));
        }
    }
}
