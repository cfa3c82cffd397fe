//! raidctl's entry.
fn main() {}
