//! Members fail, and arrays become whole again: spares, re-add, replace, scrub, hung disks, and crashes in the middle.

use std::time::{Duration, Instant};

use raidd::api::{Findings, Health, MemberState, SyncAction};

use super::disks::{Disks, MIB, noise};
use super::harness::{Home, Raidd, need, run};
use super::load::{Load, Stopwatch};

/// Faults can be injected.
fn start(home: &Home) -> Raidd {
    home.start_with(&["--enable-fault-injection"])
}

fn fio(home: &Home) -> std::thread::JoinHandle<String> {
    let uri = format!("--uri={}", home.uri("vol"));
    std::thread::spawn(move || {
        let arguments = [
            "--name=v",
            "--ioengine=nbd",
            &uri,
            "--rw=randrw",
            "--bs=16k",
            "--iodepth=16",
            "--size=48m",
            "--loops=4",
            "--verify=crc32c",
            "--verify_fatal=1",
            "--do_verify=1",
            "--verify_state_save=0",
            "--rate=24m",
        ];
        run("fio", &arguments).ok()
    })
}

#[test]
fn a_spare_takes_over_under_fio() {
    if !need(&["fio"]) {
        return;
    }
    let home = Home::new();
    let disks = Disks::files(&home, "disk", 5, 64);
    let _raidd = start(&home);
    home.ok(format!(
        "create vol --level 5 --chunk 64K --init zero --spare {} {}",
        disks.paths[4],
        disks.without(&[4])
    ));
    let client = fio(&home);
    std::thread::sleep(Duration::from_millis(700));
    home.ok(format!("inject vol {} die", disks.paths[1]));
    home.wait_for("vol", |status| status.members[1].path.as_deref() == Some(&disks.paths[4]));
    let report = client.join().unwrap();
    assert!(report.contains("err= 0"), "{report}");
    home.ok("wait vol --timeout 60s");
    let status = home.status("vol");
    assert_eq!(status.health, Health::Optimal);
    assert_eq!((status.spares.len(), status.spares[0].state), (1, MemberState::Faulty));
    let events = home.ok("events --json");
    let mut rest = events.as_str();
    for name in ["NewArray", "Fail", "RebuildStarted", "SpareActive", "RebuildFinished"] {
        let at =
            rest.find(&format!("\"event\":\"{name}\"")).unwrap_or_else(|| panic!("no {name} in {events}"));
        rest = &rest[at..];
    }
    assert_consistent(&home);
}

#[test]
fn two_members_fail_one_in_the_recovery_of_the_other() {
    if !need(&["fio"]) {
        return;
    }
    let home = Home::new();
    let disks = Disks::files(&home, "disk", 6, 64);
    let _raidd = start(&home);
    home.ok(format!(
        "create vol --level 6 --chunk 64K --init zero --spare {} {}",
        disks.paths[5],
        disks.without(&[5])
    ));
    let client = fio(&home);
    std::thread::sleep(Duration::from_millis(500));
    home.ok("tune vol recovery_max=16M");
    home.ok(format!("fail vol {}", disks.paths[0]));
    home.wait_for("vol", |status| status.sync.action == SyncAction::Recovery && status.sync.done_bytes > 0);
    home.ok(format!("inject vol {} die", disks.paths[3]));
    home.wait_for("vol", |status| status.members.iter().any(|member| member.state == MemberState::Faulty));
    home.ok("tune vol recovery_max=1G");
    let report = client.join().unwrap();
    assert!(report.contains("err= 0"), "{report}");
    home.raidctl("wait vol --timeout 60s").complaint(1);
    home.ok(format!("remove vol {}", disks.paths[0]));
    home.ok(format!("add vol {}", disks.paths[0]));
    home.ok("wait vol --timeout 60s");
    assert_consistent(&home);
}

/// Everything that redundancy says agrees.
#[track_caller]
pub fn assert_consistent(home: &Home) {
    home.ok("scrub vol");
    home.ok("wait vol --timeout 60s");
    let status = home.status("vol");
    assert_eq!((status.health, status.sync.mismatches), (Health::Optimal, 0), "{status:#?}");
}

#[test]
fn a_crash_in_the_middle_of_a_recovery() {
    let home = Home::new();
    let disks = Disks::files(&home, "disk", 4, 256);
    let mut raidd = start(&home);
    home.ok(format!(
        "create vol --level 6 --bitmap internal --chunk 64K --init zero {} missing",
        disks.without(&[3])
    ));
    let data = noise(7, 32 * MIB as usize);
    let mut client = home.client("vol");
    client.write(3 * MIB, &data).unwrap();
    client.flush().unwrap();
    client.disconnect().unwrap();
    home.wait_for("vol", |status| status.state == raidd::api::ArrayState::Clean);
    home.ok("tune vol recovery_max=64M member_timeout=3s");
    home.ok(format!("add vol {}", disks.paths[3]));
    home.wait_for("vol", |status| status.sync.done_bytes > 100 * MIB);
    raidd.kill();

    let _raidd = start(&home);
    let status = home.status("vol");
    assert_eq!(status.members[3].state, MemberState::Recovering, "{status:#?}");
    assert!(status.sync.done_bytes >= 64 * MIB, "it does not begin anew: {status:#?}");
    let tuning = status.tuning.unwrap();
    assert_eq!((tuning.recovery_max, tuning.member_timeout_ms), (Some(64 << 20), Some(3000)));
    home.ok("tune vol recovery_max=1G");
    home.ok("wait vol --timeout 60s");
    assert_consistent(&home);
    // Only what was recovered says so now.
    home.ok(format!("fail vol {}", disks.paths[0]));
    home.ok(format!("fail vol {}", disks.paths[1]));
    let mut found = vec![0; data.len()];
    home.client("vol").read(3 * MIB, &mut found).unwrap();
    assert!(found == data, "what was recovered is not what was written");
}

#[test]
fn a_load_survives_crashes_with_a_spare_at_work() {
    let home = Home::new();
    let disks = Disks::files(&home, "disk", 4, 64);
    let mut raidd = start(&home);
    home.ok(format!("create vol --level 1 --init zero --spare {} {}", disks.paths[3], disks.without(&[3])));
    home.ok("tune vol recovery_max=24M");
    let mut load = Load::new("vol");
    load.run(&home, Duration::from_millis(400), || ());
    home.ok(format!("fail vol {}", disks.paths[0]));
    for _ in 0..3 {
        load.run(&home, Duration::from_millis(400), || raidd.kill());
        raidd = start(&home);
        load.check(&home);
    }
    home.ok("tune vol recovery_max=1G");
    home.ok("wait vol --timeout 60s");
    load.check(&home);
    assert_consistent(&home);
}

#[test]
fn a_short_absence_costs_only_what_was_written_meanwhile() {
    let home = Home::new();
    let disks = Disks::files(&home, "disk", 3, 512);
    let raidd = start(&home);
    home.ok(format!("create vol --level 5 --chunk 64K --init zero {}", disks.all()));
    let mut client = home.client("vol");
    client.write(0, &noise(1, MIB as usize)).unwrap();
    client.flush().unwrap();
    home.wait_for("vol", |status| status.state == raidd::api::ArrayState::Clean);
    home.ok(format!("fail vol {}", disks.paths[1]));
    home.ok(format!("remove vol {}", disks.paths[1]));
    let data = noise(2, 2 * MIB as usize);
    client.write(100 * MIB, &data).unwrap();
    client.flush().unwrap();
    let written = || {
        let text = std::fs::read_to_string(format!("/proc/{}/io", raidd.pid())).unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix("write_bytes: ")).unwrap();
        line.parse::<u64>().unwrap()
    };
    let before = written();
    home.ok(format!("re-add vol {}", disks.paths[1]));
    home.ok("wait vol --timeout 60s");
    let copied = written() - before;
    // A bit of the bitmap covers 64 MiB of a member at most, of the 512.
    assert!((MIB..160 * MIB).contains(&copied), "{copied} bytes were written to catch up 2 MiB");
    home.ok(format!("fail vol {}", disks.paths[0]));
    let mut found = vec![0; data.len()];
    client.read(100 * MIB, &mut found).unwrap();
    assert!(found == data, "what the member had missed is wrong");
}

#[test]
fn a_replacement_takes_over_when_it_is_whole() {
    let home = Home::new();
    let disks = Disks::files(&home, "disk", 3, 64);
    let _raidd = start(&home);
    home.ok(format!("create vol --level 1 --init zero {}", disks.some(&[0, 1])));
    let data = noise(3, 8 * MIB as usize);
    home.client("vol").write(MIB, &data).unwrap();
    home.ok(format!("replace vol {} {}", disks.paths[0], disks.paths[2]));
    home.ok("wait vol --timeout 60s");
    let status = home.status("vol");
    assert_eq!(status.members[0].path.as_deref(), Some(&*disks.paths[2]));
    home.ok(format!("remove vol {}", disks.paths[0]));
    home.ok(format!("fail vol {}", disks.paths[1]));
    let mut found = vec![0; data.len()];
    home.client("vol").read(MIB, &mut found).unwrap();
    assert!(found == data);
    home.raidctl(format!("replace vol {} {}", disks.paths[1], disks.paths[0])).complaint(1);
}

#[test]
fn a_scrub_finds_and_mends_the_liar() {
    let home = Home::new();
    let disks = Disks::files(&home, "disk", 5, 64);
    let _raidd = start(&home);
    home.ok(format!("create vol --level 6 --chunk 64K --init zero {}", disks.all()));
    let data = noise(4, 16 * MIB as usize);
    let mut client = home.client("vol");
    client.write(0, &data).unwrap();
    client.flush().unwrap();
    home.ok(format!("inject vol {} corrupt=1M+4K", disks.paths[2]));
    home.ok("scrub vol");
    home.ok("wait vol");
    assert_eq!(home.status("vol").sync.mismatches, 8);
    assert_eq!(only_finding(&home), (Some(2), Some(MIB), false));
    let table = home.ok("scrub vol --findings");
    assert!(table.contains(&disks.paths[2]) && table.contains("1048576"), "{table}");
    home.ok("scrub vol --repair");
    home.ok("wait vol");
    assert_eq!(only_finding(&home), (Some(2), Some(MIB), true));
    let mut found = vec![0; data.len()];
    client.read(0, &mut found).unwrap();
    assert!(found == data, "the scrub did not mend the member that lied");
    assert_consistent(&home);
    // A sector that cannot be read is worked out, rewritten, and read again.
    home.ok(format!("inject vol {} read-error=2M+4K", disks.paths[1]));
    client.read(0, &mut found).unwrap();
    home.ok("scrub vol");
    home.ok("wait vol");
    let status = home.status("vol");
    assert!(status.members[1].corrected_errors > 0, "{status:#?}");
    assert_eq!(status.health, Health::Optimal);
    assert!(found == data);
}

/// The slot of the liar, where on it, and whether it was mended.
#[track_caller]
fn only_finding(home: &Home) -> (Option<u16>, Option<u64>, bool) {
    let found: Findings = serde_json::from_str(&home.ok("scrub vol --findings --json")).unwrap();
    let [finding] = &found.findings[..] else { panic!("{found:#?}") };
    (finding.slot, finding.member_offset_bytes, finding.repaired)
}

#[test]
fn a_member_that_hangs_costs_clients_its_deadline() {
    let home = Home::new();
    let disks = Disks::files(&home, "disk", 3, 64);
    let raidd = start(&home);
    home.ok(format!("create vol --level 5 --chunk 64K --init zero {}", disks.all()));
    home.ok("tune vol member_timeout=1s");
    let clients = Stopwatch::start(&home, "vol", 4);
    std::thread::sleep(Duration::from_millis(500));
    home.ok(format!("inject vol {} hang", disks.paths[1]));
    home.wait_for("vol", |status| status.members[1].state == MemberState::Faulty);
    std::thread::sleep(Duration::from_millis(500));
    let longest = clients.stop();
    assert!(longest < Duration::from_millis(1500), "a request took {longest:?}");
    let began = Instant::now();
    raidd.terminate();
    assert!(began.elapsed() < Duration::from_secs(5), "stopping took {:?}", began.elapsed());
}

#[test]
fn what_holds_data_is_not_added() {
    let home = Home::new();
    let disks = Disks::files(&home, "disk", 6, 32);
    let raidd = start(&home);
    home.ok(format!("create vol --level 1 --init zero {}", disks.some(&[0, 1])));
    home.ok(format!("create other --level 1 --init zero {}", disks.some(&[2, 3])));
    home.ok("stop other");
    let foreign = home.raidctl(format!("add vol {}", disks.paths[2])).complaint(1);
    assert!(foreign.contains("raidctl zero-superblock"), "{foreign}");
    run("mkfs.ext4", &["-q", &disks.paths[4]]).ok();
    let filesystem = home.raidctl(format!("add vol {}", disks.paths[4])).complaint(1);
    assert!(filesystem.contains("wipefs"), "{filesystem}");
    let held = home.raidctl(format!("add vol {}", disks.paths[0])).complaint(1);
    assert!(held.contains("already"), "{held}");
    home.raidctl(format!("re-add vol {}", disks.paths[5])).complaint(1);
    home.raidctl(format!("remove vol {}", disks.paths[0])).complaint(1);
    home.raidctl(format!("remove vol {}", disks.paths[5])).complaint(1);
    home.ok(format!("add vol {}", disks.paths[5]));
    assert_eq!(home.status("vol").spares.len(), 1);
    // The next start finds the spare, and the array with its settings.
    home.ok("tune vol recovery_min=5M");
    raidd.terminate();
    let _raidd = home.start();
    let status = home.status("vol");
    assert_eq!((status.health, status.spares.len()), (Health::Optimal, 1), "{status:#?}");
    assert_eq!(status.tuning.unwrap().recovery_min, Some(5 << 20));
    let refused = home.raidctl(format!("inject vol {} hang", disks.paths[0])).complaint(1);
    assert!(refused.contains("--enable-fault-injection"), "{refused}");
}

#[test]
fn a_scheduled_scrub_begins_by_itself_after_a_restart() {
    let home = Home::new();
    let disks = Disks::files(&home, "disk", 3, 32);
    let raidd = home.start();
    home.ok(format!("create vol --level 5 --chunk 64K --init zero {}", disks.all()));
    home.ok("scrub vol");
    home.ok("wait vol");
    home.ok("tune vol scrub_interval=30d");
    let ended = home.status("vol").last_scrub_unix_seconds.expect("a scrub has ended");
    raidd.terminate();
    // A day short of it.
    let age = |seconds: u64| {
        let path = home.path("state").join("arrays.json");
        let mut state: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        let last = &mut state["arrays"][0]["last_scrub_unix_seconds"];
        assert!(last.as_u64().is_some_and(|last| last > 0), "{last}");
        *last = (ended - seconds).into();
        std::fs::write(&path, serde_json::to_vec(&state).unwrap()).unwrap();
    };
    const DAY: u64 = 86_400;
    age(29 * DAY);
    let raidd = home.start();
    assert_eq!(home.status("vol").last_scrub_unix_seconds, Some(ended - 29 * DAY));
    std::thread::sleep(Duration::from_millis(500));
    let events = || home.ok("events --json").matches("\"event\":\"RebuildStarted\"").count();
    assert_eq!((home.status("vol").sync.action, events()), (SyncAction::Idle, 1));
    raidd.terminate();

    age(31 * DAY);
    let raidd = home.start();
    home.wait_for("vol", |status| status.last_scrub_unix_seconds >= Some(ended));
    assert_eq!(events(), 2);
    raidd.terminate();
}
