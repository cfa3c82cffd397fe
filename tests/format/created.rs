//! What raidd creates, mdadm understands, and would have created itself.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use raidd::layout::{Level, default_layout};
use raidd::md::create::{CreateSpec, Created, NewMember, plan, raid10_sizes};
use raidd::md::{Features, Role, SUPERBLOCK_BYTES, SUPERBLOCK_OFFSET_BYTES, Superblock, parse_uuid};
use raidd::units::{MemberSlot, Sector};

use crate::golden;
use crate::mdadm;

const MIB: u64 = 2048;
const GIB: u64 = 1024 * MIB;
const TIB: u64 = 1024 * GIB;

fn spec(level: i32, layout: u32, devices: &[u64]) -> CreateSpec<'static> {
    CreateSpec {
        name: "host:vol0",
        level,
        layout,
        chunk: if level == 1 { Sector::ZERO } else { Sector(128) },
        members: devices.iter().map(|device| (*device > 0).then_some(Sector(*device))).collect(),
        spares: vec![],
        size: None,
        bitmap: false,
        ppl: false,
        clean: false,
        set_uuid: *b"0123456789abcdef",
        device_uuids: (0..).zip(devices.iter().filter(|device| **device > 0)).map(|(n, _)| [n; 16]).collect(),
        wall_seconds: 1_800_000_000,
    }
}

/// Array sectors as mdadm's --examine calculates them.
fn array_sectors(superblock: &Superblock) -> u64 {
    let (size, disks) = (superblock.size.0, u64::from(superblock.raid_disks));
    match superblock.level {
        1 => size,
        4 | 5 => size * (disks - 1),
        6 => size * (disks - 2),
        10 => size * disks / u64::from((superblock.layout & 0xff) * (superblock.layout >> 8 & 0xff)),
        level => panic!("level {level}"),
    }
}

/// Sparse files with what was created on them.
fn write(dir: &Path, created: &Created) -> Vec<PathBuf> {
    let files = created.superblocks.iter().enumerate().map(|(index, superblock)| {
        let path = dir.join(format!("{index}.img"));
        let file = File::create(&path).unwrap();
        let end = superblock.data_offset + superblock.data_size;
        file.set_len(end.bytes()).unwrap_or_else(|error| panic!("{} sparse sectors: {error}", end.0));
        let mut last = 0;
        for (offset, bytes) in created.writes(index) {
            assert!(offset % 4096 == 0 && bytes.len() % 4096 == 0, "{} bytes at {offset}", bytes.len());
            file.write_all_at(&bytes, offset).unwrap();
            last = offset;
        }
        assert_eq!(last, SUPERBLOCK_OFFSET_BYTES, "the superblock is written last");
        path
    });
    files.collect()
}

fn check(spec: &CreateSpec<'_>) {
    let created = plan(spec).unwrap_or_else(|error| panic!("{spec:?}: {error}"));
    let present = spec.members.iter().flatten().count();
    assert_eq!(created.superblocks.len(), present + spec.spares.len());
    let dir = golden::scratch();
    let state: String = spec.members.iter().map(|member| if member.is_some() { 'A' } else { '.' }).collect();
    for (path, superblock) in write(dir.path(), &created).iter().zip(&created.superblocks) {
        let text = mdadm::examine(path);
        let value = |label| mdadm::value(&text, label);
        assert_eq!(value("Version"), "1.2");
        assert_eq!(value("Array UUID"), "30313233:34353637:38396162:63646566");
        assert_eq!(value("Name").split(' ').next(), Some("host:vol0"));
        assert_eq!(value("Raid Level"), format!("raid{}", spec.level));
        assert_eq!(value("Raid Devices"), spec.members.len().to_string());
        assert_eq!(value("Array State").split(' ').next(), Some(state.as_str()), "{text}");
        assert_eq!(value("State"), if superblock.is_clean() { "clean" } else { "active" });
        let role = match superblock.role() {
            Role::Active(slot) => format!("Active device {slot}"),
            _ => "spare".to_owned(),
        };
        assert_eq!(value("Device Role"), role);
        let unused = if spec.level == 0 { Sector::ZERO } else { superblock.data_size - superblock.size };
        assert!(value("Unused Space").ends_with(&format!("after={unused} sectors")), "{text}");
        assert!(value("Bad Block Log").starts_with("512 entries"), "{text}");
        if spec.level != 0 {
            let kib = value("Array Size").split(' ').next().unwrap().parse::<u64>().unwrap();
            assert_eq!(kib, array_sectors(superblock) / 2, "{text}");
        }
        if spec.level != 1 {
            assert_eq!(value("Chunk Size"), format!("{}K", spec.chunk.0 / 2));
        }
        assert_eq!(text.contains("Internal Bitmap : 8 sectors from superblock"), spec.bitmap, "{text}");
        assert_eq!(text.contains("PPL : 2048 sectors at offset 8 sectors"), spec.ppl, "{text}");
    }
    if let Some(bytes) = &created.bitmap {
        check_bitmap(dir.path(), bytes, &created.superblocks[0]);
    }
}

/// mdadm looks for a bitmap at the start of a file that is no block device, so it gets one of its own.
fn check_bitmap(dir: &Path, bytes: &[u8], superblock: &Superblock) {
    let path = dir.join("bitmap");
    std::fs::write(&path, bytes).unwrap();
    let text = mdadm::run("--examine-bitmap", &path);
    assert_eq!(mdadm::value(&text, "Magic"), "6d746962");
    assert_eq!(mdadm::value(&text, "Version"), "4");
    assert_eq!(mdadm::value(&text, "UUID"), "30313233:34353637:38396162:63646566");
    assert_eq!(mdadm::value(&text, "State"), "OK");
    let covered = match superblock.level {
        10 => {
            raid10_sizes(superblock.layout, superblock.raid_disks, superblock.size, superblock.chunk)
                .unwrap()
                .1
        }
        _ => superblock.size,
    };
    let kib = mdadm::value(&text, "Sync Size").split(' ').next().unwrap().parse::<u64>().unwrap();
    assert_eq!(kib, covered.0 / 2, "{text}");
    assert!(mdadm::value(&text, "Bitmap").ends_with("dirty (100.0%)"), "{text}");
}

#[test]
fn every_level_from_small_to_huge() {
    // (level, layout, devices)
    let shapes: [(i32, u32, usize); 12] = [
        (0, 1, 2),
        (0, 2, 3),
        (1, 0, 2),
        (1, 0, 4),
        (4, 0, 3),
        (5, 2, 3),
        (5, 0, 5),
        (6, 2, 4),
        (6, 8, 7),
        (10, 0x102, 4),
        (10, 0x201, 3),
        (10, 0x1_0201, 5),
    ];
    for size in [5 * MIB, 8 * MIB + 13, 1000 * MIB, 9 * GIB, 300 * GIB + 7, 15 * TIB - 1] {
        for (level, layout, devices) in shapes {
            let mut wanted = spec(level, layout, &vec![size; devices]);
            check(&wanted);
            wanted.clean = true;
            wanted.bitmap = level > 0;
            check(&wanted);
        }
    }
}

/// RAID0's usual layout was one that it does not have.
#[test]
fn the_usual_layouts_can_be_created() {
    for level in Level::ALL {
        check(&spec(level.md(), default_layout(level), &[20 * MIB; 4]));
    }
}

#[test]
fn unequal_members() {
    check(&spec(0, 1, &[5 * MIB, 7 * MIB, 9 * MIB + 333]));
    check(&spec(0, 2, &[3 * TIB, TIB, 2 * TIB]));
    check(&spec(1, 0, &[100 * MIB, 90 * MIB]));
    check(&spec(5, 2, &[9 * GIB, 8 * GIB, 10 * GIB]));
}

#[test]
fn missing_members_and_spares() {
    for bitmap in [false, true] {
        for (level, layout, devices) in [
            (1, 0, &[64, 0, 64][..]),
            (4, 0, &[64, 64, 0, 64][..]),
            (5, 2, &[0, 64, 64][..]),
            (6, 2, &[64, 0, 0, 64, 64][..]),
            (10, 0x102, &[64, 64, 0, 64][..]),
            (10, 0x102, &[0, 64, 64, 0][..]),
        ] {
            let devices: Vec<u64> = devices.iter().map(|mib| mib * MIB).collect();
            let mut wanted = CreateSpec { bitmap, ..spec(level, layout, &devices) };
            check(&wanted);
            wanted.spares = vec![Sector(64 * MIB), Sector(65 * MIB)];
            wanted.device_uuids.extend([[0xee; 16], [0xff; 16]]);
            check(&wanted);
        }
    }
}

#[test]
fn partial_parity_logs_sizes_and_many_members() {
    check(&CreateSpec { ppl: true, ..spec(5, 2, &[20 * MIB; 3]) });
    check(&CreateSpec { ppl: true, clean: true, ..spec(5, 2, &[20 * MIB; 3]) });
    check(&CreateSpec { ppl: true, ..spec(5, 2, &[0, 20 * GIB, 20 * GIB]) });
    check(&CreateSpec { size: Some(Sector(4 * MIB + 100)), ..spec(5, 2, &[20 * MIB; 3]) });
    check(&CreateSpec { size: Some(Sector(100)), bitmap: true, ..spec(1, 0, &[20 * MIB; 2]) });
    check(&CreateSpec { chunk: Sector(8), bitmap: true, ..spec(6, 2, &[20 * MIB; 130]) });
    check(&CreateSpec { chunk: Sector(4096), bitmap: true, ..spec(6, 2, &[20 * MIB; 4]) });
}

/// The same devices and wishes as mdadm had for the golden arrays give the same superblocks, but for what happened since.
#[test]
fn golden_arrays_would_be_created_alike() {
    let mut seen = 0;
    for array in golden::arrays() {
        let found: Vec<_> = array
            .members
            .iter()
            .map(|member| Superblock::parse(&member.read(SUPERBLOCK_OFFSET_BYTES, SUPERBLOCK_BYTES)).unwrap())
            .collect();
        // The members in the order in which mdadm was given them, the last ones of them spares.
        let devices = array.members.iter().map(|member| Sector::ceil(member.size));
        let (members, spares): (Vec<_>, Vec<_>) =
            devices.enumerate().partition(|(index, _)| *index < array.raid_disks as usize);
        let spec = CreateSpec {
            name: &array.set_name,
            level: array.level(),
            layout: array.layout,
            chunk: Sector(array.chunk_sectors),
            members: members.into_iter().map(|(_, device)| Some(device)).collect(),
            spares: spares.into_iter().map(|(_, device)| device).collect(),
            size: None,
            bitmap: array.members[0].bitmap.is_some(),
            ppl: found[0].has_ppl(),
            clean: false,
            set_uuid: parse_uuid(&array.uuid).unwrap(),
            device_uuids: found.iter().map(|superblock| superblock.device_uuid).collect(),
            wall_seconds: found[0].ctime,
        };
        for (found, created) in found.iter().zip(plan(&spec).unwrap().superblocks) {
            let mut feature_map = found.feature_map;
            feature_map.remove(Features::RECOVERY_OFFSET);
            if feature_map.contains(Features::MULTIPLE_PPLS) {
                // As which the kernel starts a log of this size.
                feature_map = Features::PPL;
            }
            let expected = Superblock {
                // What happened since.
                feature_map,
                utime: created.utime,
                events: created.events,
                resync_offset: created.resync_offset,
                recovery_offset: created.recovery_offset,
                dev_roles: created.dev_roles.clone(),
                // mdadm made the last member of RAID5 a spare first.
                dev_number: created.dev_number,
                ..found.clone()
            };
            assert_eq!(created.dev_roles.len(), found.dev_roles.len(), "{}", array.name);
            assert_eq!(created, expected, "{}", array.name);
            seen += 1;
        }
    }
    assert!(seen > 0);
}

#[test]
fn a_small_device_is_named() {
    let error = plan(&spec(5, 2, &[20 * MIB, 20 * MIB, MIB])).unwrap_err();
    let member = NewMember::Slot(MemberSlot(2));
    assert!(error.to_string().starts_with(&format!("{member} has 1024 KiB")), "{error}");
}
