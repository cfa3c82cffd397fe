//! A stream that begins in the clear and can be made secret once: a socket, and the TLS engine around it.
//!
//! Invariants:
//! - Ciphertext leaves in the order in which it was made: who sends holds the lane, and lets go of it only when nothing is
//!   left to be sent. So what a `recv` makes (an answer to a change of keys, an alert) is sent by whoever has the lane.
//! - The engine is borrowed between awaits only, so one task receives while another sends.
//! - After a send that was not finished nothing is sent any more: the peer could not tell where a record begins.
//! - A handshake that has begun and not succeeded leaves a stream of no use; it never goes back to the clear.
//!
//! How it fails: a peer that is gone, or whose end was cut off without TLS's goodbye, is `Closed`; one that does not speak
//! TLS as it should is `Invalid`, after it was told so.

use std::cell::{Cell, OnceCell, RefCell, RefMut};
use std::rc::Rc;
use std::sync::Arc;

use futures_util::lock::{Mutex, MutexGuard};
use openssl::ssl::Ssl;

use super::engine::{CIPHERTEXT_BYTES, Engine, Progress, room_for};
use super::identity::Identity;
use super::server::TlsServer;
use crate::io::{Buf, IoError, IoErrorKind, Pool, Security, Slice, Stream};

/// What clients of a listener may and must do about TLS.
#[derive(Clone)]
pub enum TlsPolicy {
    /// There is none.
    Off,
    /// They may ask for it.
    Allow(Arc<TlsServer>),
    /// They must ask for it before anything else.
    Require(Arc<TlsServer>),
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    Clear,
    /// Making it secret was begun, and did not succeed (yet).
    Unusable,
    Secret,
}

/// A stream, in the clear or under TLS.
pub struct TlsStream<S> {
    inner: S,
    policy: TlsPolicy,
    /// Where buffers of ciphertext come from: [`TLS_BYTES_PER_CONNECTION`](super::TLS_BYTES_PER_CONNECTION) at most.
    pool: Pool,
    phase: Cell<Phase>,
    engine: RefCell<Option<Engine>>,
    identity: Rc<OnceCell<Identity>>,
    lane: Mutex<Lane>,
}

/// The right to send.
struct Lane {
    /// A send was begun and not finished.
    torn: bool,
}

const NO_TLS: IoError = IoError::new(IoErrorKind::Closed, "the TLS connection is over");
const CUT_OFF: IoError = IoError::new(IoErrorKind::Closed, "the peer ended the stream without TLS's goodbye");
const ODD: IoError = IoError::new(IoErrorKind::Invalid, "OpenSSL wants what it cannot need");

impl<S: Stream> TlsStream<S> {
    /// A stream in the clear around `inner`.
    pub fn new(inner: S, policy: TlsPolicy, pool: Pool) -> TlsStream<S> {
        TlsStream {
            inner,
            policy,
            pool,
            phase: Cell::new(Phase::Clear),
            engine: RefCell::default(),
            identity: Rc::default(),
            lane: Mutex::new(Lane { torn: false }),
        }
    }

    /// Where the peer's identity will be, should it prove one. Still there when the stream is not.
    pub fn identity(&self) -> Rc<OnceCell<Identity>> {
        self.identity.clone()
    }

    /// What is below, where it is in the clear.
    pub fn plain(&self) -> Option<&S> {
        (self.phase.get() == Phase::Clear).then_some(&self.inner)
    }

    /// The handshake.
    pub(super) async fn make_secret(&self, ssl: Ssl) -> Result<(), IoError> {
        assert!(self.phase.get() == Phase::Clear, "a stream is made secret once");
        self.phase.set(Phase::Unusable);
        let [incoming, outgoing] = self
            .pool
            .alloc_all(&[CIPHERTEXT_BYTES, room_for(0)])
            .await
            .try_into()
            .expect("two lengths, two buffers");
        *self.engine.borrow_mut() = Some(Engine::new(ssl, incoming, outgoing)?);
        let mut lane = self.lane.lock().await;
        loop {
            let progress = self.engine()?.shake();
            match progress {
                Ok(Progress::Done(_)) => break,
                Ok(Progress::NeedsInput) => {
                    self.drain(&mut lane).await?;
                    self.receive_ciphertext().await?;
                }
                Ok(Progress::NeedsRoom) => self.make_room(&mut lane, CIPHERTEXT_BYTES).await?,
                Ok(Progress::End) => return Err(CUT_OFF),
                Err(error) => {
                    // So that the peer learns why.
                    self.drain(&mut lane).await?;
                    return Err(error);
                }
            }
        }
        self.drain(&mut lane).await?;
        self.phase.set(Phase::Secret);
        self.note_peer()
    }

    fn note_peer(&self) -> Result<(), IoError> {
        let engine = self.engine()?;
        let identity = engine.identity();
        let (version, cipher) = engine.terms();
        tracing::debug!(version, cipher, ?identity, "a connection under TLS");
        if let Some(identity) = identity {
            self.identity.set(identity).expect("one handshake, one identity");
        }
        Ok(())
    }

    fn engine(&self) -> Result<RefMut<'_, Engine>, IoError> {
        RefMut::filter_map(self.engine.borrow_mut(), Option::as_mut).map_err(|_| NO_TLS)
    }

    async fn receive_ciphertext(&self) -> Result<(), IoError> {
        let buf = self.engine()?.take_incoming().ok_or(NO_TLS)?;
        let (count, buf) = self.inner.recv(buf).await?;
        self.engine()?.put_incoming(buf, count);
        if count == 0 { Err(CUT_OFF) } else { Ok(()) }
    }

    /// Sends all ciphertext there is.
    async fn drain(&self, lane: &mut MutexGuard<'_, Lane>) -> Result<(), IoError> {
        loop {
            let Some(ciphertext) = self.engine()?.take_outgoing() else { return Ok(()) };
            if lane.torn {
                return Err(NO_TLS);
            }
            lane.torn = true;
            self.inner.send(vec![ciphertext]).await?;
            lane.torn = false;
        }
    }

    /// Sends all ciphertext there is, and gets a buffer for what so much plaintext comes to.
    async fn make_room(
        &self,
        lane: &mut MutexGuard<'_, Lane>,
        plaintext_bytes: usize,
    ) -> Result<(), IoError> {
        self.drain(lane).await?;
        self.engine()?.drop_room();
        let room = self.pool.alloc(room_for(plaintext_bytes)).await;
        self.engine()?.give_room(room);
        Ok(())
    }

    async fn recv_secret(&self, mut buf: Buf) -> Result<(usize, Buf), IoError> {
        loop {
            let (progress, has_outgoing) = {
                let mut engine = self.engine()?;
                (engine.read(&mut buf), engine.has_outgoing())
            };
            // Whoever has the lane sends it; else it is free.
            if has_outgoing && let Some(mut lane) = self.lane.try_lock() {
                self.drain(&mut lane).await?;
            }
            match progress? {
                Progress::Done(count) => return Ok((count, buf)),
                Progress::End => return Ok((0, buf)),
                Progress::NeedsInput => self.receive_ciphertext().await?,
                Progress::NeedsRoom => self.make_room(&mut self.lane.lock().await, 0).await?,
            }
        }
    }

    async fn send_secret(&self, data: Vec<Slice>) -> Result<(), IoError> {
        let mut lane = self.lane.lock().await;
        let mut left: usize = data.iter().map(|slice| slice.len()).sum();
        for slice in data {
            let mut rest = &slice[..];
            while !rest.is_empty() {
                let progress = self.engine()?.write(rest)?;
                match progress {
                    Progress::Done(count) => {
                        rest = &rest[count..];
                        left -= count;
                    }
                    Progress::NeedsRoom => self.make_room(&mut lane, left).await?,
                    // Only a handshake would need input, and there is never a second.
                    Progress::End | Progress::NeedsInput => return Err(ODD),
                }
            }
        }
        self.drain(&mut lane).await
    }

    async fn say_goodbye(&self) -> Result<(), IoError> {
        let mut lane = self.lane.lock().await;
        self.make_room(&mut lane, 0).await?;
        self.engine()?.say_goodbye();
        self.drain(&mut lane).await
    }
}

impl<S: Stream> Stream for TlsStream<S> {
    async fn recv(&self, buf: Buf) -> Result<(usize, Buf), IoError> {
        match self.phase.get() {
            Phase::Clear => self.inner.recv(buf).await,
            Phase::Unusable => Err(NO_TLS),
            Phase::Secret => self.recv_secret(buf).await,
        }
    }

    async fn send(&self, data: Vec<Slice>) -> Result<(), IoError> {
        match self.phase.get() {
            Phase::Clear => self.inner.send(data).await,
            Phase::Unusable => Err(NO_TLS),
            Phase::Secret => self.send_secret(data).await,
        }
    }

    fn shutdown(&self) {
        self.inner.shutdown();
    }

    fn hung_up(&self) -> bool {
        self.inner.hung_up()
    }

    fn security(&self) -> Security {
        match (self.phase.get(), &self.policy) {
            (Phase::Clear, TlsPolicy::Off) => Security::None,
            (Phase::Clear, TlsPolicy::Allow(_)) => Security::Offered,
            (Phase::Clear, TlsPolicy::Require(_)) => Security::Required,
            (Phase::Unusable | Phase::Secret, _) => Security::Tls,
        }
    }

    async fn start_tls(&self) -> Result<(), IoError> {
        let ssl = match &self.policy {
            TlsPolicy::Off => {
                return Err(IoError::new(IoErrorKind::Unsupported, "TLS is off"));
            }
            TlsPolicy::Allow(server) | TlsPolicy::Require(server) => server.accept(),
        };
        let ssl = ssl.map_err(|error| {
            tracing::warn!(%error, "OpenSSL has no room for another connection");
            NO_TLS
        })?;
        self.make_secret(ssl).await
    }

    async fn close(&self) {
        if self.phase.get() == Phase::Secret
            && let Err(error) = self.say_goodbye().await
        {
            tracing::debug!(%error, "the peer was gone before its TLS goodbye");
        }
        self.inner.close().await;
    }
}
