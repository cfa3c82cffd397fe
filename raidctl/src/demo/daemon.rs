//! A raidd of the demo's own: started in the demo's folder, watched, and ended whatever happens.

use std::fs::File;
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::interrupt::Interrupt;
use crate::failure::{Failure, failed};
use crate::request::Daemon;

/// How long it may take to be ready.
const START_LIMIT: Duration = Duration::from_secs(20);
/// How long it may take to stop; with a stopped array it has nothing to do.
const STOP_LIMIT: Duration = Duration::from_secs(20);
/// How often it is looked at meanwhile.
const POLL: Duration = Duration::from_millis(5);
/// Lines of its log that are shown when it has died.
const LOG_LINES: usize = 10;

/// A running raidd. Dropping it ends it.
pub struct OwnDaemon {
    child: Child,
    /// Where NBD clients connect.
    pub nbd_socket: PathBuf,
    /// Whom to ask for things.
    pub control: Daemon,
    log: PathBuf,
}

impl OwnDaemon {
    /// Starts one with all its files in `folder`, and waits until it is ready.
    pub fn start(folder: &Path, interrupt: &Interrupt) -> Result<OwnDaemon, Failure> {
        let control_socket = folder.join("control.sock");
        let nbd_socket = folder.join("nbd.sock");
        let log = folder.join("raidd.log");
        let config = folder.join("raidd.toml");
        // A file of its own, so that the machine's configuration does not matter.
        std::fs::write(&config, "assemble_wait = 0\n").map_err(|error| cannot("write", &config, &error))?;
        let log_file = File::create(&log).map_err(|error| cannot("make", &log, &error))?;

        let program = program();
        let mut nbd = std::ffi::OsString::from("unix:");
        nbd.push(&nbd_socket);
        let child = Command::new(&program)
            .arg("--config")
            .arg(&config)
            .arg("--control")
            .arg(&control_socket)
            .arg("--nbd")
            .arg(&nbd)
            .arg("--state-dir")
            .arg(folder.join("state"))
            .arg("--enable-fault-injection")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log_file)
            .process_group(0) // Ctrl-C is for raidctl, which then stops raidd in order
            .spawn()
            .map_err(|error| {
                failed(format_args!(
                    "cannot start {}: {error}: put raidd beside raidctl or into PATH",
                    program.display()
                ))
            })?;
        let control = Daemon::at(Some(control_socket))?;
        let mut daemon = OwnDaemon { child, nbd_socket, control, log };
        daemon.wait_until_ready(interrupt)?;
        Ok(daemon)
    }

    fn wait_until_ready(&mut self, interrupt: &Interrupt) -> Result<(), Failure> {
        let began = Instant::now();
        loop {
            interrupt.check()?;
            self.check()?;
            match self.control.is_up() {
                Ok(true) => return Ok(()),
                Ok(false) if began.elapsed() < START_LIMIT => std::thread::sleep(POLL),
                Ok(false) => {
                    return Err(failed(format_args!(
                        "raidd was not ready within {START_LIMIT:?}: see its log with --keep"
                    )));
                }
                Err(error) => return Err(self.control.explain(error)),
            }
        }
    }

    /// A failure if it has died; its last words are shown then.
    pub fn check(&mut self) -> Result<(), Failure> {
        match self.child.try_wait() {
            Ok(None) => Ok(()),
            Ok(Some(status)) => Err(self.died(status)),
            Err(error) => Err(failed(format_args!("cannot look at raidd: {error}"))),
        }
    }

    fn died(&self, status: ExitStatus) -> Failure {
        let log = std::fs::read(&self.log).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        let lines: Vec<&str> = log.lines().collect();
        let mut stderr = std::io::stderr();
        for line in &lines[lines.len().saturating_sub(LOG_LINES)..] {
            let line: String = line.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
            let _told = writeln!(stderr, "raidd: {line}"); // nobody is left to tell if that fails
        }
        failed(format_args!(
            "raidd has ended early ({status}): its last lines are above, all of its log is kept with --keep"
        ))
    }

    /// Tells it to stop, and waits until it has.
    pub fn stop(mut self) -> Result<(), Failure> {
        self.check()?;
        match self.end() {
            Some(status) if status.success() => Ok(()),
            Some(status) => Err(self.died(status)),
            None => {
                Err(failed(format_args!("raidd did not stop within {STOP_LIMIT:?}: see its log with --keep")))
            }
        }
    }

    /// Ends it, gently at first. None if it had to be killed.
    fn end(&mut self) -> Option<ExitStatus> {
        let pid = Pid::from_raw(i32::try_from(self.child.id()).ok()?);
        // An error says that it has gone, which waiting shows as well.
        let _told = kill(pid, Signal::SIGTERM);
        let began = Instant::now();
        while began.elapsed() < STOP_LIMIT {
            if let Ok(Some(status)) = self.child.try_wait() {
                return Some(status);
            }
            std::thread::sleep(POLL);
        }
        let _killed = self.child.kill();
        let _reaped = self.child.wait();
        None
    }
}

impl Drop for OwnDaemon {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            let _status = self.end();
        }
    }
}

/// The raidd beside this raidctl, or else the one in PATH.
fn program() -> PathBuf {
    std::env::current_exe()
        .ok()
        .map(|own| own.with_file_name("raidd"))
        .filter(|beside| beside.is_file())
        .unwrap_or_else(|| PathBuf::from("raidd"))
}

fn cannot(what: &str, path: &Path, error: &std::io::Error) -> Failure {
    failed(format_args!("cannot {what} {}: {error}: name another folder with --dir", path.display()))
}
