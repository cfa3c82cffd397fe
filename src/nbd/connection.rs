//! One connection from its greeting to its end: the handshake, then requests, here or wherever it is handed over to.
//!
//! States: *negotiating*, then *negotiated* ([`Negotiated`]: nothing is in flight and nobody uses the stream), then serving
//! ([`Session`]), from where it is over, or negotiated again when its traffic has changed.
//!
//! Invariants:
//! - A connection that is handed over is told of it by nothing: what it had sent and was not taken goes along.
//! - It is over only when nothing of it is in flight, and then its stream is shut down.

use std::pin::pin;
use std::rc::Rc;

use futures_util::future::{Either, select};

use super::export::{Attached, Exports, Terms};
use super::handshake::{self, Chosen};
use super::inbox::Inbox;
use super::limits::{Limits, Pools};
use super::reply::send_replies;
use super::session::{Session, SessionEnd};
use super::stop::{Halt, Stop};
use super::traffic::{Traffic, TrafficWatch};
use super::transmission::receive_requests;
use crate::io::{Clock, Device, DeviceInfo, PAGE_BYTES, Runtime, Stream};

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
        Ok((inbox, chosen)) => {
            let traffic = Traffic::default();
            Ok(Negotiated { stream, runtime, pools, limits, halt, inbox, chosen, traffic })
        }
        Err(end) => Err(take_leave(stream.as_ref(), &runtime, &limits, end).await),
    }
}

/// A connection that has its handshake behind it and requests before it.
pub struct Negotiated<S, D, R> {
    stream: Rc<S>,
    runtime: R,
    pools: Pools,
    limits: Limits,
    halt: Halt,
    inbox: Inbox<S, R>,
    chosen: Chosen<D>,
    traffic: Traffic,
}

/// What serving a connection came to.
pub enum Served<S, D, R> {
    /// It is over.
    Over(SessionEnd),
    /// Its requests have become of another kind: it may be served better elsewhere.
    Changed(Box<Negotiated<S, D, R>>),
}

/// What there is to a connection but its stream and its device, for another thread to go on with: [`take_over`].
#[derive(Debug)]
pub struct Handover {
    terms: Terms,
    /// What the client has sent and nobody has taken.
    received: Vec<u8>,
    traffic: Traffic,
}

impl Handover {
    /// Of a client that knows the export already and needs no handshake: the kernel. What is not answered at a stop, it asks
    /// again elsewhere.
    pub fn of_kernel(info: &DeviceInfo, pools: &Pools) -> Handover {
        let terms = Terms::of_kernel(info, pools);
        Handover { terms, received: Vec::new(), traffic: Traffic::default() }
    }
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

    /// What its requests have been like of late.
    pub fn traffic(&self) -> Traffic {
        self.traffic
    }

    /// Serves it here to its end.
    pub async fn serve(self) -> SessionEnd {
        match self.transmit(None).await {
            Served::Over(end) => end,
            Served::Changed(_) => unreachable!("nobody looks for a change"),
        }
    }

    /// Serves it here for as long as its requests are of the kind that they are. Until it is served again, they wait.
    pub async fn serve_while_alike(self) -> Served<S, D, R> {
        let watch = TrafficWatch::new(self.traffic);
        self.transmit(Some(watch)).await
    }

    /// Whether it can be handed over: not a client of which more than a page was received and not taken. No client does that
    /// which waits for the end of the handshake, and no change of its requests is told of before it is less.
    pub fn is_portable(&self) -> bool {
        self.inbox.received_bytes() <= PAGE_BYTES
    }

    /// Gives it up, without a word to the client: its stream is to live on elsewhere, by another descriptor. The client
    /// counts as attached until the hold is dropped. Panics if it is not portable.
    pub fn hand_over(self) -> (Handover, Attached) {
        assert!(self.is_portable());
        let (terms, received, traffic) = (self.chosen.terms, self.inbox.into_received(), self.traffic);
        (Handover { terms, received, traffic }, self.chosen.attached)
    }

    /// Requests until it is over, or the watch tells of a change.
    async fn transmit(self, watch: Option<TrafficWatch>) -> Served<S, D, R> {
        let Negotiated { stream, runtime, pools, limits, mut halt, mut inbox, chosen, .. } = self;
        let Chosen { device, terms, attached } = chosen;
        halt.add_export(attached.stop.clone());
        inbox.stop_by(halt.clone());
        let session = Rc::new(Session::new(
            stream.clone(),
            device.clone(),
            runtime.clone(),
            terms,
            pools.clone(),
            limits,
            halt.clone(),
        ));
        runtime.spawn(receive_requests(session.clone(), inbox, watch));
        runtime.spawn(send_replies(session.clone()));
        let outcome = session.until_over().await;
        session.crew.dismiss();
        match outcome {
            Ok((inbox, traffic)) => {
                let chosen = Chosen { device, terms, attached };
                let changed = Negotiated { stream, runtime, pools, limits, halt, inbox, chosen, traffic };
                Served::Changed(Box::new(changed))
            }
            Err(end) => {
                drop(attached);
                Served::Over(take_leave(stream.as_ref(), &runtime, &limits, end).await)
            }
        }
    }
}

/// Goes on with a connection that was handed over, or one that needs no handshake.
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
) -> Negotiated<S, D, R>
where
    S: Stream + 'static,
    D: Device + Clone + 'static,
    R: Runtime,
{
    let stream = Rc::new(stream);
    let halt = Halt::of_server(stop);
    let mut inbox = Inbox::new(stream.clone(), runtime.clone(), halt.clone(), &limits, &pools).await;
    let Handover { terms, received, traffic } = handover;
    inbox.put_back(&received);
    let chosen = Chosen { device, terms, attached };
    Negotiated { stream, runtime, pools, limits, halt, inbox, chosen, traffic }
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
