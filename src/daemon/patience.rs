//! Asking devices that may never answer. Whoever opens, stats or reads a device that hangs waits for ever, and cannot be
//! interrupted; so each is asked on a thread of its own, which is left to itself after a while.
//!
//! Invariant: a device of which an answer is overdue is not asked again before that has come, so that looking for devices
//! every half second piles up no threads.

use std::collections::BTreeSet;
use std::fmt::{Display, Formatter};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use std::{fmt, thread};

/// How long an answer is waited for: as long as members have for an operation, which lets most disks spin up.
const PATIENCE: Duration = Duration::from_secs(10);

/// Devices that owe an answer.
static OVERDUE: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());

fn overdue() -> MutexGuard<'static, BTreeSet<PathBuf>> {
    OVERDUE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A device has not answered in time.
#[derive(Debug, PartialEq, Eq)]
pub struct Silent(PathBuf);

impl Display for Silent {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "{} does not answer: check the disk and its cables, or leave it out", self.0.display())
    }
}

/// Asks the device at `path`, and waits for the answer ten seconds and `more` at most. This blocks.
pub fn ask<T: Send + 'static>(
    path: &Path,
    more: Duration,
    question: impl FnOnce(&Path) -> T + Send + 'static,
) -> Result<T, Silent> {
    ask_for(path, PATIENCE + more, question)
}

fn ask_for<T: Send + 'static>(
    path: &Path,
    patience: Duration,
    question: impl FnOnce(&Path) -> T + Send + 'static,
) -> Result<T, Silent> {
    let silent = || Silent(path.to_owned());
    if overdue().contains(path) {
        return Err(silent());
    }
    let (answer, answered) = std::sync::mpsc::sync_channel(1);
    let path_there: Arc<Path> = path.into();
    let asked = thread::Builder::new().name("device".into()).spawn(move || {
        let said = question(&path_there);
        let unheard = {
            let mut overdue = overdue();
            overdue.remove(&*path_there);
            answer.send(said)
        };
        // Where nobody waits any more, what was opened is closed, which may take its time, too.
        drop(unheard);
    });
    if asked.is_err() {
        return Err(silent());
    }
    if let Ok(said) = answered.recv_timeout(patience) {
        return Ok(said);
    }
    let mut overdue = overdue();
    // It may have come just now.
    if let Ok(said) = answered.try_recv() {
        return Ok(said);
    }
    tracing::warn!(device = %path.display(), "does not answer");
    overdue.insert(path.to_owned());
    Err(silent())
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;

    #[test]
    fn who_answers_is_heard() {
        assert_eq!(ask(Path::new("/dev/quick"), Duration::ZERO, |path| path.as_os_str().len()), Ok(10));
    }

    #[test]
    fn who_owes_an_answer_is_not_asked_again_until_it_has_come() {
        let path = Path::new("/dev/slow");
        let (wake, sleeper) = channel::<()>();
        let late = ask_for(path, Duration::from_millis(50), move |_| sleeper.recv().ok());
        assert_eq!(late, Err(Silent(path.into())));
        assert_eq!(
            ask(path, Duration::ZERO, |_| panic!("it was asked again")),
            Err::<(), _>(Silent(path.into()))
        );
        wake.send(()).unwrap();
        while ask(path, Duration::ZERO, |_| ()).is_err() {
            thread::sleep(Duration::from_millis(1));
        }
    }
}
