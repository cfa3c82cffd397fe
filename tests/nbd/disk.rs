//! A device whose doings a test can see, delay and spoil. Reads want whole blocks, writes any bytes, as an array does.

use std::cell::{Cell, RefCell};
use std::ops::Range;
use std::rc::Rc;
use std::time::Duration;

use raidd::io::extent::{Extents, nothing_to_report};
use raidd::io::{
    Buf, Clock, Device, DeviceInfo, Extent, ExtentKind, Fua, IoError, IoErrorKind, Slice, Zeroing,
};

use crate::world::World;

/// What was asked of the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    Read(u64, usize),
    /// Offset, length, number of slices.
    Write(u64, usize, usize, Fua),
    Zeroes(u64, u64, Zeroing, Fua),
    Discard(u64, u64),
    Flush,
    Extents(ExtentKind, u64, u64, usize),
}

#[derive(Clone)]
pub struct Disk(Rc<State>);

struct State {
    world: World,
    info: DeviceInfo,
    bytes: RefCell<Vec<u8>>,
    calls: RefCell<Vec<Call>>,
    busy: Cell<usize>,
    fails: Cell<Option<IoErrorKind>>,
    zeroes_by_writing: Cell<bool>,
    extents: RefCell<Vec<(ExtentKind, Vec<Extent>)>>,
    delay: RefCell<Box<dyn Fn(Call) -> Duration>>,
}

/// What the byte at an offset is at first.
pub fn initial(offset: usize) -> u8 {
    (offset * 7 + offset / 509) as u8
}

impl Disk {
    pub fn new(world: &World, size_bytes: usize) -> Disk {
        Disk::with_info(world, size_bytes, |_| ())
    }

    pub fn with_info(world: &World, size_bytes: usize, change: impl Fn(&mut DeviceInfo)) -> Disk {
        let mut info = DeviceInfo {
            size_bytes: size_bytes as u64,
            read_block_bytes: 512,
            write_block_bytes: 1,
            preferred_bytes: 64 << 10,
            read_only: false,
            rotational: false,
        };
        change(&mut info);
        Disk(Rc::new(State {
            world: world.clone(),
            info,
            bytes: RefCell::new((0..size_bytes).map(initial).collect()),
            calls: RefCell::default(),
            busy: Cell::new(0),
            fails: Cell::new(None),
            zeroes_by_writing: Cell::new(false),
            extents: RefCell::default(),
            delay: RefCell::new(Box::new(|_| Duration::ZERO)),
        }))
    }

    pub fn content(&self) -> Vec<u8> {
        self.0.bytes.borrow().clone()
    }

    /// What was asked since the last time.
    pub fn calls(&self) -> Vec<Call> {
        std::mem::take(&mut self.0.calls.borrow_mut())
    }

    /// Calls under way.
    pub fn busy(&self) -> usize {
        self.0.busy.get()
    }

    pub fn fail_with(&self, kind: Option<IoErrorKind>) {
        self.0.fails.set(kind);
    }

    pub fn zero_by_writing(&self) {
        self.0.zeroes_by_writing.set(true);
    }

    /// What the device says of itself, from its start to its end.
    pub fn set_extents(&self, kind: ExtentKind, extents: &[(u64, u32)]) {
        let extents = extents.iter().map(|&(len_bytes, state)| Extent { len_bytes, state }).collect();
        self.0.extents.borrow_mut().push((kind, extents));
    }

    /// How long each call takes.
    pub fn delay(&self, delay: impl Fn(Call) -> Duration + 'static) {
        *self.0.delay.borrow_mut() = Box::new(delay);
    }

    async fn begin(&self, call: Call) -> Result<Busy<'_>, IoError> {
        self.0.calls.borrow_mut().push(call);
        self.0.busy.set(self.0.busy.get() + 1);
        let busy = Busy(&self.0.busy);
        let delay = (self.0.delay.borrow())(call);
        if !delay.is_zero() {
            self.0.world.sleep(delay).await;
        }
        match self.0.fails.get() {
            Some(kind) => Err(IoError::new(kind, "as the test wished")),
            None => Ok(busy),
        }
    }
}

struct Busy<'a>(&'a Cell<usize>);

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

impl Device for Disk {
    fn info(&self) -> DeviceInfo {
        self.0.info
    }

    async fn read(&self, offset_bytes: u64, mut buf: Buf) -> Result<Buf, IoError> {
        let block = u64::from(self.0.info.read_block_bytes);
        assert!((offset_bytes | buf.len() as u64).is_multiple_of(block), "a misaligned read");
        assert_eq!(buf.as_mut_ptr() as u64 % block, 0);
        let _busy = self.begin(Call::Read(offset_bytes, buf.len())).await?;
        let end = offset_bytes as usize + buf.len();
        buf.copy_from_slice(&self.0.bytes.borrow()[offset_bytes as usize..end]);
        Ok(buf)
    }

    async fn write(&self, offset_bytes: u64, data: Vec<Slice>, fua: Fua) -> Result<(), IoError> {
        assert!(!self.0.info.read_only);
        let mut at = offset_bytes;
        for slice in &data {
            assert_eq!(slice.as_ptr() as u64 % 4096, at % 4096, "memory does not follow the offset");
            at += slice.len() as u64;
        }
        let len = (at - offset_bytes) as usize;
        let _busy = self.begin(Call::Write(offset_bytes, len, data.len(), fua)).await?;
        let bytes: Vec<u8> = data.iter().flat_map(|slice| slice.to_vec()).collect();
        self.0.bytes.borrow_mut()[offset_bytes as usize..][..len].copy_from_slice(&bytes);
        Ok(())
    }

    async fn write_zeroes(
        &self,
        offset_bytes: u64,
        len_bytes: u64,
        zeroing: Zeroing,
        fua: Fua,
    ) -> Result<(), IoError> {
        if self.0.zeroes_by_writing.get() {
            return Err(IoError::new(IoErrorKind::Unsupported, "zeroes must be written"));
        }
        let _busy = self.begin(Call::Zeroes(offset_bytes, len_bytes, zeroing, fua)).await?;
        self.0.bytes.borrow_mut()[offset_bytes as usize..][..len_bytes as usize].fill(0);
        Ok(())
    }

    async fn discard(&self, offset_bytes: u64, len_bytes: u64) -> Result<(), IoError> {
        self.begin(Call::Discard(offset_bytes, len_bytes)).await.map(drop)
    }

    async fn flush(&self) -> Result<(), IoError> {
        self.begin(Call::Flush).await.map(drop)
    }

    async fn zeroes_fast(&self, offset_bytes: u64, len_bytes: u64) -> bool {
        !self.0.zeroes_by_writing.get() && (offset_bytes | len_bytes).is_multiple_of(4096)
    }

    fn extent_kinds(&self) -> &[ExtentKind] {
        &ExtentKind::ALL
    }

    async fn extents(&self, kind: ExtentKind, range: Range<u64>, max: usize) -> Result<Vec<Extent>, IoError> {
        let _busy = self.begin(Call::Extents(kind, range.start, range.end - range.start, max)).await?;
        let known = self.0.extents.borrow();
        let Some((_, extents)) = known.iter().find(|(found, _)| *found == kind) else {
            return Ok(nothing_to_report(&range));
        };
        let mut answer = Extents::new(max);
        let mut start = 0;
        for extent in extents {
            let end = start + extent.len_bytes;
            let len = end.min(range.end).saturating_sub(start.max(range.start));
            if !answer.push(len, extent.state) {
                break;
            }
            start = end;
        }
        Ok(answer.finish())
    }
}
