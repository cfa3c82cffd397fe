//! raidd in a simulated world: the real engine and the real NBD session, on disks, clocks and sockets that a seed
//! decides, with crashes and faults; and an oracle that knows what every read may return.
//!
//! In reading order: `random`, `world` (scheduler, clock, trace), `store`, `holes` and `disk` (what is durable, what goes wrong),
//! `stream` (sockets), `content` and `oracle` (what may be read), `model` (members' bytes, read independently), `setup`
//! (arrays), `plan` (what a seed says), `connection` (an NBD client), `sessions` (an NBD server and its clients), `door`
//! (the way to the array, with or without them), `clients`, `director` (faults and operator's deeds), `run` (a seed from
//! beginning to end), `soak`.

pub mod clients;
pub mod connection;
pub mod content;
pub mod director;
pub mod disk;
pub mod door;
pub mod holes;
pub mod model;
pub mod mutants;
pub mod oracle;
pub mod plan;
pub mod random;
pub mod run;
pub mod sessions;
pub mod setup;
pub mod soak;
pub mod store;
pub mod stream;
pub mod world;
