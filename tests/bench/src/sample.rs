//! One measured cell, and what is made of several: medians.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::daemon::Traffic;
use crate::load::Outcome;

/// One cell of one round. `server` is an array's name, a peer's, or `fio`; where fio stands in for an array's members it
/// is `fio:` and the array's name.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Sample {
    /// shm, zram, disk or loop.
    pub members: String,
    /// The job's name.
    pub job: String,
    /// Who did it.
    pub server: String,
    /// From 0.
    pub round: usize,
    /// What came of it.
    #[serde(flatten)]
    pub outcome: Outcome,
    /// CPU seconds of the server's processes.
    pub server_cpu_s: f64,
    /// The share of all processors that others took meanwhile.
    pub foreign: f64,
    /// How often it was measured; the quietest counts.
    pub attempts: u32,
    /// What the array's members saw, where that is known.
    pub traffic: Option<Traffic>,
}

/// The median: of an even number, the mean of the two in the middle. None of nothing.
pub fn median(values: impl IntoIterator<Item = f64>) -> Option<f64> {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => None,
        odd if odd % 2 == 1 => Some(values[middle]),
        _ => Some(f64::midpoint(values[middle - 1], values[middle])),
    }
}

/// All samples of a run, to be asked for medians.
#[derive(Default)]
pub struct Samples(pub Vec<Sample>);

impl Samples {
    /// Those of one cell, all rounds.
    pub fn cell(&self, members: &str, job: &str, server: &str) -> Vec<&Sample> {
        let wanted =
            |sample: &&Sample| sample.members == members && sample.job == job && sample.server == server;
        self.0.iter().filter(wanted).collect()
    }

    /// The median of a figure over all rounds of one cell.
    pub fn median(&self, cell: (&str, &str, &str), figure: impl Fn(&Sample) -> f64) -> Option<f64> {
        median(self.cell(cell.0, cell.1, cell.2).into_iter().map(figure))
    }

    /// The kinds of members there are samples of, in the order of their first.
    pub fn kinds(&self) -> Vec<String> {
        let mut seen = BTreeSet::new();
        let all = self.0.iter().map(|sample| sample.members.clone());
        all.filter(|members| seen.insert(members.clone())).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians() {
        assert_eq!(median([]), None);
        assert_eq!(median([3.0]), Some(3.0));
        assert_eq!(median([9.0, 1.0, 5.0]), Some(5.0));
        assert_eq!(median([4.0, 1.0, 2.0, 9.0]), Some(3.0));
    }

    #[test]
    fn a_cell_is_all_its_rounds_and_nothing_else() {
        let sample = |server: &str, members: &str, iops: f64| Sample {
            server: server.to_owned(),
            members: members.to_owned(),
            job: "j".to_owned(),
            outcome: Outcome { iops, ..Outcome::default() },
            ..Sample::default()
        };
        let samples = Samples(vec![
            sample("a", "shm", 1.0),
            sample("b", "shm", 100.0),
            sample("a", "disk", 200.0),
            sample("a", "shm", 3.0),
        ]);
        assert_eq!(samples.median(("shm", "j", "a"), |sample| sample.outcome.iops), Some(2.0));
        assert_eq!(samples.median(("shm", "other", "a"), |sample| sample.outcome.iops), None);
        assert_eq!(samples.kinds(), ["shm", "disk"]);
    }

    #[test]
    fn a_sample_survives_its_line() {
        let sample = Sample { job: "j".to_owned(), traffic: Some(Traffic::default()), ..Sample::default() };
        let line = serde_json::to_string(&sample).unwrap();
        let back: Sample = serde_json::from_str(&line).unwrap();
        assert_eq!((back.job, back.traffic, back.outcome), (sample.job, sample.traffic, sample.outcome));
    }
}
