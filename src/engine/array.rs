//! The array itself, and how it serves as a device.

use std::cell::{Cell, RefCell};
use std::ops::Range;
use std::rc::{Rc, Weak};
use std::time::Duration;

use super::bitmap::Intent;
use super::choice::Choice;
use super::deadline::Deadlines;
use super::gather::Gathering;
use super::hedge::Hedging;
use super::locks::RowLocks;
use super::plan::Trust;
use super::ppl_log::Logs;
use super::repair::Mending;
use super::roster::Roster;
use super::state::{Phase, State};
use super::stripe::Unreadable;
use super::sync::SyncTask;
use super::tally::{Clients, Kind, Standing};
use super::traffic::Traffic;
use crate::io::{
    Buf, Device, DeviceInfo, Extent, ExtentKind, Fua, IoError, IoErrorKind, MAX_BUF_BYTES, Pool, Runtime,
    Slice, Zeroing,
};
use crate::layout::{Geometry, Level, Shape};
use crate::md::Superblock;
use crate::units::SECTOR_BYTES;

/// The engine's memory: pools of its own, so that nothing clients do can keep it from finishing what it has begun.
///
/// The order in which one request takes from them: a lock, `edges`, `scratch`. `rescue` is taken with nothing else held.
#[derive(Clone)]
pub struct Memory {
    /// Old data and parity while a stripe is worked on.
    pub scratch: Pool,
    /// Blocks at the unaligned ends of writes.
    pub edges: Pool,
    /// Replacements for read buffers that an error has lost.
    pub rescue: Pool,
    /// Superblocks and bitmaps.
    pub metadata: Pool,
}

impl Memory {
    /// The least that is worth having.
    pub const MIN_BYTES: usize = 16 << 20;

    /// Pools of so many bytes together, at least [`Memory::MIN_BYTES`].
    pub fn new(bytes: usize) -> std::io::Result<Memory> {
        let bytes = bytes.max(Memory::MIN_BYTES);
        let small = bytes / 16;
        Ok(Memory {
            scratch: Pool::new(bytes - 4 * small)?,
            edges: Pool::new(small)?,
            rescue: Pool::new(2 * small)?,
            metadata: Pool::new(small)?,
        })
    }
}

/// A RAID array over members `D`.
pub struct Array<D, R> {
    pub(super) shape: Shape,
    pub(super) geometry: Geometry,
    pub(super) name: String,
    /// What all member I/O is aligned to: the largest block of any member, at least a sector.
    pub(super) block_bytes: u64,
    pub(super) roster: RefCell<Roster<D>>,
    /// What every superblock of this array has in common.
    pub(super) truth: Superblock,
    pub(super) state: RefCell<State>,
    pub(super) locks: RowLocks,
    pub(super) gathering: Gathering,
    /// The one lane in which superblocks and bitmap superblocks are written.
    pub(super) lane: RowLocks,
    /// The write-intent bitmap, where the array has one, and the lane in which it is written.
    pub(super) intent: Option<RefCell<Intent>>,
    pub(super) bitmap_lane: RowLocks,
    /// The partial parity logs, where the array has them.
    pub(super) logs: Option<Logs>,
    /// Who is in the array is changed by one operator at a time.
    pub(super) changes: RowLocks,
    pub(super) mending: Mending,
    /// Which copy is read.
    pub(super) choice: Choice,
    pub(super) hedging: Hedging,
    pub(super) sync: SyncTask,
    pub(super) deadlines: Rc<Deadlines>,
    pub(super) traffic: Rc<Traffic>,
    /// What clients have asked for, and how the array stood meanwhile.
    pub(super) clients: Clients,
    pub(super) standing: Standing,
    /// The one lane in which discards are done.
    pub(super) discards: RowLocks,
    /// Every write is durable when it is answered, whether that was asked for or not.
    pub(super) write_through: Cell<bool>,
    pub(super) memory: Memory,
    pub(super) runtime: R,
    pub(super) weak: Weak<Array<D, R>>,
}

/// A request under way; the array is not stopped before it has ended.
pub(super) struct Busy<'a> {
    state: &'a RefCell<State>,
    to_write: bool,
}

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        let mut state = self.state.borrow_mut();
        state.busy -= 1;
        state.writing -= usize::from(self.to_write);
    }
}

/// A client's request under way. Unless it is said to have succeeded, it has failed.
pub(super) struct Request<'a> {
    _busy: Busy<'a>,
    clients: &'a Clients,
    deadlines: &'a Deadlines,
    kind: Kind,
    bytes: u64,
    began: Duration,
    is_ok: Cell<bool>,
}

impl Request<'_> {
    fn succeeded<T>(&self, answer: T) -> Result<T, IoError> {
        self.is_ok.set(true);
        Ok(answer)
    }
}

impl Drop for Request<'_> {
    fn drop(&mut self) {
        self.clients.end(self.kind, self.began, self.deadlines.now(), self.bytes, self.is_ok.get());
    }
}

impl<D: Device + 'static, R: Runtime> Array<D, R> {
    /// The array's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The RAID level.
    pub fn level(&self) -> Level {
        self.shape.level
    }

    /// The array's UUID, as stored.
    pub fn uuid(&self) -> [u8; 16] {
        self.truth.set_uuid
    }

    /// Bytes of content.
    pub fn size_bytes(&self) -> u64 {
        self.geometry.array_sectors().bytes()
    }

    pub(super) fn enter(&self, to_write: bool) -> Result<Busy<'_>, IoError> {
        self.check_open(to_write)?;
        let mut state = self.state.borrow_mut();
        state.busy += 1;
        state.writing += usize::from(to_write);
        Ok(Busy { state: &self.state, to_write })
    }

    /// Lets a client's request in, which reads or writes so many bytes.
    fn begin(&self, kind: Kind, bytes: u64) -> Result<Request<'_>, IoError> {
        let busy = self.enter(matches!(kind, Kind::Write | Kind::Other))?;
        self.clients.begin();
        Ok(Request {
            _busy: busy,
            clients: &self.clients,
            deadlines: &self.deadlines,
            kind,
            bytes,
            began: self.deadlines.now(),
            is_ok: Cell::new(false),
        })
    }

    /// Bytes of one member's rows that are worked on at a time: large where members are few, so that the scratch of one
    /// stripe stays within a few megabytes.
    pub(super) fn window_bytes(&self) -> u64 {
        let share = (4 << 20) / (u64::from(self.shape.slots) + 2);
        let window = 1u64 << share.max(1).ilog2();
        window.clamp(self.block_bytes.max(4096), 512 << 10)
    }

    fn check(&self, offset_bytes: u64, len_bytes: u64, block_bytes: u64) -> Result<(), IoError> {
        let end = offset_bytes.checked_add(len_bytes);
        if end.is_none_or(|end| end > self.size_bytes()) {
            return Err(IoError::new(IoErrorKind::Invalid, "past the end of the array"));
        }
        if !(offset_bytes | len_bytes).is_multiple_of(block_bytes) {
            return Err(IoError::new(IoErrorKind::Invalid, "not aligned to the array's blocks"));
        }
        Ok(())
    }
}

impl<D: Device + 'static, R: Runtime> Device for Array<D, R> {
    fn info(&self) -> DeviceInfo {
        let chunk_bytes = self.shape.chunk.bytes();
        DeviceInfo {
            size_bytes: self.size_bytes(),
            read_block_bytes: self.block_bytes as u32,
            write_block_bytes: 1,
            preferred_bytes: if chunk_bytes.is_power_of_two() {
                chunk_bytes.clamp(4096, MAX_BUF_BYTES as u64) as u32
            } else {
                4096
            },
            read_only: self.state.borrow().phase == Phase::ReadOnly,
            rotational: self.roster.borrow().live().any(|member| member.device.info().rotational),
        }
    }

    async fn read(&self, offset_bytes: u64, buf: Buf) -> Result<Buf, IoError> {
        self.check(offset_bytes, buf.len() as u64, self.block_bytes)?;
        let len = buf.len();
        let request = self.begin(Kind::Read, len as u64)?;
        self.sync.last_request.set(request.began);
        if buf.is_empty() {
            return request.succeeded(buf);
        }
        // Nearly all reads lie on one member, and it answers. What else there is has its future in a box: a large one would be
        // copied, and copied again, for every small read.
        let (lone, avoid) = match &self.geometry {
            Geometry::Copies(copies) => self.lone_copy(copies, offset_bytes, len as u64).unzip(),
            Geometry::Parity(parity) => self.lone_chunk(parity, offset_bytes, len as u64).unzip(),
        };
        if self.hedging.is_on()
            && let (Some(lone), Some(avoid)) = (&lone, &avoid)
        {
            let (lone, avoid) = (lone.clone(), avoid.clone());
            let buf = Box::pin(self.read_hedged(offset_bytes, buf, lone, avoid)).await?;
            return request.succeeded(buf);
        }
        let buf = match lone {
            Some((member, sector)) => match member.read(sector, buf).await {
                Ok(buf) => return request.succeeded(buf),
                Err(error) => {
                    self.judge_read(&member, sector.0..sector.0 + sectors(len as u64), &error);
                    drop(member);
                    self.memory.rescue.alloc(len).await
                }
            },
            None => buf,
        };
        let buf = Box::pin(self.read_apart(offset_bytes, buf, avoid)).await?;
        request.succeeded(buf)
    }

    async fn write(&self, offset_bytes: u64, data: Vec<Slice>, fua: Fua) -> Result<(), IoError> {
        let len_bytes = data.iter().map(|slice| slice.len() as u64).sum();
        self.check(offset_bytes, len_bytes, 1)?;
        let request = self.begin(Kind::Write, len_bytes)?;
        self.sync.last_request.set(request.began);
        if len_bytes == 0 {
            return request.succeeded(());
        }
        let fua = self.fua(fua);
        let _ticket = self.activate().await?;
        match &self.geometry {
            Geometry::Copies(copies) => {
                Box::pin(self.write_copies(copies, offset_bytes, &data, fua)).await?;
            }
            Geometry::Parity(parity) => {
                Box::pin(self.write_parity(parity, offset_bytes, &data, fua)).await?;
            }
        }
        // Law 1: whoever was passed over because it had failed is on record before anyone hears of success.
        self.persist().await?;
        request.succeeded(())
    }

    async fn write_zeroes(
        &self,
        offset_bytes: u64,
        len_bytes: u64,
        zeroing: Zeroing,
        fua: Fua,
    ) -> Result<(), IoError> {
        self.check(offset_bytes, len_bytes, 1)?;
        let request = self.begin(Kind::Other, 0)?;
        self.sync.last_request.set(request.began);
        if len_bytes == 0 {
            return request.succeeded(());
        }
        let fua = self.fua(fua);
        let _ticket = self.activate().await?;
        self.zero_range(offset_bytes, len_bytes, zeroing, fua).await?;
        self.persist().await?;
        request.succeeded(())
    }

    async fn zeroes_fast(&self, offset_bytes: u64, len_bytes: u64) -> bool {
        self.check(offset_bytes, len_bytes, 1).is_ok()
            && self.zeroes_range_fast(offset_bytes, len_bytes).await
    }

    async fn discard(&self, offset_bytes: u64, len_bytes: u64) -> Result<(), IoError> {
        self.check(offset_bytes, len_bytes, 1)?;
        let request = self.begin(Kind::Other, 0)?;
        let _ticket = self.activate().await?;
        self.discard_range(offset_bytes, len_bytes).await?;
        self.persist().await?;
        request.succeeded(())
    }

    async fn flush(&self) -> Result<(), IoError> {
        let request = self.begin(Kind::Flush, 0)?;
        self.flush_members().await?;
        request.succeeded(())
    }

    fn extent_kinds(&self) -> &[ExtentKind] {
        self.known_kinds()
    }

    async fn extents(&self, kind: ExtentKind, range: Range<u64>, max: usize) -> Result<Vec<Extent>, IoError> {
        self.check(range.start, range.end.saturating_sub(range.start), 1)?;
        let _busy = self.enter(false)?;
        if range.is_empty() {
            return Err(IoError::new(IoErrorKind::Invalid, "an empty range has no extents"));
        }
        Ok(self.extents_of(kind, range, max).await)
    }
}

impl<D: Device + 'static, R: Runtime> Array<D, R> {
    /// Makes every write durable before it is answered, or only those that ask for it. A client may outlive the machine that
    /// the array is on, and goes on as if what was answered were there.
    pub fn set_write_through(&self, write_through: bool) {
        self.write_through.set(write_through);
    }

    /// Reads what does not lie on one member, or lies where a read has just failed.
    pub(super) async fn read_apart(
        &self,
        offset_bytes: u64,
        buf: Buf,
        avoid: Option<Unreadable>,
    ) -> Result<Buf, IoError> {
        let avoid: Vec<_> = avoid.into_iter().collect();
        match &self.geometry {
            // Where copies may differ by now, the one that a resync copies from comes first again.
            Geometry::Copies(copies)
                if avoid.iter().any(|place| self.trust(&place.rows) != Trust::Consistent) =>
            {
                self.read_copies(copies, offset_bytes, buf, Vec::new()).await
            }
            Geometry::Copies(copies) => self.read_copies(copies, offset_bytes, buf, avoid).await,
            Geometry::Parity(parity) => self.read_parity(parity, offset_bytes, buf, avoid).await,
        }
    }

    fn fua(&self, asked: Fua) -> Fua {
        if self.write_through.get() { Fua::Yes } else { asked }
    }
}

/// The part `start..start + len` (bytes) of what the slices hold together, as slices.
pub(super) fn cut_slices(data: &[Slice], start: u64, len: u64) -> Vec<Slice> {
    let (mut skip, mut left) = (start as usize, len as usize);
    let mut out = Vec::new();
    for slice in data {
        if left == 0 {
            break;
        }
        if skip >= slice.len() {
            skip -= slice.len();
            continue;
        }
        let take = left.min(slice.len() - skip);
        out.push(slice.slice(skip..skip + take));
        (skip, left) = (0, left - take);
    }
    assert!(left == 0, "the slices hold less than {} bytes", start + len);
    out
}

/// Sectors in so many bytes, which are whole sectors.
pub(super) fn sectors(bytes: u64) -> u64 {
    assert!(bytes.is_multiple_of(SECTOR_BYTES), "{bytes} bytes are no whole sectors");
    bytes / SECTOR_BYTES
}
