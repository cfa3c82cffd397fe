//! A simulated disk: operations that take a while and happen whether or not anybody still waits for them, bytes that
//! outlive the daemon and, as far as they are durable, the machine, and faults.
//!
//! A [`Platter`] is what is on the desk when the power is off; a [`Disk`] is a platter that a daemon has opened.
//!
//! Invariants:
//! - An operation ends on its own: a dropped future does not recall it.
//! - A write is torn at the unit, never within it; parts of one write are there before others.
//! - Memory is in step with the offset, and every range is aligned and within: otherwise the engine is at fault.

use std::cell::{Cell, Ref, RefCell, RefMut};
use std::collections::BTreeSet;
use std::future::Future;
use std::ops::Range;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use raidd::io::{
    Buf, Clock, Device, DeviceInfo, Extent, ExtentKind, Fua, IoError, IoErrorKind, Slice, Zeroing,
};

use crate::holes;
use crate::mutants::{Mutant, mutant};
use crate::random::Random;
use crate::store::{Luck, Store};
use crate::world::{Happening, World};

/// What is wrong with a disk. All of it can be set and mended at any time.
#[derive(Default)]
pub struct Faults {
    /// Units that cannot be read until they are written again.
    pub unreadable: RefCell<BTreeSet<u64>>,
    /// How many more writes succeed, if that is limited.
    pub writes_left: Cell<Option<u64>>,
    /// One write in so many fails; 0 for none.
    pub write_errors: Cell<u64>,
    /// Writes find no space.
    pub full: Cell<bool>,
    /// Writes that begin below this byte find no space.
    pub full_below: Cell<u64>,
    /// Flushes fail.
    pub flush_fails: Cell<bool>,
    /// Nothing works any more.
    pub dead: Cell<bool>,
    /// Takes so many times as long as usual, if more than 1.
    pub slow: Cell<u64>,
    /// One operation in so many never ends.
    pub hangs: Cell<u64>,
    /// Whether zeroing works: never, always, or now and then.
    pub zeroing: Cell<Ability>,
    /// Takes no writes at all.
    pub read_only: Cell<bool>,
    /// The most bytes of a read that come at once.
    pub short_reads: Cell<bool>,
}

/// How often something works.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Ability {
    /// Three times in four.
    #[default]
    Mostly,
    /// Every time.
    Always,
    /// At no time.
    Never,
}

/// What a disk has been asked for, and what went wrong; for the totals.
#[derive(Clone, Copy, Default)]
pub struct Counts {
    /// Operations that ended.
    pub operations: u64,
    /// Reads that failed because of an unreadable sector.
    pub read_errors: u64,
    /// Writes and flushes that failed.
    pub write_errors: u64,
    /// Operations that a dead disk refused.
    pub dead: u64,
    /// Operations that never end.
    pub hung: u64,
    /// Writes that found no space.
    pub full: u64,
    /// Bytes that were written.
    pub written_bytes: u64,
}

/// What outlives the daemon. Clones are the same disk.
#[derive(Clone)]
pub struct Platter(Rc<Inner>);

struct Inner {
    number: u64,
    store: RefCell<Option<Store>>,
    faults: Faults,
    operations: RefCell<Operations>,
    counts: Cell<Counts>,
    /// Why the write that is being looked at fails.
    refused: Cell<Option<IoError>>,
}

#[derive(Default)]
struct Operations {
    slots: Vec<Slot>,
    free: Vec<u32>,
    writes: u64,
}

#[derive(Default)]
struct Slot {
    generation: u32,
    operation: Option<Operation>,
}

struct Operation {
    kind: Kind,
    offset: u64,
    len: usize,
    fua: bool,
    write: u64,
    /// Bytes that are there already.
    done: usize,
    hung: bool,
    detached: bool,
    waker: Option<Waker>,
    result: Option<Result<(), IoError>>,
}

enum Kind {
    Read(Option<Buf>),
    Write(Vec<Slice>),
    Zeroes,
    Flush(u64),
}

impl Drop for Inner {
    fn drop(&mut self) {
        if let Some(store) = self.store.borrow_mut().take() {
            store.recycle();
        }
    }
}

/// Where a superblock lies.
const SUPERBLOCK: usize = 4096;

const DEAD: IoError = IoError::new(IoErrorKind::Gone, "simulated dead disk");

impl Platter {
    /// A disk with this content.
    pub fn new(number: u64, store: Store) -> Platter {
        Platter(Rc::new(Inner {
            number,
            store: RefCell::new(Some(store)),
            faults: Faults::default(),
            operations: RefCell::default(),
            counts: Cell::default(),
            refused: Cell::default(),
        }))
    }

    /// A disk of so many bytes, full of garbage.
    pub fn garbage(number: u64, len: usize, unit: usize, seed: u64) -> Platter {
        let mut store = Store::recycled(len, unit);
        let dice = Random::new(seed);
        for word in store.bytes_mut().chunks_exact_mut(8) {
            word.copy_from_slice(&dice.bits().to_le_bytes());
        }
        Platter::new(number, store)
    }

    /// Its number, for people.
    pub fn number(&self) -> u64 {
        self.0.number
    }

    /// What is wrong with it.
    pub fn faults(&self) -> &Faults {
        &self.0.faults
    }

    /// What has come of its operations.
    pub fn counts(&self) -> Counts {
        self.0.counts.get()
    }

    /// What it holds.
    pub fn store(&self) -> RefMut<'_, Store> {
        RefMut::map(self.0.store.borrow_mut(), |store| store.as_mut().expect("there until it is dropped"))
    }

    /// The bytes that a read gives.
    pub fn bytes(&self) -> Ref<'_, [u8]> {
        Ref::map(self.0.store.borrow(), |store| store.as_ref().expect("there until it is dropped").bytes())
    }

    /// The bytes, to be changed behind everybody's back.
    pub fn bytes_mut(&self) -> RefMut<'_, [u8]> {
        RefMut::map(self.store(), Store::bytes_mut)
    }

    /// Makes every unit of these bytes unreadable until it is written again.
    pub fn spoil(&self, bytes: Range<u64>) {
        let unit = self.store().unit() as u64;
        let mut unreadable = self.0.faults.unreadable.borrow_mut();
        unreadable.extend(bytes.start / unit..bytes.end.div_ceil(unit));
    }

    /// Ranges of bytes that cannot be read.
    pub fn unreadable(&self) -> Vec<Range<usize>> {
        let unit = self.0.store.borrow().as_ref().expect("there until it is dropped").unit();
        let unreadable = self.0.faults.unreadable.borrow();
        unreadable.iter().map(|&number| number as usize * unit..(number as usize + 1) * unit).collect()
    }

    /// Nothing is wrong with it any more.
    pub fn mend(&self) {
        let faults = &self.0.faults;
        faults.unreadable.borrow_mut().clear();
        faults.writes_left.set(None);
        faults.write_errors.set(0);
        faults.full.set(false);
        faults.full_below.set(0);
        faults.flush_fails.set(false);
        faults.dead.set(false);
        faults.slow.set(1);
        faults.hangs.set(0);
        faults.read_only.set(false);
    }

    /// The machine crashes: what is not durable may be lost.
    pub fn lose_cache(&self, luck: Luck, dice: &Random) -> u64 {
        self.store().lose(luck, dice)
    }

    /// Nobody waits for its operations any more: the daemon is dead. What was under way may have been done, or parts of
    /// it; nothing comes later, for a successor waits for that.
    pub fn abandon(&self, dice: &Random) {
        let slots = std::mem::take(&mut self.0.operations.borrow_mut().slots);
        self.0.operations.borrow_mut().free.clear();
        for operation in slots.into_iter().filter_map(|slot| slot.operation) {
            if operation.result.is_none() && operation.is_write() && !self.0.faults.dead.get() {
                self.land_some(&operation, dice);
            }
        }
        self.store().answer_all();
    }

    fn land_some(&self, operation: &Operation, dice: &Random) {
        let mut store = self.store();
        let unit = store.unit();
        let units = operation.len / unit;
        match dice.below(4) {
            0 => {}
            1 => operation.land(&mut store, 0, operation.len),
            2 => operation.land(&mut store, 0, dice.below(units as u64 + 1) as usize * unit),
            _ => {
                for number in 0..units {
                    if dice.one_in(2) {
                        operation.land(&mut store, number * unit, unit);
                    }
                }
            }
        }
    }

    /// Operations under way, or hung.
    pub fn busy(&self) -> usize {
        let operations = self.0.operations.borrow();
        let slots = operations.slots.iter().filter_map(|slot| slot.operation.as_ref());
        slots.filter(|operation| operation.result.is_none()).count()
    }

    /// Operations under way, or hung, that somebody waits for.
    pub fn awaited(&self) -> usize {
        let operations = self.0.operations.borrow();
        let slots = operations.slots.iter().filter_map(|slot| slot.operation.as_ref());
        slots.filter(|operation| operation.result.is_none() && !operation.detached).count()
    }

    /// Operations that hang.
    pub fn hung(&self) -> usize {
        let operations = self.0.operations.borrow();
        operations.slots.iter().filter_map(|slot| slot.operation.as_ref()).filter(|op| op.hung).count()
    }

    /// What hung goes on, each operation in a while.
    pub fn release_hung(&self, world: &World) {
        let mut operations = self.0.operations.borrow_mut();
        for (op, slot) in operations.slots.iter_mut().enumerate() {
            if let Some(operation) = slot.operation.as_mut().filter(|operation| operation.hung) {
                operation.hung = false;
                let after = Duration::from_micros(world.random(5000));
                world.later(after, self.0.clone(), op as u32);
            }
        }
    }

    /// Another disk with the same bytes and the same cache and nothing wrong, for trying several crashes. What is under
    /// way on this one may or may not be done on that one.
    pub fn copy(&self, dice: &Random) -> Platter {
        let copy = Platter::new(self.0.number, self.store().clone());
        for slot in &self.0.operations.borrow().slots {
            if let Some(operation) = &slot.operation
                && operation.result.is_none()
                && operation.is_write()
            {
                copy.land_some(operation, dice);
            }
        }
        copy.store().answer_all();
        copy
    }
}

impl Operation {
    fn is_write(&self) -> bool {
        matches!(self.kind, Kind::Write(_) | Kind::Zeroes)
    }

    /// Puts a part of a write there, into the cache.
    fn land(&self, store: &mut Store, from: usize, len: usize) {
        let at = self.offset as usize;
        match &self.kind {
            Kind::Zeroes if len > 0 => store.put_zeroes(self.write, at + from, len),
            Kind::Write(data) => {
                let (mut start, end) = (0, from + len);
                for slice in data {
                    let part = from.max(start)..end.min(start + slice.len());
                    if part.start < part.end {
                        let bytes = &slice[part.start - start..part.end - start];
                        store.put(self.write, at + part.start, bytes);
                    }
                    start += slice.len();
                }
            }
            _ => {}
        }
    }
}

impl Inner {
    /// Why a write there fails, if it does.
    fn refusal(&self, world: &World, offset: usize) -> Option<IoError> {
        let faults = &self.faults;
        let mut counts = self.counts.get();
        let refusal = if faults.read_only.get() {
            Some(IoError::new(IoErrorKind::ReadOnly, "simulated read-only disk"))
        } else if faults.full.get() || (offset as u64) < faults.full_below.get() {
            counts.full += 1;
            Some(IoError::new(IoErrorKind::NoSpace, "simulated full disk"))
        } else if faults.writes_left.get() == Some(0) || world.dice().one_in(faults.write_errors.get()) {
            counts.write_errors += 1;
            Some(IoError::new(IoErrorKind::Media, "simulated write error"))
        } else {
            faults.writes_left.set(faults.writes_left.get().map(|left| left - 1));
            None
        };
        self.counts.set(counts);
        self.refused.set(refusal);
        refusal
    }

    fn finish(&self, slot: &mut Slot, free: &mut Vec<u32>, op: u32, result: Result<(), IoError>) {
        let operation = slot.operation.as_mut().expect("it is under way");
        if operation.detached {
            slot.operation = None;
            slot.generation += 1;
            free.push(op);
            return;
        }
        operation.result = Some(result);
        if let Some(waker) = operation.waker.take() {
            waker.wake();
        }
    }
}

impl Happening for Inner {
    fn happen(self: Rc<Self>, world: &World, op: u32) {
        let mut operations = self.operations.borrow_mut();
        let Operations { slots, free, .. } = &mut *operations;
        let slot = &mut slots[op as usize];
        let operation = slot.operation.as_mut().expect("it is under way");
        let mut store = self.store.borrow_mut();
        let store = store.as_mut().expect("there until it is dropped");
        let (offset, len) = (operation.offset as usize, operation.len);
        let dead = self.faults.dead.get();
        let result = match &mut operation.kind {
            _ if dead => Err(DEAD),
            Kind::Read(buf) => {
                let unit = store.unit();
                let units = (offset / unit) as u64..(offset + len).div_ceil(unit) as u64;
                if self.faults.unreadable.borrow().range(units).next().is_some() {
                    let mut counts = self.counts.get();
                    counts.read_errors += 1;
                    self.counts.set(counts);
                    *buf = None;
                    Err(IoError::new(IoErrorKind::Media, "simulated read error"))
                } else {
                    let buf = buf.as_mut().expect("a read has its buffer until it ends");
                    let (from, unit) = (operation.done, store.unit());
                    let is_short = self.faults.short_reads.get() && len > unit && world.dice().one_in(16);
                    let end = if from == 0 && is_short { len / 2 / unit * unit } else { len };
                    buf[from..end].copy_from_slice(&store.bytes()[offset + from..offset + end]);
                    operation.done = end;
                    // What the kernel has not read at once has to be asked for again.
                    if end < len && !mutant::is(Mutant::IgnoreShortRead) {
                        world.later(Duration::from_micros(world.random(30)), self.clone(), op);
                        return;
                    }
                    Ok(())
                }
            }
            Kind::Write(_) | Kind::Zeroes if operation.done == 0 && self.refusal(world, offset).is_some() => {
                let refusal = self.refused.take().expect("just seen");
                // A write that fails may have done a part of what it should.
                if refusal.kind == IoErrorKind::Media && world.dice().one_in(2) && world.may_change() {
                    let unit = store.unit();
                    let part = world.random((len / unit) as u64 + 1) as usize * unit;
                    operation.land(store, 0, part);
                }
                Err(refusal)
            }
            Kind::Write(_) | Kind::Zeroes => {
                let rest = len - operation.done;
                let unit = store.unit();
                let step = if operation.done == 0 && rest > unit && world.dice().one_in(3) {
                    world.dice().between(1, (rest / unit) as u64 - 1) as usize * unit
                } else {
                    rest
                };
                if !world.may_change() {
                    // The world ends here; the operation is among those under way.
                    return;
                }
                let from = operation.done;
                operation.land(store, from, step);
                operation.done += step;
                let unreadable = &mut *self.faults.unreadable.borrow_mut();
                if !unreadable.is_empty() {
                    let units = ((offset + from) / unit) as u64..((offset + from + step) / unit) as u64;
                    units.for_each(|number| {
                        unreadable.remove(&number);
                    });
                }
                if operation.done < len {
                    world.later(
                        Duration::from_micros(world.random(30) * self.faults.slow.get().max(1)),
                        self.clone(),
                        op,
                    );
                    return;
                }
                store.answer(operation.write, offset, len, operation.fua);
                let mut counts = self.counts.get();
                counts.written_bytes += len as u64;
                self.counts.set(counts);
                if offset == SUPERBLOCK {
                    world.superblock_written();
                }
                Ok(())
            }
            Kind::Flush(begun) => {
                if self.faults.flush_fails.get() {
                    Err(IoError::new(IoErrorKind::Media, "simulated flush error"))
                } else if !world.may_change() {
                    return;
                } else {
                    store.end_flush(*begun);
                    Ok(())
                }
            }
        };
        let mut counts = self.counts.get();
        counts.operations += 1;
        counts.dead += u64::from(dead);
        self.counts.set(counts);
        world.note(self.number << 32 | u64::from(op), u64::from(result.is_err()));
        world.say(|| {
            let operation = slot.operation.as_ref().expect("it is under way");
            format!("disk{} op {op} {} ends: {result:?}", self.number, operation.name())
        });
        self.finish(slot, free, op, result);
    }
}

impl Operation {
    fn name(&self) -> String {
        let what = match self.kind {
            Kind::Read(_) => "read",
            Kind::Write(_) => "write",
            Kind::Zeroes => "zero",
            Kind::Flush(_) => return "flush".into(),
        };
        let fua = if self.fua { " fua" } else { "" };
        format!("{what} {}+{}{fua}", self.offset, self.len)
    }
}

/// A platter that a daemon has opened.
#[derive(Clone)]
pub struct Disk {
    /// What is on it.
    pub platter: Platter,
    world: World,
    block: u64,
}

impl Disk {
    /// Opens a platter, as a disk of blocks of so many bytes.
    pub fn new(platter: &Platter, world: &World, block: u64) -> Disk {
        Disk { platter: platter.clone(), world: world.clone(), block }
    }

    fn check(&self, offset: u64, len: u64) {
        assert!((offset | len).is_multiple_of(self.block), "misaligned: {offset}+{len}");
        assert!(offset + len <= self.platter.bytes().len() as u64, "past the end: {offset}+{len}");
    }

    /// Some operations are done at once, others take a while.
    fn latency(&self) -> Duration {
        let slow = self.platter.faults().slow.get().max(1);
        let dice = self.world.dice().bits();
        Duration::from_micros((dice % 6) * (dice >> 32) % 50 * self.world.slowness() * slow)
    }

    fn begin(&self, kind: Kind, offset: u64, len: usize, fua: bool) -> Running {
        let platter = &self.platter;
        let faults = platter.faults();
        let mut operations = platter.0.operations.borrow_mut();
        operations.writes += 1;
        let write = operations.writes;
        let hung = self.world.dice().one_in(faults.hangs.get()) && !faults.dead.get();
        let operation = Operation {
            kind,
            offset,
            len,
            fua,
            write,
            done: 0,
            hung,
            detached: false,
            waker: None,
            result: None,
        };
        let op = operations.free.pop().unwrap_or_else(|| {
            operations.slots.push(Slot::default());
            operations.slots.len() as u32 - 1
        });
        self.world.note(platter.0.number << 40 | offset, len as u64);
        self.world.say(|| {
            format!(
                "disk{} op {op} {} begins{}",
                platter.0.number,
                operation.name(),
                if hung { " (hangs)" } else { "" }
            )
        });
        let slot = &mut operations.slots[op as usize];
        slot.operation = Some(operation);
        let generation = slot.generation;
        drop(operations);
        if hung {
            let mut counts = platter.0.counts.get();
            counts.hung += 1;
            platter.0.counts.set(counts);
        } else {
            self.world.later(self.latency(), platter.0.clone(), op);
        }
        Running { inner: platter.0.clone(), op, generation }
    }
}

/// An operation that somebody waits for.
struct Running {
    inner: Rc<Inner>,
    op: u32,
    generation: u32,
}

impl Future for Running {
    type Output = (Result<(), IoError>, Kind);

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let mut operations = self.inner.operations.borrow_mut();
        let slot = &mut operations.slots[self.op as usize];
        assert!(slot.generation == self.generation, "an operation is asked for once");
        let operation = slot.operation.as_mut().expect("it is there until it was asked for");
        let Some(result) = operation.result.take() else {
            match &mut operation.waker {
                Some(waker) => waker.clone_from(context.waker()),
                none => *none = Some(context.waker().clone()),
            }
            return Poll::Pending;
        };
        let operation = slot.operation.take().expect("just seen");
        slot.generation += 1;
        operations.free.push(self.op);
        Poll::Ready((result, operation.kind))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let mut operations = self.inner.operations.borrow_mut();
        let Some(slot) = operations.slots.get_mut(self.op as usize) else { return };
        if slot.generation != self.generation {
            return;
        }
        let Some(operation) = slot.operation.as_mut() else { return };
        operation.waker = None;
        if operation.result.is_some() {
            slot.operation = None;
            slot.generation += 1;
            operations.free.push(self.op);
        } else {
            operation.detached = true;
        }
    }
}

impl Device for Disk {
    fn info(&self) -> DeviceInfo {
        DeviceInfo {
            size_bytes: self.platter.bytes().len() as u64,
            read_block_bytes: self.block as u32,
            write_block_bytes: self.block as u32,
            preferred_bytes: 4096,
            read_only: self.platter.faults().read_only.get(),
            rotational: false,
        }
    }

    async fn read(&self, offset: u64, buf: Buf) -> Result<Buf, IoError> {
        self.check(offset, buf.len() as u64);
        let len = buf.len();
        let (result, kind) = self.begin(Kind::Read(Some(buf)), offset, len, false).await;
        let Kind::Read(buf) = kind else { unreachable!("it was a read") };
        result.map(|()| buf.expect("a read that went well has its buffer"))
    }

    async fn write(&self, offset: u64, data: Vec<Slice>, fua: Fua) -> Result<(), IoError> {
        let len: usize = data.iter().map(|slice| slice.len()).sum();
        self.check(offset, len as u64);
        let mut at = offset;
        for slice in &data {
            let in_step = slice.as_ptr() as u64 % self.block == at % self.block;
            assert!(in_step, "memory out of step with the offset");
            at += slice.len() as u64;
        }
        self.begin(Kind::Write(data), offset, len, fua == Fua::Yes).await.0
    }

    async fn write_zeroes(&self, offset: u64, len: u64, _zeroing: Zeroing, fua: Fua) -> Result<(), IoError> {
        self.check(offset, len);
        let able = match self.platter.faults().zeroing.get() {
            Ability::Always => true,
            Ability::Never => false,
            Ability::Mostly => self.world.random(4) > 0,
        };
        if !able {
            return Err(IoError::new(IoErrorKind::Unsupported, "simulated"));
        }
        self.begin(Kind::Zeroes, offset, len as usize, fua == Fua::Yes).await.0
    }

    async fn discard(&self, _offset: u64, _len: u64) -> Result<(), IoError> {
        Ok(())
    }

    async fn zeroes_fast(&self, _offset: u64, _len: u64) -> bool {
        self.platter.faults().zeroing.get() == Ability::Always
    }

    /// Whatever is zero at the moment is a hole to this disk, now and then less of it.
    async fn extents(&self, kind: ExtentKind, range: Range<u64>, max: usize) -> Result<Vec<Extent>, IoError> {
        assert_eq!(kind, ExtentKind::Allocation, "a disk knows of nothing else");
        self.world.sleep(Duration::from_micros(self.world.random(100))).await;
        if self.platter.faults().dead.get() {
            return Err(IoError::new(IoErrorKind::Media, "simulated death"));
        }
        Ok(holes::among(&self.platter.bytes(), range, max, self.world.dice()))
    }

    fn in_flight(&self) -> usize {
        self.platter.busy()
    }

    async fn flush(&self) -> Result<(), IoError> {
        let begun = self.platter.store().begin_flush();
        self.begin(Kind::Flush(begun), 0, 0, false).await.0
    }
}
