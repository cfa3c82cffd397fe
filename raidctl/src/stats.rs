//! `stats`: what arrays and their members do, as iostat tells it of disks. The first table is of all since an array's start,
//! each further one of what has happened since the one before.

use std::time::Duration;

use raidd::api::{ArrayState, Operations, ProblemCode, Stats};

use crate::activity::{Activity, Work, p99_us, per_second};
use crate::failure::Failure;
use crate::quantity::{duration, latency};
use crate::render::{columns, finish, printable, right};
use crate::request::{CallError, Daemon};

/// How often to tell.
pub struct Turns {
    /// Time between two tables; none: there is but one.
    pub interval: Option<Duration>,
    /// End after so many; none: go on.
    pub count: Option<u64>,
}

/// Tells what an array does, or every array.
pub fn run(daemon: &Daemon, name: Option<&str>, turns: &Turns, json: bool) -> Result<(), Failure> {
    let mut before = Vec::new();
    for turn in 0.. {
        let now = match name {
            Some(name) => vec![daemon.stats(name).map_err(|error| daemon.explain(error))?],
            None => of_all(daemon)?,
        };
        match (json, name, &now[..]) {
            (true, Some(_), [one]) => crate::document(one)?,
            (true, ..) => crate::document(&now)?,
            (false, ..) if turn == 0 => crate::output((table(&[], &now) + &since_start(&now)).as_bytes())?,
            (false, ..) => crate::output(format!("\n{}", table(&before, &now)).as_bytes())?,
        }
        before = now;
        let is_last = turns.count.is_some_and(|count| turn + 1 == count);
        let Some(interval) = turns.interval.filter(|_| !is_last) else { break };
        std::thread::sleep(interval);
    }
    Ok(())
}

/// Of every array that runs.
fn of_all(daemon: &Daemon) -> Result<Vec<Stats>, Failure> {
    let mut all = Vec::new();
    for array in daemon.list()?.iter().filter(|array| array.state != ArrayState::Inactive) {
        match daemon.stats(&array.name) {
            Ok(stats) => all.push(stats),
            Err(CallError::Refused(problem)) if has_been_stopped(problem.code) => {}
            Err(error) => return Err(daemon.explain(error)),
        }
    }
    Ok(all)
}

/// Whether that is said of an array that was stopped a moment ago.
fn has_been_stopped(code: ProblemCode) -> bool {
    matches!(code, ProblemCode::NoSuchArray | ProblemCode::WrongState)
}

/// A line for each array, and below it one for each of its members.
fn table(before: &[Stats], now: &[Stats]) -> String {
    if now.is_empty() {
        return "no arrays run\n".to_owned();
    }
    let header =
        ["DEVICE", "R/S", "W/S", "RMiB/S", "WMiB/S", "R MS", "R P99", "W MS", "W P99", "IN FLIGHT", "ERRORS"];
    let mut table = columns(&header);
    for stats in now {
        let before = before.iter().find(|before| before.name == stats.name);
        let done = Activity::between(before, stats);
        table.add_row(row(printable(&stats.name), &done.clients, done.over));
        for member in &done.members {
            let slot = member.slot.map_or_else(|| "-".to_owned(), |slot| slot.to_string());
            let path = member.path.as_deref().map_or_else(|| "missing".to_owned(), printable);
            table.add_row(row(format!("  {slot} {path}"), &member.work, done.over));
        }
    }
    right(&mut table, &[1, 2, 3, 4, 5, 6, 7, 8, 9, 10]);
    finish(&table)
}

fn row(device: String, done: &Work, over: Duration) -> [String; 11] {
    let rate = |done: &Operations| format!("{:.1}", per_second(done.count, over));
    let mib = |done: &Operations| format!("{:.2}", per_second(done.bytes, over) / f64::from(1 << 20));
    let ms = |us: Option<u64>| us.map_or_else(|| "-".to_owned(), |us| format!("{:.2}", us as f64 / 1000.0));
    let (reads, writes) = (&done.reads, &done.writes);
    [
        device,
        rate(reads),
        rate(writes),
        mib(reads),
        mib(writes),
        ms(reads.mean_us()),
        ms(p99_us(reads)),
        ms(writes.mean_us()),
        ms(p99_us(writes)),
        done.in_flight.to_string(),
        done.errors.to_string(),
    ]
}

/// What else is known of the time since the start of each array.
fn since_start(now: &[Stats]) -> String {
    let mut text = String::from(if now.is_empty() { "" } else { "\n" });
    for stats in now {
        let seconds = |ms: u64| duration(ms / 1000);
        text.push_str(&format!(
            "{}: started {} ago, degraded for {} and unavailable for {} of that",
            printable(&stats.name),
            seconds(stats.uptime_ms),
            seconds(stats.degraded_ms),
            seconds(stats.unavailable_ms)
        ));
        let failover = stats.failover_us.map(|us| format!("; the last failover took {}", latency(us)));
        text.extend(failover);
        let hedged = (stats.hedged_reads > 0).then(|| format!("; {} reads were hedged", stats.hedged_reads));
        text.extend(hedged);
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use raidd::api::{ErrorCounts, MemberStats};

    use super::*;
    use crate::activity::tests::operations;

    fn stats(uptime_ms: u64, reads: u64) -> Stats {
        let member = MemberStats {
            slot: Some(0),
            path: Some("/dev/sdb".to_owned()),
            in_flight: 2,
            reads: operations(reads / 2, 900),
            writes: operations(reads, 4000),
            errors: ErrorCounts { media: 1, timeout: 2, ..ErrorCounts::default() },
            ..MemberStats::default()
        };
        let missing = MemberStats { slot: Some(1), ..MemberStats::default() };
        Stats {
            name: "vol0".to_owned(),
            uptime_ms,
            degraded_ms: 182_000,
            failover_us: Some(24_000),
            in_flight: 3,
            reads: operations(reads, 1000),
            members: vec![member, missing],
            ..Stats::default()
        }
    }

    #[test]
    fn a_table_of_arrays_and_their_members() {
        let expected = "\
DEVICE          R/S    W/S  RMiB/S  WMiB/S  R MS  R P99  W MS  W P99  IN FLIGHT  ERRORS
vol0          512.0    0.0    2.00    0.00  1.00   1.00     -      -          3       0
  0 /dev/sdb  256.0  512.0    1.00    2.00  0.90   0.90  4.00   4.00          2       3
  1 missing     0.0    0.0    0.00    0.00     -      -     -      -          0       0
";
        let first = [stats(10_000, 5120)];
        assert_eq!(table(&[], &first), expected);
        let later = table(&first, &[stats(12_000, 5120 + 1024)]);
        // As busy as before, but no error is new.
        assert_eq!(later, expected.replace("          2       3", "          2       0"));
        assert_eq!(table(&first, &[]), "no arrays run\n");
    }

    #[test]
    fn the_first_says_how_the_time_was_spent() {
        let expected = "\nvol0: started 2 h 5 min ago, degraded for 3 min 2 s and unavailable for 0 s of that; the last failover took 24.0 ms\n";
        assert_eq!(since_start(&[stats(7_500_000, 1)]), expected);
        let hedged = Stats { hedged_reads: 5, failover_us: None, ..stats(1000, 1) };
        assert!(since_start(&[hedged]).ends_with("of that; 5 reads were hedged\n"));
        assert_eq!(since_start(&[]), "");
    }
}
