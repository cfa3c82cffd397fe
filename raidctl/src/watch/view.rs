//! What the keys have chosen: the page, the array, and how far it is scrolled.
//!
//! Invariants:
//! - An array stays chosen while others come and go, and when it is back after it was away (raidd was started anew). Meanwhile the
//!   one in its place is marked in the list, and becomes the chosen one with the next key.
//! - Nothing is scrolled further than there is something to see: [`View::scrolled`] sees to that when it is drawn.

use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};

/// What is on the screen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Page {
    /// All arrays, and below them the one that is chosen.
    All,
    /// The one that is chosen.
    One,
}

/// What a key leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// The view goes on.
    Stay,
    /// It goes on, with the whole picture drawn anew.
    Repaint,
    /// It ends.
    Leave,
}

/// What has been chosen.
#[derive(Debug)]
pub struct View {
    page: Page,
    /// The only array was named on the command line: there is but one page.
    alone: bool,
    has_help: bool,
    chosen: usize,
    chosen_name: Option<String>,
    top: usize,
    /// Lines that the last picture had for what is scrolled.
    room: usize,
}

impl View {
    /// The first view, of an array that was named (`alone`) or of all.
    pub fn new(alone: bool) -> View {
        let page = if alone { Page::One } else { Page::All };
        View { page, alone, has_help: false, chosen: 0, chosen_name: None, top: 0, room: 1 }
    }

    /// The page.
    pub fn page(&self) -> Page {
        self.page
    }

    /// Whether there are two pages to change between.
    pub fn has_pages(&self) -> bool {
        !self.alone
    }

    /// Whether all keys are explained.
    pub fn has_help(&self) -> bool {
        self.has_help
    }

    /// The chosen array, where it is none of these.
    pub fn missing(&self, names: &[&str]) -> Option<&str> {
        self.chosen_name.as_deref().filter(|chosen| !names.contains(chosen))
    }

    /// Which of these arrays is chosen, or in its place; 0 where there are none.
    pub fn chosen(&mut self, names: &[&str]) -> usize {
        let same =
            self.chosen_name.as_deref().and_then(|chosen| names.iter().position(|name| *name == chosen));
        self.chosen = same.unwrap_or(self.chosen).min(names.len().saturating_sub(1));
        if self.chosen_name.is_none() {
            self.choose(self.chosen, names);
        }
        self.chosen
    }

    fn choose(&mut self, index: usize, names: &[&str]) {
        self.chosen = index.min(names.len().saturating_sub(1));
        if let Some(name) = names.get(self.chosen) {
            self.chosen_name = Some((*name).to_owned());
        }
    }

    /// The first line to show, of so many, in so much room.
    pub fn scrolled(&mut self, lines: usize, room: usize) -> usize {
        self.room = room.max(1);
        self.top = self.top.min(lines.saturating_sub(room));
        self.top
    }

    /// The first array of the list to show, of so many, in so much room: the chosen one is seen.
    pub fn listed(&mut self, arrays: usize, room: usize) -> usize {
        self.room = room.max(1);
        let last_top = (self.chosen + 1).saturating_sub(self.room);
        self.top = self.top.clamp(last_top, self.chosen.max(last_top)).min(arrays.saturating_sub(self.room));
        self.top
    }

    /// A key was pressed.
    pub fn key(&mut self, key: KeyEvent, names: &[&str]) -> Turn {
        let control = key.modifiers.contains(KeyModifiers::CONTROL);
        match key.code {
            KeyCode::Char('c') if control => return Turn::Leave,
            KeyCode::Char('l') if control => return Turn::Repaint,
            KeyCode::Char('q' | 'Q') | KeyCode::Esc => return Turn::Leave,
            KeyCode::Enter | KeyCode::Tab if !self.alone => {
                if self.page == Page::All {
                    self.go(names, |at, _| at);
                }
                self.page = if self.page == Page::All { Page::One } else { Page::All };
                self.top = 0;
            }
            KeyCode::Char('?') => self.has_help = !self.has_help,
            KeyCode::Up | KeyCode::Char('k') => self.go(names, |at, _| at.saturating_sub(1)),
            KeyCode::Down | KeyCode::Char('j') => self.go(names, |at, _| at.saturating_add(1)),
            KeyCode::PageUp => self.go(names, usize::saturating_sub),
            KeyCode::PageDown | KeyCode::Char(' ') => self.go(names, usize::saturating_add),
            KeyCode::Home | KeyCode::Char('g') => self.go(names, |_, _| 0),
            KeyCode::End | KeyCode::Char('G') => self.go(names, |_, _| usize::MAX),
            _ => {}
        }
        Turn::Stay
    }

    /// To another array, or another line of one; `to` is told where that is, and how much is seen at once.
    fn go(&mut self, names: &[&str], to: impl Fn(usize, usize) -> usize) {
        match self.page {
            Page::All => {
                let from = self.chosen(names);
                self.choose(to(from, self.room), names);
            }
            Page::One => self.top = to(self.top, self.room),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn press(view: &mut View, code: KeyCode, names: &[&str]) -> Turn {
        view.key(KeyEvent::new(code, KeyModifiers::NONE), names)
    }

    #[test]
    fn keys_leave() {
        let mut view = View::new(false);
        for code in [KeyCode::Char('q'), KeyCode::Char('Q'), KeyCode::Esc] {
            assert_eq!(press(&mut view, code, &[]), Turn::Leave, "{code:?}");
        }
        let control = |letter| KeyEvent::new(KeyCode::Char(letter), KeyModifiers::CONTROL);
        assert_eq!(view.key(control('c'), &[]), Turn::Leave);
        assert_eq!(view.key(control('l'), &[]), Turn::Repaint);
        assert_eq!(press(&mut view, KeyCode::Char('c'), &[]), Turn::Stay);
    }

    #[test]
    fn an_array_is_chosen() {
        let names = ["a", "b", "c", "d", "e"];
        let mut view = View::new(false);
        assert_eq!(view.listed(5, 2), 0);
        for (code, chosen, top) in [
            (KeyCode::Up, 0, 0),
            (KeyCode::Down, 1, 0),
            (KeyCode::Char('j'), 2, 1),
            (KeyCode::Char('k'), 1, 1),
            (KeyCode::PageDown, 3, 2),
            (KeyCode::PageDown, 4, 3),
            (KeyCode::PageUp, 2, 2),
            (KeyCode::End, 4, 3),
            (KeyCode::Home, 0, 0),
            (KeyCode::Char('G'), 4, 3),
            (KeyCode::Char('g'), 0, 0),
        ] {
            assert_eq!(press(&mut view, code, &names), Turn::Stay);
            assert_eq!((view.chosen(&names), view.listed(5, 2)), (chosen, top), "{code:?}");
        }
        assert_eq!(view.listed(5, 10), 0, "all of them are seen");
        for code in [KeyCode::Down, KeyCode::PageUp, KeyCode::End, KeyCode::Enter] {
            press(&mut view, code, &[]);
            assert_eq!(view.chosen(&[]), 0);
        }
    }

    #[test]
    fn it_stays_chosen_while_others_come_and_go() {
        let mut view = View::new(false);
        press(&mut view, KeyCode::Down, &["a", "b", "c"]);
        assert_eq!(view.chosen(&["a", "aa", "b", "c"]), 2);
        assert_eq!((view.chosen(&["b", "c"]), view.missing(&["b", "c"])), (0, None));
        assert_eq!((view.chosen(&["c"]), view.missing(&["c"])), (0, Some("b")));
        assert_eq!(view.chosen(&["a", "b", "c"]), 1, "it is back");
        assert_eq!(view.chosen(&["a"]), 0);
        press(&mut view, KeyCode::Enter, &["a"]);
        assert_eq!(view.missing(&["a"]), None, "what is marked is meant");
    }

    #[test]
    fn one_array_is_scrolled() {
        let names = ["a", "b"];
        let mut view = View::new(false);
        assert_eq!((view.page(), press(&mut view, KeyCode::Enter, &names)), (Page::All, Turn::Stay));
        assert_eq!(view.page(), Page::One);
        for (code, top) in [
            (KeyCode::Up, 0),
            (KeyCode::Down, 1),
            (KeyCode::PageDown, 11),
            (KeyCode::End, 90),
            (KeyCode::Down, 90),
            (KeyCode::PageUp, 80),
            (KeyCode::Home, 0),
        ] {
            press(&mut view, code, &names);
            assert_eq!(view.scrolled(100, 10), top, "{code:?}");
        }
        press(&mut view, KeyCode::End, &names);
        assert_eq!(view.scrolled(12, 10), 2, "there is less of it now");
        assert_eq!(view.chosen(&names), 0, "arrows scroll here");
        press(&mut view, KeyCode::Tab, &names);
        assert_eq!(view.page(), Page::All);
        let mut named = View::new(true);
        press(&mut named, KeyCode::Tab, &names);
        assert_eq!(named.page(), Page::One, "there is no other page");
    }
}
