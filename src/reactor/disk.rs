//! A disk on a reactor: `io::Device` over the ring.
//!
//! Invariants:
//! - One attempt per call. What the kernel does by halves (short reads and writes, a signal, "try again") is part of
//!   that attempt; an error that the medium reports is answered as it is. A failed flush is never tried again.
//! - What is answered as durable was made so by the kernel: RWF_DSYNC, or an fdatasync that began after the writes.
//! - A plain file whose length is no multiple of 512 ends in a sector that reads as zeroes behind the file's end.

use std::cell::{Cell, OnceCell};
use std::ops::Range;
use std::os::fd::AsFd;
use std::rc::Rc;

use nix::errno::Errno;

use super::executor::Local;
use super::op::{self, Descriptor, Gather, Hand};
use super::open::{Identity, OpenError, OpenOptions, OpenedDisk};
use super::probe::Geometry;
use super::survey::Surveyor;
use crate::io::extent::nothing_to_report;
use crate::io::{Buf, Device, DeviceInfo, Extent, ExtentKind, Fua, IoError, IoErrorKind, Slice, Zeroing};

/// How often in one call the kernel may say "interrupted" or "try again".
const RETRIES_MAX: u32 = 32;

const PUNCH_HOLE: i32 = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
const ZERO_RANGE: i32 = libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE;

/// A member disk. Clones are the same one; it is closed, and unlocked, when the last of them and the last operation on
/// it are gone.
#[derive(Clone)]
pub struct Disk(Rc<Inner>);

struct Inner {
    local: Rc<Local>,
    file: Descriptor,
    identity: Identity,
    geometry: Cell<Geometry>,
    info: Cell<DeviceInfo>,
    /// It makes zeroes without writing them, until it has said otherwise.
    zeroes_itself: Cell<bool>,
    /// Begun by the first question about extents; none if that was not possible.
    surveyor: OnceCell<Option<Surveyor>>,
}

impl Disk {
    /// Opens what lies at `path`. Blocks, so this is for any thread but a reactor's; send the result to one.
    pub fn open(path: &std::path::Path, options: OpenOptions) -> Result<OpenedDisk, OpenError> {
        OpenedDisk::open(path, options)
    }

    /// The disk on the calling reactor. Panics on any other thread.
    pub fn new(opened: OpenedDisk) -> Disk {
        let (identity, geometry, info) =
            (opened.identity(), Cell::new(opened.geometry()), Cell::new(opened.info()));
        let zeroes_itself = Cell::new(opened.zeroes_itself());
        let file: Descriptor = Rc::new(opened.into_file());
        let (local, surveyor) = (Local::expect_current(), OnceCell::new());
        Disk(Rc::new(Inner { local, file, identity, geometry, info, zeroes_itself, surveyor }))
    }

    fn reader(&self) -> Hand {
        if self.0.geometry.get().submission_waits { Hand::Worker } else { Hand::Own }
    }

    fn writer(&self) -> Hand {
        if self.0.geometry.get().in_memory { Hand::Either } else { self.reader() }
    }

    /// Which disk it is.
    pub fn identity(&self) -> Identity {
        self.0.identity
    }

    /// Looks how large it is by now: it may have been given more room since it was opened. A file on FUSE is not asked, as it
    /// may not answer. One that seems smaller is left as
    /// it was known; what lies beyond its end fails when it is asked for.
    pub fn measure(&self) -> std::io::Result<()> {
        if self.0.geometry.get().submission_waits {
            return Ok(());
        }
        let is_block_device = self.0.identity.is_block_device();
        let geometry = self.0.geometry.get().measured(self.0.file.as_fd(), is_block_device)?;
        let mut info = self.0.info.get();
        if geometry.size_bytes > info.size_bytes {
            info.size_bytes = geometry.size_bytes;
            self.0.geometry.set(geometry);
            self.0.info.set(info);
        }
        Ok(())
    }

    fn check(&self, offset_bytes: u64, len_bytes: u64) -> Result<(), IoError> {
        let end = offset_bytes.checked_add(len_bytes);
        if end.is_none_or(|end| end > self.0.info.get().size_bytes) {
            return Err(IoError::new(IoErrorKind::Invalid, "past the end of the disk"));
        }
        if !(offset_bytes | len_bytes).is_multiple_of(u64::from(self.0.geometry.get().block_bytes)) {
            return Err(IoError::new(IoErrorKind::Invalid, "not aligned to the disk's blocks"));
        }
        Ok(())
    }

    fn check_change(&self, offset_bytes: u64, len_bytes: u64) -> Result<(), IoError> {
        if self.0.info.get().read_only {
            return Err(IoError::new(IoErrorKind::ReadOnly, "the disk was opened read-only"));
        }
        self.check(offset_bytes, len_bytes)
    }

    /// Memory that direct I/O reaches begins and ends at block boundaries.
    fn check_memory(&self, memory: &[u8]) -> Result<(), IoError> {
        let places = memory.as_ptr() as usize | memory.len();
        if self.0.geometry.get().direct && !places.is_multiple_of(self.0.geometry.get().block_bytes as usize)
        {
            return Err(IoError::new(IoErrorKind::Invalid, "a buffer is not aligned to the disk's blocks"));
        }
        Ok(())
    }

    async fn fallocate(&self, mode: i32, offset_bytes: u64, len_bytes: u64) -> Result<(), Errno> {
        let mut retries = Retries::default();
        loop {
            match op::fallocate(&self.0.local, &self.0.file, mode, offset_bytes, len_bytes).await {
                Err(errno) if retries.allow(errno) => {}
                outcome => return outcome,
            }
        }
    }

    async fn sync(&self, context: &'static str) -> Result<(), IoError> {
        op::sync(&self.0.local, &self.0.file).await.map_err(|errno| io_error(errno, context))
    }
}

impl Device for Disk {
    fn info(&self) -> DeviceInfo {
        self.0.info.get()
    }

    async fn read(&self, offset_bytes: u64, mut buf: Buf) -> Result<Buf, IoError> {
        self.check(offset_bytes, buf.len() as u64)?;
        self.check_memory(&buf)?;
        let mut done = 0;
        let mut retries = Retries::default();
        while done < buf.len() {
            let at = offset_bytes + done as u64;
            let result;
            (result, buf) = op::read(&self.0.local, &self.0.file, at, buf, done, self.reader()).await;
            match result {
                Ok(0) if at >= self.0.geometry.get().content_bytes => {
                    buf[done..].fill(0);
                    break;
                }
                Ok(0) => return Err(IoError::new(IoErrorKind::Media, "short read: the disk ends early")),
                Ok(count) => done += count,
                Err(errno) if retries.allow(errno) => {}
                Err(errno) => return Err(io_error(errno, "read")),
            }
        }
        Ok(buf)
    }

    async fn write(&self, offset_bytes: u64, data: Vec<Slice>, fua: Fua) -> Result<(), IoError> {
        data.iter().try_for_each(|slice| self.check_memory(slice))?;
        let mut data = Gather::new(data);
        let end = offset_bytes.saturating_add(data.left() as u64);
        self.check_change(offset_bytes, data.left() as u64)?;
        let mut retries = Retries::default();
        while data.left() > 0 {
            let at = end - data.left() as u64;
            let result;
            (result, data) =
                op::write(&self.0.local, &self.0.file, at, data, fua == Fua::Yes, self.writer()).await;
            match result {
                Ok(0) => return Err(IoError::new(IoErrorKind::Media, "short write: the disk takes no more")),
                Ok(_) => {}
                Err(errno) if retries.allow(errno) => {}
                Err(errno) => return Err(io_error(errno, "write")),
            }
        }
        Ok(())
    }

    async fn write_zeroes(
        &self,
        offset_bytes: u64,
        len_bytes: u64,
        zeroing: Zeroing,
        fua: Fua,
    ) -> Result<(), IoError> {
        self.check_change(offset_bytes, len_bytes)?;
        if len_bytes == 0 {
            return Ok(());
        }
        if !self.0.zeroes_itself.get() {
            // The kernel would write them, one by one.
            return Err(IoError::from_errno(libc::EOPNOTSUPP, "write zeroes"));
        }
        let first = if zeroing == Zeroing::Unmap { PUNCH_HOLE } else { ZERO_RANGE };
        let mut outcome = self.fallocate(first, offset_bytes, len_bytes).await;
        if zeroing == Zeroing::Unmap && is_unsupported(outcome) {
            outcome = self.fallocate(ZERO_RANGE, offset_bytes, len_bytes).await;
        }
        if is_unsupported(outcome) {
            self.0.zeroes_itself.set(false);
        }
        outcome.map_err(|errno| io_error(errno, "write zeroes"))?;
        match fua {
            Fua::Yes => self.sync("make zeroes durable").await,
            Fua::No => Ok(()),
        }
    }

    async fn zeroes_fast(&self, _offset_bytes: u64, _len_bytes: u64) -> bool {
        self.0.zeroes_itself.get() && !self.0.info.get().read_only
    }

    async fn discard(&self, offset_bytes: u64, len_bytes: u64) -> Result<(), IoError> {
        self.check_change(offset_bytes, len_bytes)?;
        if len_bytes == 0 {
            return Ok(());
        }
        let outcome = self.fallocate(PUNCH_HOLE, offset_bytes, len_bytes).await;
        if is_unsupported(outcome) {
            return Ok(());
        }
        outcome.map_err(|errno| io_error(errno, "discard"))
    }

    async fn flush(&self) -> Result<(), IoError> {
        if self.0.info.get().read_only {
            // Nothing of ours is in any cache.
            return Ok(());
        }
        self.sync("flush").await
    }

    async fn extents(&self, kind: ExtentKind, range: Range<u64>, max: usize) -> Result<Vec<Extent>, IoError> {
        let nothing = nothing_to_report(&range);
        let geometry = self.0.geometry.get();
        // On FUSE, what the page cache holds may be unknown to who answers.
        let is_blind = geometry.submission_waits && !geometry.direct;
        let is_block_device = matches!(self.0.identity, Identity::BlockDevice { .. });
        if kind != ExtentKind::Allocation || is_block_device || is_blind {
            return Ok(nothing);
        }
        let Some(surveyor) = self.0.surveyor.get_or_init(Surveyor::start) else { return Ok(nothing) };
        let told = surveyor.ask(self.0.file.as_fd(), geometry.content_bytes, range, max).await;
        Ok(told.unwrap_or(nothing))
    }

    fn in_flight(&self) -> usize {
        // Every operation in the table keeps the file open for itself.
        Rc::strong_count(&self.0.file) - 1
    }
}

/// Counts the times that the kernel asked for patience.
#[derive(Default)]
struct Retries(u32);

impl Retries {
    fn allow(&mut self, errno: Errno) -> bool {
        self.0 += 1;
        matches!(errno, Errno::EINTR | Errno::EAGAIN) && self.0 <= RETRIES_MAX
    }
}

fn is_unsupported(outcome: Result<(), Errno>) -> bool {
    matches!(outcome, Err(Errno::EOPNOTSUPP | Errno::ENOSYS))
}

fn io_error(errno: Errno, context: &'static str) -> IoError {
    IoError::from_errno(errno as i32, context)
}
