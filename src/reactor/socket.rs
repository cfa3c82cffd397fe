//! Sockets on a reactor: `io::Stream` over the ring, and the listeners they come from.
//!
//! Descriptors pass between threads as `OwnedFd`; here they become part of a reactor.
//!
//! Invariants:
//! - A descriptor here blocks (no O_NONBLOCK): with the flag the ring would answer EAGAIN instead of waiting.
//! - A `recv` or `accept` that is dropped is cancelled, so it holds no buffer for a peer that never speaks. Bytes that
//!   had just come may be lost with it: drop one only to end the stream.
//! - A hang-up is known from the moment on at which the ring has told of anything that came after it: the ring watches for
//!   it all the time, so that asking costs no call of the kernel.
//!
//! How it fails: a peer that is gone is `Closed`. An end of stream is no failure: `recv` says 0.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Waker};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{Shutdown, setsockopt, shutdown, sockopt};

use super::executor::Local;
use super::op::{self, Descriptor, Gather};
use crate::io::{Buf, IoError, IoErrorKind, Slice, Stream};

/// A connected stream socket, Unix or TCP. Clones are the same one.
#[derive(Clone)]
pub struct Socket(Rc<Inner>, Rc<HangUp>);

/// The watch for the peer's end: states *watching* -> *half* (it has ended something) -> *seen* (it has hung up).
struct HangUp {
    file: Descriptor,
    half: Cell<bool>,
    seen: Cell<bool>,
    watch: RefCell<Pin<Box<dyn Future<Output = ()>>>>,
}

impl HangUp {
    fn watch(inner: &Inner) -> HangUp {
        let (local, file) = (inner.local.clone(), inner.file.clone());
        let watch = Box::pin(async move { op::hang_up(&local, &file).await });
        let (file, watch) = (inner.file.clone(), RefCell::new(watch as _));
        // A peer may have come and gone already, and the ring tells of nothing before it is entered. Of a connection that was
        // handed over there are requests that could begin before that.
        let seen = Cell::new(has_hung_up(&file));
        let hang_up = HangUp { file, half: Cell::default(), seen, watch };
        // The first look begins the watch.
        let _gone = hang_up.is_seen();
        hang_up
    }

    /// Whether the peer has hung up. Nobody is woken for it: who asks looks.
    fn is_seen(&self) -> bool {
        if !self.half.get() {
            let mut context = Context::from_waker(Waker::noop());
            self.half.set(self.watch.borrow_mut().as_mut().poll(&mut context).is_ready());
        }
        // The ring would tell of the half again and again, so the kernel is asked; there is little left to be taken then.
        if self.half.get() && !self.seen.get() {
            self.seen.set(has_hung_up(&self.file));
        }
        self.seen.get()
    }
}

/// What the kernel knows of it now.
fn has_hung_up(file: &Descriptor) -> bool {
    let mut polled = [PollFd::new(file.as_fd(), PollFlags::empty())];
    poll(&mut polled, PollTimeout::ZERO).is_ok_and(|any| any > 0)
}

struct Inner {
    local: Rc<Local>,
    file: Descriptor,
}

impl Inner {
    fn new(fd: OwnedFd) -> Rc<Inner> {
        let flags = fcntl(&fd, FcntlArg::F_GETFL).expect("an open descriptor has flags");
        let flags = OFlag::from_bits_retain(flags) - OFlag::O_NONBLOCK;
        fcntl(&fd, FcntlArg::F_SETFL(flags)).expect("a descriptor can be made to block");
        Rc::new(Inner { local: Local::expect_current(), file: Rc::new(fd) })
    }

    fn shutdown(&self) {
        // ENOTCONN: the peer was faster.
        shutdown_fd(&self.file).unwrap_or_default();
    }
}

fn shutdown_fd(file: &Descriptor) -> Result<(), Errno> {
    use std::os::fd::AsRawFd;
    shutdown(file.as_fd().as_raw_fd(), Shutdown::Both)
}

/// Over TCP, a peer that has said nothing for so many seconds is asked whether it is still there,
const KEEP_ALIVE_IDLE_SECS: u32 = 60;
/// so often in so many seconds each, and is gone if it does not answer.
const KEEP_ALIVE_PROBES: u32 = 4;
const KEEP_ALIVE_INTERVAL_SECS: u32 = 15;

impl Socket {
    /// A connected socket on the calling reactor; TCP sends without delay, and notices a peer that has vanished. Panics
    /// on any other thread.
    pub fn from_fd(fd: OwnedFd) -> Socket {
        // A Unix socket refuses the options and needs none.
        setsockopt(&fd, sockopt::TcpNoDelay, &true).unwrap_or_default();
        setsockopt(&fd, sockopt::KeepAlive, &true).unwrap_or_default();
        setsockopt(&fd, sockopt::TcpKeepIdle, &KEEP_ALIVE_IDLE_SECS).unwrap_or_default();
        setsockopt(&fd, sockopt::TcpKeepCount, &KEEP_ALIVE_PROBES).unwrap_or_default();
        setsockopt(&fd, sockopt::TcpKeepInterval, &KEEP_ALIVE_INTERVAL_SECS).unwrap_or_default();
        let inner = Inner::new(fd);
        let hang_up = Rc::new(HangUp::watch(&inner));
        Socket(inner, hang_up)
    }
}

impl Socket {
    /// Another descriptor of the same connection, to go on with it on another reactor. Who gives it away uses this one no
    /// more, nor shuts it down: dropping it leaves the connection open.
    pub fn duplicate(&self) -> std::io::Result<OwnedFd> {
        self.0.file.as_fd().try_clone_to_owned()
    }
}

impl Stream for Socket {
    async fn recv(&self, buf: Buf) -> Result<(usize, Buf), IoError> {
        if buf.is_empty() {
            return Err(IoError::new(IoErrorKind::Invalid, "receive into no memory"));
        }
        let mut buf = buf;
        loop {
            let result;
            (result, buf) = op::recv(&self.0.local, &self.0.file, buf).await;
            match result {
                Ok(count) => return Ok((count, buf)),
                Err(Errno::EINTR | Errno::EAGAIN) => {}
                Err(errno) => return Err(io_error(errno, "receive")),
            }
        }
    }

    async fn send(&self, data: Vec<Slice>) -> Result<(), IoError> {
        let mut data = Gather::new(data);
        while data.left() > 0 {
            let result;
            (result, data) = op::send(&self.0.local, &self.0.file, data).await;
            match result {
                Ok(0) => return Err(IoError::new(IoErrorKind::Closed, "the peer takes no more")),
                Ok(_) | Err(Errno::EINTR | Errno::EAGAIN) => {}
                Err(errno) => return Err(io_error(errno, "send")),
            }
        }
        Ok(())
    }

    fn shutdown(&self) {
        self.0.shutdown();
    }

    fn hung_up(&self) -> bool {
        self.1.is_seen()
    }
}

/// A listening socket, Unix or TCP. Clones are the same one.
#[derive(Clone)]
pub struct Listener(Rc<Inner>);

impl Listener {
    /// A socket that listens already, on the calling reactor. Panics on any other thread.
    pub fn from_fd(fd: OwnedFd) -> Listener {
        Listener(Inner::new(fd))
    }

    /// The next connection; it may be sent to another reactor. Where descriptors have run out (`errno` EMFILE or
    /// ENFILE) the connection stays in the queue: wait a little and call again.
    pub async fn accept(&self) -> Result<OwnedFd, IoError> {
        loop {
            match op::accept(&self.0.local, &self.0.file).await {
                // A peer that gave up while it was waiting is no concern of ours.
                Err(Errno::EINTR | Errno::EAGAIN | Errno::ECONNABORTED) => {}
                outcome => return outcome.map_err(|errno| io_error(errno, "accept a connection")),
            }
        }
    }
}

fn io_error(errno: Errno, context: &'static str) -> IoError {
    IoError::from_errno(errno as i32, context)
}
