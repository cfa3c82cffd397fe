//! The reactor on real rings: real files, sockets, threads, and loop devices where the test runs as root.

mod disks;
mod locks;
mod sockets;
mod tasks;

use std::fs::File;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;
use std::time::Duration;

use futures_channel::oneshot;
use raidd::io::{Pool, Slice};
use raidd::reactor::{Disk, OpenOptions, OpenedDisk, ReactorHandle, start};
use tempfile::TempDir;

const MIB: u64 = 1 << 20;

/// A test that gets no answer for so long has failed.
const PATIENCE: Duration = Duration::from_secs(60);

/// Waits on a thread that is no reactor's, as the control thread will: in tokio.
fn wait<T>(answer: oneshot::Receiver<T>) -> Result<T, oneshot::Canceled> {
    let tokio = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    tokio.block_on(async { tokio::time::timeout(PATIENCE, answer).await.expect("an answer in time") })
}

fn finish(handle: &ReactorHandle, thread: JoinHandle<()>) {
    handle.stop();
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

/// Runs a future on a reactor of its own.
fn on_reactor<T: Send + 'static, F: Future<Output = T> + 'static>(
    make: impl FnOnce() -> F + Send + 'static,
) -> T {
    let (handle, thread) = start(0, "test").unwrap();
    let answer = wait(handle.call(make));
    finish(&handle, thread);
    answer.expect("a result, or the task's panic before this")
}

fn pattern(len: usize, seed: u8) -> Vec<u8> {
    (0..len).map(|i| (i as u32).wrapping_mul(2_654_435_761).to_le_bytes()[3] ^ seed).collect()
}

fn slice_of(pool: &Pool, bytes: &[u8]) -> Slice {
    let mut buf = pool.try_alloc(bytes.len()).expect("room in the test's pool");
    buf.copy_from_slice(bytes);
    buf.freeze()
}

fn disk_directory() -> TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

fn file_of(directory: &Path, len: u64) -> PathBuf {
    let path = directory.join("disk");
    File::create(&path).unwrap().set_len(len).unwrap();
    path
}

fn open(path: &Path) -> OpenedDisk {
    Disk::open(path, OpenOptions::default()).unwrap()
}
