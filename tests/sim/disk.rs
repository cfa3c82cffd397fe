//! A simulated disk: bytes that outlive a crash of the daemon, operations that take a random while, and faults.
//!
//! It has a volatile cache. What is written is there at once; what no flush has reached since, and no FUA, is lost in a
//! crash of the machine, sector by sector, as the dice fall. A flush reaches what was answered before it began.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::ops::Range;
use std::rc::Rc;
use std::time::Duration;

use raidd::io::{Buf, Clock, Device, DeviceInfo, Fua, IoError, IoErrorKind, Slice, Zeroing};

use crate::world::World;

/// What outlives the daemon. Clones are the same disk.
#[derive(Clone)]
pub struct Platter {
    pub bytes: Rc<RefCell<Vec<u8>>>,
    /// Reads that touch these bytes fail.
    pub unreadable: Rc<RefCell<Vec<Range<u64>>>>,
    /// How many more writes succeed, if that is limited.
    pub writes_left: Rc<Cell<Option<u64>>>,
    pub full: Rc<Cell<bool>>,
    /// Writes that begin below this byte find no space.
    pub full_below: Rc<Cell<u64>>,
    pub flush_fails: Rc<Cell<bool>>,
    /// By sector number: what a crash of the machine may bring back.
    volatile: Rc<RefCell<BTreeMap<u64, Volatile>>>,
    next_write: Rc<Cell<u64>>,
}

/// A sector that is not on stable media as it is.
struct Volatile {
    stable: [u8; SECTOR],
    /// The last write to it, and whether that has been answered.
    write: u64,
    answered: bool,
}

const SECTOR: usize = 512;

impl Platter {
    pub fn new(bytes: Vec<u8>) -> Platter {
        Platter {
            bytes: Rc::new(RefCell::new(bytes)),
            unreadable: Rc::default(),
            writes_left: Rc::default(),
            full: Rc::default(),
            full_below: Rc::default(),
            flush_fails: Rc::default(),
            volatile: Rc::default(),
            next_write: Rc::default(),
        }
    }

    /// The machine crashes: of what is not on stable media, `keep` says which sectors got there all the same.
    pub fn lose_cache(&self, mut keep: impl FnMut() -> bool) {
        let mut bytes = self.bytes.borrow_mut();
        for (number, sector) in std::mem::take(&mut *self.volatile.borrow_mut()) {
            if !keep() {
                let at = number as usize * SECTOR;
                bytes[at..at + SECTOR].copy_from_slice(&sector.stable);
            }
        }
    }

    /// Another disk with the same bytes and the same cache, for trying several crashes.
    pub fn copy(&self) -> Platter {
        let copy = Platter::new(self.bytes.borrow().clone());
        let volatile = self.volatile.borrow();
        copy.volatile.borrow_mut().extend(volatile.iter().map(|(&number, sector)| {
            let &Volatile { stable, write, answered } = sector;
            (number, Volatile { stable, write, answered })
        }));
        copy
    }

    /// Puts bytes there, into the cache.
    fn put(&self, write: u64, at: usize, data: &[u8]) {
        let mut bytes = self.bytes.borrow_mut();
        let mut volatile = self.volatile.borrow_mut();
        for number in at / SECTOR..(at + data.len()) / SECTOR {
            let stable = || bytes[number * SECTOR..][..SECTOR].try_into().expect("a sector");
            let entry = volatile.entry(number as u64);
            let entry = entry.or_insert_with(|| Volatile { stable: stable(), write, answered: false });
            (entry.write, entry.answered) = (write, false);
        }
        bytes[at..at + data.len()].copy_from_slice(data);
    }

    /// A write is answered: it may be flushed now, or is durable already.
    fn answer(&self, write: u64, at: usize, len: usize, fua: Fua) {
        let mut volatile = self.volatile.borrow_mut();
        for number in at / SECTOR..(at + len) / SECTOR {
            let number = number as u64;
            let Some(sector) = volatile.get_mut(&number).filter(|sector| sector.write == write) else {
                continue;
            };
            sector.answered = true;
            if fua == Fua::Yes {
                volatile.remove(&number);
            }
        }
    }

    fn new_write(&self) -> u64 {
        self.next_write.set(self.next_write.get() + 1);
        self.next_write.get()
    }
}

/// What a flush is to make durable: sectors as they were when it began.
type Flushed = Vec<(u64, u64, [u8; SECTOR])>;

impl Platter {
    fn begin_flush(&self) -> Flushed {
        let bytes = self.bytes.borrow();
        let volatile = self.volatile.borrow();
        let answered = volatile.iter().filter(|(_, sector)| sector.answered);
        let content = |number: u64| bytes[number as usize * SECTOR..][..SECTOR].try_into().expect("a sector");
        answered.map(|(&number, sector)| (number, sector.write, content(number))).collect()
    }

    fn end_flush(&self, flushed: Flushed) {
        let mut volatile = self.volatile.borrow_mut();
        for (number, write, content) in flushed {
            let Some(sector) = volatile.get_mut(&number) else { continue };
            if sector.write == write {
                volatile.remove(&number);
            } else {
                sector.stable = content;
            }
        }
    }

    pub fn blank(len: usize, filler: u64) -> Platter {
        let mut random = crate::world::Random::new(filler);
        Platter::new((0..len / 8).flat_map(|_| random.next().to_le_bytes()).collect())
    }
}

/// A platter in a world.
#[derive(Clone)]
pub struct Disk {
    pub platter: Platter,
    world: World,
    block: u64,
}

impl Disk {
    pub fn new(platter: &Platter, world: &World, block: u64) -> Disk {
        Disk { platter: platter.clone(), world: world.clone(), block }
    }

    /// Some operations are done at once, others take a while.
    async fn latency(&self) {
        let micros = self.world.random(6) * self.world.random(50) * self.world.slowness();
        if micros > 0 {
            self.world.sleep(Duration::from_micros(micros)).await;
        }
    }

    fn check(&self, offset: u64, len: u64) {
        assert!((offset | len).is_multiple_of(self.block), "misaligned: {offset}+{len}");
        assert!(offset + len <= self.platter.bytes.borrow().len() as u64, "past the end: {offset}+{len}");
    }

    fn may_write(&self, offset: u64) -> Result<(), IoError> {
        if self.platter.full.get() || offset < self.platter.full_below.get() {
            return Err(IoError::new(IoErrorKind::NoSpace, "simulated full disk"));
        }
        match self.platter.writes_left.get() {
            Some(0) => Err(IoError::new(IoErrorKind::Media, "simulated write error")),
            Some(left) => {
                self.platter.writes_left.set(Some(left - 1));
                Ok(())
            }
            None => Ok(()),
        }
    }
}

impl Device for Disk {
    fn info(&self) -> DeviceInfo {
        DeviceInfo {
            size_bytes: self.platter.bytes.borrow().len() as u64,
            read_block_bytes: self.block as u32,
            write_block_bytes: self.block as u32,
            preferred_bytes: 4096,
            read_only: false,
            rotational: false,
        }
    }

    async fn read(&self, offset: u64, mut buf: Buf) -> Result<Buf, IoError> {
        self.check(offset, buf.len() as u64);
        self.latency().await;
        let range = offset..offset + buf.len() as u64;
        let bad = self.platter.unreadable.borrow();
        if bad.iter().any(|bad| bad.start < range.end && range.start < bad.end) {
            return Err(IoError::new(IoErrorKind::Media, "simulated read error"));
        }
        buf.copy_from_slice(&self.platter.bytes.borrow()[range.start as usize..range.end as usize]);
        Ok(buf)
    }

    async fn write(&self, offset: u64, data: Vec<Slice>, fua: Fua) -> Result<(), IoError> {
        let len: usize = data.iter().map(|slice| slice.len()).sum();
        self.check(offset, len as u64);
        let mut at = offset as usize;
        self.latency().await;
        self.may_write(offset)?;
        let number = self.platter.new_write();
        for slice in data {
            assert!(
                slice.as_ptr() as u64 % self.block == at as u64 % self.block,
                "memory out of step with the offset"
            );
            // In two steps, so that a crash may come in between.
            let half = slice.len() / 2 / self.block as usize * self.block as usize;
            self.world.crash_point().await;
            self.platter.put(number, at, &slice[..half]);
            self.latency().await;
            if half > 0 {
                self.world.crash_point().await;
            }
            self.platter.put(number, at + half, &slice[half..]);
            at += slice.len();
        }
        self.platter.answer(number, offset as usize, len, fua);
        Ok(())
    }

    async fn write_zeroes(&self, offset: u64, len: u64, _zeroing: Zeroing, fua: Fua) -> Result<(), IoError> {
        self.check(offset, len);
        self.latency().await;
        if self.world.random(4) == 0 {
            return Err(IoError::new(IoErrorKind::Unsupported, "simulated"));
        }
        self.may_write(offset)?;
        self.world.crash_point().await;
        let number = self.platter.new_write();
        self.platter.put(number, offset as usize, &vec![0; len as usize]);
        self.platter.answer(number, offset as usize, len as usize, fua);
        Ok(())
    }

    async fn discard(&self, _offset: u64, _len: u64) -> Result<(), IoError> {
        Ok(())
    }

    async fn flush(&self) -> Result<(), IoError> {
        let flushed = self.platter.begin_flush();
        self.latency().await;
        if self.platter.flush_fails.get() {
            return Err(IoError::new(IoErrorKind::Media, "simulated flush error"));
        }
        self.world.crash_point().await;
        self.platter.end_flush(flushed);
        Ok(())
    }
}
