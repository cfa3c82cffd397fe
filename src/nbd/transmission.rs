//! The receiving side of the transmission phase: takes requests off the stream, as many as there is room for, and hands
//! each to one of the crew.
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

use super::command::{Command, Failure, Inquiry, Range, may_lack_payload, payload_bytes};
use super::crew::Job;
use super::execute::{Work, execute, status_buf_bytes};
use super::inbox::Inbox;
use super::limits::{LARGE_WRITE_BYTES, PAYLOAD_BYTES_MAX};
use super::payload::{Few, read_pieces, reserved_bytes, without_leads, write_lens};
use super::reply::Reply;
use super::session::{Session, SessionEnd};
use super::traffic::{Traffic, TrafficWatch};
use super::wire::{Errno, Framing, Request};
use crate::io::{Buf, Device, Fua, PAGE_BYTES, Pool, Runtime, Stream};

/// Takes requests until there is a reason to take no more, or the watch tells of a change.
pub(super) async fn receive_requests<S, D, R>(
    session: Rc<Session<S, D, R>>,
    inbox: Inbox<S, R>,
    watch: Option<TrafficWatch>,
) where
    S: Stream + 'static,
    D: Device + Clone + 'static,
    R: Runtime,
{
    let mut receiver = Receiver { session: session.clone(), inbox, watch };
    let end = loop {
        if let Some(traffic) = receiver.change() {
            if session.drains_soon().await {
                session.receiver_left(receiver.inbox, traffic);
                return;
            }
            receiver.watch.iter_mut().for_each(TrafficWatch::begin_anew);
        }
        // In a box, which is there once and not for every request: most of them need no wait.
        let taken = match receiver.take_at_once() {
            Some(taken) => taken,
            None => Box::pin(receiver.take_request()).await,
        };
        if let Err(end) = taken {
            break end;
        }
    };
    drop(receiver);
    session.receiver_ended(end);
}

struct Receiver<S, D, R> {
    session: Rc<Session<S, D, R>>,
    inbox: Inbox<S, R>,
    watch: Option<TrafficWatch>,
}

impl<S, D, R> Receiver<S, D, R>
where
    S: Stream + 'static,
    D: Device + Clone + 'static,
    R: Runtime,
{
    /// What the traffic has become; not while more has been received than a page, which is all that can be handed over.
    fn change(&self) -> Option<Traffic> {
        let change = self.watch.as_ref()?.change();
        change.filter(|_| self.inbox.received_bytes() <= PAGE_BYTES)
    }

    /// Takes a READ, or a WRITE with its payload, that has come and whose place and memory are free. None, with nothing changed,
    /// for all else.
    fn take_at_once(&mut self) -> Option<Result<(), SessionEnd>> {
        let session = &self.session;
        let terms = &session.terms;
        let request = match terms.framing {
            Framing::Extended => {
                Request::parse(terms.framing, self.inbox.peek::<{ Framing::Extended.request_bytes() }>()?)
            }
            framing => Request::parse(framing, self.inbox.peek::<{ Framing::Simple.request_bytes() }>()?),
        };
        let request = request?;
        let command = Command::new(&request, terms).ok()?;
        if session.halt.is_stopped() {
            return None;
        }
        let (header_bytes, block_bytes) = (terms.framing.request_bytes(), terms.read_block_bytes);
        match command {
            Command::Read(range) => {
                let mut pieces = read_pieces(range, block_bytes);
                let piece = pieces.pop().filter(|_| pieces.is_empty())?;
                let (reserved_bytes, buf) = self.reserve_at_once(piece.len)?;
                self.inbox.only_header = None;
                self.inbox.advance(header_bytes);
                let work = Work::Read { range, block_bytes, pieces: Few::from_buf([(piece, buf)]) };
                Some(self.start(&request, reserved_bytes, work))
            }
            Command::Write(range, fua) if !may_lack_payload(&request, terms.framing) => {
                let behind_header = (self.inbox.received_bytes() - header_bytes) as u64;
                let mut lens = write_lens(range);
                let len = lens.pop().filter(|_| lens.is_empty() && range.len_bytes <= behind_header)?;
                let (reserved_bytes, buf) = self.reserve_at_once(len)?;
                self.inbox.only_header = None;
                self.inbox.advance(header_bytes);
                let mut bufs = without_leads(range, Few::from_buf([buf]));
                let mut buf = bufs.pop().expect("a buffer for each piece");
                self.inbox.take_received(&mut buf);
                let work = Work::Write { range, payload: vec![buf.freeze()], fua };
                Some(self.start(&request, reserved_bytes, work))
            }
            _ => None,
        }
    }

    /// Place and memory for a request of one buffer, if both are free: the bytes that count for it, and the buffer.
    fn reserve_at_once(&self, len: usize) -> Option<(usize, Buf)> {
        let reserved_bytes = reserved_bytes(&[len]);
        if !self.session.try_admit(reserved_bytes) {
            return None;
        }
        let buf = self.session.pools.payloads.try_alloc(len);
        if buf.is_none() {
            self.session.release(1, reserved_bytes);
        }
        Some((reserved_bytes, buf?))
    }

    async fn take_request(&mut self) -> Result<(), SessionEnd> {
        let terms = self.session.terms;
        let request = match terms.framing {
            Framing::Extended => Request::parse(
                terms.framing,
                &self.inbox.take::<{ Framing::Extended.request_bytes() }>().await?,
            ),
            framing => {
                Request::parse(framing, &self.inbox.take::<{ Framing::Simple.request_bytes() }>().await?)
            }
        };
        let request = request.ok_or(SessionEnd::Refused("a request with a wrong magic"))?;
        let is_large = payload_bytes(&request, terms.framing) >= LARGE_WRITE_BYTES as u64;
        self.inbox.only_header = is_large.then(|| terms.framing.request_bytes());
        if may_lack_payload(&request, terms.framing) {
            let patience = self.session.limits.unannounced_payload_timeout;
            self.session.payload_until(Some(self.session.runtime.now() + patience));
            let waited = self.inbox.wait().await;
            self.session.payload_until(None);
            waited?;
        }
        match Command::new(&request, &terms) {
            Ok(Command::Disconnect) => Err(SessionEnd::Disconnected),
            Ok(_) if terms.resends && self.session.halt.is_stopped() => Err(SessionEnd::Stopped),
            Ok(_) if self.session.halt.is_export_stopped() => self.refuse(&request, STOPPING).await,
            Ok(Command::Read(range)) => self.take_read(&request, range).await,
            Ok(Command::Write(range, fua)) => self.take_write(&request, range, fua).await,
            Ok(Command::Flush) => self.take_other(&request, Work::Flush).await,
            Ok(Command::Trim(range, fua)) => self.take_other(&request, Work::Trim { range, fua }).await,
            Ok(Command::WriteZeroes(range, zeroes)) => {
                self.take_other(&request, Work::WriteZeroes { range, zeroes }).await
            }
            Ok(Command::Cache) => self.take_other(&request, Work::Cache).await,
            Ok(Command::Status(inquiry)) => self.take_status(&request, inquiry).await,
            Ok(Command::StatusPayload(len)) => {
                let payload = self.inbox.take_vec(len).await?;
                match Inquiry::from_payload(&request, &payload, &terms) {
                    Ok(inquiry) => self.take_status(&request, inquiry).await,
                    Err(failure) => self.answer_with(&request, failure).await,
                }
            }
            Err(failure) => self.refuse(&request, failure).await,
        }
    }

    async fn take_read(&mut self, request: &Request, range: Range) -> Result<(), SessionEnd> {
        let block_bytes = self.session.terms.read_block_bytes;
        let pieces = read_pieces(range, block_bytes);
        let lens: Few<usize> = pieces.iter().map(|piece| piece.len).collect();
        let reserved_bytes = reserved_bytes(&lens);
        self.session.admit(reserved_bytes).await?;
        let bufs = alloc_all(&self.session.pools.payloads, &lens).await;
        let pieces = pieces.into_iter().zip(bufs).collect();
        self.start(request, reserved_bytes, Work::Read { range, block_bytes, pieces })
    }

    async fn take_write(&mut self, request: &Request, range: Range, fua: Fua) -> Result<(), SessionEnd> {
        let lens = write_lens(range);
        let reserved_bytes = reserved_bytes(&lens);
        self.session.admit(reserved_bytes).await?;
        let bufs = without_leads(range, alloc_all(&self.session.pools.payloads, &lens).await);
        // Others may wait for this memory, so the peer does not have forever to fill it.
        let limits = &self.session.limits;
        let transfer_secs = range.len_bytes / limits.payload_bytes_per_sec_min.max(1);
        let patience = limits.payload_timeout + Duration::from_secs(transfer_secs);
        self.session.payload_until(Some(self.session.runtime.now() + patience));
        let received = self.inbox.take_payload(bufs).await;
        self.session.payload_until(None);
        match received {
            Ok(payload) => self.start(request, reserved_bytes, Work::Write { range, payload, fua }),
            Err(end) => {
                self.session.release(1, reserved_bytes);
                Err(end)
            }
        }
    }

    async fn take_status(&mut self, request: &Request, inquiry: Inquiry) -> Result<(), SessionEnd> {
        let len = status_buf_bytes(inquiry.contexts.len());
        let reserved_bytes = reserved_bytes(&[len]);
        self.session.admit(reserved_bytes).await?;
        let buf = self.session.pools.payloads.alloc(len).await;
        let (framing, cookie) = (self.session.terms.framing, request.cookie);
        self.start(request, reserved_bytes, Work::Status { inquiry, framing, cookie, buf })
    }

    async fn take_other(&mut self, request: &Request, work: Work) -> Result<(), SessionEnd> {
        self.session.admit(0).await?;
        self.start(request, 0, work)
    }

    /// The last moment at which a request can be dropped: nobody waits for an answer any more.
    fn start(&mut self, request: &Request, reserved_bytes: usize, work: Work) -> Result<(), SessionEnd> {
        if self.session.broken.get() || self.session.stream.hung_up() {
            drop(work); // gives its memory back before its place
            self.session.release(1, reserved_bytes);
            return Err(SessionEnd::Closed);
        }
        if let Some(watch) = &mut self.watch {
            watch.note(if let Work::Read { range, .. } = &work { range.len_bytes } else { 0 });
        }
        let (cookie, offset_bytes) = (request.cookie, request.offset);
        if !self.session.crew.assign(Job { cookie, offset_bytes, reserved_bytes, work }) {
            self.session.runtime.spawn(do_requests(self.session.clone()));
        }
        Ok(())
    }

    /// Answers with an error. A payload is thrown away first, or the next request could not be found.
    async fn refuse(&mut self, request: &Request, failure: Failure) -> Result<(), SessionEnd> {
        let terms = &self.session.terms;
        // The protocol wants the connection closed over a payload that is too long, since extended headers can tell.
        let drained_max = match terms.framing {
            Framing::Extended => terms.payload_bytes_max as usize,
            Framing::Simple | Framing::Structured => PAYLOAD_BYTES_MAX,
        };
        match usize::try_from(payload_bytes(request, terms.framing)) {
            Ok(payload_bytes) if payload_bytes <= drained_max => self.inbox.skip(payload_bytes).await?,
            _ => return Err(SessionEnd::Refused("a payload that is far too long")),
        }
        self.answer_with(request, failure).await
    }

    async fn answer_with(&mut self, request: &Request, failure: Failure) -> Result<(), SessionEnd> {
        self.session.admit(0).await?;
        let (cookie, offset_bytes) = (request.cookie, request.offset);
        self.session.answer(Reply { cookie, offset_bytes, result: Err(failure), reserved_bytes: 0 });
        Ok(())
    }
}

const STOPPING: Failure = Failure { error: Errno::Shutdown, why: "the export is being stopped" };

/// One of the crew: does requests until it is not needed any more.
async fn do_requests<S, D, R>(session: Rc<Session<S, D, R>>)
where
    S: Stream + 'static,
    D: Device + Clone + 'static,
    R: Runtime,
{
    while let Some(Job { cookie, offset_bytes, reserved_bytes, work }) = session.crew.next().await {
        let result = execute(&session.device, work).await;
        if session.terms.resends && matches!(result, Err(Failure { error: Errno::Shutdown, .. })) {
            // The array went away meanwhile. To be told so would be an I/O error.
            session.break_off(SessionEnd::Stopped);
        }
        session.answer(Reply { cookie, offset_bytes, result, reserved_bytes });
    }
}

/// Nothing need be waited for where nothing is needed.
async fn alloc_all(pool: &Pool, lens: &[usize]) -> Few<Buf> {
    match lens {
        [] => Few::new(),
        [len] => Few::from_buf([pool.alloc(*len).await]),
        lens => pool.alloc_all(lens).await.into(),
    }
}
