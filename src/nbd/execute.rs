//! One request against the device: from the buffers it has been given to the data of its reply.
//!
//! Runs in a task that does nothing else meanwhile, beside the connection's other requests. Retries nothing: what the device
//! answers is final. What is rare has its future in a box, so that what is frequent has a small one.

use futures_util::future::join_all;

use super::command::{Failure, Inquiry, Range, Zeroes};
use super::context;
use super::limits::{EXTENTS_MAX, ZERO_WRITE_BYTES};
use super::payload::{Few, Piece, cut_out, pieces};
use super::reply::Answer;
use super::wire::{Errno, Framing, status_bytes_max, write_status};
use crate::io::{Buf, Device, Fua, IoError, IoErrorKind, MAX_BUF_BYTES, PAGE_BYTES, Slice};

/// A legal request with all that it needs.
pub(super) enum Work {
    /// The pieces cover the range in whole blocks of the device.
    Read {
        range: Range,
        block_bytes: u32,
        pieces: Few<(Piece, Buf)>,
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
        zeroes: Zeroes,
    },
    /// Nothing to be done.
    Cache,
    /// The answer is put together in `buf`, of [`status_buf_bytes`].
    Status {
        inquiry: Inquiry,
        framing: Framing,
        cookie: u64,
        buf: Buf,
    },
}

/// Does it.
pub(super) async fn execute<D: Device>(device: &D, work: Work) -> Result<Answer, Failure> {
    let done = match work {
        Work::Read { range, block_bytes, mut pieces } => {
            let read = match pieces.len() {
                1 => {
                    let (piece, buf) = pieces.pop().expect("one piece");
                    device
                        .read(piece.offset_bytes, buf)
                        .await
                        .map(|buf| Few::from_buf([given_back(piece, buf)]))
                }
                _ => Box::pin(read(device, pieces)).await,
            };
            return match read {
                Ok(bufs) => Ok(Answer::Data(cut_out(range, block_bytes, bufs))),
                Err(error) => Err(failure(error, "READ")),
            };
        }
        Work::Status { inquiry, framing, cookie, buf } => {
            return match Box::pin(status(device, inquiry, framing, cookie, buf)).await {
                Ok(chunks) => Ok(Answer::Chunks(chunks)),
                Err(error) => Err(failure(error, "BLOCK_STATUS")),
            };
        }
        Work::WriteZeroes { range, zeroes } if zeroes.fast => {
            if !device.zeroes_fast(range.offset_bytes, range.len_bytes).await {
                return Err(NOT_FAST);
            }
            Box::pin(write_zeroes(device, range, zeroes)).await
        }
        Work::Write { payload, .. } if payload.is_empty() => Ok(()),
        Work::Write { range, payload, fua } => device.write(range.offset_bytes, payload, fua).await,
        Work::Flush => Box::pin(device.flush()).await,
        Work::Cache => Ok(()),
        Work::Trim { range, .. } | Work::WriteZeroes { range, .. } if range.len_bytes == 0 => Ok(()),
        Work::Trim { range, fua } => Box::pin(trim(device, range, fua)).await,
        Work::WriteZeroes { range, zeroes } => Box::pin(write_zeroes(device, range, zeroes)).await,
    };
    done.map(|()| Answer::Done).map_err(|error| failure(error, "request"))
}

const NOT_FAST: Failure =
    Failure { error: Errno::NotSupported, why: "zeroes there would have to be written like any other bytes" };

/// What the answer to BLOCK_STATUS about so many contexts may take.
pub(super) fn status_buf_bytes(contexts: usize) -> usize {
    contexts * status_bytes_max(EXTENTS_MAX)
}

/// One chunk for each context; the last ends the reply.
async fn status<D: Device>(
    device: &D,
    inquiry: Inquiry,
    framing: Framing,
    cookie: u64,
    mut buf: Buf,
) -> Result<Slice, IoError> {
    let Inquiry { range, contexts, one } = inquiry;
    let max = if one { 1 } else { EXTENTS_MAX };
    let mut filled = 0;
    for (index, kind) in contexts.iter().enumerate() {
        let extents = device.extents(kind, range.offset_bytes..range.end_bytes(), max).await?;
        let covered: u64 = extents.iter().map(|extent| extent.len_bytes).sum();
        assert!((1..=max).contains(&extents.len()) && covered <= range.len_bytes, "{kind:?}: {extents:?}");
        let request = (cookie, range.offset_bytes);
        let is_last = index + 1 == contexts.len();
        filled += write_status(&mut buf[filled..], framing, request, context::id(kind), &extents, is_last);
    }
    Ok(buf.freeze().slice(0..filled))
}

fn given_back(piece: Piece, buf: Buf) -> Buf {
    assert_eq!(buf.len(), piece.len, "a device gives back the buffer that it was given");
    buf
}

/// All of the pieces at once; none is left under way when this is over.
async fn read<D: Device>(device: &D, pieces: Few<(Piece, Buf)>) -> Result<Few<Buf>, IoError> {
    let reads = pieces.into_iter().map(async |(piece, buf)| {
        let buf = device.read(piece.offset_bytes, buf).await?;
        Ok(given_back(piece, buf))
    });
    join_all(reads).await.into_iter().collect()
}

async fn trim<D: Device>(device: &D, range: Range, fua: Fua) -> Result<(), IoError> {
    match device.discard(range.offset_bytes, range.len_bytes).await {
        // A TRIM may do nothing.
        Err(error) if error.kind == IoErrorKind::Unsupported => Ok(()),
        Err(error) => Err(error),
        Ok(()) => match fua {
            Fua::Yes => device.flush().await,
            Fua::No => Ok(()),
        },
    }
}

async fn write_zeroes<D: Device>(device: &D, range: Range, zeroes: Zeroes) -> Result<(), IoError> {
    let Zeroes { zeroing, fua, .. } = zeroes;
    match device.write_zeroes(range.offset_bytes, range.len_bytes, zeroing, fua).await {
        Err(error) if error.kind == IoErrorKind::Unsupported => (),
        done => return done,
    }
    // Zeroes are written instead, a few pieces at a time: bounded work between two chances for others.
    let mut at = range.offset_bytes;
    while at < range.end_bytes() {
        let start = at - at % MAX_BUF_BYTES as u64;
        let end = range.end_bytes().min(start.saturating_add(ZERO_WRITE_BYTES as u64));
        let data = pieces(at, end - at).iter().map(zeroes_for).collect();
        device.write(at, data, Fua::No).await?;
        at = end;
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
fn failure(error: IoError, doing: &'static str) -> Failure {
    tracing::debug!(%error, doing, "answered with an error");
    let errno = match error.kind {
        IoErrorKind::Media | IoErrorKind::Gone | IoErrorKind::Timeout | IoErrorKind::Closed => Errno::Io,
        // ENOTSUP is legal only for FAST_ZERO; elsewhere the client has to hear that it did not happen.
        IoErrorKind::Unsupported => Errno::Io,
        IoErrorKind::NoSpace => Errno::NoSpace,
        IoErrorKind::Invalid => Errno::Invalid,
        IoErrorKind::ReadOnly => Errno::Perm,
        IoErrorKind::ShuttingDown => Errno::Shutdown,
    };
    Failure { error: errno, why: error.context }
}
