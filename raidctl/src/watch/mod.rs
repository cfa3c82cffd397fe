//! `watch`: what goes on, live. On a terminal a full-screen view with keys; else the text of `status`, again and again.
//!
//! What is asked (`look`), what is kept of it (`record`), what the keys have chosen (`view`) and what is drawn (`draw`, `panel`,
//! `table`, `theme`) are apart: only `inputs` and `screen` know that there are threads, signals and a terminal.
//!
//! Invariants:
//! - The terminal is as it was before when raidctl ends: by a key, SIGINT, SIGTERM, SIGHUP, an error or a panic (`screen`).
//! - A daemon that does not answer, or is gone, holds nothing up: keys are heeded, what was seen last is shown with its age, and
//!   raidd is asked until it is back.
//! - Where stdout is no terminal there is nothing but the text of each turn.

mod draw;
mod inputs;
mod look;
mod panel;
mod record;
mod screen;
mod table;
#[cfg(test)]
mod tests;
mod theme;
mod view;

use std::io::{self, IsTerminal};
use std::time::{Duration, Instant};

use self::inputs::{Input, Inputs, Signals};
use self::look::look;
use self::record::Record;
use self::screen::Screen;
use self::theme::Theme;
use self::view::{Turn, View};
use crate::failure::{Failure, failed};
use crate::quantity::now_unix_seconds;
use crate::request::Daemon;

/// The picture is drawn anew after that, whatever happens: clocks go on.
const TICK: Duration = Duration::from_secs(1);

/// Whether somebody sits before it who sees what is shown, and has keys.
pub fn is_for_people() -> bool {
    io::stdout().is_terminal() && io::stdin().is_terminal()
}

/// Shows what `picture` says, every `interval`, so many times if that is named, with `between` them.
pub fn as_text(
    picture: &dyn Fn() -> Result<String, Failure>,
    between: &str,
    interval: Duration,
    count: Option<u64>,
) -> Result<(), Failure> {
    for turn in 0..count.unwrap_or(u64::MAX) {
        if turn > 0 {
            std::thread::sleep(interval);
        }
        let gap = if turn > 0 { between } else { "" };
        crate::output(format!("{gap}{}", picture()?).as_bytes())?;
    }
    Ok(())
}

/// Shows an array, or all, on the terminal, until somebody has had enough or so many looks were taken.
pub fn on_screen(
    daemon: &Daemon,
    name: Option<String>,
    interval: Duration,
    count: Option<u64>,
) -> Result<(), Failure> {
    let broken = |error: io::Error| failed(format_args!("the terminal cannot be used: {error}: try | cat"));
    let mut view = View::new(name.is_some());
    let mut record = Record::new(interval);
    // An error before the first picture is a line like any other.
    record.note(look(daemon, name.as_deref())?, Instant::now());

    // From here on signals wait: first for the terminal to be taken, then for whoever gives it back.
    let signals = Signals::hold().map_err(broken)?;
    let mut screen = Screen::take().map_err(broken)?;
    let asked = daemon.clone();
    let inputs = Inputs::start(signals, interval, move || look(&asked, name.as_deref())).map_err(broken)?;
    let theme = Theme::of_environment();
    let mut looks = 1;
    loop {
        screen
            .draw(|frame| draw::picture(frame, &record, &mut view, theme, Instant::now(), now_unix_seconds()))
            .map_err(broken)?;
        if count == Some(looks) {
            return Ok(());
        }
        match inputs.next_within(TICK) {
            None | Some(Input::Resized) => {}
            Some(Input::Seen(seen)) => {
                looks += 1;
                match *seen {
                    Ok(look) => record.note(look, Instant::now()),
                    Err(why) => record.miss(why),
                }
            }
            Some(Input::Key(key)) => match view.key(key, &record.names()) {
                Turn::Stay => {}
                Turn::Repaint => screen.repaint().map_err(broken)?,
                Turn::Leave => return Ok(()),
            },
            Some(Input::Signal) => return Ok(()),
            Some(Input::Lost(why)) => return Err(failed(why)),
        }
    }
}
