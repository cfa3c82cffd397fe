//! What makes an array whole again: recovery, its pace and its checkpoints, scrubs, and members that have too much wrong.

use std::time::Duration;

use raidd::engine::{AssembleOptions, Health, MemberState, SyncAction};
use raidd::io::extent::{BAD, DEGRADED, UNSYNCED};
use raidd::io::{Clock, Device, ExtentKind, Fua, Pool};
use raidd_sim::disk::Platter;
use raidd_sim::model::superblock;
use raidd_sim::random::Random;
use raidd_sim::setup::{Making, Shape, assemble_array, create_array, load_disk, make_array, shape};
use raidd_sim::store::Luck;
use raidd_sim::world::{Ended, World};

use crate::found::{RAID5, RAID6, assert_agrees, crash, disks, filled, new, play, until_idle};
use crate::rounds::Client;

const LINE: u64 = 4096;

fn data_start(disk: &Platter) -> u64 {
    superblock(disk).expect("a member").data_offset.bytes()
}

/// So many lines of a disk cannot be read, beginning with one.
fn spoil_lines(disk: &Platter, first: u64, count: u64) {
    let start = data_start(disk) + first * LINE;
    disk.spoil(start..start + count * LINE);
}

/// A byte of a line changes behind everybody's back.
fn spoil_byte(disk: &Platter, line: u64) {
    let at = (data_start(disk) + line * LINE) as usize + 7;
    disk.bytes_mut()[at] ^= 1;
}

/// Reads the array block by block. Gives those that cannot be read; the others must be right.
async fn blocks_out_of_reach(client: &Client) -> Vec<usize> {
    let pool = Pool::new(1 << 20).unwrap();
    let mut out = Vec::new();
    for at in (0..client.bytes.len()).step_by(512) {
        match client.array.read(at as u64, pool.try_alloc(512).unwrap()).await {
            Ok(found) => assert!(*found == client.bytes[at..at + 512], "wrong bytes at {at}"),
            Err(_) => out.push(at),
        }
    }
    out
}

#[test]
fn a_member_on_which_too_much_had_to_be_corrected_fails() {
    // One line in four is parity, which nobody reads.
    for (bad_lines, corrected, fails) in [(15, 12, false), (30, 21, true)] {
        play(5, async move |world, seed| {
            let disks = disks(&RAID5, seed);
            let client = filled(&world, &RAID5, &disks, true).await;
            spoil_lines(&disks[1], 3, bad_lines);
            for _ in 0..3 {
                client.check_all().await;
                world.sleep(Duration::from_millis(50)).await;
            }
            let status = client.array.status();
            assert!(status.members[1].read_errors > 0);
            assert_eq!(status.members[1].corrected_sectors, corrected * 8);
            let expected = if fails { MemberState::Faulty } else { MemberState::InSync };
            assert_eq!(status.members[1].state, Some(expected));
            assert_eq!(status.health == Health::Degraded, fails);
            client.check_all().await;
            client.array.stop().await.unwrap();
            assert_agrees(&disks);
        });
    }
}

#[test]
fn corrections_of_long_ago_count_for_less() {
    play(3, async |world, seed| {
        let disks = disks(&RAID5, seed);
        let client = filled(&world, &RAID5, &disks, true).await;
        for day in 0..6 {
            spoil_lines(&disks[1], 6 * day, 6);
            client.check_all().await;
            world.sleep(Duration::from_secs(86_400)).await;
        }
        // One line in four is parity.
        assert_eq!(client.array.status().members[1].corrected_sectors, 27 * 8);
        assert_eq!(client.array.health(), Health::Optimal);
    });
}

#[test]
fn a_source_that_cannot_be_read_costs_a_recovery_of_raid6_nothing() {
    play(20, async |world, seed| {
        let disks = disks(&RAID6, seed);
        let client = filled(&world, &RAID6, &disks, true).await;
        client.array.fail("disk1").await.unwrap();
        spoil_lines(&disks[0], world.random(30), 1 + world.random(10));
        spoil_lines(&disks[3], 40, 2);
        client.array.add(new(&world, &disks[5]), [99; 16]).await.unwrap();
        until_idle(&client).await;
        let status = client.array.status();
        assert_eq!(status.health, Health::Optimal);
        assert!(status.members.iter().all(|member| member.bad_sectors == 0));
        client.check_all().await;
        client.array.stop().await.unwrap();
        let members: Vec<_> = disks.iter().enumerate().filter(|&(number, _)| number != 1).collect();
        assert_agrees(&members.into_iter().map(|(_, disk)| disk.clone()).collect::<Vec<_>>());
    });
}

#[test]
fn where_redundancy_is_exhausted_the_rest_is_saved() {
    play(20, async |world, seed| {
        let disks = disks(&RAID5, seed);
        let client = filled(&world, &RAID5, &disks, true).await;
        client.array.fail("disk1").await.unwrap();
        let (first, count) = (world.random(40), 1 + world.random(4));
        spoil_lines(&disks[0], first, count);
        client.array.add(new(&world, &disks[5]), [99; 16]).await.unwrap();
        until_idle(&client).await;
        let status = client.array.status();
        assert_eq!(status.health, Health::Optimal, "the rest of it is whole: seed {seed}, {status:?}");
        assert_eq!(status.members[1].bad_sectors, count * 8, "and what is lost is on record");
        let lost = blocks_out_of_reach(&client).await;
        assert!(lost.len() as u64 <= 2 * count * 8 && !lost.is_empty(), "{lost:?}");
        client.array.stop().await.unwrap();
        // On record it stays over a restart, until it is written.
        let members: Vec<_> = [0, 2, 3, 5].map(|number| disks[number].clone()).into();
        let array = assemble_array(&world, &members, 512, AssembleOptions::default()).await.unwrap();
        let mut client = Client::again(array, client);
        assert_eq!(client.array.status().members[1].bad_sectors, count * 8);
        assert_eq!(blocks_out_of_reach(&client).await, lost);
        client.fill().await;
        client.check_all().await;
        assert_eq!(client.array.status().members[1].bad_sectors, 0);
        client.array.stop().await.unwrap();
        assert_agrees(&members);
    });
}

/// The health of each block of the array.
async fn health_of(client: &Client) -> Vec<u32> {
    let mut health = Vec::new();
    while health.len() < client.bytes.len() / 512 {
        let rest = health.len() as u64 * 512..client.bytes.len() as u64;
        for extent in client.array.extents(ExtentKind::Health, rest, 500).await.unwrap() {
            health.extend((0..extent.len_bytes / 512).map(|_| extent.state));
        }
    }
    health
}

#[test]
fn nothing_is_called_lost_that_can_be_read() {
    play(5, async |world, seed| {
        // Before its first resync is done, parity decides what missing data is.
        let disks = disks(&RAID6, seed);
        let some: Vec<_> = disks.iter().take(RAID6.slots).cloned().map(Some).collect();
        let array = create_array(&world, &RAID6, &some, 512, false, true).await.unwrap();
        array.pause();
        let mut client = Client::new(array, &world);
        client.fill().await;
        client.array.fail("disk1").await.unwrap();
        client.check_all().await;
        let health = health_of(&client).await;
        assert!(health.iter().all(|state| state & BAD == 0), "{health:?}");
        assert!(health.iter().all(|state| state & DEGRADED != 0));
        assert!(health.iter().any(|state| state & UNSYNCED != 0), "the resync waits");
    });
    play(10, async |world, seed| {
        let disks = disks(&RAID5, seed);
        let client = filled(&world, &RAID5, &disks, true).await;
        client.array.fail("disk1").await.unwrap();
        spoil_lines(&disks[0], world.random(40), 1 + world.random(4));
        client.array.add(new(&world, &disks[5]), [99; 16]).await.unwrap();
        until_idle(&client).await;
        let lost = blocks_out_of_reach(&client).await;
        let health = health_of(&client).await;
        assert!(health.iter().any(|state| state & DEGRADED != 0), "what is lost to a member is on record");
        for (block, state) in health.iter().enumerate() {
            assert!(state & BAD == 0 || lost.contains(&(block * 512)), "block {block} can be read");
        }
    });
}

#[test]
fn a_recovery_gives_way_to_clients_and_hurries_when_alone() {
    play(5, async |world, seed| {
        let disks = disks(&RAID5, seed);
        let client = filled(&world, &RAID5, &disks, true).await;
        let member_bytes = client.array.status().member_sectors.bytes();
        // Two seconds beside clients (less, where the world lets them wait), some milliseconds alone.
        client.array.set_recovery_speed(Some(member_bytes / 2), Some(member_bytes * 1000));
        let mut times = Vec::new();
        for (number, busy) in [(4, true), (5, false)] {
            client.array.fail(if busy { "disk1" } else { "disk2" }).await.unwrap();
            let began = world.now();
            client.array.add(new(&world, &disks[number]), [90 + number as u8; 16]).await.unwrap();
            world.sleep(Duration::from_millis(1)).await;
            while client.array.status().sync.is_some() {
                if busy {
                    client.check(world.random(500) as usize * 512, 512).await;
                }
                world.sleep(Duration::from_millis(2)).await;
            }
            assert_eq!(client.array.health(), Health::Optimal);
            times.push(world.now() - began);
            world.sleep(Duration::from_secs(1)).await;
        }
        let seconds = |time: Duration| time.as_secs_f64();
        assert!((0.5..3.0).contains(&seconds(times[0])), "beside clients: {times:?}");
        assert!(seconds(times[1]) < 0.1, "alone: {times:?}");
    });
}

#[test]
fn a_recovery_goes_on_at_its_checkpoint() {
    for seed in 0..10 {
        let disks = disks(&RAID6, seed);
        let (world, stage) = (World::new(seed), disks.clone());
        let inside = world.clone();
        let ended = world.live(async move {
            let client = filled(&inside, &RAID6, &stage, true).await;
            let member_bytes = client.array.status().member_sectors.bytes();
            client.array.flush().await.unwrap();
            inside.sleep(Duration::from_secs(1)).await;
            client.array.fail("disk1").await.unwrap();
            client.array.set_recovery_speed(None, Some(member_bytes / 4));
            client.array.add(new(&inside, &stage[5]), [99; 16]).await.unwrap();
            inside.sleep(Duration::from_secs(3)).await;
            let done = client.array.status().sync.expect("it runs").done_bytes;
            assert!(done > member_bytes / 2 && done < member_bytes, "{done}");
            inside.crash_in(0);
            inside.sleep(Duration::from_secs(1)).await;
        });
        assert_eq!(ended, Ended::Crashed);
        crash(&disks, Luck::None, &Random::new(seed));
        let members: Vec<_> = [0, 2, 3, 4, 5].map(|number| disks[number].clone()).into();
        let world = World::new(seed + 1000);
        let inside = world.clone();
        world.run(async move {
            let written = members[4].counts().written_bytes;
            let array = assemble_array(&inside, &members, 512, AssembleOptions::default()).await.unwrap();
            let Some(MemberState::Recovering(from)) = array.status().members[1].state else { panic!() };
            let member_bytes = array.status().member_sectors.bytes();
            assert!(from.bytes() >= member_bytes / 2, "from {from}");
            let client = Client::new(array, &inside);
            until_idle(&client).await;
            assert_eq!(client.array.health(), Health::Optimal);
            let written = members[4].counts().written_bytes - written;
            assert!(written < member_bytes * 3 / 4, "{written} of {member_bytes} bytes were written again");
            client.array.stop().await.unwrap();
            assert_agrees(&members);
        });
    }
}

#[test]
fn a_former_member_is_given_only_what_it_has_missed() {
    const WIDE: Shape = shape(5, 2, 16, 4, 1);
    play(10, async |world, seed| {
        let disks = disks(&WIDE, seed);
        let some: Vec<_> = disks.iter().take(4).cloned().map(Some).collect();
        let making = Making { block: 512, zero: true, assume_clean: false, bitmap_kib: Some(16), uuid: 7 };
        let array = make_array(&world, &WIDE, &some, &making).await.unwrap();
        let mut client = Client::new(array, &world);
        client.fill().await;
        world.sleep(Duration::from_secs(20)).await;
        client.array.fail("disk1").await.unwrap();
        client.array.remove("disk1").await.unwrap();
        let at = world.random(client.bytes.len() as u64 - 2000) as usize;
        client.write(at, 2000, Fua::No).await.unwrap();
        let before = disks[1].counts().written_bytes;
        let found = load_disk(&world, &disks[1], 512).await.unwrap();
        client.array.re_add(found).await.unwrap();
        until_idle(&client).await;
        assert_eq!(client.array.health(), Health::Optimal);
        // At most two regions of 16 KiB, and metadata; a member has twelve.
        let written = disks[1].counts().written_bytes - before;
        assert!(written < (2 * 16 + 24) << 10, "{written} bytes");
        client.check_all().await;
        client.array.stop().await.unwrap();
        assert_agrees(&disks);
    });
}

#[test]
fn a_scrub_that_is_stopped_goes_on_where_it_was() {
    play(10, async |world, seed| {
        let disks = disks(&RAID6, seed);
        let client = filled(&world, &RAID6, &disks, true).await;
        client.array.flush().await.unwrap();
        let member_bytes = client.array.status().member_sectors.bytes();
        let liar = world.random(5) as usize;
        // One early, one late.
        for line in [2, member_bytes / LINE - 2] {
            spoil_byte(&disks[liar], line);
        }
        client.array.set_recovery_speed(None, Some(member_bytes / 4));
        assert!(client.array.scrub(false));
        world.sleep(Duration::from_secs(2)).await;
        let running = client.array.status().sync.expect("it runs");
        assert_eq!((running.action, client.array.findings().len()), (SyncAction::Check, 1));
        client.array.stop_scrub();
        until_idle(&client).await;
        assert_eq!(client.array.last_scrub(), None, "it has not come to its end");
        client.array.set_recovery_speed(None, Some(member_bytes * 1000));
        assert!(client.array.scrub(true));
        until_idle(&client).await;
        let findings = client.array.findings();
        assert_eq!(findings.len(), 2, "{findings:?}");
        assert!(findings.iter().all(|finding| finding.liar.is_some_and(|slot| slot.index() == liar)));
        // The first was only looked at, the second mended.
        assert_eq!(findings.iter().map(|finding| finding.repaired).collect::<Vec<_>>(), [false, true]);
        assert!(client.array.last_scrub().is_some());
        assert!(client.array.scrub(true));
        until_idle(&client).await;
        client.check_all().await;
        client.array.stop().await.unwrap();
        assert_agrees(&disks);
    });
}

#[test]
fn what_nobody_can_decide_is_told_and_left_to_parity() {
    play(10, async |world, seed| {
        let disks = disks(&RAID5, seed);
        let client = filled(&world, &RAID5, &disks, true).await;
        client.array.flush().await.unwrap();
        let (liar, line) = (world.random(4) as usize, world.random(40));
        spoil_byte(&disks[liar], line);
        assert!(client.array.scrub(false));
        until_idle(&client).await;
        let findings = client.array.findings();
        let [finding] = &findings[..] else { panic!("{findings:?}") };
        assert!(finding.liar.is_none() && !finding.repaired);
        assert!(finding.rows.start <= line * 8 && line * 8 < finding.rows.end, "{finding:?}");
        assert!(finding.array.start < finding.array.end);
        assert!(client.array.mismatched_sectors() > 0);
        // As md does it: parity is made anew of the data.
        assert!(client.array.scrub(true));
        until_idle(&client).await;
        client.array.stop().await.unwrap();
        assert_agrees(&disks);
    });
}
