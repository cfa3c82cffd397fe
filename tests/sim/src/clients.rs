//! The clients of an array: each has one request under way at a time, anywhere, of any kind, and tells the oracle.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::rc::Rc;
use std::time::Duration;

use futures_util::future::join_all;
use raidd::io::extent::{BAD, ZERO};
use raidd::io::{Clock, Device, ExtentKind, Fua, IoError, IoErrorKind, Pool, Slice, Spawn, Zeroing};

use crate::content::Content;
use crate::door::Door;
use crate::oracle::Oracle;
use crate::plan::{Part, Plan, Profile};
use crate::sessions::Sessions;
use crate::setup::{SimArray, payloads};
use crate::world::World;

/// What clients, the director and the checks share in one era.
pub struct Scene {
    /// The world.
    pub world: World,
    /// The run's plan.
    pub plan: Rc<Plan>,
    /// The array.
    pub array: SimArray,
    /// The clients' way to it.
    pub door: Door,
    /// What may be read.
    pub oracle: Rc<RefCell<Oracle>>,
    /// What has been done.
    pub done: Rc<Done>,
    /// Client operations after which the era ends.
    pub until: u64,
    /// Clients are to end.
    pub ending: Cell<bool>,
    /// Errors with this kind are expected: a disk is full.
    pub full: Cell<bool>,
    /// The array is being stopped.
    pub stopping: Cell<bool>,
    /// Clients under way.
    pub clients: Cell<usize>,
    /// Where clients meet: most requests begin near here.
    pub hot: Cell<u64>,
    /// Writes since the last flush.
    pub unflushed: Cell<u64>,
    /// Memory of clients.
    pub pool: Pool,
    /// Requests under way, by the order of their beginning, and how many there have been.
    requests: RefCell<BTreeSet<u64>>,
    begun: Cell<u64>,
}

/// What has been done in a run.
#[derive(Default)]
pub struct Done {
    /// Client operations that were answered, well or not.
    pub ops: Cell<u64>,
    /// Of these, those that were answered with an error.
    pub errors: Cell<u64>,
    /// Bytes read and checked.
    pub checked: Cell<u64>,
    /// Bytes that were called zero, and checked.
    pub zeroes_told: Cell<u64>,
    /// NBD connections that were made.
    pub connections: Cell<u64>,
    /// Of these, those that were cut.
    pub cuts: Cell<u64>,
}

/// The longest part of a stream: the memory that clients have is for all of them.
const STREAM_PART_BYTES_MAX: u64 = 24 << 10;

/// A part of the array.
#[derive(Clone, Copy, Debug)]
struct Spot {
    start: u64,
    len: u64,
}

impl Scene {
    /// Sets a scene.
    pub fn new(
        world: &World,
        plan: &Rc<Plan>,
        array: SimArray,
        oracle: &Rc<RefCell<Oracle>>,
        done: &Rc<Done>,
        until: u64,
    ) -> Rc<Scene> {
        let door = match plan.sessions {
            true => Door::Nbd(Sessions::open(world, &array, done), None),
            false => Door::Direct(array.clone()),
        };
        Rc::new(Scene {
            world: world.clone(),
            plan: plan.clone(),
            array,
            door,
            oracle: oracle.clone(),
            done: done.clone(),
            until,
            ending: Cell::new(false),
            full: Cell::new(false),
            stopping: Cell::new(false),
            clients: Cell::new(0),
            hot: Cell::new(0),
            unflushed: Cell::new(0),
            pool: payloads(),
            requests: RefCell::default(),
            begun: Cell::new(0),
        })
    }

    /// Whether a request may fail like this.
    fn allows(&self, error: &IoError) -> bool {
        match error.kind {
            IoErrorKind::ShuttingDown => self.stopping.get(),
            IoErrorKind::NoSpace => self.full.get() || self.plan.profile == Profile::Beyond,
            IoErrorKind::Closed => self.door.sessions().is_some(),
            IoErrorKind::Invalid | IoErrorKind::Unsupported => false,
            _ => self.plan.profile == Profile::Beyond,
        }
    }

    fn answered(&self, what: &str, part: Spot, result: &Result<(), IoError>) {
        self.done.ops.set(self.done.ops.get() + 1);
        self.world.note(3, part.start << 20 | part.len);
        self.world.say(|| format!("client: {what} {}+{} -> {result:?}", part.start, part.len));
        if let Err(error) = result {
            self.done.errors.set(self.done.errors.get() + 1);
            if !self.allows(error) {
                self.world.fail(format!("{what} of {}+{}: {error} ({:?})", part.start, part.len, error.kind));
            }
        }
    }

    /// Payload as a session hands it over: in step with the offset, in one slice or several.
    pub fn payload(&self, start: u64, len: u64, content: Content) -> Vec<Slice> {
        let mut slices = Vec::new();
        let mut at = start;
        let end = start + len;
        let most = if self.world.random(4) == 0 { 4096 * (1 + self.world.random(4)) } else { 1 << 20 };
        while at < end {
            let pad = at % 4096;
            let step = (most - pad).min(end - at);
            let mut buf = self.pool.try_alloc((pad + step) as usize).expect("memory for a payload");
            let mut data = buf.split_off(pad as usize);
            content.fill(at, &mut data);
            slices.push(data.freeze());
            at += step;
        }
        slices
    }

    /// A range in multiples of `unit`, mostly small, sometimes several stripes.
    fn part(&self, unit: u64) -> Spot {
        let dice = self.world.dice();
        let size = self.array.size_bytes() / unit;
        let most = match dice.below(16) {
            0..12 if self.plan.grain == 1 => 600,
            0..8 => 4096,
            8..12 => 16 << 10,
            12..15 if self.plan.grain >= 128 => 64 << 10,
            _ if self.plan.grain < 512 => 24 << 10,
            _ => 300 << 10,
        };
        let most = (most / unit).clamp(1, size);
        let start = if dice.one_in(2) {
            dice.below(size)
        } else {
            (self.hot.get() / unit + dice.below(48 << 10) / unit) % size
        };
        let len = if dice.one_in(8) { most } else { 1 + dice.below(most) };
        Spot { start: start * unit, len: len.min(size - start) * unit }
    }

    /// Reads and checks; an error if it could not be read.
    pub async fn read(&self, start: u64, len: u64) -> Result<(), IoError> {
        let part = Spot { start, len };
        let buf = self.pool.alloc(len as usize).await;
        let begun = self.oracle.borrow_mut().begin_read();
        let result = self.door.read(start, buf).await;
        let mut oracle = self.oracle.borrow_mut();
        match result {
            Ok(buf) => {
                if let Err(why) = oracle.end_read(begun, start, &buf) {
                    self.world.fail(format!("read of {start}+{len}: {why}"));
                }
                self.done.checked.set(self.done.checked.get() + len);
                self.answered("read", part, &Ok(()));
                Ok(())
            }
            Err(error) => {
                oracle.drop_read(begun);
                self.answered("read", part, &Err(error));
                Err(error)
            }
        }
    }

    async fn write(&self, part: Spot, content: Content, fua: bool) {
        self.write_by(&self.door, part, content, fua).await;
    }

    async fn write_by(&self, door: &Door, part: Spot, content: Content, fua: bool) {
        let forced = if fua { Fua::Yes } else { Fua::No };
        self.unflushed.set(self.unflushed.get() + 1);
        let number = self.oracle.borrow_mut().begin_write(part.start, part.len, content, fua);
        let data = self.payload(part.start, part.len, content);
        self.world.say(|| {
            format!(
                "client: write {}+{} {content:?}{} begins",
                part.start,
                part.len,
                if fua { " fua" } else { "" }
            )
        });
        let result = door.write(part.start, data, forced).await;
        self.end_write(number, part, &result);
        self.answered("write", part, &result);
    }

    /// Whatever reaches the array is done.
    fn cannot_fail(&self) -> bool {
        self.plan.profile == Profile::Within && !self.full.get() && !self.stopping.get()
    }

    fn end_write(&self, number: u32, part: Spot, result: &Result<(), IoError>) {
        let mut oracle = self.oracle.borrow_mut();
        match result {
            Ok(()) => oracle.acknowledge(number, part.start, part.len),
            Err(error) if error.kind == IoErrorKind::Closed && self.cannot_fail() => {
                oracle.lose_answer(number);
            }
            Err(_) => oracle.give_up(number),
        }
    }

    async fn zero(&self, part: Spot, fua: bool) {
        let dice = self.world.dice();
        let zeroing = if dice.one_in(2) { Zeroing::Unmap } else { Zeroing::Allocate };
        let forced = if fua { Fua::Yes } else { Fua::No };
        let number = self.oracle.borrow_mut().begin_write(part.start, part.len, Content::Zeroes, fua);
        let result = self.door.write_zeroes(part.start, part.len, zeroing, forced).await;
        self.end_write(number, part, &result);
        self.answered("zero", part, &result);
    }

    async fn discard(&self, part: Spot) {
        let number = self.oracle.borrow_mut().begin_write(part.start, part.len, Content::Zeroes, false);
        let result = self.door.discard(part.start, part.len).await;
        // Any part of it may have been ignored.
        self.oracle.borrow_mut().give_up(number);
        self.answered("discard", part, &result);
    }

    /// Makes durable what was acknowledged.
    pub async fn flush(&self) {
        self.unflushed.set(0);
        let begun = self.oracle.borrow_mut().begin_flush();
        let result = self.door.flush().await;
        if result.is_ok() {
            self.oracle.borrow_mut().end_flush(begun);
        }
        self.answered("flush", Spot { start: 0, len: 0 }, &result);
    }

    /// The same payload twice at once, as a client does that has lost patience with one connection, or lost it; then
    /// something else over it.
    async fn resend(&self, part: Spot) {
        let content = self.oracle.borrow_mut().new_content();
        let (mut one, mut other) = (self.door.clone(), self.door.clone());
        if let Some(sessions) = self.door.sessions() {
            let lane = self.world.random(sessions.lanes() as u64) as usize;
            (one, other) = (self.door.by_lane(lane), self.door.by_lane(lane + 1));
            if self.world.random(3) == 0 {
                sessions.cut_lane(lane);
            }
        }
        let second = async {
            self.world.sleep(Duration::from_micros(self.world.random(100))).await;
            self.write_by(&other, part, content, false).await;
            let later = self.oracle.borrow_mut().new_content();
            self.write_by(&other, part, later, false).await;
        };
        futures_util::future::join(self.write_by(&one, part, content, false), second).await;
    }

    /// Asks about a range: what is called zero must be so, and what is called lost must not be where nothing may be.
    async fn ask_status(&self, part: Spot) {
        let kind = *self.world.dice().pick(self.door.extent_kinds());
        let begun = self.oracle.borrow_mut().begin_read();
        let result = self.door.extents(kind, part.start..part.start + part.len, 500).await;
        let mut oracle = self.oracle.borrow_mut();
        let mut at = part.start;
        for extent in result.as_deref().unwrap_or_default() {
            let end = at + extent.len_bytes;
            if kind == ExtentKind::Allocation && extent.state & ZERO != 0 {
                self.done.zeroes_told.set(self.done.zeroes_told.get() + extent.len_bytes);
                if let Err(why) = oracle.check_zero(begun, at, end) {
                    self.world.fail(format!("called zero, {at}..{end}: {why}"));
                }
            }
            let may_lose = self.plan.profile == Profile::Beyond;
            if kind == ExtentKind::Health && extent.state & BAD != 0 && !may_lose {
                self.world.fail(format!("called lost, though nothing may be: {at}..{end}"));
            }
            at = end;
        }
        oracle.drop_read(begun);
        drop(oracle);
        self.answered("status", part, &result.map(|_| ()));
    }

    /// Writes several parts, each where the one before it ends, at once.
    async fn stream(&self, first: Spot) {
        let (dice, size) = (self.world.dice(), self.array.size_bytes());
        let (count, len) = (2 + dice.below(7), first.len.min(STREAM_PART_BYTES_MAX));
        let parts = (0..count).map(|number| Spot { start: first.start + number * len, len });
        let writes = parts.filter(|part| part.start + part.len <= size).map(|part| {
            let content = self.oracle.borrow_mut().new_content();
            self.write(part, content, dice.one_in(16))
        });
        join_all(writes.collect::<Vec<_>>()).await;
    }

    async fn step(&self) {
        let dice = self.world.dice();
        let part = self.part(self.plan.grain);
        let fua = dice.one_in(6);
        if self.unflushed.get() > self.plan.unflushed_max {
            return self.flush().await;
        }
        let is_zeroing = !self.plan.narrow.is_without(Part::Zeroing);
        match dice.below(64) {
            0 | 1 => self.stream(part).await,
            2..28 => {
                let content = self.oracle.borrow_mut().new_content();
                self.write(part, content, fua).await;
            }
            28..56 => {
                let block = u64::from(self.door.info().read_block_bytes);
                let part = self.part(block.max(self.plan.grain));
                // What cannot be read has been noted.
                self.read(part.start, part.len).await.ok();
            }
            56..59 => self.flush().await,
            59 => self.resend(part).await,
            60 | 61 if is_zeroing => self.zero(part, fua).await,
            62 if is_zeroing => self.discard(part).await,
            63 if dice.one_in(2) => self.ask_status(part).await,
            _ => {
                self.hot.set(dice.below(self.array.size_bytes()));
                let pause = if dice.one_in(8) { 400_000 } else { 2000 };
                self.world.sleep(Duration::from_micros(dice.below(pause))).await;
            }
        }
    }

    /// Waits until every request has ended that is under way now: until then it remembers what it has seen.
    pub async fn outlive_requests(&self) {
        let end = self.begun.get();
        while self.requests.borrow().first().is_some_and(|&oldest| oldest < end) {
            self.world.sleep(Duration::from_millis(1)).await;
        }
    }

    /// Lets all clients in.
    pub fn open(self: &Rc<Scene>) {
        for _ in 0..self.plan.workers.max(1) {
            self.admit(|scene, _| !scene.ending.get() && scene.done.ops.get() < scene.until);
        }
    }

    /// Lets some in that do a few things and leave.
    pub fn open_shortly(self: &Rc<Scene>) {
        for _ in 0..1 + self.world.random(8) {
            self.admit(|_, steps| steps < 3);
        }
    }

    /// Lets one in, for as long as `goes_on` says, given how many things it has done.
    fn admit(self: &Rc<Scene>, goes_on: impl Fn(&Scene, u64) -> bool + 'static) {
        self.clients.set(self.clients.get() + 1);
        self.be_rough(true);
        let scene = self.clone();
        self.world.spawn(async move {
            let mut steps = 0;
            while goes_on(&scene, steps) {
                let number = scene.begun.replace(scene.begun.get() + 1);
                scene.requests.borrow_mut().insert(number);
                scene.step().await;
                scene.requests.borrow_mut().remove(&number);
                steps += 1;
            }
            scene.clients.set(scene.clients.get() - 1);
            if scene.clients.get() == 0 {
                scene.be_rough(false);
            }
        });
    }

    /// Connections are cut only while clients come and go by themselves.
    fn be_rough(&self, is_rough: bool) {
        if let Some(sessions) = self.door.sessions() {
            sessions.be_rough(is_rough);
        }
    }

    /// Writes all of the array.
    pub async fn fill(&self) {
        let size = self.array.size_bytes();
        let mut at = 0;
        while at < size {
            let len = (256 << 10).min(size - at);
            let content = self.oracle.borrow_mut().new_content();
            self.write(Spot { start: at, len }, content, false).await;
            at += len;
        }
    }

    /// Reads all of the array. Errors are the profile's business.
    pub async fn read_all(&self) {
        let size = self.array.size_bytes();
        let mut at = 0;
        while at < size && !self.world.has_failed() {
            let len = (128 << 10).min(size - at);
            if self.read(at, len).await.is_err() {
                // Block by block: what can be read must be right.
                let block = u64::from(self.door.info().read_block_bytes).max(4096);
                for place in (at..at + len).step_by(block as usize) {
                    self.read(place, block.min(size - place)).await.ok();
                }
            }
            at += len;
        }
    }

    /// Waits until no client has a request under way.
    pub async fn close(&self) {
        self.ending.set(true);
        while self.clients.get() > 0 {
            self.world.sleep(Duration::from_micros(200)).await;
        }
    }
}
