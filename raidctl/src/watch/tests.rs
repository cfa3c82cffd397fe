//! Pictures of what was seen, on terminals of many sizes.

use std::time::{Duration, Instant};

use raidd::api::{
    ArrayState, ConsistencyPolicy, DaemonStatus, Health, Member, MemberState, MemberStats, ReactorStatus,
    Spare, Stats, Status, SyncAction, SyncStatus, Traffic,
};
use ratatui::Terminal;
use ratatui::backend::TestBackend;
use ratatui::buffer::Buffer;
use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};
use ratatui::style::{Color, Modifier};

use super::draw::picture;
use super::look::{Look, Seen};
use super::record::Record;
use super::theme::Theme;
use super::view::View;
use crate::activity::tests::operations;

const SECOND: Duration = Duration::from_secs(1);
const UNIX_NOW: u64 = 1_795_219_373;

fn member(slot: u16, path: Option<&str>, state: MemberState) -> Member {
    let read_errors = if state == MemberState::Faulty { 3 } else { 0 };
    let path = path.map(str::to_owned);
    Member { slot, path, state, read_errors, write_errors: 0, corrected_errors: 0 }
}

/// A RAID 5 of four that is whole.
fn whole(name: &str) -> Status {
    let path = |slot: u16| format!("/dev/loop{slot}");
    Status {
        name: name.to_owned(),
        uuid: format!("uuid of {name}"),
        level: "raid5".to_owned(),
        layout: Some("left-symmetric".to_owned()),
        chunk_bytes: 131_072,
        size_bytes: 3 << 30,
        member_size_bytes: 1 << 30,
        metadata: "1.2".to_owned(),
        events: 42,
        consistency_policy: ConsistencyPolicy::Bitmap,
        state: ArrayState::Active,
        health: Health::Optimal,
        nbd_uri: Some(format!("nbd+unix:///{name}?socket=/run/raidd/nbd.sock")),
        connections: 1,
        members: (0..4).map(|slot| member(slot, Some(&path(slot)), MemberState::InSync)).collect(),
        spares: vec![Spare { slot: None, path: Some(path(4)), state: MemberState::Spare }],
        sync: SyncStatus::idle(0),
        created_unix_seconds: None,
        updated_unix_seconds: None,
        warnings: Vec::new(),
        sync_paused: false,
        tuning: None,
        last_scrub_unix_seconds: None,
        device: None,
        redundancy: None,
        traffic: None,
        concerns: Vec::new(),
    }
}

/// The same with a member that has failed, and the spare being filled.
fn recovering(name: &str) -> Status {
    let mut array = whole(name);
    array.health = Health::Degraded;
    array.members[1] = member(1, Some("/dev/loop4"), MemberState::Recovering);
    array.spares =
        vec![Spare { slot: None, path: Some("/dev/loop1".to_owned()), state: MemberState::Faulty }];
    array.sync = SyncStatus {
        action: SyncAction::Recovery,
        done_bytes: 483_183_820,
        total_bytes: 1 << 30,
        bytes_per_sec: 209_715_200,
        eta_seconds: Some(2),
        mismatches: 0,
    };
    array.warnings =
        vec!["a member is being filled: until that is done, one more failure loses data".to_owned()];
    array
}

/// What it has done after so many seconds: each of its clients' reads, 100 a second, took 400 us.
fn stats(status: &Status, seconds: u64) -> Stats {
    let members = status.members.iter().map(|member| MemberStats {
        slot: Some(member.slot),
        path: member.path.clone(),
        in_flight: 2,
        reads: operations(seconds * 50, 900),
        ..MemberStats::default()
    });
    Stats {
        name: status.name.clone(),
        uptime_ms: seconds * 1000,
        reads: operations(seconds * 100, 400),
        writes: operations(seconds * 25, 20_000),
        members: members.collect(),
        ..Stats::default()
    }
}

fn daemon(seconds: u64) -> DaemonStatus {
    let reactor = |index| ReactorStatus {
        index,
        uptime_us: seconds * 1_000_000,
        asleep_us: seconds * 250_000 * (index + 1),
        ring_calls: 0,
    };
    DaemonStatus {
        version: "0.1.0".to_owned(),
        started_unix_ms: 1_795_215_773_004,
        reactors: (0..2).map(reactor).collect(),
        ..DaemonStatus::default()
    }
}

/// These arrays, looked at so many times, a second between.
fn record_of(arrays: &[Status], looks: u64) -> (Record, Instant) {
    let mut record = Record::new(SECOND);
    let mut now = Instant::now();
    for turn in 1..=looks {
        let seen = arrays.iter().map(|status| Seen {
            status: status.clone(),
            stats: Some(stats(status, turn)),
            disks: Vec::new(),
        });
        now += SECOND;
        record.note(Look { arrays: seen.collect(), daemon: Some(daemon(turn)) }, now);
    }
    (record, now)
}

fn drawn(record: &Record, view: &mut View, size: (u16, u16), now: Instant, theme: Theme) -> Buffer {
    let mut terminal = Terminal::new(TestBackend::new(size.0, size.1)).unwrap();
    terminal.draw(|frame| picture(frame, record, view, theme, now, UNIX_NOW)).unwrap();
    terminal.backend().buffer().clone()
}

fn text(buffer: &Buffer) -> String {
    let area = buffer.area;
    let line = |row| (0..area.width).map(|column| buffer[(column, row)].symbol()).collect::<String>();
    (0..area.height).map(|row| line(row).trim_end().to_owned() + "\n").collect()
}

/// The picture as text, without colours.
fn shown(record: &Record, view: &mut View, size: (u16, u16), now: Instant) -> String {
    text(&drawn(record, view, size, now, Theme::new(false)))
}

fn press(view: &mut View, code: KeyCode, record: &Record) {
    view.key(KeyEvent::new(code, KeyModifiers::NONE), &record.names());
}

#[test]
fn one_array_that_recovers() {
    let (record, now) = record_of(&[recovering("vol0")], 3);
    let expected = "\
raidd 0.1.0, up 1 h 0 min, 1 array, 1 degraded, reactors 75% 50% busy
vol0  3 GiB, raid5, left-symmetric, 128K chunk
[U_UU] degraded, 3 of 4 in sync, 0 spare, active, 1 client
recovery █████████████████████████████░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░ 44.9%
  460.79 MiB of 1 GiB, 200 MiB/s, 2 s left
! a member is being filled: until that is done, one more failure loses data
nbd+unix:///vol0?socket=/run/raidd/nbd.sock

clients, in the last 5 min
read                                                  █ 400K/s, peak 400K/s
write                                                 █ 100K/s, peak 100K/s
p99                                                   █ 20.0 ms, peak 20.0 ms

SLOT  STATE       DEVICE      READ/s  WRITE/s      MEAN       P99  ERRORS
0     in_sync     /dev/loop0    200K        0    900 us    900 us       0
1     recovering  /dev/loop4    200K        0    900 us    900 us       0
2     in_sync     /dev/loop2    200K        0    900 us    900 us       0
3     in_sync     /dev/loop3    200K        0    900 us    900 us       0
-     faulty      /dev/loop1       -        -         -         -       -




q: quit  ?: keys
";
    let picture = shown(&record, &mut View::new(true), (80, 24), now);
    assert_eq!(picture, expected, "\n{picture}");
}

#[test]
fn all_arrays_and_the_chosen_one() {
    let (record, now) = record_of(&[whole("scratch"), recovering("vol0")], 3);
    let mut view = View::new(false);
    press(&mut view, KeyCode::Down, &record);
    let expected = "\
raidd 0.1.0, up 1 h 0 min, 2 arrays, 1 degraded, reactors 75% 50% busy       2026-11-21 00:02:53 UTC
  NAME     LEVEL   SIZE  HEALTH    MEMBERS  SYNC            CLIENTS  READ/s  WRITE/s       P99
  scratch  raid5  3 GiB  optimal   [UUUU]   -                     1    400K     100K   20.0 ms
>!vol0     raid5  3 GiB  degraded  [U_UU]   recovery 44.9%        1    400K     100K   20.0 ms
────────────────────────────────────────────────────────────────────────────────────────────────────
vol0  3 GiB, raid5, left-symmetric, 128K chunk
[U_UU] degraded, 3 of 4 in sync, 0 spare, active, 1 client
recovery ██████████████████████████████████████░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░ 44.9%
  460.79 MiB of 1 GiB, 200 MiB/s, 2 s left
! a member is being filled: until that is done, one more failure loses data
nbd+unix:///vol0?socket=/run/raidd/nbd.sock

clients, in the last 5 min
read                                                                      █ 400K/s, peak 400K/s
write                                                                     █ 100K/s, peak 100K/s
p99                                                                       █ 20.0 ms, peak 20.0 ms

SLOT  STATE       DEVICE      READ/s  WRITE/s      MEAN       P99  IN FLIGHT  ERRORS  CORRECTED
0     in_sync     /dev/loop0    200K        0    900 us    900 us          2       0          0
1     recovering  /dev/loop4    200K        0    900 us    900 us          2       0          0
2     in_sync     /dev/loop2    200K        0    900 us    900 us          2       0          0
3     in_sync     /dev/loop3    200K        0    900 us    900 us          2       0          0
-     faulty      /dev/loop1       -        -         -         -          -       -          -






q: quit  Enter: only that  ?: keys
";
    let picture = shown(&record, &mut view, (100, 30), now);
    assert_eq!(picture, expected, "\n{picture}");
}

#[test]
fn a_small_terminal_shows_what_matters() {
    let (record, now) = record_of(&[whole("scratch"), recovering("vol0")], 3);
    let mut view = View::new(false);
    press(&mut view, KeyCode::Down, &record);
    let expected = "\
raidd 0.1.0, up 1 h 0 min, 2 arrays, 1 …
  NAME     HEALTH    MEMBERS
  scratch  optimal   [UUUU]
>!vol0     degraded  [U_UU]
────────────────────────────────────────
vol0  3 GiB, raid5, left-symmetric, 128K
[U_UU] degraded, 3 of 4 in sync, 0 spare
recovery ███████████░░░░░░░░░░░░░░ 44.9%
  460.79 MiB of 1 GiB, 200 MiB/s, 2 s
q: quit  Enter: only that  ?: keys
";
    let picture = shown(&record, &mut view, (40, 10), now);
    assert_eq!(picture, expected, "\n{picture}");
}

#[test]
fn no_size_is_too_small_and_none_too_large() {
    let long = "0123456789012345678901234567890";
    let mut array = recovering(long);
    array.members = (0..300)
        .map(|slot| {
            let path = format!("/dev/disk/by-id/ata-MODEL_OF_A_DISK-WITH_A_LONG_NAME_{slot:09}");
            member(slot, Some(&path), MemberState::InSync)
        })
        .collect();
    let (mut record, now) = record_of(&[array, whole("größe-数据")], 400);
    for trouble in [false, true] {
        for size in [(1, 1), (2, 3), (5, 40), (20, 5), (40, 10), (80, 24), (300, 100)] {
            for keys in [&[][..], &[KeyCode::Char('?')], &[KeyCode::Enter], &[KeyCode::Enter, KeyCode::End]] {
                let mut view = View::new(false);
                for key in keys {
                    press(&mut view, *key, &record);
                    shown(&record, &mut view, size, now);
                }
                let picture = shown(&record, &mut view, size, now);
                assert_eq!(picture.lines().count(), usize::from(size.1), "{size:?}");
            }
        }
        if !trouble {
            record.miss("no raidd answers".to_owned());
        }
    }
}

#[test]
fn many_arrays_are_scrolled() {
    let arrays: Vec<_> = (0..50).map(|number| whole(&format!("vol{number:02}"))).collect();
    let (record, now) = record_of(&arrays, 2);
    let mut view = View::new(false);
    let first = shown(&record, &mut view, (80, 24), now);
    assert!(first.contains("> vol00") && first.contains("vol09") && !first.contains("vol10"), "{first}");
    assert!(first.contains("array 1 of 50"), "{first}");
    press(&mut view, KeyCode::PageDown, &record);
    let second = shown(&record, &mut view, (80, 24), now);
    assert!(second.contains("> vol10") && !second.contains("vol00"), "{second}");
    press(&mut view, KeyCode::End, &record);
    let last = shown(&record, &mut view, (80, 24), now);
    assert!(last.contains("> vol49") && last.contains("array 50 of 50"), "{last}");
    press(&mut view, KeyCode::Enter, &record);
    let one = shown(&record, &mut view, (80, 24), now);
    assert!(one.contains("vol49  3 GiB") && !one.contains("vol48"), "{one}");
}

#[test]
fn a_long_array_is_scrolled_to_its_end() {
    let mut array = whole("vol0");
    array.members =
        (0..60).map(|slot| member(slot, Some(&format!("/d/{slot}")), MemberState::InSync)).collect();
    let (record, now) = record_of(&[array], 2);
    let mut view = View::new(true);
    let first = shown(&record, &mut view, (80, 24), now);
    assert!(first.contains("vol0  3 GiB") && !first.contains("/d/59"), "{first}");
    press(&mut view, KeyCode::End, &record);
    let last = shown(&record, &mut view, (80, 24), now);
    // The spare stands behind the members.
    assert!(last.contains("/d/59") && last.contains("/dev/loop4") && !last.contains("vol0  3 GiB"), "{last}");
    press(&mut view, KeyCode::Home, &record);
    assert_eq!(shown(&record, &mut view, (80, 24), now), first);
}

#[test]
fn a_daemon_that_is_gone_is_said_to_be_and_comes_back() {
    let (mut record, now) = record_of(&[whole("vol0")], 3);
    let mut view = View::new(true);
    let before = shown(&record, &mut view, (80, 24), now);
    assert!(!before.contains("ago"), "{before}");
    let silent = shown(&record, &mut view, (80, 24), now + 12 * SECOND);
    assert!(silent.starts_with("raidd does not answer\nwhat follows was seen 12 s ago\n"), "{silent}");

    record.miss("no raidd answers at /run/raidd/control.sock: start one with `raidd`".to_owned());
    let later = now + SECOND;
    let gone = drawn(&record, &mut view, (80, 24), later, Theme::new(true));
    let words = text(&gone);
    assert!(
        words.starts_with("no raidd answers at /run/raidd/control.sock: start one with `raidd`\nwhat"),
        "{words}"
    );
    assert!(words.contains("seen 1 s ago") && words.contains("/dev/loop3"), "{words}");
    assert_eq!(gone[(0, 0)].fg, Color::Red);
    assert!(gone[(0, 4)].modifier.contains(Modifier::DIM), "what is shown is no longer sure");

    let again = Seen { status: whole("vol0"), stats: Some(stats(&whole("vol0"), 5)), disks: Vec::new() };
    record.note(Look { arrays: vec![again], daemon: Some(daemon(5)) }, now + 2 * SECOND);
    let back = shown(&record, &mut view, (80, 24), now + 2 * SECOND);
    assert!(!back.contains("ago") && back.contains("/dev/loop3"), "{back}");
    // The look that failed is a gap.
    assert_eq!(record.arrays()[0].reads.columns(300)[..3], [Some(409_600), None, Some(409_600)]);
}

#[test]
fn an_older_daemon_is_shown_by_its_traffic() {
    let mut record = Record::new(SECOND);
    let now = Instant::now();
    for turn in 1..=3_u32 {
        let bytes = u64::from(turn) << 20;
        let traffic = Traffic {
            client_read_bytes: bytes,
            client_written_bytes: 3 * bytes,
            member_read_bytes: 0,
            member_written_bytes: 0,
        };
        let status = Status { traffic: Some(traffic), ..whole("vol0") };
        let seen = Seen { status, stats: None, disks: Vec::new() };
        record.note(Look { arrays: vec![seen], daemon: None }, now + turn * SECOND);
    }
    let picture = shown(&record, &mut View::new(true), (80, 24), now + 3 * SECOND);
    assert!(picture.contains("1.0M/s, peak 1.0M/s") && picture.contains("3.0M/s, peak 3.0M/s"), "{picture}");
    assert!(!picture.contains("p99"), "nobody measures how long requests take: {picture}");
}

#[test]
fn an_array_that_is_made_anew_has_no_history() {
    let (mut record, now) = record_of(&[whole("vol0")], 3);
    assert_eq!(record.arrays()[0].reads.columns(300).len(), 3);
    let new = Status { uuid: "another".to_owned(), ..whole("vol0") };
    let seen = Seen { stats: Some(stats(&new, 1)), status: new, disks: Vec::new() };
    record.note(Look { arrays: vec![seen], daemon: None }, now + SECOND);
    assert_eq!(record.arrays()[0].reads.columns(300), [None]);
    assert!(record.arrays()[0].clients.is_none());
    record.note(Look { arrays: Vec::new(), daemon: None }, now + 2 * SECOND);
    let none = shown(&record, &mut View::new(false), (80, 24), now + 2 * SECOND);
    assert!(none.contains("no arrays: raidctl create makes one"), "{none}");
}

#[test]
fn an_array_that_is_away_is_waited_for() {
    let (mut record, now) = record_of(&[whole("aux"), whole("vol0")], 2);
    let mut view = View::new(false);
    press(&mut view, KeyCode::Down, &record);
    press(&mut view, KeyCode::Enter, &record);
    let before = shown(&record, &mut view, (80, 24), now);
    assert!(before.contains("vol0  3 GiB"), "{before}");
    let seen = |name| Seen { status: whole(name), stats: None, disks: Vec::new() };
    record.note(Look { arrays: vec![seen("aux")], daemon: None }, now);
    let away = shown(&record, &mut view, (80, 24), now);
    assert!(away.contains("vol0 does not run") && !away.contains("aux"), "{away}");
    record.note(Look { arrays: vec![seen("aux"), seen("vol0")], daemon: None }, now);
    let back = shown(&record, &mut view, (80, 24), now);
    assert!(back.contains("vol0  3 GiB"), "{back}");
}

#[test]
fn colours_are_left_out_where_they_are_not_wanted() {
    let (record, now) = record_of(&[recovering("vol0"), whole("vol1")], 3);
    let colours = |theme| {
        let buffer = drawn(&record, &mut View::new(false), (100, 30), now, theme);
        let mut used: Vec<_> = buffer.content.iter().map(|cell| cell.fg).collect();
        used.dedup();
        used
    };
    assert_eq!(colours(Theme::new(false)), [Color::Reset]);
    for colour in [Color::Green, Color::Yellow, Color::Red, Color::Cyan] {
        assert!(colours(Theme::new(true)).contains(&colour), "{colour}");
    }
}

#[test]
fn hostile_names_do_not_steer_the_terminal() {
    let mut array = recovering("a\x1b[2Jb");
    array.members[0].path = Some("/dev/\x07bell".to_owned());
    array.warnings = vec!["\x1b[31mred\r\n".to_owned()];
    let (record, now) = record_of(&[array], 2);
    for page in [View::new(true), View::new(false)] {
        let mut page = page;
        let picture = shown(&record, &mut page, (100, 30), now);
        assert!(!picture.contains(|c: char| c.is_control() && c != '\n'), "{picture:?}");
    }
}

#[test]
fn keys_are_explained() {
    let (record, now) = record_of(&[whole("vol0")], 1);
    let mut view = View::new(false);
    assert!(shown(&record, &mut view, (80, 24), now).ends_with("q: quit  Enter: only that  ?: keys\n"));
    press(&mut view, KeyCode::Char('?'), &record);
    let all = shown(&record, &mut view, (80, 24), now);
    assert!(
        all.contains("Enter, Tab: only that") && all.ends_with("?: fewer words  Ctrl-L: draw anew\n"),
        "{all}"
    );
    press(&mut view, KeyCode::Char('?'), &record);
    assert!(shown(&record, &mut view, (80, 24), now).ends_with("q: quit  Enter: only that  ?: keys\n"));
}

#[test]
fn a_script_gets_as_many_as_it_asked_for() {
    let turns = std::cell::Cell::new(0);
    let picture = || {
        turns.set(turns.get() + 1);
        Ok(String::new())
    };
    super::as_text(&picture, "", Duration::ZERO, Some(3)).unwrap();
    assert_eq!(turns.get(), 3);
}
