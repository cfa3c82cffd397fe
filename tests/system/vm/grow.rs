//! Arrays that are made larger while their filesystem is mounted, and what the kernel says of them.

use super::rig::{Guest, can_run, said, with_disks};

#[test]
fn a_mounted_array_becomes_larger_and_the_kernel_takes_it() {
    if !can_run() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let guest = Guest::new(include_str!("grow.sh"));
    let output = with_disks(guest, folder.path(), 3, 96).run().ok();
    let (kernel, raidd) = said(&output, "device").split_once(" of \"size_bytes\":").unwrap();
    assert_eq!(kernel, raidd);
    assert_eq!(said(&output, "io errors"), "0");
    assert!(!output.contains("a write failed"), "{output}");
    assert_eq!((said(&output, "resync"), said(&output, "bitmap")), ("idle", "+8"));
    assert_eq!((said(&output, "mismatches"), said(&output, "mirror's mismatches")), ("0", "0"));
    assert_eq!((said(&output, "copies"), said(&output, "taken back")), ("3 0", "[UU]"));
}
