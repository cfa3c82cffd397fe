//! Members come and go under load: spares take over, former members are caught up, members are replaced; with and without
//! crashes on the way.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use raidd::engine::create::NewMember;
use raidd::engine::{AssembleOptions, Health, MemberState, Phase, Refusal, assemble};
use raidd::io::{Clock, Device, Fua, IoErrorKind};
use raidd::md::Features;
use raidd::units::Sector;
use raidd_sim::disk::{Disk, Platter};
use raidd_sim::model::{Model, superblock};
use raidd_sim::random::Random;
use raidd_sim::setup::{SHAPES, Shape, assemble_array, create_array, load_disk, memory, platters, shape};
use raidd_sim::store::Luck;
use raidd_sim::world::{Ended, World};

use crate::found::{RAID5, disks, filled, new, play, until_idle};
use crate::rounds::Client;

fn run(seeds: std::ops::Range<u64>, round: impl AsyncFn(World, Shape, u64) + Copy + 'static) {
    for seed in seeds {
        for (index, &shape) in SHAPES.iter().enumerate().filter(|(_, shape)| shape.spare_slots > 0) {
            let seed = seed.wrapping_mul(1000) + index as u64;
            println!("seed {seed}, {shape:?}");
            let world = World::new(seed);
            let inside = world.clone();
            world.run(async move { round(inside, shape, seed).await });
        }
    }
}

/// As `run`, without arrays that have a partial parity log: they have no bitmap that would tell what a member has missed.
fn run_with_bitmap(seeds: std::ops::Range<u64>, round: impl AsyncFn(World, Shape, u64) + Copy + 'static) {
    run(seeds, async move |world, shape, seed| {
        if !shape.ppl {
            round(world, shape, seed).await;
        }
    });
}

async fn until_whole(client: &Client) {
    for _ in 0..100_000 {
        if client.array.health() == Health::Optimal && client.array.status().sync.is_none() {
            return;
        }
        client.world.sleep(Duration::from_millis(5)).await;
    }
    panic!("redundancy is not whole again: {:?}", client.array.status());
}

fn new_member(world: &World, platter: &Platter, label: &str) -> NewMember<Disk> {
    NewMember { device: Disk::new(platter, world, 512), label: label.to_owned() }
}

async fn client_of(world: &World, shape: &Shape, disks: &[Platter], seed: u64) -> Client {
    let some: Vec<_> = disks.iter().cloned().map(Some).collect();
    let array = create_array(world, shape, &some, 512, seed.is_multiple_of(2), true).await.unwrap();
    let mut client = Client::new(array, world);
    client.fill().await;
    client.until_synced().await;
    client
}

async fn steps(client: &mut Client, count: usize) {
    for _ in 0..count {
        client.step().await;
        client.burst().await;
    }
}

#[test]
fn a_spare_takes_over_and_holds_everything() {
    run(0..3, async |world, shape, seed| {
        let mut disks = platters(&shape, seed);
        let mut client = client_of(&world, &shape, &disks, seed).await;
        for round in 0..3 {
            let gone = world.random(shape.slots as u64) as usize;
            let victim = client.array.status().members[gone].path.clone().unwrap();
            let label = format!("new{round}");
            let fresh = Platter::garbage(99, disks[0].bytes().len(), 512, seed ^ round << 32);
            if world.random(2) == 0 {
                client.array.add(new_member(&world, &fresh, &label), [100 + round as u8; 16]).await.unwrap();
                steps(&mut client, 1).await;
                client.array.fail(&victim).await.unwrap();
            } else {
                client.array.fail(&victim).await.unwrap();
                steps(&mut client, 1).await;
                client.array.add(new_member(&world, &fresh, &label), [100 + round as u8; 16]).await.unwrap();
            }
            steps(&mut client, 3).await;
            until_whole(&client).await;
            client.array.remove(&victim).await.unwrap();
            client.check_all().await;
            disks.push(fresh);
        }
        client.array.stop().await.unwrap();
        let torn = Model::of(&disks).inconsistent();
        assert!(torn.is_empty(), "parity or copies disagree at {torn:?}");
        let again = assemble_array(&world, &disks, 512, AssembleOptions::default()).await.unwrap();
        assert_eq!(again.health(), Health::Optimal);
        let client = Client::again(again, client);
        client.check_all().await;
    });
}

#[test]
fn a_member_that_comes_back_is_caught_up() {
    run_with_bitmap(10..13, async |world, shape, seed| {
        let disks = platters(&shape, seed);
        let mut client = client_of(&world, &shape, &disks, seed).await;
        for _ in 0..3 {
            let gone = world.random(shape.slots as u64) as usize;
            let label = format!("disk{gone}");
            client.array.fail(&label).await.unwrap();
            steps(&mut client, 2).await;
            client.array.remove(&label).await.unwrap();
            if world.random(2) == 0 {
                world.sleep(Duration::from_secs(20)).await;
            }
            steps(&mut client, 1).await;
            let found = load_disk(&world, &disks[gone], 512).await.unwrap();
            client.array.re_add(found).await.unwrap();
            steps(&mut client, 2).await;
            until_whole(&client).await;
            client.check_all().await;
            world.sleep(Duration::from_secs(world.random(20))).await;
        }
        client.array.stop().await.unwrap();
        let torn = Model::of(&disks).inconsistent();
        assert!(torn.is_empty(), "parity or copies disagree at {torn:?}");
    });
}

#[test]
fn a_replacement_takes_the_place_of_the_member() {
    run(20..23, async |world, shape, seed| {
        let mut disks = platters(&shape, seed);
        let mut client = client_of(&world, &shape, &disks, seed).await;
        for round in 0..3 {
            let gone = world.random(shape.slots as u64) as usize;
            let victim = client.array.status().members[gone].path.clone().unwrap();
            let label = format!("new{round}");
            let fresh = Platter::garbage(99, disks[0].bytes().len(), 512, seed ^ round << 32);
            client.array.add(new_member(&world, &fresh, &label), [100 + round as u8; 16]).await.unwrap();
            client.array.replace(&victim, &label).await.unwrap();
            disks.push(fresh);
            steps(&mut client, 1).await;
            if world.random(3) == 0 {
                // The original fails on the way.
                client.array.fail(&victim).await.ok();
            }
            steps(&mut client, 2).await;
            until_whole(&client).await;
            client.check_all().await;
            let status = client.array.status();
            assert_eq!(status.members.len(), shape.slots);
            assert!(status.members.iter().any(|member| member.path.as_deref() == Some(&label)));
            client.array.remove(&victim).await.unwrap();
        }
        client.array.stop().await.unwrap();
        let torn = Model::of(&disks).inconsistent();
        assert!(torn.is_empty(), "parity or copies disagree at {torn:?}");
    });
}

#[test]
fn a_crash_in_the_middle_of_a_recovery_costs_nothing() {
    for seed in 30..34 {
        for (index, &shape) in SHAPES.iter().enumerate().filter(|(_, shape)| shape.spare_slots > 0) {
            let seed = seed * 1000 + index as u64;
            println!("seed {seed}, {shape:?}");
            crash_and_go_on(seed, shape);
        }
    }
}

/// The daemon or the machine dies while a member is filled and nobody writes; then the recovery ends all the same.
fn crash_and_go_on(seed: u64, shape: Shape) {
    let mut disks = platters(&shape, seed);
    let fresh = Platter::garbage(99, disks[0].bytes().len(), 512, seed ^ 77);
    let world = World::new(seed);
    let (inside, stage, spare) = (world.clone(), disks.clone(), fresh.clone());
    let bytes: std::rc::Rc<std::cell::RefCell<Vec<u8>>> = std::rc::Rc::default();
    let noted = bytes.clone();
    let _ = world.run_steps(
        async move {
            let client = client_of(&inside, &shape, &stage, seed).await;
            *noted.borrow_mut() = client.bytes.clone();
            client.array.flush().await.unwrap();
            inside.sleep(Duration::from_secs(1)).await;
            let gone = inside.random(shape.slots as u64) as usize;
            client.array.fail(&format!("disk{gone}")).await.unwrap();
            inside.crash_after(1 + inside.random(150));
            let again = inside.random(2) == 0 && !shape.ppl;
            if again {
                client.array.remove(&format!("disk{gone}")).await.unwrap();
                let found = load_disk(&inside, &stage[gone], 512).await.unwrap();
                client.array.re_add(found).await.unwrap();
            } else {
                client.array.add(new_member(&inside, &spare, "new"), [99; 16]).await.unwrap();
            }
            until_whole(&client).await;
        },
        u64::MAX,
    );
    disks.push(fresh);
    let dice = Random::new(seed);
    let machine = dice.one_in(2);
    for disk in &disks {
        disk.abandon(&dice);
        if machine {
            disk.lose_cache(Luck::Some, &dice);
        }
    }
    // A disk that was never taken in has no superblock.
    let taken_in = |disk: &Platter| raidd::md::Superblock::parse(&disk.bytes()[4096..8192]).is_ok();
    disks.retain(taken_in);
    let world = World::new(seed + 1);
    let (inside, stage, bytes) = (world.clone(), disks.clone(), bytes.take());
    world.run(async move {
        let array = assemble_array(&inside, &stage, 512, AssembleOptions::default()).await.unwrap();
        let mut client = Client::new(array, &inside);
        client.bytes = bytes;
        client.check_all().await;
        steps(&mut client, 2).await;
        while client.array.status().sync.is_some() {
            inside.sleep(Duration::from_millis(5)).await;
        }
        client.check_all().await;
        client.array.stop().await.unwrap();
        let torn = Model::of(&stage).inconsistent();
        assert!(torn.is_empty(), "parity or copies disagree at {torn:?}");
    });
}

#[test]
fn what_cannot_be_read_is_mended_or_recorded() {
    run(40..42, async |world, shape, seed| {
        let disks = platters(&shape, seed);
        let mut client = client_of(&world, &shape, &disks, seed).await;
        let data = shape.data_offset() as u64;
        for disk in disks.iter().take(1) {
            let at = data + world.random(100) * 512;
            disk.spoil(at..at + 512);
        }
        client.check_all().await;
        client.check_all().await;
        steps(&mut client, 5).await;
        world.sleep(Duration::from_secs(1)).await;
        client.check_all().await;
        // The rest of that member still counts.
        assert_eq!(client.array.health(), Health::Optimal);
        assert_eq!(client.array.status().members[0].state, Some(MemberState::InSync));
        client.array.stop().await.unwrap();
        match assemble_array(&world, &disks, 512, AssembleOptions::default()).await {
            Ok(again) => Client::again(again, client).check_all().await,
            Err(Refusal::TooFew(why)) => panic!("{why}"),
            Err(error) => panic!("{error}"),
        }
    });
}

#[test]
fn an_array_made_read_only_is_clean_and_stays_as_it_is() {
    run_with_bitmap(60..63, async |world, shape, seed| {
        let disks = platters(&shape, seed);
        let mut client = client_of(&world, &shape, &disks, seed).await;
        for round in 0..4 {
            if round == 2 {
                client.array.fail("disk1").await.unwrap();
            }
            steps(&mut client, 2).await;
            if round == 3 {
                // In the middle of a recovery.
                client.array.remove("disk1").await.unwrap();
                let found = load_disk(&world, &disks[1], 512).await.unwrap();
                client.array.re_add(found).await.unwrap();
            }
            // A write at the same time is done or refused, and nothing between.
            let array = client.array.clone();
            let (start, len) = client.range();
            let (write, made) =
                futures_util::future::join(client.write(start, len, Fua::No), array.set_read_only()).await;
            made.unwrap();
            assert!(matches!(write, Ok(()) | Err(IoErrorKind::ReadOnly)), "{write:?}");
            assert_eq!(array.status().phase, Phase::ReadOnly);
            let before: Vec<_> = disks.iter().map(|disk| disk.bytes().to_vec()).collect();
            assert!(Model::of(&disks).says_clean());
            let refused = client.write(start, len, Fua::No).await;
            assert_eq!(refused, Err(IoErrorKind::ReadOnly));
            assert!(!array.scrub(true) && array.fail("disk0").await.is_err());
            client.check_all().await;
            array.flush().await.unwrap();
            world.sleep(Duration::from_secs(30)).await;
            assert!(
                disks.iter().zip(&before).all(|(disk, before)| *disk.bytes() == before[..]),
                "written to"
            );
            array.set_read_only().await.unwrap();
            array.set_read_write().unwrap();
            steps(&mut client, 1).await;
            client.check_all().await;
        }
        until_whole(&client).await;
        client.array.set_read_only().await.unwrap();
        client.array.stop().await.unwrap();
        let options = AssembleOptions { read_only: true, ..Default::default() };
        let again = assemble_array(&world, &disks, 512, options).await.unwrap();
        assert!(!again.status().resync_is_due);
        let refused = again.set_read_write().unwrap_err().to_string();
        assert!(refused.contains("--read-only"), "{refused}");
        let client = Client::again(again, client);
        client.check_all().await;
    });
}

#[test]
fn a_last_copy_that_failed_is_not_written_again_for_a_word() {
    let world = World::new(1);
    let inside = world.clone();
    world.run(async move {
        let shape = *SHAPES.iter().find(|shape| shape.level == 1).unwrap();
        let disks = platters(&shape, 1);
        let mut client = client_of(&inside, &shape, &disks, 2).await;
        for slot in 1..shape.slots {
            client.array.fail(&format!("disk{slot}")).await.unwrap();
        }
        disks[0].faults().flush_fails.set(true);
        client.write(0, 4096, Fua::No).await.unwrap();
        let refused = client.array.set_read_only().await.unwrap_err().to_string();
        assert!(refused.contains("not made read-only"), "{refused}");
        disks[0].faults().flush_fails.set(false);
        assert_eq!(client.array.status().phase, Phase::ReadOnly);
        let refused = client.array.set_read_write().unwrap_err().to_string();
        assert!(refused.contains("last usable copy"), "{refused}");
    });
}

#[test]
fn only_who_was_not_there_is_absent() {
    run_with_bitmap(70..72, async |world, shape, seed| {
        let disks = platters(&shape, seed);
        let mut client = client_of(&world, &shape, &disks, seed).await;
        let absent = |client: &Client| -> Vec<String> {
            client.array.absent_members().into_iter().map(|member| member.path).collect()
        };
        let back = async |client: &Client, label: &str| {
            let found = load_disk(&world, &disks[1], 512).await.unwrap();
            client.array.remove(label).await.unwrap();
            client.array.re_add(found).await.unwrap();
            until_whole(client).await;
        };
        client.array.fail("disk1").await.unwrap();
        assert!(absent(&client).is_empty(), "the operator said so");
        back(&client, "disk1").await;

        disks[1].faults().dead.set(true);
        while client.array.health() == Health::Optimal {
            steps(&mut client, 1).await;
        }
        disks[1].faults().dead.set(false);
        assert_eq!(absent(&client), ["disk1"]);
        assert!(client.array.absent_members()[0].may_catch_up);
        client.array.fail("disk1").await.unwrap();
        assert!(absent(&client).is_empty(), "the operator says so now");
        back(&client, "disk1").await;

        disks[1].faults().read_only.set(true);
        while client.array.health() == Health::Optimal {
            steps(&mut client, 1).await;
        }
        disks[1].faults().read_only.set(false);
        assert!(absent(&client).is_empty(), "it was there, and refused");
        client.check_all().await;
        client.array.stop().await.unwrap();
    });
}

#[test]
fn changes_of_members_and_a_read_only_array_do_not_wait_for_each_other() {
    run(80..84, async |world, shape, seed| {
        let disks = platters(&shape, seed);
        let mut client = client_of(&world, &shape, &disks, seed).await;
        let len = disks[0].bytes().len();
        let fresh = |number: u64| Platter::garbage(99 + number, len, 512, seed ^ number << 32);
        let array = client.array.clone();
        // The second change is let in before the first has ended, and after the array was told.
        let (first, second) = (new_member(&world, &fresh(0), "new0"), new_member(&world, &fresh(1), "new1"));
        let (added, made, _) = futures_util::future::join3(
            array.add(first, [100; 16]),
            array.set_read_only(),
            array.add(second, [101; 16]),
        )
        .await;
        added.unwrap();
        made.unwrap();
        array.set_read_write().unwrap();
        steps(&mut client, 1).await;
        // A spare is being seated.
        array.fail("disk1").await.unwrap();
        world.sleep(Duration::from_micros(world.random(3000))).await;
        array.set_read_only().await.unwrap();
        client.check_all().await;
        array.set_read_write().unwrap();
        steps(&mut client, 1).await;
        until_whole(&client).await;
        client.check_all().await;
        array.stop().await.unwrap();
    });
}

/// A read that never ends is over after a member's deadline, give or take.
const DEADLINE: Duration = Duration::from_secs(13);

#[test]
fn a_disk_that_hangs_holds_nobody_up_at_the_start() {
    for seed in 0..32 {
        let shape = shape(5, 2, 4, 4, 1).with_ppl();
        let disks = platters(&shape, seed);
        let (world, stage) = (World::new(seed), disks.clone());
        let inside = world.clone();
        let noted: Rc<RefCell<Vec<u8>>> = Rc::default();
        let notes = noted.clone();
        let ended = world.live(async move {
            let mut client = filled(&inside, &shape, &stage, true).await;
            client.write(inside.random(40_000) as usize, 5000, Fua::No).await.unwrap();
            client.array.flush().await.unwrap();
            *notes.borrow_mut() = client.bytes.clone();
            inside.crash_in(0);
            inside.sleep(Duration::from_secs(1)).await;
        });
        assert!(matches!(ended, Ended::Crashed));
        let world = World::new(seed + 1000);
        let inside = world.clone();
        world.run(async move {
            let silent = &disks[seed as usize % 4];
            silent.faults().hangs.set(1);
            let refused = load_disk(&inside, silent, 512).await.err();
            let is_late = |error: &Refusal| matches!(error, Refusal::Unreadable { error, .. } if error.kind == IoErrorKind::Timeout);
            assert!(refused.is_some_and(|error| is_late(&error)));
            assert!(inside.now() < DEADLINE);
            silent.faults().hangs.set(0);
            silent.release_hung(&inside);

            // It answers again, and hangs once more when the logs are replayed.
            let mut found = Vec::new();
            for disk in &disks {
                found.push(load_disk(&inside, disk, 512).await.unwrap());
            }
            silent.faults().hangs.set(1);
            let began = inside.now();
            let array = assemble(found, &AssembleOptions::default(), &memory(), &inside).await.unwrap();
            assert!(inside.now() - began < DEADLINE, "it is asked once: seed {seed}, {:?}", inside.now() - began);
            array.start();
            let mut client = Client::new(array, &inside);
            client.bytes = noted.take();
            client.check_all().await;
            assert_eq!(client.array.health(), Health::Degraded);
            silent.faults().hangs.set(0);
            silent.release_hung(&inside);
            inside.sleep(Duration::from_secs(1)).await;
            client.array.stop().await.unwrap();
        });
    }
}

#[test]
fn a_disk_that_hangs_is_no_new_member() {
    play(4, async |world, seed| {
        let shape = shape(5, 2, 4, 4, 1);
        let disks = platters(&shape, seed);
        disks[1].faults().hangs.set(1);
        let some: Vec<_> = disks.iter().cloned().map(Some).collect();
        let refused = create_array(&world, &shape, &some, 512, seed % 2 == 0, true).await.err();
        let Some(Refusal::WriteFailed { member, error, .. }) = refused else { panic!("{refused:?}") };
        assert_eq!((member.as_str(), error.kind), ("disk1", IoErrorKind::Timeout));
        disks[1].faults().hangs.set(0);
        disks[1].release_hung(&world);
        world.sleep(Duration::from_secs(1)).await;
    });
}

#[test]
fn a_replacement_that_was_filled_before_a_stop_takes_over_and_progress_stays_in_bounds() {
    play(5, async |world, seed| {
        let disks = disks(&RAID5, seed);
        let client = filled(&world, &RAID5, &disks, true).await;
        client.array.add(new(&world, &disks[4]), [99; 16]).await.unwrap();
        world.slow_disks(50);
        client.array.replace("disk0", "disk4").await.unwrap();
        world.sleep(Duration::from_millis(1)).await;
        client.array.pause();
        client.array.stop().await.unwrap();
        // As if it had been filled, and that been recorded, just before.
        let start = superblock(&disks[0]).expect("a member").data_offset.bytes() as usize;
        let content = disks[0].bytes()[start..].to_vec();
        disks[4].bytes_mut()[start..].copy_from_slice(&content);
        let mut found = Vec::new();
        for disk in &disks[..5] {
            found.push(load_disk(&world, disk, 512).await.unwrap());
        }
        let features = found[4].superblock.feature_map;
        assert!(features.contains(Features::REPLACEMENT), "{features:?}");
        found[4].superblock.feature_map = Features(features.0 & !Features::RECOVERY_OFFSET.0);
        found[4].superblock.recovery_offset = Sector::MAX;
        let array = assemble(found, &AssembleOptions::default(), &memory(), &world).await.unwrap();
        let client = Client::again(array, client);
        client.array.start();
        let mut seen = 0;
        for _ in 0..2000 {
            if let Some(sync) = client.array.status().sync {
                assert!(sync.done_bytes <= sync.total_bytes, "{sync:?}");
                seen += 1;
            }
            world.sleep(Duration::from_micros(50)).await;
        }
        assert!(seen > 0, "there was nothing to see");
        until_idle(&client).await;
        assert_eq!(client.array.health(), Health::Optimal);
        assert_eq!(client.array.status().members[0].path.as_deref(), Some("disk4"));
        client.check_all().await;
        client.array.stop().await.unwrap();
    });
}
