//! `events --program`: somebody is told. The program gets what `mdadm --monitor` would give it: the event, the array, and for some
//! events the member.
//!
//! It is raidctl that runs it, not raidd: what moves data starts no mail program.
//!
//! Invariants:
//! - One run at a time, in the order of the events; one that fails is said, and the next goes on.
//! - No event is told twice, and none is left out that raidd still has: also not over restarts of raidd or, with a file that
//!   remembers the last one, of raidctl. It is remembered after its run: a run that was cut off is done again.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use raidd::api::Event;

use crate::complain;
use crate::failure::{Failure, failed};
use crate::request::Daemon;

/// How long a raidd that is not there is left alone.
const AWAY: Duration = Duration::from_secs(1);

/// Tells `program` of every event from now on; with `seen`, a file, of every event since the last one that is in there.
pub fn run(
    daemon: &dyn Fn() -> Result<Daemon, Failure>,
    program: &Path,
    seen: Option<PathBuf>,
) -> Result<(), Failure> {
    let mut alert = Alert { program, last: read(seen.as_deref())?, seen, previous: None, is_away: false };
    loop {
        match alert.follow(daemon) {
            Ok(()) => {}
            // Whoever reads over these lines sees when it was away, not how often that was noticed.
            Err(_) if alert.is_away => {}
            Err(failure) => {
                alert.is_away = true;
                complain(&failure.line().unwrap_or_default());
            }
        }
        std::thread::sleep(AWAY);
    }
}

struct Alert<'a> {
    program: &'a Path,
    seen: Option<PathBuf>,
    /// The last event that was told. None: whatever has happened before now is nobody's news.
    last: Option<u64>,
    /// The last event on this connection.
    previous: Option<u64>,
    is_away: bool,
}

impl Alert<'_> {
    /// Until the connection ends.
    fn follow(&mut self, daemon: &dyn Fn() -> Result<Daemon, Failure>) -> Result<(), Failure> {
        let daemon = daemon()?;
        let mut newest = 0;
        daemon.events(false, &mut |event| {
            newest = event.id;
            Ok(())
        })?;
        self.begin(newest)?;
        self.is_away = false;
        self.previous = None;
        daemon.events(true, &mut |event| self.take(event))
    }

    /// Where the log stands. One that is behind what was told is another log: all of it is news.
    fn begin(&mut self, newest: u64) -> Result<(), Failure> {
        let last = match self.last {
            None => newest,
            Some(last) if newest < last => 0,
            Some(last) => last,
        };
        self.remember(last)
    }

    fn take(&mut self, event: &Event) -> Result<(), Failure> {
        // It was too slow for raidd, which keeps more than it sends: the next connection begins with all of it.
        if self.previous.replace(event.id).is_some_and(|previous| event.id != previous + 1) {
            self.is_away = true;
            return Err(Failure::Said);
        }
        if self.last.is_some_and(|last| event.id <= last) {
            return Ok(());
        }
        self.tell(event);
        self.remember(event.id)
    }

    fn tell(&self, event: &Event) {
        let mut command = Command::new(self.program);
        command.args([&event.event, &event.array]).args(&event.device).stdin(Stdio::null());
        match command.status() {
            Ok(status) if status.success() => {}
            Ok(status) => complain(&format!("{} {}: {status}", self.program.display(), event.event)),
            Err(error) => complain(&format!("{} cannot be run: {error}", self.program.display())),
        }
    }

    fn remember(&mut self, last: u64) -> Result<(), Failure> {
        if self.last.replace(last) == Some(last) {
            return Ok(());
        }
        let Some(path) = &self.seen else { return Ok(()) };
        let written = || -> io::Result<()> {
            let beside = path.with_extension("new");
            let mut file = fs::File::create(&beside)?;
            writeln!(file, "{last}")?;
            // A power cut must not leave an empty file: alerts would end with it.
            file.sync_all()?;
            fs::rename(&beside, path)
        };
        written().map_err(|error| {
            failed(format_args!("{}: {error}: name a file that can be written with --seen", path.display()))
        })
    }
}

/// The event that a file remembers; none where there is no file yet.
fn read(path: Option<&Path>) -> Result<Option<u64>, Failure> {
    let Some(path) = path else { return Ok(None) };
    let wrong = |why: &dyn std::fmt::Display| {
        failed(format_args!("{}: {why}: name the file of an earlier --seen, or a new one", path.display()))
    };
    match fs::read_to_string(path) {
        Ok(text) => match text.trim().parse() {
            Ok(last) => Ok(Some(last)),
            Err(_) => Err(wrong(&"it does not hold the number of an event")),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(wrong(&error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(id: u64) -> Event {
        Event {
            id,
            event: "Fail".into(),
            array: format!("vol{id}"),
            device: Some("/dev/x".into()),
            ..Event::default()
        }
    }

    #[test]
    fn every_event_is_told_once() {
        let folder = tempfile::tempdir().unwrap();
        let (program, told) = (folder.path().join("program"), folder.path().join("told"));
        fs::write(&program, format!("#!/bin/sh\necho \"$@\" >> {}\nexit 3\n", told.display())).unwrap();
        fs::set_permissions(&program, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        let seen = folder.path().join("seen");
        let start = || Alert {
            program: &program,
            last: read(Some(&seen)).unwrap(),
            seen: Some(seen.clone()),
            previous: None,
            is_away: false,
        };
        let mut alert = start();
        alert.begin(2).unwrap();
        (1..=4).for_each(|id| alert.take(&event(id)).unwrap());
        // Something is missing: what raidd has is asked for again.
        assert!(alert.take(&event(6)).is_err());
        drop(alert);
        let mut alert = start();
        alert.begin(6).unwrap();
        (1..=6).for_each(|id| alert.take(&event(id)).unwrap());
        let lines = |ids: &[u64]| ids.iter().map(|id| format!("Fail vol{id} /dev/x\n")).collect::<String>();
        assert_eq!(fs::read_to_string(&told).unwrap(), lines(&[3, 4, 5, 6]));
        // Another state directory, another log.
        let mut alert = start();
        alert.begin(1).unwrap();
        alert.take(&event(1)).unwrap();
        assert_eq!(fs::read_to_string(&told).unwrap(), lines(&[3, 4, 5, 6, 1]));
        assert_eq!(read(Some(&seen)).unwrap(), Some(1));

        fs::write(&seen, "yesterday\n").unwrap();
        assert!(read(Some(&seen)).unwrap_err().line().unwrap().contains("number of an event"));
    }
}
