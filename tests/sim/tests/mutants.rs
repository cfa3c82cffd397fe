//! The simulator finds every deliberate fault of `src/engine/mutant.rs`: `scripts/mutants` builds it with them, beside
//! this build, and lets it look.

use std::path::Path;
use std::process::Command;

#[test]
fn every_deliberate_fault_is_found() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let output = Command::new(root.join("scripts/mutants")).output().expect("bash");
    println!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "some fault was not found");
}
