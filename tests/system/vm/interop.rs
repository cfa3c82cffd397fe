//! Arrays go from raidd to the kernel and back.

use super::rig::{Guest, can_run, said};

#[test]
fn an_array_changes_hands_in_one_guest() {
    if !can_run() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let mut guest = Guest::new(include_str!("same_guest.sh"));
    for name in ["a", "b", "c"] {
        let path = folder.path().join(name);
        std::fs::File::create(&path).unwrap().set_len(64 << 20).unwrap();
        guest = guest.disk(path);
    }
    assert_eq!(said(&guest.run().ok(), "mismatches"), "0");
}
