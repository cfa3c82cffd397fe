//! How raidctl fails: a line for stderr and an exit status.

use std::fmt;
use std::io;

/// Why a command was not done.
#[derive(Debug)]
pub enum Failure {
    /// It was asked for in a way that makes no sense; status 2. The line says what, why, and what to do.
    Usage(String),
    /// It was refused, or it failed; status 1. The line says what, why, and what to do.
    Failed(String),
    /// It failed and has said so already; status 1.
    Said,
    /// It was done, and what it found is not good; this status, and no line.
    Told(u8),
    /// Whoever read the output has gone; nothing is left to do, and nothing is wrong.
    OutputClosed,
}

impl Failure {
    /// A failure of stdout itself.
    pub fn output(error: &io::Error) -> Failure {
        if error.kind() == io::ErrorKind::BrokenPipe {
            Failure::OutputClosed
        } else {
            Failure::Failed(format!("cannot write the output: {error}: see where it goes"))
        }
    }

    /// The exit status.
    pub fn status(&self) -> u8 {
        match self {
            Failure::Usage(_) => 2,
            Failure::Failed(_) | Failure::Said => 1,
            Failure::Told(status) => *status,
            Failure::OutputClosed => 0,
        }
    }

    /// The line for stderr, where there is one.
    pub fn line(&self) -> Option<String> {
        match self {
            Failure::Usage(line) | Failure::Failed(line) => {
                Some(line.chars().map(|c| if c.is_control() { ' ' } else { c }).collect())
            }
            Failure::Said | Failure::Told(_) | Failure::OutputClosed => None,
        }
    }
}

/// Shorthand for a refusal or failure.
pub fn failed(line: impl fmt::Display) -> Failure {
    Failure::Failed(line.to_string())
}
