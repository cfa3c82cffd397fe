//! The sending half of a connection: finished requests become replies, gathered into as few sends as there are.
//!
//! Invariants:
//! - Replies leave whole and one after another; requests that finish meanwhile are the next batch.
//! - A request's place and its memory are given back when its reply has been sent, not before: a peer that does not read
//!   holds no more than its limits, and then its requests are not read either.
//! - When the connection is broken, replies are thrown away, but still counted: the sender ends last.

use std::pin::pin;
use std::rc::Rc;

use futures_util::future::{Either, select};

use super::limits::{SEND_BYTES, SEND_REPLIES, SEND_SLICES};
use super::session::Session;
use super::wire::{Errno, SIMPLE_REPLY_BYTES, SimpleReply};
use crate::io::{Buf, Device, IoError, Runtime, Slice, Stream};

/// A finished request.
pub(super) struct Reply {
    pub(super) cookie: u64,
    pub(super) result: Result<Vec<Slice>, Errno>,
    /// Pool memory that is given back once this is sent.
    pub(super) reserved_bytes: usize,
}

impl Reply {
    fn data(&self) -> &[Slice] {
        self.result.as_deref().unwrap_or_default()
    }

    fn data_bytes(&self) -> usize {
        self.data().iter().map(|slice| slice.len()).sum()
    }
}

/// Sends what finishes until the receiver has ended and nothing is in flight.
pub(super) async fn send_replies<S: Stream, D: Device, R: Runtime>(session: Rc<Session<S, D, R>>) {
    loop {
        session.work.until(|| !session.outbox.borrow().is_empty() || session.is_drained()).await;
        let batch = next_batch(&session);
        if batch.is_empty() {
            break;
        }
        let (requests, bytes) = (batch.len(), batch.iter().map(|reply| reply.reserved_bytes).sum());
        // A peer that takes nothing is cut off by the watch, and then the send is not waited for.
        let broken = pin!(session.broke.until(|| session.broken.get()));
        match select(broken, pin!(send_batch(&session, batch))).await {
            Either::Right((Err(error), _)) => session.break_off(error.into()),
            Either::Right((Ok(()), _)) | Either::Left(_) => (),
        }
        session.release(requests, bytes);
    }
    session.sender_ended();
}

fn next_batch<S, D, R>(session: &Session<S, D, R>) -> Vec<Reply> {
    let mut outbox = session.outbox.borrow_mut();
    let mut batch = Vec::with_capacity(outbox.len().min(SEND_REPLIES));
    let mut bytes = 0;
    while batch.len() < SEND_REPLIES
        && bytes < SEND_BYTES
        && let Some(reply) = outbox.pop_front()
    {
        bytes += reply.data_bytes();
        batch.push(reply);
    }
    batch
}

async fn send_batch<S: Stream, D: Device, R: Runtime>(
    session: &Session<S, D, R>,
    batch: Vec<Reply>,
) -> Result<(), IoError> {
    session.sending_since(Some(session.runtime.now()));
    let headers = session.pools.messages.alloc(batch.len() * SIMPLE_REPLY_BYTES).await;
    let mut slices = lay_out(batch, headers).into_iter().peekable();
    while slices.peek().is_some() {
        let mut part = Vec::with_capacity(slices.len().min(SEND_SLICES));
        let mut bytes = 0;
        while part.len() < SEND_SLICES
            && bytes < SEND_BYTES
            && let Some(slice) = slices.next()
        {
            bytes += slice.len();
            part.push(slice);
        }
        session.sending_since(Some(session.runtime.now()));
        session.stream.send(part).await?;
    }
    session.sending_since(None);
    Ok(())
}

/// Headers and data in the order in which they are sent; headers that follow each other are one slice.
fn lay_out(batch: Vec<Reply>, mut headers: Buf) -> Vec<Slice> {
    for (reply, header) in batch.iter().zip(headers.chunks_exact_mut(SIMPLE_REPLY_BYTES)) {
        let error = reply.result.as_ref().err().copied();
        header.copy_from_slice(&SimpleReply { cookie: reply.cookie, error }.encode());
    }
    let headers = headers.freeze();
    let mut slices = Vec::with_capacity(2 * batch.len());
    let (mut start, mut end) = (0, 0);
    for reply in batch {
        end += SIMPLE_REPLY_BYTES;
        if let Ok(data) = reply.result
            && !data.is_empty()
        {
            slices.push(headers.slice(start..end));
            slices.extend(data);
            start = end;
        }
    }
    if start < end {
        slices.push(headers.slice(start..end));
    }
    slices
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::Pool;

    #[test]
    fn headers_without_data_between_them_are_one_slice() {
        let pool = Pool::new(1 << 20).unwrap();
        let reply = |cookie, result| Reply { cookie, result, reserved_bytes: 0 };
        let data = || Ok(vec![Slice::zeroes(100), Slice::zeroes(5)]);
        let batch = vec![
            reply(1, Ok(vec![])),
            reply(2, Err(Errno::Io)),
            reply(3, data()),
            reply(4, data()),
            reply(5, Ok(vec![])),
        ];
        let slices = lay_out(batch, pool.try_alloc(5 * SIMPLE_REPLY_BYTES).unwrap());
        let lens: Vec<usize> = slices.iter().map(|slice| slice.len()).collect();
        assert_eq!(lens, [48, 100, 5, 16, 100, 5, 16]);
        let second = slices[0][16..32].first_chunk().unwrap();
        assert_eq!(SimpleReply::parse(second), Some(SimpleReply { cookie: 2, error: Some(Errno::Io) }));
    }
}
