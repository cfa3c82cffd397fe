//! Buffers: aligned memory with one owner ([`Buf`]), and the same memory once it may no longer change ([`Slice`]).
//!
//! A block of a [`Pool`](super::Pool) is handed out as one `Buf`. It can be cut in two and joined again, so that one
//! request's buffer is filled by several members at once, and frozen into a `Slice`, which several members are written
//! from at once. The block goes back to its pool when the last piece of it is dropped.
//!
//! Invariants:
//! - The ranges of the live `Buf`s of a block overlap neither each other nor those of its `Slice`s. Nothing here makes a
//!   second `Buf` of a range, and `freeze` takes the `Buf` away. So a `Buf` is exclusive, and a `Slice` is immutable.
//! - The memory is initialised (a pool's arena begins as zero pages), so any of it may be read.
//! - Both may go to another thread: the block's count is atomic and its pool is locked.
//! - A buffer is three words and allocates nothing: its block is counted in the arena's own table.

#![allow(unsafe_code)] // one block of memory, several owners of disjoint parts of it: the buffers' whole point

use std::fmt;
use std::ops::{Deref, DerefMut, Range};
use std::ptr::NonNull;
use std::sync::{Arc, OnceLock};

use super::pool::{Arena, MAX_BUF_BYTES, Pool, block_bytes};

/// One piece of a block: counted by the arena, and the block's share in the arena with it.
struct Piece {
    /// From `Arc::into_raw`. All pieces of a block share one count of it, which the last of them takes along.
    arena: NonNull<Arena>,
    page: u32,
    block_len: u32,
}

// SAFETY: a piece is a counted reference to memory that is valid until its Drop; the counts are atomic, and who may touch
// which part of the memory is decided by Buf and Slice, whose ranges never conflict (invariants above).
unsafe impl Send for Piece {}
// SAFETY: as above; nothing is mutated through a shared reference but the count.
unsafe impl Sync for Piece {}

impl Piece {
    fn arena(&self) -> &Arena {
        // SAFETY: a block that has pieces keeps its arena alive.
        unsafe { self.arena.as_ref() }
    }

    fn address(&self) -> NonNull<u8> {
        self.arena().address(self.page as usize)
    }

    fn is_beside(&self, other: &Piece) -> bool {
        self.arena == other.arena && self.page == other.page
    }
}

impl Clone for Piece {
    fn clone(&self) -> Piece {
        self.arena().add_piece(self.page as usize);
        Piece { arena: self.arena, page: self.page, block_len: self.block_len }
    }
}

impl Drop for Piece {
    fn drop(&mut self) {
        if self.arena().drop_piece(self.page as usize, self.block_len as usize) {
            // SAFETY: `Buf::of_block` left one count of the arena to the block, and its last piece has just gone.
            drop(unsafe { Arc::from_raw(self.arena.as_ptr()) });
        }
    }
}

/// A piece of aligned memory that its owner may read and change.
pub struct Buf {
    piece: Piece,
    start: u32,
    len: u32,
}

impl Buf {
    /// The first piece of a block that the arena has just given out, showing its first `len` bytes.
    pub(super) fn of_block(arena: Arc<Arena>, page: usize, len: usize) -> Buf {
        let arena = NonNull::new(Arc::into_raw(arena).cast_mut()).expect("an Arc is not null");
        let page = u32::try_from(page).expect("an arena has fewer pages");
        let block_len = block_bytes(len) as u32;
        Buf { piece: Piece { arena, page, block_len }, start: 0, len: len as u32 }
    }

    /// Where the memory is, for the kernel. Valid for `len()` bytes while this `Buf` lives.
    pub fn as_mut_ptr(&mut self) -> *mut u8 {
        self.deref_mut().as_mut_ptr()
    }

    /// Cuts off everything from `at`: this one keeps the bytes before. Panics if `at` is past the end.
    pub fn split_off(&mut self, at: usize) -> Buf {
        assert!(at <= self.len as usize, "cut at {at} of a buffer of {}", self.len);
        let at = at as u32;
        let tail = Buf { piece: self.piece.clone(), start: self.start + at, len: self.len - at };
        self.len = at;
        tail
    }

    /// Joins two pieces again that lie one behind the other in one block. Panics if they do not.
    pub fn join(self, tail: Buf) -> Buf {
        let neighbours = self.piece.is_beside(&tail.piece) && self.start + self.len == tail.start;
        assert!(neighbours, "only neighbours can be joined");
        Buf { len: self.len + tail.len, ..self }
    }

    /// Gives up the right to change it.
    pub fn freeze(self) -> Slice {
        Slice { piece: self.piece, start: self.start, len: self.len }
    }

    /// Makes all of it zero.
    pub fn zero(&mut self) {
        self.fill(0);
    }
}

impl Deref for Buf {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        // SAFETY: the range lies in the block (checked where it was made), is initialised, and nobody else has it.
        unsafe {
            std::slice::from_raw_parts(
                self.piece.address().as_ptr().add(self.start as usize),
                self.len as usize,
            )
        }
    }
}

impl DerefMut for Buf {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in deref; the &mut self makes it the only reference.
        unsafe {
            std::slice::from_raw_parts_mut(
                self.piece.address().as_ptr().add(self.start as usize),
                self.len as usize,
            )
        }
    }
}

impl fmt::Debug for Buf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Buf({} bytes)", self.len)
    }
}

/// A piece of memory that does not change any more. Cloning shares it.
#[derive(Clone)]
pub struct Slice {
    piece: Piece,
    start: u32,
    len: u32,
}

impl Slice {
    /// A part of it. Panics if the range does not lie within.
    pub fn slice(&self, range: Range<usize>) -> Slice {
        let within = range.start <= range.end && range.end <= self.len as usize;
        assert!(within, "{range:?} of a slice of {}", self.len);
        Slice { piece: self.piece.clone(), start: self.start + range.start as u32, len: range.len() as u32 }
    }

    /// `len` zero bytes, at most [`MAX_BUF_BYTES`], page-aligned. All of them share one memory.
    pub fn zeroes(len: usize) -> Slice {
        static ZEROES: OnceLock<Slice> = OnceLock::new();
        let all = ZEROES.get_or_init(|| {
            let pool = Pool::new(MAX_BUF_BYTES).expect("one megabyte of zeroes");
            pool.try_alloc(MAX_BUF_BYTES).expect("a new pool has all its memory").freeze()
        });
        all.slice(0..len)
    }
}

impl Deref for Slice {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        // SAFETY: the range lies in the block, is initialised, and no Buf for it exists any more.
        unsafe {
            std::slice::from_raw_parts(
                self.piece.address().as_ptr().add(self.start as usize),
                self.len as usize,
            )
        }
    }
}

impl fmt::Debug for Slice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Slice({} bytes)", self.len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_disjoint_and_join_again() {
        let pool = Pool::new(1 << 20).unwrap();
        let mut head = pool.try_alloc(8192).unwrap();
        head.zero();
        let mut tail = head.split_off(4096);
        head.fill(1);
        tail.fill(2);
        let whole = head.join(tail);
        assert!(whole[..4096].iter().all(|&b| b == 1) && whole[4096..].iter().all(|&b| b == 2));
    }

    #[test]
    fn the_block_goes_home_with_its_last_piece() {
        let pool = Pool::new(1 << 20).unwrap();
        let mut head = pool.try_alloc(1 << 20).unwrap();
        let tail = head.split_off(1 << 19).freeze();
        let part = tail.slice(0..10);
        drop((head, tail));
        assert!(pool.try_alloc(4096).is_none());
        drop(part);
        assert!(pool.try_alloc(1 << 20).is_some());
    }

    #[test]
    #[should_panic(expected = "neighbours")]
    fn strangers_do_not_join() {
        let pool = Pool::new(1 << 20).unwrap();
        let (a, b) = (pool.try_alloc(4096).unwrap(), pool.try_alloc(4096).unwrap());
        drop(a.join(b));
    }
}
