//! From samples to rows: raidd's median, the other's, their ratio and what it is to be. Pure.

use crate::jobs::{
    ARRAYS, CHECK, CPU_TARGET, DEGRADED, FOREGROUND, FOREGROUND_TARGET, JOBS, Job, RECOVERY, SCALING, Target,
    degraded_amplification, members_target, quorum_target,
};
use crate::load::Direction;
use crate::sample::{Sample, Samples};
use crate::servers::{PEERS, Peer};

/// What a figure counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Requests a second.
    PerSecond,
    /// Millions of bytes a second.
    Megabytes,
    /// Latency.
    Microseconds,
    /// CPU seconds for a GiB.
    CpuPerGib,
    /// CPU seconds for a million requests.
    CpuPerMillion,
    /// Bytes for each byte of the client.
    Bytes,
}

/// What a row is about; each is a table of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Topic {
    /// Against the best server of one plain member.
    Peers,
    /// Against qemu's mirror.
    Mirror,
    /// CPU time of the server.
    Cpu,
    /// Against fio on the members.
    Members,
    /// Clients during recovery.
    Foreground,
    /// Two reactors by one.
    Scaling,
    /// Bytes that writes cost.
    Traffic,
}

/// One line of a table.
#[derive(Clone, Debug)]
pub struct Row {
    /// Which table.
    pub topic: Topic,
    /// What was done.
    pub job: String,
    /// Which array did it.
    pub array: String,
    /// What its members are.
    pub members: String,
    /// Of both figures.
    pub unit: Unit,
    /// raidd's median.
    pub ours: f64,
    /// Whom it is compared with.
    pub other: String,
    /// Its median.
    pub theirs: f64,
    /// What the ratio is to be; none where it is only told.
    pub target: Option<Target>,
    /// What else there is to say.
    pub note: String,
}

impl Row {
    /// raidd's figure by the other's.
    pub fn ratio(&self) -> f64 {
        self.ours / self.theirs
    }
}

/// As much as fio gets of one member: then the disk decides, and no server.
const BOUND_BY_DISK: f64 = 0.9;

struct Rows<'a> {
    samples: &'a Samples,
    members: &'a str,
    out: Vec<Row>,
}

/// All rows that the samples suffice for.
pub fn rows(samples: &Samples) -> Vec<Row> {
    let mut out = Vec::new();
    for members in samples.kinds() {
        let mut rows = Rows { samples, members: &members, out: Vec::new() };
        for job in &JOBS {
            rows.against_peers(job);
        }
        for job in &JOBS {
            rows.against_mirror(job);
        }
        for job in JOBS.iter().filter(|job| job.direction == Direction::Read) {
            rows.cpu(job);
        }
        rows.against_members();
        rows.foreground();
        rows.scaling();
        for job in JOBS.iter().filter(|job| job.direction == Direction::Write) {
            rows.traffic(job);
        }
        out.append(&mut rows.out);
    }
    out
}

fn rate(job: &Job) -> (Unit, fn(&Sample) -> f64) {
    if job.is_small() {
        (Unit::PerSecond, |sample| sample.outcome.iops)
    } else {
        (Unit::Megabytes, |sample| sample.outcome.mbps)
    }
}

fn cpu_cost(job: &Job) -> (Unit, fn(&Sample) -> f64) {
    if job.is_small() {
        (Unit::CpuPerMillion, |sample| sample.server_cpu_s / sample.outcome.ios as f64 * 1e6)
    } else {
        // MB/s times seconds are MB.
        (Unit::CpuPerGib, |sample| {
            sample.server_cpu_s / (sample.outcome.mbps * sample.outcome.secs * 1e6 / 1_073_741_824.0)
        })
    }
}

impl Rows<'_> {
    fn in_memory(&self) -> bool {
        self.members == "shm" || self.members == "zram"
    }

    fn median(&self, job: &str, server: &str, figure: impl Fn(&Sample) -> f64) -> Option<f64> {
        self.samples.median((self.members, job, server), figure)
    }

    /// The best of those that may be compared with, and its figure.
    fn best(&self, job: &Job, figure: fn(&Sample) -> f64, smallest: bool) -> Option<(&'static str, f64)> {
        let plain = PEERS.into_iter().filter(|peer| *peer != Peer::Quorum);
        let fair = plain.filter(|peer| self.in_memory() || peer.is_direct());
        let medians =
            fair.filter_map(|peer| Some((peer.name(), self.median(job.name, peer.name(), figure)?)));
        let by_figure = |a: &(&str, f64), b: &(&str, f64)| a.1.total_cmp(&b.1);
        if smallest { medians.min_by(by_figure) } else { medians.max_by(by_figure) }
    }

    fn push(
        &mut self,
        topic: Topic,
        job: &str,
        array: &str,
        figures: (Unit, f64, f64),
        rest: (&str, Option<Target>),
    ) {
        let (unit, ours, theirs) = figures;
        self.out.push(Row {
            topic,
            job: job.to_owned(),
            array: array.to_owned(),
            members: self.members.to_owned(),
            unit,
            ours,
            other: rest.0.to_owned(),
            theirs,
            target: rest.1,
            note: String::new(),
        });
    }

    fn against_peers(&mut self, job: &Job) {
        let (unit, figure): (Unit, fn(&Sample) -> f64) =
            if job.is_latency() { (Unit::Microseconds, |sample| sample.outcome.mean_us) } else { rate(job) };
        let Some((peer, theirs)) = self.best(job, figure, job.is_latency()) else { return };
        for (array, _, _) in ARRAYS {
            if let Some(ours) = self.median(job.name, array, figure) {
                let target = job.target(array, self.in_memory());
                self.push(Topic::Peers, job.name, array, (unit, ours, theirs), (peer, Some(target)));
            }
        }
    }

    fn against_mirror(&mut self, job: &Job) {
        let (unit, figure) = rate(job);
        let theirs = self.median(job.name, Peer::Quorum.name(), figure);
        let (Some(ours), Some(theirs)) = (self.median(job.name, "raid1", figure), theirs) else { return };
        let alone = self.median(job.name, "fio", figure);
        let bound = !self.in_memory() && alone.is_some_and(|alone| ours >= BOUND_BY_DISK * alone);
        let target = (!bound).then(|| quorum_target(self.in_memory()));
        self.push(Topic::Mirror, job.name, "raid1", (unit, ours, theirs), ("quorum", target));
        if let (true, Some(row)) = (bound, self.out.last_mut()) {
            "bound by the disk".clone_into(&mut row.note);
        }
    }

    fn cpu(&mut self, job: &Job) {
        let (unit, figure) = cpu_cost(job);
        let Some((peer, theirs)) = self.best(job, figure, true) else { return };
        for (array, _, _) in ARRAYS {
            if let Some(ours) = self.median(job.name, array, figure) {
                self.push(Topic::Cpu, job.name, array, (unit, ours, theirs), (peer, Some(CPU_TARGET)));
            }
        }
    }

    fn against_members(&mut self) {
        let target = Some(members_target(self.in_memory()));
        for job in [DEGRADED.name, RECOVERY, CHECK] {
            for (array, width, lost) in ARRAYS {
                let ours = self.median(job, array, |sample| sample.outcome.mbps);
                let theirs = self.median(job, &format!("fio:{array}"), |sample| sample.outcome.mbps);
                let (Some(ours), Some(theirs)) = (ours, theirs) else { continue };
                // fio's figure is what the members give, raidd's what the client gets.
                let is_degraded = job == DEGRADED.name;
                let cost = if is_degraded { degraded_amplification(width, lost) } else { 1.0 };
                let label = if is_degraded { format!("{array} minus {lost}") } else { array.to_owned() };
                let figures = (Unit::Megabytes, ours, theirs / cost);
                self.push(Topic::Members, job, &label, figures, ("fio", target));
            }
        }
    }

    fn foreground(&mut self) {
        for job in &FOREGROUND {
            let p99 = |sample: &Sample| sample.outcome.p99_us;
            let (during, healthy) =
                (self.median(job.name, "raid5:recovering", p99), self.median(job.name, "raid5", p99));
            if let (Some(during), Some(healthy)) = (during, healthy) {
                let figures = (Unit::Microseconds, during, healthy);
                let rest = ("the same, healthy", Some(FOREGROUND_TARGET));
                self.push(Topic::Foreground, job.name, "raid5", figures, rest);
            }
        }
    }

    fn scaling(&mut self) {
        for job in &SCALING {
            let (unit, figure) = rate(job);
            let of = |server: &str| self.median(job.name, server, figure);
            if let (Some(two), Some(one)) = (of("raid5:two"), of("raid5:one")) {
                self.push(
                    Topic::Scaling,
                    job.name,
                    "raid5",
                    (unit, two, one),
                    ("one reactor, one processor", None),
                );
            }
        }
    }

    /// Bytes written to members for each byte of the client; `theirs` is the least there can be, for whole stripes.
    fn traffic(&mut self, job: &Job) {
        for (array, width, lost) in ARRAYS {
            let by_client = |sample: &Sample, bytes: u64| {
                bytes as f64 / (sample.outcome.ios as f64 * job.block_bytes as f64)
            };
            let known = self
                .samples
                .cell(self.members, job.name, array)
                .iter()
                .all(|sample| sample.traffic.is_some_and(|traffic| traffic.member_written_bytes > 0));
            let written =
                |sample: &Sample| by_client(sample, sample.traffic.unwrap_or_default().member_written_bytes);
            let read =
                |sample: &Sample| by_client(sample, sample.traffic.unwrap_or_default().member_read_bytes);
            let (Some(ours), Some(also_read), true) =
                (self.median(job.name, array, written), self.median(job.name, array, read), known)
            else {
                continue;
            };
            let copies = if array == "raid1" { 1.0 } else { f64::from(width) - lost as f64 };
            let figures = (Unit::Bytes, ours, f64::from(width) / copies);
            self.push(Topic::Traffic, job.name, array, figures, ("whole stripes", None));
            if let Some(row) = self.out.last_mut() {
                row.note = format!("and {also_read:.2} read");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::daemon::Traffic;
    use crate::load::Outcome;

    fn sample(job: &str, server: &str, iops: f64, mbps: f64) -> Sample {
        Sample {
            members: "shm".to_owned(),
            job: job.to_owned(),
            server: server.to_owned(),
            outcome: Outcome {
                ios: 1000,
                secs: 1.0,
                iops,
                mbps,
                mean_us: 1e6 / iops,
                p99_us: 50.0,
                ..Outcome::default()
            },
            server_cpu_s: 0.5,
            ..Sample::default()
        }
    }

    fn only(samples: Vec<Sample>, topic: Topic) -> Vec<Row> {
        rows(&Samples(samples)).into_iter().filter(|row| row.topic == topic).collect()
    }

    #[test]
    fn the_best_peer_is_what_counts_and_the_mirror_is_none() {
        let job = "4k-randread-qd32";
        let found = only(
            vec![
                sample(job, "raid5", 300e3, 1.0),
                sample(job, "nbdkit", 200e3, 1.0),
                sample(job, "qsd", 80e3, 1.0),
                sample(job, "quorum", 900e3, 1.0),
            ],
            Topic::Peers,
        );
        assert_eq!(found.len(), 1);
        assert_eq!((found[0].other.as_str(), found[0].ratio()), ("nbdkit", 1.5));
        assert!(found[0].target.unwrap().is_met(found[0].ratio()));
    }

    #[test]
    fn on_a_disk_nobody_is_compared_with_the_page_cache() {
        let job = "128k-read-qd8";
        let mut samples = vec![
            sample(job, "raid1", 1.0, 1000.0),
            sample(job, "nbdkit", 1.0, 9000.0),
            sample(job, "qemu-nbd", 1.0, 800.0),
        ];
        samples.iter_mut().for_each(|sample| "disk".clone_into(&mut sample.members));
        let found = only(samples, Topic::Peers);
        assert_eq!((found[0].other.as_str(), found[0].ratio()), ("qemu-nbd", 1.25));
    }

    #[test]
    fn the_lowest_latency_is_the_best() {
        let job = "4k-randread-qd1";
        let all = [("raid1", 20e3), ("nbdkit", 25e3), ("qsd", 10e3)];
        let found = only(all.map(|(server, iops)| sample(job, server, iops, 1.0)).to_vec(), Topic::Peers);
        assert_eq!((found[0].other.as_str(), found[0].theirs, found[0].ratio()), ("nbdkit", 40.0, 1.25));
    }

    #[test]
    fn degraded_reads_are_compared_with_what_they_cost() {
        let name = DEGRADED.name;
        let found = only(
            vec![sample(name, "raid5", 1.0, 2000.0), sample(name, "fio:raid5", 1.0, 6000.0)],
            Topic::Members,
        );
        assert_eq!(
            (found[0].theirs, found[0].ratio(), found[0].array.as_str()),
            (4000.0, 0.5, "raid5 minus 1")
        );
    }

    #[test]
    fn cpu_time_is_by_request_and_by_gib() {
        let found = only(
            vec![sample("4k-randread-qd32", "raid1", 1e3, 1.0), sample("4k-randread-qd32", "qsd", 1e3, 1.0)],
            Topic::Cpu,
        );
        assert_eq!((found[0].unit, found[0].ours), (Unit::CpuPerMillion, 500.0));
        let found = only(
            vec![sample("1m-read-qd4", "raid1", 1e3, 1073.741824), sample("1m-read-qd4", "qsd", 1e3, 1.0)],
            Topic::Cpu,
        );
        assert_eq!((found[0].unit, found[0].ours), (Unit::CpuPerGib, 0.5));
    }

    #[test]
    fn written_bytes_are_told_where_they_are_known() {
        let job = "1m-write-qd4";
        let mut known = sample(job, "raid6", 1.0, 1.0);
        known.traffic = Some(Traffic { member_read_bytes: 0, member_written_bytes: 1500 << 20 });
        let found = only(vec![known, sample(job, "raid5", 1.0, 1.0)], Topic::Traffic);
        assert_eq!(found.len(), 1);
        assert_eq!((found[0].ours, found[0].theirs), (1.5, 1.5));
    }
}
