//! What a shell may offer for the word that is being typed, where that is no option and no file: names of arrays, paths of their
//! members, settings of `tune`, faults. The completion scripts ask with the words of the line.
//!
//! Invariants:
//! - A shell that waits has its answer within [`PATIENCE`]: else nothing is offered.
//! - Nothing goes wrong aloud: no daemon, no such array, words that make no sense: nothing is offered.
//! - What is offered begins with what has been typed, so that a shell that is offered nothing goes on with files.
//! - Offers are lines, `VALUE`, a tab, and a few words about it.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Arg, Command, CommandFactory};
use raidd::api::{ArrayState, Fault, MemberState, Status, Tuning};

use crate::arguments::Arguments;
use crate::request::Daemon;

/// How long the daemon has: whoever presses a key looks at the screen meanwhile.
const PATIENCE: Duration = Duration::from_secs(1);

/// A value, and what to say about it.
type Offer = (String, String);

/// The lines for the last of `words`, the first of which is the program. `control` is the socket, unless they name one.
pub fn offered(words: &[OsString], control: Option<PathBuf>) -> String {
    let ask = |named: Option<PathBuf>| {
        Daemon::at(named.or(control)).ok().and_then(|daemon| daemon.list_within(PATIENCE)).unwrap_or_default()
    };
    let typed = words.last().and_then(|word| word.to_str()).unwrap_or_default();
    Line::read(words).map_or_else(String::new, |line| lines(line.offers(typed, ask), typed))
}

/// Those that begin with what was typed. A line break or a tab in a path would make another value of what follows.
fn lines(offers: Vec<Offer>, typed: &str) -> String {
    let is_fit = |value: &str| value.starts_with(typed) && !value.chars().any(char::is_control);
    let fit = offers.into_iter().filter(|(value, _)| is_fit(value));
    fit.map(|(value, about)| format!("{value}\t{about}\n")).collect()
}

/// What the words before the last come to.
struct Line {
    /// The command.
    command: Command,
    /// The socket that is named among them.
    control: Option<PathBuf>,
    /// The command's words that are no options.
    given: Vec<String>,
}

impl Line {
    /// Nothing where the last word is a command, an option or an option's value: scripts know those.
    fn read(words: &[OsString]) -> Option<Line> {
        let (last, before) = words.get(1..)?.split_last()?;
        let mut root = Arguments::command();
        root.build();
        let mut line = Line { command: root, control: None, given: Vec::new() };
        let mut has_command = false;
        let mut has_escape = false;
        let mut awaits_value: Option<Arg> = None;
        for word in before {
            let text = word.to_str()?;
            if let Some(option) = awaits_value.take() {
                line.note(&option, text);
            } else if text == "--" && !has_escape {
                has_escape = true;
            } else if !has_escape && text.len() > 1 && text.starts_with('-') {
                let (option, value) = option_in(&line.command, text)?;
                let takes_value = option.get_num_args().is_some_and(|range| range.takes_values());
                match value {
                    Some(value) => line.note(&option, value),
                    None => awaits_value = takes_value.then_some(option),
                }
            } else if has_command {
                line.given.push(text.to_owned());
            } else {
                line.command = line.command.find_subcommand(text)?.clone();
                has_command = true;
            }
        }
        let is_option = !has_escape && last.to_str()?.starts_with('-');
        (has_command && awaits_value.is_none() && !is_option).then_some(line)
    }

    fn note(&mut self, option: &Arg, value: &str) {
        if option.get_id() == "control" {
            self.control = Some(at_home(value));
        }
    }

    fn offers(&self, typed: &str, ask: impl FnOnce(Option<PathBuf>) -> Vec<Status>) -> Vec<Offer> {
        let count = self.given.len();
        let places: Vec<_> = self.command.get_positionals().collect();
        // The last may take any number of words.
        let place = places.get(count).or(places.last());
        let arrays = || ask(self.control.clone());
        match (self.command.get_name(), place.map_or("", |place| place.get_id().as_str())) {
            ("create" | "completions" | "man", _) => Vec::new(),
            ("assemble", _) if count == 0 => names(&arrays(), |array| array.state == ArrayState::Inactive),
            ("detach", "name") if count == 0 => names(&arrays(), |array| array.device.is_some()),
            (_, "name") if count == 0 => names(&arrays(), |_| true),
            ("tune", "settings") => settings(&self.given[1..], typed),
            ("inject", "fault") if count == 2 => {
                Fault::WORDS.iter().map(|word| ((*word).to_owned(), String::new())).collect()
            }
            (command @ ("fail" | "remove" | "inject"), "device") if count == 1 => {
                members(&arrays(), &self.given[0], command)
            }
            ("replace", "old") => members(&arrays(), &self.given[0], "fail"),
            ("replace", "new") if count == 2 => members(&arrays(), &self.given[0], "spare"),
            _ => Vec::new(),
        }
    }
}

/// The option that a word is, with the value that is in it.
fn option_in<'a>(command: &Command, word: &'a str) -> Option<(Arg, Option<&'a str>)> {
    let (name, value) = match word.strip_prefix("--") {
        Some(long) => long.split_once('=').map_or((long, None), |(name, value)| (name, Some(value))),
        None => (word, None),
    };
    let is_it = |option: &&Arg| match word.starts_with("--") {
        true => option.get_long() == Some(name),
        // Of several short ones in a word only the last can take a value.
        false => option.get_short() == name.chars().next_back(),
    };
    command.get_opts().chain(command.get_arguments()).find(is_it).map(|option| (option.clone(), value))
}

/// A path as shells understand it: they hand `~` over as it was typed.
fn at_home(path: &str) -> PathBuf {
    let home = std::env::var_os("HOME").filter(|home| !OsStr::is_empty(home));
    match (path.strip_prefix("~/"), home) {
        (Some(rest), Some(home)) => Path::new(&home).join(rest),
        _ => PathBuf::from(path),
    }
}

fn names(arrays: &[Status], is_wanted: impl Fn(&Status) -> bool) -> Vec<Offer> {
    let about = |array: &Status| match array.state {
        ArrayState::Inactive => format!("{}, {}", array.level, array.state),
        _ => format!("{}, {}", array.level, array.health),
    };
    arrays.iter().filter(|array| is_wanted(array)).map(|array| (array.name.clone(), about(array))).collect()
}

/// Those with which the command could do something; `spare`: that could take over.
fn members(arrays: &[Status], name: &str, command: &str) -> Vec<Offer> {
    let Some(array) = arrays.iter().find(|array| array.name == name) else { return Vec::new() };
    let is_wanted = |state: MemberState| match command {
        "fail" => !matches!(state, MemberState::Faulty | MemberState::Missing),
        "remove" => matches!(state, MemberState::Faulty | MemberState::Spare),
        "spare" => state == MemberState::Spare,
        _ => true,
    };
    let seated = array.members.iter().map(|member| {
        (member.path.as_ref(), member.state, format!("slot {}, {}", member.slot, member.state))
    });
    let spares = array.spares.iter().map(|spare| (spare.path.as_ref(), spare.state, spare.state.to_string()));
    let all = seated.chain(spares).filter(|(_, state, _)| is_wanted(*state));
    all.filter_map(|(path, _, about)| Some((path?.clone(), about))).collect()
}

/// Keys that are not given yet, or the words that a key takes.
fn settings(given: &[String], typed: &str) -> Vec<Offer> {
    let is_given = |key: &str| given.iter().any(|word| word.split('=').next() == Some(key));
    let word_of = |key: &str, word: &str| (format!("{key}={word}"), String::new());
    match typed.split_once('=') {
        None => {
            Tuning::KEYS.iter().filter(|(key, _)| !is_given(key)).map(|(key, _)| word_of(key, "")).collect()
        }
        Some((typed, _)) => {
            let words = Tuning::KEYS.iter().filter(|(key, _)| *key == typed);
            words.flat_map(|(key, words)| words.iter().map(|word| word_of(key, word))).collect()
        }
    }
}

#[cfg(test)]
mod tests;
