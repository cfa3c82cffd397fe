//! What the kernels compute, byte by byte, from the definitions: slow, and so simple that it can be believed.

/// a * b by long multiplication, modulo 0x11d.
pub(super) fn multiply(a: u8, b: u8) -> u8 {
    let mut product = 0u16;
    for bit in 0..8 {
        if b >> bit & 1 == 1 {
            product ^= u16::from(a) << bit;
        }
    }
    for bit in (8..16).rev() {
        if product >> bit & 1 == 1 {
            product ^= 0x11d << (bit - 8);
        }
    }
    product as u8
}

/// g^exponent.
pub(super) fn power(exponent: usize) -> u8 {
    (0..exponent).fold(1, |power, _| multiply(power, 2))
}

/// The XOR of all sources.
pub(super) fn p(sources: &[Option<Vec<u8>>], len: usize) -> Vec<u8> {
    let byte = |at: usize| sources.iter().flatten().fold(0, |sum, source| sum ^ source[at]);
    (0..len).map(byte).collect()
}

/// The sum of g^i times the i-th source.
pub(super) fn q(sources: &[Option<Vec<u8>>], len: usize) -> Vec<u8> {
    let mut q = vec![0; len];
    for (exponent, source) in sources.iter().enumerate() {
        let Some(source) = source else { continue };
        let factor = power(exponent);
        for (q, byte) in q.iter_mut().zip(source) {
            *q ^= multiply(factor, *byte);
        }
    }
    q
}
