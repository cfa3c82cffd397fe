//! How raidd is told what to do: options, then the environment, then the TOML file, then defaults, in this order.
//!
//! Invariants:
//! - A [`Config`] is complete: every default is filled in, every path is absolute, every number is within its limits.
//! - Every option is also a key of the file. A key that is not known is an error, not a key that does nothing.
//! - An error is one line that says what is wrong and what to do.
//!
//! Nothing here looks at the process but [`Environment::of_this_process`]; so all of it can be tested.

use std::ffi::OsString;
use std::fmt;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use clap::{ArgAction, Parser};
use serde::{Deserialize, Deserializer};

use crate::api::{default_control_path, parse_size};

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

const EXAMPLE: &str = "\
Example:
  raidd --control /tmp/r/control.sock --nbd unix:/tmp/r/nbd.sock --nbd tcp:127.0.0.1:10809

Every option is also a key of the file, written with `_` for `-`:
  control = \"/run/raidd/control.sock\"
  nbd = [\"unix:/run/raidd/nbd.sock\", \"tcp:127.0.0.1:10809\"]
  state_dir = \"/var/lib/raidd\"
  reactors = 2
  memory = \"512M\"
  log = \"debug\"
and there is one that is a key only: how long missing members are waited for at start:
  assemble_wait = \"30s\"";

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

    /// Where NBD clients connect: unix:PATH or tcp:HOST:PORT; may be given several times [default: nbd.sock beside the
    /// control socket]
    #[arg(long, value_name = "ADDR")]
    nbd: Vec<NbdAddress>,

    /// Folder in which raidd remembers which arrays to start [default: /var/lib/raidd as root, $XDG_STATE_HOME/raidd
    /// otherwise]
    #[arg(long, value_name = "PATH")]
    state_dir: Option<PathBuf>,

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

/// The TOML file.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct ConfigFile {
    control: Option<PathBuf>,
    nbd: Option<Vec<NbdAddress>>,
    state_dir: Option<PathBuf>,
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
    /// Where NBD clients connect; at least one.
    pub nbd: Vec<NbdAddress>,
    /// The folder of what is remembered; absolute.
    pub state_dir: PathBuf,
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
    Run(Config),
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
    resolve(options, file, environment).map(Request::Run)
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

    let mut nbd = if options.nbd.is_empty() { file.nbd.unwrap_or_default() } else { options.nbd };
    if nbd.is_empty() {
        nbd.push(NbdAddress::Unix(control.with_file_name("nbd.sock")));
    }
    if nbd.len() > NBD_ADDRESSES_MAX {
        return fail(format!("{} NBD addresses are too many: name {NBD_ADDRESSES_MAX} at most", nbd.len()));
    }
    for index in 0..nbd.len() {
        if let NbdAddress::Unix(path) = &nbd[index] {
            nbd[index] = NbdAddress::Unix(absolute(path)?);
        }
        if nbd[..index].contains(&nbd[index]) {
            return fail(format!("NBD address {} is named twice: name it once", nbd[index]));
        }
        if nbd[index] == NbdAddress::Unix(control.clone()) {
            return fail(format!(
                "{} cannot be control and NBD socket at once: choose another",
                control.display()
            ));
        }
    }

    let state_dir = match options.state_dir.or(file.state_dir) {
        Some(path) => absolute(&path)?,
        None => default_state_dir(environment)?,
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
        nbd,
        state_dir,
        reactors,
        memory_bytes,
        assemble_wait: file.assemble_wait.unwrap_or(ASSEMBLE_WAIT_DEFAULT),
        enable_fault_injection: options.enable_fault_injection
            || file.enable_fault_injection.unwrap_or_default(),
        log_filter,
    })
}

fn absolute(path: &Path) -> Result<PathBuf, ConfigError> {
    std::path::absolute(path)
        .or_else(|error| fail(format!("path {path:?} is no good: {error}: choose another")))
}

fn default_state_dir(environment: &Environment) -> Result<PathBuf, ConfigError> {
    if environment.is_root {
        return Ok(PathBuf::from("/var/lib/raidd"));
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

/// Where NBD clients connect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NbdAddress {
    /// `unix:PATH`.
    Unix(PathBuf),
    /// `tcp:HOST:PORT`.
    Tcp {
        /// A name or an address; IPv6 addresses without their brackets.
        host: String,
        /// From 1.
        port: u16,
    },
}

impl NbdAddress {
    /// The URI of `export` at this address, as NBD clients read it.
    pub fn uri(&self, export: &str) -> String {
        let export = percent_encoded(export.as_bytes(), b"");
        match self {
            NbdAddress::Unix(path) => {
                let path = percent_encoded(path.as_os_str().as_encoded_bytes(), b"/");
                format!("nbd+unix:///{export}?socket={path}")
            }
            NbdAddress::Tcp { host, port } => {
                // One may listen on all addresses, but not connect to all.
                let host = if matches!(host.as_str(), "0.0.0.0" | "::") { "localhost" } else { host };
                let host = if host.contains(':') { format!("[{host}]") } else { host.to_owned() };
                let port = if *port == 10_809 { String::new() } else { format!(":{port}") };
                format!("nbd://{host}{port}/{export}")
            }
        }
    }
}

/// Text for a URI: everything but unreserved characters and those in `keep` is escaped (RFC 3986, section 2).
fn percent_encoded(bytes: &[u8], keep: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for &byte in bytes {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) || keep.contains(&byte) {
            text.push(char::from(byte));
        } else {
            text.push_str(&format!("%{byte:02X}"));
        }
    }
    text
}

impl FromStr for NbdAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<NbdAddress, String> {
        if let Some(path) = text.strip_prefix("unix:") {
            if path.is_empty() || path.contains('\0') {
                return Err(format!("NBD address {text:?} names no socket: write unix:PATH"));
            }
            return Ok(NbdAddress::Unix(PathBuf::from(path)));
        }
        let malformed = || format!("NBD address {text:?} cannot be read: write unix:PATH or tcp:HOST:PORT");
        let (host, port) =
            text.strip_prefix("tcp:").and_then(|rest| rest.rsplit_once(':')).ok_or_else(malformed)?;
        let host = match host.strip_prefix('[') {
            Some(inner) => inner.strip_suffix(']').ok_or_else(malformed)?,
            None if host.contains(':') => {
                return Err(format!("NBD address {text:?} is ambiguous: write tcp:[ADDRESS]:PORT for IPv6"));
            }
            None => host,
        };
        if host.is_empty() || host.chars().any(|c| c.is_whitespace() || c.is_control() || c == '/') {
            return Err(malformed());
        }
        match port.parse() {
            Ok(port) if port > 0 => Ok(NbdAddress::Tcp { host: host.to_owned(), port }),
            _ => Err(format!("NBD address {text:?} has no port from 1 to 65535: write tcp:HOST:PORT")),
        }
    }
}

impl fmt::Display for NbdAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            NbdAddress::Unix(path) => write!(f, "unix:{}", path.display()),
            NbdAddress::Tcp { host, port } if host.contains(':') => write!(f, "tcp:[{host}]:{port}"),
            NbdAddress::Tcp { host, port } => write!(f, "tcp:{host}:{port}"),
        }
    }
}

impl<'de> Deserialize<'de> for NbdAddress {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<NbdAddress, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
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
