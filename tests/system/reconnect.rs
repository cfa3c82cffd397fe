//! Clients in user space that connect again: QEMU's, and nbdkit's with its retry filter. raidd is killed and stopped under
//! them, and all that they notice is a pause.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::disks::Disks;
use super::harness::{Home, Raidd, need};
use super::mounted::{comes_true, wait_until};

const WRITES: usize = 500;
const WRITE_BYTES: usize = 64 << 10;

/// What the write of this number writes.
fn pattern(number: usize) -> u8 {
    (number % 251 + 1) as u8
}

/// A client that writes one pattern after another, some milliseconds apart, and says when each is done.
struct Writer {
    child: Child,
    done: Arc<AtomicUsize>,
}

impl Writer {
    fn start(command: &mut Command) -> Writer {
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        let lines: String = (0..WRITES)
            .map(|number| format!("write -P {} {} 64k\nsleep 5\n", pattern(number), number * WRITE_BYTES))
            .collect();
        stdin.write_all(format!("{lines}flush\nquit\n").as_bytes()).unwrap();
        // qemu-io takes its last commands when there is nothing more to come.
        drop(stdin);
        let done = Arc::new(AtomicUsize::new(0));
        let (stdout, counted) = (child.stdout.take().unwrap(), done.clone());
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines() {
                let line = line.unwrap();
                if line.contains("wrote 65536/65536 bytes") {
                    counted.fetch_add(1, Ordering::Relaxed);
                } else if line.contains("failed") || line.contains("error") {
                    // The test sees that one is missing, and this in its output.
                    eprintln!("the client says: {line}");
                }
            }
        });
        Writer { child, done }
    }

    /// Waits for some more writes.
    fn progress(&self) {
        let wanted = (self.done.load(Ordering::Relaxed) + 40).min(WRITES);
        wait_until("the client goes on", || self.done.load(Ordering::Relaxed) >= wanted);
    }

    /// Waits until all has been written; nothing may have failed.
    fn finish(mut self) {
        let done = || self.done.load(Ordering::Relaxed);
        assert!(comes_true(|| done() == WRITES), "only {} of {WRITES} writes were done", done());
        assert!(self.child.wait().unwrap().success());
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        if self.child.try_wait().is_ok_and(|ended| ended.is_none()) && self.child.kill().is_ok() {
            self.child.wait().map(drop).unwrap_or_default();
        }
    }
}

/// Ends raidd in both ways while the client writes, and looks at what there is in the end.
fn restart_under(home: &Home, mut raidd: Raidd, writer: Writer) {
    for round in 0..4 {
        writer.progress();
        if round % 2 == 0 {
            raidd.kill();
        } else {
            raidd.terminate();
        }
        raidd = home.start();
    }
    writer.finish();
    let mut client = home.client("vol");
    let mut found = vec![0; WRITE_BYTES];
    for number in 0..WRITES {
        client.read((number * WRITE_BYTES) as u64, &mut found).unwrap();
        assert!(found.iter().all(|byte| *byte == pattern(number)), "write {number} is not there");
    }
    client.disconnect().unwrap();
    raidd.terminate();
}

fn started() -> (Home, Raidd, Disks) {
    let home = Home::new();
    let disks = Disks::files(&home, "disk", 3, 32);
    let raidd = home.start();
    home.ok(format!("create vol --level 5 --chunk 64K {}", disks.all()));
    (home, raidd, disks)
}

fn qemu_io() -> Command {
    let mut command = Command::new("stdbuf");
    command.args(["-oL", "qemu-io"]);
    command
}

#[test]
fn qemu_with_reconnect_delay_sees_a_pause() {
    if !need(&["qemu-io", "stdbuf"]) {
        return;
    }
    let (home, raidd, _disks) = started();
    let socket = home.path("nbd.sock");
    let options =
        format!("driver=nbd,export=vol,reconnect-delay=60,server.type=unix,server.path={}", socket.display());
    let writer = Writer::start(qemu_io().arg("--image-opts").arg(options));
    restart_under(&home, raidd, writer);
}

#[test]
fn nbdkit_with_its_retry_filter_sees_a_pause() {
    if !need(&["qemu-io", "stdbuf", "nbdkit"]) {
        return;
    }
    let (home, raidd, _disks) = started();
    let front = home.path("front.sock");
    let mut nbdkit = Command::new("nbdkit");
    nbdkit.args(["-f", "--exit-with-parent", "--filter=retry", "-U"]).arg(&front).arg("nbd");
    nbdkit.arg(format!("uri={}", home.uri("vol"))).args([
        "retries=60",
        "retry-delay=1",
        "retry-exponential=no",
    ]);
    let mut nbdkit = nbdkit.stdin(Stdio::null()).stdout(Stdio::null()).spawn().unwrap();
    wait_until("nbdkit listens", || front.exists());
    let writer =
        Writer::start(qemu_io().args(["-f", "raw"]).arg(format!("nbd+unix:///?socket={}", front.display())));
    restart_under(&home, raidd, writer);
    nbdkit.kill().unwrap();
    nbdkit.wait().unwrap();
}
