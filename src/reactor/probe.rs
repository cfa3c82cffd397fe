//! What the kernel knows about an open disk or file: size, alignment, nature.
//!
//! Nothing here changes anything, apart from the descriptor's flags O_DIRECT and O_NONBLOCK. What cannot be found out is assumed to be
//! the safe thing: no O_DIRECT, not rotational.

#![allow(unsafe_code)] // ioctls and statx

use std::fs::File;
use std::io::{Error, Result};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::fs::FileExt;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::stat::fstat;
use nix::sys::statfs::{FUSE_SUPER_MAGIC, TMPFS_MAGIC, fstatfs};

use crate::io::PAGE_BYTES;
use crate::units::SECTOR_BYTES;

mod ioctl {
    use nix::libc::{c_int, c_uint};
    nix::ioctl_read_bad!(
        /// Bytes of a block device (BLKGETSIZE64: declared with a size_t, but what it writes is a u64).
        size_bytes,
        nix::request_code_read!(0x12, 114, size_of::<usize>()),
        u64
    );
    nix::ioctl_read_bad!(
        /// Bytes of a logical block (BLKSSZGET).
        logical_block_bytes,
        nix::request_code_none!(0x12, 104),
        c_int
    );
    nix::ioctl_read_bad!(
        /// Bytes of a physical block (BLKPBSZGET).
        physical_block_bytes,
        nix::request_code_none!(0x12, 123),
        c_uint
    );
    nix::ioctl_read_bad!(
        /// Whether it takes no writes (BLKROGET). Opening it for writing may succeed all the same.
        read_only,
        nix::request_code_none!(0x12, 94),
        c_int
    );
}

/// Size and alignment.
#[derive(Clone, Copy, Debug)]
pub(super) struct Geometry {
    /// Bytes there really are.
    pub content_bytes: u64,
    /// The same as a whole number of blocks.
    pub size_bytes: u64,
    /// What offsets, lengths and addresses are multiples of.
    pub block_bytes: u32,
    /// What it likes best.
    pub preferred_bytes: u32,
    /// I/O goes past the page cache.
    pub direct: bool,
    /// It takes no writes, however it was opened.
    pub write_protected: bool,
    /// Whoever submits an operation on it may be made to wait, whatever was asked for: a file on FUSE.
    pub submission_waits: bool,
    /// Operations on it are copies, done within their submission: a file on tmpfs.
    pub in_memory: bool,
}

impl Geometry {
    /// The same, as large as it is now. What a plain file that is read directly has beyond its last whole block is left out.
    pub fn measured(self, file: BorrowedFd<'_>, is_block_device: bool) -> Result<Geometry> {
        let mut content_bytes = 0;
        if is_block_device {
            // SAFETY: the kernel writes one u64.
            unsafe { ioctl::size_bytes(file.as_raw_fd(), &raw mut content_bytes) }?;
        } else {
            content_bytes = u64::try_from(fstat(file)?.st_size).unwrap_or(0);
        }
        let whole = content_bytes - content_bytes % u64::from(self.block_bytes);
        let size_bytes = if self.direct { whole } else { content_bytes.next_multiple_of(SECTOR_BYTES) };
        Ok(Geometry { content_bytes, size_bytes, ..self })
    }
}

/// A block device, opened with O_DIRECT.
pub(super) fn block_device(file: &File) -> Result<Geometry> {
    let fd = file.as_raw_fd();
    let (mut content_bytes, mut logical, mut physical, mut read_only) = (0, 0, 0, 0);
    // SAFETY: the kernel writes one u64.
    unsafe { ioctl::size_bytes(fd, &raw mut content_bytes) }?;
    // SAFETY: the kernel writes one int.
    unsafe { ioctl::logical_block_bytes(fd, &raw mut logical) }?;
    // SAFETY: the kernel writes one unsigned int.
    unsafe { ioctl::physical_block_bytes(fd, &raw mut physical) }?;
    // SAFETY: the kernel writes one int.
    unsafe { ioctl::read_only(fd, &raw mut read_only) }?;
    let block_bytes = u32::try_from(logical).ok().filter(|bytes| bytes.is_power_of_two() && *bytes >= 512);
    let block_bytes =
        block_bytes.ok_or_else(|| Error::other(format!("logical blocks of {logical} bytes")))?;
    if block_bytes as usize > PAGE_BYTES {
        return Err(Error::other(format!(
            "logical blocks of {block_bytes} bytes; at most {PAGE_BYTES} are supported"
        )));
    }
    let size_bytes = content_bytes - content_bytes % u64::from(block_bytes);
    let preferred_bytes = physical.max(block_bytes).max(PAGE_BYTES as u32);
    let write_protected = read_only != 0;
    Ok(Geometry {
        content_bytes,
        size_bytes,
        block_bytes,
        preferred_bytes,
        direct: true,
        write_protected,
        submission_waits: false,
        in_memory: false,
    })
}

/// A plain file, opened with O_DIRECT if its filesystem took that. Where its size or the filesystem does not allow
/// direct I/O for all of it, O_DIRECT is cleared.
pub(super) fn plain_file(file: &File) -> Result<Geometry> {
    let content_bytes = file.metadata()?.len();
    let flags = OFlag::from_bits_retain(fcntl(file, FcntlArg::F_GETFL)?);
    let mut block_bytes = None;
    if flags.contains(OFlag::O_DIRECT) {
        block_bytes = direct_alignment(file).filter(|bytes| content_bytes.is_multiple_of(u64::from(*bytes)));
        if block_bytes.is_none() {
            fcntl(file, FcntlArg::F_SETFL(flags - OFlag::O_DIRECT))?;
        }
    }
    let filesystem = fstatfs(file)?.filesystem_type();
    if filesystem == TMPFS_MAGIC {
        // tmpfs never waits for a device, but does not say so (FMODE_NOWAIT), and io_uring would give every operation to a
        // worker thread, at some forty times the cost. With this flag it tries on the submitting thread, where they succeed
        // (writes with O_DIRECT, that is since Linux 6.6).
        let flags = OFlag::from_bits_retain(fcntl(file, FcntlArg::F_GETFL)?);
        fcntl(file, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    }
    Ok(Geometry {
        content_bytes,
        size_bytes: content_bytes.next_multiple_of(SECTOR_BYTES),
        block_bytes: block_bytes.unwrap_or(SECTOR_BYTES as u32),
        preferred_bytes: PAGE_BYTES as u32,
        direct: block_bytes.is_some(),
        write_protected: false,
        submission_waits: filesystem == FUSE_SUPER_MAGIC,
        in_memory: filesystem == TMPFS_MAGIC,
    })
}

/// What direct I/O on this file must be a multiple of; none if it cannot be done.
fn direct_alignment(file: &File) -> Option<u32> {
    let bytes = match statx_alignment(file) {
        Some(bytes) => bytes,
        None => probe_alignment(file)?,
    };
    let bytes = bytes.max(SECTOR_BYTES as u32);
    (bytes.is_power_of_two() && bytes as usize <= PAGE_BYTES).then_some(bytes)
}

/// As the filesystem says (Linux 6.1, where it supports that); 0 for "no direct I/O".
fn statx_alignment(file: &File) -> Option<u32> {
    // SAFETY: statx is plain C data.
    let mut facts: libc::statx = unsafe { std::mem::zeroed() };
    let mask = libc::STATX_DIOALIGN;
    // SAFETY: the path is empty and terminated, the result is a statx that the kernel fills.
    let done =
        unsafe { libc::statx(file.as_raw_fd(), c"".as_ptr(), libc::AT_EMPTY_PATH, mask, &raw mut facts) };
    if done != 0 || facts.stx_mask & mask == 0 {
        return None;
    }
    if facts.stx_dio_offset_align == 0 {
        return Some(0);
    }
    Some(facts.stx_dio_mem_align.max(facts.stx_dio_offset_align))
}

/// By trying.
fn probe_alignment(file: &File) -> Option<u32> {
    let mut memory = vec![0; 2 * PAGE_BYTES];
    let start = memory.as_ptr().align_offset(PAGE_BYTES);
    let sizes = [SECTOR_BYTES as usize, PAGE_BYTES];
    let bytes = sizes.into_iter().find(|&bytes| {
        // 512 bytes must work at any multiple of 512, in the file and in memory.
        let part = if bytes == PAGE_BYTES { start..start + bytes } else { start + bytes..start + 2 * bytes };
        file.read_at(&mut memory[part.clone()], (part.start - start) as u64).is_ok()
    })?;
    Some(bytes as u32)
}

/// A number in sysfs about a block device, given by its device number.
fn device_attribute(device: u64, name: &str) -> Option<u64> {
    let path = format!("/sys/dev/block/{}:{}/{name}", libc::major(device), libc::minor(device));
    std::fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// The same about its queue; a partition has its disk's.
pub(super) fn queue_attribute(device: u64, name: &str) -> Option<u64> {
    device_attribute(device, &format!("queue/{name}"))
        .or_else(|| device_attribute(device, &format!("../queue/{name}")))
}

/// An errno of nix as an error of std.
pub(super) fn io_error(errno: Errno) -> Error {
    Error::from_raw_os_error(errno as i32)
}

#[cfg(test)]
mod tests {
    #[test]
    fn request_codes_are_those_of_linux_fs_h() {
        assert_eq!(nix::request_code_none!(0x12, 104), 0x1268);
        assert_eq!(nix::request_code_none!(0x12, 123), 0x127b);
        assert_eq!(nix::request_code_none!(0x12, 94), 0x125e);
        assert_eq!(nix::request_code_read!(0x12, 114, size_of::<u64>()), 0x8008_1272);
    }
}
