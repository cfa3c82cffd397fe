//! A simulated disk: bytes that outlive a crash of the daemon, operations that take a random while, and faults.
//!
//! (The volatile cache of a machine crash, and all the other ways in which disks fail, are not modelled yet.)

use std::cell::{Cell, RefCell};
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
}

impl Platter {
    pub fn new(bytes: Vec<u8>) -> Platter {
        Platter {
            bytes: Rc::new(RefCell::new(bytes)),
            unreadable: Rc::default(),
            writes_left: Rc::default(),
            full: Rc::default(),
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
        let micros = self.world.random(6) * self.world.random(50);
        if micros > 0 {
            self.world.sleep(Duration::from_micros(micros)).await;
        }
    }

    fn check(&self, offset: u64, len: u64) {
        assert!((offset | len).is_multiple_of(self.block), "misaligned: {offset}+{len}");
        assert!(offset + len <= self.platter.bytes.borrow().len() as u64, "past the end: {offset}+{len}");
    }

    fn may_write(&self) -> Result<(), IoError> {
        if self.platter.full.get() {
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

    async fn write(&self, offset: u64, data: Vec<Slice>, _fua: Fua) -> Result<(), IoError> {
        let len: usize = data.iter().map(|slice| slice.len()).sum();
        self.check(offset, len as u64);
        let mut at = offset as usize;
        self.latency().await;
        self.may_write()?;
        for slice in data {
            assert!(
                slice.as_ptr() as u64 % self.block == at as u64 % self.block,
                "memory out of step with the offset"
            );
            // In two steps, so that a crash may come in between.
            let half = slice.len() / 2 / self.block as usize * self.block as usize;
            self.platter.bytes.borrow_mut()[at..at + half].copy_from_slice(&slice[..half]);
            self.latency().await;
            self.platter.bytes.borrow_mut()[at + half..at + slice.len()].copy_from_slice(&slice[half..]);
            at += slice.len();
        }
        Ok(())
    }

    async fn write_zeroes(&self, offset: u64, len: u64, _zeroing: Zeroing, _fua: Fua) -> Result<(), IoError> {
        self.check(offset, len);
        self.latency().await;
        if self.world.random(4) == 0 {
            return Err(IoError::new(IoErrorKind::Unsupported, "simulated"));
        }
        self.may_write()?;
        self.platter.bytes.borrow_mut()[offset as usize..(offset + len) as usize].fill(0);
        Ok(())
    }

    async fn discard(&self, _offset: u64, _len: u64) -> Result<(), IoError> {
        Ok(())
    }

    async fn flush(&self) -> Result<(), IoError> {
        self.latency().await;
        Ok(())
    }
}
