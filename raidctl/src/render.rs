//! Arrays for people: a table of all, a picture of one.

use anstyle::{AnsiColor, Style};
use comfy_table::presets::NOTHING;
use comfy_table::{CellAlignment, Table};
use raidd::api::{
    Event, Finding, Findings, Health, Member, MemberState, Status, SyncAction, SyncStatus, Traffic, Tuning,
};

use crate::quantity::{duration, moment, short_size, size};

/// Characters of the bar.
const BAR_WIDTH: u64 = 30;

/// A line for each array.
pub fn list(arrays: &[Status]) -> String {
    if arrays.is_empty() {
        return "no arrays\n".to_owned();
    }
    let mut table = columns(&["NAME", "LEVEL", "SIZE", "STATE", "HEALTH", "MEMBERS", "SYNC", "NBD"]);
    for array in arrays {
        table.add_row([
            printable(&array.name),
            printable(&array.level),
            size(array.size_bytes),
            array.state.to_string(),
            array.health.to_string(),
            slots(&array.members),
            progress_in_short(&array.sync),
            array.nbd_uri.as_deref().map_or_else(|| "-".to_owned(), printable),
        ]);
    }
    right(&mut table, &[2]);
    finish(&table)
}

/// The same facts as `mdadm --detail`, and what else is known of disks that are to be seen to. In colours, which
/// [`crate::show`] leaves out where nobody sees them.
pub fn status(array: &Status, disks: &[String]) -> String {
    let mut lines = vec![
        ("UUID", printable(&array.uuid)),
        ("Level", level(array)),
        ("Size", exact_size(array.size_bytes)),
        ("Member size", exact_size(array.member_size_bytes)),
        ("State", array.state.to_string()),
        ("Health", painted(array.health.as_str(), of_health(array.health))),
        ("Members", format!("{} {}", slots(&array.members), in_sync(array))),
        ("Consistency", array.consistency_policy.to_string()),
        ("Metadata", format!("{}, events {}", printable(&array.metadata), array.events)),
    ];
    lines.extend(array.created_unix_seconds.map(|seconds| ("Created", moment(seconds))));
    lines.extend(array.updated_unix_seconds.map(|seconds| ("Updated", moment(seconds))));
    lines.push((
        "NBD",
        match &array.nbd_uri {
            Some(uri) => format!("{} ({})", printable(uri), clients(array.connections)),
            None => "not exported".to_owned(),
        },
    ));
    lines.extend(array.device.iter().map(|device| ("Device", printable(device))));
    let paused = if array.sync_paused && array.sync.action != SyncAction::Idle { ", paused" } else { "" };
    lines.extend(array.last_scrub_unix_seconds.map(|seconds| ("Last scrub", moment(seconds))));
    lines.extend(array.traffic.iter().map(|traffic| ("Traffic", self::traffic(traffic))));
    lines.push(("Sync", progress(&array.sync) + paused));
    lines.extend(array.warnings.iter().map(|warning| ("Warning", painted(&printable(warning), YELLOW))));
    lines.extend(disks.iter().map(|disk| ("Disk", printable(disk))));

    let mut text = format!("{}\n", painted(&printable(&array.name), BOLD));
    for (label, value) in lines {
        text.push_str(&format!("  {label:<12} {value}\n"));
    }
    text.push('\n');
    text.push_str(&members(array));
    text
}

/// `raid5, left-symmetric, 128K chunk`.
pub fn level(array: &Status) -> String {
    let mut level = printable(&array.level);
    if let Some(layout) = &array.layout {
        level.push_str(&format!(", {}", printable(layout)));
    }
    if array.chunk_bytes > 0 {
        level.push_str(&format!(", {} chunk", short_size(array.chunk_bytes)));
    }
    level
}

/// `3 of 4 in sync, 1 spare`.
pub fn in_sync(array: &Status) -> String {
    let in_sync = array.members.iter().filter(|member| member.state == MemberState::InSync).count();
    let spares = array.spares.iter().filter(|spare| spare.state == MemberState::Spare).count();
    format!("{in_sync} of {} in sync, {spares} spare", array.members.len())
}

/// `1 client`.
pub fn clients(count: u64) -> String {
    if count == 1 { "1 client".to_owned() } else { format!("{count} clients") }
}

const BOLD: Style = Style::new().bold();
const GREEN: Style = AnsiColor::Green.on_default();
const YELLOW: Style = AnsiColor::Yellow.on_default();
const RED: Style = AnsiColor::Red.on_default().bold();

fn of_health(health: Health) -> Style {
    match health {
        Health::Optimal => GREEN,
        Health::Degraded => YELLOW,
        Health::Failed => RED,
    }
}

fn painted(text: &str, style: Style) -> String {
    format!("{style}{text}{style:#}")
}

/// What clients read and wrote, and what that came to on the members.
fn traffic(traffic: &Traffic) -> String {
    let side = |client: u64, member: u64| {
        let times = match client {
            0 => String::new(),
            client => format!(", {:.2} times", member as f64 / client as f64),
        };
        format!("{} ({} on members{times})", size(client), size(member))
    };
    format!(
        "read {}, written {}",
        side(traffic.client_read_bytes, traffic.member_read_bytes),
        side(traffic.client_written_bytes, traffic.member_written_bytes)
    )
}

/// The block device that an array is.
pub fn device(array: &Status) -> String {
    array.device.iter().map(|device| format!("{}\n", printable(device))).collect()
}

/// Settings, as `tune` takes them.
pub fn tuning(tuning: &Tuning) -> String {
    let mut text = String::new();
    let mut line = |key: &str, value: Option<String>| {
        text.extend(value.map(|value| format!("{key}={value}\n")));
    };
    line("recovery_min", tuning.recovery_min.map(short_size));
    line("recovery_max", tuning.recovery_max.map(short_size));
    line("member_timeout", tuning.member_timeout_ms.map(time));
    line(
        "scrub_interval",
        tuning.scrub_interval_ms.map(|ms| if ms == 0 { "never".to_owned() } else { time(ms) }),
    );
    line("write_through", tuning.write_through.map(|on| if on { "on" } else { "off" }.to_owned()));
    line("auto_re_add", tuning.auto_re_add.map(|policy| policy.as_str().to_owned()));
    line("read_policy", tuning.read_policy.map(|policy| policy.to_string()));
    line("hedge", tuning.hedge.map(|hedge| hedge.to_string()));
    line("spare_group", tuning.spare_group.clone().filter(|group| !group.is_empty()));
    text
}

/// A stretch of time as `tune` takes it, in the largest unit that has it whole.
fn time(ms: u64) -> String {
    let units = [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000)];
    let unit = units.iter().find(|(_, unit)| ms > 0 && ms.is_multiple_of(*unit));
    unit.map_or_else(|| format!("{ms}ms"), |(letter, unit)| format!("{}{letter}", ms / unit))
}

/// What scrubs found: a line for each range.
pub fn findings(found: &Findings) -> String {
    if found.findings.is_empty() {
        return format!("{}: no scrub has found anything\n", printable(&found.name));
    }
    let mut table = columns(&["ARRAY OFFSET", "BYTES", "MEMBER OFFSET", "LIAR", "REPAIRED"]);
    for finding in &found.findings {
        table.add_row([
            finding.array_offset_bytes.to_string(),
            finding.array_len_bytes.to_string(),
            finding.member_offset_bytes.map_or_else(|| "-".to_owned(), |offset| offset.to_string()),
            liar(finding),
            if finding.repaired { "yes" } else { "no" }.to_owned(),
        ]);
    }
    right(&mut table, &[0, 1, 2]);
    finish(&table)
}

fn liar(finding: &Finding) -> String {
    match (&finding.device, finding.slot) {
        (Some(path), _) => printable(path),
        (None, Some(slot)) => format!("slot {slot}"),
        (None, None) => "undecided".to_owned(),
    }
}

/// Something that happened, as a line.
pub fn event(event: &Event) -> String {
    let mut line =
        format!("{}  {}  {}", moment(event.unix_ms / 1000), printable(&event.array), printable(&event.event));
    if let Some(action) = &event.action {
        line.push_str(&format!("  {}", printable(action)));
    }
    if let Some(device) = &event.device {
        line.push_str(&format!("  {}", printable(device)));
    }
    if let Some(mismatches) = event.mismatches {
        line.push_str(&format!("  {mismatches} mismatches"));
    }
    line + "\n"
}

fn members(array: &Status) -> String {
    let mut table = columns(&["  SLOT", "STATE", "DEVICE", "READ ERR", "WRITE ERR", "CORRECTED"]);
    for member in &array.members {
        table.add_row([
            member.slot.to_string(),
            member.state.to_string(),
            member.path.as_deref().map_or_else(|| "-".to_owned(), printable),
            member.read_errors.to_string(),
            member.write_errors.to_string(),
            member.corrected_errors.to_string(),
        ]);
    }
    for spare in &array.spares {
        table.add_row([
            "-".to_owned(),
            spare.state.to_string(),
            spare.path.as_deref().map_or_else(|| "-".to_owned(), printable),
        ]);
    }
    right(&mut table, &[0, 3, 4, 5]);
    finish(&table)
}

/// `[UU_]`: for each slot whether it is in sync.
pub fn slots(members: &[Member]) -> String {
    let mut marks: Vec<(u16, char)> = Vec::with_capacity(members.len());
    for member in members {
        let mark = if member.state == MemberState::InSync { 'U' } else { '_' };
        match marks.iter_mut().find(|(slot, _)| *slot == member.slot) {
            // Two for one slot: one of them is to replace the other.
            Some((_, held)) => *held = if mark == 'U' { 'U' } else { *held },
            None => marks.push((member.slot, mark)),
        }
    }
    marks.sort_by_key(|(slot, _)| *slot);
    format!("[{}]", marks.into_iter().map(|(_, mark)| mark).collect::<String>())
}

/// `recovery 45.0%`; `-` where nothing goes on.
pub fn progress_in_short(sync: &SyncStatus) -> String {
    match sync.action {
        SyncAction::Idle => "-".to_owned(),
        action => format!("{action} {}", percent(sync)),
    }
}

fn progress(sync: &SyncStatus) -> String {
    if sync.action == SyncAction::Idle {
        return format!("idle{}", mismatches(sync));
    }
    let filled = part(sync, BAR_WIDTH);
    let bar: String = (0..BAR_WIDTH)
        .map(|place| match place {
            place if place < filled => '=',
            place if place == filled => '>',
            _ => '.',
        })
        .collect();
    format!("{} [{bar}] {}, {}", sync.action, percent(sync), pace(sync))
}

/// How far a sync action is and how fast: `100 MiB of 1 GiB, 200 MiB/s, 5 s left`.
pub fn pace(sync: &SyncStatus) -> String {
    let eta = match sync.eta_seconds {
        Some(seconds) => format!(", {} left", duration(seconds)),
        None => String::new(),
    };
    format!(
        "{} of {}, {}/s{eta}{}",
        size(sync.done_bytes),
        size(sync.total_bytes),
        size(sync.bytes_per_sec),
        mismatches(sync)
    )
}

fn mismatches(sync: &SyncStatus) -> String {
    match sync.mismatches {
        0 => String::new(),
        count => format!(", {count} mismatches"),
    }
}

/// How much of a sync action is done: `45.0%`.
pub fn percent(sync: &SyncStatus) -> String {
    let tenths = part(sync, 1000);
    format!("{}.{}%", tenths / 10, tenths % 10)
}

/// How many of `whole` equal parts are done.
pub fn part(sync: &SyncStatus, whole: u64) -> u64 {
    let done = u128::from(sync.done_bytes.min(sync.total_bytes)) * u128::from(whole);
    u64::try_from(done / u128::from(sync.total_bytes.max(1))).unwrap_or(whole)
}

fn exact_size(bytes: u64) -> String {
    format!("{} ({bytes} bytes)", size(bytes))
}

/// Text from elsewhere must not steer the terminal.
pub fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

/// A table with these headings.
pub fn columns(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(NOTHING);
    table.set_header(header.iter().copied());
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    table
}

/// Has numbers stand to the right.
pub fn right(table: &mut Table, columns: &[usize]) {
    for &index in columns {
        if let Some(column) = table.column_mut(index) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
}

/// The table as text.
pub fn finish(table: &Table) -> String {
    let mut text = String::new();
    for line in table.lines() {
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use anstream::adapter::strip_str;
    use raidd::api::{ArrayState, ConsistencyPolicy, Spare};

    use super::*;

    fn member(slot: u16, path: Option<&str>, state: MemberState) -> Member {
        Member {
            slot,
            path: path.map(str::to_owned),
            state,
            read_errors: u64::from(slot) * 10,
            write_errors: 0,
            corrected_errors: 0,
        }
    }

    fn array() -> Status {
        Status {
            name: "vol0".to_owned(),
            uuid: "6f1c0a11:22334455:66778899:aabbccdd".to_owned(),
            level: "raid5".to_owned(),
            layout: Some("left-symmetric".to_owned()),
            chunk_bytes: 524_288,
            size_bytes: 3_221_225_472,
            member_size_bytes: 1_073_741_824,
            metadata: "1.2".to_owned(),
            events: 42,
            consistency_policy: ConsistencyPolicy::Bitmap,
            state: ArrayState::Active,
            health: Health::Degraded,
            nbd_uri: Some("nbd+unix:///vol0?socket=/run/raidd/nbd.sock".to_owned()),
            connections: 1,
            members: vec![
                member(0, Some("/dev/loop0"), MemberState::InSync),
                member(1, Some("/dev/loop4"), MemberState::Recovering),
                member(2, None, MemberState::Missing),
                member(3, Some("/dev/loop3"), MemberState::InSync),
            ],
            spares: vec![Spare {
                slot: None,
                path: Some("/dev/loop5".to_owned()),
                state: MemberState::Spare,
            }],
            sync: SyncStatus {
                action: SyncAction::Recovery,
                done_bytes: 104_857_600,
                total_bytes: 1_073_741_824,
                bytes_per_sec: 209_715_200,
                eta_seconds: Some(5),
                mismatches: 0,
            },
            created_unix_seconds: Some(1_795_215_773),
            updated_unix_seconds: None,
            warnings: vec!["no redundancy left".to_owned()],
            sync_paused: false,
            tuning: None,
            last_scrub_unix_seconds: None,
            device: None,
            redundancy: None,
            traffic: None,
            concerns: Vec::new(),
        }
    }

    #[test]
    fn one_array() {
        let expected = "\
vol0
  UUID         6f1c0a11:22334455:66778899:aabbccdd
  Level        raid5, left-symmetric, 512K chunk
  Size         3 GiB (3221225472 bytes)
  Member size  1 GiB (1073741824 bytes)
  State        active
  Health       degraded
  Members      [U__U] 2 of 4 in sync, 1 spare
  Consistency  bitmap
  Metadata     1.2, events 42
  Created      2026-11-20 23:02:53 UTC
  NBD          nbd+unix:///vol0?socket=/run/raidd/nbd.sock (1 client)
  Sync         recovery [==>...........................] 9.7%, 100 MiB of 1 GiB, 200 MiB/s, 5 s left
  Warning      no redundancy left
  Disk         /dev/loop4 is a loop device

  SLOT  STATE       DEVICE      READ ERR  WRITE ERR  CORRECTED
     0  in_sync     /dev/loop0         0          0          0
     1  recovering  /dev/loop4        10          0          0
     2  missing     -                 20          0          0
     3  in_sync     /dev/loop3        30          0          0
     -  spare       /dev/loop5
";
        let shown = status(&array(), &["/dev/loop4 is a loop device".to_owned()]);
        assert_eq!(strip_str(&shown).to_string(), expected);
        assert!(shown.contains("\x1b[33mdegraded\x1b[0m"), "{shown:?}");
    }

    #[test]
    fn all_arrays() {
        let idle = Status {
            name: "größe".to_owned(),
            level: "raid10".to_owned(),
            size_bytes: 1536 << 30,
            sync: SyncStatus::idle(0),
            nbd_uri: None,
            state: ArrayState::ReadOnly,
            ..array()
        };
        let expected = "\
NAME   LEVEL       SIZE  STATE      HEALTH    MEMBERS  SYNC           NBD
vol0   raid5      3 GiB  active     degraded  [U__U]   recovery 9.7%  nbd+unix:///vol0?socket=/run/raidd/nbd.sock
größe  raid10  1.50 TiB  read-only  degraded  [U__U]   -              -
";
        assert_eq!(list(&[array(), idle]), expected);
        assert_eq!(list(&[]), "no arrays\n");
    }

    #[test]
    fn an_event_is_a_line() {
        let happened = Event {
            unix_ms: 1_795_215_773_999,
            event: "RebuildFinished".into(),
            array: "vol0".into(),
            action: Some("check".into()),
            mismatches: Some(8),
            ..Event::default()
        };
        assert_eq!(event(&happened), "2026-11-20 23:02:53 UTC  vol0  RebuildFinished  check  8 mismatches\n");
        let failed = Event { event: "Fail".into(), device: Some("/dev/\x1bx".into()), ..happened };
        assert!(event(&failed).contains("  Fail  ") && !event(&failed).contains('\x1b'));
    }

    #[test]
    fn findings_name_the_liar() {
        let finding = Finding {
            array_offset_bytes: 1 << 20,
            array_len_bytes: 4096,
            member_offset_bytes: Some(524_288),
            member_len_bytes: Some(4096),
            slot: Some(2),
            device: Some("/dev/loop2".to_owned()),
            repaired: true,
        };
        let undecided = Finding {
            slot: None,
            device: None,
            repaired: false,
            member_offset_bytes: None,
            ..finding.clone()
        };
        let found = Findings { name: "vol0".to_owned(), mismatches: 16, findings: vec![finding, undecided] };
        let expected = "\
ARRAY OFFSET  BYTES  MEMBER OFFSET  LIAR        REPAIRED
     1048576   4096         524288  /dev/loop2  yes
     1048576   4096              -  undecided   no
";
        assert_eq!(findings(&found), expected);
        assert!(findings(&Findings::default()).contains("no scrub has found"));
    }

    #[test]
    fn settings_can_be_given_back() {
        let settings = "recovery_min=1000K\nrecovery_max=200000K\nmember_timeout=1500ms\nscrub_interval=30d\nwrite_through=on\nauto_re_add=spare\nread_policy=prefer=1\nhedge=20ms\nspare_group=tank\n";
        let parsed = Tuning::parse(settings.lines()).unwrap();
        assert_eq!(tuning(&parsed), settings);
        assert_eq!(tuning(&Tuning::parse(["scrub_interval=0"]).unwrap()), "scrub_interval=never\n");
    }

    #[test]
    fn bars_and_percents_stay_in_bounds() {
        let sync = |done_bytes, total_bytes| SyncStatus {
            action: SyncAction::Resync,
            done_bytes,
            total_bytes,
            bytes_per_sec: 0,
            eta_seconds: None,
            mismatches: 3,
        };
        assert_eq!(
            progress(&sync(0, 0)),
            "resync [>.............................] 0.0%, 0 bytes of 0 bytes, 0 bytes/s, 3 mismatches"
        );
        assert!(progress(&sync(9, 8)).starts_with("resync [==============================] 100.0%"));
        assert!(progress(&sync(u64::MAX - 1, u64::MAX)).contains(" 99.9%"));
    }

    #[test]
    fn a_replaced_slot_counts_once() {
        let members = [
            member(1, Some("/b"), MemberState::InSync),
            member(0, None, MemberState::Faulty),
            member(1, Some("/c"), MemberState::Replacing),
        ];
        assert_eq!(slots(&members), "[_U]");
    }

    #[test]
    fn names_cannot_steer_the_terminal() {
        let hostile = Status { name: "a\x1b[2Jb".to_owned(), ..array() };
        assert!(!status(&hostile, &[]).contains("\x1b[2J") && !list(&[hostile]).contains('\x1b'));
    }
}
