//! The real kernel's md and nbd drivers, in guests (`rig`): hosts that build and test raidd often have neither.
//!
//! A test is a shell script that a guest runs (`*.sh` here), and what is made of its words. Images of members are sparse
//! files that pass between raidd on the host, raidd in a guest, and md in a guest.

mod arrays;
mod attach;
mod boot;
mod copies;
mod crashed;
mod filesystem;
mod geometries;
mod given;
#[path = "../../format/golden.rs"]
mod golden;
mod grow;
mod handover;
mod interop;
mod lost;
mod rig;
