//! What an array says of its ranges: which are allocated, which have lost redundancy, which the bitmap has marked.
//!
//! A range is cut into pieces that lie in one place on each member, and that every member either holds or does not; about
//! each of them the question has one answer, or for holes and bits a few. An answer covers a bounded number of pieces:
//! who wants more asks again from there.
//!
//! Invariants:
//! - A range is called zero only by the member that a read of it would be answered from, or could be, and only if that
//!   member was asked after the question came: what had been acknowledged before was on it then. Where copies may differ,
//!   or who is in sync changed meanwhile, nothing is called zero.
//! - Nothing is written, no member fails by this, and who does not answer has nothing to report.

use std::ops::Range;
use std::pin::pin;
use std::rc::Rc;

use futures_util::future::join_all;

use super::array::{Array, sectors};
use super::member::{Member, MemberState};
use super::mutant::{self, Mutant};
use super::plan::Trust;
use super::roster::split;
use crate::io::extent::{BAD, DEGRADED, DIRTY, Extents, RECOVERING, UNSYNCED, nothing_to_report};
use crate::io::{Device, Extent, ExtentKind, Runtime};
use crate::layout::{Geometry, Parity, Place, Places, Stripe};
use crate::units::{MemberSlot, SECTOR_BYTES, Sector};

/// Pieces, or bits of the bitmap, looked at for one answer: a millisecond of work or so.
const PIECES_MAX: u64 = 2048;

/// A part of the array that lies in one place on each member.
struct Piece {
    array: Range<u64>,
    /// Its sectors in the units of the row locks; as many as in `array`.
    rows: Range<u64>,
    /// Where its data is: with copies, all of them.
    data: Places,
}

/// Who can tell whether a piece is a hole, and where it is on its device.
struct Witness<D> {
    member: Rc<Member<D>>,
    /// Which of the copies this is: those of one number lie together, those of another far away, perhaps.
    copy: usize,
    bytes: Range<u64>,
}

impl<D> Witness<D> {
    fn lies_with(&self, other: &Witness<D>) -> bool {
        Rc::ptr_eq(&self.member, &other.member) && self.copy == other.copy
    }
}

/// What a witness said of its bytes, from their start on.
struct Survey<D> {
    asked: Witness<D>,
    extents: Vec<Extent>,
}

/// An answer in the making.
struct Answer {
    range: Range<u64>,
    extents: Extents,
}

impl Answer {
    /// Adds sectors of the array, as far as they were asked about; false if there is no room.
    fn push(&mut self, sectors: Range<u64>, state: u32) -> bool {
        let start = (sectors.start * SECTOR_BYTES).max(self.range.start);
        let end = (sectors.end * SECTOR_BYTES).min(self.range.end);
        self.extents.push(end.saturating_sub(start), state)
    }
}

impl<D: Device + 'static, R: Runtime> Array<D, R> {
    /// The questions that this array has answers to.
    pub(super) fn known_kinds(&self) -> &'static [ExtentKind] {
        if self.intent.is_some() {
            &[ExtentKind::Allocation, ExtentKind::Health, ExtentKind::Dirty]
        } else {
            &[ExtentKind::Allocation, ExtentKind::Health]
        }
    }

    /// As [`Device::extents`]; the range is not empty and lies within the array.
    pub(super) async fn extents_of(&self, kind: ExtentKind, range: Range<u64>, max: usize) -> Vec<Extent> {
        let pieces = self.pieces(&range);
        let mut answer = Answer { range: range.clone(), extents: Extents::new(max) };
        match kind {
            ExtentKind::Allocation => {
                let mut changes = self.changes();
                let witnesses: Vec<_> = pieces.iter().map(|piece| self.witness(piece)).collect();
                // Each of their extents but the last ends in one of the answer.
                let surveys = self.survey(&witnesses, max + 1).await;
                if self.have_changed(&mut changes) {
                    return nothing_to_report(&range);
                }
                let mut pieces = pieces.iter().zip(witnesses);
                pieces.all(|(piece, witness)| match witness.filter(|_| self.witness(piece).is_some()) {
                    Some(witness) => push_allocation(&mut answer, piece, &witness, &surveys),
                    None => answer.push(piece.array.clone(), 0),
                })
            }
            ExtentKind::Health => {
                pieces.iter().all(|piece| answer.push(piece.array.clone(), self.piece_health(piece)))
            }
            ExtentKind::Dirty => pieces.iter().all(|piece| self.push_dirty(&mut answer, piece)),
        };
        if answer.extents.is_empty() {
            // Nobody told anything of where it begins.
            answer.push(pieces[0].array.clone(), 0);
        }
        answer.extents.finish()
    }

    /// The first of the pieces of a range of bytes.
    fn pieces(&self, range: &Range<u64>) -> Vec<Piece> {
        let start = range.start / SECTOR_BYTES;
        let limit = self.geometry.chunk().map_or(u64::MAX, |chunk| PIECES_MAX * chunk.0);
        let end = range.end.div_ceil(SECTOR_BYTES).min(start.saturating_add(limit));
        match &self.geometry {
            Geometry::Parity(parity) => self.parity_pieces(parity, start..end),
            Geometry::Copies(copies) => {
                let rows = self.cut_where_trust_ends(start..end);
                let extents = rows.into_iter().flat_map(|rows| {
                    self.whole_extents(copies, Sector(rows.start), Sector(rows.end - rows.start), None)
                });
                let pieces = extents.map(|extent| {
                    let array = extent.array.0..(extent.array + extent.len).0;
                    Piece { rows: array.clone(), array, data: extent.copies }
                });
                pieces.collect()
            }
        }
    }

    /// Rows, cut where those begin or end that await a resync, a bounded number of times.
    fn cut_where_trust_ends(&self, rows: Range<u64>) -> Vec<Range<u64>> {
        let state = self.state.borrow();
        let mut cut = Vec::new();
        let mut at = rows.start;
        while let Some(pending) = state.resync.as_ref().and_then(|resync| resync.pending.next_from(at))
            && pending.start < rows.end
            && cut.len() < PIECES_MAX as usize
        {
            let (start, end) = (pending.start.max(at), pending.end.min(rows.end));
            cut.extend([at..start, start..end].into_iter().filter(|part| !part.is_empty()));
            at = end;
        }
        if at < rows.end {
            cut.push(at..rows.end);
        }
        cut
    }

    fn parity_pieces(&self, parity: &Parity, sectors: Range<u64>) -> Vec<Piece> {
        let chunk = parity.chunk().0;
        let rows_at = |sector: u64| parity.locate(Sector(sector)).stripe.0 * chunk;
        // Once for all of them: members may have much to say.
        let cuts = self.cuts(&(rows_at(sectors.start)..rows_at(sectors.end - 1) + chunk));
        let mut pieces = Vec::new();
        let mut stripe: Option<Stripe> = None;
        let mut at = sectors.start;
        while at < sectors.end {
            let location = parity.locate(Sector(at));
            let stripe = match stripe.take() {
                Some(same) if same.index == location.stripe => stripe.insert(same),
                _ => stripe.insert(parity.stripe(location.stripe)),
            };
            let len = (chunk - location.offset.0).min(sectors.end - at);
            let first = (stripe.sector + location.offset).0;
            for rows in split(first..first + len, &cuts) {
                let array = at + rows.start - first..at + rows.end - first;
                let data = Places::from_slice(&[Place {
                    slot: stripe.data[location.data],
                    sector: Sector(rows.start),
                }]);
                pieces.push(Piece { array, rows, data });
            }
            at += len;
        }
        pieces
    }

    /// What has become of a piece's redundancy.
    fn piece_health(&self, piece: &Piece) -> u32 {
        let trust = self.trust(&piece.rows);
        let len = piece.rows.end - piece.rows.start;
        let holds = |place: &Place| {
            let rows = place.sector.0..place.sector.0 + len;
            self.reader(place.slot, &rows).is_some()
        };
        // In a stripe everybody has a part in it, at the same sector.
        let row = Sector(piece.rows.start);
        let places: Places = match &self.geometry {
            Geometry::Parity(_) => self.slots().map(|slot| Place { slot, sector: row }).collect(),
            Geometry::Copies(_) => piece.data.clone(),
        };
        let absent: Vec<MemberSlot> =
            places.iter().filter(|place| !holds(place)).map(|place| place.slot).collect();
        let mut state = 0;
        if !absent.is_empty() {
            state |= DEGRADED;
        }
        if absent.iter().any(|&slot| self.is_recovering(slot)) {
            state |= RECOVERING;
        }
        let has_data = piece.data.iter().any(|place| !absent.contains(&place.slot));
        let has_parity = match &self.geometry {
            // Before the first resync parity decides what missing data is.
            Geometry::Parity(parity) => absent.len() <= parity.parity_count() && trust != Trust::Unclean,
            Geometry::Copies(_) => false,
        };
        if !has_data && !has_parity {
            state |= BAD;
        }
        if trust != Trust::Consistent {
            state |= UNSYNCED;
        }
        state
    }

    fn is_recovering(&self, slot: MemberSlot) -> bool {
        let roster = self.roster.borrow();
        let member = roster.seats[slot.index()].member.as_ref();
        member.is_some_and(|member| matches!(member.state.get(), MemberState::Recovering(_)))
    }

    fn push_dirty(&self, answer: &mut Answer, piece: &Piece) -> bool {
        let Some(intent) = &self.intent else { return answer.push(piece.array.clone(), 0) };
        let intent = intent.borrow();
        let mut at = piece.rows.start;
        for _ in 0..PIECES_MAX {
            if at == piece.rows.end {
                return true;
            }
            let (end, state) = match intent.next_marked(at) {
                Some(marked) if marked == at => (intent.chunk_end(at), DIRTY),
                Some(marked) => (marked, 0),
                None => (piece.rows.end, 0),
            };
            let end = end.min(piece.rows.end);
            let array = piece.array.start + at - piece.rows.start;
            if !answer.push(array..array + end - at, state) {
                return false;
            }
            at = end;
        }
        at == piece.rows.end
    }

    /// A member that a read of the piece could be answered from.
    fn witness(&self, piece: &Piece) -> Option<Witness<D>> {
        if piece.data.len() > 1 && self.trust(&piece.rows) != Trust::Consistent {
            return None;
        }
        let len = piece.rows.end - piece.rows.start;
        piece.data.iter().enumerate().find_map(|(copy, place)| {
            let rows = place.sector.0..place.sector.0 + len;
            let member = match mutant::is(Mutant::HolesOfAnybody) {
                true => self.roster.borrow().seats[place.slot.index()].occupants().next().cloned()?,
                false => self.reader(place.slot, &rows)?,
            };
            let start = (member.superblock.data_offset + place.sector).bytes();
            Some(Witness { member, copy, bytes: start..start + len * SECTOR_BYTES })
        })
    }

    /// Asks every witness about all that it can tell of, at once.
    async fn survey(&self, witnesses: &[Option<Witness<D>>], max: usize) -> Vec<Survey<D>> {
        let mut all: Vec<Witness<D>> = Vec::new();
        for witness in witnesses.iter().flatten() {
            let Witness { member, copy, bytes } = witness;
            match all.iter_mut().find(|known| known.lies_with(witness)) {
                Some(known) => {
                    known.bytes = known.bytes.start.min(bytes.start)..known.bytes.end.max(bytes.end);
                }
                None => all.push(Witness { member: member.clone(), copy: *copy, bytes: bytes.clone() }),
            }
        }
        let surveys = all.into_iter().map(|asked| async move {
            let told = asked.member.device.extents(ExtentKind::Allocation, asked.bytes.clone(), max);
            // Not to answer this is no failure.
            let extents = self.deadlines.bound(0, pin!(told)).await.ok()?;
            Some(Survey { asked, extents })
        });
        join_all(surveys).await.into_iter().flatten().collect()
    }

    /// Whether zeroes there cost the members next to nothing: most of it is whole stripes, which they zero themselves.
    pub(super) async fn zeroes_range_fast(&self, offset_bytes: u64, len_bytes: u64) -> bool {
        let whole = self.whole_units(offset_bytes, len_bytes);
        if self.logs.is_some() || whole.end - whole.start <= len_bytes / 2 {
            return false;
        }
        let members = self.live_seated();
        let asked = members.iter().map(|member| async {
            let start = member.superblock.data_offset.bytes();
            member.device.zeroes_fast(start, self.block_bytes.max(4096)).await
        });
        join_all(asked).await.into_iter().all(|fast| fast)
    }
}

/// False if what was told ends within the piece, or there is no more room.
fn push_allocation<D>(
    answer: &mut Answer,
    piece: &Piece,
    witness: &Witness<D>,
    surveys: &[Survey<D>],
) -> bool {
    let bytes = &witness.bytes;
    let Some(survey) = surveys.iter().find(|survey| survey.asked.lies_with(witness)) else {
        return answer.push(piece.array.clone(), 0);
    };
    let array_at = |byte: u64| piece.array.start + sectors(byte - bytes.start);
    let mut start = survey.asked.bytes.start;
    for extent in &survey.extents {
        let end = start + extent.len_bytes;
        let (from, to) = (start.max(bytes.start), end.min(bytes.end));
        if from < to && !answer.push(array_at(from)..array_at(to), extent.state) {
            return false;
        }
        start = end;
    }
    start >= bytes.end
}
