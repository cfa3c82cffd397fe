//! The kernels with the vectors that every 64-bit ARM has. Multiplication with 2 is a shift with the polynomial added where
//! a bit fell out; with another factor, the products with the halves of each byte are looked up in tables.
//!
//! No stores past the caches: what ARM has of them is a hint for pairs of registers, which Rust has no name for.

use std::arch::aarch64::*;

use super::gf;
use super::kernels::{Change, Job, blocks_of, kernels};

pub(super) mod neon {
    use super::*;

    blocks_of!(uint8x16_t, 16, "neon");

    /// The products with low halves and with high halves.
    type Factor = (uint8x16_t, uint8x16_t);

    #[inline]
    fn stream(bytes: &mut [u8], index: usize, block: Block) {
        store(bytes, index, block);
    }

    #[inline]
    fn fence() {}

    #[inline]
    fn factor(factor: u8) -> Factor {
        let (low, high) = gf::half_products(factor);
        (zerocopy::transmute!(low), zerocopy::transmute!(high))
    }

    #[target_feature(enable = "neon")]
    #[inline]
    fn xor_one(a: uint8x16_t, b: uint8x16_t) -> uint8x16_t {
        veorq_u8(a, b)
    }

    #[target_feature(enable = "neon")]
    #[inline]
    fn double_one(a: uint8x16_t) -> uint8x16_t {
        let negative = vreinterpretq_u8_s8(vshrq_n_s8::<7>(vreinterpretq_s8_u8(a)));
        let out = vandq_u8(negative, vdupq_n_u8(gf::POLYNOMIAL));
        veorq_u8(vshlq_n_u8::<1>(a), out)
    }

    #[target_feature(enable = "neon")]
    #[inline]
    fn scale_one((low, high): Factor, a: uint8x16_t) -> uint8x16_t {
        let low = vqtbl1q_u8(low, vandq_u8(a, vdupq_n_u8(0xf)));
        let high = vqtbl1q_u8(high, vshrq_n_u8::<4>(a));
        veorq_u8(low, high)
    }
}
