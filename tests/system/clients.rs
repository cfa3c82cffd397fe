//! Other people's NBD clients against a RAID 5, over Unix and TCP sockets: libnbd's tools and QEMU's.
//!
//! Whatever they do to the array they also do to a plain file; in the end both must hold the same.

use std::net::TcpListener;
use std::path::PathBuf;

use serde_json::Value;

use super::disks::{Disks, MIB, hash_of, noise};
use super::harness::{Home, Raidd, need, run};

/// A daemon on both kinds of socket, with a RAID 5 called `vol`.
struct World {
    home: Home,
    raidd: Raidd,
    uris: [String; 2],
    _disks: Disks,
}

impl World {
    fn new() -> World {
        let home = Home::new();
        let disks = Disks::files(&home, "disk", 4, 24);
        // Free a moment ago, which is as good as it gets.
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let unix = format!("unix:{}", home.path("nbd.sock").display());
        let raidd = home.start_with(&["--nbd", &unix, "--nbd", &format!("tcp:127.0.0.1:{port}")]);
        let uri = home.ok(format!("create vol --level 5 --chunk 64K {}", disks.all())).trim().to_owned();
        assert!(uri.starts_with("nbd+unix:///vol?socket="), "{uri}");
        let uris = [uri, format!("nbd://127.0.0.1:{port}/vol")];
        World { home, raidd, uris, _disks: disks }
    }

    fn size(&self) -> u64 {
        self.home.status("vol").size_bytes
    }

    /// A file as large as the array, full of noise.
    fn noisy_file(&self, seed: u64) -> PathBuf {
        let path = self.home.path(&format!("noise{seed}"));
        std::fs::write(&path, noise(seed, usize::try_from(self.size()).unwrap())).unwrap();
        path
    }
}

fn text(path: &std::path::Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn nbdinfo_is_told_the_facts() {
    if !need(&["nbdinfo"]) {
        return;
    }
    let world = World::new();
    let more = Disks::files(&world.home, "more", 2, 24);
    world.home.ok(format!("create größe --level 1 {}", more.all()));
    for uri in &world.uris {
        assert_eq!(run("nbdinfo", &["--size", uri]).ok().trim(), world.size().to_string());
        let document: Value = serde_json::from_str(&run("nbdinfo", &["--json", uri]).ok()).unwrap();
        let export = &document["exports"][0];
        assert_eq!(export["export-name"], "vol");
        assert_eq!(export["export-size"], world.size());
        assert_eq!(export["is_read_only"], false);
        for can in ["can_flush", "can_fua", "can_trim", "can_zero", "can_multi_conn"] {
            assert_eq!(export[can], true, "{can}: {document:#}");
        }
        let list = run("nbdinfo", &["--list", "--json", &uri.replace("/vol", "/")]).ok();
        let document: Value = serde_json::from_str(&list).unwrap();
        let exports = document["exports"].as_array().unwrap();
        let mut names: Vec<_> = exports.iter().map(|e| e["export-name"].as_str().unwrap()).collect();
        names.sort_unstable();
        assert_eq!(names, ["größe", "vol"]);
        // With two arrays, the empty name means neither.
        let unnamed = run("nbdinfo", &["--size", &uri.replace("/vol", "/")]);
        assert_ne!(unnamed.status, 0, "{unnamed:?}");
    }
    world.home.ok("stop größe");
    for uri in &world.uris {
        let unnamed = run("nbdinfo", &["--size", &uri.replace("/vol", "/")]).ok();
        assert_eq!(unnamed.trim(), world.size().to_string(), "the only array needs no name");
    }
    world.raidd.terminate();
}

#[test]
fn nbdcopy_copies_both_ways() {
    if !need(&["nbdcopy"]) {
        return;
    }
    let world = World::new();
    for (seed, uri) in world.uris.iter().enumerate() {
        let file = world.noisy_file(seed as u64);
        let back = world.home.path("back");
        run("nbdcopy", &["--flush", "--connections=4", "--requests=32", text(&file), uri]).ok();
        run("nbdcopy", &["--connections=4", uri, text(&back)]).ok();
        assert_eq!(hash_of(&back), hash_of(&file));
        // From one array to itself, through both sockets: nothing changes.
        run("nbdcopy", &["--connections=4", "--request-size=65536", &world.uris[0], &world.uris[1]]).ok();
        run("nbdcopy", &["--synchronous", uri, text(&back)]).ok();
        assert_eq!(hash_of(&back), hash_of(&file));
    }
    world.home.wait_for("vol", |status| status.connections == 0);
    world.raidd.terminate();
}

#[test]
fn qemu_img_converts_and_compares() {
    if !need(&["qemu-img"]) {
        return;
    }
    let world = World::new();
    for (seed, uri) in world.uris.iter().enumerate() {
        let file = world.noisy_file(10 + seed as u64);
        // A hole in the middle, so that there is something to make zero.
        let hole = std::fs::File::options().write(true).open(&file).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&hole, &vec![0; 3 << 20], 5 * MIB + 12_288).unwrap();
        drop(hole);
        let info: Value =
            serde_json::from_str(&run("qemu-img", &["info", "-f", "raw", "--output=json", uri]).ok())
                .unwrap();
        assert_eq!(info["virtual-size"], world.size());
        run("qemu-img", &["convert", "-n", "-f", "raw", "-O", "raw", text(&file), uri]).ok();
        run("qemu-img", &["compare", "-f", "raw", "-F", "raw", text(&file), uri]).ok();
        let back = world.home.path("back.qcow2");
        run("qemu-img", &["convert", "-f", "raw", "-O", "qcow2", uri, text(&back)]).ok();
        run("qemu-img", &["compare", "-f", "raw", "-F", "qcow2", text(&file), text(&back)]).ok();
    }
    world.raidd.terminate();
}

#[test]
fn qemu_io_does_to_the_array_what_it_does_to_a_file() {
    if !need(&["qemu-io", "qemu-img"]) {
        return;
    }
    let world = World::new();
    let file = world.noisy_file(1);
    run("qemu-img", &["convert", "-n", "-f", "raw", "-O", "raw", text(&file), &world.uris[0]]).ok();
    for (number, uri) in world.uris.iter().enumerate() {
        let commands = [
            "write -P 0xa5 0 1M".to_owned(),
            format!("write -P {} 1000k 300k", 1 + number),
            "write -z 64k 128k".to_owned(),
            "write -z -u 512k 64k".to_owned(),
            format!("write -z {} 70k", 2 * MIB + 512),
            // What a discarded range reads as is nobody's promise, so it is written again.
            "discard 4M 8M".to_owned(),
            "write -P 0x11 4M 8M".to_owned(),
            "aio_write -P 1 2M 1M".to_owned(),
            "aio_write -P 2 13M 2M".to_owned(),
            "aio_write -P 3 16777728 1M".to_owned(),
            "aio_flush".to_owned(),
            "write -f -P 2 20M 64k".to_owned(),
            "write -f -P 7 20972544 1536".to_owned(),
            "flush".to_owned(),
            "read -P 0xa5 300k 100k".to_owned(),
            "read -P 0 64k 128k".to_owned(),
        ];
        let mut arguments = vec!["-f", "raw", uri.as_str()];
        commands.iter().for_each(|command| arguments.extend(["-c", command]));
        let there = run("qemu-io", &arguments);
        arguments[2] = text(&file);
        let here = run("qemu-io", &arguments);
        for ran in [&there, &here] {
            assert!(
                ran.status == 0 && !ran.stdout.contains("rror") && !ran.stdout.contains("fail"),
                "{ran:#?}"
            );
        }
        run("qemu-img", &["compare", "-f", "raw", "-F", "raw", text(&file), uri]).ok();
    }
    let mut found = vec![0; usize::try_from(world.size()).unwrap()];
    world.home.client("vol").read(0, &mut found).unwrap();
    assert!(found == std::fs::read(&file).unwrap());
    world.raidd.terminate();
}

#[test]
fn an_unknown_export_is_refused() {
    if !need(&["nbdinfo", "qemu-img"]) {
        return;
    }
    let world = World::new();
    for uri in &world.uris {
        let wrong = uri.replace("/vol", "/nobody");
        for ran in [run("nbdinfo", &[&wrong]), run("qemu-img", &["info", "-f", "raw", &wrong])] {
            assert!(ran.status != 0 && ran.stderr.contains("nobody"), "{ran:?}");
        }
        run("nbdinfo", &["--size", uri]).ok();
    }
    world.raidd.terminate();
}

/// An independent client from crates.io: EXPORT_NAME, one request at a time, simple replies.
#[test]
fn a_client_of_another_making_understands_us() {
    use nbd::client::{NbdClient, handshake};
    use std::io::{Read, Seek, SeekFrom, Write};

    let world = World::new();
    let mut stream = std::os::unix::net::UnixStream::connect(world.home.path("nbd.sock")).unwrap();
    let export = handshake(&mut stream, b"vol").unwrap();
    assert_eq!((export.size, export.readonly, export.send_flush), (world.size(), false, true));
    let mut client = NbdClient::new(&mut stream, &export);
    let data = noise(5, 300_001);
    client.seek(SeekFrom::Start(12_345)).unwrap();
    client.write_all(&data).unwrap();
    client.flush().unwrap();
    let mut found = vec![0; data.len()];
    client.seek(SeekFrom::Start(12_345)).unwrap();
    client.read_exact(&mut found).unwrap();
    assert!(found == data);
    drop(stream);
    world.raidd.terminate();
}

#[test]
fn nbdsh_asks_for_everything() {
    if !need(&["nbdsh"]) {
        return;
    }
    let world = World::new();
    let script = world.home.path("all.py");
    std::fs::write(&script, NBDSH).unwrap();
    for uri in &world.uris {
        let command = format!("import sys; exec(open({:?}).read())", script.to_str().unwrap());
        // The module belongs to the system's Python, whatever other there may be.
        let path = "/usr/bin:/bin";
        let line = format!("PATH={path} nbdsh --base-allocation -u '{uri}' -c '{command}'");
        assert_eq!(run("sh", &["-c", &line]).ok().trim(), "done");
    }
    world.raidd.terminate();
}

/// What no other client here asks for: offsets that are not aligned, DF, FUA on everything, CACHE, FAST_ZERO, REQ_ONE, many
/// requests at once, errors.
const NBDSH: &str = r#"
import errno
h.set_strict_mode(0)
size = h.get_size()
assert h.get_structured_replies_negotiated()
h.pwrite(b"x" * 1001, 77, nbd.CMD_FLAG_FUA)
assert h.pread(1003, 76, nbd.CMD_FLAG_DF if hasattr(nbd, "CMD_FLAG_DF") else 0)[1:1002] == b"x" * 1001
h.cache(4096, 0)
h.zero(65536, 1 << 20, nbd.CMD_FLAG_NO_HOLE | nbd.CMD_FLAG_FUA)
assert h.pread(65536, 1 << 20) == bytes(65536)
try:
    h.zero(100, 3, nbd.CMD_FLAG_FAST_ZERO)
    raise SystemExit("a hundred bytes were zeroed fast")
except nbd.Error as error:
    assert error.errnum == errno.ENOTSUP, error
h.trim(1 << 20, 2 << 20, nbd.CMD_FLAG_FUA)
extents = []
h.block_status(1 << 20, 0, lambda name, offset, found, err: extents.append((name, found)), nbd.CMD_FLAG_REQ_ONE)
assert len(extents) == 1 and extents[0][0] == "base:allocation" and len(extents[0][1]) == 2, extents
for flawed, expected in [
    (lambda: h.pread(1, size), errno.EINVAL),
    (lambda: h.pwrite(b"z", size), errno.ENOSPC),
    (lambda: h.trim(512, size), errno.EINVAL),
    (lambda: h.pread(512, 0, 1 << 15), errno.EINVAL),
]:
    try:
        flawed()
        raise SystemExit("a request that makes no sense was done")
    except nbd.Error as error:
        assert error.errnum == expected, error
cookies = [h.aio_pwrite(nbd.Buffer.from_bytearray(bytearray([n]) * 4096), (8 << 20) + n * 4096) for n in range(64)]
while cookies:
    h.poll(-1)
    cookies = [cookie for cookie in cookies if not h.aio_command_completed(cookie)]
data = h.pread(64 * 4096, 8 << 20)
assert all(data[n * 4096:(n + 1) * 4096] == bytes([n]) * 4096 for n in range(64))
h.flush()
h.shutdown()
print("done")
"#;
