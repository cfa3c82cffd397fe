//! The Debian package: what is in it, that it installs and goes again, and that what it installs works.
//!
//! It is made from the programs that were built for the tests, by the script that makes the real one.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use super::harness::{Home, need, run};
use super::stage::Stage;

/// What has to be in it, by mode. Pages of commands and of the documentation are counted besides.
const FILES: &[&str] = &[
    "-rwxr-xr-x ./usr/sbin/raidd",
    "-rwxr-xr-x ./usr/sbin/raidctl",
    "-rw-r--r-- ./usr/share/man/man8/raidd.8.gz",
    "-rw-r--r-- ./usr/share/man/man8/raidctl.8.gz",
    "-rw-r--r-- ./usr/share/man/man8/raidctl-create.8.gz",
    "-rw-r--r-- ./usr/share/bash-completion/completions/raidctl",
    "-rw-r--r-- ./usr/share/zsh/vendor-completions/_raidctl",
    "-rw-r--r-- ./usr/share/fish/vendor_completions.d/raidctl.fish",
    "-rw-r--r-- ./lib/systemd/system/raidd.service",
    "-rw-r--r-- ./lib/systemd/system/raidd-control.socket",
    "-rw-r--r-- ./lib/systemd/system/raidd-nbd.socket",
    "-rw-r--r-- ./lib/systemd/system/raidd-alert.service",
    "-rw-r--r-- ./lib/udev/rules.d/65-raidd.rules",
    "-rwxr-xr-x ./usr/share/initramfs-tools/hooks/raidd",
    "-rwxr-xr-x ./usr/share/raidd/alert",
    "-rw-r--r-- ./etc/raidd/raidd.toml",
    "-rw-r--r-- ./usr/share/doc/raidd/README.md",
    "-rw-r--r-- ./usr/share/doc/raidd/docs/getting-started.md",
    "-rw-r--r-- ./usr/share/doc/raidd/copyright",
];

/// Installs it, looks, removes it, and looks again: as an administrator would.
const INSTALLED: &str = r#"
set -ex
dpkg -i /tmp/raidd.deb
raidd --version && raidctl --version
man -w raidd raidctl-create
for unit in raidd.service raidd-control.socket raidd-nbd.socket; do
    [ "$(systemctl is-enabled $unit)" = enabled ]
done
[ "$(systemctl is-enabled raidd-alert.service)" = disabled ]
systemd-analyze verify --man=no raidd.service raidd-control.socket raidd-nbd.socket raidd-alert.service
raidd &
raidd=$!
sleep 1
raidctl create vol0 --level 1 /dev/sdb /dev/sdc
raidctl wait vol0
bash -c 'source /usr/share/bash-completion/completions/raidctl
    COMP_LINE="raidctl status v" COMP_POINT=16 COMP_WORDS=(raidctl status v) COMP_CWORD=2
    _raidctl raidctl v status
    [ "${COMPREPLY[*]}" = vol0 ]'
raidctl demo --size 16M
kill $raidd && wait $raidd
echo '# of my own' >>/etc/raidd/raidd.toml
dpkg -i /tmp/raidd.deb </dev/null
grep 'of my own' /etc/raidd/raidd.toml
dpkg -r raidd
[ -e /etc/raidd/raidd.toml ] && [ -e /var/lib/raidd ]
dpkg -P raidd
! ls -d /usr/sbin/raid[dc]* /etc/raidd /var/lib/raidd /etc/systemd/system/*/raidd* /etc/mdadm/mdadm.conf.d/raidd.conf
"#;

/// cargo-deb, as `scripts/test` installs it, or anybody's.
fn can_be_made() -> bool {
    let tool = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/tools/bin/cargo-deb");
    (tool.exists() || need(&["cargo-deb"])) && need(&["dpkg-deb", "strip"])
}

fn made(home: &Home) -> PathBuf {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/package");
    let built = Path::new(env!("CARGO_BIN_EXE_raidd")).parent().unwrap();
    let out = home.path("package");
    let line = format!("FROM={} OUT={} {}", built.display(), out.display(), script.display());
    let told = home.shell(&line).ok();
    let path = PathBuf::from(told.lines().last().unwrap());
    assert!(path.starts_with(&out) && path.exists(), "{told}");
    path
}

#[test]
fn the_package_has_everything_installs_works_and_goes_again() {
    if !can_be_made() {
        return;
    }
    let home = Home::new();
    let package = made(&home);
    has_everything(&home, &package);
    if need(&["lintian"]) {
        let arguments = ["--fail-on", "error", "--tag-display-limit", "0", package.to_str().unwrap()];
        let ran = run("lintian", &arguments);
        assert_eq!(ran.status, 0, "{}{}", ran.stdout, ran.stderr);
    }
    let Some(stage) = Stage::new(&home) else { return };
    fs::copy(&package, stage.shared("raidd.deb")).unwrap();
    let ran = stage.run(INSTALLED);
    assert_eq!(ran.status, 0, "{}{}", ran.stdout, ran.stderr);
}

fn has_everything(home: &Home, package: &Path) {
    let path = package.to_str().unwrap();
    let list = run("dpkg-deb", &["--contents", path]).ok();
    let entry = |line: &str| {
        let words: Vec<_> = line.split_whitespace().collect();
        assert!(["root/root", "0/0"].contains(&words[1]), "{line}");
        format!("{} {}", words[0], words[5])
    };
    let entries: BTreeSet<_> = list.lines().map(entry).collect();
    for file in FILES {
        assert!(entries.contains(*file), "{file} is missing: {list}");
    }
    assert!(entries.iter().filter(|file| file.contains("/man8/raidctl-")).count() > 20, "{list}");
    let docs = fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs")).unwrap();
    for page in
        docs.map(|entry| entry.unwrap().file_name()).filter(|name| name.to_str().unwrap().ends_with(".md"))
    {
        let page = format!("-rw-r--r-- ./usr/share/doc/raidd/docs/{}", page.to_str().unwrap());
        let is_there = entries.contains(&page) || entries.contains(&format!("{page}.gz"));
        assert!(is_there, "{page} is missing: {list}");
    }
    let field = |name: &str| run("dpkg-deb", &["--field", path, name]).ok();
    let depends = field("Depends");
    assert!(depends.contains("libc6") && depends.contains("libssl3"), "{depends}");
    assert_eq!(field("Package"), "raidd\n");
    assert!(field("Version").starts_with(env!("CARGO_PKG_VERSION")), "{}", field("Version"));

    let control = home.path("control");
    run("dpkg-deb", &["--control", path, control.to_str().unwrap()]).ok();
    let read = |name: &str| fs::read_to_string(control.join(name)).unwrap();
    assert_eq!(read("conffiles"), "/etc/raidd/raidd.toml\n");
    for script in ["postinst", "prerm", "postrm"] {
        run("sh", &["-n", control.join(script).to_str().unwrap()]).ok();
    }
}
