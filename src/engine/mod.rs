//! An array over its members: what is read and written when, who has failed, what is in sync.
//!
//! The engine knows geometry (`layout`), arithmetic (`parity`) and metadata (`md`), and does I/O only through the
//! traits of `io`; so all of it runs in a simulator unchanged. An [`Array`] lives on one core and is used from tasks
//! of that core only: its state needs no locks, and its order is a plain program's order.
//!
//! Where things are: [`assemble`] decides who belongs to an array, [`create`] makes a new one, `state` is who and what
//! the array is, `superblock` and `bitmap` say WHEN metadata is written, `mirror` serves levels with copies, `stripe`
//! those with parity (`gather` makes large writes of streams, `plan` decides, `solve` computes), `choice` and `hedge` say whom reads are asked of, `zeroes` discards and zeroes, `resync` makes redundancy agree.
//!
//! The laws of data safety that are kept here:
//! 1. *Acknowledge last.* A write is answered when every in-sync member it concerns has it, or the failure of those
//!    that do not is durable in the superblocks of the survivors: `settle`, then `persist`.
//! 2. *Dirty first.* No data is written before all superblocks say dirty, durably: `activate`. Clean is written only
//!    after a flush of all members during and after which nobody wrote: `go_clean`. Where there are partial parity logs,
//!    *log before data*: `ppl_log`.
//! 3. *Flush is the array's*, not a connection's: every member, every time.
//! 4. *Row locks* cover writes, degraded reads and resync. Lock, then edge buffers, then scratch buffers: in that order
//!    and never back, so nobody waits in a ring.
//! 5. *Nothing is read from what is not in sync*, and nothing is worked out from parity that is not trusted:
//!    `plan::Trust`.
//! 6. *Payload is immutable*: it arrives as slices.
//! 7. *The freshest superblock is the truth*: `assemble::decide`.
//! 8. *The last usable copy is never failed*: `can_fail`.

mod absence;
mod array;
pub mod assemble;
mod bad_blocks;
mod bitmap;
mod choice;
pub mod create;
mod deadline;
mod error;
mod events;
mod extents;
mod gather;
mod hedge;
mod join;
mod load;
mod locks;
mod member;
mod membership;
mod mirror;
#[doc(hidden)]
pub mod mutant;
mod plan;
mod ppl;
mod ppl_log;
mod ppl_write;
mod ranges;
mod read_only;
mod recovery;
mod repair;
mod resync;
mod roster;
mod scrub;
mod solve;
mod state;
mod stats;
mod status;
mod stripe;
mod superblock;
mod sync;
mod tally;
mod traffic;
mod zeroes;

pub use absence::Absent;
pub use array::{Array, Memory};
pub use assemble::{Change, NewUuid, Options as AssembleOptions, assemble};
pub use choice::ReadPolicy;
pub use error::Refusal;
pub use events::Event;
pub use hedge::Hedge;
pub use load::{Found, load};
pub use member::MemberState;
pub use scrub::Finding;
pub use state::{Health, Phase};
pub use stats::{ArrayStats, MemberStats};
pub use status::{ArrayStatus, MemberStatus, SyncStatus};
pub use sync::{RECOVERY_BYTES_PER_SEC_MAX, RECOVERY_BYTES_PER_SEC_MIN, SyncAction};
pub use tally::{Errors, Operations, Times};
