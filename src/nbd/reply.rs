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

use super::command::Failure;
use super::limits::{SEND_BYTES, SEND_HEAD_BYTES, SEND_SLICES};
use super::payload::Few;
use super::session::Session;
use super::wire::{Framing, HEAD_BYTES_MAX, Head};
use crate::io::{Buf, Device, IoError, Runtime, Slice, Stream};

const _: () = assert!(HEAD_BYTES_MAX <= SEND_HEAD_BYTES);

/// What a request that was done is answered with.
#[derive(Debug)]
pub(super) enum Answer {
    /// That it was done.
    Done,
    /// The data of a READ.
    Data(Few<Slice>),
    /// Chunks, complete with their headers.
    Chunks(Slice),
}

/// A finished request.
pub(super) struct Reply {
    pub(super) cookie: u64,
    /// The request's.
    pub(super) offset_bytes: u64,
    pub(super) result: Result<Answer, Failure>,
    /// Pool memory that is given back once this is sent.
    pub(super) reserved_bytes: usize,
}

/// Replies that leave together: their heads one behind the other, and what comes between them.
struct Batch {
    heads: Buf,
    head_bytes: usize,
    /// Bytes of each head, and the data that follows it.
    letters: Vec<(usize, Few<Slice>)>,
    data_bytes: usize,
    reserved_bytes: usize,
}

impl Batch {
    /// None yet; `heads` is as long as the heads of a batch may be.
    fn new(heads: Buf, replies: usize) -> Batch {
        assert_eq!(heads.len(), SEND_HEAD_BYTES);
        let letters = Vec::with_capacity(replies.min(SEND_SLICES));
        Batch { heads, head_bytes: 0, letters, data_bytes: 0, reserved_bytes: 0 }
    }

    fn has_room(&self) -> bool {
        self.head_bytes + HEAD_BYTES_MAX <= SEND_HEAD_BYTES && self.data_bytes < SEND_BYTES
    }

    fn add(&mut self, reply: Reply, framing: Framing) {
        let (cookie, offset) = (reply.cookie, reply.offset_bytes);
        let (head, data) = match reply.result {
            Ok(Answer::Done) => (Some(Head::success(framing, cookie, offset, 0)), Few::new()),
            Ok(Answer::Data(data)) => {
                let data_bytes = data.iter().map(|slice| slice.len()).sum();
                (Some(Head::success(framing, cookie, offset, data_bytes)), data)
            }
            Ok(Answer::Chunks(chunks)) => (None, Few::from_buf([chunks])),
            Err(Failure { error, why }) => {
                (Some(Head::failure(framing, cookie, offset, error, why)), Few::new())
            }
        };
        let head = head.as_ref().map_or(&[][..], Head::bytes);
        self.heads[self.head_bytes..][..head.len()].copy_from_slice(head);
        self.head_bytes += head.len();
        self.data_bytes += data.iter().map(|slice| slice.len()).sum::<usize>();
        self.reserved_bytes += reply.reserved_bytes;
        self.letters.push((head.len(), data));
    }

    /// Heads and data in the order in which they are sent; heads that follow each other are one slice.
    fn lay_out(self) -> Vec<Slice> {
        let heads = self.heads.freeze();
        let mut slices = Vec::with_capacity(2 * self.letters.len());
        let (mut start, mut end) = (0, 0);
        let mut push_heads = |slices: &mut Vec<Slice>, end: usize| {
            if start < end {
                slices.push(heads.slice(start..end));
                start = end;
            }
        };
        for (head_bytes, data) in self.letters {
            end += head_bytes;
            if !data.is_empty() {
                push_heads(&mut slices, end);
                slices.extend(data);
            }
        }
        push_heads(&mut slices, end);
        slices
    }
}

/// Sends what finishes until the receiver has ended and nothing is in flight.
pub(super) async fn send_replies<S: Stream, D: Device, R: Runtime>(session: Rc<Session<S, D, R>>) {
    loop {
        session.work.until(|| !session.outbox.borrow().is_empty() || session.is_drained()).await;
        if session.outbox.borrow().is_empty() {
            break;
        }
        session.sending_since(Some(session.runtime.now()));
        let heads = session.pools.messages.alloc(SEND_HEAD_BYTES).await;
        let batch = next_batch(&session, heads);
        let (requests, bytes) = (batch.letters.len(), batch.reserved_bytes);
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

fn next_batch<S, D, R>(session: &Session<S, D, R>, heads: Buf) -> Batch {
    let mut outbox = session.outbox.borrow_mut();
    let mut batch = Batch::new(heads, outbox.len());
    while batch.has_room()
        && let Some(reply) = outbox.pop_front()
    {
        batch.add(reply, session.terms.framing);
    }
    batch
}

async fn send_batch<S: Stream, D: Device, R: Runtime>(
    session: &Session<S, D, R>,
    batch: Batch,
) -> Result<(), IoError> {
    let data_bytes = batch.data_bytes;
    let slices = batch.lay_out();
    if slices.len() <= SEND_SLICES && data_bytes <= 2 * SEND_BYTES {
        // As nearly always: one send.
        session.stream.send(slices).await?;
        session.sending_since(None);
        return Ok(());
    }
    let mut slices = slices.into_iter().peekable();
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::Pool;
    use crate::nbd::wire::Errno;

    fn sent(framing: Framing, results: Vec<Result<Answer, Failure>>) -> Vec<Slice> {
        let pool = Pool::new(1 << 20).unwrap();
        let mut batch = Batch::new(pool.try_alloc(SEND_HEAD_BYTES).unwrap(), results.len());
        for (index, result) in results.into_iter().enumerate() {
            assert!(batch.has_room());
            let cookie = index as u64 + 1;
            batch.add(Reply { cookie, offset_bytes: 0, result, reserved_bytes: 0 }, framing);
        }
        batch.lay_out()
    }

    fn results() -> Vec<Result<Answer, Failure>> {
        let data = || Ok(Answer::Data(vec![Slice::zeroes(100), Slice::zeroes(5)].into()));
        let failure = Failure { error: Errno::Io, why: "bad" };
        vec![Ok(Answer::Done), Err(failure), data(), data(), Ok(Answer::Data(Few::new())), Ok(Answer::Done)]
    }

    fn lens(slices: &[Slice]) -> Vec<usize> {
        slices.iter().map(|slice| slice.len()).collect()
    }

    #[test]
    fn heads_without_data_between_them_are_one_slice() {
        let slices = sent(Framing::Simple, results());
        assert_eq!(lens(&slices), [48, 100, 5, 16, 100, 5, 32]);
        let second = Head::failure(Framing::Simple, 2, 0, Errno::Io, "bad");
        assert_eq!(&slices[0][16..32], second.bytes());
        let slices = sent(Framing::Structured, results());
        assert_eq!(lens(&slices), [20 + 29 + 28, 100, 5, 28, 100, 5, 40]);
    }

    #[test]
    fn chunks_that_are_complete_get_no_head() {
        let chunks = || Ok(Answer::Chunks(Slice::zeroes(77)));
        assert_eq!(
            lens(&sent(Framing::Structured, vec![chunks(), Ok(Answer::Done), chunks()])),
            [77, 20, 77]
        );
    }
}
