//! Changes that move no data: an array is made larger, of more or fewer copies, or one with or without a bitmap, and the
//! daemon or the whole machine dies before each single change of a disk on the way.
//!
//! Then the array is what it was or what it was to be; what it held is there; what is written from then on, and flushed, too;
//! and redundancy is whole in the end.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use raidd::engine::{AssembleOptions, Change, Health, MemberState, Refusal};
use raidd::io::{Clock, Device, Fua, Spawn};
use raidd::units::Sector;
use raidd_sim::disk::Platter;
use raidd_sim::model::{Model, superblock};
use raidd_sim::random::Random;
use raidd_sim::setup::{Making, Shape, assemble_array, create_array, make_array, platters, shape};
use raidd_sim::store::Luck;
use raidd_sim::world::{Ended, World};

use crate::found::{filled, new, play, until_idle};
use crate::rounds::Client;

/// What an array is before it is changed.
#[derive(Clone, Copy, Debug)]
struct Before {
    shape: Shape,
    bitmap: bool,
    /// Bytes by which its disks have been made larger since it was made.
    larger: usize,
    change: Change,
}

const MAX: Change = Change::MemberSize(None);

/// How far it got before the crash.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd)]
enum Stage {
    #[default]
    Changing,
    /// The change is on record, and all of it is being written anew.
    Writing,
    Flushed,
}

/// The disks of an array that has been filled and stopped, and what it holds. All of them are larger now.
fn made(before: &Before, seed: u64) -> (Vec<Platter>, Vec<u8>) {
    let small = platters(&before.shape, seed);
    let world = World::new(seed);
    let (inside, stage, bitmap, shape) = (world.clone(), small.clone(), before.bitmap, before.shape);
    let bytes = world.run(async move {
        let some: Vec<_> = stage.iter().cloned().map(Some).collect();
        let array = create_array(&inside, &shape, &some, 512, true, bitmap).await.unwrap();
        let mut client = Client::new(array, &inside);
        client.fill().await;
        client.array.stop().await.unwrap();
        client.bytes
    });
    let grown = small.iter().map(|disk| {
        let len = disk.bytes().len();
        let grown = Platter::garbage(disk.number(), len + before.larger, 512, seed ^ 77);
        grown.bytes_mut()[..len].copy_from_slice(&disk.bytes());
        grown
    });
    (grown.collect(), bytes)
}

async fn change(
    world: World,
    disks: Vec<Platter>,
    change: Change,
    stage: Rc<Cell<Stage>>,
    seed: u64,
) -> Vec<u8> {
    let options = AssembleOptions { change: Some(change), ..Default::default() };
    let array = assemble_array(&world, &disks, 512, options).await.unwrap();
    array.record_what_changed().await.unwrap();
    stage.set(Stage::Writing);
    // Always the same bytes, which whoever comes after the crash can tell.
    let dice = World::new(seed);
    let mut client = Client::new(array, &dice);
    let (bytes, slices) = client.payload(0, client.bytes.len());
    client.array.write(0, slices, Fua::No).await.unwrap();
    client.array.flush().await.unwrap();
    client.bytes = bytes;
    stage.set(Stage::Flushed);
    client.world = world;
    until_idle(&client).await;
    client.check_all().await;
    client.array.stop().await.unwrap();
    client.bytes
}

/// What was to be written to an array of this size.
fn written(len: usize, seed: u64, array: raidd_sim::setup::SimArray) -> Vec<u8> {
    Client::new(array, &World::new(seed)).payload(0, len).0
}

fn aftermath(before: &Before, disks: Vec<Platter>, old: Vec<u8>, stage: Stage, seed: u64) {
    let world = World::new(seed + 1000);
    let inside = world.clone();
    let before = *before;
    world.run(async move {
        let array = assemble_array(&inside, &disks, 512, AssembleOptions::default()).await.unwrap();
        let in_sync = |array: &raidd_sim::setup::SimArray| {
            let members = array.status().members;
            members.iter().filter(|member| member.state == Some(MemberState::InSync)).count()
        };
        assert_eq!(in_sync(&array), disks.len(), "{stage:?}: {:?}", array.status());
        let new = written(array.size_bytes() as usize, seed, array.clone());
        let mut client = Client::new(array, &inside);
        if stage > Stage::Changing && matches!(before.change, Change::MemberSize(_)) {
            assert!(client.bytes.len() > old.len(), "what was on record is not");
        }
        // What is there now is right if it is what it was or what was being written.
        let whole = 0..new.len();
        client.learn(std::slice::from_ref(&whole)).await;
        for (at, &byte) in client.bytes.iter().enumerate() {
            let may_be_new = stage > Stage::Changing && byte == new[at];
            let may_be_old = stage < Stage::Flushed && old.get(at).is_none_or(|&old| byte == old);
            assert!(may_be_new || may_be_old, "byte {at} is {byte} ({stage:?})");
        }
        until_idle(&client).await;
        client.check_all().await;
        let copies_added =
            matches!(before.change, Change::Slots(slots) if usize::from(slots) > before.shape.slots);
        let drops_vacant =
            matches!(before.change, Change::Slots(slots) if usize::from(slots) < before.shape.slots);
        let is_degraded = copies_added || drops_vacant && stage == Stage::Changing;
        if !is_degraded {
            assert_eq!(client.array.health(), Health::Optimal);
        }
        client.array.stop().await.unwrap();
        let torn = Model::of(&disks).inconsistent();
        assert!(torn.is_empty(), "redundancy disagrees at {torn:?} ({stage:?})");
        // From the first write on all of them say the same.
        let array = assemble_array(&inside, &disks, 512, AssembleOptions::default()).await.unwrap();
        let mut client = Client::again(array, client);
        client.fill().await;
        client.check_all().await;
        client.array.stop().await.unwrap();
        let same: Vec<_> = disks.iter().filter_map(superblock).collect();
        assert_eq!(same.len(), disks.len());
        assert!(same.iter().all(|one| one.size == same[0].size && one.raid_disks == same[0].raid_disks));
        assert!(same.iter().all(|one| one.bitmap_offset == same[0].bitmap_offset));
    });
}

/// Dies after so many changes of a disk. False if it came to its end.
fn crash_after(before: &Before, base: &[Platter], old: &[u8], changes: u64, seed: u64) -> bool {
    let disks: Vec<_> = base.iter().map(|disk| disk.copy(&Random::new(0))).collect();
    let world = World::new(seed);
    world.crash_after(changes);
    let stage = Rc::new(Cell::new(Stage::Changing));
    let story = change(world.clone(), disks.clone(), before.change, stage.clone(), seed);
    let ended = world.run_steps(story, u64::MAX);
    let random = Random::new(seed ^ changes);
    let copies = || -> Vec<Platter> { disks.iter().map(|disk| disk.copy(&random)).collect() };
    aftermath(before, copies(), old.to_vec(), stage.get(), seed);
    let lost = copies();
    let luck = [Luck::None, Luck::Some, Luck::Most][changes as usize % 3];
    lost.iter().for_each(|disk| {
        disk.lose_cache(luck, &random);
    });
    aftermath(before, lost, old.to_vec(), stage.get(), seed);
    matches!(ended, Ended::Crashed)
}

fn crash_points(before: &Before, seed: u64) {
    let (base, old) = made(before, seed);
    crash_points_from(before, &base, &old, seed);
}

fn crash_points_from(before: &Before, base: &[Platter], old: &[u8], seed: u64) {
    let mut changes = 1;
    while crash_after(before, base, old, changes, seed) {
        // The change itself is in the first of them; what comes then is like any other life.
        changes += if changes < 60 { 1 } else { 1 + Random::new(seed ^ changes).bits() % 9 };
    }
    assert!(changes > 12, "there was next to nothing to crash in: {changes}");
}

#[test]
fn a_crash_at_any_point_while_an_array_is_made_larger() {
    let shapes = [
        shape(1, 0, 0, 2, 1),
        shape(4, 0, 8, 3, 1),
        shape(5, 2, 4, 3, 1),
        shape(6, 2, 8, 4, 2),
        shape(10, 0x102, 4, 4, 1),
        shape(10, 0x10201, 8, 4, 1),
    ];
    for (seed, shape) in shapes.into_iter().enumerate() {
        for bitmap in [true, false] {
            crash_points(&Before { shape, bitmap, larger: 320 << 10, change: MAX }, seed as u64);
        }
    }
}

#[test]
fn a_crash_at_any_point_while_a_bitmap_comes_or_goes() {
    let shapes =
        [shape(1, 0, 0, 2, 1), shape(5, 2, 4, 3, 1), shape(6, 2, 8, 4, 2), shape(10, 0x102, 4, 4, 1)];
    for (seed, shape) in shapes.into_iter().enumerate() {
        for bitmap in [true, false] {
            let change = Change::Bitmap(!bitmap);
            crash_points(&Before { shape, bitmap, larger: 0, change }, seed as u64);
        }
    }
}

#[test]
fn a_crash_at_any_point_while_a_mirror_gets_another_copy() {
    for (seed, slots) in [2, 3].into_iter().enumerate() {
        for bitmap in [true, false] {
            let change = Change::Slots(slots as u16 + 1);
            let before = Before { shape: shape(1, 0, 0, slots, 1), bitmap, larger: 0, change };
            crash_points(&before, seed as u64);
        }
    }
}

#[test]
fn a_mirror_gets_another_copy_from_a_spare_and_gives_it_back() {
    const MIRROR: Shape = shape(1, 0, 0, 2, 1);
    play(20, async |world, seed| {
        let mut disks = crate::found::disks(&MIRROR, seed);
        disks.truncate(3);
        let mut client = filled(&world, &MIRROR, &disks, true).await;
        client.array.add(new(&world, &disks[2]), [99; 16]).await.unwrap();
        client.array.check_change(Change::Slots(3)).unwrap();
        client.array.stop().await.unwrap();
        let options = |slots| AssembleOptions { change: Some(Change::Slots(slots)), ..Default::default() };
        let array = assemble_array(&world, &disks, 512, options(3)).await.unwrap();
        assert!(array.check_change(Change::Slots(4)).is_err(), "it is being filled");
        client = Client::again(array, client);
        client.write(1000, 30_000, Fua::No).await.unwrap();
        until_idle(&client).await;
        let status = client.array.status();
        assert_eq!((status.health, status.redundancy, status.members.len()), (Health::Optimal, 2, 3));
        client.check_all().await;
        assert_eq!(Model::of(&disks).inconsistent(), [0; 0]);
        // The first one goes: those that are left move up.
        client.array.fail("disk0").await.unwrap();
        assert!(
            client.array.check_change(Change::Slots(2)).is_err(),
            "who has failed is to be removed first"
        );
        client.array.remove("disk0").await.unwrap();
        client.array.check_change(Change::Slots(2)).unwrap();
        client.array.stop().await.unwrap();
        let array = assemble_array(&world, &disks[1..], 512, options(2)).await.unwrap();
        client = Client::again(array, client);
        client.write(2000, 3000, Fua::No).await.unwrap();
        until_idle(&client).await;
        let status = client.array.status();
        assert_eq!((status.health, status.redundancy, status.members.len()), (Health::Optimal, 1, 2));
        client.array.stop().await.unwrap();
        // All three are found at the next start, and the one that was removed is not believed.
        let array = assemble_array(&world, &disks, 512, AssembleOptions::default()).await.unwrap();
        client = Client::again(array, client);
        client.check_all().await;
        assert_eq!(client.array.health(), Health::Optimal);
        client.array.stop().await.unwrap();
        assert_eq!(Model::of(&disks[1..]).inconsistent(), [0; 0]);
    });
}

#[test]
fn a_bitmap_whose_room_is_too_small_gets_larger_chunks() {
    const RAID5: Shape = shape(5, 2, 4, 3, 1);
    play(5, async |world, seed| {
        let small = platters(&RAID5, seed);
        let some: Vec<_> = small.iter().cloned().map(Some).collect();
        // Bits of 4 KiB: 4096 bytes have 30,720 of them, too few for what there will be.
        let making = Making { block: 512, zero: true, assume_clean: false, bitmap_kib: Some(4), uuid: 7 };
        let array = make_array(&world, &RAID5, &some, &making).await.unwrap();
        let mut client = Client::new(array, &world);
        client.fill().await;
        client.array.stop().await.unwrap();
        let grown: Vec<_> = small
            .iter()
            .map(|disk| {
                let len = disk.bytes().len();
                let grown = Platter::garbage(disk.number(), len + (160 << 20), 512, seed);
                grown.bytes_mut()[..len].copy_from_slice(&disk.bytes());
                grown
            })
            .collect();
        let options = AssembleOptions { change: Some(MAX), ..Default::default() };
        let array = assemble_array(&world, &grown, 512, options).await.unwrap();
        array.record_what_changed().await.unwrap();
        let len = client.bytes.len();
        client = Client::again(array, client);
        client.check(0, len).await;
        assert!(client.array.size_bytes() > 300 << 20);
        client.array.pause();
        client.array.stop().await.unwrap();
    });
}

#[test]
fn what_cannot_be_is_refused_and_nothing_is_changed() {
    const FAR: Shape = shape(10, 0x201, 8, 4, 1);
    let refused = |shape: Shape, larger: usize, bitmap: bool, change: Change| {
        let before = Before { shape, bitmap, larger, change };
        let (disks, _) = made(&before, 3);
        let as_it_was: Vec<_> = disks.iter().map(|disk| disk.bytes().to_vec()).collect();
        let (world, stage) = (World::new(4), disks.clone());
        let inside = world.clone();
        let refusal = world.run(async move {
            let options = AssembleOptions { change: Some(change), ..Default::default() };
            assemble_array(&inside, &stage, 512, options).await.err()
        });
        assert!(disks.iter().zip(as_it_was).all(|(disk, was)| *disk.bytes() == was));
        match refusal {
            Some(Refusal::NotNow(why)) => why,
            other => panic!("{change:?}: {other:?}"),
        }
    };
    let mirror = shape(1, 0, 0, 2, 1);
    let raid5 = shape(5, 2, 4, 3, 1);
    for (why, shape, larger, bitmap, change) in [
        ("as large already", mirror, 0, true, MAX),
        ("cannot shrink", raid5, 0, true, Change::MemberSize(Some(Sector(64)))),
        ("has room for", raid5, 1 << 20, true, Change::MemberSize(Some(Sector(1 << 20)))),
        ("far copies", FAR, 1 << 20, true, MAX),
        ("partial parity log", raid5.with_ppl(), 1 << 20, false, MAX),
        ("partial parity log", raid5.with_ppl(), 0, false, Change::Bitmap(true)),
        ("already", mirror, 0, true, Change::Bitmap(true)),
        ("has no write-intent bitmap", mirror, 0, false, Change::Bitmap(false)),
        ("only a mirror", raid5, 0, true, Change::Slots(4)),
        ("hold its slots", mirror, 0, true, Change::Slots(1)),
        ("slots already", mirror, 0, true, Change::Slots(2)),
        ("RAID 0", shape(0, 2, 16, 3, 0), 1 << 20, false, MAX),
    ] {
        let said = refused(shape, larger, bitmap, change);
        assert!(said.contains(why), "{change:?}: {said}");
    }
}

#[test]
fn an_array_that_is_not_whole_is_not_changed() {
    const RAID5: Shape = shape(5, 2, 4, 3, 1);
    play(5, async |world, seed| {
        let disks = platters(&RAID5, seed);
        let client = filled(&world, &RAID5, &disks, true).await;
        client.array.fail("disk1").await.unwrap();
        assert!(client.array.check_change(Change::Bitmap(false)).unwrap_err().to_string().contains("remove"));
        client.array.remove("disk1").await.unwrap();
        assert!(
            client.array.check_change(Change::Bitmap(false)).unwrap_err().to_string().contains("degraded")
        );
        client.array.stop().await.unwrap();
        let options = AssembleOptions { change: Some(Change::Bitmap(false)), ..Default::default() };
        let rest = [disks[0].clone(), disks[2].clone()];
        let refusal = assemble_array(&world, &rest, 512, options.clone()).await.err().expect("refused");
        assert!(refusal.to_string().contains("a member is missing"), "{refusal}");
        // Nor one that a crash has left dirty.
        let mut client = Client::again(
            assemble_array(&world, &rest, 512, AssembleOptions::default()).await.unwrap(),
            client,
        );
        client.write(0, 5000, Fua::No).await.unwrap();
        world.sleep(Duration::from_millis(1)).await;
        let now: Vec<_> = rest.iter().map(|disk| disk.copy(&Random::new(seed))).collect();
        let refusal = assemble_array(&world, &now, 512, options).await.err().expect("refused");
        assert!(refusal.to_string().contains("awaits a resync"), "{refusal}");
        client.array.stop().await.unwrap();
    });
}

#[test]
fn a_crash_at_any_point_while_a_mirror_drops_a_vacant_slot() {
    // The first of them goes, so that the others move up.
    for (seed, slots) in [3, 4].into_iter().enumerate() {
        for bitmap in [true, false] {
            let before = Before {
                shape: shape(1, 0, 0, slots, 1),
                bitmap,
                larger: 0,
                change: Change::Slots(slots as u16 - 1),
            };
            let (disks, bytes) = made(&before, seed as u64);
            let (world, stage) = (World::new(7), disks.clone());
            let inside = world.clone();
            world.run(async move {
                let array = assemble_array(&inside, &stage, 512, AssembleOptions::default()).await.unwrap();
                array.fail("disk0").await.unwrap();
                array.remove("disk0").await.unwrap();
                array.stop().await.unwrap();
            });
            crash_points_from(&before, &disks[1..], &bytes, seed as u64);
        }
    }
}

#[test]
fn nobody_who_was_let_in_is_refused() {
    const RAID5: Shape = shape(5, 2, 4, 3, 1);
    play(60, async |world, seed| {
        let disks = platters(&RAID5, seed);
        let client = filled(&world, &RAID5, &disks, true).await;
        world.slow_disks(40);
        let (now, away) = (Rc::new(RefCell::new(client.array.clone())), Rc::new(Cell::new(false)));
        let ended = Rc::new(Cell::new(false));
        {
            let (world, now, away, ended) = (world.clone(), now.clone(), away.clone(), ended.clone());
            let client = Client::new(client.array.clone(), &world);
            world.clone().spawn(async move {
                for _ in 0..40 {
                    // Idle in between, so that the first write has to wait for superblocks.
                    world.sleep(Duration::from_millis(150 + world.random(200))).await;
                    while away.get() {
                        world.sleep(Duration::from_micros(100)).await;
                    }
                    let array = now.borrow().clone();
                    let (_, slices) = client.payload(5000, 3000);
                    array.write(5000, slices, Fua::No).await.expect("it was let in");
                }
                ended.set(true);
            });
        }
        let mut has_bitmap = true;
        while !ended.get() {
            world.sleep(Duration::from_millis(world.random(700))).await;
            away.set(true);
            let array = now.borrow().clone();
            array.come_to_rest().await.unwrap();
            has_bitmap = !has_bitmap;
            array.check_change(Change::Bitmap(has_bitmap)).unwrap();
            array.stop().await.unwrap();
            let options = AssembleOptions { change: Some(Change::Bitmap(has_bitmap)), ..Default::default() };
            *now.borrow_mut() = assemble_array(&world, &disks, 512, options).await.unwrap();
            away.set(false);
        }
        let last = now.borrow().clone();
        last.stop().await.unwrap();
        assert_eq!(Model::of(&disks).inconsistent(), [0; 0]);
    });
}

#[test]
fn an_array_that_a_crash_has_left_between_two_states_can_be_changed_again() {
    let before =
        Before { shape: shape(1, 0, 0, 2, 1), bitmap: true, larger: 0, change: Change::Bitmap(false) };
    let (base, _) = made(&before, 1);
    let mut torn = 0;
    for changes in 1..12 {
        let disks: Vec<_> = base.iter().map(|disk| disk.copy(&Random::new(0))).collect();
        let world = World::new(changes);
        world.crash_after(changes);
        let story = change(world.clone(), disks.clone(), before.change, Rc::default(), 1);
        drop(world.run_steps(story, u64::MAX));
        let disks: Vec<_> = disks.iter().map(|disk| disk.copy(&Random::new(changes))).collect();
        let events: Vec<_> = disks.iter().map(|disk| superblock(disk).expect("a member").events).collect();
        torn += u32::from(events[0] != events[1]);
        let world = World::new(changes);
        let inside = world.clone();
        world.run(async move {
            let array = assemble_array(&inside, &disks, 512, AssembleOptions::default()).await.unwrap();
            let client = Client::new(array, &inside);
            until_idle(&client).await;
            client.array.come_to_rest().await.unwrap();
            client.array.check_change(Change::Slots(3)).unwrap();
            client.array.stop().await.unwrap();
            let options = AssembleOptions { change: Some(Change::Slots(3)), ..Default::default() };
            let array = assemble_array(&inside, &disks, 512, options).await.unwrap();
            array.record_what_changed().await.unwrap();
            assert_eq!(array.status().members.len(), 3);
            array.stop().await.unwrap();
        });
    }
    assert!(torn > 0, "none of them was torn");
}
