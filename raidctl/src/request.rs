//! One HTTP request to the daemon over its Unix socket, and what can come of it.
//!
//! Invariants:
//! - A refusal is the daemon's own line, unchanged.
//! - That there is no daemon is told apart from everything else, with how to start one.
//! - Answers are at most [`ANSWER_BYTES_MAX`] long.

use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::task::Poll;
use std::time::Duration;

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1;
use hyper::{Method, Request, StatusCode, header};
use hyper_util::rt::TokioIo;
use raidd::api::{
    AssembleArray, CreateArray, DaemonStatus, Event, Findings, Problem, ProblemCode, Stats, Status,
    default_control_path,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;

use crate::failure::{Failure, failed};

/// The longest answer that is read: far above what a thousand arrays take.
const ANSWER_BYTES_MAX: usize = 64 << 20;

/// The daemon behind a control socket.
#[derive(Clone)]
pub struct Daemon {
    socket: PathBuf,
}

/// What was asked of the daemon and not done.
#[derive(Debug)]
pub enum CallError {
    /// Nobody answers there.
    Absent(io::Error),
    /// It says no.
    Refused(Problem),
    /// It is older than raidctl, and has no such thing.
    TooOld,
    /// The connection broke, or what came was no answer.
    Broken(String),
}

impl Daemon {
    /// The daemon at `socket`; where it is by default if that is not named.
    pub fn at(socket: Option<PathBuf>) -> Result<Daemon, Failure> {
        let chosen = socket.filter(|path| !path.as_os_str().is_empty()).or_else(|| {
            let runtime_dir = std::env::var_os("XDG_RUNTIME_DIR");
            default_control_path(nix::unistd::geteuid().is_root(), runtime_dir.as_deref())
        });
        chosen.map(|socket| Daemon { socket }).ok_or_else(|| {
            failed("no control socket to ask, as XDG_RUNTIME_DIR is not set: name one with --control PATH")
        })
    }

    /// Makes an array.
    pub fn create(&self, request: &CreateArray) -> Result<Status, Failure> {
        self.told(Method::POST, "/v1/arrays", Some(request))
    }

    /// Starts an array.
    pub fn assemble(&self, request: &AssembleArray) -> Result<Status, Failure> {
        self.told(Method::POST, "/v1/arrays/assemble", Some(request))
    }

    /// Starts every array that can be found; those that were started.
    pub fn scan(&self) -> Result<Vec<Status>, Failure> {
        self.told(Method::POST, "/v1/arrays/scan", None::<&()>)
    }

    /// Every array.
    pub fn list(&self) -> Result<Vec<Status>, Failure> {
        self.told(Method::GET, "/v1/arrays", None::<&()>)
    }

    /// Every array, if the daemon tells them in that time.
    pub fn list_within(&self, patience: Duration) -> Option<Vec<Status>> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().ok()?;
        let answer = runtime.block_on(async {
            let asked = exchange(&self.socket, Method::GET, "/v1/arrays", Bytes::new());
            tokio::time::timeout(patience, asked).await
        });
        read(&answer.ok()?.ok()?).ok()
    }

    /// One array.
    pub fn status(&self, name: &str) -> Result<Status, Failure> {
        self.told(Method::GET, &format!("/v1/arrays/{}", escaped(name)), None::<&()>)
    }

    /// What scrubs of an array found.
    pub fn findings(&self, name: &str) -> Result<Findings, Failure> {
        self.told(Method::GET, &format!("/v1/arrays/{}/findings", escaped(name)), None::<&()>)
    }

    /// What an array and its members have done.
    pub fn stats(&self, name: &str) -> Result<Stats, CallError> {
        self.looked_up(&format!("/v1/arrays/{}/stats", escaped(name)))
    }

    /// What the daemon itself is and does.
    pub fn itself(&self) -> Result<DaemonStatus, CallError> {
        self.looked_up("/v1/daemon")
    }

    /// Something that a daemon may be too old to have.
    fn looked_up<T: DeserializeOwned>(&self, path: &str) -> Result<T, CallError> {
        match self.ask(Method::GET, path, None::<&()>) {
            Ok(answer) => read(&answer),
            Err(CallError::Refused(problem)) if problem.code == ProblemCode::NotFound => {
                Err(CallError::TooOld)
            }
            Err(error) => Err(error),
        }
    }

    /// Stops an array, and with `release` has the daemon forget it.
    pub fn stop(&self, name: &str, force: bool, release: bool) -> Result<(), Failure> {
        self.end(name, "stop", &serde_json::json!({ "force": force, "release": release }))
    }

    /// Takes an array's block device away.
    pub fn detach(&self, name: &str, force: bool) -> Result<(), Failure> {
        self.end(name, "detach", &serde_json::json!({ "force": force }))
    }

    fn end(&self, name: &str, verb: &str, body: &impl Serialize) -> Result<(), Failure> {
        self.ask(Method::POST, &format!("/v1/arrays/{}/{verb}", escaped(name)), Some(body))
            .map(drop)
            .map_err(|error| self.explain(error))
    }

    /// Does something to a running array; `verb` is the last word of its path.
    pub fn change(&self, name: &str, verb: &str, body: &impl Serialize) -> Result<Status, Failure> {
        self.told(Method::POST, &format!("/v1/arrays/{}/{verb}", escaped(name)), Some(body))
    }

    /// Gives `each` what has happened, and with `follow` what happens, until raidd ends.
    pub fn events(
        &self,
        follow: bool,
        each: &mut dyn FnMut(&Event) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        let path = format!("/v1/events?follow={follow}");
        let broken = |error: io::Error| self.explain(CallError::Broken(error.to_string()));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(broken)?;
        runtime.block_on(async {
            let (mut response, connection) =
                begin(&self.socket, Method::GET, &path, Bytes::new()).await.map_err(|e| self.explain(e))?;
            let _driven = tokio::spawn(connection);
            if !response.status().is_success() {
                let status = response.status();
                let answer = Limited::new(response.into_body(), ANSWER_BYTES_MAX).collect().await;
                let answer = answer.map(http_body_util::Collected::to_bytes).unwrap_or_default();
                return Err(self.explain(refusal(status, &answer)));
            }
            let mut unread = Vec::new();
            while let Some(frame) = response.frame().await {
                let frame = frame.map_err(|error| self.explain(CallError::Broken(error.to_string())))?;
                unread.extend_from_slice(frame.data_ref().map_or(&[][..], |data| data));
                if unread.len() > ANSWER_BYTES_MAX {
                    return Err(self.explain(CallError::Broken("an endless line".into())));
                }
                while let Some(end) = unread.iter().position(|&byte| byte == b'\n') {
                    let line: Vec<u8> = unread.drain(..=end).collect();
                    let Some(data) = line.strip_prefix(b"data: ") else { continue };
                    let event = serde_json::from_slice(data)
                        .map_err(|error| self.explain(CallError::Broken(format!("no event: {error}"))))?;
                    each(&event)?;
                }
            }
            Ok(())
        })
    }

    /// Whether it is up.
    pub fn is_up(&self) -> Result<bool, CallError> {
        match self.ask(Method::GET, "/healthz", None::<&()>) {
            Ok(_) => Ok(true),
            Err(CallError::Absent(_)) => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn told<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<&impl Serialize>,
    ) -> Result<T, Failure> {
        self.ask(method, path, body).and_then(|answer| read(&answer)).map_err(|error| self.explain(error))
    }

    fn ask(&self, method: Method, path: &str, body: Option<&impl Serialize>) -> Result<Bytes, CallError> {
        let broken = |error: io::Error| CallError::Broken(error.to_string());
        let body = match body {
            Some(document) => {
                Bytes::from(serde_json::to_vec(document).map_err(|error| broken(error.into()))?)
            }
            None => Bytes::new(),
        };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(broken)?;
        runtime.block_on(exchange(&self.socket, method, path, body))
    }

    /// The line for people.
    pub fn explain(&self, error: CallError) -> Failure {
        let socket = self.socket.display();
        match error {
            CallError::Absent(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                failed(format_args!(
                    "may not use {socket}, which belongs to another user's raidd: run raidctl as that user, or name another \
                 with --control PATH"
                ))
            }
            CallError::Absent(error) => failed(format_args!(
                "no raidd answers at {socket} ({}): start one with `raidd`, or name its socket with --control PATH",
                reason(&error)
            )),
            CallError::Refused(problem) => failed(problem),
            CallError::TooOld => failed(format_args!(
                "raidd at {socket} does not tell that, as it is older than this raidctl: upgrade it, and start it again"
            )),
            CallError::Broken(what) => failed(format_args!(
                "raidd at {socket} gave no proper answer ({what}): see its log for whether the command was done"
            )),
        }
    }
}

/// The system's words without the number behind them.
fn reason(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::NotFound => "there is no such socket",
        io::ErrorKind::ConnectionRefused => "a relic: nobody listens",
        io::ErrorKind::InvalidInput => "the path is too long for a socket",
        _ => "it cannot be connected to",
    }
}

type Connection = http1::Connection<TokioIo<UnixStream>, Full<Bytes>>;

/// Sends a request, and gives what comes of it with the connection that has to be driven while it is read.
async fn begin(
    socket: &Path,
    method: Method,
    path: &str,
    body: Bytes,
) -> Result<(hyper::Response<Incoming>, Connection), CallError> {
    let stream = UnixStream::connect(socket).await.map_err(CallError::Absent)?;
    let broken = |error: hyper::Error| CallError::Broken(error.to_string());
    let (mut sender, mut connection) = http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header(header::HOST, "raidd")
        .header(header::CONTENT_TYPE, "application/json")
        .body(Full::new(body))
        .map_err(|error| CallError::Broken(error.to_string()))?;
    // The connection does the work, and stays there for the body.
    let mut response = std::pin::pin!(sender.send_request(request));
    let response = std::future::poll_fn(|context| {
        if let Poll::Ready(Err(error)) = Pin::new(&mut connection).poll(context) {
            return Poll::Ready(Err(error));
        }
        response.as_mut().poll(context)
    });
    let response = response.await.map_err(broken)?;
    Ok((response, connection))
}

async fn exchange(socket: &Path, method: Method, path: &str, body: Bytes) -> Result<Bytes, CallError> {
    let (response, connection) = begin(socket, method, path, body).await?;
    let broken = |error: hyper::Error| CallError::Broken(error.to_string());
    let status = response.status();
    let answer = async {
        let answer = Limited::new(response.into_body(), ANSWER_BYTES_MAX).collect().await;
        answer.map(|answer| answer.to_bytes()).map_err(|error| CallError::Broken(error.to_string()))
    };
    let answer = tokio::select! {
        biased;
        result = answer => result?,
        ended = async { match connection.await {
            Ok(()) => std::future::pending().await,
            Err(error) => error,
        } } => return Err(broken(ended)),
    };
    if status.is_success() { Ok(answer) } else { Err(refusal(status, &answer)) }
}

fn read<T: DeserializeOwned>(answer: &[u8]) -> Result<T, CallError> {
    serde_json::from_slice(answer)
        .map_err(|error| CallError::Broken(format!("an answer that is no such document: {error}")))
}

fn refusal(status: StatusCode, answer: &[u8]) -> CallError {
    match serde_json::from_slice::<Problem>(answer) {
        Ok(problem) => CallError::Refused(problem),
        Err(_) => CallError::Broken(format!("HTTP status {status} and no reason")),
    }
}

/// A name as a segment of a path: all but unreserved characters escaped (RFC 3986, section 2).
fn escaped(name: &str) -> String {
    let mut text = String::with_capacity(name.len());
    for byte in name.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            text.push(char::from(byte));
        } else {
            text.push_str(&format!("%{byte:02X}"));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_escaped() {
        assert_eq!(escaped("vol-0_a.b~"), "vol-0_a.b~");
        assert_eq!(escaped("größe/ %?#"), "gr%C3%B6%C3%9Fe%2F%20%25%3F%23");
    }

    #[test]
    fn an_absent_daemon_is_said_to_be_absent() {
        let folder = tempfile::tempdir().unwrap();
        let relic = folder.path().join("relic");
        drop(std::os::unix::net::UnixListener::bind(&relic).unwrap());
        let long = folder.path().join("x".repeat(200));
        for (socket, why) in [(folder.path().join("none"), "no such"), (relic, "relic"), (long, "too long")] {
            let daemon = Daemon::at(Some(socket)).unwrap();
            assert!(!daemon.is_up().unwrap());
            let line = daemon.list().unwrap_err().line().unwrap();
            assert!(line.contains(why) && line.contains("start one with `raidd`"), "{line}");
        }
    }

    #[test]
    fn whoever_is_in_a_hurry_does_not_wait() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("s");
        // It listens, and never answers.
        let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        let begun = std::time::Instant::now();
        assert!(Daemon::at(Some(socket)).unwrap().list_within(Duration::from_millis(20)).is_none());
        assert!(begun.elapsed() < Duration::from_secs(10));
    }

    #[test]
    fn nonsense_is_no_answer() {
        use std::io::{Read, Write};
        for answer in [
            &b"SSH-2.0-OpenSSH\r\n"[..],
            b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n[",
            b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}",
            b"HTTP/1.1 500 Oops\r\nContent-Length: 4\r\n\r\noops",
            b"",
        ] {
            let folder = tempfile::tempdir().unwrap();
            let socket = folder.path().join("s");
            let listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
            let server = std::thread::spawn(move || {
                let (mut stream, _) = listener.accept().unwrap();
                let _read = stream.read(&mut [0; 4096]).unwrap();
                stream.write_all(answer).unwrap();
            });
            let line = Daemon::at(Some(socket)).unwrap().list().unwrap_err().line().unwrap();
            assert!(line.contains("no proper answer"), "{line}");
            server.join().unwrap();
        }
    }
}
