//! The reactor: io_uring, the executor, timers, disks and sockets. Where raidd meets the kernel.
//!
//! A reactor is a thread with one ring and one single-threaded executor. What runs on it is `!Send`, needs no locks and
//! never blocks; what others want of it they send as a job. In reading order:
//!
//! - `ring`: one io_uring, filled, entered, reaped
//! - `op`: operations, which own their memory until the kernel has let go of it
//! - `mailbox`: jobs and wake-ups from other threads
//! - `timer`: sleeps
//! - `executor`: the thread and its loop
//! - `probe`, `open`: disks are opened on any thread
//! - `survey`: where a file has holes
//! - `disk`, `socket`: `io::Device` and `io::Stream` over the ring
//!
//! `unsafe` is in `ring` and `op`, which hand addresses to the kernel, and in `probe` and `survey`, for ioctls and statx.

mod disk;
mod executor;
mod mailbox;
mod op;
mod open;
mod probe;
mod ring;
mod socket;
mod survey;
mod timer;

pub use disk::Disk;
pub use executor::{LocalRuntime, runtime, start};
pub use mailbox::{Load, ReactorHandle, Stopped};
pub use open::{Identity, OpenError, OpenErrorKind, OpenOptions, OpenedDisk};
pub use socket::{Listener, Socket};
