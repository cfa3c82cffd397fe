//! Metadata that is kept and written back, and names that are changed.

use std::os::unix::fs::FileExt;

use raidd::api::Health;
use serde_json::Value;

use super::disks::{Disks, MIB, noise};
use super::harness::{Home, need, run};

/// What a member's superblock says.
fn examined(home: &Home, path: &str) -> Value {
    let all: Value = serde_json::from_str(&home.ok(format!("examine --json {path}"))).unwrap();
    all[0].clone()
}

#[test]
fn what_was_before_the_data_comes_back_from_a_dump() {
    let home = Home::new();
    let disks = Disks::files(&home, "disk", 3, 32);
    let _raidd = home.start();
    home.ok(format!("create vol --level 5 --init zero {}", disks.all()));
    let data = noise(8, 5 * MIB as usize);
    home.client("vol").write(0, &data).unwrap();
    home.ok("stop vol");
    let kept = home.path("kept");
    std::fs::create_dir(&kept).unwrap();
    let told = home.ok(format!("dump {} {}", kept.display(), disks.all()));
    assert_eq!(told.lines().count(), 3);
    let file = kept.join("disk1");
    let file = file.to_str().unwrap();
    assert_eq!(std::fs::metadata(file).unwrap().len(), 32 * MIB);
    let before = examined(&home, &disks.paths[1]);
    let mut same = examined(&home, file);
    same["path"] = before["path"].clone();
    assert_eq!(same, before, "a dump reads like its device");
    assert!(
        home.raidctl(format!("dump {} {}", kept.display(), disks.paths[1])).complaint(1).contains("exists")
    );

    // All that is before the data is overwritten, and the data is not.
    let disk = std::fs::File::options().read(true).write(true).open(&disks.paths[1]).unwrap();
    let data_offset = before["data_offset_bytes"].as_u64().unwrap();
    let mut content = vec![0; 4 * MIB as usize];
    disk.read_exact_at(&mut content, data_offset).unwrap();
    disk.write_all_at(&noise(9, data_offset as usize), 0).unwrap();
    let refused = home.raidctl(format!("restore {file} {}", disks.paths[1])).complaint(1);
    assert!(refused.contains("no superblock") && refused.contains("--force"), "{refused}");
    let other = home.raidctl(format!("restore {file} {}", disks.paths[0])).complaint(1);
    assert!(other.contains("another member"), "{other}");
    let small = Disks::files(&home, "small", 1, 16);
    let refused = home.raidctl(format!("restore --force {file} {}", small.paths[0])).complaint(1);
    assert!(refused.contains("bytes"), "{refused}");
    home.ok(format!("restore --force {file} {}", disks.paths[1]));
    assert_eq!(examined(&home, &disks.paths[1]), before);
    let mut now = vec![0; content.len()];
    disk.read_exact_at(&mut now, data_offset).unwrap();
    assert!(now == content, "the data was touched");
    drop(disk);

    home.ok(format!("assemble {}", disks.all()));
    assert_eq!(home.wait_idle("vol").health, Health::Optimal);
    let in_use = home.raidctl(format!("restore {file} {}", disks.paths[1])).complaint(1);
    assert!(in_use.contains("in use"), "{in_use}");
    let mut found = vec![0; data.len()];
    home.client("vol").read(0, &mut found).unwrap();
    assert!(found == data);
    home.client("vol").write(0, &data[..4096]).unwrap();
    home.ok("stop vol");
    let older = home.raidctl(format!("restore {file} {}", disks.paths[1])).complaint(1);
    assert!(older.contains("newer"), "{older}");
}

#[test]
fn a_new_name_is_what_the_superblocks_say() {
    for level in [0, 1, 5] {
        let home = Home::new();
        let disks = Disks::files(&home, "disk", 3, 32);
        let raidd = home.start();
        home.ok(format!("create vol --level {level} {}", disks.all()));
        home.wait_idle("vol");
        home.ok("stop vol");
        let refused = home.raidctl(format!("assemble --update name {}", disks.all())).complaint(2);
        assert!(refused.contains("new name"), "{refused}");
        home.ok(format!("assemble archive --update name {}", disks.all()));
        assert_eq!(home.wait_idle("archive").name, "archive");
        home.ok("stop archive");
        for path in &disks.paths {
            let name = examined(&home, path)["name"].as_str().unwrap().to_owned();
            assert!(name == "archive" || name.ends_with(":archive"), "RAID {level}: {name}");
            if need(&["mdadm"]) {
                assert!(run("mdadm", &["--examine", path]).ok().contains("archive"));
            }
        }
        home.ok(format!("assemble {}", disks.all()));
        assert_eq!(home.status("archive").health, Health::Optimal);
        // The name is remembered, too.
        raidd.terminate();
        let _raidd = home.start();
        assert_eq!(home.status("archive").name, "archive");
        assert!(home.raidctl("status vol").complaint(1).contains("vol"));
    }
}
