//! A live view of an array, or of all: what `status` shows, again and again.
//!
//! Invariants:
//! - On a terminal the view is on the alternate screen, cut to its size, and the terminal is as it was before when raidctl
//!   ends: by `q`, Ctrl-C, SIGTERM, SIGHUP or an error.
//! - Where stdout is no terminal there is nothing but the text of each turn.

use std::io::{self, IsTerminal, Write};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use crossterm::terminal::{self, Clear, ClearType, EnterAlternateScreen, LeaveAlternateScreen};
use crossterm::{QueueableCommand, cursor};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use crate::failure::{Failure, failed};

const CTRL_C: u8 = 3;
/// Columns and rows of a terminal that does not say.
const UNKNOWN_SIZE: (u16, u16) = (80, 24);

/// Shows what `picture` says, every `interval`, so many times if that is named; off a terminal with `between` them.
pub fn run(
    picture: &dyn Fn() -> Result<String, Failure>,
    between: &str,
    interval: Duration,
    count: Option<u64>,
) -> Result<(), Failure> {
    if io::stdout().is_terminal() && io::stdin().is_terminal() {
        return on_terminal(picture, interval, count);
    }
    for turn in 0..count.unwrap_or(u64::MAX) {
        if turn > 0 {
            std::thread::sleep(interval);
        }
        let gap = if turn > 0 { between } else { "" };
        crate::output(format!("{gap}{}", picture()?).as_bytes())?;
    }
    Ok(())
}

fn on_terminal(
    picture: &dyn Fn() -> Result<String, Failure>,
    interval: Duration,
    count: Option<u64>,
) -> Result<(), Failure> {
    let broken = |error: io::Error| failed(format_args!("the terminal cannot be used: {error}: try | cat"));
    let mut keys = Keys::new().map_err(broken)?;
    // An error before the first picture is a line like any other.
    let mut text = picture()?;
    let screen = Screen::take().map_err(broken)?;
    for turn in 1.. {
        screen.show(&text).map_err(broken)?;
        if count == Some(turn) || keys.quit_within(interval).map_err(broken)? {
            return Ok(());
        }
        // raidd may come back.
        text = picture().unwrap_or_else(|failure| failure.line().unwrap_or_default() + "\n");
    }
    Ok(())
}

/// The alternate screen; the terminal is given back with the value.
struct Screen;

impl Screen {
    fn take() -> io::Result<Screen> {
        terminal::enable_raw_mode()?;
        let screen = Screen;
        io::stdout().queue(EnterAlternateScreen)?.queue(cursor::Hide)?.flush()?;
        Ok(screen)
    }

    fn show(&self, text: &str) -> io::Result<()> {
        let (columns, rows) = match terminal::size()? {
            (0, _) | (_, 0) => UNKNOWN_SIZE,
            size => size,
        };
        let mut out = io::stdout().lock();
        for (row, line) in cut(text, columns, rows).iter().enumerate() {
            out.queue(cursor::MoveTo(0, row as u16))?;
            out.write_all(line.as_bytes())?;
            out.queue(Clear(ClearType::UntilNewLine))?;
        }
        out.queue(Clear(ClearType::FromCursorDown))?;
        out.flush()
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        let mut out = io::stdout();
        let left = out.queue(LeaveAlternateScreen).and_then(|out| out.queue(cursor::Show)).map(|_| ());
        // Nobody is left to tell.
        let _restored = left.and_then(|()| out.flush()).and_then(|()| terminal::disable_raw_mode());
    }
}

/// The lines that fit, and a last one that says how to leave.
fn cut(text: &str, columns: u16, rows: u16) -> Vec<String> {
    let room = usize::from(rows.max(2)) - 1;
    let lines: Vec<&str> = text.lines().collect();
    let mut shown: Vec<&str> = lines.iter().copied().take(room).collect();
    if lines.len() > room {
        shown[room - 1] = "...";
    }
    shown.push("q: quit");
    shown.into_iter().map(|line| line.chars().take(usize::from(columns)).collect()).collect()
}

/// What ends the view.
struct Keys {
    signals: SignalFd,
}

impl Keys {
    fn new() -> io::Result<Keys> {
        let mut signals = SigSet::empty();
        for signal in [Signal::SIGTERM, Signal::SIGHUP, Signal::SIGINT] {
            signals.add(signal);
        }
        signals.thread_block()?;
        Ok(Keys { signals: SignalFd::with_flags(&signals, SfdFlags::SFD_CLOEXEC)? })
    }

    /// Waits so long for somebody to want to leave.
    fn quit_within(&mut self, time: Duration) -> io::Result<bool> {
        let until = Instant::now() + time;
        let stdin = io::stdin();
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
            let mut sources = [
                PollFd::new(stdin.as_fd(), PollFlags::POLLIN),
                PollFd::new(self.signals.as_fd(), PollFlags::POLLIN),
            ];
            let ready = poll(&mut sources, timeout)?;
            let [typed, signalled] = sources.map(|source| source.any().unwrap_or(false));
            if signalled {
                return Ok(true);
            }
            if typed {
                let mut key = [0];
                let len = nix::unistd::read(&stdin, &mut key)?;
                if len == 0 || [b'q', b'Q', CTRL_C].contains(&key[0]) {
                    return Ok(true);
                }
            }
            if ready == 0 {
                return Ok(false);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_picture_is_cut_to_the_terminal() {
        assert_eq!(cut("größe\nb\n", 3, 10), ["grö", "b", "q: "]);
        assert_eq!(cut("a\nb\nc\nd\n", 80, 4), ["a", "b", "...", "q: quit"]);
        assert_eq!(cut("a\nb\n", 80, 0), ["...", "q: quit"]);
    }

    #[test]
    fn a_script_gets_as_many_as_it_asked_for() {
        let turns = std::cell::Cell::new(0);
        let picture = || {
            turns.set(turns.get() + 1);
            Ok(String::new())
        };
        run(&picture, "", Duration::ZERO, Some(3)).unwrap();
        assert_eq!(turns.get(), 3);
    }
}
