//! Arrays that are changed into larger ones, ones of more copies, ones with or without a bitmap, while they are used.

use std::os::unix::fs::FileExt;
use std::time::Duration;

use raidd::api::{ArrayState, ConsistencyPolicy, Health};

use super::disks::{Disks, MIB, noise};
use super::harness::{Home, need, run};
use super::load::Load;

/// Gives each of the disks so many MiB.
fn enlarge(disks: &Disks, mib: u64) {
    for path in &disks.paths {
        std::fs::File::options().write(true).open(path).unwrap().set_len(mib * MIB).unwrap();
    }
}

#[test]
fn arrays_become_larger_under_load() {
    for (level, count) in [(1, 2), (4, 3), (5, 3), (6, 4), (10, 4)] {
        let home = Home::new();
        let disks = Disks::files(&home, "disk", count, 48);
        let mut raidd = home.start();
        home.ok(format!("create vol --level {level} --init zero --size 16M {}", disks.all()));
        home.ok("tune vol recovery_min=1G recovery_max=1G");
        let before = home.status("vol").size_bytes;
        let mut load = Load::new("vol");
        let writes = load.writes();
        let grow = |how: &str| home.ok(format!("--json grow vol --size {how}"));
        // Nobody's connection breaks: what stops a writer at all is an error.
        load.run(&home, Duration::from_millis(300), || {
            grow("24M");
            std::thread::sleep(Duration::from_millis(100));
            home.wait_idle("vol");
            grow("max");
            std::thread::sleep(Duration::from_millis(100));
            enlarge(&disks, 80);
            home.wait_idle("vol");
            grow("max");
            std::thread::sleep(Duration::from_millis(200));
            assert!(home.status("vol").connections >= 1, "level {level}: the clients have gone");
        });
        assert!(load.writes() > writes + 100, "level {level}: {} writes", load.writes());
        let status = home.status("vol");
        assert!(status.size_bytes > 4 * before, "level {level}: {} of {before}", status.size_bytes);
        load.check(&home);
        // Who connects now sees all of it, and what is written at its end outlives raidd.
        let data = noise(level, MIB as usize);
        let mut client = home.client("vol");
        assert_eq!(client.size_bytes(), status.size_bytes);
        client.write(status.size_bytes - MIB, &data).unwrap();
        raidd.kill();
        let _raidd = home.start();
        assert_eq!(home.wait_idle("vol").size_bytes, status.size_bytes);
        let mut found = vec![0; data.len()];
        home.client("vol").read(status.size_bytes - MIB, &mut found).unwrap();
        assert!(found == data, "level {level}");
        load.check(&home);
        home.ok("scrub vol");
        let after = home.wait_idle("vol");
        assert_eq!((after.health, after.sync.mismatches), (Health::Optimal, 0), "level {level}");
    }
}

#[test]
fn bitmaps_come_and_go_and_mdadm_agrees() {
    if !need(&["root", "/dev/loop-control", "losetup", "mdadm"]) {
        return;
    }
    for (level, count) in [(1, 2), (5, 3), (10, 4)] {
        let home = Home::new();
        let disks = Disks::loops(&home, "disk", count, 32);
        let _raidd = home.start();
        home.ok(format!("create vol --level {level} --init zero --bitmap none {}", disks.all()));
        let mut load = Load::new("vol");
        load.run(&home, Duration::from_millis(100), || {
            home.ok("grow vol --bitmap internal");
            std::thread::sleep(Duration::from_millis(100));
            let again = home.raidctl("grow vol --bitmap internal").complaint(1);
            assert!(again.contains("has a write-intent bitmap already"), "{again}");
        });
        assert_eq!(home.status("vol").consistency_policy, ConsistencyPolicy::Bitmap);
        load.check(&home);
        home.ok("stop vol");
        for path in &disks.paths {
            let told = run("mdadm", &["--examine-bitmap", path]).ok();
            assert!(told.contains("6d746962") && told.contains(" 0 dirty"), "{told}");
        }
        home.ok(format!("assemble {}", disks.all()));
        home.ok("grow vol --bitmap none");
        assert_eq!(home.status("vol").consistency_policy, ConsistencyPolicy::Resync);
        load.check(&home);
        home.ok("stop vol");
        let told = run("mdadm", &["--examine", &disks.paths[0]]).ok();
        assert!(!told.contains("Internal Bitmap"), "{told}");
    }
}

#[test]
fn a_mirror_gets_a_third_copy_and_gives_it_back() {
    let home = Home::new();
    let disks = Disks::files(&home, "disk", 3, 32);
    let _raidd = home.start();
    home.ok(format!("create vol --level 1 --init zero {}", disks.some(&[0, 1])));
    let mut load = Load::new("vol");
    load.run(&home, Duration::from_millis(100), || {
        home.ok(format!("add vol {}", disks.paths[2]));
        home.ok("grow vol -n 3");
        std::thread::sleep(Duration::from_millis(100));
    });
    let status = home.wait_idle("vol");
    assert_eq!((status.health, status.redundancy, status.members.len()), (Health::Optimal, Some(2), 3));
    load.check(&home);
    // As the third alone has it.
    home.ok(format!("fail vol {}", disks.paths[0]));
    let failed = home.raidctl("grow vol -n 2").complaint(1);
    assert!(failed.contains("raidctl remove vol"), "{failed}");
    home.ok(format!("remove vol {}", disks.paths[0]));
    home.ok("grow vol -n 2");
    let status = home.status("vol");
    assert_eq!((status.health, status.redundancy, status.members.len()), (Health::Optimal, Some(1), 2));
    home.ok(format!("fail vol {}", disks.paths[1]));
    load.check(&home);
}

#[test]
fn what_cannot_be_changed_is_left_alone_and_goes_on() {
    let home = Home::new();
    let disks = Disks::files(&home, "disk", 3, 32);
    let _raidd = home.start();
    home.ok(format!("create vol --level 5 --init zero {}", disks.all()));
    let mut client = home.client("vol");
    let data = noise(1, MIB as usize);
    client.write(0, &data).unwrap();
    client.flush().unwrap();
    home.wait_for("vol", |status| status.state == ArrayState::Clean);
    let before = disks.hashes();
    for (how, why) in [
        ("--size max", "as large already"),
        ("--size 8M", "cannot shrink"),
        ("--size 1G", "replace it by a larger one"),
        ("-n 4", "mdadm --grow"),
        ("--bitmap internal", "already"),
    ] {
        let refused = home.raidctl(format!("grow vol {how}")).complaint(1);
        assert!(refused.contains(why), "{how}: {refused}");
    }
    assert!(home.raidctl("grow vol").complaint(2).contains("name a size"));
    assert!(home.raidctl("grow vol --size max -n 3").complaint(2).contains("one change at a time"));
    assert!(home.raidctl("grow vole --size max").complaint(1).contains("did you mean vol"));
    assert!(before == disks.hashes(), "something was written");
    // The client is still there, and is served.
    let mut found = vec![0; data.len()];
    client.read(0, &mut found).unwrap();
    assert!(found == data);
    home.ok(format!("fail vol {}", disks.paths[1]));
    assert!(home.raidctl("grow vol --bitmap none").complaint(1).contains("remove vol"));
    home.ok(format!("remove vol {}", disks.paths[1]));
    assert!(home.raidctl("grow vol --bitmap none").complaint(1).contains("degraded"));
    client.read(0, &mut found).unwrap();
    assert!(found == data);
}

#[test]
fn a_member_that_was_damaged_under_a_running_array_does_not_bring_it_down() {
    let home = Home::new();
    let disks = Disks::files(&home, "disk", 2, 32);
    let _raidd = home.start();
    home.ok(format!("create vol --level 1 --init zero {}", disks.all()));
    let mut client = home.client("vol");
    let data = noise(1, MIB as usize);
    client.write(0, &data).unwrap();
    home.wait_for("vol", |status| status.state == ArrayState::Clean);
    // Nobody reads a superblock again while the array runs.
    let disk = std::fs::File::options().write(true).open(&disks.paths[1]).unwrap();
    disk.write_all_at(&[0; 4096], 4096).unwrap();
    let refused = home.raidctl("grow vol --bitmap none").complaint(1);
    assert!(refused.contains("no md superblock") && refused.contains("disk1"), "{refused}");
    let mut found = vec![0; data.len()];
    client.read(0, &mut found).unwrap();
    assert!(found == data);
    client.write(MIB, &data).unwrap();
    assert_eq!(home.status("vol").health, Health::Optimal);
    // The first write has written it anew.
    home.wait_for("vol", |status| status.state == ArrayState::Clean);
    home.ok("grow vol --bitmap none");
}

#[test]
fn what_is_held_stays_so_and_a_scrub_is_not_dropped() {
    let home = Home::new();
    let disks = Disks::files(&home, "disk", 3, 64);
    let _raidd = home.start();
    home.ok(format!("create vol --level 5 --init zero --size 16M {}", disks.all()));
    home.ok("tune vol recovery_min=1M recovery_max=1M");
    home.ok("scrub vol");
    let refused = home.raidctl("grow vol --size max").complaint(1);
    assert!(refused.contains("raidctl scrub vol --stop"), "{refused}");
    home.ok("scrub vol --stop");
    home.wait_idle("vol");
    home.ok("pause vol");
    home.ok("grow vol --size max");
    let status = home.status("vol");
    assert!(status.sync_paused, "{status:?}");
    // Settings hold, too, and the rest of the way is gone as soon as it may be.
    assert_eq!(status.tuning.unwrap().recovery_max, Some(MIB));
    home.ok("tune vol recovery_max=1G");
    home.ok("resume vol");
    assert_eq!(home.wait_idle("vol").health, Health::Optimal);
}
