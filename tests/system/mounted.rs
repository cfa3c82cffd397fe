//! An export as a block device of this machine without the kernel's NBD driver: nbdfuse shows it as a file, a loop device
//! makes a disk of that, and a filesystem on it can be mounted.
//!
//! Everything is taken down in the reverse order; `detach` and `unmount` insist on every step, and what a failed test
//! leaves is torn down when the values go.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::disks::Loop;
use super::harness::{Home, run};

/// How long each step may take.
const PATIENCE: Duration = Duration::from_secs(20);

pub fn wait_until(what: &str, done: impl FnMut() -> bool) {
    assert!(comes_true(done), "{what}: not in {PATIENCE:?}");
}

pub fn comes_true(mut done: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + PATIENCE;
    while !done() {
        if Instant::now() > deadline {
            return false;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    true
}

pub fn is_mounted(folder: &Path) -> bool {
    run("mountpoint", &["-q", folder.to_str().unwrap()]).status == 0
}

/// An export as a block device.
pub struct Attached {
    disk: Option<Loop>,
    nbdfuse: Option<Child>,
    fuse: PathBuf,
}

impl Attached {
    /// Attaches an export over four connections.
    pub fn new(home: &Home, uri: &str) -> Attached {
        let fuse = home.path("fuse");
        std::fs::create_dir_all(&fuse).unwrap();
        let child = Command::new("nbdfuse")
            .args(["-C", "4"])
            .arg(fuse.join("nbd"))
            .arg(uri)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let mut attached = Attached { disk: None, nbdfuse: Some(child), fuse };
        let file = attached.fuse.join("nbd");
        wait_until("nbdfuse comes up", || {
            let ended = attached.nbdfuse.as_mut().unwrap().try_wait().unwrap();
            assert!(ended.is_none(), "nbdfuse ended: {ended:?}");
            is_mounted(&attached.fuse) && file.exists()
        });
        attached.disk = Some(Loop::over(&file, &[]));
        attached
    }

    /// The block device.
    pub fn device(&self) -> &str {
        &self.disk.as_ref().unwrap().path
    }

    /// Takes it down again: the client has left its export when this returns.
    pub fn detach(mut self) {
        run("blockdev", &["--flushbufs", self.device()]).ok();
        let device = self.device().to_owned();
        self.disk = None;
        wait_until("the loop device is let go", || run("losetup", &[&device]).status != 0);
        self.unmount_fuse();
        let mut child = self.nbdfuse.take().unwrap();
        wait_until("nbdfuse ends", || child.try_wait().unwrap().is_some());
        assert!(child.wait().unwrap().success(), "nbdfuse failed");
    }

    fn unmount_fuse(&self) {
        let fuse = self.fuse.to_str().unwrap();
        wait_until("nbdfuse can be unmounted", || run("fusermount3", &["-u", fuse]).status == 0);
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        self.disk = None;
        if let Some(mut child) = self.nbdfuse.take() {
            let _lazily = run("fusermount3", &["-u", "-z", self.fuse.to_str().unwrap()]);
            if !comes_true(|| matches!(child.try_wait(), Ok(Some(_)) | Err(_))) {
                eprintln!("nbdfuse had to be killed: {:?}", child.kill().and_then(|()| child.wait()));
            }
        }
    }
}

/// A mounted filesystem.
pub struct Mount {
    pub point: PathBuf,
}

impl Mount {
    /// Mounts a device; `kind` and `options` are those of mount.
    pub fn new(home: &Home, kind: &str, device: &str, options: &str) -> Mount {
        let point = home.path("mnt");
        std::fs::create_dir_all(&point).unwrap();
        run("mount", &["-t", kind, "-o", options, device, point.to_str().unwrap()]).ok();
        Mount { point }
    }

    /// Unmounts it, which writes everything back.
    pub fn unmount(self) {
        run("umount", &[self.point.to_str().unwrap()]).ok();
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        if is_mounted(&self.point) {
            let _lazily = run("umount", &["-l", self.point.to_str().unwrap()]);
        }
    }
}
