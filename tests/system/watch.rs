//! raidctl on a terminal (one that `script` makes): `watch`, after which it must be as it was before, colours, and questions.

use super::disks::Disks;
use super::harness::{Home, need};

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
        // A key, a signal, and the end.
        "(sleep 1; printf q; sleep 1) | script -qec 'raidctl watch vol; stty -a' /dev/null",
        "sleep 3 | script -qec 'timeout --foreground 1 raidctl watch vol; stty -a' /dev/null",
        "sleep 2 | script -qec 'raidctl watch --count 2 --interval 100ms; stty -a' /dev/null",
    ];
    for way in ways {
        let shown = home.shell(way).ok();
        let enter = shown.find(ENTER).unwrap_or_else(|| panic!("{way}: {shown}"));
        let leave = shown.rfind(LEAVE).unwrap_or_else(|| panic!("{way}: {shown}"));
        assert!(shown[enter..leave].contains("2 of 2 in sync"), "{way}: {shown}");
        let after = &shown[leave..];
        assert!(after.contains(" icanon") && after.contains(" echo "), "{way}: {after}");
    }
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
    raidd.terminate();
}
