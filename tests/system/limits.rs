//! What the daemon refuses at its start, and that it keeps to the memory that it was given, whatever clients do.

use std::time::Duration;

use super::disks::{Disks, MIB, noise};
use super::harness::Home;

#[test]
fn bad_options_are_explained() {
    let home = Home::new();
    let at = |name: &str| home.path(name).to_str().unwrap().to_owned();
    let (control, state) = (at("control.sock"), at("state"));
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = format!("tcp:127.0.0.1:{}", taken.local_addr().unwrap().port()).leak();
    std::fs::write(home.path("precious"), "precious").unwrap();
    std::fs::write(home.path("bad.toml"), "memory = \"64M\"\nmemmory = \"32M\"\n").unwrap();
    std::fs::write(home.path("worse.toml"), "memory = \n").unwrap();
    std::fs::create_dir(home.path("broken")).unwrap();
    std::fs::write(home.path("broken/arrays.json"), "{\"version\": 1, \"arr").unwrap();
    let (precious, bad, worse) = (at("precious"), at("bad.toml"), at("worse.toml"));
    let (broken, long) = (at("broken"), at(&"x".repeat(120)));
    for (extra, words) in [
        (vec!["--memory", "1M"], &["memory", "32M"][..]),
        (vec!["--memory", "lots"], &["lots", "--help"]),
        (vec!["--reactors", "0"], &["reactors", "1 to"]),
        (vec!["--nbd", "nonsense"], &["nonsense", "unix:PATH"]),
        (vec!["--nbd", "tcp:127.0.0.1:0"], &["tcp:127.0.0.1:0"]),
        (vec!["--nbd", taken], &[taken, "choose another"]),
        (vec!["--nonsense"], &["--nonsense", "--help"]),
        (vec!["--config", "/nowhere/raidd.toml"], &["/nowhere/raidd.toml"]),
        (vec!["--config", &bad], &[&bad, "line 2", "memmory"]),
        (vec!["--config", &worse], &[&worse, "line 1"]),
    ] {
        let mut arguments = vec!["--control", &control, "--state-dir", &state];
        arguments.extend(extra);
        explained(&home, &arguments, words);
    }
    explained(&home, &["--control", &control, "--state-dir", &precious], &[&precious, "--state-dir"]);
    explained(&home, &["--control", &control, "--state-dir", &broken], &["arrays.json", "--state-dir"]);
    explained(&home, &["--control", &precious, "--state-dir", &state], &[&precious, "--control"]);
    explained(&home, &["--control", &long, "--state-dir", &state], &["too long", "--control"]);
    let socket = format!("unix:{precious}");
    let line = ["--control", &control, "--state-dir", &state, "--nbd", &socket];
    explained(&home, &line, &[&precious, "--nbd"]);
    assert_eq!(std::fs::read_to_string(home.path("precious")).unwrap(), "precious");
}

#[track_caller]
fn explained(home: &Home, arguments: &[&str], words: &[&str]) {
    let line = home.bare_raidd(arguments).complaint(1);
    for word in words {
        assert!(line.contains(word), "{arguments:?}: {word:?} is not in {line}");
    }
    assert!(line.starts_with("raidd: "), "{line}");
}

/// What a daemon takes beyond the memory that it was given: code, threads, metadata of arrays, the ring's pages.
const FIXED_BYTES_MAX: u64 = 40 * MIB;
const CLIENTS: u64 = 16;
const BYTES_PER_CLIENT: u64 = 32 * MIB;

#[test]
fn memory_has_a_limit_and_everyone_is_served() {
    let home = Home::new();
    let disks = Disks::files(&home, "disk", 3, CLIENTS * 16 + 8);
    let raidd = home.start_with(&["--memory", "32M"]);
    home.ok(format!("create vol --level 5 --chunk 64K --init assume-clean {}", disks.all()));
    std::thread::scope(|scope| {
        for number in 0..CLIENTS {
            let mut client = home.client("vol");
            scope.spawn(move || {
                // One call: as large as the server takes them, one after the other.
                let data = noise(number, BYTES_PER_CLIENT as usize);
                client.write(number * BYTES_PER_CLIENT, &data).unwrap();
                client.flush().unwrap();
                let mut found = vec![0; data.len()];
                client.read(number * BYTES_PER_CLIENT, &mut found).unwrap();
                assert!(found == data, "client {number} reads something else");
                client.disconnect().unwrap();
            });
        }
        std::thread::sleep(Duration::from_millis(200));
        assert!(home.status("vol").connections > 1, "they come all at once");
    });
    let status = std::fs::read_to_string(format!("/proc/{}/status", raidd.pid())).unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    let peak: u64 = peak.trim().strip_suffix(" kB").unwrap().parse().unwrap();
    println!("raidd --memory 32M, {CLIENTS} clients at once: at most {} MiB resident", peak >> 10);
    assert!(peak * 1024 <= 32 * MIB + FIXED_BYTES_MAX, "{peak} kB resident");
    raidd.terminate();
}
