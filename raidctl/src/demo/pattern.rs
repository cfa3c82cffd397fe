//! Data that looks random and that anybody can work out again from its place.

/// Which of endless different contents; each is as good as random and shares nothing with the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pattern(pub u64);

/// Bytes made at a time; offsets and lengths are multiples of it.
pub const WORD_BYTES: usize = 8;

impl Pattern {
    /// The content of `data`, which lies at `offset_bytes`. Both are multiples of [`WORD_BYTES`].
    pub fn fill(self, offset_bytes: u64, data: &mut [u8]) {
        assert!(offset_bytes.is_multiple_of(WORD_BYTES as u64) && data.len().is_multiple_of(WORD_BYTES));
        let first = offset_bytes / WORD_BYTES as u64;
        for (index, word) in (first..).zip(data.chunks_exact_mut(WORD_BYTES)) {
            word.copy_from_slice(&self.word(index).to_le_bytes());
        }
    }

    /// How many bytes of `data`, which lies at `offset_bytes`, differ, and where the first of them is.
    pub fn compare(self, offset_bytes: u64, data: &[u8]) -> Difference {
        assert!(offset_bytes.is_multiple_of(WORD_BYTES as u64) && data.len().is_multiple_of(WORD_BYTES));
        let mut difference = Difference::default();
        let first = offset_bytes / WORD_BYTES as u64;
        for (index, found) in (first..).zip(data.chunks_exact(WORD_BYTES)) {
            let expected = self.word(index).to_le_bytes();
            if found != expected {
                let places = (0..WORD_BYTES).filter(|place| found[*place] != expected[*place]);
                for place in places {
                    difference.bytes += 1;
                    difference.first.get_or_insert(index * WORD_BYTES as u64 + place as u64);
                }
            }
        }
        difference
    }

    /// SplitMix64 (Steele, Lea, Flood: Fast splittable pseudorandom number generators), jumped to its `index`.
    fn word(self, index: u64) -> u64 {
        let mut word = self.0.wrapping_add(index.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        word = (word ^ word >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ word >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^ word >> 31
    }
}

/// What a comparison found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Difference {
    /// Bytes that differ.
    pub bytes: u64,
    /// Where the first of them is.
    pub first: Option<u64>,
}

impl Difference {
    /// Both together.
    pub fn and(self, other: Difference) -> Difference {
        let first = match (self.first, other.first) {
            (Some(one), Some(two)) => Some(one.min(two)),
            (one, two) => one.or(two),
        };
        Difference { bytes: self.bytes + other.bytes, first }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_generator_is_splitmix64() {
        // The first numbers for seed 1234567, as published with the reference implementation (prng.di.unimi.it).
        let mut data = [0; 24];
        Pattern(1_234_567).fill(0, &mut data);
        let words: Vec<u64> =
            data.chunks_exact(8).map(|word| u64::from_le_bytes(word.try_into().unwrap())).collect();
        assert_eq!(words, [6_457_827_717_110_365_317, 3_203_168_211_198_807_973, 9_817_491_932_198_370_423]);
    }

    #[test]
    fn a_part_is_a_part_of_the_whole() {
        let mut whole = vec![0; 4096];
        Pattern(7).fill(1 << 40, &mut whole);
        let mut part = vec![0; 512];
        Pattern(7).fill((1 << 40) + 1024, &mut part);
        assert_eq!(part, whole[1024..1536]);
        assert_eq!(Pattern(7).compare(1 << 40, &whole), Difference::default());
    }

    #[test]
    fn a_single_wrong_bit_is_found() {
        let mut data = vec![0; 4096];
        Pattern(7).fill(8192, &mut data);
        data[100] ^= 1;
        data[200] ^= 0x80;
        assert_eq!(Pattern(7).compare(8192, &data), Difference { bytes: 2, first: Some(8292) });
        assert!(Pattern(8).compare(8192, &data).bytes > 4000);
        let other = Difference { bytes: 1, first: Some(3) };
        assert_eq!(Pattern(7).compare(8192, &data).and(other), Difference { bytes: 3, first: Some(3) });
        assert_eq!(Difference::default().and(other), other);
    }
}
