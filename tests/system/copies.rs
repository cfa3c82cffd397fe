//! Copies of an array's members get a UUID of their own, and are served beside the original by one daemon.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;

use raidd::api::Health;
use serde_json::Value;

use super::disks::{Disks, MIB, noise};
use super::harness::{Home, need, run};
use super::members::read_all;

const SUPERBLOCK: std::ops::Range<u64> = 4096..8192;

fn examined(home: &Home, path: &str) -> Value {
    let all: Value = serde_json::from_str(&home.ok(format!("examine --json {path}"))).unwrap();
    assert_eq!(all[0]["problem"], Value::Null, "{all}");
    all[0].clone()
}

/// Copies of the members as they are now, `prefix0` and so on.
fn copied(home: &Home, disks: &Disks, prefix: &str) -> Vec<String> {
    let copies = disks.paths.iter().enumerate().map(|(number, path)| {
        let copy = home.path(&format!("{prefix}{number}")).display().to_string();
        run("cp", &["--sparse=always", path, &copy]).ok();
        copy
    });
    copies.collect()
}

/// All of them say that they are of this array, and so do their bitmaps.
#[track_caller]
fn assert_are_of(home: &Home, paths: &[String], uuid: &str) {
    for path in paths {
        let facts = examined(home, path);
        assert_eq!(facts["array_uuid"], uuid, "{path}");
        if let Some(bitmap) = facts["bitmap"].as_object() {
            assert_eq!(bitmap["array_uuid"], uuid, "{path}");
        }
        if need(&["mdadm"]) {
            let told = run("mdadm", &["--examine", path]).ok();
            assert!(told.contains(uuid) && told.contains("- correct"), "{told}");
        }
    }
}

#[test]
fn a_copy_serves_beside_its_original() {
    for (shape, members) in [
        ("--level 0", 2),
        ("--level 1", 2),
        ("--level 1 --bitmap none", 2),
        ("--level 5", 3),
        ("--level 5 --consistency-policy ppl", 3),
        ("--level 6", 4),
        ("--level 10", 4),
    ] {
        let home = Home::new();
        let disks = Disks::files(&home, "disk", members, 32);
        let raidd = home.start();
        home.ok(format!("create vol {shape} --init zero {}", disks.all()));
        home.client("vol").write(0, &noise(3, 9 * MIB as usize)).unwrap();
        home.ok("stop vol");
        let copies = copied(&home, &disks, "copy");
        let all = copies.join(" ");
        home.ok(format!("assemble {}", disks.all()));
        let uuid = home.status("vol").uuid;

        let refused = home.raidctl(format!("assemble copy {all}")).complaint(1);
        assert!(refused.contains("runs already, as vol"), "{refused}");
        let refused = home.raidctl(format!("assemble --update uuid {all}")).complaint(1);
        assert!(refused.contains("an array called vol runs already"), "{refused}");
        if shape == "--level 1" {
            let mixed = format!("{} {}", disks.paths[0], copies[1..].join(" "));
            let refused = home.raidctl(format!("assemble copy --update uuid {mixed}")).complaint(1);
            assert!(refused.contains("in use"), "{refused}");
        }
        let refused = home.raidctl(format!("assemble copy --update uuid --uuid {uuid} {all}")).complaint(1);
        assert!(refused.contains("vol") && refused.contains("choose another"), "{refused}");
        assert_are_of(&home, &copies, &uuid);

        let device_uuids = |paths: &[String]| -> Vec<Value> {
            paths.iter().map(|path| examined(&home, path)["device_uuid"].clone()).collect()
        };
        home.ok(format!("assemble copy --update uuid --update name {all}"));
        let copy = home.status("copy");
        assert_eq!((copy.health, home.status("vol").health), (Health::Optimal, Health::Optimal));
        assert!(copy.uuid != uuid && home.status("vol").uuid == uuid, "{copy:?}");
        let content = read_all(&home, "vol");
        assert!(read_all(&home, "copy") == content, "{shape}");
        assert_are_of(&home, &copies, &copy.uuid);
        assert_are_of(&home, &disks.paths, &uuid);
        assert_eq!(device_uuids(&copies), device_uuids(&disks.paths));

        // Each goes its own way, and each comes back.
        home.client("copy").write(MIB, &noise(4, MIB as usize)).unwrap();
        assert!(read_all(&home, "vol") == content, "{shape}");
        let changed = read_all(&home, "copy");
        assert!(changed[MIB as usize..][..MIB as usize] == noise(4, MIB as usize)[..]);
        raidd.terminate();
        let _raidd = home.start();
        assert!(read_all(&home, "vol") == content && read_all(&home, "copy") == changed, "{shape}");
        assert_eq!(home.status("copy").uuid, copy.uuid);
        for name in ["vol", "copy"] {
            assert_eq!(home.wait_idle(name).health, Health::Optimal);
            home.ok(format!("stop {name}"));
        }
        let name = examined(&home, &copies[0])["name"].as_str().unwrap().to_owned();
        assert!(name == "copy" || name.ends_with(":copy"), "{name}");
        assert_are_of(&home, &copies, &copy.uuid);
    }
}

#[test]
fn a_change_that_was_cut_off_is_finished_as_it_says() {
    for shape in ["--level 1", "--level 5 --bitmap none", "--level 10"] {
        let home = Home::new();
        let disks = Disks::files(&home, "disk", 4, 32);
        let _raidd = home.start();
        home.ok(format!("create vol {shape} --init zero {}", disks.all()));
        home.client("vol").write(0, &noise(3, MIB as usize)).unwrap();
        home.ok("stop vol");
        let copies = copied(&home, &disks, "copy");
        let all = copies.join(" ");
        home.ok(format!("assemble {}", disks.all()));
        let uuid = "00112233:44556677:8899aabb:ccddeeff";
        home.ok(format!("assemble copy --update uuid --uuid {uuid} {all}"));
        home.ok("stop copy --release");
        assert_are_of(&home, &copies, uuid);
        // The last two have their old superblocks again, as if the daemon had been killed before it came to them.
        for number in [2, 3] {
            let mut superblock = vec![0; (SUPERBLOCK.end - SUPERBLOCK.start) as usize];
            File::open(&disks.paths[number])
                .unwrap()
                .read_exact_at(&mut superblock, SUPERBLOCK.start)
                .unwrap();
            let copy = File::options().write(true).open(&copies[number]).unwrap();
            copy.write_all_at(&superblock, SUPERBLOCK.start).unwrap();
        }
        if shape != "--level 5 --bitmap none" {
            let found = home.raidctl(format!("examine {}", copies[3]));
            assert!(found.status == 1 && found.stderr.contains("another array's"), "{found:?}");
        }
        let before: Vec<_> = copies.iter().map(|path| fs::read(path).unwrap()).collect();
        for how in ["", "--update uuid", "--update uuid --uuid 00112233-4455-6677-8899-aabbccddeefe"] {
            let told = home.raidctl(format!("assemble copy {how} {all}")).complaint(1);
            assert!(told.contains("cut off") && told.contains(&format!("--uuid {uuid}")), "{told}");
        }
        for (path, before) in copies.iter().zip(before) {
            assert!(fs::read(path).unwrap() == before, "{path} was changed");
        }
        home.ok(format!("assemble copy --update uuid --uuid {uuid} {all}"));
        assert_are_of(&home, &copies, uuid);
        assert_eq!(home.status("copy").health, Health::Optimal);
        assert!(read_all(&home, "copy") == read_all(&home, "vol"), "{shape}");
    }
}

#[test]
fn an_array_that_is_no_copy_goes_on_under_its_new_uuid() {
    let home = Home::new();
    let disks = Disks::files(&home, "disk", 3, 32);
    let raidd = home.start();
    home.ok(format!("create vol --level 5 --init zero {}", disks.all()));
    home.ok("tune vol scrub_interval=30d member_timeout=3s");
    let old = home.status("vol").uuid;
    home.ok("stop vol");
    for (how, fragment) in [("--read-only", "without writing"), ("", "all devices")] {
        let devices = if how.is_empty() { String::new() } else { disks.all() };
        let refused = home.raidctl(format!("assemble vol --update uuid {how} {devices}")).complaint(2);
        assert!(refused.contains(fragment), "{refused}");
    }
    let refused = home.raidctl(format!("assemble vol --update uuid {}", disks.some(&[0, 1]))).complaint(1);
    assert!(refused.contains("slot 2 is not named"), "{refused}");
    assert_are_of(&home, &disks.paths, &old);
    home.ok(format!("assemble vol --update uuid {}", disks.all()));
    let new = home.status("vol");
    assert_ne!(new.uuid, old);
    assert_eq!(new.tuning.and_then(|tuning| tuning.member_timeout_ms), Some(3000));
    home.ok("stop vol");
    // Nothing is remembered of the old one: its name finds the array, and does so at the next start.
    home.ok("assemble vol");
    raidd.terminate();
    let _raidd = home.start();
    let status = home.status("vol");
    assert_eq!((status.uuid.as_str(), status.health), (new.uuid.as_str(), Health::Optimal));
    assert_eq!(status.tuning.and_then(|tuning| tuning.scrub_interval_ms), Some(30 * 86_400_000));
    home.ok("stop vol --release");
    home.raidctl(format!("assemble vol --uuid {old} {}", disks.all())).complaint(1);
    home.ok(format!("assemble vol --uuid {} {}", new.uuid, disks.all()));
}
