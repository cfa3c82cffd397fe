//! Timers: who waits until when.
//!
//! Invariant: an entry is there exactly while its sleep is pending. One that fired or was dropped is gone, so a
//! cancelled sleep neither wakes its task nor keeps it.
//!
//! Entries are kept in order of deadline, then of arrival: sleeps of one deadline end in the order they began.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::OnceLock;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use super::executor::Local;

/// Time since the first call in this process; the same for all its threads.
pub(super) fn monotonic() -> Duration {
    static START: OnceLock<Instant> = OnceLock::new();
    START.get_or_init(Instant::now).elapsed()
}

/// A deadline, and a number that makes it unique.
pub(super) type TimerKey = (Duration, u64);

/// The pending sleeps of one reactor.
#[derive(Default)]
pub(super) struct Timers {
    pending: BTreeMap<TimerKey, Waker>,
    next: u64,
}

impl Timers {
    fn insert(&mut self, deadline: Duration, waker: Waker) -> TimerKey {
        let key = (deadline, self.next);
        self.next += 1;
        self.pending.insert(key, waker);
        key
    }

    /// Replaces the waker of a pending entry; hands back the old one. None if the entry has fired.
    fn replace(&mut self, key: TimerKey, waker: &Waker) -> Option<Waker> {
        let entry = self.pending.get_mut(&key)?;
        Some(std::mem::replace(entry, waker.clone()))
    }

    fn remove(&mut self, key: TimerKey) -> Option<Waker> {
        self.pending.remove(&key)
    }

    /// When the next one is due.
    pub fn next_deadline(&self) -> Option<Duration> {
        self.pending.first_key_value().map(|((deadline, _), _)| *deadline)
    }

    /// Takes one that is due.
    pub fn pop_due(&mut self, now: Duration) -> Option<Waker> {
        let entry = self.pending.first_entry()?;
        (entry.key().0 <= now).then(|| entry.remove())
    }

    #[cfg(test)]
    fn len(&self) -> usize {
        self.pending.len()
    }
}

/// A wait. It gives way at least once, also where the time is zero.
pub(super) struct Sleep {
    local: Rc<Local>,
    deadline: Duration,
    key: Option<TimerKey>,
}

impl Sleep {
    /// From now on.
    pub fn new(local: Rc<Local>, duration: Duration) -> Sleep {
        Sleep { local, deadline: monotonic().saturating_add(duration), key: None }
    }
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let Some(key) = self.key else {
            let key = self.local.timers.borrow_mut().insert(self.deadline, context.waker().clone());
            self.key = Some(key);
            return Poll::Pending;
        };
        // The old waker is dropped only here, after the borrow: dropping it may drop a task.
        let old = self.local.timers.borrow_mut().replace(key, context.waker());
        if old.is_some() { Poll::Pending } else { Poll::Ready(()) }
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        if let Some(key) = self.key {
            let waker = self.local.timers.borrow_mut().remove(key);
            drop(waker);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn due_in_order_of_deadline_then_arrival() {
        let mut timers = Timers::default();
        let waker = Waker::noop();
        let ms = Duration::from_millis;
        let late = timers.insert(ms(30), waker.clone());
        let first = timers.insert(ms(10), waker.clone());
        let second = timers.insert(ms(10), waker.clone());
        assert_eq!(timers.next_deadline(), Some(ms(10)));
        assert!(timers.pop_due(ms(9)).is_none());
        assert!(timers.pop_due(ms(10)).is_some());
        assert!(timers.replace(first, waker).is_none(), "the first has fired");
        assert!(timers.replace(second, waker).is_some());
        assert!(timers.remove(second).is_some());
        assert!(timers.pop_due(ms(29)).is_none());
        assert!(timers.remove(late).is_some());
        assert_eq!((timers.len(), timers.next_deadline()), (0, None));
    }
}
