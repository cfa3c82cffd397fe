//! What is not a server's daily work: recovery and check, clients meanwhile, arrays with members missing, one reactor
//! and two.

use std::path::PathBuf;

use anyhow::{Result, ensure};

use crate::daemon::{Daemon, Threads};
use crate::fio::{self, Extent, Stream};
use crate::jobs::{ARRAYS, CHECK, DEGRADED, FOREGROUND, RECOVERY, SCALING, degraded_amplification};
use crate::load::Outcome;
use crate::run::{Block, quietly};

/// What raidd's sync actions ask of a member at once, for fio to do the same.
const SYNC_BLOCK_BYTES: usize = 512 << 10;
const SYNC_DEPTH: usize = 8;
/// md's throttle, and raidd's.
const DEFAULT_THROTTLE: [&str; 2] = ["recovery_min=1000K", "recovery_max=200000K"];

/// The members of an array and its place in [`ARRAYS`].
fn arrays() -> impl Iterator<Item = (usize, &'static str)> {
    ARRAYS.iter().enumerate().map(|(number, (array, _, _))| (number, *array))
}

impl Block<'_> {
    /// Recovery and check at full speed, beside fio doing the same to the same members: recovery reads all but one and
    /// writes that one, a check reads all; sequential, direct. Figures are bytes a second of each member.
    pub fn repairs(&mut self) -> Result<()> {
        for round in 0..self.options.rounds() {
            for (number, array) in arrays() {
                let last = self.members.arrays[number].len() - 1;
                if self.options.wants(RECOVERY) {
                    self.take_out(number, array)?;
                    self.same_by_fio(RECOVERY, (number, array), round, Some(last))?;
                    self.put_back(number, array)?;
                    self.file_sync(RECOVERY, array, round)?;
                }
                if self.options.wants(CHECK) {
                    self.same_by_fio(CHECK, (number, array), round, None)?;
                    self.daemon.ctl(["scrub", array])?;
                    self.daemon.ctl(["wait", array])?;
                    self.file_sync(CHECK, array, round)?;
                }
            }
        }
        Ok(())
    }

    fn last_member(&self, number: usize) -> String {
        self.members.arrays[number].last().map_or_else(String::new, |path| path.display().to_string())
    }

    fn take_out(&self, number: usize, array: &str) -> Result<()> {
        let device = self.last_member(number);
        self.daemon.ctl(["fail", array, &device])?;
        self.daemon.ctl(["remove", array, &device])?;
        self.daemon.ctl(["zero-superblock", &device]).map(drop)
    }

    fn put_back(&self, number: usize, array: &str) -> Result<()> {
        self.daemon.ctl(["add", array, &self.last_member(number)])?;
        self.daemon.ctl(["wait", array]).map(drop)
    }

    /// What the array's last sync action did to each member.
    fn file_sync(&mut self, job: &str, array: &str, round: usize) -> Result<()> {
        let secs = self.daemon.last_sync_ms(array)?.max(1) as f64 / 1e3;
        let mbps = self.daemon.member_bytes(array)? as f64 / secs / 1e6;
        let outcome = Outcome { secs, mbps, ..Outcome::default() };
        let sample = quietly(None, || Ok(outcome))?;
        self.file(sample, job, array, round)
    }

    fn same_by_fio(
        &mut self,
        job: &str,
        array: (usize, &str),
        round: usize,
        written: Option<usize>,
    ) -> Result<()> {
        let (number, array) = array;
        let used_bytes = self.daemon.member_bytes(array)?;
        // Superblock and bitmap lie before the data.
        let offset_bytes = self.members.size_bytes - used_bytes;
        let rw = |member: usize| if written == Some(member) { "write" } else { "read" };
        let paths = self.members.arrays[number].iter().enumerate();
        let streams: Vec<_> =
            paths.map(|(member, path)| Stream { path: path.clone(), rw: rw(member), offset_bytes }).collect();
        let (width, log) = (streams.len() as f64, self.path("fio.json"));
        let extent = Extent::Once(used_bytes);
        let mut sample = quietly(None, || fio::run(&streams, SYNC_BLOCK_BYTES, SYNC_DEPTH, &extent, log))?;
        sample.outcome.mbps /= width;
        self.file(sample, job, &format!("fio:{array}"), round)
    }

    /// A RAID 5's clients while it is healthy, and while it recovers at the default throttle.
    pub fn foreground(&mut self) -> Result<()> {
        let (number, array) = (1, ARRAYS[1].0);
        for round in 0..self.options.rounds() {
            for job in FOREGROUND.iter().filter(|job| self.options.wants(job.name)) {
                let server = self.daemon.server(array);
                self.measure(job, &server, array, round)?;
                self.take_out(number, array)?;
                self.daemon.ctl(["tune", array, DEFAULT_THROTTLE[0], DEFAULT_THROTTLE[1]])?;
                self.daemon.ctl(["add", array, &self.last_member(number)])?;
                self.measure(job, &server, "raid5:recovering", round)?;
                if !self.daemon.is_syncing(array)? {
                    println!(
                        "recovery ended before its cell did: larger members (--size) or shorter cells are needed"
                    );
                }
                self.full_speed(array)?;
                self.daemon.ctl(["wait", array])?;
            }
        }
        Ok(())
    }

    /// A RAID 5 under a raidd of its own: one reactor on one processor, then two on all.
    pub fn scaling(&mut self) -> Result<()> {
        if !SCALING.iter().any(|job| self.options.wants(job.name)) {
            return Ok(());
        }
        let array = ARRAYS[1].0;
        self.daemon.ctl(["stop", array])?;
        let one = ("raid5:one", Threads { reactors: Some(1), processor: Some(0) });
        let two = ("raid5:two", Threads { reactors: Some(2), processor: None });
        let mut order = [one, two];
        for round in 0..self.options.rounds() {
            for (name, threads) in order {
                let folder = self.path(format!("{}-{round}", name.replace(':', "-")));
                let daemon = Daemon::start(self.options.bin(), &folder, threads)?;
                daemon.ctl(self.assemble(array))?;
                let server = daemon.server(array);
                for job in SCALING.iter().filter(|job| self.options.wants(job.name)) {
                    self.measure(job, &server, name, round)?;
                }
                daemon.stop();
            }
            order.reverse();
        }
        self.daemon.ctl(self.assemble(array))?;
        self.full_speed(array)
    }

    fn assemble(&self, array: &str) -> Vec<String> {
        let members = self.members.arrays[1].iter().map(|path| path.display().to_string());
        ["assemble".to_owned(), array.to_owned()].into_iter().chain(members).collect()
    }

    /// Sequential reads of a RAID 5 without one and of a RAID 6 without two members, beside fio with the reads that this
    /// needs of the survivors: as many bytes of each, in requests of the same size, as many in flight in all.
    pub fn degraded(&mut self) -> Result<()> {
        if !self.options.wants(DEGRADED.name) {
            return Ok(());
        }
        let mut survivors: Vec<(usize, Vec<PathBuf>)> = Vec::new();
        for (number, array) in arrays().skip(1) {
            let mut left = self.members.arrays[number].clone();
            for _ in 0..ARRAYS[number].2 {
                let lost = left.pop().map(|path| path.display().to_string()).unwrap_or_default();
                self.daemon.ctl(["fail", array, &lost])?;
            }
            ensure!(self.daemon.status(array)?["health"] == "degraded", "{array} is not degraded");
            survivors.push((number, left));
        }
        for round in 0..self.options.rounds() {
            for (number, left) in &survivors {
                let array = ARRAYS[*number].0;
                if round % 2 == 1 {
                    self.survivors_by_fio(*number, left, round)?;
                }
                let server = self.daemon.server(array);
                self.measure(&DEGRADED, &server, array, round)?;
                if round % 2 == 0 {
                    self.survivors_by_fio(*number, left, round)?;
                }
            }
        }
        Ok(())
    }

    fn survivors_by_fio(&mut self, number: usize, left: &[PathBuf], round: usize) -> Result<()> {
        let (array, width, lost) = ARRAYS[number];
        let used_bytes = self.daemon.member_bytes(array)?;
        let offset_bytes = self.members.size_bytes - used_bytes;
        let in_flight = DEGRADED.depth as f64 * degraded_amplification(width, lost);
        let depth = (in_flight / left.len() as f64).round().max(1.0) as usize;
        let streams: Vec<_> =
            left.iter().map(|path| Stream { path: path.clone(), rw: "read", offset_bytes }).collect();
        let extent = Extent::Seconds(self.options.seconds(), used_bytes);
        let log = self.path("fio.json");
        let sample = quietly(None, || fio::run(&streams, DEGRADED.block_bytes, depth, &extent, log))?;
        self.file(sample, DEGRADED.name, &format!("fio:{array}"), round)
    }
}
