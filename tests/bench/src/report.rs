//! Rows and samples as Markdown, put between two markers of a document whose prose is kept.

use std::fmt::Write as _;

use anyhow::{Result, ensure};

use crate::jobs::{JOBS, Target};
use crate::rows::{Row, Topic, Unit};
use crate::sample::Samples;

/// Where the generated part begins.
pub const BEGIN: &str = "<!-- begin: written by scripts/bench -->";
/// Where it ends.
pub const END: &str = "<!-- end: written by scripts/bench -->";

const TOPICS: [(Topic, &str); 7] = [
    (Topic::Peers, "Beside the best server of one plain file"),
    (Topic::Mirror, "A mirror beside qemu's"),
    (Topic::Cpu, "CPU time of the server"),
    (Topic::Members, "Degraded reads, recovery and check beside fio on the members"),
    (Topic::Foreground, "Clients during recovery, 99 % of requests"),
    (Topic::Scaling, "From one processor to two"),
    (Topic::Traffic, "Bytes written to members for each byte of the client"),
];

/// A figure with its unit, three digits or so.
pub fn figure(value: f64, unit: Unit) -> String {
    match unit {
        Unit::PerSecond if value >= 10e3 => format!("{:.0} k/s", value / 1e3),
        Unit::PerSecond => format!("{:.1} k/s", value / 1e3),
        Unit::Megabytes => format!("{value:.0} MB/s"),
        Unit::Microseconds if value >= 100.0 => format!("{value:.0} µs"),
        Unit::Microseconds => format!("{value:.1} µs"),
        Unit::CpuPerGib => format!("{value:.2} s/GiB"),
        Unit::CpuPerMillion => format!("{value:.1} s/M"),
        Unit::Bytes => format!("{value:.2}"),
    }
}

fn target(target: Option<Target>) -> String {
    match target {
        Some(Target::AtLeast(bound)) => format!("≥ {bound}"),
        Some(Target::AtMost(bound)) => format!("≤ {bound}"),
        None => "-".to_owned(),
    }
}

fn verdict(row: &Row) -> String {
    match row.target {
        Some(target) if target.is_met(row.ratio()) => "met".to_owned(),
        Some(_) => "**not met**".to_owned(),
        None if row.note.is_empty() => "-".to_owned(),
        None => row.note.clone(),
    }
}

/// All tables of ratios.
pub fn ratios(rows: &[Row]) -> String {
    let mut out = String::new();
    for (topic, title) in TOPICS {
        let mut rows = rows.iter().filter(|row| row.topic == topic).peekable();
        if rows.peek().is_none() {
            continue;
        }
        out += &format!("### {title}\n\n");
        out += "| job | array | members | raidd | compared with | ratio | target | |\n|---|---|---|---|---|---|---|---|\n";
        for row in rows {
            let (ours, theirs) = (figure(row.ours, row.unit), figure(row.theirs, row.unit));
            let (ratio, target, verdict) = (row.ratio(), target(row.target), verdict(row));
            let Row { job, array, members, other, .. } = row;
            out += &format!(
                "| {job} | {array} | {members} | {ours} | {theirs} ({other}) | {ratio:.2} | {target} | {verdict} |\n"
            );
        }
        out.push('\n');
    }
    out
}

/// What everybody got done: medians, and how far rounds lie apart.
pub fn absolutes(samples: &Samples) -> String {
    let mut out = String::new();
    for members in samples.kinds() {
        let mut servers: Vec<&str> = Vec::new();
        for sample in samples.0.iter().filter(|sample| sample.members == members) {
            let of_matrix = JOBS.iter().any(|job| job.name == sample.job);
            if of_matrix && !servers.contains(&sample.server.as_str()) {
                servers.push(&sample.server);
            }
        }
        if servers.is_empty() {
            continue;
        }
        out += &format!(
            "### What everybody got done, members: {members}\n\n| job | {} |\n",
            servers.join(" | ")
        );
        out += &format!("|---|{}\n", "---|".repeat(servers.len()));
        for job in &JOBS {
            let cells: Vec<String> =
                servers.iter().map(|server| absolute(samples, &members, job.name, server)).collect();
            if cells.iter().any(|cell| cell != "-") {
                out += &format!("| {} | {} |\n", job.name, cells.join(" | "));
            }
        }
        out.push('\n');
    }
    out
}

fn absolute(samples: &Samples, members: &str, job: &str, server: &str) -> String {
    let small = JOBS.iter().any(|one| one.name == job && one.is_small());
    let unit = if small { Unit::PerSecond } else { Unit::Megabytes };
    let value =
        |sample: &crate::sample::Sample| if small { sample.outcome.iops } else { sample.outcome.mbps };
    let cell = samples.cell(members, job, server);
    let Some(median) = samples.median((members, job, server), value) else { return "-".to_owned() };
    let values = cell.iter().map(|sample| value(sample));
    let (low, high) =
        values.fold((f64::MAX, 0.0_f64), |(low, high), value| (low.min(value), high.max(value)));
    let mut text = figure(median, unit);
    if let Some(latency) = samples.median((members, job, server), |sample| sample.outcome.mean_us) {
        write!(text, ", {}", figure(latency, Unit::Microseconds)).unwrap_or_default();
    }
    if cell.len() > 1 {
        write!(text, " (±{:.0} %)", 50.0 * (high - low) / median).unwrap_or_default();
    }
    text
}

/// How much of it meets its target, and how quiet it was.
pub fn summary(rows: &[Row], samples: &Samples) -> String {
    let judged: Vec<_> = rows.iter().filter_map(|row| Some(row.target?.is_met(row.ratio()))).collect();
    let met = judged.iter().filter(|met| **met).count();
    let disturbed = samples.0.iter().filter(|sample| sample.foreign > crate::run::FOREIGN_MAX).count();
    format!(
        "{met} of {} targets are met. Of {} cells, {disturbed} were measured while others took more than {:.0} % of the \
         processors.\n",
        judged.len(),
        samples.0.len(),
        crate::run::FOREIGN_MAX * 100.0
    )
}

/// The document with its generated part replaced. Errors: the markers are not there, once and in order.
pub fn splice(document: &str, generated: &str) -> Result<String> {
    let count = |marker: &str| document.matches(marker).count();
    ensure!(
        count(BEGIN) == 1 && count(END) == 1,
        "the document must have the markers {BEGIN} and {END} once"
    );
    let (before, rest) = document.split_once(BEGIN).unwrap_or_default();
    let Some((_, after)) = rest.split_once(END) else { anyhow::bail!("{END} comes before {BEGIN}") };
    Ok(format!("{before}{BEGIN}\n\n{}\n\n{END}{after}", generated.trim()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::Outcome;
    use crate::sample::Sample;

    fn row() -> Row {
        Row {
            topic: Topic::Peers,
            job: "4k-randread-qd32".to_owned(),
            array: "raid5".to_owned(),
            members: "shm".to_owned(),
            unit: Unit::PerSecond,
            ours: 315e3,
            other: "nbdkit".to_owned(),
            theirs: 210e3,
            target: Some(Target::AtLeast(1.5)),
            note: String::new(),
        }
    }

    #[test]
    fn a_row_says_who_what_and_whether() {
        let missed = Row { ours: 300e3, ..row() };
        let text = ratios(&[row(), missed]);
        assert!(text.starts_with("### Beside the best server of one plain file\n\n| job |"), "{text}");
        assert!(text.contains(
            "| 4k-randread-qd32 | raid5 | shm | 315 k/s | 210 k/s (nbdkit) | 1.50 | ≥ 1.5 | met |\n"
        ));
        assert!(text.contains("| 1.43 | ≥ 1.5 | **not met** |\n"));
        assert_eq!(text.matches("###").count(), 1, "a table without rows is left out");
    }

    #[test]
    fn absolutes_have_a_column_for_each_server() {
        let sample = |server: &str, iops: f64| Sample {
            members: "shm".to_owned(),
            job: "4k-randread-qd1".to_owned(),
            server: server.to_owned(),
            outcome: Outcome { iops, mean_us: 12.0, ..Outcome::default() },
            ..Sample::default()
        };
        let samples = Samples(vec![sample("qsd", 9e3), sample("qsd", 11e3), sample("raid1", 50e3)]);
        let text = absolutes(&samples);
        assert!(text.contains("| job | qsd | raid1 |\n|---|---|---|\n"), "{text}");
        assert!(text.contains("| 4k-randread-qd1 | 10 k/s, 12.0 µs (±10 %) | 50 k/s, 12.0 µs |\n"), "{text}");
    }

    #[test]
    fn figures_have_their_units() {
        assert_eq!(figure(9876.0, Unit::PerSecond), "9.9 k/s");
        assert_eq!(figure(2345.6, Unit::Megabytes), "2346 MB/s");
        assert_eq!(figure(0.254, Unit::CpuPerGib), "0.25 s/GiB");
        assert_eq!(figure(4.25, Unit::CpuPerMillion), "4.2 s/M");
    }

    #[test]
    fn prose_around_the_markers_is_kept() {
        let document = format!("# T\n\nbefore\n\n{BEGIN}\nold\n{END}\n\nafter\n");
        let once = splice(&document, "new\n").unwrap();
        assert_eq!(once, format!("# T\n\nbefore\n\n{BEGIN}\n\nnew\n\n{END}\n\nafter\n"));
        assert_eq!(splice(&once, "new").unwrap(), once);
        assert!(splice("no markers", "new").is_err());
        assert!(splice(&format!("{END}{BEGIN}"), "new").is_err());
    }
}
