//! A machine of one's own for whoever follows the documentation: this one's files, and whatever is changed is gone afterwards.
//!
//! - A [`Stage`] is a root of two layers: below this machine's files, which nobody can change there; above, what is installed
//!   and written.
//! - Processes run in there with mounts, process numbers and network of their own. They end with what was run, also those
//!   that it started and left behind; their mounts go with them.
//! - Loop devices belong to the whole machine. Files for them are made below /tmp and /srv, which are one filesystem of
//!   the stage's own, so that those that were left are found by its number, and taken away.
//! - Disks `/dev/sdb` to `/dev/sdg` are there, 96 MiB each.

use std::fs;
use std::os::linux::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::disks::{Disks, Loop, file};
use super::harness::{Home, Ran, need, run, skip};
use super::mounted::{Mount, comes_true};

/// The filesystem of what is changed; sparse.
const ROOM_BYTES: u64 = 6 << 30;
/// Disks, and what they are called.
const DISK_NAMES: [&str; 6] = ["sdb", "sdc", "sdd", "sde", "sdf", "sdg"];
const DISK_MIB: u64 = 96;
/// Loop devices that can be reached; the kernel gives out the lowest that are free.
const LOOPS_MAX: usize = 128;

/// What a stage needs, for [`need`].
const NEEDS: &[&str] =
    &["root", "losetup", "mkfs.ext4", "unshare", "chroot", "/dev/fuse", "/dev/loop-control", "ip"];

/// Makes the root in its own mounts, and runs a script in there. The folder is $1.
const ENTER: &str = r#"
set -e
stage=$1 root=$1/root
mount -t overlay overlay -o "lowerdir=/,upperdir=$stage/upper,workdir=$stage/work" "$root"
mount -t proc proc "$root/proc"
mount --rbind /sys "$root/sys"
mount -t tmpfs -o mode=755 tmpfs "$root/dev"
for node in null zero full random urandom tty fuse loop-control; do cp -a "/dev/$node" "$root/dev/$node"; done
ln -s /proc/self/fd "$root/dev/fd"
mkdir "$root/dev/shm" "$root/dev/pts"
mount -t tmpfs tmpfs "$root/dev/shm"
mount -t devpts -o newinstance,ptmxmode=666 devpts "$root/dev/pts"
ln -s pts/ptmx "$root/dev/ptmx"
i=0
while [ $i -lt LOOPS ]; do mknod "$root/dev/loop$i" b 7 $i; i=$((i + 1)); done
while read -r name minor; do mknod "$root/dev/$name" b 7 "$minor"; done <"$stage/disks"
mount -t tmpfs -o mode=755 tmpfs "$root/run"
mount --bind "$stage/tmp" "$root/tmp"
mount --bind "$stage/srv" "$root/srv"
# What a raidd of this machine remembers is none of its business.
rm -rf "$root/var/lib/raidd" "$root/etc/mdadm/mdadm.conf.d/raidd.conf"
ip link set lo up
exec chroot "$root" /usr/bin/env -i HOME=/root LC_ALL=C.UTF-8 TERM=xterm \
    PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin bash /followed
"#;

/// See the head of this file.
pub struct Stage {
    _disks: Disks,
    folder: PathBuf,
    mount: Mount,
    _image: Loop,
}

impl Stage {
    /// A stage, if this machine can give one; if not, it says that the test is skipped, and why.
    pub fn new(home: &Home) -> Option<Stage> {
        if !need(NEEDS) {
            return None;
        }
        let image = Loop::over(Path::new(&file(home, "stage.img", ROOM_BYTES)), &[]);
        run("mkfs.ext4", &["-q", "-F", "-E", "lazy_itable_init=1", "-O", "^has_journal", &image.path]).ok();
        let mount = Mount::new(home, "ext4", &image.path, "noatime");
        let folder = mount.point.clone();
        for name in ["upper", "work", "root", "tmp", "srv"] {
            fs::create_dir(folder.join(name)).unwrap();
        }
        let disks = Disks::loops(home, "disk", DISK_NAMES.len(), DISK_MIB);
        let minor = |path: &str| path.strip_prefix("/dev/loop").unwrap().to_owned();
        let nodes =
            DISK_NAMES.iter().zip(&disks.paths).map(|(name, path)| format!("{name} {}\n", minor(path)));
        fs::write(folder.join("disks"), nodes.collect::<String>()).unwrap();
        let stage = Stage { _disks: disks, folder, mount, _image: image };
        let tried = stage.run("true");
        if tried.status != 0 {
            skip(&format!("no root of its own can be had here: {}", tried.stderr.trim().replace('\n', "; ")));
            return None;
        }
        Some(stage)
    }

    /// Installs what was built by hand, where a package would put it: below /usr.
    pub fn install(&self, home: &Home) {
        let built = Path::new(env!("CARGO_BIN_EXE_raidd")).parent().unwrap();
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/install");
        let (from, dest) = (built.display(), self.folder.join("upper"));
        let line = format!("FROM={from} DESTDIR={} PREFIX=/usr {}", dest.display(), script.display());
        home.shell(&line).ok();
    }

    /// Where a file has to be put so that it is in the stage's /tmp.
    pub fn shared(&self, name: &str) -> PathBuf {
        self.folder.join("tmp").join(name)
    }

    /// Puts a file there.
    pub fn write(&self, path: &str, text: &str) {
        let path = self.folder.join("upper").join(path.trim_start_matches('/'));
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    /// What is in a file there.
    pub fn read(&self, path: &str) -> String {
        let path = self.folder.join("upper").join(path.trim_start_matches('/'));
        String::from_utf8_lossy(&fs::read(path).unwrap_or_default()).into_owned()
    }

    /// Runs a script of bash to its end, and everything that it leaves running.
    pub fn run(&self, script: &str) -> Ran {
        self.write("/followed", script);
        let enter = ENTER.replace("LOOPS", &LOOPS_MAX.to_string());
        let folder = self.folder.to_str().unwrap();
        let own = ["--mount", "--pid", "--net", "--fork", "--kill-child", "--propagation", "private"];
        let ran = run("unshare", &[&own[..], &["sh", "-c", &enter, "sh", folder]].concat());
        self.take_loops_away();
        assert!(comes_true(|| self.loops_left().is_empty()), "{:?} are still there", self.loops_left());
        ran
    }

    /// Loop devices over files of this stage.
    fn loops_left(&self) -> Vec<String> {
        let device = fs::metadata(&self.folder).unwrap().st_dev();
        let here = format!("{}:{}", nix::sys::stat::major(device), nix::sys::stat::minor(device));
        let list = run("losetup", &["--list", "--noheadings", "-O", "NAME,BACK-MAJ:MIN"]).stdout;
        let lines = list.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
        let ours = lines.filter(|words| words.get(1) == Some(&here.as_str()));
        ours.map(|words| words[0].to_owned()).collect()
    }

    fn take_loops_away(&self) {
        for name in self.loops_left() {
            let ran = run("losetup", &["-d", &name]);
            if ran.status != 0 {
                eprintln!("{name} was not detached: {ran:?}");
            }
        }
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        self.take_loops_away();
        // Rings that are being taken down hold files for a moment longer.
        let point = self.mount.point.to_str().unwrap();
        if !comes_true(|| run("umount", &[point]).status == 0) {
            eprintln!("{point} was not unmounted");
        }
    }
}
