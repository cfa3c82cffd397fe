//! Making an array: writing metadata where there was none.
//!
//! `md::create` says what the bytes are; here is their order. Data areas are zeroed first where that was asked for, then
//! bitmaps and logs are written, all members are flushed, and only then the superblocks are written, durably. A crash on
//! the way leaves members without a superblock: there is no array yet, and nobody was told that there is.

use std::pin::pin;
use std::rc::Rc;

use futures_util::future::join_all;

use super::deadline::Deadlines;
use super::error::Refusal;
use crate::io::{Device, Fua, IoError, IoErrorKind, MAX_BUF_BYTES, Pool, Runtime, Slice, Zeroing};
use crate::md::SUPERBLOCK_OFFSET_BYTES;
use crate::md::create::Created;

/// What may lie at the start of a device and would be taken for something else than a member: the boot sector, partition
/// tables, and the superblocks of most filesystems.
const HEAD_BYTES: usize = 4096;

/// What is written at a time: a pool for metadata has several of it.
const STEP_BYTES: usize = 64 << 10;

/// A device that is to be a member, in the order of `Created::superblocks`.
pub struct NewMember<D> {
    /// The device, opened for writing.
    pub device: D,
    /// Its path, for people.
    pub label: String,
}

/// Writes a new array's metadata. With `zero`, data areas are zeroed first. A device that does not answer within the
/// deadline that members have fails it.
pub async fn write<D: Device, R: Runtime>(
    members: &[NewMember<D>],
    created: &Created,
    zero: bool,
    pool: &Pool,
    runtime: &R,
) -> Result<(), Refusal> {
    let deadlines = &Deadlines::new(runtime);
    if zero {
        let zeroing = members.iter().zip(&created.superblocks).map(async |(member, superblock)| {
            let (start, len) = (superblock.data_offset.bytes(), superblock.data_size.bytes());
            zero_range(&member.device, start, len, deadlines).await
        });
        check(members, join_all(zeroing).await, "zeroing the data area")?;
    }
    let metadata = members.iter().enumerate().map(async |(index, member)| {
        write_bytes(&member.device, pool, deadlines, 0, &[0; HEAD_BYTES]).await?;
        // An older superblock must not come back to life if this is cut short.
        write_bytes(&member.device, pool, deadlines, SUPERBLOCK_OFFSET_BYTES, &[0; HEAD_BYTES]).await?;
        for (offset_bytes, bytes) in created.writes(index) {
            if offset_bytes != SUPERBLOCK_OFFSET_BYTES {
                write_bytes(&member.device, pool, deadlines, offset_bytes, &bytes).await?;
            }
        }
        let zeroed = if zero { created.superblocks[index].data_size.bytes() } else { 0 };
        deadlines.bound(zeroed, pin!(member.device.flush())).await
    });
    check(members, join_all(metadata).await, "writing its metadata")?;
    let superblocks = members.iter().zip(&created.superblocks).map(async |(member, superblock)| {
        write_bytes(&member.device, pool, deadlines, SUPERBLOCK_OFFSET_BYTES, &superblock.encode()).await
    });
    check(members, join_all(superblocks).await, "writing its superblock")
}

fn check<D>(
    members: &[NewMember<D>],
    results: Vec<Result<(), IoError>>,
    what: &'static str,
) -> Result<(), Refusal> {
    for (member, result) in members.iter().zip(results) {
        result.map_err(|error| Refusal::WriteFailed { member: member.label.clone(), what, error })?;
    }
    Ok(())
}

/// Writes bytes, durably, padded with zeroes to whole blocks.
async fn write_bytes<D: Device>(
    device: &D,
    pool: &Pool,
    deadlines: &Rc<Deadlines>,
    offset_bytes: u64,
    bytes: &[u8],
) -> Result<(), IoError> {
    let block = device.info().write_block_bytes as usize;
    for (number, part) in bytes.chunks(STEP_BYTES).enumerate() {
        let mut buf = pool.alloc(part.len().next_multiple_of(block)).await;
        buf.zero();
        buf[..part.len()].copy_from_slice(part);
        let at = offset_bytes + (number * STEP_BYTES) as u64;
        deadlines.bound(0, pin!(device.write(at, vec![buf.freeze()], Fua::Yes))).await?;
    }
    Ok(())
}

async fn zero_range<D: Device>(
    device: &D,
    offset_bytes: u64,
    len_bytes: u64,
    deadlines: &Rc<Deadlines>,
) -> Result<(), IoError> {
    let block = u64::from(device.info().write_block_bytes);
    let len_bytes = len_bytes - len_bytes % block;
    let zeroed = device.write_zeroes(offset_bytes, len_bytes, Zeroing::Allocate, Fua::No);
    match deadlines.bound(len_bytes, pin!(zeroed)).await {
        Err(error) if error.kind == IoErrorKind::Unsupported => {}
        result => return result,
    }
    let mut at = 0;
    while at < len_bytes {
        let len = (len_bytes - at).min(MAX_BUF_BYTES as u64);
        let written = device.write(offset_bytes + at, vec![Slice::zeroes(len as usize)], Fua::No);
        deadlines.bound(len, pin!(written)).await?;
        at += len;
    }
    Ok(())
}
