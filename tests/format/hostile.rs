//! What nobody wrote is refused: random bytes, flipped bits, and fields made up under a right checksum never panic and
//! never give numbers that cannot be calculated with.

use proptest::prelude::*;
use raidd::md::bitmap::Bitmap;
use raidd::md::{Role, SUPERBLOCK_BYTES, SUPERBLOCK_OFFSET_BYTES, Superblock, bad_blocks, ppl};
use raidd::units::Sector;

use crate::golden;

/// Uses everything that a superblock offers, as the engine would.
fn exercise(superblock: &Superblock) {
    let end = superblock.data_offset + superblock.data_size;
    assert!(end.bytes().checked_mul(superblock.raid_disks.into()).is_some_and(|all| all <= 1 << 63));
    assert!(superblock.size <= superblock.data_size || superblock.role() == Role::Journal);
    for role in &superblock.dev_roles {
        assert!(role.slot().is_none_or(|slot| u32::from(slot.0) < superblock.raid_disks));
    }
    if matches!(superblock.level, 0 | 4 | 5 | 6 | 10) {
        assert!(superblock.chunk.0 > 0);
    }
    for place in [superblock.bitmap_sector(), superblock.ppl_sector(), superblock.bad_blocks_sector()] {
        assert!(place.is_none_or(|place| place > Sector(8) && place < superblock.data_offset));
    }
    assert!(superblock.bitmap_room().is_none_or(|room| room > Sector::ZERO && room < superblock.data_offset));
    assert!(superblock.events.0.checked_add(1 << 60).is_some());
    let _text = (superblock.name(), superblock.unsupported(), format!("{superblock:?}"));
}

/// The checksum, by the book: see docs/on-disk-format.md.
fn sign(bytes: &mut [u8]) {
    let max_dev = u32::from_le_bytes(bytes[220..224].try_into().unwrap()) as usize;
    let end = (256 + 2 * max_dev).min(bytes.len());
    bytes[216..220].fill(0);
    let words = bytes[..end].chunks(4).map(|word| {
        let mut whole = [0; 4];
        whole[..word.len()].copy_from_slice(word);
        u64::from(u32::from_le_bytes(whole))
    });
    let sum: u64 = words.sum();
    let folded = (sum & 0xffff_ffff) + (sum >> 32);
    bytes[216..220].copy_from_slice(&(folded as u32).to_le_bytes());
}

/// Values that like to break arithmetic, of one to eight bytes.
fn nasty() -> impl Strategy<Value = Vec<u8>> {
    let number = prop_oneof![
        any::<u64>(),
        (0u32..64).prop_map(|shift| 1 << shift),
        (0u32..64).prop_map(|shift| (1 << shift) - 1),
        (0u32..64).prop_map(|shift| u64::MAX - (1 << shift)),
        0u64..4096,
        Just(u64::MAX),
    ];
    (number, prop_oneof![Just(1), Just(2), Just(4), Just(8)])
        .prop_map(|(number, bytes): (u64, usize)| number.to_le_bytes()[..bytes].to_vec())
}

#[test]
fn a_flipped_bit_in_a_superblock_is_noticed() {
    for (_, member) in golden::members() {
        let good = member.read(SUPERBLOCK_OFFSET_BYTES, SUPERBLOCK_BYTES);
        let covered = 256 + 2 * Superblock::parse(&good).unwrap().dev_roles.len();
        let mut bytes = good.clone();
        for bit in 0..covered * 8 {
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(Superblock::parse(&bytes).is_err(), "{}: bit {bit}", member.file);
            bytes[bit / 8] ^= 1 << (bit % 8);
        }
        assert_eq!(bytes, good);
    }
}

#[test]
fn a_flipped_bit_in_a_partial_parity_log_is_noticed() {
    let mut seen = 0;
    for (_, member) in golden::members().filter(|(_, member)| member.ppl_current.is_some()) {
        let bytes = member.read(SUPERBLOCK_OFFSET_BYTES, SUPERBLOCK_BYTES);
        let superblock = Superblock::parse(&bytes).unwrap();
        let signature = ppl::signature(&superblock.set_uuid);
        let place = superblock.ppl_sector().unwrap();
        let mut log = member.read(place.bytes(), usize::from(superblock.ppl_size()) * 512);
        let good = ppl::current_entries(&log, signature).unwrap();
        let end = good.entries.last().unwrap().parity.end;
        for byte in (good.header_offset..end).step_by(37) {
            log[byte] ^= 4;
            let found = ppl::current_entries(&log, signature);
            let told = found.is_none_or(|found| {
                found.header_offset != good.header_offset
                    || found.entries.iter().any(|entry| !entry.checksum_ok)
            });
            assert!(told, "{}: byte {byte} of the log", member.file);
            log[byte] ^= 4;
            seen += 1;
        }
    }
    assert!(seen > 0);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_bytes_are_answered(bytes in prop::collection::vec(any::<u8>(), 0..6000), shift: u8, offset: u64) {
        prop_assert!(Superblock::parse(&bytes).is_err());
        prop_assert!(Bitmap::parse(&bytes).is_err());
        prop_assert!(ppl::current_entries(&bytes, 0).is_none());
        if let Ok(ranges) = bad_blocks::parse(&bytes, shift, Sector(offset)) {
            for pair in ranges.windows(2) {
                prop_assert!(pair[0].0 + pair[0].1 < pair[1].0, "ascending and apart");
            }
            prop_assert!(ranges.iter().all(|(_, length)| length.0 > 0));
        }
    }

    #[test]
    fn made_up_superblocks_are_refused_or_sound(
        which in 0usize..1000,
        changes in prop::collection::vec((0usize..300, nasty()), 1..5),
    ) {
        let count = golden::members().count();
        let (_, member) = golden::members().nth(which % count).unwrap();
        let mut bytes = member.read(SUPERBLOCK_OFFSET_BYTES, SUPERBLOCK_BYTES);
        for (at, value) in changes {
            // Fields lie at multiples of their size.
            let at = at - at % value.len();
            bytes[at..at + value.len()].copy_from_slice(&value);
        }
        sign(&mut bytes);
        if let Ok(superblock) = Superblock::parse(&bytes) {
            exercise(&superblock);
            let encoded = superblock.encode();
            let end = 256 + 2 * superblock.dev_roles.len();
            prop_assert_eq!(&encoded[..end], &bytes[..end]);
            prop_assert!(encoded[end..].iter().all(|byte| *byte == 0));
        }
    }

    #[test]
    fn made_up_bitmaps_are_refused_or_sound(changes in prop::collection::vec((0usize..256, nasty()), 1..4)) {
        let (_, member) = golden::members().find(|(_, member)| member.bitmap.is_some()).unwrap();
        let mut bytes = member.read(8192, 4096);
        prop_assert!(Bitmap::parse(&bytes).is_ok());
        for (at, value) in changes {
            let at = at - at % value.len();
            bytes[at..at + value.len()].copy_from_slice(&value);
        }
        if let Ok(bitmap) = Bitmap::parse(&bytes) {
            let encoded = bitmap.encode();
            prop_assert!(encoded.len() <= bytes.len());
            prop_assert_eq!(&encoded[..], &bytes[..encoded.len()]);
            let covered: u64 = bitmap.set_ranges().iter().map(|(_, length)| length.0).sum();
            prop_assert!(covered <= bitmap.superblock.sync_size.0);
            prop_assert_eq!(covered == 0, bitmap.is_clear());
        }
    }

    #[test]
    fn made_up_partial_parity_logs_are_sound(
        changes in prop::collection::vec((512usize..4096, nasty()), 0..6),
        length in 0usize..20_000,
    ) {
        let mut log = ppl::encode_header(7, 1, &[]);
        log.resize(20_000, 0x5a);
        for (at, value) in changes {
            let at = (at - at % value.len()).min(4088);
            log[at..at + value.len()].copy_from_slice(&value);
        }
        log[512..516].copy_from_slice(&7u32.to_le_bytes());
        log[532..536].fill(0);
        let crc = crc_fast::checksum(crc_fast::CrcAlgorithm::Crc32Iscsi, &log[..4096]);
        log[532..536].copy_from_slice(&(crc as u32).to_le_bytes());
        log.truncate(length);
        if let Some(current) = ppl::current_entries(&log, 7) {
            for entry in &current.entries {
                prop_assert!(entry.parity.end <= log.len());
                prop_assert!(!entry.checksum_ok || entry.parity.len() == entry.pp_size as usize);
            }
        }
    }
}
