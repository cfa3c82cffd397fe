//! A journalling filesystem on an export outlives raidd's end by kill -9, again and again: what a file's fsync promised is
//! there, and the filesystem is sound.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use sha2::{Digest, Sha256};

use super::disks::{Disks, hash_of, noise};
use super::harness::{Home, need, run};
use super::mounted::{Attached, Mount};

const NEEDS: &[&str] = &["root", "/dev/fuse", "losetup", "nbdfuse", "fusermount3", "mkfs.ext4", "e2fsck"];
const ROUNDS: u64 = 10;
/// Files that are kept; older ones are written over.
const FILES: u64 = 200;

/// Checksums of files, by their names.
type Sums = BTreeMap<PathBuf, [u8; 32]>;

/// Writes files until one fails or it is to end. Those whose fsync returned, and the one that was under way.
fn write_files(folder: &Path, seed: u64, end: &AtomicBool) -> (Sums, Option<PathBuf>) {
    let mut synced = Sums::new();
    for number in 0.. {
        if end.load(Ordering::Relaxed) {
            break;
        }
        let name = PathBuf::from(format!("file{}", (seed * 37 + number) % FILES));
        let data = noise(seed << 32 | number, 1 + (number as usize * 7919) % 150_000);
        let written = File::create(folder.join(&name)).and_then(|mut file| {
            file.write_all(&data)?;
            file.sync_all()
        });
        if written.is_err() {
            return (synced, Some(name));
        }
        synced.insert(name, Sha256::digest(&data).into());
    }
    (synced, None)
}

#[test]
fn ext4_outlives_ten_crashes() {
    if !need(NEEDS) {
        return;
    }
    let home = Home::new();
    let disks = Disks::files(&home, "disk", 4, 64);
    let mut raidd = home.start();
    home.ok(format!("create tank --level 5 --chunk 64K --init zero {}", disks.all()));
    let attached = Attached::new(&home, &home.uri("tank"));
    run("mkfs.ext4", &["-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0", attached.device()]).ok();
    attached.detach();
    let mut sums = Sums::new();
    for round in 0..ROUNDS {
        let attached = Attached::new(&home, &home.uri("tank"));
        let mount = Mount::new(&home, "ext4", attached.device(), "noatime");
        let end = Arc::new(AtomicBool::new(false));
        let writer = {
            let (folder, end) = (mount.point.clone(), end.clone());
            std::thread::spawn(move || write_files(&folder, round, &end))
        };
        std::thread::sleep(Duration::from_millis(500 + 90 * round));
        raidd.kill();
        end.store(true, Ordering::Relaxed);
        let (synced, under_way) = writer.join().unwrap();
        assert!(!synced.is_empty(), "no load");
        sums.extend(synced);
        if let Some(name) = under_way {
            // It was cut short before it was synced: anything may be in it.
            sums.remove(&name);
        }
        drop(mount);
        drop(attached);

        raidd = home.start();
        let attached = Attached::new(&home, &home.uri("tank"));
        // Mounting replays the journal.
        let mount = Mount::new(&home, "ext4", attached.device(), "noatime");
        for (name, sum) in &sums {
            assert_eq!(
                hash_of(&mount.point.join(name)),
                *sum,
                "round {round}: {} has changed",
                name.display()
            );
        }
        mount.unmount();
        run("e2fsck", &["-fn", attached.device()]).ok();
        attached.detach();
    }
    assert!(sums.len() > 50, "{} files are no load", sums.len());
    home.wait_idle("tank");
    raidd.terminate();
}
