//! What has happened to the arrays: kept for those who ask later, also after a restart, and told to those who listen.
//!
//! Arrays tell of events where they live, which must not wait for a disk; so a thread of its own writes them down, in
//! order, into `events.jsonl` in the state directory.
//!
//! Invariants:
//! - At most [`EVENTS_MAX`] are kept; the file is written anew when it has twice as many.
//! - A listener gets every event after those that it was given, or is told that it was too slow.
//! - A file that cannot be read or written is said in the log, and stops nothing.

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{SystemTime, UNIX_EPOCH};

use tokio::sync::broadcast;

use crate::api::Event;
use crate::engine::{self, SyncAction};

/// Events that are kept.
const EVENTS_MAX: usize = 1000;
/// Events that a listener may be behind.
const BEHIND_MAX: usize = 256;

#[derive(Default)]
struct Kept {
    events: VecDeque<Event>,
    /// None: no more will come.
    listeners: Option<broadcast::Sender<Event>>,
}

/// The log of all arrays.
pub struct EventLog {
    kept: Arc<Mutex<Kept>>,
    news: Sender<Option<Event>>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

/// Tells the log; for any thread, and never waits.
#[derive(Clone)]
pub struct Teller(Sender<Option<Event>>);

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl EventLog {
    /// Reads what was kept in a state directory, and goes on from there. An error is one line.
    pub fn open(state_dir: &Path) -> Result<EventLog, String> {
        let path = state_dir.join("events.jsonl");
        let events = read(&path).unwrap_or_else(|error| {
            tracing::error!(path = %path.display(), %error, "what has happened before cannot be read");
            VecDeque::new()
        });
        let next = events.back().map_or(1, |event| event.id + 1);
        let kept = Kept { events, listeners: Some(broadcast::channel(BEHIND_MAX).0) };
        let kept = Arc::new(Mutex::new(kept));
        let (news, told) = channel();
        let writer = Writer { path, kept: kept.clone(), file: None, lines: usize::MAX, next };
        let thread = std::thread::Builder::new().name("events".into()).spawn(move || writer.run(&told));
        let thread = thread.map_err(|error| format!("cannot start a thread: {error}; see the limits"))?;
        Ok(EventLog { kept, news, thread: Mutex::new(Some(thread)) })
    }

    /// For whoever has something to tell.
    pub fn teller(&self) -> Teller {
        Teller(self.news.clone())
    }

    /// What is kept, and what comes after.
    pub fn subscribe(&self) -> (Vec<Event>, Option<broadcast::Receiver<Event>>) {
        let kept = lock(&self.kept);
        let live = kept.listeners.as_ref().map(broadcast::Sender::subscribe);
        (kept.events.iter().cloned().collect(), live)
    }

    /// Writes down what was told, and lets the listeners go.
    pub fn close(&self) {
        let told = self.news.send(None).is_ok();
        if let Some(thread) = lock(&self.thread).take().filter(|_| told)
            && thread.join().is_err()
        {
            tracing::error!("the event log ended badly");
        }
    }
}

impl Teller {
    /// Something happened to an array, or to a member of it.
    pub fn tell(&self, array: &str, event: &str, device: Option<String>) {
        self.send(Event { event: event.to_owned(), array: array.to_owned(), device, ..Event::default() });
    }

    /// The engine's news of an array.
    pub fn tell_engine(&self, array: &str, news: engine::Event) {
        let rebuild = |event: String, action: SyncAction, mismatches| {
            let action = match action {
                SyncAction::Resync => "resync",
                SyncAction::Recovery => "recovery",
                SyncAction::Check => "check",
                SyncAction::Repair => "repair",
            };
            let (array, action) = (array.to_owned(), Some(action.to_owned()));
            self.send(Event { event, array, action, mismatches, ..Event::default() });
        };
        match news {
            engine::Event::Fail { member } => self.tell(array, "Fail", Some(member)),
            engine::Event::FailSpare { member } => self.tell(array, "FailSpare", Some(member)),
            engine::Event::SpareActive { member } => self.tell(array, "SpareActive", Some(member)),
            engine::Event::SyncStarted(action) => rebuild("RebuildStarted".into(), action, None),
            engine::Event::SyncProgress(action, percent) => {
                rebuild(format!("Rebuild{percent}"), action, None);
            }
            engine::Event::SyncFinished { action, mismatched_sectors } => {
                let looked = matches!(action, SyncAction::Check | SyncAction::Repair);
                rebuild("RebuildFinished".into(), action, looked.then_some(mismatched_sectors));
            }
        }
    }

    fn send(&self, event: Event) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let unix_ms = u64::try_from(now.as_millis()).unwrap_or(u64::MAX);
        // Nobody listens any more when the daemon is ending.
        let _told = self.0.send(Some(Event { unix_ms, ..event })).is_ok();
    }
}

/// What is in the file; lines that make no sense, as a crash may leave them, are passed over.
fn read(path: &Path) -> io::Result<VecDeque<Event>> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(VecDeque::new()),
        Err(error) => return Err(error),
    };
    let mut events = VecDeque::new();
    for line in BufReader::new(file).split(b'\n') {
        if let Ok(event) = serde_json::from_slice(&line?) {
            if events.len() == EVENTS_MAX {
                events.pop_front();
            }
            events.push_back(event);
        }
    }
    Ok(events)
}

struct Writer {
    path: PathBuf,
    kept: Arc<Mutex<Kept>>,
    file: Option<File>,
    /// Lines in the file; more than it may have: it is to be written anew.
    lines: usize,
    next: u64,
}

impl Writer {
    fn run(mut self, told: &Receiver<Option<Event>>) {
        while let Ok(Some(event)) = told.recv() {
            let event = Event { id: self.next, ..event };
            self.next += 1;
            {
                let mut kept = lock(&self.kept);
                if kept.events.len() == EVENTS_MAX {
                    kept.events.pop_front();
                }
                kept.events.push_back(event.clone());
                // An error says that nobody listens at the moment.
                let _heard = kept.listeners.as_ref().is_some_and(|all| all.send(event.clone()).is_ok());
            }
            if let Err(error) = self.write(&event) {
                tracing::error!(path = %self.path.display(), %error, "an event cannot be written down");
                self.file = None;
            }
        }
        lock(&self.kept).listeners = None;
    }

    fn write(&mut self, event: &Event) -> io::Result<()> {
        match &mut self.file {
            Some(file) if self.lines < 2 * EVENTS_MAX => {
                file.write_all(&line(event)?)?;
                self.lines += 1;
            }
            _ => self.rewrite()?,
        }
        Ok(())
    }

    fn rewrite(&mut self) -> io::Result<()> {
        let events = lock(&self.kept).events.clone();
        let beside = self.path.with_extension("jsonl.new");
        let mut file =
            OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(&beside)?;
        let mut text = Vec::new();
        for event in &events {
            text.extend(line(event)?);
        }
        file.write_all(&text)?;
        std::fs::rename(&beside, &self.path)?;
        self.lines = events.len();
        self.file = Some(file);
        Ok(())
    }
}

fn line(event: &Event) -> io::Result<Vec<u8>> {
    let mut line = serde_json::to_vec(event)?;
    line.push(b'\n');
    Ok(line)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_told_is_there_after_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        let log = EventLog::open(folder.path()).unwrap();
        let (_, live) = log.subscribe();
        log.teller().tell("vol0", "NewArray", None);
        for _ in 0..2 * EVENTS_MAX {
            log.teller().tell("vol0", "Fail", Some("/a".into()));
        }
        log.close();
        let mut live = live.unwrap();
        assert!(matches!(live.try_recv(), Err(broadcast::error::TryRecvError::Lagged(_))), "it was too slow");
        assert!(log.subscribe().1.is_none());

        // A line that was cut off by a crash.
        let path = folder.path().join("events.jsonl");
        let mut file = OpenOptions::new().append(true).open(&path).unwrap();
        file.write_all(b"{\"id\":").unwrap();
        let log = EventLog::open(folder.path()).unwrap();
        log.teller().tell("vol0", "SpareActive", None);
        log.close();
        let log = EventLog::open(folder.path()).unwrap();
        let (past, _) = log.subscribe();
        assert_eq!(past.len(), EVENTS_MAX);
        let last = past.last().unwrap();
        assert_eq!((last.event.as_str(), last.id), ("SpareActive", 2 * EVENTS_MAX as u64 + 2));
        assert!(
            std::fs::read(&path).unwrap().iter().filter(|&&byte| byte == b'\n').count() <= 2 * EVENTS_MAX
        );
        log.close();
    }
}
