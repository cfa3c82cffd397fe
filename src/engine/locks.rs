//! Row locks: who may touch a range of rows, first come first served (DESIGN law 4).
//!
//! One set of locks serves an array: over member sectors where there is parity, over array sectors where there are
//! copies. A lock is exclusive; healthy reads take none. A second set with a single row is the lane in which superblocks
//! are written.
//!
//! Invariants:
//! - Two granted locks never overlap.
//! - A lock is granted only when no earlier request overlaps it, so nobody is overtaken on the same rows.
//! - Who holds a lock waits for no other lock of the same set. (Locks come before scratch buffers, always.)

use std::cell::RefCell;
use std::collections::VecDeque;
use std::future::poll_fn;
use std::ops::Range;
use std::task::{Poll, Waker};

use super::mutant::{self, Mutant};

/// Locks over ranges of rows.
#[derive(Default)]
pub(super) struct RowLocks {
    queue: RefCell<Queue>,
}

#[derive(Default)]
struct Queue {
    next_ticket: u64,
    /// In order of arrival, granted or not.
    requests: VecDeque<Request>,
}

struct Request {
    ticket: u64,
    rows: Range<u64>,
    granted: bool,
    waker: Option<Waker>,
}

/// A lock held; dropping it lets the next one in.
pub(super) struct RowGuard<'a> {
    locks: &'a RowLocks,
    ticket: u64,
}

impl RowLocks {
    /// As `lock`, but for a deliberate fault that does without.
    pub async fn lock_unless(&self, mutant: Mutant, rows: Range<u64>) -> Option<RowGuard<'_>> {
        match mutant::is(mutant) {
            true => None,
            false => Some(self.lock(rows).await),
        }
    }

    /// Waits until these rows are ours.
    pub async fn lock(&self, rows: Range<u64>) -> RowGuard<'_> {
        assert!(rows.start < rows.end, "a lock on no rows");
        // The guard exists before the lock is granted, so that a waiter that is dropped leaves the queue.
        let guard = RowGuard { locks: self, ticket: self.queue.borrow_mut().enter(rows) };
        poll_fn(|context| {
            let mut queue = self.queue.borrow_mut();
            let request = queue.find(guard.ticket);
            if request.granted {
                return Poll::Ready(());
            }
            request.waker = Some(context.waker().clone());
            Poll::Pending
        })
        .await;
        guard
    }
}

impl Queue {
    fn enter(&mut self, rows: Range<u64>) -> u64 {
        let ticket = self.next_ticket;
        self.next_ticket += 1;
        let granted = !self.requests.iter().any(|earlier| overlap(&earlier.rows, &rows));
        self.requests.push_back(Request { ticket, rows, granted, waker: None });
        ticket
    }

    fn find(&mut self, ticket: u64) -> &mut Request {
        self.requests.iter_mut().find(|request| request.ticket == ticket).expect("a guard is in the queue")
    }

    /// Takes a request out and grants what it alone held up.
    fn leave(&mut self, ticket: u64) -> Vec<Waker> {
        let place = self.requests.iter().position(|request| request.ticket == ticket);
        let gone = self.requests.remove(place.expect("a guard is in the queue")).expect("in range");
        let mut wakers = Vec::new();
        for later in place.unwrap_or(0)..self.requests.len() {
            let rows = self.requests[later].rows.clone();
            if self.requests[later].granted || !overlap(&rows, &gone.rows) {
                continue;
            }
            if !self.requests.iter().take(later).any(|earlier| overlap(&earlier.rows, &rows)) {
                let request = &mut self.requests[later];
                request.granted = true;
                wakers.extend(request.waker.take());
            }
        }
        wakers
    }
}

impl Drop for RowGuard<'_> {
    fn drop(&mut self) {
        let wakers = self.locks.queue.borrow_mut().leave(self.ticket);
        for waker in wakers {
            waker.wake();
        }
    }
}

fn overlap(a: &Range<u64>, b: &Range<u64>) -> bool {
    a.start < b.end && b.start < a.end
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt;

    #[test]
    fn overlapping_rows_wait_in_order_and_others_pass() {
        let locks = RowLocks::default();
        let first = locks.lock(0..10).now_or_never().expect("free");
        let mut second = Box::pin(locks.lock(5..15));
        let mut third = Box::pin(locks.lock(12..20));
        assert!(second.as_mut().now_or_never().is_none());
        assert!(third.as_mut().now_or_never().is_none(), "the second came first");
        let elsewhere = locks.lock(20..30).now_or_never();
        assert!(elsewhere.is_some());
        drop(first);
        let held = second.as_mut().now_or_never().expect("free now");
        assert!(third.as_mut().now_or_never().is_none());
        drop(held);
        assert!(third.as_mut().now_or_never().is_some());
    }

    #[test]
    fn a_dropped_waiter_lets_the_next_in() {
        let locks = RowLocks::default();
        let first = locks.lock(0..1).now_or_never().expect("free");
        let mut second = Box::pin(locks.lock(0..2));
        let mut third = Box::pin(locks.lock(1..2));
        assert!(second.as_mut().now_or_never().is_none());
        assert!(third.as_mut().now_or_never().is_none());
        drop(second);
        assert!(third.as_mut().now_or_never().is_some());
        drop(first);
        drop(third);
        assert!(locks.queue.borrow().requests.is_empty());
    }
}
