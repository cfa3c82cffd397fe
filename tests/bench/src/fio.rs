//! What the members do without any server between: fio with io_uring, past the page cache.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::jobs::Job;
use crate::load::{Direction, Order, Outcome};
use crate::process::Process;

/// One file or device, and what is done to it.
pub struct Stream {
    /// Where.
    pub path: PathBuf,
    /// fio's `rw`.
    pub rw: &'static str,
    /// From here on.
    pub offset_bytes: u64,
}

/// How much is done to each of them.
pub enum Extent {
    /// So many bytes, over and over for so many seconds.
    Seconds(f64, u64),
    /// So many bytes, once.
    Once(u64),
}

/// Runs all streams at once and returns them added up; for `Once`, until the slowest has ended.
pub fn run(
    streams: &[Stream],
    block_bytes: usize,
    depth: usize,
    extent: &Extent,
    log: PathBuf,
) -> Result<Outcome> {
    let mut command = Command::new("fio");
    command.args(["--output-format=json", "--ioengine=io_uring", "--direct=1", "--thread", "--randrepeat=0"]);
    command.args(["--norandommap", "--lat_percentiles=1", "--clat_percentiles=0"]);
    command.args([format!("--bs={block_bytes}"), format!("--iodepth={depth}")]);
    match extent {
        Extent::Seconds(seconds, size) => {
            let runtime = format!("--runtime={}ms", (seconds * 1e3) as u64);
            command.args(["--time_based".to_owned(), runtime, format!("--size={size}")])
        }
        Extent::Once(size) => command.arg(format!("--size={size}")),
    };
    for (number, stream) in streams.iter().enumerate() {
        command.arg(format!("--name=stream{number}")).arg(format!("--rw={}", stream.rw));
        command.arg(format!("--filename={}", stream.path.display()));
        command.arg(format!("--offset={}", stream.offset_bytes));
    }
    let mut process = Process::start(&mut command, log)?;
    let status = process.wait()?;
    let said = process.output()?;
    ensure!(status.success(), "{command:?}: {said}");
    // Warnings may come first.
    let document = said.find('{').and_then(|at| said.get(at..)).context("fio printed no document")?;
    parse(document, block_bytes).with_context(|| format!("{command:?}"))
}

fn parse(document: &str, block_bytes: usize) -> Result<Outcome> {
    // A warning may also come last.
    let mut values = serde_json::Deserializer::from_str(document).into_iter::<Value>();
    let document = values.next().context("fio printed no document")??;
    let streams = document["jobs"].as_array().context("no jobs in fio's document")?;
    let mut out = Outcome::default();
    let mut latency_total = 0.0;
    for stream in streams {
        for side in [&stream["read"], &stream["write"]] {
            let number = |value: &Value| value.as_f64().unwrap_or(0.0);
            let ios = number(&side["total_ios"]);
            let percentile = |which: &str| number(&side["lat_ns"]["percentile"][which]) / 1e3;
            out.ios += ios as u64;
            out.secs = out.secs.max(number(&side["runtime"]) / 1e3);
            latency_total += ios * number(&side["lat_ns"]["mean"]) / 1e3;
            out.p50_us = out.p50_us.max(percentile("50.000000"));
            out.p99_us = out.p99_us.max(percentile("99.000000"));
            out.p999_us = out.p999_us.max(percentile("99.900000"));
        }
    }
    ensure!(out.ios > 0 && out.secs > 0.0, "fio did nothing");
    out.iops = out.ios as f64 / out.secs;
    out.mbps = out.iops * block_bytes as f64 / 1e6;
    out.mean_us = latency_total / out.ios as f64;
    Ok(out)
}

/// A job of the matrix on one member.
pub fn run_job(job: &Job, member: &Path, seconds: f64, span_bytes: u64, log: PathBuf) -> Result<Outcome> {
    let rw = match (job.direction, job.order) {
        (Direction::Read, Order::Seq) => "read",
        (Direction::Read, Order::Rand) => "randread",
        (Direction::Write, Order::Seq) => "write",
        (Direction::Write, Order::Rand) => "randwrite",
        (Direction::Mixed, _) => "randrw",
    };
    let each_bytes = span_bytes / job.connections as u64;
    let offsets = (0..job.connections as u64).map(|number| number * each_bytes);
    let streams: Vec<_> =
        offsets.map(|offset_bytes| Stream { path: member.to_owned(), rw, offset_bytes }).collect();
    let depth = job.depth.div_ceil(job.connections);
    run(&streams, job.block_bytes, depth, &Extent::Seconds(seconds, each_bytes), log)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_are_added_up_over_the_time_of_the_slowest() {
        let side = |ios: u32, runtime: u32| {
            format!(
                r#"{{"total_ios":{ios},"runtime":{runtime},"lat_ns":{{"mean":2000.0,"percentile":{{"99.000000":9000}}}}}}"#
            )
        };
        let none = side(0, 0);
        let document = format!(
            r#"{{"jobs":[{{"read":{},"write":{none}}},{{"read":{none},"write":{}}}]}} fio: bye"#,
            side(1000, 500),
            side(1000, 1000)
        );
        let out = parse(&document, 1 << 20).unwrap();
        assert_eq!((out.ios, out.secs, out.iops), (2000, 1.0, 2000.0));
        assert_eq!((out.mean_us, out.p99_us), (2.0, 9.0));
        assert!(parse(r#"{"jobs":[]}"#, 4096).is_err());
    }
}
