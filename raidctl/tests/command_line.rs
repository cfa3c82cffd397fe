//! raidctl as its users meet it: the real binary, its exit status, its output. The daemon is the real control server
//! with an operator made up for the test.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::{Arc, Mutex};

use raidd::api::{self, ArrayState, ConsistencyPolicy, Health, Problem, Reply, Status, SyncStatus};
use raidd::control::{self, Admission, Operator, Server};

fn raidctl(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_raidctl"));
    command.args(arguments).env_remove("RAIDD_CONTROL").env_remove("XDG_RUNTIME_DIR").stdin(Stdio::null());
    command
}

struct Ran {
    status: i32,
    stdout: String,
    stderr: String,
}

fn ran(command: &mut Command) -> Ran {
    let Output { status, stdout, stderr } = command.output().unwrap();
    Ran {
        status: status.code().unwrap(),
        stdout: String::from_utf8(stdout).unwrap(),
        stderr: String::from_utf8(stderr).unwrap(),
    }
}

/// Remembers what it is asked. `gone` is refused; an array with warnings is made of `missing` members.
#[derive(Default)]
struct Fake {
    asked: Mutex<Vec<api::Command>>,
}

impl Operator for Fake {
    async fn execute(&self, command: api::Command) -> Result<Reply, Problem> {
        self.asked.lock().unwrap().push(command.clone());
        if matches!(command, api::Command::List | api::Command::AssembleScan) {
            return Ok(Reply::Arrays(vec![array("vol0", &[]), array("vol1", &[])]));
        }
        let mut warnings = Vec::new();
        if let api::Command::Create(request) = &command
            && request.devices.iter().any(|device| device == "missing")
        {
            warnings.push("it starts degraded".to_owned());
        }
        let name = command.array().unwrap_or("vol0").to_owned();
        if name == "gone" {
            return Err(Problem::no_such_array(&name));
        }
        if matches!(command, api::Command::Stats { .. }) {
            return Ok(Reply::Stats(Box::new(api::Stats { name, uptime_ms: 1000, ..api::Stats::default() })));
        }
        if command == api::Command::Daemon {
            return Ok(Reply::Daemon(api::DaemonStatus { connections: 7, ..api::DaemonStatus::default() }));
        }
        if matches!(command, api::Command::Stop { .. } | api::Command::Detach { .. }) {
            return Ok(Reply::Done);
        }
        Ok(Reply::Array(Box::new(array(&name, &warnings))))
    }

    fn events(&self) -> (Vec<api::Event>, Option<tokio::sync::broadcast::Receiver<api::Event>>) {
        (vec![event(1, "NewArray"), event(2, "Fail")], None)
    }
}

fn event(id: u64, name: &str) -> api::Event {
    api::Event {
        id,
        unix_ms: 1_795_215_773_004,
        event: name.to_owned(),
        array: "vol0".to_owned(),
        ..api::Event::default()
    }
}

fn array(name: &str, warnings: &[String]) -> Status {
    Status {
        name: name.to_owned(),
        uuid: "00112233:44556677:8899aabb:ccddeeff".to_owned(),
        level: "raid1".to_owned(),
        layout: None,
        chunk_bytes: 0,
        size_bytes: 1 << 30,
        member_size_bytes: 1 << 30,
        metadata: "1.2".to_owned(),
        events: 1,
        consistency_policy: ConsistencyPolicy::Bitmap,
        state: ArrayState::Clean,
        health: Health::Optimal,
        nbd_uri: Some(format!("nbd+unix:///{name}?socket=/run/raidd/nbd.sock")),
        connections: 0,
        members: Vec::new(),
        spares: Vec::new(),
        sync: SyncStatus::idle(0),
        created_unix_seconds: None,
        updated_unix_seconds: None,
        warnings: warnings.to_vec(),
        sync_paused: false,
        tuning: None,
        last_scrub_unix_seconds: None,
        device: None,
        redundancy: None,
        traffic: None,
        concerns: Vec::new(),
    }
}

struct World {
    socket: PathBuf,
    operator: Arc<Fake>,
    server: Option<Server>,
    _folder: tempfile::TempDir,
}

impl World {
    fn new() -> World {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("control.sock");
        let operator = Arc::new(Fake::default());
        let server = control::start(
            control::bind(&socket, Admission::default()).unwrap(),
            None,
            Arc::clone(&operator),
        )
        .unwrap();
        World { socket, operator, server: Some(server), _folder: folder }
    }

    fn run(&self, arguments: &[&str]) -> Ran {
        ran(raidctl(arguments).env("RAIDD_CONTROL", &self.socket))
    }

    fn asked(&self) -> Vec<api::Command> {
        std::mem::take(&mut self.operator.asked.lock().unwrap())
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if let Some(server) = self.server.take() {
            server.stop().unwrap();
        }
    }
}

fn is_one_line(text: &str) -> bool {
    text.ends_with('\n') && text.matches('\n').count() == 1 && text.len() > 20
}

#[test]
fn usage_errors_end_with_2() {
    for arguments in [
        &[][..],
        &["explode"],
        &["create"],
        &["create", "vol0", "--level", "7", "/a", "/b"],
        &[
            "create",
            "vol0",
            "--level",
            "5",
            "--bitmap",
            "internal",
            "--consistency-policy",
            "ppl",
            "/a",
            "/b",
        ],
        &["create", "bad name", "--level", "1", "/a", "/b"],
        &["create", "vol0", "--level", "1", "--chunk", "huge", "/a", "/b"],
        &["assemble"],
        &["stop"],
        &["fail", "vol0"],
        &["examine"],
        &["zero-superblock"],
        &["demo", "--level", "0"],
        &["list", "--nonsense"],
        &["add", "vol0"],
        &["replace", "vol0", "/a"],
        &["scrub", "vol0", "--repair", "--stop"],
        &["tune", "vol0", "colour=red"],
        &["attach", "vol0", "/dev/sda"],
        &["attach", "vol0", "--connections", "0"],
        &["attach", "vol0", "--wait", "1500ms"],
        &["wait", "vol0", "--timeout", "5"],
        &["watch", "--count", "0"],
        &["stats", "--count", "1"],
        &["scrub", "vol0", "--findings", "--stop"],
    ] {
        let ran = ran(&mut raidctl(arguments));
        assert_eq!((ran.status, ran.stdout.as_str()), (2, ""), "{arguments:?}");
        assert!(!ran.stderr.is_empty(), "{arguments:?}");
    }
}

#[test]
fn without_a_daemon_it_says_how_to_start_one() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("control.sock");
    for arguments in [
        &["list"][..],
        &["status", "vol0"],
        &["status", "--json"],
        &["stop", "vol0"],
        &["fail", "vol0", "/a"],
        &["create", "vol0", "--level", "1", "/a", "/b"],
        &["assemble", "/a"],
        &["assemble", "--scan"],
    ] {
        let ran = ran(raidctl(arguments).arg("--control").arg(&socket));
        assert_eq!((ran.status, ran.stdout.as_str()), (1, ""), "{arguments:?}");
        assert!(is_one_line(&ran.stderr), "{:?}", ran.stderr);
        assert!(
            ran.stderr.contains("no raidd answers at") && ran.stderr.contains("`raidd`"),
            "{}",
            ran.stderr
        );
    }
}

#[test]
fn create_prints_the_uri_and_sends_absolute_paths() {
    let world = World::new();
    let here = std::env::current_dir().unwrap();
    let made = world.run(&["create", "vol0", "--level", "1", "a", "/b"]);
    assert_eq!((made.status, made.stderr.as_str()), (0, ""));
    assert_eq!(made.stdout, "nbd+unix:///vol0?socket=/run/raidd/nbd.sock\n");
    let asked = world.asked();
    let [api::Command::Create(request)] = &asked[..] else { panic!("{asked:?}") };
    assert_eq!(request.devices, [here.join("a").to_str().unwrap(), "/b"]);

    let made = world.run(&["create", "vol0", "--level", "1", "--json", "/a", "missing"]);
    assert_eq!(
        serde_json::from_str::<Status>(&made.stdout).unwrap(),
        array("vol0", &["it starts degraded".into()])
    );
    assert_eq!(made.stderr, "");
    let made = world.run(&["create", "vol0", "--level", "1", "/a", "missing"]);
    assert_eq!((made.status, made.stderr.as_str()), (0, "raidctl: warning: it starts degraded\n"));
}

#[test]
fn every_command_reaches_the_daemon() {
    let world = World::new();
    let name = || "größe".to_owned();
    for (arguments, command) in [
        (&["list"][..], api::Command::List),
        (&["status"], api::Command::List),
        (&["status", "größe"], api::Command::Status { name: name() }),
        (&["stop", "größe"], api::Command::Stop { name: name(), force: false, release: false }),
        (&["stop", "größe", "--force"], api::Command::Stop { name: name(), force: true, release: false }),
        (&["stop", "größe", "--release"], api::Command::Stop { name: name(), force: false, release: true }),
        (&["fail", "größe", "/dev/x"], api::Command::Fail { name: name(), device: "/dev/x".to_owned() }),
        (&["assemble", "--scan"], api::Command::AssembleScan),
        (&["remove", "größe", "/dev/x"], api::Command::Remove { name: name(), device: "/dev/x".to_owned() }),
        (&["add", "größe", "/dev/x"], api::Command::Add { name: name(), device: "/dev/x".to_owned() }),
        (&["re-add", "größe", "/dev/x"], api::Command::ReAdd { name: name(), device: "/dev/x".to_owned() }),
        (
            &["replace", "größe", "/dev/x", "/dev/y"],
            api::Command::Replace { name: name(), old: "/dev/x".to_owned(), new: "/dev/y".to_owned() },
        ),
        (&["scrub", "größe"], api::Command::Scrub { name: name(), scrub: api::Scrub::Check }),
        (&["scrub", "größe", "--repair"], api::Command::Scrub { name: name(), scrub: api::Scrub::Repair }),
        (&["scrub", "größe", "--stop"], api::Command::Scrub { name: name(), scrub: api::Scrub::Stop }),
        (&["readonly", "größe"], api::Command::ReadOnly { name: name() }),
        (&["readwrite", "größe"], api::Command::ReadWrite { name: name() }),
        (&["pause", "größe"], api::Command::Pause { name: name() }),
        (&["resume", "größe"], api::Command::Resume { name: name() }),
        (&["attach", "größe"], api::Command::Attach { name: name(), how: api::AttachArray::default() }),
        (
            &["attach", "größe", "/dev/nbd3", "--connections", "4", "--wait", "1h"],
            api::Command::Attach {
                name: name(),
                how: api::AttachArray {
                    device: Some("/dev/nbd3".to_owned()),
                    connections: Some(4),
                    wait_ms: Some(3_600_000),
                },
            },
        ),
        (&["stats", "größe"], api::Command::Stats { name: name() }),
        (&["info", "--json"], api::Command::Daemon),
        (&["detach", "größe"], api::Command::Detach { name: name(), force: false }),
        (&["detach", "größe", "--force"], api::Command::Detach { name: name(), force: true }),
        (&["wait", "größe"], api::Command::Status { name: name() }),
        (
            &["tune", "größe", "recovery_max=1M", "member_timeout=2s"],
            api::Command::Tune {
                name: name(),
                tuning: api::Tuning {
                    recovery_max: Some(1 << 20),
                    member_timeout_ms: Some(2000),
                    ..api::Tuning::default()
                },
            },
        ),
    ] {
        let ran = world.run(arguments);
        assert_eq!((ran.status, ran.stderr.as_str()), (0, ""), "{arguments:?}");
        assert_eq!(world.asked(), vec![command]);
    }
    let started = world.run(&["assemble", "vol7", "--force", "--read-only", "/a", "/b"]);
    assert_eq!(started.stdout, "nbd+unix:///vol7?socket=/run/raidd/nbd.sock\n");
    let asked = world.asked();
    let [api::Command::Assemble(request)] = &asked[..] else { panic!("{asked:?}") };
    assert!(request.force && request.read_only && request.devices == ["/a", "/b"]);
}

#[test]
fn json_is_one_document() {
    let world = World::new();
    let list: Vec<Status> = serde_json::from_str(&world.run(&["--json", "list"]).stdout).unwrap();
    assert_eq!(list, [array("vol0", &[]), array("vol1", &[])]);
    let all: Vec<Status> = serde_json::from_str(&world.run(&["status", "--json"]).stdout).unwrap();
    assert_eq!(all.len(), 2);
    let one: Status = serde_json::from_str(&world.run(&["status", "--json", "vol1"]).stdout).unwrap();
    assert_eq!(one, array("vol1", &[]));
    let stats: Vec<api::Stats> = serde_json::from_str(&world.run(&["stats", "--json"]).stdout).unwrap();
    assert_eq!(stats.iter().map(|stats| stats.name.as_str()).collect::<Vec<_>>(), ["vol0", "vol1"]);
    let turns = world.run(&["stats", "--json", "vol1", "--interval", "1ms", "--count", "3"]).stdout;
    for line in turns.lines() {
        assert_eq!(serde_json::from_str::<api::Stats>(line).unwrap().name, "vol1");
    }
    assert_eq!(turns.lines().count(), 3);
    let daemon: api::DaemonStatus = serde_json::from_str(&world.run(&["info", "--json"]).stdout).unwrap();
    assert_eq!(daemon.connections, 7);
}

#[test]
fn stats_are_a_table_each_time() {
    let world = World::new();
    let once = world.run(&["stats"]);
    assert_eq!((once.status, once.stderr.as_str()), (0, ""));
    assert!(once.stdout.contains("\nvol0 ") && once.stdout.contains("\nvol1 "), "{}", once.stdout);
    assert!(once.stdout.contains("vol0: started 1 s ago"), "{}", once.stdout);
    let thrice = world.run(&["stats", "vol1", "--interval", "1ms", "--count", "3"]);
    assert_eq!(thrice.stdout.matches("DEVICE").count(), 3, "{}", thrice.stdout);
    assert_eq!(thrice.stdout.matches("started 1 s ago").count(), 1, "{}", thrice.stdout);
    assert_eq!(world.run(&["stats", "gone"]).status, 1);
}

/// A raidd from before there were such things has no such paths.
#[test]
fn an_older_daemon_is_told_apart() {
    use std::io::Write;
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("control.sock");
    let listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    let older = std::thread::spawn(move || {
        let problem =
            serde_json::to_string(&Problem::new(api::ProblemCode::NotFound, "there is nothing")).unwrap();
        for _ in 0..2 {
            let (mut stream, _) = listener.accept().unwrap();
            let _read = stream.read(&mut [0; 4096]).unwrap();
            write!(stream, "HTTP/1.1 404 x\r\nContent-Length: {}\r\n\r\n{problem}", problem.len()).unwrap();
        }
    });
    for arguments in [&["stats", "vol0"][..], &["info"]] {
        let ran = ran(raidctl(arguments).arg("--control").arg(&socket));
        assert_eq!((ran.status, ran.stdout.as_str()), (1, ""));
        assert!(is_one_line(&ran.stderr) && ran.stderr.contains("older than this raidctl"), "{}", ran.stderr);
    }
    older.join().unwrap();
}

#[test]
fn a_refusal_is_the_daemons_line() {
    let world = World::new();
    for arguments in [&["status", "gone"][..], &["stop", "gone"], &["fail", "gone", "/a"]] {
        let ran = world.run(arguments);
        assert_eq!((ran.status, ran.stdout.as_str()), (1, ""));
        assert_eq!(
            ran.stderr,
            "raidctl: no array is called \"gone\": `raidctl list` shows those that are there\n"
        );
    }
}

#[test]
fn a_reader_that_leaves_is_no_failure() {
    let mut child = raidctl(&["man"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let mut complaint = String::new();
    child.stderr.take().unwrap().read_to_string(&mut complaint).unwrap();
    assert_eq!((child.wait().unwrap().code(), complaint.as_str()), (Some(0), ""));
}

#[test]
fn examine_and_zero_superblock_go_on_after_a_bad_device() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, bytes: &[u8]| -> String {
        let path = folder.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let good = file("good", &member());
    let blank = file("blank", &[0; 65_536]);
    let mut cut = member();
    cut.truncate(300 << 10);
    let cut = file("cut", &cut);

    let shown = ran(&mut raidctl(&["examine", &blank, &good, &cut]));
    assert_eq!(shown.status, 1);
    assert!(shown.stdout.contains(&format!("{good}:\n")) && shown.stdout.contains("Raid Level : raid1"));
    assert_eq!(shown.stderr.lines().count(), 2, "{}", shown.stderr);
    assert!(shown.stderr.starts_with(&format!("raidctl: {blank}: no md superblock")));
    assert!(shown.stderr.contains(&format!("raidctl: {cut}: the device is cut off")));

    let shown = ran(&mut raidctl(&["examine", "--json", &good]));
    assert_eq!((shown.status, shown.stderr.as_str()), (0, ""));
    let document: serde_json::Value = serde_json::from_str(&shown.stdout).unwrap();
    assert_eq!(document[0]["level"], "raid1");
    assert_eq!(document[0]["events"], 7);
    assert_eq!(document[0]["name"], "vol0");

    let zeroed = ran(&mut raidctl(&["zero-superblock", &blank, &good]));
    assert_eq!((zeroed.status, zeroed.stderr.lines().count()), (1, 1));
    let again = ran(&mut raidctl(&["zero-superblock", &good]));
    assert!(again.stderr.contains("nothing to zero"), "{}", again.stderr);
    assert_eq!(std::fs::metadata(Path::new(&good)).unwrap().len(), 4 << 20);
}

/// A member of a RAID 1 of two, 4 MiB long.
fn member() -> Vec<u8> {
    use raidd::md::superblock::pack_name;
    use raidd::md::{Features, Role, SUPERBLOCK_OFFSET_BYTES, Superblock};
    use raidd::units::{EventCount, MemberSlot, Sector};
    let superblock = Superblock {
        feature_map: Features::NONE,
        set_uuid: [0x11; 16],
        set_name: pack_name("vol0").unwrap(),
        ctime: 1_795_215_662,
        level: 1,
        layout: 0,
        size: Sector(6144),
        chunk: Sector(0),
        raid_disks: 2,
        bitmap_offset: 0,
        reshape: Default::default(),
        data_offset: Sector(2048),
        data_size: Sector(6144),
        recovery_offset: Sector(0),
        dev_number: 0,
        corrected_reads: 0,
        device_uuid: [0x22; 16],
        devflags: 0,
        bblog_shift: 0,
        bblog_size: 8,
        bblog_offset: 16,
        utime: 1_795_215_662,
        events: EventCount(7),
        resync_offset: Sector::MAX,
        dev_roles: vec![Role::Active(MemberSlot(0)), Role::Active(MemberSlot(1))],
        logical_block_size: 0,
    };
    let mut bytes = vec![0; 4 << 20];
    let encoded = superblock.encode();
    let start = usize::try_from(SUPERBLOCK_OFFSET_BYTES).unwrap();
    bytes[start..][..encoded.len()].copy_from_slice(&encoded);
    bytes
}

#[test]
fn check_is_a_plugin() {
    let world = World::new();
    let all = world.run(&["check"]);
    assert_eq!((all.status, all.stderr.as_str()), (0, ""), "{}", all.stdout);
    assert!(
        all.stdout.starts_with("RAID OK - vol0 raid1 optimal; vol1 raid1 optimal | 'vol0_missing'=0"),
        "{}",
        all.stdout
    );
    assert_eq!(world.run(&["check", "--json", "vol0"]).status, 0);
    // Whatever keeps it from telling is told in the same way.
    for arguments in [&["check", "gone"][..], &["--control", "/nowhere/control.sock", "check"]] {
        let unknown = world.run(arguments);
        assert_eq!((unknown.status, unknown.stderr.as_str()), (3, ""), "{}", unknown.stdout);
        assert!(unknown.stdout.starts_with("RAID UNKNOWN - "), "{}", unknown.stdout);
    }
}
