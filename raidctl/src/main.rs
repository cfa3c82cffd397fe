//! raidctl's entry: arguments in, one command, an exit status out.
//!
//! - `arguments`: what may be typed
//! - `request`: one request to the daemon
//! - `render`, `quantity`: arrays and numbers for people
//! - `identity`: which disk it is
//! - `check`: what monitoring asks
//! - `alert`: a program that is told of events
//! - `consent`: asking before something is destroyed
//! - `examine`, `member`: superblocks, without a daemon
//! - `demo`: an array from nothing, broken and read back
//! - `stats`, `activity`: what arrays do, and what that is a second
//! - `info`: the daemon itself
//! - `wait`: until an array is at rest
//! - `watch`: a live view
//! - `manual`: manual pages
//! - `completions`, `values`: what a shell offers: its script, and what only the daemon knows
//! - `failure`: exit status and the line on stderr

mod activity;
mod alert;
mod arguments;
mod check;
mod completions;
mod consent;
mod demo;
mod examine;
mod failure;
mod identity;
mod info;
mod manual;
mod member;
mod metadata;
mod quantity;
mod render;
mod request;
mod stats;
mod values;
mod wait;
mod watch;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anstream::adapter::strip_str;
use clap::Parser;
use raidd::api::{Status, Tuning};
use serde::Serialize;
use serde_json::json;

use crate::arguments::{Arguments, AssembleOptions, Command, CreateOptions};
use crate::failure::{Failure, failed};
use crate::request::Daemon;

fn main() -> ExitCode {
    let result = match Arguments::try_parse() {
        Ok(arguments) => run(arguments),
        Err(error) => match arguments::usage_line(&error) {
            Some(line) => Err(Failure::Usage(line)),
            None => error.exit(), // help or version, with the status that goes with it
        },
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            if let Some(line) = failure.line() {
                complain(&line);
            }
            ExitCode::from(failure.status())
        }
    }
}

fn run(arguments: Arguments) -> Result<(), Failure> {
    let Arguments { control, json, yes, command } = arguments;
    if let Some(what) = command.destroys() {
        consent::to(&what, yes)?;
    }
    match command {
        Command::Create(options) => create(&|| Daemon::at(control.clone()), options, json),
        Command::Assemble(options) => assemble(&|| Daemon::at(control.clone()), options, json),
        Command::Stop { name, force, release } => Daemon::at(control)?.stop(&name, force, release),
        Command::List => {
            let arrays = Daemon::at(control)?.list()?;
            if json { document(&arrays) } else { output(render::list(&arrays).as_bytes()) }
        }
        Command::Status { name } => show(&picture(&Daemon::at(control)?, name.as_deref(), json)?),
        Command::Check { name } => {
            let asked = Daemon::at(control).and_then(|daemon| match &name {
                Some(name) => Ok(vec![daemon.status(name)?]),
                None => daemon.list(),
            });
            let verdict = match asked {
                Ok(arrays) => check::Verdict::of(&arrays),
                Err(failure) => check::Verdict::unknown(failure.line().unwrap_or_default()),
            };
            if json {
                document(&verdict)?;
            } else {
                output(verdict.line().as_bytes())?;
            }
            match verdict.level {
                check::Level::Ok => Ok(()),
                level => Err(Failure::Told(level.status())),
            }
        }
        Command::Watch { name, interval, count } => {
            let daemon = Daemon::at(control)?;
            if !json && watch::is_for_people() {
                return watch::on_screen(&daemon, name, interval, count);
            }
            let between = if json { "" } else { "\n" };
            let plain = || Ok(strip_str(&picture(&daemon, name.as_deref(), json)?).to_string());
            watch::as_text(&plain, between, interval, count)
        }
        Command::Stats { name, interval, count } => {
            let turns = stats::Turns { interval, count };
            stats::run(&Daemon::at(control)?, name.as_deref(), &turns, json)
        }
        Command::Info => info::run(&Daemon::at(control)?, json),
        Command::Fail { name, device } => change(control, json, &name, "fail", &json!({ "device": device })),
        Command::Remove { name, device } => {
            change(control, json, &name, "remove", &json!({ "device": device }))
        }
        Command::Add { name, device } => change(control, json, &name, "add", &json!({ "device": device })),
        Command::ReAdd { name, device } => {
            change(control, json, &name, "re-add", &json!({ "device": device }))
        }
        Command::Replace { name, old, new } => {
            change(control, json, &name, "replace", &json!({ "old": old, "new": new }))
        }
        Command::Scrub { name, findings: true, .. } => {
            let found = Daemon::at(control)?.findings(&name)?;
            if json { document(&found) } else { output(render::findings(&found).as_bytes()) }
        }
        Command::Scrub { name, repair, stop, .. } => {
            change(control, json, &name, "scrub", &json!({ "repair": repair, "stop": stop }))
        }
        Command::ReadOnly { name } => change(control, json, &name, "readonly", &json!({})),
        Command::ReadWrite { name } => change(control, json, &name, "readwrite", &json!({})),
        Command::Attach(options) => {
            let (name, how) = options.request().map_err(Failure::Usage)?;
            let array = Daemon::at(control)?.change(&name, "attach", &how)?;
            if json { document(&array) } else { output(render::device(&array).as_bytes()) }
        }
        Command::Detach { name, force } => Daemon::at(control)?.detach(&name, force),
        Command::Pause { name } => change(control, json, &name, "pause", &json!({})),
        Command::Resume { name } => change(control, json, &name, "resume", &json!({})),
        Command::Wait { name, timeout } => {
            let array = wait::until_idle(&Daemon::at(control)?, &name, timeout)?;
            if json { document(&array) } else { Ok(()) }
        }
        Command::Tune { name, settings } if settings.is_empty() => {
            let array = Daemon::at(control)?.status(&name)?;
            let tuning = array.tuning.unwrap_or_default();
            if json { document(&tuning) } else { output(render::tuning(&tuning).as_bytes()) }
        }
        Command::Tune { name, settings } => {
            let tuning = Tuning::parse(settings.iter().map(String::as_str)).map_err(Failure::Usage)?;
            change(control, json, &name, "tune", &tuning)
        }
        Command::Grow(options) => {
            let (name, how) = options.request().map_err(Failure::Usage)?;
            change(control, json, &name, "grow", &how)
        }
        Command::Events { program: Some(program), seen, .. } => {
            alert::run(&|| Daemon::at(control.clone()), &program, seen)
        }
        Command::Events { follow, .. } => Daemon::at(control)?.events(follow, &mut |event| {
            if json { document(event) } else { output(render::event(event).as_bytes()) }
        }),
        Command::Inject { name, device, fault } => {
            change(control, json, &name, "inject", &json!({ "device": device, "fault": fault }))
        }
        Command::Examine { devices } => examine_all(&devices, json),
        Command::ZeroSuperblock { devices, force } => zero_all(&devices, force),
        Command::Dump { dir, devices } => devices.iter().try_for_each(|device| {
            let kept = metadata::dump(&dir, device).map_err(failed)?;
            output(format!("{}\n", kept.display()).as_bytes())
        }),
        Command::Restore { file, device, force } => metadata::restore(&file, &device, force).map_err(failed),
        Command::Demo(options) => demo::run(&options, &|report| {
            if json { document(report) } else { output(report.text().as_bytes()) }
        }),
        Command::Completions { shell, words } if words.is_empty() => {
            output(completions::script(shell).as_bytes())
        }
        Command::Completions { words, .. } => output(values::offered(&words, control).as_bytes()),
        Command::Man { of, dir } => manual_page(of.as_deref(), dir.as_deref()),
    }
}

/// Does something to a running array. What it says is for scripts; people see no news where the news is good.
fn change(
    control: Option<PathBuf>,
    json: bool,
    name: &str,
    verb: &str,
    body: &impl Serialize,
) -> Result<(), Failure> {
    let array = Daemon::at(control)?.change(name, verb, body)?;
    if json { document(&array) } else { Ok(()) }
}

fn create(
    daemon: &dyn Fn() -> Result<Daemon, Failure>,
    options: CreateOptions,
    json: bool,
) -> Result<(), Failure> {
    let request = options.request().map_err(Failure::Usage)?;
    started(&daemon()?.create(&request)?, json)
}

fn assemble(
    daemon: &dyn Fn() -> Result<Daemon, Failure>,
    options: AssembleOptions,
    json: bool,
) -> Result<(), Failure> {
    if options.scan {
        let arrays = daemon()?.scan()?;
        return if json { document(&arrays) } else { output(render::list(&arrays).as_bytes()) };
    }
    let request = options.request().map_err(Failure::Usage)?;
    started(&daemon()?.assemble(&request)?, json)
}

/// Says where an array is now: its URI alone, for scripts to take.
fn started(array: &Status, json: bool) -> Result<(), Failure> {
    if json {
        return document(array);
    }
    for warning in &array.warnings {
        complain(&format!("warning: {warning}"));
    }
    match &array.nbd_uri {
        Some(uri) => output(format!("{uri}\n").as_bytes()),
        None => Ok(()),
    }
}

/// What `status` shows.
fn picture(daemon: &Daemon, name: Option<&str>, json: bool) -> Result<String, Failure> {
    match name {
        Some(name) => {
            let array = daemon.status(name)?;
            if json { line(&array) } else { Ok(detailed(&array)) }
        }
        None => {
            let arrays = daemon.list()?;
            if json { line(&arrays) } else { Ok(pictures(&arrays)) }
        }
    }
}

fn pictures(arrays: &[Status]) -> String {
    if arrays.is_empty() {
        return render::list(arrays);
    }
    arrays.iter().map(detailed).collect::<Vec<_>>().join("\n")
}

fn detailed(array: &Status) -> String {
    render::status(array, &identity::of_suspects(array))
}

fn examine_all(devices: &[PathBuf], json: bool) -> Result<(), Failure> {
    let examined = examine::examine(devices);
    if json {
        document(&examined)?;
    } else {
        let texts: Vec<_> = examined.iter().filter_map(examine::Examined::text).collect();
        output(texts.join("\n").as_bytes())?;
    }
    let problems: Vec<_> = examined.iter().filter_map(examine::Examined::problem).collect();
    if problems.is_empty() {
        return Ok(());
    }
    problems.iter().for_each(|line| complain(line));
    Err(Failure::Said)
}

fn zero_all(devices: &[PathBuf], force: bool) -> Result<(), Failure> {
    let mut result = Ok(());
    for device in devices {
        if let Err(line) = examine::zero_superblock(device, force) {
            complain(&line);
            result = Err(Failure::Said);
        }
    }
    result
}

fn manual_page(of: Option<&str>, folder: Option<&Path>) -> Result<(), Failure> {
    if let Some(folder) = folder {
        return manual::write_pages(folder).map_err(|error| {
            failed(format_args!(
                "the manual pages cannot be written to {}: {error}: name another folder, or make room there",
                folder.display()
            ))
        });
    }
    let page = match of {
        None => manual::page(),
        Some(name) => manual::page_of(name).ok_or_else(|| {
            Failure::Usage(format!(
                "there is no manual page of {name}, as no command is called so: see `raidctl --help`"
            ))
        })?,
    };
    output(&page.map_err(|error| Failure::output(&error))?)
}

fn document<T: Serialize>(document: &T) -> Result<(), Failure> {
    output(line(document)?.as_bytes())
}

fn line<T: Serialize>(document: &T) -> Result<String, Failure> {
    let text = serde_json::to_string(document).map_err(|error| Failure::output(&error.into()))?;
    Ok(text + "\n")
}

/// Writes to stdout. Rust programs ignore SIGPIPE, so a reader that has gone shows as an error here.
fn output(text: &[u8]) -> Result<(), Failure> {
    let mut stdout = std::io::stdout().lock();
    stdout.write_all(text).and_then(|()| stdout.flush()).map_err(|error| Failure::output(&error))
}

/// Writes to stdout, in colours where that is a terminal and nobody has said NO_COLOR.
fn show(text: &str) -> Result<(), Failure> {
    let mut stdout = anstream::stdout().lock();
    stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()).map_err(|error| Failure::output(&error))
}

/// A line on stderr. Where that is closed there is nobody left to tell.
fn complain(line: &str) {
    let line: String = line.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    let _told = writeln!(std::io::stderr(), "raidctl: {line}");
}
