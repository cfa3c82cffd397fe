//! What happens to raidd's members while raidd does not look: udev has mdadm take every member that it is not kept from.

use super::rig::{Guest, can_run, said};

#[test]
fn mdadm_takes_what_was_released_and_nothing_else() {
    if !can_run() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let mut guest = Guest::new(include_str!("mdadm_leaves_alone.sh"));
    for name in ["a", "b", "c", "d", "e"] {
        let path = folder.path().join(name);
        std::fs::File::create(&path).unwrap().set_len(64 << 20).unwrap();
        guest = guest.disk(path);
    }
    let output = guest.run().ok();
    assert_eq!(said(&output, "mismatches"), "0");
    // docs/operating.md says so.
    assert_eq!(said(&output, "named to scan"), "taken");
}
