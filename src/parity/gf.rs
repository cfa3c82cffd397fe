//! GF(2^8) as RAID6 uses it: polynomials over GF(2) modulo x^8 + x^4 + x^3 + x^2 + 1 (0x11d), with g = x = 2 as generator.
//!
//! Addition is XOR. This is arithmetic on single bytes and the constants that the kernels multiply whole vectors with;
//! it is the field of the kernel's `lib/raid6`, and not AES's (0x11b), which is the one that `gf2p8mulb` multiplies in.

/// What x^8 is, as the other powers of x: the polynomial without its x^8.
pub(super) const POLYNOMIAL: u8 = 0x1d;

/// Powers of g that differ: g^255 is 1 again.
pub(super) const ORDER: usize = 255;

/// g^exponent.
pub(super) const fn power(exponent: u8) -> u8 {
    POWERS[exponent as usize % ORDER]
}

/// a * b.
pub(super) const fn multiply(a: u8, b: u8) -> u8 {
    if a == 0 || b == 0 {
        return 0;
    }
    POWERS[(LOGARITHMS[a as usize] as usize + LOGARITHMS[b as usize] as usize) % ORDER]
}

/// 1 / a. Panics if a is zero.
pub(super) const fn inverse(a: u8) -> u8 {
    assert!(a != 0, "zero has no inverse");
    POWERS[(ORDER - LOGARITHMS[a as usize] as usize) % ORDER]
}

const POWERS: [u8; ORDER] = {
    let mut powers = [1; ORDER];
    let mut exponent = 1;
    while exponent < ORDER {
        let last: u8 = powers[exponent - 1];
        powers[exponent] = (last << 1) ^ if last & 0x80 == 0 { 0 } else { POLYNOMIAL };
        exponent += 1;
    }
    powers
};

/// The exponent of each byte but zero.
const LOGARITHMS: [u8; 256] = {
    let mut logarithms = [0; 256];
    let mut exponent = 0;
    while exponent < ORDER {
        logarithms[POWERS[exponent] as usize] = exponent as u8;
        exponent += 1;
    }
    logarithms
};

/// The products of a factor with every low half of a byte, and with every high half: what byte shuffles look up. The
/// product with a byte is the sum of the products with its halves.
#[cfg_attr(not(any(target_arch = "x86_64", target_arch = "aarch64")), allow(dead_code))]
pub(super) const fn half_products(factor: u8) -> ([u8; 16], [u8; 16]) {
    HALF_PRODUCTS[factor as usize]
}

/// Multiplication with a factor as the 8x8 bit matrix that `gf2p8affineqb` takes: bit i of the result is the parity of
/// the matrix's byte 7-i AND the operand (Intel SDM, GF2P8AFFINEQB).
#[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]
pub(super) const fn affine_matrix(factor: u8) -> u64 {
    AFFINE_MATRICES[factor as usize]
}

const HALF_PRODUCTS: [([u8; 16], [u8; 16]); 256] = {
    let mut products = [([0; 16], [0; 16]); 256];
    let mut factor = 0;
    while factor < 256 {
        let mut half = 0;
        while half < 16 {
            products[factor].0[half] = multiply(factor as u8, half as u8);
            products[factor].1[half] = multiply(factor as u8, (half as u8) << 4);
            half += 1;
        }
        factor += 1;
    }
    products
};

const AFFINE_MATRICES: [u64; 256] = {
    let mut matrices = [0; 256];
    let mut factor = 0;
    while factor < 256 {
        let mut bit = 0;
        while bit < 8 {
            let column = multiply(factor as u8, 1 << bit); // what this bit of the operand adds to the result
            let mut row = 0;
            while row < 8 {
                if column >> row & 1 == 1 {
                    matrices[factor] |= 1 << ((7 - row) * 8 + bit);
                }
                row += 1;
            }
            bit += 1;
        }
        factor += 1;
    }
    matrices
};

#[cfg(test)]
mod tests {
    use super::*;
    use crate::parity::oracle;

    fn pairs() -> impl Iterator<Item = (u8, u8)> {
        (0..=255).flat_map(|a| (0..=255).map(move |b| (a, b)))
    }

    #[test]
    fn known_values() {
        assert_eq!([0, 1, 7, 8, 9, 254].map(power), [1, 2, 0x80, 0x1d, 0x3a, 0x8e]);
        assert_eq!(power(255), 1);
        assert_eq!(multiply(0x80, 2), 0x1d);
        assert_eq!(inverse(2), 0x8e);
    }

    #[test]
    fn tables_agree_with_long_multiplication() {
        for (a, b) in pairs() {
            assert_eq!(multiply(a, b), oracle::multiply(a, b), "{a} * {b}");
        }
        let mut expected = 1;
        for exponent in 0..=254 {
            assert_eq!(power(exponent), expected);
            expected = oracle::multiply(expected, 2);
        }
    }

    #[test]
    fn inverses() {
        for a in 1..=255 {
            assert_eq!(multiply(a, inverse(a)), 1, "{a}");
        }
    }

    #[test]
    fn halves_add_up() {
        for (factor, byte) in pairs() {
            let (low, high) = half_products(factor);
            let product = low[usize::from(byte & 0xf)] ^ high[usize::from(byte >> 4)];
            assert_eq!(product, multiply(factor, byte));
        }
    }

    /// The instruction itself may not be there to be asked, so this is its definition.
    #[test]
    fn matrices_multiply() {
        for (factor, byte) in pairs() {
            let rows = affine_matrix(factor).to_le_bytes();
            let bit = |i: usize| ((rows[7 - i] & byte).count_ones() as u8 & 1) << i;
            assert_eq!((0..8).map(bit).sum::<u8>(), multiply(factor, byte));
        }
    }
}
