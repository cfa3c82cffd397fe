//! Named scenarios: one for each bug that was found, told step by step.

use std::time::Duration;

use raidd::engine::{AssembleOptions, MemberState, Phase, Refusal};
use raidd::io::{Clock, Device, Fua, Spawn};
use raidd::md::Superblock;

use crate::rounds::Client;
use raidd_sim::disk::Platter;
use raidd_sim::random::Random;
use raidd_sim::setup::{Shape, assemble_array, create_array, platters, shape};
use raidd_sim::world::World;

const RAID1_OF_4: Shape = shape(1, 0, 0, 4, 3);
const RAID5: Shape = shape(5, 2, 4, 4, 1);
const RAID6: Shape = shape(6, 2, 4, 5, 2);

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
        disks[1].faults().flush_fails.set(true);
        client.array.stop().await.unwrap();
        disks[1].faults().flush_fails.set(false);
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
fn what_is_written_after_a_forced_start_survives_the_next_failure() {
    play(async |world| {
        let disks = platters(&RAID6, 1);
        let some: Vec<_> = disks.iter().cloned().map(Some).collect();
        // Killed before its first resync came anywhere: parity is anything.
        drop(create_array(&world, &RAID6, &some, 512, false, false).await.unwrap());
        let disks: Vec<_> = disks.iter().map(|disk| disk.copy(&Random::new(0))).collect();
        let options = AssembleOptions { force: true, ..Default::default() };
        let array = assemble_array(&world, &disks[1..], 512, options).await.unwrap();
        let mut client = Client::new(array, &world);
        let mut written = Vec::new();
        for _ in 0..8 {
            let start = world.random(client.bytes.len() as u64 - 2000) as usize;
            client.write(start, 2000, Fua::No).await.unwrap();
            written.push(start..start + 2000);
        }
        if world.random(2) == 0 {
            client.until_synced().await;
        }
        client.array.fail(&format!("disk{}", 1 + world.random(4))).await.unwrap();
        for range in written {
            let edges = range.start / 512 * 512..range.end.next_multiple_of(512);
            let pool = raidd::io::Pool::new(1 << 20).unwrap();
            let buf = pool.alloc(edges.len()).await;
            let got = client.array.read(edges.start as u64, buf).await.unwrap();
            let got = &got[range.start - edges.start..][..range.len()];
            assert!(*got == client.bytes[range], "what was written is lost");
        }
    });
}

#[test]
fn a_generation_that_was_given_up_does_not_outrank_those_who_went_on() {
    play(async |world| {
        let (disks, mut client) = clean_array(&world, &RAID1_OF_4).await;
        client.write(0, 4096, Fua::No).await.unwrap();
        // Disk 2 fails. Its failure is recorded on disks 0 and 1, but disk 3 finds no space for its superblock.
        disks[2].faults().writes_left.set(Some(0));
        disks[3].faults().full_below.set(METADATA_BYTES);
        client.write(4096, 4096, Fua::No).await.unwrap_err();
        disks[3].faults().full_below.set(0);
        // Disk 0 fails, and that is recorded on disks 1 and 3.
        disks[0].faults().writes_left.set(Some(0));
        client.write(8192, 4096, Fua::No).await.unwrap();
        // Killed, and all disks are back.
        disks.iter().for_each(|disk| disk.faults().writes_left.set(None));
        let disks: Vec<_> = disks.iter().map(|disk| disk.copy(&Random::new(0))).collect();
        let again = assemble_all(&world, &disks, client.bytes).await.unwrap();
        assert_ne!(again.array.status().members[0].state, Some(MemberState::InSync), "disk 0 is stale");
        again.check(8192, 4096).await;
    });
}

/// Changes the superblock of a disk.
fn forge(disk: &Platter, change: impl Fn(&mut Superblock)) {
    let mut superblock = Superblock::parse(&disk.bytes()[4096..8192]).unwrap();
    change(&mut superblock);
    let bytes = superblock.encode();
    disk.bytes_mut()[4096..4096 + bytes.len()].copy_from_slice(&bytes);
}

#[test]
fn a_spare_with_an_impossible_number_is_left_out() {
    play(async |world| {
        let (disks, client) = clean_array(&world, &RAID5).await;
        client.array.stop().await.unwrap();
        let mut disks: Vec<_> = disks.iter().map(|disk| disk.copy(&Random::new(0))).collect();
        disks.push(disks[0].copy(&Random::new(0)));
        forge(&disks[4], |superblock| {
            (superblock.dev_number, superblock.device_uuid) = (u32::MAX - 1, [99; 16]);
        });
        let mut again = assemble_all(&world, &disks, client.bytes).await.unwrap();
        assert!(again.array.status().spares.is_empty());
        again.write(0, 100, Fua::No).await.unwrap();
        again.check_all().await;
    });
}

#[test]
fn an_array_that_ends_in_mid_block_is_refused() {
    play(async |world| {
        let (disks, client) = clean_array(&world, &RAID1_OF_4).await;
        client.array.stop().await.unwrap();
        disks.iter().for_each(|disk| forge(disk, |superblock| superblock.size.0 -= 1));
        let refused = assemble_array(&world, &disks, 4096, AssembleOptions::default()).await;
        assert!(matches!(refused, Err(Refusal::BadSet(_))));
        assemble_array(&world, &disks, 512, AssembleOptions::default()).await.unwrap();
    });
}

#[test]
fn a_new_array_without_any_redundancy_left_starts_again() {
    play(async |world| {
        let disks = platters(&RAID6, 1);
        let some = disks.iter().enumerate().map(|(i, disk)| (i > 1).then(|| disk.clone()));
        let some: Vec<_> = some.collect();
        let array = create_array(&world, &RAID6, &some, 512, false, false).await.unwrap();
        array.stop().await.unwrap();
        assemble_array(&world, &disks[2..], 512, AssembleOptions::default()).await.unwrap();
    });
}

#[test]
fn a_read_only_array_whose_flush_fails_is_left_as_it_is() {
    play(async |world| {
        let (disks, client) = clean_array(&world, &RAID5).await;
        client.array.stop().await.unwrap();
        let before = disks[0].bytes().to_vec();
        let options = AssembleOptions { read_only: true, ..Default::default() };
        let array = assemble_array(&world, &disks, 512, options).await.unwrap();
        disks[1].faults().flush_fails.set(true);
        array.flush().await.unwrap_err();
        disks[1].faults().flush_fails.set(false);
        array.flush().await.expect_err("a flush that failed is not retried into success");
        assert!(array.stop().await.is_err());
        assert!(*disks[0].bytes() == before, "a superblock was written");
    });
}

#[test]
fn many_members_do_not_use_up_the_memory() {
    let shapes = [(1, 0, 0, 100), (5, 2, 64, 40), (6, 2, 64, 40), (10, 0x102, 64, 60)];
    for (level, layout, chunk_kib, slots) in shapes {
        let shape = shape(level, layout, chunk_kib, slots, 1);
        let world = World::new(1);
        let inside = world.clone();
        world.run(async move {
            let (_, mut client) = clean_array(&inside, &shape).await;
            for _ in 0..10 {
                client.step().await;
                client.burst().await;
            }
            client.array.fail("disk7").await.unwrap();
            for _ in 0..5 {
                client.step().await;
                client.burst().await;
            }
            client.check_all().await;
            client.array.stop().await.unwrap();
        });
    }
}
