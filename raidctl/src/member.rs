//! A member device opened without a daemon: a block device or a plain file.
//!
//! Invariants:
//! - Nothing else is opened: no folder, no terminal, no pipe (which could wait for ever).
//! - A [`Held`] member is in nobody else's use while it is held: a block device is open exclusively, a file is locked.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg, OFlag};
use raidd::md::{SUPERBLOCK_BYTES, SUPERBLOCK_OFFSET_BYTES};

/// What is read of a member.
pub struct Header {
    /// The bytes where a superblock would be; fewer where the device ends.
    pub bytes: Vec<u8>,
    /// Bytes of the device.
    pub device_bytes: u64,
}

/// A member that is only looked at.
pub struct Seen {
    file: File,
    /// What was read of it.
    pub header: Header,
}

/// Reads where a superblock would be. An error is what is wrong, without the path.
pub fn look(path: &Path) -> Result<Seen, String> {
    let file = open(path, OpenOptions::new().read(true), OFlag::empty())?;
    Ok(Seen { header: header(&file)?, file })
}

impl Seen {
    /// Reads some of its metadata.
    pub fn read(&self, offset_bytes: u64, len_bytes: u64) -> Result<Vec<u8>, String> {
        let is_there = offset_bytes.checked_add(len_bytes).is_some_and(|end| end <= self.header.device_bytes);
        if !is_there {
            return Err("it is said to lie outside of the device".to_owned());
        }
        let mut bytes = vec![0; usize::try_from(len_bytes).map_err(|error| error.to_string())?];
        let read = self.file.read_exact_at(&mut bytes, offset_bytes);
        read.map_err(|error| format!("it cannot be read: {error}"))?;
        Ok(bytes)
    }
}

/// A member that nobody else uses.
pub struct Held {
    file: Flock<File>,
}

/// Opens a member for writing, if nobody else uses it. An error is what is wrong, without the path.
pub fn hold(path: &Path) -> Result<Held, String> {
    let is_block = std::fs::metadata(path).is_ok_and(|found| found.file_type().is_block_device());
    let exclusive = if is_block { OFlag::O_EXCL } else { OFlag::empty() };
    let file = open(path, OpenOptions::new().read(true).write(true), exclusive)?;
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(file) => Ok(Held { file }),
        Err((_, Errno::EWOULDBLOCK)) => Err(IN_USE.to_owned()),
        Err((_, errno)) => Err(format!("cannot be locked: {}", errno.desc())),
    }
}

const IN_USE: &str = "in use: stop the array it is a member of, or unmount it, first";

impl Held {
    /// Reads where a superblock would be.
    pub fn read(&self) -> Result<Header, String> {
        header(&self.file)
    }

    /// Writes some of its metadata.
    pub fn write(&self, offset_bytes: u64, bytes: &[u8]) -> Result<(), String> {
        self.file.write_all_at(bytes, offset_bytes).map_err(|error| format!("cannot be written: {error}"))
    }

    /// Waits until all that was written is on the device.
    pub fn sync(&self) -> Result<(), String> {
        self.file.sync_all().map_err(|error| format!("cannot be flushed: {error}"))
    }

    /// Overwrites the superblock, and waits until that is on the device.
    pub fn zero_superblock(&self) -> Result<(), String> {
        self.file
            .write_all_at(&[0; SUPERBLOCK_BYTES], SUPERBLOCK_OFFSET_BYTES)
            .and_then(|()| self.file.sync_all())
            .map_err(|error| format!("cannot be written: {error}"))
    }
}

fn open(path: &Path, options: &mut OpenOptions, flags: OFlag) -> Result<File, String> {
    // Without O_NONBLOCK a pipe would be waited for; disks and files do not mind.
    let file = options
        .custom_flags((flags | OFlag::O_NONBLOCK | OFlag::O_NOCTTY).bits())
        .open(path)
        .map_err(|error| match error.raw_os_error().map(Errno::from_raw) {
            Some(Errno::EBUSY | Errno::ETXTBSY) => IN_USE.to_owned(),
            Some(Errno::EISDIR) => "a folder, neither a block device nor a plain file".to_owned(),
            Some(errno) => format!("cannot be opened: {}", errno.desc()),
            None => format!("cannot be opened: {error}"),
        })?;
    let found = file.metadata().map_err(|error| format!("cannot be looked at: {error}"))?.file_type();
    if !found.is_file() && !found.is_block_device() {
        return Err("neither a block device nor a plain file".to_owned());
    }
    Ok(file)
}

fn header(mut file: &File) -> Result<Header, String> {
    let unreadable = |error| format!("cannot be read: {error}");
    let device_bytes = file.seek(SeekFrom::End(0)).map_err(unreadable)?;
    file.seek(SeekFrom::Start(SUPERBLOCK_OFFSET_BYTES)).map_err(unreadable)?;
    let mut bytes = Vec::with_capacity(SUPERBLOCK_BYTES);
    file.take(SUPERBLOCK_BYTES as u64).read_to_end(&mut bytes).map_err(unreadable)?;
    Ok(Header { bytes, device_bytes })
}
