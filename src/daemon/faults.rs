//! A member disk that can be made to fail on purpose, so that anyone can rehearse failures on a live array.
//!
//! Without `--enable-fault-injection` a [`MemberDisk`] is its disk and nothing else.
//!
//! Invariants:
//! - Faults lie between the engine and the disk; nothing above knows of them, so what is rehearsed is what happens.
//! - Faults are an open disk's: they go when the member is removed and its disk closed.
//! - An operation that hangs ends when the fault is cleared. Who waits for it may give it up before.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::ops::Range;
use std::rc::{Rc, Weak};
use std::time::Duration;

use crate::api::{Fault, FaultRange};
use crate::io::{
    Buf, Clock, Device, DeviceInfo, Extent, ExtentKind, Fua, IoError, IoErrorKind, MAX_BUF_BYTES, Pool,
    Slice, Zeroing,
};
use crate::reactor::{Disk, runtime};

/// How often a hanging operation looks whether it still must.
const HANG_CHECK: Duration = Duration::from_millis(10);
/// What a corrupted byte is changed by.
const FLIP: u8 = 0xa5;
/// Ranges of each kind that a disk can have; more are a mistake.
const RANGES_MAX: usize = 1024;

const UNREADABLE: IoError = IoError::new(IoErrorKind::Media, "read error (injected)");
const UNWRITABLE: IoError = IoError::new(IoErrorKind::Media, "write error (injected)");
const DEAD: IoError = IoError::new(IoErrorKind::Gone, "the device is gone (injected)");
const TOO_MANY: IoError = IoError::new(IoErrorKind::Invalid, "too many ranges: clear them first");
const OUTSIDE: IoError = IoError::new(IoErrorKind::Invalid, "past the end of the member");

/// What goes wrong with a disk. Ranges are bytes of the device.
#[derive(Default)]
struct Faults {
    unreadable: RefCell<Vec<Range<u64>>>,
    unwritable: RefCell<Vec<Range<u64>>>,
    latency: Cell<Duration>,
    hangs: Cell<bool>,
    dead: Cell<bool>,
}

struct Inner {
    disk: Disk,
    faults: Option<Faults>,
}

thread_local! {
    /// The disks of this thread that can be made to fail, by the paths they were opened by.
    static OPEN: RefCell<HashMap<String, Weak<Inner>>> = RefCell::default();
}

/// A member's disk. Clones are the same one.
#[derive(Clone)]
pub struct MemberDisk(Rc<Inner>);

impl MemberDisk {
    /// A disk as it is, or one that can be made to fail.
    pub fn new(disk: Disk, path: &str, injectable: bool) -> MemberDisk {
        let inner = Rc::new(Inner { disk, faults: injectable.then(Faults::default) });
        if injectable {
            OPEN.with_borrow_mut(|open| {
                open.retain(|_, disk| disk.strong_count() > 0);
                open.insert(path.to_owned(), Rc::downgrade(&inner));
            });
        }
        MemberDisk(inner)
    }

    /// Looks how large the disk is by now.
    pub fn measure(&self) -> std::io::Result<()> {
        self.0.disk.measure()
    }

    /// The disk that was opened by this path on the calling thread, if it can be made to fail.
    pub fn injectable(path: &str) -> Option<MemberDisk> {
        OPEN.with_borrow(|open| open.get(path)?.upgrade()).map(MemberDisk)
    }

    /// Whether a disk of the calling thread is made to seem gone.
    pub fn is_withheld(path: &str) -> bool {
        let faults = MemberDisk::injectable(path);
        let faults = faults.as_ref().and_then(|disk| disk.0.faults.as_ref());
        faults.is_some_and(|faults| faults.hangs.get() || faults.dead.get())
    }

    /// Puts a fault into it; ranges count from `data_offset_bytes`.
    pub async fn inject(&self, fault: Fault, data_offset_bytes: u64, pool: &Pool) -> Result<(), IoError> {
        let Some(faults) = &self.0.faults else {
            return Err(IoError::new(IoErrorKind::Unsupported, "it cannot be made to fail"));
        };
        let place = |range: FaultRange| {
            let start = data_offset_bytes.checked_add(range.offset_bytes).ok_or(OUTSIDE)?;
            let end = start.checked_add(range.len_bytes).ok_or(OUTSIDE)?;
            if end <= self.info().size_bytes { Ok(start..end) } else { Err(OUTSIDE) }
        };
        let add = |ranges: &RefCell<Vec<Range<u64>>>, range| {
            let range = place(range)?;
            if ranges.borrow().len() >= RANGES_MAX {
                return Err(TOO_MANY);
            }
            ranges.borrow_mut().push(range);
            Ok(())
        };
        match fault {
            Fault::ReadError(range) => add(&faults.unreadable, range)?,
            Fault::WriteError(range) => add(&faults.unwritable, range)?,
            Fault::Corrupt(range) => self.corrupt(place(range)?, pool).await?,
            Fault::Latency(ms) => faults.latency.set(Duration::from_millis(ms)),
            Fault::Hang => faults.hangs.set(true),
            Fault::Die => faults.dead.set(true),
            Fault::Clear => {
                faults.unreadable.borrow_mut().clear();
                faults.unwritable.borrow_mut().clear();
                faults.latency.set(Duration::ZERO);
                faults.hangs.set(false);
                faults.dead.set(false);
            }
        }
        Ok(())
    }

    /// Changes bytes behind everybody's back.
    async fn corrupt(&self, range: Range<u64>, pool: &Pool) -> Result<(), IoError> {
        let disk = &self.0.disk;
        let block = u64::from(disk.info().read_block_bytes);
        let end = range.end.next_multiple_of(block);
        let mut at = range.start - range.start % block;
        while at < end {
            let len = (end - at).min(MAX_BUF_BYTES as u64);
            let mut buf = disk.read(at, pool.alloc(len as usize).await).await?;
            for (place, byte) in (at..).zip(buf.iter_mut()) {
                *byte ^= if range.contains(&place) { FLIP } else { 0 };
            }
            disk.write(at, vec![buf.freeze()], Fua::Yes).await?;
            at += len;
        }
        Ok(())
    }

    /// The gate, if there is one: in a box, so that it costs those nothing that have none.
    async fn pass(&self) -> Result<(), IoError> {
        match &self.0.faults {
            None => Ok(()),
            Some(_) => Box::pin(self.gate()).await,
        }
    }

    /// What goes wrong with every operation.
    async fn gate(&self) -> Result<(), IoError> {
        let Some(faults) = &self.0.faults else { return Ok(()) };
        if !faults.latency.get().is_zero() {
            runtime().sleep(faults.latency.get()).await;
        }
        while faults.hangs.get() {
            runtime().sleep(HANG_CHECK).await;
        }
        if faults.dead.get() { Err(DEAD) } else { Ok(()) }
    }

    fn check_writable(&self, range: &Range<u64>) -> Result<(), IoError> {
        match &self.0.faults {
            Some(faults) if overlaps(&faults.unwritable.borrow(), range) => Err(UNWRITABLE),
            _ => Ok(()),
        }
    }

    /// What was written can be read again.
    fn heal(&self, range: &Range<u64>) {
        if let Some(faults) = &self.0.faults {
            subtract(&mut faults.unreadable.borrow_mut(), range);
        }
    }
}

fn overlaps(ranges: &[Range<u64>], other: &Range<u64>) -> bool {
    ranges.iter().any(|range| range.start < other.end && other.start < range.end)
}

fn subtract(ranges: &mut Vec<Range<u64>>, gone: &Range<u64>) {
    if overlaps(ranges, gone) {
        let rests = |range: &Range<u64>| {
            [range.start..range.end.min(gone.start), range.start.max(gone.end)..range.end]
        };
        *ranges = ranges.iter().flat_map(rests).filter(|range| !range.is_empty()).collect();
    }
}

impl Device for MemberDisk {
    fn info(&self) -> DeviceInfo {
        self.0.disk.info()
    }

    async fn read(&self, offset_bytes: u64, buf: Buf) -> Result<Buf, IoError> {
        self.pass().await?;
        if let Some(faults) = &self.0.faults
            && overlaps(&faults.unreadable.borrow(), &(offset_bytes..offset_bytes + buf.len() as u64))
        {
            return Err(UNREADABLE);
        }
        self.0.disk.read(offset_bytes, buf).await
    }

    async fn write(&self, offset_bytes: u64, data: Vec<Slice>, fua: Fua) -> Result<(), IoError> {
        self.pass().await?;
        let len_bytes: u64 = data.iter().map(|slice| slice.len() as u64).sum();
        let range = offset_bytes..offset_bytes + len_bytes;
        self.check_writable(&range)?;
        self.0.disk.write(offset_bytes, data, fua).await?;
        self.heal(&range);
        Ok(())
    }

    async fn write_zeroes(
        &self,
        offset_bytes: u64,
        len_bytes: u64,
        zeroing: Zeroing,
        fua: Fua,
    ) -> Result<(), IoError> {
        self.gate().await?;
        let range = offset_bytes..offset_bytes + len_bytes;
        self.check_writable(&range)?;
        self.0.disk.write_zeroes(offset_bytes, len_bytes, zeroing, fua).await?;
        self.heal(&range);
        Ok(())
    }

    async fn discard(&self, offset_bytes: u64, len_bytes: u64) -> Result<(), IoError> {
        self.gate().await?;
        self.check_writable(&(offset_bytes..offset_bytes + len_bytes))?;
        self.0.disk.discard(offset_bytes, len_bytes).await
    }

    async fn zeroes_fast(&self, offset_bytes: u64, len_bytes: u64) -> bool {
        self.0.disk.zeroes_fast(offset_bytes, len_bytes).await
    }

    async fn extents(&self, kind: ExtentKind, range: Range<u64>, max: usize) -> Result<Vec<Extent>, IoError> {
        self.gate().await?;
        self.0.disk.extents(kind, range, max).await
    }

    fn in_flight(&self) -> usize {
        self.0.disk.in_flight()
    }

    async fn flush(&self) -> Result<(), IoError> {
        self.gate().await?;
        self.0.disk.flush().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rewrite_heals_what_it_covers_and_no_more() {
        let mut ranges = vec![10..20, 30..40];
        assert!(overlaps(&ranges, &(19..30)) && !overlaps(&ranges, &(20..30)));
        subtract(&mut ranges, &(12..15));
        assert_eq!(ranges, [10..12, 15..20, 30..40]);
        subtract(&mut ranges, &(0..31));
        assert_eq!((ranges.len(), ranges[0].clone()), (1, 31..40));
        subtract(&mut ranges, &(50..60));
        assert_eq!((ranges.len(), ranges[0].clone()), (1, 31..40));
        subtract(&mut ranges, &(31..40));
        assert!(ranges.is_empty());
    }
}
