//! A member: a device, what its superblock says of it, and which of its rows may be believed.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::ops::Range;
use std::rc::Rc;

use crate::io::{Buf, Device, Fua, IoError, IoErrorKind, Slice, Zeroing};
use crate::md::Superblock;
use crate::units::{MemberSlot, SECTOR_BYTES, Sector};

/// What a member is to its array. A slot without a member is *missing*.
///
/// Moves: in sync -> faulty; recovering -> in sync, faulty; replacing -> in sync, faulty; spare -> recovering,
/// replacing, faulty. Faulty is for good: the device has to be added anew. (Recovery itself is not built yet, so
/// members that are being filled are only ever read.)
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
    pub slot: Option<MemberSlot>,
    /// As found on the device; what every later superblock of it is made from.
    pub superblock: Superblock,
    pub state: Cell<MemberState>,
    /// Rows it is known not to hold, from its bad-block log; sectors of the data area.
    pub bad: Vec<Range<u64>>,
    /// Sectors that read differently from what the disk says: parity replayed from a partial parity log.
    pub replayed: RefCell<BTreeMap<u64, [u8; SECTOR_BYTES as usize]>>,
    pub read_errors: Cell<u64>,
    pub write_errors: Cell<u64>,
}

/// A slot of the array: its member, and the one that is being filled to replace it.
pub(super) struct Seat<D> {
    pub member: Option<Rc<Member<D>>>,
    pub replacement: Option<Rc<Member<D>>>,
}

impl<D> Clone for Seat<D> {
    fn clone(&self) -> Self {
        Seat { member: self.member.clone(), replacement: self.replacement.clone() }
    }
}

impl<D: Device> Member<D> {
    /// Whether these sectors of its data area are right.
    pub fn holds(&self, rows: &Range<u64>) -> bool {
        let limit = match self.state.get() {
            MemberState::InSync => u64::MAX,
            MemberState::Recovering(offset) | MemberState::Replacing(offset) => offset.0,
            MemberState::Spare | MemberState::Faulty => 0,
        };
        rows.end <= limit && !self.bad.iter().any(|bad| bad.start < rows.end && rows.start < bad.end)
    }

    pub fn in_sync(&self) -> bool {
        self.state.get() == MemberState::InSync
    }

    /// Where, within `rows`, it begins or ceases to hold what it should.
    pub fn cuts(&self, rows: &Range<u64>, cuts: &mut Vec<u64>) {
        if let MemberState::Recovering(offset) | MemberState::Replacing(offset) = self.state.get() {
            cuts.push(offset.0);
        }
        cuts.extend(self.bad.iter().flat_map(|bad| [bad.start, bad.end]));
        cuts.retain(|cut| rows.start < *cut && *cut < rows.end);
    }

    fn place(&self, sector: Sector) -> u64 {
        (self.superblock.data_offset + sector).bytes()
    }

    /// Fills `buf` from a sector of the data area.
    pub async fn read(&self, sector: Sector, buf: Buf) -> Result<Buf, IoError> {
        let result = self.device.read(self.place(sector), buf).await;
        let mut buf = result.inspect_err(|error| {
            self.read_errors.set(self.read_errors.get() + 1);
            tracing::warn!(member = self.label, %sector, %error, "read failed");
        })?;
        self.overlay(sector, &mut buf);
        Ok(buf)
    }

    fn overlay(&self, sector: Sector, buf: &mut Buf) {
        let replayed = self.replayed.borrow();
        if replayed.is_empty() {
            return;
        }
        for (i, bytes) in buf.chunks_exact_mut(SECTOR_BYTES as usize).enumerate() {
            if let Some(parity) = replayed.get(&(sector.0 + i as u64)) {
                bytes.copy_from_slice(parity);
            }
        }
    }

    /// Writes at a sector of the data area.
    pub async fn write(&self, sector: Sector, data: Vec<Slice>, fua: Fua) -> Result<(), IoError> {
        let result = self.device.write(self.place(sector), data, fua).await;
        result.inspect_err(|error| self.note_write_error("write", error))
    }

    /// Makes sectors of the data area zero; by writing zeroes where the device knows no better.
    pub async fn write_zeroes(
        &self,
        sector: Sector,
        len: Sector,
        zeroing: Zeroing,
        fua: Fua,
    ) -> Result<(), IoError> {
        let result = self.device.write_zeroes(self.place(sector), len.bytes(), zeroing, fua).await;
        match result {
            Err(error) if error.kind == IoErrorKind::Unsupported => {}
            other => return other.inspect_err(|error| self.note_write_error("write zeroes", error)),
        }
        let (mut at, end) = (sector, sector + len);
        while at < end {
            let step = Sector((end - at).0.min(Sector::floor(crate::io::MAX_BUF_BYTES as u64).0));
            self.write(at, vec![Slice::zeroes(step.bytes() as usize)], fua).await?;
            at += step;
        }
        Ok(())
    }

    pub async fn flush(&self) -> Result<(), IoError> {
        self.device.flush().await.inspect_err(|error| self.note_write_error("flush", error))
    }

    pub fn note_write_error(&self, what: &str, error: &IoError) {
        self.write_errors.set(self.write_errors.get() + 1);
        tracing::warn!(member = self.label, %error, "{what} failed");
    }
}
