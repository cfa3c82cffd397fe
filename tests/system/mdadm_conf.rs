//! What raidd tells mdadm about its arrays. What mdadm makes of it is seen in a guest (`vm/boot`).

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::disks::Disks;
use super::harness::{Home, Raidd};

fn start(home: &Home, file: &Path) -> Raidd {
    home.start_with(&["--mdadm-conf", file.to_str().unwrap()])
}

/// The arrays that mdadm is to ignore.
fn ignored(file: &Path) -> Vec<String> {
    let text = fs::read_to_string(file).unwrap_or_default();
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    lines.map(|line| line.strip_prefix("ARRAY <ignore> UUID=").expect("no other lines").to_owned()).collect()
}

#[test]
fn its_lines_follow_what_is_remembered() {
    let home = Home::new();
    let file = home.path("mdadm.conf.d/raidd.conf");
    let disks = Disks::files(&home, "disk", 4, 32);
    let raidd = start(&home, &file);
    assert!(!file.exists(), "there is nothing to ignore");
    home.ok(format!("create one --level 1 {}", disks.some(&[0, 1])));
    let one = home.status("one").uuid;
    assert_eq!(ignored(&file), [one.as_str()]);
    home.ok(format!("create two --level 1 {}", disks.some(&[2, 3])));
    let two = home.status("two").uuid;
    let mut both = [one.clone(), two.clone()];
    both.sort();
    assert_eq!(ignored(&file), both);

    // Stopped and remembered; over a restart; made anew if somebody has removed it; replaced only when it changes.
    home.ok("stop one");
    assert_eq!(ignored(&file), both);
    raidd.terminate();
    assert_eq!(ignored(&file), both);
    fs::remove_file(&file).unwrap();
    let raidd = start(&home, &file);
    assert_eq!(ignored(&file), both);
    let inode = fs::metadata(&file).unwrap().ino();
    home.ok("assemble one");
    home.ok("stop one");
    assert_eq!(fs::metadata(&file).unwrap().ino(), inode);

    // Released: one that does not run, one that does.
    home.ok("stop one --release");
    assert_eq!(ignored(&file), [two.as_str()]);
    let line = home.raidctl("stop one --release").complaint(1);
    assert!(line.contains("no array is called \"one\""), "{line}");
    let client = home.client("two");
    let line = home.raidctl("stop two --release").complaint(1);
    assert!(line.contains("connected"), "{line}");
    assert_eq!(ignored(&file), [two.as_str()], "it goes on");
    drop(client);
    home.wait_for("two", |status| status.connections == 0);
    home.ok("stop two --release");
    assert_eq!(ignored(&file), [""; 0]);
    assert!(fs::read_to_string(&file).unwrap().contains("--release"), "it says what it is for");

    // What was released is not known any more, but its members are what they were.
    raidd.terminate();
    let raidd = start(&home, &file);
    assert_eq!(home.ok("list"), "no arrays\n");
    let line = home.raidctl("assemble two").complaint(1);
    assert!(line.contains("not known here"), "{line}");
    home.ok(format!("assemble two {}", disks.some(&[2, 3])));
    assert_eq!((home.status("two").uuid, ignored(&file)), (two.clone(), vec![two]));
    raidd.terminate();
}

#[test]
fn a_released_array_that_waits_for_members_is_waited_for_no_more() {
    let home = Home::new();
    let file = home.path("raidd.conf");
    let disks = Disks::files(&home, "disk", 2, 32);
    let raidd = start(&home, &file);
    home.ok(format!("create vol --level 1 {}", disks.all()));
    raidd.terminate();
    fs::rename(&disks.paths[1], home.path("away")).unwrap();
    home.configure("assemble_wait = \"2s\"\n");
    let raidd = start(&home, &file);
    home.ok("stop vol --release");
    assert_eq!(ignored(&file), [""; 0]);
    std::thread::sleep(std::time::Duration::from_secs(4));
    assert_eq!(home.ok("list"), "no arrays\n", "it was started although it was released");
    raidd.terminate();
}

#[test]
fn a_file_that_cannot_be_written_is_said_and_stops_only_a_release() {
    let home = Home::new();
    let disks = Disks::files(&home, "disk", 2, 32);
    let file = home.path("disk0/raidd.conf");
    let raidd = start(&home, &file);
    home.ok(format!("create vol --level 1 {}", disks.all()));
    let log = fs::read_to_string(home.path("raidd.log")).unwrap();
    assert!(log.contains("cannot write") && log.contains("--mdadm-conf"), "{log}");
    let line = home.raidctl("stop vol --release").complaint(1);
    assert!(line.contains("not released") && line.contains(file.to_str().unwrap()), "{line}");
    home.client("vol").disconnect().unwrap();
    raidd.terminate();
}

#[test]
fn without_a_name_of_its_own_a_raidd_tells_mdadm_nothing() {
    let usual = Path::new("/etc/mdadm/mdadm.conf.d/raidd.conf");
    let before = fs::read(usual).ok();
    let home = Home::new();
    let disks = Disks::files(&home, "disk", 2, 32);
    let raidd = home.start();
    home.ok(format!("create vol --level 1 {}", disks.all()));
    assert_eq!(fs::read(usual).ok(), before, "its state directory is not the machine's");
    raidd.terminate();
}
