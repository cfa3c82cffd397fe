//! Disks: files, loop devices, and what can be wrong with them.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::join_all;
use raidd::io::{Clock, Device, Fua, IoErrorKind, MAX_BUF_BYTES, Pool, Slice, Zeroing};
use raidd::reactor::{Disk, Identity, OpenErrorKind, OpenOptions, OpenedDisk, runtime};

use crate::{MIB, disk_directory, file_of, on_reactor, open, pattern, slice_of};

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
