//! What survives a daemon's end: stopped, or killed under load; with all members there again, or without.

use std::fs;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use raidd::api::{ArrayState, Health, MemberState, Status};
use serde_json::Value;

use super::disks::{Disks, Loop, MIB, noise};
use super::harness::{Home, need, run};
use super::load::Load;
use super::mounted::wait_until;

/// Bytes that the tests of content write and read.
const CONTENT_BYTES: usize = 12 << 20;

fn fill(home: &Home, name: &str, seed: u64) {
    let mut client = home.client(name);
    client.write(0, &noise(seed, CONTENT_BYTES)).unwrap();
    client.disconnect().unwrap();
}

#[track_caller]
fn check(home: &Home, name: &str, seed: u64) {
    let mut client = home.client(name);
    let mut found = vec![0; CONTENT_BYTES];
    client.read(0, &mut found).unwrap();
    assert!(found == noise(seed, CONTENT_BYTES), "{name} has changed");
    client.disconnect().unwrap();
}

/// What `examine` says the state of a member is.
fn state_on_disk(home: &Home, path: &str) -> String {
    let text = home.ok(format!("examine --json {path}"));
    let document: Value = serde_json::from_str(&text).unwrap();
    document[0]["state"].as_str().unwrap().to_owned()
}

#[test]
fn arrays_come_back_as_they_were() {
    let home = Home::new();
    let sets: Vec<_> = [(0, 2), (1, 2), (4, 3), (5, 3), (6, 4), (10, 4)]
        .map(|(level, count)| (level, Disks::files(&home, &format!("l{level}-"), count, 32)))
        .into();
    let raidd = home.start();
    for (level, disks) in &sets {
        home.ok(format!("create vol{level} --level {level} {}", disks.all()));
        fill(&home, &format!("vol{level}"), *level);
    }
    let before: Vec<Status> = sets.iter().map(|(level, _)| home.wait_idle(&format!("vol{level}"))).collect();
    raidd.terminate();
    assert!(!home.path("control.sock").exists() && !home.path("nbd.sock").exists());
    for path in sets.iter().flat_map(|(_, disks)| &disks.paths) {
        assert_eq!(state_on_disk(&home, path), "clean", "{path}");
    }

    let raidd = home.start();
    for ((level, _), before) in sets.iter().zip(&before) {
        let name = format!("vol{level}");
        let after = home.status(&name);
        assert_eq!(
            (&after.uuid, &after.level, after.size_bytes, after.health, &after.nbd_uri),
            (&before.uuid, &before.level, before.size_bytes, Health::Optimal, &before.nbd_uri)
        );
        let paths = |status: &Status| status.members.iter().map(|m| m.path.clone()).collect::<Vec<_>>();
        assert_eq!(paths(&after), paths(before));
        check(&home, &name, *level);
    }
    // A stopped array stays stopped, also over a restart.
    home.ok("stop vol5");
    raidd.terminate();
    let raidd = home.start();
    let left: Vec<Status> = serde_json::from_str(&home.ok("list --json")).unwrap();
    assert_eq!(left.len(), 5);
    assert!(left.iter().all(|status| status.name != "vol5" && status.state == ArrayState::Clean));
    home.ok("assemble vol5");
    check(&home, "vol5", 5);
    raidd.terminate();
}

#[test]
fn raid1_is_killed_under_load() {
    killed(1, 2, &[0]);
}

#[test]
fn raid5_is_killed_under_load() {
    killed(5, 4, &[2]);
}

#[test]
fn raid6_is_killed_under_load() {
    killed(6, 5, &[1, 4]);
}

#[test]
fn raid10_is_killed_under_load() {
    killed(10, 4, &[1, 2]);
}

/// Killed several times; then as many members as may be lost are lost, and the others must say the same.
fn killed(level: u8, count: usize, lost: &[usize]) {
    let home = Home::new();
    let disks = Disks::files(&home, "disk", count, 48);
    let chunk = if level == 1 { "" } else { "--chunk 64K" };
    let mut raidd = home.start();
    home.ok(format!("create vol --level {level} {chunk} {}", disks.all()));
    let mut load = Load::new("vol");
    for round in 0..4 {
        load.run(&home, Duration::from_millis(150 + 170 * round), || raidd.kill());
        for path in &disks.paths {
            assert_eq!(state_on_disk(&home, path), "active", "killed under load");
        }
        raidd = home.start();
        assert_eq!(home.status("vol").health, Health::Optimal, "it comes back by itself");
        load.check(&home);
        if round % 2 == 0 {
            home.wait_idle("vol");
        }
    }
    assert!(load.writes() > 50, "{} writes are no load", load.writes());
    home.wait_idle("vol");
    for &slot in lost {
        home.ok(format!("fail vol {}", disks.paths[slot]));
    }
    load.check(&home);
    raidd.terminate();
}

#[test]
fn dirty_and_degraded_needs_force() {
    let home = Home::new();
    let disks = Disks::files(&home, "disk", 3, 48);
    let mut raidd = home.start();
    home.ok(format!("create vol --level 5 {}", disks.all()));
    home.wait_idle("vol");
    Load::new("vol").run(&home, Duration::from_millis(300), || raidd.kill());
    fs::rename(&disks.paths[0], home.path("away")).unwrap();
    let rest = disks.part(&[1, 2]);
    let before = rest.hashes();

    let raidd = home.start();
    let status = home.wait_for("vol", |status| status.warnings.iter().any(|why| why.contains("--force")));
    assert_eq!(status.state, ArrayState::Inactive);
    assert_eq!(status.nbd_uri, None);
    let line = home.raidctl(format!("assemble vol {}", rest.all())).complaint(1);
    assert!(line.contains("not stopped cleanly") && line.contains("--force"), "{line}");
    assert_eq!(rest.hashes(), before, "a refused array is left alone");

    home.ok(format!("assemble vol --force {}", rest.all()));
    let status = home.status("vol");
    assert_eq!((status.health, status.members[0].state), (Health::Degraded, MemberState::Missing));
    fill(&home, "vol", 3);
    raidd.terminate();
    // Stopped cleanly, it needs no force any more.
    let raidd = home.start();
    home.wait_for("vol", |status| status.health == Health::Degraded && status.nbd_uri.is_some());
    check(&home, "vol", 3);
    raidd.terminate();
}

#[test]
fn what_is_started_by_force_is_intact_where_nobody_was_writing() {
    let home = Home::new();
    // Each bit of the bitmap is for 64 MiB of a member.
    let disks = Disks::files(&home, "disk", 3, 512);
    let mut raidd = home.start();
    home.ok(format!("create vol --level 5 --chunk 64K --init zero {}", disks.all()));
    let data = noise(5, 24 * MIB as usize);
    let places = [130 * MIB, 500 * MIB, 900 * MIB];
    let mut client = home.client("vol");
    for place in places {
        client.write(place, &data).unwrap();
    }
    client.disconnect().unwrap();
    home.wait_for("vol", |status| status.state == ArrayState::Clean);
    let set = || {
        let text = home.ok(format!("examine --json {}", disks.paths[1]));
        serde_json::from_str::<Value>(&text).unwrap()[0]["bitmap"]["dirty_chunks"].as_u64().unwrap()
    };
    wait_until("no bit is set", || set() == 0);
    let mut load = Load::new("vol");
    load.run(&home, Duration::from_millis(300), || raidd.kill());
    assert_eq!(set(), 1, "only where it was being written");
    fs::rename(&disks.paths[0], home.path("away")).unwrap();

    let _raidd = home.start();
    home.wait_for("vol", |status| status.warnings.iter().any(|why| why.contains("--force")));
    home.ok(format!("assemble vol --force {}", disks.part(&[1, 2]).all()));
    let mut client = home.client("vol");
    for place in places {
        let mut found = vec![0; data.len()];
        client.read(place, &mut found).unwrap();
        assert!(found == data, "what nobody was writing has changed");
    }
    let mut found = vec![0; MIB as usize];
    for at in (128..1000)
        .map(|mib| mib * MIB)
        .filter(|at| places.iter().all(|place| !(*place..*place + 24 * MIB).contains(at)))
    {
        client.read(at, &mut found).unwrap();
        assert!(found.iter().all(|&byte| byte == 0), "what nobody has written has changed");
    }
}

#[test]
fn a_missing_member_is_waited_for() {
    let home = Home::new();
    let disks = Disks::files(&home, "disk", 3, 48);
    let raidd = home.start();
    home.ok(format!("create vol --level 5 {}", disks.all()));
    fill(&home, "vol", 1);
    home.wait_idle("vol");
    raidd.terminate();

    // It comes back in time.
    let away = home.path("away");
    fs::rename(&disks.paths[1], &away).unwrap();
    home.configure("assemble_wait = \"30s\"\n");
    let began = Instant::now();
    let raidd = home.start();
    let status = home.status("vol");
    assert_eq!(status.state, ArrayState::Inactive);
    assert!(status.warnings.iter().any(|why| why.contains("missing")), "{status:#?}");
    let stop = home.raidctl("fail vol /dev/null").complaint(1);
    assert!(stop.contains("vol"), "{stop}");
    fs::rename(&away, &disks.paths[1]).unwrap();
    let status = home.wait_for("vol", |status| status.nbd_uri.is_some());
    assert_eq!(status.health, Health::Optimal);
    assert!(began.elapsed() < Duration::from_secs(20));
    check(&home, "vol", 1);
    raidd.terminate();

    // It does not, and nobody is to wait for it.
    fs::rename(&disks.paths[1], &away).unwrap();
    home.configure("assemble_wait = \"3s\"\n");
    let raidd = home.start();
    home.ok("stop vol");
    std::thread::sleep(Duration::from_secs(5));
    assert_eq!(home.ok("list"), "no arrays\n", "it was started although it was stopped");
    home.ok("assemble vol");
    check(&home, "vol", 1);
    raidd.terminate();

    // It does not.
    home.configure("assemble_wait = \"1s\"\n");
    let raidd = home.start();
    assert_eq!(home.status("vol").state, ArrayState::Inactive);
    let status = home.wait_for("vol", |status| status.nbd_uri.is_some());
    assert_eq!((status.health, status.members[1].state), (Health::Degraded, MemberState::Missing));
    assert_eq!(status.members[1].path, None);
    check(&home, "vol", 1);
    raidd.terminate();
}

#[test]
fn moved_members_are_found() {
    if !need(&["root", "/dev/loop-control", "losetup"]) {
        return;
    }
    let home = Home::new();
    let raidd = home.start();
    let before = Disks::loops(&home, "disk", 3, 48);
    home.ok(format!("create vol --level 5 {}", before.all()));
    fill(&home, "vol", 1);
    home.wait_idle("vol");
    raidd.terminate();
    let old_paths = before.paths.clone();
    drop(before);
    // Two of them have each other's paths now, the third some other.
    let files: Vec<_> = (0..3).map(|number| home.path(&format!("disk{number}"))).collect();
    let _moved: Vec<_> = [2, 0, 1].map(|number| Loop::over(&files[number], &[])).into();

    let raidd = home.start();
    let status = home.wait_for("vol", |status| status.nbd_uri.is_some());
    assert_eq!(status.health, Health::Optimal, "{old_paths:?}: {status:#?}");
    check(&home, "vol", 1);
    raidd.terminate();
}

#[test]
fn a_second_daemon_is_refused() {
    let home = Home::new();
    let raidd = home.start();
    let own = Home::new();
    let at = |name: &str| home.path(name).to_str().unwrap().to_owned();
    let (own_control, own_state) = (own.path("control.sock"), own.path("state"));
    let (own_control, own_state) = (own_control.to_str().unwrap(), own_state.to_str().unwrap());
    let nbd = format!("unix:{}", at("nbd.sock"));
    for (name, extra) in [
        ("state", vec!["--control", own_control, "--state-dir", &at("state")]),
        ("control.sock", vec!["--control", &at("control.sock"), "--state-dir", own_state]),
        ("nbd.sock", vec!["--control", own_control, "--state-dir", own_state, "--nbd", &nbd]),
    ] {
        let line = own.bare_raidd(&extra).complaint(1);
        assert!(line.contains(&at(name)) && line.contains("choose another"), "{line}");
    }
    assert_eq!(home.ok("list"), "no arrays\n", "the first one goes on");
    raidd.terminate();
}

#[test]
fn members_belong_to_one_daemon() {
    let (home, other) = (Home::new(), Home::new());
    let disks = Disks::files(&home, "disk", 3, 32);
    let _raidd = home.start();
    let _second = other.start();
    home.ok(format!("create vol --level 5 {}", disks.all()));
    for command in ["assemble theirs", "assemble theirs --read-only", "create theirs --level 5 --force"] {
        let line = other.raidctl(format!("{command} {}", disks.all())).complaint(1);
        assert!(line.contains(&disks.paths[0]) && line.contains("in use"), "{line}");
    }
    let line = other.raidctl(format!("zero-superblock {}", disks.paths[1])).complaint(1);
    assert!(line.contains("in use"), "{line}");
    fill(&home, "vol", 1);
    check(&home, "vol", 1);
}

#[test]
fn block_devices_are_held_exclusively() {
    if !need(&["root", "/dev/loop-control", "losetup", "mdadm", "mkfs.ext4"]) {
        return;
    }
    let home = Home::new();
    let disks = Disks::loops(&home, "disk", 2, 32);
    let _raidd = home.start();
    home.ok(format!("create vol --level 1 {}", disks.all()));
    home.wait_idle("vol");
    let open = fs::File::options().read(true).custom_flags(libc::O_EXCL).open(Path::new(&disks.paths[0]));
    assert_eq!(open.unwrap_err().raw_os_error(), Some(libc::EBUSY));
    let zeroed = run("mdadm", &["--zero-superblock", &disks.paths[0]]);
    assert_ne!(zeroed.status, 0, "{zeroed:?}");
    let made = run("mkfs.ext4", &["-q", &disks.paths[1]]);
    assert_ne!(made.status, 0, "{made:?}");
    assert!(made.stderr.contains("in use"), "{made:?}");
    // Reading and asking are free.
    run("mdadm", &["--examine", &disks.paths[0]]).ok();
    assert_eq!(home.status("vol").size_bytes % MIB, 0);
    home.ok("stop vol");
    run("mdadm", &["--zero-superblock", &disks.paths[0]]).ok();
}
