//! A world for one test: tasks in an order drawn from a seed, a clock that jumps to the next timer when nothing else can
//! happen, and streams in memory that tear messages as sockets do.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use raidd::io::{Buf, Clock, IoError, IoErrorKind, Slice, Spawn, Stream};

type Task = Pin<Box<dyn Future<Output = ()>>>;

/// Clock and executor in one. Clones are the same world.
#[derive(Clone)]
pub struct World(Rc<State>);

struct State {
    tasks: RefCell<BTreeMap<u64, Task>>,
    ready: Arc<Mutex<Vec<u64>>>,
    timers: RefCell<BTreeMap<(Duration, u64), Waker>>,
    now: Cell<Duration>,
    next_id: Cell<u64>,
    random: Cell<u64>,
}

struct TaskWaker {
    id: u64,
    ready: Arc<Mutex<Vec<u64>>>,
}

impl Wake for TaskWaker {
    fn wake(self: Arc<Self>) {
        let mut ready = self.ready.lock().unwrap();
        if !ready.contains(&self.id) {
            ready.push(self.id);
        }
    }
}

impl World {
    pub fn new(seed: u64) -> World {
        World(Rc::new(State {
            tasks: RefCell::default(),
            ready: Arc::default(),
            timers: RefCell::default(),
            now: Cell::new(Duration::ZERO),
            next_id: Cell::new(0),
            random: Cell::new(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1),
        }))
    }

    /// A number below `limit`, the same for the same seed.
    pub fn random(&self, limit: u64) -> u64 {
        let mut x = self.0.random.get();
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        self.0.random.set(x);
        (x >> 11) % limit
    }

    fn id(&self) -> u64 {
        self.0.next_id.set(self.0.next_id.get() + 1);
        self.0.next_id.get()
    }

    /// Runs `main` and everything it spawns until `main` has ended. Panics if nothing can ever happen any more.
    pub fn run<T: 'static>(&self, main: impl Future<Output = T> + 'static) -> T {
        let result = Rc::new(RefCell::new(None));
        let slot = result.clone();
        self.spawn(async move {
            let value = main.await;
            *slot.borrow_mut() = Some(value);
        });
        loop {
            if let Some(value) = result.borrow_mut().take() {
                return value;
            }
            assert!(self.step(), "nothing can happen any more at {:?}", self.now());
        }
    }

    /// Runs until nothing happens any more without the clock moving.
    pub fn settle(&self) {
        while self.poll_one() {}
    }

    fn step(&self) -> bool {
        if self.poll_one() {
            return true;
        }
        let Some(((when, _), waker)) = self.0.timers.borrow_mut().pop_first() else { return false };
        self.0.now.set(when.max(self.now()));
        waker.wake();
        true
    }

    fn poll_one(&self) -> bool {
        let mut ready = self.0.ready.lock().unwrap();
        if ready.is_empty() {
            return false;
        }
        let index = self.random(ready.len() as u64) as usize;
        let id = ready.remove(index);
        drop(ready);
        let Some(mut task) = self.0.tasks.borrow_mut().remove(&id) else { return true };
        let waker = Waker::from(Arc::new(TaskWaker { id, ready: self.0.ready.clone() }));
        if task.as_mut().poll(&mut Context::from_waker(&waker)).is_pending() {
            self.0.tasks.borrow_mut().insert(id, task);
        }
        true
    }

    /// A pair of connected streams; each recv gives at most `piece` bytes, each direction holds at most `capacity`.
    pub fn wire(&self, piece: usize, capacity: usize) -> (Wire, Wire) {
        let (a, b) = (Rc::new(Pipe::new(capacity)), Rc::new(Pipe::new(capacity)));
        let left = Wire { incoming: a.clone(), outgoing: b.clone(), piece };
        (left, Wire { incoming: b, outgoing: a, piece })
    }
}

impl Clock for World {
    fn now(&self) -> Duration {
        self.0.now.get()
    }

    fn wall(&self) -> Duration {
        self.0.now.get()
    }

    async fn sleep(&self, duration: Duration) {
        let key = (self.now() + duration, self.id());
        let timer = Timer { world: self.clone(), key };
        poll_fn(|context| {
            if timer.world.now() >= timer.key.0 {
                return Poll::Ready(());
            }
            timer.world.0.timers.borrow_mut().insert(timer.key, context.waker().clone());
            Poll::Pending
        })
        .await;
    }
}

struct Timer {
    world: World,
    key: (Duration, u64),
}

impl Drop for Timer {
    fn drop(&mut self) {
        self.world.0.timers.borrow_mut().remove(&self.key);
    }
}

impl Spawn for World {
    fn spawn(&self, task: impl Future<Output = ()> + 'static) {
        let id = self.id();
        self.0.tasks.borrow_mut().insert(id, Box::pin(task));
        self.0.ready.lock().unwrap().push(id);
    }
}

struct Pipe {
    bytes: RefCell<VecDeque<u8>>,
    capacity: usize,
    closed: Cell<bool>,
    /// How often something was taken.
    takes: Cell<usize>,
    wakers: RefCell<Vec<Waker>>,
}

impl Pipe {
    fn new(capacity: usize) -> Pipe {
        Pipe {
            bytes: RefCell::default(),
            capacity,
            closed: Cell::new(false),
            takes: Cell::new(0),
            wakers: RefCell::default(),
        }
    }

    fn changed(&self) {
        for waker in self.wakers.borrow_mut().drain(..) {
            waker.wake();
        }
    }

    fn close(&self) {
        self.closed.set(true);
        self.changed();
    }

    /// Up to `count` bytes, at least one; none at the end.
    async fn take(&self, count: usize) -> Vec<u8> {
        poll_fn(|context| {
            let mut bytes = self.bytes.borrow_mut();
            if bytes.is_empty() && !self.closed.get() {
                self.wakers.borrow_mut().push(context.waker().clone());
                return Poll::Pending;
            }
            self.takes.set(self.takes.get() + 1);
            let count = count.min(bytes.len());
            let taken = bytes.drain(..count).collect();
            drop(bytes);
            self.changed();
            Poll::Ready(taken)
        })
        .await
    }

    async fn put(&self, mut data: &[u8]) -> Result<(), IoError> {
        poll_fn(|context| {
            if self.closed.get() {
                return Poll::Ready(Err(IoError::new(IoErrorKind::Closed, "the pipe is closed")));
            }
            let mut bytes = self.bytes.borrow_mut();
            let (now, later) = data.split_at(data.len().min(self.capacity - bytes.len()));
            bytes.extend(now);
            drop(bytes);
            if !now.is_empty() {
                self.changed();
            }
            data = later;
            if data.is_empty() {
                return Poll::Ready(Ok(()));
            }
            self.wakers.borrow_mut().push(context.waker().clone());
            Poll::Pending
        })
        .await
    }
}

/// One end of a connection. Dropping it closes both directions.
pub struct Wire {
    incoming: Rc<Pipe>,
    outgoing: Rc<Pipe>,
    piece: usize,
}

impl Wire {
    /// Sends all of it; an error if the other end is gone.
    pub async fn write(&self, data: &[u8]) -> Result<(), IoError> {
        self.outgoing.put(data).await
    }

    /// Exactly `count` bytes, or fewer at the end.
    pub async fn read(&self, count: usize) -> Vec<u8> {
        let mut out = Vec::new();
        while out.len() < count {
            let part = self.incoming.take(count - out.len()).await;
            if part.is_empty() {
                break;
            }
            out.extend(part);
        }
        out
    }

    /// How often the other end has received something.
    pub fn taken(&self) -> usize {
        self.outgoing.takes.get()
    }

    /// Some bytes; none at the end.
    pub async fn read_some(&self) -> Vec<u8> {
        self.incoming.take(64 << 10).await
    }

    /// Sends no more, but still reads.
    pub fn close_write(&self) {
        self.outgoing.close();
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.outgoing.close();
        self.incoming.close();
    }
}

impl Stream for Wire {
    async fn recv(&self, mut buf: Buf) -> Result<(usize, Buf), IoError> {
        let bytes = self.incoming.take(buf.len().min(self.piece)).await;
        buf[..bytes.len()].copy_from_slice(&bytes);
        Ok((bytes.len(), buf))
    }

    async fn send(&self, data: Vec<Slice>) -> Result<(), IoError> {
        assert!(data.len() <= 256, "{} slices in one send", data.len());
        for slice in data {
            self.outgoing.put(&slice).await?;
        }
        Ok(())
    }

    fn shutdown(&self) {
        self.incoming.close();
        self.outgoing.close();
    }

    fn hung_up(&self) -> bool {
        self.incoming.closed.get() && self.outgoing.closed.get()
    }
}
