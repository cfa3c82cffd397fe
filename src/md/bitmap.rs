//! The write-intent bitmap: which parts of the array may differ between members after a crash.
//!
//! It lies on every active member at `superblock + bitmap_offset`: a superblock of 256 bytes, then one bit a chunk,
//! chunk k being bit k % 8 of byte 256 + k / 8. A bit stands for rows of the members' data areas, at RAID10 for
//! sectors of the array. All copies are alike.
//!
//! Invariants of a [`Bitmap`] that was parsed: it encodes to the bytes it came from, the chunk is a power of two of at
//! least 512 bytes, there are as many bits as chunks, and `sync_size` is below 2^54 sectors.

use std::mem::{offset_of, size_of};

use thiserror::Error;
use zerocopy::byteorder::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::superblock::ARRAY_SECTORS_MAX;
use crate::units::{EventCount, SECTOR_BYTES, Sector};

/// Bytes before the first bit.
pub const BITMAP_SUPERBLOCK_BYTES: usize = 256;

const MAGIC: u32 = 0x6d74_6962;
const VERSION: u32 = 4;

/// The head of a bitmap. Field names are those of the kernel's `bitmap_super_s` (Linux, drivers/md/md-bitmap.h).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BitmapSuperblock {
    /// The array's UUID, as in the superblock.
    pub uuid: [u8; 16],
    /// As in the superblock, written before it. Lower than there: the bits were not kept, and all count as set.
    pub events: EventCount,
    /// A member that returns with fewer events than this cannot be caught up by the bits.
    pub events_cleared: EventCount,
    /// Sectors that the bits cover: the component size; at RAID10 the array size.
    pub sync_size: Sector,
    /// [`BitmapSuperblock::STALE`], [`BitmapSuperblock::WRITE_ERROR`]; 0 when all is well.
    pub state: u32,
    /// Bytes a bit stands for.
    pub chunk_bytes: u32,
    /// How long md waits between its passes that clear bits.
    pub daemon_sleep_seconds: u32,
    /// Writes that may be under way to write-mostly members at a time.
    pub write_behind: u32,
    /// Sectors reserved for the bitmap; 0 where that was not noted.
    pub sectors_reserved: u32,
    /// Nodes of a clustered bitmap.
    pub nodes: u32,
    /// What follows up to the first bit, as found: a cluster's name, padding.
    pub rest: [u8; 184],
}

/// Why bytes are no bitmap that can be believed.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum BitmapError {
    /// The bytes end before the bitmap does.
    #[error("the bitmap is cut off: {have} bytes of {need}")]
    Short {
        /// Bytes there were.
        have: usize,
        /// Bytes there should be.
        need: u64,
    },
    /// No magic.
    #[error("there is no write-intent bitmap where the superblock says")]
    NotBitmap,
    /// A version of other machines, clusters or the future.
    #[error("the write-intent bitmap has version {0}; only version 4 is understood")]
    Version(u32),
    /// A field with a value that cannot be.
    #[error("the write-intent bitmap's {field} of {value} is impossible")]
    Field {
        /// The field's name.
        field: &'static str,
        /// Its value.
        value: u64,
    },
}

impl BitmapSuperblock {
    /// State flag: the bits were not kept while writes went on, all count as set.
    pub const STALE: u32 = 2;
    /// State flag: a write of the bitmap failed.
    pub const WRITE_ERROR: u32 = 4;

    /// Reads the head of the bitmap that `bytes` begin with.
    pub fn parse(bytes: &[u8]) -> Result<BitmapSuperblock, BitmapError> {
        let short = BitmapError::Short { have: bytes.len(), need: BITMAP_SUPERBLOCK_BYTES as u64 };
        let (raw, _) = RawBitmap::ref_from_prefix(bytes).map_err(|_| short)?;
        if raw.magic.get() != MAGIC {
            return Err(BitmapError::NotBitmap);
        }
        if raw.version.get() != VERSION {
            return Err(BitmapError::Version(raw.version.get()));
        }
        let superblock = BitmapSuperblock {
            uuid: raw.uuid,
            events: EventCount(raw.events.get()),
            events_cleared: EventCount(raw.events_cleared.get()),
            sync_size: Sector(raw.sync_size.get()),
            state: raw.state.get(),
            chunk_bytes: raw.chunksize.get(),
            daemon_sleep_seconds: raw.daemon_sleep.get(),
            write_behind: raw.write_behind.get(),
            sectors_reserved: raw.sectors_reserved.get(),
            nodes: raw.nodes.get(),
            rest: raw.rest,
        };
        let chunk = superblock.chunk_bytes;
        if !chunk.is_power_of_two() || u64::from(chunk) < SECTOR_BYTES {
            return Err(BitmapError::Field { field: "chunk size", value: chunk.into() });
        }
        if superblock.sync_size.0 > ARRAY_SECTORS_MAX {
            return Err(BitmapError::Field { field: "size", value: superblock.sync_size.0 });
        }
        Ok(superblock)
    }

    /// The 256 bytes before the bits.
    pub fn encode(&self) -> [u8; BITMAP_SUPERBLOCK_BYTES] {
        let raw = RawBitmap {
            magic: U32::new(MAGIC),
            version: U32::new(VERSION),
            uuid: self.uuid,
            events: U64::new(self.events.0),
            events_cleared: U64::new(self.events_cleared.0),
            sync_size: U64::new(self.sync_size.0),
            state: U32::new(self.state),
            chunksize: U32::new(self.chunk_bytes),
            daemon_sleep: U32::new(self.daemon_sleep_seconds),
            write_behind: U32::new(self.write_behind),
            sectors_reserved: U32::new(self.sectors_reserved),
            nodes: U32::new(self.nodes),
            rest: self.rest,
        };
        raw.as_bytes().try_into().expect("the struct has 256 bytes")
    }

    /// Whether the bits may not be believed: all count as set.
    pub fn is_stale(&self) -> bool {
        self.state & BitmapSuperblock::STALE != 0
    }

    /// Sectors that a bit stands for.
    pub fn chunk_sectors(&self) -> Sector {
        Sector::floor(self.chunk_bytes.into())
    }

    /// How many bits there are.
    pub fn chunk_count(&self) -> u64 {
        self.sync_size.0.div_ceil(self.chunk_sectors().0)
    }

    /// Bytes of head and bits together. Bound it by the room there is before reading that much.
    pub fn total_bytes(&self) -> u64 {
        BITMAP_SUPERBLOCK_BYTES as u64 + self.chunk_count().div_ceil(8)
    }
}

/// A whole bitmap: head and bits.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Bitmap {
    /// The head. Its `chunk_bytes` and `sync_size` belong to the bits: make a new bitmap to change them.
    pub superblock: BitmapSuperblock,
    bits: Vec<u8>,
}

impl Bitmap {
    /// A bitmap with all bits clear, or all set.
    ///
    /// Panics if `superblock` has a chunk below a sector: the caller made that up.
    pub fn new(superblock: BitmapSuperblock, all_set: bool) -> Bitmap {
        let bytes = usize::try_from(superblock.chunk_count().div_ceil(8)).expect("a bitmap that fits memory");
        Bitmap { superblock, bits: vec![if all_set { 0xff } else { 0 }; bytes] }
    }

    /// Reads the bitmap that `bytes` begin with; bytes behind its last bit are not looked at.
    pub fn parse(bytes: &[u8]) -> Result<Bitmap, BitmapError> {
        let superblock = BitmapSuperblock::parse(bytes)?;
        let need = superblock.total_bytes();
        let end = usize::try_from(need).ok();
        let bits = end.and_then(|end| bytes.get(BITMAP_SUPERBLOCK_BYTES..end));
        let bits = bits.ok_or(BitmapError::Short { have: bytes.len(), need })?.to_vec();
        Ok(Bitmap { superblock, bits })
    }

    /// Head and bits. What follows on the member up to a whole block is of no account.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = self.superblock.encode().to_vec();
        bytes.extend_from_slice(&self.bits);
        bytes
    }

    /// How many chunks there are, and so bits.
    pub fn chunk_count(&self) -> u64 {
        self.superblock.chunk_count()
    }

    /// Whether a chunk's bit is set. Panics if there is no such chunk.
    pub fn is_set(&self, chunk: u64) -> bool {
        let (byte, bit) = self.place(chunk);
        self.bits[byte] & bit != 0
    }

    /// Sets a chunk's bit. Panics if there is no such chunk.
    pub fn set(&mut self, chunk: u64) {
        let (byte, bit) = self.place(chunk);
        self.bits[byte] |= bit;
    }

    /// Clears a chunk's bit. Panics if there is no such chunk.
    pub fn clear(&mut self, chunk: u64) {
        let (byte, bit) = self.place(chunk);
        self.bits[byte] &= !bit;
    }

    /// Sets all bits.
    pub fn set_all(&mut self) {
        self.bits.fill(0xff);
    }

    /// The chunk that a sector (of what the bits cover) lies in.
    pub fn chunk_of(&self, sector: Sector) -> u64 {
        sector.0 / self.superblock.chunk_sectors().0
    }

    /// The byte, counted from the bitmap's beginning on the member, that has a chunk's bit.
    pub fn byte_of(chunk: u64) -> u64 {
        BITMAP_SUPERBLOCK_BYTES as u64 + chunk / 8
    }

    /// The chunks whose bit is set, ascending.
    pub fn set_chunks(&self) -> impl Iterator<Item = u64> + '_ {
        let count = self.chunk_count();
        let bytes = self.bits.iter().enumerate().filter(|(_, byte)| **byte != 0);
        let chunks = bytes.flat_map(|(index, byte)| {
            (0..8).filter(move |bit| byte >> bit & 1 != 0).map(move |bit| index as u64 * 8 + bit)
        });
        chunks.filter(move |chunk| *chunk < count)
    }

    /// The first chunk from `chunk` on whose bit is set.
    pub fn next_set(&self, chunk: u64) -> Option<u64> {
        let first = usize::try_from(chunk / 8).ok()?;
        let count = self.chunk_count();
        let bytes = self.bits.get(first..)?.iter().enumerate();
        let mut masked = bytes
            .map(|(i, byte)| (first + i, if i == 0 { byte & (0xff << (chunk % 8)) as u8 } else { *byte }));
        let (index, byte) = masked.find(|(_, byte)| *byte != 0)?;
        Some(index as u64 * 8 + u64::from(byte.trailing_zeros())).filter(|found| *found < count)
    }

    /// Whether no bit is set.
    pub fn is_clear(&self) -> bool {
        self.set_chunks().next().is_none()
    }

    /// What the set bits stand for: (first sector, sectors) of each run, ascending, none beyond `sync_size`.
    pub fn set_ranges(&self) -> Vec<(Sector, Sector)> {
        let unit = self.superblock.chunk_sectors().0;
        let mut ranges: Vec<(Sector, Sector)> = Vec::new();
        for chunk in self.set_chunks() {
            let start = Sector(chunk * unit);
            let sectors = Sector(unit.min(self.superblock.sync_size.0 - start.0));
            match ranges.last_mut() {
                Some((first, length)) if *first + *length == start => *length += sectors,
                _ => ranges.push((start, sectors)),
            }
        }
        ranges
    }

    fn place(&self, chunk: u64) -> (usize, u8) {
        assert!(chunk < self.chunk_count(), "chunk {chunk} of {}", self.chunk_count());
        let byte = usize::try_from(chunk / 8).expect("the bits are in memory");
        (byte, 1 << (chunk % 8))
    }
}

/// The head as it lies on the member.
#[repr(C)]
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
struct RawBitmap {
    magic: U32,
    version: U32,
    uuid: [u8; 16],
    events: U64,
    events_cleared: U64,
    sync_size: U64,
    state: U32,
    chunksize: U32,
    daemon_sleep: U32,
    write_behind: U32,
    sectors_reserved: U32,
    nodes: U32,
    rest: [u8; 184],
}

const _: () = {
    assert!(size_of::<RawBitmap>() == BITMAP_SUPERBLOCK_BYTES);
    assert!(offset_of!(RawBitmap, uuid) == 8);
    assert!(offset_of!(RawBitmap, events) == 24);
    assert!(offset_of!(RawBitmap, events_cleared) == 32);
    assert!(offset_of!(RawBitmap, sync_size) == 40);
    assert!(offset_of!(RawBitmap, state) == 48);
    assert!(offset_of!(RawBitmap, chunksize) == 52);
    assert!(offset_of!(RawBitmap, daemon_sleep) == 56);
    assert!(offset_of!(RawBitmap, sectors_reserved) == 64);
    assert!(offset_of!(RawBitmap, nodes) == 68);
    assert!(offset_of!(RawBitmap, rest) == 72);
};

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::btree_set;
    use proptest::prelude::*;

    fn superblock(sync_size: Sector) -> BitmapSuperblock {
        BitmapSuperblock {
            uuid: [7; 16],
            events: EventCount(3),
            events_cleared: EventCount(2),
            sync_size,
            state: 0,
            chunk_bytes: 65536,
            daemon_sleep_seconds: 5,
            write_behind: 0,
            sectors_reserved: 0,
            nodes: 0,
            rest: [0; 184],
        }
    }

    #[test]
    fn ranges_join_and_end_with_the_array() {
        let mut bitmap = Bitmap::new(superblock(Sector(1000)), false);
        assert_eq!(bitmap.chunk_count(), 8);
        assert!(bitmap.is_clear() && bitmap.set_ranges().is_empty());
        for chunk in [0, 1, 3, 7] {
            bitmap.set(chunk);
        }
        let expected =
            [(Sector(0), Sector(256)), (Sector(384), Sector(128)), (Sector(896), Sector(104))].to_vec();
        assert_eq!(bitmap.set_ranges(), expected);
        bitmap.set_all();
        assert_eq!(bitmap.set_ranges(), [(Sector(0), Sector(1000))]);
        assert_eq!((bitmap.chunk_of(Sector(999)), Bitmap::byte_of(9)), (7, 257));
    }

    #[test]
    fn other_bitmaps_are_refused() {
        let good = Bitmap::new(superblock(Sector(100_000)), true).encode();
        let spoilt = |at: usize, byte: u8| {
            let mut bytes = good.clone();
            bytes[at] = byte;
            Bitmap::parse(&bytes)
        };
        assert_eq!(spoilt(0, 0), Err(BitmapError::NotBitmap));
        for version in [3, 5, 6] {
            assert_eq!(spoilt(4, version), Err(BitmapError::Version(version.into())));
        }
        assert!(matches!(spoilt(52, 1), Err(BitmapError::Field { field: "chunk size", .. })));
        assert!(matches!(spoilt(54, 0), Err(BitmapError::Field { field: "chunk size", .. })));
        assert!(matches!(spoilt(47, 1), Err(BitmapError::Field { field: "size", .. })));
        assert!(matches!(spoilt(44, 1), Err(BitmapError::Short { .. })), "more bits than bytes");
        assert!(matches!(Bitmap::parse(&good[..255]), Err(BitmapError::Short { .. })));
        assert!(spoilt(48, 2).unwrap().superblock.is_stale());
    }

    proptest! {
        #[test]
        fn bits_are_what_was_set(sync_size in 1u64..1 << 20, wanted in btree_set(0u64..8192, 0..50)) {
            let mut bitmap = Bitmap::new(superblock(Sector(sync_size)), false);
            let wanted: Vec<u64> = wanted.into_iter().filter(|chunk| *chunk < bitmap.chunk_count()).collect();
            for chunk in &wanted {
                bitmap.set(*chunk);
            }
            let read = Bitmap::parse(&bitmap.encode()).unwrap();
            prop_assert_eq!(&read, &bitmap);
            prop_assert_eq!(read.set_chunks().collect::<Vec<_>>(), wanted.clone());
            for chunk in 0..bitmap.chunk_count() {
                prop_assert_eq!(read.next_set(chunk), wanted.iter().copied().find(|set| *set >= chunk));
            }
            for chunk in 0..bitmap.chunk_count() {
                prop_assert_eq!(read.is_set(chunk), wanted.contains(&chunk));
            }
            for chunk in wanted {
                bitmap.clear(chunk);
            }
            prop_assert!(bitmap.is_clear());
        }
    }
}
