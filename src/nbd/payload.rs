//! How a request's bytes lie in buffers.
//!
//! A range is cut at multiples of [`MAX_BUF_BYTES`] of the device's offset, so that the cuts of a large request fall
//! together with those of chunks and stripes, and so that a piece never needs more than one block of the pool.
//!
//! In memory a piece lies as on the device: address and offset are the same modulo a page. A write then goes to members
//! as it is, whatever sector size they have.

use smallvec::SmallVec;

use super::command::Range;
use crate::io::{Buf, MAX_BUF_BYTES, PAGE_BYTES, Slice};

/// As many as a request has pieces: mostly one, for which nothing is allocated.
pub(super) type Few<T> = SmallVec<[T; 1]>;

/// A part of a request that is one buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Piece {
    pub(super) offset_bytes: u64,
    pub(super) len: usize,
}

impl Piece {
    /// Bytes in front of it on its first page.
    fn lead(&self) -> usize {
        (self.offset_bytes % PAGE_BYTES as u64) as usize
    }
}

/// The range, cut.
pub(super) fn pieces(offset_bytes: u64, len_bytes: u64) -> Few<Piece> {
    let unit = MAX_BUF_BYTES as u64;
    let end = offset_bytes + len_bytes;
    let mut pieces = Few::new();
    let mut at = offset_bytes;
    while at < end {
        let next = (at - at % unit).saturating_add(unit).min(end);
        pieces.push(Piece { offset_bytes: at, len: (next - at) as usize });
        at = next;
    }
    pieces
}

/// The smallest range of whole blocks that holds all of it, cut. Nothing for an empty one.
pub(super) fn read_pieces(range: Range, block_bytes: u32) -> Few<Piece> {
    if range.len_bytes == 0 {
        return Few::new();
    }
    let block = u64::from(block_bytes);
    let start = range.offset_bytes - range.offset_bytes % block;
    let end = range.end_bytes().next_multiple_of(block);
    pieces(start, end - start)
}

/// Buffer lengths for a write's payload: each piece with its lead.
pub(super) fn write_lens(range: Range) -> Few<usize> {
    let pieces = pieces(range.offset_bytes, range.len_bytes);
    pieces.iter().map(|piece| piece.lead() + piece.len).collect()
}

/// Cuts the leads off, so that the payload lies in memory as it will on the device.
pub(super) fn without_leads(range: Range, bufs: Few<Buf>) -> Few<Buf> {
    let pieces = pieces(range.offset_bytes, range.len_bytes);
    assert_eq!(pieces.len(), bufs.len());
    let place = |(piece, mut buf): (&Piece, Buf)| match piece.lead() {
        0 => buf,
        lead => buf.split_off(lead),
    };
    pieces.iter().zip(bufs).map(place).collect()
}

/// What was asked for, out of the blocks that were read.
pub(super) fn cut_out(range: Range, block_bytes: u32, bufs: Few<Buf>) -> Few<Slice> {
    let mut lead = (range.offset_bytes % u64::from(block_bytes)) as usize;
    let mut left = range.len_bytes as usize;
    let mut slices = Few::new();
    for buf in bufs {
        let slice = buf.freeze();
        let end = slice.len().min(lead + left);
        left -= end - lead;
        slices.push(slice.slice(lead..end));
        lead = 0;
    }
    assert_eq!(left, 0, "the blocks hold all of the range");
    slices
}

/// What buffers of these lengths take from their pool, which hands out powers of two.
pub(super) fn reserved_bytes(lens: &[usize]) -> usize {
    lens.iter().map(|len| len.next_power_of_two().max(PAGE_BYTES)).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::Pool;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_read_gets_what_it_asked_for(
            offset_bytes in 0u64..4 << 20,
            len_bytes in 0u64..3 << 20,
            block_bytes in prop::sample::select(vec![1u32, 512, 4096]),
        ) {
            let range = Range { offset_bytes, len_bytes };
            let pool = Pool::new(8 << 20).unwrap();
            let byte_at = |at: u64| (at * 7 + at / 251) as u8;
            let mut bufs = Few::new();
            let mut at = None;
            for piece in read_pieces(range, block_bytes) {
                prop_assert!((1..=MAX_BUF_BYTES).contains(&piece.len));
                prop_assert!((piece.offset_bytes | piece.len as u64).is_multiple_of(block_bytes.into()));
                prop_assert!(at.is_none_or(|at| at == piece.offset_bytes));
                at = Some(piece.offset_bytes + piece.len as u64);
                let mut buf = pool.try_alloc(piece.len).unwrap();
                for (index, byte) in buf.iter_mut().enumerate() {
                    *byte = byte_at(piece.offset_bytes + index as u64);
                }
                bufs.push(buf);
            }
            let slices = cut_out(range, block_bytes, bufs);
            let bytes: Vec<u8> = slices.iter().flat_map(|slice| slice.to_vec()).collect();
            let expected: Vec<u8> = (offset_bytes..offset_bytes + len_bytes).map(byte_at).collect();
            prop_assert!(bytes == expected);
        }

        #[test]
        fn a_payload_lies_in_memory_as_on_the_device(
            offset_bytes in 0u64..4 << 20,
            len_bytes in 0u64..3 << 20,
        ) {
            let range = Range { offset_bytes, len_bytes };
            let pool = Pool::new(8 << 20).unwrap();
            let lens = write_lens(range);
            prop_assert!(reserved_bytes(&lens) <= len_bytes as usize + (2 << 20));
            let bufs = lens.iter().map(|&len| pool.try_alloc(len).unwrap()).collect();
            let mut at = offset_bytes;
            for mut buf in without_leads(range, bufs) {
                prop_assert_eq!(buf.as_mut_ptr() as u64 % 4096, at % 4096);
                at += buf.len() as u64;
            }
            prop_assert_eq!(at, offset_bytes + len_bytes);
        }
    }

    #[test]
    fn the_last_bytes_of_the_largest_device() {
        let last = pieces(u64::MAX - 5, 5);
        assert_eq!(last[..], [Piece { offset_bytes: u64::MAX - 5, len: 5 }]);
    }
}
