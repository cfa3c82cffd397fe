//! The terminal, while it is ours: raw, on the alternate screen, without a cursor.
//!
//! Invariants:
//! - It is given back once, whatever ends the view: by the value's end, or in a panic before that is told, so that it can be read.
//! - After that nothing is drawn.

use std::io::{self, Stdout, Write};
use std::sync::atomic::{AtomicBool, Ordering};

use ratatui::backend::CrosstermBackend;
use ratatui::crossterm::terminal::{self, EnterAlternateScreen, LeaveAlternateScreen};
use ratatui::crossterm::{QueueableCommand, cursor};
use ratatui::layout::Rect;
use ratatui::{Frame, Terminal, TerminalOptions, Viewport};

/// A terminal that does not say how large it is.
const UNKNOWN_SIZE: Rect = Rect { x: 0, y: 0, width: 80, height: 24 };

/// Whether the terminal is ours; there is one for the whole process.
static TAKEN: AtomicBool = AtomicBool::new(false);

/// The terminal.
pub struct Screen {
    terminal: Terminal<CrosstermBackend<Stdout>>,
    area: Rect,
}

impl Screen {
    /// Takes it.
    pub fn take() -> io::Result<Screen> {
        let area = area()?;
        // Fixed: a viewport that follows the terminal would be empty where that does not say how large it is.
        let options = TerminalOptions { viewport: Viewport::Fixed(area) };
        let terminal = Terminal::with_options(CrosstermBackend::new(io::stdout()), options)?;
        let told = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            give_back();
            told(panic);
        }));
        let screen = Screen { terminal, area };
        TAKEN.store(true, Ordering::Relaxed);
        terminal::enable_raw_mode()?;
        io::stdout().queue(EnterAlternateScreen)?.queue(cursor::Hide)?.flush()?;
        Ok(screen)
    }

    /// Draws a picture of the terminal's size.
    pub fn draw(&mut self, picture: impl FnOnce(&mut Frame<'_>)) -> io::Result<()> {
        if !TAKEN.load(Ordering::Relaxed) {
            return Ok(());
        }
        let area = area()?;
        if area != self.area {
            self.area = area;
            self.terminal.resize(area)?;
        }
        self.terminal.draw(picture).map(drop)
    }

    /// Has the next picture drawn whole: something else may have written over the last one.
    pub fn repaint(&mut self) -> io::Result<()> {
        self.terminal.clear()
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        give_back();
    }
}

fn area() -> io::Result<Rect> {
    Ok(match terminal::size()? {
        (0, _) | (_, 0) => UNKNOWN_SIZE,
        (width, height) => Rect::new(0, 0, width, height),
    })
}

fn give_back() {
    if !TAKEN.swap(false, Ordering::Relaxed) {
        return;
    }
    let mut out = io::stdout();
    let left = out.queue(LeaveAlternateScreen).and_then(|out| out.queue(cursor::Show)).map(|_| ());
    // Nobody is left to tell.
    let _shown = left.and_then(|()| out.flush());
    let _restored = terminal::disable_raw_mode();
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    /// What the test below runs on a terminal.
    #[test]
    #[ignore = "takes the terminal and ends in a panic"]
    fn a_panic_on_a_terminal() {
        let mut screen = Screen::take().unwrap();
        screen.draw(|_| {}).unwrap();
        panic!("for this reason");
    }

    #[test]
    fn a_panic_is_read_on_the_terminal_as_it_was() {
        let own = std::env::current_exe().unwrap();
        let test = "watch::screen::tests::a_panic_on_a_terminal";
        let line = format!("{} --ignored --exact --nocapture {test}; stty -a", own.display());
        let ran = Command::new("script").args(["-qec", &line, "/dev/null"]).stdin(Stdio::null()).output();
        let Ok(ran) = ran else {
            println!("SKIPPED: script is not here");
            return;
        };
        let shown = String::from_utf8_lossy(&ran.stdout);
        let place = |text| shown.find(text).unwrap_or_else(|| panic!("no {text:?}: {shown}"));
        let (entered, left) = (place("\x1b[?1049h"), place("\x1b[?1049l"));
        assert!(entered < left && left < place("for this reason"), "{shown}");
        assert!(shown[left..].contains(" icanon") && shown[left..].contains(" echo "), "{shown}");
        assert_eq!(shown.matches("\x1b[?1049l").count(), 1, "it is given back once: {shown}");
    }
}
