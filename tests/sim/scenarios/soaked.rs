//! What only long soaks found: two crashes in a row, disks that hang while something else happens, rows beside bad rows.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use futures_util::future::{join, join_all};
use raidd::engine::{AssembleOptions, Health, Phase};
use raidd::io::{Clock, Device, Fua, Pool, Spawn};
use raidd_sim::disk::Platter;
use raidd_sim::model::Model;
use raidd_sim::random::Random;
use raidd_sim::setup::{Making, Shape, assemble_array, create_array, make_array, shape};
use raidd_sim::store::Luck;
use raidd_sim::world::{Ended, World};

use crate::found::{
    RAID5, RAID6, assert_agrees, assert_recovers, crash, disks, filled, new, play, until_idle,
};
use crate::rounds::Client;

const RAID1: Shape = shape(1, 0, 0, 2, 1);
/// Parity always on the last two.
const RAID6_N: Shape = shape(6, 5, 16, 5, 2);
const RAID5_LOGGED: Shape = shape(5, 2, 4, 4, 1).with_ppl();
const SUPERBLOCK: std::ops::Range<usize> = 4096..8192;
const DATA_OFFSET: usize = 1 << 20;

/// A RAID5 with logs whose machine has crashed in the middle of a write of so many bytes, `changes` changes of disks after
/// it began, or a few more.
fn cut_off_with_logs(seed: u64, changes: u64, len: usize) -> Vec<Platter> {
    let disks: Vec<_> = disks(&RAID5_LOGGED, seed).into_iter().take(4).collect();
    let (world, stage) = (World::new(seed), disks.clone());
    let inside = world.clone();
    let ended = world.live(async move {
        let mut client = filled(&inside, &RAID5_LOGGED, &stage, true).await;
        client.array.flush().await.unwrap();
        inside.crash_after(changes + inside.random(6));
        client.write(512, len, Fua::No).await.unwrap();
        inside.crash_in(0);
        inside.sleep(Duration::from_secs(1)).await;
    });
    assert!(matches!(ended, Ended::Crashed));
    crash(&disks, Luck::Some, &Random::new(seed));
    disks
}

#[test]
fn one_that_missed_a_generation_has_it_before_there_is_another() {
    for seed in 0..100 {
        let count = 1 + seed % 6;
        let disks: Vec<_> = disks(&RAID5, seed).into_iter().take(4).collect();
        let (world, stage) = (World::new(seed), disks.clone());
        let inside = world.clone();
        world.run(async move {
            let client = filled(&inside, &RAID5, &stage, true).await;
            let dirty = stage[2].bytes()[SUPERBLOCK].to_vec();
            client.array.stop().await.unwrap();
            // The crash came when all but disk2 said clean.
            stage[2].bytes_mut()[SUPERBLOCK].copy_from_slice(&dirty);
        });
        let (world, stage) = (World::new(seed + 100), disks.clone());
        let inside = world.clone();
        let ended = world.live(async move {
            let array = assemble_array(&inside, &stage, 512, AssembleOptions::default()).await.unwrap();
            inside.crash_at_superblock(count);
            let mut client = Client::new(array, &inside);
            client.write(0, 100, Fua::No).await.unwrap();
            inside.sleep(Duration::from_secs(1)).await;
            client.array.stop().await.unwrap();
        });
        assert!(matches!(ended, Ended::Crashed | Ended::Done(())));
        crash(&disks, Luck::None, &Random::new(seed));
        let world = World::new(seed + 200);
        let inside = world.clone();
        world.run(async move {
            let array = assemble_array(&inside, &disks, 512, AssembleOptions::default()).await.unwrap();
            assert_eq!(array.health(), Health::Optimal, "seed {seed}, after {count} superblocks");
        });
    }
}

/// What is on the disks of an array that has been filled and stopped.
fn at_rest(shape: &Shape) -> Vec<Vec<u8>> {
    let disk = |slot| Platter::garbage(slot, shape.data_offset() + (64 << 10), 512, slot);
    let disks: Vec<_> = (0..shape.slots as u64).map(disk).collect();
    let (world, stage, shape) = (World::new(0), disks.clone(), *shape);
    let inside = world.clone();
    world.run(async move {
        let some: Vec<_> = stage.iter().cloned().map(Some).collect();
        let array = create_array(&inside, &shape, &some, 512, true, false).await.unwrap();
        let mut client = Client::new(array, &inside);
        client.fill().await;
        client.array.stop().await.unwrap();
    });
    disks.iter().map(|disk| disk.bytes().to_vec()).collect()
}

/// A daemon is killed when it has changed disks so often, so that what it had under way is in their caches alone; the next
/// one writes the same, and after so many changes the power fails, which takes what was in the caches.
fn killed_and_cut_off(at_rest: &[Vec<u8>], changes: [u64; 2], seed: u64) -> Vec<Platter> {
    let disk = |(number, bytes): (usize, &Vec<u8>)| {
        let disk = Platter::garbage(number as u64, bytes.len(), 512, 0);
        disk.bytes_mut().copy_from_slice(bytes);
        disk
    };
    let disks: Vec<_> = at_rest.iter().enumerate().map(disk).collect();
    let dice = Random::new(seed);
    for (era, changes) in changes.into_iter().enumerate() {
        let (world, stage) = (World::new(seed + era as u64 * 1000), disks.clone());
        let inside = world.clone();
        let ended = world.live(async move {
            let array = assemble_array(&inside, &stage, 512, AssembleOptions::default()).await.unwrap();
            let mut client = Client::new(array, &inside);
            inside.crash_after(changes);
            let last = client.bytes.len() - 4096;
            client.write(last, 4096, Fua::Yes).await.unwrap();
            inside.crash_in(0);
            inside.sleep(Duration::from_secs(1)).await;
        });
        assert!(matches!(ended, Ended::Crashed));
        disks.iter().for_each(|disk| disk.abandon(&dice));
    }
    disks.iter().for_each(|disk| _ = disk.lose_cache(Luck::None, &dice));
    disks
}

#[test]
fn a_generation_that_a_killed_daemon_left_in_a_cache_is_flushed_before_there_is_another() {
    let at_rest = at_rest(&RAID5);
    for seed in 0..400 {
        let disks = killed_and_cut_off(&at_rest, [seed % 20, seed / 20], seed);
        let world = World::new(seed);
        let inside = world.clone();
        world.run(async move {
            let array = assemble_array(&inside, &disks, 512, AssembleOptions::default()).await.unwrap();
            assert_eq!(array.health(), Health::Optimal, "seed {seed}");
        });
    }
}

#[test]
fn no_write_goes_where_one_to_the_last_copy_has_not_ended() {
    play(20, async |world, seed| {
        let disks = disks(&RAID1, seed);
        let client = filled(&world, &RAID1, &disks, true).await;
        client.array.fail("disk1").await.unwrap();
        let mut client = client;
        client.write(0, 4096, Fua::No).await.unwrap();
        let (first, _) = (client.payload(0, 4096).1, ());
        let (bytes, second) = client.payload(0, 4096);
        disks[0].faults().hangs.set(1);
        let array = &client.array;
        let late = async {
            world.sleep(Duration::from_millis(1)).await;
            disks[0].faults().hangs.set(0);
            array.write(0, second, Fua::No).await
        };
        let (hung, late) = join(array.write(0, first, Fua::No), late).await;
        assert!(hung.is_err());
        disks[0].release_hung(&world);
        world.sleep(Duration::from_secs(1)).await;
        if late.is_ok() {
            client.bytes[..4096].copy_from_slice(&bytes);
            client.check(0, 4096).await;
        }
    });
}

#[test]
fn a_copy_that_hangs_while_it_is_resynced_costs_only_itself() {
    play(60, async |world, seed| {
        let disks = disks(&RAID1, seed);
        let some: Vec<_> = disks.iter().take(2).cloned().map(Some).collect();
        let array = create_array(&world, &RAID1, &some, 512, false, true).await.unwrap();
        disks[1].faults().hangs.set(3);
        let mut client = Client::new(array, &world);
        world.sleep(Duration::from_secs(40)).await;
        client.write(1000, 3000, Fua::No).await.unwrap();
        client.check(1024, 2048).await;
        disks[1].faults().hangs.set(0);
        disks[1].release_hung(&world);
        client.array.stop().await.unwrap();
    });
}

#[test]
fn a_last_copy_that_answers_nothing_does_not_take_all_memory() {
    play(3, async |world, seed| {
        let disks = disks(&RAID1, seed);
        let client = filled(&world, &RAID1, &disks, true).await;
        client.array.fail("disk1").await.unwrap();
        disks[0].faults().hangs.set(1);
        let pool = Pool::new(16 << 20).unwrap();
        for _ in 0..20 {
            let reads = (0..16).map(|number| {
                let buf = pool.try_alloc(64 << 10).expect("reads that failed gave their memory back");
                client.array.read((number % 2) * (64 << 10), buf)
            });
            assert!(join_all(reads).await.into_iter().all(|result| result.is_err()));
        }
        disks[0].faults().hangs.set(0);
        disks[0].release_hung(&world);
        world.sleep(Duration::from_secs(1)).await;
        client.check_all().await;
    });
}

#[test]
fn two_that_cannot_be_read_in_the_same_rows_are_left_alone() {
    play(5, async |world, seed| {
        let disks = disks(&RAID5, seed);
        let client = filled(&world, &RAID5, &disks, true).await;
        // Logs that have no room would make the members fail; these cannot even be written.
        let spoilt = DATA_OFFSET as u64..(DATA_OFFSET + 64 * 512) as u64;
        for disk in [&disks[0], &disks[1]] {
            disk.spoil(spoilt.clone());
            disk.faults().full_below.set(spoilt.start);
        }
        let pool = Pool::new(1 << 20).unwrap();
        let read = client.array.read(0, pool.try_alloc(16 << 10).unwrap()).await;
        assert!(read.is_err());
        world.sleep(Duration::from_secs(5)).await;
        let asked: u64 = disks.iter().map(|disk| disk.counts().operations).sum();
        world.sleep(Duration::from_secs(60)).await;
        let more: u64 = disks.iter().map(|disk| disk.counts().operations).sum();
        assert!(
            more - asked < 2000,
            "{} operations in a minute in which nobody asked for anything",
            more - asked
        );
    });
}

#[test]
fn a_read_that_has_waited_asks_the_members_of_now() {
    play(20, async |world, seed| {
        let disks = disks(&RAID6, seed);
        let client = filled(&world, &RAID6, &disks, true).await;
        client.array.flush().await.unwrap();
        client.array.fail("disk0").await.unwrap();
        let reader = async { client.check(4096 * 3, 4096).await };
        let events = async {
            // The read of what disk0 held waits for disk1; meanwhile another has taken disk0's place.
            disks[1].faults().hangs.set(1);
            world.sleep(Duration::from_millis(1)).await;
            disks[1].faults().hangs.set(0);
            client.array.add(new(&world, &disks[5]), [99; 16]).await.unwrap();
            world.sleep(Duration::from_secs(9)).await;
            disks[2].faults().hangs.set(1);
            world.sleep(Duration::from_secs(3)).await;
            disks[2].faults().hangs.set(0);
        };
        join(events, reader).await;
    });
}

#[test]
fn what_a_member_holds_is_not_worked_out_because_it_lacks_the_rows_beside() {
    play(20, async |world, seed| {
        let disks = disks(&RAID6_N, seed);
        let some: Vec<_> = disks.iter().take(5).cloned().map(Some).collect();
        let array = create_array(&world, &RAID6_N, &some, 512, false, true).await.unwrap();
        // Nothing has been resynced: parity says of the rows something of its own.
        array.pause();
        array.fail("disk2").await.unwrap();
        let mut client = Client::new(array, &world);
        let stripe = (2 * 48) << 10;
        let row = 68 + world.random(8);
        disks[1].spoil((DATA_OFFSET as u64 + row * 512)..(DATA_OFFSET as u64 + (row + 8) * 512));
        let chunk_of_1 = stripe + (16 << 10);
        let pool = Pool::new(1 << 20).unwrap();
        let at = chunk_of_1 + (row - 64) * 512;
        client.array.read(at, pool.try_alloc(4096).unwrap()).await.unwrap();
        // Across the first row that disk1 does not hold, in the chunk of the one that is missing.
        let start = (stripe + (32 << 10)) as usize;
        client.write(start, 9 << 10, Fua::No).await.unwrap();
        client.check(start, 512).await;
        client.check(start, 9 << 10).await;
    });
}

#[test]
fn an_idle_array_says_when_what_was_torn_agrees_again() {
    play(40, async |world, seed| {
        let disks: Vec<_> = disks(&RAID5, seed).into_iter().take(4).collect();
        let some: Vec<_> = disks.iter().cloned().map(Some).collect();
        let array = create_array(&world, &RAID5, &some, 512, false, true).await.unwrap();
        world.sleep(Duration::from_micros(world.random(400))).await;
        disks[3].faults().full.set(true);
        let mut client = Client::new(array, &world);
        client.write(0, 5000, Fua::No).await.ok();
        world.sleep(Duration::from_millis(5)).await;
        disks[3].faults().full.set(false);
        world.sleep(Duration::from_secs(60)).await;
        let status = client.array.status();
        assert!(
            status.phase == Phase::Clean && !status.resync_is_due && !status.has_suspect_rows,
            "seed {seed}: {status:?}"
        );
        let model = Model::of(&disks);
        assert!(model.says_clean(), "the superblocks do not say that the array is clean");
        assert!(model.inconsistent().is_empty());
    });
}

#[test]
fn a_bit_that_a_failed_member_missed_counts_though_its_failure_is_not_on_record() {
    for seed in 0..150 {
        let disks: Vec<_> = disks(&RAID5, seed).into_iter().take(4).collect();
        let (world, stage) = (World::new(seed), disks.clone());
        let inside = world.clone();
        let dice = Random::new(seed);
        let changes = dice.below(24);
        let ended = world.live(async move {
            let some: Vec<_> = stage.iter().cloned().map(Some).collect();
            let making =
                Making { block: 512, zero: true, assume_clean: false, bitmap_kib: Some(16), uuid: 7 };
            let array = make_array(&inside, &RAID5, &some, &making).await.unwrap();
            let mut client = Client::new(array, &inside);
            client.fill().await;
            inside.sleep(Duration::from_secs(20)).await;
            // Active, and only the last region is marked.
            let last = client.bytes.len() - 512;
            client.write(last, 512, Fua::No).await.unwrap();
            client.array.flush().await.unwrap();
            stage[0].faults().writes_left.set(Some(0));
            inside.crash_after(changes);
            client.write(0, 9000, Fua::No).await.unwrap();
            inside.crash_in(0);
            inside.sleep(Duration::from_secs(1)).await;
        });
        assert!(matches!(ended, Ended::Crashed));
        crash(&disks, Luck::Some, &dice);
        disks[0].mend();
        let world = World::new(seed + 5000);
        let inside = world.clone();
        world.run(async move {
            let options = AssembleOptions::default();
            // Where the failure is on record, rows may be torn that disk0 could have told of: that is refused.
            let Ok(array) = assemble_array(&inside, &disks, 512, options).await else { return };
            let client = Client::new(array, &inside);
            until_idle(&client).await;
            client.array.stop().await.unwrap();
            assert_agrees(&disks);
        });
    }
}

#[test]
fn what_a_copy_holds_beside_bad_rows_is_resynced() {
    for seed in 0..80 {
        let disks: Vec<_> = disks(&RAID1, seed).into_iter().take(2).collect();
        let (world, stage) = (World::new(seed), disks.clone());
        let inside = world.clone();
        let ended = world.live(async move {
            let mut client = filled(&inside, &RAID1, &stage, true).await;
            client.array.flush().await.unwrap();
            let start = DATA_OFFSET as u64;
            stage[1].spoil(start..start + 512);
            stage[1].faults().full_below.set(start + 512);
            for _ in 0..4 {
                client.check(0, 512).await;
                inside.sleep(Duration::from_millis(1)).await;
            }
            // The first rows are on record as bad now; then some of them are written.
            stage[1].mend();
            let first = 512 * (1 + inside.random(6)) as usize;
            client.write(first, 4096 - first, Fua::No).await.unwrap();
            client.array.flush().await.unwrap();
            client.write(first, 4096 - first, Fua::No).await.unwrap();
            inside.crash_in(0);
            inside.sleep(Duration::from_secs(1)).await;
        });
        assert!(matches!(ended, Ended::Crashed));
        crash(&disks, Luck::Some, &Random::new(seed));
        assert_recovers(disks, seed);
    }
}

#[test]
fn torn_rows_agree_with_what_replaces_a_member_too() {
    play(60, async |world, seed| {
        let disks = disks(&RAID5, seed);
        let mut client = filled(&world, &RAID5, &disks, true).await;
        world.slow_disks(10);
        client.array.add(new(&world, &disks[4]), [99; 16]).await.unwrap();
        client.array.replace("disk0", "disk4").await.unwrap();
        world.sleep(Duration::from_micros(world.random(8000))).await;
        let start = world.random(20_000) as usize;
        disks[0].faults().full.set(true);
        client.write(start, 13_000, Fua::No).await.ok();
        disks[0].faults().full.set(false);
        for _ in 0..6 {
            let at = start + world.random(12_000) as usize;
            client.write(at, 600, Fua::No).await.ok();
        }
        world.sleep(Duration::from_secs(30)).await;
        until_idle(&client).await;
        client.array.stop().await.unwrap();
        assert_agrees(&disks);
    });
}

#[test]
fn what_was_being_written_and_cannot_be_read_agrees_with_its_row() {
    for seed in 0..80 {
        // Two chunks of one row, at least.
        let disks = cut_off_with_logs(seed, 2, 7000);
        let weak = &disks[seed as usize % 4];
        let start = raidd_sim::model::superblock(weak).unwrap().data_offset.bytes();
        weak.spoil(start..start + 4096);
        let world = World::new(seed + 1000);
        let inside = world.clone();
        world.run(async move {
            let array = assemble_array(&inside, &disks, 512, AssembleOptions::default()).await.unwrap();
            assert!(!array.status().resync_is_due, "the logs tell all");
            let mut client = Client::new(array, &inside);
            // Elsewhere; by then all that the logs tell is on the disks.
            client.write(30_000, 512, Fua::No).await.unwrap();
            disks.iter().for_each(|disk| disk.mend());
            client.array.stop().await.unwrap();
            assert_agrees(&disks);
        });
    }
}

#[test]
fn data_is_not_made_of_parity_that_no_log_vouches_for() {
    for seed in 0..200 {
        let disks: Vec<_> = disks(&RAID5_LOGGED, seed).into_iter().take(4).collect();
        let (world, stage) = (World::new(seed), disks.clone());
        let inside = world.clone();
        let written: Rc<RefCell<Vec<Vec<u8>>>> = Rc::default();
        let notes = written.clone();
        let ended = world.live(async move {
            let mut client = filled(&inside, &RAID5_LOGGED, &stage, true).await;
            client.write(0, 8192, Fua::Yes).await.unwrap();
            notes.borrow_mut().push(client.bytes[..8192].to_vec());
            let (late, parity) = (inside.clone(), stage[3].clone());
            inside.spawn(async move {
                late.sleep(Duration::from_micros(late.random(200))).await;
                parity.faults().full.set(true);
            });
            let (bytes, slices) = client.payload(0, 8192);
            notes.borrow_mut().push(bytes);
            client.array.write(0, slices, Fua::No).await.ok();
            inside.crash_in(0);
            inside.sleep(Duration::from_secs(1)).await;
        });
        assert!(matches!(ended, Ended::Crashed));
        crash(&disks, Luck::Some, &Random::new(seed));
        disks[3].faults().full.set(false);
        let start = raidd_sim::model::superblock(&disks[0]).unwrap().data_offset.bytes();
        disks[0].spoil(start..start + 4096);
        let world = World::new(seed + 1000);
        let inside = world.clone();
        world.run(async move {
            let array = assemble_array(&inside, &disks, 512, AssembleOptions::default()).await.unwrap();
            let is_vouched_for = !array.status().resync_is_due;
            let pool = Pool::new(1 << 20).unwrap();
            for sector in (0..8192).step_by(512) {
                let Ok(found) = array.read(sector as u64, pool.try_alloc(512).unwrap()).await else {
                    continue;
                };
                let may_be = written.borrow().iter().any(|bytes| bytes[sector..sector + 512] == *found);
                assert!(may_be || is_vouched_for, "seed {seed}: sector at {sector} is neither old nor new");
            }
            array.stop().await.unwrap();
        });
    }
}

#[test]
fn who_was_missing_when_the_logs_began_anew_is_out() {
    for seed in 0..240 {
        let disks = cut_off_with_logs(seed, 4, 11_000);
        // One is missing at the next start, and back at the one after that.
        let missing = seed as usize % 4;
        let there: Vec<_> = (0..4).filter(|&slot| slot != missing).map(|slot| disks[slot].clone()).collect();
        let world = World::new(seed + 1000);
        let inside = world.clone();
        let ended = world.live(async move {
            let array = assemble_array(&inside, &there, 512, AssembleOptions::default()).await.unwrap();
            inside.crash_after(inside.random(80));
            let mut client = Client::new(array, &inside);
            client.write(30_000, 512, Fua::No).await.unwrap();
            inside.crash_in(0);
            inside.sleep(Duration::from_secs(1)).await;
        });
        assert!(matches!(ended, Ended::Crashed));
        crash(&disks, Luck::Some, &Random::new(seed));
        assert_recovers(disks, seed);
    }
}

#[test]
fn what_a_resync_finds_is_no_finding_of_a_scrub() {
    play(10, async |world, seed| {
        let disks = disks(&RAID5, seed);
        let some: Vec<_> = disks.iter().take(4).cloned().map(Some).collect();
        let array = create_array(&world, &RAID5, &some, 512, false, true).await.unwrap();
        let client = Client::new(array, &world);
        world.sleep(Duration::from_micros(world.random(1000))).await;
        assert!(client.array.scrub(false));
        until_idle(&client).await;
        assert!(client.array.last_scrub().is_some());
        assert_eq!(client.array.mismatched_sectors(), 0, "of an array that agrees");
    });
}

#[test]
fn a_forced_start_that_is_cut_off_does_not_bring_back_what_it_did_not_believe() {
    for seed in 0..64 {
        let mut disks = disks(&RAID6, seed);
        let (world, stage) = (World::new(seed), disks.clone());
        let inside = world.clone();
        let ended = world.live(async move {
            let mut client = filled(&inside, &RAID6, &stage, true).await;
            let member_bytes = client.array.status().member_sectors.bytes();
            client.array.set_recovery_speed(Some(member_bytes), Some(member_bytes));
            client.array.fail("disk1").await.unwrap();
            client.array.fail("disk2").await.unwrap();
            client.array.add(new(&inside, &stage[5]), [99; 16]).await.unwrap();
            inside.sleep(Duration::from_millis(700)).await;
            client.write(0, 100, Fua::No).await.unwrap();
            inside.crash_in(0);
            inside.sleep(Duration::from_secs(1)).await;
        });
        assert!(matches!(ended, Ended::Crashed));
        crash(&disks, Luck::All, &Random::new(seed));
        disks.retain(|disk| raidd_sim::model::superblock(disk).is_some());
        let filled_below = raidd_sim::model::superblock(&disks[5]).unwrap().recovered().bytes() as usize;
        // A row is torn in the middle of what it has been given.
        disks[5].bytes_mut()[DATA_OFFSET + filled_below / 2] ^= 1;
        let (world, stage) = (World::new(seed + 1000), disks.clone());
        let inside = world.clone();
        let ended = world.live(async move {
            let options = AssembleOptions { force: true, ..Default::default() };
            let array = assemble_array(&inside, &stage, 512, options).await.unwrap();
            inside.crash_at_superblock(1 + seed % 8);
            inside.sleep(Duration::from_secs(1)).await;
            array.stop().await.unwrap();
        });
        assert!(matches!(ended, Ended::Crashed | Ended::Done(())));
        crash(&disks, Luck::Some, &Random::new(seed));
        let world = World::new(seed + 2000);
        let inside = world.clone();
        world.run(async move {
            let options = AssembleOptions { force: true, ..Default::default() };
            let array = assemble_array(&inside, &disks, 512, options).await.unwrap();
            let mut client = Client::new(array, &inside);
            until_idle(&client).await;
            client.write(0, 100, Fua::No).await.unwrap();
            client.array.stop().await.unwrap();
            assert_agrees(&disks);
        });
    }
}

#[test]
fn nothing_is_written_while_the_logs_are_being_closed() {
    for seed in 0..400 {
        let disks: Vec<_> = disks(&RAID5_LOGGED, seed).into_iter().take(4).collect();
        let (world, stage) = (World::new(seed), disks.clone());
        let inside = world.clone();
        let ended = world.live(async move {
            let client = filled(&inside, &RAID5_LOGGED, &stage, true).await;
            client.array.flush().await.unwrap();
            inside.slow_disks(1 + inside.random(10));
            let full = stage[inside.random(4) as usize].clone();
            let late = inside.clone();
            inside.spawn(async move {
                late.sleep(Duration::from_micros(late.random(3000))).await;
                full.faults().full.set(true);
                late.crash_after(1 + late.random(40));
            });
            let part = client.bytes.len() / 12;
            let writers = (0..12).map(async |number| {
                for _ in 0..40 {
                    let start = number * part + inside.random(part as u64 - 5000) as usize;
                    let (_, slices) = client.payload(start, 1 + inside.random(5000) as usize);
                    client.array.write(start as u64, slices, Fua::No).await.ok();
                }
            });
            join_all(writers).await;
            inside.crash_in(0);
            inside.sleep(Duration::from_secs(1)).await;
        });
        assert!(matches!(ended, Ended::Crashed));
        crash(&disks, Luck::Some, &Random::new(seed));
        disks.iter().for_each(|disk| disk.mend());
        assert_recovers(disks, seed);
    }
}
