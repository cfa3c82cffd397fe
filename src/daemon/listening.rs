//! The sockets that NBD clients connect to, and the one that metrics are read from: from the configuration to a descriptor that listens;
//! and who is let in on the control socket.
//!
//! Invariants:
//! - Only what is a socket, and nobody's any more, is replaced.
//! - At no time may a Unix socket be opened by more than it is meant for: it is made for its owner alone, then comes its
//!   group, then its mode.

use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use nix::sys::stat::{Mode, umask};
use nix::unistd::{Gid, Group, chown};

use super::config::{Config, MetricsAddress, NbdAddress, NbdListener};
use crate::control::Admission;

/// How long a socket of a dead daemon may still seem to live.
const SOCKET_WAIT: Duration = Duration::from_secs(5);
/// How often it is looked at meanwhile.
const SOCKET_RETRY: Duration = Duration::from_millis(50);

/// A listening socket, and the file to remove at the end.
pub fn bind(listener: &NbdListener) -> anyhow::Result<(OwnedFd, Option<PathBuf>)> {
    match &listener.address {
        NbdAddress::Unix(path) => {
            let group = listener.group.as_deref().map(find_group).transpose()?;
            Ok((bind_unix(path, listener.mode.0, group)?, Some(path.clone())))
        }
        NbdAddress::Tcp { host, port } => {
            let listener = TcpListener::bind((host.as_str(), *port)).with_context(|| {
                format!("cannot listen on tcp:{host}:{port}: is another server there? choose another --nbd")
            })?;
            Ok((listener.into(), None))
        }
    }
}

/// Where metrics are read, listening.
pub fn bind_metrics(address: &MetricsAddress) -> anyhow::Result<TcpListener> {
    TcpListener::bind(&address.0).with_context(|| {
        format!("cannot listen on {address} for metrics: is another server there? choose another --metrics")
    })
}

/// Who is let in on the control socket, by the numbers of their groups.
pub fn admission(config: &Config) -> anyhow::Result<Admission> {
    let find = |name: &Option<String>| name.as_deref().map(find_group).transpose();
    Ok(Admission { group: find(&config.control_group)?, readers: find(&config.control_read_group)? })
}

fn find_group(name: &str) -> anyhow::Result<Gid> {
    if let Ok(number) = name.parse() {
        return Ok(Gid::from_raw(number));
    }
    match Group::from_name(name) {
        Ok(Some(group)) => Ok(group.gid),
        Ok(None) => bail!("there is no group {name:?}: choose another for the socket"),
        Err(error) => bail!("cannot look up the group {name:?}: {error}: give its number"),
    }
}

fn bind_unix(path: &Path, mode: u32, group: Option<Gid>) -> anyhow::Result<OwnedFd> {
    if let Some(folder) = path.parent() {
        std::fs::DirBuilder::new().recursive(true).mode(0o755).create(folder).with_context(|| {
            format!("cannot make the folder {}: make it, or choose another --nbd", folder.display())
        })?;
    }
    if let Ok(found) = std::fs::symlink_metadata(path) {
        if !found.file_type().is_socket() {
            bail!("{} is there and is no socket: move it away, or choose another --nbd", path.display());
        }
        // The ring of a daemon that was killed may accept for a moment longer.
        let deadline = Instant::now() + SOCKET_WAIT;
        while UnixStream::connect(path).is_ok() && Instant::now() < deadline {
            std::thread::sleep(SOCKET_RETRY);
        }
        if UnixStream::connect(path).is_ok() {
            bail!("a living server listens on {}: stop it, or choose another --nbd", path.display());
        }
        remove(path);
    }
    // Other threads make no files while the daemon starts.
    let umask_before = umask(Mode::S_IXUSR | Mode::S_IRWXG | Mode::S_IRWXO);
    let bound = UnixListener::bind(path);
    umask(umask_before);
    let listener =
        bound.with_context(|| format!("cannot listen on {}: choose another --nbd", path.display()))?;
    if let Some(group) = group {
        chown(path, None, Some(group)).with_context(|| {
            format!("cannot give {} to group {group}: be a member, or choose another", path.display())
        })?;
    }
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))
        .with_context(|| format!("cannot set the mode of {}", path.display()))?;
    Ok(listener.into())
}

/// Removes a socket's file.
pub fn remove(path: &Path) {
    if let Err(error) = std::fs::remove_file(path) {
        tracing::warn!(path = %path.display(), %error, "cannot remove a socket's file");
    }
}
