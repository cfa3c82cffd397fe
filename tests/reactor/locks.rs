//! Who holds a disk, and until when.

use std::fs::{self};
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use raidd::io::{Clock, Device, MAX_BUF_BYTES, Pool};
use raidd::reactor::{Disk, Identity, OpenErrorKind, OpenOptions, runtime};

use crate::{MIB, PATIENCE, disk_directory, file_of, on_reactor, open};

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
        .args(["--exact", "locks::holds_a_disk_for_another_test", "--ignored", "--nocapture"])
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
