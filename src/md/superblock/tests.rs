//! What a superblock is refused for, and what comes back.

use super::bytes::{CHECKSUM_BYTES, checksum};
use super::*;

/// What nothing is wrong with: a mirror of two.
fn mirror() -> Superblock {
    Superblock {
        feature_map: Features::BITMAP,
        set_uuid: *b"0123456789abcdef",
        set_name: pack_name("host:vol0").unwrap(),
        ctime: pack_time(1_700_000_000, 7),
        level: 1,
        layout: 0,
        size: Sector(14336),
        chunk: Sector::ZERO,
        raid_disks: 2,
        bitmap_offset: 8,
        reshape: ReshapeFields::default(),
        data_offset: Sector(2048),
        data_size: Sector(14336),
        recovery_offset: Sector::ZERO,
        dev_number: 1,
        corrected_reads: 0,
        device_uuid: *b"fedcba9876543210",
        devflags: 0,
        bblog_shift: 0,
        bblog_size: 8,
        bblog_offset: 16,
        utime: 0,
        events: EventCount(17),
        resync_offset: Sector::MAX,
        dev_roles: vec![Role::Active(MemberSlot(0)), Role::Active(MemberSlot(1)), Role::Spare],
        logical_block_size: 0,
    }
}

#[test]
fn what_is_encoded_is_read_back() {
    for roles in [2, 3, 128, 129, DEV_ROLES_MAX] {
        let mut written = mirror();
        written.dev_roles.resize(roles, Role::Spare);
        written.dev_roles[roles - 1] = Role::Other(0xff00);
        let bytes = written.encode();
        assert_eq!(bytes.len() % 512, 0);
        assert_eq!(Superblock::parse(&bytes).as_ref(), Ok(&written));
        assert_eq!(Superblock::parse(&bytes[..256 + 2 * roles]), Ok(written));
        let cut = Superblock::parse(&bytes[..255 + 2 * roles]);
        assert!(matches!(cut, Err(ParseError::Short { .. })), "{cut:?}");
    }
}

#[test]
fn names_and_places() {
    let mut superblock = mirror();
    assert_eq!(superblock.name(), "vol0");
    assert_eq!(superblock.full_name(), "host:vol0");
    assert_eq!(superblock.role(), Role::Active(MemberSlot(1)));
    assert_eq!(superblock.role_of(7), Role::Spare);
    assert_eq!(superblock.bitmap_sector(), Some(Sector(16)));
    assert_eq!(superblock.bitmap_room(), Some(Sector(8)));
    assert_eq!(superblock.bad_blocks_sector(), Some(Sector(24)));
    assert_eq!((unpack_seconds(superblock.ctime), unpack_microseconds(superblock.ctime)), (1_700_000_000, 7));
    superblock.set_name = [b'x'; 32];
    assert_eq!(superblock.name(), "x".repeat(32));
    assert_eq!(pack_name(&"x".repeat(31)).map(|raw| raw[30..].to_vec()), Some(vec![b'x', 0]));
    assert_eq!(pack_name(&"x".repeat(32)), None);

    superblock.feature_map = Features::MULTIPLE_PPLS;
    superblock.set_ppl(8, 2024);
    assert_eq!((superblock.ppl_offset(), superblock.ppl_size()), (8, 2024));
    assert_eq!(superblock.ppl_sector(), Some(Sector(16)));
    superblock.set_ppl(8, 2033);
    assert_eq!(superblock.ppl_sector(), None, "a sector of it would be data");
    superblock.set_ppl(-8, 8);
    assert_eq!(superblock.ppl_sector(), None);
}

#[test]
fn impossible_numbers_are_refused() {
    type Spoil = fn(&mut Superblock);
    let spoils: [(&str, Spoil); 17] = [
        ("no disks", |s| s.raid_disks = 0),
        ("too many disks", |s| s.raid_disks = 1921),
        ("no room for the superblock", |s| s.data_offset = Sector(8)),
        ("no data", |s| s.data_size = Sector(9)),
        ("sum overflows", |s| s.data_offset = Sector(u64::MAX)),
        ("beyond 2^63 bytes", |s| s.data_size = Sector(1 << 53)),
        ("component larger than the member", |s| s.size = Sector(14337)),
        ("events cannot be raised", |s| s.events = EventCount(u64::MAX)),
        ("no chunk", |s| (s.level, s.chunk) = (0, Sector::ZERO)),
        ("parity chunk no power of two", |s| (s.level, s.chunk) = (5, Sector(24))),
        ("parity chunk below a page", |s| (s.level, s.chunk) = (5, Sector(4))),
        ("bitmap in the data", |s| s.bitmap_offset = 2040),
        ("bitmap over the superblock", |s| s.bitmap_offset = 0),
        ("bitmap before the superblock", |s| s.bitmap_offset = -8),
        ("log over the bitmap", |s| {
            s.feature_map.insert(Features::BAD_BLOCKS);
            s.bblog_offset = 8;
        }),
        ("log in the partial parity log", |s| {
            s.feature_map = Features::BAD_BLOCKS | Features::PPL;
            s.set_ppl(8, 2024);
        }),
        ("log in the data", |s| {
            s.feature_map = Features::BAD_BLOCKS;
            s.bblog_offset = 2033;
        }),
    ];
    assert_eq!(mirror().validate(), Ok(()));
    for (what, spoil) in spoils {
        let mut superblock = mirror();
        spoil(&mut superblock);
        let parsed = Superblock::parse(&superblock.encode());
        assert!(matches!(parsed, Err(ParseError::Field { .. } | ParseError::Place(_))), "{what}: {parsed:?}");
    }
}

#[test]
fn what_raidd_cannot_do_is_said() {
    type Spoil = fn(&mut Superblock);
    let spoils: [(&str, Spoil); 9] = [
        ("reshape", |s| s.feature_map.insert(Features::RESHAPE)),
        ("backwards reshape", |s| s.feature_map.insert(Features::RESHAPE_BACKWARDS)),
        ("moving its data", |s| s.feature_map.insert(Features::NEW_OFFSET)),
        ("clustered", |s| s.feature_map.insert(Features::CLUSTERED)),
        ("journal", |s| s.feature_map.insert(Features::JOURNAL)),
        ("0x80002000", |s| s.feature_map.insert(Features(0x8000_2000))),
        ("both", |s| s.feature_map.insert(Features::PPL)),
        ("linear", |s| s.level = -1),
        ("level 7", |s| s.level = 7),
    ];
    assert_eq!(mirror().unsupported(), None);
    for (word, spoil) in spoils {
        let mut superblock = mirror();
        spoil(&mut superblock);
        let why = superblock.unsupported().unwrap_or_default();
        assert!(why.contains(word), "{word}: {why}");
    }
}

#[test]
fn other_formats_are_named() {
    let good = mirror().encode();
    let spoilt = |at: usize, byte: u8| {
        let mut bytes = good.clone();
        bytes[at] = byte;
        let end = 256 + 2 * 3;
        let sum = checksum(&bytes[..end]);
        bytes[CHECKSUM_BYTES].copy_from_slice(&sum.to_le_bytes());
        Superblock::parse(&bytes)
    };
    assert_eq!(spoilt(0, 0), Err(ParseError::NotMd));
    assert_eq!(spoilt(4, 0), Err(ParseError::WrongVersion(0)));
    assert_eq!(spoilt(144, 0), Err(ParseError::WrongPlace(0)));
    assert_eq!(spoilt(12, 1), Err(ParseError::Reserved));
    assert_eq!(spoilt(255, 1), Err(ParseError::Reserved));
    assert_eq!(spoilt(221, 0xff), Err(ParseError::TooManyRoles(0xff03)));
    assert_eq!(spoilt(225, 16).map(|superblock| superblock.logical_block_size), Ok(4096));
    assert_eq!(Superblock::parse(&[]), Err(ParseError::Short { have: 0, need: 256 }));
}
