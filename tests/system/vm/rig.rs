//! A guest: Debian's kernel in qemu, which emulates the processor, so it needs nothing of the host but a process. A guest
//! runs one shell script, with disks that are files here, and ends.
//!
//! Its root is what `prepare` made, with raidd, raidctl and the job laid over it as further archives: the kernel unpacks
//! them one after the other. The first serial port is the kernel's log, the second what the script says.

use std::ffi::OsString;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use super::super::harness::{need, raidctl_program, skip};

/// The PCI slots below are the machine's own.
const FIRST_SLOT: usize = 4;
const SLOTS: usize = 32;
/// What a guest may take, also where others want the same processors.
const PATIENCE: Duration = Duration::from_secs(300);
/// Disks that the SCSI controller has, at most.
const SCSI_DISKS_MAX: usize = 256;

/// Whether guests can be run. If not, it says that the test is skipped.
pub fn can_run() -> bool {
    if std::env::consts::ARCH != "x86_64" {
        skip("guests are x86-64 machines");
        return false;
    }
    if !folder().join("kernel-version").exists() {
        skip("there is no kernel to boot: tests/system/vm/prepare has not been run, or failed");
        return false;
    }
    need(&["qemu-system-x86_64", "cpio", "strip"])
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("target/vm")
}

/// A machine to be.
pub struct Guest {
    script: &'static str,
    arguments: Vec<String>,
    disks: Vec<PathBuf>,
    scsi_disks: Vec<ScsiDisk>,
    memory_mib: u32,
    processors: u32,
}

struct ScsiDisk {
    image: PathBuf,
    operations_per_sec: Option<u32>,
}

/// How a guest ended.
#[derive(Debug)]
pub struct Ended {
    /// The exit status of its script; `None` where it crashed, as [`Guest::crash`] expects.
    pub status: Option<i32>,
    /// All that the script said.
    pub output: String,
    /// The kernel's log.
    pub kernel: String,
}

impl Ended {
    /// What the script said; it must have ended well.
    #[track_caller]
    pub fn ok(self) -> String {
        self.assert_ok();
        self.output
    }

    /// It must have ended well.
    #[track_caller]
    pub fn assert_ok(&self) {
        assert_eq!(
            self.status,
            Some(0),
            "the guest failed; it said:\n{}\nits kernel:\n{}",
            self.output,
            tail(&self.kernel)
        );
    }

    /// The words after `key:` on the first line that begins so. Panics if the script did not say it.
    #[track_caller]
    pub fn said(&self, key: &str) -> &str {
        said(&self.output, key)
    }
}

/// Gives a guest empty disks: files `disk0`, `disk1`, ... in `folder`.
pub fn with_disks(mut guest: Guest, folder: &Path, count: usize, mib: u64) -> Guest {
    for index in 0..count {
        let path = folder.join(format!("disk{index}"));
        File::create(&path).unwrap().set_len(mib << 20).unwrap();
        guest = guest.disk(path);
    }
    guest
}

/// The words after `key:` on the first line of `output` that begins so.
#[track_caller]
pub fn said<'a>(output: &'a str, key: &str) -> &'a str {
    let line = output.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
    line.map(str::trim).unwrap_or_else(|| panic!("the guest did not say {key:?}:\n{output}"))
}

fn tail(text: &str) -> String {
    let lines: Vec<_> = text.lines().collect();
    lines[lines.len().saturating_sub(30)..].join("\n")
}

impl Guest {
    /// A guest that runs a script; `vm/lib.sh` says what scripts can use.
    pub fn new(script: &'static str) -> Guest {
        Guest {
            script,
            arguments: Vec::new(),
            disks: Vec::new(),
            scsi_disks: Vec::new(),
            memory_mib: 512,
            processors: 1,
        }
    }

    /// Gives the script one more argument, of one line.
    pub fn argument(mut self, argument: impl Into<String>) -> Guest {
        let argument = argument.into();
        assert!(!argument.contains('\n'), "{argument:?}");
        self.arguments.push(argument);
        self
    }

    /// Gives it one more disk: /dev/vda, /dev/vdb, ... in the order of these calls.
    pub fn disk(mut self, image: impl Into<PathBuf>) -> Guest {
        self.disks.push(image.into());
        self
    }

    /// Gives it one more disk of the kind to have hundreds of: number 0, 1, ... in the order of these calls, whose names
    /// `scsi_disk` in lib.sh tells. Each of the others costs the guest a fifth of a second, and two interrupts of 200.
    pub fn scsi_disk(mut self, image: impl Into<PathBuf>) -> Guest {
        self.scsi_disks.push(ScsiDisk { image: image.into(), operations_per_sec: None });
        self
    }

    /// One more of them that is slow, so that much is under way at any moment.
    pub fn slow_scsi_disk(mut self, image: impl Into<PathBuf>, operations_per_sec: u32) -> Guest {
        self.scsi_disks.push(ScsiDisk { image: image.into(), operations_per_sec: Some(operations_per_sec) });
        self
    }

    /// So many processors instead of one.
    pub fn processors(self, processors: u32) -> Guest {
        Guest { processors, ..self }
    }

    /// So much memory instead of half a GiB.
    pub fn memory_mib(self, memory_mib: u32) -> Guest {
        Guest { memory_mib, ..self }
    }

    /// Runs it to the end of its script.
    #[track_caller]
    pub fn run(self) -> Ended {
        let ended = self.boot();
        assert!(
            ended.status.is_some(),
            "the guest died; it said:\n{}\nits kernel:\n{}",
            ended.output,
            tail(&ended.kernel)
        );
        ended
    }

    /// Runs it until its script crashes the machine (`crash` in lib.sh): nothing is flushed, as if the plug were pulled.
    #[track_caller]
    pub fn crash(self) -> String {
        let ended = self.boot();
        assert_eq!(ended.status, None, "the guest was to crash; it said:\n{}", ended.output);
        assert!(
            ended.output.lines().any(|line| line == "@@CRASH@@"),
            "{}\nits kernel:\n{}",
            ended.output,
            tail(&ended.kernel)
        );
        ended.output
    }

    fn boot(self) -> Ended {
        let work = tempfile::Builder::new().prefix("raidd-vm-").tempdir().unwrap();
        let path = |name: &str| work.path().join(name);
        self.write_root(work.path(), &path("root.cpio"));
        let [kernel, output, complaints] = ["kernel", "output", "qemu"].map(path);
        let mut command = Command::new("qemu-system-x86_64");
        command.args(["-machine", "pc", "-accel", "tcg", "-cpu", "max", "-nodefaults", "-no-user-config"]);
        // Up to version 8 qemu leaves memory barriers out where there can never be a second processor, though its devices are
        // threads beside the only one: once in some fifty guests a disk's completion is lost, and the kernel waits for ever.
        command.arg("-smp").arg(format!("{},maxcpus={}", self.processors, self.processors.max(2)));
        command.args(["-display", "none", "-no-reboot", "-m"]).arg(self.memory_mib.to_string());
        for port in [&kernel, &output] {
            command.arg("-serial").arg(option("file:", port, ""));
        }
        command.arg("-kernel").arg(folder().join("vmlinuz")).arg("-initrd").arg(path("root.cpio"));
        command.args(["-append", "console=ttyS0 quiet panic=-1 tsc=reliable mitigations=off"]);
        self.plug_in(&mut command);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(File::create(&complaints).unwrap());
        let mut machine = Machine(command.spawn().expect("qemu starts"));
        let deadline = Instant::now() + PATIENCE;
        let read =
            |path: &Path| String::from_utf8_lossy(&std::fs::read(path).unwrap_or_default()).into_owned();
        while machine.0.try_wait().unwrap().is_none() {
            let (said, log) = (|| read(&output), || tail(&read(&kernel)));
            assert!(
                Instant::now() < deadline,
                "the guest takes too long; it said:\n{}\nits kernel:\n{}",
                said(),
                log()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
        let (said, complaints) = (read(&output), read(&complaints));
        assert!(
            said.contains("@@BEGIN@@"),
            "the guest did not come up: {complaints}\n{}",
            tail(&read(&kernel))
        );
        let status = said.lines().find_map(|line| line.strip_prefix("@@END@@ ")?.trim().parse().ok());
        let said: Vec<_> = said
            .lines()
            .filter(|line| !line.starts_with("@@BEGIN@@") && !line.starts_with("@@END@@"))
            .collect();
        Ended { status, output: said.join("\n"), kernel: read(&kernel) }
    }

    /// What `prepare` made, then our programs, then the job.
    fn write_root(&self, work: &Path, root: &Path) {
        let job = work.join("layer/job");
        std::fs::create_dir_all(&job).unwrap();
        std::fs::write(job.join("script"), self.script).unwrap();
        let lines: String = self.arguments.iter().map(|argument| format!("{argument}\n")).collect();
        std::fs::write(job.join("args"), lines).unwrap();
        let mut archive = File::create(root).unwrap();
        for part in
            [&std::fs::read(folder().join("root.cpio")).unwrap(), programs(), &cpio(&work.join("layer"))]
        {
            archive.write_all(part).unwrap();
        }
    }

    fn plug_in(&self, command: &mut Command) {
        assert!(self.disks.len() <= SLOTS - FIRST_SLOT, "too many disks for one guest");
        for (index, image) in self.disks.iter().enumerate() {
            let drive = open_image(command, &format!("disk{index}"), image);
            // Slots are looked through in order, so the order of the disks' names is certain.
            let slot = FIRST_SLOT + index;
            command
                .arg("-device")
                .arg(format!("virtio-blk-pci,drive={drive},addr={slot:x},serial=disk{index},werror=report"));
        }
        if self.scsi_disks.is_empty() {
            return;
        }
        assert!(self.scsi_disks.len() <= SCSI_DISKS_MAX, "too many disks for one guest");
        command.args(["-device", "virtio-scsi-pci,id=scsi,num_queues=1"]);
        for (index, disk) in self.scsi_disks.iter().enumerate() {
            let mut drive = open_image(command, &format!("scsi{index}"), &disk.image);
            if let Some(operations) = disk.operations_per_sec {
                let group = format!("throttle-group,id=group{index},x-iops-total={operations}");
                let slow =
                    format!("driver=throttle,node-name=slow{index},throttle-group=group{index},file={drive}");
                command.arg("-object").arg(group).arg("-blockdev").arg(slow);
                drive = format!("slow{index}");
            }
            command
                .arg("-device")
                .arg(format!("scsi-hd,bus=scsi.0,scsi-id={index},lun=0,drive={drive},werror=report"));
        }
    }
}

/// Makes an image known to qemu, by the name that is returned. Flushes end in the host's memory, which outlives a guest
/// whose plug is pulled: what such a guest loses is what it had not handed over.
fn open_image(command: &mut Command, name: &str, image: &Path) -> String {
    let (discard, flush) = ("discard=unmap", "cache.no-flush=on");
    let file = format!("driver=file,node-name={name}file,{discard},{flush},filename=");
    command.arg("-blockdev").arg(option(&file, image, ""));
    let raw = format!("driver=raw,node-name={name},file={name}file,{discard},{flush}");
    command.arg("-blockdev").arg(raw);
    name.to_owned()
}

/// qemu's commas separate options.
fn option(before: &str, path: &Path, after: &str) -> OsString {
    format!("{before}{}{after}", path.display().to_string().replace(',', ",,")).into()
}

/// A folder as the kernel unpacks it.
fn cpio(folder: &Path) -> Vec<u8> {
    let script = "find . -print0 | cpio --null -o -H newc --quiet";
    let packed = Command::new("sh").args(["-c", script]).current_dir(folder).output().expect("cpio runs");
    assert!(packed.status.success(), "{packed:?}");
    packed.stdout
}

/// raidd and raidctl with their libraries, without what is for debuggers; the same for all guests.
fn programs() -> &'static Vec<u8> {
    static PROGRAMS: OnceLock<Vec<u8>> = OnceLock::new();
    PROGRAMS.get_or_init(|| {
        let layer = tempfile::tempdir().unwrap();
        std::fs::create_dir(layer.path().join("bin")).unwrap();
        for program in [Path::new(env!("CARGO_BIN_EXE_raidd")), &raidctl_program()] {
            let name = program.file_name().unwrap();
            let mut strip = Command::new("strip");
            strip.arg("-o").arg(layer.path().join("bin").join(name)).arg(program);
            let mut libraries =
                Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/system/vm/libraries"));
            libraries.arg(program).arg(layer.path());
            for command in [&mut strip, &mut libraries] {
                assert!(command.status().unwrap().success(), "{command:?}");
            }
        }
        cpio(layer.path())
    })
}

/// A qemu that does not outlive its test.
struct Machine(Child);

impl Drop for Machine {
    fn drop(&mut self) {
        // It has ended by itself unless something went wrong.
        if self.0.try_wait().is_ok_and(|ended| ended.is_none()) && self.0.kill().is_ok() {
            self.0.wait().map(drop).unwrap_or_default();
        }
    }
}
