//! The running arrays as NBD exports, and the listeners that let clients in.
//!
//! Connections are spread over the reactors in turn. A client is counted on its array from the handshake's end to the
//! connection's, so that `stop` knows of it; to end it, a job is sent to its reactor, where its `Stop` is.

use std::cell::RefCell;
use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use super::array_home::{ArrayId, RemoteArray, resident};
use super::registry::{Entry, Registry};
use crate::io::{Clock, Device, Pool, Spawn};
use crate::nbd::{self, Attached, Export, ExportInfo, Limits, MESSAGE_BYTES_PER_CONNECTION, Pools, Stop};
use crate::reactor::{Listener, ReactorHandle, Socket, runtime};

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
    next: Arc<AtomicUsize>,
    open: Arc<AtomicUsize>,
}

impl Service {
    /// A service whose buffers come out of `memory_bytes`.
    pub fn new(
        registry: Arc<Registry>,
        reactors: Arc<Vec<ReactorHandle>>,
        memory_bytes: usize,
    ) -> std::io::Result<Service> {
        let tenth = (memory_bytes / 10).max(1 << 20);
        let pools = Pools {
            messages: Pool::new(tenth)?,
            receive: Pool::new(tenth)?,
            payloads: Pool::new(memory_bytes - 2 * tenth)?,
        };
        Ok(Service { registry, reactors, pools, next: Arc::default(), open: Arc::default() })
    }

    /// Connections at a time: as many as there are pages to receive into.
    fn connections_max(&self) -> usize {
        self.pools.messages.total_bytes() / MESSAGE_BYTES_PER_CONNECTION
    }

    /// Lets clients in on a listening socket, for as long as the reactor that it is called on runs.
    pub fn listen(&self, listener: OwnedFd) {
        let service = self.clone();
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
                    Ok(socket) => service.admit(socket),
                    Err(error) => {
                        tracing::warn!(%error, "cannot accept a connection");
                        runtime().sleep(ACCEPT_PAUSE).await;
                    }
                }
            }
        });
    }

    fn admit(&self, socket: OwnedFd) {
        let turn = self.next.fetch_add(1, Ordering::Relaxed) % self.reactors.len();
        let service = self.clone();
        self.open.fetch_add(1, Ordering::Relaxed);
        let posted = self.reactors[turn].post(move || {
            runtime().spawn(async move {
                let all = ALL.with(Stop::clone);
                let stream = Socket::from_fd(socket);
                let exports = LocalExports { registry: service.registry.clone() };
                let pools = service.pools.clone();
                let end = nbd::serve(stream, exports, runtime(), pools, Limits::default(), all).await;
                tracing::debug!(%end, "client gone");
                service.open.fetch_sub(1, Ordering::Relaxed);
            });
        });
        if posted.is_err() {
            self.open.fetch_sub(1, Ordering::Relaxed);
        }
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

/// The exports, as the connections of one reactor see them.
#[derive(Clone)]
struct LocalExports {
    registry: Arc<Registry>,
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

    fn list(&self) -> Vec<ExportInfo> {
        let arrays = self.registry.all();
        arrays
            .iter()
            .map(|entry| ExportInfo { name: entry.name.clone(), description: String::new() })
            .collect()
    }

    async fn open(&self, name: &str) -> Option<Export<RemoteArray>> {
        let entry = if name.is_empty() { self.registry.only() } else { self.registry.get(name) }?;
        let id = entry.id;
        let facts = entry.home.call(move || async move {
            resident(id).map(|array| (array.info(), array.extent_kinds().to_vec()))
        });
        let (info, kinds) = facts.await.ok().flatten()?;
        let device = RemoteArray { id, home: entry.home.clone(), info, kinds: kinds.into() };
        Some(Export { name: entry.name.clone(), description: String::new(), device })
    }

    fn attach(&self, name: &str) -> Option<Attached> {
        let entry = self.registry.get(name)?;
        let number = entry.connect(runtime().handle())?;
        let stop = Stop::new();
        STOPS.with_borrow_mut(|stops| stops.insert((entry.id, number), stop.clone()));
        Some(Attached { guard: Box::new(Guard { entry, number }), stop })
    }
}
