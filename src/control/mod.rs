//! The control server: HTTP/1.1 with JSON on a Unix socket, so that `curl --unix-socket` is a client like any other.
//!
//! It turns requests into [`Command`](crate::api::Command)s, hands them to an [`Operator`], and turns what that says into
//! answers. It never touches data, and knows neither engine nor NBD.
//!
//! Invariants:
//! - Whatever is sent gets an answer in JSON, or a closed connection; every refusal is a problem document (RFC 9457).
//! - A command that was handed over runs to its end, though the client may leave before.
//! - A client that follows events holds up nobody: what it is too slow for it misses.
//! - Requests are at most [`BODY_BYTES_MAX`] long and [`CONNECTIONS_MAX`] clients are connected at a time; more of them
//!   wait in the socket's backlog.
//! - Who connects to the port for metrics can do nothing but read them.
//! - It runs on a thread of its own ([`start`]), so a slow client costs nobody anything.

mod admission;
mod members;
mod metrics;
mod openapi;
mod routes;
mod server;
mod socket;
#[cfg(test)]
mod tests;

use std::future::Future;
use std::time::Duration;

pub use admission::Admission;
pub use routes::router;
pub use server::{Server, serve, start};
pub use socket::{BindError, ControlSocket, bind};

use tokio::sync::broadcast;

use crate::api::{Command, Event, Problem, Reply};

/// The longest request body. The largest real one names a member for each of 1920 slots by paths of some 200 bytes.
pub const BODY_BYTES_MAX: usize = 1 << 20;

/// Clients at a time; each may hold one body.
pub const CONNECTIONS_MAX: usize = 64;

/// Who does what is asked: the daemon.
pub trait Operator: Send + Sync + 'static {
    /// Does it, and answers when it is done. A returned [`Problem`] says in one line what, why, and what to do.
    fn execute(&self, command: Command) -> impl Future<Output = Result<Reply, Problem>> + Send;

    /// When it was started, since 1970.
    fn started(&self) -> Duration;

    /// What has happened so far, oldest first, and what happens from now on, with nothing in between. The latter ends
    /// when the daemon stops; none: it is stopping.
    fn events(&self) -> (Vec<Event>, Option<broadcast::Receiver<Event>>);
}
