//! The NBD server against clients that behave, clients that do not, and clients that mean harm; over streams in memory
//! and in virtual time, so that ten seconds of silence cost nothing and one seed is one run.
//!
//! Messages are put together and taken apart by hand here, from the protocol's text, not with the server's own structs.

mod chunks;
mod disk;
mod flow;
mod handshake;
mod moving;
mod peer;
mod property;
mod requests;
mod sockets;
mod starttls;
mod world;
