//! Which of several copies is read.
//!
//! Invariants:
//! - Any choice is right: who is asked here holds what is read, and where copies may differ nobody is asked (`mirror`).
//! - Members that are write-mostly are read only where no other holds the rows; md's `WriteMostly`.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use super::array::Array;
use super::member::Member;
use crate::io::{Device, Runtime};
use crate::units::{MemberSlot, Sector};

/// The superblock's flag of a member that is to be read only if there is no other: `WriteMostly1` of md_p.h.
const WRITE_MOSTLY: u8 = 1;
/// The superblock's flag of a member that is failed for an error instead of being mended: `FailFast1`.
const FAILFAST: u8 = 2;

/// A read that took more than so many times the mean, and so much on top, counts as if it had taken no more.
const OUTLIER_TIMES: u64 = 4;
/// See [`OUTLIER_TIMES`].
const OUTLIER_US: u64 = 100;

/// No read counts as slower than this: more than any deadline.
const PACE_US_MAX: u64 = 1 << 40;

/// How a copy is chosen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ReadPolicy {
    /// They take turns.
    #[default]
    RoundRobin,
    /// The one with the fewest operations under way.
    LeastPending,
    /// The faster one more often, by what their reads took of late; and not one with much under way.
    Latency,
    /// The one in this slot, where it holds what is read.
    Prefer(MemberSlot),
}

/// The policy, and whose turn it is.
#[derive(Debug, Default)]
pub(super) struct Choice {
    policy: Cell<ReadPolicy>,
    turn: Cell<usize>,
    /// The virtual time at which the last read was due.
    time: Cell<u64>,
}

/// How long a member's reads take of late, and when its next is due by that: in a virtual time in which each takes what it usually
/// takes, so that a member that is twice as slow gets half as many.
#[derive(Debug, Default)]
pub(super) struct Pace {
    /// A mean in which each read counts for a sixteenth, in sixteenths of a microsecond; 0: nothing is known.
    mean: Cell<u64>,
    due: Cell<u64>,
}

impl Pace {
    /// A read took so long.
    pub fn note(&self, took: Duration) {
        let sixteenths = self.mean.get();
        let us = u64::try_from(took.as_micros()).map_or(PACE_US_MAX, |us| us.min(PACE_US_MAX));
        // One read that took long says little; several say it soon enough.
        let heard = us.min(sixteenths / 16 * OUTLIER_TIMES + OUTLIER_US);
        let mean = if sixteenths == 0 { us * 16 } else { sixteenths - sixteenths / 16 + heard };
        self.mean.set(mean.max(1));
    }

    fn sixteenths(&self) -> u64 {
        self.mean.get()
    }

    /// The mean.
    pub fn mean(&self) -> Duration {
        Duration::from_micros(self.mean.get() / 16)
    }

    /// When its next read is due. One that had none for long does not make up for it.
    fn due(&self, time: u64) -> u64 {
        self.due.get().max(time.saturating_sub(self.sixteenths()))
    }

    /// Has its next read now; the virtual time of that.
    fn take_turn(&self, time: u64) -> u64 {
        let now = self.due(time);
        self.due.set(now.saturating_add(self.sixteenths().max(1)));
        now.max(time)
    }
}

impl<D: Device> Member<D> {
    /// Whether it is read only if there is no other.
    pub(super) fn is_write_mostly(&self) -> bool {
        self.superblock.devflags & WRITE_MOSTLY != 0
    }

    /// Whether it is failed for an error instead of being mended.
    pub(super) fn is_failfast(&self) -> bool {
        self.superblock.devflags & FAILFAST != 0
    }

    /// What speaks against reading from it; less is better. `time` is the virtual time of [`ReadPolicy::Latency`].
    fn cost(&self, slot: MemberSlot, policy: ReadPolicy, time: u64) -> u64 {
        let pending = self.awaited.get() as u64;
        match policy {
            ReadPolicy::RoundRobin => 0,
            ReadPolicy::LeastPending => pending,
            ReadPolicy::Latency => self.pace.due(time).saturating_add(pending * self.pace.sixteenths()),
            ReadPolicy::Prefer(preferred) => u64::from(slot != preferred),
        }
    }
}

impl<D: Device + 'static, R: Runtime> Array<D, R> {
    /// Chooses copies like this from now on.
    pub fn set_read_policy(&self, policy: ReadPolicy) {
        self.choice.policy.set(policy);
    }

    /// How copies are chosen.
    pub fn read_policy(&self) -> ReadPolicy {
        self.choice.policy.get()
    }

    /// The one to read, of those who hold a copy: slot, member, and where it lies there.
    pub(super) fn choose(&self, holders: &[(MemberSlot, Rc<Member<D>>, Sector)]) -> Option<usize> {
        let Choice { policy, turn, time } = &self.choice;
        turn.set(turn.get().wrapping_add(1));
        let is_read = |holder: &&(MemberSlot, Rc<Member<D>>, Sector)| !holder.1.is_write_mostly();
        let readable = holders.iter().filter(is_read).count();
        let only_mostly_written = readable == 0;
        let candidates = if only_mostly_written { holders.len() } else { readable };
        let first = turn.get() % candidates.max(1);
        // Those whose turn it would be sooner win where nothing else speaks for or against them.
        let ranked = holders
            .iter()
            .enumerate()
            .filter(|(_, holder)| only_mostly_written || is_read(holder))
            .enumerate()
            .map(|(number, (index, (slot, member, _)))| {
                let turn = (number + candidates - first) % candidates;
                ((member.cost(*slot, policy.get(), time.get()), turn), index)
            });
        let (_, chosen) = ranked.min()?;
        if policy.get() == ReadPolicy::Latency {
            time.set(holders[chosen].1.pace.take_turn(time.get()));
        }
        Some(chosen)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pace_follows_what_reads_take() {
        let pace = Pace::default();
        assert_eq!(pace.sixteenths(), 0);
        pace.note(Duration::from_micros(100));
        assert_eq!(pace.mean(), Duration::from_micros(100));
        (0..100).for_each(|_| pace.note(Duration::from_millis(5)));
        assert!((4900..=5000).contains(&pace.mean().as_micros()));
        (0..100).for_each(|_| pace.note(Duration::from_micros(100)));
        assert!((100..=130).contains(&pace.mean().as_micros()));
        pace.note(Duration::from_secs(3));
        assert!(pace.mean() < Duration::from_micros(200), "once is nothing");
    }
}
