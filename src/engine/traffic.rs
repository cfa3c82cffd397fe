//! What passes between an array and all of its members, also those that have left since, counted in bytes since it was started:
//! beside what clients have read and written (`tally`), what their byte costs. With parity a written one costs n/(n-1) or
//! n/(n-2) at best, when all writes are full stripes.

use std::cell::Cell;

/// Bytes that were asked for, whether or not it went well.
#[derive(Debug, Default)]
pub(super) struct Traffic {
    /// Data and parity, by whomever; metadata is not counted.
    pub member_read: Cell<u64>,
    pub member_written: Cell<u64>,
}

/// So many more.
pub(super) fn count(counter: &Cell<u64>, bytes: u64) {
    counter.set(counter.get() + bytes);
}
