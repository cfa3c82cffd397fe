//! Where RAID4, 5 and 6 put data and parity.
//!
//! A stripe is one chunk on every member, at the same sector of each; one of its chunks holds P, with RAID6 another one
//! Q, and the rest data. The layouts differ in which member has which, from stripe to stripe, and that is all they
//! differ in: where a data chunk's bytes lie within the stripe, and where the stripe lies, is the same in all of them.
//!
//! P is the XOR of the data. Q is the sum of g^i * D over the data chunks in GF(2^8); which i a chunk has does not follow
//! from its place in the data, but from the member it is on: md counts the members from the one after Q, up and around,
//! without P and Q. DDF's layouts count members from 0, and P and Q use up theirs.
//!
//! Invariants:
//! - In every stripe each member has exactly one chunk: data once, P, or Q.
//! - The exponents of a stripe differ from each other, and are below 255, the order of g.
//! - All arithmetic fits: [`Geometry::new`](super::Geometry::new) has bounded the array at [`MAX_SECTORS`].

use super::{LayoutError, Level, MAX_SECTORS, Shape};
use crate::units::{MemberSlot, Sector, StripeIndex};

/// The smallest chunk of a level that md cuts into 4 KiB rows.
pub(super) const MIN_CHUNK_SECTORS: u64 = 8;

/// The most members that RAID6 can have: g^i takes 255 values, and DDF's layouts use one for P and one for Q.
pub(super) const MAX_RAID6_SLOTS: u16 = 255;

/// The geometry of an array of level 4, 5 or 6.
#[derive(Clone, Debug)]
pub struct Parity {
    level: Level,
    rule: Rule,
    chunk: Sector,
    slots: u16,
    stripes: u64,
}

/// The number of an array sector, taken apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Location {
    /// The stripe it is in.
    pub stripe: StripeIndex,
    /// Which of the stripe's data chunks, in the array's order: an index into [`Stripe::data`].
    pub data: usize,
    /// How far into that chunk.
    pub offset: Sector,
}

/// Who has what in one stripe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stripe {
    /// Its number.
    pub index: StripeIndex,
    /// Where its chunk begins on every member, counted from the start of the data area.
    pub sector: Sector,
    /// The members of the data chunks, in the array's order.
    pub data: Vec<MemberSlot>,
    /// The member of P.
    pub p: MemberSlot,
    /// The member of Q, with RAID6.
    pub q: Option<MemberSlot>,
    /// For each data chunk the i of its coefficient g^i in Q; empty without Q.
    pub exponents: Vec<u8>,
}

/// How parity moves from stripe to stripe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// From the last member down ("left").
    Down,
    /// From the first member up ("right").
    Up,
    /// From the last member but one down ("N restart").
    DownFromSecond,
    /// Always on the first member.
    First,
    /// Always on the last members.
    Last,
}

/// Where Q is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum QPlace {
    /// There is none.
    None,
    /// On the member after P's.
    AfterP,
    /// On the member before P's.
    BeforeP,
    /// On the last member, always; the rest is laid out as if it were not there.
    Last,
}

/// Where the data of a stripe begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Order {
    /// On the member after parity, going around ("symmetric", "continue").
    AfterParity,
    /// On the first member ("asymmetric", "restart").
    Ascending,
}

/// How a stripe lies on the members.
struct Turn {
    /// Members that data goes around on, from the first one up.
    ring: u16,
    p: u16,
    q: Option<u16>,
    /// The first that may have data.
    first: u16,
}

impl Turn {
    /// The members of the data chunks, in the array's order.
    fn data(&self) -> impl Iterator<Item = u16> {
        let &Turn { ring, p, q, first } = self;
        (first..first + ring).map(move |slot| slot % ring).filter(move |&slot| slot != p && Some(slot) != q)
    }
}

/// A layout, in words.
#[derive(Clone, Copy, Debug)]
struct Rule {
    p: Place,
    q: QPlace,
    order: Order,
    ddf: bool,
}

impl Rule {
    /// The meaning of md's layout number. None if it has none.
    fn of(level: Level, layout: u32) -> Option<Rule> {
        let rule = |p, q, order| Some(Rule { p, q, order, ddf: false });
        let ddf = |p, q, order| Some(Rule { p, q, order, ddf: true });
        let (q, like) = match level {
            Level::Raid4 => return rule(Place::Last, QPlace::None, Order::Ascending),
            Level::Raid5 => (QPlace::None, layout),
            Level::Raid6 if (16..=20).contains(&layout) => (QPlace::Last, layout - 16),
            Level::Raid6 => (QPlace::AfterP, layout),
            Level::Raid0 | Level::Raid1 | Level::Raid10 => return None,
        };
        match (q, like) {
            (_, 0) => rule(Place::Down, q, Order::Ascending),
            (_, 1) => rule(Place::Up, q, Order::Ascending),
            (_, 2) => rule(Place::Down, q, Order::AfterParity),
            (_, 3) => rule(Place::Up, q, Order::AfterParity),
            (_, 4) => rule(Place::First, q, Order::Ascending),
            (_, 5) => rule(Place::Last, q, Order::Ascending),
            (QPlace::AfterP, 8) => ddf(Place::Up, q, Order::Ascending),
            (QPlace::AfterP, 9) => ddf(Place::DownFromSecond, q, Order::Ascending),
            (QPlace::AfterP, 10) => ddf(Place::Down, QPlace::BeforeP, Order::AfterParity),
            _ => None,
        }
    }
}

impl Parity {
    /// Checks everything that depends on the level; the sizes within [`MAX_SECTORS`] and the number of slots have been
    /// checked already.
    pub(super) fn new(shape: &Shape) -> Result<Parity, LayoutError> {
        let &Shape { level, layout, chunk, slots, member, .. } = shape;
        let (least, most) = match level {
            Level::Raid6 => (4, MAX_RAID6_SLOTS),
            _ => (2, super::MAX_SLOTS),
        };
        super::check_slots(level, slots, least, most)?;
        let rule = Rule::of(level, layout).ok_or(LayoutError::UnknownLayout { level, layout })?;
        super::check_power_of_two(level, chunk)?;
        super::check_one_chunk(member, chunk)?;
        let stripes = member.0 / chunk.0;
        let parity = Parity { level, rule, chunk, slots, stripes };
        let sectors =
            stripes.checked_mul(chunk.0).and_then(|each| each.checked_mul(parity.data_count() as u64));
        match sectors {
            Some(sectors) if sectors <= MAX_SECTORS => Ok(parity),
            _ => Err(LayoutError::TooLarge),
        }
    }

    /// Sectors of a chunk.
    pub fn chunk(&self) -> Sector {
        self.chunk
    }

    /// Members of the array.
    pub fn slots(&self) -> u16 {
        self.slots
    }

    /// Data chunks of a stripe.
    pub fn data_count(&self) -> usize {
        usize::from(self.slots) - self.parity_count()
    }

    /// Parity chunks of a stripe: 1, with RAID6 2.
    pub fn parity_count(&self) -> usize {
        self.level.parity_count()
    }

    /// Stripes of the array; what is left of a member behind the last one is unused.
    pub fn stripe_count(&self) -> u64 {
        self.stripes
    }

    /// Array sectors of a stripe.
    pub fn stripe_sectors(&self) -> Sector {
        Sector(self.chunk.0 * self.data_count() as u64)
    }

    /// Sectors of the array.
    pub fn array_sectors(&self) -> Sector {
        Sector(self.stripe_sectors().0 * self.stripes)
    }

    /// Sectors of each member that stripes use.
    pub fn used_member_sectors(&self) -> Sector {
        Sector(self.chunk.0 * self.stripes)
    }

    /// Where an array sector lies. Panics if it is behind the array's end.
    pub fn locate(&self, array: Sector) -> Location {
        assert!(array < self.array_sectors(), "sector {array} of an array of {}", self.array_sectors());
        let per_stripe = self.stripe_sectors().0;
        let within = array.0 % per_stripe;
        Location {
            stripe: StripeIndex(array.0 / per_stripe),
            data: (within / self.chunk.0) as usize,
            offset: Sector(within % self.chunk.0),
        }
    }

    /// Who has what in a stripe. Panics if it is behind the array's end.
    pub fn stripe(&self, index: StripeIndex) -> Stripe {
        assert!(index.0 < self.stripes, "stripe {} of an array of {}", index.0, self.stripes);
        let turn = self.turn(index);
        let Turn { p, q, .. } = turn;
        let data: Vec<u16> = turn.data().collect();
        let exponents = match q {
            None => Vec::new(),
            Some(q) => {
                let exponent_of = self.exponents_by_slot(p, q);
                data.iter().map(|slot| exponent_of[usize::from(*slot)]).collect()
            }
        };
        Stripe {
            index,
            sector: Sector(index.0 * self.chunk.0),
            data: data.into_iter().map(MemberSlot).collect(),
            p: MemberSlot(p),
            q: q.map(MemberSlot),
            exponents,
        }
    }

    /// The member of one data chunk of a stripe: `stripe(index).data[data]`, at less cost.
    pub fn data_slot(&self, index: StripeIndex, data: usize) -> MemberSlot {
        MemberSlot(self.turn(index).data().nth(data).expect("a data chunk of the stripe"))
    }

    fn turn(&self, index: StripeIndex) -> Turn {
        let slots = self.slots;
        // The members among which P and the data go around: all, unless Q keeps to the last.
        let ring = if self.rule.q == QPlace::Last { slots - 1 } else { slots };
        let turn = (index.0 % u64::from(ring)) as u16;
        let p = match self.rule.p {
            Place::Down => ring - 1 - turn,
            Place::Up => turn,
            Place::DownFromSecond => ring - 1 - (turn + 1) % ring,
            Place::First => 0,
            Place::Last => slots - self.parity_count() as u16,
        };
        let q = match self.rule.q {
            QPlace::None => None,
            QPlace::AfterP => Some((p + 1) % ring),
            QPlace::BeforeP => Some((p + ring - 1) % ring),
            QPlace::Last => Some(slots - 1),
        };
        let first = match self.rule.order {
            Order::AfterParity => p + 1, // or Q, which is left out
            Order::Ascending => 0,
        };
        Turn { ring, p, q, first }
    }

    /// The exponent of each member's chunk in Q. Those of P and Q themselves mean nothing.
    fn exponents_by_slot(&self, p: u16, q: u16) -> Vec<u8> {
        let mut exponents = vec![0; usize::from(self.slots)];
        let mut next = 0u8; // ends at no more than 255: MAX_RAID6_SLOTS
        for step in 0..self.slots {
            let slot = if self.rule.ddf { step } else { (q + 1 + step) % self.slots };
            let holds_data = slot != p && slot != q;
            if holds_data {
                exponents[usize::from(slot)] = next;
            }
            if holds_data || self.rule.ddf {
                next += 1;
            }
        }
        exponents
    }
}
