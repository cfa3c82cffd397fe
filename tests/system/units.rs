//! The systemd units, as systemd reads them. `scripts/boot-guest` boots a machine with them.

use std::fs;
use std::path::Path;

use super::harness::{need, raidctl_program, run};

/// What `systemd-analyze security` may find, in tenths: root, the host's network, and CAP_SYS_ADMIN for the kernel's nbd
/// driver are most of it.
const EXPOSURE_MAX: &str = "25";

/// The units, with raidd where it has been built.
fn units() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("contrib/systemd")).unwrap() {
        let path = entry.unwrap().path();
        let text = fs::read_to_string(&path).unwrap();
        let text = text.replace("/usr/sbin/raidctl", raidctl_program().to_str().unwrap());
        let text = text.replace("/usr/sbin/raidd", env!("CARGO_BIN_EXE_raidd"));
        fs::write(folder.path().join(path.file_name().unwrap()), text).unwrap();
    }
    folder
}

#[test]
fn systemd_has_nothing_to_say_against_the_units() {
    if !need(&["systemd-analyze"]) {
        return;
    }
    let folder = units();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let all = ["raidd.service", "raidd-control.socket", "raidd-nbd.socket", "raidd-alert.service"].map(path);
    let mut arguments = vec!["verify", "--man=no"];
    arguments.extend(all.iter().map(String::as_str));
    let ran = run("systemd-analyze", &arguments);
    assert_eq!((ran.status, ran.stdout.as_str(), ran.stderr.as_str()), (0, "", ""));
}

#[test]
fn the_service_may_do_no_more_than_it_has_to() {
    if !need(&["systemd-analyze"]) {
        return;
    }
    let folder = units();
    let unit = folder.path().join("raidd.service");
    let threshold = format!("--threshold={EXPOSURE_MAX}");
    let unit = unit.to_str().unwrap();
    let ran = run("systemd-analyze", &["security", "--offline=yes", "--no-pager", &threshold, unit]);
    assert_eq!(ran.status, 0, "{}\n{}", ran.stdout, ran.stderr);
    assert!(ran.stdout.contains("Overall exposure level"), "{ran:?}");
}
