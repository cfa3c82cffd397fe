//! Keeping what is before a member's data, superblock, bitmap and logs, in a file, and writing it back: `dump` and `restore`.
//!
//! Invariants:
//! - A dump is a sparse file of the device's size, so that `examine` and mdadm read it like the device.
//! - Nothing at or behind the beginning of the data is read or written.
//! - A restore writes the superblock last, once all else is on the device: one that is cut short leaves a device that has the old
//!   superblock, or what can be restored again.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use raidd::md::{SUPERBLOCK_BYTES, SUPERBLOCK_OFFSET_BYTES, Superblock};

use crate::member::{self, Seen};

/// What is copied at a time. What is all zero is left out of the file.
const STEP_BYTES: u64 = 64 << 10;

/// A member's metadata.
struct Metadata {
    seen: Seen,
    superblock: Superblock,
    /// Where the data begins.
    end_bytes: u64,
}

impl Metadata {
    fn of(path: &Path) -> Result<Metadata, String> {
        let wrong = |what: String| format!("{}: {what}", path.display());
        let seen = member::look(path).map_err(wrong)?;
        let superblock = Superblock::parse(&seen.header.bytes).map_err(|error| wrong(error.to_string()))?;
        let end_bytes = superblock.data_offset.bytes();
        let behind_superblock = SUPERBLOCK_OFFSET_BYTES + SUPERBLOCK_BYTES as u64;
        if !(behind_superblock..=seen.header.device_bytes).contains(&end_bytes) {
            return Err(wrong("its data is said to begin where it cannot: was it truncated?".to_owned()));
        }
        Ok(Metadata { seen, superblock, end_bytes })
    }

    /// Its parts: where each begins, and what is there.
    fn parts(&self) -> impl Iterator<Item = Result<(u64, Vec<u8>), String>> {
        (0..self.end_bytes).step_by(STEP_BYTES as usize).map(|at| {
            let len = STEP_BYTES.min(self.end_bytes - at);
            Ok((at, self.seen.read(at, len)?))
        })
    }
}

/// Keeps the metadata of a member in a file of its name in `dir`, which must not be there yet. An error is a line.
pub fn dump(dir: &Path, device: &Path) -> Result<PathBuf, String> {
    let metadata = Metadata::of(device)?;
    let name = device.file_name().ok_or_else(|| format!("{}: it has no name", device.display()))?;
    let path = dir.join(name);
    let wrong = |error: std::io::Error| format!("{}: {error}", path.display());
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path).map_err(wrong)?;
    let kept = keep(&metadata, &file)
        .and_then(|()| File::open(dir).and_then(|dir| dir.sync_all()).map_err(|error| error.to_string()));
    kept.map_err(|what| format!("{}: {what}; what is in it is of no use", path.display()))?;
    Ok(path)
}

fn keep(metadata: &Metadata, file: &File) -> Result<(), String> {
    let wrong = |error: std::io::Error| error.to_string();
    file.set_len(metadata.seen.header.device_bytes).map_err(wrong)?;
    for part in metadata.parts() {
        let (at, bytes) = part?;
        if bytes.iter().any(|&byte| byte != 0) {
            file.write_all_at(&bytes, at).map_err(wrong)?;
        }
    }
    file.sync_all().map_err(wrong)
}

/// Writes kept metadata back to the device that it was of. An error is a line, and then nothing was written, unless it says so.
pub fn restore(file: &Path, device: &Path, force: bool) -> Result<(), String> {
    let kept = Metadata::of(file)?;
    let wrong = |what: String| format!("{}: {what}", device.display());
    let held = member::hold(device).map_err(wrong)?;
    let present = held.read().map_err(wrong)?;
    let wanted_bytes = kept.seen.header.device_bytes;
    if present.device_bytes != wanted_bytes {
        return Err(wrong(format!(
            "it has {} bytes, but {} was made of a device of {wanted_bytes}: name the right one",
            present.device_bytes,
            file.display()
        )));
    }
    let doubt = match Superblock::parse(&present.bytes) {
        Err(_) => Some("it has no superblock that says which member it is".to_owned()),
        Ok(there)
            if (there.set_uuid, there.device_uuid)
                != (kept.superblock.set_uuid, kept.superblock.device_uuid) =>
        {
            Some(format!("it is another member, of {}", there.name()))
        }
        Ok(there) if there.events > kept.superblock.events => {
            Some("what is there is newer: the array has been in use since the dump".to_owned())
        }
        Ok(_) => None,
    };
    if let Some(doubt) = doubt.filter(|_| !force) {
        return Err(wrong(format!("{doubt}: restore it all the same with --force, if you are sure")));
    }
    let half = |what: String| wrong(format!("{what}; it has been written in part, restore it again"));
    let superblock = SUPERBLOCK_OFFSET_BYTES as usize..SUPERBLOCK_OFFSET_BYTES as usize + SUPERBLOCK_BYTES;
    for part in kept.parts() {
        let (at, bytes) = part.map_err(half)?;
        if at == 0 {
            // All of it lies in the first part.
            let end = superblock.end.min(bytes.len());
            held.write(0, &bytes[..superblock.start]).map_err(half)?;
            held.write(end as u64, &bytes[end..]).map_err(half)?;
        } else {
            held.write(at, &bytes).map_err(half)?;
        }
    }
    held.sync().map_err(half)?;
    held.write(SUPERBLOCK_OFFSET_BYTES, &kept.seen.header.bytes).map_err(half)?;
    held.sync().map_err(half)
}

const _: () = assert!(SUPERBLOCK_OFFSET_BYTES + SUPERBLOCK_BYTES as u64 <= STEP_BYTES);
