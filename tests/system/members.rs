//! Arrays and their members: created so that mdadm agrees, with redundancy that holds from the first read on, failed as
//! far as the level allows and no further, stopped, and assembled in every way there is.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nix::fcntl::FlockArg;
use raidd::api::{ArrayState, Health, MemberState, Status, SyncAction};
use raidd::nbd::ClientError;

use super::disks::{Disks, Loop, MIB, file, machine_lock, noise};
use super::harness::{Home, need, run, skip};

/// The levels, how many members to give them, and which of them may be lost at once.
const LEVELS: [(u8, usize, &[usize]); 6] =
    [(0, 3, &[]), (1, 3, &[0, 2]), (4, 3, &[2]), (5, 4, &[1]), (6, 5, &[0, 2]), (10, 4, &[1, 3])];

/// Everything that an array holds.
pub fn read_all(home: &Home, name: &str) -> Vec<u8> {
    let mut client = home.client(name);
    let mut data = vec![0; usize::try_from(client.size_bytes()).unwrap()];
    client.read(0, &mut data).unwrap();
    client.disconnect().unwrap();
    data
}

/// The `label : value` lines of what mdadm says of a member.
fn mdadm_says(option: &str, path: &str) -> BTreeMap<String, String> {
    let text = run("mdadm", &[option, path]).ok();
    let pairs = text.lines().filter_map(|line| line.split_once(" : "));
    pairs.map(|(label, value)| (label.trim().to_owned(), value.trim().to_owned())).collect()
}

#[test]
fn mdadm_agrees_with_what_create_wrote() {
    if !need(&["root", "/dev/loop-control", "losetup", "mdadm"]) {
        return;
    }
    let home = Home::new();
    let disks = Disks::loops(&home, "disk", 5, 48);
    let _raidd = home.start();
    for (level, count, _) in LEVELS {
        let members = disks.part(&(0..count).collect::<Vec<_>>());
        let uri = home.ok(format!("create vol{level} --level {level} {}", members.all()));
        let status = home.wait_idle(&format!("vol{level}"));
        assert_eq!(uri.trim(), status.nbd_uri.clone().unwrap());
        let client = home.client(&status.name);
        assert_eq!(client.size_bytes(), status.size_bytes);
        client.disconnect().unwrap();
        home.ok(format!("stop vol{level}"));
        for (slot, path) in members.paths.iter().enumerate() {
            let facts = mdadm_says("--examine", path);
            let has = |label: &str, value: &str| {
                assert!(facts.get(label).is_some_and(|found| found.contains(value)), "{label}: {facts:#?}");
            };
            has("Version", "1.2");
            has("Raid Level", &format!("raid{level}"));
            has("Raid Devices", &count.to_string());
            has("Name", &format!("vol{level}"));
            has("Array UUID", &status.uuid);
            has("State", "clean");
            has("Checksum", "correct");
            has("Device Role", &format!("Active device {slot}"));
            has("Array State", &"A".repeat(count));
            if level != 1 {
                has("Chunk Size", if level >= 4 && level != 10 { "128K" } else { "512K" });
            }
            if level != 0 {
                has("Internal Bitmap", "from superblock");
                let bitmap = mdadm_says("--examine-bitmap", path);
                assert!(bitmap["Magic"].contains("6d746962"), "{bitmap:#?}");
                assert_eq!(bitmap["UUID"], status.uuid, "{bitmap:#?}");
                assert!(bitmap["Bitmap"].contains("bits"), "{bitmap:#?}");
            }
        }
        home.ok(format!("zero-superblock {}", members.all()));
    }
}

#[test]
fn redundancy_holds_after_a_resync() {
    redundancy_holds("resync", true);
}

#[test]
fn redundancy_holds_from_zeroes() {
    redundancy_holds("zero", true);
}

#[test]
fn redundancy_holds_as_assumed() {
    redundancy_holds("assume-clean", false);
}

/// With the members that may be lost gone, the array reads as it did with all of them. `noisy`: the members held
/// something else before.
fn redundancy_holds(init: &str, noisy: bool) {
    let home = Home::new();
    let raidd = home.start();
    for (level, count, lost) in LEVELS.into_iter().filter(|(level, ..)| *level != 0) {
        let disks = Disks::files(&home, &format!("l{level}-"), count, 12);
        if noisy {
            disks.fill_with_noise();
        }
        let name = format!("vol{level}");
        home.ok(format!("create {name} --level {level} --init {init} {}", disks.all()));
        if init != "resync" {
            assert_eq!(home.status(&name).sync.done_bytes, 0, "there is nothing to resync");
            assert!(read_all(&home, &name).iter().all(|byte| *byte == 0), "{name} must read as zeroes");
        }
        let mut client = home.client(&name);
        for (number, offset) in [0, 777_215, 3 * MIB + 512, 5 * MIB - 100_000].into_iter().enumerate() {
            client.write(offset, &noise(number as u64, 300_000 + number)).unwrap();
        }
        client.disconnect().unwrap();
        home.wait_idle(&name);
        let whole = read_all(&home, &name);
        home.ok(format!("stop {name}"));
        let single: Vec<Vec<usize>> = (0..count).map(|slot| vec![slot]).collect();
        for lost in single.into_iter().chain([lost.to_vec()]) {
            home.raidctl(format!("assemble {name} --read-only {}", disks.without(&lost))).ok();
            assert_eq!(home.status(&name).health, Health::Degraded);
            assert!(read_all(&home, &name) == whole, "{name} reads differently without {lost:?}");
            home.ok(format!("stop {name}"));
        }
    }
    raidd.terminate();
}

#[test]
fn slots_may_be_left_empty() {
    let home = Home::new();
    let disks = Disks::files(&home, "disk", 3, 24);
    let _raidd = home.start();
    for (number, (level, words)) in
        [(1, "0 missing"), (5, "0 missing 1"), (6, "missing 0 1 missing"), (10, "0 missing missing 1")]
            .into_iter()
            .enumerate()
    {
        let name = format!("vol{level}");
        let devices: Vec<_> = words
            .split(' ')
            .map(|word| word.parse::<usize>().map_or("missing", |index| &disks.paths[index]))
            .collect();
        let made = home.raidctl(format!("create {name} --force --level {level} {}", devices.join(" ")));
        assert_eq!(made.status, 0, "{made:?}");
        let status = home.status(&name);
        assert_eq!(status.health, Health::Degraded);
        for (member, device) in status.members.iter().zip(&devices) {
            let missing = *device == "missing";
            let wanted = if missing { MemberState::Missing } else { MemberState::InSync };
            assert_eq!((member.state, member.path.is_none()), (wanted, missing), "{status:#?}");
        }
        let mut client = home.client(&name);
        let data = noise(number as u64, 3_000_001);
        client.write(12_345, &data).unwrap();
        let mut found = vec![0; data.len()];
        client.read(12_345, &mut found).unwrap();
        assert!(found == data);
        client.disconnect().unwrap();
        home.ok(format!("stop {name}"));
    }
}

#[test]
fn copies_agree_although_one_is_missing() {
    let home = Home::new();
    let _raidd = home.start();
    for (level, devices) in [(1, "0 1 missing"), (10, "0 1 2 missing")] {
        let disks = Disks::files(&home, &format!("l{level}-"), 3, 12);
        disks.fill_with_noise();
        let devices: Vec<_> = devices
            .split(' ')
            .map(|word| word.parse::<usize>().map_or("missing", |index| &disks.paths[index]))
            .collect();
        home.ok(format!("create vol{level} --level {level} {}", devices.join(" ")));
        let name = format!("vol{level}");
        home.wait_idle(&name);
        let both = read_all(&home, &name);
        home.ok(format!("fail {name} {}", disks.paths[0]));
        assert!(read_all(&home, &name) == both, "{name}: what one copy says, the other says too");
    }
}

#[test]
fn spares_stand_by() {
    let home = Home::new();
    let disks = Disks::files(&home, "disk", 5, 24);
    let raidd = home.start();
    let spares = format!("--spare {} --spare {}", disks.paths[3], disks.paths[4]);
    home.ok(format!("create vol --level 5 {spares} {}", disks.some(&[0, 1, 2])));
    let check = |status: Status| {
        assert_eq!((status.health, status.members.len()), (Health::Optimal, 3));
        let paths: Vec<_> = status.spares.iter().map(|spare| spare.path.clone().unwrap()).collect();
        assert_eq!(paths, disks.paths[3..]);
        assert!(status.spares.iter().all(|spare| spare.state == MemberState::Spare && spare.slot.is_none()));
    };
    check(home.status("vol"));
    assert!(home.ok(format!("examine {}", disks.paths[3])).contains("spare"));
    if need(&["mdadm"]) {
        assert_eq!(mdadm_says("--examine", &disks.paths[4])["Device Role"], "spare");
    }
    home.wait_idle("vol");
    raidd.terminate();
    let _raidd = home.start();
    check(home.status("vol"));
}

#[test]
fn the_last_copy_is_not_failed() {
    let home = Home::new();
    let _raidd = home.start();
    for (level, count, lost) in LEVELS {
        let disks = Disks::files(&home, &format!("l{level}-"), count, 24);
        let name = format!("vol{level}");
        home.ok(format!("create {name} --level {level} {}", disks.all()));
        let data = noise(1, 1 << 20);
        home.client(&name).write(0, &data).unwrap();
        for &slot in lost {
            home.ok(format!("fail {name} {}", disks.paths[slot]));
            // Once more is no mistake.
            home.ok(format!("fail {name} {}", disks.paths[slot]));
        }
        // Of a RAID 10 each remaining member has lost its twin; elsewhere one more is one too many.
        let rest: Vec<_> = (0..count).filter(|slot| !lost.contains(slot)).collect();
        let before = home.status(&name);
        for &slot in &rest {
            let line = home.raidctl(format!("fail {name} {}", disks.paths[slot])).complaint(1);
            assert!(line.contains(&disks.paths[slot]) && line.contains("lose data"), "{line}");
        }
        let after = home.status(&name);
        assert_eq!(after.members, before.members, "nothing was changed");
        let mut client = home.client(&name);
        client.write(1 << 20, &data).unwrap();
        let mut found = vec![0; data.len()];
        for offset in [0, 1 << 20] {
            client.read(offset, &mut found).unwrap();
            assert!(found == data, "{name}");
        }
        let line = home.raidctl(format!("fail {name} /dev/null")).complaint(1);
        assert!(line.contains("/dev/null"), "{line}");
        client.disconnect().unwrap();
    }
}

#[test]
fn a_member_may_be_failed_by_another_name_of_it() {
    let home = Home::new();
    let disks = Disks::files(&home, "disk", 2, 24);
    let _raidd = home.start();
    home.ok(format!("create vol --level 1 {}", disks.all()));
    let link = home.path("link");
    std::os::unix::fs::symlink(&disks.paths[1], &link).unwrap();
    home.ok(format!("fail vol {}", link.display()));
    assert_eq!(home.status("vol").members[1].state, MemberState::Faulty);
}

#[test]
fn stop_spares_the_clients() {
    let home = Home::new();
    let disks = Disks::files(&home, "disk", 2, 24);
    let _raidd = home.start();
    home.ok(format!("create vol --level 1 {}", disks.all()));
    let mut client = home.client("vol");
    client.write(0, &[7; 4096]).unwrap();
    home.wait_for("vol", |status| status.connections == 1);
    let line = home.raidctl("stop vol").complaint(1);
    assert!(line.contains("connected") && line.contains("--force"), "{line}");
    client.write(4096, &[8; 4096]).unwrap();
    home.ok("stop vol --force");
    let error = client.read(0, &mut [0; 4096]).unwrap_err();
    assert!(matches!(error, ClientError::Io(_) | ClientError::Server(_)), "{error}");
    home.ok(format!("assemble {}", disks.all()));
    assert_eq!(read_all(&home, "vol")[..8192], [[7; 4096], [8; 4096]].concat());
}

#[test]
fn an_array_is_assembled_by_whatever_names_it() {
    let home = Home::new();
    let raidd = home.start();
    let disks = Disks::files(&home, "disk", 3, 24);
    let foreign = Disks::files(&home, "foreign", 2, 24);
    home.ok(format!("create vol --level 5 {}", disks.all()));
    home.ok(format!("create other --level 1 {}", foreign.all()));
    let uuid = home.wait_idle("vol").uuid;
    home.client("vol").write(0, &noise(1, 1 << 20)).unwrap();
    let content = read_all(&home, "vol");
    let shuffled = disks.some(&[2, 0, 1]);
    let plain_uuid = uuid.replace(':', "");
    let mut running = "vol";
    // The name in the superblocks is for those that say none and name devices; else it is the one of last time.
    for (command, name) in [
        (format!("assemble {shuffled}"), "vol"),
        (format!("assemble vol {shuffled}"), "vol"),
        (format!("assemble renamed {shuffled}"), "renamed"),
        ("assemble renamed".to_owned(), "renamed"),
        (format!("assemble --uuid {uuid} {shuffled}"), "vol"),
        (format!("assemble --uuid {plain_uuid}"), "vol"),
        (format!("assemble third --uuid {uuid}"), "third"),
        (format!("assemble vol --uuid {uuid} {shuffled}"), "vol"),
        ("assemble vol".to_owned(), "vol"),
    ] {
        home.ok(format!("stop {running}"));
        let line = home.raidctl(format!("status {running}")).complaint(1);
        assert!(line.contains(running), "{line}");
        running = name;
        let uri = home.ok(&command);
        let status = home.status(name);
        assert_eq!((&status.uuid, status.health), (&uuid, Health::Optimal), "{command}");
        assert_eq!(uri.trim(), status.nbd_uri.unwrap());
        assert!(read_all(&home, name) == content, "{command}");
    }
    let line = home.raidctl(format!("assemble again {}", disks.all())).complaint(1);
    assert!(line.contains("runs already, as vol"), "{line}");
    let began = std::time::Instant::now();
    let line = home.raidctl("assemble vol").complaint(1);
    assert!(line.contains("runs already, as vol"), "{line}");
    assert!(began.elapsed() < std::time::Duration::from_secs(2), "its own locks are not waited for");
    let line = home.raidctl("assemble nobody").complaint(1);
    assert!(line.contains("not known"), "{line}");
    raidd.terminate();
}

#[test]
fn read_only_writes_nothing() {
    let home = Home::new();
    let disks = Disks::files(&home, "disk", 3, 24);
    let raidd = home.start();
    home.ok(format!("create vol --level 5 {}", disks.all()));
    home.client("vol").write(0, &noise(1, 1 << 20)).unwrap();
    home.wait_idle("vol");
    home.ok("stop vol");
    let times =
        || disks.paths.iter().map(|path| fs::metadata(path).unwrap()).map(|m| (m.mtime(), m.mtime_nsec()));
    let before: (Vec<_>, Vec<_>) = (disks.hashes(), times().collect());
    home.raidctl(format!("assemble vol --read-only {}", disks.all())).ok();
    let look = || {
        assert_eq!(home.status("vol").state, ArrayState::ReadOnly);
        let mut client = home.client("vol");
        assert!(matches!(client.write(0, &[0; 4096]), Err(ClientError::Server(_))));
        assert!(matches!(client.write_zeroes(0, 4096), Err(ClientError::Server(_))));
        client.flush().unwrap();
        client.disconnect().unwrap();
        assert!(read_all(&home, "vol")[..1 << 20] == noise(1, 1 << 20));
        home.raidctl(format!("fail vol {}", disks.paths[0])).complaint(1);
    };
    look();
    raidd.terminate();
    let raidd = home.start();
    look(); // what was read-only stays so over a restart
    home.ok("stop vol");
    raidd.terminate();
    assert_eq!(disks.hashes(), before.0);
    assert_eq!(times().collect::<Vec<_>>(), before.1);
}

#[test]
fn scan_finds_everything_there_is() {
    if !need(&["root", "/dev/loop-control", "losetup"]) {
        return;
    }
    // A scan takes every member that nobody holds: there must be none of anybody else's.
    let _alone = machine_lock(FlockArg::LockExclusive);
    let home = Home::new();
    let devices = fs::read_dir("/sys/class/block").unwrap().map(|entry| entry.unwrap().file_name());
    let foreign: Vec<_> = devices
        .map(|name| Path::new("/dev").join(name))
        .filter(|path| path.exists() && home.raidctl(format!("examine {}", path.display())).status == 0)
        .collect();
    if !foreign.is_empty() {
        skip(&format!("this machine has members of arrays: {foreign:?}"));
        return;
    }
    let files: Vec<_> = (0..4).map(|number| file(&home, &format!("disk{number}"), 24 * MIB)).collect();
    let loops: Vec<_> = files.iter().map(|path| Loop::unlocked(Path::new(path), &[])).collect();
    let plain = Disks::files(&home, "plain", 2, 24);
    let raidd = home.start();
    assert_eq!(home.ok("assemble --scan"), "no arrays\n");
    home.ok(format!("create vol5 --level 5 {} {} {}", loops[0].path, loops[1].path, loops[2].path));
    home.ok(format!("create vol0 --force --level 0 {}", loops[3].path));
    home.ok(format!("create vol1 --level 1 {}", plain.all()));
    for name in ["vol5", "vol0", "vol1"] {
        home.wait_idle(name);
        home.ok(format!("stop {name}"));
    }
    let found: Vec<Status> = serde_json::from_str(&home.ok("assemble --scan --json")).unwrap();
    let mut names: Vec<_> = found.iter().map(|status| status.name.as_str()).collect();
    names.sort_unstable();
    assert_eq!(names, ["vol0", "vol1", "vol5"], "on block devices, and in files that are known");
    assert!(found.iter().all(|status| status.health == Health::Optimal), "{found:#?}");
    assert_eq!(home.ok("assemble --scan"), "no arrays\n", "all of them run");
    raidd.terminate();
    // Another daemon knows of no files, but sees the devices.
    let other = Home::new();
    let raidd = other.start();
    let found: Vec<Status> = serde_json::from_str(&other.ok("assemble --scan --json")).unwrap();
    assert_eq!(found.len(), 2, "{found:#?}");
    raidd.terminate();
}

#[test]
fn a_read_only_array_takes_no_writes_until_it_is_told_to() {
    let home = Home::new();
    let disks = Disks::files(&home, "disk", 3, 64);
    let mut raidd = home.start();
    home.ok(format!("create vol --level 5 --chunk 64K --init zero {}", disks.all()));
    let data = noise(1, MIB as usize);
    let mut client = home.client("vol");
    client.write(0, &data).unwrap();
    home.ok("readonly vol");
    let status = home.status("vol");
    assert_eq!(status.state, ArrayState::ReadOnly);
    assert!(status.warnings.iter().any(|why| why.contains("raidctl readwrite vol")), "{status:#?}");
    let refused = client.write(0, &noise(2, 4096)).unwrap_err();
    assert!(refused.to_string().contains("Perm"), "EPERM: {refused}");
    let mut found = vec![0; data.len()];
    client.read(0, &mut found).unwrap();
    assert!(found == data);
    home.raidctl("scrub vol").complaint(1);
    home.raidctl(format!("fail vol {}", disks.paths[0])).complaint(1);
    // Everything is on the members, and they say so: killed now, nothing is resynced, and it stays as it was told.
    raidd.kill();
    let raidd = home.start();
    let status = home.status("vol");
    assert_eq!((status.state, status.sync.action), (ArrayState::ReadOnly, SyncAction::Idle), "{status:#?}");
    home.client("vol").write(0, &data).unwrap_err();
    home.ok("readwrite vol");
    home.ok("readwrite vol");
    let mut client = home.client("vol");
    client.write(0, &noise(3, MIB as usize)).unwrap();
    client.disconnect().unwrap();
    raidd.terminate();

    let raidd = home.start();
    assert_ne!(home.status("vol").state, ArrayState::ReadOnly);
    home.ok("stop vol");
    home.raidctl(format!("assemble vol --read-only {}", disks.all())).ok();
    let refused = home.raidctl("readwrite vol").complaint(1);
    assert!(refused.contains("--read-only"), "{refused}");
    raidd.terminate();
}
