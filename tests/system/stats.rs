//! `raidctl stats` and `info`: what is counted is what was done.

use raidd::api::{DaemonStatus, Stats};

use super::disks::{Disks, MIB};
use super::harness::Home;

#[test]
fn what_a_client_does_is_counted() {
    let home = Home::new();
    let disks = Disks::files(&home, "disk", 3, 32);
    let raidd = home.start();
    home.ok(format!("create vol --level 5 --init zero {}", disks.all()));
    let mut client = home.client("vol");
    let mut data = vec![7; MIB as usize];
    (0..4).for_each(|place| client.write(place * MIB, &data).unwrap());
    client.flush().unwrap();
    (0..2).for_each(|place| client.read(place * MIB, &mut data).unwrap());

    let stats: Stats = serde_json::from_str(&home.ok("stats --json vol")).unwrap();
    assert_eq!((stats.writes.count, stats.writes.bytes), (4, 4 * MIB), "{stats:#?}");
    assert_eq!((stats.reads.count, stats.reads.bytes), (2, 2 * MIB), "{stats:#?}");
    assert_eq!((stats.flushes.count, stats.in_flight), (1, 0), "{stats:#?}");
    assert_eq!(stats.writes.within.last(), Some(&4), "{stats:#?}");
    assert!(stats.uptime_ms > 0 && stats.writes.total_us >= stats.writes.max_us, "{stats:#?}");
    // Data and parity.
    let written: u64 = stats.members.iter().map(|member| member.writes.bytes).sum();
    assert!(stats.members.len() == 3 && written >= 6 * MIB, "{stats:#?}");

    let table = home.ok("stats");
    assert!(table.lines().any(|line| line.starts_with("vol ")), "{table}");
    for path in &disks.paths {
        assert!(table.contains(path.as_str()), "{table}");
    }
    let two = home.ok("stats vol --interval 50ms --count 2");
    let (_, idle) = two.rsplit_once("DEVICE").unwrap();
    let vol = idle.lines().find(|line| line.starts_with("vol ")).unwrap();
    assert_eq!(vol.split_whitespace().take(5).collect::<Vec<_>>(), ["vol", "0.0", "0.0", "0.00", "0.00"]);

    home.ok(format!("fail vol {}", disks.paths[1]));
    std::thread::sleep(std::time::Duration::from_millis(20));
    let degraded: Stats = serde_json::from_str(&home.ok("stats --json vol")).unwrap();
    assert!(degraded.degraded_ms > 0 && degraded.unavailable_ms == 0, "{degraded:#?}");
    raidd.terminate();
}

#[test]
fn the_daemon_tells_of_itself() {
    let home = Home::new();
    let raidd = home.start();
    let daemon: DaemonStatus = serde_json::from_str(&home.ok("info --json")).unwrap();
    assert_eq!((daemon.version.as_str(), daemon.reactors.len()), (env!("CARGO_PKG_VERSION"), 2));
    for reactor in &daemon.reactors {
        assert!(reactor.uptime_us > 0 && reactor.asleep_us <= reactor.uptime_us, "{daemon:#?}");
    }
    assert!(daemon.pools.iter().all(|pool| pool.used_bytes <= pool.total_bytes), "{daemon:#?}");
    assert!(daemon.pools.iter().any(|pool| pool.pool == "payloads"), "{daemon:#?}");
    let told = home.ok("info");
    assert!(told.contains("Up since") && told.contains("REACTOR") && told.contains("payloads"), "{told}");
    raidd.terminate();
}
