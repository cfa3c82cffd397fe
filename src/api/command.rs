//! What can be asked of raidd, and what it answers.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::attach::AttachArray;
use super::text::parse_level;
use super::{
    ConsistencyPolicy, DaemonStatus, Fault, Findings, GrowArray, Stats, Status, Tuning, parse_uuid,
    valid_name,
};

/// Stands for a member that is not there, in the devices of [`CreateArray`].
pub const MISSING: &str = "missing";

/// The whole control surface: one variant for each thing that can be asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Command {
    /// Makes a new array, starts and exports it. Legal while no array has the name. Answers [`Reply::Array`].
    Create(CreateArray),
    /// Starts an array from its superblocks. Legal while it does not run. Answers [`Reply::Array`].
    Assemble(AssembleArray),
    /// Looks through the block devices and the known member paths and starts every array that can be started. Always
    /// legal. Answers [`Reply::Arrays`]: those that it started.
    AssembleScan,
    /// Flushes an array, marks it clean and lets its members go. Legal while no client is connected, or with `force`; with
    /// `release` also where it does not run, but is remembered. Answers [`Reply::Done`].
    Stop {
        /// The array.
        name: String,
        /// Disconnects the clients first.
        force: bool,
        /// Forgets it, too, so that mdadm and the kernel may take it.
        #[serde(default)]
        release: bool,
    },
    /// What is there. Always legal. Answers [`Reply::Arrays`], in the order of the names.
    List,
    /// One array. Legal where there is one of this name. Answers [`Reply::Array`].
    Status {
        /// The array.
        name: String,
    },
    /// Treats a member as failed. Legal while the array can do without it. Answers [`Reply::Array`].
    Fail {
        /// The array.
        name: String,
        /// The member's path.
        device: String,
    },
    /// Lets go of a faulty member or a spare. Legal while the array is not read-only. Answers [`Reply::Array`].
    Remove {
        /// The array.
        name: String,
        /// The member's path.
        device: String,
    },
    /// Makes a device a member: a former one is caught up by the bitmap where that is possible, any other becomes a
    /// spare, which takes over where a slot is vacant. Legal while the array is not read-only. Answers [`Reply::Array`].
    Add {
        /// The array.
        name: String,
        /// The device's path.
        device: String,
    },
    /// Takes a former member back, caught up by the bitmap. Legal while its slot is vacant and the array is not
    /// read-only. Answers [`Reply::Array`].
    ReAdd {
        /// The array.
        name: String,
        /// The device's path.
        device: String,
    },
    /// Fills a device with what a member holds, which serves until then. Legal while the array is not read-only.
    /// Answers [`Reply::Array`].
    Replace {
        /// The array.
        name: String,
        /// The path of a member that is in sync.
        old: String,
        /// The path of a spare, or of a device that is added first.
        new: String,
    },
    /// Begins or stops a scrub. Legal where the array has redundancy and is not read-only. Answers [`Reply::Array`].
    Scrub {
        /// The array.
        name: String,
        /// What to do.
        scrub: Scrub,
    },
    /// What scrubs found. Legal while the array runs. Answers [`Reply::Findings`].
    Findings {
        /// The array.
        name: String,
    },
    /// What an array and its members have done since it was started. Legal while it runs. Answers [`Reply::Stats`].
    Stats {
        /// The array.
        name: String,
    },
    /// What the daemon itself is and does. Always legal. Answers [`Reply::Daemon`].
    Daemon,
    /// Takes no more writes, flushes the array and marks it clean; also after a restart. Legal while the array runs. Answers
    /// [`Reply::Array`].
    ReadOnly {
        /// The array.
        name: String,
    },
    /// Takes that back. Legal where an array is read-only for no other reason. Answers [`Reply::Array`].
    ReadWrite {
        /// The array.
        name: String,
    },
    /// Holds the sync action where it is. Legal while the array runs. Answers [`Reply::Array`].
    Pause {
        /// The array.
        name: String,
    },
    /// Lets the sync action go on. Legal while the array runs. Answers [`Reply::Array`].
    Resume {
        /// The array.
        name: String,
    },
    /// Changes settings, now and for every later start. Legal while the array runs. Answers [`Reply::Array`].
    Tune {
        /// The array.
        name: String,
        /// The settings to change.
        tuning: Tuning,
    },
    /// Makes it larger, of another number of copies, or one with or without a bitmap, with its clients waiting for a moment.
    /// Legal while redundancy is whole, nothing is synced, and the array takes writes. Answers [`Reply::Array`].
    Grow {
        /// The array.
        name: String,
        /// Into what.
        how: GrowArray,
    },
    /// Makes it a block device of this machine's kernel, now and after every later start. Legal while the array runs and is
    /// not attached. Answers [`Reply::Array`].
    Attach {
        /// The array.
        name: String,
        /// How.
        how: AttachArray,
    },
    /// Takes that device away. Legal where nobody uses it, unless forced; also while the array does not run. Answers
    /// [`Reply::Done`].
    Detach {
        /// The array.
        name: String,
        /// Also a device in use: whoever does gets I/O errors.
        force: bool,
    },
    /// Makes something go wrong with a member. Legal only where raidd was started for that. Answers [`Reply::Array`].
    Inject {
        /// The array.
        name: String,
        /// The member's path.
        device: String,
        /// What.
        fault: Fault,
    },
}

/// What to do about scrubbing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scrub {
    /// Look for redundancy that disagrees; go on where the last one was stopped.
    Check,
    /// The same, and mend it.
    Repair,
    /// Stop; the next one goes on from there.
    Stop,
}

impl Command {
    /// The array that it is about, where it is about one that has a name.
    pub fn array(&self) -> Option<&str> {
        match self {
            Command::Create(request) => Some(&request.name),
            Command::Assemble(request) => request.name.as_deref(),
            Command::AssembleScan | Command::List | Command::Daemon => None,
            Command::Stop { name, .. }
            | Command::Status { name }
            | Command::Fail { name, .. }
            | Command::Remove { name, .. }
            | Command::Add { name, .. }
            | Command::ReAdd { name, .. }
            | Command::Replace { name, .. }
            | Command::Scrub { name, .. }
            | Command::Findings { name }
            | Command::Stats { name }
            | Command::ReadOnly { name }
            | Command::ReadWrite { name }
            | Command::Pause { name }
            | Command::Resume { name }
            | Command::Tune { name, .. }
            | Command::Grow { name, .. }
            | Command::Attach { name, .. }
            | Command::Detach { name, .. }
            | Command::Inject { name, .. } => Some(name),
        }
    }
}

/// What a [`Command`] is answered with when it was done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// One array.
    Array(Box<Status>),
    /// Several arrays.
    Arrays(Vec<Status>),
    /// What scrubs found.
    Findings(Findings),
    /// What an array has done.
    Stats(Box<Stats>),
    /// What the daemon is and does.
    Daemon(DaemonStatus),
    /// Nothing to say.
    Done,
}

/// A new array.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateArray {
    /// What it is called; also the name of its export. See [`valid_name`].
    pub name: String,
    /// `0`, `1`, `4`, `5`, `6` or `10`, with or without `raid` before it. See [`CreateArray::level_number`].
    #[schema(pattern = "^(raid)?(0|1|4|5|6|10)$", example = "raid5")]
    pub level: String,
    /// Bytes a chunk. Default: 128 KiB where there is parity, else 512 KiB.
    #[serde(default)]
    pub chunk_bytes: Option<u64>,
    /// md's name of the layout: `left-symmetric`, `n2`, ... Default: left-symmetric for RAID 5 and 6, near 2 for RAID 10.
    #[serde(default)]
    pub layout: Option<String>,
    /// Bytes used of every member. Default: all that the smallest has.
    #[serde(default)]
    pub size_bytes: Option<u64>,
    /// Default: internal, from level 1 up, unless PPL was asked for.
    #[serde(default)]
    pub bitmap: Option<BitmapChoice>,
    /// How the array finds what to mend after a crash. Default: as `bitmap` says.
    #[serde(default)]
    pub consistency_policy: Option<ConsistencyPolicy>,
    /// How redundancy comes to be right at first.
    #[serde(default)]
    pub init: Init,
    /// Paths of spares.
    #[serde(default)]
    pub spares: Vec<String>,
    /// Takes members that carry a superblock, a filesystem or a partition table, and unusual numbers of them.
    #[serde(default)]
    pub force: bool,
    /// Paths of the members in slot order; [`MISSING`] leaves a slot empty.
    pub devices: Vec<String>,
}

/// An array to start from its superblocks. Either the members or the array must be named.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AssembleArray {
    /// What it is to be called here. Default: the name in its superblocks.
    #[serde(default)]
    pub name: Option<String>,
    /// Only members of the array with this UUID; see [`parse_uuid`] for how it may be written. With `update_uuid`: the new one.
    #[serde(default)]
    pub uuid: Option<String>,
    /// Starts it although it is dirty and degraded.
    #[serde(default)]
    pub force: bool,
    /// Starts it so that nothing is written to any member.
    #[serde(default)]
    pub read_only: bool,
    /// Writes `name` into its superblocks, as `mdadm --assemble --update=name` does.
    #[serde(default)]
    pub update_name: bool,
    /// Gives the array another UUID, `uuid` or a random one, as `mdadm --assemble --update=uuid` does. All its members must be
    /// named; `force` gives up those that are not.
    #[serde(default)]
    pub update_uuid: bool,
    /// Paths of the members. None: the array is one that raidd knows by its name, or is looked for by its UUID.
    #[serde(default)]
    pub devices: Vec<String>,
}

/// Whether an array has a write-intent bitmap.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum BitmapChoice {
    /// On every member, beside the superblock.
    Internal,
    /// None: after a crash everything is resynced.
    None,
}

/// How the redundancy of a new array comes to be right.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Init {
    /// By a resync in the background, as md does it.
    #[default]
    Resync,
    /// By zeroing the members, where they can do that fast.
    Zero,
    /// The caller says that it is right already.
    AssumeClean,
}

impl CreateArray {
    /// The level as md counts it: 0, 1, 4, 5, 6 or 10. An error is one line for people.
    pub fn level_number(&self) -> Result<u8, String> {
        parse_level(&self.level)
    }

    /// Refuses what can be seen to be wrong without looking at any device: the name, the level, options that exclude
    /// each other, too few members. An error is one line for people.
    pub fn check(&self) -> Result<(), String> {
        valid_name(&self.name)?;
        let level = self.level_number()?;
        self.check_consistency(level)?;
        self.check_devices(level)
    }

    fn check_consistency(&self, level: u8) -> Result<(), String> {
        use {BitmapChoice as B, ConsistencyPolicy as P};
        match (self.bitmap, self.consistency_policy) {
            (Some(B::Internal), Some(P::Ppl)) => {
                Err("an array has a bitmap or a PPL, not both: leave one of the two options out".to_owned())
            }
            (Some(B::Internal), Some(P::Resync)) => {
                Err("policy resync means no bitmap, but an internal one is asked for: leave one of the two options out"
                    .to_owned())
            }
            (Some(B::None), Some(P::Bitmap)) => {
                Err("policy bitmap needs a bitmap, but none is asked for: leave one of the two options out".to_owned())
            }
            (_, Some(P::None)) if level > 0 => {
                Err(format!("RAID {level} has redundancy to keep: choose the policy bitmap, ppl or resync"))
            }
            (_, Some(P::Ppl)) if level != 5 => {
                Err(format!("PPL is for RAID 5, not for RAID {level}: leave the policy out, or make a RAID 5"))
            }
            (Some(B::Internal), _) | (_, Some(P::Bitmap | P::Ppl | P::Resync)) if level == 0 => {
                Err("RAID 0 has no redundancy to keep: leave bitmap and consistency policy out".to_owned())
            }
            _ => Ok(()),
        }
    }

    fn check_devices(&self, level: u8) -> Result<(), String> {
        let count = self.devices.len();
        let least = match level {
            0 | 1 if self.force => 1,
            6 => 4,
            _ => 2,
        };
        if count < least {
            let hint = if level <= 1 && count == 1 { ", or force it" } else { "" };
            return Err(format!("RAID {level} needs {least} members at least, not {count}: name more{hint}"));
        }
        let present = self.devices.iter().filter(|device| *device != MISSING).count();
        let lost_at_most = match level {
            0 => 0,
            1 | 10 => count - 1, // RAID 10 by its layout, which is looked at later
            6 => 2,
            _ => 1,
        };
        if present + lost_at_most < count {
            return Err(format!(
                "RAID {level} of {count} members needs {} of them, but only {present} are there: name more devices in the \
                 place of `{MISSING}`",
                count - lost_at_most
            ));
        }
        if self.spares.iter().any(|spare| spare == MISSING) {
            return Err(format!("a spare cannot be `{MISSING}`: leave it out"));
        }
        check_paths(self.devices.iter().chain(&self.spares).filter(|device| *device != MISSING))
    }
}

impl AssembleArray {
    /// Refuses what can be seen to be wrong without looking at any device. An error is one line for people.
    pub fn check(&self) -> Result<(), String> {
        if let Some(name) = &self.name {
            valid_name(name)?;
        }
        if let Some(uuid) = &self.uuid {
            parse_uuid(uuid)?;
        }
        if self.update_name && self.name.is_none() {
            return Err("nothing says what its new name is: write it before the devices".to_owned());
        }
        if self.update_name && self.read_only {
            return Err("a new name cannot be written without writing: leave read-only out".to_owned());
        }
        if self.update_name && self.devices.is_empty() && self.uuid.is_none() {
            return Err(
                "its new name does not say which array it is: name its devices or its UUID".to_owned()
            );
        }
        if self.update_uuid && self.read_only {
            return Err("a new UUID cannot be written without writing: leave read-only out".to_owned());
        }
        if self.update_uuid && self.devices.is_empty() {
            return Err("a new UUID is for members that are named: name all devices of the array".to_owned());
        }
        if self.devices.is_empty() && self.name.is_none() && self.uuid.is_none() {
            return Err(
                "nothing says what to assemble: name the members, the array or its UUID, or scan".to_owned()
            );
        }
        check_paths(self.devices.iter())
    }
}

/// Refuses a path that does not mean the same to everybody. An error is one line for people.
pub fn check_path(device: &str) -> Result<(), String> {
    if !device.starts_with('/') || device.contains('\0') {
        return Err(format!(
            "device {device:?} is not an absolute path: write it from the root, like /dev/sdb"
        ));
    }
    Ok(())
}

/// Every device once, and by a path that means the same to everybody.
fn check_paths<'a>(devices: impl Iterator<Item = &'a String>) -> Result<(), String> {
    let mut seen = std::collections::HashSet::new();
    for device in devices {
        check_path(device)?;
        if !seen.insert(device) {
            return Err(format!("device {device} is named twice: name every device once"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn create(level: &str, devices: &[&str]) -> CreateArray {
        CreateArray {
            name: "vol0".to_owned(),
            level: level.to_owned(),
            chunk_bytes: None,
            layout: None,
            size_bytes: None,
            bitmap: None,
            consistency_policy: None,
            init: Init::Resync,
            spares: Vec::new(),
            force: false,
            devices: devices.iter().map(|device| (*device).to_owned()).collect(),
        }
    }

    #[test]
    fn a_short_create_document_is_enough() {
        let text = r#"{"name":"vol0","level":"raid5","devices":["/a","missing","/c"]}"#;
        let parsed: CreateArray = serde_json::from_str(text).unwrap();
        assert_eq!(
            parsed,
            CreateArray { level: "raid5".to_owned(), ..create("5", &["/a", "missing", "/c"]) }
        );
        assert_eq!(parsed.check(), Ok(()));
        assert_eq!(parsed.level_number(), Ok(5));
    }

    #[test]
    fn a_misspelt_field_is_an_error() {
        let text = r#"{"name":"vol0","level":"5","devices":[],"chunk":4096}"#;
        assert!(serde_json::from_str::<CreateArray>(text).unwrap_err().to_string().contains("`chunk`"));
    }

    #[test]
    fn words_are_written_as_on_the_command_line() {
        assert_eq!(serde_json::to_string(&Init::AssumeClean).unwrap(), r#""assume-clean""#);
        assert_eq!(serde_json::to_string(&BitmapChoice::Internal).unwrap(), r#""internal""#);
        assert_eq!(serde_json::to_string(&ConsistencyPolicy::Ppl).unwrap(), r#""ppl""#);
    }

    #[test]
    fn too_few_members_are_refused() {
        for (level, devices, fragment) in [
            ("0", &["/a"][..], "RAID 0 needs 2 members at least, not 1: name more, or force it"),
            ("6", &["/a", "/b", "/c"], "RAID 6 needs 4 members at least, not 3: name more"),
            ("5", &["/a", "missing", "missing"], "needs 2 of them, but only 1 are there"),
            ("0", &["/a", "missing"], "needs 2 of them"),
            ("1", &["missing", "missing"], "needs 1 of them, but only 0"),
            ("5", &["/a", "/b", "/a"], "named twice"),
            ("5", &["/a", "/b", "c"], "not an absolute path"),
            ("7", &["/a", "/b"], "level"),
        ] {
            let error = create(level, devices).check().unwrap_err();
            assert!(error.contains(fragment), "{level} {devices:?}: {error}");
            assert!(!error.contains('\n'));
        }
        let forced = CreateArray { force: true, ..create("1", &["/a"]) };
        assert_eq!(forced.check(), Ok(()));
        assert_eq!(create("6", &["/a", "missing", "/c", "missing"]).check(), Ok(()));
    }

    #[test]
    fn options_that_exclude_each_other_are_refused() {
        let devices = &["/a", "/b", "/c", "/d"][..];
        let with = |level, bitmap, policy| CreateArray {
            bitmap,
            consistency_policy: policy,
            ..create(level, devices)
        };
        use {BitmapChoice as B, ConsistencyPolicy as P};
        assert!(with("5", Some(B::Internal), Some(P::Ppl)).check().is_err());
        assert!(with("5", Some(B::None), Some(P::Bitmap)).check().is_err());
        assert!(with("5", Some(B::Internal), Some(P::Resync)).check().is_err());
        assert!(with("6", None, Some(P::Ppl)).check().is_err());
        assert!(with("0", Some(B::Internal), None).check().is_err());
        assert!(with("5", None, Some(P::None)).check().is_err());
        for good in [
            with("5", Some(B::None), Some(P::Ppl)),
            with("5", Some(B::Internal), Some(P::Bitmap)),
            with("0", Some(B::None), None),
            with("10", Some(B::None), Some(P::Resync)),
        ] {
            assert_eq!(good.check(), Ok(()), "{good:?}");
        }
    }

    #[test]
    fn assembling_needs_something_to_go_by() {
        let request = AssembleArray { devices: vec!["/dev/sda".to_owned()], ..AssembleArray::default() };
        assert_eq!(request.check(), Ok(()));
        assert!(AssembleArray::default().check().unwrap_err().contains("what to assemble"));
        let by_name = AssembleArray { name: Some("vol0".to_owned()), ..AssembleArray::default() };
        assert_eq!(by_name.check(), Ok(()));
        let bad = AssembleArray { uuid: Some("6f1c".to_owned()), ..request.clone() };
        assert!(bad.check().unwrap_err().contains("UUID"));

        let another = AssembleArray { update_uuid: true, ..request };
        assert_eq!(another.check(), Ok(()));
        let unwritten = AssembleArray { read_only: true, ..another.clone() };
        assert!(unwritten.check().unwrap_err().contains("without writing"));
        let unnamed = AssembleArray {
            devices: Vec::new(),
            uuid: Some("0".repeat(32)),
            name: Some("vol0".to_owned()),
            ..another
        };
        assert!(unnamed.check().unwrap_err().contains("all devices"));
    }
}
