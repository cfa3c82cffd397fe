//! Whom reads are asked of: policies, members that are write-mostly or failfast, hedges; and what is told of how long it took.

use std::time::Duration;

use raidd::engine::{ArrayStats, AssembleOptions, Health, Hedge, MemberState, ReadPolicy, assemble};
use raidd::io::{Clock, Device, Fua, Pool};
use raidd::units::MemberSlot;
use raidd_sim::disk::Platter;
use raidd_sim::model::superblock;
use raidd_sim::setup::{Shape, create_array, load_disk, memory, shape};
use raidd_sim::world::World;

use crate::found::{RAID5, RAID6, assert_agrees, disks, filled, play, until_idle};
use crate::rounds::Client;

const MIRROR: Shape = shape(1, 0, 4, 3, 0);

/// Reads each block of the beginning, one after the other.
async fn read_some(client: &Client, count: usize) {
    for at in 0..count {
        client.check(at % 50 * 512, 512).await;
    }
}

fn stats(client: &Client) -> ArrayStats {
    client.array.stats(&[100, 1000, 1_000_000])
}

/// How often each member has been read.
fn reads(client: &Client) -> Vec<u64> {
    stats(client).members.iter().map(|member| member.reads.count).collect()
}

async fn read_by(client: &Client, policy: ReadPolicy, count: usize) -> Vec<u64> {
    client.array.set_read_policy(policy);
    let before = reads(client);
    read_some(client, count).await;
    reads(client).iter().zip(before).map(|(now, before)| now - before).collect()
}

/// Assembles the array again, with flags in its members' superblocks: 1 write-mostly, 2 failfast.
async fn with_flags(world: &World, disks: &[Platter], client: Client, flags: &[u8]) -> Client {
    client.array.stop().await.unwrap();
    let mut found = Vec::new();
    for (disk, &flags) in disks.iter().zip(flags) {
        let mut member = load_disk(world, disk, 512).await.unwrap();
        member.superblock.devflags = flags;
        found.push(member);
    }
    let array = assemble(found, &AssembleOptions::default(), &memory(), world).await.unwrap();
    array.start();
    Client::again(array, client)
}

#[test]
fn reads_go_where_the_policy_says() {
    play(10, async |world, seed| {
        let disks = disks(&MIRROR, seed);
        let client = filled(&world, &MIRROR, &disks, true).await;
        assert_eq!(read_by(&client, ReadPolicy::RoundRobin, 300).await, [100, 100, 100]);
        assert_eq!(read_by(&client, ReadPolicy::Prefer(MemberSlot(2)), 300).await, [0, 0, 300]);
        // One after the other: nothing is ever pending, so they take turns.
        let turns = read_by(&client, ReadPolicy::LeastPending, 300).await;
        assert!(turns.iter().all(|count| (90..=110).contains(count)), "{turns:?}");
        disks[1].faults().slow.set(100);
        let some = read_by(&client, ReadPolicy::Latency, 600).await;
        assert!((1..90).contains(&some[1]) && some[0] > 100 && some[2] > 100, "{some:?}");
        disks[1].faults().slow.set(0);
        let some = read_by(&client, ReadPolicy::Latency, 30_000).await;
        assert!(some[1] > 1000, "once it is fast again, it is noticed: {some:?}");
        // Of many at once, the slow one gets few.
        disks[1].faults().slow.set(100);
        client.array.set_read_policy(ReadPolicy::LeastPending);
        let before = reads(&client);
        let pool = Pool::new(1 << 20).unwrap();
        let many = (0..40).map(|task| {
            let (array, pool) = (client.array.clone(), pool.clone());
            async move {
                for at in 0..20 {
                    array.read((task + at) * 512, pool.alloc(512).await).await.unwrap();
                }
            }
        });
        futures_util::future::join_all(many).await;
        let some: Vec<u64> = reads(&client).iter().zip(before).map(|(now, before)| now - before).collect();
        assert!(some[1] < some[0] / 2 && some[1] < some[2] / 2, "{some:?}");
        client.check_all().await;
        client.array.stop().await.unwrap();
        assert_agrees(&disks);
    });
}

#[test]
fn a_preferred_member_that_is_gone_is_done_without() {
    play(5, async |world, seed| {
        let disks = disks(&MIRROR, seed);
        let client = filled(&world, &MIRROR, &disks, true).await;
        client.array.fail("disk2").await.unwrap();
        let some = read_by(&client, ReadPolicy::Prefer(MemberSlot(2)), 100).await;
        assert_eq!(some, [50, 50, 0]);
        assert_eq!(read_by(&client, ReadPolicy::Prefer(MemberSlot(77)), 100).await, [50, 50, 0]);
    });
}

#[test]
fn a_write_mostly_member_is_read_only_if_there_is_no_other() {
    play(5, async |world, seed| {
        let disks = disks(&MIRROR, seed);
        let client = filled(&world, &MIRROR, &disks, true).await;
        let client = with_flags(&world, &disks[..3], client, &[0, 1, 1]).await;
        for policy in [ReadPolicy::RoundRobin, ReadPolicy::Latency, ReadPolicy::Prefer(MemberSlot(1))] {
            assert_eq!(read_by(&client, policy, 200).await, [200, 0, 0], "{policy:?}");
        }
        client.array.fail("disk0").await.unwrap();
        let some = read_by(&client, ReadPolicy::RoundRobin, 200).await;
        assert_eq!((some[0], some[1], some[2]), (0, 100, 100));
        client.check_all().await;
        // The flags are kept, for the kernel.
        client.array.stop().await.unwrap();
        assert_eq!(
            disks[1..3].iter().map(|disk| superblock(disk).unwrap().devflags).collect::<Vec<_>>(),
            [1, 1]
        );
    });
}

#[test]
fn a_failfast_member_fails_for_an_error_that_another_is_mended_for() {
    for (flags, state) in [([0; 3], MemberState::InSync), ([2; 3], MemberState::Faulty)] {
        play(5, async move |world, seed| {
            let disks = disks(&MIRROR, seed);
            let client = filled(&world, &MIRROR, &disks, true).await;
            let client = with_flags(&world, &disks[..3], client, &flags).await;
            let start = superblock(&disks[1]).unwrap().data_offset.bytes();
            disks[1].spoil(start..start + 512);
            client.array.set_read_policy(ReadPolicy::Prefer(MemberSlot(1)));
            read_some(&client, 10).await;
            world.sleep(Duration::from_millis(50)).await;
            assert_eq!(client.array.status().members[1].state, Some(state));
            // The others have the same flag, and no other copy: what cannot be read there is mended or an error.
            client.array.fail("disk2").await.unwrap();
            if state == MemberState::Faulty {
                disks[0].spoil(start + 512..start + 1024);
                let lost = client.array.read(512, Pool::new(1 << 20).unwrap().try_alloc(512).unwrap()).await;
                assert!(lost.is_err());
                assert_eq!(client.array.health(), Health::Degraded, "the last copy is never failed");
            }
        });
    }
}

#[test]
fn a_hedged_read_costs_what_the_others_take_and_fails_nobody() {
    for shape in [&MIRROR, &RAID5, &RAID6] {
        play(10, async move |world, seed| {
            let disks = disks(shape, seed);
            let mut client = filled(&world, shape, &disks, true).await;
            client.array.set_member_timeout(Duration::from_secs(2));
            disks[0].faults().slow.set(10_000);
            let all = async |client: &Client| {
                let began = client.world.now();
                for at in (0..client.bytes.len()).step_by(4096).take(32) {
                    client.check(at, 512).await;
                }
                client.world.now() - began
            };
            let alone = all(&client).await;
            assert_eq!(stats(&client).hedged_reads, 0);
            client.array.set_hedge(Hedge::After(Duration::from_millis(1)));
            // What was saved up is enough for these: one in three or four, and some of them are quick by luck.
            let hedged = all(&client).await;
            assert!(hedged * 4 < alone, "{hedged:?} instead of {alone:?}, {shape:?}");
            let count = stats(&client).hedged_reads;
            assert!((1..=16).contains(&count), "{count}");
            // Writes go on meanwhile, and what is read is what was written.
            for round in 0..20 {
                client.write(round * 300, 700, Fua::No).await.unwrap();
                client.check(round * 300, 700).await;
            }
            client.check_all().await;
            assert_eq!(client.array.health(), Health::Optimal);
            // A stop waits for those that nobody waits for any more.
            client.array.stop().await.unwrap();
            assert_eq!(disks[0].busy(), 0);
            assert_agrees(&disks);
        });
    }
}

#[test]
fn a_hedge_finds_a_hung_member_out_all_the_same() {
    play(5, async |world, seed| {
        let disks = disks(&RAID5, seed);
        let client = filled(&world, &RAID5, &disks, true).await;
        client.array.set_member_timeout(Duration::from_secs(1));
        client.array.set_hedge(Hedge::Auto);
        disks[0].faults().hangs.set(1);
        for _ in 0..5 {
            let began = world.now();
            client.check(0, 512).await;
            assert!(world.now() - began < Duration::from_millis(50));
        }
        world.sleep(Duration::from_secs(2)).await;
        assert_eq!(client.array.status().members[0].state, Some(MemberState::Faulty));
        until_idle(&client).await;
        client.check_all().await;
    });
}

#[test]
fn times_and_failover_are_told_as_they_were() {
    play(5, async |world, seed| {
        let disks = disks(&RAID5, seed);
        let client = filled(&world, &RAID5, &disks, true).await;
        let told = stats(&client);
        assert_eq!((told.failover, told.times.degraded), (None, Duration::ZERO));
        assert_eq!(
            (told.writes.count, told.writes.errors, told.writes.bytes),
            (1, 0, client.bytes.len() as u64)
        );
        client.array.set_member_timeout(Duration::from_secs(1));
        disks[0].faults().hangs.set(1);
        let began = world.now();
        client.check(0, 512).await;
        let waited = world.now() - began;
        disks[0].faults().hangs.set(0);
        world.sleep(Duration::from_secs(10)).await;
        let told = stats(&client);
        assert_eq!(told.failover, Some(waited), "the one who waited");
        assert!(waited >= Duration::from_secs(1) && told.times.degraded >= Duration::from_secs(10));
        assert!(told.times.degraded < told.times.up && told.times.unavailable == Duration::ZERO);
        assert!(told.members[0].errors.timeout >= 1);
        assert_eq!((told.reads.count, told.reads.within[2]), (1, 0), "it took more than a second");
        client.array.add(crate::found::new(&world, &disks[4]), [99; 16]).await.unwrap();
        until_idle(&client).await;
        let degraded = stats(&client).times.degraded;
        world.sleep(Duration::from_secs(10)).await;
        assert_eq!(stats(&client).times.degraded, degraded, "it is whole again");
    });
}

#[test]
fn a_hedge_asks_nobody_who_may_say_something_else() {
    play(10, async |world, seed| {
        let disks = disks(&RAID6, seed);
        let some: Vec<_> = disks.iter().take(RAID6.slots).cloned().map(Some).collect();
        // Whatever was on the disks is there, and parity agrees with none of it.
        let array = create_array(&world, &RAID6, &some, 512, false, true).await.unwrap();
        array.pause();
        world.sleep(Duration::from_millis(10)).await;
        let pool = Pool::new(1 << 20).unwrap();
        let read = async |at: u64| array.read(at, pool.try_alloc(512).unwrap()).await.unwrap().to_vec();
        let places: Vec<u64> = (0..20).map(|line| (40 + line) * 4096).collect();
        let mut before = Vec::new();
        for &at in &places {
            before.push(read(at).await);
        }
        array.set_hedge(Hedge::After(Duration::from_micros(50)));
        disks.iter().for_each(|disk| disk.faults().slow.set(100));
        for (&at, before) in places.iter().zip(&before) {
            assert!(read(at).await == *before, "what was never written reads differently at {at}");
        }
        assert_eq!(array.stats(&[]).hedged_reads, 0);
    });
}
