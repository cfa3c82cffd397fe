//! What the kernel wrote is understood: every golden member, against what an independent parser found there.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;

use raidd::md::bitmap::Bitmap;
use raidd::md::{
    Features, Role, SUPERBLOCK_BYTES, SUPERBLOCK_OFFSET_BYTES, Superblock, bad_blocks, format_uuid, ppl,
};
use raidd::units::{EventCount, Sector};
use sha2::{Digest, Sha256};

use crate::golden::{self, Member, RoleName};
use crate::mdadm;

fn superblock(member: &Member) -> Superblock {
    let bytes = member.read(SUPERBLOCK_OFFSET_BYTES, SUPERBLOCK_BYTES);
    Superblock::parse(&bytes).unwrap_or_else(|error| panic!("{}: {error}", member.file))
}

fn role_name(role: Role) -> RoleName {
    match role {
        Role::Active(slot) => RoleName::Slot(slot.0),
        Role::Spare => RoleName::Other("spare".to_owned()),
        Role::Faulty => RoleName::Other("faulty".to_owned()),
        Role::Journal => RoleName::Other("journal".to_owned()),
        Role::Other(raw) => RoleName::Other(format!("{raw:#x}")),
    }
}

#[test]
fn members_are_as_they_were_made() {
    for (_, member) in golden::members() {
        let bytes = fs::read(member.path()).unwrap();
        let hash: String = Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hash, member.sha256, "{} was written to; delete {:?}", member.file, golden::unpack());
    }
}

#[test]
fn superblocks() {
    let mut seen = 0;
    for (array, member) in golden::members() {
        let superblock = superblock(member);
        let what = &member.file;
        assert_eq!(superblock.unsupported(), None, "{what}");
        assert_eq!(format_uuid(&superblock.set_uuid), array.uuid, "{what}");
        assert_eq!(superblock.full_name(), array.set_name, "{what}");
        assert_eq!(superblock.name(), "0", "{what}");
        assert_eq!(superblock.level, array.level(), "{what}");
        assert_eq!(superblock.layout, array.layout, "{what}");
        assert_eq!(superblock.chunk, Sector(array.chunk_sectors), "{what}");
        assert_eq!(superblock.raid_disks, array.raid_disks, "{what}");
        assert_eq!(superblock.size, Sector(array.component_sectors), "{what}");
        assert_eq!(role_name(superblock.role()), member.role, "{what}");
        assert_eq!(superblock.dev_number, member.dev_number, "{what}");
        assert_eq!(superblock.events, EventCount(member.events), "{what}");
        assert_eq!(superblock.feature_map.names(), member.features, "{what}");
        assert_eq!(superblock.data_offset, Sector(member.data_offset), "{what}");
        assert_eq!(superblock.data_size, Sector(member.data_size), "{what}");
        assert_eq!(superblock.resync_offset, member.resync_offset.map_or(Sector::MAX, Sector), "{what}");
        assert_eq!(superblock.is_clean(), member.resync_offset.is_none(), "{what}");
        assert_eq!(superblock.recovered(), member.recovery_offset.map_or(Sector::MAX, Sector), "{what}");
        let mut roles: Vec<_> = superblock.dev_roles.iter().map(|role| role_name(*role)).collect();
        let unused = roles.split_off(member.dev_roles.len());
        assert_eq!(roles, member.dev_roles, "{what}");
        assert!(unused.iter().all(|role| *role == role_name(Role::Spare)), "{what}: {unused:?}");
        seen += 1;
    }
    assert_eq!(seen, 33, "members of the archive");
}

#[test]
fn superblocks_encode_to_the_very_bytes() {
    for (_, member) in golden::members() {
        let encoded = superblock(member).encode();
        assert_eq!(encoded, member.read(SUPERBLOCK_OFFSET_BYTES, encoded.len()), "{}", member.file);
    }
}

#[test]
fn bitmaps() {
    let mut dirty_seen = 0;
    for (_, member) in golden::members() {
        let superblock = superblock(member);
        let place = superblock.bitmap_sector().zip(superblock.bitmap_room());
        assert_eq!(place.is_some(), member.bitmap.is_some(), "{}", member.file);
        let Some(((start, room), expected)) = place.zip(member.bitmap.as_ref()) else { continue };
        let bytes = member.read(start.bytes(), room.bytes() as usize);
        let bitmap = Bitmap::parse(&bytes).unwrap();
        let head = &bitmap.superblock;
        assert_eq!(format_uuid(&head.uuid), expected.uuid);
        assert_eq!(head.events, EventCount(expected.events));
        assert_eq!(head.events_cleared, EventCount(expected.events_cleared));
        assert_eq!(head.sync_size, Sector(expected.sync_size));
        assert_eq!((head.state, expected.state.len()), (0, 0));
        assert_eq!(head.chunk_bytes, expected.chunksize);
        assert_eq!(head.daemon_sleep_seconds, expected.daemon_sleep);
        assert_eq!(head.write_behind, expected.write_behind);
        assert_eq!(head.sectors_reserved, expected.sectors_reserved);
        assert_eq!(head.nodes, expected.nodes);
        assert_eq!(bitmap.chunk_count(), expected.chunks);
        assert_eq!(bitmap.set_chunks().count() as u64, expected.dirty_count);
        let unit = head.chunk_sectors().0;
        let dirty = expected.dirty.iter().map(|(first, last)| {
            let end = ((last + 1) * unit).min(expected.sync_size);
            (Sector(first * unit), Sector(end - first * unit))
        });
        assert_eq!(bitmap.set_ranges(), dirty.collect::<Vec<_>>());
        assert_eq!(bitmap.is_clear(), expected.dirty_count == 0);
        let encoded = bitmap.encode();
        assert_eq!(encoded, bytes[..encoded.len()]);
        dirty_seen += expected.dirty_count;
    }
    assert!(dirty_seen > 0, "an archive with dirty chunks");
}

#[test]
fn bad_block_logs() {
    for (_, member) in golden::members() {
        let superblock = superblock(member);
        let log = superblock.bad_blocks_sector().expect("a log on every member that mdadm made");
        let log = member.read(log.bytes(), usize::from(superblock.bblog_size) * 512);
        let mut found = Vec::new();
        if superblock.feature_map.contains(Features::BAD_BLOCKS) {
            found = bad_blocks::parse(&log, superblock.bblog_shift, superblock.data_offset).unwrap();
        }
        let found: Vec<_> = found.into_iter().map(|(start, length)| (start.0, length.0)).collect();
        assert_eq!(found, member.bad_blocks, "{}", member.file);
    }
}

#[test]
fn partial_parity_logs() {
    let mut seen = 0;
    for (_, member) in golden::members() {
        let superblock = superblock(member);
        assert_eq!(superblock.ppl_sector().is_some(), member.ppl_current.is_some(), "{}", member.file);
        let Some((start, expected)) = superblock.ppl_sector().zip(member.ppl_current.as_ref()) else {
            continue;
        };
        let signature = ppl::signature(&superblock.set_uuid);
        assert_eq!(signature, expected.signature);
        let log = member.read(start.bytes(), usize::from(superblock.ppl_size()) * 512);
        let current = ppl::current_entries(&log, signature).expect("a current header");
        assert_eq!(current.header_offset, expected.offset * 512);
        assert_eq!(current.header_generation, expected.generation);
        assert_eq!(current.entries.len(), expected.entries.len());
        let mut end = current.header_offset + ppl::PPL_HEADER_BYTES;
        let mut again = Vec::new();
        for (entry, expected) in current.entries.iter().zip(&expected.entries) {
            assert_eq!(entry.data_sector, Sector(expected.data_sector));
            assert_eq!((entry.pp_size, entry.data_size), (expected.pp_size, expected.data_size));
            assert_eq!((entry.parity_disk, entry.checksum_ok), (expected.parity_disk, expected.checksum_ok));
            assert_eq!(entry.parity, end..end + entry.pp_size as usize);
            end = entry.parity.end;
            again.push(ppl::NewEntry {
                data_sector: entry.data_sector,
                data_size: entry.data_size,
                parity_disk: entry.parity_disk,
                parity: &log[entry.parity.clone()],
            });
            seen += 1;
        }
        let header = ppl::encode_header(signature, current.header_generation, &again);
        assert_eq!(header, log[current.header_offset..][..header.len()], "{}", member.file);
    }
    assert!(seen > 0, "an archive with logged writes");
}

#[test]
fn mdadm_reads_what_is_written_back() {
    for array in golden::arrays() {
        let (_dir, copies) = array.copy();
        for (member, copy) in array.members.iter().zip(copies) {
            let mut superblock = superblock(member);
            superblock.events.0 += 1000;
            superblock.resync_offset = Sector::MAX;
            let file = OpenOptions::new().write(true).open(&copy).unwrap();
            file.write_all_at(&superblock.encode(), SUPERBLOCK_OFFSET_BYTES).unwrap();
            let text = mdadm::examine(&copy);
            assert_eq!(mdadm::value(&text, "Events"), superblock.events.to_string());
            assert_eq!(mdadm::value(&text, "State"), "clean");
        }
    }
}
