//! Replacing a small file as a whole: written beside it, synced, renamed. A crash leaves the old one or the new one, and who
//! reads it never sees half of it.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Makes this the content of a file, whether it is there already or not; everybody may read it.
pub fn replace(file: &Path, bytes: &[u8]) -> io::Result<()> {
    let folder = file.parent().ok_or(ErrorKind::InvalidInput)?;
    let mut beside = file.as_os_str().to_owned();
    beside.push(".new");
    let beside = PathBuf::from(beside);
    let mut new = OpenOptions::new().create(true).write(true).truncate(true).mode(0o644).open(&beside)?;
    new.write_all(bytes)?;
    new.sync_all()?;
    std::fs::rename(&beside, file)?;
    // The rename itself is durable once the folder is.
    File::open(folder)?.sync_all()
}
