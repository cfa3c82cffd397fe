//! The receiving side of the transmission phase: takes requests off the stream, as many as there is room for, and starts
//! a task for each.
//!
//! Invariants:
//! - A request is judged by its header alone, before anything is reserved for it.
//! - Room in the connection's limits is taken before memory, memory before the payload is received: who has to wait for
//!   one of them does not read its socket. All of a request's memory is taken at once.
//! - After a refused WRITE the stream is in step, because its payload is thrown away; one too long for that ends the
//!   connection. After a wrong magic nothing is in step again.
//!
//! Fails with the reason why no more requests are taken; those under way are still answered.

use std::rc::Rc;
use std::time::Duration;

use super::command::{Command, Range, payload_bytes};
use super::execute::{Work, execute};
use super::inbox::Inbox;
use super::limits::{LARGE_WRITE_BYTES, PAYLOAD_BYTES_MAX};
use super::payload::{read_pieces, reserved_bytes, without_leads, write_lens};
use super::reply::Reply;
use super::session::{Session, SessionEnd};
use super::wire::{Errno, REQUEST_BYTES, Request};
use crate::io::{Buf, Device, Fua, Pool, Runtime, Stream};

/// Takes requests until there is a reason to take no more.
pub(super) async fn receive_requests<S, D, R>(session: Rc<Session<S, D, R>>, inbox: Inbox<S, R>)
where
    S: Stream + 'static,
    D: Device + Clone + 'static,
    R: Runtime,
{
    let mut receiver = Receiver { session: session.clone(), inbox };
    let end = loop {
        if let Err(end) = receiver.take_request().await {
            break end;
        }
    };
    drop(receiver);
    session.receiver_ended(end);
}

struct Receiver<S, D, R> {
    session: Rc<Session<S, D, R>>,
    inbox: Inbox<S, R>,
}

impl<S, D, R> Receiver<S, D, R>
where
    S: Stream + 'static,
    D: Device + Clone + 'static,
    R: Runtime,
{
    async fn take_request(&mut self) -> Result<(), SessionEnd> {
        let header = self.inbox.take::<REQUEST_BYTES>().await?;
        let request = Request::parse(&header).ok_or(SessionEnd::Refused("a request with a wrong magic"))?;
        self.inbox.header_only = payload_bytes(&request) as usize >= LARGE_WRITE_BYTES;
        let command = Command::new(&request, &self.session.terms);
        match command {
            Ok(Command::Disconnect) => Err(SessionEnd::Disconnected),
            Ok(_) if self.inbox.stopping() => self.refuse(&request, Errno::Shutdown).await,
            Ok(Command::Read(range)) => self.take_read(request.cookie, range).await,
            Ok(Command::Write(range, fua)) => self.take_write(request.cookie, range, fua).await,
            Ok(Command::Flush) => self.take_other(request.cookie, Work::Flush).await,
            Ok(Command::Trim(range, fua)) => self.take_other(request.cookie, Work::Trim { range, fua }).await,
            Ok(Command::WriteZeroes(range, zeroing, fua)) => {
                self.take_other(request.cookie, Work::WriteZeroes { range, zeroing, fua }).await
            }
            Err(error) => self.refuse(&request, error).await,
        }
    }

    async fn take_read(&mut self, cookie: u64, range: Range) -> Result<(), SessionEnd> {
        let block_bytes = self.session.terms.read_block_bytes;
        let pieces = read_pieces(range, block_bytes);
        let lens: Vec<usize> = pieces.iter().map(|piece| piece.len).collect();
        let reserved_bytes = reserved_bytes(&lens);
        self.session.admit(reserved_bytes).await?;
        let bufs = alloc_all(&self.session.pools.payloads, &lens).await;
        let pieces = pieces.into_iter().zip(bufs).collect();
        self.start(cookie, reserved_bytes, Work::Read { range, block_bytes, pieces });
        Ok(())
    }

    async fn take_write(&mut self, cookie: u64, range: Range, fua: Fua) -> Result<(), SessionEnd> {
        let lens = write_lens(range);
        let reserved_bytes = reserved_bytes(&lens);
        self.session.admit(reserved_bytes).await?;
        let bufs = without_leads(range, alloc_all(&self.session.pools.payloads, &lens).await);
        // Others may wait for this memory, so the peer does not have forever to fill it.
        let limits = &self.session.limits;
        let transfer_secs = u64::from(range.len_bytes) / limits.payload_bytes_per_sec_min.max(1);
        let patience = limits.payload_timeout + Duration::from_secs(transfer_secs);
        self.session.payload_until(Some(self.session.runtime.now() + patience));
        let received = self.inbox.take_payload(bufs).await;
        self.session.payload_until(None);
        match received {
            Ok(payload) => {
                self.start(cookie, reserved_bytes, Work::Write { range, payload, fua });
                Ok(())
            }
            Err(end) => {
                self.session.release(1, reserved_bytes);
                Err(end)
            }
        }
    }

    async fn take_other(&mut self, cookie: u64, work: Work) -> Result<(), SessionEnd> {
        self.session.admit(0).await?;
        self.start(cookie, 0, work);
        Ok(())
    }

    fn start(&self, cookie: u64, reserved_bytes: usize, work: Work) {
        let session = self.session.clone();
        self.session.runtime.spawn(async move {
            let result = execute(&session.device, work).await;
            session.answer(Reply { cookie, result, reserved_bytes });
        });
    }

    /// Answers with an error. A payload is thrown away first, or the next request could not be found.
    async fn refuse(&mut self, request: &Request, error: Errno) -> Result<(), SessionEnd> {
        let payload_bytes = payload_bytes(request) as usize;
        if payload_bytes > PAYLOAD_BYTES_MAX {
            return Err(SessionEnd::Refused("a WRITE of more than 64 MiB"));
        }
        self.inbox.skip(payload_bytes).await?;
        self.session.admit(0).await?;
        self.session.answer(Reply { cookie: request.cookie, result: Err(error), reserved_bytes: 0 });
        Ok(())
    }
}

/// Nothing need be waited for where nothing is needed.
async fn alloc_all(pool: &Pool, lens: &[usize]) -> Vec<Buf> {
    if lens.is_empty() { Vec::new() } else { pool.alloc_all(lens).await }
}
