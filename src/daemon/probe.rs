//! What is on a device, before it is made a member or taken for one.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use super::attach::is_own_device;
use super::patience;
use crate::md::{SUPERBLOCK_BYTES, SUPERBLOCK_OFFSET_BYTES, Superblock};

/// What libblkid finds on a device: a filesystem, a superblock, a partition table. None: nothing. An error is one line.
pub fn contents(path: &Path) -> Result<Option<String>, String> {
    patience::ask(path, Duration::ZERO, ask_blkid).map_err(|silent| silent.to_string())?
}

fn ask_blkid(path: &Path) -> Result<Option<String>, String> {
    // blkid is where only root has it in the path.
    let programs = ["blkid", "/usr/sbin/blkid", "/sbin/blkid"];
    let run = |program| Command::new(program).args(["-p", "-o", "export"]).arg("--").arg(path).output();
    let Some(output) = programs.into_iter().find_map(|program| run(program).ok()) else {
        return Err(format!(
            "{}: cannot tell whether it holds anything without blkid: install util-linux, or use --force",
            path.display()
        ));
    };
    let text = String::from_utf8_lossy(&output.stdout);
    let value = |key: &str| text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
    match output.status.code() {
        Some(0) => {
            let kind = value("TYPE").map(|kind| format!("a superblock of type {kind}"));
            let table = value("PTTYPE").map(|kind| format!("a partition table ({kind})"));
            Ok(Some(kind.or(table).unwrap_or_else(|| "something that blkid knows".into())))
        }
        Some(2) => Ok(None),
        Some(8) => Ok(Some("superblocks of several kinds".into())),
        _ => Err(format!(
            "{}: blkid cannot look at it: {}; check the device",
            path.display(),
            String::from_utf8_lossy(&output.stderr).trim()
        )),
    }
}

/// The superblock on a device, if it can be read and has one that holds together. Nothing is locked.
pub fn superblock(path: &Path) -> Option<Superblock> {
    patience::ask(path, Duration::ZERO, read_superblock).ok()?
}

fn read_superblock(path: &Path) -> Option<Superblock> {
    let metadata = std::fs::metadata(path).ok()?;
    // Opening a pipe would block.
    if !metadata.is_file() && !std::os::unix::fs::FileTypeExt::is_block_device(&metadata.file_type()) {
        return None;
    }
    let mut bytes = [0; SUPERBLOCK_BYTES];
    File::open(path).ok()?.read_exact_at(&mut bytes, SUPERBLOCK_OFFSET_BYTES).ok()?;
    Superblock::parse(&bytes).ok()
}

/// All block devices of this machine but those that raidd is behind, by their usual paths.
pub fn block_devices() -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir("/sys/class/block") else { return Vec::new() };
    let names = entries.flatten().map(|entry| entry.file_name());
    let mut paths: Vec<_> =
        names.map(|name| Path::new("/dev").join(name)).filter(|path| path.exists()).collect();
    paths.retain(|path| !is_own_device(path));
    paths.sort();
    paths
}
