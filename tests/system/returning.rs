//! Members that disappear and come back: taken back by themselves, and those that should not be are not.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use raidd::api::{Event, Health, MemberState};

use super::disks::{Disks, Loop, MIB, file, noise};
use super::harness::{Home, Raidd, need, run};
use super::load::Stopwatch;
use super::mounted::{comes_true, is_mounted, wait_until};
use super::recovery::assert_consistent;

fn start(home: &Home) -> Raidd {
    home.start_with(&["--enable-fault-injection"])
}

fn returned(home: &Home, array: &str) -> Vec<Option<String>> {
    let lines = home.ok("events --json");
    let events = lines.lines().map(|line| serde_json::from_str::<Event>(line).unwrap());
    events
        .filter(|event| event.event == "MemberReturned" && event.array == array)
        .map(|event| event.device)
        .collect()
}

#[test]
fn who_disappeared_comes_back_and_who_was_failed_does_not() {
    let home = Home::new();
    let disks = Disks::files(&home, "disk", 5, 64);
    let others = Disks::files(&home, "other", 2, 64);
    let _raidd = start(&home);
    home.ok(format!("create vol --level 6 --chunk 64K --init zero {}", disks.all()));
    home.ok(format!("create kept --level 1 --init zero {}", others.all()));
    home.ok("tune kept auto_re_add=off");
    // Nothing tells what it has missed.
    let plain = Disks::files(&home, "plain", 2, 32);
    home.ok(format!("create plain --level 1 --bitmap none --init zero {}", plain.all()));
    home.ok("tune plain auto_re_add=spare");
    assert!(home.ok("tune vol").contains("auto_re_add=on"));
    home.ok(format!("fail vol {}", disks.paths[0]));
    let mut client = home.client("vol");
    let lose = |array: &str, disk: &str| {
        home.ok(format!("inject {array} {disk} die"));
        let mut other = home.client(array);
        other.write(0, &noise(1, MIB as usize)).unwrap();
        other.disconnect().unwrap();
    };
    lose("kept", &others.paths[1]);
    lose("plain", &plain.paths[1]);
    lose("vol", &disks.paths[1]);
    let data = noise(2, 4 * MIB as usize);
    client.write(20 * MIB, &data).unwrap();
    let status = home.status("vol");
    assert_eq!(
        (status.members[0].state, status.members[1].state),
        (MemberState::Faulty, MemberState::Faulty)
    );

    home.ok(format!("inject kept {} clear", others.paths[1]));
    home.ok(format!("inject plain {} clear", plain.paths[1]));
    home.ok(format!("inject vol {} clear", disks.paths[1]));
    let status = home.wait_for("vol", |status| status.members[1].state == MemberState::InSync);
    assert_eq!(status.members[0].state, MemberState::Faulty, "the operator failed it: {status:#?}");
    assert_eq!(home.status("kept").members[1].state, MemberState::Faulty, "it was told to leave it alone");
    assert_eq!(returned(&home, "vol"), [Some(disks.paths[1].clone())]);
    assert_eq!(returned(&home, "kept"), []);
    home.wait_for("plain", |status| status.health == Health::Optimal);
    // What it had missed is on it.
    home.ok(format!("fail vol {}", disks.paths[2]));
    let mut found = vec![0; data.len()];
    client.read(20 * MIB, &mut found).unwrap();
    assert!(found == data);
}

#[test]
fn a_member_that_comes_back_by_another_path_is_known() {
    if !need(&["root", "/dev/loop-control", "losetup"]) {
        return;
    }
    let home = Home::new();
    let disks = Disks::loops(&home, "disk", 2, 64);
    let moved = file(&home, "moved", 64 * MIB);
    let gone = Loop::over(Path::new(&moved), &[]);
    let old_path = gone.path.clone();
    let _raidd = start(&home);
    home.ok(format!("create vol --level 5 --chunk 64K --init zero {} {old_path}", disks.all()));
    home.ok(format!("inject vol {old_path} die"));
    let mut client = home.client("vol");
    client.write(0, &noise(1, MIB as usize)).unwrap();
    assert_eq!(home.status("vol").health, Health::Degraded);
    // The old device goes when raidd lets go of it.
    drop(gone);
    let again = Loop::over(Path::new(&moved), &[]);
    assert_ne!(again.path, old_path);
    home.ok(format!("inject vol {old_path} clear"));
    let status = home.wait_for("vol", |status| status.health == Health::Optimal);
    assert_eq!(status.members[2].path.as_deref(), Some(&*again.path));
    client.disconnect().unwrap();
    assert_consistent(&home);
    home.ok("stop vol");
}

/// A file that another process serves, which can be made to hang.
struct Served {
    folder: PathBuf,
    nbdkit: Child,
    nbdfuse: Child,
}

impl Served {
    fn new(home: &Home, bytes: u64) -> Served {
        let (folder, socket) = (home.path("served"), home.path("served.sock"));
        std::fs::create_dir(&folder).unwrap();
        let spawn =
            |command: &mut Command| command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().unwrap();
        let backing = file(home, "backing", bytes);
        let nbdkit = spawn(Command::new("nbdkit").arg("-fU").arg(&socket).arg("file").arg(backing));
        wait_until("nbdkit comes up", || socket.exists());
        let uri = format!("nbd+unix:///?socket={}", socket.display());
        let nbdfuse = spawn(Command::new("nbdfuse").args(["-C", "4"]).arg(folder.join("disk")).arg(uri));
        let served = Served { folder, nbdkit, nbdfuse };
        wait_until("nbdfuse comes up", || is_mounted(&served.folder) && served.path().exists());
        served
    }

    fn path(&self) -> PathBuf {
        self.folder.join("disk")
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(i32::try_from(self.nbdkit.id()).unwrap()), signal).unwrap();
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.signal(Signal::SIGCONT);
        let _lazily = run("fusermount3", &["-u", "-z", self.folder.to_str().unwrap()]);
        if !comes_true(|| matches!(self.nbdfuse.try_wait(), Ok(Some(_)) | Err(_))) {
            eprintln!(
                "nbdfuse had to be killed: {:?}",
                self.nbdfuse.kill().and_then(|()| self.nbdfuse.wait())
            );
        }
        if self.nbdkit.kill().is_err() || self.nbdkit.wait().is_err() {
            eprintln!("nbdkit could not be killed");
        }
    }
}

#[test]
fn a_disk_that_really_hangs_costs_its_deadline_and_comes_back() {
    if !need(&["root", "/dev/fuse", "nbdkit", "nbdfuse", "fusermount3"]) {
        return;
    }
    let home = Home::new();
    let disks = Disks::files(&home, "disk", 2, 64);
    let served = Served::new(&home, 64 * MIB);
    let path = served.path().to_str().unwrap().to_owned();
    let raidd = home.start();
    home.ok(format!("create vol --level 5 --chunk 64K --init zero {} {path}", disks.all()));
    home.ok("tune vol member_timeout=1s");
    let clients = Stopwatch::start(&home, "vol", 4);
    std::thread::sleep(Duration::from_millis(500));
    served.signal(Signal::SIGSTOP);
    home.wait_for("vol", |status| status.members[2].state == MemberState::Faulty);
    std::thread::sleep(Duration::from_secs(1));
    let longest = clients.stop();
    assert!(longest < Duration::from_millis(1500), "a request took {longest:?}");
    assert!(longest > Duration::from_millis(900), "nothing hung: {longest:?}");
    let mut client = home.client("vol");
    let data = noise(1, MIB as usize);
    client.write(8 * MIB, &data).unwrap();
    // Nothing of it may be touched before it has answered what it was asked.
    std::thread::sleep(Duration::from_millis(1500));
    assert_eq!(home.status("vol").members[2].state, MemberState::Faulty);

    served.signal(Signal::SIGCONT);
    home.wait_for("vol", |status| status.health == Health::Optimal);
    assert_eq!(returned(&home, "vol"), [Some(path)]);
    client.disconnect().unwrap();
    assert_consistent(&home);
    home.ok(format!("fail vol {}", disks.paths[0]));
    let mut found = vec![0; data.len()];
    home.client("vol").read(8 * MIB, &mut found).unwrap();
    assert!(found == data, "what it had missed is wrong");
    raidd.terminate();
    drop(served);
}

#[test]
fn a_disk_that_hangs_does_not_hold_up_the_start() {
    if !need(&["root", "/dev/fuse", "nbdkit", "nbdfuse", "fusermount3"]) {
        return;
    }
    let home = Home::new();
    let (disks, others) = (Disks::files(&home, "disk", 2, 64), Disks::files(&home, "other", 3, 64));
    let served = Served::new(&home, 64 * MIB);
    let path = served.path().to_str().unwrap().to_owned();
    let raidd = home.start();
    home.ok(format!("create vol --level 5 --chunk 64K --init zero {} {path}", disks.all()));
    home.ok(format!("create other --level 1 --init zero {}", others.without(&[2])));
    let data = noise(1, MIB as usize);
    let mut client = home.client("vol");
    client.write(8 * MIB, &data).unwrap();
    client.disconnect().unwrap();
    raidd.terminate();

    served.signal(Signal::SIGSTOP);
    let raidd = home.start();
    assert_eq!(home.wait_for("other", |status| status.nbd_uri.is_some()).health, Health::Optimal);
    let status = home.wait_for("vol", |status| status.nbd_uri.is_some());
    assert_eq!((status.health, status.members[2].state), (Health::Degraded, MemberState::Missing));
    let mut found = vec![0; data.len()];
    home.client("vol").read(8 * MIB, &mut found).unwrap();
    assert!(found == data, "without the disk that hangs it is something else");
    let line = home.raidctl(format!("create third --level 1 {} {path}", others.paths[2])).complaint(1);
    assert!(line.contains(&path) && line.contains("does not answer"), "{line}");
    home.client("vol").write(8 * MIB, &data[..4096]).unwrap();

    served.signal(Signal::SIGCONT);
    wait_until("the disk answers again", || home.raidctl(format!("re-add vol {path}")).status == 0);
    home.ok("wait vol --timeout 60s");
    assert_consistent(&home);
    raidd.terminate();
    drop(served);
}
