//! The superblock of md metadata 1.2: who a member is, in which array, how fresh and how clean.
//!
//! It lies at byte 4096 of the member: 256 bytes, then a table of 16-bit roles, one entry a device number. All
//! members of an array carry the same array-wide fields; the freshest (highest events) is believed.
//!
//! Invariants of a [`Superblock`] that was parsed:
//!
//! - It encodes to the bytes it came from (the checksum, which was right, included).
//! - Its numbers can be calculated with: `data_offset + data_size`, times `raid_disks`, fits 2^54 sectors (2^63
//!   bytes, as far as Linux addresses anything), the chunk is not 0 where the level has chunks and a power of two of
//!   at least 4 KiB where md wants that, a [`Role::Active`] slot is below `raid_disks`, which is 1 to 1920, and events
//!   leave room to count.
//! - Bitmap, PPL and bad-block log, where the features say they are used, lie between superblock and data.
//!
//! What parses may still be beyond raidd: see [`Superblock::unsupported`]. Whether two superblocks belong together is
//! for the engine to say.

mod bytes;
#[cfg(test)]
mod tests;

use thiserror::Error;
use zerocopy::{FromBytes, IntoBytes};

use self::bytes::{CHECKSUM_BYTES, HEADER_BYTES, MAGIC, RawSuperblock, checksum};
pub use super::features::Features;
use crate::units::{EventCount, MemberSlot, Sector};

/// Where the superblock lies, in bytes from the start of the member, whatever its block size.
pub const SUPERBLOCK_OFFSET_BYTES: u64 = 4096;
/// Bytes to read for a superblock with the largest role table.
pub const SUPERBLOCK_BYTES: usize = 4096;
/// The same place in sectors; offsets of bitmap, PPL and bad-block log are relative to it.
pub const SUPERBLOCK_SECTOR: Sector = Sector(SUPERBLOCK_OFFSET_BYTES / 512);
/// Entries that fit the role table: no device number is higher, and no array has more slots.
pub const DEV_ROLES_MAX: usize = (SUPERBLOCK_BYTES - HEADER_BYTES) / 2;

/// Sectors that all members together may have: 2^63 bytes, which is where Linux's file offsets end.
pub(super) const ARRAY_SECTORS_MAX: u64 = 1 << 54;

/// Events that no array reaches; above it counting could overflow.
const EVENTS_MAX: u64 = 1 << 62;

/// What a superblock's table says that a device is to the array.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// It holds this slot (in sync, unless its own superblock says that it is being filled).
    Active(MemberSlot),
    /// It holds none, or there is no such device.
    Spare,
    /// It has failed.
    Faulty,
    /// It is the array's journal.
    Journal,
    /// A value with no meaning here: reserved, or a slot that the array does not have. As good as a spare; kept to
    /// give the same bytes again.
    Other(u16),
}

impl Role {
    fn from_raw(raw: u16, raid_disks: u32) -> Role {
        match raw {
            0xffff => Role::Spare,
            0xfffe => Role::Faulty,
            0xfffd => Role::Journal,
            slot if u32::from(slot) < raid_disks => Role::Active(MemberSlot(slot)),
            other => Role::Other(other),
        }
    }

    const fn raw(self) -> u16 {
        match self {
            Role::Active(slot) => slot.0,
            Role::Spare => 0xffff,
            Role::Faulty => 0xfffe,
            Role::Journal => 0xfffd,
            Role::Other(raw) => raw,
        }
    }

    /// The slot that it holds, if any.
    pub const fn slot(self) -> Option<MemberSlot> {
        match self {
            Role::Active(slot) => Some(slot),
            _ => None,
        }
    }
}

/// A member's superblock. Lengths and places are in sectors of 512 bytes; fields are named as in the kernel's
/// `mdp_superblock_1`, whose comments (Linux, include/uapi/linux/raid/md_p.h) say the same things.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Superblock {
    /// What a reader must know about.
    pub feature_map: Features,
    /// The array's UUID; [`super::format_uuid`] prints it.
    pub set_uuid: [u8; 16],
    /// `host:name` or `name`, NUL padded; see [`Superblock::name`].
    pub set_name: [u8; 32],
    /// When the array was created; see [`unpack_seconds`].
    pub ctime: u64,
    /// 0, 1, 4, 5, 6, 10; -1 is linear.
    pub level: i32,
    /// What it says depends on the level.
    pub layout: u32,
    /// Sectors used of each member; 0 for RAID0, which uses all of each.
    pub size: Sector,
    /// Sectors in a chunk; 0 for RAID1.
    pub chunk: Sector,
    /// Slots of the array.
    pub raid_disks: u32,
    /// Raw: the bitmap's place in sectors from the superblock with [`Features::BITMAP`], place and size of the log
    /// with PPL. Use [`Superblock::bitmap_sector`] and [`Superblock::ppl_sector`].
    pub bitmap_offset: i32,
    /// What a reshape was about, as found.
    pub reshape: ReshapeFields,
    /// Where this member's data begin.
    pub data_offset: Sector,
    /// Data sectors there are on this member; at least `size`, not rounded to chunks.
    pub data_size: Sector,
    /// With [`Features::RECOVERY_OFFSET`]: data sectors from `data_offset` that are right. Anything else otherwise.
    pub recovery_offset: Sector,
    /// This device's number: an index into `dev_roles`, kept for life. It is *not* its slot.
    pub dev_number: u32,
    /// Sectors whose read errors were corrected by rewriting.
    pub corrected_reads: u32,
    /// This member's own UUID.
    pub device_uuid: [u8; 16],
    /// 1 write-mostly, 2 failfast.
    pub devflags: u8,
    /// The bad-block log counts in units of `512 << shift` bytes.
    pub bblog_shift: u8,
    /// Sectors reserved for the bad-block log.
    pub bblog_size: u16,
    /// Raw: where the bad-block log lies, in sectors from the superblock; 0 where there is none.
    pub bblog_offset: i32,
    /// When the superblock was written; see [`unpack_seconds`].
    pub utime: u64,
    /// How often the metadata was updated.
    pub events: EventCount,
    /// Rows below it agree; [`Sector::MAX`] says that all do, and 0 is also written when writes are under way.
    pub resync_offset: Sector,
    /// The role of each device number.
    pub dev_roles: Vec<Role>,
    /// Bytes in a logical block since Linux 6.19, 0 before: keep as found.
    pub logical_block_size: u32,
}

/// The fields that mean something only while a reshape runs, kept as found.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ReshapeFields {
    /// The level that is reshaped to.
    pub new_level: i32,
    /// How far it got, in array sectors.
    pub reshape_position: u64,
    /// Change of the number of slots.
    pub delta_disks: i32,
    /// The layout that is reshaped to.
    pub new_layout: u32,
    /// The chunk size that is reshaped to, in sectors.
    pub new_chunk: u32,
    /// How far data_offset moves, in sectors.
    pub new_offset: i32,
}

/// Why bytes are no superblock that can be believed.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ParseError {
    /// The bytes end before the superblock does.
    #[error("the superblock is cut off: {have} bytes of {need}")]
    Short {
        /// Bytes there were.
        have: usize,
        /// Bytes there should be.
        need: usize,
    },
    /// No magic.
    #[error("no md superblock (version 1.2) here")]
    NotMd,
    /// Not version 1.
    #[error("the md superblock has major version {0}; only 1.2 is understood")]
    WrongVersion(u32),
    /// It says that it lies elsewhere: version 1.0 or 1.1, or an image that was cut out at a wrong place.
    #[error(
        "the md superblock says that it belongs at sector {0}, not at 8: a 1.0 or 1.1 superblock, or a copy at the wrong place"
    )]
    WrongPlace(u64),
    /// A role table that does not fit.
    #[error("the md superblock has a table of {0} roles; 1920 is the most there can be: it is damaged")]
    TooManyRoles(u32),
    /// Damage.
    #[error("the md superblock's checksum is {stored:08x} but should be {computed:08x}: it is damaged")]
    Checksum {
        /// What the superblock says.
        stored: u32,
        /// What its bytes give.
        computed: u32,
    },
    /// Padding that should be zero and is not: a format that is newer than this program.
    #[error("reserved bytes of the md superblock are in use: it was written by something newer")]
    Reserved,
    /// A field with a value that cannot be.
    #[error("the md superblock's {field} of {value} is impossible")]
    Field {
        /// The field's name.
        field: &'static str,
        /// Its value.
        value: u64,
    },
    /// Bitmap, log or data lie where they cannot.
    #[error("the md superblock places its {0} outside the gap between superblock and data")]
    Place(&'static str),
}

impl Superblock {
    /// Reads the superblock that `bytes`, taken from [`SUPERBLOCK_OFFSET_BYTES`] on, begin with. There should be
    /// [`SUPERBLOCK_BYTES`] of them; fewer do where the role table is smaller.
    ///
    /// Errors: see [`ParseError`]. Features are not judged here, [`Superblock::unsupported`] does that.
    pub fn parse(bytes: &[u8]) -> Result<Superblock, ParseError> {
        let short = |need| ParseError::Short { have: bytes.len(), need };
        let (raw, table) = RawSuperblock::ref_from_prefix(bytes).map_err(|_| short(HEADER_BYTES))?;
        if raw.magic.get() != MAGIC {
            return Err(ParseError::NotMd);
        }
        if raw.major_version.get() != 1 {
            return Err(ParseError::WrongVersion(raw.major_version.get()));
        }
        let roles = raw.max_dev.get() as usize;
        if roles > DEV_ROLES_MAX {
            return Err(ParseError::TooManyRoles(raw.max_dev.get()));
        }
        let end = HEADER_BYTES + 2 * roles;
        let covered = bytes.get(..end).ok_or_else(|| short(end))?;
        let (stored, computed) = (raw.sb_csum.get(), checksum(covered));
        if stored != computed {
            return Err(ParseError::Checksum { stored, computed });
        }
        if raw.super_offset.get() != SUPERBLOCK_SECTOR.0 {
            return Err(ParseError::WrongPlace(raw.super_offset.get()));
        }
        if raw.pad0.get() != 0 || raw.pad3 != [0; 28] {
            return Err(ParseError::Reserved);
        }
        let raid_disks = raw.raid_disks.get();
        let dev_roles = table[..2 * roles]
            .chunks_exact(2)
            .map(|entry| Role::from_raw(u16::from_le_bytes([entry[0], entry[1]]), raid_disks))
            .collect();
        let superblock = raw.superblock(dev_roles);
        superblock.validate()?;
        Ok(superblock)
    }

    /// The superblock's bytes with the right checksum: 256 and two for each role, zero padded to a multiple of 512.
    ///
    /// Panics if there are more than [`DEV_ROLES_MAX`] roles or a chunk of 2^32 sectors: the caller made those up.
    pub fn encode(&self) -> Vec<u8> {
        assert!(self.dev_roles.len() <= DEV_ROLES_MAX, "{} roles", self.dev_roles.len());
        let end = self.table_end();
        let mut bytes = Vec::with_capacity(end.next_multiple_of(512));
        bytes.extend_from_slice(RawSuperblock::new(self).as_bytes());
        for role in &self.dev_roles {
            bytes.extend_from_slice(&role.raw().to_le_bytes());
        }
        assert_eq!(bytes.len(), end);
        let sum = checksum(&bytes);
        bytes[CHECKSUM_BYTES].copy_from_slice(&sum.to_le_bytes());
        bytes.resize(end.next_multiple_of(512), 0);
        bytes
    }

    /// What this device is to the array, by its own superblock. (The freshest superblock's table has the last word.)
    pub fn role(&self) -> Role {
        self.role_of(self.dev_number)
    }

    /// What the device of this number is to the array, by this superblock.
    pub fn role_of(&self, dev_number: u32) -> Role {
        self.dev_roles.get(dev_number as usize).copied().unwrap_or(Role::Spare)
    }

    /// The array's name without the "host:" before it. Bytes that are not UTF-8 come out as U+FFFD.
    pub fn name(&self) -> String {
        let full = self.full_name();
        full.split_once(':').map(|(_, name)| name.to_owned()).unwrap_or(full)
    }

    /// The array's name as stored: "host:name" or "name".
    pub fn full_name(&self) -> String {
        let end = self.set_name.iter().position(|byte| *byte == 0).unwrap_or(self.set_name.len());
        String::from_utf8_lossy(&self.set_name[..end]).into_owned()
    }

    /// Whether all rows agreed when this was written.
    pub fn is_clean(&self) -> bool {
        self.resync_offset == Sector::MAX
    }

    /// How much of the member's data is right: all of it, unless it is being filled.
    pub fn recovered(&self) -> Sector {
        if self.feature_map.contains(Features::RECOVERY_OFFSET) { self.recovery_offset } else { Sector::MAX }
    }

    /// Whether a partial parity log is in place of a bitmap.
    pub fn has_ppl(&self) -> bool {
        self.feature_map.intersects(Features::PPL | Features::MULTIPLE_PPLS)
    }

    /// Raw place of the partial parity log, in sectors from the superblock; meaningless without one.
    pub fn ppl_offset(&self) -> i16 {
        let bytes = self.bitmap_offset.to_le_bytes();
        i16::from_le_bytes([bytes[0], bytes[1]])
    }

    /// Sectors in the partial parity log; meaningless without one.
    pub fn ppl_size(&self) -> u16 {
        let bytes = self.bitmap_offset.to_le_bytes();
        u16::from_le_bytes([bytes[2], bytes[3]])
    }

    /// Sets what [`Superblock::ppl_offset`] and [`Superblock::ppl_size`] read, both in sectors.
    pub fn set_ppl(&mut self, offset: i16, size: u16) {
        let ([a, b], [c, d]) = (offset.to_le_bytes(), size.to_le_bytes());
        self.bitmap_offset = i32::from_le_bytes([a, b, c, d]);
    }

    /// Where the bitmap begins, counted from the start of the member; `None` without one.
    pub fn bitmap_sector(&self) -> Option<Sector> {
        if !self.feature_map.contains(Features::BITMAP) || self.has_ppl() {
            return None;
        }
        self.gap_place(i64::from(self.bitmap_offset), 1)
    }

    /// Sectors from the bitmap's beginning to whatever follows it: bad-block log or data. More of it is not the
    /// bitmap's, whatever the bitmap says. `None` without one.
    pub fn bitmap_room(&self) -> Option<Sector> {
        let start = self.bitmap_sector()?;
        let next = self.bad_blocks_sector().filter(|log| *log > start).unwrap_or(self.data_offset);
        Some(next - start)
    }

    /// Sectors that are free `offset` sectors from the superblock, up to the bad-block log or the data, in an array that has
    /// neither bitmap nor PPL.
    pub fn free_at(&self, offset: i32) -> Sector {
        let Some(start) = self.gap_place(i64::from(offset), 0) else { return Sector::ZERO };
        let log = self.bad_blocks_sector().map(|log| (log, log + Sector(self.bblog_size.into())));
        match log {
            Some((log, end)) if start < end => Sector(log.0.saturating_sub(start.0)),
            _ => self.data_offset - start,
        }
    }

    /// Where the partial parity log begins, counted from the start of the member; `None` without one.
    pub fn ppl_sector(&self) -> Option<Sector> {
        if !self.has_ppl() {
            return None;
        }
        self.gap_place(i64::from(self.ppl_offset()), u64::from(self.ppl_size()))
    }

    /// Where the bad-block log begins, counted from the start of the member. `None` where there is none, or none that
    /// could be written without harm. What it holds means something only with [`Features::BAD_BLOCKS`].
    pub fn bad_blocks_sector(&self) -> Option<Sector> {
        if self.bblog_size == 0 || self.bblog_offset == 0 {
            return None;
        }
        let log = self.gap_place(i64::from(self.bblog_offset), u64::from(self.bblog_size))?;
        let end = log + Sector(self.bblog_size.into());
        let ppl_end = self.ppl_sector().map(|ppl| ppl + Sector(self.ppl_size().into()));
        let apart = |start: Option<Sector>, stop: Option<Sector>| {
            start.is_none_or(|start| end <= start || stop.is_some_and(|stop| stop <= log))
        };
        // How far the bitmap goes is for its own head to say; it may not go into the log.
        let bitmap = self.bitmap_sector();
        (apart(self.ppl_sector(), ppl_end) && apart(bitmap, bitmap.map(|start| start + Sector(1))))
            .then_some(log)
    }

    /// Why raidd must leave this array alone, in a sentence for people, if it must.
    pub fn unsupported(&self) -> Option<String> {
        const REFUSED: [(Features, &str); 5] = [
            (Features::RESHAPE, "a reshape was under way; let mdadm finish it"),
            (Features::RESHAPE_BACKWARDS, "a backwards reshape was under way; let mdadm finish it"),
            (Features::NEW_OFFSET, "a reshape was moving its data; let mdadm finish it"),
            (Features::CLUSTERED, "it is a clustered array (md-cluster), which raidd does not share"),
            (Features::JOURNAL, "it has a write journal device, which raidd does not replay"),
        ];
        let features = self.feature_map;
        if let Some((_, why)) = REFUSED.iter().find(|(feature, _)| features.contains(*feature)) {
            return Some((*why).to_owned());
        }
        if features.unknown() != Features::NONE {
            return Some(format!(
                "it uses features that raidd does not know (bits {:#x} of its feature map)",
                features.unknown().0
            ));
        }
        if self.has_ppl() && features.contains(Features::BITMAP) {
            return Some("it claims both a write-intent bitmap and a partial parity log".to_owned());
        }
        if features.contains(Features::RAID0_LAYOUT) && self.level != 0 {
            return Some(format!("it claims a RAID0 layout at level {}", self.level));
        }
        if !matches!(self.level, 0 | 1 | 4 | 5 | 6 | 10) {
            let level = if self.level == -1 { "linear".to_owned() } else { format!("level {}", self.level) };
            return Some(format!("raidd has no {level}; it has 0, 1, 4, 5, 6 and 10"));
        }
        None
    }

    fn table_end(&self) -> usize {
        HEADER_BYTES + 2 * self.dev_roles.len()
    }

    /// A place `offset` sectors from the superblock, if `sectors` from there on are between superblock and data.
    fn gap_place(&self, offset: i64, sectors: u64) -> Option<Sector> {
        let offset = u64::try_from(offset).ok()?;
        let start = SUPERBLOCK_SECTOR + Sector(offset);
        let fits = Sector(offset) >= Sector::ceil(self.table_end() as u64)
            && start + Sector(sectors) <= self.data_offset;
        fits.then_some(start)
    }

    /// Whether the numbers can be calculated with: the invariants at the head of this file.
    pub(super) fn validate(&self) -> Result<(), ParseError> {
        let field = |field, value| Err(ParseError::Field { field, value });
        if self.raid_disks == 0 || self.raid_disks as usize > DEV_ROLES_MAX {
            return field("number of raid disks", self.raid_disks.into());
        }
        if self.events.0 > EVENTS_MAX {
            return field("event count", self.events.0);
        }
        if self.data_offset < SUPERBLOCK_SECTOR + Sector::ceil(self.table_end() as u64) {
            return field("data offset", self.data_offset.0);
        }
        if self.data_size < DATA_SECTORS_MIN {
            return field("data size", self.data_size.0);
        }
        let end = self.data_offset.0.checked_add(self.data_size.0);
        let all = end.and_then(|end| end.checked_mul(self.raid_disks.into()));
        if all.is_none_or(|all| all > ARRAY_SECTORS_MAX) {
            return field("data size", self.data_size.0);
        }
        if self.size > self.data_size && self.role() != Role::Journal {
            return field("component size", self.size.0);
        }
        let chunk_ok = match self.level {
            0 => self.chunk.0 > 0,
            4 | 5 | 6 | 10 => self.chunk.0.is_power_of_two() && self.chunk >= PARITY_CHUNK_MIN,
            _ => true,
        };
        if !chunk_ok {
            return field("chunk size", self.chunk.0);
        }
        if self.has_ppl() {
            self.ppl_sector().ok_or(ParseError::Place("partial parity log"))?;
        } else if self.feature_map.contains(Features::BITMAP) {
            self.bitmap_sector().ok_or(ParseError::Place("bitmap"))?;
        }
        if self.feature_map.contains(Features::BAD_BLOCKS) {
            self.bad_blocks_sector().ok_or(ParseError::Place("bad-block log"))?;
        }
        Ok(())
    }
}

/// The smallest data area that the kernel takes (`super_1_load`).
const DATA_SECTORS_MIN: Sector = Sector(10);
/// 4 KiB: the kernel's page, the unit of parity and of RAID10 resync.
pub const PARITY_CHUNK_MIN: Sector = Sector(8);

/// md's time stamp of a moment: seconds since 1970 in the low 40 bits, microseconds above.
pub const fn pack_time(seconds: u64, microseconds: u32) -> u64 {
    (seconds & SECONDS_MASK) | (microseconds as u64) << 40
}

/// The seconds since 1970 of a `ctime` or `utime`.
pub const fn unpack_seconds(time: u64) -> u64 {
    time & SECONDS_MASK
}

/// The microseconds of a `ctime` or `utime`: 0 in practice.
pub const fn unpack_microseconds(time: u64) -> u32 {
    (time >> 40) as u32
}

const SECONDS_MASK: u64 = (1 << 40) - 1;

/// `set_name` of an array: the bytes of the name, NUL padded. `None` if it does not fit with a NUL behind it.
pub fn pack_name(full_name: &str) -> Option<[u8; 32]> {
    let mut raw = [0; 32];
    let place = raw[..31].get_mut(..full_name.len())?;
    place.copy_from_slice(full_name.as_bytes());
    Some(raw)
}
