//! What raidd remembers over a restart: which arrays it serves and where their members were last seen.
//!
//! One file in the state directory, replaced as a whole (written beside, synced, renamed), so that a crash leaves the
//! old or the new one. The truth about an array is in its superblocks; this only says where to look.
//!
//! Whatever is remembered is also kept from mdadm (`mdadm_conf`): its line is there before the array is remembered.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};

use super::mdadm_conf::MdadmConf;
use super::replace::replace;
use crate::api::{Status, Tuning};

/// One array.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedArray {
    /// As mdadm writes it.
    pub uuid: String,
    /// Its name here.
    pub name: String,
    /// Where its members were last seen.
    pub members: Vec<String>,
    /// Whether it is to run. A stopped one is only remembered, for `assemble --scan`.
    pub start: bool,
    /// Whether it was assembled with --read-only.
    #[serde(default)]
    pub read_only: bool,
    /// Whether the operator made it read-only while it ran.
    #[serde(default)]
    pub protected: bool,
    /// How it was tuned; what is not named is as by default.
    #[serde(default)]
    pub tuning: Tuning,
    /// When its last whole scrub ended, in seconds since 1970.
    #[serde(default)]
    pub last_scrub_unix_seconds: Option<u64>,
    /// When the operator stopped a scrub, in seconds since 1970: a scheduled one is put off by as much.
    #[serde(default)]
    pub scrub_put_off_unix_seconds: Option<u64>,
    /// The device of the kernel's that it is to be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attached: Option<SavedDevice>,
    /// What was last known of it, to be shown while it cannot be started.
    pub last: Status,
}

/// How an array is attached.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedDevice {
    /// The number in `/dev/nbdN`, if it is free.
    pub index: u32,
    /// Connections between the kernel and raidd.
    pub connections: u32,
    /// How long I/O waits for a raidd that is away, in seconds.
    pub wait_seconds: u64,
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct Document {
    version: u32,
    arrays: Vec<SavedArray>,
}

const VERSION: u32 = 1;

/// The state directory; this process's alone while it lives.
#[derive(Debug)]
pub struct StateDir {
    file: PathBuf,
    document: Document,
    mdadm: MdadmConf,
    _lock: Flock<File>,
}

impl StateDir {
    /// Takes a state directory, making it if it is missing, and keeps from mdadm what is remembered in it. An error is one
    /// line: what, why, what to do.
    pub fn open(path: &Path, mdadm: MdadmConf) -> Result<StateDir, String> {
        let failed = |what: &str, error: io::Error| {
            format!(
                "state directory {}: cannot {what}: {error}; choose another with --state-dir",
                path.display()
            )
        };
        std::fs::create_dir_all(path).map_err(|error| failed("make it", error))?;
        let lock =
            OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(path.join("lock"));
        let lock = lock.map_err(|error| failed("open its lock", error))?;
        let lock = Flock::lock(lock, FlockArg::LockExclusiveNonblock).map_err(|_| {
            format!(
                "state directory {} is used by another raidd: stop that one, or choose another",
                path.display()
            )
        })?;
        let file = path.join("arrays.json");
        let document = match std::fs::read(&file) {
            Ok(bytes) => serde_json::from_slice(&bytes).map_err(|error| {
                failed("make sense of arrays.json, move it away", io::Error::other(error))
            })?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Document::default(),
            Err(error) => return Err(failed("read arrays.json", error)),
        };
        let state = StateDir { file, document, mdadm, _lock: lock };
        state.keep_from_mdadm();
        Ok(state)
    }

    /// All that is remembered.
    pub fn arrays(&self) -> &[SavedArray] {
        &self.document.arrays
    }

    /// Remembers an array, instead of what was remembered of it.
    pub fn put(&mut self, array: SavedArray) -> io::Result<()> {
        self.document.arrays.retain(|old| old.uuid != array.uuid);
        self.document.arrays.push(array);
        self.write()
    }

    /// Changes what is remembered of an array, if it is known.
    pub fn update(&mut self, uuid: &str, change: impl FnOnce(&mut SavedArray)) -> io::Result<()> {
        let Some(array) = self.document.arrays.iter_mut().find(|array| array.uuid == uuid) else {
            return Ok(());
        };
        change(array);
        self.write()
    }

    /// Forgets an array.
    pub fn forget(&mut self, uuid: &str) -> io::Result<()> {
        self.document.arrays.retain(|array| array.uuid != uuid);
        self.write()
    }

    /// From now on mdadm may have this array, though it is remembered yet. An error is one line.
    pub fn let_mdadm_have(&self, uuid: &str) -> Result<(), String> {
        self.mdadm.ignore(self.uuids().filter(|known| *known != uuid))
    }

    /// Keeps all that is remembered from mdadm. What goes wrong is said, and stops nothing that works.
    pub fn keep_from_mdadm(&self) {
        if let Err(why) = self.mdadm.ignore(self.uuids()) {
            tracing::error!("{why}");
        }
    }

    fn uuids(&self) -> impl Iterator<Item = &str> {
        self.document.arrays.iter().map(|array| array.uuid.as_str())
    }

    fn write(&mut self) -> io::Result<()> {
        self.keep_from_mdadm();
        self.document.version = VERSION;
        replace(&self.file, &serde_json::to_vec_pretty(&self.document)?)
    }
}
