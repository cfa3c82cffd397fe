//! What people may type. Every command has an example in its help; mistakes that can be seen here end with status 2.
//!
//! The words themselves (levels, sizes, names) are judged by [`raidd::api`], so that raidctl and the daemon never differ.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::error::ErrorKind;
use clap::{Args, Parser, Subcommand, ValueHint};
use clap_complete::Shell;
use raidd::api::{
    AssembleArray, AttachArray, BitmapChoice, ConsistencyPolicy, CreateArray, Fault, Init, MISSING, Tuning,
    parse_duration_ms, parse_size, parse_uuid, valid_name,
};

use self::grow::GrowOptions;

/// Creates, shows and mends the arrays that raidd serves
#[derive(Debug, Parser)]
#[command(
    name = "raidctl",
    version,
    after_help = "\
Example:
  raidctl create vol0 --level 5 /dev/sdb /dev/sdc /dev/sdd
  raidctl status vol0

Exit status: 0 done, 1 refused or failed (one line on stderr says why), 2 usage."
)]
pub struct Arguments {
    /// raidd's control socket [default: /run/raidd/control.sock as root, $XDG_RUNTIME_DIR/raidd/control.sock otherwise]
    #[arg(long, global = true, value_name = "PATH", env = "RAIDD_CONTROL", hide_env_values = true)]
    pub control: Option<PathBuf>,

    /// Print one JSON document instead of text
    #[arg(long, global = true)]
    pub json: bool,

    /// Do not ask, on a terminal, before something is destroyed
    #[arg(short, long, global = true)]
    pub yes: bool,

    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Make a new array, start it and export it; prints its NBD URI
    #[command(after_help = "\
Example:
  raidctl create vol0 --level 6 --chunk 256K --spare /dev/sdf /dev/sdb /dev/sdc /dev/sdd /dev/sde
  raidctl create vol1 --level 1 /dev/sdg missing")]
    Create(CreateOptions),

    /// Start an array from the superblocks of its members, whoever made them: raidd, mdadm, the kernel
    #[command(
        override_usage = "raidctl assemble [NAME] [--uuid U] [--force] [--read-only] [--update name|uuid] [DEV]...\n       raidctl assemble --scan",
        after_help = "\
The first word is the NAME if it has no `/` in it and no file is called so.

Example:
  raidctl assemble vol0 /dev/sdb /dev/sdc /dev/sdd
  raidctl assemble archive --update name /dev/sdb /dev/sdc /dev/sdd
  raidctl assemble copy --update uuid --update name /dev/sde /dev/sdf /dev/sdg
  raidctl assemble --scan"
    )]
    Assemble(AssembleOptions),

    /// Flush an array, mark it clean and let its members go
    ///
    /// raidd remembers a stopped array, and has mdadm leave its members alone; --release is how to hand it over to the kernel.
    #[command(
        after_help = "Example:\n  raidctl stop vol0\n  raidctl stop vol0 --release && mdadm --assemble --scan"
    )]
    Stop {
        /// The array
        name: String,
        /// Stop it although clients are connected
        #[arg(long)]
        force: bool,
        /// Also forget it, so that mdadm and the kernel may take it; works on an array that does not run, too
        #[arg(long)]
        release: bool,
    },

    /// One line for each array
    #[command(after_help = "Example:\n  raidctl list\n  raidctl list --json")]
    List,

    /// All about an array, or about every array
    #[command(after_help = "Example:\n  raidctl status vol0\n  raidctl status --json vol0")]
    Status {
        /// The array; all of them if none is named
        name: Option<String>,
    },

    /// Whether all is well, for monitoring: one line with figures; exit status 0 OK, 1 WARNING, 2 CRITICAL, 3 UNKNOWN
    ///
    /// A plugin for Nagios, Icinga, Zabbix and what else calls their plugins. CRITICAL: an array does not run, data is out of
    /// reach, or a member is missing and none is being filled. WARNING: one is, or `status` has something to tell.
    #[command(after_help = "Example:\n  raidctl check\n  raidctl check vol0")]
    Check {
        /// The array; all of them if none is named
        name: Option<String>,
    },

    /// What goes on, live: on a terminal a full-screen view until `q`, else what `status` shows, again and again
    ///
    /// On a terminal: all arrays, and of one of them its members, the bar of its sync action, what is wrong and what to do, and
    /// sparklines of what clients read and wrote and how long that took. Keys are told by `?`. With --json as where there is no terminal.
    #[command(
        after_help = "Example:\n  raidctl watch vol0\n  raidctl watch --interval 5s --count 10 | tee log"
    )]
    Watch {
        /// The array; all of them if none is named
        name: Option<String>,
        /// Time between two looks
        #[arg(long, value_name = "D", default_value = "1s", value_parser = interval)]
        interval: Duration,
        /// End after so many
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
        count: Option<u64>,
    },

    /// What arrays and their members do, as iostat tells it of disks
    ///
    /// A line for each array, about what clients ask of it, and one for each member. R/S and W/S: reads and writes a second; RMiB/S and WMiB/S:
    /// what they come to; R MS and W MS: how long they take on average, in milliseconds, and R P99 and W P99: what 99 of 100 take no longer than,
    /// up to the next power of two; IN FLIGHT: under way; ERRORS: of any kind. The first table is of all since the array's start, each further
    /// one of the time since the one before. With --json the counts themselves, which only rise.
    #[command(after_help = "Example:\n  raidctl stats\n  raidctl stats vol0 --interval 1s --count 10")]
    Stats {
        /// The array; all of them that run if none is named
        #[arg(value_parser = name)]
        name: Option<String>,
        /// Tell it again and again, with that time between: 5s, or 5
        #[arg(long, value_name = "D", value_parser = interval)]
        interval: Option<Duration>,
        /// End after so many
        #[arg(long, value_name = "N", requires = "interval", value_parser = clap::value_parser!(u64).range(1..))]
        count: Option<u64>,
    },

    /// The daemon itself: its version, how busy its reactors are, what of its memory is in use
    ///
    /// BUSY NOW is measured over half a second.
    #[command(after_help = "Example:\n  raidctl info\n  raidctl info --json")]
    Info,

    /// Treat a member as failed
    #[command(after_help = "Example:\n  raidctl fail vol0 /dev/sdc")]
    Fail {
        /// The array
        name: String,
        /// The member
        #[arg(value_name = "DEV", value_parser = device(), value_hint = ValueHint::AnyPath)]
        device: String,
    },

    /// Let go of a faulty member or a spare
    #[command(after_help = "Example:\n  raidctl fail vol0 /dev/sdc\n  raidctl remove vol0 /dev/sdc")]
    Remove {
        /// The array
        name: String,
        /// The member
        #[arg(value_name = "DEV", value_parser = device(), value_hint = ValueHint::AnyPath)]
        device: String,
    },

    /// Add a device: a former member is caught up where that is possible, any other becomes a spare
    ///
    /// A spare takes over at once where a slot is vacant. A device that holds anything but a superblock of this array is
    /// refused.
    #[command(after_help = "Example:\n  raidctl add vol0 /dev/sdf\n  raidctl wait vol0")]
    Add {
        /// The array
        name: String,
        /// The device
        #[arg(value_name = "DEV", value_parser = device(), value_hint = ValueHint::AnyPath)]
        device: String,
    },

    /// Take a former member back, copying only what it has missed
    #[command(after_help = "Example:\n  raidctl re-add vol0 /dev/sdc")]
    ReAdd {
        /// The array
        name: String,
        /// The device
        #[arg(value_name = "DEV", value_parser = device(), value_hint = ValueHint::AnyPath)]
        device: String,
    },

    /// Fill NEW with what OLD holds; OLD serves until that is done, and is faulty then
    #[command(
        after_help = "Example:\n  raidctl replace vol0 /dev/sdc /dev/sdf\n  raidctl wait vol0 && raidctl remove vol0 /dev/sdc"
    )]
    Replace {
        /// The array
        name: String,
        /// The member to replace
        #[arg(value_parser = device(), value_hint = ValueHint::AnyPath)]
        old: String,
        /// A spare, or a device to be added for it
        #[arg(value_parser = device(), value_hint = ValueHint::AnyPath)]
        new: String,
    },

    /// Check redundancy in the background, and repair it
    #[command(
        after_help = "Example:\n  raidctl scrub vol0\n  raidctl scrub vol0 --repair\n  raidctl scrub vol0 --stop\n  raidctl scrub vol0 --findings"
    )]
    Scrub {
        /// The array
        name: String,
        /// Also mend what does not agree
        #[arg(long)]
        repair: bool,
        /// Stop the scrub; the next one goes on from there
        #[arg(long, conflicts_with = "repair")]
        stop: bool,
        /// Show what the last or the running scrub found: where, and which member lied
        #[arg(long, conflicts_with_all = ["repair", "stop"])]
        findings: bool,
    },

    /// Make an array a block device of this machine, now and after every start of raidd; prints the device
    #[command(after_help = "\
The kernel's nbd driver must be loaded: modprobe nbd. While raidd is away (restarted, upgraded, killed) I/O waits.

Example:
  raidctl attach vol0 /dev/nbd0 && mount /dev/nbd0 /mnt
  raidctl attach vol0 --connections 4 --wait 1h")]
    Attach(AttachOptions),

    /// Take that block device away
    #[command(after_help = "Example:\n  raidctl detach vol0")]
    Detach {
        /// The array
        name: String,
        /// Although it is in use: whoever uses it gets I/O errors
        #[arg(long)]
        force: bool,
    },

    /// Hold the sync action (resync, recovery, scrub) where it is
    #[command(after_help = "Example:\n  raidctl pause vol0")]
    Pause {
        /// The array
        name: String,
    },

    /// Let the sync action go on
    #[command(after_help = "Example:\n  raidctl resume vol0")]
    Resume {
        /// The array
        name: String,
    },

    /// Take no more writes: finish those under way, flush the array and mark it clean; also after a restart
    #[command(name = "readonly", after_help = "Example:\n  raidctl readonly vol0")]
    ReadOnly {
        /// The array
        name: String,
    },

    /// Take writes again, after `readonly`
    #[command(name = "readwrite", after_help = "Example:\n  raidctl readwrite vol0")]
    ReadWrite {
        /// The array
        name: String,
    },

    /// Wait until no sync action runs; exit status 0 if redundancy is whole then, 1 otherwise
    #[command(after_help = "Example:\n  raidctl wait vol0\n  raidctl wait vol0 --timeout 10m")]
    Wait {
        /// The array
        name: String,
        /// Wait no longer than that; 1 if it was not enough
        #[arg(long, value_name = "D", value_parser = parse_duration_ms)]
        timeout: Option<u64>,
    },

    /// Change settings, for now and for every later start; without any, show them
    ///
    /// recovery_min, recovery_max: bytes a second of each member that a sync action takes though clients are active, and
    /// at most. member_timeout: how long a member that does not answer is waited for, 1s to 10m. scrub_interval: how long after
    /// a scrub has ended the next one begins by itself, 1m to 3650d, or never. auto_re_add: whether a member
    /// that disappeared and is there again is caught up by itself: on, off, or spare: added anew where it cannot be.
    /// write_through: whether every write is on stable media when it is answered, on or off: for clients that go on when this
    /// machine has lost power, and do not send again what they had not flushed. read_policy: which copy of a mirror is read:
    /// round-robin, least-pending, latency (the one that is likely to answer first) or prefer=SLOT. hedge: when a read is asked
    /// of other members, too, as it takes long: off, auto (8 times as long as usual, and 2ms at least), or a time, 1ms to 60s.
    /// spare_group: arrays with the same word share their spares, as with mdadm's spare-group; none: not any more.
    #[command(
        after_help = "Example:\n  raidctl tune vol0 recovery_max=500M member_timeout=2s scrub_interval=30d\n  raidctl tune vol0 read_policy=latency hedge=auto\n  raidctl tune vol0"
    )]
    Tune {
        /// The array
        name: String,
        /// Settings
        #[arg(value_name = "KEY=VALUE", value_parser = setting)]
        settings: Vec<String>,
    },

    /// Make an array larger, of more or fewer copies, or one with or without a bitmap, while it is used
    ///
    /// One change at a time, and redundancy must be whole. Clients wait for a moment. --size uses more of each member, once all
    /// of them are larger; what is new is resynced. A device made by `attach` grows at once, other clients see the new size
    /// when they connect anew; then grow the filesystem. No data is moved: another chunk, layout or level, or another number
    /// of members than a mirror's, takes mdadm --grow.
    #[command(
        after_help = "Example:\n  raidctl grow vol0 --size max\n  raidctl add vol1 /dev/sdf && raidctl grow vol1 -n 3\n  raidctl grow vol0 --bitmap internal"
    )]
    Grow(GrowOptions),

    /// What happened, oldest first: NewArray, Fail, SpareActive, RebuildStarted, ... as in mdadm --monitor
    ///
    /// With --program nothing is printed: the program is run for every event from now on, one after the other, with the arguments that
    /// mdadm --monitor gives its --program: the event, the array's name and, for some events, the member's path.
    #[command(
        after_help = "Example:\n  raidctl events\n  raidctl events --follow --json\n  raidctl events --program /etc/raidd/alert --seen \
                      /var/lib/raidd-alert/seen"
    )]
    Events {
        /// Go on with what happens from now on
        #[arg(long)]
        follow: bool,
        /// Run this program for every event, also after restarts of raidd
        #[arg(long, value_name = "PROGRAM", conflicts_with = "follow")]
        program: Option<PathBuf>,
        /// Remember here which event was the last, so that none is left out while raidctl does not run
        #[arg(long, value_name = "FILE", requires = "program")]
        seen: Option<PathBuf>,
    },

    /// Make something go wrong with a member; only where raidd runs with --enable-fault-injection
    ///
    /// FAULT: read-error=OFF+LEN (until it is written anew), write-error=OFF+LEN, corrupt=OFF+LEN (changes the bytes, once),
    /// latency=200ms, hang, die, clear. OFF counts bytes from the beginning of the member's data. Faults last until they
    /// are cleared, the member is removed, or raidd ends.
    #[command(
        after_help = "Example:\n  raidctl inject vol0 /dev/loop2 read-error=1M+4K\n  raidctl inject vol0 /dev/loop2 clear"
    )]
    Inject {
        /// The array
        name: String,
        /// The member
        #[arg(value_name = "DEV", value_parser = device(), value_hint = ValueHint::AnyPath)]
        device: String,
        /// What is to go wrong
        #[arg(value_parser = Fault::parse)]
        fault: Fault,
    },

    /// Show what the superblock of each DEV says; needs no daemon
    #[command(
        after_help = "Example:\n  raidctl examine /dev/sdb /dev/sdc\n  raidctl examine --json disk.img"
    )]
    Examine {
        /// Block devices or plain files
        #[arg(value_name = "DEV", required = true)]
        devices: Vec<PathBuf>,
    },

    /// Overwrite the superblock of each DEV, so that it is a member no more; needs no daemon, refuses a member in use
    #[command(after_help = "Example:\n  raidctl zero-superblock /dev/sdb /dev/sdc")]
    ZeroSuperblock {
        /// Block devices or plain files
        #[arg(value_name = "DEV", required = true)]
        devices: Vec<PathBuf>,
        /// Also a superblock that is damaged
        #[arg(long)]
        force: bool,
    },

    /// Keep the metadata of each DEV in a file of DIR, to restore should it be damaged; needs no daemon
    ///
    /// The file has the device's name, and its size, but is sparse: all that is before the data is in it, superblock, bitmap and
    /// logs, as with mdadm --dump. Take it while the array is stopped, or what is in it is of different moments.
    #[command(after_help = "Example:\n  raidctl dump /root/metadata /dev/sdb /dev/sdc")]
    Dump {
        /// A folder
        dir: PathBuf,
        /// Block devices or plain files
        #[arg(value_name = "DEV", required = true)]
        devices: Vec<PathBuf>,
    },

    /// Write the metadata that dump has kept back to DEV; needs no daemon, refuses a member in use
    #[command(after_help = "Example:\n  raidctl restore /root/metadata/sdb /dev/sdb")]
    Restore {
        /// What dump has made
        file: PathBuf,
        /// A block device or plain file of the same size
        #[arg(value_name = "DEV")]
        device: PathBuf,
        /// Also where DEV has no superblock of this very member, or a newer one
        #[arg(long)]
        force: bool,
    },

    /// Show in a minute what raidd is for: needs no root, no disks and no running daemon
    ///
    /// Starts a raidd of its own in a temporary folder, makes an array of files, writes data over NBD, kills a member
    /// under that load, recovers onto a spare, corrupts a block and scrubs; reads everything back and compares it. Exit
    /// status 1 if a single byte differs.
    #[command(
        after_help = "Example:\n  raidctl demo\n  raidctl demo --level 6 --size 256M --dir /var/tmp --keep"
    )]
    Demo(DemoOptions),

    /// Print a completion script for a shell
    #[command(after_help = "Example:\n  raidctl completions bash > /etc/bash_completion.d/raidctl")]
    Completions {
        /// Which shell
        shell: Shell,
        /// Instead, for the scripts themselves: what could stand for the last of these words
        #[arg(last = true, hide = true)]
        words: Vec<OsString>,
    },

    /// Print a manual page: that of one command, or one that has all of them
    #[command(
        after_help = "Example:\n  raidctl man create | man -l -\n  raidctl man --dir /usr/local/share/man/man8"
    )]
    Man {
        /// The command [default: all of raidctl]
        #[arg(value_name = "COMMAND", conflicts_with = "dir")]
        of: Option<String>,
        /// Write the page of raidctl, and one for each command, into this folder
        #[arg(long)]
        dir: Option<PathBuf>,
    },
}

/// Options of `create`.
#[derive(Debug, Args)]
pub struct CreateOptions {
    /// What to call the array; also the name of its export
    #[arg(value_parser = name)]
    name: String,
    /// RAID level: 0, 1, 4, 5, 6 or 10
    #[arg(long, value_name = "L")]
    level: String,
    /// Bytes a chunk [default: 128K with parity, else 512K]
    #[arg(long, value_name = "S", value_parser = parse_size)]
    chunk: Option<u64>,
    /// md's name of the layout: left-symmetric, n2, f2, ...
    #[arg(long, value_name = "X")]
    layout: Option<String>,
    /// Bytes to use of each member [default: all that the smallest has]
    #[arg(long, value_name = "S", value_parser = parse_size)]
    size: Option<u64>,
    /// Write-intent bitmap [default: internal, unless PPL is asked for; none for level 0]
    #[arg(long, value_parser = bitmap_choice())]
    bitmap: Option<BitmapChoice>,
    /// How to find what to mend after a crash [default: bitmap, where there is one]
    #[arg(long, value_name = "POLICY", value_parser = consistency_policy())]
    consistency_policy: Option<ConsistencyPolicy>,
    /// How redundancy comes to be right at first
    #[arg(long, default_value = "resync", value_parser = init())]
    init: Init,
    /// A spare; may be given several times
    #[arg(long = "spare", value_name = "DEV", value_parser = device(), value_hint = ValueHint::AnyPath)]
    spares: Vec<String>,
    /// Take members that carry a superblock, a filesystem or a partition table
    #[arg(long)]
    force: bool,
    /// The members in slot order, block devices or plain files; `missing` leaves a slot empty
    #[arg(value_name = "DEV", required = true, value_parser = device_or_missing(), value_hint = ValueHint::AnyPath)]
    devices: Vec<String>,
}

impl CreateOptions {
    /// The request. An error is a usage error.
    pub fn request(self) -> Result<CreateArray, String> {
        let request = CreateArray {
            name: self.name,
            level: self.level,
            chunk_bytes: self.chunk,
            layout: self.layout,
            size_bytes: self.size,
            bitmap: self.bitmap,
            consistency_policy: self.consistency_policy,
            init: self.init,
            spares: self.spares,
            force: self.force,
            devices: self.devices,
        };
        request.check()?;
        Ok(request)
    }
}

/// Options of `attach`.
#[derive(Debug, Args)]
pub struct AttachOptions {
    /// The array
    name: String,
    /// The device: /dev/nbd and a number [default: the first that is free]
    device: Option<String>,
    /// Connections between the kernel and raidd [default: one for each reactor, two at least]
    #[arg(long, value_name = "N")]
    connections: Option<u32>,
    /// How long I/O waits for a raidd that is away before it fails [default: 5m]
    #[arg(long, value_name = "TIME", value_parser = parse_duration_ms)]
    wait: Option<u64>,
}

impl AttachOptions {
    /// The array, and the request. An error is a usage error.
    pub fn request(self) -> Result<(String, AttachArray), String> {
        let how = AttachArray { device: self.device, connections: self.connections, wait_ms: self.wait };
        how.check()?;
        Ok((self.name, how))
    }
}

/// Options of `assemble`.
#[derive(Debug, Args)]
pub struct AssembleOptions {
    /// Look for the members of every array, and start all that can be started
    #[arg(long, conflicts_with_all = ["uuid", "force", "read_only", "update", "words"])]
    pub scan: bool,
    /// Take only members of the array with this UUID; with `--update uuid` the new one [default: a random one]
    #[arg(long, value_name = "U", value_parser = uuid)]
    uuid: Option<String>,
    /// Start it although it is dirty and degraded; what was being written when it stopped may be wrong
    #[arg(long)]
    force: bool,
    /// Write nothing to any member
    #[arg(long)]
    read_only: bool,
    /// name: write NAME into the superblocks. uuid: give the array another UUID, for a copy beside its original; all
    /// members are named then (--force gives up others). May be given several times; as mdadm's --update
    #[arg(long, value_name = "WHAT", value_parser = ["name", "uuid"])]
    update: Vec<String>,
    /// The members; before them what to call the array [default: the name in its superblocks]. None: an array that
    /// raidd has served before, by its name or --uuid
    #[arg(value_name = "DEV", required_unless_present_any = ["scan", "uuid"], value_hint = ValueHint::AnyPath)]
    words: Vec<OsString>,
}

impl AssembleOptions {
    /// The request, where it is not a scan. An error is a usage error.
    pub fn request(self) -> Result<AssembleArray, String> {
        let mut words = self.words.as_slice();
        let mut name = None;
        if let [first, rest @ ..] = words
            && let Some(text) = first.to_str()
            && !text.contains('/')
            && !Path::new(first).exists()
        {
            name = Some(text.to_owned());
            words = rest;
        }
        let devices = words.iter().map(|word| absolute(Path::new(word))).collect::<Result<_, _>>()?;
        let request = AssembleArray {
            name,
            uuid: self.uuid,
            force: self.force,
            read_only: self.read_only,
            update_name: self.update.iter().any(|what| what == "name"),
            update_uuid: self.update.iter().any(|what| what == "uuid"),
            devices,
        };
        request.check()?;
        Ok(request)
    }
}

/// Options of `demo`.
#[derive(Debug, Args)]
pub struct DemoOptions {
    /// Where to make the temporary folder [default: the system's]
    #[arg(long)]
    pub dir: Option<PathBuf>,
    /// Leave the folder with the members and the log in place
    #[arg(long)]
    pub keep: bool,
    /// RAID level: 1, 4, 5, 6 or 10
    #[arg(long, value_name = "L", default_value = "5", value_parser = ["1", "4", "5", "6", "10"])]
    pub level: String,
    /// Size of each member
    #[arg(long, value_name = "S", default_value = "64M", value_parser = demo_size)]
    pub size: u64,
}

/// The smallest member a demo makes: with less there is nothing to see.
const DEMO_MEMBER_BYTES_MIN: u64 = 16 << 20;

fn demo_size(text: &str) -> Result<u64, String> {
    match parse_size(text)? {
        bytes if bytes < DEMO_MEMBER_BYTES_MIN => {
            Err(format!("members of {text} are too small: give 16M at least"))
        }
        bytes if bytes % 4096 != 0 => {
            Err(format!("members of {text} have no whole number of blocks: round it to 4K"))
        }
        bytes => Ok(bytes),
    }
}

/// A usage error as one line, with where to look further; none where clap has a text to show, like help.
pub fn usage_line(error: &clap::Error) -> Option<String> {
    if !error.use_stderr() || error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        return None;
    }
    let text = error.to_string();
    // The first paragraph says what is wrong; a tip and the usage may follow.
    let what: Vec<&str> = text.lines().take_while(|line| !line.is_empty()).map(str::trim).collect();
    let what = what.join(" ");
    let what = what.strip_prefix("error: ").unwrap_or(&what);
    let tip = text.lines().find_map(|line| line.trim().strip_prefix("tip: "));
    let tip = tip.map(|tip| format!(" ({tip})")).unwrap_or_default();
    let usage = text.lines().find_map(|line| line.strip_prefix("Usage: raidctl "));
    let command = usage.and_then(|usage| usage.split(' ').next());
    let command = command.filter(|word| word.starts_with(|c: char| c.is_ascii_lowercase()));
    let command = command.map(|word| format!("{word} ")).unwrap_or_default();
    Some(format!("{what}{tip}: see `raidctl {command}--help`"))
}

fn setting(text: &str) -> Result<String, String> {
    Tuning::parse([text]).map(|_| text.to_owned())
}

/// A pause: a time, or whole seconds as iostat and vmstat take them.
fn interval(text: &str) -> Result<Duration, String> {
    let is_number = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let ms = if is_number { parse_duration_ms(&format!("{text}s"))? } else { parse_duration_ms(text)? };
    if ms == 0 {
        return Err(format!(
            "no time at all between two looks ({text:?}) keeps raidd from its work: give 1ms at least"
        ));
    }
    Ok(Duration::from_millis(ms))
}

fn name(text: &str) -> Result<String, String> {
    valid_name(text).map(|()| text.to_owned())
}

fn uuid(text: &str) -> Result<String, String> {
    parse_uuid(text).map(|_| text.to_owned())
}

fn bitmap_choice() -> impl TypedValueParser<Value = BitmapChoice> {
    PossibleValuesParser::new(["internal", "none"])
        .map(|word| if word == "none" { BitmapChoice::None } else { BitmapChoice::Internal })
}

fn consistency_policy() -> impl TypedValueParser<Value = ConsistencyPolicy> {
    PossibleValuesParser::new(["bitmap", "ppl", "resync"]).map(|word| match word.as_str() {
        "bitmap" => ConsistencyPolicy::Bitmap,
        "ppl" => ConsistencyPolicy::Ppl,
        _ => ConsistencyPolicy::Resync,
    })
}

fn init() -> impl TypedValueParser<Value = Init> {
    PossibleValuesParser::new(["resync", "zero", "assume-clean"]).map(|word| match word.as_str() {
        "zero" => Init::Zero,
        "assume-clean" => Init::AssumeClean,
        _ => Init::Resync,
    })
}

/// A path, made absolute: the daemon may stand in another folder.
fn device() -> impl TypedValueParser<Value = String> {
    clap::builder::PathBufValueParser::new().try_map(|path| absolute(&path))
}

fn device_or_missing() -> impl TypedValueParser<Value = String> {
    clap::builder::PathBufValueParser::new()
        .try_map(|path| if path == Path::new(MISSING) { Ok(MISSING.to_owned()) } else { absolute(&path) })
}

fn absolute(path: &Path) -> Result<String, String> {
    let absolute = std::path::absolute(path).map_err(|error| format!("path {path:?} is no good: {error}"))?;
    absolute.into_os_string().into_string().map_err(|path| {
        format!("path {path:?} is not UTF-8, which the control interface cannot carry: use a link with another name")
    })
}

mod destroys;
mod grow;
#[cfg(test)]
mod tests;
