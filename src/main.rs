//! The daemon's entry: arguments in, an exit status out.
fn main() {}
