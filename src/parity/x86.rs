//! The kernels with x86's vectors: AVX-512 and AVX2, each with GFNI and without, and SSSE3.
//!
//! A block is four vectors, so that there is enough to do while the one multiplication after the other is under way.
//! Multiplication with 2 is one instruction with GFNI; without, it is a shift with the polynomial added where a bit fell
//! out. Multiplication with another factor is one instruction with GFNI too; without, the products with the halves of
//! each byte are looked up with byte shuffles. Vectors are values, and memory is slices; only a store past the caches takes
//! a pointer.

#![allow(unsafe_code)] // stores past the caches

use std::arch::x86_64::*;

use super::STREAM_ALIGNMENT;
use super::gf;
use super::kernels::{Change, Job, blocks_of, kernels};

/// Stores past the caches, and what ends them.
macro_rules! streams_of {
    ($vector:ty, $features:literal, $stream:ident) => {
        #[target_feature(enable = $features)]
        #[inline]
        fn stream(bytes: &mut [u8], index: usize, block: Block) {
            let place = &mut bytes.as_chunks_mut::<BLOCK>().0[index];
            let place = place.as_mut_ptr().cast::<$vector>();
            assert!(place.addr().is_multiple_of(STREAM_ALIGNMENT), "streamed to where no line begins");
            for (i, vector) in block.into_iter().enumerate() {
                // SAFETY: `place` is the block's bytes, four vectors, exclusively borrowed and aligned as just asserted;
                // `run` fences before it returns, so nobody sees these stores out of order.
                unsafe { $stream(place.add(i), vector) };
            }
        }

        #[target_feature(enable = $features)]
        #[inline]
        fn fence() {
            _mm_sfence();
        }
    };
}

pub(super) mod avx512_gfni {
    use super::*;

    blocks_of!(__m512i, 64, "avx512f,avx512bw,gfni");
    streams_of!(__m512i, "avx512f,avx512bw,gfni", _mm512_stream_si512);

    /// A bit matrix in each 64-bit lane.
    type Factor = __m512i;

    #[target_feature(enable = "avx512f,avx512bw,gfni")]
    #[inline]
    fn factor(factor: u8) -> Factor {
        _mm512_set1_epi64(gf::affine_matrix(factor).cast_signed())
    }

    #[target_feature(enable = "avx512f,avx512bw,gfni")]
    #[inline]
    fn xor_one(a: __m512i, b: __m512i) -> __m512i {
        _mm512_xor_si512(a, b)
    }

    #[target_feature(enable = "avx512f,avx512bw,gfni")]
    #[inline]
    fn double_one(a: __m512i) -> __m512i {
        scale_one(_mm512_set1_epi64(const { gf::affine_matrix(2).cast_signed() }), a)
    }

    #[target_feature(enable = "avx512f,avx512bw,gfni")]
    #[inline]
    fn scale_one(factor: Factor, a: __m512i) -> __m512i {
        _mm512_gf2p8affine_epi64_epi8::<0>(a, factor)
    }
}

pub(super) mod avx2_gfni {
    use super::*;

    blocks_of!(__m256i, 32, "avx2,gfni");
    streams_of!(__m256i, "avx2,gfni", _mm256_stream_si256);

    /// A bit matrix in each 64-bit lane.
    type Factor = __m256i;

    #[target_feature(enable = "avx2,gfni")]
    #[inline]
    fn factor(factor: u8) -> Factor {
        _mm256_set1_epi64x(gf::affine_matrix(factor).cast_signed())
    }

    #[target_feature(enable = "avx2,gfni")]
    #[inline]
    fn xor_one(a: __m256i, b: __m256i) -> __m256i {
        _mm256_xor_si256(a, b)
    }

    #[target_feature(enable = "avx2,gfni")]
    #[inline]
    fn double_one(a: __m256i) -> __m256i {
        scale_one(_mm256_set1_epi64x(const { gf::affine_matrix(2).cast_signed() }), a)
    }

    #[target_feature(enable = "avx2,gfni")]
    #[inline]
    fn scale_one(factor: Factor, a: __m256i) -> __m256i {
        _mm256_gf2p8affine_epi64_epi8::<0>(a, factor)
    }
}

pub(super) mod avx512 {
    use super::*;

    blocks_of!(__m512i, 64, "avx512f,avx512bw");
    streams_of!(__m512i, "avx512f,avx512bw", _mm512_stream_si512);

    /// The products with low halves and with high halves, in each 128-bit lane.
    type Factor = (__m512i, __m512i);

    #[target_feature(enable = "avx512f,avx512bw")]
    #[inline]
    fn factor(factor: u8) -> Factor {
        let (low, high) = gf::half_products(factor);
        (
            _mm512_broadcast_i32x4(zerocopy::transmute!(low)),
            _mm512_broadcast_i32x4(zerocopy::transmute!(high)),
        )
    }

    #[target_feature(enable = "avx512f,avx512bw")]
    #[inline]
    fn xor_one(a: __m512i, b: __m512i) -> __m512i {
        _mm512_xor_si512(a, b)
    }

    #[target_feature(enable = "avx512f,avx512bw")]
    #[inline]
    fn double_one(a: __m512i) -> __m512i {
        let out = _mm512_maskz_set1_epi8(_mm512_movepi8_mask(a), gf::POLYNOMIAL.cast_signed());
        _mm512_xor_si512(_mm512_add_epi8(a, a), out)
    }

    #[target_feature(enable = "avx512f,avx512bw")]
    #[inline]
    fn scale_one((low, high): Factor, a: __m512i) -> __m512i {
        let half = _mm512_set1_epi8(0xf);
        let low = _mm512_shuffle_epi8(low, _mm512_and_si512(a, half));
        let high = _mm512_shuffle_epi8(high, _mm512_and_si512(_mm512_srli_epi16::<4>(a), half));
        _mm512_xor_si512(low, high)
    }
}

pub(super) mod avx2 {
    use super::*;

    blocks_of!(__m256i, 32, "avx2");
    streams_of!(__m256i, "avx2", _mm256_stream_si256);

    /// The products with low halves and with high halves, in each 128-bit lane.
    type Factor = (__m256i, __m256i);

    #[target_feature(enable = "avx2")]
    #[inline]
    fn factor(factor: u8) -> Factor {
        let (low, high) = gf::half_products(factor);
        (
            _mm256_broadcastsi128_si256(zerocopy::transmute!(low)),
            _mm256_broadcastsi128_si256(zerocopy::transmute!(high)),
        )
    }

    #[target_feature(enable = "avx2")]
    #[inline]
    fn xor_one(a: __m256i, b: __m256i) -> __m256i {
        _mm256_xor_si256(a, b)
    }

    #[target_feature(enable = "avx2")]
    #[inline]
    fn double_one(a: __m256i) -> __m256i {
        let negative = _mm256_cmpgt_epi8(_mm256_setzero_si256(), a);
        let out = _mm256_and_si256(negative, _mm256_set1_epi8(gf::POLYNOMIAL.cast_signed()));
        _mm256_xor_si256(_mm256_add_epi8(a, a), out)
    }

    #[target_feature(enable = "avx2")]
    #[inline]
    fn scale_one((low, high): Factor, a: __m256i) -> __m256i {
        let half = _mm256_set1_epi8(0xf);
        let low = _mm256_shuffle_epi8(low, _mm256_and_si256(a, half));
        let high = _mm256_shuffle_epi8(high, _mm256_and_si256(_mm256_srli_epi16::<4>(a), half));
        _mm256_xor_si256(low, high)
    }
}

pub(super) mod ssse3 {
    use super::*;

    blocks_of!(__m128i, 16, "ssse3");
    streams_of!(__m128i, "ssse3", _mm_stream_si128);

    /// The products with low halves and with high halves.
    type Factor = (__m128i, __m128i);

    #[target_feature(enable = "ssse3")]
    #[inline]
    fn factor(factor: u8) -> Factor {
        let (low, high) = gf::half_products(factor);
        (zerocopy::transmute!(low), zerocopy::transmute!(high))
    }

    #[target_feature(enable = "ssse3")]
    #[inline]
    fn xor_one(a: __m128i, b: __m128i) -> __m128i {
        _mm_xor_si128(a, b)
    }

    #[target_feature(enable = "ssse3")]
    #[inline]
    fn double_one(a: __m128i) -> __m128i {
        let negative = _mm_cmpgt_epi8(_mm_setzero_si128(), a);
        let out = _mm_and_si128(negative, _mm_set1_epi8(gf::POLYNOMIAL.cast_signed()));
        _mm_xor_si128(_mm_add_epi8(a, a), out)
    }

    #[target_feature(enable = "ssse3")]
    #[inline]
    fn scale_one((low, high): Factor, a: __m128i) -> __m128i {
        let half = _mm_set1_epi8(0xf);
        let low = _mm_shuffle_epi8(low, _mm_and_si128(a, half));
        let high = _mm_shuffle_epi8(high, _mm_and_si128(_mm_srli_epi16::<4>(a), half));
        _mm_xor_si128(low, high)
    }
}
