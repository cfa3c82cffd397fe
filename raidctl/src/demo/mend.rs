//! What the demo shows after the failure: the spare being filled, and a scrub that mends what a disk has changed by itself.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use raidd::api::{MemberState, Status, SyncAction};
use serde_json::json;

use super::interrupt::Interrupt;
use super::report::{Report, speed};
use super::{NAME, VICTIM_SLOT, progress};
use crate::arguments::DemoOptions;
use crate::failure::{Failure, failed};
use crate::quantity::size;
use crate::request::Daemon;

/// How often progress is looked at.
const POLL: Duration = Duration::from_millis(20);
/// What is corrupted: a block in the member's first chunk.
const CORRUPT: &str = "corrupt=64K+4K";

/// Shows the spare being filled. `since` is when the member failed.
pub fn recover(
    daemon: &Daemon,
    spare: &Path,
    since: Instant,
    interrupt: &Interrupt,
    report: &mut Report,
) -> Result<(), Failure> {
    let array = follow(daemon, "recovering", interrupt)?;
    let took = since.elapsed();
    let holder = array.members.iter().find(|member| member.slot == VICTIM_SLOT);
    let is_spare = |path: &Option<String>| path.as_deref().map(Path::new) == Some(spare);
    if !array.is_whole() || !holder.is_some_and(|member| is_spare(&member.path)) {
        return Err(failed(format_args!(
            "the array is {} and the spare has not taken over: please report it",
            array.health
        )));
    }
    let bytes = array.member_size_bytes;
    let name = spare.file_name().unwrap_or_default().to_string_lossy();
    let what = format!(
        "{name} took over by itself, {} of it filled since the failure, {}",
        size(bytes),
        speed(bytes, took)
    );
    report.step("recover", took, what);
    Ok(())
}

/// Changes a block of a member behind the array's back, and has a scrub find and mend it.
pub fn corrupt_and_scrub(
    options: &DemoOptions,
    daemon: &Daemon,
    interrupt: &Interrupt,
    report: &mut Report,
) -> Result<(), Failure> {
    let began = Instant::now();
    let array = daemon.status(NAME)?;
    let last = array.members.len() - 1;
    // A repair trusts the data, as md's does, but for RAID 6, where two parities tell who lies: there it is data that is
    // changed, else parity or a second copy.
    let (slot, what) = match options.level.as_str() {
        "6" => (0, "data"),
        "4" | "5" => (last, "parity"),
        _ => (1, "the second copy"),
    };
    let path =
        array.members[slot].path.clone().ok_or_else(|| failed("a member is gone: please report it"))?;
    let victim = PathBuf::from(&path);
    let victim = victim.file_name().unwrap_or_default().to_string_lossy();
    daemon.change(NAME, "inject", &json!({ "device": path, "fault": CORRUPT }))?;
    report.step(
        "corrupt a block",
        began.elapsed(),
        format!("4 KiB of {what}, on {victim}, behind raidd's back"),
    );

    let (found, took) = scrub(daemon, true, interrupt)?;
    if found.sync.mismatches == 0 {
        return Err(failed("the scrub did not find what was corrupted: please report it"));
    }
    let bytes = found.member_size_bytes * found.members.len() as u64;
    report.step(
        "scrub and repair",
        took,
        format!("{} sectors disagreed and were mended, {}", found.sync.mismatches, speed(bytes, took)),
    );
    let (found, took) = scrub(daemon, false, interrupt)?;
    if found.sync.mismatches > 0 {
        return Err(failed("the scrub did not mend what was corrupted: please report it"));
    }
    report.step("scrub again", took, "nothing disagrees any more".to_owned());
    Ok(())
}

fn scrub(daemon: &Daemon, repair: bool, interrupt: &Interrupt) -> Result<(Status, Duration), Failure> {
    let began = Instant::now();
    daemon.change(NAME, "scrub", &json!({ "repair": repair }))?;
    let array = follow(daemon, "scrubbing", interrupt)?;
    Ok((array, began.elapsed()))
}

/// Shows a sync action until it has ended; the array as it is then.
fn follow(daemon: &Daemon, doing: &'static str, interrupt: &Interrupt) -> Result<Status, Failure> {
    let bar = progress(0, doing);
    loop {
        interrupt.check()?;
        let array = daemon.status(NAME)?;
        if array.sync.action != SyncAction::Idle {
            bar.set_length(array.sync.total_bytes);
            bar.set_position(array.sync.done_bytes);
        }
        if !array.is_busy() {
            bar.finish_and_clear();
            return Ok(array);
        }
        std::thread::sleep(POLL);
    }
}

/// Whether the array has noticed that this member failed.
pub fn has_failed(array: &Status, victim: &Path) -> bool {
    let is = |path: &Option<String>| path.as_deref().map(Path::new) == Some(victim);
    let member = array.members.iter().find(|member| is(&member.path)).map(|member| member.state);
    let spare = array.spares.iter().find(|spare| is(&spare.path)).map(|spare| spare.state);
    member.or(spare) == Some(MemberState::Faulty)
}
