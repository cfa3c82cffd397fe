//! Whatever is wrong with what raidctl is told is refused with one line that says what, why and what to do, with exit
//! status 1 (2 where the words make no sense already), and with not a byte changed on any member.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::disks::{Disks, Loop, MIB, file, hash_of, noise};
use super::harness::{Home, need, run, skip};

/// Where an md superblock of version 1.2 lies.
const SUPERBLOCK_OFFSET: u64 = 4096;

/// The line must be refused with this status, in one line that contains these words, and change none of these files.
#[track_caller]
fn refused(home: &Home, watched: &[String], line: &str, status: i32, words: &[&str]) {
    let before: Vec<_> = watched.iter().map(|path| hash_of(Path::new(path))).collect();
    let complaint = home.raidctl(line).complaint(status);
    let lower = complaint.to_lowercase();
    for word in words {
        assert!(lower.contains(&word.to_lowercase()), "raidctl {line}: {word:?} is not in {complaint}");
    }
    assert!(complaint.starts_with("raidctl: "), "{complaint}");
    let after: Vec<_> = watched.iter().map(|path| hash_of(Path::new(path))).collect();
    assert!(before == after, "raidctl {line} changed a member, and said {complaint}");
}

fn noisy_disks(home: &Home, prefix: &str, count: usize, mib: u64) -> Disks {
    let disks = Disks::files(home, prefix, count, mib);
    disks.fill_with_noise();
    disks
}

#[test]
fn words_that_make_no_array() {
    let home = Home::new();
    let disks = noisy_disks(&home, "disk", 4, 8);
    let _raidd = home.start();
    let (all, three) = (disks.all(), disks.some(&[0, 1, 2]));
    let long = "x".repeat(32);
    for (line, status, words) in [
        (format!("create vol --level 5 {}", disks.paths[0]), 2, &["2 members"][..]),
        (format!("create vol --level 6 {three}"), 2, &["4 members", "3"]),
        (format!("create vol --level 0 {} missing", disks.paths[0]), 2, &["missing"]),
        (format!("create vol --level 5 {} missing missing", disks.paths[0]), 2, &["missing"]),
        ("create vol --level 5".to_owned(), 2, &["DEV"]),
        (format!("create vol {all}"), 2, &["--level"]),
        (format!("create vol --level 7 {all}"), 2, &["level", "choose"]),
        (format!("create vol --level five {all}"), 2, &["level", "five"]),
        (format!("create vol --level 5 --chunk big {all}"), 2, &["chunk", "big", "512K"]),
        (format!("create vol --level 5 --init magic {all}"), 2, &["magic", "assume-clean"]),
        (
            format!("create vol --level 5 --bitmap internal --consistency-policy ppl {all}"),
            2,
            &["bitmap", "ppl"],
        ),
        (format!("create vol --level 6 --consistency-policy ppl {all}"), 2, &["ppl", "RAID 6"]),
        (format!("create vol --level 0 --bitmap internal {all}"), 2, &["RAID 0"]),
        (format!("create a/b --level 5 {all}"), 2, &["a/b", "name"]),
        (format!("create .. --level 5 {all}"), 2, &["name"]),
        (format!("create {long} --level 5 {all}"), 2, &["longer than 31"]),
        (format!("create vol --level 5 {} {}", three, disks.paths[0]), 2, &["twice", &disks.paths[0]]),
        (format!("create vol --level 5 --spare {} {three}", disks.paths[0]), 2, &["twice"]),
        (format!("create vol --level 5 --nonsense {all}"), 2, &["--nonsense"]),
        ("assemble --scan --force".to_owned(), 2, &["--scan"]),
        ("assemble --uuid 6f1c".to_owned(), 2, &["6f1c", "UUID"]),
        ("explode".to_owned(), 2, &["explode"]),
        (format!("create vol --level 5 --chunk 48K {all}"), 1, &["chunk", "power of two"]),
        (format!("create vol --level 5 --chunk 1000 {all}"), 1, &["chunk", "512"]),
        (format!("create vol --level 5 --chunk 2K {all}"), 1, &["chunk", "4"]),
        (format!("create vol --level 5 --chunk 1G {all}"), 1, &[&disks.paths[0], "larger device"]),
        (format!("create vol --level 5 --layout sideways {all}"), 1, &["layout", "sideways"]),
        (format!("create vol --level 10 --layout n5 {all}"), 1, &["n5"]),
        (format!("create vol --level 1 --layout n2 {all}"), 1, &["layout"]),
        (format!("create vol --level 5 --size 1T {all}"), 1, &[&disks.paths[0], "smaller size"]),
    ] {
        refused(&home, &disks.paths, &line, status, words);
    }
    let spaced = home.raidctl_words(&["create", "a b", "--level", "1", &disks.paths[0], &disks.paths[1]]);
    assert!(spaced.complaint(2).contains("a b"));
    assert_eq!(home.ok("list"), "no arrays\n");
}

#[test]
fn devices_that_are_none() {
    let home = Home::new();
    let disks = noisy_disks(&home, "disk", 2, 8);
    let _raidd = home.start();
    let folder = home.path("folder");
    fs::create_dir(&folder).unwrap();
    let pipe = home.path("pipe");
    nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let at = |path: &Path| path.to_str().unwrap().to_owned();
    for (device, why) in [
        (at(&home.path("nothing")), "no such file or device"),
        (at(&home.path("disk0/deeper")), "no such file or device"),
        (at(&folder), "neither a block device nor a plain file"),
        (at(&pipe), "neither a block device nor a plain file"),
        ("/dev/null".to_owned(), "neither a block device nor a plain file"),
    ] {
        let lines = [
            format!("create vol --level 5 {} {device}", disks.all()),
            format!("create vol --level 1 {} --spare {device}", disks.all()),
            format!("create vol --level 1 --force {} {device}", disks.all()),
            format!("assemble vol {device}"),
        ];
        for line in lines {
            refused(&home, &disks.paths, &line, 1, &[&device, why]);
        }
        for command in ["examine", "zero-superblock", "zero-superblock --force"] {
            refused(&home, &disks.paths, &format!("{command} {device}"), 1, &[&device]);
        }
    }
    assert_eq!(home.ok("list"), "no arrays\n");
}

#[test]
fn a_member_twice() {
    let home = Home::new();
    let disks = Disks::files(&home, "disk", 3, 8);
    let _raidd = home.start();
    let (symbolic, hard) = (home.path("symbolic"), home.path("hard"));
    std::os::unix::fs::symlink(&disks.paths[0], &symbolic).unwrap();
    fs::hard_link(&disks.paths[0], &hard).unwrap();
    let dotted = disks.paths[0].replace("/disk0", "/./disk0");
    for same in [symbolic.to_str().unwrap(), hard.to_str().unwrap(), &dotted] {
        for force in ["", "--force"] {
            let line = format!("create vol --level 5 {force} {} {same}", disks.all());
            // A path that is only written another way is one that was named twice, and raidctl can see that.
            let status = if same == dotted { 2 } else { 1 };
            refused(&home, &disks.paths, &line, status, &[&disks.paths[0]]);
        }
    }
    home.ok(format!("create vol --level 5 {}", disks.all()));
    home.wait_idle("vol");
    home.ok("stop vol");
    let line = format!("assemble vol {} {}", disks.all(), hard.display());
    refused(&home, &disks.paths, &line, 1, &["one and the same"]);
    // A copy of a member is another file, but the same member.
    let copy = home.path("copy");
    fs::copy(&disks.paths[0], &copy).unwrap();
    let line = format!("assemble vol {} {}", disks.all(), copy.display());
    refused(&home, &disks.paths, &line, 1, &["copy"]);
    if need(&["root", "/dev/loop-control", "losetup"]) {
        let loops = Disks::loops(&home, "behind", 2, 8);
        let other_path = home.path("other-path");
        std::os::unix::fs::symlink(&loops.paths[1], &other_path).unwrap();
        let line = format!("create vol2 --level 1 {} {}", loops.all(), other_path.display());
        refused(&home, &loops.paths, &line, 1, &["one and the same"]);
    }
}

#[test]
fn what_would_be_lost() {
    if !need(&["mkfs.ext4", "blkid"]) {
        return;
    }
    let home = Home::new();
    let disks = Disks::files(&home, "disk", 3, 16);
    let blank = Disks::files(&home, "blank", 1, 16);
    let raidd = home.start();
    run("mkfs.ext4", &["-q", "-F", &disks.paths[0]]).ok();
    // One entry of an MBR: type 0x83, from sector 2048 on.
    let table = File::options().write(true).open(&disks.paths[1]).unwrap();
    table.write_all_at(&[0, 0, 0, 0, 0x83, 0, 0, 0, 0, 8, 0, 0, 0, 64, 0, 0], 446).unwrap();
    table.write_all_at(&[0x55, 0xaa], 510).unwrap();
    home.ok(format!("create old --level 1 {} missing", disks.paths[2]));
    home.ok("stop old");
    for (path, what) in [
        (&disks.paths[0], "ext4"),
        (&disks.paths[1], "partition table"),
        (&disks.paths[2], "linux_raid_member"),
    ] {
        for role in ["", "--spare"] {
            let line = format!("create vol --level 1 {} missing {role} {path}", blank.paths[0]);
            refused(&home, &disks.paths, &line, 1, &[path, what, "--force"]);
        }
    }
    home.ok(format!("create vol --level 5 --force {}", disks.all()));
    raidd.terminate();
}

#[test]
fn sizes_that_do_not_fit() {
    let home = Home::new();
    let small = noisy_disks(&home, "small", 2, 8);
    let large = noisy_disks(&home, "large", 1, 40);
    let tiny = file(&home, "tiny", MIB);
    let empty = file(&home, "empty", 0);
    let _raidd = home.start();
    let watched = [small.paths.clone(), large.paths.clone(), vec![tiny.clone(), empty.clone()]].concat();
    let line = format!("create vol --level 5 {} {}", small.all(), large.all());
    refused(&home, &watched, &line, 1, &[&large.paths[0], "more than twice", "--force"]);
    for nothing in [&tiny, &empty] {
        for force in ["", "--force"] {
            let line = format!("create vol --level 5 {force} {} {nothing}", small.all());
            refused(&home, &watched, &line, 1, &[nothing]);
        }
        let line = format!("create vol --level 1 {} --spare {nothing}", small.all());
        refused(&home, &watched, &line, 1, &[nothing]);
    }
    home.ok(format!("create vol --level 5 --force {} {}", small.all(), large.all()));
}

#[test]
fn names_and_members_that_are_taken() {
    let home = Home::new();
    let disks = Disks::files(&home, "disk", 5, 8);
    let _raidd = home.start();
    home.ok(format!("create vol --level 1 --spare {} {}", disks.paths[2], disks.some(&[0, 1])));
    home.wait_idle("vol");
    let free = disks.part(&[3, 4]);
    let line = format!("create vol --level 1 {}", free.all());
    refused(&home, &disks.paths, &line, 1, &["vol", "another name"]);
    for taken in [0, 2] {
        for force in ["", "--force"] {
            let line = format!("create two --level 5 {force} {} {}", free.all(), disks.paths[taken]);
            refused(&home, &disks.paths, &line, 1, &[&disks.paths[taken], "in use"]);
        }
    }
    refused(&home, &disks.paths, &format!("zero-superblock --force {}", disks.paths[0]), 1, &["in use"]);
    for (line, word) in [
        ("status nobody", "nobody"),
        ("stop nobody", "nobody"),
        ("stop nobody --force", "nobody"),
        ("fail nobody /dev/null", "nobody"),
        ("fail vol /dev/null", "/dev/null"),
        ("assemble nobody", "--uuid"),
        ("assemble --uuid 00112233:44556677:8899aabb:ccddeeff", "none of the array's members was found"),
    ] {
        refused(&home, &disks.paths, line, 1, &[word]);
    }
    let other_member = format!("fail vol {}", free.paths[0]);
    refused(&home, &disks.paths, &other_member, 1, &["no member of vol"]);
    assert_eq!(home.status("vol").warnings, Vec::<String>::new());
}

#[test]
fn members_that_do_not_belong_together() {
    let home = Home::new();
    let a = Disks::files(&home, "a", 4, 8);
    let b = Disks::files(&home, "b", 2, 8);
    let blank = noisy_disks(&home, "blank", 1, 8);
    let _raidd = home.start();
    home.ok(format!("create a --level 6 {}", a.all()));
    home.ok(format!("create b --level 1 {}", b.all()));
    for name in ["a", "b"] {
        home.wait_idle(name);
        home.ok(format!("stop {name}"));
    }
    let watched = [a.paths.clone(), b.paths.clone(), blank.paths.clone()].concat();
    let refuse = |line: String, words: &[&str]| refused(&home, &watched, &line, 1, words);
    refuse(format!("assemble mixed {} {}", a.all(), b.paths[0]), &["belongs to array", &b.paths[0]]);
    refuse(format!("assemble a {}", a.paths[0]), &["1 of 4", "too few"]);
    refuse(format!("assemble a --force {}", a.paths[0]), &["1 of 4", "too few"]);
    refuse(format!("assemble a --read-only {}", a.paths[3]), &["1 of 4"]);
    refuse(format!("assemble a {} {}", a.all(), blank.paths[0]), &[&blank.paths[0], "superblock"]);
    refuse(format!("assemble a {}", blank.all()), &[&blank.paths[0], "superblock"]);
    let uuid = "00112233:44556677:8899aabb:ccddeeff";
    refuse(format!("assemble a --uuid {uuid} {}", a.all()), &[&a.paths[0], uuid]);
    home.ok(format!("assemble a {}", a.all()));
    home.ok(format!("assemble b {}", b.all()));
}

#[test]
fn superblocks_that_are_damaged() {
    let home = Home::new();
    let disks = Disks::files(&home, "disk", 3, 8);
    let raidd = home.start();
    home.ok(format!("create vol --level 5 {}", disks.all()));
    home.wait_idle("vol");
    home.ok("stop vol");
    let original = fs::read(&disks.paths[1]).unwrap();
    let damage = |at: u64, bytes: &[u8]| {
        let mut damaged = original.clone();
        damaged[usize::try_from(at).unwrap()..][..bytes.len()].copy_from_slice(bytes);
        damaged
    };
    let raid_disks = SUPERBLOCK_OFFSET + 92;
    let cases = [
        ("a flipped bit", damage(raid_disks, &[2]), "checksum"),
        ("all noise", damage(SUPERBLOCK_OFFSET + 4, &noise(1, 1000)), ""),
        ("no magic", damage(SUPERBLOCK_OFFSET, &[0; 4]), "superblock"),
        ("cut within the superblock", original[..4096 + 100].to_vec(), ""),
        ("cut before the superblock", original[..4000].to_vec(), ""),
        ("cut within the data", original[..original.len() - 600_000].to_vec(), ""),
        ("empty", Vec::new(), ""),
    ];
    for (what, content, word) in cases {
        fs::write(&disks.paths[1], &content).unwrap();
        for force in ["", "--force", "--read-only"] {
            let line = format!("assemble vol {force} {}", disks.all());
            println!("{what}: {line}");
            refused(&home, &disks.paths, &line, 1, &[&disks.paths[1], word]);
        }
        if what == "cut within the data" {
            // All that is there is shown, and what is wrong with it said.
            let ran = home.raidctl(format!("examine {}", disks.paths[1]));
            assert_eq!((ran.status, ran.stderr.lines().count()), (1, 1), "{ran:#?}");
            assert!(ran.stderr.contains("cut off") && ran.stdout.contains("raid5"), "{ran:#?}");
        } else {
            refused(&home, &disks.paths, &format!("examine {}", disks.paths[1]), 1, &[&disks.paths[1], word]);
        }
    }
    // Without that one it runs.
    home.ok(format!("assemble vol {}", disks.without(&[1])));
    raidd.terminate();
}

#[test]
fn a_filesystem_without_room() {
    if !need(&["root", "mount"]) {
        return;
    }
    let home = Home::new();
    let point = home.path("small");
    fs::create_dir(&point).unwrap();
    run("mount", &["-t", "tmpfs", "-o", "size=20m", "none", point.to_str().unwrap()]).ok();
    let result = std::panic::catch_unwind(|| {
        let disks = Disks::files(&home, "small/disk", 3, 16);
        let _raidd = home.start();
        let line = format!("create vol --level 5 {}", disks.all());
        refused(&home, &disks.paths, &line, 1, &["no room"]);
        assert_eq!(home.ok("list"), "no arrays\n");
    });
    run("umount", &[point.to_str().unwrap()]).ok();
    result.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
}

#[test]
fn a_disk_that_takes_no_writes() {
    if !need(&["root", "/dev/loop-control", "losetup"]) {
        return;
    }
    let home = Home::new();
    let disks = Disks::files(&home, "disk", 3, 16);
    let raidd = home.start();
    home.ok(format!("create vol --level 5 {}", disks.all()));
    home.wait_idle("vol");
    home.ok("stop vol");
    let protected = Loop::over(Path::new(&disks.paths[0]), &["-r"]);
    for line in [
        format!("create vol --level 5 --force {} {}", disks.some(&[1, 2]), protected.path),
        format!("assemble vol {} {}", disks.some(&[1, 2]), protected.path),
        format!("zero-superblock {}", protected.path),
    ] {
        refused(&home, &disks.paths, &line, 1, &[&protected.path]);
    }
    let line = format!("assemble vol --read-only {} {}", disks.some(&[1, 2]), protected.path);
    home.raidctl(line).ok();
    raidd.terminate();
}

#[test]
fn devices_that_the_kernel_cannot_make() {
    if Path::new("/sys/module/nbd").exists() {
        skip("this kernel has the nbd driver, and would make them");
        return;
    }
    let home = Home::new();
    let disks = noisy_disks(&home, "disk", 2, 8);
    let raidd = home.start();
    home.ok(format!("create vol --level 1 --force --init assume-clean {}", disks.all()));
    refused(&home, &disks.paths, "attach vol", 1, &["driver", "not loaded", "modprobe nbd"]);
    refused(&home, &disks.paths, "attach vol /dev/sda", 2, &["/dev/nbd0"]);
    refused(&home, &disks.paths, "attach nobody", 1, &["no array"]);
    refused(&home, &disks.paths, "detach vol", 1, &["not attached"]);
    assert_eq!(home.wait_for("vol", |status| status.connections == 0).device, None);
    raidd.terminate();
}
