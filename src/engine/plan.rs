//! What to read and how to make parity: decided here, in pure code, before any I/O of a stripe.
//!
//! A *band* is a range of rows of one stripe in which every data chunk is either wholly new or not written at all. Each
//! cell of it (a chunk's rows) can be read or not, written or not. From that follow the ways to write it:
//!
//! - *reconstruct-write*: parity from the new data and the old data that is not written; a full stripe reads nothing;
//! - *read-modify-write*: parity changed by the difference of old and new data;
//! - *recover*: first work out what cannot be read, then reconstruct-write.
//!
//! The cheapest that is possible *and allowed* is taken. What the rows' parity is worth decides what is allowed
//! (DESIGN law 5), see [`Trust`].

use smallvec::SmallVec;

use super::mutant::{self, Mutant};

/// What the parity, or the other copies, of some rows are worth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Trust {
    /// Parity and data agree.
    Consistent,
    /// The array is new and its first resync has not come here. Rows never written hold anything; rows written since
    /// are consistent, for parity is always made from all data here. So missing data may be worked out, but parity may
    /// not be modified. The same goes for an array that was started by force: its operator takes missing data for what
    /// parity makes of it, and what is written from then on is safe.
    Initial,
    /// A crash or a failed write may have left these rows torn: nothing may be worked out from their parity.
    Unclean,
}

/// One chunk's rows in a band.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Cell {
    pub readable: bool,
    pub writable: bool,
    /// The band's write covers it. Never so for parity.
    pub new: bool,
}

/// A cell's place in the stripe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    Data(usize),
    P,
    Q,
}

/// All that matters for planning a band.
#[derive(Clone, Debug)]
pub(super) struct Situation {
    pub data: SmallVec<[Cell; 16]>,
    pub p: Cell,
    pub q: Option<Cell>,
    pub trust: Trust,
}

/// How new parity comes about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Method {
    /// No parity member is left to write.
    DataOnly,
    /// From all the data, new or read.
    Reconstruct,
    /// From the old parity and the difference.
    Modify,
    /// From all the data, some of it worked out first.
    Recover,
}

/// Mostly few, for which nothing is allocated.
pub(super) type Places = SmallVec<[Place; 8]>;

/// A way to write a band: what to read, then how to make parity. What to write is the same for all: every new data
/// cell and every parity cell that is writable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct WritePlan {
    pub method: Method,
    pub reads: Places,
}

/// Too much is missing for what is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct OutOfReach;

impl Situation {
    fn parities(&self) -> impl Iterator<Item = (Place, Cell)> {
        [(Place::P, self.p)].into_iter().chain(self.q.map(|q| (Place::Q, q)))
    }

    fn unreadable(&self) -> usize {
        self.data.iter().filter(|cell| !cell.readable).count()
    }

    /// A cell by its place. Panics if there is none.
    pub fn cell(&self, place: Place) -> Cell {
        match place {
            Place::Data(i) => self.data[i],
            Place::P => self.p,
            Place::Q => self.q.expect("a stripe with Q"),
        }
    }

    /// What to read to work out every data cell that cannot be read.
    fn solution(&self) -> Result<Places, OutOfReach> {
        let lost = self.unreadable();
        if lost > 0 && self.trust == Trust::Unclean && !mutant::is(Mutant::RecoverUntrusted) {
            return Err(OutOfReach);
        }
        let parities: SmallVec<[_; 2]> = self.parities().filter(|(_, cell)| cell.readable).collect();
        if lost > parities.len() {
            return Err(OutOfReach);
        }
        let known = (0..self.data.len()).filter(|&i| self.data[i].readable).map(Place::Data);
        Ok(known.chain(parities.into_iter().take(lost).map(|(place, _)| place)).collect())
    }
}

/// What to read to work out the data cells that cannot be read.
pub(super) fn read(situation: &Situation) -> Result<Places, OutOfReach> {
    situation.solution()
}

/// How to write the band.
pub(super) fn write(situation: &Situation) -> Result<WritePlan, OutOfReach> {
    let carried_by_parity = situation.data.iter().any(|cell| cell.new && !cell.writable);
    if situation.parities().all(|(_, cell)| !cell.writable) {
        let plan = WritePlan { method: Method::DataOnly, reads: Places::new() };
        return if carried_by_parity { Err(OutOfReach) } else { Ok(plan) };
    }
    let candidates = [reconstruct(situation), modify(situation), recover(situation)];
    // The first of the cheapest: reconstruct-write leaves consistent rows whatever they were before.
    candidates.into_iter().flatten().min_by_key(|plan| plan.reads.len()).ok_or(OutOfReach)
}

fn reconstruct(situation: &Situation) -> Option<WritePlan> {
    let old: SmallVec<[_; 8]> = situation.data.iter().enumerate().filter(|(_, cell)| !cell.new).collect();
    if old.iter().any(|(_, cell)| !cell.readable) {
        return None;
    }
    let reads = old.into_iter().map(|(i, _)| Place::Data(i)).collect();
    Some(WritePlan { method: Method::Reconstruct, reads })
}

fn modify(situation: &Situation) -> Option<WritePlan> {
    let new = situation.data.iter().enumerate().filter(|(_, cell)| cell.new);
    let parities = situation.parities().filter(|(_, cell)| cell.writable);
    let cells: SmallVec<[_; 8]> = new.map(|(i, cell)| (Place::Data(i), *cell)).chain(parities).collect();
    let trusted = situation.trust == Trust::Consistent || mutant::is(Mutant::ModifyUntrusted);
    let allowed = trusted && cells.iter().all(|(_, cell)| cell.readable);
    allowed.then(|| WritePlan {
        method: Method::Modify,
        reads: cells.into_iter().map(|(place, _)| place).collect(),
    })
}

fn recover(situation: &Situation) -> Option<WritePlan> {
    let reads = situation.solution().ok()?;
    Some(WritePlan { method: Method::Recover, reads })
}

#[cfg(test)]
mod tests {
    use super::*;
    use smallvec::smallvec;

    const GOOD: Cell = Cell { readable: true, writable: true, new: false };
    const NEW: Cell = Cell { new: true, ..GOOD };
    const GONE: Cell = Cell { readable: false, writable: false, new: false };
    const GONE_NEW: Cell = Cell { new: true, ..GONE };

    fn method(data: &[Cell], p: Cell, q: Option<Cell>, trust: Trust) -> Result<(Method, usize), OutOfReach> {
        write(&Situation { data: data.into(), p, q, trust }).map(|plan| (plan.method, plan.reads.len()))
    }

    #[test]
    fn the_cheapest_way_is_taken() {
        use Trust::Consistent;
        assert_eq!(method(&[NEW; 4], GOOD, None, Consistent), Ok((Method::Reconstruct, 0)));
        assert_eq!(method(&[NEW, GOOD, GOOD, GOOD], GOOD, None, Consistent), Ok((Method::Modify, 2)));
        assert_eq!(method(&[NEW, NEW, NEW, GOOD], GOOD, None, Consistent), Ok((Method::Reconstruct, 1)));
        assert_eq!(
            method(&[NEW, GOOD, GOOD, GOOD, GOOD], GOOD, Some(GOOD), Consistent),
            Ok((Method::Modify, 3))
        );
    }

    #[test]
    fn parity_that_is_not_trusted_is_never_modified() {
        for trust in [Trust::Initial, Trust::Unclean] {
            assert_eq!(method(&[NEW, GOOD, GOOD, GOOD], GOOD, None, trust), Ok((Method::Reconstruct, 3)));
        }
    }

    #[test]
    fn degraded_writes_find_their_way() {
        use Trust::{Consistent, Initial, Unclean};
        // The missing chunk is written: parity carries it.
        assert_eq!(method(&[GONE_NEW, GOOD, GOOD], GOOD, None, Consistent), Ok((Method::Reconstruct, 2)));
        // The missing chunk is not written.
        assert_eq!(method(&[GONE, NEW, GOOD], GOOD, None, Consistent), Ok((Method::Modify, 2)));
        assert_eq!(method(&[GONE, NEW, GOOD], GOOD, None, Initial), Ok((Method::Recover, 3)));
        assert_eq!(method(&[GONE, NEW, GOOD], GOOD, None, Unclean), Err(OutOfReach));
        // One missing chunk is written, another is not.
        assert_eq!(method(&[GONE, GONE_NEW, GOOD], GOOD, Some(GOOD), Consistent), Ok((Method::Recover, 3)));
        assert_eq!(method(&[GONE, GONE_NEW, GOOD], GOOD, Some(GONE), Consistent), Err(OutOfReach));
        // Parity is missing.
        assert_eq!(method(&[NEW, GOOD], GONE, None, Consistent), Ok((Method::DataOnly, 0)));
        assert_eq!(method(&[GONE_NEW, GOOD], GONE, None, Consistent), Err(OutOfReach));
        assert_eq!(method(&[NEW, GOOD, GOOD, GOOD], GONE, Some(GOOD), Consistent), Ok((Method::Modify, 2)));
    }

    #[test]
    fn lost_data_is_worked_out_from_as_little_as_will_do() {
        let lost_one =
            Situation { data: smallvec![GONE, GOOD, GOOD], p: GOOD, q: Some(GOOD), trust: Trust::Consistent };
        assert_eq!(read(&lost_one), Ok(smallvec![Place::Data(1), Place::Data(2), Place::P]));
        let lost_with_p = Situation { p: GONE, ..lost_one.clone() };
        assert_eq!(read(&lost_with_p), Ok(smallvec![Place::Data(1), Place::Data(2), Place::Q]));
        let unclean = Situation { trust: Trust::Unclean, ..lost_one };
        assert_eq!(read(&unclean), Err(OutOfReach));
    }
}
