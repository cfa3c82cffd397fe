//! Asking before something is destroyed. Only people are asked: where stdin or stderr is no terminal, or with `--yes`, the
//! command line is their word.

use std::io::{self, BufRead, IsTerminal, Write};

use crate::failure::{Failure, failed};

/// Fails unless whoever sits at the terminal agrees. `what` is a sentence that says what is lost.
pub fn to(what: &str, yes: bool) -> Result<(), Failure> {
    if yes || !io::stdin().is_terminal() || !io::stderr().is_terminal() {
        return Ok(());
    }
    let what: String = what.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    let mut answer = String::new();
    let asked = write!(io::stderr(), "{what}\nGo on? [y/N] ").and_then(|()| io::stderr().flush());
    asked.and_then(|()| io::stdin().lock().read_line(&mut answer)).map_err(|error| {
        failed(format_args!(
            "you could not be asked: {error}: nothing was done; --yes goes on without asking"
        ))
    })?;
    match agrees(&answer) {
        true => Ok(()),
        false => Err(failed("nothing was done")),
    }
}

/// Yes, and nothing but yes.
fn agrees(answer: &str) -> bool {
    matches!(answer.trim().to_ascii_lowercase().as_str(), "y" | "yes")
}

#[cfg(test)]
mod tests {
    use super::agrees;

    #[test]
    fn only_yes_is_yes() {
        assert!(["y\n", "Y\n", "yes\n", " YES \n"].into_iter().all(agrees));
        assert!(!["", "\n", "n\n", "yeah\n", "no\n", "yes, no\n"].into_iter().any(agrees));
    }
}
