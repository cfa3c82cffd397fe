//! The seam of the house: everything above it is plain code over these traits, everything below implements them.
//!
//! Members implement [`Device`] below, an array implements it above, NBD serves it. So NBD is tested without RAID,
//! RAID without NBD, and both without a kernel: time, tasks, disks and sockets all come in through here, and a
//! simulator is one more implementation.
//!
//! Everything is single-threaded and `!Send` but for the buffers, the pool and the wakers: an array and all that
//! belongs to it live on one core.
//!
//! Invariants:
//! - One attempt per call. Nobody below this seam retries; whoever retries does it where a simulator sees it.
//! - Buffers travel by value. A [`Buf`] has one owner; a [`Slice`] never changes again.
//! - A dropped future does not recall its operation. The operation keeps its buffers until it has ended.

#![allow(async_fn_in_trait)] // everything that is generic over these traits lives on one thread

mod buddy;
mod buf;
mod error;
pub mod extent;
mod memory;
mod pool;

use std::future::Future;
use std::ops::Range;
use std::time::Duration;

pub use buf::{Buf, Slice};
pub use error::{IoError, IoErrorKind};
pub use extent::{Extent, ExtentKind};
pub use memory::MemoryDevice;
pub use pool::{MAX_BUF_BYTES, PAGE_BYTES, Pool};

/// What a device is; the same for as long as it is open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceInfo {
    /// Bytes it holds; a multiple of `read_block_bytes`.
    pub size_bytes: u64,
    /// Offsets and lengths of reads are multiples of this power of two, and so are the addresses of the memory read
    /// into and written from, relative to the offset: address mod block == offset mod block.
    pub read_block_bytes: u32,
    /// Offsets and lengths of writes and zeroes are multiples of this: 1 where the device merges edges itself.
    pub write_block_bytes: u32,
    /// Requests that start and end on multiples of this are done best.
    pub preferred_bytes: u32,
    /// The device takes no writes.
    pub read_only: bool,
    /// Seeking costs time.
    pub rotational: bool,
}

/// Whether a write must be durable before it is answered ("force unit access").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fua {
    /// It may stay in a volatile cache until the next flush.
    No,
    /// It is on stable media when it is answered.
    Yes,
}

/// What may happen to the space under a range that is to read as zeroes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Zeroing {
    /// The device may give the space back; a later write may find none.
    Unmap,
    /// The space stays allocated.
    Allocate,
}

/// A block device: a member disk, or an array of them.
///
/// Ranges lie within `info().size_bytes` and are aligned as `info()` says; who calls checks that first, and an
/// implementation answers [`IoErrorKind::Invalid`] (an outermost one) or panics (an inner one) otherwise.
pub trait Device {
    /// Size, alignment and nature.
    fn info(&self) -> DeviceInfo;

    /// Fills `buf` from `offset_bytes`. On an error the buffer is gone: with a hung disk it stays with the kernel.
    async fn read(&self, offset_bytes: u64, buf: Buf) -> Result<Buf, IoError>;

    /// Writes the slices one behind the other from `offset_bytes`. After an error any part of the range may hold old
    /// or new bytes.
    async fn write(&self, offset_bytes: u64, data: Vec<Slice>, fua: Fua) -> Result<(), IoError>;

    /// Makes the range read as zeroes. [`IoErrorKind::Unsupported`], with nothing changed, if that cannot be done
    /// other than by writing them.
    async fn write_zeroes(
        &self,
        offset_bytes: u64,
        len_bytes: u64,
        zeroing: Zeroing,
        fua: Fua,
    ) -> Result<(), IoError>;

    /// Whether [`write_zeroes`](Device::write_zeroes) of that range would cost next to nothing, now: the device does it
    /// by itself and writes no data.
    async fn zeroes_fast(&self, _offset_bytes: u64, _len_bytes: u64) -> bool {
        false
    }

    /// The content of the range is no longer needed; it is undefined until written again. Any part may be ignored.
    async fn discard(&self, offset_bytes: u64, len_bytes: u64) -> Result<(), IoError>;

    /// Everything answered before this call is on stable media when it is answered.
    async fn flush(&self) -> Result<(), IoError>;

    /// The questions that [`extents`](Device::extents) has an answer to.
    fn extent_kinds(&self) -> &[ExtentKind] {
        &[ExtentKind::Allocation]
    }

    /// Answers a question about a range, which is not empty: at least one extent and at most `max` (not 0), from its
    /// start; together they may cover less of it, never more. They meet at multiples of 512 bytes. Never says more than
    /// holds for sure at some moment between call and answer; what cannot be found out has nothing to report.
    async fn extents(
        &self,
        _kind: ExtentKind,
        range: Range<u64>,
        _max: usize,
    ) -> Result<Vec<Extent>, IoError> {
        Ok(extent::nothing_to_report(&range))
    }

    /// Operations that have begun and not ended, whether or not somebody still waits for them; 0 where none outlives its
    /// future.
    fn in_flight(&self) -> usize {
        0
    }
}

/// Whether what passes over a stream is secret, and whether it has to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Security {
    /// In the clear, with no way to change that.
    None,
    /// In the clear; the peer may ask for TLS.
    Offered,
    /// In the clear; TLS has to come before anything else is told.
    Required,
    /// Under TLS.
    Tls,
}

/// A connected byte stream: a socket, or TLS around one. One task receives while another sends.
pub trait Stream {
    /// Receives into the start of `buf` what has come, at least one byte, and says how many; 0 means that the peer
    /// sends no more.
    async fn recv(&self, buf: Buf) -> Result<(usize, Buf), IoError>;

    /// Sends all of the slices, one behind the other.
    async fn send(&self, data: Vec<Slice>) -> Result<(), IoError>;

    /// Ends both directions: a `recv` under way returns 0 or an error.
    fn shutdown(&self);

    /// Whether the peer is known to take no reply any more: it has ended both directions, or is gone. A peer that only
    /// sends no more has not hung up.
    fn hung_up(&self) -> bool {
        false
    }

    /// Whether it is secret, or can be made so.
    fn security(&self) -> Security {
        Security::None
    }

    /// Makes it secret, as the side that the peer has asked to; nothing else may be under way. After an error it is of
    /// no use any more.
    async fn start_tls(&self) -> Result<(), IoError> {
        Err(IoError::new(IoErrorKind::Unsupported, "the stream cannot speak TLS"))
    }

    /// Ends it in good order: takes leave of the peer where the stream has a way to, then shuts down. Waits as long as the
    /// peer takes nothing; who must not wait drops this and calls `shutdown`.
    async fn close(&self) {
        self.shutdown();
    }
}

/// Time.
pub trait Clock {
    /// Time since some fixed moment; never goes back.
    fn now(&self) -> Duration;

    /// Time since 1970 (UTC), for what is written on disk.
    fn wall(&self) -> Duration;

    /// Waits.
    async fn sleep(&self, duration: Duration);
}

/// Tasks, all on this thread.
pub trait Spawn {
    /// Runs `task` to its end, beside the caller.
    fn spawn(&self, task: impl Future<Output = ()> + 'static);
}

/// What the engine and the protocol need of their surroundings, besides devices and streams.
pub trait Runtime: Clock + Spawn + Clone + 'static {}

impl<T: Clock + Spawn + Clone + 'static> Runtime for T {}

/// Receives until `buf` is full. [`IoErrorKind::Closed`] if the peer ends before.
pub async fn recv_exact<S: Stream>(stream: &S, buf: Buf) -> Result<Buf, IoError> {
    let mut rest = buf;
    let mut done: Option<Buf> = None;
    while !rest.is_empty() {
        let (count, mut filled) = stream.recv(rest).await?;
        if count == 0 {
            return Err(IoError::new(IoErrorKind::Closed, "the peer ended the stream in mid message"));
        }
        rest = filled.split_off(count);
        done = Some(match done {
            None => filled,
            Some(head) => head.join(filled),
        });
    }
    Ok(match done {
        None => rest,
        Some(head) => head.join(rest),
    })
}
