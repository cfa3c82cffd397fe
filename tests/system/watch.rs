//! `raidctl watch`: on a terminal (one that `script` makes), which must be as it was afterwards, and for scripts.

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
