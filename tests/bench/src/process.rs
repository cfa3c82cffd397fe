//! The processes, folders and devices of a run: all of them are gone when it ends, by itself or by a signal.
//!
//! - What is started or made is claimed before anything else can fail.
//! - Each process leads a group of its own; only those groups are ever signalled, by number.
//! - After a signal the claims stay locked until this process has ended, so nothing new is started meanwhile.
//! - CPU time is what the kernel counts for a group: all threads, and all children whether gone or not.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{SigSet, Signal, killpg};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::{Pid, SysconfVar, getpid, sysconf};

/// How long a process may take to end when it is told to.
const END_PATIENCE: Duration = Duration::from_secs(10);
/// What the kernel sets in the flags of its own threads.
const PF_KTHREAD: u64 = 0x0020_0000;

struct Claims {
    groups: Vec<Pid>,
    folders: Vec<PathBuf>,
    loops: Vec<String>,
    zrams: Vec<String>,
}

static CLAIMS: Mutex<Claims> =
    Mutex::new(Claims { groups: Vec::new(), folders: Vec::new(), loops: Vec::new(), zrams: Vec::new() });

fn claims() -> MutexGuard<'static, Claims> {
    CLAIMS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Has SIGINT, SIGTERM and SIGHUP end the run and everything it started. To be called before there are threads.
pub fn end_all_on_signal() -> Result<()> {
    let signals = SigSet::from_iter([Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP]);
    signals.thread_block()?;
    thread::spawn(move || {
        let reason = signals.wait().map_or_else(|error| error.to_string(), |signal| signal.to_string());
        let mut claims = claims();
        eprintln!("raidd-bench: {reason}: cleaning up");
        release(&mut claims);
        std::process::exit(130);
    });
    Ok(())
}

/// Ends and removes everything that is still there.
pub fn end_all() {
    release(&mut claims());
}

fn release(claims: &mut Claims) {
    for group in claims.groups.drain(..) {
        end_group(group);
    }
    for device in claims.loops.drain(..) {
        complain(run(Command::new("losetup").args(["-d", &device])).map(drop));
    }
    for number in claims.zrams.drain(..) {
        complain(write_file(format!("/sys/block/zram{number}/reset"), "1"));
        complain(write_file("/sys/class/zram-control/hot_remove", &number));
    }
    for folder in claims.folders.drain(..) {
        complain(fs::remove_dir_all(&folder).with_context(|| folder.display().to_string()));
    }
}

fn complain(outcome: Result<()>) {
    if let Err(error) = outcome {
        eprintln!("raidd-bench: left behind: {error:#}");
    }
}

/// Writes a file that exists, such as one of /sys.
pub fn write_file(path: impl AsRef<Path>, text: &str) -> Result<()> {
    let path = path.as_ref();
    let mut file = File::options().write(true).open(path).with_context(|| path.display().to_string())?;
    file.write_all(text.as_bytes()).with_context(|| path.display().to_string())
}

/// SIGTERM, then SIGKILL for who does not listen. A group that is gone is no error.
fn end_group(group: Pid) {
    for (signal, patience) in [(Signal::SIGTERM, END_PATIENCE), (Signal::SIGKILL, Duration::from_secs(2))] {
        let began = Instant::now();
        if killpg(group, signal).is_err() {
            return;
        }
        while began.elapsed() < patience {
            // Whoever else waits for it has got it already, or never will.
            let reaped = waitpid(group, Some(WaitPidFlag::WNOHANG));
            if killpg(group, None).is_err() {
                return;
            }
            thread::sleep(Duration::from_millis(if reaped.is_ok() { 10 } else { 20 }));
        }
    }
}

/// A new folder with a name of its own; removed at the end.
pub fn make_folder(parent: &Path) -> Result<PathBuf> {
    let mut claims = claims();
    let made = tempfile::Builder::new().prefix("raidd-bench-").tempdir_in(parent);
    let folder = made.with_context(|| parent.display().to_string())?.keep();
    claims.folders.push(folder.clone());
    Ok(folder)
}

/// A loop device over a file, past the page cache; detached at the end.
pub fn make_loop(file: &Path) -> Result<PathBuf> {
    let mut claims = claims();
    let device = run(Command::new("losetup").args(["-f", "--show", "--direct-io=on"]).arg(file))?;
    claims.loops.push(device.clone());
    Ok(device.into())
}

/// A compressed memory disk of that size; removed at the end.
pub fn make_zram(size_bytes: u64) -> Result<PathBuf> {
    let mut claims = claims();
    let control = "/sys/class/zram-control/hot_add";
    let number = fs::read_to_string(control).with_context(|| format!("{control}: zram needs root"))?;
    let number = number.trim().to_owned();
    claims.zrams.push(number.clone());
    write_file(format!("/sys/block/zram{number}/disksize"), &size_bytes.to_string())?;
    Ok(format!("/dev/zram{number}").into())
}

/// Runs a short command to its end and returns what it printed.
pub fn run(command: &mut Command) -> Result<String> {
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("{command:?}"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command:?}: {}", said.trim());
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// Ends a group that is claimed.
pub fn stop(group: Pid) {
    let mut claims = claims();
    claims.groups.retain(|claimed| *claimed != group);
    end_group(group);
}

/// A process that leads its own group.
pub struct Process {
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts it with its output going to a file.
    pub fn start(command: &mut Command, log: PathBuf) -> Result<Self> {
        let output = File::create(&log).with_context(|| log.display().to_string())?;
        command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output).process_group(0);
        let mut claims = claims();
        let child = command.spawn().with_context(|| format!("{command:?}"))?;
        claims.groups.push(Pid::from_raw(child.id().cast_signed()));
        Ok(Self { child, log })
    }

    /// Its group.
    pub fn group(&self) -> Pid {
        Pid::from_raw(self.child.id().cast_signed())
    }

    /// What it has printed.
    pub fn output(&self) -> Result<String> {
        fs::read_to_string(&self.log).with_context(|| self.log.display().to_string())
    }

    /// Waits until `ready`. Errors: it ends before, or takes too long.
    pub fn wait_until(&mut self, what: &str, ready: impl Fn() -> bool) -> Result<()> {
        let began = Instant::now();
        while !ready() {
            if let Some(status) = self.child.try_wait()? {
                bail!("{what} ended at its start ({status}): {}", self.output()?.trim());
            }
            ensure!(began.elapsed() < END_PATIENCE, "{what} is not there: {}", self.output()?.trim());
            thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// Waits for its end.
    pub fn wait(&mut self) -> Result<ExitStatus> {
        let status = self.child.wait()?;
        let group = self.group();
        claims().groups.retain(|claimed| *claimed != group);
        Ok(status)
    }

    /// Ends it.
    pub fn stop(self) {
        stop(self.group());
    }
}

/// Takes over a daemon that has left the group it was started in and leads one of its own; ended at the end.
pub fn adopt(group: Pid) {
    claims().groups.push(group);
}

/// CPU seconds used so far, by whom.
pub struct CpuTimes {
    by_group: HashMap<i32, f64>,
    /// Everybody in userspace, the dead included.
    everybody_s: f64,
}

/// What one line of /proc/PID/stat says: (group, whether it is the kernel's, ticks of it and its dead children).
fn parse_stat(line: &str) -> Option<(i32, bool, u64)> {
    let fields: Vec<&str> = line.get(line.rfind(')')? + 2..)?.split(' ').collect();
    let number = |at: usize| fields.get(at)?.parse::<u64>().ok();
    let ticks = number(11)? + number(12)? + number(13)? + number(14)?;
    Some((fields.get(2)?.parse().ok()?, number(6)? & PF_KTHREAD != 0, ticks))
}

impl CpuTimes {
    /// Now.
    pub fn now() -> Result<Self> {
        let ticks_per_second = sysconf(SysconfVar::CLK_TCK)?.context("no CLK_TCK")? as f64;
        let mut out = Self { by_group: HashMap::new(), everybody_s: 0.0 };
        let own = getpid();
        for entry in fs::read_dir("/proc")? {
            let path = entry?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            // Others come and go.
            let Ok(pid) = name.parse::<i32>() else { continue };
            let Ok(line) = fs::read_to_string(path.join("stat")) else { continue };
            let Some((group, is_kernel, ticks)) = parse_stat(&line) else { continue };
            if !is_kernel {
                let seconds = ticks as f64 / ticks_per_second;
                out.everybody_s += seconds;
                // A shell's group may hold others beside us.
                let key = if pid == own.as_raw() { 0 } else { group };
                *out.by_group.entry(key).or_default() += seconds;
            }
        }
        Ok(out)
    }

    /// CPU seconds of a group since `before`.
    pub fn since(&self, before: &Self, group: Pid) -> f64 {
        let of = |times: &Self| times.by_group.get(&group.as_raw()).copied().unwrap_or(0.0);
        (of(self) - of(before)).max(0.0)
    }

    /// CPU seconds since `before` of those who are not part of the run.
    pub fn foreign_since(&self, before: &Self) -> f64 {
        let claims = claims();
        let ours = |times: &Self| {
            let groups = claims.groups.iter().filter_map(|group| times.by_group.get(&group.as_raw()));
            groups.chain(times.by_group.get(&0)).sum::<f64>()
        };
        (self.everybody_s - before.everybody_s - (ours(self) - ours(before))).max(0.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stat_line_is_read_past_any_name() {
        let line = "77 (a) b (c) S 1 70 70 0 -1 4194560 1 2 3 4 100 20 3 1 20 0 5 0 9 9 9";
        assert_eq!(parse_stat(line), Some((70, false, 124)));
        let kernel = "2 (kthreadd) S 0 0 0 0 -1 2129984 0 0 0 0 0 1 0 0 20 0 1 0 9";
        assert_eq!(parse_stat(kernel), Some((0, true, 1)));
        assert_eq!(parse_stat("cut off"), None);
    }
}
