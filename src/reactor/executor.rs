//! The reactor's thread: one ring, one run queue, one loop.
//!
//! A turn of the loop: take what arrived from outside, run what is runnable, fire the timers that are due, enter the
//! ring once (submitting everything, and waiting if there is nothing to run), reap. Where waits have been short of late, it
//! looks for a moment whether something comes before it goes to sleep (`Vigil`): to be woken costs more than that.
//!
//! Invariants:
//! - Futures are created, polled and dropped on this thread. Wakers go anywhere.
//! - No RefCell here stays borrowed while a waker is woken or dropped, a task is run, or an operation's memory is
//!   dropped: any of these may come back in.
//! - Every task is in `active` until its future is gone. So at the end all of them are found and dropped, whoever
//!   holds their wakers.
//!
//! How it fails: a task that panics ends the reactor. Tasks are dropped and operations waited for as in a stop, then the
//! panic goes on to whoever joins the thread.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::Future;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::mpsc::sync_channel;
use std::task::Waker;
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use async_task::Runnable;
use slab::Slab;

use super::mailbox::{Message, ReactorHandle, Shared};
use super::op::{self, Descriptor, OpTable, Shares};
use super::ring::{Completion, Ring, Wait};
use super::timer::{Sleep, Timers, monotonic};
use crate::io::{Clock, Spawn};

/// Tasks run in one turn, so that a task that always wakes itself does not keep the ring from being entered.
const TASKS_PER_TURN_MAX: usize = 256;

/// How long news are looked for before a sleep: about what it costs to be woken on another core, both sides together. With 20 us
/// a read of 4 KiB at depth 1 from memory takes half as long again (38 us, not 25) for the same processor time.
const VIGIL_MAX: Duration = Duration::from_micros(50);

/// Looks between two at the clock.
const VIGIL_LOOKS: usize = 32;

/// Short waits that are remembered.
const VIGIL_SCORE_MAX: u8 = 16;

/// How long an ending reactor waits for its operations. After that their memory is leaked: the kernel may still write
/// into it.
const LAST_OPERATIONS_WAIT: Duration = Duration::from_secs(5);

thread_local! {
    static CURRENT: RefCell<Option<Rc<Local>>> = const { RefCell::new(None) };
}

/// All that belongs to one reactor's thread.
pub(super) struct Local {
    pub shared: Arc<Shared>,
    pub ring: RefCell<Ring>,
    pub ops: RefCell<OpTable>,
    pub timers: RefCell<Timers>,
    /// What this turn has submitted that is copied within memory.
    pub shares: Cell<Shares>,
    /// When this turn began: a look at the clock for every request and each of its operations would be a fortieth of their cost.
    now: Cell<Duration>,
    queue: RefCell<VecDeque<Runnable>>,
    active: RefCell<Slab<Waker>>,
}

/// Starts a reactor: a thread of this name with a ring of its own. `index` is for people, and for who spreads work.
///
/// An error says why there is no ring, and what to allow. Join the handle after [`ReactorHandle::stop`]; joining gives
/// the panic of a task that panicked.
pub fn start(index: usize, name: &str) -> io::Result<(ReactorHandle, JoinHandle<()>)> {
    let shared = Arc::new(Shared::new(index)?);
    let handle = ReactorHandle::new(shared.clone());
    let (report, started) = sync_channel(1);
    let thread = std::thread::Builder::new().name(name.to_owned()).spawn(move || {
        // The ring belongs to the thread that makes it.
        match Ring::new() {
            Ok(ring) => {
                let local = Rc::new(Local::new(shared, ring));
                report.send(Ok(())).expect("who starts a reactor waits for it");
                local.live();
            }
            Err(error) => report.send(Err(error)).expect("who starts a reactor waits for it"),
        }
    })?;
    started.recv().expect("a starting reactor reports")?;
    Ok((handle, thread))
}

/// The calling thread's reactor, as a clock and a spawner. Panics on any other thread.
pub fn runtime() -> LocalRuntime {
    LocalRuntime { local: Local::expect_current() }
}

/// Time and tasks on one reactor's thread.
#[derive(Clone)]
pub struct LocalRuntime {
    local: Rc<Local>,
}

impl LocalRuntime {
    /// The reactor, as others know it.
    pub fn handle(&self) -> ReactorHandle {
        ReactorHandle::new(self.local.shared.clone())
    }
}

impl Clock for LocalRuntime {
    /// As of this turn of the loop: what a task has taken since then is not in it.
    fn now(&self) -> Duration {
        self.local.now.get()
    }

    fn wall(&self) -> Duration {
        SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO)
    }

    async fn sleep(&self, duration: Duration) {
        Sleep::new(self.local.clone(), duration).await;
    }
}

impl Spawn for LocalRuntime {
    fn spawn(&self, task: impl Future<Output = ()> + 'static) {
        self.local.spawn(task);
    }
}

/// Puts the task into the run queue if this is its reactor's thread; else hands it back.
pub(super) fn push_local(shared: &Arc<Shared>, runnable: Runnable) -> Option<Runnable> {
    match Local::current() {
        Some(local) if Arc::ptr_eq(&local.shared, shared) => {
            local.queue.borrow_mut().push_back(runnable);
            None
        }
        _ => Some(runnable),
    }
}

impl Local {
    fn new(shared: Arc<Shared>, ring: Ring) -> Local {
        Local {
            shared,
            ring: RefCell::new(ring),
            ops: RefCell::default(),
            timers: RefCell::default(),
            shares: Cell::default(),
            now: Cell::new(monotonic()),
            queue: RefCell::default(),
            active: RefCell::default(),
        }
    }

    /// The calling thread's reactor, if it is one.
    pub fn current() -> Option<Rc<Local>> {
        // A thread that is being torn down is no reactor any more.
        CURRENT.try_with(|current| current.borrow().clone()).ok().flatten()
    }

    /// The calling thread's reactor. Panics if it is none.
    pub fn expect_current() -> Rc<Local> {
        Local::current().expect("only on a reactor's thread: use ReactorHandle::call or post to get there")
    }

    pub fn spawn(self: &Rc<Self>, future: impl Future<Output = ()> + 'static) {
        let mut active = self.active.borrow_mut();
        let entry = active.vacant_entry();
        let guard = Active { local: self.clone(), key: entry.key() };
        let future = async move {
            let _guard = guard;
            future.await;
        };
        let shared = self.shared.clone();
        let (runnable, task) = async_task::spawn_local(future, move |runnable| shared.schedule(runnable));
        entry.insert(runnable.waker());
        drop(active);
        task.detach();
        self.queue.borrow_mut().push_back(runnable);
    }

    /// From the first task to the last operation.
    fn live(self: Rc<Self>) {
        CURRENT.set(Some(self.clone()));
        let outcome = catch_unwind(AssertUnwindSafe(|| self.turns()));
        self.drop_tasks();
        self.shared.close();
        self.await_operations();
        CURRENT.set(None);
        if let Err(panic) = outcome {
            resume_unwind(panic);
        }
    }

    fn turns(self: &Rc<Self>) {
        self.arm_wake_up();
        let mut messages = VecDeque::new();
        let mut completions = Vec::new();
        let mut vigil = Vigil::default();
        while self.shared.take(&mut messages) {
            for message in messages.drain(..) {
                match message {
                    Message::Task(runnable) => self.queue.borrow_mut().push_back(runnable),
                    Message::Job(job) => job(),
                }
            }
            self.run_tasks();
            self.fire_timers();
            let is_busy = !self.queue.borrow().is_empty();
            let goes_on = is_busy || vigil.is_worth_it() && self.keep_vigil(&mut vigil);
            if !goes_on && self.shared.try_sleep() {
                let (began, deadline) = (monotonic(), self.timers.borrow().next_deadline());
                let wait = Wait::AtMost(deadline.map(|deadline| deadline.saturating_sub(began)));
                self.shared.tell_sleep(began);
                self.ring.borrow_mut().enter(wait);
                self.shared.wake_up();
                let woken = monotonic();
                self.shared.tell_waking(woken);
                vigil.note_wait(woken - began);
            } else {
                self.ring.borrow_mut().enter(Wait::No);
            }
            self.shared.tell_ring_calls(self.ring.borrow().calls());
            self.shares.set(Shares::default());
            self.now.set(monotonic());
            self.reap(&mut completions);
        }
    }

    /// Submits what there is, and looks for a moment whether anything comes; true if so.
    fn keep_vigil(&self, vigil: &mut Vigil) -> bool {
        let mut ring = self.ring.borrow_mut();
        ring.enter(Wait::No);
        let began = monotonic();
        let end = self.timers.borrow().next_deadline().unwrap_or(Duration::MAX);
        loop {
            for _ in 0..VIGIL_LOOKS {
                if ring.has_news() || self.shared.has_news() {
                    vigil.note_wait(monotonic() - began);
                    return true;
                }
                std::hint::spin_loop();
            }
            let now = monotonic();
            if now >= began + VIGIL_MAX || now >= end {
                vigil.note_wait(VIGIL_MAX);
                return false;
            }
        }
    }

    fn run_tasks(&self) {
        for _ in 0..TASKS_PER_TURN_MAX {
            let Some(runnable) = self.queue.borrow_mut().pop_front() else { return };
            runnable.run();
        }
    }

    fn fire_timers(&self) {
        if self.timers.borrow().next_deadline().is_none() {
            return;
        }
        let now = monotonic();
        loop {
            let Some(waker) = self.timers.borrow_mut().pop_due(now) else { return };
            waker.wake();
        }
    }

    fn reap(&self, completions: &mut Vec<Completion>) {
        self.ring.borrow_mut().reap(completions);
        for completion in completions.drain(..) {
            let ended = self.ops.borrow_mut().complete(completion);
            ended.wake();
        }
    }

    /// Keeps a read armed on the eventfd for as long as the reactor lives.
    fn arm_wake_up(self: &Rc<Self>) {
        let local = self.clone();
        let event: Descriptor = Rc::new(self.shared.clone());
        self.spawn(async move {
            loop {
                op::read_event(&local, &event).await.expect("an eventfd can be read");
            }
        });
    }

    /// Drops every task. One may just be on its way here from another thread, so this waits for it to arrive.
    fn drop_tasks(&self) {
        let mut messages = VecDeque::new();
        loop {
            let wakers: Vec<Waker> = self.active.borrow().iter().map(|(_, waker)| waker.clone()).collect();
            if wakers.is_empty() {
                return;
            }
            // A task that is woken is put into a queue, and what is dropped from a queue is cancelled.
            wakers.into_iter().for_each(Waker::wake);
            self.shared.take(&mut messages);
            messages.clear();
            loop {
                let Some(runnable) = self.queue.borrow_mut().pop_front() else { break };
                drop(runnable);
            }
            std::thread::yield_now();
        }
    }

    fn await_operations(&self) {
        if self.ops.borrow().is_empty() {
            return;
        }
        op::cancel_all(self);
        let deadline = monotonic() + LAST_OPERATIONS_WAIT;
        let mut completions = Vec::new();
        while !self.ops.borrow().is_empty() {
            let left = deadline.saturating_sub(monotonic());
            if left.is_zero() {
                let count = self.ops.borrow().len();
                tracing::warn!(count, "operations have not come back; their memory stays with the kernel");
                return;
            }
            self.ring.borrow_mut().enter(Wait::AtMost(Some(left)));
            self.reap(&mut completions);
        }
    }
}

/// Whether it pays to look for news before going to sleep: only where they have been coming soon, so that an idle core is
/// left alone, and one that waits for a slow disk as well.
#[derive(Default)]
struct Vigil {
    /// Rises with short waits, falls faster with long ones.
    score: u8,
}

impl Vigil {
    fn is_worth_it(&self) -> bool {
        self.score >= VIGIL_SCORE_MAX / 2
    }

    /// So long it took until there was something to do, asleep or not.
    fn note_wait(&mut self, waited: Duration) {
        self.score = match waited < VIGIL_MAX {
            true => (self.score + 1).min(VIGIL_SCORE_MAX),
            false => self.score.saturating_sub(VIGIL_SCORE_MAX / 4),
        };
    }
}

/// A task's entry in the list of all; gone with its future.
struct Active {
    local: Rc<Local>,
    key: usize,
}

impl Drop for Active {
    fn drop(&mut self) {
        let waker = self.local.active.borrow_mut().remove(self.key);
        drop(waker);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vigil_is_kept_only_where_news_have_been_coming_soon() {
        let (short, long) = (VIGIL_MAX / 2, VIGIL_MAX * 2);
        let mut vigil = Vigil::default();
        assert!(!vigil.is_worth_it());
        (0..VIGIL_SCORE_MAX / 2).for_each(|_| vigil.note_wait(short));
        assert!(vigil.is_worth_it());
        vigil.note_wait(long);
        assert!(!vigil.is_worth_it());
        (0..100).for_each(|_| vigil.note_wait(short));
        (0..3).for_each(|_| vigil.note_wait(long));
        assert!(!vigil.is_worth_it(), "three long waits outweigh any number of short ones");
    }
}
