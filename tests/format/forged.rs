//! The golden arrays' kin: states and geometries that they do not show are read right, or refused, and nothing is
//! written to them.

use std::time::Duration;

use raidd::engine::{AssembleOptions, Health, Refusal};
use raidd::io::{Clock, Device, Fua, IoErrorKind, Pool, Slice};
use raidd::md::{Bitmap, Features, Superblock};
use raidd::units::Sector;

use crate::forge::{Forged, MEMBER_SECTORS, Shape, noise, shape};
use crate::members::{MemoryMember, content, open, stop};
use raidd_sim::world::World;

const REDUNDANT: [Shape; 9] = [
    shape(1, 0, 0, 2),
    shape(1, 0, 0, 3),
    shape(4, 0, 16, 3),
    shape(5, 2, 32, 4),
    shape(5, 1, 8, 3),
    shape(6, 2, 16, 5),
    shape(10, 0x102, 16, 4),
    shape(10, 0x201, 8, 3),
    shape(10, 0x10201, 16, 5),
];

fn plain() -> AssembleOptions {
    AssembleOptions::default()
}

/// The content is right, opened read-only or not, and no member has changed.
fn check(members: &[MemoryMember], expected: &[u8], read_only: bool, what: &str) {
    let before: Vec<_> = members.iter().map(|member| member.device.content()).collect();
    let world = World::new(1);
    let options = AssembleOptions { read_only, ..plain() };
    let array = open(&world, members, &options).unwrap_or_else(|refusal| panic!("{what}: {refusal}"));
    assert_eq!(array.info().read_only, read_only, "{what}");
    let read = content(&world, &array).unwrap_or_else(|error| panic!("{what}: {error}"));
    assert_eq!(read.len(), expected.len(), "{what}");
    let wrong = (0..read.len() / 512).find(|at| read[at * 512..][..512] != expected[at * 512..][..512]);
    assert_eq!(wrong, None, "{what}: the first wrong sector");
    array.start();
    stop(&world, array);
    for (member, before) in members.iter().zip(before) {
        assert!(member.device.content() == before, "{what}: {} was changed", member.label);
    }
}

/// What somebody else began is ended here: then every member holds what it should.
fn ends_well(members: &[MemoryMember], expected: &[u8], slots: usize, what: &str) {
    let world = World::new(3);
    let array = open(&world, members, &plain()).unwrap_or_else(|refusal| panic!("{what}: {refusal}"));
    array.start();
    let (waiting, clock) = (array.clone(), world.clone());
    world.run(async move {
        while waiting.status().sync.is_some() {
            clock.sleep(Duration::from_millis(1)).await;
        }
    });
    assert_eq!(array.health(), Health::Optimal, "{what}");
    stop(&world, array);
    let in_sync = |member: &&MemoryMember| {
        let superblock = Superblock::parse(&member.device.content()[4096..8192]).expect("a superblock");
        superblock.recovered() == Sector::MAX
    };
    assert!(members.iter().filter(in_sync).count() >= slots, "{what}");
    for missing in 0..members.len() {
        let mut rest = members.to_vec();
        rest.remove(missing);
        let array = open(&world, &rest, &plain()).unwrap_or_else(|refusal| panic!("{what}: {refusal}"));
        assert!(content(&world, &array).expect("readable") == expected, "{what}: without {missing}");
    }
}

fn refusal(members: &[MemoryMember]) -> Refusal {
    let before: Vec<_> = members.iter().map(|member| member.device.content()).collect();
    let refusal = open(&World::new(1), members, &plain()).map(|_| ()).expect_err("it is to be refused");
    assert!(members.iter().zip(before).all(|(member, before)| member.device.content() == before));
    refusal
}

#[test]
fn whole_arrays() {
    for shape in REDUNDANT {
        let forged = Forged::new(shape, 0, false);
        check(&forged.without(&[], 512), &forged.content, false, &format!("{shape:?}"));
        (0..shape.slots).for_each(|missing| {
            check(
                &forged.without(&[missing], 4096),
                &forged.content,
                false,
                &format!("{shape:?} less {missing}"),
            );
        });
    }
}

#[test]
fn half_rebuilt_members() {
    for shape in REDUNDANT {
        for slot in 0..shape.slots {
            let whole = Forged::new(shape, 0, false);
            for recovered in [0, 8, 203, 512] {
                let mut forged = whole.clone();
                forged.half_rebuild(slot, recovered);
                let what = format!("{shape:?}: slot {slot} is rebuilt up to {recovered}");
                check(&forged.without(&[], 512), &forged.content, true, &what);
                check(&forged.without(&[], 4096), &forged.content, true, &what);
                if recovered == 203 {
                    ends_well(&forged.without(&[], 512), &forged.content, shape.slots, &what);
                }
                if shape.level == 6 {
                    let other = (slot + 2) % shape.slots;
                    check(&forged.without(&[other], 512), &forged.content, true, &what);
                }
                if shape.level == 5 {
                    let other = (slot + 1) % shape.slots;
                    assert!(matches!(refusal(&forged.without(&[other], 512)), Refusal::TooFew(_)), "{what}");
                }
            }
        }
    }
}

#[test]
fn half_replaced_members() {
    for shape in REDUNDANT {
        let whole = Forged::new(shape, 1, false);
        for slot in 0..shape.slots {
            let mut forged = whole.clone();
            forged.half_replace(slot, 203);
            let what = format!("{shape:?}: slot {slot} is replaced up to 203");
            check(&forged.without(&[], 512), &forged.content, true, &what);
            check(&forged.without(&[slot], 512), &forged.content, true, &what);
            check(&forged.without(&[slot], 4096), &forged.content, true, &what);
            ends_well(&forged.without(&[], 512), &forged.content, shape.slots, &what);
            ends_well(&forged.without(&[slot], 512), &forged.content, shape.slots, &what);
            // Where the original is bad, its replacement serves; the other way about, and both ways.
            forged.make_bad(slot, &[(10, 30), (100, 108)]);
            check(&forged.without(&[], 512), &forged.content, true, &what);
            let other = (slot + 1) % shape.slots;
            check(&forged.without(&[other], 512), &forged.content, true, &what);
            let spare = shape.slots;
            forged.make_bad(spare, &[(31, 60), (109, 110)]);
            check(&forged.without(&[other], 512), &forged.content, true, &what);
            check(&forged.without(&[], 512), &forged.content, true, &what);
        }
    }
}

#[test]
fn bad_blocks() {
    for shape in REDUNDANT {
        let whole = Forged::new(shape, 0, false);
        for slot in 0..shape.slots {
            let mut forged = whole.clone();
            let what = format!("{shape:?}: bad blocks at slot {slot} and others");
            forged.make_bad(slot, &[(0, 3), (64, 128), (203, 211)]);
            check(&forged.without(&[], 512), &forged.content, true, &what);
            check(&forged.without(&[], 4096), &forged.content, true, &what);
            // Another is bad elsewhere; far copies of the same data lie elsewhere, too.
            if shape.level == 10 && shape.layout != 0x102 {
                continue;
            }
            forged.make_bad((slot + 1) % shape.slots, &[(8, 20), (128, 140), (320, 400)]);
            check(&forged.without(&[], 512), &forged.content, true, &what);
            check(&forged.without(&[], 4096), &forged.content, true, &what);
            if shape.level == 6 {
                forged.make_bad((slot + 2) % shape.slots, &[(1, 10), (350, 390)]);
                check(&forged.without(&[], 512), &forged.content, true, &what);
            }
        }
    }
}

/// What is bad everywhere is an error there, never noise, and the rest is read.
#[test]
fn what_is_bad_everywhere_is_an_error() {
    for shape in [shape(1, 0, 0, 2), shape(5, 2, 32, 3), shape(10, 0x102, 16, 2)] {
        let mut forged = Forged::new(shape, 0, false);
        forged.make_bad(0, &[(40, 60)]);
        forged.make_bad(1, &[(50, 70)]);
        let world = World::new(1);
        let array = open(&world, &forged.without(&[], 512), &plain()).expect("all members are there");
        let reader = array.clone();
        let expected = forged.content.clone();
        let lost = world.run(async move {
            let pool = Pool::new(1 << 20).expect("memory");
            let mut lost = 0;
            for (number, expected) in expected.chunks(512).enumerate() {
                match reader.read(number as u64 * 512, pool.alloc(512).await).await {
                    Ok(read) => assert!(*read == *expected, "{shape:?}: sector {number}"),
                    Err(error) => {
                        assert_eq!(error.kind, IoErrorKind::Media);
                        lost += 1;
                    }
                }
            }
            lost
        });
        assert!(lost > 0 && lost <= 20, "{shape:?}: {lost} sectors");
    }
}

#[test]
fn mirrors_of_any_size() {
    for size in [9, 127, 511, 1000, 1023] {
        let mut forged = Forged::new(shape(1, 0, 0, 2), 0, false);
        forged.change_all(|superblock| superblock.size = Sector(size));
        let expected = noise(size, size as usize * 512);
        (0..2).for_each(|index| forged.data(index, 0, size).copy_from_slice(&expected));
        check(&forged.without(&[], 512), &expected, false, &format!("{size} sectors"));
        // Blocks that the array's end cuts cannot be read.
        if size % 8 != 0 {
            let why = refusal(&forged.without(&[], 4096)).to_string();
            assert!(why.contains("4096"), "{why}");
        }
        // The last sector is written, and nothing behind it.
        let members = forged.without(&[], 512);
        let world = World::new(2);
        let array = open(&world, &members, &plain()).expect("a mirror");
        let (writer, last) = (array.clone(), (size - 1) * 512);
        world
            .run(async move { writer.write(last, vec![Slice::zeroes(512)], Fua::No).await })
            .expect("memory");
        stop(&world, array);
        for member in members {
            let data = &member.device.content()[2048 * 512..];
            let (end, behind) = data.split_at(size as usize * 512);
            assert!(end.ends_with(&[0; 512]) && end[..last as usize] == expected[..last as usize]);
            assert_eq!(behind.len(), (MEMBER_SECTORS - 2048 - size) as usize * 512);
            let noise = &forged.members[0][(2048 + size) as usize * 512..];
            assert!(behind == noise, "what lies behind the array was changed");
        }
    }
}

/// Where a RAID0's chunk lies, by the book: (member, its sector), zone by zone.
fn raid0_place(sizes: &[u64], chunk: u64, alternate: bool, number: u64) -> Option<(usize, u64)> {
    let lengths: Vec<_> = sizes.iter().map(|size| size - size % chunk).collect();
    let (mut low, mut before) = (0, 0);
    loop {
        let high = lengths.iter().copied().filter(|length| *length > low).min()?;
        let zone: Vec<_> = (0..lengths.len()).filter(|&slot| lengths[slot] > low).collect();
        let width = zone.len() as u64;
        let chunks = (high - low) / chunk * width;
        if number < before + chunks {
            let within = number - before;
            let turn = if alternate { within } else { number };
            return Some((zone[(turn % width) as usize], low + within / width * chunk));
        }
        (low, before) = (high, before + chunks);
    }
}

#[test]
fn raid0_of_three_zones() {
    for (layout, chunk) in [(1, 24), (2, 24), (1, 16), (2, 16), (1, 7), (2, 1), (2, 40)] {
        let sizes = [900, 377, 700, 378];
        let mut forged = Forged::new(shape(0, 1, 16, 4), 0, false);
        forged.change_all(|superblock| {
            superblock.chunk = Sector(chunk);
            superblock.layout = layout;
            superblock.feature_map = Features::RAID0_LAYOUT;
        });
        let mut expected = Vec::new();
        for number in 0.. {
            let Some((slot, at)) = raid0_place(&sizes, chunk, layout == 2, number) else { break };
            let bytes = noise(number, chunk as usize * 512);
            forged.data(slot, at, at + chunk).copy_from_slice(&bytes);
            expected.extend(bytes);
        }
        // Where the chunk is no power of two the kernel ends the array a little earlier.
        let ends: u64 = sizes.iter().map(|size| (size - size % chunk) & !(chunk - 1)).sum();
        expected.truncate(ends as usize * 512);
        (0..4).for_each(|slot| forged.change(slot, |superblock| superblock.data_size = Sector(sizes[slot])));
        let what = format!("layout {layout}, chunk {chunk}");
        check(&forged.without(&[], 512), &expected, false, &what);
        (0..4).for_each(|slot| assert!(matches!(refusal(&forged.without(&[slot], 512)), Refusal::TooFew(_))));
        if chunk % 8 == 0 {
            assert_eq!(ends % 8, 0);
            check(&forged.without(&[], 4096), &expected, false, &what);
        } else {
            assert!(refusal(&forged.without(&[], 4096)).to_string().contains("chunk"));
        }
        // Without the feature nobody knows which layout it is.
        forged.change_all(|superblock| superblock.feature_map = Features::NONE);
        assert!(matches!(refusal(&forged.without(&[], 512)), Refusal::Geometry(_)), "{what}");
    }
}

#[test]
fn features_that_are_not_served_are_refused() {
    let whole = Forged::new(shape(5, 2, 16, 3), 0, false);
    for bits in [4, 32, 64, 256, 512, 8192, 1 << 31, 4096] {
        for who in 0..3 {
            let mut forged = whole.clone();
            forged.change(who, |superblock| superblock.feature_map = Features(bits));
            let why = refusal(&forged.without(&[], 512)).to_string();
            assert!(
                why.starts_with(&format!("disk{who}: ")) && why.contains("untouched"),
                "{bits:#x}: {why}"
            );
        }
    }
}

#[test]
fn a_damaged_bitmap_is_refused() {
    let whole = Forged::new(shape(5, 2, 16, 3), 0, true);
    let place = whole.superblock(0).bitmap_sector().expect("a bitmap").bytes() as usize;
    // Magic, version, UUID, chunk size.
    for at in [0, 4, 8, 52] {
        let mut forged = whole.clone();
        forged.members[1][place + at] ^= 1;
        let why = refusal(&forged.without(&[], 512)).to_string();
        assert!(why.starts_with("disk1: ") && why.contains("bitmap"), "{why}");
    }
}

/// Reading leaves it as it is; before the first write all members' bitmaps are marked stale.
#[test]
fn a_bitmap_tells_what_is_being_written() {
    for shape in [shape(1, 0, 0, 2), shape(5, 2, 16, 3), shape(10, 0x102, 16, 4)] {
        let forged = Forged::new(shape, 0, true);
        let superblock = forged.superblock(0);
        let place = superblock.bitmap_sector().expect("a bitmap").bytes() as usize;
        let bitmap = |bytes: &[u8]| Bitmap::parse(&bytes[place..]).expect("a bitmap");
        for member in &forged.members {
            assert!(bitmap(member).is_clear(), "it was filled and stopped");
        }
        check(&forged.without(&[], 512), &forged.content, false, &format!("{shape:?}"));
        let members = forged.without(&[], 512);
        let world = World::new(2);
        let array = open(&world, &members, &plain()).expect("a clean array");
        let writer = array.clone();
        world.run(async move { writer.write(0, vec![Slice::zeroes(512)], Fua::No).await }).expect("memory");
        for member in &members {
            let bytes = member.device.content();
            let (bitmap, superblock) =
                (bitmap(&bytes), Superblock::parse(&bytes[4096..8192]).expect("a superblock"));
            assert_eq!(bitmap.set_chunks().collect::<Vec<_>>(), [0]);
            assert_eq!((bitmap.superblock.events, bitmap.superblock.state), (superblock.events, 0));
        }
        stop(&world, array);
        assert!(members.iter().all(|member| bitmap(&member.device.content()).is_clear()));
    }
}
