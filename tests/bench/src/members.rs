//! What is measured on: plain files in memory or on a disk, or block devices over them; each fully written beforehand,
//! with bytes that do not compress, so that nobody measures allocation.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use clap::ValueEnum;

use crate::process::{make_folder, make_loop, make_zram, run};

/// What the members are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Kind {
    /// Files in /dev/shm.
    Shm,
    /// Compressed memory disks: block devices that need no disk (root).
    Zram,
    /// Files on the disk of --dir.
    Disk,
    /// Loop devices over files on the disk of --dir (root).
    Loop,
}

impl Kind {
    /// As it is called in tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Shm => "shm",
            Self::Zram => "zram",
            Self::Disk => "disk",
            Self::Loop => "loop",
        }
    }

    /// Whether no disk is involved.
    pub fn is_memory(self) -> bool {
        matches!(self, Self::Shm | Self::Zram)
    }
}

/// Two plain ones for the peers, and those of the arrays.
pub struct Members {
    /// What they are.
    pub kind: Kind,
    /// Bytes of each.
    pub size_bytes: u64,
    /// What peers serve; nobody else writes to them.
    pub plain: [PathBuf; 2],
    /// Of the RAID 1, the RAID 5 and the RAID 6.
    pub arrays: [Vec<PathBuf>; 3],
}

/// Members of each array.
pub const ARRAY_WIDTHS: [usize; 3] = [2, 4, 6];
const COUNT: usize = 2 + 2 + 4 + 6;
const FILL_BYTES: usize = 4 << 20;
/// What the programs need beside members that lie in memory.
const SPARE_MEMORY_BYTES: u64 = 2 << 30;

impl Members {
    /// Makes and writes them.
    pub fn make(kind: Kind, size_bytes: u64, dir: &Path) -> Result<Self> {
        if kind.is_memory() {
            let wanted = COUNT as u64 * size_bytes + SPARE_MEMORY_BYTES;
            let free = available_memory_bytes()?;
            ensure!(
                wanted <= free,
                "{} MiB of memory are free, {} are needed: use --size",
                free >> 20,
                wanted >> 20
            );
        }
        let folder = match kind {
            Kind::Shm => Some(make_folder(Path::new("/dev/shm"))?),
            Kind::Zram => None,
            Kind::Disk | Kind::Loop => Some(make_folder(dir)?),
        };
        let pattern = incompressible();
        let mut made = Vec::new();
        for number in 0..COUNT {
            let path = match &folder {
                Some(folder) => folder.join(format!("disk{number}")),
                None => make_zram(size_bytes)?,
            };
            fill(&path, size_bytes, kind, &pattern).with_context(|| path.display().to_string())?;
            made.push(if kind == Kind::Loop { make_loop(&path)? } else { path });
        }
        let mut rest = made.into_iter();
        let mut take = |count: usize| rest.by_ref().take(count).collect::<Vec<_>>();
        let plain = take(2).try_into().ok().context("two plain members")?;
        Ok(Self { kind, size_bytes, plain, arrays: ARRAY_WIDTHS.map(&mut take) })
    }

    /// Whether they are block devices.
    pub fn are_devices(&self) -> bool {
        matches!(self.kind, Kind::Zram | Kind::Loop)
    }
}

/// Bytes that look random.
fn incompressible() -> Vec<u8> {
    // Direct writes want an aligned buffer; there is one in a buffer that is a page longer.
    let mut bytes = vec![0; FILL_BYTES + 4096];
    let mut state = u64::from(std::process::id()) | 1 << 40;
    for word in bytes.chunks_exact_mut(8) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        word.copy_from_slice(&state.to_le_bytes());
    }
    bytes
}

fn fill(path: &Path, size_bytes: u64, kind: Kind, pattern: &[u8]) -> Result<()> {
    let mut options = File::options();
    options.write(true).create(kind != Kind::Zram);
    if kind != Kind::Shm {
        options.custom_flags(nix::libc::O_DIRECT);
    }
    let mut file = options.open(path)?;
    let aligned = pattern.as_ptr().align_offset(4096);
    for _ in 0..size_bytes / FILL_BYTES as u64 {
        file.write_all(&pattern[aligned..aligned + FILL_BYTES])?;
    }
    if kind == Kind::Disk || kind == Kind::Loop {
        file.sync_all()?;
    }
    Ok(())
}

fn available_memory_bytes() -> Result<u64> {
    let text = fs::read_to_string("/proc/meminfo")?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:")).context("no MemAvailable")?;
    let kib: u64 = line.trim().trim_end_matches(" kB").parse().context("MemAvailable")?;
    Ok(kib << 10)
}

/// The filesystem that files on the disk lie on.
pub fn filesystem(dir: &Path) -> Result<String> {
    run(Command::new("stat").args(["-f", "-c", "%T"]).arg(dir))
}
