//! A member: a device, what its superblock says of it, and which of its rows may be believed.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::ops::Range;
use std::pin::{Pin, pin};
use std::rc::Rc;

use super::choice::Pace;
use super::deadline::Deadlines;
use super::mutant::{self, Mutant};
use super::ranges::RowSet;
use super::repair::Corrections;
use super::tally::Work;
use super::traffic::{Traffic, count};
use crate::io::{Buf, Device, Fua, IoError, IoErrorKind, Slice, Zeroing};
use crate::md::Superblock;
use crate::units::{MemberSlot, SECTOR_BYTES, Sector};

/// Operations that a member may owe an answer after their deadlines. They keep their buffers, so that one that answers
/// nothing any more, but cannot be failed, would in the end have all the memory there is.
const OVERDUE_MAX: usize = 16;

const SILENT: IoError =
    IoError::new(IoErrorKind::Timeout, "the member has not answered for long; it is not asked any more");

/// An operation that is awaited.
struct Awaited<'a>(&'a Cell<usize>);

impl Drop for Awaited<'_> {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

/// What a member is to its array. A slot without a member is *missing*.
///
/// Moves: spare -> recovering (a slot is vacant), replacing (the operator said so), faulty; replacing -> recovering (the
/// member that it was to replace has failed), in sync, faulty; recovering -> in sync, faulty; in sync -> faulty. Faulty
/// is for good: the device has to be removed and added anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemberState {
    /// Holds everything.
    InSync,
    /// Is being filled to take a missing member's place; right below this member sector.
    Recovering(Sector),
    /// Is being filled to replace a member that is still there; right below this member sector.
    Replacing(Sector),
    /// Waits to be needed.
    Spare,
    /// Failed: neither read nor written.
    Faulty,
}

/// One member of an array.
pub(super) struct Member<D> {
    pub device: D,
    /// Its path, for people.
    pub label: String,
    /// As found on the device; what every later superblock of it is made from.
    pub superblock: Superblock,
    pub slot: Cell<Option<MemberSlot>>,
    pub state: Cell<MemberState>,
    /// While it is being filled: what its superblock may say is right, because a flush has covered it.
    pub checkpoint: Cell<Sector>,
    /// It has been filled, flushed, and its superblock is to say so, before anybody counts on it.
    pub filled: Cell<bool>,
    /// Its superblock is a generation behind what the array was assembled by.
    pub lags: Cell<bool>,
    /// It was here before: only what the write-intent bitmap tells is filled.
    pub guided: Cell<bool>,
    /// Rows it is known not to hold, from its bad-block log; sectors of the data area.
    pub bad: RefCell<RowSet>,
    /// Sectors that read differently from what the disk says: parity replayed from a partial parity log.
    pub replayed: RefCell<BTreeMap<u64, [u8; SECTOR_BYTES as usize]>>,
    /// The log on the device does not say so yet.
    pub log_is_due: Cell<bool>,
    /// Ranges have been written since the log called them bad.
    pub log_shrinks: Cell<bool>,
    /// The log on the device says something; what the superblock may tell of it.
    pub log_is_used: Cell<bool>,
    pub read_errors: Cell<u64>,
    pub write_errors: Cell<u64>,
    /// Sectors that could not be read, were worked out from the other members, and read well once rewritten.
    pub corrected: Cell<u64>,
    /// When corrections were made of late; too many fail the member.
    pub corrections: RefCell<Corrections>,
    pub deadlines: Rc<Deadlines>,
    pub traffic: Rc<Traffic>,
    pub work: Work,
    pub pace: Pace,
    /// What the last operation ended with that speaks against the device.
    pub last_blame: Cell<Option<IoErrorKind>>,
    /// It failed because its device was not there or did not answer; nobody said so, and nothing was wrong with its media.
    pub is_absent: Cell<bool>,
    /// Operations that somebody waits for.
    pub awaited: Cell<usize>,
}

/// A sector, counted from where a buffer begins, and what it reads as.
type Replayed = (u64, [u8; SECTOR_BYTES as usize]);

fn lay(replayed: &[Replayed], buf: &mut Buf) {
    for (sector, parity) in replayed {
        let at = (sector * SECTOR_BYTES) as usize;
        buf[at..at + parity.len()].copy_from_slice(parity);
    }
}

impl<D: Device> Member<D> {
    /// Whether these sectors of its data area are right.
    pub fn holds(&self, rows: &Range<u64>) -> bool {
        let limit = match self.state.get() {
            MemberState::InSync => u64::MAX,
            MemberState::Recovering(_) if mutant::is(Mutant::ReadAboveOffset) => u64::MAX,
            MemberState::Recovering(offset) | MemberState::Replacing(offset) => offset.0,
            MemberState::Faulty if mutant::is(Mutant::ReadFaulty) => u64::MAX,
            MemberState::Spare | MemberState::Faulty => 0,
        };
        rows.end <= limit && !self.bad.borrow().overlaps(rows)
    }

    pub fn in_sync(&self) -> bool {
        self.state.get() == MemberState::InSync
    }

    /// How far it has been filled, while it is.
    pub fn cursor(&self) -> Option<Sector> {
        match self.state.get() {
            MemberState::Recovering(cursor) | MemberState::Replacing(cursor) => Some(cursor),
            MemberState::InSync | MemberState::Spare | MemberState::Faulty => None,
        }
    }

    /// Whether every write of its rows must reach it: it holds a slot, and has not failed.
    pub fn takes_writes(&self) -> bool {
        self.in_sync() || self.cursor().is_some()
    }

    /// The filling of this member has come so far.
    pub fn advance(&self, to: Sector) {
        match self.state.get() {
            MemberState::Recovering(from) if from < to => self.state.set(MemberState::Recovering(to)),
            MemberState::Replacing(from) if from < to => self.state.set(MemberState::Replacing(to)),
            _ => {}
        }
    }

    /// Where, within `rows`, it begins or ceases to hold what it should.
    pub fn cuts(&self, rows: &Range<u64>, cuts: &mut Vec<u64>) {
        cuts.extend(self.cursor().map(|cursor| cursor.0));
        cuts.extend(self.bad.borrow().ranges().flat_map(|bad| [bad.start, bad.end]));
        cuts.retain(|cut| rows.start < *cut && *cut < rows.end);
    }

    fn place(&self, sector: Sector) -> u64 {
        (self.superblock.data_offset + sector).bytes()
    }

    /// Awaits an operation until its deadline; not at all where too many are overdue already.
    async fn bound<T>(
        &self,
        zeroed_bytes: u64,
        operation: Pin<&mut impl Future<Output = Result<T, IoError>>>,
    ) -> Result<T, IoError> {
        if self.device.in_flight().saturating_sub(self.awaited.get()) >= OVERDUE_MAX {
            self.work.note_error(SILENT.kind);
            self.last_blame.set(Some(SILENT.kind));
            return Err(SILENT);
        }
        self.awaited.set(self.awaited.get() + 1);
        let _awaited = Awaited(&self.awaited);
        let result = self.deadlines.bound(zeroed_bytes, operation).await;
        result.inspect_err(|error| {
            self.work.note_error(error.kind);
            if error.blames_media() {
                self.last_blame.set(Some(error.kind));
            }
        })
    }

    /// Fills `buf` from a sector of the data area.
    pub async fn read(&self, sector: Sector, buf: Buf) -> Result<Buf, IoError> {
        // As it is now: what is replayed is on the device before it is forgotten, but this read may come before that.
        let replayed = self.replayed_in(sector, buf.len());
        let (len, began) = (buf.len() as u64, self.deadlines.now());
        count(&self.traffic.member_read, len);
        let result = self.bound(0, pin!(self.device.read(self.place(sector), buf))).await;
        let took = self.deadlines.now() - began;
        self.work.reads.note(took, len, result.is_ok());
        self.pace.note(took);
        let mut buf = result.inspect_err(|error| {
            self.read_errors.set(self.read_errors.get() + 1);
            tracing::warn!(member = self.label, %sector, %error, "read failed");
        })?;
        lay(&replayed, &mut buf);
        Ok(buf)
    }

    /// Puts into `buf`, which is for these sectors, what was replayed of them.
    pub fn lay_replayed(&self, sector: Sector, buf: &mut Buf) {
        lay(&self.replayed_in(sector, buf.len()), buf);
    }

    fn replayed_in(&self, sector: Sector, len: usize) -> Vec<Replayed> {
        let end = sector.0 + len as u64 / SECTOR_BYTES;
        let replayed = self.replayed.borrow();
        replayed.range(sector.0..end).map(|(&at, &parity)| (at - sector.0, parity)).collect()
    }

    /// Writes at a sector of the data area.
    pub async fn write(&self, sector: Sector, data: Vec<Slice>, fua: Fua) -> Result<(), IoError> {
        let (len, began) = (data.iter().map(|slice| slice.len() as u64).sum(), self.deadlines.now());
        count(&self.traffic.member_written, len);
        let result = self.bound(0, pin!(self.device.write(self.place(sector), data, fua))).await;
        self.work.writes.note(self.deadlines.now() - began, len, result.is_ok());
        result.inspect_err(|error| self.note_write_error("write", error))
    }

    /// Makes sectors of the data area zero, if the device knows how to.
    pub async fn try_write_zeroes(
        &self,
        sector: Sector,
        len: Sector,
        zeroing: Zeroing,
        fua: Fua,
    ) -> Result<(), IoError> {
        let zeroes = pin!(self.device.write_zeroes(self.place(sector), len.bytes(), zeroing, fua));
        let result = self.bound(len.bytes(), zeroes).await;
        result.inspect_err(|error| {
            if error.kind != IoErrorKind::Unsupported {
                self.note_write_error("write zeroes", error);
            }
        })
    }

    /// Makes sectors of the data area zero; by writing zeroes where the device knows no better.
    pub async fn write_zeroes(
        &self,
        sector: Sector,
        len: Sector,
        zeroing: Zeroing,
        fua: Fua,
    ) -> Result<(), IoError> {
        match self.try_write_zeroes(sector, len, zeroing, fua).await {
            Err(error) if error.kind == IoErrorKind::Unsupported => {}
            result => return result,
        }
        let (mut at, end) = (sector, sector + len);
        while at < end {
            let step = Sector((end - at).0.min(Sector::floor(crate::io::MAX_BUF_BYTES as u64).0));
            self.write(at, vec![Slice::zeroes(step.bytes() as usize)], fua).await?;
            at += step;
        }
        Ok(())
    }

    /// Writes anywhere on the device: `offset_bytes` counts from its beginning.
    pub async fn write_metadata(&self, offset_bytes: u64, data: Vec<Slice>, fua: Fua) -> Result<(), IoError> {
        self.bound(0, pin!(self.device.write(offset_bytes, data, fua))).await
    }

    pub async fn flush(&self) -> Result<(), IoError> {
        let began = self.deadlines.now();
        let result = self.bound(0, pin!(self.device.flush())).await;
        self.work.flushes.note(self.deadlines.now() - began, 0, result.is_ok());
        result.inspect_err(|error| self.note_write_error("flush", error))
    }

    pub fn note_write_error(&self, what: &str, error: &IoError) {
        self.write_errors.set(self.write_errors.get() + 1);
        tracing::warn!(member = self.label, %error, "{what} failed");
    }
}
