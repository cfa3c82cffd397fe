//! The words of the control interface: what can be asked of raidd ([`Command`]), what it answers ([`Reply`]), and how
//! it says no ([`Problem`]).
//!
//! The daemon, the HTTP server and raidctl share these types, so none of them can drift from the others. They are data
//! and text only: nothing here knows HTTP routes, sockets or the engine, and nothing here does I/O.
//!
//! Invariants:
//! - The JSON of [`Status`] is what scripts parse. Its documented fields keep their names and their order; new ones come
//!   behind them.
//! - What may be refused by looking at the words alone is refused by the `check` of the request, with the same sentence
//!   wherever it is called: raidctl makes a usage error of it, the server a [`Problem`].

mod attach;
mod command;
mod concern;
mod daemon;
mod event;
mod fault;
mod findings;
mod grow;
mod problem;
mod reading;
mod stats;
mod status;
mod text;
mod tuning;

pub use attach::{
    ATTACH_CONNECTIONS_MAX, ATTACH_WAIT_MS_DEFAULT, ATTACH_WAIT_MS_MAX, ATTACH_WAIT_MS_MIN, AttachArray,
};
pub use command::{
    AssembleArray, BitmapChoice, Command, CreateArray, Init, MISSING, Reply, Scrub, check_path,
};
pub use concern::{Concern, ConcernKind};
pub use daemon::{DaemonStatus, PoolStatus, ReactorStatus};
pub use event::Event;
pub use fault::{CORRUPT_BYTES_MAX, Fault, FaultRange};
pub use findings::{Finding, Findings};
pub use grow::GrowArray;
pub use problem::{Problem, ProblemCode};
pub use reading::{HEDGE_MS_MAX, HEDGE_MS_MIN, Hedge, ReadPolicy};
pub use stats::{ErrorCounts, LATENCY_BOUNDS_US, MemberStats, Operations, Stats};
pub use status::{
    ArrayState, ConsistencyPolicy, Health, Member, MemberState, Spare, Status, SyncAction, SyncStatus,
    Traffic,
};
pub use text::{NAME_BYTES_MAX, default_control_path, parse_duration_ms, parse_size, parse_uuid, valid_name};
pub use tuning::{
    AutoReAdd, MEMBER_TIMEOUT_MS_MAX, MEMBER_TIMEOUT_MS_MIN, SCRUB_INTERVAL_MS_MAX, SCRUB_INTERVAL_MS_MIN,
    Tuning,
};
