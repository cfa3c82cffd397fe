//! Who may do what over the control socket: the groups that are named, and nobody else.

use std::fs::{Permissions, set_permissions};
use std::os::unix::fs::PermissionsExt;

use super::disks::Disks;
use super::harness::{Home, need};

/// Groups that need not have names.
const OPERATORS: &str = "54321";
const READERS: &str = "54322";

#[test]
fn groups_look_or_act_and_others_do_neither() {
    if !need(&["root", "setpriv", "curl"]) {
        return;
    }
    let home = Home::new();
    set_permissions(home.path(""), Permissions::from_mode(0o755)).unwrap();
    let raidd = home.start_with(&["--control-group", OPERATORS, "--control-read-group", READERS]);
    home.ok(format!(
        "create vol0 --level 1 --init assume-clean {}",
        Disks::files(&home, "disk", 2, 32).all()
    ));
    let socket = home.path("control.sock");
    // As some user, with this group as its own, or among others.
    let ask = |groups: &str, method: &str, path: &str| {
        let line = format!(
            "setpriv --reuid 65534 {groups} curl -s -X {method} --unix-socket {} -w '\\n%{{http_code}}' http://raidd{path}",
            socket.display()
        );
        let ran = home.shell(&line);
        let (body, status) = ran.stdout.rsplit_once('\n').unwrap_or_else(|| panic!("{ran:?}"));
        (status.parse::<u16>().unwrap(), body.to_owned())
    };
    let with = |group: &str| format!("--regid {group} --clear-groups");
    assert_eq!(ask(&with(READERS), "GET", "/v1/arrays/vol0").0, 200);
    assert_eq!(ask(&with(READERS), "GET", "/metrics").0, 200);
    let (status, body) = ask(&with(READERS), "POST", "/v1/arrays/vol0/pause");
    assert!(status == 403 && body.contains("\"code\":\"forbidden\""), "{status} {body}");
    assert!(!home.status("vol0").sync_paused);
    assert_eq!(ask(&with(OPERATORS), "POST", "/v1/arrays/vol0/pause").0, 200);
    assert!(home.status("vol0").sync_paused);
    let (status, body) = ask(&with("54323"), "GET", "/v1/arrays/vol0");
    assert!(status == 403 && body.contains("control_read_group"), "{status} {body}");
    raidd.terminate();

    // With one group alone, the file itself keeps others out.
    let raidd = home.start_with(&["--control-group", OPERATORS]);
    home.wait_for("vol0", |status| status.nbd_uri.is_some());
    let mode = std::fs::metadata(&socket).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o660);
    assert_eq!(ask(&with(OPERATORS), "POST", "/v1/arrays/vol0/resume").0, 200);
    assert_eq!(ask(&with(READERS), "GET", "/v1/arrays/vol0").0, 0, "it cannot connect");
    raidd.terminate();
}
