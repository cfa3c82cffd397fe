//! The daemon itself: what it is, how busy, and what of its memory is in use.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// The daemon.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DaemonStatus {
    /// Its version.
    pub version: String,
    /// When it was started, in milliseconds since 1970 (UTC).
    pub started_unix_ms: u64,
    /// Its reactors: the threads that serve clients and arrays.
    pub reactors: Vec<ReactorStatus>,
    /// Its memory for data, by what that is for.
    pub pools: Vec<PoolStatus>,
    /// NBD connections, of all arrays and of clients that have not chosen one.
    pub connections: u64,
}

/// One reactor. Counts only rise.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ReactorStatus {
    /// Its number, from 0.
    pub index: u64,
    /// Microseconds since it was started.
    pub uptime_us: u64,
    /// Microseconds of these in which it slept. What it does while it looks for news before a sleep counts as work.
    pub asleep_us: u64,
    /// Calls of the kernel for its ring.
    pub ring_calls: u64,
}

/// Memory for one purpose, set aside at the start.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PoolStatus {
    /// What it is for: `messages`, `receive`, `payloads`, `ciphertext`, and of the engine `scratch`, `edges`, `rescue`,
    /// `metadata`.
    pub pool: String,
    /// Its size: its limit.
    pub total_bytes: u64,
    /// What of it is in use.
    pub used_bytes: u64,
}
