//! A world to run the engine in: tasks whose order a seed decides, time that passes only when nobody can do anything
//! else, and randomness from the seed alone. The same seed gives the same run.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use raidd::io::{Clock, Spawn};

/// A random sequence (SplitMix64, Steele et al. 2014).
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Random {
        Random(seed)
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `limit`.
    pub fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    /// True one time in `n`.
    pub fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
}

type Task = Pin<Box<dyn Future<Output = ()>>>;

/// The world; clones are the same one.
#[derive(Clone)]
pub struct World(Rc<Inner>);

struct Inner {
    random: RefCell<Random>,
    now: Cell<Duration>,
    tasks: RefCell<BTreeMap<u64, Task>>,
    next_task: Cell<u64>,
    ready: Arc<Mutex<Vec<u64>>>,
    timers: RefCell<BTreeMap<(Duration, u64), Waker>>,
    next_timer: Cell<u64>,
    /// How many more changes of the disks are let through before everything stops where it is.
    changes_left: Cell<u64>,
    slowness: Cell<u64>,
}

struct TaskWaker {
    task: u64,
    ready: Arc<Mutex<Vec<u64>>>,
}

impl Wake for TaskWaker {
    fn wake(self: Arc<Self>) {
        let mut ready = self.ready.lock().unwrap();
        if !ready.contains(&self.task) {
            ready.push(self.task);
        }
    }
}

impl World {
    pub fn new(seed: u64) -> World {
        World(Rc::new(Inner {
            random: RefCell::new(Random::new(seed)),
            now: Cell::new(Duration::ZERO),
            tasks: RefCell::default(),
            next_task: Cell::new(0),
            ready: Arc::default(),
            timers: RefCell::default(),
            next_timer: Cell::new(0),
            changes_left: Cell::new(u64::MAX),
            slowness: Cell::new(1),
        }))
    }

    /// Disks take so many times as long as usual.
    pub fn slow_disks(&self, slowness: u64) {
        self.0.slowness.set(slowness);
    }

    pub fn slowness(&self) -> u64 {
        self.0.slowness.get()
    }

    /// Everything stops before the disks change for the `changes`-th time from now.
    pub fn crash_after(&self, changes: u64) {
        self.0.changes_left.set(changes);
    }

    /// Disks come by here before every change. They do not come back if it is the one to crash at.
    pub async fn crash_point(&self) {
        if self.0.changes_left.get() == 0 {
            std::future::pending::<()>().await;
        }
        self.0.changes_left.set(self.0.changes_left.get() - 1);
    }

    fn crashed(&self) -> bool {
        self.0.changes_left.get() == 0
    }

    pub fn random(&self, limit: u64) -> u64 {
        self.0.random.borrow_mut().below(limit)
    }

    /// Runs until `main` is done, and says what it made.
    pub fn run<T: 'static>(&self, main: impl Future<Output = T> + 'static) -> T {
        self.run_steps(main, u64::MAX).expect("the main task has ended")
    }

    /// Runs until `main` is done, or so many steps have been taken: then everything stops where it is, as a killed
    /// process does, and there is no result.
    pub fn run_steps<T: 'static>(&self, main: impl Future<Output = T> + 'static, steps: u64) -> Option<T> {
        let result = Rc::new(RefCell::new(None));
        let slot = result.clone();
        self.spawn(async move {
            let value = main.await;
            *slot.borrow_mut() = Some(value);
        });
        for _ in 0..steps {
            if result.borrow().is_some() || self.crashed() {
                break;
            }
            self.step();
        }
        let value = result.borrow_mut().take();
        // The tasks hold the world, and the world its tasks.
        let tasks = std::mem::take(&mut *self.0.tasks.borrow_mut());
        drop(tasks);
        value
    }

    fn step(&self) {
        let task = {
            let mut ready = self.0.ready.lock().unwrap();
            let count = ready.len() as u64;
            (count > 0).then(|| ready.swap_remove(self.random(count) as usize))
        };
        let Some(task) = task else { return self.pass_time() };
        let Some(mut future) = self.0.tasks.borrow_mut().remove(&task) else { return };
        let waker = Waker::from(Arc::new(TaskWaker { task, ready: self.0.ready.clone() }));
        if future.as_mut().poll(&mut Context::from_waker(&waker)).is_pending() {
            self.0.tasks.borrow_mut().insert(task, future);
        }
    }

    fn pass_time(&self) {
        let next = self.0.timers.borrow_mut().pop_first();
        let ((when, _), waker) = next.expect("everybody waits, and nothing will ever happen: a deadlock");
        self.0.now.set(when);
        waker.wake();
    }
}

impl Spawn for World {
    fn spawn(&self, task: impl Future<Output = ()> + 'static) {
        let id = self.0.next_task.replace(self.0.next_task.get() + 1);
        self.0.tasks.borrow_mut().insert(id, Box::pin(task));
        self.0.ready.lock().unwrap().push(id);
    }
}

impl Clock for World {
    fn now(&self) -> Duration {
        self.0.now.get()
    }

    fn wall(&self) -> Duration {
        Duration::from_secs(1_700_000_000) + self.now()
    }

    async fn sleep(&self, duration: Duration) {
        let number = self.0.next_timer.replace(self.0.next_timer.get() + 1);
        let key = (self.now() + duration, number);
        poll_fn(|context| {
            if self.now() >= key.0 {
                return Poll::Ready(());
            }
            self.0.timers.borrow_mut().insert(key, context.waker().clone());
            Poll::Pending
        })
        .await;
    }
}
