//! What the tasks of one connection share while it serves requests.
//!
//! After the handshake a connection is a receiver, a sender, a crew of tasks that do requests in between, and a watch over
//! the three. They share a [`Session`], whose counters say what is in flight.
//!
//! States: *receiving* until the peer leaves, breaks the protocol, breaks off, the server stops, or the traffic has changed and nothing
//! is in flight; then *draining* until all requests taken have been answered; then *over*. Being *broken* is no state of its own: it only means
//! that answers go nowhere.
//!
//! Invariants:
//! - `requests` counts those taken and not yet released by the sender, `bytes` what they hold of the pool.
//! - The first reason to end is the one reported. Without one, the receiver has left its inbox for who goes on.
//! - The connection is not over while a request of it is under way on the device.
//! - No request begins after the client has hung up, as far as that is known: it may have sent it again by another
//!   connection, and something newer after it. One that only sends no more still gets its answers.
//!
//! A stop ends a connection in one of three ways. Of a server that ends, the client gets what it has already asked for: it
//! may come back to the next. Of an export that ends, it gets errors. A client that *resends* (the kernel's: what is not
//! answered, it asks again on its next socket) is told nothing that it would take for the last word.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::fmt;
use std::future::pending;
use std::pin::pin;
use std::rc::Rc;
use std::time::Duration;

use futures_util::future::select;

use super::crew::Crew;
use super::export::Terms;
use super::inbox::Inbox;
use super::limits::{Limits, Pools};
use super::reply::Reply;
use super::signal::Signal;
use super::stop::Halt;
use super::traffic::Traffic;
use crate::io::{Clock, IoError, IoErrorKind, Stream};

/// How long a connection that is to be moved may be without a receiver.
const DRAIN_PATIENCE: Duration = Duration::from_millis(100);

/// Why a connection is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SessionEnd {
    /// The client said that it leaves (DISC, ABORT).
    Disconnected,
    /// The client closed the connection, or lost it.
    Closed,
    /// The server stopped.
    Stopped,
    /// The client did not finish the handshake in time.
    HandshakeTimeout,
    /// The client took no replies, or did not send the payload that it had announced.
    Stalled,
    /// The client broke the protocol in a way that only a close can answer.
    Refused(&'static str),
    /// The socket failed.
    Failed(IoError),
}

impl fmt::Display for SessionEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SessionEnd::Disconnected => f.write_str("the client disconnected"),
            SessionEnd::Closed => f.write_str("the client closed the connection"),
            SessionEnd::Stopped => f.write_str("the server stopped"),
            SessionEnd::HandshakeTimeout => f.write_str("the handshake took too long"),
            SessionEnd::Stalled => f.write_str("the client stalled"),
            SessionEnd::Refused(reason) => write!(f, "refused: {reason}"),
            SessionEnd::Failed(error) => write!(f, "the connection failed: {error}"),
        }
    }
}

impl From<IoError> for SessionEnd {
    fn from(error: IoError) -> SessionEnd {
        match error.kind {
            IoErrorKind::Closed => SessionEnd::Closed,
            _ => SessionEnd::Failed(error),
        }
    }
}

/// What the tasks of one connection share.
pub(super) struct Session<S, D, R> {
    pub(super) stream: Rc<S>,
    pub(super) device: D,
    pub(super) runtime: R,
    pub(super) terms: Terms,
    pub(super) pools: Pools,
    pub(super) limits: Limits,
    pub(super) halt: Halt,

    requests: Cell<usize>,
    bytes: Cell<usize>,
    /// Who does the requests.
    pub(super) crew: Crew,
    /// Finished requests, oldest first.
    pub(super) outbox: RefCell<VecDeque<Reply>>,
    receiving: Cell<bool>,
    sending: Cell<bool>,
    pub(super) broken: Cell<bool>,
    end: Cell<Option<SessionEnd>>,
    /// What the receiver has left for who goes on, and how the traffic has changed.
    left: Cell<Option<(Inbox<S, R>, Traffic)>>,
    sending_since: Cell<Option<Duration>>,
    payload_until: Cell<Option<Duration>>,
    /// When the watch will look by itself.
    watching_until: Cell<Option<Duration>>,

    /// The receiver waits here for room.
    room: Signal,
    /// The sender waits here for replies.
    pub(super) work: Signal,
    /// The sender waits here for the connection to break while it sends.
    pub(super) broke: Signal,
    /// The watch waits here for something to watch.
    watched: Signal,
}

impl<S, D, R> Session<S, D, R> {
    pub(super) fn new(
        stream: Rc<S>,
        device: D,
        runtime: R,
        terms: Terms,
        pools: Pools,
        limits: Limits,
        halt: Halt,
    ) -> Session<S, D, R> {
        Session {
            stream,
            device,
            runtime,
            terms,
            pools,
            limits,
            halt,
            requests: Cell::new(0),
            bytes: Cell::new(0),
            crew: Crew::default(),
            outbox: RefCell::default(),
            receiving: Cell::new(true),
            sending: Cell::new(true),
            broken: Cell::new(false),
            end: Cell::new(None),
            left: Cell::new(None),
            sending_since: Cell::new(None),
            payload_until: Cell::new(None),
            watching_until: Cell::new(None),
            room: Signal::default(),
            work: Signal::default(),
            broke: Signal::default(),
            watched: Signal::default(),
        }
    }

    /// Waits for room for a request with so much memory, and takes it. A request that is larger than all the room there
    /// is gets it alone.
    pub(super) async fn admit(&self, reserved_bytes: usize) -> Result<(), SessionEnd> {
        self.room.until(|| self.broken.get() || self.has_room(reserved_bytes)).await;
        if self.broken.get() {
            return Err(SessionEnd::Closed);
        }
        self.enter(reserved_bytes);
        Ok(())
    }

    /// Takes room if there is some.
    pub(super) fn try_admit(&self, reserved_bytes: usize) -> bool {
        let is_free = !self.broken.get() && self.has_room(reserved_bytes);
        if is_free {
            self.enter(reserved_bytes);
        }
        is_free
    }

    fn has_room(&self, reserved_bytes: usize) -> bool {
        let bytes_max = self.limits.bytes_in_flight.min(self.pools.payloads.total_bytes() / 4);
        let bytes = self.bytes.get();
        self.requests.get() < self.limits.requests_in_flight
            && (bytes == 0 || reserved_bytes == 0 || bytes + reserved_bytes <= bytes_max)
    }

    fn enter(&self, reserved_bytes: usize) {
        self.requests.set(self.requests.get() + 1);
        self.bytes.set(self.bytes.get() + reserved_bytes);
    }

    /// Gives back what [`admit`](Session::admit) took.
    pub(super) fn release(&self, requests: usize, reserved_bytes: usize) {
        self.requests.set(self.requests.get() - requests);
        self.bytes.set(self.bytes.get() - reserved_bytes);
        self.room.wake();
    }

    /// Hands a finished request to the sender.
    pub(super) fn answer(&self, reply: Reply) {
        self.outbox.borrow_mut().push_back(reply);
        self.work.wake();
    }

    /// Nothing is in flight and nothing will come.
    pub(super) fn is_drained(&self) -> bool {
        !self.receiving.get() && self.requests.get() == 0
    }

    pub(super) fn receiver_ended(&self, end: SessionEnd) {
        self.note_end(end);
        self.receiving.set(false);
        self.work.wake();
    }

    /// The receiver has ended for no other reason than that the traffic has changed.
    pub(super) fn receiver_left(&self, inbox: Inbox<S, R>, traffic: Traffic) {
        self.left.set(Some((inbox, traffic)));
        self.receiving.set(false);
        self.work.wake();
    }

    pub(super) fn sender_ended(&self) {
        assert!(self.is_drained() && self.bytes.get() == 0);
        self.sending.set(false);
        self.watched.wake();
    }

    /// A send is waited for, or no longer.
    pub(super) fn sending_since(&self, since: Option<Duration>) {
        self.sending_since.set(since);
        self.watch_sooner();
    }

    /// The rest of a payload is waited for, or no longer.
    pub(super) fn payload_until(&self, until: Option<Duration>) {
        self.payload_until.set(until);
        self.watch_sooner();
    }

    /// Wakes the watch only if it would come too late by itself: this is called for every send.
    fn watch_sooner(&self) {
        if let Some(deadline) = self.deadline()
            && self.watching_until.get().is_none_or(|until| deadline < until)
        {
            self.watched.wake();
        }
    }

    fn note_end(&self, end: SessionEnd) {
        self.end.set(self.end.get().or(Some(end)));
    }

    fn is_over(&self) -> bool {
        !self.receiving.get() && !self.sending.get()
    }

    /// When the peer has to have done something.
    fn deadline(&self) -> Option<Duration> {
        if self.broken.get() {
            return None;
        }
        let stall_timeout = match self.halt.is_stopped() {
            true => self.limits.stop_timeout.min(self.limits.stall_timeout),
            false => self.limits.stall_timeout,
        };
        let send_until = self.sending_since.get().map(|since| since + stall_timeout);
        send_until.into_iter().chain(self.payload_until.get()).min()
    }
}

impl<S: Stream, D, R: Clock> Session<S, D, R> {
    /// Ends it without regard for replies: the peer is gone, or as good as gone.
    pub(super) fn break_off(&self, end: SessionEnd) {
        self.note_end(end);
        self.broken.set(true);
        self.stream.shutdown();
        self.room.wake();
        self.broke.wake();
    }

    /// Waits until nothing of it is in flight: what the receiver has left, or why it is over.
    pub(super) async fn until_over(&self) -> Result<(Inbox<S, R>, Traffic), SessionEnd> {
        self.watch().await;
        match self.end.get() {
            Some(end) => Err(end),
            None => Ok(self.left.take().expect("a receiver ends with a reason, or leaves its inbox")),
        }
    }

    /// Waits until all requests taken have been answered, but not for long: what takes long, as on a disk that does not answer,
    /// must not keep those beside it waiting.
    pub(super) async fn drains_soon(&self) -> bool {
        let drained = pin!(self.room.until(|| self.broken.get() || self.requests.get() == 0));
        select(drained, pin!(self.runtime.sleep(DRAIN_PATIENCE))).await;
        self.requests.get() == 0 && !self.broken.get()
    }

    /// Cuts off a peer that stalls; returns when the connection is over. Sets a timer only where something is awaited
    /// from the peer, and then only one for many such waits.
    async fn watch(&self) {
        loop {
            self.watched.until(|| self.is_over() || self.deadline().is_some()).await;
            let Some(deadline) = self.deadline().filter(|_| !self.is_over()) else { return };
            let now = self.runtime.now();
            if deadline <= now {
                self.break_off(SessionEnd::Stalled);
                continue;
            }
            let stopped = async {
                match self.halt.is_stopped() {
                    true => pending().await,
                    false => self.halt.stopped().await,
                }
            };
            let sooner = || self.deadline().is_some_and(|sooner| sooner < deadline);
            let called = pin!(self.watched.until(|| self.is_over() || sooner()));
            let nap = pin!(self.runtime.sleep(deadline - now));
            self.watching_until.set(Some(deadline));
            select(select(nap, called), pin!(stopped)).await;
            self.watching_until.set(None); // whichever it was, look again
        }
    }
}
