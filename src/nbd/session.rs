//! One connection from its greeting to its end.
//!
//! After the handshake a connection is a receiver, a sender, a crew of tasks that do requests in between, and a watch over
//! the three. They share a [`Session`], whose counters say what is in flight.
//!
//! States: *receiving* until the peer leaves, breaks the protocol, breaks off, or the server stops; then *draining* until
//! all requests taken have been answered; then *over*. Being *broken* is no state of its own: it only means that answers
//! go nowhere.
//!
//! Invariants:
//! - `requests` counts those taken and not yet released by the sender, `bytes` what they hold of the pool.
//! - The first reason to end is the one reported.
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

use futures_util::future::{Either, select};

use super::crew::Crew;
use super::export::{Attached, Exports, Terms};
use super::handshake::{self, Chosen};
use super::inbox::Inbox;
use super::limits::{Limits, Pools};
use super::reply::{Reply, send_replies};
use super::signal::Signal;
use super::stop::{Halt, Stop};
use super::transmission::receive_requests;
use crate::io::{Clock, Device, IoError, IoErrorKind, PAGE_BYTES, Runtime, Stream};

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

/// Serves one connection to its end. When this returns, nothing of it is in flight and the stream is shut down.
///
/// `stop` ends it early: requests already sent by the client are still served, for as long as the limits say.
pub async fn serve<S, X, R>(
    stream: S,
    exports: X,
    runtime: R,
    pools: Pools,
    limits: Limits,
    stop: Stop,
) -> SessionEnd
where
    S: Stream + 'static,
    X: Exports,
    R: Runtime,
{
    match negotiate(stream, exports, runtime, pools, limits, stop).await {
        Ok(negotiated) => negotiated.serve().await,
        Err(end) => end,
    }
}

/// The handshake alone. After an error the stream is shut down.
pub async fn negotiate<S, X, R>(
    stream: S,
    exports: X,
    runtime: R,
    pools: Pools,
    limits: Limits,
    stop: Stop,
) -> Result<Negotiated<S, X::Device, R>, SessionEnd>
where
    S: Stream + 'static,
    X: Exports,
    R: Runtime,
{
    let stream = Rc::new(stream);
    let halt = Halt::of_server(stop);
    match shake_in_time(&stream, &exports, &runtime, &pools, &limits, &halt).await {
        Ok((inbox, chosen)) => Ok(Negotiated { stream, runtime, pools, limits, halt, inbox, chosen }),
        Err(end) => Err(take_leave(stream.as_ref(), &runtime, &limits, end).await),
    }
}

/// A connection that has its handshake behind it and its requests before it.
pub struct Negotiated<S, D, R> {
    stream: Rc<S>,
    runtime: R,
    pools: Pools,
    limits: Limits,
    halt: Halt,
    inbox: Inbox<S, R>,
    chosen: Chosen<D>,
}

/// What the handshake led to, for another thread to go on with: [`take_over`].
#[derive(Debug)]
pub struct Handover {
    terms: Terms,
    /// What the client has sent after it.
    received: Vec<u8>,
}

impl<S, D, R> Negotiated<S, D, R>
where
    S: Stream + 'static,
    D: Device + Clone + 'static,
    R: Runtime,
{
    /// The stream, which nobody uses at the moment.
    pub fn stream(&self) -> &S {
        &self.stream
    }

    /// What the client chose.
    pub fn device(&self) -> &D {
        &self.chosen.device
    }

    /// Serves it here to its end.
    pub async fn serve(self) -> SessionEnd {
        let Negotiated { stream, runtime, pools, limits, halt, inbox, chosen } = self;
        let end = transmit(&stream, &runtime, pools, limits, halt, inbox, chosen).await;
        take_leave(stream.as_ref(), &runtime, &limits, end).await
    }

    /// Whether it can be handed over: not a client that has sent more than a page after the handshake, which no client does
    /// that waits for the end of it.
    pub fn is_portable(&self) -> bool {
        self.inbox.received_bytes() <= PAGE_BYTES
    }

    /// Gives it up, without a word to the client: its stream is to live on elsewhere, by another descriptor. The client
    /// counts as attached until the hold is dropped. Panics if it is not portable.
    pub fn hand_over(self) -> (Handover, Attached) {
        assert!(self.is_portable());
        (Handover { terms: self.chosen.terms, received: self.inbox.into_received() }, self.chosen.attached)
    }
}

/// Serves a connection whose handshake was done elsewhere. Otherwise like [`serve`].
#[allow(clippy::too_many_arguments)] // all that a connection is made of
pub async fn take_over<S, D, R>(
    stream: S,
    handover: Handover,
    device: D,
    attached: Attached,
    runtime: R,
    pools: Pools,
    limits: Limits,
    stop: Stop,
) -> SessionEnd
where
    S: Stream + 'static,
    D: Device + Clone + 'static,
    R: Runtime,
{
    let stream = Rc::new(stream);
    let halt = Halt::of_server(stop);
    let mut inbox = Inbox::new(stream.clone(), runtime.clone(), halt.clone(), &limits, &pools).await;
    inbox.put_back(&handover.received);
    let chosen = Chosen { device, terms: handover.terms, attached };
    Negotiated { stream, runtime, pools, limits, halt, inbox, chosen }.serve().await
}

/// Serves one connection whose client knows the export already and needs no handshake: the kernel's. Otherwise like
/// [`serve`]; what is not answered at a stop, the client asks again elsewhere.
pub async fn serve_kernel<S, D, R>(
    stream: S,
    device: D,
    attached: Attached,
    runtime: R,
    pools: Pools,
    limits: Limits,
    stop: Stop,
) -> SessionEnd
where
    S: Stream + 'static,
    D: Device + Clone + 'static,
    R: Runtime,
{
    let terms = Terms::of_kernel(&device.info(), &pools);
    let handover = Handover { terms, received: Vec::new() };
    take_over(stream, handover, device, attached, runtime, pools, limits, stop).await
}

async fn take_leave<S: Stream, R: Clock>(
    stream: &S,
    runtime: &R,
    limits: &Limits,
    end: SessionEnd,
) -> SessionEnd {
    if let Either::Right(_) = select(pin!(stream.close()), pin!(runtime.sleep(limits.close_timeout))).await {
        stream.shutdown();
    }
    tracing::debug!(%end, "connection over");
    end
}

/// The handshake, but no longer than the limit says.
async fn shake_in_time<S: Stream, X: Exports, R: Runtime>(
    stream: &Rc<S>,
    exports: &X,
    runtime: &R,
    pools: &Pools,
    limits: &Limits,
    halt: &Halt,
) -> Result<(Inbox<S, R>, Chosen<X::Device>), SessionEnd> {
    let shake = async {
        let mut inbox = Inbox::new(stream.clone(), runtime.clone(), halt.clone(), limits, pools).await;
        let chosen = handshake::shake(stream.as_ref(), &mut inbox, exports, pools, limits).await?;
        Ok((inbox, chosen))
    };
    match select(pin!(shake), pin!(runtime.sleep(limits.handshake_timeout))).await {
        Either::Left((shaken, _)) => shaken,
        Either::Right(_) => Err(SessionEnd::HandshakeTimeout),
    }
}

/// Everything after the handshake.
async fn transmit<S: Stream + 'static, D: Device + Clone + 'static, R: Runtime>(
    stream: &Rc<S>,
    runtime: &R,
    pools: Pools,
    limits: Limits,
    mut halt: Halt,
    mut inbox: Inbox<S, R>,
    chosen: Chosen<D>,
) -> SessionEnd {
    let Chosen { device, terms, attached } = chosen;
    halt.add_export(attached.stop.clone());
    inbox.stop_by(halt.clone());
    let session = Rc::new(Session::new(stream.clone(), device, runtime.clone(), terms, pools, limits, halt));
    runtime.spawn(receive_requests(session.clone(), inbox));
    runtime.spawn(send_replies(session.clone()));
    session.watch().await;
    session.crew.dismiss();
    drop(attached);
    session.end.get().expect("a receiver ends with a reason")
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
    fn new(
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
