//! The numbers that mdadm 4.2 chooses, and what is refused.

use super::*;

const MIB: u64 = 2048;
const GIB: u64 = 1024 * MIB;

fn spec(level: i32, devices: &[u64]) -> CreateSpec<'static> {
    let layout = match level {
        0 => 1,
        5 | 6 => 2,
        10 => 0x102,
        _ => 0,
    };
    CreateSpec {
        name: "rig:0",
        level,
        layout,
        chunk: Sector(1024),
        members: devices.iter().map(|device| (*device > 0).then_some(Sector(*device))).collect(),
        spares: vec![],
        size: None,
        bitmap: false,
        ppl: false,
        clean: false,
        set_uuid: *b"0123456789abcdef",
        device_uuids: devices.iter().filter(|device| **device > 0).map(|_| [9; 16]).collect(),
        wall_seconds: 1_800_000_000,
    }
}

#[test]
fn data_offsets_as_mdadm_chooses_them() {
    let table = [
        (3 * MIB, 128, false, 2048),
        (5 * MIB, 512, false, 2048),
        (5 * MIB, 1024, false, 4096),
        (100 * MIB, 0, false, 2048),
        (8 * GIB, 1024, false, 18432),
        (20 * GIB, 1024, false, 34816),
        (130 * GIB, 1024, false, 264_192),
        (15_000 * GIB, 0, false, 264_192),
        (8 * MIB, 128, true, 4096),
    ];
    for (device, chunk, ppl, expected) in table {
        let offset = data_offset(Sector(device), Sector(chunk), ppl);
        assert_eq!(offset, Sector(expected), "{device} {chunk} {ppl}");
    }
}

#[test]
fn sizes_and_places_as_mdadm_chooses_them() {
    // (level, devices, bitmap, ppl) -> size, bblog_offset; the first as in an array that mdadm made.
    let table: [(i32, [u64; 4], bool, bool, u64, i32); 9] = [
        (1, [8 * MIB; 4], true, false, 14336, 16),
        (1, [8 * MIB + 100; 4], false, false, 14336, 16),
        (1, [20 * GIB; 4], false, false, 20 * GIB - 34816, 136),
        (5, [7 * MIB; 4], false, false, 10240, 16),
        (5, [7 * MIB, 6 * MIB + 5, 7 * MIB, 7 * MIB], false, false, 8192, 16),
        (5, [8 * MIB; 4], false, true, 10240, 2056),
        (6, [300 * GIB; 4], true, false, 300 * GIB - 264_192, 16),
        (10, [7 * MIB; 4], true, false, 10240, 16),
        (0, [20 * GIB; 4], false, false, 0, 8),
    ];
    for (level, devices, bitmap, ppl, size, bblog_offset) in table {
        let created = plan(&CreateSpec { bitmap, ppl, ..spec(level, &devices) }).unwrap();
        for (superblock, device) in created.superblocks.iter().zip(devices) {
            let what = format!("level {level} of {devices:?}");
            assert_eq!(superblock.size, Sector(size), "{what}");
            assert_eq!(superblock.bblog_offset, bblog_offset, "{what}");
            assert_eq!(superblock.data_size + superblock.data_offset, Sector(device), "{what}");
            assert_eq!(superblock.dev_roles.len(), 128);
            assert_eq!(Superblock::parse(&superblock.encode()).as_ref(), Ok(superblock));
        }
    }
}

#[test]
fn bitmap_chunks_as_mdadm_chooses_them() {
    let bitmap = |level, devices: &[u64]| {
        let created = plan(&CreateSpec { bitmap: true, ..spec(level, devices) }).unwrap();
        let bytes = created.bitmap.unwrap();
        assert_eq!(bytes.len() % 4096, 0);
        let bitmap = Bitmap::parse(&bytes).unwrap();
        assert_eq!(bitmap.set_chunks().count() as u64, bitmap.chunk_count());
        let room = created.superblocks[0].bitmap_room().unwrap();
        assert!(bytes.len() as u64 <= room.bytes());
        (bitmap.superblock.chunk_bytes, bitmap.superblock.sync_size)
    };
    assert_eq!(bitmap(1, &[8 * MIB; 2]), (64 << 20, Sector(14336)));
    assert_eq!(bitmap(5, &[15_000 * GIB; 3]).0, 64 << 20);
    assert_eq!(bitmap(5, &[100_000 * GIB; 3]).0, 128 << 20);
    assert_eq!(bitmap(10, &[7 * MIB; 4]), (64 << 20, Sector(20480)));
    assert_eq!(bitmap(10, &[7 * MIB; 3]), (64 << 20, Sector(15360)));
}

#[test]
fn raid10_uses_whole_rows_only() {
    // Seven rows of which far copies can use six; three near copies on five members.
    let sizes = |layout, disks, rows: u64| raid10_sizes(layout, disks, Sector(rows * 8), Sector(8)).unwrap();
    assert_eq!(sizes(0x102, 4, 7), (Sector(56), Sector(112)));
    assert_eq!(sizes(0x201, 4, 7), (Sector(48), Sector(96)));
    assert_eq!(sizes(0x103, 5, 7), (Sector(56), Sector(88)));
    assert_eq!(sizes(0x1_0201, 3, 7), (Sector(48), Sector(72)));
    assert_eq!(raid10_sizes(0, 4, Sector(56), Sector(8)), None);
    assert_eq!(raid10_sizes(0x102, 4, Sector(56), Sector(0)), None);
}

#[test]
fn members_missing_and_spare() {
    let mut with_spare = spec(5, &[8 * MIB, 0, 8 * MIB]);
    with_spare.spares = vec![Sector(9 * MIB)];
    with_spare.device_uuids.push([8; 16]);
    let created = plan(&with_spare).unwrap();
    assert_eq!(created.superblocks.len(), 3);
    let numbers: Vec<_> = created.superblocks.iter().map(|s| (s.dev_number, s.role())).collect();
    let slot = |slot| Role::Active(MemberSlot(slot));
    assert_eq!(numbers, [(0, slot(0)), (2, slot(2)), (3, Role::Spare)]);
    assert_eq!(created.superblocks[0].dev_roles[..4], [slot(0), Role::Spare, slot(2), Role::Spare]);
    assert!(created.superblocks[0].is_clean(), "degraded, so consistent by definition");
    assert_eq!(created.writes(2).last().map(|(at, bytes)| (*at, bytes.len())), Some((4096, 4096)));

    assert!(!plan(&spec(5, &[8 * MIB; 3])).unwrap().superblocks[0].is_clean());
    assert!(!plan(&spec(1, &[8 * MIB, 0, 8 * MIB])).unwrap().superblocks[0].is_clean());
    assert!(plan(&spec(0, &[8 * MIB; 2])).unwrap().superblocks[0].is_clean());
    assert!(plan(&spec(6, &[8 * MIB, 0, 0, 8 * MIB])).unwrap().superblocks[0].is_clean());
    assert_eq!(plan(&spec(6, &[8 * MIB, 0, 8 * MIB, 8 * MIB])).unwrap_err(), CreateError::Raid6OneMissing);
    assert!(plan(&CreateSpec { clean: true, ..spec(6, &[8 * MIB, 0, 8 * MIB, 8 * MIB]) }).is_ok());

    let raid10 = |layout, devices: &[u64]| plan(&CreateSpec { layout, ..spec(10, devices) });
    let (here, gone) = (8 * MIB, 0);
    assert!(raid10(0x102, &[here, gone, gone, here]).is_ok());
    assert!(raid10(0x102, &[gone, gone, here, here]).is_err());
    assert!(raid10(0x201, &[gone, here, gone, here]).is_ok());
    assert!(raid10(0x201, &[here, gone, gone, here]).is_err());
    assert!(raid10(0x102, &[gone, gone, here]).is_err());
    assert!(raid10(0x103, &[gone, gone, here]).is_ok());
}

#[test]
fn raid0_of_unequal_members_records_its_layout() {
    let features = |devices: &[u64]| plan(&spec(0, devices)).unwrap().superblocks[0].feature_map;
    assert_eq!(features(&[8 * MIB; 3]), Features::NONE);
    assert_eq!(features(&[8 * MIB, 8 * MIB + 1000]), Features::NONE);
    assert_eq!(features(&[8 * MIB, 9 * MIB]), Features::RAID0_LAYOUT);
}

#[test]
fn what_cannot_be_is_refused() {
    type Spoil = fn(&mut CreateSpec<'static>);
    let spoils: [(&str, Spoil); 22] = [
        ("no level", |s| s.level = 7),
        ("no level", |s| s.level = -1),
        ("chunk of 12288", |s| s.chunk = Sector(24)),
        ("chunk of 2048", |s| s.chunk = Sector(4)),
        ("chunk of 0 bytes does not do at level 0", |s| (s.level, s.chunk) = (0, Sector(0))),
        ("chunk of", |s| s.chunk = Sector(1 << 22)),
        ("chunk of", |s| s.chunk = Sector(1 << 63)),
        ("layout 0x6", |s| s.layout = 6),
        ("layout 0x501", |s| (s.level, s.layout) = (10, 0x501)),
        ("layout 0x101", |s| (s.level, s.layout) = (10, 0x101)),
        ("needs 4 members", |s| {
            s.level = 6;
            s.members.pop();
        }),
        ("2 members missing", |s| (s.members[0], s.members[1]) = (None, None)),
        ("1 members missing", |s| (s.level, s.layout, s.members[0]) = (0, 1, None)),
        ("member 3 has 5120 KiB", |s| (s.members[3], s.size) = (Some(Sector(10240)), Some(Sector(8192)))),
        ("less than the least", |s| s.size = Some(Sector(1023))),
        ("takes no size", |s| (s.level, s.layout, s.size) = (0, 1, Some(Sector(4096)))),
        ("too large", |s| s.members = vec![Some(Sector(1 << 53)); 4]),
        ("not both", |s| (s.bitmap, s.ppl) = (true, true)),
        ("level 0 has no redundancy", |s| (s.level, s.layout, s.bitmap) = (0, 1, true)),
        ("for level 5", |s| (s.level, s.ppl) = (6, true)),
        ("cannot be an array's name", |s| s.name = "a name that is longer than it fits"),
        ("cannot be an array's name", |s| s.name = "a\nb"),
    ];
    for (why, spoil) in spoils {
        let mut spoilt = spec(5, &[8 * MIB; 4]);
        spoil(&mut spoilt);
        let error = plan(&spoilt).expect_err(why).to_string();
        assert!(error.contains(why), "{why}: {error}");
    }
    assert_eq!(set_name("rig", "vol0"), "rig:vol0");
    assert_eq!(set_name("rig", "a:b"), "a:b");
    assert_eq!(set_name("", "b"), "b");
    assert_eq!(set_name(&"h".repeat(27), "vol0"), "vol0");
    assert_eq!(set_name(&"h".repeat(26), "vol0").len(), 31);
}
