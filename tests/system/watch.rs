//! raidctl on a terminal (one that `script` or tmux makes): `watch`, after which it must be as it was before, colours, and questions.

use nix::sys::signal::{Signal, kill};

use super::disks::Disks;
use super::harness::{Home, need};
use super::tmux::Terminal;

const ENTER: &str = "\x1b[?1049h";
const LEAVE: &str = "\x1b[?1049l";

#[test]
fn a_terminal_is_given_back() {
    if !need(&["script"]) {
        return;
    }
    let home = Home::new();
    let disks = Disks::files(&home, "disk", 2, 32);
    let _raidd = home.start();
    home.ok(format!("create vol --level 1 --init zero {}", disks.all()));
    let ways = [
        // Keys, signals, and the end.
        "(sleep 1; printf q; sleep 1) | script -qec 'raidctl watch vol; stty -a' /dev/null",
        "(sleep 1; printf '\\003'; sleep 1) | script -qec 'raidctl watch; stty -a' /dev/null",
        "(sleep 1; printf '\\033'; sleep 1) | script -qec 'raidctl watch; stty -a' /dev/null",
        "sleep 3 | script -qec 'timeout --foreground 1 raidctl watch vol; stty -a' /dev/null",
        "sleep 3 | script -qec 'timeout --foreground -s HUP 1 raidctl watch; stty -a' /dev/null",
        "sleep 2 | script -qec 'raidctl watch --count 2 --interval 100ms; stty -a' /dev/null",
    ];
    for way in ways {
        let shown = home.shell(way).ok();
        let enter = shown.find(ENTER).unwrap_or_else(|| panic!("{way}: {shown}"));
        let leave = shown.rfind(LEAVE).unwrap_or_else(|| panic!("{way}: {shown}"));
        assert!(shown[enter..leave].contains("in_sync"), "{way}: {shown}");
        let after = &shown[leave..];
        assert!(after.contains(" icanon") && after.contains(" echo "), "{way}: {after}");
    }
}

#[test]
fn a_member_is_seen_to_fail_and_to_be_replaced() {
    if !need(&["tmux"]) {
        return;
    }
    let home = Home::new();
    let disks = Disks::files(&home, "disk", 7, 64);
    let raidd = home.start();
    home.ok(format!("create aux --level 1 --init zero {}", disks.some(&[5, 6])));
    home.ok(format!(
        "create vol --level 5 --init zero --spare {} {}",
        disks.paths[4],
        disks.some(&[0, 1, 2, 3])
    ));
    home.ok("tune vol recovery_min=2M recovery_max=2M");
    let terminal = Terminal::start(&home, (90, 30), "watch --interval 100ms");
    let all = terminal.once(|screen| screen.contains("2 arrays") && screen.contains("[UUUU]"));
    assert!(all.contains("> aux") && !all.contains("degraded") && all.contains("q: quit"), "{all}");

    terminal.press("Down");
    terminal.once(|screen| screen.contains("> vol") && screen.contains("disk4"));
    let mut client = home.client("vol");
    let mut bytes = vec![7; 1 << 20];
    terminal.once(|screen| {
        bytes.rotate_left(1);
        client.write(0, &bytes).unwrap();
        // A sparkline, and what it comes to.
        let line = screen.lines().find(|line| line.starts_with("write "));
        line.is_some_and(|line| line.contains('█') && line.contains("M/s, peak "))
    });

    home.ok(format!("fail vol {}", disks.paths[1]));
    let failed = terminal.once(|screen| screen.contains("recovery █") && screen.contains(" left"));
    for what in ["1 degraded", "[U_UU]", "░", "faulty", "recovering", "! "] {
        assert!(failed.contains(what), "{what}: {failed}");
    }

    // One array alone, on a terminal that is too small for it.
    terminal.press("Enter");
    terminal.resize((40, 12));
    let top = terminal.once(|screen| screen.contains("lines 1 to ") && !screen.contains("> vol"));
    assert!(top.contains("raid5, left") && !top.contains("-     faulty"), "{top}");
    terminal.press("End");
    terminal.once(|screen| screen.contains("-     faulty") && !screen.contains("raid5, left"));
    terminal.press("PageUp");
    terminal.press("PageUp");
    terminal.once(|screen| screen.contains("raid5, left"));

    // A raidd that hangs holds no key up.
    kill(raidd.pid(), Signal::SIGSTOP).unwrap();
    terminal.once(|screen| screen.contains("raidd does not answer") && screen.contains("lines 1 to "));
    terminal.press("End");
    terminal.once(|screen| screen.contains("-     faulty"));
    terminal.press("Home");
    kill(raidd.pid(), Signal::SIGCONT).unwrap();
    terminal.once(|screen| screen.contains("raid5, left") && !screen.contains("does not answer"));

    drop(client);
    raidd.terminate();
    terminal.once(|screen| screen.contains("no raidd answers") && screen.contains("seen"));
    let raidd = home.start();
    terminal.once(|screen| screen.contains("raid5, left") && !screen.contains("no raidd answers"));

    terminal.resize((90, 30));
    terminal.once(|screen| screen.contains("-     ") && !screen.contains("lines "));
    terminal.press("Tab");
    terminal.once(|screen| screen.contains("> vol"));
    terminal.press("q");
    let after = terminal.once(|screen| screen.contains("-- ended with 0"));
    assert!(after.contains(" icanon") && after.contains(" echo ") && !after.contains("q: quit"), "{after}");
    raidd.terminate();
}

#[test]
fn a_script_gets_one_status_after_the_other() {
    let home = Home::new();
    let disks = Disks::files(&home, "disk", 2, 32);
    let raidd = home.start();
    home.ok(format!("create vol --level 1 --init zero {}", disks.all()));
    let text = home.ok("watch vol --count 3 --interval 50ms");
    assert_eq!(text.matches("2 of 2 in sync").count(), 3, "{text}");
    assert!(!text.contains('\x1b'), "{text}");
    let lines = home.ok("watch vol --json --count 2 --interval 1ms");
    assert_eq!(lines.lines().filter(|line| line.starts_with(r#"{"name":"vol""#)).count(), 2, "{lines}");
    raidd.terminate();
    home.raidctl("watch vol").complaint(1);
}

#[test]
fn people_are_asked_before_something_is_destroyed() {
    if !need(&["script"]) {
        return;
    }
    let home = Home::new();
    let disks = Disks::files(&home, "disk", 2, 32);
    let raidd = home.start();
    home.ok(format!("create vol --level 1 --init zero {}", disks.all()));
    home.ok("stop vol --release");
    let typed = |answer: &str, line: &str| {
        home.shell(&format!("(sleep 0.5; printf '{answer}\\r') | script -qec 'raidctl {line}' /dev/null"))
    };
    let zero = format!("zero-superblock {}", disks.paths[0]);
    let refused = typed("n", &zero);
    assert!(refused.status == 1 && refused.stdout.contains("belong to no array any more"), "{refused:?}");
    assert!(refused.stdout.contains("nothing was done"), "{refused:?}");
    home.ok(format!("examine {}", disks.paths[0]));
    let again = format!("create vol --force --level 1 {}", disks.all());
    assert_eq!(typed("", &again).status, 1);
    assert!(typed("", &format!("--yes {again}")).stdout.contains("nbd+unix://"));
    let stopped = typed("yes", "stop vol --force");
    assert!(stopped.status == 0 && stopped.stdout.contains("clients of vol are cut off"), "{stopped:?}");
    // Scripts are not.
    home.ok(zero);
    raidd.terminate();
}

#[test]
fn health_is_coloured_where_people_see_it() {
    if !need(&["script"]) {
        return;
    }
    let home = Home::new();
    let raidd = home.start();
    home.ok(format!("create vol --level 1 --init zero {}", Disks::files(&home, "disk", 2, 32).all()));
    let shown = home.shell("script -qec 'raidctl status vol' /dev/null </dev/null").ok();
    assert!(shown.contains("\x1b[32moptimal\x1b[0m"), "{shown:?}");
    let plain = home.shell("NO_COLOR=1 script -qec 'raidctl status vol' /dev/null </dev/null").ok();
    assert!(plain.contains("optimal") && !plain.contains("\x1b[32m"), "{plain:?}");
    assert!(!home.ok("status vol").contains('\x1b'));
    // The view, too: 2 is green in the palette of 256.
    let watch = "script -qec 'raidctl watch --count 1' /dev/null </dev/null";
    assert!(home.shell(watch).ok().contains("38;5;2"));
    assert!(!home.shell(&format!("NO_COLOR=1 {watch}")).ok().contains("38;5;"));
    raidd.terminate();
}
