//! Arrays that the kernel made go to raidd, which uses them and finishes what was begun, and back to the kernel.

use raidd::api::Health;
use sha2::{Digest, Sha256};

use super::super::disks::{Disks, MIB, file, noise};
use super::super::harness::Home;
use super::super::members::read_all;
use super::arrays::{examine, recovery_offset};
use super::golden;
use super::handover::Handover;
use super::rig::{Guest, can_run};

/// What raidd writes over what it was given, at no boundary of anything.
fn use_it(home: &Home, name: &str, content: &mut [u8]) {
    let mut client = home.client(name);
    for (turn, at) in (0..content.len() - (200 << 10)).step_by(3 * MIB as usize + 512 * 777).enumerate() {
        let data = noise(turn as u64 + 9, (150 << 10) + 512 * turn);
        client.write(at as u64, &data).unwrap();
        content[at..at + data.len()].copy_from_slice(&data);
    }
    client.disconnect().unwrap();
}

/// Waits until nothing is left to do, and compares all redundancy if it is whole.
fn finish(home: &Home, name: &str) {
    let status = home.wait_for(name, |status| !status.is_busy());
    if status.health == Health::Optimal && status.level != "raid0" {
        home.ok(format!("scrub {name}"));
        let status = home.wait_idle(name);
        assert_eq!(status.sync.mismatches, 0, "{status:#?}");
    }
    home.ok(format!("stop {name}"));
}

#[test]
fn golden_arrays_go_back_to_the_kernel() {
    if !can_run() {
        return;
    }
    let home = Home::new();
    let raidd = home.start();
    let mut handover = Handover::default();
    let mut given = Vec::new();
    for array in golden::arrays() {
        let name = array.name.as_str();
        let (folder, copies) = array.copy();
        let paths: Vec<_> = copies.iter().map(|path| path.to_str().unwrap().to_owned()).collect();
        home.raidctl(format!("assemble {name} {}", paths.join(" "))).ok();
        let mut content = read_all(&home, name);
        let hash: String = Sha256::digest(&content).iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hash, array.content.sha256, "{name}: {}", array.about);
        use_it(&home, name, &mut content);
        finish(&home, name);
        if name.ends_with("degraded") {
            let spare = file(&home, &format!("{name}-spare"), 9 * MIB);
            handover.give_with_spare(name, array.array_size, &paths, &spare);
        } else {
            handover.give(name, array.array_size, &paths);
        }
        given.push((name, content, folder));
    }
    let taken = handover.run();
    for (name, content, _) in &given {
        taken.assert_whole(name, content);
    }
    raidd.terminate();
}

/// Bytes that arrays are filled from.
const SOURCE_BYTES: usize = 64 << 20;
/// Bytes of a block that the kernel writes.
const BLOCK: usize = 64 << 10;
/// What replaces a block comes from so many blocks behind it.
const SHIFT: usize = 200;
/// Where the kernel is stopped: $half in make.sh.
const HALF: u64 = 8 * MIB;

/// An array that the kernel makes.
struct Given {
    name: String,
    state: &'static str,
    disks: Disks,
    members: usize,
}

/// Names, members, mdadm's options.
const SHAPES: [(&str, usize, &str); 8] = [
    ("raid1", 3, "--level 1"),
    ("raid4", 3, "--level 4 --chunk 64"),
    ("raid5", 4, "--level 5 --chunk 16 --bitmap internal --bitmap-chunk 512K"),
    ("ppl", 3, "--level 5 --chunk 64 --consistency-policy ppl"),
    ("raid6", 5, "--level 6 --chunk 32 --layout left-asymmetric"),
    ("near2", 4, "--level 10 --layout n2 --chunk 64 --bitmap internal --bitmap-chunk 512K"),
    ("far2", 3, "--level 10 --layout f2 --chunk 16"),
    ("offset2", 4, "--level 10 --layout o2 --chunk 32"),
];

/// What the kernel has left in an array: what it was filled with, and the blocks that were written again.
fn expected(source: &[u8], bytes: usize, rewritten: impl IntoIterator<Item = usize>) -> Vec<u8> {
    let mut content = source[..bytes / MIB as usize * MIB as usize].to_vec();
    for block in rewritten {
        content[block * BLOCK..][..BLOCK].copy_from_slice(&source[(block + SHIFT) * BLOCK..][..BLOCK]);
    }
    content
}

fn raidd_takes(states: &[&'static str]) {
    if !can_run() {
        return;
    }
    let home = Home::new();
    let source = noise(5, SOURCE_BYTES);
    let source_path = file(&home, "source", SOURCE_BYTES as u64);
    std::fs::write(&source_path, &source).unwrap();
    let mut guest = Guest::new(include_str!("make.sh")).scsi_disk(&source_path).argument("0");
    let (mut next, mut arrays) = (1, Vec::new());
    for &state in states {
        for (key, members, options) in SHAPES {
            let (has_bitmap, has_log) = (options.contains("bitmap"), key == "ppl");
            // A bitmap or a log leaves nothing to resync of what was filled in peace.
            if state == "re-added" && !has_bitmap || state == "resync" && (has_bitmap || has_log) {
                continue;
            }
            let name = format!("{key}-{state}");
            let disks = Disks::files(&home, &format!("{name}-"), members + 1, 16);
            let numbers: Vec<_> = (next..=next + members).map(|number| number.to_string()).collect();
            guest = guest.argument(format!("{name} {state} {members} {options} -- {}", numbers.join(" ")));
            for (slot, path) in disks.paths.iter().enumerate() {
                // What is on the second while the others have theirs already is torn.
                let is_slow = state == "crashed" && slot == 1;
                guest = if is_slow { guest.slow_scsi_disk(path, 300) } else { guest.scsi_disk(path) };
            }
            next += members + 1;
            arrays.push(Given { name, state, disks, members });
        }
    }
    let output = guest.crash();
    let raidd = home.start();
    let mut handover = Handover::default();
    let mut contents = Vec::new();
    for array in &arrays {
        let (name, paths) = (array.name.as_str(), &array.disks.paths);
        let spare = &paths[array.members];
        match array.state {
            "recovery" | "replacement" => assert_eq!(recovery_offset(&home, spare), HALF, "{name}"),
            "resync" => {
                assert_eq!(examine(&home, &paths[0])["resync_offset_bytes"].as_u64(), Some(HALF), "{name}");
            }
            "crashed" => assert_eq!(examine(&home, &paths[0])["state"], "active", "{name}"),
            "bad" => assert_eq!(examine(&home, &paths[1])["has_bad_blocks"], true, "{name}"),
            _ => {}
        }
        let has_spare = matches!(array.state, "recovered" | "recovery" | "replacement");
        let used = if has_spare { &paths[..] } else { &paths[..array.members] };
        home.raidctl(format!("assemble {name} {}", used.join(" "))).ok();
        let mut content = read_all(&home, name);
        check_content(array, &source, &content, &output);
        use_it(&home, name, &mut content);
        finish(&home, name);
        if array.state == "degraded" {
            handover.give_with_spare(name, content.len() as u64, &paths[..array.members], spare);
        } else {
            handover.give(name, content.len() as u64, used);
        }
        contents.push(content);
    }
    let log = std::fs::read_to_string(home.path("raidd.log")).unwrap();
    let taken = handover.run();
    for (array, content) in arrays.iter().zip(&contents) {
        taken.assert_whole(&array.name, content);
        if matches!(array.state, "recovery" | "replacement") {
            let begun = format!("recovery started array=\"{}\" from={} ", array.name, HALF / 512);
            assert!(log.contains(&begun), "{} began anew", array.name);
        }
    }
    raidd.terminate();
}

/// What raidd reads is what the kernel had written; of a crash, what it had said it had.
#[track_caller]
fn check_content(array: &Given, source: &[u8], content: &[u8], output: &str) {
    let (name, bytes) = (&array.name, content.len());
    let filled = bytes / MIB as usize * MIB as usize;
    if array.state == "crashed" {
        let marker = format!("{name} wrote: ");
        let said = output.lines().filter_map(|line| line.strip_prefix(&marker)?.trim().parse::<usize>().ok());
        let written = said.max().map_or(0, |last| last + 1);
        assert!(written > 0, "{name}: nothing was written before the plug was pulled\n{output}");
        let (old, new) = (expected(source, bytes, 0..written), expected(source, bytes, 0..written + 1));
        for (sector, found) in content[..filled].chunks(512).enumerate() {
            let at = sector * 512..sector * 512 + 512;
            assert!(
                found == &old[at.clone()] || found == &new[at],
                "{name}: sector {sector} is neither old nor new"
            );
        }
        return;
    }
    let rewritten: Vec<_> = if array.state == "clean" {
        Vec::new()
    } else {
        [3, 40, 77, 130].iter().flat_map(|at| *at..at + 5).collect()
    };
    let expected = expected(source, bytes, rewritten);
    if let Some(at) = content[..filled].iter().zip(&expected).position(|(found, wanted)| found != wanted) {
        panic!("{name}: what raidd reads differs from byte {at} on");
    }
}

#[test]
fn raidd_takes_over_what_the_kernel_lost_and_made_whole() {
    raidd_takes(&["clean", "degraded", "recovered", "re-added", "bad"]);
}

#[test]
fn raidd_finishes_what_the_kernel_left_half_done() {
    raidd_takes(&["resync", "recovery", "replacement"]);
}

#[test]
fn raidd_mends_what_a_crash_of_the_kernel_has_torn() {
    raidd_takes(&["crashed"]);
}
