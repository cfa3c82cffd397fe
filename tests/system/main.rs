//! The real daemon on real rings, spoken to by the real raidctl and by other people's NBD clients.
//!
//! Each test has a daemon, a folder and disks of its own, and leaves nothing behind, also when it fails. A test that
//! lacks a tool or a right prints a line `SKIPPED: why` and ends.

mod activation;
mod admission;
mod alert;
mod bad_input;
mod clients;
mod completions;
mod copies;
mod crashed_ext4;
mod demo;
mod disks;
mod docs;
mod filesystem;
mod grow;
mod harness;
mod health;
mod limits;
mod load;
mod manual;
mod maps;
mod mdadm_conf;
mod members;
mod metadata;
mod metrics;
mod mounted;
mod moving;
mod openapi;
mod package;
mod pki;
mod ppl;
mod reconnect;
mod recovery;
mod restart;
mod returning;
mod stage;
mod stats;
mod tls;
mod tmux;
mod units;
mod verify_fio;
mod vm;
mod watch;
