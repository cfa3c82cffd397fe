//! The control socket as a file: who may hold it, who may open it, and how it goes away.
//!
//! Invariants:
//! - While a [`ControlSocket`] lives, its process holds a lock on the file `<socket>.lock` beside it. So of two daemons
//!   that start at once one gets the socket, and a socket file without a lock and without anybody who answers is a relic
//!   that may be replaced.
//! - At no time may the file be opened by more than it is meant for: its mode is its owner's alone before it is bound, then comes its
//!   group, then the mode of that.
//! - Nothing but a socket is ever replaced.

use std::fs::{DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, ErrorKind};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind as bind_fd, listen, socket,
};
use nix::sys::stat::{Mode, fchmod};
use nix::unistd::chown;

use super::Admission;

/// Who may open the socket when it is made: its owner. Others are let in once it belongs to their group.
const SOCKET_MODE: Mode = Mode::S_IRUSR.union(Mode::S_IWUSR);
/// With a group.
const GROUP_MODE: u32 = 0o660;
/// With a group of readers, who are told apart when they ask (`admission`).
const READERS_MODE: u32 = 0o666;
/// Connections that wait to be accepted.
const BACKLOG: i32 = 128;

/// Why there is no control socket. One line: what, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Somebody serves it.
    #[error(
        "control socket {} is served by a raidd that runs already: stop that one, or choose another path with --control",
        .0.display()
    )]
    InUse(PathBuf),
    /// Something else has the name.
    #[error("{} is there and is no socket: move it away, or choose another path with --control", .0.display())]
    NotASocket(PathBuf),
    /// The kernel takes 107 bytes.
    #[error("control socket path {} is too long (107 bytes at most): choose a shorter one with --control", .0.display())]
    TooLong(PathBuf),
    /// The file system or the kernel refused.
    #[error("cannot {doing} {}: {source}: check the folder, or choose another path with --control", .path.display())]
    Io {
        /// What was tried.
        doing: &'static str,
        /// With what.
        path: PathBuf,
        /// What it said.
        source: io::Error,
    },
}

impl BindError {
    fn io(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> BindError {
        let path = path.to_owned();
        move |source| BindError::Io { doing, path, source }
    }
}

/// A listening control socket; dropping it removes the file.
#[derive(Debug)]
pub struct ControlSocket {
    pub(super) listener: UnixListener,
    pub(super) admission: Admission,
    place: Option<Place>,
}

/// The files of a socket that this process has bound itself.
#[derive(Debug)]
struct Place {
    path: PathBuf,
    lock_path: PathBuf,
    /// Held until the files are gone.
    _lock: Flock<File>,
}

impl ControlSocket {
    /// A socket that somebody else bound and looks after, like systemd.
    pub fn inherited(listener: UnixListener, admission: Admission) -> ControlSocket {
        ControlSocket { listener, admission, place: None }
    }

    /// Where it is, if this process bound it.
    pub fn path(&self) -> Option<&Path> {
        self.place.as_ref().map(|place| place.path.as_path())
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // Best effort: a file that stays is a relic, which the next daemon replaces.
        for path in [&self.path, &self.lock_path] {
            if let Err(error) = std::fs::remove_file(path)
                && error.kind() != ErrorKind::NotFound
            {
                tracing::warn!(path = %path.display(), %error, "cannot remove a file of the control socket");
            }
        }
    }
}

/// Binds the control socket at `path` for those who are admitted (mode 0600, if that is nobody in particular), making its folder
/// if that is missing and replacing a socket that nobody serves any more.
///
/// # Errors
/// Somebody serves it, something else is there, the path is too long, or the kernel refuses.
pub fn bind(path: &Path, admission: Admission) -> Result<ControlSocket, BindError> {
    let address = UnixAddr::new(path).map_err(|_| BindError::TooLong(path.to_owned()))?;
    if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(folder)
            .map_err(BindError::io("make the folder", folder))?;
    }
    let mut lock_path = path.as_os_str().to_owned();
    lock_path.push(".lock");
    let lock_path = PathBuf::from(lock_path);
    let lock = lock(&lock_path, path)?;
    clear(path)?;
    let listener = listen_at(&address).map_err(|errno| match errno {
        Errno::EADDRINUSE => BindError::InUse(path.to_owned()),
        errno => BindError::io("bind the control socket", path)(errno.into()),
    })?;
    let place = Place { path: path.to_owned(), lock_path, _lock: lock };
    open_to(admission, path)?;
    Ok(ControlSocket { listener, admission, place: Some(place) })
}

/// Lets groups open the socket. First it is theirs, then they may.
fn open_to(admission: Admission, path: &Path) -> Result<(), BindError> {
    if let Some(group) = admission.group {
        chown(path, None, Some(group))
            .map_err(|errno| BindError::io("give to its group", path)(errno.into()))?;
    }
    let mode = match admission {
        Admission { readers: Some(_), .. } => READERS_MODE,
        Admission { group: Some(_), .. } => GROUP_MODE,
        Admission { group: None, readers: None } => return Ok(()),
    };
    std::fs::set_permissions(path, Permissions::from_mode(mode))
        .map_err(BindError::io("set the mode of", path))
}

/// Takes the lock beside the socket.
fn lock(lock_path: &Path, socket_path: &Path) -> Result<Flock<File>, BindError> {
    loop {
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .custom_flags(libc::O_NOFOLLOW | libc::O_CLOEXEC)
            .open(lock_path)
            .map_err(BindError::io("open the lock", lock_path))?;
        let lock = Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| match errno {
            Errno::EWOULDBLOCK => BindError::InUse(socket_path.to_owned()),
            errno => BindError::io("lock", lock_path)(errno.into()),
        })?;
        // A daemon that ends removes the file while it holds the lock, so this may be the lock on a file that has no name
        // any more, which nobody else would meet.
        let held = lock.metadata().map_err(BindError::io("look at", lock_path))?;
        match std::fs::metadata(lock_path) {
            Ok(named) if named.ino() == held.ino() && named.dev() == held.dev() => return Ok(lock),
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(BindError::io("look at", lock_path)(error)),
        }
    }
}

/// Removes a socket that nobody serves. The lock is held, so nobody is about to serve it either.
fn clear(path: &Path) -> Result<(), BindError> {
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(BindError::io("look at", path)(error)),
        Ok(found) if !found.file_type().is_socket() => return Err(BindError::NotASocket(path.to_owned())),
        Ok(_) => {}
    }
    match UnixStream::connect(path) {
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => {
            std::fs::remove_file(path).map_err(BindError::io("replace the control socket", path))
        }
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        Err(error) if error.kind() == ErrorKind::PermissionDenied => {
            Err(BindError::io("use the control socket", path)(error))
        }
        // Whoever answers, or is too busy to, is alive.
        Ok(_) | Err(_) => Err(BindError::InUse(path.to_owned())),
    }
}

/// A listening socket. Linux makes the file with the mode that the socket has when it is bound, less the umask, so there
/// is no moment at which others could open it (net/unix/af_unix.c, unix_bind_bsd).
fn listen_at(address: &UnixAddr) -> Result<UnixListener, Errno> {
    let fd: OwnedFd = socket(
        AddressFamily::Unix,
        SockType::Stream,
        SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
        None,
    )?;
    fchmod(&fd, SOCKET_MODE)?;
    bind_fd(fd.as_raw_fd(), address)?;
    listen(&fd, Backlog::new(BACKLOG)?)?;
    Ok(UnixListener::from(fd))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_folder_is_made_and_the_file_is_private() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a/b/control.sock");
        let socket = bind(&path, Admission::default()).unwrap();
        assert_eq!(socket.path(), Some(path.as_path()));
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        UnixStream::connect(&path).unwrap();
        drop(socket);
        assert_eq!(std::fs::read_dir(path.parent().unwrap()).unwrap().count(), 0, "nothing is left behind");
    }

    #[test]
    fn a_living_daemon_keeps_its_socket() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("control.sock");
        let _first = bind(&path, Admission::default()).unwrap();
        let error = bind(&path, Admission::default()).unwrap_err();
        assert!(matches!(error, BindError::InUse(_)), "{error}");
        let text = error.to_string();
        assert!(text.contains("stop that one") && text.contains("--control") && !text.contains('\n'));
    }

    #[test]
    fn a_server_without_a_lock_keeps_its_socket_too() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("control.sock");
        let _other = UnixListener::bind(&path).unwrap();
        assert!(matches!(bind(&path, Admission::default()).unwrap_err(), BindError::InUse(_)));
        assert!(path.exists());
    }

    #[test]
    fn groups_may_open_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("control.sock");
        let gid = nix::unistd::Gid::effective();
        let own = Some(gid);
        for (group, readers, mode) in [(own, None, 0o660), (None, own, 0o666), (own, own, 0o666)] {
            let _socket = bind(&path, Admission { group, readers }).unwrap();
            let file = std::fs::metadata(&path).unwrap();
            assert_eq!(file.permissions().mode() & 0o777, mode);
            assert_eq!(file.gid(), gid.as_raw());
        }
    }

    #[test]
    fn a_relic_is_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("control.sock");
        drop(UnixListener::bind(&path).unwrap()); // the file stays, as after kill -9
        std::fs::write(folder.path().join("control.sock.lock"), "").unwrap();
        let _socket = bind(&path, Admission::default()).unwrap();
        UnixStream::connect(&path).unwrap();
    }

    #[test]
    fn a_file_that_is_no_socket_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("control.sock");
        std::fs::write(&path, "precious").unwrap();
        assert!(matches!(bind(&path, Admission::default()).unwrap_err(), BindError::NotASocket(_)));
        assert_eq!(std::fs::read(&path).unwrap(), b"precious");
    }

    #[test]
    fn a_long_path_is_named_as_such() {
        let path = Path::new("/tmp").join("x".repeat(110));
        let error = bind(&path, Admission::default()).unwrap_err();
        assert!(error.to_string().contains("too long"), "{error}");
    }

    #[test]
    fn of_many_at_once_one_wins() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("control.sock");
        for _ in 0..20 {
            let won = std::thread::scope(|scope| {
                let racers: Vec<_> =
                    (0..8).map(|_| scope.spawn(|| bind(&path, Admission::default()))).collect();
                racers.into_iter().filter_map(|racer| racer.join().unwrap().ok()).collect::<Vec<_>>()
            });
            assert_eq!(won.len(), 1);
            UnixStream::connect(&path).unwrap();
        }
    }
}
