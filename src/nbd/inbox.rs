//! The receiving half of a connection: a buffer in front of the stream, which messages are cut from.
//!
//! Invariants:
//! - What has been received is never lost while the connection goes on: it is in the buffer, between `start` and `end`.
//! - After a stop no receive waits for longer than the peer is expected to be silent, so an idle peer does not hold up
//!   the end; what it sent before is still read.
//!
//! Fails with the [`SessionEnd`] that the connection then has; nothing can be received after that.

use std::pin::pin;
use std::rc::Rc;
use std::time::Duration;

use futures_util::future::{Either, select};

use super::limits::{Limits, RECEIVE_BYTES};
use super::session::SessionEnd;
use super::stop::Halt;
use super::wire::REQUEST_BYTES;
use crate::io::{Buf, Clock, Slice, Stream};

pub(super) struct Inbox<S, R> {
    stream: Rc<S>,
    clock: R,
    halt: Halt,
    stop_quiet: Duration,
    stop_timeout: Duration,
    /// When this side first saw that it has to stop.
    stopped_at: Option<Duration>,
    /// `None` while it is being received into, and after that has failed.
    buf: Option<Buf>,
    start: usize,
    end: usize,
    /// Receive no more than a request's header: what follows is probably a large payload.
    pub(super) header_only: bool,
}

impl<S: Stream, R: Clock> Inbox<S, R> {
    /// `buf` must be of [`RECEIVE_BYTES`].
    pub(super) fn new(stream: Rc<S>, clock: R, halt: Halt, limits: &Limits, buf: Buf) -> Inbox<S, R> {
        assert_eq!(buf.len(), RECEIVE_BYTES);
        Inbox {
            stream,
            clock,
            halt,
            stop_quiet: limits.stop_quiet,
            stop_timeout: limits.stop_timeout,
            stopped_at: None,
            buf: Some(buf),
            start: 0,
            end: 0,
            header_only: false,
        }
    }

    /// From now on this stops it, too.
    pub(super) fn stop_by(&mut self, halt: Halt) {
        self.halt = halt;
    }

    /// Whether new work is to be refused.
    pub(super) fn stopping(&self) -> bool {
        self.halt.is_stopped()
    }

    /// The next `N` bytes, once they are there.
    pub(super) async fn take<const N: usize>(&mut self) -> Result<[u8; N], SessionEnd> {
        self.need(N).await?;
        let bytes = self.available().first_chunk::<N>().copied().expect("so many are there");
        self.start += N;
        Ok(bytes)
    }

    /// The next `len` bytes, once they are there. Panics if they do not fit the buffer.
    pub(super) async fn take_vec(&mut self, len: usize) -> Result<Vec<u8>, SessionEnd> {
        self.need(len).await?;
        let bytes = self.available()[..len].to_vec();
        self.start += len;
        Ok(bytes)
    }

    /// Throws the next `len` bytes away, as they come.
    pub(super) async fn skip(&mut self, len: usize) -> Result<(), SessionEnd> {
        let mut left = len;
        loop {
            let count = left.min(self.end - self.start);
            self.start += count;
            left -= count;
            if left == 0 {
                return Ok(());
            }
            self.fill().await?;
        }
    }

    /// Fills the buffers with what comes next. What is here already is copied, the rest is received in place.
    pub(super) async fn take_payload(&mut self, bufs: Vec<Buf>) -> Result<Vec<Slice>, SessionEnd> {
        let mut payload = Vec::with_capacity(bufs.len());
        for mut buf in bufs {
            let count = buf.len().min(self.end - self.start);
            buf[..count].copy_from_slice(&self.available()[..count]);
            self.start += count;
            let mut rest = buf.split_off(count);
            while !rest.is_empty() {
                let (count, mut filled) = self.receive(rest).await?;
                rest = filled.split_off(count);
                buf = buf.join(filled);
            }
            payload.push(buf.freeze());
        }
        Ok(payload)
    }

    fn available(&self) -> &[u8] {
        self.buf.as_ref().map_or(&[], |buf| &buf[self.start..self.end])
    }

    async fn need(&mut self, len: usize) -> Result<(), SessionEnd> {
        assert!(len <= RECEIVE_BYTES);
        while self.end - self.start < len {
            self.fill().await?;
        }
        Ok(())
    }

    /// Receives something into the free end of the buffer.
    async fn fill(&mut self) -> Result<(), SessionEnd> {
        let mut head = self.buf.take().ok_or(SessionEnd::Closed)?;
        head.copy_within(self.start..self.end, 0);
        self.end -= self.start;
        self.start = 0;
        let mut free = head.split_off(self.end);
        let unused = match self.header_only && self.end < REQUEST_BYTES {
            true => free.split_off(REQUEST_BYTES - self.end),
            false => free.split_off(free.len()),
        };
        let (count, filled) = self.receive(free).await?;
        self.end += count;
        self.buf = Some(head.join(filled).join(unused));
        Ok(())
    }

    /// At least one byte into the start of `buf`.
    async fn receive(&mut self, buf: Buf) -> Result<(usize, Buf), SessionEnd> {
        let len = buf.len();
        let mut receiving = pin!(self.stream.recv(buf));
        let mut received = None;
        if !self.halt.is_stopped()
            && let Either::Left((result, _)) = select(receiving.as_mut(), pin!(self.halt.stopped())).await
        {
            received = Some(result);
        }
        let result = match received {
            Some(result) => result,
            None => {
                let now = self.clock.now();
                let stopped_at = *self.stopped_at.get_or_insert(now);
                let left = (stopped_at + self.stop_timeout).saturating_sub(now);
                if left.is_zero() {
                    return Err(SessionEnd::Stopped);
                }
                match select(receiving, pin!(self.clock.sleep(self.stop_quiet.min(left)))).await {
                    Either::Left((result, _)) => result,
                    Either::Right(_) => return Err(SessionEnd::Stopped),
                }
            }
        };
        let (count, buf) = result?;
        assert!(count <= len && buf.len() == len, "a stream received {count} bytes into {len}");
        if count == 0 { Err(SessionEnd::Closed) } else { Ok((count, buf)) }
    }
}
