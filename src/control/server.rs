//! The thread that serves the control socket, and metrics: one runtime, started and stopped as a whole.
//!
//! Stopping is orderly and bounded: nobody is accepted any more, requests under way get [`GRACE`] to end, then the
//! connections are cut. So a client that sends half a request cannot keep the daemon from stopping.

use std::future::Future;
use std::io;
use std::net::TcpListener;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use axum::extract::connect_info::Connected;
use axum::middleware::from_fn_with_state;
use axum::serve::{IncomingStream, Listener};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use super::admission::{Peer, guard};
use super::routes::metrics_router;
use super::{CONNECTIONS_MAX, ControlSocket, Operator, router};

/// What requests under way get when the server stops.
const GRACE: Duration = Duration::from_secs(5);

/// A control server on its own thread.
#[derive(Debug)]
pub struct Server {
    shutdown: oneshot::Sender<()>,
    thread: JoinHandle<io::Result<()>>,
}

impl Server {
    /// Stops it: waits for the requests under way, but not for long.
    ///
    /// # Errors
    /// What ended it before it was told to.
    pub fn stop(self) -> io::Result<()> {
        // The other end is gone where the server has ended by itself; joining says why.
        let _ended = self.shutdown.send(());
        self.thread.join().map_err(|_| io::Error::other("the control server panicked"))?
    }
}

/// Serves `socket` on a thread of its own; and `metrics`, which listens, to whom they are all that is served.
///
/// # Errors
/// The kernel gives no thread or no runtime.
pub fn start<O: Operator>(
    socket: ControlSocket,
    metrics: Option<TcpListener>,
    operator: Arc<O>,
) -> io::Result<Server> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (shutdown, told) = oneshot::channel();
    let thread = std::thread::Builder::new().name("control".to_owned()).spawn(move || {
        runtime.block_on(async move {
            if let Some(metrics) = metrics {
                tokio::spawn(serve_metrics(metrics, operator.clone()));
            }
            // A dropped sender is a dropped server: stop as well.
            let told = async { told.await.unwrap_or(()) };
            serve(socket, operator, told).await
        })
    })?;
    Ok(Server { shutdown, thread })
}

/// Serves `socket` until `shutdown` is done; then the socket's file is removed. To be called in a tokio runtime with
/// I/O and time.
///
/// # Errors
/// The runtime does not take the socket.
pub async fn serve<O: Operator>(
    socket: ControlSocket,
    operator: Arc<O>,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> io::Result<()> {
    let listener = socket.listener.try_clone()?;
    listener.set_nonblocking(true)?;
    let listener = Limited::new(Peered(tokio::net::UnixListener::from_std(listener)?));
    let guarded = router(operator).layer(from_fn_with_state(socket.admission, guard));
    let service = guarded.into_make_service_with_connect_info::<Peer>();
    let (stopping, grace_starts) = oneshot::channel();
    let served = axum::serve(listener, service).with_graceful_shutdown(async move {
        shutdown.await;
        let _listened = stopping.send(()); // nobody listens where serving has ended
    });
    tokio::select! {
        result = served.into_future() => result,
        () = async {
            if grace_starts.await.is_err() {
                std::future::pending::<()>().await; // serving has ended by itself, which the other branch says
            }
            tokio::time::sleep(GRACE).await;
        } => {
            tracing::warn!("control requests were still under way when the server stopped");
            Ok(())
        }
    }
}

/// For as long as the runtime lives: whoever only reads metrics can be cut off at any moment.
async fn serve_metrics<O: Operator>(listener: TcpListener, operator: Arc<O>) {
    let served = async {
        listener.set_nonblocking(true)?;
        let listener = Limited::new(tokio::net::TcpListener::from_std(listener)?);
        axum::serve(listener, metrics_router(operator)).await
    };
    if let Err(error) = served.await {
        tracing::error!(%error, "metrics are not served any more");
    }
}

/// Says who connected.
struct Peered(tokio::net::UnixListener);

impl Listener for Peered {
    type Io = tokio::net::UnixStream;
    type Addr = Peer;

    async fn accept(&mut self) -> (tokio::net::UnixStream, Peer) {
        loop {
            let (stream, _) = Listener::accept(&mut self.0).await;
            match stream.peer_cred() {
                Ok(who) => return (stream, Peer { uid: who.uid(), gid: who.gid() }),
                Err(error) => tracing::warn!(%error, "the kernel does not say who connected: sent away"),
            }
        }
    }

    fn local_addr(&self) -> io::Result<Peer> {
        Err(io::ErrorKind::Unsupported.into()) // nobody asks
    }
}

impl Connected<IncomingStream<'_, Limited<Peered>>> for Peer {
    fn connect_info(stream: IncomingStream<'_, Limited<Peered>>) -> Peer {
        *stream.remote_addr()
    }
}

/// A listener that accepts no more clients than there are slots.
struct Limited<L> {
    listener: L,
    slots: Arc<Semaphore>,
}

impl<L> Limited<L> {
    fn new(listener: L) -> Limited<L> {
        Limited { listener, slots: Arc::new(Semaphore::new(CONNECTIONS_MAX)) }
    }
}

impl<L: Listener> Listener for Limited<L> {
    type Io = Slotted<L::Io>;
    type Addr = L::Addr;

    async fn accept(&mut self) -> (Slotted<L::Io>, L::Addr) {
        let slot = match self.slots.clone().acquire_owned().await {
            Ok(slot) => slot,
            Err(_closed) => std::future::pending().await, // nobody closes it
        };
        // axum logs what goes wrong, and tries again in a while.
        let (stream, address) = self.listener.accept().await;
        (Slotted { stream, _slot: slot }, address)
    }

    fn local_addr(&self) -> io::Result<L::Addr> {
        self.listener.local_addr()
    }
}

/// A connection and its slot.
struct Slotted<S> {
    stream: S,
    _slot: OwnedSemaphorePermit,
}

mod passing {
    //! The stream's own reading and writing, passed through.

    use std::io;
    use std::pin::Pin;
    use std::task::{Context, Poll};

    use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

    use super::Slotted;

    impl<S: AsyncRead + Unpin> AsyncRead for Slotted<S> {
        fn poll_read(
            mut self: Pin<&mut Self>,
            context: &mut Context<'_>,
            buf: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            Pin::new(&mut self.stream).poll_read(context, buf)
        }
    }

    impl<S: AsyncWrite + Unpin> AsyncWrite for Slotted<S> {
        fn poll_write(
            mut self: Pin<&mut Self>,
            context: &mut Context<'_>,
            data: &[u8],
        ) -> Poll<io::Result<usize>> {
            Pin::new(&mut self.stream).poll_write(context, data)
        }

        fn poll_write_vectored(
            mut self: Pin<&mut Self>,
            context: &mut Context<'_>,
            data: &[io::IoSlice<'_>],
        ) -> Poll<io::Result<usize>> {
            Pin::new(&mut self.stream).poll_write_vectored(context, data)
        }

        fn is_write_vectored(&self) -> bool {
            self.stream.is_write_vectored()
        }

        fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
            Pin::new(&mut self.stream).poll_flush(context)
        }

        fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
            Pin::new(&mut self.stream).poll_shutdown(context)
        }
    }
}
