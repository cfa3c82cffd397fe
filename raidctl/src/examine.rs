//! What superblocks say, without a daemon: `examine` and `zero-superblock`.
//!
//! The text has the labels of `mdadm --examine`, so eyes and scripts that know one know the other; times are UTC. A
//! superblock that cannot be believed is never shown in part: what is wrong with it is said instead.

use std::path::{Path, PathBuf};

use raidd::md::superblock::unpack_seconds;
use raidd::md::{
    Bitmap, BitmapSuperblock, Features, Role, SUPERBLOCK_OFFSET_BYTES, Superblock, bad_blocks, format_uuid,
};
use raidd::units::Sector;
use serde::Serialize;

use crate::member::{self, Header, Seen};
use crate::quantity::{moment, short_size, size};

/// Bytes of md's sector.
const SECTOR_BYTES: u64 = 512;
/// Where `sb_csum` lies in a superblock.
const CHECKSUM_OFFSET: usize = 216;
/// Bytes of an entry in the bad-block log.
const BAD_BLOCK_BYTES: u64 = 8;

/// What was found on a device, as `--json` prints it.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct Examined {
    path: String,
    #[serde(flatten)]
    found: Found,
}

#[derive(Debug, PartialEq, Eq, Serialize)]
#[serde(untagged)]
enum Found {
    Member(Box<Facts>),
    Wrong { error: String },
}

/// A superblock's facts. Lengths and places are in bytes from the start of the device.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Facts {
    metadata: &'static str,
    feature_map: u32,
    features: Vec<&'static str>,
    array_uuid: String,
    name: String,
    created_unix_seconds: u64,
    level: String,
    layout: Option<String>,
    chunk_bytes: u64,
    raid_devices: u32,
    available_bytes: u64,
    array_size_bytes: Option<u64>,
    member_size_bytes: u64,
    data_offset_bytes: u64,
    superblock_offset_bytes: u64,
    unused_before_bytes: u64,
    unused_after_bytes: u64,
    state: &'static str,
    resync_offset_bytes: Option<u64>,
    recovery_offset_bytes: Option<u64>,
    device_uuid: String,
    device_number: u32,
    role: String,
    slot: Option<u16>,
    bitmap_offset_bytes: Option<u64>,
    bitmap: Option<BitmapFacts>,
    ppl_offset_bytes: Option<u64>,
    ppl_bytes: Option<u64>,
    updated_unix_seconds: u64,
    bad_block_log_entries: u64,
    bad_block_log_offset_bytes: Option<u64>,
    has_bad_blocks: bool,
    bad_blocks: Vec<BadBlocks>,
    checksum: String,
    events: u64,
    array_state: String,
    /// What speaks against using this member, if anything.
    problem: Option<String>,
}

/// What a write-intent bitmap says of its member.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct BitmapFacts {
    /// Bytes of the member (of a RAID 10: of the array) that each bit stands for.
    chunk_bytes: u64,
    chunks: u64,
    dirty_chunks: u64,
    events: u64,
    events_cleared: u64,
    /// Its bits were not kept while writes went on: all count as set.
    is_stale: bool,
    /// The array that it is of.
    array_uuid: String,
}

/// A range of the data area that the member does not hold.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct BadBlocks {
    offset_bytes: u64,
    len_bytes: u64,
}

/// What is on each device, and whether every one is a member that can be used.
pub fn examine(devices: &[PathBuf]) -> Vec<Examined> {
    let one = |path: &PathBuf| {
        let found = match member::look(path).and_then(|seen| facts(&seen)) {
            Ok(facts) => Found::Member(Box::new(facts)),
            Err(error) => Found::Wrong { error },
        };
        Examined { path: path.display().to_string(), found }
    };
    devices.iter().map(one).collect()
}

impl Examined {
    /// What is wrong with the device, in a line.
    pub fn problem(&self) -> Option<String> {
        let what = match &self.found {
            Found::Member(facts) => facts.problem.as_ref()?,
            Found::Wrong { error } => error,
        };
        Some(format!("{}: {what}", self.path))
    }

    /// The facts for people; nothing where there are none.
    pub fn text(&self) -> Option<String> {
        match &self.found {
            Found::Member(facts) => Some(format!("{}:\n{}", self.path, facts.text())),
            Found::Wrong { .. } => None,
        }
    }
}

/// Overwrites the superblock of a member that nobody uses; with `force` a damaged one, too. An error is a line.
pub fn zero_superblock(path: &Path, force: bool) -> Result<(), String> {
    let wrong = |what: String| format!("{}: {what}", path.display());
    let held = member::hold(path).map_err(wrong)?;
    let header = held.read().map_err(wrong)?;
    match Superblock::parse(&header.bytes) {
        Ok(_) => {}
        Err(_) if !has_magic(&header.bytes) => {
            return Err(wrong("no md superblock (version 1.2) here: there is nothing to zero".to_owned()));
        }
        Err(_) if force => {}
        Err(error) => return Err(wrong(format!("{error}: zero it anyway with --force"))),
    }
    held.zero_superblock().map_err(wrong)
}

fn has_magic(bytes: &[u8]) -> bool {
    bytes.starts_with(&0xa92b_4efc_u32.to_le_bytes())
}

fn facts(seen: &Seen) -> Result<Facts, String> {
    let Header { bytes, device_bytes } = &seen.header;
    let superblock = Superblock::parse(bytes).map_err(|error| error.to_string())?;
    let stored: [u8; 4] = bytes[CHECKSUM_OFFSET..][..4].try_into().map_err(|_| "no checksum".to_owned())?;
    let mut facts = Facts::new(&superblock, u32::from_le_bytes(stored), *device_bytes);
    if facts.problem.is_none() {
        let whole = bitmap_facts(seen, &superblock).map(|bitmap| facts.bitmap = bitmap);
        let whole = whole.and_then(|()| bad_ranges(seen, &superblock)).map(|bad| facts.bad_blocks = bad);
        facts.problem = whole.err().or_else(|| facts.bitmap.as_ref()?.foreign(&facts.array_uuid));
    }
    Ok(facts)
}

fn bitmap_facts(seen: &Seen, superblock: &Superblock) -> Result<Option<BitmapFacts>, String> {
    let Some(at) = superblock.bitmap_sector() else { return Ok(None) };
    let wrong = |what: &dyn std::fmt::Display| format!("its write-intent bitmap is damaged: {what}");
    let at = at.bytes();
    let head = seen.read(at, SECTOR_BYTES).map_err(|what| wrong(&what))?;
    let head = BitmapSuperblock::parse(&head).map_err(|what| wrong(&what))?;
    let room = superblock.bitmap_room().unwrap_or(Sector::ZERO).bytes();
    if head.total_bytes() > room {
        return Err(wrong(&"it is larger than the room there is for it"));
    }
    let bytes = seen.read(at, head.total_bytes()).map_err(|what| wrong(&what))?;
    let bitmap = Bitmap::parse(&bytes).map_err(|what| wrong(&what))?;
    Ok(Some(BitmapFacts {
        chunk_bytes: head.chunk_bytes.into(),
        chunks: bitmap.chunk_count(),
        dirty_chunks: bitmap.set_chunks().count() as u64,
        events: head.events.0,
        events_cleared: head.events_cleared.0,
        is_stale: head.is_stale(),
        array_uuid: format_uuid(&head.uuid),
    }))
}

fn bad_ranges(seen: &Seen, superblock: &Superblock) -> Result<Vec<BadBlocks>, String> {
    let place = superblock.bad_blocks_sector();
    let Some(at) = place.filter(|_| superblock.feature_map.contains(Features::BAD_BLOCKS)) else {
        return Ok(Vec::new());
    };
    let wrong = |what: &dyn std::fmt::Display| format!("its bad block log is damaged: {what}");
    let len = u64::from(superblock.bblog_size) * SECTOR_BYTES;
    let bytes = seen.read(at.bytes(), len).map_err(|what| wrong(&what))?;
    let ranges = bad_blocks::parse(&bytes, superblock.bblog_shift, superblock.data_offset);
    let ranges = ranges.map_err(|what| wrong(&what))?;
    let range =
        |(first, len): (Sector, Sector)| BadBlocks { offset_bytes: first.bytes(), len_bytes: len.bytes() };
    Ok(ranges.into_iter().map(range).collect())
}

impl Facts {
    fn new(superblock: &Superblock, checksum: u32, device_bytes: u64) -> Facts {
        let bytes = |sectors: u64| sectors.saturating_mul(SECTOR_BYTES);
        let data_end = bytes(superblock.data_offset.0).saturating_add(bytes(superblock.data_size.0));
        // A file may end within a sector, which then still counts.
        let problem = if data_end > device_bytes.next_multiple_of(SECTOR_BYTES) {
            Some(format!(
                "the device is cut off: the member's data end at byte {data_end}, the device at {device_bytes}"
            ))
        } else {
            superblock.unsupported().map(|why| format!("raidd cannot use this member: {why}"))
        };
        let bad_blocks = superblock.bad_blocks_sector();
        let role = superblock.role();
        Facts {
            metadata: "1.2",
            feature_map: superblock.feature_map.0,
            features: superblock.feature_map.names(),
            array_uuid: format_uuid(&superblock.set_uuid),
            name: printable(&superblock.full_name()),
            created_unix_seconds: unpack_seconds(superblock.ctime),
            level: level_name(superblock.level),
            layout: layout_name(superblock.level, superblock.layout),
            chunk_bytes: bytes(superblock.chunk.0),
            raid_devices: superblock.raid_disks,
            available_bytes: bytes(superblock.data_size.0),
            array_size_bytes: array_size(superblock),
            member_size_bytes: bytes(superblock.size.0),
            data_offset_bytes: bytes(superblock.data_offset.0),
            superblock_offset_bytes: SUPERBLOCK_OFFSET_BYTES,
            unused_before_bytes: unused_before(superblock),
            unused_after_bytes: unused_after(superblock),
            state: if superblock.is_clean() { "clean" } else { "active" },
            resync_offset_bytes: (!superblock.is_clean()).then(|| bytes(superblock.resync_offset.0)),
            recovery_offset_bytes: superblock
                .feature_map
                .contains(Features::RECOVERY_OFFSET)
                .then(|| bytes(superblock.recovery_offset.0)),
            device_uuid: format_uuid(&superblock.device_uuid),
            device_number: superblock.dev_number,
            role: role_name(role, superblock.feature_map),
            slot: role.slot().map(|slot| slot.0),
            bitmap_offset_bytes: superblock.bitmap_sector().map(|place| bytes(place.0)),
            bitmap: None,
            ppl_offset_bytes: superblock.ppl_sector().map(|place| bytes(place.0)),
            ppl_bytes: superblock.ppl_sector().map(|_| u64::from(superblock.ppl_size()) * SECTOR_BYTES),
            updated_unix_seconds: unpack_seconds(superblock.utime),
            bad_block_log_entries: bad_blocks
                .map_or(0, |_| u64::from(superblock.bblog_size) * SECTOR_BYTES / BAD_BLOCK_BYTES),
            bad_block_log_offset_bytes: bad_blocks.map(|place| bytes(place.0)),
            has_bad_blocks: superblock.feature_map.contains(Features::BAD_BLOCKS),
            bad_blocks: Vec::new(),
            checksum: format!("{checksum:x}"),
            events: superblock.events.0,
            array_state: array_state(superblock),
            problem,
        }
    }

    fn text(&self) -> String {
        let sectors = |bytes: u64| bytes / SECTOR_BYTES;
        let from_superblock =
            |bytes: u64| i128::from(sectors(bytes)) - i128::from(sectors(SUPERBLOCK_OFFSET_BYTES));
        let mut text = String::new();
        let mut line = |label: &str, value: String| {
            text.push_str(&format!("{label:>15} : {value}\n"));
        };
        line("Magic", "a92b4efc".to_owned());
        line("Version", self.metadata.to_owned());
        line("Feature Map", format!("{:#x}{}", self.feature_map, parenthesised(&self.features.join(", "))));
        line("Array UUID", self.array_uuid.clone());
        line("Name", self.name.clone());
        line("Creation Time", moment(self.created_unix_seconds));
        line("Raid Level", self.level.clone());
        line("Raid Devices", self.raid_devices.to_string());
        line("Avail Dev Size", in_sectors(self.available_bytes));
        if let Some(bytes) = self.array_size_bytes {
            line("Array Size", format!("{} KiB ({})", bytes / 1024, size(bytes)));
        }
        if self.member_size_bytes > 0 && self.member_size_bytes != self.available_bytes {
            line("Used Dev Size", in_sectors(self.member_size_bytes));
        }
        line("Data Offset", format!("{} sectors", sectors(self.data_offset_bytes)));
        line("Super Offset", format!("{} sectors", sectors(self.superblock_offset_bytes)));
        line(
            "Unused Space",
            format!(
                "before={} sectors, after={} sectors",
                sectors(self.unused_before_bytes),
                sectors(self.unused_after_bytes)
            ),
        );
        line("State", self.state.to_owned());
        if let Some(bytes) = self.resync_offset_bytes {
            line("Resync Offset", format!("{} sectors", sectors(bytes)));
        }
        if let Some(bytes) = self.recovery_offset_bytes {
            line("Recovery Offset", format!("{} sectors", sectors(bytes)));
        }
        line("Device UUID", self.device_uuid.clone());
        if let Some(bytes) = self.bitmap_offset_bytes {
            line("Internal Bitmap", format!("{} sectors from superblock", from_superblock(bytes)));
        }
        if let Some(bitmap) = &self.bitmap {
            line("Bitmap", bitmap.text());
        }
        if let (Some(offset), Some(bytes)) = (self.ppl_offset_bytes, self.ppl_bytes) {
            line(
                "PPL",
                format!(
                    "{} sectors at offset {} sectors from superblock",
                    sectors(bytes),
                    from_superblock(offset)
                ),
            );
        }
        line("Update Time", moment(self.updated_unix_seconds));
        if let Some(bytes) = self.bad_block_log_offset_bytes {
            let bad = if self.has_bad_blocks { " - bad blocks present." } else { "" };
            line(
                "Bad Block Log",
                format!(
                    "{} entries available at offset {} sectors{bad}",
                    self.bad_block_log_entries,
                    from_superblock(bytes)
                ),
            );
        }
        for bad in &self.bad_blocks {
            let (first, len) = (sectors(bad.offset_bytes), sectors(bad.len_bytes));
            line("Bad Blocks", format!("{len} sectors at data offset {first} sectors"));
        }
        line("Checksum", format!("{} - correct", self.checksum));
        line("Events", self.events.to_string());
        if let Some(layout) = &self.layout {
            line("Layout", layout.clone());
        }
        if self.chunk_bytes > 0 {
            line("Chunk Size", short_size(self.chunk_bytes));
        }
        line("Device Role", self.role.clone());
        line(
            "Array State",
            format!("{} ('A' == active, '.' == missing, 'R' == replacing)", self.array_state),
        );
        if let Some(problem) = &self.problem {
            line("Problem", problem.clone());
        }
        text
    }
}

impl BitmapFacts {
    /// What is wrong with it on a member of this array.
    fn foreign(&self, array_uuid: &str) -> Option<String> {
        let uuid = &self.array_uuid;
        (uuid != array_uuid).then(|| format!("its write-intent bitmap is another array's, {uuid}"))
    }

    fn text(&self) -> String {
        let share = self.dirty_chunks as f64 * 100.0 / (self.chunks.max(1) as f64);
        let stale = if self.is_stale { ", stale: all count as dirty" } else { "" };
        format!(
            "{} bits (chunks of {}), {} dirty ({share:.1}%){stale}",
            self.chunks,
            short_size(self.chunk_bytes),
            self.dirty_chunks
        )
    }
}

fn parenthesised(text: &str) -> String {
    if text.is_empty() { String::new() } else { format!(" ({text})") }
}

fn in_sectors(bytes: u64) -> String {
    format!("{} sectors ({})", bytes / SECTOR_BYTES, size(bytes))
}

/// Text from a disk must not steer the terminal.
fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

fn level_name(level: i32) -> String {
    match level {
        -1 => "linear".to_owned(),
        level => format!("raid{level}"),
    }
}

/// What mdadm calls the layout; None where the level has but one.
fn layout_name(level: i32, layout: u32) -> Option<String> {
    const RAID5: [&str; 6] = [
        "left-asymmetric",
        "right-asymmetric",
        "left-symmetric",
        "right-symmetric",
        "parity-first",
        "parity-last",
    ];
    let known = match (level, layout) {
        (0, 0) => "unspecified",
        (0, 1) => "original",
        (0, 2) => "alternate",
        (5 | 6, 0..=5) => RAID5[layout as usize],
        (6, 8) => "ddf-zero-restart",
        (6, 9) => "ddf-N-restart",
        (6, 10) => "ddf-N-continue",
        (6, 16) => "left-asymmetric-6",
        (6, 17) => "right-asymmetric-6",
        (6, 18) => "left-symmetric-6",
        (6, 19) => "right-symmetric-6",
        (6, 20) => "parity-first-6",
        (10, _) => return Some(raid10_layout(layout)),
        (0 | 5 | 6, _) => return Some(format!("unknown ({layout})")),
        _ => return None,
    };
    Some(known.to_owned())
}

fn raid10_layout(layout: u32) -> String {
    let (near, far) = (layout & 0xff, layout >> 8 & 0xff);
    let kind = if layout & 0x1_0000 != 0 { "offset" } else { "far" };
    match (near, far) {
        (near, 1) => format!("near={near}"),
        (1, far) => format!("{kind}={far}"),
        (near, far) => format!("near={near}, {kind}={far}"),
    }
}

/// Bytes of the array. None where no single member knows: RAID 0 adds up what its members have.
fn array_size(superblock: &Superblock) -> Option<u64> {
    let disks = u64::from(superblock.raid_disks);
    let member = superblock.size.0;
    let sectors = match superblock.level {
        1 => member,
        4 | 5 => member.checked_mul(disks.checked_sub(1)?)?,
        6 => member.checked_mul(disks.checked_sub(2)?)?,
        10 => {
            let copies = u64::from(superblock.layout & 0xff) * u64::from(superblock.layout >> 8 & 0xff);
            let all = member.checked_mul(disks)?.checked_div(copies)?;
            all - all.checked_rem(superblock.chunk.0)?
        }
        _ => return None,
    };
    sectors.checked_mul(SECTOR_BYTES)
}

/// What lies free between all metadata and the data, as mdadm counts it: it keeps 36 KiB for the superblock.
fn unused_before(superblock: &Superblock) -> u64 {
    const SUPERBLOCK_END: u64 = 8 + 72;
    let bitmap_end = superblock.bitmap_sector().map(|place| place.0 + 8);
    let ppl_end = superblock.ppl_sector().map(|place| place.0 + u64::from(superblock.ppl_size()));
    let log_end = superblock.bad_blocks_sector().map(|place| place.0 + u64::from(superblock.bblog_size));
    let end = [bitmap_end, ppl_end, log_end].into_iter().flatten().fold(SUPERBLOCK_END, u64::max);
    superblock.data_offset.0.saturating_sub(end) * SECTOR_BYTES
}

/// What the member has and the array does not use.
fn unused_after(superblock: &Superblock) -> u64 {
    match superblock.level {
        0 | -1 => 0,
        _ => superblock.data_size.0.saturating_sub(superblock.size.0) * SECTOR_BYTES,
    }
}

fn role_name(role: Role, features: Features) -> String {
    match role {
        Role::Active(slot) if features.contains(Features::REPLACEMENT) => {
            format!("Replacement device {}", slot.0)
        }
        Role::Active(slot) => format!("Active device {}", slot.0),
        Role::Journal => "Journal".to_owned(),
        Role::Faulty => "Faulty".to_owned(),
        Role::Spare | Role::Other(_) => "spare".to_owned(),
    }
}

/// A letter for each slot: A for held, R for held twice, a dot for empty.
fn array_state(superblock: &Superblock) -> String {
    let mut holders = vec![0_u32; superblock.raid_disks as usize];
    for slot in superblock.dev_roles.iter().filter_map(|role| role.slot()) {
        if let Some(count) = holders.get_mut(slot.index()) {
            *count += 1;
        }
    }
    let letter = |count: u32| match count {
        0 => '.',
        1 => 'A',
        _ => 'R',
    };
    holders.into_iter().map(letter).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layouts_are_called_as_mdadm_calls_them() {
        for (level, layout, name) in [
            (5, 2, Some("left-symmetric")),
            (6, 18, Some("left-symmetric-6")),
            (10, 0x102, Some("near=2")),
            (10, 0x201, Some("far=2")),
            (10, 0x1_0201, Some("offset=2")),
            (10, 0x202, Some("near=2, far=2")),
            (1, 0, None),
            (4, 5, None),
            (5, 99, Some("unknown (99)")),
        ] {
            assert_eq!(layout_name(level, layout).as_deref(), name);
        }
    }

    #[test]
    fn what_is_wrong_with_a_device_is_said() {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str, bytes: &[u8]| {
            let path = folder.path().join(name);
            std::fs::write(&path, bytes).unwrap();
            path
        };
        let mut damaged = vec![0; 8192];
        damaged[4096..4100].copy_from_slice(&0xa92b_4efc_u32.to_le_bytes());
        damaged[4100] = 1;
        damaged[4200] = 77;
        let socket = folder.path().join("socket");
        let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        for (path, fragment) in [
            (file("empty", b""), "cut off"),
            (file("short", &[0; 4100]), "cut off"),
            (file("zero", &[0; 8192]), "no md superblock"),
            (file("damaged", &damaged), "checksum"),
            (folder.path().to_owned(), "neither a block device nor a plain file"),
            (folder.path().join("none"), "No such file"),
            (PathBuf::from("/dev/null"), "neither a block device nor a plain file"),
            (socket, "cannot be opened"),
        ] {
            let [examined] = &examine(std::slice::from_ref(&path))[..] else { panic!() };
            let problem = examined.problem().unwrap();
            assert!(problem.starts_with(path.to_str().unwrap()) && problem.contains(fragment), "{problem}");
            assert_eq!(examined.text(), None);
            let json = serde_json::to_value(examined).unwrap();
            assert!(json["error"].is_string() && json["path"].is_string());
        }
    }

    #[test]
    fn only_superblocks_are_zeroed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disk");
        let mut bytes = vec![0xaa; 16_384];
        std::fs::write(&path, &bytes).unwrap();
        assert!(zero_superblock(&path, true).unwrap_err().contains("nothing to zero"));
        bytes[4096..4100].copy_from_slice(&0xa92b_4efc_u32.to_le_bytes());
        std::fs::write(&path, &bytes).unwrap();
        assert!(zero_superblock(&path, false).unwrap_err().contains("--force"));
        assert_eq!(std::fs::read(&path).unwrap(), bytes);

        let held = member::hold(&path).map_err(drop).unwrap();
        assert!(zero_superblock(&path, true).unwrap_err().contains("in use"));
        drop(held);

        zero_superblock(&path, true).unwrap();
        bytes[4096..8192].fill(0);
        assert_eq!(std::fs::read(&path).unwrap(), bytes, "exactly the superblock is gone");
    }
}
