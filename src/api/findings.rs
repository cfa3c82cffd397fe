//! What scrubs found: where redundancy did not agree, and who lied.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// What the last or the running scrub of an array found, oldest first.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Findings {
    /// The array.
    pub name: String,
    /// Sectors that did not agree, as md counts them.
    pub mismatches: u64,
    /// The latest 1024 of them.
    pub findings: Vec<Finding>,
}

/// A range in which redundancy did not agree.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Finding {
    /// Where in the array: exactly what the liar holds, where one was found that holds data; else everything that these
    /// rows of the members hold.
    pub array_offset_bytes: u64,
    /// How much of it.
    pub array_len_bytes: u64,
    /// Where in the data area of each member, for levels with parity; null for those with copies.
    pub member_offset_bytes: Option<u64>,
    /// How much there.
    pub member_len_bytes: Option<u64>,
    /// The slot of the member that lied; null where redundancy cannot tell.
    pub slot: Option<u16>,
    /// Its path at that time.
    pub device: Option<String>,
    /// It was made to agree.
    pub repaired: bool,
}
