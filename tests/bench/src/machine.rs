//! On what it was measured: everything that a figure depends on and that is not in the figure.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::Result;

use crate::process::run;
use crate::servers::{PEERS, fio_version};

/// The machine and the programs, a line each: (what, which).
pub fn describe(dir: &Path) -> Result<Vec<(String, String)>> {
    let cpu_info = fs::read_to_string("/proc/cpuinfo")?;
    let model = field(&cpu_info, "model name").unwrap_or_else(|| "unknown".to_owned());
    let cores = cpu_info.lines().filter(|line| line.starts_with("processor")).count();
    let memory = field(&fs::read_to_string("/proc/meminfo")?, "MemTotal").unwrap_or_default();
    let memory_kib: u64 = memory.trim_end_matches(" kB").parse().unwrap_or(0);
    let mut versions: Vec<String> = PEERS.iter().filter_map(|peer| peer.version()).collect();
    versions.push(fio_version()?.replace('-', " "));
    versions.dedup();
    let mut lines = vec![
        ("CPU", format!("{model}, {cores} cores; {}", caches())),
        ("memory", format!("{:.1} GiB", memory_kib as f64 / 1_048_576.0)),
        ("kernel", run(Command::new("uname").arg("-sr"))?),
        ("disk", format!("{}, {}", crate::members::filesystem(dir)?, disks())),
        ("others", versions.join(", ")),
    ];
    // The sources may have come without their history.
    if let Ok(commit) = run(Command::new("git").args(["describe", "--always", "--dirty"])) {
        lines.push(("commit", commit));
    }
    lines.push(("date", run(Command::new("date").arg("+%Y-%m-%d"))?));
    Ok(lines.into_iter().map(|(what, which)| (what.to_owned(), which)).collect())
}

/// The value of the first `name : value`.
fn field(text: &str, name: &str) -> Option<String> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    Some(line.trim_start().trim_start_matches(':').trim().to_owned())
}

/// The caches of the first core.
fn caches() -> String {
    let read = |index: usize, name: &str| {
        let path = format!("/sys/devices/system/cpu/cpu0/cache/index{index}/{name}");
        fs::read_to_string(path).ok().map(|text| text.trim().to_owned())
    };
    let one = |index: usize| {
        let kind = read(index, "type")?;
        let suffix = if kind == "Data" { "d" } else { "" };
        let wanted = kind != "Instruction";
        Some((wanted, format!("L{}{suffix} {}", read(index, "level")?, read(index, "size")?)))
    };
    let found: Vec<String> =
        (0..8).filter_map(one).filter(|(wanted, _)| *wanted).map(|(_, text)| text).collect();
    found.join(", ")
}

/// The kinds of block devices that there are.
fn disks() -> String {
    let mut found: Vec<String> = ["nvme", "sd", "vd", "xvd"]
        .into_iter()
        .filter(|prefix| {
            let entries = fs::read_dir("/sys/block").into_iter().flatten().flatten();
            entries.into_iter().any(|entry| entry.file_name().to_string_lossy().starts_with(prefix))
        })
        .map(|prefix| match prefix {
            "nvme" => "NVMe".to_owned(),
            "sd" => "SCSI".to_owned(),
            _ => "a virtual disk".to_owned(),
        })
        .collect();
    found.dedup();
    found.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_of_proc() {
        assert_eq!(field("model name\t: Some CPU @ 3 GHz\n", "model name").unwrap(), "Some CPU @ 3 GHz");
        assert_eq!(field("MemTotal:       24681012 kB\n", "MemTotal").unwrap(), "24681012 kB");
        assert_eq!(field("MemTotal: 1 kB\n", "MemFree"), None);
    }
}
