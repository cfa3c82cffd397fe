//! The buffer pool: one arena of bounded size, and a queue of those who wait for a part of it.
//!
//! A full pool is back-pressure: [`Pool::alloc`] waits, first come first served, and who waits for buffers does not
//! read from its socket. Nothing on the data path gets memory in any other way.
//!
//! Invariants:
//! - All the buffers of one request are asked for at once ([`Pool::alloc_all`]); nobody holds some and waits for more of
//!   the same pool. Where a request needs two pools, all requests take them in the same order. So nobody waits in a ring.
//! - First come first served: a large request is not starved by small ones that would fit.
//! - Blocks are powers of two from a page to [`MAX_BUF_BYTES`], placed by a buddy allocator (`buddy`).
//! - Nothing is allocated for a single buffer: who shares a block is counted in a table that the arena has from the start.
//! - The arena lives until the pool and all its blocks are gone: each block that is out counts as an owner.

#![allow(unsafe_code)] // hands out parts of one mapping

use std::collections::VecDeque;
use std::future::poll_fn;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering, fence};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Poll, Waker};

use memmap2::{Advice, MmapMut, MmapOptions};
use smallvec::SmallVec;

use super::buddy::Buddies;
use super::buf::Buf;

/// The smallest block, and the alignment of all: what O_DIRECT on any disk is content with.
pub const PAGE_BYTES: usize = 4096;

/// The largest block. Requests that are larger are made of several.
pub const MAX_BUF_BYTES: usize = 1 << 20;

const ORDERS: usize = (MAX_BUF_BYTES / PAGE_BYTES).trailing_zeros() as usize + 1;

/// A bounded amount of memory, in buffers. Clones share it.
#[derive(Clone)]
pub struct Pool(Arc<Arena>);

/// The mapping and its book-keeping.
pub(super) struct Arena {
    base: NonNull<u8>,
    /// For each page that a block begins with: how many pieces of the block there are.
    pieces: Box<[AtomicU32]>,
    state: Mutex<State>,
    /// Keeps the memory mapped; only ever touched through `base`.
    _map: MmapMut,
}

// SAFETY: `base` points into `_map`, which the arena owns and never moves; blocks of it are handed out once each under
// the lock.
unsafe impl Send for Arena {}
// SAFETY: as above; all shared mutable state is behind the mutex, or atomic.
unsafe impl Sync for Arena {}

struct State {
    buddies: Buddies,
    queue: VecDeque<Waiter>,
    next_ticket: u64,
}

struct Waiter {
    ticket: u64,
    waker: Waker,
}

impl Pool {
    /// A pool of so many bytes, rounded down to a whole number of largest blocks; at least one.
    pub fn new(bytes: usize) -> std::io::Result<Pool> {
        let bytes = (bytes / MAX_BUF_BYTES).max(1) * MAX_BUF_BYTES;
        let mut map = MmapOptions::new().len(bytes).map_anon()?;
        // Huge pages are a favour that may be refused.
        if let Err(error) = map.advise(Advice::HugePage) {
            tracing::debug!(%error, "no huge pages for the buffer pool");
        }
        let base = NonNull::new(map.as_mut_ptr()).expect("a mapping has an address");
        let pages = bytes / PAGE_BYTES;
        let pieces = (0..pages).map(|_| AtomicU32::new(0)).collect();
        let state = State { buddies: Buddies::new(pages, ORDERS), queue: VecDeque::new(), next_ticket: 0 };
        Ok(Pool(Arc::new(Arena { base, pieces, state: Mutex::new(state), _map: map })))
    }

    /// A buffer of `len` bytes (1 to [`MAX_BUF_BYTES`]), page-aligned, of unspecified content; waits for its turn.
    pub async fn alloc(&self, len: usize) -> Buf {
        self.wait_for(block_bytes(len), |arena, state| arena.take(state, len)).await
    }

    /// A buffer for each length, all at once; waits for its turn. Panics if the pool could never hold them.
    pub async fn alloc_all(&self, lens: &[usize]) -> Vec<Buf> {
        let need: usize = lens.iter().map(|&len| block_bytes(len)).sum();
        self.wait_for(need, |arena, state| arena.take_all(state, lens)).await
    }

    async fn wait_for<T>(
        &self,
        need: usize,
        take: impl Fn(&Arc<Arena>, &mut State) -> Option<T> + Unpin,
    ) -> T {
        assert!(need <= self.0._map.len(), "{need} bytes from a pool of {}", self.0._map.len());
        let mut place = Place { arena: &self.0, ticket: None };
        poll_fn(move |context| place.poll(&take, context.waker())).await
    }

    /// A buffer now, or none: neither where memory is short nor where others wait.
    pub fn try_alloc(&self, len: usize) -> Option<Buf> {
        let mut state = self.0.lock();
        if !state.queue.is_empty() {
            return None;
        }
        self.0.take(&mut state, len)
    }

    /// Bytes that are in nobody's hands.
    pub fn free_bytes(&self) -> usize {
        self.0.lock().buddies.free_pages() * PAGE_BYTES
    }

    /// Bytes in all.
    pub fn total_bytes(&self) -> usize {
        self.0._map.len()
    }
}

/// A place in the queue, given up when dropped.
struct Place<'a> {
    arena: &'a Arc<Arena>,
    ticket: Option<u64>,
}

impl Place<'_> {
    fn poll<T>(&mut self, take: &impl Fn(&Arc<Arena>, &mut State) -> Option<T>, waker: &Waker) -> Poll<T> {
        let mut state = self.arena.lock();
        let first = match self.ticket {
            None => state.queue.is_empty(),
            Some(ticket) => state.queue.front().is_some_and(|head| head.ticket == ticket),
        };
        if first && let Some(bufs) = take(self.arena, &mut state) {
            if self.ticket.take().is_some() {
                state.queue.pop_front();
            }
            let next = state.head_waker();
            drop(state);
            wake(next);
            return Poll::Ready(bufs);
        }
        match self.ticket {
            None => {
                let ticket = state.next_ticket;
                state.next_ticket += 1;
                state.queue.push_back(Waiter { ticket, waker: waker.clone() });
                self.ticket = Some(ticket);
            }
            Some(ticket) => {
                let waiter = state.queue.iter_mut().find(|waiter| waiter.ticket == ticket);
                waiter.expect("a ticket is in the queue").waker.clone_from(waker);
            }
        }
        Poll::Pending
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let Some(ticket) = self.ticket else { return };
        let mut state = self.arena.lock();
        state.queue.retain(|waiter| waiter.ticket != ticket);
        let next = state.head_waker();
        drop(state);
        wake(next);
    }
}

fn wake(waker: Option<Waker>) {
    if let Some(waker) = waker {
        waker.wake();
    }
}

impl Arena {
    fn lock(&self) -> MutexGuard<'_, State> {
        // The state is consistent between any two statements that can panic, so a poisoned lock still guards good data.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(self: &Arc<Self>, state: &mut State, len: usize) -> Option<Buf> {
        let page = state.buddies.take(order_of(len))?;
        assert_eq!(self.pieces[page].swap(1, Ordering::Relaxed), 0, "a free block has no pieces");
        Some(Buf::of_block(self.clone(), page, len))
    }

    fn take_all(self: &Arc<Self>, state: &mut State, lens: &[usize]) -> Option<Vec<Buf>> {
        let mut pages: SmallVec<[usize; 16]> = SmallVec::with_capacity(lens.len());
        for &len in lens {
            match state.buddies.take(order_of(len)) {
                Some(page) => pages.push(page),
                None => {
                    for (page, &len) in pages.into_iter().zip(lens) {
                        state.buddies.give(page, order_of(len));
                    }
                    return None;
                }
            }
        }
        let bufs = pages.into_iter().zip(lens).map(|(page, &len)| {
            assert_eq!(self.pieces[page].swap(1, Ordering::Relaxed), 0, "a free block has no pieces");
            Buf::of_block(self.clone(), page, len)
        });
        Some(bufs.collect())
    }

    /// Where a page is.
    pub(super) fn address(&self, page: usize) -> NonNull<u8> {
        assert!(page < self.pieces.len());
        // SAFETY: the page lies within the mapping.
        unsafe { self.base.add(page * PAGE_BYTES) }
    }

    /// One piece more of the block that begins with this page.
    pub(super) fn add_piece(&self, page: usize) {
        // Whoever calls has a piece, so the count is not zero, and needs to see nothing that others did.
        let before = self.pieces[page].fetch_add(1, Ordering::Relaxed);
        assert!((1..u32::MAX).contains(&before));
    }

    /// One piece less. With the last one the block, of so many bytes, goes home; true then.
    pub(super) fn drop_piece(&self, page: usize, block_len: usize) -> bool {
        // What others did with their pieces comes before the block is used again.
        if self.pieces[page].fetch_sub(1, Ordering::Release) != 1 {
            return false;
        }
        fence(Ordering::Acquire);
        let mut state = self.lock();
        state.buddies.give(page, order_of(block_len));
        let next = state.head_waker();
        drop(state);
        wake(next);
        true
    }
}

impl State {
    fn head_waker(&self) -> Option<Waker> {
        self.queue.front().map(|waiter| waiter.waker.clone())
    }
}

fn order_of(len: usize) -> usize {
    (block_bytes(len) / PAGE_BYTES).trailing_zeros() as usize
}

/// What a buffer of this length takes.
pub(super) fn block_bytes(len: usize) -> usize {
    assert!((1..=MAX_BUF_BYTES).contains(&len), "a buffer of {len} bytes");
    len.next_power_of_two().max(PAGE_BYTES)
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt;

    #[test]
    fn blocks_split_and_merge() {
        let pool = Pool::new(2 << 20).unwrap();
        let small: Vec<_> = (0..512).map(|_| pool.try_alloc(1).unwrap()).collect();
        assert!(pool.try_alloc(1).is_none());
        assert!(small.iter().all(|buf| buf.as_ptr().is_aligned_to_page()));
        drop(small);
        assert_eq!(pool.free_bytes(), 2 << 20);
        assert!(pool.try_alloc(MAX_BUF_BYTES).is_some());
    }

    #[test]
    fn first_come_first_served_and_a_dropped_waiter_lets_the_next_go() {
        let pool = Pool::new(1 << 20).unwrap();
        let all = pool.try_alloc(1 << 20).unwrap();
        let mut large = Box::pin(pool.alloc_all(&[1 << 19, 1 << 19]));
        let mut small = Box::pin(pool.alloc(4096));
        assert!(large.as_mut().now_or_never().is_none());
        assert!(small.as_mut().now_or_never().is_none());
        drop(all);
        assert!(small.as_mut().now_or_never().is_none(), "the large one comes first");
        drop(large);
        assert!(small.as_mut().now_or_never().is_some());
    }

    trait PageAligned {
        fn is_aligned_to_page(&self) -> bool;
    }

    impl PageAligned for *const u8 {
        fn is_aligned_to_page(&self) -> bool {
            (*self as usize).is_multiple_of(PAGE_BYTES)
        }
    }
}
