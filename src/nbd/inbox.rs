//! The receiving half of a connection: a buffer in front of the stream, which messages are cut from.
//!
//! The buffer is a page. Where a receive has filled it, a larger one is borrowed, if there is one, and given back when a
//! receive has not: many idle connections need little memory, and a busy one few receives.
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

use super::limits::{Limits, Pools, RECEIVE_BYTES};
use super::payload::Few;
use super::session::SessionEnd;
use super::stop::Halt;
use crate::io::{Buf, Clock, PAGE_BYTES, Pool, Slice, Stream};

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
    /// The last receive filled the buffer: there is probably more.
    was_filled: bool,
    larger: Pool,
    smaller: Pool,
    /// Receive no more than a request's header of so many bytes: what follows is probably a large payload.
    pub(super) only_header: Option<usize>,
}

impl<S: Stream, R: Clock> Inbox<S, R> {
    /// Waits for its page.
    pub(super) async fn new(
        stream: Rc<S>,
        clock: R,
        halt: Halt,
        limits: &Limits,
        pools: &Pools,
    ) -> Inbox<S, R> {
        Inbox {
            stream,
            clock,
            halt,
            stop_quiet: limits.stop_quiet,
            stop_timeout: limits.stop_timeout,
            stopped_at: None,
            buf: Some(pools.messages.alloc(PAGE_BYTES).await),
            start: 0,
            end: 0,
            was_filled: false,
            larger: pools.receive.clone(),
            smaller: pools.messages.clone(),
            only_header: None,
        }
    }

    /// From now on this stops it, too.
    pub(super) fn stop_by(&mut self, halt: Halt) {
        self.halt = halt;
    }

    /// What was received and not taken.
    pub(super) fn into_received(self) -> Vec<u8> {
        self.available().to_vec()
    }

    /// How much has been received and not taken.
    pub(super) fn received_bytes(&self) -> usize {
        self.end - self.start
    }

    /// What another inbox had received and not taken: a page at most. Panics if it is more, or this one is in use.
    pub(super) fn put_back(&mut self, received: &[u8]) {
        let buf = self.buf.as_mut().expect("a new inbox has its page");
        assert!(self.start == self.end && received.len() <= buf.len());
        buf[..received.len()].copy_from_slice(received);
        (self.start, self.end) = (0, received.len());
    }

    /// Whether new clients are to be refused.
    pub(super) fn stopping(&self) -> bool {
        self.halt.is_stopped()
    }

    /// Waits until at least a byte is there.
    pub(super) async fn wait(&mut self) -> Result<(), SessionEnd> {
        if self.start == self.end { self.fill().await } else { Ok(()) }
    }

    /// Whether nothing has been received that was not taken yet.
    pub(super) fn is_empty(&self) -> bool {
        self.start == self.end
    }

    /// Waits for the peer to do something that does not come through here, but no longer than until a stop.
    pub(super) async fn unless_stopped<T>(&self, done: impl Future<Output = T>) -> Result<T, SessionEnd> {
        match select(pin!(done), pin!(self.halt.stopped())).await {
            Either::Left((result, _)) => Ok(result),
            Either::Right(_) => Err(SessionEnd::Stopped),
        }
    }

    /// The next `N` bytes, if they are there. They stay.
    pub(super) fn peek<const N: usize>(&self) -> Option<&[u8; N]> {
        self.available().first_chunk::<N>()
    }

    /// So many bytes are done with, which are there.
    pub(super) fn advance(&mut self, count: usize) {
        assert!(count <= self.end - self.start);
        self.start += count;
    }

    /// Fills a buffer with the next bytes, which are there.
    pub(super) fn take_received(&mut self, buf: &mut [u8]) {
        buf.copy_from_slice(&self.available()[..buf.len()]);
        self.start += buf.len();
    }

    /// The next `N` bytes (a page at most), once they are there.
    pub(super) async fn take<const N: usize>(&mut self) -> Result<[u8; N], SessionEnd> {
        const { assert!(N <= PAGE_BYTES) };
        while self.end - self.start < N {
            self.fill().await?;
        }
        let bytes = self.available().first_chunk::<N>().copied().expect("so many are there");
        self.start += N;
        Ok(bytes)
    }

    /// The next `len` bytes. Memory is taken for what has come, not for what is claimed.
    pub(super) async fn take_vec(&mut self, len: usize) -> Result<Vec<u8>, SessionEnd> {
        let mut bytes = Vec::new();
        loop {
            let count = (len - bytes.len()).min(self.end - self.start);
            bytes.extend_from_slice(&self.available()[..count]);
            self.start += count;
            if bytes.len() == len {
                return Ok(bytes);
            }
            self.fill().await?;
        }
    }

    /// Throws the next `len` bytes away, as they come.
    pub(super) async fn skip(&mut self, len: usize) -> Result<(), SessionEnd> {
        let mut left = len;
        // There is no place that they should be received into instead.
        self.only_header = None;
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
    pub(super) async fn take_payload(&mut self, bufs: Few<Buf>) -> Result<Vec<Slice>, SessionEnd> {
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

    /// Receives something into the free end of the buffer.
    async fn fill(&mut self) -> Result<(), SessionEnd> {
        self.resize();
        let mut head = self.buf.take().ok_or(SessionEnd::Closed)?;
        head.copy_within(self.start..self.end, 0);
        self.end -= self.start;
        self.start = 0;
        let mut free = head.split_off(self.end);
        let unused = match self.only_header {
            Some(header_bytes) if self.end < header_bytes => free.split_off(header_bytes - self.end),
            _ => free.split_off(free.len()),
        };
        let (count, filled) = self.receive(free).await?;
        self.was_filled = count == filled.len() && unused.is_empty();
        self.end += count;
        self.buf = Some(head.join(filled).join(unused));
        Ok(())
    }

    /// Exchanges the buffer for one of the size that is needed now. Where there is none, it stays as it is.
    fn resize(&mut self) {
        let Some(old) = &self.buf else { return };
        let (pool, len) = match self.was_filled {
            true => (&self.larger, RECEIVE_BYTES),
            false => (&self.smaller, PAGE_BYTES),
        };
        let kept = self.start..self.end;
        if old.len() == len || kept.len() >= len {
            return;
        }
        if let Some(mut new) = pool.try_alloc(len) {
            new[..kept.len()].copy_from_slice(&old[kept.clone()]);
            (self.start, self.end) = (0, kept.len());
            self.buf = Some(new);
        }
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
