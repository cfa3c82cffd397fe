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
    Data(Vec<Slice>),
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

/// A reply as it leaves.
struct Letter {
    head: Option<Head>,
    data: Vec<Slice>,
}

impl Reply {
    fn letter(self, framing: Framing) -> Letter {
        let (cookie, offset) = (self.cookie, self.offset_bytes);
        match self.result {
            Ok(Answer::Done) => {
                Letter { head: Some(Head::success(framing, cookie, offset, 0)), data: vec![] }
            }
            Ok(Answer::Data(data)) => {
                let data_bytes = data.iter().map(|slice| slice.len()).sum();
                Letter { head: Some(Head::success(framing, cookie, offset, data_bytes)), data }
            }
            Ok(Answer::Chunks(chunks)) => Letter { head: None, data: vec![chunks] },
            Err(Failure { error, why }) => {
                Letter { head: Some(Head::failure(framing, cookie, offset, error, why)), data: vec![] }
            }
        }
    }
}

impl Letter {
    fn head_bytes(&self) -> &[u8] {
        self.head.as_ref().map_or(&[], Head::bytes)
    }

    fn data_bytes(&self) -> usize {
        self.data.iter().map(|slice| slice.len()).sum()
    }
}

/// Replies that leave together.
#[derive(Default)]
struct Batch {
    letters: Vec<Letter>,
    head_bytes: usize,
    requests: usize,
    reserved_bytes: usize,
}

/// Sends what finishes until the receiver has ended and nothing is in flight.
pub(super) async fn send_replies<S: Stream, D: Device, R: Runtime>(session: Rc<Session<S, D, R>>) {
    loop {
        session.work.until(|| !session.outbox.borrow().is_empty() || session.is_drained()).await;
        let batch = next_batch(&session);
        let (requests, bytes) = (batch.requests, batch.reserved_bytes);
        if requests == 0 {
            break;
        }
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

fn next_batch<S, D, R>(session: &Session<S, D, R>) -> Batch {
    let mut outbox = session.outbox.borrow_mut();
    let mut batch = Batch::default();
    let mut data_bytes = 0;
    while batch.head_bytes + HEAD_BYTES_MAX <= SEND_HEAD_BYTES
        && data_bytes < SEND_BYTES
        && let Some(reply) = outbox.pop_front()
    {
        batch.requests += 1;
        batch.reserved_bytes += reply.reserved_bytes;
        let letter = reply.letter(session.terms.framing);
        batch.head_bytes += letter.head_bytes().len();
        data_bytes += letter.data_bytes();
        batch.letters.push(letter);
    }
    batch
}

async fn send_batch<S: Stream, D: Device, R: Runtime>(
    session: &Session<S, D, R>,
    batch: Batch,
) -> Result<(), IoError> {
    session.sending_since(Some(session.runtime.now()));
    let heads = match batch.head_bytes {
        0 => None,
        bytes => Some(session.pools.messages.alloc(bytes).await),
    };
    let mut slices = lay_out(batch.letters, heads).into_iter().peekable();
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

/// Heads and data in the order in which they are sent; heads that follow each other are one slice. `heads` is as long as
/// all of them together.
fn lay_out(letters: Vec<Letter>, heads: Option<Buf>) -> Vec<Slice> {
    let heads = heads.map(|mut heads| {
        let mut end = 0;
        for letter in &letters {
            let bytes = letter.head_bytes();
            heads[end..][..bytes.len()].copy_from_slice(bytes);
            end += bytes.len();
        }
        heads.freeze()
    });
    let mut slices = Vec::with_capacity(2 * letters.len());
    let (mut start, mut end) = (0, 0);
    let mut push_heads = |slices: &mut Vec<Slice>, end: usize| {
        if let Some(heads) = heads.as_ref().filter(|_| start < end) {
            slices.push(heads.slice(start..end));
            start = end;
        }
    };
    for letter in letters {
        end += letter.head_bytes().len();
        if !letter.data.is_empty() {
            push_heads(&mut slices, end);
            slices.extend(letter.data);
        }
    }
    push_heads(&mut slices, end);
    slices
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::Pool;
    use crate::nbd::wire::Errno;

    fn sent(framing: Framing, results: Vec<Result<Answer, Failure>>) -> Vec<Slice> {
        let pool = Pool::new(1 << 20).unwrap();
        let letters = results.into_iter().enumerate().map(|(index, result)| {
            let cookie = index as u64 + 1;
            Reply { cookie, offset_bytes: 0, result, reserved_bytes: 0 }.letter(framing)
        });
        let letters: Vec<Letter> = letters.collect();
        let bytes = letters.iter().map(|letter| letter.head_bytes().len()).sum();
        lay_out(letters, pool.try_alloc(bytes))
    }

    fn results() -> Vec<Result<Answer, Failure>> {
        let data = || Ok(Answer::Data(vec![Slice::zeroes(100), Slice::zeroes(5)]));
        let failure = Failure { error: Errno::Io, why: "bad" };
        vec![Ok(Answer::Done), Err(failure), data(), data(), Ok(Answer::Data(vec![])), Ok(Answer::Done)]
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
