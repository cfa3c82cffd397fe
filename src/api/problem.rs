//! How raidd says no: a problem document (RFC 9457) whose `detail` is one line that says what, why, and what to do.
//!
//! Invariants:
//! - `code` is what programs match on. A code keeps its spelling and its HTTP status for good.
//! - `detail` has no line breaks or other control characters, whatever hostile text went into it.

use std::fmt;

use serde::{Deserialize, Serialize};
use strsim::damerau_levenshtein;
use utoipa::ToSchema;

/// What a call that was refused or failed returns.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Problem {
    /// The code as a URI: `urn:raidd:problem:` and the code.
    #[serde(rename = "type", default)]
    pub type_uri: String,
    /// What kind of problem, for people; the same for all problems of a code.
    #[serde(default)]
    pub title: String,
    /// The HTTP status it goes with.
    #[serde(default)]
    pub status: u16,
    /// What, why, and what to do, in one line.
    pub detail: String,
    /// What kind of problem, for programs.
    #[serde(default)]
    pub code: ProblemCode,
}

impl Problem {
    /// A problem of this kind. `detail` says what, why, and what to do; line breaks in it become spaces.
    pub fn new(code: ProblemCode, detail: impl AsRef<str>) -> Problem {
        Problem {
            type_uri: format!("urn:raidd:problem:{}", code.as_str()),
            title: code.title().to_owned(),
            status: code.status(),
            detail: one_line(detail.as_ref()),
            code,
        }
    }

    /// No array is called `name`.
    pub fn no_such_array(name: &str) -> Problem {
        Problem::new(
            ProblemCode::NoSuchArray,
            format!("no array is called {name:?}: `raidctl list` shows those that are there"),
        )
    }

    /// The same, where these are there: one that it may have been meant to be is named.
    pub fn no_such_array_among<'a>(name: &str, names: impl Iterator<Item = &'a str>) -> Problem {
        let near = names.map(|other| (damerau_levenshtein(name, other), other));
        // A slip of the finger or two, in a name that is more than that.
        let near = near.filter(|(slips, other)| *slips <= 2 && *slips < other.chars().count().max(2) - 1);
        match near.min() {
            None => Problem::no_such_array(name),
            Some((_, other)) => Problem::new(
                ProblemCode::NoSuchArray,
                format!(
                    "no array is called {name:?}: did you mean {other}? `raidctl list` shows those that are there"
                ),
            ),
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.detail)
    }
}

impl std::error::Error for Problem {}

/// Text without line breaks and other control characters.
fn one_line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect::<String>().trim().to_owned()
}

/// Declares the codes with all that is fixed about each.
/// (A word is a `tt`: as a `literal` it would come to utoipa's derive in a group that it does not look into.)
macro_rules! codes {
    ($($(#[$doc:meta])* $variant:ident = $word:tt, $status:literal, $title:literal;)+) => {
        /// What kind of problem it is; who decides anything decides by this.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
        pub enum ProblemCode {
            $($(#[$doc])* #[serde(rename = $word)] $variant,)+
            /// A code that this program is too old to know.
            #[default]
            #[serde(other, rename = "unknown")]
            Unknown,
        }

        impl ProblemCode {
            /// Every code that can be sent.
            pub const ALL: &[ProblemCode] = &[$(ProblemCode::$variant,)+];

            /// The code as it is written.
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(ProblemCode::$variant => $word,)+
                    ProblemCode::Unknown => "unknown",
                }
            }

            /// The HTTP status that goes with it.
            pub const fn status(self) -> u16 {
                match self {
                    $(ProblemCode::$variant => $status,)+
                    ProblemCode::Unknown => 500,
                }
            }

            /// What it means, in a few words.
            pub const fn title(self) -> &'static str {
                match self {
                    $(ProblemCode::$variant => $title,)+
                    ProblemCode::Unknown => "Unknown problem",
                }
            }
        }
    };
}

codes! {
    /// The request is malformed, or contradicts itself.
    InvalidRequest = "invalid_request", 400, "Invalid request";
    /// There is no such path.
    NotFound = "not_found", 404, "Not found";
    /// Whoever asks may not.
    Forbidden = "forbidden", 403, "Forbidden";
    /// The path is there, but not for this method.
    MethodNotAllowed = "method_not_allowed", 405, "Method not allowed";
    /// The request is larger than the limit.
    TooLarge = "too_large", 413, "Request too large";
    /// No array has that name.
    NoSuchArray = "no_such_array", 404, "No such array";
    /// The array has no such member.
    NoSuchMember = "no_such_member", 404, "No such member";
    /// The name is taken, or the array runs already.
    ArrayExists = "array_exists", 409, "Array exists";
    /// NBD clients are connected to the array.
    ArrayInUse = "array_in_use", 409, "Array in use";
    /// The array is in no state for that.
    WrongState = "wrong_state", 409, "Wrong state";
    /// The device cannot be opened: not there, not allowed, no disk.
    DeviceUnavailable = "device_unavailable", 409, "Device unavailable";
    /// Another process, or another array, holds the device.
    DeviceInUse = "device_in_use", 409, "Device in use";
    /// The device carries something that would be lost.
    DeviceNotEmpty = "device_not_empty", 409, "Device not empty";
    /// The device is too small, or otherwise no good as a member.
    DeviceUnsuitable = "device_unsuitable", 409, "Device unsuitable";
    /// The device has no superblock, or one that cannot be trusted.
    BadSuperblock = "bad_superblock", 409, "Bad superblock";
    /// The superblocks ask for something that raidd does not do.
    Unsupported = "unsupported", 409, "Unsupported";
    /// Too few members are there, or fresh.
    TooFewMembers = "too_few_members", 409, "Too few members";
    /// The members do not belong together, or each lists the other as out.
    MembersDisagree = "members_disagree", 409, "Members disagree";
    /// The array is dirty and degraded: its redundancy cannot be trusted.
    DirtyDegraded = "dirty_degraded", 409, "Dirty and degraded";
    /// The array cannot do without the member.
    LastCopy = "last_copy", 409, "Last copy";
    /// A member answered with an error.
    MemberIo = "member_io", 500, "Member I/O error";
    /// A limit was reached.
    LimitReached = "limit_reached", 503, "Limit reached";
    /// raidd is stopping.
    ShuttingDown = "shutting_down", 503, "Shutting down";
    /// raidd failed at something that should not fail.
    Internal = "internal", 500, "Internal error";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_is_an_rfc_9457_document() {
        let problem = Problem::no_such_array("vol9");
        assert_eq!(
            serde_json::to_string(&problem).unwrap(),
            r#"{"type":"urn:raidd:problem:no_such_array","title":"No such array","status":404,"detail":"no array is called \"vol9\": `raidctl list` shows those that are there","code":"no_such_array"}"#
        );
    }

    #[test]
    fn a_name_that_was_nearly_typed_right_is_suggested() {
        let suggested =
            |name| Problem::no_such_array_among(name, ["vol0", "scratch", "db"].into_iter()).detail;
        for (name, other) in
            [("vol", "vol0"), ("vol1", "vol0"), ("Scratch", "scratch"), ("scrtach", "scratch")]
        {
            assert!(
                suggested(name).contains(&format!("did you mean {other}?")),
                "{name}: {}",
                suggested(name)
            );
        }
        for name in ["tank", "x", "d", ""] {
            assert_eq!(suggested(name), Problem::no_such_array(name).detail);
        }
    }

    #[test]
    fn detail_is_one_line() {
        let problem = Problem::new(ProblemCode::Internal, "a\nb\r\x1b[31m\n");
        assert_eq!(problem.detail, "a b  [31m");
        assert_eq!(problem.to_string(), problem.detail);
    }

    #[test]
    fn a_later_code_can_still_be_read() {
        let problem: Problem = serde_json::from_str(r#"{"detail":"x","code":"from_the_future"}"#).unwrap();
        assert_eq!(problem.code, ProblemCode::Unknown);
        assert_eq!(problem.detail, "x");
    }

    #[test]
    fn codes_are_written_as_they_say() {
        for code in ProblemCode::ALL {
            assert_eq!(serde_json::to_string(code).unwrap(), format!("\"{}\"", code.as_str()));
            assert!(code.as_str().bytes().all(|b| b.is_ascii_lowercase() || b == b'_'));
            assert!((400..600).contains(&code.status()));
        }
    }
}
