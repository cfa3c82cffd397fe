//! What the view waits for: keys, signals, and what the daemon answers. A thread waits for each; all of them tell one channel.
//!
//! Invariants:
//! - SIGINT, SIGTERM and SIGHUP are held in every thread, and taken by one of them: nothing runs in a signal handler.
//! - A thread that ends says so: the view never waits for one that is gone.

use std::io;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::Duration;

use nix::sys::signal::{SigSet, Signal};
use ratatui::crossterm::event::{self, Event, KeyEvent, KeyEventKind};

use super::look::Look;
use crate::failure::Failure;

/// Something to react to.
pub enum Input {
    /// What was seen; or a line on why nothing was.
    Seen(Box<Result<Look, String>>),
    /// A key was pressed.
    Key(KeyEvent),
    /// The terminal has another size.
    Resized,
    /// Somebody wants raidctl to end.
    Signal,
    /// There will be no more of something; a line on why.
    Lost(String),
}

/// Signals that are held back.
pub struct Signals(SigSet);

impl Signals {
    /// Holds them back, in this thread and those that it will start.
    pub fn hold() -> io::Result<Signals> {
        let mut signals = SigSet::empty();
        for signal in [Signal::SIGTERM, Signal::SIGHUP, Signal::SIGINT] {
            signals.add(signal);
        }
        signals.thread_block()?;
        Ok(Signals(signals))
    }
}

/// Where all of it arrives.
pub struct Inputs(Receiver<Input>);

impl Inputs {
    /// Begins to wait for all of it; `look` is called every `interval`.
    pub fn start(
        signals: Signals,
        interval: Duration,
        look: impl Fn() -> Result<Look, Failure> + Send + 'static,
    ) -> io::Result<Inputs> {
        let (sender, receiver) = channel();
        begin("signals", &sender, move |_| match signals.0.wait() {
            Ok(_) => Input::Signal,
            Err(errno) => Input::Lost(format!("signals cannot be waited for: {}: try | cat", errno.desc())),
        })?;
        begin("keys", &sender, |tell| {
            loop {
                match event::read() {
                    Ok(Event::Key(key)) if key.kind != KeyEventKind::Release => tell(Input::Key(key)),
                    Ok(Event::Resize(..)) => tell(Input::Resized),
                    Ok(_) => {}
                    Err(error) => return Input::Lost(format!("keys cannot be read: {error}: try | cat")),
                }
            }
        })?;
        begin("looks", &sender, move |tell| {
            loop {
                thread::sleep(interval);
                let seen = look().map_err(|failure| failure.line().unwrap_or_default());
                tell(Input::Seen(Box::new(seen)));
            }
        })?;
        Ok(Inputs(receiver))
    }

    /// The next; none: nothing has happened for so long.
    pub fn next_within(&self, time: Duration) -> Option<Input> {
        match self.0.recv_timeout(time) {
            Ok(input) => Some(input),
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => Some(Input::Lost(BUG.to_owned())),
        }
    }
}

const BUG: &str = "a part of raidctl has ended early, see above: please report it";

/// Starts a thread that tells what it waits for, and at last why it ended.
fn begin(
    name: &str,
    sender: &Sender<Input>,
    work: impl FnOnce(&dyn Fn(Input)) -> Input + Send + 'static,
) -> io::Result<()> {
    let farewell = Farewell { sender: sender.clone(), last: None };
    let work = move || {
        let mut farewell = farewell;
        let sender = farewell.sender.clone();
        farewell.last = Some(work(&|input| {
            // The view has ended, and with it the process in a moment.
            let _told = sender.send(input);
        }));
    };
    thread::Builder::new().name(name.to_owned()).spawn(work).map(drop)
}

/// Tells what a thread has ended with, also if that was a panic.
struct Farewell {
    sender: Sender<Input>,
    last: Option<Input>,
}

impl Drop for Farewell {
    fn drop(&mut self) {
        let last = self.last.take().unwrap_or_else(|| Input::Lost(BUG.to_owned()));
        let _told = self.sender.send(last);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_that_ends_says_so() {
        let (sender, receiver) = channel();
        begin("well", &sender, |tell| {
            tell(Input::Resized);
            Input::Signal
        })
        .unwrap();
        assert!(matches!(receiver.recv().unwrap(), Input::Resized));
        assert!(matches!(receiver.recv().unwrap(), Input::Signal));
        begin("ill", &sender, |_| panic!("a panic that this test wants")).unwrap();
        assert!(matches!(receiver.recv().unwrap(), Input::Lost(why) if why.contains("please report it")));
    }
}
