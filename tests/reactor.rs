//! The reactor on real rings: real files, sockets, threads, and loop devices where the test runs as root.

use std::cell::{Cell, RefCell};
use std::fs::{self, File};
use std::future::Future;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::process::{Child, Command, Stdio};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use futures_channel::oneshot;
use futures_util::FutureExt;
use futures_util::future::{join, join_all};
use nix::sys::socket::{setsockopt, sockopt};
use raidd::io::{Clock, Device, Fua, IoErrorKind, MAX_BUF_BYTES, Pool, Slice, Spawn, Stream, Zeroing};
use raidd::reactor::{
    Disk, Identity, Listener, OpenErrorKind, OpenOptions, OpenedDisk, ReactorHandle, Socket, Stopped,
    runtime, start,
};
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

/// Writes, reads, flushes, zeroes and discards; checks every byte against a copy in memory.
async fn exercise(opened: OpenedDisk) {
    let disk = Disk::new(opened);
    let info = disk.info();
    let block = u64::from(info.read_block_bytes);
    let pool = Pool::new(16 * MAX_BUF_BYTES).unwrap();
    let mut copy = vec![0; 4 << 20];

    // One slice, several slices, more slices than one writev takes; with and without Fua.
    let large = pattern(MAX_BUF_BYTES, 1);
    disk.write(0, vec![slice_of(&pool, &large)], Fua::No).await.unwrap();
    copy[..large.len()].copy_from_slice(&large);
    let parts: Vec<Slice> = (0..5).map(|i| slice_of(&pool, &pattern(4096 * (i + 1), i as u8))).collect();
    let mut at = 2 * MIB;
    let start = at;
    for part in &parts {
        copy[at as usize..at as usize + part.len()].copy_from_slice(part);
        at += part.len() as u64;
    }
    disk.write(start, parts, Fua::Yes).await.unwrap();
    let one = slice_of(&pool, &pattern(block as usize, 9));
    let many = if block == 512 { 2500 } else { 1100 };
    let scattered = MIB / 4 * 10;
    let room = ((copy.len() as u64 - scattered) / block).min(many);
    for i in 0..room {
        let at = (scattered + i * block) as usize;
        copy[at..at + one.len()].copy_from_slice(&one);
    }
    disk.write(scattered, vec![one; room as usize], Fua::No).await.unwrap();
    disk.flush().await.unwrap();

    let check = async |copy: &[u8]| {
        for (i, expected) in copy.chunks(MAX_BUF_BYTES).enumerate() {
            let buf = pool.alloc(expected.len()).await;
            let buf = disk.read((i * MAX_BUF_BYTES) as u64, buf).await.unwrap();
            assert!(*buf == *expected, "megabyte {i}");
        }
    };
    check(&copy).await;
    let middle = disk.read(block, pool.alloc(block as usize).await).await.unwrap();
    assert!(*middle == copy[block as usize..2 * block as usize]);
    drop(middle);

    // Zeroes, where the disk makes them; nothing changes where it does not.
    for (at, zeroing, fua) in [(block, Zeroing::Unmap, Fua::Yes), (MIB / 2, Zeroing::Allocate, Fua::No)] {
        let len = 16 * block;
        match disk.write_zeroes(at, len, zeroing, fua).await {
            Ok(()) => copy[at as usize..(at + len) as usize].fill(0),
            Err(error) => assert_eq!(error.kind, IoErrorKind::Unsupported, "{error}"),
        }
        check(&copy).await;
    }
    let (at, len) = (2 * MIB, 8 * block);
    disk.discard(at, len).await.unwrap();
    disk.write_zeroes(0, 0, Zeroing::Unmap, Fua::Yes).await.unwrap();

    // What makes no sense is refused.
    let past = disk.read(info.size_bytes, pool.alloc(block as usize).await).await.unwrap_err();
    assert_eq!(past.kind, IoErrorKind::Invalid);
    let wrap = disk.write_zeroes(u64::MAX - block + 1, 2 * block, Zeroing::Unmap, Fua::No).await.unwrap_err();
    assert_eq!(wrap.kind, IoErrorKind::Invalid);
    let askew = disk.read(block / 2, pool.alloc(block as usize).await).await.unwrap_err();
    assert_eq!(askew.kind, IoErrorKind::Invalid);
    assert_eq!(pool.free_bytes(), pool.total_bytes());
}

#[test]
fn round_trips_on_a_file() {
    let directory = disk_directory();
    let opened = open(&file_of(directory.path(), 8 * MIB));
    println!("direct: {}, {:?}", opened.is_direct(), opened.info());
    on_reactor(|| exercise(opened));
}

#[test]
fn round_trips_on_tmpfs() {
    let directory = tempfile::tempdir_in("/dev/shm").unwrap();
    let opened = open(&file_of(directory.path(), 8 * MIB));
    println!("direct: {}, {:?}", opened.is_direct(), opened.info());
    on_reactor(|| exercise(opened));
}

/// A loop device, detached when dropped. None where the test may not make one.
struct Loop(String);

impl Loop {
    fn new(file: &Path, sector_bytes: u32) -> Option<Loop> {
        let sector = sector_bytes.to_string();
        let args = ["--find", "--show", "--direct-io=on", "--sector-size", &sector];
        let output = Command::new("losetup").args(args).arg(file).output().ok()?;
        if !output.status.success() {
            eprintln!("skipped: losetup: {}", String::from_utf8_lossy(&output.stderr));
            return None;
        }
        Some(Loop(String::from_utf8(output.stdout).unwrap().trim().to_owned()))
    }

    fn path(&self) -> &Path {
        Path::new(&self.0)
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        // The flag would outlive the file.
        Command::new("blockdev").arg("--setrw").arg(&self.0).status().unwrap();
        Command::new("losetup").arg("--detach").arg(&self.0).status().unwrap();
    }
}

#[test]
fn round_trips_on_loop_devices() {
    for sector_bytes in [512, 4096] {
        let directory = disk_directory();
        let file = file_of(directory.path(), 8 * MIB);
        let Some(device) = Loop::new(&file, sector_bytes) else { return };
        let opened = open(device.path());
        assert!(opened.is_direct() && opened.identity().is_block_device());
        assert_eq!((opened.info().size_bytes, opened.info().read_block_bytes), (8 * MIB, sector_bytes));

        let error = Disk::open(device.path(), OpenOptions::default()).unwrap_err();
        assert_eq!(error.kind, OpenErrorKind::InUse);
        let link = directory.path().join("link");
        std::os::unix::fs::symlink(device.path(), &link).unwrap();
        assert_eq!(Identity::of(&link).unwrap(), opened.identity());
        on_reactor(|| exercise(opened));
        open(device.path());
    }
}

#[test]
fn a_write_protected_device_says_so() {
    let directory = disk_directory();
    let file = file_of(directory.path(), MIB);
    let Some(device) = Loop::new(&file, 512) else { return };
    assert!(Command::new("blockdev").arg("--setro").arg(device.path()).status().unwrap().success());
    let error = Disk::open(device.path(), OpenOptions::default()).unwrap_err();
    assert_eq!(error.kind, OpenErrorKind::ReadOnly, "{error}");
    let opened = Disk::open(device.path(), OpenOptions { read_only: true, ..Default::default() }).unwrap();
    assert!(opened.info().read_only);
}

#[test]
fn the_tail_of_an_odd_file_reads_as_zeroes() {
    let directory = disk_directory();
    let path = directory.path().join("odd");
    let content = pattern(1300, 5);
    fs::write(&path, &content).unwrap();
    let opened = open(&path);
    assert!(!opened.is_direct());
    assert_eq!((opened.info().size_bytes, opened.info().read_block_bytes), (1536, 512));
    on_reactor(async move || {
        let disk = Disk::new(opened);
        let pool = Pool::new(MAX_BUF_BYTES).unwrap();
        let mut buf = pool.alloc(1536).await;
        buf.fill(0xff);
        let buf = disk.read(0, buf).await.unwrap();
        assert!(buf[..1300] == content && buf[1300..].iter().all(|&byte| byte == 0));
        let tail = slice_of(&pool, &pattern(512, 6));
        disk.write(1024, vec![tail.clone()], Fua::Yes).await.unwrap();
        let buf = disk.read(1024, pool.alloc(512).await).await.unwrap();
        assert!(*buf == *tail);
    });
    assert_eq!(fs::metadata(&path).unwrap().len(), 1536);
}

#[test]
fn a_file_that_shrank_is_a_media_error_and_not_zeroes() {
    let directory = disk_directory();
    let path = file_of(directory.path(), MIB);
    let opened = open(&path);
    File::options().write(true).open(&path).unwrap().set_len(MIB / 2).unwrap();
    on_reactor(async || {
        let disk = Disk::new(opened);
        let pool = Pool::new(MAX_BUF_BYTES).unwrap();
        let error = disk.read(MIB / 2, pool.alloc(4096).await).await.unwrap_err();
        assert_eq!((error.kind, error.context), (IoErrorKind::Media, "short read: the disk ends early"));
    });
}

#[test]
fn a_read_only_disk_takes_no_changes() {
    let directory = disk_directory();
    let path = file_of(directory.path(), MIB);
    let opened = Disk::open(&path, OpenOptions { read_only: true, ..Default::default() }).unwrap();
    on_reactor(async || {
        let disk = Disk::new(opened);
        let kind = async |outcome: Result<(), raidd::io::IoError>| outcome.unwrap_err().kind;
        let write = disk.write(0, vec![Slice::zeroes(4096)], Fua::No).await;
        assert_eq!(kind(write).await, IoErrorKind::ReadOnly);
        assert_eq!(kind(disk.discard(0, 4096).await).await, IoErrorKind::ReadOnly);
        let zeroes = disk.write_zeroes(0, 4096, Zeroing::Unmap, Fua::No).await;
        assert_eq!(kind(zeroes).await, IoErrorKind::ReadOnly);
        disk.flush().await.unwrap();
    });
}

#[test]
fn zeroes_that_keep_their_space_and_zeroes_that_give_it_back() {
    let directory = disk_directory();
    let path = file_of(directory.path(), 4 * MIB);
    let opened = open(&path);
    assert!(opened.allocate().unwrap());
    let full = fs::metadata(&path).unwrap().blocks();
    assert!(full * 512 >= 4 * MIB);
    on_reactor(async || {
        let disk = Disk::new(opened);
        disk.write_zeroes(0, MIB, Zeroing::Allocate, Fua::Yes).await.unwrap();
        disk.write_zeroes(MIB, MIB, Zeroing::Unmap, Fua::Yes).await.unwrap();
        disk.discard(2 * MIB, MIB).await.unwrap();
    });
    assert_eq!(fs::metadata(&path).unwrap().blocks(), full - 2 * MIB / 512);
}

#[test]
fn a_filesystem_without_room_is_noticed_when_it_is_reserved() {
    let directory = tempfile::tempdir().unwrap();
    let mut mount = Command::new("mount");
    mount.args(["-t", "tmpfs", "-o", "size=1m", "raidd-test"]).arg(directory.path());
    if !mount.status().is_ok_and(|status| status.success()) {
        eprintln!("skipped: may not mount");
        return;
    }
    let opened = open(&file_of(directory.path(), 4 * MIB));
    let outcome = opened.allocate();
    drop(opened);
    assert!(Command::new("umount").arg(directory.path()).status().unwrap().success());
    let error = outcome.unwrap_err();
    assert_eq!(error.kind, OpenErrorKind::NoSpace);
    assert!(error.to_string().contains("no room"), "{error}");
}

#[test]
fn what_is_no_disk_is_refused_with_advice() {
    let kind = |path: &str| Disk::open(Path::new(path), OpenOptions::default()).unwrap_err().kind;
    assert_eq!(kind("/nonexistent/disk"), OpenErrorKind::NotFound);
    assert_eq!(kind("/dev/null"), OpenErrorKind::NotADisk);
    assert_eq!(kind("/"), OpenErrorKind::NotADisk);
    let message = Disk::open(Path::new("/dev/null"), OpenOptions::default()).unwrap_err().to_string();
    assert_eq!(message, "/dev/null: neither a block device nor a plain file; give one of these");
}

#[test]
fn one_file_by_two_paths_is_one_disk_and_opens_once() {
    let directory = disk_directory();
    let path = file_of(directory.path(), MIB);
    let other = directory.path().join("other");
    fs::hard_link(&path, &other).unwrap();
    let opened = open(&path);
    assert_eq!(Identity::of(&other).unwrap(), opened.identity());
    assert_ne!(Identity::of(&file_of(disk_directory().path(), MIB)).unwrap(), opened.identity());
    let error = Disk::open(&other, OpenOptions::default()).unwrap_err();
    assert_eq!(error.kind, OpenErrorKind::InUse);
    assert!(error.to_string().contains("held by another process"), "{error}");
    let look = OpenOptions { read_only: true, exclusive: false, ..Default::default() };
    assert_eq!(Disk::open(&other, look).unwrap().identity(), opened.identity());
    // Read-only is no excuse: the lock is exclusive all the same.
    let reader = Disk::open(&other, OpenOptions { read_only: true, ..Default::default() });
    assert_eq!(reader.unwrap_err().kind, OpenErrorKind::InUse);
    drop(opened);
    open(&other);
}

const HELD: &str = "RAIDD_TEST_HELD_DISK";

/// Another process that holds a disk until it is told to end.
fn holder(path: &Path) -> Child {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "holds_a_disk_for_another_test", "--ignored", "--nocapture"])
        .env(HELD, path)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap().contains("held")), "the other process holds the disk");
    child
}

#[test]
#[ignore = "the other process of the lock tests"]
fn holds_a_disk_for_another_test() {
    let Some(path) = std::env::var_os(HELD) else { return };
    let opened = open(Path::new(&path));
    println!("held");
    std::io::stdin().read_to_end(&mut Vec::new()).unwrap();
    drop(opened);
}

#[test]
fn a_disk_that_another_process_holds_is_refused_and_a_successor_waits() {
    let directory = disk_directory();
    let path = file_of(directory.path(), MIB);
    let mut child = holder(&path);
    assert_eq!(Disk::open(&path, OpenOptions::default()).unwrap_err().kind, OpenErrorKind::InUse);
    let patient = |millis| OpenOptions { wait_for_lock: Duration::from_millis(millis), ..Default::default() };
    let begin = Instant::now();
    assert_eq!(Disk::open(&path, patient(200)).unwrap_err().kind, OpenErrorKind::InUse);
    assert!(begin.elapsed() >= Duration::from_millis(200));
    let successor = std::thread::spawn({
        let path = path.clone();
        move || Disk::open(&path, patient(PATIENCE.as_millis() as u64)).map(drop)
    });
    child.kill().unwrap();
    child.wait().unwrap();
    successor.join().unwrap().unwrap();
}

#[test]
fn a_dropped_read_keeps_its_memory_until_the_kernel_has_let_go() {
    let directory = disk_directory();
    let path = file_of(directory.path(), 64 * MIB);
    fs::write(&path, pattern(64 << 20, 0x5a)).unwrap();
    let opened = open(&path);
    on_reactor(async move || {
        let disk = Disk::new(opened);
        let pool = Pool::new(16 * MAX_BUF_BYTES).unwrap();
        let mut left_behind = 0;
        for round in 0..40_u64 {
            let mut reads = Vec::new();
            while let Some(buf) = pool.try_alloc(64 << 10) {
                let offset = (reads.len() as u64 + round * 7) % 1000 * (64 << 10);
                let mut read = Box::pin(disk.read(offset, buf));
                assert!(
                    (&mut read).now_or_never().is_none(),
                    "nothing is answered before the ring is entered"
                );
                reads.push(read);
            }
            left_behind += reads.len();
            drop(reads);
            assert_eq!(pool.free_bytes(), 0, "the operations still own all of it");
            // Whatever comes back is ours alone: nothing may write into it any more.
            let mut mine = Vec::new();
            for _ in 0..128 {
                let mut buf = pool.alloc(64 << 10).await;
                buf.fill(round as u8);
                mine.push(buf);
            }
            runtime().sleep(Duration::from_millis(1)).await;
            assert!(mine.iter().all(|buf| buf.iter().all(|&byte| byte == round as u8)));
            drop(mine);
            while pool.free_bytes() < pool.total_bytes() {
                runtime().sleep(Duration::from_millis(1)).await;
            }
        }
        assert_eq!(left_behind, 40 * 256);
    });
}

#[test]
fn a_disk_is_unlocked_with_its_last_operation() {
    let directory = disk_directory();
    let path = file_of(directory.path(), MIB);
    let opened = open(&path);
    on_reactor(async move || {
        let disk = Disk::new(opened);
        let pool = Pool::new(MAX_BUF_BYTES).unwrap();
        assert!(disk.read(0, pool.alloc(4096).await).now_or_never().is_none());
        drop(disk);
        let refused = Disk::open(&path, OpenOptions::default()).unwrap_err();
        assert_eq!(refused.kind, OpenErrorKind::InUse, "a read is still queued");
        while pool.free_bytes() < pool.total_bytes() {
            runtime().sleep(Duration::from_millis(1)).await;
        }
        open(&path);
    });
}

#[test]
fn many_more_reads_than_the_ring_has_entries() {
    let directory = disk_directory();
    let opened = open(&file_of(directory.path(), 64 * MIB));
    on_reactor(async || {
        let disk = Disk::new(opened);
        let pool = Pool::new(64 * MAX_BUF_BYTES).unwrap();
        let reads = (0..10_000).map(|i| {
            let (disk, buf) = (disk.clone(), pool.try_alloc(4096).unwrap());
            async move { disk.read(i * 4096, buf).await.unwrap() }
        });
        assert!(join_all(reads).await.iter().all(|buf| buf.iter().all(|&byte| byte == 0)));
    });
}

#[test]
fn sleeps_end_in_order_and_a_dropped_one_does_not_wake() {
    on_reactor(async || {
        let rt = runtime();
        let order = Rc::new(RefCell::new(Vec::new()));
        let begin = rt.now();
        for millis in [30, 10, 20, 0, 10] {
            let (rt2, order) = (rt.clone(), order.clone());
            rt.spawn(async move {
                rt2.sleep(Duration::from_millis(millis)).await;
                assert!(rt2.now() - begin >= Duration::from_millis(millis));
                order.borrow_mut().push(millis);
            });
        }
        {
            let mut cancelled = pin!(rt.sleep(Duration::from_millis(5)));
            assert!(cancelled.as_mut().now_or_never().is_none());
        }
        let never = Rc::new(Cell::new(false));
        let flag = never.clone();
        let mut sleep = Box::pin(rt.sleep(Duration::from_secs(3600)).map(move |()| flag.set(true)));
        assert!((&mut sleep).now_or_never().is_none());
        rt.sleep(Duration::from_millis(60)).await;
        drop(sleep);
        assert_eq!(*order.borrow(), [0, 10, 10, 20, 30]);
        assert!(!never.get());
        assert!(rt.wall() > Duration::from_secs(1_600_000_000));
    });
}

#[test]
fn a_task_that_never_rests_does_not_starve_the_ring() {
    on_reactor(async || {
        let rt = runtime();
        let stop = Rc::new(Cell::new(false));
        let flag = stop.clone();
        rt.spawn(async move {
            while !flag.get() {
                let mut yielded = false;
                std::future::poll_fn(|context| {
                    context.waker().wake_by_ref();
                    if std::mem::replace(&mut yielded, true) {
                        std::task::Poll::Ready(())
                    } else {
                        std::task::Poll::Pending
                    }
                })
                .await;
            }
        });
        let (a, b) = UnixStream::pair().unwrap();
        let (a, b) = (Socket::from_fd(a.into()), Socket::from_fd(b.into()));
        let pool = Pool::new(MAX_BUF_BYTES).unwrap();
        for _ in 0..100 {
            a.send(vec![Slice::zeroes(512)]).await.unwrap();
            b.recv(pool.alloc(512).await).await.unwrap();
        }
        rt.sleep(Duration::from_millis(5)).await;
        stop.set(true);
    });
}

#[test]
fn calls_between_reactors_and_from_threads_lose_no_wake_up() {
    const CALLS: u64 = 50_000;
    const POSTS: u64 = 25_000;
    let (a, a_thread) = start(0, "a").unwrap();
    let (b, b_thread) = start(1, "b").unwrap();
    assert_eq!((a.index(), b.index(), a.is_current()), (0, 1, false));

    // Each call is two crossings: there and back.
    let ping = a.call({
        let (a, b) = (a.clone(), b.clone());
        move || async move {
            assert!(a.is_current() && !b.is_current());
            let mut sum = 0;
            for i in 0..CALLS {
                let here = b.clone();
                let there = async move { if here.is_current() { i } else { 0 } };
                sum += b.call(move || there).await.unwrap();
            }
            sum
        }
    });
    // Meanwhile plain threads, each waiting now and then so that the reactor falls asleep in between.
    let counter = Arc::new(AtomicU64::new(0));
    let threads: Vec<_> = (0..4)
        .map(|thread| {
            let (target, counter) = (if thread % 2 == 0 { a.clone() } else { b.clone() }, counter.clone());
            std::thread::spawn(move || {
                for i in 0..POSTS {
                    let counter = counter.clone();
                    if i % 1000 == 0 {
                        let answer =
                            target.call(move || async move { counter.fetch_add(1, Ordering::Relaxed) });
                        wait(answer).unwrap();
                        std::thread::sleep(Duration::from_micros(100));
                    } else {
                        target
                            .post(move || assert!(counter.fetch_add(1, Ordering::Relaxed) < 4 * POSTS))
                            .unwrap();
                    }
                }
                wait(target.call(|| async {})).unwrap();
            })
        })
        .collect();
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    assert_eq!(counter.load(Ordering::Relaxed), 4 * POSTS);
    assert_eq!(wait(ping).unwrap(), CALLS * (CALLS - 1) / 2);
    // On its own reactor a call is a task like any other.
    let own = a.clone();
    assert_eq!(wait(a.call(move || async move { own.call(|| async { 7 }).await })).unwrap(), Ok(7));
    finish(&a, a_thread);
    finish(&b, b_thread);
    assert_eq!(a.post(|| {}), Err(Stopped));
    assert!(wait(a.call(|| async {})).is_err());
}

#[test]
fn wakers_used_on_another_thread_lose_no_wake_up() {
    const MESSAGES: u64 = 50_000;
    let (handle, thread) = start(0, "woken").unwrap();
    let (sender, receiver) = std::sync::mpsc::channel::<oneshot::Sender<u64>>();
    let waker_thread = std::thread::spawn(move || {
        let mut count = 0;
        while let Ok(answer) = receiver.recv() {
            answer.send(count).unwrap();
            count += 1;
        }
        count
    });
    let last = handle.call(move || async move {
        let mut last = 0;
        for _ in 0..MESSAGES {
            let (answer, result) = oneshot::channel();
            sender.send(answer).unwrap();
            last = result.await.unwrap();
        }
        last
    });
    assert_eq!(wait(last).unwrap(), MESSAGES - 1);
    assert_eq!(waker_thread.join().unwrap(), MESSAGES);
    finish(&handle, thread);
}

/// Sends 9 MiB in many slices through `a` while `b` returns all it gets, and compares.
async fn echo(a: OwnedFd, b: OwnedFd) {
    let (a, b) = (Socket::from_fd(a), Socket::from_fd(b));
    let pool = Pool::new(32 * MAX_BUF_BYTES).unwrap();
    runtime().spawn({
        let pool = pool.clone();
        async move {
            loop {
                let (count, mut buf) = b.recv(pool.alloc(100_000).await).await.unwrap();
                if count == 0 {
                    return;
                }
                drop(buf.split_off(count));
                b.send(vec![buf.freeze()]).await.unwrap();
            }
        }
    });
    let mut data: Vec<Slice> = (0..8).map(|seed| slice_of(&pool, &pattern(MAX_BUF_BYTES, seed))).collect();
    let small = slice_of(&pool, &pattern(MAX_BUF_BYTES, 99));
    data.extend((0..1 << 12).map(|i| small.slice(i * 256..(i + 1) * 256)));
    let expected: Vec<u8> = data.iter().flat_map(|slice| slice.to_vec()).collect();
    let receive = async {
        let mut received = Vec::new();
        while received.len() < expected.len() {
            let (count, buf) = a.recv(pool.alloc(70_000).await).await.unwrap();
            assert!(count > 0);
            received.extend_from_slice(&buf[..count]);
        }
        received
    };
    let (sent, received) = join(a.send(data), receive).await;
    sent.unwrap();
    assert!(received == expected);
    a.shutdown();
    let (count, _) = a.recv(pool.alloc(16).await).await.unwrap();
    assert_eq!(count, 0);
    let broken = a.send(vec![Slice::zeroes(16)]).await.unwrap_err();
    assert_eq!(broken.kind, IoErrorKind::Closed);
}

#[test]
fn echo_over_a_socket_pair() {
    let (a, b) = UnixStream::pair().unwrap();
    setsockopt(&a, sockopt::SndBuf, &4096).unwrap();
    // As it comes from tokio.
    a.set_nonblocking(true).unwrap();
    on_reactor(|| echo(a.into(), b.into()));
}

#[test]
fn echo_over_tcp() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let a = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (b, _) = listener.accept().unwrap();
    setsockopt(&a, sockopt::SndBuf, &4096).unwrap();
    on_reactor(|| echo(a.into(), b.into()));
}

#[test]
fn accepted_connections_move_to_another_reactor() {
    let (a, a_thread) = start(0, "accepts").unwrap();
    let (b, b_thread) = start(1, "serves").unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let address = listener.local_addr().unwrap();
    let served = a.call({
        let b = b.clone();
        move || async move {
            let listener = Listener::from_fd(listener.into());
            let mut total = 0;
            for _ in 0..3 {
                let connection = listener.accept().await.unwrap();
                total += b
                    .call(move || async move {
                        let socket = Socket::from_fd(connection);
                        let pool = Pool::new(MAX_BUF_BYTES).unwrap();
                        let (count, _) = socket.recv(pool.alloc(100).await).await.unwrap();
                        socket.send(vec![Slice::zeroes(count)]).await.unwrap();
                        count
                    })
                    .await
                    .unwrap();
            }
            // Nobody comes any more; the wait is given up.
            assert!(listener.accept().now_or_never().is_none());
            total
        }
    });
    for len in 1..=3 {
        let mut client = TcpStream::connect(address).unwrap();
        client.write_all(&pattern(len, 0)).unwrap();
        let mut answer = Vec::new();
        client.read_to_end(&mut answer).unwrap();
        assert_eq!(answer, vec![0; len]);
    }
    assert_eq!(wait(served).unwrap(), 6);
    finish(&a, a_thread);
    finish(&b, b_thread);
}

#[test]
fn a_dropped_receive_is_cancelled_and_gives_its_memory_back() {
    on_reactor(async || {
        let (a, _peer) = UnixStream::pair().unwrap();
        let socket = Socket::from_fd(a.into());
        let pool = Pool::new(MAX_BUF_BYTES).unwrap();
        for _ in 0..100 {
            let buf = pool.alloc(MAX_BUF_BYTES).await;
            let mut recv = Box::pin(socket.recv(buf));
            assert!((&mut recv).now_or_never().is_none());
            runtime().sleep(Duration::ZERO).await;
        }
    });
}

#[test]
fn an_accepted_connection_that_nobody_takes_is_closed() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    on_reactor(async move || {
        let listener = Listener::from_fd(listener.into());
        let accept = Box::pin(listener.accept());
        let mut accept = Some(accept);
        assert!(accept.as_mut().unwrap().now_or_never().is_none());
        runtime().sleep(Duration::from_millis(10)).await;
        let mut client = TcpStream::connect(address).unwrap();
        // The completion comes while nobody polls; then the future goes.
        runtime().sleep(Duration::from_millis(50)).await;
        accept = None;
        assert!(accept.is_none());
        client.set_read_timeout(Some(PATIENCE)).unwrap();
        assert_eq!(client.read(&mut [0]).unwrap(), 0, "the connection was closed");
    });
}

struct DropFlag(Arc<AtomicU64>);

impl Drop for DropFlag {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

#[test]
fn stopping_ends_what_is_pending() {
    let (handle, thread) = start(0, "stops").unwrap();
    let (a, _peer) = UnixStream::pair().unwrap();
    let pool = Pool::new(MAX_BUF_BYTES).unwrap();
    let memory = pool.clone();
    let pending = handle.call(move || async move {
        let socket = Socket::from_fd(a.into());
        drop(socket.recv(memory.alloc(MAX_BUF_BYTES).await).await);
    });
    let gone = Arc::new(AtomicU64::new(0));
    let flags: Vec<_> = (0..100).map(|_| DropFlag(gone.clone())).collect();
    let asleep = handle.call(move || async move {
        for flag in flags {
            runtime().spawn(async move {
                let _flag = flag;
                runtime().sleep(Duration::from_secs(3600)).await;
            });
        }
    });
    wait(asleep).unwrap();
    let begin = Instant::now();
    handle.stop();
    thread.join().unwrap();
    assert!(begin.elapsed() < Duration::from_secs(4), "nothing had to be given up");
    assert!(wait(pending).is_err());
    assert_eq!(pool.free_bytes(), pool.total_bytes());
    assert_eq!(gone.load(Ordering::SeqCst), 100);
}

#[test]
fn stopping_while_others_wake_its_tasks() {
    for _ in 0..50 {
        let (handle, thread) = start(0, "stops").unwrap();
        let wakers: Vec<_> = (0..2)
            .map(|_| {
                let (sender, receiver) = std::sync::mpsc::channel::<oneshot::Sender<()>>();
                let begun = handle.call(move || async move {
                    runtime().spawn(async move {
                        loop {
                            let (answer, result) = oneshot::channel();
                            if sender.send(answer).is_err() || result.await.is_err() {
                                return;
                            }
                        }
                    });
                });
                wait(begun).unwrap();
                std::thread::spawn(move || {
                    receiver.into_iter().for_each(|answer| answer.send(()).unwrap_or(()));
                })
            })
            .collect();
        std::thread::sleep(Duration::from_millis(2));
        finish(&handle, thread);
        wakers.into_iter().for_each(|waker| waker.join().unwrap());
    }
}

#[test]
fn a_panic_ends_the_reactor_and_reaches_who_joins() {
    let (handle, thread) = start(0, "panics").unwrap();
    let (a, _peer) = UnixStream::pair().unwrap();
    let pool = Pool::new(MAX_BUF_BYTES).unwrap();
    let memory = pool.clone();
    let pending = handle.call(move || async move {
        let socket = Socket::from_fd(a.into());
        drop(socket.recv(memory.alloc(4096).await).await);
    });
    let broken = handle.call(|| async { panic!("on purpose") });
    let panic = thread.join().unwrap_err();
    assert_eq!(panic.downcast_ref::<&str>(), Some(&"on purpose"));
    assert!(wait(pending).is_err() && wait(broken).is_err());
    assert_eq!(pool.free_bytes(), pool.total_bytes());
}

#[test]
#[should_panic(expected = "only on a reactor's thread")]
fn the_runtime_is_for_reactors() {
    runtime();
}

#[test]
fn a_peer_that_only_sends_no_more_has_not_hung_up() {
    let (near, mut far) = UnixStream::pair().unwrap();
    let heard = on_reactor(move || async move {
        let socket = Socket::from_fd(near.into());
        let pool = Pool::new(1 << 20).unwrap();
        let mut heard = vec![socket.hung_up()];
        far.write_all(b"asked").unwrap();
        far.shutdown(std::net::Shutdown::Write).unwrap();
        let (count, _) = socket.recv(pool.try_alloc(4096).unwrap()).await.unwrap();
        heard.push(count != 5 || socket.hung_up());
        far.shutdown(std::net::Shutdown::Both).unwrap();
        // Whatever the ring tells after the hang-up, it tells of that as well.
        let (count, _) = socket.recv(pool.try_alloc(4096).unwrap()).await.unwrap();
        heard.extend([count == 0, socket.hung_up(), socket.hung_up()]);
        heard
    });
    assert_eq!(heard, [false, false, true, true, true]);
}
