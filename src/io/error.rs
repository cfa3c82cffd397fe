//! What can go wrong with an I/O operation: a kind for code to decide by, a context for people.

use std::fmt;

/// What kind of failure; who decides anything decides by this.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum IoErrorKind {
    /// The media or the path to it failed: EIO and kin. The data there is out of reach.
    Media,
    /// There is no space for it: ENOSPC, EDQUOT, EFBIG. No media failure.
    NoSpace,
    /// The device cannot do this kind of operation: EOPNOTSUPP. No media failure.
    Unsupported,
    /// The request made no sense: out of range, misaligned. No media failure.
    Invalid,
    /// The device takes no writes.
    ReadOnly,
    /// The device is gone: ENODEV, ENXIO.
    Gone,
    /// The deadline passed; the operation may still be under way.
    Timeout,
    /// The peer ended the stream, or the connection broke.
    Closed,
    /// The array or the daemon is stopping.
    ShuttingDown,
}

/// An I/O failure. Small and `Copy`: it is passed between cores and kept in counters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IoError {
    /// For code.
    pub kind: IoErrorKind,
    /// For people: what was being done, or what is wrong.
    pub context: &'static str,
    /// The errno behind it, where there is one.
    pub errno: Option<i32>,
}

impl IoError {
    /// An error that does not come from the kernel.
    pub const fn new(kind: IoErrorKind, context: &'static str) -> IoError {
        IoError { kind, context, errno: None }
    }

    /// An errno (positive), seen while doing `context`.
    pub fn from_errno(errno: i32, context: &'static str) -> IoError {
        let kind = match errno {
            libc::ENOSPC | libc::EDQUOT | libc::EFBIG => IoErrorKind::NoSpace,
            libc::EOPNOTSUPP | libc::ENOSYS => IoErrorKind::Unsupported,
            libc::EINVAL => IoErrorKind::Invalid,
            libc::EROFS | libc::EPERM | libc::EACCES | libc::EBADF => IoErrorKind::ReadOnly,
            libc::ENODEV | libc::ENXIO | libc::ENOMEDIUM | libc::ESTALE => IoErrorKind::Gone,
            libc::ETIMEDOUT => IoErrorKind::Timeout,
            libc::EPIPE | libc::ECONNRESET | libc::ECONNABORTED | libc::ENOTCONN | libc::ESHUTDOWN => {
                IoErrorKind::Closed
            }
            _ => IoErrorKind::Media,
        };
        IoError { kind, context, errno: Some(errno) }
    }

    /// Whether the member itself is to blame, so that it must not be trusted with more (DESIGN law 8: ENOSPC,
    /// EOPNOTSUPP and EINVAL are no media failures).
    pub fn blames_media(&self) -> bool {
        matches!(
            self.kind,
            IoErrorKind::Media | IoErrorKind::Gone | IoErrorKind::Timeout | IoErrorKind::ReadOnly
        )
    }
}

impl fmt::Display for IoError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.context)?;
        if let Some(errno) = self.errno {
            write!(f, ": {}", std::io::Error::from_raw_os_error(errno))?;
        }
        Ok(())
    }
}

impl std::error::Error for IoError {}
