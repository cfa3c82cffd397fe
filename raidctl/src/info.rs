//! `info`: the daemon itself, how busy its reactors are, and what of its memory is in use.

use std::time::Duration;

use raidd::api::{DaemonStatus, ReactorStatus};

use crate::failure::Failure;
use crate::quantity::{duration, moment, now_unix_seconds, size};
use crate::render::{columns, finish, printable, right};
use crate::request::Daemon;

/// Between two looks at how busy it is.
const LOOK: Duration = Duration::from_millis(500);

/// Tells of the daemon.
pub fn run(daemon: &Daemon, json: bool) -> Result<(), Failure> {
    let ask = || daemon.itself().map_err(|error| daemon.explain(error));
    let first = ask()?;
    if json {
        return crate::document(&first);
    }
    std::thread::sleep(LOOK);
    crate::output(text(&first, &ask()?, now_unix_seconds()).as_bytes())
}

/// `now` is in seconds since 1970.
fn text(before: &DaemonStatus, status: &DaemonStatus, now: u64) -> String {
    let started = status.started_unix_ms / 1000;
    let mut text = format!(
        "raidd {}\n  Up since     {} ({})\n  Connections  {}\n\n",
        printable(&status.version),
        moment(started),
        duration(now.saturating_sub(started)),
        status.connections
    );
    let mut reactors = columns(&["REACTOR", "BUSY NOW", "SINCE START", "RING CALLS"]);
    for reactor in &status.reactors {
        let before = before.reactors.iter().find(|before| before.index == reactor.index);
        let percent = |part: Option<f64>| part.map_or_else(|| "-".to_owned(), |part| format!("{part:.1}%"));
        reactors.add_row([
            reactor.index.to_string(),
            percent(before.and_then(|before| busy(before, reactor)).map(|part| part * 100.0)),
            percent(busy(&ReactorStatus::default(), reactor).map(|part| part * 100.0)),
            reactor.ring_calls.to_string(),
        ]);
    }
    right(&mut reactors, &[0, 1, 2, 3]);
    text.push_str(&finish(&reactors));
    text.push('\n');
    let mut pools = columns(&["POOL", "IN USE", "SIZE"]);
    for pool in &status.pools {
        pools.add_row([printable(&pool.pool), size(pool.used_bytes), size(pool.total_bytes)]);
    }
    right(&mut pools, &[1, 2]);
    text + &finish(&pools)
}

/// What part of the time between two counts a reactor did not sleep: from 0 to 1. None: no time has passed.
pub fn busy(before: &ReactorStatus, now: &ReactorStatus) -> Option<f64> {
    let time = now.uptime_us.checked_sub(before.uptime_us).filter(|&time| time > 0)?;
    let asleep = now.asleep_us.saturating_sub(before.asleep_us).min(time);
    Some((time - asleep) as f64 / time as f64)
}

#[cfg(test)]
mod tests {
    use raidd::api::PoolStatus;

    use super::*;

    fn status(uptime_us: u64, asleep_us: u64) -> DaemonStatus {
        DaemonStatus {
            version: "0.1.0".to_owned(),
            started_unix_ms: 1_795_215_773_004,
            reactors: vec![ReactorStatus { index: 0, uptime_us, asleep_us, ring_calls: 1234 }],
            pools: vec![PoolStatus {
                pool: "payloads".to_owned(),
                total_bytes: 64 << 20,
                used_bytes: 1536 << 10,
            }],
            connections: 3,
        }
    }

    #[test]
    fn the_daemon_for_people() {
        let expected = "\
raidd 0.1.0
  Up since     2026-11-20 23:02:53 UTC (1 h 0 min)
  Connections  3

REACTOR  BUSY NOW  SINCE START  RING CALLS
      0     90.0%        25.0%        1234

POOL        IN USE    SIZE
payloads  1.50 MiB  64 MiB
";
        let shown = text(&status(3_000_000, 2_900_000), &status(4_000_000, 3_000_000), 1_795_219_373);
        assert_eq!(shown, expected);
        let same = text(&status(4, 3), &status(4, 3), 0);
        assert!(same.contains("      0         -        25.0%"), "{same}");
    }

    #[test]
    fn busy_is_what_is_not_sleep() {
        let reactor =
            |uptime_us, asleep_us| ReactorStatus { uptime_us, asleep_us, ..ReactorStatus::default() };
        assert_eq!(busy(&reactor(100, 50), &reactor(200, 125)), Some(0.25));
        assert_eq!(busy(&reactor(100, 50), &reactor(100, 50)), None);
        assert_eq!(busy(&reactor(900, 50), &reactor(100, 50)), None, "it was started anew");
        assert_eq!(busy(&reactor(0, 0), &reactor(100, 200)), Some(0.0));
    }
}
