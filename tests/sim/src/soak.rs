//! Many seeds, one after another, on as many threads as there are cores: totals, failures, and what reproduces them.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::director::Tally;
use crate::plan::{Narrow, Part, Profile};
use crate::run::{Report, run};

/// What many seeds have come to.
#[derive(Default)]
pub struct Totals {
    /// Seeds.
    pub seeds: u64,
    /// Client operations.
    pub ops: u64,
    /// Of these, answered with an error.
    pub errors: u64,
    /// Bytes read and checked.
    pub checked: u64,
    /// Operations of disks.
    pub disk_ops: u64,
    /// Steps of the schedulers.
    pub steps: u64,
    /// What befell them.
    pub tally: Tally,
    /// Seeds that failed, and why.
    pub failures: Vec<(u64, Profile, String)>,
}

impl Totals {
    fn add(&mut self, report: Report, profile: Profile) {
        self.seeds += 1;
        self.ops += report.ops;
        self.errors += report.errors;
        self.checked += report.checked;
        self.disk_ops += report.disk_ops;
        self.steps += report.steps;
        self.tally.add(&report.tally);
        if let Some(why) = report.failure {
            self.failures.push((report.seed, profile, why));
        }
    }

    /// A summary for people.
    pub fn print(&self, elapsed: Duration, jobs: usize) {
        let seconds = elapsed.as_secs_f64();
        let tally = &self.tally;
        println!("{} seeds in {seconds:.1} s on {jobs} threads, {} failed", self.seeds, self.failures.len());
        println!(
            "{} client operations ({} answered with an error), {:.0} a second and thread; {} MiB read and checked",
            self.ops,
            self.errors,
            self.ops as f64 / seconds / jobs as f64,
            self.checked >> 20
        );
        println!("{} disk operations, {} scheduler steps", self.disk_ops, self.steps);
        println!(
            "{} crashes: {} of the daemon, {} of the machine; {} orderly stops",
            tally.kills + tally.power_cuts,
            tally.kills,
            tally.power_cuts,
            tally.stops
        );
        println!("{} faults: {tally:?}", tally.faults());
    }
}

/// What reproduces a run.
pub fn command(seed: u64, profile: Profile, narrow: Narrow) -> String {
    let mut command =
        format!("cargo run --release -p raidd-sim -- --profile {} --seed {seed}", profile.name());
    if let Some(ops) = narrow.ops {
        command += &format!(" --ops {ops}");
    }
    if let Some(workers) = narrow.workers {
        command += &format!(" --workers {workers}");
    }
    for (part, name) in Part::ALL {
        if narrow.is_without(part) {
            command += &format!(" --without {name}");
        }
    }
    command + " --trace"
}

/// The smallest run that still fails: fewer operations, fewer clients, fewer kinds of faults.
pub fn shrink(seed: u64, profile: Profile) -> (Narrow, String) {
    let mut best = Narrow::default();
    let mut why = run(seed, profile, best, false).failure.unwrap_or_else(|| "it does not fail again".into());
    let mut try_it = |narrow: Narrow, best: &mut Narrow| {
        let Some(failure) = run(seed, profile, narrow, false).failure else { return false };
        *best = narrow;
        why = failure;
        true
    };
    for (part, _) in Part::ALL {
        try_it(Narrow { without: best.without | part as u32, ..best }, &mut best);
    }
    for workers in [1, 2, 3] {
        if try_it(Narrow { workers: Some(workers), ..best }, &mut best) {
            break;
        }
    }
    let (mut low, mut high) = (0, 2000);
    while low + 1 < high {
        let middle = (low + high) / 2;
        if try_it(Narrow { ops: Some(middle), ..best }, &mut best) {
            high = middle;
        } else {
            low = middle;
        }
    }
    (best, why)
}

/// What is to be run.
#[derive(Clone, Copy, Debug)]
pub struct Order {
    /// The first seed.
    pub first: u64,
    /// The seed after the last.
    pub end: u64,
    /// One profile, or both in turn.
    pub profile: Option<Profile>,
    /// No longer than this.
    pub time: Option<Duration>,
    /// Threads.
    pub jobs: usize,
    /// Stop at so many failures.
    pub failures_max: usize,
}

/// Runs them all.
pub fn soak(order: &Order) -> (Totals, Duration) {
    let began = Instant::now();
    let next = AtomicU64::new(order.first);
    let totals = Mutex::new(Totals::default());
    std::thread::scope(|scope| {
        for _ in 0..order.jobs {
            scope.spawn(|| {
                let mut own = Vec::new();
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    let late = order.time.is_some_and(|time| began.elapsed() >= time);
                    if seed >= order.end || late {
                        break;
                    }
                    let turn = if seed.is_multiple_of(3) { Profile::Beyond } else { Profile::Within };
                    let profile = order.profile.unwrap_or(turn);
                    let since = Instant::now();
                    let report = run(seed, profile, Narrow::default(), false);
                    if since.elapsed() > Duration::from_secs(5) {
                        println!(
                            "slow: {} took {:?}",
                            command(seed, profile, Narrow::default()),
                            since.elapsed()
                        );
                    }
                    if let Some(why) = &report.failure {
                        println!("FAILED: {}\n    {why}", command(seed, profile, Narrow::default()));
                        let mut totals = totals.lock().expect("nobody panics with it");
                        totals.add(report, profile);
                        if totals.failures.len() >= order.failures_max {
                            next.store(order.end, Ordering::Relaxed);
                        }
                    } else {
                        own.push((report, profile));
                    }
                    if own.len() > 64 {
                        let mut totals = totals.lock().expect("nobody panics with it");
                        own.drain(..).for_each(|(report, profile)| totals.add(report, profile));
                    }
                }
                let mut totals = totals.lock().expect("nobody panics with it");
                own.drain(..).for_each(|(report, profile)| totals.add(report, profile));
            });
        }
    });
    (totals.into_inner().expect("nobody panics with it"), began.elapsed())
}
