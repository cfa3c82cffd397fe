//! Arrays as the guest's own block devices, through its nbd driver.

use super::rig::{Guest, can_run, said, with_disks};

#[test]
fn an_array_is_a_block_device() {
    if !can_run() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let output = with_disks(Guest::new(include_str!("attach.sh")), folder.path(), 3, 64).run().ok();
    assert_eq!(said(&output, "device"), "/dev/nbd2");
    assert!(said(&output, "status").ends_with("/dev/nbd2"));
    assert!(said(&output, "backend").starts_with("raidd:") && said(&output, "backend").ends_with(":vol0"));
    let (kernel, raidd) = said(&output, "size").split_once(" of \"size_bytes\":").unwrap();
    assert_eq!(kernel, raidd);
    assert_eq!(said(&output, "queue"), "512 write back 1 \"connections\":3");
    assert_eq!((said(&output, "after"), said(&output, "at last")), ("0 0", "0"));
    let refusals: Vec<_> =
        output.lines().filter_map(|line| line.strip_prefix("refused: raidctl: ")).collect();
    let expected = [
        "is not attached",
        "is attached as /dev/nbd2 already",
        "raidctl detach vol0 first",
        "raidd itself is behind it",
        "is in use",
        "is not attached",
    ];
    assert_eq!(refusals.len(), expected.len(), "{refusals:?}");
    for (refusal, expected) in refusals.iter().zip(expected) {
        assert!(refusal.contains(expected), "{refusal:?} should say {expected:?}");
    }
    assert_eq!((said(&output, "io errors"), said(&output, "remembered")), ("0", "/dev/nbd3"));
}

#[test]
fn raidd_dies_ten_times_under_a_filesystem_that_is_written() {
    if !can_run() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    // With two processors the kernel uses both connections, which are on two reactors.
    let guest = Guest::new(include_str!("restart.sh")).argument("12").processors(2);
    let output = with_disks(guest, folder.path(), 3, 96).run().ok();
    assert_eq!((said(&output, "rounds"), said(&output, "io errors")), ("12", "0"));
    // While it slept the kernel lost its patience.
    assert_ne!(said(&output, "timeouts"), "0");
    assert_eq!(said(&output, "mismatches"), "\"mismatches\":0");
}
