//! A world to run raidd in: tasks whose order a seed decides, a clock that moves when the world says so, and a trace of
//! all that happens. The same seed gives the same run, step by step.
//!
//! A *step* polls one ready task, any of them; or lets the next event happen (a disk's operation, a timer), which moves
//! the clock. Events wait while tasks are ready, mostly: now and then one comes in between, as interrupts do.
//!
//! Invariants:
//! - Whatever is random is drawn from the world's one sequence; nothing depends on addresses, threads or real time.
//! - Every step and all that anybody notes goes into the trace's hash: two runs with the same hash are the same run.
//! - When a run ends all its tasks are dropped, and all that was to happen is forgotten.

use std::cell::{Cell, RefCell};
use std::cmp::Ordering;
use std::collections::BinaryHeap;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering as Memory};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use raidd::io::{Clock, Spawn};

use crate::random::{Random, mix};

type Task = Pin<Box<dyn Future<Output = ()>>>;

/// The world; clones are the same one.
#[derive(Clone)]
pub struct World(Rc<Inner>);

struct Inner {
    random: Random,
    now: Cell<u64>,
    tasks: RefCell<Vec<Option<Task>>>,
    free: RefCell<Vec<u32>>,
    wakers: RefCell<Vec<(Arc<TaskWaker>, Waker)>>,
    ready: Arc<Mutex<Vec<u32>>>,
    events: RefCell<BinaryHeap<Event>>,
    timers: RefCell<Vec<Option<(u64, Waker)>>>,
    free_timers: RefCell<Vec<u32>>,
    dead_timers: Cell<usize>,
    sequence: Cell<u64>,
    steps: Cell<u64>,
    /// Everything stops where it is at this step, or before the disks change for this many more times.
    crash_at_step: Cell<u64>,
    changes_left: Cell<u64>,
    /// How many more superblocks are written before a crash comes.
    superblocks_left: Cell<u64>,
    crashed: Cell<bool>,
    failure: RefCell<Option<String>>,
    hash: Cell<u64>,
    telling: Cell<bool>,
    slowness: Cell<u64>,
    /// Events as far away as this do not come while tasks are ready.
    far: Cell<u64>,
}

struct TaskWaker {
    task: u32,
    queued: AtomicBool,
    ready: Arc<Mutex<Vec<u32>>>,
}

impl Wake for TaskWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if !self.queued.swap(true, Memory::Relaxed) {
            self.ready.lock().expect("nobody panics with it").push(self.task);
        }
    }
}

/// Something that has operations which come to their ends by themselves.
pub trait Happening {
    /// Operation `op` goes on.
    fn happen(self: Rc<Self>, world: &World, op: u32);
}

enum What {
    Timer(u32),
    Operation(Rc<dyn Happening>, u32),
}

struct Event {
    when: u64,
    sequence: u64,
    what: What,
}

impl PartialEq for Event {
    fn eq(&self, other: &Event) -> bool {
        self.sequence == other.sequence
    }
}
impl Eq for Event {}
impl PartialOrd for Event {
    fn partial_cmp(&self, other: &Event) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Event {
    /// The earliest is the greatest, as the heap wants it.
    fn cmp(&self, other: &Event) -> Ordering {
        (other.when, other.sequence).cmp(&(self.when, self.sequence))
    }
}

/// How a run ended.
#[derive(Debug, PartialEq, Eq)]
pub enum Ended<T> {
    /// The main task has ended, with this.
    Done(T),
    /// It was stopped where it was, as a kill does it.
    Crashed,
    /// Somebody saw what must not be.
    Failed(String),
}

/// Steps after which nobody believes that a run will ever end.
const STEPS_MAX: u64 = 80_000_000;

impl World {
    /// A world without anything in it.
    pub fn new(seed: u64) -> World {
        World(Rc::new(Inner {
            random: Random::new(seed),
            now: Cell::new(0),
            tasks: RefCell::default(),
            free: RefCell::default(),
            wakers: RefCell::default(),
            ready: Arc::default(),
            events: RefCell::default(),
            timers: RefCell::default(),
            free_timers: RefCell::default(),
            dead_timers: Cell::new(0),
            sequence: Cell::new(0),
            steps: Cell::new(0),
            crash_at_step: Cell::new(u64::MAX),
            changes_left: Cell::new(u64::MAX),
            superblocks_left: Cell::new(u64::MAX),
            crashed: Cell::new(false),
            failure: RefCell::default(),
            hash: Cell::new(seed),
            telling: Cell::new(false),
            slowness: Cell::new(1),
            far: Cell::new(1_000_000_000),
        }))
    }

    /// The world's random sequence.
    pub fn dice(&self) -> &Random {
        &self.0.random
    }

    /// A number below `limit`.
    pub fn random(&self, limit: u64) -> u64 {
        self.0.random.below(limit)
    }

    /// All disks take so many times as long as usual.
    pub fn slow_disks(&self, slowness: u64) {
        self.0.slowness.set(slowness);
    }

    /// How many times as long as usual disks take.
    pub fn slowness(&self) -> u64 {
        self.0.slowness.get()
    }

    /// While tasks are ready the clock moves by less than a second at once: nobody's patience is to end while nobody
    /// lets the other have its turn. After this it may, which only those survive who promise nothing about time.
    pub fn starve_tasks(&self) {
        self.0.far.set(u64::MAX);
    }

    fn has_event_near(&self) -> bool {
        self.0.events.borrow().peek().is_some_and(|event| event.when < self.near())
    }

    /// What is before this is not far away.
    fn near(&self) -> u64 {
        self.0.now.get().saturating_add(self.0.far.get())
    }

    /// Everything stops so many steps from now.
    pub fn crash_in(&self, steps: u64) {
        self.0.crash_at_step.set(self.0.steps.get() + steps);
    }

    /// Whether a crash is on its way.
    pub fn will_crash(&self) -> bool {
        let watches = [&self.0.crash_at_step, &self.0.changes_left, &self.0.superblocks_left];
        watches.iter().any(|watch| watch.get() != u64::MAX)
    }

    /// Everything stops before the disks change for the `changes`-th time from now, counted from 0.
    pub fn crash_after(&self, changes: u64) {
        self.0.changes_left.set(changes);
    }

    /// Disks ask before every change. If not, everything stops here.
    pub fn may_change(&self) -> bool {
        match self.0.changes_left.get() {
            u64::MAX => true,
            0 => {
                self.0.crashed.set(true);
                false
            }
            left => {
                self.0.changes_left.set(left - 1);
                true
            }
        }
    }

    /// Everything stops soon after so many superblocks have been written: what they say must be true by then.
    pub fn crash_at_superblock(&self, count: u64) {
        self.0.superblocks_left.set(count);
    }

    /// Disks say when they have written a superblock.
    pub fn superblock_written(&self) {
        match self.0.superblocks_left.get() {
            u64::MAX => {}
            0 | 1 => {
                self.0.superblocks_left.set(u64::MAX);
                self.crash_in(self.random(40));
            }
            left => self.0.superblocks_left.set(left - 1),
        }
    }

    /// Ends the run: this must not be.
    pub fn fail(&self, why: impl Into<String>) {
        let why = why.into();
        self.say(|| format!("FAILED: {why}"));
        self.0.failure.borrow_mut().get_or_insert(why);
    }

    /// Whether somebody has called `fail`.
    pub fn has_failed(&self) -> bool {
        self.0.failure.borrow().is_some()
    }

    /// Notes what happened, in the trace's hash.
    pub fn note(&self, what: u64, more: u64) {
        self.0
            .hash
            .set(mix(self.0.hash.get() ^ what.rotate_left(17) ^ more.wrapping_mul(0x2545_f491_4f6c_dd1d)));
    }

    /// Tells what happens, if somebody listens.
    pub fn say<T: fmt::Display>(&self, what: impl FnOnce() -> T) {
        if self.0.telling.get() {
            let now = self.0.now.get();
            println!("{:>9}.{:03} us  {}", now / 1000, now % 1000, what());
        }
    }

    /// Prints the trace from now on.
    pub fn tell_all(&self) {
        self.0.telling.set(true);
    }

    /// The hash of all that has happened.
    pub fn hash(&self) -> u64 {
        self.0.hash.get()
    }

    /// Steps taken.
    pub fn steps(&self) -> u64 {
        self.0.steps.get()
    }

    /// Operation `op` goes on in a while.
    pub fn later(&self, after: Duration, who: Rc<dyn Happening>, op: u32) {
        self.push(after, What::Operation(who, op));
    }

    fn push(&self, after: Duration, what: What) -> u64 {
        let sequence = self.0.sequence.get() + 1;
        self.0.sequence.set(sequence);
        let when = self.0.now.get() + after.as_nanos() as u64;
        self.0.events.borrow_mut().push(Event { when, sequence, what });
        sequence
    }

    /// Runs until `main` is done; panics if it does not come to that.
    pub fn run<T: 'static>(&self, main: impl Future<Output = T> + 'static) -> T {
        match self.run_steps(main, STEPS_MAX) {
            Ended::Done(value) => value,
            Ended::Crashed => panic!("crashed, unasked"),
            Ended::Failed(why) => panic!("{why}"),
        }
    }

    /// Runs until `main` is done, the world crashes or something is wrong.
    pub fn live<T: 'static>(&self, main: impl Future<Output = T> + 'static) -> Ended<T> {
        self.run_steps(main, STEPS_MAX)
    }

    /// Runs until `main` is done, but no longer than so many steps: then everything stops where it is, as a killed
    /// process does.
    pub fn run_steps<T: 'static>(&self, main: impl Future<Output = T> + 'static, steps: u64) -> Ended<T> {
        let result = Rc::new(Cell::new(None));
        let slot = result.clone();
        let done = Rc::new(Cell::new(false));
        let flag = done.clone();
        self.spawn(async move {
            slot.set(Some(main.await));
            flag.set(true);
        });
        let last = self.0.steps.get() + steps;
        loop {
            if done.get() || self.0.crashed.get() || self.has_failed() {
                break;
            }
            let step = self.0.steps.get();
            if step >= self.0.crash_at_step.get() || step >= last {
                self.0.crashed.set(true);
                if step >= last && steps == STEPS_MAX {
                    let timers = self.0.timers.borrow().iter().flatten().count();
                    let tasks = self.0.tasks.borrow().iter().flatten().count();
                    let events = self.0.events.borrow().len();
                    self.fail(format!(
                        "no end after {STEPS_MAX} steps, with {tasks} tasks, {timers} timers, {events} events: a livelock?"
                    ));
                }
                break;
            }
            if !self.step() {
                self.fail("everybody waits, and nothing will ever happen: a deadlock");
            }
        }
        self.clear();
        if let Some(why) = self.0.failure.borrow_mut().take() {
            return Ended::Failed(why);
        }
        result.take().map_or(Ended::Crashed, Ended::Done)
    }

    /// Drops all tasks and forgets what was to happen.
    fn clear(&self) {
        self.0.crashed.set(false);
        self.0.crash_at_step.set(u64::MAX);
        self.0.changes_left.set(u64::MAX);
        self.0.superblocks_left.set(u64::MAX);
        // Tasks that are dropped may wake and spawn others.
        loop {
            let tasks = std::mem::take(&mut *self.0.tasks.borrow_mut());
            if tasks.is_empty() {
                break;
            }
            drop(tasks);
        }
        self.0.free.borrow_mut().clear();
        self.0.wakers.borrow_mut().clear();
        self.0.ready.lock().expect("nobody panics with it").clear();
        let events = std::mem::take(&mut *self.0.events.borrow_mut());
        drop(events);
        self.0.timers.borrow_mut().clear();
        self.0.free_timers.borrow_mut().clear();
        self.0.dead_timers.set(0);
    }

    /// False if there is nothing to do, now or ever.
    fn step(&self) -> bool {
        self.0.steps.set(self.0.steps.get() + 1);
        let task = {
            let mut ready = self.0.ready.lock().expect("nobody panics with it");
            match ready.len() {
                0 => None,
                1 if self.random(16) > 0 => ready.pop(),
                // Whoever could go on is kept waiting, but not for long.
                _ if self.random(16) == 0 && self.has_event_near() => {
                    drop(ready);
                    self.pass_time(self.near());
                    return true;
                }
                count => {
                    let index = self.random(count as u64) as usize;
                    Some(ready.swap_remove(index))
                }
            }
        };
        match task {
            Some(task) => self.poll(task),
            // The events that are left may be timers that nobody waits for any more.
            None => {
                return self.pass_time(u64::MAX)
                    || !self.0.ready.lock().expect("nobody panics with it").is_empty();
            }
        }
        true
    }

    fn poll(&self, task: u32) {
        let waker = {
            let wakers = self.0.wakers.borrow();
            let (state, waker) = &wakers[task as usize];
            state.queued.store(false, Memory::Relaxed);
            waker.clone()
        };
        let Some(mut future) = self.0.tasks.borrow_mut()[task as usize].take() else { return };
        self.note(1, u64::from(task));
        if future.as_mut().poll(&mut Context::from_waker(&waker)).is_pending() {
            if let Some(slot) = self.0.tasks.borrow_mut().get_mut(task as usize) {
                *slot = Some(future);
            }
        } else {
            drop(future);
            self.0.free.borrow_mut().push(task);
        }
    }

    /// Lets the next thing happen, if that is before `limit`.
    fn pass_time(&self, limit: u64) -> bool {
        loop {
            let event = {
                let mut events = self.0.events.borrow_mut();
                match events.peek() {
                    Some(event) if event.when < limit => events.pop().expect("just seen"),
                    _ => return false,
                }
            };
            match event.what {
                What::Timer(timer) => {
                    let waker = {
                        let mut timers = self.0.timers.borrow_mut();
                        match &timers[timer as usize] {
                            Some((sequence, _)) if *sequence == event.sequence => {
                                self.0.free_timers.borrow_mut().push(timer);
                                timers[timer as usize].take().map(|(_, waker)| waker)
                            }
                            _ => None,
                        }
                    };
                    let Some(waker) = waker else {
                        self.0.dead_timers.set(self.0.dead_timers.get().saturating_sub(1));
                        continue;
                    };
                    self.0.now.set(event.when.max(self.0.now.get()));
                    self.note(2, self.0.now.get());
                    waker.wake();
                }
                What::Operation(who, op) => {
                    self.0.now.set(event.when.max(self.0.now.get()));
                    who.happen(self, op);
                }
            }
            return true;
        }
    }

    fn forget_timer(&self, timer: u32, sequence: u64) {
        let mut timers = self.0.timers.borrow_mut();
        let Some(slot) = timers.get_mut(timer as usize) else { return };
        if slot.as_ref().is_none_or(|(own, _)| *own != sequence) {
            return;
        }
        let waker = slot.take();
        self.0.free_timers.borrow_mut().push(timer);
        let dead = self.0.dead_timers.get() + 1;
        self.0.dead_timers.set(dead);
        let mut events = self.0.events.borrow_mut();
        if dead > 1000 && dead > events.len() / 2 {
            let lives = |event: &Event| match event.what {
                What::Timer(timer) => {
                    timers[timer as usize].as_ref().is_some_and(|(own, _)| *own == event.sequence)
                }
                What::Operation(..) => true,
            };
            events.retain(lives);
            self.0.dead_timers.set(0);
        }
        drop((events, timers, waker));
    }
}

impl Spawn for World {
    fn spawn(&self, task: impl Future<Output = ()> + 'static) {
        let mut tasks = self.0.tasks.borrow_mut();
        let free = self.0.free.borrow_mut().pop();
        let id = free.unwrap_or(tasks.len() as u32);
        let task: Task = Box::pin(task);
        if free.is_some() {
            tasks[id as usize] = Some(task);
        } else {
            tasks.push(Some(task));
        }
        drop(tasks);
        let mut wakers = self.0.wakers.borrow_mut();
        if wakers.len() <= id as usize {
            let state =
                Arc::new(TaskWaker { task: id, queued: AtomicBool::new(false), ready: self.0.ready.clone() });
            wakers.push((state.clone(), Waker::from(state)));
        }
        wakers[id as usize].0.wake_by_ref();
    }
}

impl Clock for World {
    fn now(&self) -> Duration {
        Duration::from_nanos(self.0.now.get())
    }

    fn wall(&self) -> Duration {
        Duration::from_secs(1_700_000_000) + self.now()
    }

    async fn sleep(&self, duration: Duration) {
        Sleep { world: self, until: self.0.now.get() + duration.as_nanos() as u64, timer: None }.await;
    }
}

struct Sleep<'a> {
    world: &'a World,
    until: u64,
    timer: Option<(u32, u64)>,
}

impl Future for Sleep<'_> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let inner = &self.world.0;
        if inner.now.get() >= self.until {
            return Poll::Ready(());
        }
        if let Some((timer, sequence)) = self.timer {
            if let Some(Some((own, waker))) = inner.timers.borrow_mut().get_mut(timer as usize)
                && *own == sequence
            {
                waker.clone_from(context.waker());
            }
            return Poll::Pending;
        }
        let free = inner.free_timers.borrow_mut().pop();
        let timer = free.unwrap_or(inner.timers.borrow().len() as u32);
        let after = Duration::from_nanos(self.until - inner.now.get());
        let sequence = self.world.push(after, What::Timer(timer));
        let entry = Some((sequence, context.waker().clone()));
        let mut timers = inner.timers.borrow_mut();
        match timers.get_mut(timer as usize) {
            Some(slot) => *slot = entry,
            None => timers.push(entry),
        }
        drop(timers);
        self.timer = Some((timer, sequence));
        Poll::Pending
    }
}

impl Drop for Sleep<'_> {
    fn drop(&mut self) {
        if let Some((timer, sequence)) = self.timer {
            self.world.forget_timer(timer, sequence);
        }
    }
}
