//! raidd: started with an own socket and state, told what to do by raidctl.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::process::{Process, run};
use crate::servers::Server;

/// A running raidd.
pub struct Daemon {
    control: PathBuf,
    socket: PathBuf,
    raidctl: PathBuf,
    process: Process,
}

/// How it is run.
#[derive(Clone, Copy, Default)]
pub struct Threads {
    /// `--reactors`; raidd's default if not given.
    pub reactors: Option<usize>,
    /// On this processor only.
    pub processor: Option<usize>,
}

/// Bytes that went to and from an array and its members, since it runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Traffic {
    /// Read of members.
    pub member_read_bytes: u64,
    /// Written to members.
    pub member_written_bytes: u64,
}

impl Traffic {
    /// What a status document says: `io` at its top, or the counters themselves there. None in older versions.
    fn of_status(status: &Value) -> Option<Self> {
        let io = status.get("io").unwrap_or(status);
        let field = |name: &str| io.get(name).and_then(Value::as_u64);
        Some(Self {
            member_read_bytes: field("member_read_bytes")?,
            member_written_bytes: field("member_written_bytes")?,
        })
    }

    /// What the kernel counts of a process: right for disks, nothing for files in memory.
    fn of_process(text: &str) -> Option<Self> {
        let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name))?.trim().parse().ok();
        Some(Self { member_read_bytes: field("read_bytes:")?, member_written_bytes: field("write_bytes:")? })
    }

    /// What has been added since.
    pub fn since(self, before: Self) -> Self {
        Self {
            member_read_bytes: self.member_read_bytes.saturating_sub(before.member_read_bytes),
            member_written_bytes: self.member_written_bytes.saturating_sub(before.member_written_bytes),
        }
    }
}

impl Daemon {
    /// Starts it with everything it makes in `folder`, and waits until it answers.
    pub fn start(bin: &Path, folder: &Path, threads: Threads) -> Result<Self> {
        fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
        let (control, socket) = (folder.join("control.sock"), folder.join("nbd.sock"));
        let raidd = bin.join("raidd");
        ensure!(raidd.exists(), "{} is missing: say where raidd is with --bin", raidd.display());
        let mut command = match threads.processor {
            Some(processor) => {
                let mut command = Command::new("taskset");
                command.args(["-c", &processor.to_string()]).arg(raidd);
                command
            }
            None => Command::new(raidd),
        };
        command.arg("--control").arg(&control).arg("--state-dir").arg(folder.join("state"));
        command.arg("--nbd").arg(format!("unix:{}", socket.display())).args(["--mdadm-conf", "none", "-q"]);
        if let Some(reactors) = threads.reactors {
            command.args(["--reactors", &reactors.to_string()]);
        }
        let process = Process::start(&mut command, folder.join("raidd.log"))?;
        let mut daemon = Self { control, socket, raidctl: bin.join("raidctl"), process };
        let list = |raidctl: &Path, control: &Path| {
            run(Command::new(raidctl).arg("--control").arg(control).arg("list")).is_ok()
        };
        let (raidctl, control) = (daemon.raidctl.clone(), daemon.control.clone());
        daemon.process.wait_until("raidd", || list(&raidctl, &control))?;
        Ok(daemon)
    }

    /// Runs raidctl; what it printed.
    pub fn ctl<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Result<String> {
        run(Command::new(&self.raidctl).arg("--control").arg(&self.control).args(arguments))
    }

    /// An array's status document.
    pub fn status(&self, array: &str) -> Result<Value> {
        serde_json::from_str(&self.ctl(["status", "--json", array])?).context("the status document")
    }

    /// Bytes of each member that the array uses.
    pub fn member_bytes(&self, array: &str) -> Result<u64> {
        self.status(array)?["member_size_bytes"].as_u64().context("no member_size_bytes")
    }

    /// Whether a sync action runs.
    pub fn is_syncing(&self, array: &str) -> Result<bool> {
        Ok(self.status(array)?["sync"]["action"] != "idle")
    }

    /// Counts of an array's bytes, or else of the whole process'.
    pub fn traffic(&self, array: &str) -> Result<Option<Traffic>> {
        if let Some(traffic) = Traffic::of_status(&self.status(array)?) {
            return Ok(Some(traffic));
        }
        let text = fs::read_to_string(format!("/proc/{}/io", self.process.group()))?;
        Ok(Traffic::of_process(&text))
    }

    /// Milliseconds that the array's last sync action took.
    pub fn last_sync_ms(&self, array: &str) -> Result<u64> {
        let (mut began, mut took) = (None, None);
        for line in self.ctl(["events", "--json"])?.lines() {
            let event: Value = serde_json::from_str(line).context("an event")?;
            let at = event["unix_ms"].as_u64().context("an event without a time")?;
            match (event["array"] == array, event["event"].as_str()) {
                (true, Some("RebuildStarted")) => began = Some(at),
                (true, Some("RebuildFinished")) => took = began.map(|began| at.saturating_sub(began)),
                _ => {}
            }
        }
        took.context("no sync action has ended")
    }

    /// One of its exports.
    pub fn server(&self, array: &str) -> Server {
        let (socket, group) = (self.socket.clone(), self.process.group());
        Server { name: array.to_owned(), socket, export: array.to_owned(), group }
    }

    /// Ends it; arrays are marked clean.
    pub fn stop(self) {
        self.process.stop();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn traffic_is_read_from_either_place() {
        let expected = Traffic { member_read_bytes: 7, member_written_bytes: 9 };
        let io = json!({"member_read_bytes": 7, "member_written_bytes": 9, "client_read_bytes": 1});
        assert_eq!(Traffic::of_status(&io), Some(expected));
        assert_eq!(Traffic::of_status(&json!({ "io": io })), Some(expected));
        assert_eq!(Traffic::of_status(&json!({"name": "vol0"})), None);
        let text = "rchar: 1\nwchar: 2\nsyscr: 3\nread_bytes: 7\nwrite_bytes: 9\ncancelled_write_bytes: 0\n";
        assert_eq!(Traffic::of_process(text), Some(expected));
    }
}
