//! A whole run: members, servers and raidd are started once, then every job is measured on each of them in turn, in
//! the opposite order in every other round; what is not loaded is idle.
//!
//! - A cell during which others took more than [`FOREIGN_MAX`] of the processors is measured once more, and the quieter
//!   counts; not with --quick, and not for ever on a machine that is never quiet.
//! - Raw samples are written as they are made, so a run that is broken off has not been in vain.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::thread::available_parallelism;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use clap::Args;

use crate::daemon::{Daemon, Threads};
use crate::jobs::{ARRAYS, JOBS, Job};
use crate::load::{Outcome, own_cpu_seconds};
use crate::members::{Kind, Members};
use crate::process::{CpuTimes, make_folder, stop};
use crate::sample::{Sample, Samples};
use crate::servers::{PEERS, Peer, Server};
use crate::{machine, plot, report, rows};

/// More than this share of the processors taken by others disturbs a cell.
pub const FOREIGN_MAX: f64 = 0.15;
/// Cells that are measured once more, of each kind of members.
const REPEATS_MAX: u32 = 20;

/// What to measure, and where.
#[derive(Args, Clone)]
pub struct Options {
    /// How often everything is measured; medians are told.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// How long each cell is measured.
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
    /// Only what has one of these in its name: jobs, recovery, check, foreground, degraded, scaling.
    #[arg(long, num_args = 1.., value_name = "PATTERN")]
    only: Vec<String>,
    /// What members are; may be given several times [default: shm and disk].
    #[arg(long, value_enum)]
    members: Vec<Kind>,
    /// Folder on the disk to be measured.
    #[arg(long, default_value = "/var/tmp")]
    dir: PathBuf,
    /// Where raidd and raidctl are.
    #[arg(long, default_value = "target/release")]
    bin: PathBuf,
    /// Servers to compare with [default: all that are installed].
    #[arg(long, value_enum, value_delimiter = ',')]
    peers: Vec<Peer>,
    /// MiB of each member.
    #[arg(long, default_value_t = 512)]
    size: u64,
    /// Chunk of the RAID 5 and the RAID 6, as raidctl takes it [default: raidd's].
    #[arg(long)]
    chunk: Option<String>,
    /// raidd's --reactors, outside of the job that compares them [default: raidd's].
    #[arg(long)]
    reactors: Option<usize>,
    /// Run at this priority, servers included: -10 (root) keeps other people's builds from disturbing.
    #[arg(long, default_value_t = 0, allow_hyphen_values = true)]
    nice: i32,
    /// Write every sample to this file, a JSON line each.
    #[arg(long)]
    out: Option<PathBuf>,
    /// Put the tables into this document and the plot beside it [default, without --only: docs/performance.md].
    #[arg(long)]
    docs: Option<PathBuf>,
    /// Print only.
    #[arg(long, conflicts_with = "docs")]
    no_docs: bool,
    /// One round of 0.7 s a cell, small members.
    #[arg(long)]
    quick: bool,
}

impl Options {
    fn settle(mut self) -> Self {
        if self.quick {
            (self.rounds, self.seconds, self.size) = (1, 0.7, 256);
        }
        if self.members.is_empty() {
            self.members = vec![Kind::Shm, Kind::Disk];
        }
        if self.docs.is_none() && self.only.is_empty() && !self.no_docs {
            self.docs = Some("docs/performance.md".into());
        }
        self
    }

    /// Whether something of that name is to be measured.
    pub fn wants(&self, name: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|pattern| name.contains(pattern.as_str()))
    }
}

/// What several runs have measured, to be told together.
#[derive(Args, Clone)]
pub struct Merge {
    /// What `run --out` has written, of each run.
    #[arg(required = true)]
    runs: Vec<PathBuf>,
    /// Folder on the disk that was measured.
    #[arg(long, default_value = "/var/tmp")]
    dir: PathBuf,
    /// Put the tables into this document and the plot beside it.
    #[arg(long)]
    docs: Option<PathBuf>,
}

impl Merge {
    /// Writes the tables: medians of all rounds of all runs. They were made on this machine, of the commit that is checked out.
    pub fn run(self) -> Result<()> {
        let mut samples = Samples::default();
        let mut rounds = Vec::new();
        for path in &self.runs {
            let text = fs::read_to_string(path).with_context(|| path.display().to_string())?;
            let one: Vec<Sample> = text.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
            rounds.push(one.iter().map(|sample| sample.round + 1).max().unwrap_or(0).to_string());
            samples.0.extend(one);
        }
        let run = format!("{} whole runs, of {} rounds", self.runs.len(), rounds.join(", "));
        publish(self.docs.as_deref(), &machine::describe(&self.dir)?, &run, &samples)
    }
}

/// Prints the tables, and puts them into a document.
fn publish(
    docs: Option<&Path>,
    description: &[(String, String)],
    run: &str,
    samples: &Samples,
) -> Result<()> {
    let rows = rows::rows(samples);
    let mut text = format!("{}\n![Ratio by target](performance.svg)\n\n", report::summary(&rows, samples));
    for (what, which) in description {
        text += &format!("- {what}: {which}\n");
    }
    text += &format!("- run: {run}\n\n{}{}", report::ratios(&rows), report::absolutes(samples));
    println!("\n{text}");
    let Some(path) = docs else { return Ok(()) };
    let document = fs::read_to_string(path).with_context(|| path.display().to_string())?;
    fs::write(path, report::splice(&document, &text)?)?;
    fs::write(path.with_file_name("performance.svg"), plot::svg(&rows))?;
    println!("written to {}", path.display());
    Ok(())
}

/// One kind of members with everything that serves them.
pub struct Block<'a> {
    /// What to measure.
    pub options: &'a Options,
    /// What it is measured on.
    pub members: &'a Members,
    /// For sockets, logs and state.
    pub folder: PathBuf,
    /// raidd with its three arrays.
    pub daemon: Daemon,
    /// Bytes of each server that are used: the same for all.
    pub span_bytes: u64,
    repeats_left: u32,
    samples: &'a mut Samples,
    out: &'a mut Option<File>,
}

impl Options {
    /// How many rounds there are.
    pub fn rounds(&self) -> usize {
        self.rounds
    }

    /// How long a cell is measured.
    pub fn seconds(&self) -> f64 {
        self.seconds
    }

    /// Where raidd is.
    pub fn bin(&self) -> &Path {
        &self.bin
    }

    /// Runs it all and writes the results.
    pub fn run(self) -> Result<()> {
        let options = self.settle();
        ensure!(options.rounds > 0 && options.seconds > 0.0, "nothing to measure");
        if options.nice != 0 {
            rustix::process::setpriority_process(None, options.nice).context("--nice")?;
        }
        let began = Instant::now();
        let description = machine::describe(&options.dir)?;
        let create = |path: &PathBuf| File::create(path).with_context(|| path.display().to_string());
        let mut out = options.out.as_ref().map(create).transpose()?;
        let mut samples = Samples::default();
        for kind in &options.members {
            options.run_block(*kind, &mut samples, &mut out)?;
        }
        let minutes = began.elapsed().as_secs_f64() / 60.0;
        let chunk = options.chunk.as_deref().unwrap_or("as raidd chooses it");
        let run = format!(
            "{} rounds of {} s a cell, members of {} MiB, chunk {chunk}; {minutes:.0} minutes in all",
            options.rounds, options.seconds, options.size,
        );
        publish(options.docs.as_deref(), &description, &run, &samples)
    }

    fn run_block(&self, kind: Kind, samples: &mut Samples, out: &mut Option<File>) -> Result<()> {
        println!("members: {}, {} MiB each", kind.name(), self.size);
        let members = Members::make(kind, self.size << 20, &self.dir)?;
        let folder = make_folder(&std::env::temp_dir())?;
        let threads = Threads { reactors: self.reactors, processor: None };
        let daemon = Daemon::start(&self.bin, &folder.join("main"), threads)?;
        let span_bytes = members.size_bytes / 8 * 7;
        let repeats_left = if self.quick { 0 } else { REPEATS_MAX };
        let mut block = Block {
            options: self,
            members: &members,
            folder,
            daemon,
            span_bytes,
            repeats_left,
            samples,
            out,
        };
        block.create_arrays()?;
        let peers = block.start_peers()?;
        block.matrix(&peers)?;
        peers.iter().for_each(|peer| stop(peer.group));
        block.repairs()?;
        block.foreground()?;
        block.scaling()?;
        block.degraded()?;
        block.daemon.stop();
        // The next block wants the room.
        crate::process::end_all();
        Ok(())
    }

    fn is_peer_wanted(&self, peer: Peer, kind: Kind) -> bool {
        let asked = self.peers.is_empty() || self.peers.contains(&peer);
        asked && (kind.is_memory() || peer.is_direct())
    }
}

impl Block<'_> {
    /// Makes the arrays over members that were written before, then has redundancy made right.
    fn create_arrays(&self) -> Result<()> {
        for ((array, _, _), paths) in ARRAYS.into_iter().zip(&self.members.arrays) {
            let level = array.trim_start_matches("raid");
            let mut arguments = vec!["create", array, "--level", level, "--init", "assume-clean", "--force"];
            if let Some(chunk) = self.options.chunk.as_ref().filter(|_| array != "raid1") {
                arguments.extend(["--chunk", chunk]);
            }
            let paths: Vec<_> = paths.iter().map(|path| path.to_string_lossy()).collect();
            arguments.extend(paths.iter().map(|path| &**path));
            self.daemon.ctl(arguments)?;
            self.full_speed(array)?;
            self.daemon.ctl(["scrub", array, "--repair"])?;
            self.daemon.ctl(["wait", array])?;
        }
        Ok(())
    }

    /// No throttle; and a member that is taken out stays out.
    pub fn full_speed(&self, array: &str) -> Result<()> {
        self.daemon.ctl(["tune", array, "recovery_max=100G", "auto_re_add=off"]).map(drop)
    }

    fn start_peers(&self) -> Result<Vec<Server>> {
        let mut out = Vec::new();
        if !JOBS.iter().any(|job| self.options.wants(job.name)) {
            return Ok(out);
        }
        for peer in PEERS {
            if !self.options.is_peer_wanted(peer, self.members.kind) {
                continue;
            }
            if peer.version().is_none() {
                println!("{} is left out: scripts/install-packages {}", peer.name(), peer.package());
                continue;
            }
            out.push(peer.start(self.members, &self.folder)?);
        }
        Ok(out)
    }

    fn matrix(&mut self, peers: &[Server]) -> Result<()> {
        let mut servers: Vec<Option<Server>> = peers.iter().cloned().map(Some).collect();
        servers.extend(ARRAYS.map(|(array, _, _)| Some(self.daemon.server(array))));
        // None is fio, without a server.
        servers.push(None);
        for round in 0..self.options.rounds {
            for job in JOBS.iter().filter(|job| self.options.wants(job.name)) {
                for server in &servers {
                    match server {
                        Some(server) => self.measure(job, server, &server.name, round)?,
                        None => self.measure_raw(job, round)?,
                    }
                }
            }
            servers.reverse();
        }
        Ok(())
    }

    /// One cell of a server; `name` is what it is filed under.
    pub fn measure(&mut self, job: &Job, server: &Server, name: &str, round: usize) -> Result<()> {
        let load = job.load(&server.socket, &server.export, self.options.seconds, self.span_bytes);
        let is_array = ARRAYS.iter().any(|(array, _, _)| *array == name);
        let traffic = |daemon: &Daemon| if is_array { daemon.traffic(name) } else { Ok(None) };
        let mut best: Option<Sample> = None;
        for attempt in 1..=2 {
            let before = traffic(&self.daemon)?;
            let mut sample =
                quietly(Some(server), || load.run()).with_context(|| format!("{} on {name}", job.name))?;
            sample.attempts = attempt;
            sample.traffic = traffic(&self.daemon)?.zip(before).map(|(after, before)| after.since(before));
            let foreign = sample.foreign;
            if best.as_ref().is_none_or(|best| foreign < best.foreign) {
                best = Some(sample);
            }
            if foreign <= FOREIGN_MAX || self.repeats_left == 0 {
                break;
            }
            self.repeats_left -= u32::from(attempt == 1);
        }
        let sample = best.context("no attempt")?;
        self.file(sample, job.name, name, round)
    }

    fn measure_raw(&mut self, job: &Job, round: usize) -> Result<()> {
        let log = self.folder.join("fio.json");
        let (member, seconds, span) = (&self.members.plain[0], self.options.seconds, self.span_bytes);
        let sample = quietly(None, || crate::fio::run_job(job, member, seconds, span, log))?;
        self.file(sample, job.name, "fio", round)
    }

    /// Keeps a sample, and says so.
    pub fn file(&mut self, mut sample: Sample, job: &str, server: &str, round: usize) -> Result<()> {
        self.members.kind.name().clone_into(&mut sample.members);
        job.clone_into(&mut sample.job);
        server.clone_into(&mut sample.server);
        sample.round = round;
        let outcome = &sample.outcome;
        let disturbed = if sample.foreign > FOREIGN_MAX { ", disturbed" } else { "" };
        println!(
            "round {round}: {job}, {server}: {:.0} /s, {:.0} MB/s, mean {:.1} us, p99 {:.0} us, CPU {:.2} s{disturbed}",
            outcome.iops, outcome.mbps, outcome.mean_us, outcome.p99_us, sample.server_cpu_s
        );
        if let Some(out) = self.out {
            writeln!(out, "{}", serde_json::to_string(&sample)?)?;
        }
        self.samples.0.push(sample);
        Ok(())
    }

    /// A file of this block.
    pub fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.folder.join(name)
    }
}

/// Does it, with what the server and others used of the processors meanwhile.
pub fn quietly(server: Option<&Server>, work: impl FnOnce() -> Result<Outcome>) -> Result<Sample> {
    let (before, own_before) = (CpuTimes::now()?, own_cpu_seconds()?);
    let began = Instant::now();
    let mut outcome = work()?;
    let elapsed = began.elapsed().as_secs_f64();
    let after = CpuTimes::now()?;
    if server.is_none() {
        outcome.client_cpu_s = own_cpu_seconds()? - own_before;
    }
    let processors = available_parallelism()?.get() as f64;
    Ok(Sample {
        outcome,
        server_cpu_s: server.map_or(0.0, |server| after.since(&before, server.group)),
        foreign: after.foreign_since(&before) / elapsed / processors,
        attempts: 1,
        ..Sample::default()
    })
}
