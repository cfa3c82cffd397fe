//! What an array and its members have done, for whoever asks. Facts only; words are `api`'s.

use super::array::Array;
use super::member::Member;
use super::tally::{Errors, Operations, Times};
use crate::io::{Device, Runtime};
use crate::units::MemberSlot;

/// What an array has done since it was started.
#[derive(Clone, Debug)]
pub struct ArrayStats {
    /// How long it has been what.
    pub times: Times,
    /// What the slowest read or write of clients took that was under way when a member in sync failed the last time.
    pub failover: Option<std::time::Duration>,
    /// Requests of clients under way.
    pub in_flight: usize,
    /// The clients' reads.
    pub reads: Operations,
    /// Their writes.
    pub writes: Operations,
    /// Their flushes.
    pub flushes: Operations,
    /// Their zeroing and trimming.
    pub others: Operations,
    /// Reads that were asked of others, too, because they took long.
    pub hedged_reads: u64,
    /// Members in the order of their slots, then the others.
    pub members: Vec<MemberStats>,
}

/// What a member has done since it became one, or the array was started.
#[derive(Clone, Debug)]
pub struct MemberStats {
    /// Its slot, if it has one.
    pub slot: Option<MemberSlot>,
    /// Its path.
    pub path: String,
    /// Operations that somebody waits for.
    pub in_flight: usize,
    /// Reads of data and parity.
    pub reads: Operations,
    /// Writes of them.
    pub writes: Operations,
    /// Flushes.
    pub flushes: Operations,
    /// Errors by what was wrong.
    pub errors: Errors,
}

impl<D: Device + 'static, R: Runtime> Array<D, R> {
    /// What it has done. How many operations took no longer than each of `bounds_us` is told with each kind of them.
    pub fn stats(&self, bounds_us: &[u64]) -> ArrayStats {
        let clients = &self.clients;
        ArrayStats {
            times: self.times(),
            failover: clients.failover(),
            in_flight: clients.in_flight.get(),
            reads: clients.reads.operations(bounds_us),
            writes: clients.writes.operations(bounds_us),
            flushes: clients.flushes.operations(bounds_us),
            others: clients.others.operations(bounds_us),
            hedged_reads: self.hedging.count(),
            members: self.roster.borrow().all().map(|member| stats_of(member, bounds_us)).collect(),
        }
    }
}

fn stats_of<D: Device>(member: &Member<D>, bounds_us: &[u64]) -> MemberStats {
    let work = &member.work;
    MemberStats {
        slot: member.slot.get(),
        path: member.label.clone(),
        in_flight: member.awaited.get(),
        reads: work.reads.operations(bounds_us),
        writes: work.writes.operations(bounds_us),
        flushes: work.flushes.operations(bounds_us),
        errors: work.errors.get(),
    }
}
