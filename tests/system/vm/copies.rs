//! Copies that raidd has given a UUID of their own go to the kernel, together with their originals.

use sha2::{Digest, Sha256};

use super::super::disks::{Disks, noise};
use super::super::harness::{Home, run};
use super::super::members::read_all;
use super::rig::{Guest, can_run};

const SHAPES: [(&str, &str, usize); 3] = [
    ("raid1", "--level 1", 2),
    ("raid5", "--level 5 --chunk 64K", 3),
    ("ppl", "--level 5 --chunk 64K --consistency-policy ppl", 3),
];

#[test]
fn the_kernel_takes_a_copy_beside_its_original() {
    if !can_run() {
        return;
    }
    let home = Home::new();
    let raidd = home.start();
    let mut guest = Guest::new(include_str!("copies.sh"));
    let mut arrays = Vec::new();
    for (name, options, members) in SHAPES {
        let disks = Disks::files(&home, name, members, 16);
        home.ok(format!("create {name} --init zero {options} {}", disks.all()));
        let size = home.status(name).size_bytes as usize;
        home.client(name).write(0, &noise(members as u64, size)).unwrap();
        home.ok(format!("stop {name}"));
        let copies = Disks::files(&home, &format!("{name}-copy"), members, 16);
        for (path, copy) in disks.paths.iter().zip(&copies.paths) {
            run("cp", &[path, copy]).ok();
        }
        home.ok(format!("assemble {}", disks.all()));
        let copy = format!("{name}-copy");
        home.ok(format!("assemble {copy} --update uuid {}", copies.all()));
        for (name, disks) in [(name.to_owned(), &disks), (copy, &copies)] {
            let content = Sha256::digest(read_all(&home, &name));
            let content: String = content.iter().map(|byte| format!("{byte:02x}")).collect();
            let uuid = home.status(&name).uuid;
            guest = guest.argument(format!("{name} {uuid}"));
            for path in &disks.paths {
                guest = guest.disk(path);
            }
            arrays.push((name, uuid, content, members));
        }
    }
    // Nothing more is written to any of them.
    raidd.terminate();
    let ended = guest.run();
    ended.assert_ok();
    assert_eq!(ended.said("resyncs"), "0", "{}", ended.output);
    for (name, uuid, content, members) in &arrays {
        assert_eq!(ended.said(&format!("{name} UUID")), uuid, "{}", ended.output);
        assert_eq!(ended.said(&format!("{name} State")), "clean", "{}", ended.output);
        assert_eq!(ended.said(&format!("{name} mismatches")), "0", "{}", ended.output);
        assert_eq!(ended.said(&format!("{name} content")), content, "{}", ended.output);
        let has_bitmap = !name.starts_with("ppl");
        assert_eq!(ended.said(&format!("{name} bitmap")), if has_bitmap { "+8" } else { "none" });
        let of_members = format!("{name} member: ");
        let bitmaps = ended.output.lines().filter_map(|line| line.strip_prefix(&of_members)?.split_once(' '));
        let bitmaps: Vec<_> = bitmaps.map(|(_, uuid)| uuid.trim()).collect();
        assert_eq!(bitmaps, vec![if has_bitmap { uuid.as_str() } else { "" }; *members], "{}", ended.output);
    }
}
