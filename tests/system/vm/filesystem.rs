//! Filesystems of the guest's kernel on attached arrays.

use std::os::unix::fs::MetadataExt;

use super::rig::{Guest, can_run, said, with_disks};

/// What an empty filesystem keeps of a member's space: its log, for the most part.
const KEPT_MIB_MAX: u64 = 40;

fn a_member_is_lost_under(kind: &str, trouble: &str, level: &str, members: usize, mib: u64) {
    if !can_run() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let mut guest = Guest::new(include_str!("filesystem.sh"));
    let names = ["/dev/vda", "/dev/vdb", "/dev/vdc", "/dev/vdd", "/dev/vde"];
    for argument in [kind, trouble, level].iter().chain(&names[..=members]) {
        guest = guest.argument(*argument);
    }
    let output = with_disks(guest, folder.path(), members + 1, mib).run().ok();
    assert_eq!(said(&output, "members"), format!("[{}]", "U".repeat(members)));
    assert_eq!(said(&output, "faulty"), "1");
    assert_eq!(said(&output, "mismatches"), "\"mismatches\":0");
    // The kernel has more patience than raidd has with a member.
    assert_eq!((said(&output, "io errors"), said(&output, "timeouts")), ("0", "0"));
    let written_mib: u64 = said(&output, "written").strip_suffix(" MiB").unwrap().parse().unwrap();
    assert!(
        written_mib > 2 * KEPT_MIB_MAX,
        "too little was written to tell whether it was given back: {written_mib} MiB"
    );
    let left =
        |index: usize| std::fs::metadata(folder.path().join(format!("disk{index}"))).unwrap().blocks() / 2048;
    // vda, the spare, is a member by now; vdb has failed and was not told.
    for index in [0].into_iter().chain(2..=members) {
        assert!(left(index) < KEPT_MIB_MAX, "disk{index} still has {} MiB of {written_mib}", left(index));
    }
}

#[test]
fn ext4_on_raid5_outlives_a_member_that_fails() {
    a_member_is_lost_under("ext4", "fail", "5", 3, 128);
}

#[test]
fn xfs_on_raid6_outlives_a_member_that_hangs() {
    a_member_is_lost_under("xfs", "hang", "6", 4, 192);
}

#[test]
fn memory_full_of_what_is_to_be_written_is_no_deadlock() {
    if !can_run() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let guest = Guest::new(include_str!("memory.sh")).memory_mib(256);
    let output = with_disks(guest, folder.path(), 3, 220).run().ok();
    assert_ne!(said(&output, "locked"), "0", "raidd may be paged out");
    assert_eq!(said(&output, "size"), (180u64 << 20).to_string());
    assert_eq!(said(&output, "io errors"), "0");
}
