//! A demonstration that needs nothing: an array of files under a raidd of its own, written over NBD, hurt in the middle
//! of that, read back and compared.
//!
//! Invariants:
//! - It says that the data is right only after it has compared every byte.
//! - Whatever happens, its raidd is ended and its folder removed, unless the folder is to be kept.

mod daemon;
mod interrupt;
mod load;
mod mend;
mod pattern;
mod report;

use std::fs::File;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use raidd::api::{CreateArray, Init, Status};
use serde_json::json;

use self::daemon::OwnDaemon;
use self::interrupt::Interrupt;
use self::load::{CONNECTIONS, Load, Request};
use self::pattern::Pattern;
pub use self::report::Report;
use self::report::{milliseconds, speed};
use crate::arguments::DemoOptions;
use crate::failure::{Failure, failed};
use crate::quantity::size;

/// What the array is called.
const NAME: &str = "demo";
/// The slot whose member is failed.
const VICTIM_SLOT: u16 = 1;
/// What is written first, and what is written over it while the member fails.
const FIRST: Pattern = Pattern(0x5261_6964);
const SECOND: Pattern = Pattern(0x6d64_6164);
/// How much of the second writing comes before the failure, as a divisor.
const FAIL_AFTER: u64 = 4;
/// A failure can still be felt so long after it.
const AFTERMATH: Duration = Duration::from_millis(500);
/// How long the daemon may take to notice that clients have left.
const LEAVE_LIMIT: Duration = Duration::from_secs(5);

/// Runs the demo. Fails if a single byte differs, with the report printed all the same by `show`.
pub fn run(options: &DemoOptions, show: &dyn Fn(&Report) -> Result<(), Failure>) -> Result<(), Failure> {
    let interrupt = Interrupt::watch()?;
    let parent = options.dir.clone().unwrap_or_else(std::env::temp_dir);
    let folder = std::path::absolute(&parent)
        .and_then(|parent| {
            let private = std::fs::Permissions::from_mode(0o700);
            tempfile::Builder::new().prefix("raidd-demo-").permissions(private).tempdir_in(parent)
        })
        .map_err(|error| {
            failed(format_args!(
                "cannot make a folder in {}: {error}: name another one with --dir",
                parent.display()
            ))
        })?;
    let path = folder.path().to_owned();
    let result = in_folder(options, &path, &interrupt).and_then(|(report, different)| {
        show(&report)?;
        if different { Err(failed("data differ from what was written: please report it")) } else { Ok(()) }
    });
    if options.keep {
        let kept = folder.keep();
        crate::complain(&format!("everything is kept in {}", kept.display()));
    }
    result
}

fn in_folder(options: &DemoOptions, folder: &Path, interrupt: &Interrupt) -> Result<(Report, bool), Failure> {
    let mut report = Report::default();
    let members = make_members(folder, &options.level, options.size)?;
    let began = Instant::now();
    let mut daemon = OwnDaemon::start(folder, interrupt)?;
    report.step("start raidd", began.elapsed(), format!("its files are in {}", folder.display()));
    // Whatever goes wrong: if raidd has died, that is why.
    let result = with_daemon(options, &mut daemon, &members, interrupt, &mut report);
    let different = match result {
        Err(failure) => {
            daemon.check()?;
            return Err(failure);
        }
        Ok(different) => different,
    };
    let began = Instant::now();
    wait_until_alone(&daemon)?;
    daemon.control.stop(NAME, false, false)?;
    daemon.stop()?;
    report.step("stop", began.elapsed(), "array flushed and marked clean, raidd ended".to_owned());
    Ok((report, different))
}

/// The members' files, and last the spare's.
fn make_members(folder: &Path, level: &str, bytes: u64) -> Result<Vec<PathBuf>, Failure> {
    let count = match level {
        "1" => 2,
        "6" => 5,
        _ => 4,
    };
    let names = (0..count).map(|index| format!("member-{index}.img")).chain(["spare.img".to_owned()]);
    names
        .map(|name| {
            let path = folder.join(name);
            File::create(&path).and_then(|file| file.set_len(bytes)).map(|()| path).map_err(|error| {
                failed(format_args!(
                    "cannot make members in {}: {error}: name another folder with --dir",
                    folder.display()
                ))
            })
        })
        .collect()
}

/// All that needs the daemon; whether bytes differed.
fn with_daemon(
    options: &DemoOptions,
    daemon: &mut OwnDaemon,
    members: &[PathBuf],
    interrupt: &Interrupt,
    report: &mut Report,
) -> Result<bool, Failure> {
    let began = Instant::now();
    let array = daemon.control.create(&request(options, members)?)?;
    report.step("create", began.elapsed(), described(&array, members.len() - 1));
    interrupt.check()?;

    let load = Load::new(&daemon.nbd_socket, NAME, interrupt)?;
    let bytes = load.size_bytes();

    let bar = progress(bytes, "writing");
    let began = Instant::now();
    load.write(FIRST, &|| false, &bar)?;
    bar.finish_and_clear();
    let took = began.elapsed();
    report.step(
        "write",
        took,
        format!("{} over {CONNECTIONS} connections, {}", size(bytes), speed(bytes, took)),
    );

    let failed_at = fail_under_load(&load, daemon, members, report)?;
    let spare = members.last().expect("a spare was made");
    mend::recover(&daemon.control, spare, failed_at, interrupt, report)?;
    if read_back(&load, "read back", report)? > 0 {
        return Ok(true);
    }
    mend::corrupt_and_scrub(options, &daemon.control, interrupt, report)?;
    Ok(read_back(&load, "read back again", report)? > 0)
}

/// Reads everything and compares it; how many bytes differ.
fn read_back(load: &Load<'_>, step: &'static str, report: &mut Report) -> Result<u64, Failure> {
    let bytes = load.size_bytes();
    let bar = progress(bytes, "reading back");
    let began = Instant::now();
    let found = load.compare(SECOND, &bar)?;
    bar.finish_and_clear();
    let took = began.elapsed();
    report.compared(bytes, found.bytes);
    let verdict = match found.first {
        None => "nothing differs".to_owned(),
        Some(first) => format!("{} bytes DIFFER, the first at {first}", found.bytes),
    };
    report.step(step, took, format!("{} compared, {verdict}, {}", size(bytes), speed(bytes, took)));
    Ok(found.bytes)
}

/// Writes everything anew, kills a member in the middle of it, and goes on writing. When that was.
fn fail_under_load(
    load: &Load<'_>,
    daemon: &OwnDaemon,
    members: &[PathBuf],
    report: &mut Report,
) -> Result<Instant, Failure> {
    let victim = &members[usize::from(VICTIM_SLOT)];
    let bytes = load.size_bytes();
    let bar = progress(bytes, "writing, a member fails");
    let failing = AtomicBool::new(true);
    let began = Instant::now();
    let (written, failed_at) = std::thread::scope(|scope| {
        let writer = scope.spawn(|| load.write(SECOND, &|| failing.load(Ordering::Relaxed), &bar));
        while bar.position() < bytes / FAIL_AFTER && !writer.is_finished() {
            std::thread::sleep(Duration::from_millis(1));
        }
        let from = Instant::now();
        let result = daemon.control.change(
            NAME,
            "inject",
            &json!({ "device": victim.to_string_lossy(), "fault": "die" }),
        );
        // Not before somebody has noticed.
        while result.is_ok()
            && from.elapsed() < LEAVE_LIMIT
            && daemon.control.status(NAME).is_ok_and(|array| !mend::has_failed(&array, victim))
        {
            std::thread::sleep(Duration::from_millis(1));
        }
        let until = Instant::now();
        failing.store(false, Ordering::Relaxed);
        let written = writer.join().unwrap_or_else(|_| Err(failed("the writer panicked: please report it")));
        (written, result.map(|status| (from, until, status)))
    });
    bar.finish_and_clear();
    let took = began.elapsed();
    let requests = written?;
    let (from, until, _) = failed_at?;

    let (longest, usual) = felt(&requests, from, until);
    report.step(
        "kill a member",
        until - from,
        format!(
            "{}, while clients wrote; their longest request took {}, the usual one {}",
            victim.file_name().unwrap_or_default().to_string_lossy(),
            milliseconds(longest),
            milliseconds(usual)
        ),
    );
    report.step(
        "write through it",
        took,
        format!("{} anew, no request failed, {}", size(bytes), speed(bytes, took)),
    );

    if !mend::has_failed(&daemon.control.status(NAME)?, victim) {
        return Err(failed("nobody noticed that a member died: please report it"));
    }
    Ok(from)
}

/// The longest request at the time of the failure, and the usual one of all.
fn felt(requests: &[Request], from: Instant, until: Instant) -> (Duration, Duration) {
    let longest = requests
        .iter()
        .filter(|request| request.ended >= from && request.began <= until + AFTERMATH)
        .map(Request::took)
        .max()
        .unwrap_or_default();
    let mut all: Vec<_> = requests.iter().map(Request::took).collect();
    all.sort_unstable();
    (longest, all.get(all.len() / 2).copied().unwrap_or_default())
}

fn request(options: &DemoOptions, members: &[PathBuf]) -> Result<CreateArray, Failure> {
    let devices = members
        .iter()
        .map(|path| path.to_str().map(str::to_owned))
        .collect::<Option<Vec<_>>>()
        .ok_or_else(|| failed("the folder's path is not UTF-8: name another one with --dir"))?;
    let (spare, devices) = devices.split_last().ok_or_else(|| failed("no members were made"))?;
    Ok(CreateArray {
        name: NAME.to_owned(),
        level: options.level.clone(),
        chunk_bytes: None,
        layout: None,
        size_bytes: None,
        bitmap: None,
        consistency_policy: None,
        init: Init::Zero, // redundancy is right from the first second, and empty files are zeroed at once
        spares: vec![spare.clone()],
        force: false,
        devices: devices.to_vec(),
    })
}

fn described(array: &Status, members: usize) -> String {
    let layout = array.layout.as_ref().map(|layout| format!(", {layout}")).unwrap_or_default();
    format!("{}{layout}, {members} files and a spare, {} usable", array.level, size(array.size_bytes))
}

fn wait_until_alone(daemon: &OwnDaemon) -> Result<(), Failure> {
    let began = Instant::now();
    while daemon.control.status(NAME)?.connections > 0 && began.elapsed() < LEAVE_LIMIT {
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

/// A bar on stderr; nothing where that is no terminal.
fn progress(bytes: u64, doing: &'static str) -> ProgressBar {
    let template = "{msg:<24} [{bar:30}] {percent:>3}%  {bytes_per_sec}";
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::new(bytes).with_style(style.progress_chars("=>.")).with_message(doing)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_failure_costs_is_what_was_felt_around_it() {
        let zero = Instant::now();
        let at = |milliseconds| zero + Duration::from_millis(milliseconds);
        let request = |began, ended| Request { began: at(began), ended: at(ended) };
        let requests =
            [request(0, 90), request(95, 99), request(98, 120), request(130, 135), request(5000, 9000)];
        let (longest, usual) = felt(&requests, at(100), at(110));
        assert_eq!((longest, usual), (Duration::from_millis(22), Duration::from_millis(22)));
        assert_eq!(felt(&[], at(0), at(1)), (Duration::ZERO, Duration::ZERO));
    }
}
