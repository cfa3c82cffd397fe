//! The server over a real socket, with an operator that remembers what it was asked. Requests are written byte by byte,
//! as a hostile client would.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::sync::broadcast;

use super::routes::ROUTES;
use super::{Admission, BODY_BYTES_MAX, CONNECTIONS_MAX, Operator, Server, bind, start};
use crate::api::{
    ArrayState, AttachArray, Command, ConsistencyPolicy, DaemonStatus, Event, Fault, Findings, GrowArray,
    Health, Problem, ProblemCode, Reply, Scrub, Stats, Status, SyncStatus, Tuning,
};

/// Remembers commands. The name of the array says what becomes of one: `gone` is refused, `bug` panics, `slow` takes
/// 300 ms; everything else is done.
#[derive(Default)]
struct Fake {
    asked: Mutex<Vec<Command>>,
    ended: Mutex<Vec<String>>,
}

impl Operator for Fake {
    async fn execute(&self, command: Command) -> Result<Reply, Problem> {
        self.asked.lock().unwrap().push(command.clone());
        if matches!(command, Command::List | Command::AssembleScan) {
            return Ok(Reply::Arrays(vec![array("vol0"), array("vol1")]));
        }
        let name = command.array().unwrap_or("vol0").to_owned();
        assert!(name != "bug", "an operator with a bug");
        if name == "gone" {
            return Err(Problem::no_such_array(&name));
        }
        if name == "slow" {
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
        self.ended.lock().unwrap().push(name.clone());
        if matches!(command, Command::Stop { .. } | Command::Detach { .. }) {
            return Ok(Reply::Done);
        }
        if matches!(command, Command::Findings { .. }) {
            return Ok(Reply::Findings(Findings { name, ..Findings::default() }));
        }
        if matches!(command, Command::Stats { .. }) {
            return Ok(Reply::Stats(Box::new(Stats { name, in_flight: 3, ..Stats::default() })));
        }
        if command == Command::Daemon {
            let started_unix_ms = 1_795_215_773_000;
            return Ok(Reply::Daemon(DaemonStatus {
                connections: 7,
                started_unix_ms,
                ..DaemonStatus::default()
            }));
        }
        Ok(Reply::Array(Box::new(array(&name))))
    }

    fn events(&self) -> (Vec<Event>, Option<broadcast::Receiver<Event>>) {
        (vec![event(1, "NewArray"), event(2, "Fail")], None)
    }
}

fn event(id: u64, name: &str) -> Event {
    Event {
        id,
        unix_ms: 1_795_215_773_004,
        event: name.to_owned(),
        array: "vol0".to_owned(),
        ..Event::default()
    }
}

fn array(name: &str) -> Status {
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
        nbd_uri: None,
        connections: 0,
        members: Vec::new(),
        spares: Vec::new(),
        sync: SyncStatus::idle(0),
        created_unix_seconds: None,
        updated_unix_seconds: None,
        warnings: Vec::new(),
        sync_paused: false,
        tuning: None,
        last_scrub_unix_seconds: None,
        device: None,
        redundancy: None,
        traffic: None,
        concerns: Vec::new(),
    }
}

struct Fixture {
    path: PathBuf,
    operator: Arc<Fake>,
    server: Option<Server>,
    _folder: tempfile::TempDir,
}

impl Fixture {
    fn new() -> Fixture {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("control.sock");
        let operator = Arc::new(Fake::default());
        let server = start(bind(&path, Admission::default()).unwrap(), None, Arc::clone(&operator)).unwrap();
        Fixture { path, operator, server: Some(server), _folder: folder }
    }

    fn connect(&self) -> UnixStream {
        let stream = UnixStream::connect(&self.path).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        stream
    }

    /// Sends bytes, and reads until the server closes.
    fn raw(&self, request: &[u8]) -> String {
        let mut stream = self.connect();
        // A server that has seen enough closes before all is sent.
        let _sent = stream.write_all(request);
        let mut answer = Vec::new();
        let _read = stream.read_to_end(&mut answer);
        String::from_utf8(answer).unwrap()
    }

    /// One request; its status and its body.
    fn ask(&self, method: &str, path: &str, body: &str) -> (u16, String) {
        let answer = self.raw(
            format!(
                "{method} {path} HTTP/1.1\r\nHost: raidd\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
                body.len()
            )
            .as_bytes(),
        );
        let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
        let kind = match status {
            Some(204) => "",
            Some(status) if status < 300 => "content-type: application/json\r\n",
            _ => "content-type: application/problem+json\r\n",
        };
        assert!(format!("{head}\r\n").contains(kind), "{answer}");
        (status.unwrap_or_else(|| panic!("no status in {answer:?}")), body.to_owned())
    }

    fn refused(&self, method: &str, path: &str, body: &str) -> (u16, ProblemCode) {
        let (status, body) = self.ask(method, path, body);
        let problem: Problem =
            serde_json::from_str(&body).unwrap_or_else(|error| panic!("{error}: {body:?}"));
        assert_eq!(problem.status, status);
        assert!(!problem.detail.is_empty() && !problem.detail.contains('\n'));
        (status, problem.code)
    }

    fn asked(&self) -> Vec<Command> {
        std::mem::take(&mut self.operator.asked.lock().unwrap())
    }
}

#[test]
fn every_command_has_its_route() {
    let server = Fixture::new();
    let create = r#"{"name":"vol0","level":"1","devices":["/a","/b"]}"#;
    assert_eq!(server.ask("POST", "/v1/arrays", create).0, 201);
    assert!(matches!(&server.asked()[..], [Command::Create(request)] if request.devices == ["/a", "/b"]));

    assert_eq!(server.ask("POST", "/v1/arrays/assemble", r#"{"devices":["/a"],"force":true}"#).0, 200);
    assert!(
        matches!(&server.asked()[..], [Command::Assemble(request)] if request.force && !request.read_only)
    );

    let (status, body) = server.ask("POST", "/v1/arrays/scan", "");
    assert_eq!((status, server.asked()), (200, vec![Command::AssembleScan]));
    assert_eq!(serde_json::from_str::<Vec<Status>>(&body).unwrap().len(), 2);

    let (status, body) = server.ask("GET", "/v1/arrays", "");
    assert_eq!((status, server.asked()), (200, vec![Command::List]));
    assert_eq!(serde_json::from_str::<Vec<Status>>(&body).unwrap()[1], array("vol1"));

    let (status, body) = server.ask("GET", "/v1/arrays/vol0", "");
    assert_eq!((status, server.asked()), (200, vec![Command::Status { name: "vol0".to_owned() }]));
    assert_eq!(serde_json::from_str::<Status>(&body).unwrap(), array("vol0"));

    for (body, force, release) in [
        ("", false, false),
        ("{}", false, false),
        (r#"{"force":true}"#, true, false),
        (r#"{"release":true}"#, false, true),
    ] {
        let name = "vol0".to_owned();
        assert_eq!(server.ask("POST", "/v1/arrays/vol0/stop", body), (204, String::new()));
        assert_eq!(server.asked(), vec![Command::Stop { name: name.clone(), force, release }]);
        if !release {
            assert_eq!(server.ask("POST", "/v1/arrays/vol0/detach", body), (204, String::new()));
            assert_eq!(server.asked(), vec![Command::Detach { name, force }]);
        }
    }

    assert_eq!(server.ask("POST", "/v1/arrays/vol0/fail", r#"{"device":"/dev/sda"}"#).0, 200);
    let failed = Command::Fail { name: "vol0".to_owned(), device: "/dev/sda".to_owned() };
    assert_eq!(server.asked(), vec![failed]);

    let (name, device) = (|| "vol0".to_owned(), || "/dev/sda".to_owned());
    let scrub = |scrub| Command::Scrub { name: name(), scrub };
    let tuning = Tuning { recovery_max: Some(5), member_timeout_ms: Some(1000), ..Tuning::default() };
    let larger = GrowArray { max: true, ..GrowArray::default() };
    for (path, body, command) in [
        ("remove", r#"{"device":"/dev/sda"}"#, Command::Remove { name: name(), device: device() }),
        ("add", r#"{"device":"/dev/sda"}"#, Command::Add { name: name(), device: device() }),
        ("re-add", r#"{"device":"/dev/sda"}"#, Command::ReAdd { name: name(), device: device() }),
        (
            "replace",
            r#"{"old":"/dev/sda","new":"/dev/sdb"}"#,
            Command::Replace { name: name(), old: device(), new: "/dev/sdb".to_owned() },
        ),
        ("scrub", "", scrub(Scrub::Check)),
        ("scrub", r#"{"repair":true}"#, scrub(Scrub::Repair)),
        ("scrub", r#"{"stop":true}"#, scrub(Scrub::Stop)),
        ("readonly", "", Command::ReadOnly { name: name() }),
        ("readwrite", "", Command::ReadWrite { name: name() }),
        ("pause", "", Command::Pause { name: name() }),
        ("resume", "{}", Command::Resume { name: name() }),
        ("tune", r#"{"recovery_max":5,"member_timeout_ms":1000}"#, Command::Tune { name: name(), tuning }),
        ("grow", r#"{"max":true}"#, Command::Grow { name: name(), how: larger }),
        ("attach", "", Command::Attach { name: name(), how: AttachArray::default() }),
        (
            "attach",
            r#"{"device":"/dev/nbd1","connections":4}"#,
            Command::Attach {
                name: name(),
                how: AttachArray { device: Some("/dev/nbd1".into()), connections: Some(4), wait_ms: None },
            },
        ),
        (
            "inject",
            r#"{"device":"/dev/sda","fault":"latency=5ms"}"#,
            Command::Inject { name: name(), device: device(), fault: Fault::Latency(5) },
        ),
    ] {
        assert_eq!(server.ask("POST", &format!("/v1/arrays/vol0/{path}"), body).0, 200, "{path}");
        assert_eq!(server.asked(), vec![command]);
    }

    let (status, body) = server.ask("GET", "/v1/arrays/vol0/findings", "");
    assert_eq!((status, server.asked()), (200, vec![Command::Findings { name: name() }]));
    assert_eq!(serde_json::from_str::<Findings>(&body).unwrap().name, "vol0");

    let (status, body) = server.ask("GET", "/v1/arrays/vol0/stats", "");
    assert_eq!((status, server.asked()), (200, vec![Command::Stats { name: name() }]));
    let stats: Stats = serde_json::from_str(&body).unwrap();
    assert_eq!((stats.name.as_str(), stats.in_flight), ("vol0", 3));

    let (status, body) = server.ask("GET", "/v1/daemon", "");
    assert_eq!((status, server.asked()), (200, vec![Command::Daemon]));
    assert_eq!(serde_json::from_str::<DaemonStatus>(&body).unwrap().connections, 7);

    for path in ["/v1/events", "/v1/events?follow=false"] {
        let answer =
            server.raw(format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").as_bytes());
        assert!(answer.contains("content-type: text/event-stream\r\n"), "{answer}");
        assert!(answer.contains("id: 2\ndata: {\"id\":2,"), "{answer}");
    }
    assert_eq!(server.refused("GET", "/v1/events?x=y", ""), (400, ProblemCode::InvalidRequest));

    assert_eq!(server.ask("GET", "/healthz", ""), (200, "{\"status\":\"ok\"}\n".to_owned()));
}

#[test]
fn names_are_percent_decoded_and_may_be_those_of_routes() {
    let server = Fixture::new();
    for (path, name) in [
        ("gr%C3%B6%C3%9Fe", "größe"),
        ("a%2Fb", "a/b"),
        ("%41%25", "A%"),
        ("scan", "scan"),
        ("assemble", "assemble"),
        ("%73can", "scan"),
        ("x?y=z", "x"),
    ] {
        assert_eq!(server.ask("GET", &format!("/v1/arrays/{path}"), "").0, 200, "{path}");
        assert_eq!(server.asked(), vec![Command::Status { name: name.to_owned() }]);
    }
    assert_eq!(server.refused("GET", "/v1/arrays/%ff", ""), (400, ProblemCode::InvalidRequest));
}

#[test]
fn refusals_are_problem_documents() {
    let server = Fixture::new();
    assert_eq!(server.refused("GET", "/v1/arrays/gone", ""), (404, ProblemCode::NoSuchArray));
    assert_eq!(server.refused("POST", "/v1/arrays/gone/stop", ""), (404, ProblemCode::NoSuchArray));
    assert_eq!(server.refused("GET", "/v1/arrays/gone/stats", ""), (404, ProblemCode::NoSuchArray));
    server.asked();
    for (method, path, body, status, code) in [
        ("GET", "/", "", 404, ProblemCode::NotFound),
        ("GET", "/v1/arrays/", "", 404, ProblemCode::NotFound),
        ("GET", "/v1/arrays/vol0/../../..", "", 404, ProblemCode::NotFound),
        ("POST", "/v1/arrays/vol0/explode", "", 404, ProblemCode::NotFound),
        ("DELETE", "/v1/arrays", "", 405, ProblemCode::MethodNotAllowed),
        ("POST", "/v1/arrays/vol0", "{}", 405, ProblemCode::MethodNotAllowed),
        ("GET", "/v1/arrays/vol0/stop", "", 405, ProblemCode::MethodNotAllowed),
        ("POST", "/v1/arrays", "", 400, ProblemCode::InvalidRequest),
        ("POST", "/v1/arrays", "{", 400, ProblemCode::InvalidRequest),
        ("POST", "/v1/arrays", "[]", 400, ProblemCode::InvalidRequest),
        ("POST", "/v1/arrays", r#"{"name":1}"#, 400, ProblemCode::InvalidRequest),
        (
            "POST",
            "/v1/arrays",
            r#"{"name":"a b","level":"1","devices":["/a","/b"]}"#,
            400,
            ProblemCode::InvalidRequest,
        ),
        (
            "POST",
            "/v1/arrays",
            r#"{"name":"a","level":"1","devices":["/a","b"]}"#,
            400,
            ProblemCode::InvalidRequest,
        ),
        ("POST", "/v1/arrays/assemble", r#"{"devices":[]}"#, 400, ProblemCode::InvalidRequest),
        ("POST", "/v1/arrays/vol0/stop", r#"{"forced":true}"#, 400, ProblemCode::InvalidRequest),
        ("POST", "/v1/arrays/vol0/fail", "{}", 400, ProblemCode::InvalidRequest),
        ("POST", "/v1/arrays/vol0/add", r#"{"device":"sda"}"#, 400, ProblemCode::InvalidRequest),
        ("POST", "/v1/arrays/vol0/replace", r#"{"old":"/a"}"#, 400, ProblemCode::InvalidRequest),
        ("POST", "/v1/arrays/vol0/scrub", r#"{"repair":true,"stop":true}"#, 400, ProblemCode::InvalidRequest),
        ("POST", "/v1/arrays/vol0/tune", r#"{"member_timeout_ms":1}"#, 400, ProblemCode::InvalidRequest),
        (
            "POST",
            "/v1/arrays/vol0/inject",
            r#"{"device":"/a","fault":"magic"}"#,
            400,
            ProblemCode::InvalidRequest,
        ),
        ("POST", "/v1/arrays/vol0/tune", r#"{"colour":1}"#, 400, ProblemCode::InvalidRequest),
        ("POST", "/v1/arrays/vol0/grow", "", 400, ProblemCode::InvalidRequest),
        (
            "POST",
            "/v1/arrays/vol0/grow",
            r#"{"max":true,"raid_devices":3}"#,
            400,
            ProblemCode::InvalidRequest,
        ),
    ] {
        assert_eq!(server.refused(method, path, body), (status, code), "{method} {path} {body}");
    }
    assert_eq!(server.asked(), Vec::new(), "none of them reached the operator");
}

#[test]
fn a_deep_or_large_body_is_refused() {
    let server = Fixture::new();
    // serde would take a list for a struct.
    assert_eq!(server.ask("POST", "/v1/arrays/vol0/scrub", "[]").0, 400);
    assert_eq!(server.ask("POST", "/v1/arrays/vol0/scrub", " null ").0, 200);
    server.asked();
    let deep = "[".repeat(BODY_BYTES_MAX / 2);
    assert_eq!(server.refused("POST", "/v1/arrays", &deep), (400, ProblemCode::InvalidRequest));
    let large = format!("{{\"name\":\"{}\"}}", "x".repeat(BODY_BYTES_MAX));
    assert_eq!(server.refused("POST", "/v1/arrays", &large), (413, ProblemCode::TooLarge));
    // Without a length beforehand, too.
    let mut chunked =
        b"POST /v1/arrays HTTP/1.1\r\nHost: x\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
            .to_vec();
    for _ in 0..BODY_BYTES_MAX / 4096 + 1 {
        chunked.extend_from_slice(b"1000\r\n");
        chunked.extend_from_slice(&[b' '; 4096]);
        chunked.extend_from_slice(b"\r\n");
    }
    chunked.extend_from_slice(b"0\r\n\r\n");
    let answer = server.raw(&chunked);
    assert!(answer.starts_with("HTTP/1.1 413 "), "{answer}");
}

#[test]
fn what_is_no_http_harms_nobody() {
    let server = Fixture::new();
    for garbage in [
        &b"\0\0\0\0\r\n\r\n"[..],
        b"GET\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET /v1/arrays/\xff\xfe HTTP/1.1\r\n\r\n",
        b"POST /v1/arrays HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
        b"POST /v1/arrays HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00",
    ] {
        let mut stream = server.connect();
        stream.write_all(garbage).unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        let mut answer = Vec::new();
        let _read = stream.read_to_end(&mut answer);
        assert!(!answer.starts_with(b"HTTP/1.1 2"), "{garbage:?}");
    }
    let header = format!("GET /healthz HTTP/1.1\r\nX: {}\r\n\r\n", "y".repeat(4 << 20));
    assert!(!server.raw(header.as_bytes()).starts_with("HTTP/1.1 2"));
    assert_eq!(server.ask("GET", "/healthz", "").0, 200);
    assert_eq!(server.asked(), Vec::new());
}

#[test]
fn a_panic_in_a_command_is_an_answer() {
    let server = Fixture::new();
    assert_eq!(server.refused("GET", "/v1/arrays/bug", ""), (500, ProblemCode::Internal));
    assert_eq!(server.ask("GET", "/v1/arrays/vol0", "").0, 200);
}

#[test]
fn a_command_ends_though_its_client_has_left() {
    let server = Fixture::new();
    let mut stream = server.connect();
    stream.write_all(b"GET /v1/arrays/slow HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    wait_until(|| !server.operator.asked.lock().unwrap().is_empty());
    drop(stream);
    wait_until(|| *server.operator.ended.lock().unwrap() == ["slow"]);
}

#[test]
fn more_clients_than_slots_wait_their_turn() {
    let server = Fixture::new();
    let mut held: Vec<UnixStream> = (0..CONNECTIONS_MAX).map(|_| server.connect()).collect();
    for stream in &mut held {
        stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
        let mut first = [0; 12];
        stream.read_exact(&mut first).unwrap();
        assert_eq!(&first, b"HTTP/1.1 200");
    }
    let mut late = server.connect();
    late.write_all(b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
    late.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    assert!(late.read(&mut [0; 1]).is_err(), "no slot is free");
    held.pop();
    late.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let mut answer = String::new();
    late.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
}

#[test]
fn stopping_waits_for_requests_and_removes_the_socket() {
    let mut server = Fixture::new();
    let mut slow = server.connect();
    let _idle = server.connect();
    slow.write_all(b"GET /v1/arrays/slow HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    wait_until(|| !server.operator.asked.lock().unwrap().is_empty());
    let began = Instant::now();
    server.server.take().unwrap().stop().unwrap();
    let mut answer = String::new();
    slow.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert!(began.elapsed() < Duration::from_secs(4), "an idle client does not hold it up");
    assert!(!server.path.exists());
}

fn wait_until(condition: impl Fn() -> bool) {
    let began = Instant::now();
    while !condition() {
        assert!(began.elapsed() < Duration::from_secs(20), "it never came");
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn metrics_are_text_that_prometheus_reads() {
    let fixture = Fixture::new();
    let answer = fixture.raw(b"GET /metrics HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
    assert!(
        answer.starts_with("HTTP/1.1 200") && answer.contains("content-type: text/plain; version=0.0.4"),
        "{answer}"
    );
    for line in [
        "# TYPE raidd_array_size_bytes gauge",
        "raidd_array_size_bytes{array=\"vol0\"} 1073741824",
        "raidd_array_health{array=\"vol1\",health=\"optimal\"} 1",
        "raidd_array_health{array=\"vol1\",health=\"degraded\"} 0",
        "raidd_array_sync_action{action=\"idle\",array=\"vol0\"} 1",
        "raidd_start_time_seconds 1795215773",
    ] {
        assert!(answer.lines().any(|found| found == line), "{line}: {answer}");
    }
    // What is not known is left out, not called 0.
    assert!(
        !answer.contains("raidd_array_redundancy_members{")
            && !answer.contains("raidd_array_client_bytes_total{")
    );
}

#[test]
fn all_routes_are_documented_and_nothing_else_is() {
    let (status, document) = Fixture::new().ask("GET", "/v1/openapi.json", "");
    assert_eq!(status, 200);
    let document: serde_json::Value = serde_json::from_str(&document).unwrap();
    let mut documented = Vec::new();
    for (path, methods) in document["paths"].as_object().unwrap() {
        for (method, operation) in methods.as_object().unwrap() {
            documented.push((method.as_str(), path.as_str()));
            assert!(operation["summary"].is_string(), "{method} {path} says nothing of itself");
            assert!(operation["responses"]["default"].is_object(), "{method} {path} is never refused");
        }
    }
    let mut routes = ROUTES.to_vec();
    documented.sort_unstable();
    routes.sort_unstable();
    assert_eq!(documented, routes);
}
