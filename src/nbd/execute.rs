//! One request against the device: from the buffers it has been given to the data of its reply.
//!
//! Runs as a task of its own, beside the connection's other requests. Retries nothing: what the device answers is final.

use futures_util::future::join_all;

use super::command::Range;
use super::limits::ZERO_WRITE_BYTES;
use super::payload::{Piece, cut_out, pieces};
use super::wire::Errno;
use crate::io::{Buf, Device, Fua, IoError, IoErrorKind, PAGE_BYTES, Slice, Zeroing};

/// A legal request with all that it needs.
pub(super) enum Work {
    /// The pieces cover the range in whole blocks of the device.
    Read {
        range: Range,
        block_bytes: u32,
        pieces: Vec<(Piece, Buf)>,
    },
    /// The payload is complete.
    Write {
        range: Range,
        payload: Vec<Slice>,
        fua: Fua,
    },
    Flush,
    Trim {
        range: Range,
        fua: Fua,
    },
    WriteZeroes {
        range: Range,
        zeroing: Zeroing,
        fua: Fua,
    },
}

/// Does it. The slices are a READ's data, and none otherwise.
pub(super) async fn execute<D: Device>(device: &D, work: Work) -> Result<Vec<Slice>, Errno> {
    let done = match work {
        Work::Read { range, block_bytes, pieces } => {
            return match read(device, pieces).await {
                Ok(bufs) => Ok(cut_out(range, block_bytes, bufs)),
                Err(error) => Err(errno(error, "READ")),
            };
        }
        Work::Write { payload, .. } if payload.is_empty() => Ok(()),
        Work::Write { range, payload, fua } => device.write(range.offset_bytes, payload, fua).await,
        Work::Flush => device.flush().await,
        Work::Trim { range, .. } | Work::WriteZeroes { range, .. } if range.len_bytes == 0 => Ok(()),
        Work::Trim { range, fua } => trim(device, range, fua).await,
        Work::WriteZeroes { range, zeroing, fua } => write_zeroes(device, range, zeroing, fua).await,
    };
    done.map(|()| Vec::new()).map_err(|error| errno(error, "request"))
}

/// All of the pieces at once; none is left under way when this is over.
async fn read<D: Device>(device: &D, mut pieces: Vec<(Piece, Buf)>) -> Result<Vec<Buf>, IoError> {
    let read_one = async |(piece, buf): (Piece, Buf)| {
        let buf = device.read(piece.offset_bytes, buf).await?;
        assert_eq!(buf.len(), piece.len, "a device gives back the buffer that it was given");
        Ok(buf)
    };
    if pieces.len() == 1 {
        let only = pieces.pop().expect("one piece");
        return Ok(vec![read_one(only).await?]);
    }
    join_all(pieces.into_iter().map(read_one)).await.into_iter().collect()
}

async fn trim<D: Device>(device: &D, range: Range, fua: Fua) -> Result<(), IoError> {
    match device.discard(range.offset_bytes, u64::from(range.len_bytes)).await {
        // A TRIM may do nothing.
        Err(error) if error.kind == IoErrorKind::Unsupported => Ok(()),
        Err(error) => Err(error),
        Ok(()) => match fua {
            Fua::Yes => device.flush().await,
            Fua::No => Ok(()),
        },
    }
}

async fn write_zeroes<D: Device>(
    device: &D,
    range: Range,
    zeroing: Zeroing,
    fua: Fua,
) -> Result<(), IoError> {
    let (offset_bytes, len_bytes) = (range.offset_bytes, u64::from(range.len_bytes));
    match device.write_zeroes(offset_bytes, len_bytes, zeroing, fua).await {
        Err(error) if error.kind == IoErrorKind::Unsupported => (),
        done => return done,
    }
    // Zeroes are written instead, a few pieces at a time: bounded work between two chances for others.
    let batch_pieces = ZERO_WRITE_BYTES / crate::io::MAX_BUF_BYTES;
    for batch in pieces(offset_bytes, len_bytes).chunks(batch_pieces) {
        let zeroes = batch.iter().map(zeroes_for).collect();
        device.write(batch[0].offset_bytes, zeroes, Fua::No).await?;
    }
    match fua {
        Fua::Yes => device.flush().await,
        Fua::No => Ok(()),
    }
}

/// Zeroes that lie in memory as the piece does on the device.
fn zeroes_for(piece: &Piece) -> Slice {
    let lead = (piece.offset_bytes % PAGE_BYTES as u64) as usize;
    Slice::zeroes(lead + piece.len).slice(lead..lead + piece.len)
}

/// What the client is told.
fn errno(error: IoError, doing: &'static str) -> Errno {
    tracing::debug!(%error, doing, "answered with an error");
    match error.kind {
        IoErrorKind::Media | IoErrorKind::Gone | IoErrorKind::Timeout | IoErrorKind::Closed => Errno::Io,
        // ENOTSUP is legal only for FAST_ZERO; elsewhere the client has to hear that it did not happen.
        IoErrorKind::Unsupported => Errno::Io,
        IoErrorKind::NoSpace => Errno::NoSpace,
        IoErrorKind::Invalid => Errno::Invalid,
        IoErrorKind::ReadOnly => Errno::Perm,
        IoErrorKind::ShuttingDown => Errno::Shutdown,
    }
}
