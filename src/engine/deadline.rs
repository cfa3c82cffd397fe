//! Deadlines of member operations: a disk that hangs is a disk that has failed, only later.
//!
//! Every operation on a member is entered in a list with the time by which it must have ended. One task looks through
//! the list now and then, as long as anything is in it, and ends what is overdue with [`IoErrorKind::Timeout`]; so an
//! operation costs no timer of its own.
//!
//! Invariants:
//! - What is overdue is answered at most [`PRECISION`] of the timeout late.
//! - The operation itself is not recalled, as nobody can do that: its buffers stay with whoever does the I/O until it
//!   ends, and so does the lock on the device, which therefore cannot be opened as a member again before.

use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Poll, Waker};
use std::time::Duration;

use slab::Slab;

use crate::io::{IoError, IoErrorKind, Runtime};

/// What a member has for one operation, unless told otherwise.
pub(super) const MEMBER_TIMEOUT: Duration = Duration::from_secs(10);

/// The list is looked through this often within a timeout.
const PRECISION: u32 = 8;

/// Long operations (zeroing) get a second more for so many bytes.
const BYTES_PER_SECOND_MIN: u64 = 16 << 20;

const OVERDUE: IoError = IoError::new(IoErrorKind::Timeout, "the member did not answer in time");

struct Entry {
    until: Duration,
    overdue: bool,
    waker: Option<Waker>,
}

type Arm = Box<dyn Fn(Rc<Deadlines>)>;

/// The operations of an array's members that are under way.
pub(super) struct Deadlines {
    timeout: Cell<Duration>,
    entries: RefCell<Slab<Entry>>,
    watching: Cell<bool>,
    now: Box<dyn Fn() -> Duration>,
    arm: Arm,
}

/// An entry in the list, taken out when the operation ends or its future is dropped.
struct Listed<'a> {
    list: &'a Deadlines,
    key: usize,
}

impl Drop for Listed<'_> {
    fn drop(&mut self) {
        self.list.entries.borrow_mut().remove(self.key);
    }
}

impl Deadlines {
    pub fn new<R: Runtime>(runtime: &R) -> Rc<Deadlines> {
        let (clock, spawner) = (runtime.clone(), runtime.clone());
        Rc::new(Deadlines {
            timeout: Cell::new(MEMBER_TIMEOUT),
            entries: RefCell::default(),
            watching: Cell::new(false),
            now: Box::new(move || clock.now()),
            arm: Box::new(move |list| {
                let runtime = spawner.clone();
                spawner.spawn(async move { list.watch(&runtime).await });
            }),
        })
    }

    /// The array's clock.
    pub fn now(&self) -> Duration {
        (self.now)()
    }

    pub fn timeout(&self) -> Duration {
        self.timeout.get()
    }

    /// Holds for operations that begin from now on.
    pub fn set_timeout(&self, timeout: Duration) {
        self.timeout.set(timeout);
    }

    /// Awaits an operation, at most until its deadline. It is pinned where it was made: handed over by value it would be
    /// copied several times.
    pub async fn bound<T>(
        self: &Rc<Self>,
        zeroed_bytes: u64,
        mut operation: Pin<&mut impl Future<Output = Result<T, IoError>>>,
    ) -> Result<T, IoError> {
        let until =
            (self.now)() + self.timeout.get() + Duration::from_secs(zeroed_bytes / BYTES_PER_SECOND_MIN);
        let key = self.entries.borrow_mut().insert(Entry { until, overdue: false, waker: None });
        let listed = Listed { list: self, key };
        poll_fn(|context| {
            if let Poll::Ready(result) = operation.as_mut().poll(context) {
                return Poll::Ready(result);
            }
            let mut entries = self.entries.borrow_mut();
            let entry = &mut entries[listed.key];
            if entry.overdue {
                return Poll::Ready(Err(OVERDUE));
            }
            if !entry.waker.as_ref().is_some_and(|waker| waker.will_wake(context.waker())) {
                entry.waker = Some(context.waker().clone());
            }
            drop(entries);
            if !self.watching.replace(true) {
                (self.arm)(self.clone());
            }
            Poll::Pending
        })
        .await
    }

    async fn watch<R: Runtime>(&self, runtime: &R) {
        while !self.entries.borrow().is_empty() {
            runtime.sleep(self.timeout.get() / PRECISION).await;
            let now = runtime.now();
            let mut late = Vec::new();
            for (_, entry) in self.entries.borrow_mut().iter_mut().filter(|(_, entry)| entry.until <= now) {
                entry.overdue = true;
                late.extend(entry.waker.take());
            }
            late.into_iter().for_each(Waker::wake);
        }
        self.watching.set(false);
    }
}
