//! How things look. Colours only where they help, and none where NO_COLOR is set (<https://no-color.org>): what they say is said
//! in words, too.

use raidd::api::{Health, MemberState};
use ratatui::style::{Color, Modifier, Style};

/// Whether there are colours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Theme {
    coloured: bool,
}

impl Theme {
    /// With colours, or without.
    pub const fn new(coloured: bool) -> Theme {
        Theme { coloured }
    }

    /// As the user's environment wants it.
    pub fn of_environment() -> Theme {
        Theme::new(std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty()))
    }

    fn in_colour(self, colour: Color) -> Style {
        if self.coloured { Style::new().fg(colour) } else { Style::new() }
    }

    /// All is well.
    pub fn good(self) -> Style {
        self.in_colour(Color::Green)
    }

    /// To be looked at.
    pub fn warning(self) -> Style {
        self.in_colour(Color::Yellow).add_modifier(Modifier::BOLD)
    }

    /// To be seen to at once.
    pub fn bad(self) -> Style {
        self.in_colour(Color::Red).add_modifier(Modifier::BOLD)
    }

    /// Bars and sparklines.
    pub fn graph(self) -> Style {
        self.in_colour(Color::Cyan)
    }

    /// What matters less, or is no longer sure.
    pub fn faint(self) -> Style {
        Style::new().add_modifier(Modifier::DIM)
    }

    /// Names and headings.
    pub fn heading(self) -> Style {
        Style::new().add_modifier(Modifier::BOLD)
    }

    /// The line that is chosen, and those of the frame.
    pub fn inverse(self) -> Style {
        Style::new().add_modifier(Modifier::REVERSED)
    }

    /// What an array can still lose.
    pub fn of_health(self, health: Health) -> Style {
        match health {
            Health::Optimal => self.good(),
            Health::Degraded => self.warning(),
            Health::Failed => self.bad(),
        }
    }

    /// What a member is good for.
    pub fn of_member(self, state: MemberState) -> Style {
        match state {
            MemberState::InSync => self.good(),
            MemberState::Spare => Style::new(),
            MemberState::Recovering | MemberState::Replacing => self.warning(),
            MemberState::Faulty | MemberState::Missing => self.bad(),
        }
    }
}
