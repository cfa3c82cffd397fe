//! WHEN the write-intent bitmap is written (`md::bitmap` says what it is).
//!
//! Keeping it up is not built yet. So that no crash may find bits that lie, an array that has one gets it marked stale,
//! durably, before the first write: md then takes every bit for set, and resyncs all of an array that is dirty.

use futures_util::future::join_all;

use super::array::Array;
use super::member::Member;
use crate::io::{Device, Fua, IoError, Runtime};
use crate::md::{BitmapSuperblock, Features, SUPERBLOCK_OFFSET_BYTES};
use crate::units::SECTOR_BYTES;

impl<D: Device + 'static, R: Runtime> Array<D, R> {
    /// Marks every member's bitmap stale, once. The caller holds the lane.
    pub(super) async fn mark_bitmap_stale(&self) -> Result<(), IoError> {
        if self.state.borrow().bitmap_is_stale || !self.has_bitmap() {
            return Ok(());
        }
        loop {
            let members = self.live_members();
            let seated: Vec<_> = members.iter().filter(|member| member.slot.is_some()).collect();
            let results = join_all(seated.iter().map(|member| self.mark_stale(member))).await;
            let failures =
                seated.into_iter().zip(results).filter_map(|(member, result)| Some((member, result.err()?)));
            if !self.settle_metadata(failures.collect())? {
                break;
            }
        }
        self.state.borrow_mut().bitmap_is_stale = true;
        Ok(())
    }

    pub(super) fn has_bitmap(&self) -> bool {
        self.any_superblock().feature_map.contains(Features::BITMAP)
    }

    async fn mark_stale(&self, member: &Member<D>) -> Result<(), IoError> {
        let offset_bytes = bitmap_place(member);
        let buf = self.memory.metadata.alloc(self.block_bytes as usize).await;
        let mut buf = member.device.read(offset_bytes, buf).await?;
        let Ok(mut bitmap) = BitmapSuperblock::parse(&buf) else {
            // Checked at assembly, and nobody else may write here since.
            return Err(IoError::new(crate::io::IoErrorKind::Media, "the bitmap does not read back"));
        };
        bitmap.state |= BitmapSuperblock::STALE;
        let bytes = bitmap.encode();
        buf[..bytes.len()].copy_from_slice(&bytes);
        member.device.write(offset_bytes, vec![buf.freeze()], Fua::Yes).await
    }
}

/// Where a member's bitmap begins, in bytes from the start of the device.
pub(super) fn bitmap_place<D>(member: &Member<D>) -> u64 {
    bitmap_offset_bytes(member.superblock.bitmap_offset)
}

/// Where a bitmap begins whose superblock says that it lies so many sectors from it.
pub(super) fn bitmap_offset_bytes(bitmap_offset: i32) -> u64 {
    let relative = i64::from(bitmap_offset) * SECTOR_BYTES as i64;
    SUPERBLOCK_OFFSET_BYTES.checked_add_signed(relative).expect("checked when the array was assembled")
}
