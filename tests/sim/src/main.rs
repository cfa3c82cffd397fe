//! Runs seeds of the simulated world: a range of them, as many as fit a time, or one with its whole trace.

use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use clap::{Parser, ValueEnum};
use raidd_sim::plan::{Narrow, Part, Profile};
use raidd_sim::run::run;
use raidd_sim::soak::{Order, command, shrink, soak};

/// raidd in a simulated world.
#[derive(Parser)]
struct Arguments {
    /// Seeds to run, the last one excluded: 0..1000.
    #[arg(long, value_parser = range)]
    seeds: Option<(u64, u64)>,
    /// One seed.
    #[arg(long)]
    seed: Option<u64>,
    /// Tell everything that happens (with --seed).
    #[arg(long)]
    trace: bool,
    /// How far faults go; both in turn if not given (every third seed goes beyond).
    #[arg(long)]
    profile: Option<Kind>,
    /// Fresh seeds for so many minutes.
    #[arg(long)]
    minutes: Option<f64>,
    /// Threads; as many as there are cores if not given.
    #[arg(long)]
    jobs: Option<usize>,
    /// No more client operations than this (with --seed).
    #[arg(long)]
    ops: Option<u64>,
    /// No more clients than this (with --seed).
    #[arg(long)]
    workers: Option<usize>,
    /// Leave this out (with --seed): crashes, failures, unreadable, slowness, full, zeroing, sessions, hangs,
    /// members, scrubs.
    #[arg(long, value_parser = part)]
    without: Vec<Part>,
    /// Look for the smallest run that fails as the seed does (with --seed).
    #[arg(long)]
    shrink: bool,
    /// Look for every deliberate fault of the engine, or those whose name contains this (needs --cfg raidd_mutants).
    #[arg(long, num_args = 0..=1, default_missing_value = "")]
    mutants: Option<String>,
    /// Go on after failing seeds, up to so many.
    #[arg(long, default_value_t = 10)]
    failures: usize,
}

#[derive(Clone, Copy, ValueEnum)]
enum Kind {
    Within,
    Beyond,
}

fn range(text: &str) -> Result<(u64, u64), String> {
    let (first, end) = text.split_once("..").ok_or("a range looks like 0..1000")?;
    let number = |text: &str| text.parse().map_err(|error| format!("{text}: {error}"));
    Ok((number(first)?, number(end)?))
}

fn part(text: &str) -> Result<Part, String> {
    let found = Part::ALL.into_iter().find(|(_, name)| *name == text);
    found.map(|(part, _)| part).ok_or_else(|| format!("nothing is called {text}"))
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let profile = arguments.profile.map(|kind| match kind {
        Kind::Within => Profile::Within,
        Kind::Beyond => Profile::Beyond,
    });
    if let Some(name) = &arguments.mutants {
        return mutants(name, arguments.jobs.unwrap_or(cores()));
    }
    if let Some(seed) = arguments.seed {
        return one(seed, profile.unwrap_or(Profile::Within), &arguments);
    }
    let fresh = || {
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let first = (since.as_secs() % 1_000_000_000) * 1_000_000;
        (first, u64::MAX)
    };
    let (first, end) = match (arguments.seeds, arguments.minutes) {
        (Some(seeds), _) => seeds,
        (None, Some(_)) => fresh(),
        (None, None) => (0, 1000),
    };
    let order = Order {
        first,
        end,
        profile,
        time: arguments.minutes.map(|minutes| Duration::from_secs_f64(minutes * 60.0)),
        jobs: arguments.jobs.unwrap_or(cores()),
        failures_max: arguments.failures,
    };
    println!("seeds from {first}");
    let (totals, elapsed) = soak(&order);
    totals.print(elapsed, order.jobs);
    let Some((seed, profile, _)) = totals.failures.first() else { return ExitCode::SUCCESS };
    let (narrow, why) = shrink(*seed, *profile);
    println!("seed {seed}, as small as it gets:\n    {}\n    {why}", command(*seed, *profile, narrow));
    ExitCode::FAILURE
}

fn one(seed: u64, profile: Profile, arguments: &Arguments) -> ExitCode {
    let mut narrow = Narrow { ops: arguments.ops, workers: arguments.workers, without: 0 };
    for part in &arguments.without {
        narrow.without |= *part as u32;
    }
    if arguments.shrink {
        let (narrow, why) = shrink(seed, profile);
        println!("{}\n    {why}", command(seed, profile, narrow));
        return ExitCode::FAILURE;
    }
    if arguments.trace {
        // What the engine itself has to say goes between what the world says.
        tracing_subscriber::fmt().without_time().with_target(false).with_ansi(false).init();
    }
    let report = run(seed, profile, narrow, arguments.trace);
    println!("{report:#?}");
    if report.failure.is_some() { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

#[cfg(raidd_mutants)]
fn mutants(name: &str, jobs: usize) -> ExitCode {
    if raidd_sim::mutants::hunt_all(jobs, name) { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

#[cfg(not(raidd_mutants))]
fn mutants(_name: &str, _jobs: usize) -> ExitCode {
    eprintln!("this build has no deliberate faults in it; use scripts/mutants");
    ExitCode::FAILURE
}
