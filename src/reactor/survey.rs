//! Where a file has holes. The kernel tells that to who waits for it (lseek, an ioctl), and a reactor must not: so each
//! disk that is asked gets a thread of its own, which ends with the disk.
//!
//! Invariants:
//! - What is called zero is so by SEEK_HOLE, which knows of writes that are on their way to the disk. The map of
//!   extents (FIEMAP) only tells space that is reserved for zeroes from space that is not there.
//! - The descriptor is borrowed for one question at a time: the lock on the file ends with the disk, unless the kernel
//!   never answers.
//! - A thread that hangs holds up the questions to its disk only, and no more than [`QUEUE`] of them. Further ones are
//!   answered with nothing.
//! - A descriptor is closed on the thread, never on the reactor: to close a file on FUSE can be to wait for its server.
//! - Of a file that has become shorter nothing is told: a read there is an error, and not zeroes.

#![allow(unsafe_code)] // an ioctl

use std::fs::File;
use std::ops::Range;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};

use futures_channel::oneshot;
use nix::errno::Errno;
use nix::unistd::{Whence, lseek};

use crate::io::Extent;
use crate::io::extent::{Extents, HOLE, ZERO};
use crate::units::SECTOR_BYTES;

/// Questions that wait for a disk.
const QUEUE: usize = 16;

/// Extents that FIEMAP is asked for at a time.
const MAPPED_MAX: usize = 64;

struct Question {
    file: OwnedFd,
    content_bytes: u64,
    range: Range<u64>,
    max: usize,
    answer: oneshot::Sender<Option<Vec<Extent>>>,
}

/// The thread of one disk.
pub(super) struct Surveyor {
    questions: SyncSender<Question>,
    /// Questions whose descriptors are not closed yet.
    open: Arc<AtomicUsize>,
}

impl Surveyor {
    /// `None` if there can be no thread.
    pub(super) fn start() -> Option<Surveyor> {
        let (sender, questions) = sync_channel::<Question>(QUEUE);
        let open = Arc::new(AtomicUsize::new(0));
        let still_open = open.clone();
        let work = move || {
            for Question { file, content_bytes, range, max, answer } in questions {
                let file = File::from(file);
                // After the disk has hung, most of those who asked have given up.
                let is_awaited = !answer.is_canceled();
                let found = if is_awaited { survey_all(&file, content_bytes, &range, max) } else { None };
                drop(file);
                still_open.fetch_sub(1, Ordering::Relaxed);
                // Nobody waiting any more is no failure.
                drop(answer.send(found));
            }
        };
        let thread = std::thread::Builder::new().name("survey".into()).spawn(work);
        thread.inspect_err(|error| tracing::warn!(%error, "no thread to look for holes")).ok()?;
        Some(Surveyor { questions: sender, open })
    }

    /// The extents of a range of a file that should hold so many bytes; `None` where they cannot be told. Only one thread
    /// asks.
    pub(super) async fn ask(
        &self,
        file: BorrowedFd<'_>,
        content_bytes: u64,
        range: Range<u64>,
        max: usize,
    ) -> Option<Vec<Extent>> {
        if self.open.load(Ordering::Relaxed) >= QUEUE {
            return None;
        }
        let file = file.try_clone_to_owned().ok()?;
        self.open.fetch_add(1, Ordering::Relaxed);
        let (answer, receiver) = oneshot::channel();
        let question = Question { file, content_bytes, range, max, answer };
        assert!(
            self.questions.try_send(question).is_ok(),
            "there is room, and the thread lives as long as this"
        );
        receiver.await.ok().flatten()
    }
}

/// Blocks.
fn survey_all(file: &File, content_bytes: u64, range: &Range<u64>, max: usize) -> Option<Vec<Extent>> {
    let is_whole = || file.metadata().is_ok_and(|facts| facts.is_file() && facts.len() >= content_bytes);
    // Before, and after: it may be cut meanwhile.
    is_whole().then(|| survey(file, range, max)).flatten().filter(|_| is_whole())
}

fn survey(file: &File, range: &Range<u64>, max: usize) -> Option<Vec<Extent>> {
    let mut extents = Extents::new(max);
    let mut at = range.start;
    while at < range.end {
        let data = next_data(file, at)?.clamp(at, range.end);
        // A hole begins and ends on whole sectors; what is data in part is data.
        let data = if data < range.end { data - data % SECTOR_BYTES } else { data };
        if data > at {
            if !push_hole(&mut extents, file, at..data) {
                break;
            }
            at = data;
            continue;
        }
        let hole = next_hole(file, at)?.next_multiple_of(SECTOR_BYTES).clamp(at, range.end);
        if hole == at || !extents.push(hole - at, 0) {
            // A hole where there was data a moment ago: somebody changes the file. Say what is known.
            break;
        }
        at = hole;
    }
    (!extents.is_empty()).then(|| extents.finish())
}

/// Where the next data begins; at the file's end if nowhere.
fn next_data(file: &File, at: u64) -> Option<u64> {
    match lseek(file, at.cast_signed(), Whence::SeekData) {
        Ok(data) => Some(data.cast_unsigned()),
        Err(Errno::ENXIO) => Some(u64::MAX),
        Err(_) => None,
    }
}

/// Where the next hole begins; every file has one at its end.
fn next_hole(file: &File, at: u64) -> Option<u64> {
    lseek(file, at.cast_signed(), Whence::SeekHole).ok().map(i64::cast_unsigned)
}

/// What reads as zeroes, split into what is allocated and what is not. False if there is no room.
fn push_hole(extents: &mut Extents, file: &File, range: Range<u64>) -> bool {
    let mut at = range.start;
    while at < range.end {
        let before = at;
        let Some(mapped) = fiemap(file, at..range.end) else {
            // A filesystem that cannot tell reserves nothing, either.
            return extents.push(range.end - at, HOLE | ZERO);
        };
        if mapped.is_empty() {
            return extents.push(range.end - at, HOLE | ZERO);
        }
        for allocated in mapped {
            let start = allocated.start.clamp(at, range.end);
            let end = allocated.end.clamp(start, range.end);
            // Whole sectors: what is there in part is not told apart.
            let start = start.next_multiple_of(SECTOR_BYTES).min(range.end);
            let end = if end < range.end { (end - end % SECTOR_BYTES).max(start) } else { end.max(start) };
            if !extents.push(start - at, HOLE | ZERO) || !extents.push(end - start, ZERO) {
                return false;
            }
            at = end;
        }
        if at == before {
            // Nothing but a part of a sector.
            return extents.push(range.end - at, 0);
        }
    }
    true
}

mod ioctl {
    /// The head of `struct fiemap`, linux/fiemap.h.
    #[repr(C)]
    #[derive(Clone, Copy, Default)]
    pub struct Head {
        pub start: u64,
        pub length: u64,
        pub flags: u32,
        pub mapped_extents: u32,
        pub extent_count: u32,
        pub reserved: u32,
    }

    /// `struct fiemap_extent`.
    #[repr(C)]
    #[derive(Clone, Copy, Default)]
    pub struct Mapped {
        pub logical: u64,
        pub physical: u64,
        pub length: u64,
        pub reserved: [u64; 2],
        pub flags: u32,
        pub more_reserved: [u32; 3],
    }

    /// `struct fiemap` with so many extents.
    #[repr(C)]
    pub struct Fiemap {
        pub head: Head,
        pub extents: [Mapped; super::MAPPED_MAX],
    }

    const _: () = {
        assert!(size_of::<Head>() == 32);
        assert!(size_of::<Mapped>() == 56);
    };

    nix::ioctl_readwrite_bad!(
        /// The extents of a file (FS_IOC_FIEMAP).
        fiemap,
        nix::request_code_readwrite!(b'f', 11, size_of::<Head>()),
        Fiemap
    );
}

/// Where a range has space behind it: the first of its extents; none at all if there are none. `None` if the filesystem
/// does not tell.
fn fiemap(file: &File, range: Range<u64>) -> Option<Vec<Range<u64>>> {
    let mut request = ioctl::Fiemap {
        head: ioctl::Head {
            start: range.start,
            length: range.end - range.start,
            extent_count: MAPPED_MAX as u32,
            ..Default::default()
        },
        extents: [ioctl::Mapped::default(); MAPPED_MAX],
    };
    // SAFETY: the kernel writes the head and at most `extent_count` extents behind it, which is what there is room for.
    unsafe { ioctl::fiemap(file.as_raw_fd(), &raw mut request) }.ok()?;
    let mapped = &request.extents[..(request.head.mapped_extents as usize).min(MAPPED_MAX)];
    let ranges = mapped.iter().map(|extent| extent.logical..extent.logical.saturating_add(extent.length));
    Some(ranges.filter(|extent| extent.start < range.end && range.start < extent.end).collect())
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::os::unix::fs::FileExt;

    use futures_util::FutureExt;
    use nix::fcntl::{FallocateFlags, fallocate};

    use super::*;

    fn found(file: &File, range: Range<u64>, max: usize) -> Vec<(u64, u32)> {
        let extents = survey_all(file, 8 << 20, &range, max).unwrap();
        extents.iter().map(|extent| (extent.len_bytes, extent.state)).collect()
    }

    /// In the folder of the build, which is on a real filesystem where /tmp may be none.
    fn sparse_file() -> File {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("target/tmp");
        std::fs::create_dir_all(&folder).unwrap();
        let file = tempfile::tempfile_in(folder).unwrap();
        file.set_len(8 << 20).unwrap();
        file
    }

    #[test]
    fn holes_data_and_what_is_reserved() {
        let file = sparse_file();
        let mib = 1 << 20;
        assert_eq!(found(&file, 0..8 * mib, 10), [(8 * mib, HOLE | ZERO)]);
        file.write_all_at(&[1; 4096], 2 * mib).unwrap();
        file.sync_all().unwrap();
        let expected = [(2 * mib, HOLE | ZERO), (4096, 0), (6 * mib - 4096, HOLE | ZERO)];
        assert_eq!(found(&file, 0..8 * mib, 10), expected);
        assert_eq!(found(&file, 0..8 * mib, 2), expected[..2]);
        assert_eq!(found(&file, 2 * mib + 512..2 * mib + 1024, 10), [(512, 0)]);
        assert_eq!(found(&file, 3 * mib..4 * mib, 1), [(mib, HOLE | ZERO)]);
        let reserve = FallocateFlags::FALLOC_FL_KEEP_SIZE;
        if fallocate(&file, reserve, 4 << 20, 1 << 20).is_ok() && fiemap(&file, 0..8 * mib).is_some() {
            file.sync_all().unwrap();
            let expected = [(mib, HOLE | ZERO), (mib, ZERO), (3 * mib, HOLE | ZERO)];
            assert_eq!(found(&file, 3 * mib..8 * mib, 10), expected);
        }
    }

    #[test]
    fn what_is_no_plain_file_or_has_become_shorter_tells_nothing() {
        assert_eq!(survey_all(&File::open("/dev/zero").unwrap(), 0, &(0..4096), 10), None);
        let file = sparse_file();
        assert!(survey_all(&file, 8 << 20, &(0..4096), 10).is_some());
        file.set_len(4 << 20).unwrap();
        assert_eq!(survey_all(&file, 8 << 20, &(0..4096), 10), None);
    }

    #[test]
    fn a_thread_that_hangs_holds_a_few_questions_and_nobody_else() {
        let surveyor = Surveyor::start().unwrap();
        let file = sparse_file();
        // As if the thread had not come to them.
        surveyor.open.store(QUEUE, Ordering::Relaxed);
        assert_eq!(surveyor.ask(file.as_fd(), 0, 0..4096, 1).now_or_never(), Some(None));
        surveyor.open.store(0, Ordering::Relaxed);
        drop(surveyor.ask(file.as_fd(), 8 << 20, 0..4096, 1).now_or_never()); // given up at once, or answered
        let mut asked = Box::pin(surveyor.ask(file.as_fd(), 8 << 20, 0..4096, 1));
        let answer = loop {
            if let Some(answer) = asked.as_mut().now_or_never() {
                break answer;
            }
            std::thread::yield_now();
        };
        assert_eq!(answer.unwrap()[0].state, HOLE | ZERO);
        assert_eq!(surveyor.open.load(Ordering::Relaxed), 0);
    }
}
