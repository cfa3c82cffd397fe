//! What is known of an array: the document that `status --json` prints and scripts parse.
//!
//! The documented fields keep their names and their order. A field that was added later stands behind them and is left
//! out where there is nothing to say, so that a reader of the documented ones never notices.

use std::fmt;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{Concern, Tuning};

/// One array.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Status {
    /// Its name, also that of its export.
    pub name: String,
    /// The UUID in its superblocks, as mdadm writes it: four groups of eight hex digits with `:` between them.
    pub uuid: String,
    /// `raid0`, `raid1`, `raid4`, `raid5`, `raid6` or `raid10`.
    pub level: String,
    /// md's name of the layout; null where the level has but one.
    pub layout: Option<String>,
    /// Bytes a chunk; 0 for RAID 1, which has none.
    pub chunk_bytes: u64,
    /// Bytes the array holds.
    pub size_bytes: u64,
    /// Bytes of every member that the array uses.
    pub member_size_bytes: u64,
    /// The version of the metadata: `1.2`.
    pub metadata: String,
    /// The superblocks' count of updates.
    pub events: u64,
    /// How the array finds what to mend after a crash.
    pub consistency_policy: ConsistencyPolicy,
    /// What the array does.
    pub state: ArrayState,
    /// What it can still lose.
    pub health: Health,
    /// Where NBD clients find it; null while it is not exported.
    pub nbd_uri: Option<String>,
    /// NBD clients connected to it.
    pub connections: u64,
    /// One for each slot, in slot order.
    pub members: Vec<Member>,
    /// The devices that belong to the array and hold no slot: spares, and faulty ones whose slot another took over.
    pub spares: Vec<Spare>,
    /// What goes on in the background.
    pub sync: SyncStatus,
    /// When it was created, in seconds since 1970 (UTC).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created_unix_seconds: Option<u64>,
    /// When its superblocks were last written, in seconds since 1970 (UTC).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub updated_unix_seconds: Option<u64>,
    /// What its owner should know, a sentence each.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
    /// Sync actions are held where they are.
    #[serde(default, skip_serializing_if = "is_false")]
    pub sync_paused: bool,
    /// The settings in force; none while the array does not run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tuning: Option<Tuning>,
    /// When the last whole check or repair ended, in seconds since 1970 (UTC).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_scrub_unix_seconds: Option<u64>,
    /// The block device of this machine that it is attached as: `/dev/nbd0`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<String>,
    /// How many more members may fail, whichever they are, before data is out of reach; none while the array does not run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub redundancy: Option<u16>,
    /// What has been read and written; none while the array does not run.
    #[serde(default, skip_serializing_if = "Option::is_none", flatten)]
    pub traffic: Option<Traffic>,
    /// What the health watch has found; its sentences are among the warnings, too.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub concerns: Vec<Concern>,
}

/// Bytes since the array was started. What members are written for each byte of a client's is n/(n-1) at best with one parity,
/// n/(n-2) with two, and the number of copies without.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Traffic {
    /// Read by clients.
    pub client_read_bytes: u64,
    /// Written by clients.
    pub client_written_bytes: u64,
    /// Read from members, by whomever: clients, recovery, scrubs, and writes that need old data or parity.
    pub member_read_bytes: u64,
    /// Written to members: data and parity.
    pub member_written_bytes: u64,
}

impl Status {
    /// Whether something is going on, or about to, that changes redundancy: what `wait` waits for.
    pub fn is_busy(&self) -> bool {
        let spare_is_due = self.health == Health::Degraded
            && self
                .members
                .iter()
                .any(|member| matches!(member.state, MemberState::Missing | MemberState::Faulty))
            && self.spares.iter().any(|spare| spare.state == MemberState::Spare);
        let may = matches!(self.state, ArrayState::Clean | ArrayState::Active) && !self.sync_paused;
        may && (self.sync.action != SyncAction::Idle || spare_is_due)
    }

    /// Whether redundancy is whole: every slot is in sync, and nothing awaits a resync.
    pub fn is_whole(&self) -> bool {
        self.health == Health::Optimal
            && self.state != ArrayState::Inactive
            && !matches!(self.sync.action, SyncAction::Resync | SyncAction::Recovery)
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands it over so")]
fn is_false(value: &bool) -> bool {
    !value
}

/// A slot of an array, and who holds it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Member {
    /// The position in the array, from 0.
    pub slot: u16,
    /// The device; null where it is gone.
    pub path: Option<String>,
    /// Its state.
    pub state: MemberState,
    /// Reads that failed since the array was started.
    pub read_errors: u64,
    /// Writes that failed since the array was started.
    pub write_errors: u64,
    /// Failed reads that were mended from redundancy.
    pub corrected_errors: u64,
}

/// A device that holds no slot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Spare {
    /// Always null; there so that members and spares can be read alike.
    pub slot: Option<u16>,
    /// The device; null where it is gone.
    pub path: Option<String>,
    /// Spare, or faulty.
    pub state: MemberState,
}

/// What goes on in the background, and how far it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SyncStatus {
    /// What.
    pub action: SyncAction,
    /// Bytes of every member that are done; 0 when idle.
    pub done_bytes: u64,
    /// Bytes of every member that are to be done; 0 when idle.
    pub total_bytes: u64,
    /// Speed of late; 0 when idle.
    pub bytes_per_sec: u64,
    /// Time left at that speed; null when idle or when nobody can tell.
    pub eta_seconds: Option<u64>,
    /// Sectors that did not agree in the last or running check.
    pub mismatches: u64,
}

impl SyncStatus {
    /// Bytes that did not agree in the last or running check.
    pub const fn mismatched_bytes(&self) -> u64 {
        self.mismatches * 512
    }

    /// Nothing goes on. `mismatches` is that of the last check, 0 if there was none.
    pub const fn idle(mismatches: u64) -> SyncStatus {
        SyncStatus {
            action: SyncAction::Idle,
            done_bytes: 0,
            total_bytes: 0,
            bytes_per_sec: 0,
            eta_seconds: None,
            mismatches,
        }
    }
}

/// Declares an enum whose variants are words: the same in JSON and for people.
/// (A word is a `tt`: as a `literal` it would come to utoipa's derive in a group that it does not look into.)
macro_rules! words {
    ($(#[$about:meta])* $name:ident { $($(#[$doc:meta])* $variant:ident = $word:tt,)+ }) => {
        $(#[$about])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
        pub enum $name {
            $($(#[$doc])* #[serde(rename = $word)] $variant,)+
        }

        impl $name {
            /// The word for it, as in JSON.
            pub const fn as_str(self) -> &'static str {
                match self {
                    $($name::$variant => $word,)+
                }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(self.as_str())
            }
        }
    };
}
pub(super) use words;

words! {
    /// What an array does.
    ArrayState {
        /// Nothing was written of late; superblocks say that redundancy is right.
        Clean = "clean",
        /// Writes are under way.
        Active = "active",
        /// It takes no writes.
        ReadOnly = "read-only",
        /// It is known, but it does not run.
        Inactive = "inactive",
    }
}

words! {
    /// What an array can still lose.
    Health {
        /// Every slot is in sync.
        Optimal = "optimal",
        /// Some slot is not, but all data is there.
        Degraded = "degraded",
        /// Data is out of reach.
        Failed = "failed",
    }
}

words! {
    /// What a member is good for.
    MemberState {
        /// Its data is right.
        InSync = "in_sync",
        /// It is being filled; below some offset its data is right.
        Recovering = "recovering",
        /// It is being filled to take over from a member that still serves.
        Replacing = "replacing",
        /// It waits for a slot.
        Spare = "spare",
        /// It failed, or was said to have.
        Faulty = "faulty",
        /// Nobody holds the slot.
        Missing = "missing",
    }
}

words! {
    /// What goes on in the background.
    SyncAction {
        /// Nothing.
        Idle = "idle",
        /// Redundancy is made to agree, after creation or an unclean stop.
        Resync = "resync",
        /// A member is being filled.
        Recovery = "recovery",
        /// Redundancy is compared.
        Check = "check",
        /// Redundancy is compared and mended.
        Repair = "repair",
    }
}

words! {
    /// How an array finds what to mend after a crash.
    ConsistencyPolicy {
        /// There is nothing to mend: RAID 0.
        None = "none",
        /// Everything is resynced.
        Resync = "resync",
        /// What the write-intent bitmap names is resynced.
        Bitmap = "bitmap",
        /// The partial parity log is replayed.
        Ppl = "ppl",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example of the interface, word for word but for the line breaks.
    const EXAMPLE: &str = concat!(
        r#"{"name":"vol0","uuid":"6f1c...","level":"raid5","layout":"left-symmetric","chunk_bytes":524288,"#,
        r#""size_bytes":3221225472,"member_size_bytes":1073741824,"metadata":"1.2","events":42,"#,
        r#""consistency_policy":"bitmap","state":"active","health":"degraded","#,
        r#""nbd_uri":"nbd+unix:///vol0?socket=/run/raidd/nbd.sock","connections":1,"#,
        r#""members":[{"slot":0,"path":"/dev/loop0","state":"in_sync","read_errors":0,"write_errors":0,"#,
        r#""corrected_errors":0}],"spares":[{"slot":null,"path":"/dev/loop4","state":"spare"}],"#,
        r#""sync":{"action":"recovery","done_bytes":104857600,"total_bytes":1073741824,"#,
        r#""bytes_per_sec":209715200,"eta_seconds":5,"mismatches":0}}"#,
    );

    fn example() -> Status {
        Status {
            name: "vol0".to_owned(),
            uuid: "6f1c...".to_owned(),
            level: "raid5".to_owned(),
            layout: Some("left-symmetric".to_owned()),
            chunk_bytes: 524_288,
            size_bytes: 3_221_225_472,
            member_size_bytes: 1_073_741_824,
            metadata: "1.2".to_owned(),
            events: 42,
            consistency_policy: ConsistencyPolicy::Bitmap,
            state: ArrayState::Active,
            health: Health::Degraded,
            nbd_uri: Some("nbd+unix:///vol0?socket=/run/raidd/nbd.sock".to_owned()),
            connections: 1,
            members: vec![Member {
                slot: 0,
                path: Some("/dev/loop0".to_owned()),
                state: MemberState::InSync,
                read_errors: 0,
                write_errors: 0,
                corrected_errors: 0,
            }],
            spares: vec![Spare {
                slot: None,
                path: Some("/dev/loop4".to_owned()),
                state: MemberState::Spare,
            }],
            sync: SyncStatus {
                action: SyncAction::Recovery,
                done_bytes: 104_857_600,
                total_bytes: 1_073_741_824,
                bytes_per_sec: 209_715_200,
                eta_seconds: Some(5),
                mismatches: 0,
            },
            created_unix_seconds: None,
            updated_unix_seconds: None,
            warnings: Vec::new(),
            sync_paused: false,
            tuning: None,
            last_scrub_unix_seconds: None,
            device: None,
            redundancy: None,
            traffic: None,
            concerns: Vec::new(),
        }
    }

    #[test]
    fn status_is_the_documented_document() {
        assert_eq!(serde_json::to_string(&example()).unwrap(), EXAMPLE);
        assert_eq!(serde_json::from_str::<Status>(EXAMPLE).unwrap(), example());
    }

    #[test]
    fn waiting_is_for_what_may_still_change() {
        let recovering = example();
        assert!(recovering.is_busy() && !recovering.is_whole());
        let idle = Status { sync: SyncStatus::idle(0), ..example() };
        let vacant = |spares: Vec<Spare>| {
            let member = Member { state: MemberState::Faulty, ..idle.members[0].clone() };
            Status { members: vec![member], spares, ..idle.clone() }
        };
        assert!(vacant(idle.spares.clone()).is_busy(), "the spare is about to take over");
        assert!(!vacant(Vec::new()).is_busy());
        assert!(!Status { sync_paused: true, ..example() }.is_busy());
        let whole = Status { health: Health::Optimal, ..idle.clone() };
        assert!(!whole.is_busy() && whole.is_whole());
        let sync = SyncStatus { action: SyncAction::Resync, ..example().sync };
        assert!(!Status { sync, health: Health::Optimal, ..idle }.is_whole());
    }

    #[test]
    fn a_gone_member_and_an_idle_array_have_nulls() {
        let member = Member {
            slot: 1,
            path: None,
            state: MemberState::Missing,
            read_errors: 0,
            write_errors: 0,
            corrected_errors: 0,
        };
        assert!(
            serde_json::to_string(&member)
                .unwrap()
                .starts_with(r#"{"slot":1,"path":null,"state":"missing","#)
        );
        assert_eq!(
            serde_json::to_string(&SyncStatus::idle(0)).unwrap(),
            r#"{"action":"idle","done_bytes":0,"total_bytes":0,"bytes_per_sec":0,"eta_seconds":null,"mismatches":0}"#
        );
    }

    #[test]
    fn every_word_is_the_documented_one() {
        let words = |values: &[&str]| values.join(" ");
        assert_eq!(
            words(
                &[ArrayState::Clean, ArrayState::Active, ArrayState::ReadOnly, ArrayState::Inactive]
                    .map(ArrayState::as_str)
            ),
            "clean active read-only inactive"
        );
        assert_eq!(
            words(&[Health::Optimal, Health::Degraded, Health::Failed].map(Health::as_str)),
            "optimal degraded failed"
        );
        use MemberState as M;
        assert_eq!(
            words(&[M::InSync, M::Recovering, M::Replacing, M::Spare, M::Faulty, M::Missing].map(M::as_str)),
            "in_sync recovering replacing spare faulty missing"
        );
        use SyncAction as S;
        assert_eq!(
            words(&[S::Idle, S::Resync, S::Recovery, S::Check, S::Repair].map(S::as_str)),
            "idle resync recovery check repair"
        );
        assert_eq!(serde_json::to_string(&ArrayState::ReadOnly).unwrap(), r#""read-only""#);
    }

    #[test]
    fn later_fields_stand_behind_the_documented_ones() {
        let later =
            Status { warnings: vec!["degraded".to_owned()], created_unix_seconds: Some(7), ..example() };
        let text = serde_json::to_string(&later).unwrap();
        assert_eq!(
            text.strip_prefix(&EXAMPLE[..EXAMPLE.len() - 1]),
            Some(r#","created_unix_seconds":7,"warnings":["degraded"]}"#)
        );
    }
}
