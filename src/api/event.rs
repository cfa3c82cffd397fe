//! Something that happened to an array, as `events --json` prints it, one a line.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// An event. Its name is mdadm's: `NewArray`, `DegradedArray`, `Fail`, `FailSpare`, `SpareActive`, `RebuildStarted`,
/// `Rebuild20` and so on, `RebuildFinished`, `DeviceDisappeared`,
/// `MoveSpare`, mdadm's too, for a spare of another array of its group; and some of our own:
/// `MemberReturned`, for a member that disappeared and was taken back without being asked, and what the health watch has found:
/// `SlowMember`, `CorrectedErrors`, `ScrubOverdue`, `RedundancyLost`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Event {
    /// Counts events, also over restarts of the daemon.
    pub id: u64,
    /// When, in milliseconds since 1970 (UTC).
    pub unix_ms: u64,
    /// What.
    pub event: String,
    /// To which array.
    pub array: String,
    /// To which of its members.
    #[serde(default)]
    pub device: Option<String>,
    /// Which sync action a `Rebuild...` is about: `resync`, `recovery`, `check` or `repair`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub action: Option<String>,
    /// Sectors that did not agree, at the end of a sync action that looked for that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mismatches: Option<u64>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_there_is_nothing_to_say_of_is_left_out() {
        let event = Event { id: 3, unix_ms: 7, event: "Fail".into(), array: "v".into(), ..Event::default() };
        let text = serde_json::to_string(&event).unwrap();
        assert_eq!(text, r#"{"id":3,"unix_ms":7,"event":"Fail","array":"v","device":null}"#);
        assert_eq!(serde_json::from_str::<Event>(&text).unwrap(), event);
    }
}
