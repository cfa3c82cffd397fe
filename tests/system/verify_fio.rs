//! fio writes at random, many requests at once, and verifies what it reads: on every level, whole and with as many
//! members failed as it survives, while the first resync is still under way.
//!
//! Blocks are always written whole and aligned: with overlapping writes in flight fio cannot know what it should find.

use raidd::api::{Health, MemberState, Status};

use super::disks::Disks;
use super::harness::{Home, need, run};

const CHUNK: &str = "16K";

#[test]
fn raid0_keeps_what_fio_writes() {
    verify(0, 3, &[]);
}

#[test]
fn raid1_keeps_what_fio_writes() {
    verify(1, 3, &[0, 2]);
}

#[test]
fn raid4_keeps_what_fio_writes() {
    verify(4, 4, &[1]);
}

#[test]
fn raid5_keeps_what_fio_writes() {
    verify(5, 4, &[3]);
}

#[test]
fn raid6_keeps_what_fio_writes() {
    verify(6, 5, &[0, 3]);
}

#[test]
fn raid10_keeps_what_fio_writes() {
    verify(10, 4, &[0, 3]);
}

fn verify(level: u8, count: usize, lost: &[usize]) {
    if !need(&["fio"]) {
        return;
    }
    let home = Home::new();
    let disks = Disks::files(&home, "disk", count, 64);
    let _raidd = home.start();
    let chunk = if level == 1 { String::new() } else { format!("--chunk {CHUNK}") };
    home.ok(format!("create vol --level {level} {chunk} {}", disks.all()));
    fio(&home, "4k", 1);
    fio(&home, "64k", 2);
    check(&home.status("vol"), &[]);
    for &slot in lost {
        home.ok(format!("fail vol {}", disks.paths[slot]));
    }
    if !lost.is_empty() {
        fio(&home, "4k", 3);
        fio(&home, "64k", 4);
        check(&home.status("vol"), lost);
    }
    home.ok("stop vol");
}

fn fio(home: &Home, block: &str, seed: u32) {
    let size = if block == "4k" { "16m" } else { "32m" };
    let arguments = [
        "--name=v".to_owned(),
        "--ioengine=nbd".to_owned(),
        format!("--uri={}", home.uri("vol")),
        "--rw=randrw".to_owned(),
        format!("--bs={block}"),
        "--iodepth=32".to_owned(),
        format!("--size={size}"),
        format!("--randseed={seed}"),
        "--verify=crc32c".to_owned(),
        "--verify_fatal=1".to_owned(),
        "--do_verify=1".to_owned(),
        "--verify_state_save=0".to_owned(), // a file in the working folder
    ];
    let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
    let report = run("fio", &arguments).ok();
    assert!(report.contains("err= 0") && report.contains("READ:") && report.contains("WRITE:"), "{report}");
}

/// No member has met an error, and only those of these slots are out.
#[track_caller]
fn check(status: &Status, lost: &[usize]) {
    let health = if lost.is_empty() { Health::Optimal } else { Health::Degraded };
    assert_eq!(status.health, health);
    for (slot, member) in status.members.iter().enumerate() {
        let state = if lost.contains(&slot) { MemberState::Faulty } else { MemberState::InSync };
        assert_eq!(member.state, state, "{status:#?}");
        assert_eq!(
            (member.read_errors, member.write_errors, member.corrected_errors),
            (0, 0, 0),
            "{status:#?}"
        );
    }
}
