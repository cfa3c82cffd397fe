//! What passes between clients, array and members, counted in bytes since the array was started: how much a client's byte
//! costs on the members. With parity it is n/(n-1) or n/(n-2) at best, when all writes are full stripes.

use std::cell::Cell;

/// Bytes that were asked for, whether or not it went well.
#[derive(Debug, Default)]
pub(super) struct Traffic {
    pub client_read: Cell<u64>,
    pub client_written: Cell<u64>,
    /// Data and parity, by whomever; metadata is not counted.
    pub member_read: Cell<u64>,
    pub member_written: Cell<u64>,
}

/// So many more.
pub(super) fn count(counter: &Cell<u64>, bytes: u64) {
    counter.set(counter.get() + bytes);
}
