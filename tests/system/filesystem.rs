//! What arrays are for: a filesystem full of files outlives the loss of as many members as the level allows.
//!
//! A RAID 5 and a RAID 6 on loop devices are formatted and mounted, a real tree of files (sources and build results of
//! this very project) is copied in, a member is failed (two for RAID 6), the array is stopped and assembled again
//! degraded, mounted, and every file's checksum still agrees.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use raidd::api::{Health, MemberState};
use sha2::{Digest, Sha256};

use super::disks::{Disks, MIB, hash_of};
use super::harness::{Home, need, run};
use super::mounted::{Attached, Mount};

const NEEDS: &[&str] = &["root", "/dev/fuse", "losetup", "nbdfuse", "fusermount3", "mkfs.ext4", "e2fsck"];

/// Bytes of the tree, at most.
const TREE_BYTES_MAX: u64 = 200 * MIB;
/// Build results beyond this are left out, so that there are many files and not three.
const FILE_BYTES_MAX: u64 = 16 * MIB;

/// What must still be true of each file, by its path in the tree.
type Sums = BTreeMap<PathBuf, [u8; 32]>;

#[test]
fn raid5_keeps_every_file_when_a_member_is_lost() {
    survives(5, 4, 128, &[2], |disks, lost| disks.without(lost));
}

#[test]
fn raid6_keeps_every_file_when_two_members_are_lost() {
    // All are named, also those that failed: they are stale, and left out.
    survives(6, 5, 128, &[0, 3], |disks, _| disks.all());
}

fn survives(
    level: u8,
    count: usize,
    mib: u64,
    lost: &[usize],
    named_again: impl FnOnce(&Disks, &[usize]) -> String,
) {
    if !need(NEEDS) {
        return;
    }
    let home = Home::new();
    let disks = Disks::loops(&home, "disk", count, mib);
    let raidd = home.start();
    home.ok(format!("create tank --level {level} {}", disks.all()));

    let attached = Attached::new(&home, &home.uri("tank"));
    run("mkfs.ext4", &["-q", "-F", attached.device()]).ok();
    let mount = Mount::new(&home, "ext4", attached.device(), "noatime");
    let mut sums = Sums::new();
    let room = (home.status("tank").size_bytes * 6 / 10).min(TREE_BYTES_MAX);
    copy_project(&mount.point.join("tree"), room, &mut sums);
    assert!(sums.len() > 100, "{} files are no tree", sums.len());

    for &slot in lost {
        home.ok(format!("fail tank {}", disks.paths[slot]));
    }
    let status = home.status("tank");
    assert_eq!(status.health, Health::Degraded);
    for (slot, member) in status.members.iter().enumerate() {
        let wanted = if lost.contains(&slot) { MemberState::Faulty } else { MemberState::InSync };
        assert_eq!(member.state, wanted, "{status:#?}");
    }
    // Some more is written while redundancy is short.
    copy_project(&mount.point.join("late"), 8 * MIB, &mut sums);
    mount.unmount();
    attached.detach();
    home.ok("stop tank");

    home.ok(format!("assemble tank {}", named_again(&disks, lost)));
    assert_eq!(home.status("tank").health, Health::Degraded);
    let attached = Attached::new(&home, &home.uri("tank"));
    run("e2fsck", &["-fn", attached.device()]).ok();
    let mount = Mount::new(&home, "ext4", attached.device(), "noatime");
    for (path, sum) in &sums {
        assert_eq!(hash_of(&mount.point.join(path)), *sum, "{} has changed", path.display());
    }
    mount.unmount();
    run("e2fsck", &["-fn", attached.device()]).ok();
    attached.detach();
    home.ok("stop tank");
    raidd.terminate();
}

/// Copies sources, then build results, up to so many bytes, and notes their checksums. `to` lies in the mounted folder.
fn copy_project(to: &Path, bytes_max: u64, sums: &mut Sums) {
    let project = Path::new(env!("CARGO_MANIFEST_DIR"));
    let built = Path::new(env!("CARGO_BIN_EXE_raidd")).parent().unwrap();
    let roots =
        [("src", project.join("src")), ("raidctl", project.join("raidctl")), ("built", built.to_owned())];
    let mut left = bytes_max;
    for (name, root) in roots {
        copy_tree(&root, &to.join(name), to.parent().unwrap(), &mut left, sums);
    }
    run("sync", &["-f", to.to_str().unwrap()]).ok();
}

fn copy_tree(from: &Path, to: &Path, base: &Path, left: &mut u64, sums: &mut Sums) {
    std::fs::create_dir_all(to).unwrap();
    let mut entries: Vec<_> = std::fs::read_dir(from).unwrap().map(|entry| entry.unwrap()).collect();
    entries.sort_by_key(std::fs::DirEntry::file_name);
    for entry in entries {
        if *left == 0 {
            return;
        }
        let (source, target) = (entry.path(), to.join(entry.file_name()));
        let kind = entry.file_type().unwrap();
        if kind.is_dir() {
            copy_tree(&source, &target, base, left, sums);
        } else if kind.is_file() {
            copy_file(&source, &target, base, left, sums);
        }
    }
}

fn copy_file(source: &Path, target: &Path, base: &Path, left: &mut u64, sums: &mut Sums) {
    let bytes = match std::fs::metadata(source) {
        Ok(metadata) if metadata.len() <= FILE_BYTES_MAX.min(*left) => std::fs::read(source),
        Ok(_) => return,
        Err(error) => Err(error),
    };
    match bytes {
        Ok(bytes) => {
            std::io::Write::write_all(&mut File::create(target).unwrap(), &bytes).unwrap();
            // A small file takes a block and an inode.
            *left = left.saturating_sub((bytes.len() as u64).next_multiple_of(4096) + 256);
            sums.insert(target.strip_prefix(base).unwrap().to_owned(), Sha256::digest(&bytes).into());
        }
        // Another build may be tidying up.
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) => panic!("{}: {error}", source.display()),
    }
}
