//! Proof of the layouts: properties against the naive model, examples, and that no superblock can make them panic.

use std::collections::HashSet;

use proptest::prelude::*;

use super::naive::{self, Holds};
use super::*;
use crate::units::{MemberSlot, StripeIndex};

pub(super) fn shape(level: Level, layout: u32, slots: u16, chunk: u64, member: u64) -> Shape {
    Shape { level, layout, chunk: Sector(chunk), slots, member: Sector(member), raid0_members: vec![] }
}

pub(super) fn raid0_shape(layout: u32, chunk: u64, members: &[u64]) -> Shape {
    let raid0_members = members.iter().copied().map(Sector).collect();
    Shape { raid0_members, ..shape(Level::Raid0, layout, members.len() as u16, chunk, 0) }
}

pub(super) fn copies(shape: &Shape) -> Copies {
    match Geometry::new(shape) {
        Ok(Geometry::Copies(copies)) => copies,
        other => panic!("{shape:?}: {other:?}"),
    }
}

pub(super) fn parity(shape: &Shape) -> Parity {
    match Geometry::new(shape) {
        Ok(Geometry::Parity(parity)) => parity,
        other => panic!("{shape:?}: {other:?}"),
    }
}

fn refused(shape: &Shape) -> LayoutError {
    Geometry::new(shape).expect_err("this shape is to be refused")
}

// ---------------------------------------------------------------- against the naive model

fn arb_copies_shape() -> impl Strategy<Value = Shape> {
    let raid0 = (1..=2u32, 1..40u64, prop::collection::vec(1..12u64, 1..7), 0..40u64).prop_map(
        |(layout, chunk, chunks, rest)| {
            let sizes: Vec<u64> = chunks.iter().map(|chunks| chunks * chunk + rest % chunk).collect();
            raid0_shape(layout, chunk, &sizes)
        },
    );
    let raid1 = (1..6u16, 1..100u64).prop_map(|(slots, member)| shape(Level::Raid1, 0, slots, 0, member));
    let raid10 = (1..=5u32, 1..=4u32, any::<bool>(), 0..=2u32, 0..6u16, 3..6u32, 1..400u64)
        .prop_filter("copies", |(near, far, ..)| near * far > 1)
        .prop_map(|(near, far, offset, sets, more, chunk_shift, member)| {
            let layout = near | far << 8 | u32::from(offset) << 16 | sets << 17;
            shape(Level::Raid10, layout, (near * far) as u16 + more, 1 << chunk_shift, member)
        })
        .prop_filter("fits", |shape| Geometry::new(shape).is_ok());
    prop_oneof![raid0, raid1, raid10]
}

fn arb_parity_shape() -> impl Strategy<Value = Shape> {
    let raid4 = (any::<u32>(), 2..9u16).prop_map(|(layout, slots)| (Level::Raid4, layout, slots));
    let raid5 = (0..=5u32, 2..9u16).prop_map(|(layout, slots)| (Level::Raid5, layout, slots));
    let layouts = prop::sample::select(vec![0, 1, 2, 3, 4, 5, 8, 9, 10, 16, 17, 18, 19, 20]);
    let raid6 = (layouts, prop_oneof![4..10u16, 250..=255u16])
        .prop_map(|(layout, slots)| (Level::Raid6, layout, slots));
    (prop_oneof![raid4, raid5, raid6], 3..7u32, 1..30u64, 0..8u64).prop_map(
        |((level, layout, slots), chunk_shift, stripes, rest)| {
            shape(level, layout, slots, 1 << chunk_shift, (stripes << chunk_shift) + rest)
        },
    )
}

proptest! {
    #[test]
    fn copies_are_where_the_naive_model_has_them(shape in arb_copies_shape()) {
        let copies = copies(&shape);
        let chunk = copies.chunk().map_or(1, |chunk| chunk.0);
        let expected = naive::copies(&shape);
        let end = naive::copies_sectors(&shape, expected.len() as u64);
        prop_assert_eq!(copies.array_sectors(), Sector(end));
        let mut taken = HashSet::new();
        for (number, expected) in (0..).zip(expected) {
            let start = Sector(number * chunk);
            if start.0 >= end {
                break;
            }
            let len = Sector(chunk.min(end - start.0));
            let extents: Vec<Extent> = copies.extents(start, len).collect();
            prop_assert_eq!(extents.len(), 1);
            prop_assert_eq!((extents[0].array, extents[0].len), (start, len));
            let found: Vec<(usize, u64)> =
                extents[0].copies.iter().map(|copy| (copy.slot.index(), copy.sector.0 / chunk)).collect();
            prop_assert_eq!(&found, &expected);
            prop_assert_eq!(found.len(), copies.copies());

            let members: HashSet<_> = found.iter().map(|(slot, _)| *slot).collect();
            prop_assert_eq!(members.len(), found.len(), "copies on one member");
            for place in found {
                prop_assert!(taken.insert(place), "two chunks at {:?}", place);
                if shape.level != Level::Raid0 {
                    prop_assert!((place.1 + 1) * chunk <= copies.used_member_sectors().0);
                }
            }
        }
    }

    #[test]
    fn every_member_sector_leads_back(shape in arb_copies_shape(), offset in 0..64u64) {
        let copies = copies(&shape);
        let mut expected = HashSet::new();
        for extent in copies.extents(Sector::ZERO, copies.array_sectors()) {
            let offset = offset % copies.chunk().map_or(extent.len.0, |chunk| chunk.0);
            if offset >= extent.len.0 {
                continue; // a chunk that the array's end cuts
            }
            for copy in extent.copies {
                let place = Place { slot: copy.slot, sector: Sector(copy.sector.0 + offset) };
                prop_assert_eq!(copies.array_at(place), Some(Sector(extent.array.0 + offset)));
                expected.insert(place);
            }
        }
        let chunk = copies.chunk().map_or(1, |chunk| chunk.0);
        if chunk > 1 {
            for slot in 0..copies.slots() {
                for row in 0..500 {
                    let place = Place { slot: MemberSlot(slot), sector: Sector(row * chunk + offset % chunk) };
                    prop_assert_eq!(copies.array_at(place).is_some(), expected.contains(&place), "{:?}", place);
                }
            }
        }
    }

    #[test]
    fn any_range_is_cut_at_chunks(shape in arb_copies_shape(), from: prop::sample::Index, to: prop::sample::Index) {
        let copies = copies(&shape);
        let sectors = copies.array_sectors().0 as usize;
        let (from, to) = (from.index(sectors + 1) as u64, to.index(sectors + 1) as u64);
        let (from, to) = (from.min(to), from.max(to));
        let mut at = from;
        for extent in copies.extents(Sector(from), Sector(to - from)) {
            prop_assert_eq!(extent.array.0, at);
            prop_assert!(extent.len.0 > 0);
            let last = Sector(extent.array.0 + extent.len.0 - 1);
            let ends = copies.extents(last, Sector(1)).next().unwrap().copies;
            for (first, end) in extent.copies.iter().zip(ends) {
                prop_assert_eq!((first.slot, first.sector.0 + extent.len.0 - 1), (end.slot, end.sector.0));
            }
            at += extent.len.0;
            match copies.chunk() {
                Some(chunk) => prop_assert!(at == to || at % chunk.0 == 0),
                None => prop_assert_eq!(at, to),
            }
        }
        prop_assert_eq!(at, to);
    }

    #[test]
    fn mirrors_survive_while_each_chunk_has_a_copy(shape in arb_copies_shape(), present: u32) {
        let geometry = Geometry::new(&shape).unwrap();
        let present: Vec<bool> = (0..shape.slots).map(|slot| present >> slot & 1 == 1).collect();
        let expected = naive::copies(&shape).iter().all(|copies| copies.iter().any(|(slot, _)| present[*slot]));
        prop_assert_eq!(geometry.survives(&present), expected);
    }

    #[test]
    fn redundancy_is_what_any_more_of_them_may_cost(
        shape in prop_oneof![arb_copies_shape(), arb_parity_shape()], lost: u32,
    ) {
        let geometry = Geometry::new(&shape).unwrap();
        let slots = usize::from(shape.slots).min(31);
        let set = |missing: u32| (0..shape.slots).map(|slot| missing >> slot & 1 == 0).collect::<Vec<bool>>();
        prop_assume!(usize::from(shape.slots) <= 12);
        let lost = lost & ((1 << slots) - 1);
        // Every set of members that could be lost on top, by its size.
        let more = (0u32..1 << slots).filter(|more| more & lost == 0 && !geometry.survives(&set(lost | more)));
        let fatal = more.map(u32::count_ones).min();
        prop_assert_eq!(geometry.redundancy(&set(lost)) as u32, fatal.unwrap_or(0).saturating_sub(1));
    }

    #[test]
    fn stripes_are_what_the_naive_model_has(shape in arb_parity_shape()) {
        let parity = parity(&shape);
        prop_assert_eq!(parity.stripe_count(), shape.member.0 / shape.chunk.0);
        prop_assert_eq!(parity.data_count() + parity.parity_count(), usize::from(shape.slots));
        prop_assert_eq!(parity.array_sectors().0, parity.stripe_sectors().0 * parity.stripe_count());
        for index in 0..parity.stripe_count() {
            let stripe = parity.stripe(StripeIndex(index));
            prop_assert_eq!(stripe.sector, Sector(index * shape.chunk.0));
            let (holds, exponents) = naive::stripe(&shape, index);
            let mut found = vec![None; holds.len()];
            for (number, slot) in stripe.data.iter().enumerate() {
                prop_assert_eq!(found[slot.index()].replace(Holds::Data(number)), None);
                if shape.level == Level::Raid6 {
                    prop_assert_eq!(usize::from(stripe.exponents[number]), exponents[slot.index()]);
                }
            }
            prop_assert_eq!(found[stripe.p.index()].replace(Holds::P), None);
            if let Some(q) = stripe.q {
                prop_assert_eq!(found[q.index()].replace(Holds::Q), None);
            }
            prop_assert_eq!(found.into_iter().map(Option::unwrap).collect::<Vec<_>>(), holds);
        }
    }

    #[test]
    fn located_sectors_follow_one_another(shape in arb_parity_shape(), sector: prop::sample::Index) {
        let parity = parity(&shape);
        let sector = sector.index(parity.array_sectors().0 as usize) as u64;
        let location = parity.locate(Sector(sector));
        prop_assert!(location.offset < parity.chunk() && location.data < parity.data_count());
        let chunks = location.stripe.0 * parity.data_count() as u64 + location.data as u64;
        prop_assert_eq!(chunks * parity.chunk().0 + location.offset.0, sector);
    }

    /// The superblock's numbers may be anything.
    #[test]
    fn no_shape_panics(
        level in prop::sample::select(Level::ALL.to_vec()),
        layout in prop_oneof![any::<u32>(), 0..0x8_0000u32, 0..22u32, Just(0x102), Just(0x201)],
        chunk in prop_oneof![any::<u64>(), 0..70u64, (0..64u32).prop_map(|shift| 1 << shift)],
        slots in prop_oneof![any::<u16>(), 0..12u16],
        member in prop_oneof![any::<u64>(), 0..1000u64, Just(MAX_SECTORS), Just(u64::MAX)],
        members in prop::collection::vec(prop_oneof![any::<u64>(), 0..1000u64, Just(MAX_SECTORS)], 0..12),
        as_many: bool,
    ) {
        let slots = if as_many { members.len() as u16 } else { slots };
        let raid0_members = members.into_iter().map(Sector).collect();
        let shape = Shape { level, layout, chunk: Sector(chunk), slots, member: Sector(member), raid0_members };
        let Ok(geometry) = Geometry::new(&shape) else { return Ok(()) };
        let sectors = geometry.array_sectors();
        prop_assert!(sectors.0 > 0 && sectors.0 <= MAX_SECTORS);
        prop_assert!(geometry.survives(&vec![true; usize::from(slots)]));
        prop_assert!(!geometry.survives(&vec![false; usize::from(slots)]));
        let last = Sector(sectors.0 - 1);
        match geometry {
            Geometry::Copies(copies) => {
                let extent = copies.extents(last, Sector(1)).next().unwrap();
                for copy in extent.copies {
                    prop_assert_eq!(copies.array_at(copy), Some(last));
                    let unused = Place { slot: copy.slot, sector: Sector(u64::MAX) };
                    prop_assert_eq!(copies.array_at(unused), None);
                }
            }
            Geometry::Parity(parity) => {
                let location = parity.locate(last);
                prop_assert_eq!(location.stripe.0, parity.stripe_count() - 1);
                prop_assert_eq!(parity.stripe(location.stripe).data.len(), parity.data_count());
            }
        }
    }
}

// ---------------------------------------------------------------- by example

#[test]
fn raid6_survives_every_pair_and_no_triple() {
    for layout in [0, 1, 2, 3, 4, 5, 8, 9, 10, 16, 17, 18, 19, 20] {
        for slots in [4, 5, 6, 9, 255] {
            let shape = shape(Level::Raid6, layout, slots, 8, 8 * u64::from(slots));
            let geometry = Geometry::new(&shape).unwrap();
            let parity = parity(&shape);
            for index in 0..parity.stripe_count() {
                // Two lost data chunks can be told apart if and only if their coefficients differ, and g has order 255.
                let exponents = parity.stripe(StripeIndex(index)).exponents;
                let distinct: HashSet<u8> = exponents.iter().copied().collect();
                assert_eq!(distinct.len(), parity.data_count(), "layout {layout} of {slots}, stripe {index}");
                assert!(!distinct.contains(&255));
            }
            for first in 0..slots.min(9) {
                for second in 0..first {
                    let mut present = vec![true; usize::from(slots)];
                    present[usize::from(first)] = false;
                    present[usize::from(second)] = false;
                    assert!(geometry.survives(&present));
                    for third in 0..second {
                        present[usize::from(third)] = false;
                        assert!(!geometry.survives(&present));
                        present[usize::from(third)] = true;
                    }
                }
            }
        }
    }
}

/// `used` as the kernel computes it, against our shorter way.
#[test]
fn raid10_uses_what_the_kernel_says() {
    for slots in 2..=9u64 {
        for near in 1..=slots {
            for far in 1..=slots / near {
                for rows in far..40 {
                    let layout = (near | far << 8) as u32;
                    let Ok(geometry) =
                        Geometry::new(&shape(Level::Raid10, layout, slots as u16, 8, rows * 8))
                    else {
                        assert_eq!(near * far, 1);
                        continue;
                    };
                    let chunks = rows / far * slots / near;
                    let used = (chunks * near * far).div_ceil(slots);
                    assert_eq!(geometry.array_sectors(), Sector(chunks * 8));
                    assert_eq!(geometry.used_member_sectors(), Sector(used * 8));
                    let again = shape(Level::Raid10, layout, slots as u16, 8, used * 8);
                    assert_eq!(Geometry::new(&again).unwrap().array_sectors(), geometry.array_sectors());
                }
            }
        }
    }
}

#[test]
fn one_member_of_raid0_is_fatal() {
    let geometry = Geometry::new(&raid0_shape(1, 8, &[80, 160, 160])).unwrap();
    assert!(geometry.survives(&[true; 3]));
    for lost in 0..3 {
        let mut present = [true; 3];
        present[lost] = false;
        assert!(!geometry.survives(&present));
    }
}

/// As the kernel (6.1) made it: four members of 22528 sectors, chunks of 12 KiB.
#[test]
fn raid0_of_odd_chunks_ends_where_the_kernel_ends_it() {
    let array = |chunk, members: &[u64]| copies(&raid0_shape(1, chunk, members)).array_sectors();
    assert_eq!(array(24, &[22528; 4]), Sector(89_984));
    assert_eq!(
        array(32, &[22528 + 31; 4]),
        Sector(90_112),
        "a power of two loses nothing but what is no whole chunk"
    );
}

#[test]
fn raid0_without_layout_is_refused_only_if_it_matters() {
    assert!(Geometry::new(&raid0_shape(0, 8, &[80, 87, 80])).is_ok(), "one zone");
    assert!(Geometry::new(&raid0_shape(0, 8, &[80, 88, 80])).is_ok(), "second zone with one member");
    assert_eq!(refused(&raid0_shape(0, 8, &[80, 88, 88])), LayoutError::AmbiguousZones { zones: 2 });
    assert_eq!(refused(&raid0_shape(0, 8, &[80, 88, 96])), LayoutError::AmbiguousZones { zones: 3 });
    let unknown = LayoutError::UnknownLayout { level: Level::Raid0, layout: 3 };
    assert_eq!(refused(&raid0_shape(3, 8, &[80, 88, 96])), unknown);
    let message = refused(&raid0_shape(0, 8, &[80, 88, 88])).to_string();
    assert!(message.contains("original (1) or alternate (2)"), "{message}");
}

/// Refused is exactly what does not work: copies of a chunk on one member, or two chunks in one place.
#[test]
fn raid10_is_refused_if_and_only_if_copies_collide() {
    let mut counts = [0, 0];
    for slots in 2..=11u16 {
        for (near, far) in (1..=5u32).flat_map(|near| (1..=5u32).map(move |far| (near, far))) {
            if near * far < 2 || near * far > u32::from(slots) {
                continue;
            }
            for (offset, sets) in [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)] {
                let layout = near | far << 8 | offset << 16 | sets << 17;
                let shape = shape(Level::Raid10, layout, slots, 8, 8 * 60);
                let mut taken = HashSet::new();
                let collide = naive::copies(&shape).iter().any(|copies| {
                    let members: HashSet<_> = copies.iter().map(|(slot, _)| *slot).collect();
                    members.len() < copies.len() || copies.iter().any(|place| !taken.insert(*place))
                });
                match Geometry::new(&shape) {
                    Ok(_) => assert!(!collide, "{shape:?} is accepted"),
                    Err(LayoutError::CopiesCollide { .. }) => assert!(collide, "{shape:?} is refused"),
                    Err(error) => panic!("{shape:?}: {error}"),
                }
                counts[usize::from(collide)] += 1;
            }
        }
    }
    assert!(counts.iter().all(|count| *count > 20), "{counts:?}");
}

#[test]
fn combinations_that_lose_data_are_refused() {
    for (layout, slots) in [
        (0x4_0202, 9), // far sets that do not divide the members: two members map to one
        (0x2_0202, 4), // sets of two with two near copies: far copies on the same members
        (0x1_0202, 5), // near copies go on in the row of offset copies
        (0x2_0301, 4), // a set of one: the far copy is on the same member
    ] {
        let error = refused(&shape(Level::Raid10, layout, slots, 8, 800));
        assert_eq!(error, LayoutError::CopiesCollide { layout, slots });
    }
}

#[test]
fn refused_shapes_say_why() {
    use LayoutError::*;
    let (five, six, ten) = (Level::Raid5, Level::Raid6, Level::Raid10);
    let cases = [
        (shape(five, 2, 0, 8, 80), TooFewMembers { level: five, slots: 0, least: 1 }),
        (shape(five, 2, 1, 8, 80), TooFewMembers { level: five, slots: 1, least: 2 }),
        (shape(six, 2, 3, 8, 80), TooFewMembers { level: six, slots: 3, least: 4 }),
        (shape(six, 2, 256, 8, 80), TooManyMembers { level: six, slots: 256, most: 255 }),
        (shape(five, 2, 1921, 8, 80), TooManyMembers { level: five, slots: 1921, most: 1920 }),
        (shape(five, 6, 3, 8, 80), UnknownLayout { level: five, layout: 6 }),
        (shape(five, 16, 3, 8, 80), UnknownLayout { level: five, layout: 16 }),
        (shape(six, 6, 4, 8, 80), UnknownLayout { level: six, layout: 6 }),
        (shape(six, 11, 4, 8, 80), UnknownLayout { level: six, layout: 11 }),
        (shape(six, 21, 4, 8, 80), UnknownLayout { level: six, layout: 21 }),
        (shape(ten, 0x100, 4, 8, 80), UnknownLayout { level: ten, layout: 0x100 }),
        (shape(ten, 0x2, 4, 8, 80), UnknownLayout { level: ten, layout: 0x2 }),
        (shape(ten, 0x6_0102, 4, 8, 80), UnknownLayout { level: ten, layout: 0x6_0102 }),
        (shape(ten, 0x101, 4, 8, 80), CopyCount { copies: 1, slots: 4 }),
        (shape(ten, 0x105, 4, 8, 80), CopyCount { copies: 5, slots: 4 }),
        (shape(five, 2, 3, 0, 80), ZeroChunk { level: five }),
        (shape(five, 2, 3, 4, 80), ChunkSize { level: five, chunk: Sector(4) }),
        (shape(ten, 0x102, 3, 24, 80), ChunkSize { level: ten, chunk: Sector(24) }),
        (shape(five, 2, 3, 128, 127), MemberTooSmall { member: Sector(127), chunk: Sector(128) }),
        (shape(ten, 0x201, 3, 8, 15), MemberTooSmall { member: Sector(15), chunk: Sector(8) }),
        (shape(five, 2, 3, 8, MAX_SECTORS + 1), TooLarge),
        (shape(five, 2, 4, 8, MAX_SECTORS / 2), TooLarge),
        (shape(Level::Raid1, 0, 2, 0, 0), ZeroMember),
        (raid0_shape(1, 0, &[80, 80]), ZeroChunk { level: Level::Raid0 }),
        (raid0_shape(1, 8, &[80, 7]), MemberTooSmall { member: Sector(7), chunk: Sector(8) }),
        (raid0_shape(1, 8, &[MAX_SECTORS, 8]), TooLarge),
        (Shape { slots: 3, ..raid0_shape(1, 8, &[80, 80]) }, MemberSizes { sizes: 2, slots: 3 }),
    ];
    for (shape, error) in cases {
        assert_eq!(refused(&shape), error, "{shape:?}");
    }
}

#[test]
#[should_panic(expected = "of an array of")]
fn behind_the_end_is_the_callers_mistake() {
    let copies = copies(&shape(Level::Raid1, 0, 2, 0, 100));
    let _extents = copies.extents(Sector(99), Sector(2)).count();
}

/// RAID0 once computed the array sector first and then whether there is one.
#[test]
fn behind_the_end_of_a_member_is_nothing() {
    for shape in [
        raid0_shape(1, 8, &[80, 160, 160]),
        raid0_shape(1, 8, &[80, 80]),
        shape(Level::Raid1, 0, 2, 0, 80),
        shape(Level::Raid10, 0x201, 2, 8, 80),
        shape(Level::Raid10, 0x1_0201, 2, 8, 80),
    ] {
        let copies = copies(&shape);
        for slot in (0..copies.slots()).map(MemberSlot) {
            let end = shape.raid0_members.get(slot.index()).map_or(80, |size| size.0);
            assert!(copies.array_at(Place { slot, sector: Sector(end - 1) }).is_some(), "{shape:?}");
            for sector in [end, end + 8, MAX_SECTORS, u64::MAX] {
                assert_eq!(copies.array_at(Place { slot, sector: Sector(sector) }), None, "{shape:?}");
            }
        }
    }
}

#[test]
fn nothing_has_no_extents() {
    let copies = copies(&shape(Level::Raid10, 0x102, 2, 8, 80));
    assert_eq!(copies.extents(copies.array_sectors(), Sector::ZERO).count(), 0);
}
