//! Why an array is not started, made or changed.

use crate::io::IoError;
use crate::layout::LayoutError;
use crate::md;

/// A refusal, with what, why and what to do in its message. Nothing has been changed.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// A member could not be read.
    #[error("{member}: cannot read its metadata: {error}; check the device")]
    Unreadable {
        /// Its path.
        member: String,
        /// Why.
        error: IoError,
    },
    /// A member's metadata is damaged or none.
    #[error("{member}: {error}")]
    NotAMember {
        /// Its path.
        member: String,
        /// What is wrong.
        error: md::ParseError,
    },
    /// A member does not fit its superblock.
    #[error("{member}: {why}")]
    BadMember {
        /// Its path.
        member: String,
        /// What is wrong, and what to do.
        why: String,
    },
    /// The members, taken together, make no array.
    #[error("{0}")]
    BadSet(String),
    /// The superblocks describe a geometry that is not possible or not known.
    #[error("the superblocks describe no possible array: {0}")]
    Geometry(#[from] LayoutError),
    /// Too few members to serve all data.
    #[error("{0}")]
    TooFew(String),
    /// A crash while degraded: parity may lie.
    #[error("{0}")]
    DirtyDegraded(String),
    /// The operator's request makes no sense now.
    #[error("{0}")]
    NotNow(String),
    /// Writing metadata failed.
    #[error("{member}: {what} failed: {error}")]
    WriteFailed {
        /// Its path.
        member: String,
        /// What was being written.
        what: &'static str,
        /// Why it failed.
        error: IoError,
    },
}
