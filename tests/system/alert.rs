//! A program is told what happens, as by `mdadm --monitor --program`, over restarts of raidd and of what runs it.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use raidd::api::Health;

use super::disks::Disks;
use super::harness::{Companion, Home, raidctl_program};
use super::mounted::comes_true;

#[test]
fn a_program_is_told_once_of_everything() {
    let home = Home::new();
    let (program, told, seen) = (home.path("program"), home.path("told"), home.path("seen"));
    fs::write(&program, format!("#!/bin/sh\necho \"$@\" >> {}\n", told.display())).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    let watch = || {
        let mut command = Command::new(raidctl_program());
        command.arg("--control").arg(home.path("control.sock")).arg("events");
        command.arg("--program").arg(&program).arg("--seen").arg(&seen);
        Companion::start(&mut command)
    };
    let lines = || fs::read_to_string(&told).unwrap_or_default();
    let count = |line: &str| lines().lines().filter(|found| *found == line).count();

    let disks = Disks::files(&home, "disk", 4, 32);
    let mut raidd = home.start();
    home.ok(format!("create vol0 --level 1 --init assume-clean {}", disks.all()));
    let watching = watch();
    assert!(comes_true(|| seen.exists()));
    assert_eq!(lines(), "", "what has happened before is no news");
    home.ok(format!("fail vol0 {}", disks.paths[3]));
    let fail = |slot: usize| format!("Fail vol0 {}", disks.paths[slot]);
    assert!(comes_true(|| count(&fail(3)) == 1), "{}", lines());

    raidd.kill();
    let raidd = home.start();
    home.wait_for("vol0", |status| status.health == Health::Degraded);
    home.ok(format!("fail vol0 {}", disks.paths[2]));
    assert!(comes_true(|| count(&fail(2)) == 1), "{}", lines());
    drop(watching);
    home.ok(format!("fail vol0 {}", disks.paths[1]));
    let _watching = watch();
    assert!(comes_true(|| count(&fail(1)) == 1), "{}", lines());
    assert_eq!([1, 2, 3].map(|slot| count(&fail(slot))), [1, 1, 1], "{}", lines());
    raidd.terminate();
}
