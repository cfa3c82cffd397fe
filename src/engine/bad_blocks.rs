//! WHEN a member's bad-block log is written (`md::bad_blocks` says what it is): a range that a member does not hold,
//! although the rest of it is right.
//!
//! Invariants (law 1):
//! - A log is durable before a superblock says that it is in use, and before anybody hears of a success that a range in
//!   it stands for: a change counts as wanted, and `persist` writes it.
//! - A range leaves the log when a write has covered it, by the same way, and only after a flush of the member: what the
//!   log calls good must not go back to what it was in a power cut.

use std::ops::Range;
use std::rc::Rc;

use futures_util::future::join_all;

use super::array::Array;
use super::member::Member;
use super::ranges::RowSet;
use crate::io::{Device, Fua, IoError, Runtime};
use crate::md::bad_blocks;
use crate::units::{SECTOR_BYTES, Sector};

impl<D: Device> Member<D> {
    /// The bytes of a log that says these ranges. None if there is no log, or no room in it.
    fn encode_log(&self, bad: &RowSet, block_bytes: u64) -> Option<Vec<u8>> {
        let superblock = &self.superblock;
        let place = superblock.bad_blocks_sector()?;
        let len_bytes = u64::from(superblock.bblog_size) * SECTOR_BYTES;
        if len_bytes == 0 || !(place.bytes() | len_bytes).is_multiple_of(block_bytes) {
            return None;
        }
        let ranges: Vec<_> =
            bad.ranges().map(|bad| (Sector(bad.start), Sector(bad.end - bad.start))).collect();
        bad_blocks::encode(&ranges, superblock.bblog_shift, superblock.data_offset, superblock.bblog_size)
            .ok()
    }
}

impl<D: Device + 'static, R: Runtime> Array<D, R> {
    /// Notes that a member does not hold these of its rows. False, with nothing changed, if it has no log or no room.
    pub(super) fn record_bad(&self, member: &Member<D>, rows: &Range<u64>) -> bool {
        let block = self.block_bytes / SECTOR_BYTES;
        let rows = rows.start - rows.start % block..rows.end.next_multiple_of(block);
        let mut bad = member.bad.borrow().clone();
        bad.insert(rows.clone());
        if member.encode_log(&bad, self.block_bytes).is_none() {
            return false;
        }
        tracing::warn!(array = self.name(), member = member.label, ?rows, "recorded as bad");
        *member.bad.borrow_mut() = bad;
        member.log_is_due.set(true);
        self.state.borrow_mut().wanted += 1;
        true
    }

    /// A write has covered these rows of a member.
    pub(super) fn forget_bad(&self, member: &Member<D>, rows: &Range<u64>) {
        if !member.bad.borrow().overlaps(rows) {
            return;
        }
        let mut bad = member.bad.borrow().clone();
        bad.remove(rows);
        if member.encode_log(&bad, self.block_bytes).is_none() {
            return; // A hole in a range takes one more entry than there is; it stays bad as a whole.
        }
        *member.bad.borrow_mut() = bad;
        member.log_shrinks.set(true);
        member.log_is_due.set(true);
        self.state.borrow_mut().wanted += 1;
    }

    /// Writes the logs that have changed. The caller writes superblocks next.
    pub(super) async fn write_bad_block_logs(&self) -> Result<(), IoError> {
        let due: Vec<Rc<Member<D>>> =
            self.live_members().into_iter().filter(|member| member.log_is_due.replace(false)).collect();
        let results = join_all(due.iter().map(|member| self.write_log(member))).await;
        for (member, result) in due.iter().zip(&results) {
            member.log_is_due.set(member.log_is_due.get() || result.is_err());
        }
        let failures = due.iter().zip(results).filter_map(|(member, result)| Some((member, result.err()?)));
        self.settle_metadata(failures.collect()).map(drop)
    }

    async fn write_log(&self, member: &Member<D>) -> Result<(), IoError> {
        if member.log_shrinks.replace(false)
            && let Err(error) = member.flush().await
        {
            member.log_shrinks.set(true);
            return Err(error);
        }
        let bytes =
            member.encode_log(&member.bad.borrow(), self.block_bytes).expect("recorded because it fits");
        let is_used = !member.bad.borrow().is_empty();
        let place = member.superblock.bad_blocks_sector().expect("a log has a place");
        let mut buf = self.memory.metadata.alloc(bytes.len()).await;
        buf.copy_from_slice(&bytes);
        member.write_metadata(place.bytes(), vec![buf.freeze()], Fua::Yes).await?;
        member.log_is_used.set(is_used);
        Ok(())
    }
}
