//! What random seeds found, told step by step, so that it is found again at once.

use std::time::Duration;

use raidd::engine::create::NewMember;
use raidd::engine::{AssembleOptions, Health};
use raidd::io::{Clock, Device, Fua, Spawn};
use raidd_sim::disk::{Disk, Platter};
use raidd_sim::model::Model;
use raidd_sim::random::Random;
use raidd_sim::setup::{Shape, assemble_array, create_array, label, platters, shape};
use raidd_sim::store::Luck;
use raidd_sim::world::World;

use crate::rounds::Client;

pub const RAID5: Shape = shape(5, 2, 4, 4, 1);
pub const RAID6: Shape = shape(6, 2, 4, 5, 2);

pub fn play(seeds: u64, scenario: impl AsyncFn(World, u64) + Copy + 'static) {
    for seed in 0..seeds {
        let world = World::new(seed);
        let inside = world.clone();
        world.run(async move { scenario(inside, seed).await });
    }
}

pub async fn filled(world: &World, shape: &Shape, disks: &[Platter], zero: bool) -> Client {
    let some: Vec<_> = disks.iter().take(shape.slots).cloned().map(Some).collect();
    let array = create_array(world, shape, &some, 512, zero, true).await.unwrap();
    let mut client = Client::new(array, world);
    client.fill().await;
    client
}

/// As many disks as the array has, and two more.
pub fn disks(shape: &Shape, seed: u64) -> Vec<Platter> {
    let mut disks = platters(shape, seed);
    let len = disks[0].bytes().len();
    let more = shape.slots as u64..shape.slots as u64 + 2;
    disks.extend(more.map(|number| Platter::garbage(number, len, 512, seed ^ number)));
    disks
}

pub fn new(world: &World, disk: &Platter) -> NewMember<Disk> {
    NewMember { device: Disk::new(disk, world, 512), label: label(disk) }
}

/// Waits until the array has had nothing to do for two seconds.
pub async fn until_idle(client: &Client) {
    let mut since = client.world.now();
    while client.world.now() < since + Duration::from_secs(2) {
        client.world.sleep(Duration::from_millis(5)).await;
        if client.array.status().sync.is_some() {
            since = client.world.now();
        }
    }
}

/// The disks as a crash leaves them.
pub fn crash(disks: &[Platter], luck: Luck, dice: &Random) {
    for disk in disks {
        disk.abandon(dice);
        disk.lose_cache(luck, dice);
    }
}

/// Started again, resynced and stopped, nothing is torn.
pub fn assert_recovers(disks: Vec<Platter>, seed: u64) {
    let world = World::new(seed + 1000);
    let inside = world.clone();
    world.run(async move {
        let array = assemble_array(&inside, &disks, 512, AssembleOptions::default()).await.unwrap();
        let client = Client::new(array, &inside);
        until_idle(&client).await;
        client.array.stop().await.unwrap();
        assert_agrees(&disks);
    });
}

pub fn assert_agrees(disks: &[Platter]) {
    let torn = Model::of(disks).inconsistent();
    assert!(torn.is_empty(), "redundancy disagrees at {torn:?}");
}

#[test]
fn who_is_seated_while_others_are_filled_is_filled_too() {
    play(20, async |world, seed| {
        let disks = disks(&RAID6, seed);
        let mut client = filled(&world, &RAID6, &disks, true).await;
        world.slow_disks(20);
        client.array.fail("disk1").await.unwrap();
        client.array.add(new(&world, &disks[6]), [98; 16]).await.unwrap();
        world.sleep(Duration::from_micros(world.random(3000))).await;
        // The recovery of disk6 has begun; now disk5 is to replace disk0.
        client.array.add(new(&world, &disks[5]), [99; 16]).await.unwrap();
        client.array.replace("disk0", "disk5").await.unwrap();
        client.write(1000, 30_000, Fua::No).await.unwrap();
        until_idle(&client).await;
        assert_eq!(client.array.health(), Health::Optimal);
        client.check_all().await;
        client.array.stop().await.unwrap();
        assert_agrees(&disks);
    });
}

#[test]
fn a_replacement_that_was_half_filled_at_a_crash_holds_what_its_original_holds() {
    for seed in 0..40 {
        let disks = disks(&RAID5, seed);
        let world = World::new(seed);
        let (inside, stage) = (world.clone(), disks.clone());
        let steps = 3000 + world.random(3000);
        drop(world.run_steps(
            async move {
                let client = filled(&inside, &RAID5, &stage, true).await;
                inside.slow_disks(3);
                client.array.add(new(&inside, &stage[4]), [99; 16]).await.unwrap();
                client.array.replace("disk3", "disk4").await.unwrap();
                let writer = inside.clone();
                let mut client = client;
                inside.spawn(async move {
                    loop {
                        let start = writer.random(30_000) as usize;
                        client.write(start, 5000, Fua::No).await.unwrap();
                    }
                });
                std::future::pending::<()>().await;
            },
            steps,
        ));
        crash(&disks, Luck::Some, &Random::new(seed));
        let there = |disk: &Platter| raidd_sim::model::superblock(disk).is_some();
        let disks: Vec<_> = disks.into_iter().filter(there).collect();
        assert_recovers(disks, seed);
    }
}

#[test]
fn what_parity_decides_of_a_new_arrays_unreadable_data_stays_so() {
    play(20, async |world, seed| {
        let disks = disks(&RAID6, seed);
        let start = 1 << 20;
        let at = start + world.random(100) * 512;
        disks[2].spoil(at..at + 8192);
        let some: Vec<_> = disks.iter().take(5).cloned().map(Some).collect();
        let array = create_array(&world, &RAID6, &some, 512, false, true).await.unwrap();
        let client = Client::new(array, &world);
        until_idle(&client).await;
        // It was but a passing weakness.
        disks[2].mend();
        client.array.stop().await.unwrap();
        assert_agrees(&disks);
    });
}

#[test]
fn a_forced_start_with_a_half_filled_member_leaves_nothing_torn() {
    for seed in 0..40 {
        let disks = disks(&RAID6, seed);
        let world = World::new(seed);
        let (inside, stage) = (world.clone(), disks.clone());
        let steps = 3500 + world.random(3000);
        drop(world.run_steps(
            async move {
                let mut client = filled(&inside, &RAID6, &stage, true).await;
                inside.slow_disks(3);
                client.array.fail("disk1").await.unwrap();
                client.array.fail("disk2").await.unwrap();
                client.array.add(new(&inside, &stage[5]), [99; 16]).await.unwrap();
                loop {
                    let start = inside.random(30_000) as usize;
                    client.write(start, 5000, Fua::No).await.unwrap();
                }
            },
            steps,
        ));
        crash(&disks, Luck::Some, &Random::new(seed));
        let there = |disk: &Platter| raidd_sim::model::superblock(disk).is_some();
        let disks: Vec<_> = disks.into_iter().filter(there).collect();
        let world = World::new(seed + 1000);
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
fn a_replacement_that_fails_at_its_last_flush_is_out_and_nothing_else() {
    play(20, async |world, seed| {
        let disks = disks(&RAID5, seed);
        let client = filled(&world, &RAID5, &disks, true).await;
        client.array.add(new(&world, &disks[4]), [99; 16]).await.unwrap();
        client.array.replace("disk0", "disk4").await.unwrap();
        world.sleep(Duration::from_micros(world.random(2000))).await;
        disks[4].faults().flush_fails.set(true);
        until_idle(&client).await;
        world.sleep(Duration::from_secs(1)).await;
        client.array.flush().await.unwrap();
        client.check_all().await;
        // Had it been whole before, it was the member, and is missed.
        assert_ne!(client.array.health(), Health::Failed);
    });
}
