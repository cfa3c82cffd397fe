//! The running arrays as NBD exports, and the listeners that let clients in.
//!
//! Handshakes are spread over the reactors in turn. Then a connection in the clear moves to where it is served best
//! (`Entry::place`), and again when its requests become of another kind; under TLS it stays, so that the ciphers' work is
//! spread. A client is counted on its array from the handshake's end to the connection's, so that `stop` knows of it; to end
//! it, a job is sent to its reactor, where its `Stop` is. While it moves it is counted on both.
//!
//! What a client sees depends on where it comes from and who it is (`access`); the latter is known once TLS has begun.

use std::cell::{OnceCell, RefCell};
use std::collections::HashMap;
use std::net::TcpStream;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures_channel::oneshot;

use super::access::{Access, AccessRules, Source};
use super::array_home::{ArrayId, RemoteArray, present};
use super::config::{NbdAddress, NbdListener, TlsMode};
use super::registry::{CONNECTIONS_AT_HOME, Entry, Registry};
use crate::io::{Clock, Device, Pool, Spawn};
use crate::nbd::{
    self, Attached, Export, ExportInfo, Handover, Limits, MESSAGE_BYTES_PER_CONNECTION, Pools, Served,
    SessionEnd, Stop,
};
use crate::reactor::{Listener, LocalRuntime, ReactorHandle, Socket, runtime};
use crate::tls::{Identity, TLS_BYTES_PER_CONNECTION, TlsPolicy, TlsServer, TlsStream};

/// What is waited after the kernel refused to accept, as it does when file descriptors run out.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

thread_local! {
    /// How to end the connections of this thread, by array and client.
    static STOPS: RefCell<HashMap<(ArrayId, u64), Stop>> = RefCell::default();
    /// How to end all connections of this thread.
    static ALL: Stop = Stop::new();
}

/// Everything a connection needs that is shared by all of them.
#[derive(Clone)]
pub struct Service {
    pub registry: Arc<Registry>,
    pub reactors: Arc<Vec<ReactorHandle>>,
    pub pools: Pools,
    tls: Option<Arc<TlsServer>>,
    /// Where TLS's buffers come from; a pool of its own, where there is TLS at all.
    ciphertext: Pool,
    access: Arc<AccessRules>,
    next: Arc<AtomicUsize>,
    open: Arc<AtomicUsize>,
}

/// A connection of this thread's, after its handshake.
type Client = nbd::Negotiated<TlsStream<Socket>, RemoteArray, LocalRuntime>;

/// What is to be done when a connection is over; it is told why, if it was ever served.
type OnEnd = Box<dyn FnOnce(Option<SessionEnd>) + Send>;

/// Where a connection is to go on.
struct Place {
    entry: Arc<Entry>,
    reactor: usize,
    /// Another descriptor of it.
    socket: OwnedFd,
}

/// A way in.
#[derive(Clone)]
struct Door {
    tls: TlsPolicy,
    is_unix: bool,
}

impl Service {
    /// A service whose buffers come out of `memory_bytes`; with TLS where it is told how.
    pub fn new(
        registry: Arc<Registry>,
        reactors: Arc<Vec<ReactorHandle>>,
        memory_bytes: usize,
        tls: Option<TlsServer>,
        access: AccessRules,
    ) -> std::io::Result<Service> {
        let tenth = (memory_bytes / 10).max(1 << 20);
        let messages = Pool::new(tenth)?;
        let (ciphertext, ciphertext_bytes) = match tls {
            Some(_) => (Pool::new(tenth)?, tenth),
            None => (messages.clone(), 0),
        };
        let pools = Pools {
            messages,
            receive: Pool::new(tenth)?,
            payloads: Pool::new(memory_bytes - 2 * tenth - ciphertext_bytes)?,
        };
        Ok(Service {
            registry,
            reactors,
            pools,
            tls: tls.map(Arc::new),
            ciphertext,
            access: Arc::new(access),
            next: Arc::default(),
            open: Arc::default(),
        })
    }

    /// Connections at a time: as many as there are pages to receive into, and buffers should all of them use TLS.
    fn connections_max(&self) -> usize {
        let plain = self.pools.messages.total_bytes() / MESSAGE_BYTES_PER_CONNECTION;
        match self.tls {
            Some(_) => plain.min(self.ciphertext.total_bytes() / TLS_BYTES_PER_CONNECTION),
            None => plain,
        }
    }

    /// Panics if TLS is wanted on a service that was not told how.
    fn door(&self, listener: &NbdListener) -> Door {
        let server = || self.tls.clone().expect("a service that speaks TLS");
        let tls = match listener.tls {
            TlsMode::Off => TlsPolicy::Off,
            TlsMode::Allow => TlsPolicy::Allow(server()),
            TlsMode::Require => TlsPolicy::Require(server()),
        };
        Door { tls, is_unix: matches!(listener.address, NbdAddress::Unix(_)) }
    }

    /// Lets clients in on a listening socket, for as long as the reactor that it is called on runs. Panics if TLS is
    /// wanted there and the service was not told how.
    pub fn listen(&self, listener: OwnedFd, config: &NbdListener) {
        let service = self.clone();
        let door = self.door(config);
        runtime().spawn(async move {
            let listener = Listener::from_fd(listener);
            let all = ALL.with(Stop::clone);
            while !all.is_stopped() {
                if service.open.load(Ordering::Relaxed) >= service.connections_max() {
                    // A full house is a queue at the door: the kernel's backlog.
                    runtime().sleep(ACCEPT_PAUSE).await;
                    continue;
                }
                match listener.accept().await {
                    Ok(socket) => service.admit(socket, &door),
                    Err(error) => {
                        tracing::warn!(%error, "cannot accept a connection");
                        runtime().sleep(ACCEPT_PAUSE).await;
                    }
                }
            }
        });
    }

    fn admit(&self, socket: OwnedFd, door: &Door) {
        let (socket, source) = match source(socket, door.is_unix) {
            Ok(known) => known,
            Err(error) => {
                tracing::debug!(%error, "a client left before it was let in");
                return;
            }
        };
        let tls = door.tls.clone();
        self.spread(move |service| async move {
            let all = ALL.with(Stop::clone);
            let stream = TlsStream::new(Socket::from_fd(socket), tls, service.ciphertext.clone());
            let exports = LocalExports {
                registry: service.registry.clone(),
                access: service.access.clone(),
                source,
                identity: stream.identity(),
            };
            let pools = service.pools.clone();
            match nbd::negotiate(stream, exports, runtime(), pools, Limits::default(), all).await {
                Ok(client) => {
                    let on_end = move |end| tracing::debug!(?source, ?end, "client gone");
                    service.serve(client, false, Box::new(on_end)).await;
                }
                Err(end) => tracing::debug!(?source, %end, "client gone"),
            }
        });
    }

    /// Serves a client that has chosen its array to its end; then calls `on_end`. The reactor that is best for it is looked
    /// for at once, unless it `is_placed` already, and whenever its requests have become of another kind.
    async fn serve(self, mut client: Client, mut is_placed: bool, on_end: OnEnd) {
        let end = loop {
            if !is_placed && let Some(better) = self.better_place(&client) {
                return self.move_to(better, client, on_end).await;
            }
            is_placed = false;
            if !self.may_move(&client) {
                break client.serve().await;
            }
            match client.serve_while_alike().await {
                Served::Over(end) => break end,
                Served::Changed(changed) => client = *changed,
            }
        };
        on_end(Some(end));
    }

    fn may_move(&self, client: &Client) -> bool {
        self.reactors.len() > 1 && client.stream().plain().is_some()
    }

    /// Where a client is served better than here, if it can move there.
    fn better_place(&self, client: &Client) -> Option<Place> {
        let here = runtime().handle().index();
        let moves = self.may_move(client) && client.is_portable();
        let entry = self.registry.by_id(client.device().id).filter(|_| moves)?;
        let reactor = entry.place(here, self.reactors.len(), client.traffic());
        let socket = client.stream().plain().filter(|_| reactor != here)?.duplicate().ok()?;
        Some(Place { entry, reactor, socket })
    }

    async fn move_to(self, place: Place, client: Client, on_end: OnEnd) {
        let Place { entry, reactor, socket } = place;
        tracing::debug!(array = entry.name, reactor, traffic = ?client.traffic(), "a connection moves");
        let array = client.device().clone();
        let (handover, attached) = client.hand_over();
        let (held, is_held) = oneshot::channel();
        self.spread_to(reactor, move |service| async move {
            let attached = hold(&entry);
            // Nobody waiting for this is no failure.
            let _told = held.send(()).is_ok();
            service.go_on(socket, handover, array, attached, on_end).await;
        });
        // Counted there before it is no longer counted here.
        let _held = is_held.await.is_ok();
        drop(attached);
    }

    /// Goes on here with a connection that needs no handshake. An array that is being stopped lets nobody in: dropping the
    /// socket says so.
    async fn go_on(
        self,
        socket: OwnedFd,
        handover: Handover,
        array: RemoteArray,
        attached: Option<Attached>,
        on_end: OnEnd,
    ) {
        let Some(attached) = attached else { return on_end(None) };
        let stream = TlsStream::new(Socket::from_fd(socket), TlsPolicy::Off, self.ciphertext.clone());
        let (pools, limits, all) = (self.pools.clone(), Limits::default(), ALL.with(Stop::clone));
        let client = nbd::take_over(stream, handover, array, attached, runtime(), pools, limits, all).await;
        self.serve(client, true, on_end).await;
    }

    /// Serves an array to the kernel, whose end of the connection is the other of `socket`'s, and counts it from now on;
    /// then calls `on_end`.
    pub fn serve_kernel(
        &self,
        entry: &Arc<Entry>,
        socket: OwnedFd,
        on_end: impl FnOnce(Option<SessionEnd>) + Send + 'static,
    ) {
        entry.kernel_connected();
        let place = match entry.kernel_connections() as usize {
            few if few <= CONNECTIONS_AT_HOME => entry.home.index(),
            _ => self.turn(),
        };
        let (entry, entry_then) = (entry.clone(), entry.clone());
        let on_end: OnEnd = Box::new(move |end| {
            if let Some(end) = end {
                tracing::debug!(array = entry_then.name, %end, "connection to the kernel over");
            }
            entry_then.kernel_disconnected();
            on_end(end);
        });
        self.spread_to(place, move |service| async move {
            let Some(array) = remote(&entry).await else { return on_end(None) };
            let handover = Handover::of_kernel(&array.info(), &service.pools);
            service.go_on(socket, handover, array, hold(&entry), on_end).await;
        });
    }

    /// The reactor whose turn it is.
    fn turn(&self) -> usize {
        self.next.fetch_add(1, Ordering::Relaxed) % self.reactors.len()
    }

    /// Runs a connection on the reactor whose turn it is.
    fn spread<F: Future<Output = ()> + 'static>(&self, serve: impl FnOnce(Service) -> F + Send + 'static) {
        self.spread_to(self.turn(), serve);
    }

    /// Runs a connection on this reactor.
    fn spread_to<F: Future<Output = ()> + 'static>(
        &self,
        reactor: usize,
        serve: impl FnOnce(Service) -> F + Send + 'static,
    ) {
        let service = self.clone();
        self.open.fetch_add(1, Ordering::Relaxed);
        let posted = self.reactors[reactor].post(move || {
            runtime().spawn(async move {
                let open = service.open.clone();
                serve(service).await;
                open.fetch_sub(1, Ordering::Relaxed);
            });
        });
        if posted.is_err() {
            self.open.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// Where TLS's buffers come from, where there is TLS.
    pub fn ciphertext(&self) -> Option<&Pool> {
        self.tls.as_ref().map(|_| &self.ciphertext)
    }

    /// How many are connected, of all arrays and of none yet.
    pub fn connections(&self) -> usize {
        self.open.load(Ordering::Relaxed)
    }

    /// Whether nobody is connected any more.
    pub fn is_empty(&self) -> bool {
        self.open.load(Ordering::Relaxed) == 0
    }

    /// Ends all connections, each after its requests under way.
    pub fn stop_all(&self) {
        for reactor in self.reactors.iter() {
            // A reactor that has ended has no connections.
            let _ended = reactor.post(|| ALL.with(Stop::stop)).is_err();
        }
    }
}

/// Where a client comes from.
fn source(socket: OwnedFd, is_unix: bool) -> std::io::Result<(OwnedFd, Source)> {
    if is_unix {
        return Ok((socket, Source::Unix));
    }
    let socket = TcpStream::from(socket);
    let address = socket.peer_addr()?.ip();
    Ok((socket.into(), Source::Ip(address)))
}

/// Ends these clients of an array, each after its requests under way.
pub fn stop_clients(id: ArrayId, clients: Vec<(u64, ReactorHandle)>) {
    for (number, reactor) in clients {
        let stop = move || {
            let stop = STOPS.with_borrow(|stops| stops.get(&(id, number)).cloned());
            if let Some(stop) = stop {
                stop.stop();
            }
        };
        // A reactor that has ended has no connections.
        let _ended = reactor.post(stop).is_err();
    }
}

/// The exports, as one connection sees them.
#[derive(Clone)]
struct LocalExports {
    registry: Arc<Registry>,
    access: Arc<AccessRules>,
    source: Source,
    /// Who the client is, once it has proved that.
    identity: Rc<OnceCell<Identity>>,
}

impl LocalExports {
    /// How the client may use an export; `None` if it is not to know of it.
    fn access(&self, export: &str) -> Option<Access> {
        self.access.access(export, self.source, self.identity.get())
    }

    /// What the client may know of.
    fn visible(&self) -> Vec<Arc<Entry>> {
        let mut arrays = self.registry.all();
        arrays.retain(|entry| self.access(&entry.name).is_some());
        arrays
    }

    fn find(&self, name: &str) -> Option<Arc<Entry>> {
        if !name.is_empty() {
            return self.registry.get(name);
        }
        let mut visible = self.visible();
        if visible.len() == 1 { visible.pop() } else { None }
    }
}

/// Holds a client's place on its array.
struct Guard {
    entry: Arc<Entry>,
    number: u64,
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.entry.disconnect(self.number);
        STOPS.with_borrow_mut(|stops| stops.remove(&(self.entry.id, self.number)));
    }
}

impl nbd::Exports for LocalExports {
    type Device = RemoteArray;

    fn may_list(&self) -> bool {
        self.access.may_list
    }

    fn list(&self) -> Vec<ExportInfo> {
        self.visible()
            .iter()
            .map(|entry| ExportInfo { name: entry.name.clone(), description: String::new() })
            .collect()
    }

    async fn open(&self, name: &str) -> Option<Export<RemoteArray>> {
        let entry = self.find(name)?;
        let access = self.access(&entry.name)?;
        let mut device = remote(&entry).await?;
        device.info.read_only |= access == Access::ReadOnly;
        Some(Export { name: entry.name.clone(), description: String::new(), device })
    }

    fn attach(&self, name: &str) -> Option<Attached> {
        hold(&self.registry.get(name)?)
    }
}

/// An array as a device of this thread's; none if it has been stopped.
async fn remote(entry: &Entry) -> Option<RemoteArray> {
    let id = entry.id;
    let facts = entry.home.call(move || async move {
        present(id).await.map(|array| (array.info(), array.extent_kinds().to_vec()))
    });
    let (info, kinds) = facts.await.ok().flatten()?;
    Some(RemoteArray { id, home: entry.home.clone(), info, kinds: kinds.into() })
}

/// A client's place on an array, for a connection of this thread's; none if it is being stopped.
fn hold(entry: &Arc<Entry>) -> Option<Attached> {
    let number = entry.connect(runtime().handle())?;
    let stop = Stop::new();
    STOPS.with_borrow_mut(|stops| stops.insert((entry.id, number), stop.clone()));
    Some(Attached { guard: Box::new(Guard { entry: entry.clone(), number }), stop })
}
