//! What monitoring reads: raidctl's check, and metrics from the port for metrics, by promtool's rules, and by a Prometheus that scrapes it.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use raidd::api::Health;
use serde_json::Value;

use super::disks::{Disks, MIB, noise};
use super::harness::{Companion, Home, free_port, need};
use super::mounted::comes_true;

/// The answer to a request, head and body.
fn ask(port: u16, method: &str, path: &str) -> String {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    write!(stream, "{method} {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

fn metrics(port: u16) -> String {
    let answer = ask(port, "GET", "/metrics");
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    body.to_owned()
}

/// The value of a metric.
#[track_caller]
fn value(text: &str, series: &str) -> f64 {
    let found = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
    found.unwrap_or_else(|| panic!("there is no {series}: {text}")).parse().unwrap()
}

#[test]
fn metrics_tell_what_status_tells_and_nothing_else_is_there() {
    let home = Home::new();
    let port = free_port();
    let raidd = home.start_with(&["--metrics", &format!("127.0.0.1:{port}")]);
    let disks = Disks::files(&home, "disk", 4, 64);
    home.ok(format!("create vol0 --level 6 {}", disks.all()));
    home.ok(format!("create tank --level 1 {}", Disks::files(&home, "mirror", 3, 64).all()));
    home.wait_idle("vol0");
    home.wait_idle("tank");
    let mut client = home.client("vol0");
    client.write(0, &noise(1, MIB as usize)).unwrap();
    client.read(0, &mut vec![0; 4096]).unwrap();
    let text = metrics(port);
    assert_eq!(value(&text, "raidd_array_redundancy_members{array=\"vol0\"}"), 2.0);
    assert_eq!(value(&text, "raidd_array_redundancy_members{array=\"tank\"}"), 2.0);
    assert_eq!(
        value(&text, "raidd_array_client_bytes_total{array=\"vol0\",direction=\"write\"}"),
        MIB as f64
    );
    assert_eq!(value(&text, "raidd_array_client_bytes_total{array=\"vol0\",direction=\"read\"}"), 4096.0);
    assert_eq!(value(&text, "raidd_array_connections{array=\"vol0\"}"), 1.0);
    let size = home.status("vol0").size_bytes;
    assert_eq!(value(&text, "raidd_array_size_bytes{array=\"vol0\"}"), size as f64);

    let check = |name: &str| home.raidctl(format!("check {name}"));
    assert!(check("").ok().starts_with("RAID OK - tank raid1 optimal; vol0 raid6 optimal | "));

    home.ok(format!("fail vol0 {}", disks.paths[2]));
    home.wait_for("vol0", |status| status.health == Health::Degraded);
    let text = metrics(port);
    assert_eq!(value(&text, "raidd_array_redundancy_members{array=\"vol0\"}"), 1.0);
    assert_eq!(value(&text, "raidd_array_health{array=\"vol0\",health=\"degraded\"}"), 1.0);
    assert_eq!(value(&text, "raidd_array_health{array=\"vol0\",health=\"optimal\"}"), 0.0);
    assert_eq!(value(&text, "raidd_array_members{array=\"vol0\",state=\"faulty\"}"), 1.0);
    assert_eq!(value(&text, "raidd_array_members{array=\"vol0\",state=\"in_sync\"}"), 3.0);

    // What has been done, and how long it took; the failed member was waited for by nobody.
    let of = |name: &str, labels: &str| value(&text, &format!("{name}{{array=\"vol0\"{labels}}}"));
    assert_eq!(of("raidd_array_request_duration_seconds_count", ",operation=\"write\""), 1.0);
    assert_eq!(of("raidd_array_request_duration_seconds_count", ",operation=\"read\""), 1.0);
    assert!(of("raidd_array_request_duration_seconds_sum", ",operation=\"write\"") > 0.0);
    assert_eq!(of("raidd_array_request_duration_seconds_bucket", ",operation=\"write\",le=\"+Inf\""), 1.0);
    assert_eq!(of("raidd_array_request_errors_total", ",operation=\"write\""), 0.0);
    assert_eq!(of("raidd_array_failover_duration_seconds", ""), 0.0);
    let (up, degraded) = (of("raidd_array_uptime_seconds", ""), of("raidd_array_degraded_seconds_total", ""));
    assert!(0.0 < degraded && degraded < up, "{degraded} of {up}");
    assert_eq!(of("raidd_array_unavailable_seconds_total", ""), 0.0);
    assert!(!text.contains("raidd_array_failover_duration_seconds{array=\"tank\"}"), "it never had one");
    assert!(value(&text, "raidd_reactor_busy_seconds_total{reactor=\"0\"}") < up + 30.0);
    assert!(value(&text, "raidd_memory_limit_bytes{pool=\"payloads\"}") > 0.0);

    let critical = check("vol0");
    assert_eq!((critical.status, critical.stderr.as_str()), (2, ""), "{critical:?}");
    assert!(
        critical.stdout.contains("1 of 4 members missing") && critical.stdout.contains("'vol0_redundancy'=1")
    );

    // Whoever can reach the port may look, and no more.
    assert!(ask(port, "GET", "/healthz").starts_with("HTTP/1.1 200"));
    assert!(ask(port, "GET", "/v1/arrays").starts_with("HTTP/1.1 404"));
    assert!(ask(port, "POST", "/v1/arrays/vol0/stop").starts_with("HTTP/1.1 404"));
    assert!(ask(port, "POST", "/metrics").starts_with("HTTP/1.1 405"));
    assert_eq!(home.status("vol0").health, Health::Degraded);
    drop(client);
    raidd.terminate();
}

#[test]
fn prometheus_reads_all_of_it_and_finds_nothing_to_complain_of() {
    if !need(&["promtool", "prometheus", "curl"]) {
        return;
    }
    let home = Home::new();
    let port = free_port();
    let raidd = home.start_with(&["--metrics", &format!("127.0.0.1:{port}")]);
    home.ok(format!("create vol0 --level 5 {}", Disks::files(&home, "disk", 3, 64).all()));
    let text = metrics(port);
    let file = home.path("metrics.txt");
    std::fs::write(&file, &text).unwrap();
    home.shell(&format!("promtool check metrics < {}", file.display())).ok();

    let own = free_port();
    let contrib = Path::new(env!("CARGO_MANIFEST_DIR")).join("contrib");
    let alerts = contrib.join("prometheus/alerts.yml");
    home.shell(&format!(
        "cd {} && promtool test rules alerts.test.yml",
        contrib.join("prometheus").display()
    ))
    .ok();
    let config = format!(
        "global: {{scrape_interval: 100ms, scrape_timeout: 100ms, evaluation_interval: 100ms}}\n\
         rule_files: ['{}']\n\
         scrape_configs:\n- job_name: raidd\n  static_configs:\n  - targets: ['127.0.0.1:{port}']\n",
        alerts.display()
    );
    std::fs::write(home.path("prometheus.yml"), config).unwrap();
    let mut command = Command::new("prometheus");
    command.arg(format!("--config.file={}", home.path("prometheus.yml").display()));
    command.arg(format!("--storage.tsdb.path={}", home.path("tsdb").display()));
    command.arg(format!("--web.listen-address=127.0.0.1:{own}"));
    let _prometheus = Companion::start(&mut command);
    let ask = |path: &str| -> Value {
        let answer = home.shell(&format!("curl -sS http://127.0.0.1:{own}/api/v1/{path}")).stdout;
        serde_json::from_str(&answer).unwrap_or_default()
    };
    let query = |what: &str| {
        ask(&format!("query --get --data-urlencode '{}'", format!("query={what}").replace('\'', "")))
    };
    let finds = |what: &str| {
        comes_true(|| query(what)["data"]["result"].as_array().is_some_and(|found| !found.is_empty()))
    };
    assert!(finds("up == 1"), "{}", query("up"));
    // Every family that is there is known to it, with its values.
    for family in text.lines().filter_map(|line| line.strip_prefix("# TYPE ")) {
        let series = match family.split_once(' ').unwrap() {
            (name, "histogram") => format!("{name}_bucket"),
            (name, _) => name.to_owned(),
        };
        assert!(finds(&series), "{family}: {}", query(&series));
    }
    let dashboard = std::fs::read_to_string(contrib.join("grafana/raidd.json")).unwrap();
    let dashboard: Value = serde_json::from_str(&dashboard).unwrap();
    let panels = dashboard["panels"].as_array().unwrap().iter();
    let targets: Vec<_> = panels.flat_map(|panel| panel["targets"].as_array().unwrap()).collect();
    assert!(targets.len() > 10, "{targets:?}");
    // Something has been written and scrubbed, so each of its queries has something to show.
    let mut client = home.client("vol0");
    home.ok("scrub vol0");
    home.wait_idle("vol0");
    for target in targets {
        let what = target["expr"].as_str().unwrap().replace("$array", ".*").replace("$__rate_interval", "5m");
        client.write(0, &noise(1, MIB as usize)).unwrap();
        // What is shown while a resync runs cannot be waited for: it is understood.
        let is_seen =
            if what.contains("sync_total") { query(&what)["status"] == "success" } else { finds(&what) };
        assert!(is_seen, "{what}: {}", query(&what));
    }
    let evaluated = || {
        let rules = ask("rules");
        let rules = rules["data"]["groups"][0]["rules"].as_array().cloned().unwrap_or_default();
        !rules.is_empty() && rules.iter().all(|rule| rule["health"] == "ok")
    };
    assert!(comes_true(evaluated), "{}", ask("rules"));
    drop(client);
    raidd.terminate();
}
