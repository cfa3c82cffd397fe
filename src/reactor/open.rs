//! Opening a disk: a block device, or a plain file that stands for one.
//!
//! Blocking; done on any thread. What comes out can be sent to the reactor that will use it.
//!
//! Invariants (DESIGN law 10):
//! - The lock that says "this disk is ours" is on the descriptor that does the I/O, and on no other: for a block device
//!   O_EXCL, which also keeps mounts and md away, for a plain file an exclusive flock. No flock on a block device: udev takes
//!   that for a sign that somebody is about to change it, and puts off all that it has to do with it. Operations that are still in a dead
//!   daemon's ring hold that descriptor, so its successor does not get the lock while one of its writes can still land.
//! - It is let go only with the last operation that uses the descriptor.
//!
//! How it fails: [`OpenError`] says what is wrong with which path, why, and what to do.

use std::fmt;
use std::fs::{File, OpenOptions as FileOptions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, Flock, FlockArg, fallocate};

use super::probe::{self, Geometry, io_error};
use crate::io::DeviceInfo;

/// How often a lock that another holds is tried again.
const LOCK_RETRY: Duration = Duration::from_millis(50);

/// How to open a disk.
#[derive(Clone, Copy, Debug)]
pub struct OpenOptions {
    /// Take no writes.
    pub read_only: bool,
    /// Lock out everybody else. Without it, nothing is promised about what others write meanwhile.
    pub exclusive: bool,
    /// How long to wait for another who has it open: a daemon that was killed may still have writes under way.
    pub wait_for_lock: Duration,
}

impl Default for OpenOptions {
    /// For reading and writing, exclusively, without waiting.
    fn default() -> OpenOptions {
        OpenOptions { read_only: false, exclusive: true, wait_for_lock: Duration::ZERO }
    }
}

/// Which disk it is, whatever path led to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Identity {
    /// A block device, by its device number.
    BlockDevice {
        /// Major and minor.
        device: u64,
    },
    /// A plain file.
    File {
        /// The filesystem's device number.
        filesystem: u64,
        /// The file's number in it.
        inode: u64,
    },
}

impl Identity {
    /// Of what lies at `path`, without opening it.
    pub fn of(path: &Path) -> Result<Identity, OpenError> {
        let metadata = std::fs::metadata(path).map_err(|error| OpenError::from_io(path, error))?;
        Identity::from_metadata(&metadata).ok_or_else(|| OpenError::new(path, OpenErrorKind::NotADisk))
    }

    fn from_metadata(metadata: &std::fs::Metadata) -> Option<Identity> {
        if metadata.file_type().is_block_device() {
            Some(Identity::BlockDevice { device: metadata.rdev() })
        } else if metadata.is_file() {
            Some(Identity::File { filesystem: metadata.dev(), inode: metadata.ino() })
        } else {
            None
        }
    }

    /// Whether it is a block device.
    pub fn is_block_device(&self) -> bool {
        matches!(self, Identity::BlockDevice { .. })
    }

    /// The block device that holds the bytes, as far as it is known.
    fn device(&self) -> u64 {
        match self {
            Identity::BlockDevice { device } => *device,
            Identity::File { filesystem, .. } => *filesystem,
        }
    }
}

/// A disk that is open, and locked if that was asked for. Can be sent to a reactor; dropped, it is closed.
#[derive(Debug)]
pub struct OpenedDisk {
    path: PathBuf,
    file: LockedFile,
    identity: Identity,
    geometry: Geometry,
    info: DeviceInfo,
    /// The device has a command of its own for zeroes (plain files: their filesystem will say).
    zeroes_itself: bool,
}

impl OpenedDisk {
    /// Opens what lies at `path`. Blocks, for as long as `wait_for_lock` at worst.
    pub fn open(path: &Path, options: OpenOptions) -> Result<OpenedDisk, OpenError> {
        let deadline = Instant::now() + options.wait_for_lock;
        loop {
            match OpenedDisk::try_open(path, options) {
                Err(error) if error.kind == OpenErrorKind::InUse && Instant::now() < deadline => {
                    std::thread::sleep(LOCK_RETRY);
                }
                outcome => return outcome,
            }
        }
    }

    fn try_open(path: &Path, options: OpenOptions) -> Result<OpenedDisk, OpenError> {
        // Before opening it: opening a pipe or a tape does something.
        let expected = Identity::of(path)?;
        let failed = |error| OpenError::from_io(path, error);
        let exclusive = if options.exclusive && expected.is_block_device() { libc::O_EXCL } else { 0 };
        let open = |flags| {
            FileOptions::new().read(true).write(!options.read_only).custom_flags(flags | exclusive).open(path)
        };
        let file = match open(libc::O_DIRECT) {
            // tmpfs and others know no direct I/O.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) && !expected.is_block_device() => {
                open(0)
            }
            outcome => outcome,
        };
        let file = file.map_err(failed)?;
        let metadata = file.metadata().map_err(failed)?;
        let identity = Identity::from_metadata(&metadata);
        let identity = identity.ok_or_else(|| OpenError::new(path, OpenErrorKind::NotADisk))?;
        if identity != expected {
            return Err(failed(io::Error::other("it was replaced while it was being opened")));
        }
        let file = if options.exclusive && !identity.is_block_device() {
            let lock = Flock::lock(file, FlockArg::LockExclusiveNonblock);
            LockedFile::Locked(lock.map_err(|(_, errno)| failed(io_error(errno)))?)
        } else {
            LockedFile::Unlocked(file)
        };
        let geometry = if identity.is_block_device() {
            probe::block_device(file.file()).map_err(failed)?
        } else {
            probe::plain_file(file.file()).map_err(failed)?
        };
        if geometry.write_protected && !options.read_only {
            return Err(OpenError::new(path, OpenErrorKind::ReadOnly));
        }
        let attribute = |name| probe::queue_attribute(identity.device(), name);
        let info = DeviceInfo {
            size_bytes: geometry.size_bytes,
            read_block_bytes: geometry.block_bytes,
            write_block_bytes: geometry.block_bytes,
            preferred_bytes: geometry.preferred_bytes,
            read_only: options.read_only,
            rotational: attribute("rotational") == Some(1),
        };
        let zeroes_itself =
            !identity.is_block_device() || attribute("write_zeroes_max_bytes").is_some_and(|bytes| bytes > 0);
        Ok(OpenedDisk { path: path.to_owned(), file, identity, geometry, info, zeroes_itself })
    }

    /// The path it was opened by.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Which disk it is.
    pub fn identity(&self) -> Identity {
        self.identity
    }

    /// Size, alignment and nature, as the device will say.
    pub fn info(&self) -> DeviceInfo {
        self.info
    }

    /// Whether I/O goes past the page cache. If not, only a flush makes writes durable.
    pub fn is_direct(&self) -> bool {
        self.geometry.direct
    }

    /// Reserves space for all of a plain file, so that a full filesystem shows now and not under a write. False if the
    /// filesystem cannot reserve. Nothing to do for a block device: true. The content and the length stay as they are.
    pub fn allocate(&self) -> Result<bool, OpenError> {
        if self.identity.is_block_device() || self.geometry.size_bytes == 0 {
            return Ok(true);
        }
        let len = libc::off_t::try_from(self.geometry.size_bytes).expect("a file's length is an off_t");
        loop {
            match fallocate(self.file.file(), FallocateFlags::FALLOC_FL_KEEP_SIZE, 0, len) {
                Ok(()) => return Ok(true),
                Err(Errno::EINTR) => {}
                Err(Errno::EOPNOTSUPP | Errno::ENOSYS) => return Ok(false),
                Err(errno) => return Err(OpenError::from_io(&self.path, io_error(errno))),
            }
        }
    }

    pub(super) fn geometry(&self) -> Geometry {
        self.geometry
    }

    pub(super) fn zeroes_itself(&self) -> bool {
        self.zeroes_itself
    }

    pub(super) fn into_file(self) -> LockedFile {
        self.file
    }
}

/// An open file, with its lock. Unlocked when dropped.
#[derive(Debug)]
pub(super) enum LockedFile {
    Locked(Flock<File>),
    Unlocked(File),
}

impl LockedFile {
    fn file(&self) -> &File {
        match self {
            LockedFile::Locked(file) => file,
            LockedFile::Unlocked(file) => file,
        }
    }
}

impl AsFd for LockedFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file().as_fd()
    }
}

/// Why a disk cannot be opened, for code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenErrorKind {
    /// There is nothing at that path, or no device behind it.
    NotFound,
    /// It is neither a block device nor a plain file.
    NotADisk,
    /// Another holds it.
    InUse,
    /// We may not.
    Permission,
    /// It takes no writes.
    ReadOnly,
    /// The filesystem has no room for all of it.
    NoSpace,
    /// Something else; see the source.
    Other,
}

/// Why a disk cannot be opened, for people.
#[derive(Debug)]
pub struct OpenError {
    /// For code.
    pub kind: OpenErrorKind,
    /// What was to be opened.
    pub path: PathBuf,
    source: Option<io::Error>,
}

impl OpenError {
    fn new(path: &Path, kind: OpenErrorKind) -> OpenError {
        OpenError { kind, path: path.to_owned(), source: None }
    }

    fn from_io(path: &Path, error: io::Error) -> OpenError {
        let kind = match error.raw_os_error() {
            Some(libc::ENOENT | libc::ENOTDIR | libc::ENXIO | libc::ENODEV | libc::ENOMEDIUM) => {
                OpenErrorKind::NotFound
            }
            Some(libc::EISDIR) => OpenErrorKind::NotADisk,
            Some(libc::EBUSY | libc::EWOULDBLOCK | libc::ETXTBSY) => OpenErrorKind::InUse,
            Some(libc::EACCES | libc::EPERM) => OpenErrorKind::Permission,
            Some(libc::EROFS) => OpenErrorKind::ReadOnly,
            Some(libc::ENOSPC | libc::EDQUOT | libc::EFBIG) => OpenErrorKind::NoSpace,
            _ => OpenErrorKind::Other,
        };
        OpenError { kind, path: path.to_owned(), source: Some(error) }
    }
}

impl fmt::Display for OpenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = self.path.display();
        match self.kind {
            OpenErrorKind::NotFound => {
                write!(f, "{path}: no such file or device; check the path, and that the disk is attached")
            }
            OpenErrorKind::NotADisk => {
                write!(f, "{path}: neither a block device nor a plain file; give one of these")
            }
            OpenErrorKind::InUse => write!(
                f,
                "{path}: in use: held by another process, or mounted, or part of another array; stop that first"
            ),
            OpenErrorKind::Permission => write!(
                f,
                "{path}: permission denied; run as a user who may read and write it, or give the container the device"
            ),
            OpenErrorKind::ReadOnly => {
                write!(f, "{path}: it takes no writes; remove the write protection, or open it read-only")
            }
            OpenErrorKind::NoSpace => write!(
                f,
                "{path}: its filesystem has no room for the whole file; free some, or make the file smaller"
            ),
            OpenErrorKind::Other => write!(f, "{path}: cannot be opened"),
        }?;
        match &self.source {
            Some(source) => write!(f, " ({source})"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for OpenError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_ref().map(|source| source as _)
    }
}
