//! The metadata of a new array, chosen as mdadm 4.2 chooses it (super1.c `validate_geometry1`, `write_init_super1`,
//! `add_internal_bitmap1`; Create.c), so that nobody can tell who made an array, and every tool's assumptions hold.
//!
//! Three things differ on purpose:
//!
//! - The last member of a RAID4 or RAID5 is not turned into a spare to rebuild onto, so `dev_number` is the slot for
//!   every first member.
//! - The bitmap of a RAID10 covers the true array size from the start, to which the kernel would correct mdadm's.
//! - A RAID0 records its layout where the members differ in whole chunks, which is where it matters; mdadm compares
//!   bytes in units of the chunk's number of sectors, and so records it for smaller differences too.
//!
//! Invariants of what [`plan`] gives:
//!
//! - Each superblock parses to itself, and nothing overlaps: superblock, bitmap or PPL, bad-block log, data.
//! - A parity array is never both dirty and degraded, as nobody would start it: with as many members missing as there
//!   are parities, what is there is consistent by definition and the array is clean; a RAID6 with one missing is
//!   refused unless its members are declared clean.

mod error;
#[cfg(test)]
mod tests;

pub use error::{CreateError, NewMember};

use super::bitmap::{BITMAP_SUPERBLOCK_BYTES, Bitmap, BitmapSuperblock};
use super::ppl;
use super::superblock::{
    DEV_ROLES_MAX, Features, PARITY_CHUNK_MIN, ReshapeFields, Role, SUPERBLOCK_BYTES,
    SUPERBLOCK_OFFSET_BYTES, Superblock, pack_name, pack_time,
};
use crate::units::{EventCount, MemberSlot, SECTOR_BYTES, Sector};

/// What is to be created.
#[derive(Clone, Debug)]
pub struct CreateSpec<'a> {
    /// The name as stored, with its "host:" where it has one; see [`set_name`].
    pub name: &'a str,
    /// 0, 1, 4, 5, 6 or 10.
    pub level: i32,
    /// The level's layout; levels 1 and 4 have none.
    pub layout: u32,
    /// Sectors in a chunk; level 1 has none.
    pub chunk: Sector,
    /// The size of each slot's device, `None` where it is missing.
    pub members: Vec<Option<Sector>>,
    /// The size of each spare.
    pub spares: Vec<Sector>,
    /// Sectors to use of each member, rounded down to chunks; as many as the smallest device has otherwise.
    pub size: Option<Sector>,
    /// Whether to have an internal write-intent bitmap.
    pub bitmap: bool,
    /// Whether to have a partial parity log, at level 5.
    pub ppl: bool,
    /// Whether members agree already; if not, all is to be resynced.
    pub clean: bool,
    /// The array's UUID.
    pub set_uuid: [u8; 16],
    /// The UUIDs of the members that are there, in slot order, then of the spares.
    pub device_uuids: Vec<[u8; 16]>,
    /// The time of day: seconds since 1970.
    pub wall_seconds: u64,
}

/// The metadata of a new array.
#[derive(Clone, Debug)]
pub struct Created {
    /// One for each member that is there, in slot order, then for each spare.
    pub superblocks: Vec<Superblock>,
    /// The bitmap, all bits set, padded to 4 KiB with ones; the same for all members, at their `bitmap_sector`.
    pub bitmap: Option<Vec<u8>>,
    /// The partial parity log: an empty header, then zeros; the same for all members, at their `ppl_sector`. Without the
    /// header while members do not agree: a log tells nothing of rows that await resync.
    pub ppl: Option<Vec<u8>>,
}

impl Created {
    /// What to write to the device of `superblocks[index]`, in this order: (byte offset, bytes), in multiples of 4 KiB.
    /// The superblock comes last, so that there is none before what it points to.
    pub fn writes(&self, index: usize) -> Vec<(u64, Vec<u8>)> {
        let superblock = &self.superblocks[index];
        let mut writes = Vec::new();
        for (place, bytes) in
            [(superblock.bitmap_sector(), &self.bitmap), (superblock.ppl_sector(), &self.ppl)]
        {
            assert_eq!(place.is_some(), bytes.is_some());
            if let (Some(place), Some(bytes)) = (place, bytes) {
                writes.push((place.bytes(), bytes.clone()));
            }
        }
        let mut bytes = superblock.encode();
        bytes.resize(SUPERBLOCK_BYTES, 0);
        writes.push((SUPERBLOCK_OFFSET_BYTES, bytes));
        writes
    }
}

/// Sectors of a partial parity log, 1 MiB.
const PPL_SECTORS: u16 = 2048;
/// Everything that follows the superblock begins here, in sectors from it.
pub const FIRST_OFFSET: i32 = 8;
/// Sectors for the bad-block log.
const BAD_BLOCKS_SECTORS: u16 = 8;
/// The data offset is a multiple of this: 1 MiB.
const DATA_ALIGNMENT: u64 = 2048;
/// RAID1 has no chunk; its size is a multiple of this, 64 KiB.
pub const MIRROR_ROUNDING: Sector = Sector(128);
/// The largest chunk, 1 GiB: far above any use, far below what a field holds.
const CHUNK_MAX: Sector = Sector(1 << 21);
/// The least room for a bitmap, 4 KiB.
pub const BITMAP_ROOM_MIN: Sector = Sector(8);
/// The most that is taken for one, 128 KiB.
pub const BITMAP_ROOM_MAX: Sector = Sector(256);
/// Chunks of a bitmap are at least this, as fewer, larger bits cost less.
const BITMAP_CHUNK_MIN: u64 = 64 << 20;

/// The name to store for an array: "host:name" if that fits and the name has no colon, else the name alone.
pub fn set_name(host: &str, name: &str) -> String {
    if !host.is_empty() && !name.contains(':') && host.len() + 1 + name.len() < 32 {
        format!("{host}:{name}")
    } else {
        name.to_owned()
    }
}

/// The data offset that is chosen for members of the size of the first one.
///
/// A thousandth of the device, within 1 and 128 MiB, is left for later reshapes to move data into.
pub fn data_offset(device: Sector, chunk: Sector, ppl: bool) -> Sector {
    let log = if ppl { Sector(PPL_SECTORS.into()) } else { bitmap_space(device) };
    let mut headroom = 128 * 1024 * 2;
    while headroom << 10 > device.0 && (chunk == Sector::ZERO || headroom / 2 >= chunk.0 * 2) {
        headroom /= 2;
    }
    Sector((24 + log.0 + headroom).next_multiple_of(DATA_ALIGNMENT))
}

/// Sectors left for a bitmap at a device or component of this size.
fn bitmap_space(size: Sector) -> Sector {
    match size.0 {
        0..128 => Sector::ZERO,
        sectors if sectors - 128 >= 200 << 21 => Sector(256),
        sectors if sectors - 8 > 8 << 21 => Sector(128),
        _ => Sector(8),
    }
}

/// How much of each member a RAID10 uses, and what size it has: (component, array), in sectors, if `size` of each may be
/// used. The kernel lowers the superblock's `size` to that component at its first update; mdadm writes `size`.
///
/// `None` if the layout has no copies or the chunk is 0.
pub fn raid10_sizes(layout: u32, raid_disks: u32, size: Sector, chunk: Sector) -> Option<(Sector, Sector)> {
    let (near, far) = (u64::from(layout & 0xff), u64::from(layout >> 8 & 0xff));
    let rows = size.0.checked_div(chunk.0)?;
    let chunks = (rows.checked_div(far)?).checked_mul(raid_disks.into())?.checked_div(near)?;
    let used = chunks.checked_mul(near * far)?.div_ceil(raid_disks.into());
    let sectors = |chunks: u64| chunks.checked_mul(chunk.0).map(Sector);
    Some((sectors(used)?, sectors(chunks)?))
}

/// Chooses everything. See the head of this file for how, [`CreateError`] for what is refused.
///
/// Panics if `device_uuids` are not as many as the devices.
pub fn plan(spec: &CreateSpec<'_>) -> Result<Created, CreateError> {
    let chunk = checked_chunk(spec)?;
    let layout = checked_layout(spec)?;
    let clean = checked_members(spec)?;
    checked_logs(spec)?;
    let set_name = name_bytes(spec.name)?;

    let devices: Vec<(NewMember, Sector)> = devices(spec).collect();
    assert_eq!(devices.len(), spec.device_uuids.len(), "one UUID for each device");
    let (_, first) = devices[0];
    let data_offset = data_offset(first, chunk, spec.ppl);
    let size = checked_size(spec, chunk, data_offset)?;

    let raid_disks = u32::try_from(spec.members.len()).expect("checked_members limits it");
    let bitmap = if spec.bitmap { Some(new_bitmap(spec, layout, size, chunk)?) } else { None };
    let ppl = spec.ppl.then(|| {
        let empty = || ppl::empty_header(ppl::signature(&spec.set_uuid));
        let mut log = if clean { empty() } else { Vec::new() };
        log.resize(Sector(PPL_SECTORS.into()).bytes() as usize, 0);
        log
    });
    // At RAID0, whose superblock has size 0, no room is left for a bitmap that it never has.
    let log_sectors = match (&bitmap, &ppl) {
        (Some(bytes), _) | (None, Some(bytes)) => Sector::ceil(bytes.len() as u64),
        (None, None) => bitmap_space(size),
    };
    let mut feature_map = Features::NONE;
    if bitmap.is_some() {
        feature_map.insert(Features::BITMAP);
    }
    if spec.ppl {
        feature_map.insert(Features::PPL);
    }
    let rows = |(_, device): &(NewMember, Sector)| (*device - data_offset).0 / chunk.0;
    if spec.level == 0 && devices.iter().any(|device| rows(device) != rows(&devices[0])) {
        feature_map.insert(Features::RAID0_LAYOUT);
    }
    let time = pack_time(spec.wall_seconds, 0);
    let mut array = Superblock {
        feature_map,
        set_uuid: spec.set_uuid,
        set_name,
        ctime: time,
        level: spec.level,
        layout,
        size,
        chunk,
        raid_disks,
        bitmap_offset: if bitmap.is_some() { FIRST_OFFSET } else { 0 },
        reshape: ReshapeFields::default(),
        data_offset,
        data_size: Sector::ZERO,
        recovery_offset: Sector::ZERO,
        dev_number: 0,
        corrected_reads: 0,
        device_uuid: [0; 16],
        devflags: 0,
        bblog_shift: 0,
        bblog_size: BAD_BLOCKS_SECTORS,
        bblog_offset: FIRST_OFFSET + i32::try_from(log_sectors.0).expect("at most 2048"),
        utime: time,
        events: EventCount(0),
        resync_offset: if clean { Sector::MAX } else { Sector::ZERO },
        dev_roles: dev_roles(spec),
        logical_block_size: 0,
    };
    if spec.ppl {
        array.set_ppl(8, PPL_SECTORS);
    }
    let mut superblocks = Vec::with_capacity(devices.len());
    for ((member, device), device_uuid) in devices.iter().zip(&spec.device_uuids) {
        let superblock = Superblock {
            data_size: *device - data_offset,
            dev_number: member.dev_number(raid_disks),
            device_uuid: *device_uuid,
            ..array.clone()
        };
        // What remains to be wrong here is an array beyond what Linux addresses.
        superblock.validate().map_err(|_| CreateError::ArrayTooLarge)?;
        superblocks.push(superblock);
    }
    Ok(Created { superblocks, bitmap, ppl })
}

/// The devices that are there: members in slot order, then spares.
fn devices<'a>(spec: &'a CreateSpec<'_>) -> impl Iterator<Item = (NewMember, Sector)> + 'a {
    let members = spec.members.iter().enumerate().filter_map(|(slot, device)| {
        let slot = u16::try_from(slot).expect("checked_members limits it");
        device.map(|device| (NewMember::Slot(MemberSlot(slot)), device))
    });
    members.chain(spec.spares.iter().enumerate().map(|(index, device)| (NewMember::Spare(index), *device)))
}

/// The role table: as many entries as fill the last sector.
fn dev_roles(spec: &CreateSpec<'_>) -> Vec<Role> {
    let numbers = spec.members.len() + spec.spares.len();
    let entries = (256 + 2 * numbers).next_multiple_of(512) / 2 - 128;
    let mut roles = vec![Role::Spare; entries.min(DEV_ROLES_MAX)];
    for (member, _) in devices(spec) {
        if let NewMember::Slot(slot) = member {
            roles[slot.index()] = Role::Active(slot);
        }
    }
    roles
}

fn checked_chunk(spec: &CreateSpec<'_>) -> Result<Sector, CreateError> {
    let chunk = spec.chunk;
    let good = match spec.level {
        1 => return Ok(Sector::ZERO),
        0 => chunk.0 > 0 && chunk.0.is_multiple_of(PARITY_CHUNK_MIN.0),
        4 | 5 | 6 | 10 => chunk.0.is_power_of_two() && chunk >= PARITY_CHUNK_MIN,
        level => return Err(CreateError::Level(level)),
    };
    if good && chunk <= CHUNK_MAX { Ok(chunk) } else { Err(CreateError::Chunk { chunk, level: spec.level }) }
}

fn checked_layout(spec: &CreateSpec<'_>) -> Result<u32, CreateError> {
    let layout = spec.layout;
    let good = match spec.level {
        0 => matches!(layout, 1 | 2),
        5 => layout <= 5,
        6 => matches!(layout, 0..=5 | 8..=10 | 16..=20),
        10 => {
            let (near, far) = (layout & 0xff, layout >> 8 & 0xff);
            layout < 1 << 17 && near * far >= 2 && (near * far) as usize <= spec.members.len()
        }
        _ => return Ok(0),
    };
    if good { Ok(layout) } else { Err(CreateError::Layout { layout, level: spec.level }) }
}

/// Whether the new array is clean, if there are members enough for it.
fn checked_members(spec: &CreateSpec<'_>) -> Result<bool, CreateError> {
    let slots = spec.members.len();
    if slots + spec.spares.len() > DEV_ROLES_MAX {
        return Err(CreateError::TooManyDevices(slots + spec.spares.len()));
    }
    let least = match spec.level {
        0 | 1 => 1, // unusual, but an array; who creates it says whether that is meant
        6 => 4,
        _ => 2,
    };
    if slots < least {
        return Err(CreateError::TooFewSlots { level: spec.level, slots, least });
    }
    let missing = spec.members.iter().filter(|member| member.is_none()).count();
    let spared = match spec.level {
        1 => slots - 1,
        4 | 5 => 1,
        6 => 2,
        10 => raid10_spared(spec),
        _ => 0,
    };
    if missing > spared {
        return Err(CreateError::TooManyMissing { level: spec.level, missing, spared });
    }
    if spec.level == 6 && missing == 1 && !spec.clean {
        return Err(CreateError::Raid6OneMissing);
    }
    let parity_gone = matches!(spec.level, 4..=6) && missing == spared;
    Ok(spec.clean || spec.level == 0 || parity_gone)
}

/// How many of the members that are missing, from all of them, a RAID10 can spare: all if each chunk has a copy.
fn raid10_spared(spec: &CreateSpec<'_>) -> usize {
    let slots = spec.members.len();
    let (near, far) = ((spec.layout & 0xff) as usize, (spec.layout >> 8 & 0xff) as usize);
    // Copies of the chunk whose first copy is on member `first` lie here, whatever row it is in.
    let copies = |first: usize| {
        (0..far).flat_map(move |set| (0..near).map(move |copy| (first + set * near + copy) % slots))
    };
    let chunk_survives = |first: usize| copies(first).any(|slot| spec.members[slot].is_some());
    let firsts = (0..slots).map(|chunk| chunk * near % slots);
    if firsts.into_iter().all(chunk_survives) { slots } else { 0 }
}

fn checked_logs(spec: &CreateSpec<'_>) -> Result<(), CreateError> {
    match (spec.bitmap, spec.ppl) {
        (true, true) => Err(CreateError::BitmapAndPpl),
        (true, _) if spec.level == 0 => Err(CreateError::BitmapAtLevel0),
        (_, true) if spec.level != 5 => Err(CreateError::PplAtLevel(spec.level)),
        _ => Ok(()),
    }
}

fn name_bytes(name: &str) -> Result<[u8; 32], CreateError> {
    let refused = || CreateError::Name(name.to_owned());
    if name.is_empty() || name.ends_with(':') || name.chars().any(char::is_control) {
        return Err(refused());
    }
    pack_name(name).ok_or_else(refused)
}

/// The superblock's `size`: what is used of each member.
fn checked_size(spec: &CreateSpec<'_>, chunk: Sector, data_offset: Sector) -> Result<Sector, CreateError> {
    let unit = if spec.level == 1 { MIRROR_ROUNDING } else { chunk };
    if spec.level == 0 && spec.size.is_some() {
        return Err(CreateError::SizeAtLevel0);
    }
    let wanted = match spec.size {
        Some(size) if spec.level == 1 => Some(size.round_down(PARITY_CHUNK_MIN)),
        Some(size) => Some(size.round_down(unit)),
        None => None,
    };
    if let (Some(Sector::ZERO), Some(size)) = (wanted, spec.size) {
        return Err(CreateError::SizeTooSmall { size, unit });
    }
    let least = data_offset + wanted.unwrap_or(unit);
    let mut smallest = Sector::MAX;
    for (member, device) in devices(spec) {
        if device < least {
            return Err(CreateError::DeviceTooSmall { member, device, least });
        }
        smallest = smallest.min(device - data_offset);
    }
    Ok(match wanted {
        _ if spec.level == 0 => Sector::ZERO,
        Some(size) => size,
        None => smallest.round_down(unit),
    })
}

/// The head of a bitmap for `sync_size` sectors in so much room: its chunks are as small as fit, but of 64 MiB at least.
/// `None` where the room is less than [`BITMAP_ROOM_MIN`], or no chunk is large enough.
pub fn bitmap_head(set_uuid: [u8; 16], sync_size: Sector, room: Sector) -> Option<BitmapSuperblock> {
    if room < BITMAP_ROOM_MIN {
        return None;
    }
    let bits_max = (room.bytes() - BITMAP_SUPERBLOCK_BYTES as u64) * 8;
    let mut chunk_bytes: u64 = 4096;
    let mut bits = sync_size.0 / (chunk_bytes / SECTOR_BYTES) + 1;
    while bits > bits_max {
        chunk_bytes *= 2;
        bits = bits.div_ceil(2);
    }
    Some(BitmapSuperblock {
        uuid: set_uuid,
        events: EventCount(0),
        events_cleared: EventCount(0),
        sync_size,
        state: 0,
        chunk_bytes: u32::try_from(chunk_bytes.max(BITMAP_CHUNK_MIN)).ok()?,
        daemon_sleep_seconds: 5,
        write_behind: 0,
        sectors_reserved: 0,
        nodes: 0,
        rest: [0; 184],
    })
}

fn new_bitmap(
    spec: &CreateSpec<'_>,
    layout: u32,
    size: Sector,
    chunk: Sector,
) -> Result<Vec<u8>, CreateError> {
    let raid_disks = u32::try_from(spec.members.len()).expect("checked_members limits it");
    let sync_size = match spec.level {
        10 => raid10_sizes(layout, raid_disks, size, chunk).ok_or(CreateError::ArrayTooLarge)?.1,
        _ => size,
    };
    let room = bitmap_space(size).max(BITMAP_ROOM_MIN);
    let superblock = bitmap_head(spec.set_uuid, sync_size, room).ok_or(CreateError::ArrayTooLarge)?;
    let mut bytes = Bitmap::new(superblock, true).encode();
    bytes.resize(bytes.len().next_multiple_of(4096), 0xff);
    Ok(bytes)
}
