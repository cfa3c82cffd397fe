//! TLS around any [`Stream`](crate::io::Stream): a connection begins in the clear and is made secret once, in place, when
//! the peer asks for it. The protocol above sees no cryptography, the one below no protocol.
//!
//! OpenSSL does the cryptography (rustls has no external pre-shared keys, which QEMU and libnbd use), always as the
//! server, TLS 1.2 or 1.3, in user space; the kernel's TLS is not used.
//!
//! In reading order: `server` (certificates and keys, read once at start), `keys` (the file of pre-shared keys),
//! `identity` (who a peer is), `engine` (one connection's TLS as a state machine between buffers), `stream` (the engine
//! and the socket under it).
//!
//! Invariants:
//! - Whoever claims a name has proved it: with a certificate that the configured CA signed, or with a key of the file.
//! - No renegotiation, no resumption, no early data, no compression: a handshake happens once and in full.
//! - Nothing that a peer sends panics. Ciphertext waits in pool buffers of fixed size; besides them a connection has what
//!   OpenSSL keeps for it, which is bounded, too (a record each way, and 100 KiB of certificates during the handshake).
//! - Keys are neither logged nor shown by `Debug`.
//!
//! How it fails: wrong files with a [`TlsError`] at start; a peer that does not speak TLS as it should with an
//! [`IoError`](crate::io::IoError) that ends the connection, its details in the log at level debug.

mod engine;
mod identity;
mod keys;
mod server;
mod stream;

pub use engine::TLS_BYTES_PER_CONNECTION;
pub use identity::Identity;
pub use server::{TlsError, TlsFiles, TlsServer};
pub use stream::{TlsPolicy, TlsStream};

#[cfg(test)]
mod tests;
