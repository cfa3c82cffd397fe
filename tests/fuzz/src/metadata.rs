//! What a device may hold where metadata is expected: superblocks, bitmaps, bad-block logs, partial parity logs.

use raidd::md::{Bitmap, SUPERBLOCK_BYTES, Superblock, bad_blocks, ppl};
use raidd::units::Sector;

/// Roles that fit what is read of a device.
const ROLES_AT: usize = 220;
const CHECKSUM_AT: std::ops::Range<usize> = 216..220;
const HEADER_BYTES: usize = 256;

/// The first byte says what the rest is taken for. What can be read must come back the same from its own bytes.
pub fn metadata(data: &[u8]) {
    let Some((&first, bytes)) = data.split_first() else { return };
    match first % 4 {
        0 => superblock(bytes),
        1 => bitmap(bytes),
        2 => {
            if let Some((&shift, log)) = bytes.split_first() {
                bad_blocks::parse(log, shift, Sector(2048)).ok();
            }
        }
        _ => {
            // Half of the time the signature is the one that is there.
            let there =
                bytes.get(512..516).map_or(0, |word| u32::from_le_bytes(word.try_into().expect("four")));
            ppl::current_entries(bytes, if first & 4 == 0 { there } else { 7 });
        }
    }
}

fn superblock(bytes: &[u8]) {
    let mut bytes = bytes.to_vec();
    bytes.resize(SUPERBLOCK_BYTES.max(bytes.len()), 0);
    // With a right checksum, or nothing behind it would ever be looked at.
    let roles = u32::from_le_bytes(bytes[ROLES_AT..ROLES_AT + 4].try_into().expect("four"));
    let end = (HEADER_BYTES + 2 * roles.min(4096) as usize).min(bytes.len());
    bytes[CHECKSUM_AT].fill(0);
    let sum = checksum(&bytes[..end]);
    bytes[CHECKSUM_AT].copy_from_slice(&sum.to_le_bytes());
    if let Ok(superblock) = Superblock::parse(&bytes) {
        let again = Superblock::parse(&superblock.encode()).expect("what was written can be read");
        assert!(again.encode() == superblock.encode());
        superblock.unsupported();
        assert!(!superblock.name().contains('\0'));
    }
}

/// md's own: the sum of little-endian words, an odd half word at the end, its upper half folded into the lower.
fn checksum(bytes: &[u8]) -> u32 {
    let words = bytes.chunks_exact(4);
    let rest = words.remainder();
    let mut sum: u64 = words.map(|word| u64::from(u32::from_le_bytes(word.try_into().expect("four")))).sum();
    if let [low, high] = rest {
        sum += u64::from(u16::from_le_bytes([*low, *high]));
    }
    (sum as u32).wrapping_add((sum >> 32) as u32)
}

fn bitmap(bytes: &[u8]) {
    if let Ok(bitmap) = Bitmap::parse(bytes) {
        let again = Bitmap::parse(&bitmap.encode()).expect("what was written can be read");
        assert!(again.encode() == bitmap.encode());
        assert!(bitmap.set_ranges().len() as u64 <= bitmap.chunk_count());
    }
}
