//! The superblock's bytes: the first 256 as a struct, and the checksum.
//!
//! Invariant: every field is where Linux's `mdp_superblock_1` has it, which the compiler proves.

use std::mem::{offset_of, size_of};

use zerocopy::byteorder::little_endian::{I32, U16, U32, U64};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::{Features, ReshapeFields, Role, SUPERBLOCK_SECTOR, Superblock};
use crate::units::{EventCount, Sector};

pub(super) const MAGIC: u32 = 0xa92b_4efc;
/// Bytes before the role table.
pub(super) const HEADER_BYTES: usize = 256;
/// Where the checksum is.
pub(super) const CHECKSUM_BYTES: std::ops::Range<usize> = 216..220;

/// The first 256 bytes as they lie on the member.
#[repr(C)]
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
pub(super) struct RawSuperblock {
    pub(super) magic: U32,
    pub(super) major_version: U32,
    feature_map: U32,
    pub(super) pad0: U32,
    set_uuid: [u8; 16],
    set_name: [u8; 32],
    ctime: U64,
    level: I32,
    layout: U32,
    size: U64,
    chunksize: U32,
    pub(super) raid_disks: U32,
    bitmap_offset: I32,
    new_level: I32,
    reshape_position: U64,
    delta_disks: I32,
    new_layout: U32,
    new_chunk: U32,
    new_offset: I32,
    data_offset: U64,
    data_size: U64,
    pub(super) super_offset: U64,
    recovery_offset: U64,
    dev_number: U32,
    cnt_corrected_read: U32,
    device_uuid: [u8; 16],
    devflags: u8,
    bblog_shift: u8,
    bblog_size: U16,
    bblog_offset: I32,
    utime: U64,
    events: U64,
    resync_offset: U64,
    pub(super) sb_csum: U32,
    pub(super) max_dev: U32,
    logical_block_size: U32,
    pub(super) pad3: [u8; 28],
}

const _: () = {
    assert!(size_of::<RawSuperblock>() == HEADER_BYTES);
    assert!(offset_of!(RawSuperblock, feature_map) == 8);
    assert!(offset_of!(RawSuperblock, set_uuid) == 16);
    assert!(offset_of!(RawSuperblock, set_name) == 32);
    assert!(offset_of!(RawSuperblock, ctime) == 64);
    assert!(offset_of!(RawSuperblock, level) == 72);
    assert!(offset_of!(RawSuperblock, size) == 80);
    assert!(offset_of!(RawSuperblock, raid_disks) == 92);
    assert!(offset_of!(RawSuperblock, bitmap_offset) == 96);
    assert!(offset_of!(RawSuperblock, reshape_position) == 104);
    assert!(offset_of!(RawSuperblock, new_offset) == 124);
    assert!(offset_of!(RawSuperblock, data_offset) == 128);
    assert!(offset_of!(RawSuperblock, super_offset) == 144);
    assert!(offset_of!(RawSuperblock, recovery_offset) == 152);
    assert!(offset_of!(RawSuperblock, dev_number) == 160);
    assert!(offset_of!(RawSuperblock, device_uuid) == 168);
    assert!(offset_of!(RawSuperblock, devflags) == 184);
    assert!(offset_of!(RawSuperblock, bblog_shift) == 185);
    assert!(offset_of!(RawSuperblock, bblog_size) == 186);
    assert!(offset_of!(RawSuperblock, bblog_offset) == 188);
    assert!(offset_of!(RawSuperblock, utime) == 192);
    assert!(offset_of!(RawSuperblock, events) == 200);
    assert!(offset_of!(RawSuperblock, resync_offset) == 208);
    assert!(offset_of!(RawSuperblock, sb_csum) == CHECKSUM_BYTES.start);
    assert!(offset_of!(RawSuperblock, max_dev) == 220);
    assert!(offset_of!(RawSuperblock, logical_block_size) == 224);
};

impl RawSuperblock {
    /// The superblock that these bytes and the roles behind them are.
    pub(super) fn superblock(&self, dev_roles: Vec<Role>) -> Superblock {
        Superblock {
            feature_map: Features(self.feature_map.get()),
            set_uuid: self.set_uuid,
            set_name: self.set_name,
            ctime: self.ctime.get(),
            level: self.level.get(),
            layout: self.layout.get(),
            size: Sector(self.size.get()),
            chunk: Sector(self.chunksize.get().into()),
            raid_disks: self.raid_disks.get(),
            bitmap_offset: self.bitmap_offset.get(),
            reshape: ReshapeFields {
                new_level: self.new_level.get(),
                reshape_position: self.reshape_position.get(),
                delta_disks: self.delta_disks.get(),
                new_layout: self.new_layout.get(),
                new_chunk: self.new_chunk.get(),
                new_offset: self.new_offset.get(),
            },
            data_offset: Sector(self.data_offset.get()),
            data_size: Sector(self.data_size.get()),
            recovery_offset: Sector(self.recovery_offset.get()),
            dev_number: self.dev_number.get(),
            corrected_reads: self.cnt_corrected_read.get(),
            device_uuid: self.device_uuid,
            devflags: self.devflags,
            bblog_shift: self.bblog_shift,
            bblog_size: self.bblog_size.get(),
            bblog_offset: self.bblog_offset.get(),
            utime: self.utime.get(),
            events: EventCount(self.events.get()),
            resync_offset: Sector(self.resync_offset.get()),
            dev_roles,
            logical_block_size: self.logical_block_size.get(),
        }
    }

    /// The bytes of `from`, with no checksum yet.
    pub(super) fn new(from: &Superblock) -> RawSuperblock {
        RawSuperblock {
            magic: U32::new(MAGIC),
            major_version: U32::new(1),
            feature_map: U32::new(from.feature_map.0),
            pad0: U32::new(0),
            set_uuid: from.set_uuid,
            set_name: from.set_name,
            ctime: U64::new(from.ctime),
            level: I32::new(from.level),
            layout: U32::new(from.layout),
            size: U64::new(from.size.0),
            chunksize: U32::new(from.chunk.0.try_into().expect("a chunk below 2^32 sectors")),
            raid_disks: U32::new(from.raid_disks),
            bitmap_offset: I32::new(from.bitmap_offset),
            new_level: I32::new(from.reshape.new_level),
            reshape_position: U64::new(from.reshape.reshape_position),
            delta_disks: I32::new(from.reshape.delta_disks),
            new_layout: U32::new(from.reshape.new_layout),
            new_chunk: U32::new(from.reshape.new_chunk),
            new_offset: I32::new(from.reshape.new_offset),
            data_offset: U64::new(from.data_offset.0),
            data_size: U64::new(from.data_size.0),
            super_offset: U64::new(SUPERBLOCK_SECTOR.0),
            recovery_offset: U64::new(from.recovery_offset.0),
            dev_number: U32::new(from.dev_number),
            cnt_corrected_read: U32::new(from.corrected_reads),
            device_uuid: from.device_uuid,
            devflags: from.devflags,
            bblog_shift: from.bblog_shift,
            bblog_size: U16::new(from.bblog_size),
            bblog_offset: I32::new(from.bblog_offset),
            utime: U64::new(from.utime),
            events: U64::new(from.events.0),
            resync_offset: U64::new(from.resync_offset.0),
            sb_csum: U32::new(0),
            max_dev: U32::new(u32::try_from(from.dev_roles.len()).expect("at most 1920")),
            logical_block_size: U32::new(from.logical_block_size),
            ..RawSuperblock::new_zeroed()
        }
    }
}

/// The checksum of a header and its whole role table: all 32-bit words summed in 64 bits with the checksum field as
/// 0, a 16-bit word that is left over added as such, and the carry added back in once (Linux `calc_sb_1_csum`).
pub(super) fn checksum(covered: &[u8]) -> u32 {
    assert!(covered.len() >= HEADER_BYTES && covered.len().is_multiple_of(2));
    let mut sum: u64 = 0;
    let (words, rest) = covered.as_chunks::<4>();
    for word in words {
        sum += u64::from(u32::from_le_bytes(*word));
    }
    if let [low, high] = rest {
        sum += u64::from(u16::from_le_bytes([*low, *high]));
    }
    let field = covered[CHECKSUM_BYTES].try_into().expect("four bytes");
    sum -= u64::from(u32::from_le_bytes(field));
    (sum as u32).wrapping_add((sum >> 32) as u32)
}
