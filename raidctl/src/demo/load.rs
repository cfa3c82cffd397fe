//! Clients at work: several NBD connections that write or read every block of the array.
//!
//! Every request's time is kept; that is how the demo knows what a failure costs whoever writes at that moment.

use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use indicatif::ProgressBar;
use raidd::nbd::{Client, ClientError};

use super::interrupt::Interrupt;
use super::pattern::{Difference, Pattern};
use crate::failure::{Failure, failed};

/// Clients at a time.
pub const CONNECTIONS: usize = 4;
/// Bytes a request.
const REQUEST_BYTES: u64 = 256 << 10;
/// Without an answer for so long, something is wrong: raidd fails a member that hangs after 10 s.
const ANSWER_LIMIT: Duration = Duration::from_secs(60);

/// The array under load.
pub struct Load<'a> {
    socket: &'a Path,
    export: &'a str,
    size_bytes: u64,
    interrupt: &'a Interrupt,
}

/// A request's time.
#[derive(Clone, Copy, Debug)]
pub struct Request {
    pub began: Instant,
    pub ended: Instant,
}

impl Request {
    pub fn took(&self) -> Duration {
        self.ended - self.began
    }
}

type Connection = Client<UnixStream>;

impl<'a> Load<'a> {
    /// Looks at the export.
    pub fn new(socket: &'a Path, export: &'a str, interrupt: &'a Interrupt) -> Result<Load<'a>, Failure> {
        let mut load = Load { socket, export, size_bytes: 0, interrupt };
        let client = load.connect()?;
        load.size_bytes = client.size_bytes();
        client.disconnect().map_err(|error| nbd_failure("leaving", &error))?;
        if load.size_bytes == 0 {
            return Err(failed("the export is empty: please report it"));
        }
        Ok(load)
    }

    /// Bytes of the export.
    pub fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    fn connect(&self) -> Result<Connection, Failure> {
        let stream = UnixStream::connect(self.socket)
            .and_then(|stream| {
                stream.set_read_timeout(Some(ANSWER_LIMIT))?;
                stream.set_write_timeout(Some(ANSWER_LIMIT))?;
                Ok(stream)
            })
            .map_err(|error| failed(format_args!("cannot connect to {}: {error}", self.socket.display())))?;
        Client::new(stream, self.export).map_err(|error| nbd_failure("connecting", &error))
    }

    /// Writes `pattern` to every block, and goes on from the start while `more` says so. Ends with a flush.
    pub fn write(
        &self,
        pattern: Pattern,
        more: &(dyn Fn() -> bool + Sync),
        bar: &ProgressBar,
    ) -> Result<Vec<Request>, Failure> {
        let requests = Mutex::new(Vec::new());
        self.every_block(more, bar, |client, offset, data| {
            pattern.fill(offset, data);
            let began = Instant::now();
            client.write(offset, data).map_err(|error| nbd_failure("writing", &error))?;
            let request = Request { began, ended: Instant::now() };
            requests.lock().expect("no client panics").push(request);
            Ok(())
        })?;
        let mut client = self.connect()?;
        client.flush().map_err(|error| nbd_failure("flushing", &error))?;
        client.disconnect().map_err(|error| nbd_failure("leaving", &error))?;
        Ok(requests.into_inner().expect("no client panics"))
    }

    /// Reads every block and compares it with `pattern`.
    pub fn compare(&self, pattern: Pattern, bar: &ProgressBar) -> Result<Difference, Failure> {
        let found = Mutex::new(Difference::default());
        self.every_block(&|| false, bar, |client, offset, data| {
            client.read(offset, data).map_err(|error| nbd_failure("reading", &error))?;
            let difference = pattern.compare(offset, data);
            let mut found = found.lock().expect("no client panics");
            *found = found.and(difference);
            Ok(())
        })?;
        Ok(found.into_inner().expect("no client panics"))
    }

    /// Does `work` for every block once, and again while `more` says so, over all connections at once.
    fn every_block(
        &self,
        more: &(dyn Fn() -> bool + Sync),
        bar: &ProgressBar,
        work: impl Fn(&mut Connection, u64, &mut [u8]) -> Result<(), Failure> + Sync,
    ) -> Result<(), Failure> {
        let next = AtomicU64::new(0);
        let broken = AtomicBool::new(false);
        let blocks = self.size_bytes.div_ceil(REQUEST_BYTES);
        let client = || -> Result<(), Failure> {
            let mut client = self.connect()?;
            let mut data = vec![0; REQUEST_BYTES as usize];
            loop {
                let turn = next.fetch_add(1, Ordering::Relaxed);
                if broken.load(Ordering::Relaxed) || turn >= blocks && !more() {
                    break;
                }
                self.interrupt.check()?;
                let offset = turn % blocks * REQUEST_BYTES;
                let length = REQUEST_BYTES.min(self.size_bytes - offset);
                work(&mut client, offset, &mut data[..length as usize])?;
                if turn < blocks {
                    bar.inc(length);
                }
            }
            client.disconnect().map_err(|error| nbd_failure("leaving", &error))
        };
        std::thread::scope(|scope| {
            let watched = || {
                client().inspect_err(|_| broken.store(true, Ordering::Relaxed)) // the others need not go on
            };
            let clients: Vec<_> = (0..CONNECTIONS).map(|_| scope.spawn(watched)).collect();
            let results: Vec<_> = clients.into_iter().map(|client| client.join()).collect();
            results.into_iter().try_for_each(|result| {
                result.unwrap_or_else(|_| Err(failed("a client panicked: please report it")))
            })
        })
    }
}

fn nbd_failure(doing: &str, error: &ClientError) -> Failure {
    let cause = std::error::Error::source(error).map(|cause| format!(" ({cause})")).unwrap_or_default();
    failed(format_args!("{doing} over NBD failed: {error}{cause}: see raidd's log with --keep"))
}
