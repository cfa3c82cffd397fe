//! Partial parity logs: a daemon is killed while members are missing, or loses one of them with it.

use std::fs;
use std::time::Duration;

use raidd::api::{ArrayState, ConsistencyPolicy, Health, MemberState};

use super::disks::{Disks, MIB, noise};
use super::harness::Home;
use super::load::Load;
use super::recovery::assert_consistent;

#[test]
fn a_member_lost_together_with_the_daemon_costs_nothing() {
    let home = Home::new();
    let disks = Disks::files(&home, "disk", 3, 64);
    let mut raidd = home.start();
    home.ok(format!("create vol --level 5 --chunk 64K --init zero --consistency-policy ppl {}", disks.all()));
    let status = home.status("vol");
    assert_eq!(status.consistency_policy, ConsistencyPolicy::Ppl);
    let content = noise(1, 12 * MIB as usize);
    home.client("vol").write(3000, &content).unwrap();
    assert_eq!(home.status("vol").state, ArrayState::Active);
    raidd.kill();
    fs::rename(&disks.paths[1], home.path("away")).unwrap();

    let _raidd = home.start();
    let status = home.wait_for("vol", |status| status.nbd_uri.is_some());
    assert_eq!(status.health, Health::Degraded, "{status:#?}");
    let mut found = vec![0; 13 * MIB as usize];
    home.client("vol").read(0, &mut found).unwrap();
    assert!(found[3000..3000 + content.len()] == content, "something has changed");
    assert!(found[..3000].iter().chain(&found[3000 + content.len()..]).all(|&byte| byte == 0));
    home.client("vol").write(0, &content).unwrap();
    home.ok("stop vol");
}

#[test]
fn a_degraded_array_is_killed_again_and_again() {
    let home = Home::new();
    let disks = Disks::files(&home, "disk", 4, 64);
    let mut raidd = home.start();
    home.ok(format!("create vol --level 5 --chunk 64K --init zero --consistency-policy ppl {}", disks.all()));
    let mut load = Load::new("vol");
    load.run(&home, Duration::from_millis(300), || ());
    home.ok(format!("fail vol {}", disks.paths[0]));
    for _ in 0..3 {
        load.run(&home, Duration::from_millis(300), || raidd.kill());
        raidd = home.start();
        home.wait_for("vol", |status| status.nbd_uri.is_some());
        load.check(&home);
    }
}

#[test]
fn a_recovery_onto_a_spare_outlives_crashes() {
    let home = Home::new();
    let disks = Disks::files(&home, "disk", 5, 96);
    let mut raidd = home.start();
    home.ok(format!(
        "create vol --level 5 --chunk 64K --init zero --consistency-policy ppl --spare {} {}",
        disks.paths[4],
        disks.without(&[4])
    ));
    home.ok("tune vol recovery_max=24M");
    let mut load = Load::new("vol");
    load.run(&home, Duration::from_millis(300), || ());
    home.ok(format!("fail vol {}", disks.paths[2]));
    for _ in 0..3 {
        home.wait_for("vol", |status| status.members[2].state == MemberState::Recovering);
        load.run(&home, Duration::from_millis(400), || raidd.kill());
        raidd = home.start();
        // Neither refused nor forced: the logs tell what was under way.
        home.wait_for("vol", |status| status.nbd_uri.is_some());
        load.check(&home);
    }
    home.ok("tune vol recovery_max=1G");
    home.ok("wait vol --timeout 60s");
    load.check(&home);
    assert_consistent(&home);
    // And with parity alone.
    home.ok(format!("fail vol {}", disks.paths[0]));
    load.check(&home);
}
