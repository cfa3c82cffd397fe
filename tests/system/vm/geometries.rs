//! Arrays of every geometry that raidd makes, to the kernel and back.

use raidd::api::{Health, SyncAction};

use super::super::disks::{Disks, MIB, noise};
use super::super::harness::Home;
use super::super::members::read_all;
use super::handover::Handover;
use super::rig::can_run;

/// Level, layout, chunk, members.
const GEOMETRIES: [(u8, &str, &str, usize); 40] = [
    (0, "", "64K", 2),
    (0, "original", "20K", 3),
    (0, "alternate", "4K", 4),
    (1, "", "", 2),
    (1, "", "", 3),
    (1, "", "", 4),
    (4, "", "4K", 3),
    (4, "", "512K", 5),
    (5, "left-symmetric", "64K", 2),
    (5, "left-symmetric", "4K", 3),
    (5, "left-asymmetric", "16K", 4),
    (5, "right-asymmetric", "128K", 5),
    (5, "right-symmetric", "512K", 6),
    (5, "parity-first", "1M", 7),
    (5, "parity-last", "32K", 8),
    (6, "left-symmetric", "512K", 4),
    (6, "left-symmetric", "4K", 8),
    (6, "left-asymmetric", "16K", 5),
    (6, "right-asymmetric", "64K", 6),
    (6, "right-symmetric", "128K", 7),
    (6, "parity-first", "32K", 4),
    (6, "parity-last", "8K", 5),
    (6, "ddf-zero-restart", "64K", 5),
    (6, "ddf-N-restart", "16K", 6),
    (6, "ddf-N-continue", "128K", 5),
    (6, "left-asymmetric-6", "64K", 5),
    (6, "right-asymmetric-6", "16K", 6),
    (6, "left-symmetric-6", "32K", 4),
    (6, "right-symmetric-6", "64K", 5),
    (6, "parity-first-6", "4K", 6),
    (10, "n2", "512K", 2),
    (10, "n2", "64K", 3),
    (10, "n2", "4K", 5),
    (10, "n3", "32K", 4),
    (10, "f2", "64K", 3),
    (10, "f2", "128K", 4),
    (10, "f3", "16K", 4),
    (10, "o2", "64K", 3),
    (10, "o3", "8K", 5),
    (10, "n2, f2", "64K", 4),
];

/// Members of odd lengths, no two alike; RAID 0 makes use of the difference.
fn disks(home: &Home, name: &str, level: u8, count: usize) -> Disks {
    let step = if level == 0 { MIB + 11 * 512 } else { 37 << 10 };
    let disks = Disks::of_sizes(home, name, (0..count as u64).map(|number| 5 * MIB + number * step + 512));
    disks.fill_with_noise();
    disks
}

#[test]
fn the_kernel_takes_every_geometry_and_gives_it_back() {
    if !can_run() {
        return;
    }
    let home = Home::new();
    let raidd = home.start();
    let mut handover = Handover::default();
    let mut arrays = Vec::new();
    for (number, (level, layout, chunk, count)) in GEOMETRIES.into_iter().enumerate() {
        let name = format!("vol{number}");
        let disks = disks(&home, &format!("{name}-"), level, count);
        let level_text = level.to_string();
        let mut words = vec!["create", &name, "--level", &level_text];
        for (option, value) in [("--layout", layout), ("--chunk", chunk)] {
            words.extend([option, value].into_iter().filter(|_| !value.is_empty()));
        }
        words.extend(disks.paths.iter().map(String::as_str));
        home.raidctl_words(&words).ok();
        let mut client = home.client(&name);
        let content = noise(number as u64, client.size_bytes() as usize);
        client.write(0, &content).unwrap();
        client.disconnect().unwrap();
        let status = home.wait_idle(&name);
        home.ok(format!("stop {name}"));
        handover.give(&name, status.size_bytes, &disks.paths);
        arrays.push((status, disks, content));
    }
    let taken = handover.run();
    for (status, disks, content) in &arrays {
        let name = &status.name;
        taken.assert_whole(name, content);
        assert_eq!(taken.said(name, "Raid Level"), status.level);
        assert_eq!(taken.said(name, "Raid Devices"), disks.paths.len().to_string());
        assert_eq!(taken.said(name, "UUID"), status.uuid);
        if let Some(layout) = &status.layout {
            assert_eq!(taken.said(name, "Layout"), layout, "{name}");
        }
        // It was stopped in good order, so there is nothing to mend: assembly writes but superblocks and bitmaps.
        assert!(taken.moved(name).iter().all(|moved| moved.written < 64), "{name}: {:?}", taken.moved(name));

        home.ok(format!("assemble {}", disks.all()));
        let back = home.status(name);
        assert_eq!((back.health, back.sync.action), (Health::Optimal, SyncAction::Idle), "{back:#?}");
        assert!(read_all(&home, name) == *content, "{name} came back with something else");
        home.ok(format!("stop {name}"));
    }
    raidd.terminate();
}
