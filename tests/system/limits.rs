//! What the daemon refuses at its start, and that it keeps to the memory that it was given, whatever clients do.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nix::sys::resource::{Resource, getrlimit, setrlimit};

use super::disks::{Disks, Loop, MIB, noise};
use super::harness::{Home, Raidd, need, skip};

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
    let peak = peak_bytes(&raidd);
    println!("raidd --memory 32M, {CLIENTS} clients at once: at most {} MiB resident", peak >> 20);
    assert!(peak <= 32 * MIB + FIXED_BYTES_MAX, "{peak} bytes resident");
    raidd.terminate();
}

/// What an array costs does not follow its size: its members are sparse, and hold 15 TiB each.
#[test]
fn a_hundred_terabytes_take_no_more_memory_than_a_few() {
    if !need(&["root", "/dev/loop-control", "losetup"]) {
        return;
    }
    // Few filesystems on disks take such files; tmpfs does.
    let folder = tempfile::tempdir_in("/dev/shm").unwrap();
    let paths: Vec<_> = (0..8).map(|number| folder.path().join(format!("disk{number}"))).collect();
    for path in &paths {
        std::fs::File::create(path).unwrap().set_len(15 << 40).unwrap();
    }
    let loops: Vec<_> = paths.iter().map(|path| Loop::over(path, &[])).collect();
    let members: Vec<_> = loops.iter().map(|device| device.path.as_str()).collect();
    for level in [5, 6, 10] {
        let home = Home::new();
        let raidd = home.start();
        home.ok(format!("create vol --force --level {level} --init assume-clean {}", members.join(" ")));
        let size = home.status("vol").size_bytes;
        assert!(size >= 59 << 40, "{size} bytes");
        let places: Vec<u64> = (0..64).map(|number| size / 64 * number / MIB * MIB + number * 4096).collect();
        let mut client = home.client("vol");
        for &at in &places {
            client.write(at, &noise(at, 8192)).unwrap();
        }
        client.disconnect().unwrap();
        let peak = peak_bytes(&raidd);
        raidd.terminate();
        let raidd = home.start();
        let mut client = home.client("vol");
        for &at in &places {
            let mut found = vec![0; 8192];
            client.read(at, &mut found).unwrap();
            assert!(found == noise(at, 8192), "level {level}: something else at {at}");
        }
        client.disconnect().unwrap();
        let peak = peak.max(peak_bytes(&raidd));
        println!("level {level}, {} TiB: at most {} MiB resident", size >> 40, peak >> 20);
        assert!(peak <= FIXED_BYTES_MAX, "{peak} bytes resident");
        raidd.terminate();
    }
}

/// What it had in memory at most.
fn peak_bytes(raidd: &Raidd) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", raidd.pid())).unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    peak.trim().strip_suffix(" kB").unwrap().parse::<u64>().unwrap() * 1024
}

const MANY: usize = 1000;
const ACTIVE: usize = 100;
const ACTIVE_PER_THREAD: usize = 10;

/// A connection in the transmission phase, by hand.
fn raw_client(home: &Home) -> UnixStream {
    let mut stream = UnixStream::connect(home.path("nbd.sock")).unwrap();
    stream.write_all(b"\0\0\0\x03IHAVEOPT\0\0\0\x07\0\0\0\x09\0\0\0\x03vol\0\0").unwrap();
    // The greeting, INFO_EXPORT, and ACK.
    let mut answer = [0; 18 + 32 + 20];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(answer[62..66], [0, 0, 0, 1], "an ACK");
    stream
}

fn read_request(cookie: u64, len: u32) -> Vec<u8> {
    let mut bytes = vec![0x25, 0x60, 0x95, 0x13, 0, 0, 0, 0];
    bytes.extend(cookie.to_be_bytes());
    bytes.extend(0_u64.to_be_bytes());
    bytes.extend(len.to_be_bytes());
    bytes
}

/// A client may have sent requests before the handshake is over, few of them or more than fit into a page: then its
/// connection stays where it was greeted. Every other connection is greeted on another reactor than the array's.
#[test]
fn requests_that_come_with_the_handshake_are_served_wherever_that_was() {
    let home = Home::new();
    let disks = Disks::files(&home, "disk", 2, 16);
    let raidd = home.start();
    home.ok(format!("create vol --level 1 --init assume-clean {}", disks.all()));
    let data = noise(1, 4096);
    home.client("vol").write(0, &data).unwrap();
    for requests in [1, 1, 20, 20, 1000, 1000] {
        let mut stream = UnixStream::connect(home.path("nbd.sock")).unwrap();
        let mut bytes = b"\0\0\0\x03".to_vec();
        // An option that nobody knows, long enough for the receive buffer to grow.
        bytes.extend(b"IHAVEOPT\0\0\x77\x77\0\0\x1f\x40");
        bytes.resize(bytes.len() + 8000, 0);
        bytes.extend(b"IHAVEOPT\0\0\0\x07\0\0\0\x09\0\0\0\x03vol\0\0");
        (0..requests).for_each(|cookie| bytes.extend(read_request(cookie, 4096)));
        let mut reader = stream.try_clone().unwrap();
        let answers = std::thread::spawn(move || {
            // The greeting, a refusal of any length, INFO_EXPORT and ACK; then the replies.
            let mut greeting = [0; 18 + 20];
            reader.read_exact(&mut greeting).unwrap();
            let refusal = u32::from_be_bytes(greeting[34..].try_into().unwrap());
            reader.read_exact(&mut vec![0; refusal as usize + 32 + 20]).unwrap();
            for _ in 0..requests {
                let mut reply = vec![0; 16 + 4096];
                reader.read_exact(&mut reply).unwrap();
                assert!(reply[..8] == [0x67, 0x44, 0x66, 0x98, 0, 0, 0, 0] && reply[16..] == noise(1, 4096));
            }
        });
        stream.write_all(&bytes).unwrap();
        answers.join().unwrap();
    }
    raidd.terminate();
}

#[test]
fn a_thousand_connections_are_served_beside_those_that_mean_harm() {
    let (_, files) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    if files < 2 * MANY as u64 {
        return skip(&format!("only {files} open files are allowed"));
    }
    setrlimit(Resource::RLIMIT_NOFILE, files, files).unwrap();
    let home = Home::new();
    let disks = Disks::files(&home, "disk", 3, 64);
    let raidd = home.start();
    home.ok(format!("create vol --level 5 --chunk 64K --init assume-clean {}", disks.all()));
    // Asks for more than a connection may hold, and takes none of it.
    let mut stalled = raw_client(&home);
    let requests: Vec<u8> = (0..300).flat_map(|cookie| read_request(cookie, MIB as u32)).collect();
    stalled.write_all(&requests).unwrap();
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        // Says one byte after the other of a greeting that never ends.
        let mut loris = UnixStream::connect(home.path("nbd.sock")).unwrap();
        let over = &over;
        scope.spawn(move || {
            while !over.load(Ordering::Relaxed) && loris.write_all(b"\0").is_ok() {
                std::thread::sleep(Duration::from_millis(200));
            }
        });
        let mut clients: Vec<_> = (0..MANY).map(|_| home.client("vol")).collect();
        assert!(home.status("vol").connections > MANY as u64);
        std::thread::scope(|scope| {
            for (number, group) in clients[..ACTIVE].chunks_mut(ACTIVE_PER_THREAD).enumerate() {
                scope.spawn(move || {
                    for round in 0..20 {
                        for (index, client) in group.iter_mut().enumerate() {
                            let offset = ((number * ACTIVE_PER_THREAD + index) * 128 * 1024) as u64;
                            let data = noise(round << 20 | offset, 100_000);
                            client.write(offset, &data).unwrap();
                            let mut found = vec![0; data.len()];
                            client.read(offset, &mut found).unwrap();
                            assert!(found == data, "client {number}.{index} reads something else");
                        }
                    }
                });
            }
        });
        for client in &mut clients {
            client.read(0, &mut [0; 512]).unwrap();
        }
        over.store(true, Ordering::Relaxed);
    });
    let peak = peak_bytes(&raidd);
    println!("raidd, {MANY} clients at once: at most {} MiB resident", peak >> 20);
    assert!(peak <= 256 * MIB + FIXED_BYTES_MAX, "{peak} bytes resident");
    drop(stalled);
    home.wait_for("vol", |status| status.connections == 0);
    raidd.terminate();
}
