//! What the bytes of the metadata mean: Linux md, version 1.2.
//!
//! Parse and encode, nothing else: no I/O, no clock, no policy. When these bytes are written, and in which order, is
//! `engine`'s business (its files `superblock.rs` and `bitmap.rs` are the twins of the ones here).
//!
//! - [`superblock`]: who a member is, in which array, how fresh, how clean
//! - [`uuid`]: UUIDs as mdadm prints them
//! - [`bitmap`]: the write-intent bitmap
//! - [`bad_blocks`]: the log of sectors that a member cannot hold
//! - [`ppl`]: the partial parity log of RAID5
//! - [`create`]: the metadata of a new array
//!
//! Invariants:
//!
//! - Hostile bytes give an error or an empty answer. They never panic and never make an allocation larger than the
//!   bytes themselves.
//! - What parses, encodes to the same bytes again: fields that raidd has no use for are kept as found.
//! - Integers on disk are little-endian, always; the structs' offsets are proved at compile time.

pub mod bad_blocks;
pub mod bitmap;
pub mod create;
pub mod ppl;
pub mod superblock;
pub mod uuid;

mod features;

pub use bitmap::{Bitmap, BitmapError, BitmapSuperblock};
pub use create::{CreateError, CreateSpec, Created, plan};
pub use superblock::{Features, ParseError, Role, SUPERBLOCK_BYTES, SUPERBLOCK_OFFSET_BYTES, Superblock};
pub use uuid::{format_uuid, parse_uuid};
