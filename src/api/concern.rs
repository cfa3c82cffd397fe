//! What the health watch has found: nothing that has failed, but what will, or has been left undone for too long.

use std::fmt;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::status::words;

/// One thing that its owner should see to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Concern {
    /// What kind of thing.
    pub kind: ConcernKind,
    /// The member that it is about, by its path; null: the array.
    pub device: Option<String>,
    /// What, and what to do, in a line.
    pub text: String,
}

words! {
    /// What the health watch looks for.
    ConcernKind {
        /// A member takes much longer to read than its peers.
        SlowMember = "slow_member",
        /// Sectors of a member keep having to be mended.
        CorrectedErrors = "corrected_errors",
        /// No scrub has looked at all of it for too long.
        ScrubOverdue = "scrub_overdue",
        /// Redundancy is gone, and nothing is being done about it.
        RedundancyLost = "redundancy_lost",
    }
}

impl ConcernKind {
    /// All of them.
    pub const ALL: [ConcernKind; 4] = [
        ConcernKind::SlowMember,
        ConcernKind::CorrectedErrors,
        ConcernKind::ScrubOverdue,
        ConcernKind::RedundancyLost,
    ];

    /// The event that tells of it.
    pub const fn event(self) -> &'static str {
        match self {
            ConcernKind::SlowMember => "SlowMember",
            ConcernKind::CorrectedErrors => "CorrectedErrors",
            ConcernKind::ScrubOverdue => "ScrubOverdue",
            ConcernKind::RedundancyLost => "RedundancyLost",
        }
    }
}
