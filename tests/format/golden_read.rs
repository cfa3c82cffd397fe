//! What the kernel wrote is read back right: the content of every golden array, with all members and with any of them
//! missing, and not one byte of any member is changed by it.

use std::collections::BTreeSet;
use std::fs;

use raidd::engine::{AssembleOptions, Refusal};
use raidd::io::Device;

use crate::golden::{self, Array, Member, RoleName};
use crate::members::{MemoryMember, content, hash, open, stop};
use raidd_sim::world::World;

/// The members of an array in memory, those that have been left out by the others last.
struct Loaded {
    array: &'static Array,
    members: Vec<(&'static Member, MemoryMember)>,
    used: usize,
}

fn loaded() -> impl Iterator<Item = Loaded> {
    golden::arrays().iter().map(|array| {
        let is_used =
            |member: &&Member| !array.left_out.keys().any(|end| member.file.ends_with(end.as_str()));
        let (used, stale): (Vec<_>, Vec<_>) = array.members.iter().partition(is_used);
        let count = used.len();
        let load = |member: &'static Member| {
            (member, MemoryMember::new(&member.file, fs::read(member.path()).expect("an unpacked member")))
        };
        Loaded { array, members: used.into_iter().chain(stale).map(load).collect(), used: count }
    })
}

impl Loaded {
    /// What is read from the members with these indices.
    fn read(&self, with: &[usize], options: &AssembleOptions) -> Result<String, Refusal> {
        let world = World::new(1);
        let members: Vec<_> = with.iter().map(|&index| self.members[index].1.clone()).collect();
        let array = open(&world, &members, options)?;
        assert_eq!(array.size_bytes(), self.array.array_size, "{}", self.array.name);
        let read = content(&world, &array).unwrap_or_else(|error| panic!("{}: {error}", self.array.name));
        stop(&world, array);
        Ok(hash(&read))
    }

    /// What is to be read where the used members with these indices are left out; `None` where nobody has said.
    fn expected(&self, without: &[usize]) -> Option<&str> {
        let missing = without.iter().map(|&index| self.members[index].0);
        // A half-rebuilt member is not missed.
        let roles =
            missing.filter(|member| member.recovery_offset.is_none()).map(|member| match &member.role {
                RoleName::Slot(slot) => slot.to_string(),
                RoleName::Other(role) => panic!("{}: a used member that is {role}", member.file),
            });
        let roles: BTreeSet<_> = roles.collect();
        let content = &self.array.content;
        if roles.is_empty() {
            return Some(&content.sha256);
        }
        // The manifest leaves out one of each, RAID6's pairs besides; but RAID10 lives as long as one of each pair does.
        let pairs = [["0", "1"], ["2", "3"]];
        if self.array.layout == 0x102 && self.array.level() == 10 && self.array.raid_disks == 4 {
            let alive = |pair: &[&str; 2]| pair.iter().any(|role| !roles.contains(*role));
            return pairs.iter().all(alive).then_some(&content.sha256);
        }
        content.without.get(&roles.into_iter().collect::<Vec<_>>().join(",")).map(String::as_str)
    }

    fn assert_untouched(&self) {
        for (member, device) in &self.members {
            let mut bytes = device.device.content();
            let behind = bytes.split_off(member.size as usize);
            assert!(hash(&bytes) == member.sha256, "{} was changed", member.file);
            assert!(behind.iter().all(|byte| *byte == 0), "{} was changed behind its end", member.file);
        }
    }
}

#[test]
fn complete_arrays() {
    for loaded in loaded() {
        let all: Vec<_> = (0..loaded.members.len()).collect();
        let backwards: Vec<_> = all.iter().rev().copied().collect();
        let expected = &loaded.array.content.sha256;
        for order in [&all, &backwards, &all[..loaded.used].to_vec()] {
            let read = loaded.read(order, &AssembleOptions::default());
            assert_eq!(&read.expect("all members are there"), expected, "{}", loaded.array.name);
        }
        loaded.assert_untouched();
    }
}

#[test]
fn with_any_members_missing() {
    let (mut served, mut refused) = (0, 0);
    for loaded in loaded() {
        let name = &loaded.array.name;
        for mask in 0..1usize << loaded.used {
            let (without, with): (Vec<_>, Vec<_>) =
                (0..loaded.used).partition(|index| mask & 1 << index != 0);
            let with_stale: Vec<_> = with.iter().copied().chain(loaded.used..loaded.members.len()).collect();
            // Without stale members these are the same.
            let sets = if with_stale == with { vec![&with] } else { vec![&with, &with_stale] };
            for members in sets {
                let expected = loaded.expected(&without);
                match (loaded.read(members, &AssembleOptions::default()), expected) {
                    (Ok(read), Some(expected)) => assert_eq!(read, expected, "{name} without {without:?}"),
                    (Ok(_), None) => panic!("{name} is served without {without:?}; it cannot be"),
                    (Err(refusal), Some(_)) => panic!("{name} without {without:?}: {refusal}"),
                    (Err(_), None) => refused += 1,
                }
                served += usize::from(expected.is_some());
            }
        }
        loaded.assert_untouched();
    }
    assert!(served > 40 && refused > 60, "{served} served, {refused} refused");
}

#[test]
fn a_dirty_array_without_a_member_is_served_only_by_force() {
    for loaded in loaded().filter(|loaded| !loaded.array.clean && loaded.array.content.without.is_empty()) {
        for missing in 0..loaded.used {
            let with: Vec<_> = (0..loaded.used).filter(|&index| index != missing).collect();
            let refusal = loaded.read(&with, &AssembleOptions::default()).expect_err("it is dirty");
            assert!(matches!(refusal, Refusal::DirtyDegraded(_)), "{refusal}");
            let force = AssembleOptions { force: true, ..AssembleOptions::default() };
            // What comes of it nobody can say, but that it can be read.
            loaded.read(&with, &force).expect("the operator has spoken");
        }
        loaded.assert_untouched();
    }
}

#[test]
fn all_can_be_written() {
    for loaded in loaded() {
        let world = World::new(1);
        let members: Vec<_> = loaded.members.iter().map(|(_, member)| member.clone()).collect();
        let array = open(&world, &members, &AssembleOptions::default()).expect("all members are there");
        assert!(!array.info().read_only, "{}", loaded.array.name);
    }
}

/// Started, a dirty array is resynced; then it is right with any member missing.
#[test]
fn a_dirty_array_is_made_whole() {
    let mut seen = 0;
    for loaded in loaded() {
        let world = World::new(1);
        let members: Vec<_> = loaded.members.iter().map(|(_, member)| member.clone()).collect();
        let array = open(&world, &members, &AssembleOptions::default()).expect("all members are there");
        if loaded.array.clean || array.info().read_only {
            continue;
        }
        array.start();
        let waiting = (array.clone(), world.clone());
        world.run(async move {
            // What partial parity logs tell is settled at once, without a resync.
            raidd::io::Clock::sleep(&waiting.1, std::time::Duration::from_millis(100)).await;
            while waiting.0.status().resync_is_due {
                raidd::io::Clock::sleep(&waiting.1, std::time::Duration::from_millis(1)).await;
            }
        });
        stop(&world, array);
        for missing in 0..loaded.used {
            let with: Vec<_> = (0..loaded.used).filter(|&index| index != missing).collect();
            let read = loaded.read(&with, &AssembleOptions::default()).expect("it is clean now");
            assert_eq!(read, loaded.array.content.sha256, "{}", loaded.array.name);
        }
        seen += 1;
    }
    assert!(seen > 0, "an archive with a dirty array");
}
