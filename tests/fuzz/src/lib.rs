//! What must bear anything at all that it is fed with, as functions of bytes: `scripts/fuzz` hunts with them (`hunt/`), and a
//! test feeds them with the corpus, so that what was found once stays found.
//!
//! The NBD targets run the real session on streams in memory and in virtual time, thousands of times a second. They share
//! the world and the disk with `tests/nbd`.

mod handshake;
mod metadata;
mod session;
mod transmission;

#[path = "../../nbd/disk.rs"]
#[allow(dead_code)] // other tests look closer
mod disk;
#[path = "../../nbd/world.rs"]
#[allow(dead_code)]
mod world;

pub use handshake::handshake;
pub use metadata::metadata;
pub use transmission::transmission;

/// A function that must bear any bytes.
pub type Target = fn(&[u8]);

/// All of them, by the names of their corpora.
pub const TARGETS: [(&str, Target); 3] =
    [("handshake", handshake), ("transmission", transmission), ("metadata", metadata)];
