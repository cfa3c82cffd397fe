//! A raidd of its own for each test, the raidctl that speaks to it, and other programs.
//!
//! - A [`Home`] is a temporary folder with all sockets and state of one daemon after the other; it goes with its value.
//! - A [`Raidd`] is a running daemon. It is ready when the constructor returns (it says so itself, as to systemd), and it
//!   is killed, by its own process number, when the value goes. What it logged is shown if the test fails.
//! - Every program is run with a limit on its time, so that a hang is a failure.

use std::fmt::Display;
use std::fs::File;
use std::io::Write;
use std::net::TcpListener;
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use raidd::api::{Status, SyncAction};
use raidd::nbd::Client;
use tempfile::TempDir;

/// What any one program may take, in seconds.
const PROGRAM_SECONDS_MAX: &str = "120";
/// What a daemon may take to start or stop.
const DAEMON_PATIENCE: Duration = Duration::from_secs(30);

/// Whether all that a test needs is here: programs by their names, files by their absolute paths, and `root`. If not,
/// it says that the test is skipped.
pub fn need(things: &[&str]) -> bool {
    let is_here = |thing: &&str| match *thing {
        "root" => nix::unistd::geteuid().is_root(),
        path if path.starts_with('/') => Path::new(path).exists(),
        program => search_path().split(':').any(|folder| Path::new(folder).join(program).exists()),
    };
    match things.iter().find(|thing| !is_here(thing)) {
        None => true,
        Some(thing) => {
            skip(&format!("{thing} is not here"));
            false
        }
    }
}

/// Says that a test is skipped. Not by `println`, which the test runner would keep to itself.
pub fn skip(why: &str) {
    let mut stdout = std::io::stdout().lock();
    stdout.write_all(format!("\nSKIPPED: {why}\n").as_bytes()).unwrap();
    stdout.flush().unwrap();
}

fn search_path() -> String {
    format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default())
}

/// How a program ended.
#[derive(Debug)]
pub struct Ran {
    pub status: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Ran {
    /// Its output; it must have ended well.
    #[track_caller]
    pub fn ok(self) -> String {
        assert_eq!(self.status, 0, "{self:#?}");
        self.stdout
    }

    /// Its complaint: it must have ended with `status`, one line on stderr and nothing on stdout.
    #[track_caller]
    pub fn complaint(self, status: i32) -> String {
        assert_eq!(self.status, status, "{self:#?}");
        assert_eq!(self.stdout, "", "{self:#?}");
        assert!(self.stderr.ends_with('\n') && self.stderr.matches('\n').count() == 1, "{self:#?}");
        // What, why, and what to do take more than a few words.
        assert!(self.stderr.len() > 40, "{self:#?}");
        self.stderr
    }
}

/// Runs a program to its end.
pub fn run(program: &str, arguments: &[&str]) -> Ran {
    run_command(limited(program).args(arguments))
}

fn limited(program: impl AsRef<std::ffi::OsStr>) -> Command {
    let mut command = Command::new("timeout");
    command.args(["-k", "5", PROGRAM_SECONDS_MAX]).arg(program).stdin(Stdio::null());
    command.env("PATH", search_path()).env("LC_ALL", "C");
    for name in ["RAIDD_CONTROL", "RUST_LOG", "XDG_RUNTIME_DIR", "XDG_STATE_HOME"] {
        command.env_remove(name);
    }
    command
}

fn wait_until_connected(socket: &Path) {
    let deadline = Instant::now() + DAEMON_PATIENCE;
    while UnixStream::connect(socket).is_err() {
        assert!(Instant::now() < deadline, "nobody listens on {}", socket.display());
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn run_command(command: &mut Command) -> Ran {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
    let status = output.status.code().unwrap_or(128 + output.status.signal().unwrap_or(0));
    Ran { status, stdout: text(&output.stdout), stderr: text(&output.stderr) }
}

pub fn raidctl_program() -> PathBuf {
    let program = Path::new(env!("CARGO_BIN_EXE_raidd")).with_file_name("raidctl");
    assert!(program.exists(), "{} is not built: cargo build --workspace first", program.display());
    program
}

/// A folder for the sockets and the state of a daemon.
pub struct Home {
    folder: TempDir,
}

impl Home {
    pub fn new() -> Home {
        let folder = tempfile::Builder::new().prefix("raidd-").tempdir().unwrap();
        let home = Home { folder };
        home.configure("assemble_wait = \"1s\"\n");
        home
    }

    /// Writes the configuration for the next start.
    pub fn configure(&self, toml: &str) {
        std::fs::write(self.path("raidd.toml"), toml).unwrap();
    }

    /// A path in it.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn raidd_command(&self, program: Command, extra: &[&str]) -> Command {
        let mut command = program;
        command.arg("--control").arg(self.path("control.sock"));
        command.arg("--state-dir").arg(self.path("state"));
        command.arg("--config").arg(self.path("raidd.toml"));
        command.args(["--reactors", "2"]).args(extra);
        command
    }

    /// Starts a daemon.
    pub fn start(&self) -> Raidd {
        self.start_with(&[])
    }

    /// Starts a daemon with more options.
    pub fn start_with(&self, extra: &[&str]) -> Raidd {
        self.start_as(Command::new(env!("CARGO_BIN_EXE_raidd")), extra)
    }

    /// Starts a daemon by a program that listens on sockets in its stead and passes them on; `listen` says where and as what,
    /// as `systemd-socket-activate` reads it. The first client wakes the daemon.
    pub fn start_activated(&self, listen: &[&str], first: &Path, extra: &[&str]) -> Raidd {
        let first = first.to_owned();
        let client = std::thread::spawn(move || wait_until_connected(&first));
        let raidd = self.start_as(self.activated(listen), extra);
        client.join().unwrap();
        raidd
    }

    /// Runs such a daemon, which is expected to end by itself.
    pub fn activated_to_its_end(&self, listen: &[&str], first: &Path, extra: &[&str]) -> Ran {
        let first = first.to_owned();
        let client = std::thread::spawn(move || wait_until_connected(&first));
        let mut ran = run_command(&mut self.raidd_command(self.activated(listen), extra));
        client.join().unwrap();
        // What the other program says of itself comes before.
        ran.stderr =
            ran.stderr.lines().filter(|line| line.starts_with("raidd: ")).collect::<Vec<_>>().join("\n");
        ran.stderr += "\n";
        ran
    }

    fn activated(&self, listen: &[&str]) -> Command {
        let mut command = Command::new("systemd-socket-activate");
        command.args(["-E", "NOTIFY_SOCKET"]).args(listen).arg(env!("CARGO_BIN_EXE_raidd"));
        command
    }

    fn start_as(&self, program: Command, extra: &[&str]) -> Raidd {
        let ready_path = self.path("ready.sock");
        if ready_path.exists() {
            std::fs::remove_file(&ready_path).unwrap();
        }
        let ready = UnixDatagram::bind(&ready_path).unwrap();
        ready.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        let log_path = self.path("raidd.log");
        let log = File::options().create(true).append(true).open(&log_path).unwrap();
        let mut command = self.raidd_command(program, extra);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        command.env_remove("RAIDD_CONTROL").env_remove("RUST_LOG").env("NOTIFY_SOCKET", &ready_path);
        let child = command.spawn().unwrap();
        let mut raidd = Raidd { child, log_path, ended: None };
        let deadline = Instant::now() + DAEMON_PATIENCE;
        let mut message = [0; 256];
        loop {
            if let Ok(len) = ready.recv(&mut message)
                && String::from_utf8_lossy(&message[..len]).lines().any(|line| line == "READY=1")
            {
                return raidd;
            }
            let ended = raidd.child.try_wait().unwrap();
            assert!(ended.is_none(), "raidd ended at its start: {ended:?}");
            assert!(Instant::now() < deadline, "raidd does not become ready");
        }
    }

    /// Runs a daemon that is expected to end by itself, with these arguments alone.
    pub fn bare_raidd(&self, arguments: &[&str]) -> Ran {
        run_command(limited(env!("CARGO_BIN_EXE_raidd")).args(arguments))
    }

    /// Runs raidctl with arguments that contain no blanks.
    pub fn raidctl(&self, line: impl Display) -> Ran {
        self.raidctl_words(&line.to_string().split_whitespace().collect::<Vec<_>>())
    }

    /// Runs raidctl.
    pub fn raidctl_words(&self, words: &[&str]) -> Ran {
        let mut command = limited(raidctl_program());
        run_command(command.args(words).env("RAIDD_CONTROL", self.path("control.sock")))
    }

    /// Runs a shell script that can call raidctl.
    pub fn shell(&self, script: &str) -> Ran {
        let program = raidctl_program();
        let path = format!("{}:{}", program.parent().unwrap().display(), search_path());
        let mut command = limited("sh");
        command.args(["-c", script]).env("PATH", path).env("RAIDD_CONTROL", self.path("control.sock"));
        run_command(command.env("TERM", "xterm"))
    }

    /// Runs raidctl, which must do what is asked, and says nothing on stderr but that an array is degraded.
    #[track_caller]
    pub fn ok(&self, line: impl Display) -> String {
        let ran = self.raidctl(line);
        let complaints = ran.stderr.lines().filter(|line| !line.starts_with("raidctl: warning: degraded, "));
        assert_eq!(complaints.count(), 0, "{ran:#?}");
        ran.ok()
    }

    /// What is known of an array.
    #[track_caller]
    pub fn status(&self, name: &str) -> Status {
        serde_json::from_str(&self.raidctl(format!("status --json {name}")).ok()).unwrap()
    }

    /// What is known of an array, once that is as wanted.
    #[track_caller]
    pub fn wait_for(&self, name: &str, wanted: impl Fn(&Status) -> bool) -> Status {
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            let status = self.status(name);
            if wanted(&status) {
                return status;
            }
            assert!(Instant::now() < deadline, "{name} does not become what it should: {status:#?}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Waits until no sync action runs.
    #[track_caller]
    pub fn wait_idle(&self, name: &str) -> Status {
        self.wait_for(name, |status| status.sync.action == SyncAction::Idle)
    }

    /// A client of an export.
    pub fn client(&self, name: &str) -> Client<UnixStream> {
        let stream = UnixStream::connect(self.path("nbd.sock")).unwrap();
        Client::new(stream, name).unwrap_or_else(|error| panic!("{name}: {error}"))
    }

    /// The URI of an export, as raidctl says it.
    pub fn uri(&self, name: &str) -> String {
        self.status(name).nbd_uri.unwrap_or_else(|| panic!("{name} is not exported"))
    }
}

/// A running daemon.
pub struct Raidd {
    child: Child,
    log_path: PathBuf,
    ended: Option<ExitStatus>,
}

impl Raidd {
    /// Its process number.
    pub fn pid(&self) -> Pid {
        Pid::from_raw(i32::try_from(self.child.id()).unwrap())
    }

    /// kill -9, and waits until it is gone.
    pub fn kill(&mut self) {
        if self.ended.is_none() {
            self.child.kill().unwrap();
            self.ended = Some(self.child.wait().unwrap());
        }
    }

    /// Tells it to stop. It must do so in time, and well.
    #[track_caller]
    pub fn terminate(mut self) {
        kill(self.pid(), Signal::SIGTERM).unwrap();
        let deadline = Instant::now() + DAEMON_PATIENCE;
        while self.ended.is_none() {
            assert!(Instant::now() < deadline, "raidd does not stop on SIGTERM");
            self.ended = self.child.try_wait().unwrap();
            std::thread::sleep(Duration::from_millis(5));
        }
        assert_eq!(self.ended.and_then(|ended| ended.code()), Some(0), "{:?}", self.ended);
    }
}

impl Drop for Raidd {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = std::fs::read_to_string(&self.log_path).unwrap_or_default();
            let tail: Vec<_> = log.lines().rev().take(60).collect();
            eprintln!("the end of raidd's log:");
            tail.iter().rev().for_each(|line| eprintln!("  {line}"));
        }
        if self.ended.is_none() && (self.child.kill().is_err() || self.child.wait().is_err()) {
            eprintln!("raidd could not be killed");
        }
    }
}

/// A port that was free a moment ago.
pub fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// Another program, which does not outlive its test.
pub struct Companion(Child);

impl Companion {
    /// Starts it, without a word from it or to it.
    pub fn start(command: &mut Command) -> Companion {
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        Companion(command.spawn().unwrap())
    }
}

impl Drop for Companion {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _killed = self.0.kill().is_ok();
        self.0.wait().unwrap();
    }
}
