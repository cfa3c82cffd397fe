//! The kernels in plain Rust: eight bytes to a word, and loops that the compiler makes vectors of where it can. They run
//! where no better ones do, and do what is left at the end of a job when the better ones have run out of whole blocks.

use super::gf::{self, POLYNOMIAL};
use super::kernels::{Change, Job, kernels};

const WORDS: usize = 8;
const WORD_BYTES: usize = size_of::<u64>();

/// Bytes of a block.
pub(super) const BLOCK: usize = WORDS * WORD_BYTES;

type Block = [u64; WORDS];

mod words {
    use super::*;
    kernels!();
}
pub(super) use words::run;

/// Whole blocks and one more for what is left: `load` fills it up with zeroes, `store` leaves them out.
fn block_count(len: usize) -> usize {
    len.div_ceil(BLOCK)
}

#[inline]
fn load(bytes: &[u8], index: usize) -> Block {
    let bytes = &bytes[index * BLOCK..];
    match bytes.first_chunk::<BLOCK>() {
        Some(block) => zerocopy::transmute!(*block),
        None => {
            let mut block = [0; BLOCK];
            block[..bytes.len()].copy_from_slice(bytes);
            zerocopy::transmute!(block)
        }
    }
}

#[inline]
fn store(bytes: &mut [u8], index: usize, block: Block) {
    let block: [u8; BLOCK] = zerocopy::transmute!(block);
    let bytes = &mut bytes[index * BLOCK..];
    match bytes.first_chunk_mut::<BLOCK>() {
        Some(place) => *place = block,
        None => bytes.copy_from_slice(&block[..bytes.len()]),
    }
}

/// There is no portable way past the caches, and nobody takes this one.
#[inline]
fn stream(bytes: &mut [u8], index: usize, block: Block) {
    store(bytes, index, block);
}

#[inline]
fn fence() {}

#[inline]
fn zero() -> Block {
    [0; WORDS]
}

#[inline]
fn xor(mut a: Block, b: Block) -> Block {
    for (a, b) in a.iter_mut().zip(b) {
        *a ^= b;
    }
    a
}

/// Each byte shifted up by one bit, and the polynomial added where a bit fell out.
#[inline]
fn double(mut block: Block) -> Block {
    const EACH_BYTE: u64 = 0x0101_0101_0101_0101;
    for word in &mut block {
        let out = (*word >> 7) & EACH_BYTE;
        *word = ((*word & (EACH_BYTE * 0x7f)) << 1) ^ (out * u64::from(POLYNOMIAL));
    }
    block
}

#[inline]
fn factor(factor: u8) -> u8 {
    factor
}

/// Bit by bit, from the highest: doubled, and added where the factor has a bit.
#[inline]
fn scale(factor: u8, block: Block) -> Block {
    let mut product = zero();
    for bit in (0..8).rev() {
        product = double(product);
        if factor >> bit & 1 == 1 {
            product = xor(product, block);
        }
    }
    product
}

/// Whether there is no bit set.
pub(super) fn is_zero(bytes: &[u8]) -> bool {
    let (blocks, rest) = bytes.as_chunks::<256>();
    // The whole of a block is looked at without a branch, so it becomes vectors.
    blocks.iter().all(|block| block.iter().fold(0, |all, byte| all | byte) == 0)
        && rest.iter().all(|byte| *byte == 0)
}
