//! Disks that are slow but answer, and spares that arrays share: the health watch, hedged reads, read policies, what is told of
//! latencies.

use std::time::{Duration, Instant};

use raidd::api::{ConcernKind, Event, Health, MemberState, Stats};

use super::disks::{Disks, MIB, noise};
use super::harness::{Home, Raidd};

/// Faults can be injected.
fn start(home: &Home) -> Raidd {
    home.start_with(&["--enable-fault-injection"])
}

fn stats(home: &Home, name: &str) -> Stats {
    let path = home.path("control.sock");
    let answer = home
        .shell(&format!("curl -sS --unix-socket {} http://localhost/v1/arrays/{name}/stats", path.display()));
    serde_json::from_str(&answer.ok()).unwrap()
}

fn events(home: &Home) -> Vec<Event> {
    let text = home.ok("events --json");
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Reads of 4 KiB all over the array, so many; how long the longest took.
fn read_around(home: &Home, count: u64) -> Duration {
    let mut client = home.client("vol");
    let (mut buf, mut longest) = (vec![0; 4096], Duration::ZERO);
    for index in 0..count {
        let began = Instant::now();
        client.read(index * 68 * 1024 % (16 * MIB), &mut buf).unwrap();
        longest = longest.max(began.elapsed());
    }
    longest
}

#[test]
fn a_slow_member_is_told_of_with_what_to_do_until_it_is_fast_again() {
    let home = Home::new();
    let disks = Disks::files(&home, "disk", 3, 32);
    let _raidd = start(&home);
    home.ok(format!("create vol --level 5 --chunk 64K --init zero {}", disks.all()));
    home.ok(format!("inject vol {} latency=15ms", disks.paths[1]));
    let concern = |home: &Home| {
        let status = home.status("vol");
        status.concerns.into_iter().find(|concern| concern.kind == ConcernKind::SlowMember)
    };
    let deadline = Instant::now() + Duration::from_secs(60);
    let found = loop {
        read_around(&home, 300);
        if let Some(found) = concern(&home) {
            break found;
        }
        assert!(Instant::now() < deadline, "nobody noticed: {:?}", stats(&home, "vol"));
    };
    assert_eq!(found.device.as_deref(), Some(disks.paths[1].as_str()));
    let text = home.raidctl("status vol");
    assert!(text.stdout.contains("raidctl replace vol"), "{text:?}");
    let told: Vec<_> = events(&home).into_iter().filter(|event| event.event == "SlowMember").collect();
    assert_eq!((told.len(), told[0].device.as_deref()), (1, Some(disks.paths[1].as_str())));
    assert_eq!(home.raidctl("check vol").status, 1, "a warning for Nagios");
    assert_eq!(home.status("vol").health, Health::Optimal, "it is not failed for that");

    let seen = stats(&home, "vol");
    let mean = |slot: usize| seen.members[slot].reads.mean_us().unwrap();
    assert!(mean(1) > 14_000 && mean(0) < 14_000 && mean(2) < 14_000, "{seen:?}");

    home.ok(format!("inject vol {} clear", disks.paths[1]));
    let deadline = Instant::now() + Duration::from_secs(90);
    while concern(&home).is_some() {
        assert!(Instant::now() < deadline, "it is held to be slow for ever");
        read_around(&home, 600);
        std::thread::sleep(Duration::from_millis(300));
    }
}

#[test]
fn a_hedged_read_does_not_wait_for_a_slow_member() {
    for (level, count) in [(1, 2), (5, 3), (6, 4)] {
        let home = Home::new();
        let disks = Disks::files(&home, "disk", count, 32);
        let _raidd = start(&home);
        let chunk = if level == 1 { "" } else { "--chunk 64K" };
        home.ok(format!("create vol --level {level} {chunk} --init zero {}", disks.all()));
        let mut client = home.client("vol");
        let data = noise(3, 8 * MIB as usize);
        client.write(0, &data).unwrap();
        home.ok(format!("inject vol {} latency=300ms", disks.paths[0]));
        assert!(read_around(&home, 12) >= Duration::from_millis(300), "RAID {level}: it is slow");
        home.ok("tune vol hedge=5ms");
        assert!(home.ok("tune vol").contains("hedge=5ms\n"));
        let longest = read_around(&home, 12);
        assert!(longest < Duration::from_millis(300), "RAID {level}: {longest:?}");
        assert!(stats(&home, "vol").hedged_reads > 0);
        let mut found = vec![0; 4096];
        for at in [0, 64 << 10, 3 << 20] {
            client.read(at, &mut found).unwrap();
            assert!(found == data[at as usize..][..4096], "RAID {level} at {at}");
        }
        assert_eq!(home.status("vol").health, Health::Optimal);
        drop(client);
        home.ok("stop vol");
    }
}

#[test]
fn a_mirror_reads_as_it_is_told_to_also_after_a_restart() {
    let home = Home::new();
    let disks = Disks::files(&home, "disk", 2, 32);
    let raidd = start(&home);
    home.ok(format!("create vol --level 1 --init zero {}", disks.all()));
    home.ok("tune vol read_policy=prefer=1");
    let before = stats(&home, "vol");
    read_around(&home, 100);
    let counts = |stats: &Stats| [stats.members[0].reads.count, stats.members[1].reads.count];
    let (first, second) = (counts(&before), counts(&stats(&home, "vol")));
    assert_eq!([second[0] - first[0], second[1] - first[1]], [0, 100]);
    raidd.terminate();
    let _raidd = start(&home);
    assert!(home.ok("tune vol").contains("read_policy=prefer=1\n"));
    read_around(&home, 100);
    let [zero, one] = counts(&stats(&home, "vol"));
    assert!(zero < 20 && one >= 100, "{zero} {one}");
    let refused = home.raidctl("tune vol read_policy=fastest").complaint(2);
    assert!(refused.contains("least-pending"), "{refused}");
}

#[test]
fn a_spare_goes_to_the_array_of_its_group_that_needs_it() {
    let home = Home::new();
    let (first, second) = (Disks::files(&home, "first", 4, 32), Disks::files(&home, "second", 3, 32));
    let _raidd = start(&home);
    home.ok(format!("create rich --level 5 --init zero --spare {} {}", first.paths[3], first.without(&[3])));
    home.ok(format!("create poor --level 5 --init zero {}", second.all()));
    home.ok("tune rich spare_group=tank");
    home.ok("tune poor spare_group=tank");
    let data = noise(5, 4 * MIB as usize);
    home.client("poor").write(0, &data).unwrap();
    home.ok(format!("fail poor {}", second.paths[1]));
    home.wait_for("poor", |status| status.health == Health::Optimal);
    let poor = home.status("poor");
    assert_eq!(poor.members[1].path.as_deref(), Some(first.paths[3].as_str()));
    assert!(home.status("rich").spares.is_empty());
    let moved: Vec<_> = events(&home).into_iter().filter(|event| event.event == "MoveSpare").collect();
    assert_eq!(moved.len(), 1);
    assert_eq!(
        (moved[0].array.as_str(), moved[0].device.as_deref()),
        ("poor", Some(first.paths[3].as_str()))
    );
    let mut found = vec![0; data.len()];
    home.client("poor").read(0, &mut found).unwrap();
    assert!(found == data);
    // Each knows its own again after a restart, and an array that is itself in need lends nothing.
    home.ok(format!("add rich {}", Disks::files(&home, "third", 1, 32).paths[0]));
    home.ok("tune poor spare_group=none");
    home.ok(format!("fail poor {}", second.paths[0]));
    std::thread::sleep(Duration::from_secs(25));
    let poor = home.status("poor");
    assert_eq!(
        (poor.health, poor.members[0].state),
        (Health::Degraded, MemberState::Faulty),
        "it has left the group"
    );
    assert_eq!(home.status("rich").spares.len(), 1);
}
