//! Reads that take longer than a member's usually do are asked of the others, too: another copy, or the rest of the stripe.
//! Whoever answers first serves the client, so that a disk that stutters costs it little.
//!
//! Only reads that lie on one member are hedged, which nearly all small ones do.
//!
//! Invariants:
//! - Law 5: nobody is asked where the others may say something else: not where rows await a resync, not while a scrub's mismatches
//!   stand, and only where they hold all of it. A slow answer is not worth a wrong one.
//! - Neither read is given up: the slower one is awaited by a task of its own, which a stop waits for. So a member that does
//!   not answer at all is found out as ever, and one that is merely slow is not counted among those that do not.
//! - Nothing is learned from being slow: only an error is judged.
//! - No more than one read of [`READS_PER_HEDGE`] is hedged in the long run, [`HEDGES_MAX`] at a time after quiet, and only
//!   while half of the memory for lost reads is free: a client that does not take its replies keeps nobody from being mended.

use std::cell::Cell;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::time::Duration;

use futures_util::future::{Either, select};

use super::array::{Array, sectors};
use super::member::Member;
use super::plan::Trust;
use super::stripe::Unreadable;
use crate::io::{Buf, Device, IoError, Runtime};
use crate::layout::Geometry;
use crate::units::Sector;

/// A hedge is earned by so many reads.
const READS_PER_HEDGE: u64 = 20;

/// Hedges that can be saved up.
const HEDGES_MAX: u64 = 16;

/// Longer than usual is so many times what reads take on average,
const USUAL_TIMES: u32 = 8;

/// and never less: it should be worth it.
const PATIENCE_MIN: Duration = Duration::from_millis(2);

/// When a read is asked of others, too.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Hedge {
    /// When it fails.
    #[default]
    Off,
    /// When it takes much longer than the member's reads usually do.
    Auto,
    /// After so long.
    After(Duration),
}

type Read = Pin<Box<dyn Future<Output = Result<Buf, IoError>>>>;

/// The policy, and what of its budget is left.
#[derive(Debug)]
pub(super) struct Hedging {
    hedge: Cell<Hedge>,
    /// In reads.
    budget: Cell<u64>,
    count: Cell<u64>,
}

impl Default for Hedging {
    fn default() -> Self {
        let budget = Cell::new(HEDGES_MAX * READS_PER_HEDGE);
        Hedging { hedge: Cell::default(), budget, count: Cell::default() }
    }
}

impl Hedging {
    pub fn is_on(&self) -> bool {
        self.hedge.get() != Hedge::Off
    }

    /// Reads that were hedged.
    pub fn count(&self) -> u64 {
        self.count.get()
    }

    fn earn(&self) {
        self.budget.set((self.budget.get() + 1).min(HEDGES_MAX * READS_PER_HEDGE));
    }

    fn spend(&self) -> bool {
        let left = self.budget.get().checked_sub(READS_PER_HEDGE);
        left.inspect(|&left| {
            self.budget.set(left);
            self.count.set(self.count.get() + 1);
        })
        .is_some()
    }

    fn patience(&self, usual: Duration) -> Duration {
        match self.hedge.get() {
            Hedge::After(patience) => patience,
            Hedge::Off | Hedge::Auto => (usual * USUAL_TIMES).max(PATIENCE_MIN),
        }
    }
}

impl<D: Device + 'static, R: Runtime> Array<D, R> {
    /// Hedges reads like this from now on.
    pub fn set_hedge(&self, hedge: Hedge) {
        self.hedging.hedge.set(hedge);
    }

    /// When reads are asked of others, too.
    pub fn hedge(&self) -> Hedge {
        self.hedging.hedge.get()
    }

    /// Reads what lies on one member, and asks the others if it takes long.
    pub(super) async fn read_hedged(
        &self,
        offset_bytes: u64,
        buf: Buf,
        (member, sector): (Rc<Member<D>>, Sector),
        avoid: Unreadable,
    ) -> Result<Buf, IoError> {
        let len = buf.len();
        self.hedging.earn();
        let patience = self.hedging.patience(member.pace.mean());
        let first = self.read_alone(member, sector, buf);
        let first = match select(first, pin!(self.runtime.sleep(patience))).await {
            Either::Left((Ok(buf), _)) => return Ok(buf),
            Either::Left((Err(_), _)) => {
                let buf = self.memory.rescue.alloc(len).await;
                return self.read_apart(offset_bytes, buf, Some(avoid)).await;
            }
            Either::Right(((), first)) => first,
        };
        let Some(second) = self.hedge_read(offset_bytes, len, &avoid) else {
            return match first.await {
                Ok(buf) => Ok(buf),
                Err(_) => {
                    let buf = self.memory.rescue.alloc(len).await;
                    self.read_apart(offset_bytes, buf, Some(avoid)).await
                }
            };
        };
        match select(first, second).await {
            Either::Left((Ok(buf), slower)) | Either::Right((Ok(buf), slower)) => {
                self.finish(slower);
                Ok(buf)
            }
            Either::Left((Err(_), other)) | Either::Right((Err(_), other)) => match other.await {
                Ok(buf) => Ok(buf),
                // Others may be there by now, as for any read that has failed.
                Err(_) => {
                    let buf = self.memory.rescue.alloc(len).await;
                    self.read_apart(offset_bytes, buf, Some(avoid)).await
                }
            },
        }
    }

    fn read_alone(&self, member: Rc<Member<D>>, sector: Sector, buf: Buf) -> Read {
        let weak = self.weak.clone();
        Box::pin(async move {
            let rows = sector.0..sector.0 + sectors(buf.len() as u64);
            let result = member.read(sector, buf).await;
            if let (Err(error), Some(array)) = (&result, weak.upgrade()) {
                let array: Rc<Self> = array;
                array.judge_read(&member, rows, error);
            }
            result
        })
    }

    /// Whether what lies on that member is known to be the same by what the others have, all of it in one piece.
    fn others_know(&self, offset_bytes: u64, len: usize, avoid: &Unreadable) -> bool {
        if self.trust(&avoid.rows) != Trust::Consistent || self.mismatched_sectors() > 0 {
            return false;
        }
        match &self.geometry {
            Geometry::Copies(copies) => {
                let (start, len) = (Sector(sectors(offset_bytes)), Sector(sectors(len as u64)));
                let pieces = self.whole_extents(copies, start, len, None);
                let [piece] = &pieces[..] else { return false };
                piece.copies.iter().any(|place| {
                    let rows = place.sector.0..place.sector.0 + len.0;
                    place.slot != avoid.slot && self.reader(place.slot, &rows).is_some()
                })
            }
            Geometry::Parity(_) => {
                let present: Vec<_> = self
                    .slots()
                    .map(|slot| slot != avoid.slot && self.reader(slot, &avoid.rows).is_some())
                    .collect();
                self.cuts(&avoid.rows).is_empty() && self.geometry.survives(&present)
            }
        }
    }

    /// The same of the other members, if they have it, and there is budget and memory for it.
    fn hedge_read(&self, offset_bytes: u64, len: usize, avoid: &Unreadable) -> Option<Read> {
        let rescue = &self.memory.rescue;
        let array: Rc<Self> = self.weak.upgrade()?;
        if !self.others_know(offset_bytes, len, avoid) || rescue.free_bytes() < rescue.total_bytes() / 2 + len
        {
            return None;
        }
        let buf = rescue.try_alloc(len)?;
        let avoid = avoid.clone();
        self.hedging
            .spend()
            .then(|| Box::pin(async move { array.read_apart(offset_bytes, buf, Some(avoid)).await }) as Read)
    }

    /// Lets a read end that nobody waits for any more.
    fn finish(&self, slower: Read) {
        let Some(array): Option<Rc<Self>> = self.weak.upgrade() else { return };
        // Counted from now on, so that a stop waits for it.
        array.state.borrow_mut().busy += 1;
        self.runtime.spawn(async move {
            let _whatever = slower.await.is_ok();
            array.state.borrow_mut().busy -= 1;
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hedges_are_earned_by_reads() {
        let hedging = Hedging::default();
        assert_eq!((0..100).filter(|_| hedging.spend()).count() as u64, HEDGES_MAX);
        (0..READS_PER_HEDGE - 1).for_each(|_| hedging.earn());
        assert!(!hedging.spend());
        hedging.earn();
        assert!(hedging.spend() && !hedging.spend());
        (0..1_000_000).for_each(|_| hedging.earn());
        assert_eq!((0..100).filter(|_| hedging.spend()).count() as u64, HEDGES_MAX);
        assert_eq!(hedging.count(), 2 * HEDGES_MAX + 1);
    }

    #[test]
    fn patience_is_what_the_policy_says() {
        let hedging = Hedging::default();
        hedging.hedge.set(Hedge::Auto);
        assert_eq!(hedging.patience(Duration::from_micros(90)), PATIENCE_MIN);
        assert_eq!(hedging.patience(Duration::from_millis(5)), Duration::from_millis(40));
        hedging.hedge.set(Hedge::After(Duration::from_millis(7)));
        assert_eq!(hedging.patience(Duration::from_millis(5)), Duration::from_millis(7));
    }
}
