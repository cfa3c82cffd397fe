//! The way into a reactor from outside: jobs and wake-ups, from any thread.
//!
//! A message is put into a locked queue, and a flag says that something is there, so that a look costs no lock; if the reactor may be asleep in its ring, its eventfd is written, on which a
//! read is always armed there. Wakers of tasks come the same way, unless they are used on the reactor's own thread:
//! then the task goes straight into its run queue.
//!
//! Why no wake-up is lost: the reactor says "asleep" before it looks at the queue for the last time, under the lock;
//! who pushes looks at "asleep" after it pushed, under the same lock. If the reactor saw an empty queue, the pusher's
//! turn with the lock came later, so it sees "asleep" and writes.
//!
//! Invariants:
//! - `asleep` is swapped back by the one who writes: one write per sleep, however many push.
//! - A task is never dropped here: its future belongs to the reactor's thread. The reactor closes the queue only when
//!   all its tasks are gone.

use std::collections::VecDeque;
use std::fmt;
use std::future::Future;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_task::Runnable;
use futures_channel::oneshot;
use nix::sys::eventfd::{EfdFlags, EventFd};

use super::executor::{self, Local};
use super::timer::monotonic;

/// What arrives.
pub(super) enum Message {
    /// A task to poll.
    Task(Runnable),
    /// Something to run on the reactor's thread.
    Job(Box<dyn FnOnce() + Send>),
}

#[derive(Default)]
struct Inbox {
    messages: VecDeque<Message>,
    /// The reactor has been asked to end.
    stop: bool,
    /// The reactor has ended; nobody will look here again.
    closed: bool,
}

/// What a reactor and those who know it share.
pub(super) struct Shared {
    index: usize,
    inbox: Mutex<Inbox>,
    /// Something has been put into the inbox, or it has been asked to end, since it was last taken.
    has_news: AtomicBool,
    asleep: AtomicBool,
    /// Calls of the ring, as far as the reactor has told.
    ring_calls: AtomicU64,
    /// How long it has slept, and since when it sleeps now.
    slept: Mutex<(Duration, Option<Duration>)>,
    /// When it was made, by the reactors' clock.
    began: Duration,
    event: EventFd,
}

impl Shared {
    pub fn new(index: usize) -> io::Result<Shared> {
        // Blocking, so that a read in the ring waits instead of failing with EAGAIN. A write never blocks: it would
        // take 2^64 of them.
        let event = EventFd::from_flags(EfdFlags::EFD_CLOEXEC)?;
        Ok(Shared {
            index,
            inbox: Mutex::default(),
            has_news: AtomicBool::default(),
            asleep: AtomicBool::default(),
            ring_calls: AtomicU64::default(),
            slept: Mutex::default(),
            began: monotonic(),
            event,
        })
    }

    /// Makes a task run: in the local queue on its own thread, else through the inbox.
    pub fn schedule(self: &Arc<Self>, runnable: Runnable) {
        if let Some(runnable) = executor::push_local(self, runnable)
            && let Err(Message::Task(runnable)) = self.push(Message::Task(runnable))
        {
            // All tasks were gone before the inbox closed. Dropping one here would drop its future on a foreign thread.
            std::mem::forget(runnable);
        }
    }

    fn push(&self, message: Message) -> Result<(), Message> {
        let mut inbox = self.lock();
        if inbox.closed {
            return Err(message);
        }
        inbox.messages.push_back(message);
        self.has_news.store(true, Ordering::SeqCst);
        drop(inbox);
        self.rouse();
        Ok(())
    }

    fn rouse(&self) {
        if self.asleep.swap(false, Ordering::SeqCst) {
            self.event.write(1).expect("an eventfd takes a write");
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inbox> {
        // No statement under the lock can leave the inbox half changed.
        self.inbox.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// For the reactor: whether anything has arrived.
    pub fn has_news(&self) -> bool {
        self.has_news.load(Ordering::SeqCst)
    }

    /// For the reactor: everything that has arrived. False if it is to end.
    pub fn take(&self, into: &mut VecDeque<Message>) -> bool {
        assert!(into.is_empty());
        if !self.has_news() {
            return true;
        }
        let mut inbox = self.lock();
        // Once it is to end, that is news for ever.
        self.has_news.store(inbox.stop, Ordering::SeqCst);
        std::mem::swap(&mut inbox.messages, into);
        !inbox.stop
    }

    /// For the reactor: whether it may block; if so, whoever pushes from now on rouses it.
    pub fn try_sleep(&self) -> bool {
        self.asleep.store(true, Ordering::SeqCst);
        let inbox = self.lock();
        let idle = inbox.messages.is_empty() && !inbox.stop;
        drop(inbox);
        if !idle {
            self.wake_up();
        }
        idle
    }

    /// For the reactor: it is not blocked any more.
    pub fn wake_up(&self) {
        self.asleep.store(false, Ordering::SeqCst);
    }

    /// For the reactor: so many calls of the ring there have been.
    pub fn tell_ring_calls(&self, calls: u64) {
        self.ring_calls.store(calls, Ordering::Relaxed);
    }

    fn slept(&self) -> MutexGuard<'_, (Duration, Option<Duration>)> {
        self.slept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// For the reactor: it sleeps from now on.
    pub fn tell_sleep(&self, now: Duration) {
        self.slept().1 = Some(now);
    }

    /// For the reactor: it has slept until now.
    pub fn tell_waking(&self, now: Duration) {
        let (before, since) = &mut *self.slept();
        *before += since.take().map_or(Duration::ZERO, |since| now.saturating_sub(since));
    }

    /// How long it has slept until now.
    fn asleep(&self) -> Duration {
        let (before, since) = *self.slept();
        before + since.map_or(Duration::ZERO, |since| monotonic().saturating_sub(since))
    }

    /// For the reactor: nothing is taken from here again.
    pub fn close(&self) {
        let mut inbox = self.lock();
        inbox.closed = true;
        let rest = std::mem::take(&mut inbox.messages);
        drop(inbox);
        for message in rest {
            assert!(matches!(message, Message::Job(_)), "a task outlived its reactor");
        }
    }
}

impl AsFd for Shared {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }
}

/// The reactor has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the reactor has ended")]
pub struct Stopped;

/// How busy a reactor has been.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Load {
    /// Time since it was started.
    pub up: Duration,
    /// Time that it has slept. To look for news before a sleep is no sleep.
    pub asleep: Duration,
}

/// A reactor, as others know it. Clones name the same one. Dropping all of them does not stop it.
#[derive(Clone)]
pub struct ReactorHandle {
    shared: Arc<Shared>,
}

impl ReactorHandle {
    pub(super) fn new(shared: Arc<Shared>) -> ReactorHandle {
        ReactorHandle { shared }
    }

    /// The number it was started with.
    pub fn index(&self) -> usize {
        self.shared.index
    }

    /// How often it has entered its ring: calls of the kernel for all that it does but waking others.
    pub fn ring_calls(&self) -> u64 {
        self.shared.ring_calls.load(Ordering::Relaxed)
    }

    /// How busy it has been.
    pub fn load(&self) -> Load {
        let asleep = self.shared.asleep();
        Load { up: monotonic() - self.shared.began, asleep }
    }

    /// Whether the calling thread is this reactor's.
    pub fn is_current(&self) -> bool {
        Local::current().is_some_and(|local| Arc::ptr_eq(&local.shared, &self.shared))
    }

    /// Runs `job` on the reactor's thread, soon; jobs from one thread in the order they were posted. The job may
    /// spawn tasks there but must not block. A reactor that ends first drops the job unrun.
    pub fn post(&self, job: impl FnOnce() + Send + 'static) -> Result<(), Stopped> {
        self.shared.push(Message::Job(Box::new(job))).map_err(|_| Stopped)
    }

    /// Runs the future that `make` makes on the reactor's thread, as a task of its own, and sends its result back.
    /// The answer is `Canceled` if the reactor ends first. Dropping the receiver does not recall the task.
    pub fn call<T, F>(&self, make: impl FnOnce() -> F + Send + 'static) -> oneshot::Receiver<T>
    where
        T: Send + 'static,
        F: Future<Output = T> + 'static,
    {
        let (answer, receiver) = oneshot::channel();
        let start = move |local: &std::rc::Rc<Local>| {
            local.spawn(async move {
                // Nobody waiting for the answer is no failure.
                drop(answer.send(make().await));
            });
        };
        match Local::current() {
            Some(local) if Arc::ptr_eq(&local.shared, &self.shared) => start(&local),
            // A refused job is dropped, and the sender with it: the receiver learns that.
            _ => self.post(move || start(&Local::expect_current())).unwrap_or(()),
        }
        receiver
    }

    /// Asks the reactor to end: its tasks are dropped where they are, its operations under way are cancelled or
    /// waited for. Returns at once; join the thread to wait.
    pub fn stop(&self) {
        {
            let mut inbox = self.shared.lock();
            inbox.stop = true;
            self.shared.has_news.store(true, Ordering::SeqCst);
        }
        self.shared.rouse();
    }
}

impl fmt::Debug for ReactorHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ReactorHandle({})", self.index())
    }
}
