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

#![allow(unsafe_code)] // one block of memory, several owners of disjoint parts of it: the buffers' whole point

use std::fmt;
use std::ops::{Deref, DerefMut, Range};
use std::ptr::NonNull;
use std::sync::{Arc, OnceLock};

use super::pool::{Arena, MAX_BUF_BYTES, Pool};

/// Memory that goes back to its arena when its last user lets go.
struct Block {
    start: NonNull<u8>,
    len: usize,
    arena: Arc<Arena>,
}

// SAFETY: a Block is plain memory, valid until its Drop; who may touch which part of it is decided by Buf and Slice,
// whose ranges never conflict (invariants above).
unsafe impl Send for Block {}
// SAFETY: as above; nothing in Block itself is mutated through a shared reference.
unsafe impl Sync for Block {}

impl Drop for Block {
    fn drop(&mut self) {
        self.arena.free(self.start, self.len);
    }
}

/// A piece of aligned memory that its owner may read and change.
pub struct Buf {
    block: Arc<Block>,
    start: usize,
    len: usize,
}

impl Buf {
    /// Wraps a block that the arena has just given out, showing its first `len` bytes.
    pub(super) fn of_arena(arena: &Arc<Arena>, start: NonNull<u8>, block_len: usize, len: usize) -> Buf {
        assert!(len <= block_len);
        let block = Block { start, len: block_len, arena: arena.clone() };
        Buf { block: Arc::new(block), start: 0, len }
    }

    /// Where the memory is, for the kernel. Valid for `len()` bytes while this `Buf` lives.
    pub fn as_mut_ptr(&mut self) -> *mut u8 {
        self.deref_mut().as_mut_ptr()
    }

    /// Cuts off everything from `at`: this one keeps the bytes before. Panics if `at` is past the end.
    pub fn split_off(&mut self, at: usize) -> Buf {
        assert!(at <= self.len, "cut at {at} of a buffer of {}", self.len);
        let tail = Buf { block: self.block.clone(), start: self.start + at, len: self.len - at };
        self.len = at;
        tail
    }

    /// Joins two pieces again that lie one behind the other in one block. Panics if they do not.
    pub fn join(self, tail: Buf) -> Buf {
        let neighbours = Arc::ptr_eq(&self.block, &tail.block) && self.start + self.len == tail.start;
        assert!(neighbours, "only neighbours can be joined");
        Buf { len: self.len + tail.len, ..self }
    }

    /// Gives up the right to change it.
    pub fn freeze(self) -> Slice {
        Slice { block: self.block, start: self.start, len: self.len }
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
        unsafe { std::slice::from_raw_parts(self.block.start.as_ptr().add(self.start), self.len) }
    }
}

impl DerefMut for Buf {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in deref; the &mut self makes it the only reference.
        unsafe { std::slice::from_raw_parts_mut(self.block.start.as_ptr().add(self.start), self.len) }
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
    block: Arc<Block>,
    start: usize,
    len: usize,
}

impl Slice {
    /// A part of it. Panics if the range does not lie within.
    pub fn slice(&self, range: Range<usize>) -> Slice {
        assert!(range.start <= range.end && range.end <= self.len, "{range:?} of a slice of {}", self.len);
        Slice { block: self.block.clone(), start: self.start + range.start, len: range.len() }
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
        unsafe { std::slice::from_raw_parts(self.block.start.as_ptr().add(self.start), self.len) }
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
