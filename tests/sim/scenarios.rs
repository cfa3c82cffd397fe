//! Named scenarios: one for each bug that was found, told step by step.

use std::time::Duration;

use raidd::engine::{AssembleOptions, MemberState, Phase, Refusal};
use raidd::io::{Clock, Device, Fua, Spawn};

use crate::disk::Platter;
use crate::rounds::Client;
use crate::setup::{Shape, assemble_array, create_array, platters, shape};
use crate::world::World;

const RAID1_OF_4: Shape = shape(1, 0, 0, 4, 3);
const RAID5: Shape = shape(5, 2, 4, 4, 1);

/// What lies before the data: superblock and bitmap.
const METADATA_BYTES: u64 = 64 << 10;

/// An array of disks that were zeroed, all of it written, idle and clean.
async fn clean_array(world: &World, shape: &Shape) -> (Vec<Platter>, Client) {
    let disks = platters(shape, 1);
    let some: Vec<_> = disks.iter().cloned().map(Some).collect();
    let array = create_array(world, shape, &some, 512, true, false).await.unwrap();
    let mut client = Client::new(array, world);
    client.fill().await;
    world.sleep(Duration::from_secs(1)).await;
    assert_eq!(client.array.status().phase, Phase::Clean);
    (disks, client)
}

/// The same array again, of which this was written.
async fn assemble_all(world: &World, disks: &[Platter], bytes: Vec<u8>) -> Result<Client, Refusal> {
    let array = assemble_array(world, disks, 512, AssembleOptions::default()).await?;
    let mut client = Client::new(array, world);
    client.bytes = bytes;
    Ok(client)
}

fn play(scenario: impl AsyncFn(World) + Copy + 'static) {
    for seed in 0..20 {
        let world = World::new(seed);
        let inside = world.clone();
        world.run(async move { scenario(inside).await });
    }
}

#[test]
fn a_member_that_cannot_be_flushed_at_the_stop_leaves_a_clean_array() {
    play(async |world| {
        let (disks, client) = clean_array(&world, &RAID5).await;
        disks[1].flush_fails.set(true);
        client.array.stop().await.unwrap();
        disks[1].flush_fails.set(false);
        // Nothing was being written: degraded, but not dirty.
        let again = assemble_all(&world, &disks, client.bytes).await.unwrap();
        again.check_all().await;
    });
}

#[test]
fn a_failure_that_is_recorded_while_the_array_stops_leaves_it_clean() {
    play(async |world| {
        let (disks, client) = clean_array(&world, &RAID5).await;
        let array = client.array.clone();
        let pause = world.random(200);
        let inside = world.clone();
        world.spawn(async move {
            inside.sleep(Duration::from_micros(pause)).await;
            // Too late is an answer, too.
            drop(array.fail("disk2").await);
        });
        client.array.stop().await.unwrap();
        world.sleep(Duration::from_secs(1)).await;
        let again = assemble_all(&world, &disks, client.bytes).await.unwrap();
        again.check_all().await;
    });
}

#[test]
fn a_generation_that_was_given_up_does_not_outrank_those_who_went_on() {
    play(async |world| {
        let (disks, mut client) = clean_array(&world, &RAID1_OF_4).await;
        client.write(0, 4096, Fua::No).await.unwrap();
        // Disk 2 fails. Its failure is recorded on disks 0 and 1, but disk 3 finds no space for its superblock.
        disks[2].writes_left.set(Some(0));
        disks[3].full_below.set(METADATA_BYTES);
        client.write(4096, 4096, Fua::No).await.unwrap_err();
        disks[3].full_below.set(0);
        // Disk 0 fails, and that is recorded on disks 1 and 3.
        disks[0].writes_left.set(Some(0));
        client.write(8192, 4096, Fua::No).await.unwrap();
        // Killed, and all disks are back.
        disks.iter().for_each(|disk| disk.writes_left.set(None));
        let disks: Vec<_> = disks.iter().map(Platter::copy).collect();
        let again = assemble_all(&world, &disks, client.bytes).await.unwrap();
        assert_ne!(again.array.status().members[0].state, Some(MemberState::InSync), "disk 0 is stale");
        again.check(8192, 4096).await;
    });
}

#[test]
fn a_read_only_array_whose_flush_fails_is_left_as_it_is() {
    play(async |world| {
        let (disks, client) = clean_array(&world, &RAID5).await;
        client.array.stop().await.unwrap();
        let before = disks[0].bytes.borrow().clone();
        let options = AssembleOptions { read_only: true, ..Default::default() };
        let array = assemble_array(&world, &disks, 512, options).await.unwrap();
        disks[1].flush_fails.set(true);
        array.flush().await.unwrap_err();
        disks[1].flush_fails.set(false);
        array.flush().await.expect_err("a flush that failed is not retried into success");
        assert!(array.stop().await.is_err());
        assert!(*disks[0].bytes.borrow() == before, "a superblock was written");
    });
}
