//! The golden arrays: made by mdadm 4.2 and Linux 6.1, with what an independent parser found on them.
//!
//! `golden.tar.xz` holds `golden/manifest.json` and the members, 5 to 9 MiB each, sparse. They are unpacked once and
//! shared by all tests, so nobody may write to them: [`Array::copy`] gives members of one's own.

// Each test reads the part of the manifest that it is about.
#![allow(dead_code)]

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;

use serde::Deserialize;
use sha2::{Digest, Sha256};
use tempfile::TempDir;

/// What `manifest.json` says. Sectors are of 512 bytes; bad blocks and recovery_offset count from data_offset.
#[derive(Deserialize)]
pub struct Manifest {
    pub arrays: Vec<Array>,
}

/// An array, as its freshest members have it.
#[derive(Deserialize)]
pub struct Array {
    pub name: String,
    pub about: String,
    /// "raid5"
    pub level: String,
    pub layout: u32,
    pub chunk_sectors: u64,
    pub raid_disks: u32,
    pub component_sectors: u64,
    /// Bytes.
    pub array_size: u64,
    pub uuid: String,
    pub set_name: String,
    pub events: u64,
    pub clean: bool,
    pub content: Content,
    /// Members that are not used, by the end of their file's name, and why.
    pub left_out: BTreeMap<String, String>,
    pub members: Vec<Member>,
}

/// What is to be read from an array.
#[derive(Deserialize)]
pub struct Content {
    /// Of all its bytes, in hex.
    pub sha256: String,
    /// The same without the members of these roles, "0" or "0,1".
    #[serde(default)]
    pub without: BTreeMap<String, String>,
}

/// A member, as its own superblock has it.
#[derive(Deserialize)]
pub struct Member {
    /// "NAME/N.img"
    pub file: String,
    /// Bytes.
    pub size: u64,
    pub sha256: String,
    pub role: RoleName,
    pub dev_number: u32,
    pub events: u64,
    pub features: Vec<String>,
    pub data_offset: u64,
    pub data_size: u64,
    /// None is clean.
    pub resync_offset: Option<u64>,
    pub recovery_offset: Option<u64>,
    /// Without the unused entries at the end.
    pub dev_roles: Vec<RoleName>,
    /// (first sector, sectors)
    pub bad_blocks: Vec<(u64, u64)>,
    pub bitmap: Option<Bitmap>,
    pub ppl_current: Option<Ppl>,
}

#[derive(Deserialize, Debug, PartialEq, Eq, Clone)]
#[serde(untagged)]
pub enum RoleName {
    Slot(u16),
    /// "spare", "faulty", "journal"
    Other(String),
}

#[derive(Deserialize)]
pub struct Bitmap {
    pub uuid: String,
    pub events: u64,
    pub events_cleared: u64,
    pub sync_size: u64,
    pub state: Vec<String>,
    pub chunksize: u32,
    pub daemon_sleep: u32,
    pub write_behind: u32,
    pub sectors_reserved: u32,
    pub nodes: u32,
    pub chunks: u64,
    /// (first chunk, last chunk)
    pub dirty: Vec<(u64, u64)>,
    pub dirty_count: u64,
}

#[derive(Deserialize)]
pub struct Ppl {
    /// Sectors from the start of the log.
    pub offset: usize,
    pub signature: u32,
    pub generation: u64,
    pub entries: Vec<PplEntry>,
}

#[derive(Deserialize)]
pub struct PplEntry {
    pub data_sector: u64,
    pub pp_size: u32,
    pub data_size: u32,
    pub parity_disk: u32,
    pub checksum_ok: bool,
}

impl Array {
    /// 0, 1, 4, 5, 6, 10.
    pub fn level(&self) -> i32 {
        self.level.trim_start_matches("raid").parse().expect("a RAID level")
    }

    /// Copies of the members in a folder that goes when it is dropped, in the manifest's order. Where an image ends
    /// within a sector its copy ends with it, as the disk did that it is of.
    pub fn copy(&self) -> (TempDir, Vec<PathBuf>) {
        let dir = scratch();
        let copies = self.members.iter().map(|member| {
            let copy = dir.path().join(Path::new(&member.file).file_name().expect("a file's name"));
            fs::copy(member.path(), &copy).expect("room for a copy");
            let file = OpenOptions::new().write(true).open(&copy).expect("a copy of one's own");
            file.set_len(member.size.next_multiple_of(512)).expect("room for a sector");
            copy
        });
        let copies = copies.collect();
        (dir, copies)
    }
}

impl Member {
    /// The shared image: to read only.
    pub fn path(&self) -> PathBuf {
        unpack().join(&self.file)
    }

    /// Bytes of the shared image.
    pub fn read(&self, offset: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        let file = File::open(self.path()).expect("an unpacked member");
        file.read_exact_at(&mut bytes, offset).expect("bytes within the member");
        bytes
    }
}

/// The arrays there are.
pub fn arrays() -> &'static [Array] {
    static MANIFEST: LazyLock<Manifest> = LazyLock::new(|| {
        let text = fs::read_to_string(unpack().join("manifest.json")).expect("a manifest");
        serde_json::from_str(&text).expect("a manifest as described here")
    });
    &MANIFEST.arrays
}

/// All members of all arrays.
pub fn members() -> impl Iterator<Item = (&'static Array, &'static Member)> {
    arrays().iter().flat_map(|array| array.members.iter().map(move |member| (array, member)))
}

/// A folder for a test's own files, which goes when it is dropped.
pub fn scratch() -> TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a temporary folder")
}

/// The folder of the unpacked arrays, shared with other runs and other tests.
pub fn unpack() -> &'static Path {
    static UNPACKED: LazyLock<PathBuf> = LazyLock::new(|| {
        let archive = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/format/golden.tar.xz");
        let hash = Sha256::digest(fs::read(&archive).expect("the archive of the golden arrays"));
        let hash: String = hash[..8].iter().map(|byte| format!("{byte:02x}")).collect();
        let place = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("golden-{hash}"));
        if !place.exists() {
            let dir = scratch();
            let tar = Command::new("tar").arg("-xJf").arg(&archive).arg("-C").arg(dir.path()).status();
            let tar = tar.unwrap_or_else(|error| panic!("cannot run tar, install tar and xz: {error}"));
            assert!(tar.success(), "tar could not unpack {archive:?}; is xz installed?");
            // Another run may have been first; then its copy is as good.
            if let Err(error) = fs::rename(dir.path().join("golden"), &place) {
                assert!(place.exists(), "{error}");
            }
        }
        place
    });
    &UNPACKED
}
