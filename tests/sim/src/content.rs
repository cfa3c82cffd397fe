//! What writes put there: bytes that follow from the write's number and their place in the array, so that whoever reads
//! them can tell whose they are, and a byte in the wrong place is a wrong byte.

use crate::random::mix;

/// What a write leaves behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// Nobody can say: what was there before the array.
    Anything,
    /// Zeroes.
    Zeroes,
    /// Bytes made from this number.
    Made(u32),
}

const SECTOR: u64 = 512;
const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

fn base(number: u32, sector: u64) -> u64 {
    mix(u64::from(number) << 36 ^ sector)
}

fn word(base: u64, index: u64) -> u64 {
    base.wrapping_add(index.wrapping_mul(STEP))
}

impl Content {
    /// Fills `out` with what lies at this byte of the array.
    pub fn fill(self, place: u64, out: &mut [u8]) {
        let Content::Made(number) = self else {
            out.fill(0);
            return;
        };
        each_part(place, out.len(), |sector, within, range| {
            let base = base(number, sector);
            let part = &mut out[range];
            if within.is_multiple_of(8) && part.len().is_multiple_of(8) {
                for (index, bytes) in part.chunks_exact_mut(8).enumerate() {
                    bytes.copy_from_slice(&word(base, within / 8 + index as u64).to_le_bytes());
                }
            } else {
                for (index, byte) in part.iter_mut().enumerate() {
                    let place = within + index as u64;
                    *byte = word(base, place / 8).to_le_bytes()[(place % 8) as usize];
                }
            }
        });
    }

    /// Whether these bytes, which lie at this place of the array, are its.
    pub fn is(self, place: u64, bytes: &[u8]) -> bool {
        let number = match self {
            Content::Anything => return true,
            Content::Zeroes => return bytes.iter().all(|&byte| byte == 0),
            Content::Made(number) => number,
        };
        let mut same = true;
        each_part(place, bytes.len(), |sector, within, range| {
            let base = base(number, sector);
            let part = &bytes[range];
            if within.is_multiple_of(8) && part.len().is_multiple_of(8) {
                let mut difference = 0;
                for (index, bytes) in part.chunks_exact(8).enumerate() {
                    let found = u64::from_le_bytes(bytes.try_into().expect("eight bytes"));
                    difference |= found ^ word(base, within / 8 + index as u64);
                }
                same &= difference == 0;
            } else {
                same &= part.iter().enumerate().all(|(index, &byte)| {
                    let place = within + index as u64;
                    byte == word(base, place / 8).to_le_bytes()[(place % 8) as usize]
                });
            }
        });
        same
    }
}

/// Cuts a range of the array into parts of sectors: (sector, byte within it, range within the whole).
fn each_part(place: u64, len: usize, mut part: impl FnMut(u64, u64, std::ops::Range<usize>)) {
    let mut at = 0;
    while at < len {
        let here = place + at as u64;
        let step = ((SECTOR - here % SECTOR) as usize).min(len - at);
        part(here / SECTOR, here % SECTOR, at..at + step);
        at += step;
    }
}
