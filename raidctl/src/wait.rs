//! Waiting for an array to come to rest: asking again and again, at first often.

use std::time::{Duration, Instant};

use raidd::api::{ArrayState, Status};

use crate::failure::{Failure, failed};
use crate::quantity::duration;
use crate::request::Daemon;

/// The first pause between two questions.
const PAUSE_MIN: Duration = Duration::from_millis(20);
/// The longest.
const PAUSE_MAX: Duration = Duration::from_millis(500);

/// Waits until no sync action runs and none is about to. The array as it is then, if its redundancy is whole; else why
/// it is not.
pub fn until_idle(daemon: &Daemon, name: &str, timeout_ms: Option<u64>) -> Result<Status, Failure> {
    let began = Instant::now();
    let mut pause = PAUSE_MIN;
    loop {
        let array = daemon.status(name)?;
        if !array.is_busy() {
            return if array.is_whole() { Ok(array) } else { Err(failed(why_not_whole(&array))) };
        }
        if let Some(ms) = timeout_ms
            && began.elapsed() >= Duration::from_millis(ms)
        {
            let left = array.sync.eta_seconds.map(|eta| format!(", {} are left", duration(eta)));
            return Err(failed(format_args!(
                "{name}: {} is still under way{}: raidctl status {name} shows it",
                array.sync.action,
                left.unwrap_or_default()
            )));
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(PAUSE_MAX);
    }
}

fn why_not_whole(array: &Status) -> String {
    let name = &array.name;
    if array.state == ArrayState::Inactive {
        return format!("{name} does not run: raidctl status {name} says why");
    }
    if array.sync_paused {
        return format!("{name} is {}, and sync actions are paused: raidctl resume {name}", array.health);
    }
    if array.state == ArrayState::ReadOnly {
        return format!("{name} is {} and read-only: raidctl status {name} says why", array.health);
    }
    format!("{name} is {}: raidctl status {name} shows what is missing", array.health)
}
