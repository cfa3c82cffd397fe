//! The peers: other people's NBD servers, each over one plain member (qemu's quorum: over two).
//!
//! - All share the same member, so qemu's image locks are off; only one of them is loaded at a time.
//! - nbdkit and nbd-server go through the page cache, qemu past it: on a disk only the latter can be compared with.

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::ValueEnum;
use nix::unistd::Pid;

use crate::members::Members;
use crate::process::{Process, adopt, run};

/// Another NBD server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Peer {
    /// nbdkit's file plugin.
    Nbdkit,
    /// The reference implementation.
    NbdServer,
    /// qemu's, one export, io_uring.
    QemuNbd,
    /// qemu's storage daemon, io_uring.
    Qsd,
    /// The storage daemon's quorum of two files: a mirror.
    Quorum,
}

const PID_FILE: &str = "nbd-server.pid";
/// How long a server may take until its socket is there.
const START_PATIENCE: Duration = Duration::from_secs(10);

/// All of them.
pub const PEERS: [Peer; 5] = [Peer::Nbdkit, Peer::NbdServer, Peer::QemuNbd, Peer::Qsd, Peer::Quorum];

impl Peer {
    /// As it is called in tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Nbdkit => "nbdkit",
            Self::NbdServer => "nbd-server",
            Self::QemuNbd => "qemu-nbd",
            Self::Qsd => "qsd",
            Self::Quorum => "quorum",
        }
    }

    fn program(self) -> &'static str {
        match self {
            Self::Nbdkit => "nbdkit",
            Self::NbdServer => "nbd-server",
            Self::QemuNbd => "qemu-nbd",
            Self::Qsd | Self::Quorum => "qemu-storage-daemon",
        }
    }

    /// The Debian package it is in.
    pub fn package(self) -> &'static str {
        match self {
            Self::Nbdkit => "nbdkit",
            Self::NbdServer => "nbd-server",
            Self::QemuNbd | Self::Qsd | Self::Quorum => "qemu-utils",
        }
    }

    /// Whether it goes past the page cache.
    pub fn is_direct(self) -> bool {
        matches!(self, Self::QemuNbd | Self::Qsd | Self::Quorum)
    }

    fn export(self) -> &'static str {
        if matches!(self, Self::Nbdkit | Self::QemuNbd) { "" } else { "d" }
    }

    /// What its program says of its version; none where it is not installed.
    pub fn version(self) -> Option<String> {
        let said = Command::new(self.program()).arg("--version").output().ok()?;
        let text = [said.stdout, said.stderr].concat();
        let first = String::from_utf8_lossy(&text).lines().next()?.to_owned();
        let is_version = |word: &&str| word.starts_with(|c: char| c.is_ascii_digit());
        let version = first.split_whitespace().find(is_version).unwrap_or("?");
        Some(format!("{} {version}", self.program()))
    }

    fn command(self, socket: &Path, members: &Members, folder: &Path) -> Result<Command> {
        let [one, two] = &members.plain;
        let mut command = Command::new(self.program());
        let driver = if members.are_devices() { "host_device" } else { "file" };
        let node = |name: &str, path: &Path| {
            let path = path.display();
            format!(
                "driver={driver},node-name={name},filename={path},cache.direct=on,aio=io_uring,locking=off"
            )
        };
        let daemon = |command: &mut Command, export: &str| {
            let address = format!("addr.type=unix,addr.path={},max-connections=32", socket.display());
            command.args(["--nbd-server", &address]);
            command.args(["--export", &format!("type=nbd,id=e,node-name={export},name=d,writable=on")]);
        };
        match self {
            Self::Nbdkit => {
                command.arg("-f").arg("-U").arg(socket).arg("file").arg(one);
            }
            Self::NbdServer => {
                let config = folder.join("nbd-server.conf");
                let (socket, one) = (socket.display(), one.display());
                // It insists on a TCP port beside its socket; 0 would mean inetd.
                let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
                let text = format!(
                    "[generic]\nunixsock = {socket}\nlistenaddr = 127.0.0.1\nport = {port}\nallowlist = true\n\
                     [d]\nexportname = {one}\nflush = true\nfua = true\nmulticonn = true\n"
                );
                fs::write(&config, text).with_context(|| config.display().to_string())?;
                command.arg("-C").arg(config).arg("-p").arg(folder.join(PID_FILE));
            }
            Self::QemuNbd => {
                let image = format!(
                    "driver=raw,file.driver={driver},file.filename={},file.locking=off",
                    one.display()
                );
                command.args(["-t", "-e", "32", "--cache=none", "--aio=io_uring", "-k"]).arg(socket);
                command.args(["--image-opts", &image]);
            }
            Self::Qsd => {
                command.args(["--blockdev", &node("f0", one)]);
                daemon(&mut command, "f0");
            }
            Self::Quorum => {
                command.args(["--blockdev", &node("f0", one), "--blockdev", &node("f1", two)]);
                let quorum = "driver=quorum,node-name=q,vote-threshold=1,read-pattern=fifo,children.0=f0,children.1=f1";
                command.args(["--blockdev", quorum]);
                daemon(&mut command, "q");
            }
        }
        Ok(command)
    }

    /// Starts it and waits for its socket.
    pub fn start(self, members: &Members, folder: &Path) -> Result<Server> {
        let socket = folder.join(format!("{}.sock", self.name()));
        let mut command = self.command(&socket, members, folder)?;
        let mut process = Process::start(&mut command, folder.join(format!("{}.log", self.name())))?;
        let group = if self == Self::NbdServer {
            // It always becomes a daemon, with a session of its own.
            let status = process.wait()?;
            ensure!(status.success(), "{}: {}", self.name(), process.output()?.trim());
            let pid = wait_for_pid(&folder.join(PID_FILE)).with_context(|| self.name())?;
            adopt(pid);
            pid
        } else {
            process.group()
        };
        let began = Instant::now();
        while !socket.exists() && began.elapsed() < START_PATIENCE {
            thread::sleep(Duration::from_millis(20));
        }
        ensure!(socket.exists(), "{} did not start: {}", self.name(), process.output()?.trim());
        Ok(Server { name: self.name().to_owned(), socket, export: self.export().to_owned(), group })
    }
}

fn wait_for_pid(file: &Path) -> Result<Pid> {
    let began = Instant::now();
    loop {
        let text = fs::read_to_string(file).unwrap_or_default();
        if let Ok(pid) = text.trim().parse() {
            return Ok(Pid::from_raw(pid));
        }
        ensure!(began.elapsed() < START_PATIENCE, "no process number in {}", file.display());
        thread::sleep(Duration::from_millis(20));
    }
}

/// Something that serves NBD.
#[derive(Clone, Debug)]
pub struct Server {
    /// As it is called in tables.
    pub name: String,
    /// Its Unix socket.
    pub socket: PathBuf,
    /// The export to load.
    pub export: String,
    /// Its processes.
    pub group: Pid,
}

/// The version of fio.
pub fn fio_version() -> Result<String> {
    run(Command::new("fio").arg("--version")).context("fio is missing: scripts/install-packages fio")
}
