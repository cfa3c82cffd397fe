//! Who is in an array at the moment: a member, or nobody, in every slot; in some slots a second one that is to replace the
//! first; and those without a slot, spares and the faulty whose slot has gone to another.
//!
//! Invariants:
//! - A slot has a replacement only while its member is in sync. When that member fails, the replacement takes its seat.
//! - A faulty member keeps its seat until another takes it, or it is removed.
//! - Nobody is in two places.

use std::ops::Range;
use std::rc::Rc;

use smallvec::SmallVec;

use super::array::Array;
use super::member::{Member, MemberState};
use crate::io::{Device, Runtime};
use crate::units::{MemberSlot, Sector};

/// A slot of the array: its member, and the one that is being filled to replace it.
pub(super) struct Seat<D> {
    pub member: Option<Rc<Member<D>>>,
    pub replacement: Option<Rc<Member<D>>>,
}

impl<D> Clone for Seat<D> {
    fn clone(&self) -> Self {
        Seat { member: self.member.clone(), replacement: self.replacement.clone() }
    }
}

impl<D> Seat<D> {
    pub fn occupants(&self) -> impl Iterator<Item = &Rc<Member<D>>> {
        [&self.member, &self.replacement].into_iter().flatten()
    }
}

/// All members of an array.
pub(super) struct Roster<D> {
    pub seats: Vec<Seat<D>>,
    /// Spares, and faulty members whose seat another has.
    pub others: Vec<Rc<Member<D>>>,
}

impl<D: Device> Roster<D> {
    pub fn seated(&self) -> impl Iterator<Item = &Rc<Member<D>>> {
        self.seats.iter().flat_map(Seat::occupants)
    }

    pub fn all(&self) -> impl Iterator<Item = &Rc<Member<D>>> {
        self.seated().chain(&self.others)
    }

    pub fn has_replacements(&self) -> bool {
        self.seats.iter().any(|seat| seat.replacement.is_some())
    }

    /// Everybody whose superblock is kept.
    pub fn live(&self) -> impl Iterator<Item = &Rc<Member<D>>> {
        self.all().filter(|member| member.state.get() != MemberState::Faulty)
    }

    pub fn find(&self, label: &str) -> Option<Rc<Member<D>>> {
        // One that failed may have come back under its old path; the living one is meant.
        self.live().chain(self.all()).find(|member| member.label == label).cloned()
    }

    /// After the failure of the one who sits there: its replacement, half filled as it is, is the member.
    pub fn promote_replacement(&mut self, slot: MemberSlot) {
        let seat = &mut self.seats[slot.index()];
        let failed = |member: &Rc<Member<D>>| member.state.get() == MemberState::Faulty;
        if seat.replacement.as_ref().is_some_and(failed) {
            let gone = seat.replacement.take().expect("just seen");
            gone.slot.set(None);
            self.others.push(gone);
            return;
        }
        if !seat.member.as_ref().is_some_and(failed) {
            return;
        }
        let Some(heir) = seat.replacement.take() else { return };
        if let MemberState::Replacing(cursor) = heir.state.get() {
            heir.state.set(MemberState::Recovering(cursor));
        }
        let gone = seat.member.replace(heir).expect("just seen");
        gone.slot.set(None);
        self.others.push(gone);
    }

    /// The replacement is whole: it is the member now, and the old one is out.
    pub fn complete_replacement(&mut self, slot: MemberSlot) {
        let seat = &mut self.seats[slot.index()];
        let heir = seat.replacement.take().expect("a replacement that has been filled");
        heir.state.set(MemberState::InSync);
        if let Some(gone) = seat.member.replace(heir) {
            gone.slot.set(None);
            gone.state.set(MemberState::Faulty);
            self.others.push(gone);
        }
    }

    /// Gives a slot without a living member to one that has none.
    pub fn seat(&mut self, slot: MemberSlot, member: &Rc<Member<D>>) {
        self.others.retain(|other| !Rc::ptr_eq(other, member));
        member.slot.set(Some(slot));
        if let Some(gone) = self.seats[slot.index()].member.replace(member.clone()) {
            assert!(
                gone.state.get() == MemberState::Faulty,
                "a seat is given away only after its member failed"
            );
            gone.slot.set(None);
            self.others.push(gone);
        }
    }

    /// Begins to replace the member of a slot by one that has none.
    pub fn seat_replacement(&mut self, slot: MemberSlot, member: &Rc<Member<D>>) {
        self.others.retain(|other| !Rc::ptr_eq(other, member));
        member.slot.set(Some(slot));
        let before = self.seats[slot.index()].replacement.replace(member.clone());
        assert!(before.is_none(), "a slot has one replacement");
    }

    /// Takes one out of the array altogether.
    pub fn remove(&mut self, member: &Rc<Member<D>>) {
        self.others.retain(|other| !Rc::ptr_eq(other, member));
        for seat in &mut self.seats {
            for place in [&mut seat.member, &mut seat.replacement] {
                if place.as_ref().is_some_and(|sitting| Rc::ptr_eq(sitting, member)) {
                    *place = None;
                }
            }
        }
    }

    /// Slots that nobody is left in, in order.
    pub fn vacant(&self) -> Vec<MemberSlot> {
        let slots = (0..self.seats.len() as u16).map(MemberSlot);
        let taken = |slot: &MemberSlot| {
            let seat = &self.seats[slot.index()];
            seat.member.as_ref().is_some_and(|member| member.state.get() != MemberState::Faulty)
        };
        slots.filter(|slot| !taken(slot)).collect()
    }
}

impl<D: Device + 'static, R: Runtime> Array<D, R> {
    /// All members that sit in a slot and are not faulty, and the spares: those whose superblocks are kept.
    pub(super) fn live_members(&self) -> Vec<Rc<Member<D>>> {
        self.roster.borrow().live().cloned().collect()
    }

    /// Those of them that hold a slot.
    pub(super) fn live_seated(&self) -> Vec<Rc<Member<D>>> {
        let roster = self.roster.borrow();
        roster.seated().filter(|member| member.takes_writes()).cloned().collect()
    }

    pub(super) fn slots(&self) -> impl Iterator<Item = MemberSlot> + use<D, R> {
        (0..self.shape.slots).map(MemberSlot)
    }

    /// The in-sync member of a slot.
    pub(super) fn in_sync(&self, slot: MemberSlot) -> Option<Rc<Member<D>>> {
        let roster = self.roster.borrow();
        roster.seats[slot.index()].member.as_ref().filter(|member| member.in_sync()).cloned()
    }

    /// Who in this slot must get what is written to it (law 1): its member, in sync or not yet, and its replacement.
    pub(super) fn writers(&self, slot: MemberSlot) -> impl Iterator<Item = Rc<Member<D>>> + use<D, R> {
        let Seat { member, replacement } = self.roster.borrow().seats[slot.index()].clone();
        [member, replacement].into_iter().flatten().filter(|member| member.takes_writes())
    }

    /// Who is being filled to replace the member of this slot.
    pub(super) fn replacement(&self, slot: MemberSlot) -> Option<Rc<Member<D>>> {
        let roster = self.roster.borrow();
        roster.seats[slot.index()].replacement.as_ref().filter(|member| member.takes_writes()).cloned()
    }

    /// Who in this slot holds these rows: the member, or else what is to replace it.
    pub(super) fn reader(&self, slot: MemberSlot, rows: &Range<u64>) -> Option<Rc<Member<D>>> {
        let roster = self.roster.borrow();
        roster.seats[slot.index()].occupants().find(|member| member.holds(rows)).cloned()
    }

    /// Whether a read or write of these slots must be cut where members begin or cease to hold what they should.
    pub(super) fn cuts(&self, rows: &Range<u64>) -> Vec<u64> {
        let mut cuts = Vec::new();
        for member in self.roster.borrow().seated() {
            member.cuts(rows, &mut cuts);
        }
        cuts.sort_unstable();
        cuts.dedup();
        cuts
    }

    /// Rows, cut where members begin or cease to hold what they should. What one holds must not be worked out from parity
    /// because it lacks the rows beside it: on a new array parity may say something else.
    pub(super) fn cut(&self, rows: Range<u64>) -> SmallVec<[Range<u64>; 1]> {
        split(rows.clone(), &self.cuts(&rows))
    }

    /// Members that are being filled, and how far they have come.
    pub(super) fn filling(&self) -> Vec<(Rc<Member<D>>, Sector)> {
        let roster = self.roster.borrow();
        roster.seated().filter_map(|member| Some((member.clone(), member.cursor()?))).collect()
    }
}

/// A range, split at those of the cuts (ascending) that lie in it.
pub(super) fn split(range: Range<u64>, cuts: &[u64]) -> SmallVec<[Range<u64>; 1]> {
    let first = cuts.partition_point(|&cut| cut <= range.start);
    let ends = cuts[first..].iter().copied().take_while(|&cut| cut < range.end).chain([range.end]);
    let mut at = range.start;
    ends.map(|end| std::mem::replace(&mut at, end)..end).collect()
}
