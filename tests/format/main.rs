//! The on-disk format, in both directions: what the kernel and mdadm wrote is understood, what raidd writes mdadm
//! understands, and what nobody wrote is refused.

mod forge;
mod golden;
mod mdadm;
mod members;

mod created;
mod forged;
mod golden_parse;
mod golden_read;
mod hostile;
