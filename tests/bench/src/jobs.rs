//! The matrix: which jobs there are, and what raidd is to reach in each of them.
//!
//! - The queue depth of a job is that of all its connections together.
//! - A target is a ratio, raidd's figure by the other's; latency and CPU time are to be small, rates are to be large.

use std::path::Path;
use std::time::Duration;

use crate::load::{Direction, Load, Order};

/// One kind of load on a server.
#[derive(Clone, Copy, Debug)]
pub struct Job {
    /// As it is called in tables and after --only.
    pub name: &'static str,
    /// Reads or writes.
    pub direction: Direction,
    /// Sequential or random.
    pub order: Order,
    /// Bytes of each request.
    pub block_bytes: usize,
    /// Requests in flight, on all connections together.
    pub depth: usize,
    /// Connections.
    pub connections: usize,
}

const fn job(name: &'static str, direction: Direction, order: Order, shape: (usize, usize, usize)) -> Job {
    let (block_bytes, depth, connections) = shape;
    Job { name, direction, order, block_bytes, depth, connections }
}

/// What every server does.
pub const JOBS: [Job; 10] = [
    job("4k-randread-qd1", Direction::Read, Order::Rand, (4 << 10, 1, 1)),
    job("4k-randread-qd32", Direction::Read, Order::Rand, (4 << 10, 32, 1)),
    job("4k-randread-qd32-c4", Direction::Read, Order::Rand, (4 << 10, 32, 4)),
    job("128k-read-qd8", Direction::Read, Order::Seq, (128 << 10, 8, 1)),
    job("128k-read-qd8-c4", Direction::Read, Order::Seq, (128 << 10, 8, 4)),
    job("1m-read-qd4", Direction::Read, Order::Seq, (1 << 20, 4, 1)),
    job("1m-read-qd4-c4", Direction::Read, Order::Seq, (1 << 20, 4, 4)),
    job("4k-randwrite-qd32", Direction::Write, Order::Rand, (4 << 10, 32, 1)),
    job("128k-write-qd8", Direction::Write, Order::Seq, (128 << 10, 8, 1)),
    job("1m-write-qd4", Direction::Write, Order::Seq, (1 << 20, 4, 1)),
];

/// What clients do while an array recovers.
pub const FOREGROUND: [Job; 2] = [
    job("foreground-4k-randread-qd8", Direction::Read, Order::Rand, (4 << 10, 8, 1)),
    job("foreground-4k-randwrite-qd8", Direction::Write, Order::Rand, (4 << 10, 8, 1)),
];

/// What a degraded array is asked for.
pub const DEGRADED: Job = job("degraded-128k-read-qd8", Direction::Read, Order::Seq, (128 << 10, 8, 1));

/// What one reactor does, and then two.
pub const SCALING: [Job; 2] = [
    job("scaling-4k-randread-qd32-c4", Direction::Read, Order::Rand, (4 << 10, 32, 4)),
    job("scaling-1m-read-qd4-c4", Direction::Read, Order::Seq, (1 << 20, 4, 4)),
];

/// Rebuilding one member.
pub const RECOVERY: &str = "recovery";
/// Comparing all of them.
pub const CHECK: &str = "check";

/// The arrays: name and level, members, and how many of them may be lost.
pub const ARRAYS: [(&str, u32, usize); 3] = [("raid1", 2, 1), ("raid5", 4, 1), ("raid6", 6, 2)];

/// What a figure has to be for the target to be met.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Target {
    /// A rate.
    AtLeast(f64),
    /// A latency or a cost.
    AtMost(f64),
}

impl Target {
    /// How far it is exceeded: 1 is just met, more is better.
    pub fn margin(self, ratio: f64) -> f64 {
        match self {
            Self::AtLeast(bound) => ratio / bound,
            Self::AtMost(bound) => bound / ratio,
        }
    }

    /// Whether a ratio meets it.
    pub fn is_met(self, ratio: f64) -> bool {
        self.margin(ratio) >= 1.0
    }
}

impl Job {
    /// Whether the mean latency is what counts.
    pub fn is_latency(&self) -> bool {
        self.depth == 1
    }

    /// Whether it is counted in requests rather than in bytes.
    pub fn is_small(&self) -> bool {
        self.block_bytes < 64 << 10
    }

    /// The load on one server.
    pub fn load(&self, socket: &Path, export: &str, seconds: f64, span_bytes: u64) -> Load {
        Load {
            socket: socket.to_owned(),
            export: export.to_owned(),
            direction: self.direction,
            order: self.order,
            block_bytes: self.block_bytes,
            depth: self.depth.div_ceil(self.connections),
            connections: self.connections,
            duration: Duration::from_secs_f64(seconds),
            span_bytes: Some(span_bytes),
        }
    }

    /// What an array is to reach, by the best peer's figure.
    pub fn target(&self, array: &str, in_memory: bool) -> Target {
        let either = |memory: f64, disk: f64| if in_memory { memory } else { disk };
        let by_level = |one: f64, five: f64, six: f64| match array {
            "raid1" => one,
            "raid5" => five,
            _ => six,
        };
        match (self.direction, self.order) {
            (Direction::Read, Order::Rand) if self.is_latency() => Target::AtMost(either(1.1, 0.8)),
            (Direction::Read, Order::Rand) => Target::AtLeast(either(1.5, 1.3)),
            (Direction::Read, Order::Seq) => Target::AtLeast(either(1.2, 1.0)),
            (_, Order::Seq) => Target::AtLeast(by_level(either(0.7, 0.6), 0.8, 0.7)),
            (_, Order::Rand) => Target::AtLeast(by_level(0.8, 0.4, 0.3)),
        }
    }
}

/// A mirror by a mirror: RAID 1 by qemu's quorum of two files.
pub fn quorum_target(in_memory: bool) -> Target {
    Target::AtLeast(if in_memory { 3.0 } else { 1.3 })
}

/// CPU time by the peer that takes least.
pub const CPU_TARGET: Target = Target::AtMost(1.0);
/// The slowest of a hundred requests during recovery, by the same without.
pub const FOREGROUND_TARGET: Target = Target::AtMost(3.0);

/// Recovery, check and degraded reads, by fio doing the same to the members.
pub fn members_target(in_memory: bool) -> Target {
    Target::AtLeast(if in_memory { 0.6 } else { 0.9 })
}

/// Bytes that are read of members for each byte that a client reads of an array without `lost` of its `width` members.
///
/// Of all data chunks, lost/width lie on a missing member; for each of those the same bytes of all survivors are needed
/// (width - lost, which is just what the level can compute from). Every other chunk is read from its own member.
/// RAID 5 of 4 minus 1: 3/4 + 1/4 * 3 = 1.5; RAID 6 of 6 minus 2: 4/6 + 2/6 * 4 = 2.
pub fn degraded_amplification(width: u32, lost: usize) -> f64 {
    let (width, lost) = (f64::from(width), lost as f64);
    (width - lost) / width + lost / width * (width - lost)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_is_met_at_its_bound() {
        assert!(Target::AtLeast(1.5).is_met(1.5) && !Target::AtLeast(1.5).is_met(1.49));
        assert!(Target::AtMost(0.8).is_met(0.8) && !Target::AtMost(0.8).is_met(0.81));
        assert_eq!(Target::AtMost(3.0).margin(1.5), 2.0);
    }

    #[test]
    fn degraded_reads_cost_what_the_levels_say() {
        assert_eq!(degraded_amplification(4, 1), 1.5);
        assert_eq!(degraded_amplification(6, 2), 2.0);
        assert_eq!(degraded_amplification(4, 0), 1.0);
    }

    #[test]
    fn depth_is_shared_by_the_connections() {
        let load = JOBS[2].load(Path::new("s"), "", 1.0, 1 << 30);
        assert_eq!((load.depth, load.connections), (8, 4));
    }

    #[test]
    fn writes_have_targets_by_level() {
        let write = JOBS.iter().find(|job| job.name == "1m-write-qd4").unwrap();
        assert_eq!(write.target("raid1", true), Target::AtLeast(0.7));
        assert_eq!(write.target("raid1", false), Target::AtLeast(0.6));
        assert_eq!(write.target("raid5", false), Target::AtLeast(0.8));
        assert_eq!(JOBS[7].target("raid6", true), Target::AtLeast(0.3));
        assert_eq!(JOBS[0].target("raid6", false), Target::AtMost(0.8));
    }
}
