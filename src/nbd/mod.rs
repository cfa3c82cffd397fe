//! NBD: the network block device protocol, spoken over any [`Stream`](crate::io::Stream), serving any
//! [`Device`](crate::io::Device).
//!
//! What is spoken: the fixed newstyle handshake with all of its options, every command but RESIZE, simple and structured
//! replies and extended headers, meta contexts; many requests in flight, answered in whatever order they finish. The
//! protocol is described in `doc/proto.md` of NetworkBlockDevice/nbd; constants and rules here are named as there.
//! docs/nbd-support.md says exactly what is and what is not.
//!
//! In reading order: `wire` (bytes), `limits`, `export` (what is served), `context` (what may be asked about ranges),
//! `command` (is this request legal?), `handshake`, `connection` (from its greeting to its end), `session` (its state while it serves),
//! `transmission` (the receiver), `traffic` (what it has been asked of late), `inbox` (its buffer), `payload` (a request's buffers), `crew` (the tasks that do requests), `execute` (a request against the device), `reply`
//! (the sender), `client`.
//!
//! Invariants:
//! - Nothing that a peer sends panics or allocates without bound. What a connection can keep others waiting for is
//!   payload memory, and that is bounded in bytes and in time (`limits`).
//! - A WRITE reaches the device only when its payload has arrived to the last byte, and in one call.
//! - A request is answered once, after the device has answered; a READ's header leaves only when all of its data is
//!   there, because after a simple reply's header nothing can be taken back. So a structured reply is one chunk, too.
//! - A connection is over when nothing of it is in flight on the device any more.

mod client;
mod command;
mod connection;
mod context;
mod crew;
mod execute;
mod export;
mod handshake;
mod inbox;
mod limits;
mod payload;
mod reply;
mod session;
mod signal;
mod stop;
mod traffic;
mod transmission;
mod wire;

pub use client::{Client, ClientError};
pub use connection::{Handover, Negotiated, Served, negotiate, serve, take_over};
pub use export::{Attached, Export, ExportInfo, Exports, kernel_flags};
pub use limits::{Limits, MESSAGE_BYTES_PER_CONNECTION, Pools};
pub use session::SessionEnd;
pub use stop::Stop;
pub use traffic::Traffic;
pub use wire::Errno;
