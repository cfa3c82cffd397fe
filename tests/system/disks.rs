//! Members for the arrays of a test: plain files, and loop devices over them.
//!
//! Loop devices belong to the whole machine. Their making is serialised, as others ask for a free one at the same time
//! too; and all the while a test has some it holds a lock, shared, which the one test that looks through all block
//! devices takes for itself.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use nix::fcntl::{Flock, FlockArg};
use sha2::{Digest, Sha256};

use super::harness::{Home, run};

pub const MIB: u64 = 1 << 20;

/// A few disks of one kind.
pub struct Disks {
    pub paths: Vec<String>,
    _loops: Vec<Loop>,
}

impl Disks {
    /// Sparse files of so many MiB, named `prefix0`, `prefix1` and so on.
    pub fn files(home: &Home, prefix: &str, count: usize, mib: u64) -> Disks {
        Disks::of_sizes(home, prefix, std::iter::repeat_n(mib * MIB, count))
    }

    /// Sparse files of so many bytes each, named alike.
    pub fn of_sizes(home: &Home, prefix: &str, sizes: impl IntoIterator<Item = u64>) -> Disks {
        let files = sizes.into_iter().enumerate();
        let paths = files.map(|(number, bytes)| file(home, &format!("{prefix}{number}"), bytes));
        Disks { paths: paths.collect(), _loops: Vec::new() }
    }

    /// Loop devices over such files.
    pub fn loops(home: &Home, prefix: &str, count: usize, mib: u64) -> Disks {
        let files = Disks::files(home, prefix, count, mib);
        let loops: Vec<_> = files.paths.iter().map(|path| Loop::over(Path::new(path), &[])).collect();
        Disks { paths: loops.iter().map(|device| device.path.clone()).collect(), _loops: loops }
    }

    /// Some of them; the loop devices stay with the whole.
    pub fn part(&self, which: &[usize]) -> Disks {
        Disks { paths: which.iter().map(|&index| self.paths[index].clone()).collect(), _loops: Vec::new() }
    }

    /// All paths, as they are typed.
    pub fn all(&self) -> String {
        self.paths.join(" ")
    }

    /// The paths of these.
    pub fn some(&self, which: &[usize]) -> String {
        which.iter().map(|&index| self.paths[index].as_str()).collect::<Vec<_>>().join(" ")
    }

    /// The paths of all but these.
    pub fn without(&self, which: &[usize]) -> String {
        let rest: Vec<_> = (0..self.paths.len()).filter(|index| !which.contains(index)).collect();
        self.some(&rest)
    }

    /// Fills all of every disk with noise.
    pub fn fill_with_noise(&self) {
        for (number, path) in self.paths.iter().enumerate() {
            let file = File::options().write(true).open(path).unwrap();
            let len = std::fs::metadata(path).unwrap().len();
            for at in (0..len).step_by(MIB as usize) {
                let noise = noise(number as u64 * 1_000_003 + at, (len - at).min(MIB) as usize);
                file.write_all_at(&noise, at).unwrap();
            }
        }
    }

    /// What identifies the content of each.
    pub fn hashes(&self) -> Vec<[u8; 32]> {
        self.paths.iter().map(|path| hash_of(Path::new(path))).collect()
    }
}

/// A sparse file.
pub fn file(home: &Home, name: &str, bytes: u64) -> String {
    let path = home.path(name);
    File::create(&path).unwrap().set_len(bytes).unwrap();
    path.to_str().unwrap().to_owned()
}

/// SHA-256 of a file or block device.
pub fn hash_of(path: &Path) -> [u8; 32] {
    let mut hash = Sha256::new();
    let mut file = File::open(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let mut buf = vec![0; 1 << 20];
    loop {
        let len = std::io::Read::read(&mut file, &mut buf).unwrap();
        if len == 0 {
            return hash.finalize().into();
        }
        hash.update(&buf[..len]);
    }
}

/// Bytes that look random and are the same for the same seed (xorshift64*).
pub fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut out = Vec::with_capacity(len + 8);
    while out.len() < len {
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        out.extend_from_slice(&state.wrapping_mul(0x2545_f491_4f6c_dd1d).to_le_bytes());
    }
    out.truncate(len);
    out
}

/// Held shared while there are loop devices, exclusively while the machine's block devices are looked through.
pub fn machine_lock(how: FlockArg) -> Flock<File> {
    let path = std::env::temp_dir().join("raidd-system-tests.lock");
    let file = File::options().create(true).truncate(false).write(true).open(path).unwrap();
    Flock::lock(file, how).unwrap_or_else(|(_, errno)| panic!("{errno}"))
}

/// A loop device.
pub struct Loop {
    pub path: String,
    /// Nobody looks through all block devices meanwhile.
    _shared: Option<Flock<File>>,
}

impl Loop {
    /// A loop device over a file; `options` are losetup's.
    pub fn over(file: &Path, options: &[&str]) -> Loop {
        let shared = machine_lock(FlockArg::LockShared);
        let mut device = Loop::unlocked(file, options);
        device._shared = Some(shared);
        device
    }

    /// The same for whoever holds the machine's lock already.
    pub fn unlocked(file: &Path, options: &[&str]) -> Loop {
        static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
        let file = file.to_str().unwrap();
        let mut arguments = vec!["-f", "--show"];
        arguments.extend(options);
        arguments.push(file);
        let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        let mut last = None;
        for _ in 0..30 {
            let ran = run("losetup", &arguments);
            if ran.status == 0 {
                return Loop { path: ran.stdout.trim().to_owned(), _shared: None };
            }
            last = Some(ran);
            std::thread::sleep(Duration::from_millis(100)); // someone else took it first
        }
        panic!("no loop device for {file}: {last:?}");
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let ran = run("losetup", &["-d", &self.path]);
        if ran.status != 0 {
            eprintln!("{} was not detached: {ran:?}", self.path);
        }
    }
}
