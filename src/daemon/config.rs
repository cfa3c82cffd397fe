//! How raidd is told what to do: options, then the environment, then the TOML file, then defaults, in this order.
//!
//! Invariants:
//! - A [`Config`] is complete: every default is filled in, every path is absolute, every number is within its limits.
//! - Every option is also a key of the file. A key that is not known is an error, not a key that does nothing.
//! - An error is one line that says what is wrong and what to do.
//!
//! Nothing here looks at the process but [`Environment::of_this_process`]; so all of it can be tested.

mod listeners;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{ArgAction, Parser, ValueEnum};
use serde::{Deserialize, Deserializer};

use self::listeners::{ListenerDefaults, ListenerEntry};
pub use self::listeners::{MetricsAddress, NbdAddress, NbdListener, SocketMode, TlsMode};
use super::access::{AccessRules, ExportRules};
use crate::api::{default_control_path, parse_size};
use crate::tls::TlsFiles;

/// Where the file is when nobody says.
pub const CONFIG_FILE: &str = "/etc/raidd/raidd.toml";
/// Reactors when nobody says, where there are as many cores: beyond, RAID is bound by disks and memory, not by cores.
pub const REACTORS_DEFAULT_MAX: usize = 4;
/// A reactor is a thread with a ring and buffers of its own; more than this is a mistake.
pub const REACTORS_MAX: usize = 64;
/// Buffers when nobody says.
pub const MEMORY_BYTES_DEFAULT: u64 = 256 << 20;
/// With less, a few large requests would wait for one another.
pub const MEMORY_BYTES_MIN: u64 = 32 << 20;
/// How long missing members are waited for at start when nobody says.
pub const ASSEMBLE_WAIT_DEFAULT: Duration = Duration::from_secs(30);
/// NBD sockets to listen on.
pub const NBD_ADDRESSES_MAX: usize = 16;

/// What root's raidd remembers is here when nobody says.
const STATE_DIR_OF_ROOT: &str = "/var/lib/raidd";
/// Where mdadm is told to leave raidd's arrays alone when nobody says otherwise: in a folder that it reads, if it is installed.
const MDADM_FOLDER: &str = "/etc/mdadm";
const MDADM_FILE: &str = "mdadm.conf.d/raidd.conf";

const EXAMPLE: &str = "\
Example:
  raidd --control /tmp/r/control.sock --nbd unix:/tmp/r/nbd.sock --nbd tcp:127.0.0.1:10809

Every option is also a key of the file, written with `_` for `-`:
  control = \"/run/raidd/control.sock\"
  nbd = [\"unix:/run/raidd/nbd.sock\", \"tcp:127.0.0.1:10809\"]
  state_dir = \"/var/lib/raidd\"
  mdadm_conf = \"/etc/mdadm/mdadm.conf.d/raidd.conf\"
  metrics = \"127.0.0.1:9273\"
  reactors = 2
  memory = \"512M\"
  log = \"debug\"
Some things are keys only: how long missing members are waited for at start; sockets that differ from the others; who may
use which export, and how (`*` stands for those that are not named):
  assemble_wait = \"30s\"
  nbd = [{ address = \"tcp:0.0.0.0:10809\", tls = \"require\" },
         { address = \"unix:/run/raidd/nbd.sock\", mode = \"0660\", group = \"disk\" }]
  [exports.vol0]
  read_only = true
  allow_addresses = [\"192.168.7.0/24\", \"::1\", \"unix\"]
  allow_identities = [\"cert:backup.example.org\", \"psk:alice\"]";

/// Software RAID in userspace: md arrays served over NBD
///
/// Runs in the foreground, logs to stderr, and stops every array cleanly on SIGTERM and SIGINT. raidctl creates the
/// arrays and shows them.
#[derive(Debug, Default, Parser)]
#[command(name = "raidd", version, after_help = EXAMPLE, after_long_help = EXAMPLE)]
struct Options {
    /// Socket that raidctl talks to [env: RAIDD_CONTROL] [default: /run/raidd/control.sock as root,
    /// $XDG_RUNTIME_DIR/raidd/control.sock otherwise]
    #[arg(long, value_name = "PATH")]
    control: Option<PathBuf>,

    /// Group whose members may do everything over the control socket, a name or a number [default: none]
    #[arg(long, value_name = "GROUP")]
    control_group: Option<String>,

    /// Group whose members may look over the control socket, and change nothing [default: none]
    #[arg(long, value_name = "GROUP")]
    control_read_group: Option<String>,

    /// Where NBD clients connect: unix:PATH or tcp:HOST:PORT; may be given several times [default: nbd.sock beside the
    /// control socket]
    #[arg(long, value_name = "ADDR")]
    nbd: Vec<NbdAddress>,

    /// TLS for NBD clients: those who ask for it get it (allow), or those who do not are sent away (require) [default: off]
    #[arg(long, value_name = "MODE")]
    nbd_tls: Option<TlsMode>,

    /// The server's certificate for TLS, and those between it and its CA behind it; PEM
    #[arg(long, value_name = "FILE")]
    tls_cert: Option<PathBuf>,

    /// The private key of --tls-cert; PEM, without a password
    #[arg(long, value_name = "FILE")]
    tls_key: Option<PathBuf>,

    /// Want a certificate from each TLS client, signed by one of the CAs in here; PEM
    #[arg(long, value_name = "FILE")]
    tls_ca: Option<PathBuf>,

    /// Let in TLS clients that have a pre-shared key of this file: lines of NAME:HEXKEY, as psktool writes them
    #[arg(long, value_name = "FILE")]
    tls_psk: Option<PathBuf>,

    /// Mode of Unix sockets for NBD, in octal: whoever may write may connect [default: 0600]
    #[arg(long, value_name = "MODE")]
    nbd_socket_mode: Option<SocketMode>,

    /// Group of Unix sockets for NBD, a name or a number [default: the daemon's]
    #[arg(long, value_name = "GROUP")]
    nbd_socket_group: Option<String>,

    /// Whether NBD clients may ask which exports there are; without it they have to know a name [default: on]
    #[arg(long, value_name = "on|off", hide_possible_values = true)]
    nbd_list: Option<Switch>,

    /// Where monitoring reads /metrics and /healthz, over HTTP, and nothing else [default: on the control socket only]
    #[arg(long, value_name = "HOST:PORT")]
    metrics: Option<MetricsAddress>,

    /// Folder in which raidd remembers which arrays to start [default: /var/lib/raidd as root, $XDG_STATE_HOME/raidd
    /// otherwise]
    #[arg(long, value_name = "PATH")]
    state_dir: Option<PathBuf>,

    /// File in which raidd has mdadm ignore the arrays that it remembers; `none`: nowhere [default, as root with the default
    /// --state-dir and where there is /etc/mdadm: /etc/mdadm/mdadm.conf.d/raidd.conf]
    #[arg(long, value_name = "PATH")]
    mdadm_conf: Option<PathBuf>,

    /// Threads that move data [default: one a core, at most 4]
    #[arg(long, value_name = "N")]
    reactors: Option<usize>,

    /// Memory for data on its way, at least 32M [default: 256M]
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    memory: Option<u64>,

    /// Let raidctl inject faults into members: for rehearsals, not for data that anybody needs
    #[arg(long)]
    enable_fault_injection: bool,

    /// TOML file to read [default: /etc/raidd/raidd.toml, if it is there]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,

    /// Log more; wins over RUST_LOG
    #[arg(short, long, action = ArgAction::Count, conflicts_with = "quiet")]
    verbose: u8,

    /// Log warnings and errors only, twice: errors only; wins over RUST_LOG
    #[arg(short, long, action = ArgAction::Count)]
    quiet: u8,
}

/// On or off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Switch {
    On,
    Off,
}

/// The TOML file.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct ConfigFile {
    control: Option<PathBuf>,
    control_group: Option<String>,
    control_read_group: Option<String>,
    nbd: Option<Vec<ListenerEntry>>,
    nbd_tls: Option<TlsMode>,
    tls_cert: Option<PathBuf>,
    tls_key: Option<PathBuf>,
    tls_ca: Option<PathBuf>,
    tls_psk: Option<PathBuf>,
    nbd_socket_mode: Option<SocketMode>,
    nbd_socket_group: Option<String>,
    nbd_list: Option<bool>,
    #[serde(default)]
    exports: BTreeMap<String, ExportRules>,
    metrics: Option<MetricsAddress>,
    state_dir: Option<PathBuf>,
    mdadm_conf: Option<PathBuf>,
    reactors: Option<usize>,
    #[serde(default, deserialize_with = "size_or_number")]
    memory: Option<u64>,
    #[serde(default, deserialize_with = "duration_or_seconds")]
    assemble_wait: Option<Duration>,
    enable_fault_injection: Option<bool>,
    log: Option<String>,
}

/// Everything raidd is told at its start, complete.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The control socket; absolute.
    pub control: PathBuf,
    /// Whose members may do everything over it, beside root and the user that raidd runs as.
    pub control_group: Option<String>,
    /// Whose members may look.
    pub control_read_group: Option<String>,
    /// Where NBD clients connect; at least one.
    pub nbd: Vec<NbdListener>,
    /// What TLS is spoken with; none where it is off on all of them.
    pub tls: Option<TlsFiles>,
    /// Who may see and use which export.
    pub access: AccessRules,
    /// Where metrics are read, beside the control socket.
    pub metrics: Option<MetricsAddress>,
    /// The folder of what is remembered; absolute.
    pub state_dir: PathBuf,
    /// Where mdadm is told which arrays to ignore, if anywhere; absolute.
    pub mdadm_conf: Option<PathBuf>,
    /// Threads that move data; 1 to [`REACTORS_MAX`].
    pub reactors: usize,
    /// Memory for buffers, all reactors together; at least [`MEMORY_BYTES_MIN`].
    pub memory_bytes: u64,
    /// How long missing members are waited for at start.
    pub assemble_wait: Duration,
    /// Faults may be injected into members.
    pub enable_fault_injection: bool,
    /// What to log, as tracing's EnvFilter reads it.
    pub log_filter: String,
}

/// What the arguments ask for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// Run with this.
    Run(Box<Config>),
    /// Print this (help or version) to stdout and exit with 0.
    Print(String),
}

/// What is wrong and what to do, in one line.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ConfigError(String);

/// What defaults depend on.
#[derive(Clone, Debug, Default)]
pub struct Environment {
    /// Whether this is root.
    pub is_root: bool,
    /// Cores that may be used.
    pub cores: usize,
    /// RAIDD_CONTROL.
    pub control: Option<OsString>,
    /// XDG_RUNTIME_DIR.
    pub runtime_dir: Option<OsString>,
    /// XDG_STATE_HOME.
    pub state_home: Option<OsString>,
    /// HOME.
    pub home: Option<OsString>,
    /// RUST_LOG.
    pub rust_log: Option<String>,
    /// The file that is read if there is one and no other is named.
    pub config_file: Option<PathBuf>,
    /// The folder of mdadm's configuration, where mdadm is installed.
    pub mdadm_folder: Option<PathBuf>,
}

impl Environment {
    /// That of this process.
    pub fn of_this_process() -> Environment {
        let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty());
        Environment {
            is_root: nix::unistd::geteuid().is_root(),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            control: variable("RAIDD_CONTROL"),
            runtime_dir: variable("XDG_RUNTIME_DIR"),
            state_home: variable("XDG_STATE_HOME"),
            home: variable("HOME"),
            rust_log: variable("RUST_LOG").map(|value| value.to_string_lossy().into_owned()),
            config_file: Some(PathBuf::from(CONFIG_FILE)),
            mdadm_folder: Some(PathBuf::from(MDADM_FOLDER)).filter(|folder| folder.is_dir()),
        }
    }
}

/// What raidd is asked to do by `arguments` (the first is the program's name).
///
/// # Errors
/// An option, the environment or the file is wrong.
pub fn read(
    arguments: impl IntoIterator<Item = OsString>,
    environment: &Environment,
) -> Result<Request, ConfigError> {
    let options = match Options::try_parse_from(arguments) {
        Ok(options) => options,
        Err(error) if !error.use_stderr() => return Ok(Request::Print(error.to_string())),
        Err(error) => {
            let text = error.to_string();
            let line = text.lines().next().unwrap_or_default();
            return fail(format!("{}: see raidd --help", line.strip_prefix("error: ").unwrap_or(line)));
        }
    };
    let file = match (&options.config, &environment.config_file) {
        (Some(path), _) => read_file(path)?.map_or_else(
            || fail(format!("there is no config file {}: write it, or leave --config out", path.display())),
            Ok,
        )?,
        (None, Some(path)) => read_file(path)?.unwrap_or_default(),
        (None, None) => ConfigFile::default(),
    };
    resolve(options, file, environment).map(|config| Request::Run(Box::new(config)))
}

fn fail<T>(line: impl Into<String>) -> Result<T, ConfigError> {
    Err(ConfigError(line.into()))
}

/// The file; None if it is not there.
fn read_file(path: &Path) -> Result<Option<ConfigFile>, ConfigError> {
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => {
            return fail(format!("cannot read config file {}: {error}: correct it", path.display()));
        }
    };
    toml::from_str(&text).map(Some).or_else(|error| {
        let line = error.span().map_or(1, |span| 1 + text[..span.start].matches('\n').count());
        let message = error.message().replace('\n', " ");
        fail(format!("config file {}, line {line}: {message}: correct it", path.display()))
    })
}

fn resolve(options: Options, file: ConfigFile, environment: &Environment) -> Result<Config, ConfigError> {
    let control = match options.control.or(environment.control.clone().map(PathBuf::from)).or(file.control) {
        Some(path) => absolute(&path)?,
        None => default_control_path(environment.is_root, environment.runtime_dir.as_deref()).ok_or_else(
            || {
                ConfigError(
                    "no place for the control socket, as XDG_RUNTIME_DIR is not set: name one with --control"
                        .into(),
                )
            },
        )?,
    };

    let entries = match options.nbd.is_empty() {
        true => file.nbd.unwrap_or_default(),
        false => options.nbd.into_iter().map(NbdAddress::into).collect(),
    };
    let defaults = ListenerDefaults {
        tls: options.nbd_tls.or(file.nbd_tls).unwrap_or_default(),
        mode: options.nbd_socket_mode.or(file.nbd_socket_mode).unwrap_or(SocketMode::DEFAULT),
        group: options.nbd_socket_group.or(file.nbd_socket_group),
    };
    let nbd = listeners::resolve(entries, &defaults, &control)?;
    let files = TlsFiles {
        certificate: absolute_if_any(options.tls_cert.or(file.tls_cert))?,
        key: absolute_if_any(options.tls_key.or(file.tls_key))?,
        ca: absolute_if_any(options.tls_ca.or(file.tls_ca))?,
        psk: absolute_if_any(options.tls_psk.or(file.tls_psk))?,
    };
    let tls = resolve_tls(files, &nbd)?;
    let may_list = options.nbd_list.map(|list| list == Switch::On).or(file.nbd_list).unwrap_or(true);
    let access = AccessRules { may_list, exports: file.exports };
    access.check(tls.as_ref()).map_err(ConfigError)?;

    let state_dir = match options.state_dir.or(file.state_dir) {
        Some(path) => absolute(&path)?,
        None => default_state_dir(environment)?,
    };

    let mdadm_conf = match options.mdadm_conf.or(file.mdadm_conf) {
        Some(path) if path == Path::new("none") => None,
        Some(path) => Some(absolute(&path)?),
        // One file can hold the arrays of one raidd: those of the machine's own, not of one that is tried out.
        None if environment.is_root && state_dir == Path::new(STATE_DIR_OF_ROOT) => {
            environment.mdadm_folder.as_ref().map(|folder| folder.join(MDADM_FILE))
        }
        None => None,
    };

    let reactors =
        options.reactors.or(file.reactors).unwrap_or(environment.cores.clamp(1, REACTORS_DEFAULT_MAX));
    if !(1..=REACTORS_MAX).contains(&reactors) {
        return fail(format!(
            "{reactors} reactors are out of range: choose 1 to {REACTORS_MAX} with --reactors"
        ));
    }

    let memory_bytes = options.memory.or(file.memory).unwrap_or(MEMORY_BYTES_DEFAULT);
    if memory_bytes < MEMORY_BYTES_MIN {
        return fail(format!("{memory_bytes} bytes of memory are too few: give 32M at least with --memory"));
    }
    if usize::try_from(memory_bytes).is_err() {
        return fail(format!("{memory_bytes} bytes of memory cannot be addressed: give less with --memory"));
    }

    let chosen = match (options.verbose, options.quiet) {
        (0, 0) => None,
        (1, _) => Some("debug"),
        (2.., _) => Some("trace"),
        (0, 1) => Some("warn"),
        (0, _) => Some("error"),
    };
    let log_filter = chosen
        .map(str::to_owned)
        .or_else(|| environment.rust_log.clone())
        .or(file.log)
        .unwrap_or_else(|| "info".to_owned());
    if let Err(error) = tracing_subscriber::EnvFilter::builder().parse(&log_filter) {
        return fail(format!(
            "log filter {log_filter:?} cannot be read: {error}: write it like debug or raidd=debug"
        ));
    }

    Ok(Config {
        control,
        control_group: options.control_group.or(file.control_group),
        control_read_group: options.control_read_group.or(file.control_read_group),
        nbd,
        tls,
        access,
        metrics: options.metrics.or(file.metrics),
        state_dir,
        mdadm_conf,
        reactors,
        memory_bytes,
        assemble_wait: file.assemble_wait.unwrap_or(ASSEMBLE_WAIT_DEFAULT),
        enable_fault_injection: options.enable_fault_injection
            || file.enable_fault_injection.unwrap_or_default(),
        log_filter,
    })
}

/// TLS's files, if there is TLS anywhere.
fn resolve_tls(files: TlsFiles, nbd: &[NbdListener]) -> Result<Option<TlsFiles>, ConfigError> {
    if nbd.iter().any(|listener| listener.tls != TlsMode::Off) {
        return Ok(Some(files));
    }
    // Whoever names a certificate does not mean to be served in the clear.
    match files == TlsFiles::default() {
        true => Ok(None),
        false => fail("there are files for TLS, but TLS is off: give --nbd-tls require, or leave them out"),
    }
}

fn absolute_if_any(path: Option<PathBuf>) -> Result<Option<PathBuf>, ConfigError> {
    path.map(|path| absolute(&path)).transpose()
}

fn absolute(path: &Path) -> Result<PathBuf, ConfigError> {
    std::path::absolute(path)
        .or_else(|error| fail(format!("path {path:?} is no good: {error}: choose another")))
}

fn default_state_dir(environment: &Environment) -> Result<PathBuf, ConfigError> {
    if environment.is_root {
        return Ok(PathBuf::from(STATE_DIR_OF_ROOT));
    }
    let state_home = environment.state_home.as_ref().map(PathBuf::from);
    let home = environment.home.as_ref().map(|home| Path::new(home).join(".local/state"));
    match state_home.or(home).filter(|base| base.is_absolute()) {
        Some(base) => Ok(base.join("raidd")),
        None => fail(
            "no place for the state, as neither XDG_STATE_HOME nor HOME is set: name one with --state-dir",
        ),
    }
}

/// What a key may be that is a number with or without a unit.
#[derive(Deserialize)]
#[serde(untagged, expecting = "it is neither a number nor a text like \"256M\" or \"30s\"")]
enum NumberOrText {
    Number(u64),
    Text(String),
}

fn size_or_number<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u64>, D::Error> {
    match NumberOrText::deserialize(deserializer)? {
        NumberOrText::Number(bytes) => Ok(Some(bytes)),
        NumberOrText::Text(text) => parse_size(&text).map(Some).map_err(serde::de::Error::custom),
    }
}

fn duration_or_seconds<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Duration>, D::Error> {
    match NumberOrText::deserialize(deserializer)? {
        NumberOrText::Number(seconds) => Ok(Some(Duration::from_secs(seconds))),
        NumberOrText::Text(text) => parse_duration(&text).map(Some).map_err(serde::de::Error::custom),
    }
}

/// A time: a whole number with `ms`, `s`, `m` or `h` behind it; seconds if nothing is.
fn parse_duration(text: &str) -> Result<Duration, String> {
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, unit) = text.split_at(digits);
    let milliseconds: Option<u64> = match unit {
        "ms" => Some(1),
        "" | "s" => Some(1000),
        "m" => Some(60_000),
        "h" => Some(3_600_000),
        _ => None,
    };
    let total =
        number.parse::<u64>().ok().zip(milliseconds).and_then(|(number, unit)| number.checked_mul(unit));
    total
        .map(Duration::from_millis)
        .ok_or_else(|| format!("time {text:?} cannot be read: write it like 30s, 500ms or 2m"))
}

#[cfg(test)]
mod tests;
