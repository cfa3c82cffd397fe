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
use std::collections::BTreeMap;
use std::future::poll_fn;
use std::ops::Range;
use std::task::{Poll, Waker};

use smallvec::SmallVec;

use super::mutant::{self, Mutant};

/// Locks over ranges of rows.
#[derive(Default)]
pub(super) struct RowLocks {
    queue: RefCell<Queue>,
}

/// Where a request is found: its first row, and its number in the order of arrival.
type Key = (u64, u64);

/// Requests by their rows, granted or not, so that who is in whose way is found without a look at all of them.
#[derive(Default)]
struct Queue {
    next_ticket: u64,
    requests: BTreeMap<Key, Request>,
    /// No request is for more rows than this.
    longest: u64,
}

struct Request {
    end: u64,
    granted: bool,
    waker: Option<Waker>,
}

/// A lock held; dropping it lets the next one in.
pub(super) struct RowGuard<'a> {
    locks: &'a RowLocks,
    key: Key,
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
        let guard = RowGuard { locks: self, key: self.queue.borrow_mut().enter(&rows) };
        poll_fn(|context| {
            let mut queue = self.queue.borrow_mut();
            let request = queue.requests.get_mut(&guard.key).expect("a guard is in the queue");
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
    /// The requests that overlap these rows.
    fn overlapping<'a>(&'a self, rows: &'a Range<u64>) -> impl Iterator<Item = (&'a Key, &'a Request)> {
        let near = (rows.start.saturating_sub(self.longest), 0)..(rows.end, 0);
        self.requests.range(near).filter(|(_, request)| request.end > rows.start)
    }

    fn enter(&mut self, rows: &Range<u64>) -> Key {
        let key = (rows.start, self.next_ticket);
        self.next_ticket += 1;
        let granted = self.overlapping(rows).next().is_none();
        self.longest = self.longest.max(rows.end - rows.start);
        self.requests.insert(key, Request { end: rows.end, granted, waker: None });
        key
    }

    /// Takes a request out and grants what it alone held up.
    fn leave(&mut self, key: Key) -> SmallVec<[Waker; 4]> {
        let gone = self.requests.remove(&key).expect("a guard is in the queue");
        let rows = key.0..gone.end;
        let waiting = self.overlapping(&rows).filter(|(_, request)| !request.granted);
        let mut later: SmallVec<[Key; 4]> =
            waiting.map(|(key, _)| *key).filter(|other| other.1 > key.1).collect();
        later.sort_unstable_by_key(|(_, ticket)| *ticket);
        let mut wakers = SmallVec::new();
        for key in later {
            let rows = key.0..self.requests[&key].end;
            if self.overlapping(&rows).all(|(other, _)| other.1 >= key.1) {
                let request = self.requests.get_mut(&key).expect("just seen");
                request.granted = true;
                wakers.extend(request.waker.take());
            }
        }
        if self.requests.is_empty() {
            self.longest = 0;
        }
        wakers
    }
}

impl Drop for RowGuard<'_> {
    fn drop(&mut self) {
        let wakers = self.locks.queue.borrow_mut().leave(self.key);
        for waker in wakers {
            waker.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt;
    use proptest::prelude::*;
    use std::future::pending;

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

    proptest! {
        /// Against a plain list of requests in order of arrival.
        #[test]
        fn who_is_granted_is_who_overlaps_no_earlier_one(
            steps in prop::collection::vec((any::<bool>(), 0u64..40, 1u64..12, any::<prop::sample::Index>()), 1..60),
        ) {
            let locks = RowLocks::default();
            let mut held: Vec<(Range<u64>, _)> = Vec::new();
            for (enter, start, len, index) in steps {
                if enter || held.is_empty() {
                    let rows = start..start + len;
                    held.push((rows.clone(), Box::pin(async { let _held = locks.lock(rows).await; pending::<()>().await })));
                } else {
                    drop(held.remove(index.index(held.len())));
                }
                held.iter_mut().for_each(|(_, lock)| assert!(lock.as_mut().now_or_never().is_none()));
                let queue = locks.queue.borrow();
                let mut granted: Vec<(u64, bool)> =
                    queue.requests.iter().map(|(key, request)| (key.1, request.granted)).collect();
                granted.sort_unstable();
                for (at, (rows, _)) in held.iter().enumerate() {
                    let free = held[..at].iter().all(|(earlier, _)| earlier.end <= rows.start || rows.end <= earlier.start);
                    prop_assert_eq!(granted[at].1, free);
                }
            }
        }
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
