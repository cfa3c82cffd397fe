//! The on-disk format, in both directions: what the kernel and mdadm wrote is understood, what raidd writes mdadm
//! understands, and what nobody wrote is refused.

mod golden;
mod mdadm;

mod created;
mod golden_parse;
mod hostile;
