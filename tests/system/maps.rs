//! What clients are told about ranges: holes, lost redundancy, marked regions; as nbdinfo and qemu-img show it.

use std::time::{Duration, Instant};

use serde_json::Value;

use super::disks::{Disks, MIB, hash_of};
use super::harness::{Home, Raidd, need, run};

const KIB: u64 = 1024;

/// Offset, length and flags, as nbdinfo prints them.
type Map = Vec<(u64, u64, u64)>;

fn map_of(uri: &str, context: &str) -> Map {
    let json = run("nbdinfo", &["--json", &format!("--map={context}"), uri]).ok();
    let document: Value = serde_json::from_str(&json).unwrap();
    let number = |extent: &Value, key: &str| extent[key].as_u64().unwrap();
    let extents = document.as_array().unwrap().iter();
    let map: Map = extents.map(|e| (number(e, "offset"), number(e, "length"), number(e, "type"))).collect();
    let ends = map.iter().map(|&(offset, len, _)| offset + len);
    assert!(map.iter().skip(1).map(|extent| extent.0).eq(ends.take(map.len() - 1)), "{map:?}");
    map
}

/// The flags at an offset.
fn at(map: &Map, offset: u64) -> u64 {
    map.iter().find(|extent| (extent.0..extent.0 + extent.1).contains(&offset)).unwrap().2
}

/// A RAID 5 of four files of 24 MiB, consistent as they are, the space that was reserved for them given up; a stripe
/// holds 192 KiB.
fn sparse_array() -> (Home, Raidd, Disks, String) {
    let home = Home::new();
    let disks = Disks::files(&home, "disk", 4, 24);
    let raidd = home.start();
    let uri = home.ok(format!("create vol --level 5 --chunk 64K --init assume-clean {}", disks.all()));
    let size = home.status("vol").size_bytes;
    assert!(map_of(uri.trim(), "base:allocation").iter().all(|extent| extent.2 != 3), "space is reserved");
    home.client("vol").trim(0, u32::try_from(size).unwrap()).unwrap();
    (home, raidd, disks, uri.trim().to_owned())
}

#[test]
fn holes_come_and_go() {
    if !need(&["nbdinfo", "qemu-img", "qemu-io", "nbdcopy"]) {
        return;
    }
    let (home, raidd, _disks, uri) = sparse_array();
    let size = home.status("vol").size_bytes;
    assert_eq!(map_of(&uri, "base:allocation"), [(0, size, 3)], "nothing has been written");
    let qemu_io = |command: &str| run("qemu-io", &["-f", "raw", &uri, "-c", command, "-c", "flush"]).ok();

    qemu_io("write -P 7 1536k 384k"); // stripes 8 and 9
    let written = [(0, 1536 * KIB, 3), (1536 * KIB, 384 * KIB, 0), (1920 * KIB, size - 1920 * KIB, 3)];
    assert_eq!(map_of(&uri, "base:allocation"), written);
    let qemu: Value =
        serde_json::from_str(&run("qemu-img", &["map", "-f", "raw", "--output=json", &uri]).ok()).unwrap();
    let zero: Vec<_> = qemu.as_array().unwrap().iter().map(|extent| extent["zero"] == true).collect();
    assert_eq!(zero, [true, false, true], "{qemu:#}");

    // A copy that leaves the holes out holds the same.
    let (sparse, full) = (home.path("sparse"), home.path("full"));
    run("nbdcopy", &[&uri, sparse.to_str().unwrap()]).ok();
    run("nbdcopy", &["--no-extents", &uri, full.to_str().unwrap()]).ok();
    assert_eq!(hash_of(&sparse), hash_of(&full));

    qemu_io("write -z 1536k 192k"); // space is kept
    let kept = at(&map_of(&uri, "base:allocation"), 1600 * KIB);
    assert!(kept == 2 || kept == 0, "zeroes without a hole, or written ones, but: {kept}");
    qemu_io("write -z -u 1536k 192k");
    assert_eq!(at(&map_of(&uri, "base:allocation"), 1600 * KIB), 3);
    qemu_io("discard 1728k 192k");
    assert_eq!(map_of(&uri, "base:allocation"), [(0, size, 3)]);
    raidd.terminate();
}

#[test]
fn what_is_missing_is_shown_as_allocated_and_weak() {
    if !need(&["nbdinfo"]) {
        return;
    }
    let (home, raidd, disks, uri) = sparse_array();
    let size = home.status("vol").size_bytes;
    assert_eq!(map_of(&uri, "raidd:health"), [(0, size, 0)]);
    home.ok(format!("fail vol {}", disks.some(&[1])));
    assert_eq!(map_of(&uri, "raidd:health"), [(0, size, 1)]);
    let map = map_of(&uri, "base:allocation");
    // Stripe 0 has its data on members 0, 1 and 2; nobody can tell of what is missing whether it is a hole.
    assert_eq!([at(&map, 0), at(&map, 64 * KIB), at(&map, 128 * KIB)], [3, 0, 3]);

    home.ok("tune vol recovery_max=1M recovery_min=1M");
    let spare = Disks::files(&home, "spare", 1, 24);
    home.ok(format!("add vol {}", spare.all()));
    home.wait_for("vol", |status| status.sync.done_bytes > 0);
    let map = map_of(&uri, "raidd:health");
    assert_eq!(
        map.iter().map(|extent| extent.2).collect::<Vec<_>>(),
        [0, 3],
        "recovered, and not yet: {map:?}"
    );
    home.ok("tune vol recovery_max=1G");
    home.wait_idle("vol");
    assert_eq!(map_of(&uri, "raidd:health"), [(0, size, 0)]);
    raidd.terminate();
}

#[test]
fn what_was_written_is_dirty_for_a_while() {
    if !need(&["nbdinfo"]) {
        return;
    }
    let (home, raidd, _disks, uri) = sparse_array();
    let wait_clean = || {
        let deadline = Instant::now() + Duration::from_secs(60);
        while map_of(&uri, "raidd:dirty") != [(0, home.status("vol").size_bytes, 0)] {
            assert!(Instant::now() < deadline, "some bit is never cleared");
            std::thread::sleep(Duration::from_millis(200));
        }
    };
    wait_clean();
    home.client("vol").write(10 * MIB, &[1; 4096]).unwrap();
    let map = map_of(&uri, "raidd:dirty");
    assert_eq!(at(&map, 10 * MIB), 1, "{map:?}");
    wait_clean();
    raidd.terminate();
    let home = Home::new();
    let disks = Disks::files(&home, "plain", 2, 24);
    let raidd = home.start();
    let uri = home.ok(format!("create none --level 1 --bitmap none {}", disks.all()));
    let json = run("nbdinfo", &["--json", uri.trim()]).ok();
    let document: Value = serde_json::from_str(&json).unwrap();
    assert_eq!(document["exports"][0]["contexts"], serde_json::json!(["base:allocation", "raidd:health"]));
    raidd.terminate();
}
