//! The sockets that NBD clients connect to: where they are, who may open them, whether TLS is spoken on them; and the one
//! that metrics are read from.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use clap::ValueEnum;
use serde::de::value::MapAccessDeserializer;
use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer};

use super::{ConfigError, NBD_ADDRESSES_MAX, absolute, fail};

/// Whether clients may or must use TLS.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum TlsMode {
    /// There is none.
    #[default]
    Off,
    /// Who wants it gets it.
    Allow,
    /// Who does not want it is told no more than that it is required.
    Require,
}

/// A socket that NBD clients connect to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NbdListener {
    /// Where it is.
    pub address: NbdAddress,
    /// Whether TLS is spoken there.
    pub tls: TlsMode,
    /// The mode of a Unix socket's file.
    pub mode: SocketMode,
    /// The group of a Unix socket's file, where it is not to be the daemon's own: a name or a number.
    pub group: Option<String>,
}

impl NbdListener {
    /// The URI of `export` there, as NBD clients read it.
    pub fn uri(&self, export: &str) -> String {
        self.address.uri(export, self.tls == TlsMode::Require)
    }
}

impl fmt::Display for NbdListener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.tls {
            TlsMode::Off => write!(f, "{}", self.address),
            TlsMode::Allow => write!(f, "{} (TLS allowed)", self.address),
            TlsMode::Require => write!(f, "{} (TLS required)", self.address),
        }
    }
}

/// What holds for sockets that say nothing else of themselves.
pub(super) struct ListenerDefaults {
    pub(super) tls: TlsMode,
    pub(super) mode: SocketMode,
    pub(super) group: Option<String>,
}

/// All sockets, complete; `control` is the one they must not be.
pub(super) fn resolve(
    mut entries: Vec<ListenerEntry>,
    defaults: &ListenerDefaults,
    control: &Path,
) -> Result<Vec<NbdListener>, ConfigError> {
    if entries.is_empty() {
        entries.push(NbdAddress::Unix(control.with_file_name("nbd.sock")).into());
    }
    if entries.len() > NBD_ADDRESSES_MAX {
        let count = entries.len();
        return fail(format!("{count} NBD addresses are too many: name {NBD_ADDRESSES_MAX} at most"));
    }
    let mut listeners: Vec<NbdListener> = Vec::with_capacity(entries.len());
    for entry in entries {
        let listener = resolve_one(entry, defaults)?;
        if listeners.iter().any(|other| other.address == listener.address) {
            return fail(format!("NBD address {} is named twice: name it once", listener.address));
        }
        if listener.address == NbdAddress::Unix(control.to_owned()) {
            return fail(format!(
                "{} cannot be control and NBD socket at once: choose another",
                control.display()
            ));
        }
        listeners.push(listener);
    }
    Ok(listeners)
}

fn resolve_one(entry: ListenerEntry, defaults: &ListenerDefaults) -> Result<NbdListener, ConfigError> {
    let address = match entry.address {
        NbdAddress::Unix(path) => NbdAddress::Unix(absolute(&path)?),
        tcp @ NbdAddress::Tcp { .. } => {
            if entry.mode.is_some() || entry.group.is_some() {
                return fail(format!("{tcp} is no file: leave out its mode and group"));
            }
            tcp
        }
    };
    Ok(NbdListener {
        address,
        tls: entry.tls.unwrap_or(defaults.tls),
        mode: entry.mode.unwrap_or(defaults.mode),
        group: entry.group.or_else(|| defaults.group.clone()),
    })
}

/// A socket as it is written: an address, or in the file a table with more.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, remote = "Self")]
pub(super) struct ListenerEntry {
    address: NbdAddress,
    tls: Option<TlsMode>,
    mode: Option<SocketMode>,
    group: Option<String>,
}

impl From<NbdAddress> for ListenerEntry {
    fn from(address: NbdAddress) -> ListenerEntry {
        ListenerEntry { address, tls: None, mode: None, group: None }
    }
}

impl<'de> Deserialize<'de> for ListenerEntry {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<ListenerEntry, D::Error> {
        struct TextOrTable;

        impl<'de> Visitor<'de> for TextOrTable {
            type Value = ListenerEntry;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an NBD address, or a table with one as `address`")
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<ListenerEntry, E> {
                text.parse().map(NbdAddress::into).map_err(E::custom)
            }

            fn visit_map<M: MapAccess<'de>>(self, map: M) -> Result<ListenerEntry, M::Error> {
                ListenerEntry::deserialize(MapAccessDeserializer::new(map))
            }
        }

        deserializer.deserialize_any(TextOrTable)
    }
}

/// The mode of a socket's file. Whoever may write to it may connect.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct SocketMode(pub u32);

impl SocketMode {
    /// The daemon's user, and nobody else.
    pub const DEFAULT: SocketMode = SocketMode(0o600);
}

impl fmt::Debug for SocketMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04o}", self.0)
    }
}

impl FromStr for SocketMode {
    type Err = String;

    fn from_str(text: &str) -> Result<SocketMode, String> {
        let digits = text.bytes().all(|byte| byte.is_ascii_digit());
        match u32::from_str_radix(text, 8) {
            Ok(mode) if digits && mode <= 0o777 => Ok(SocketMode(mode)),
            _ => Err(format!("socket mode {text:?} cannot be read: write it in octal like 0660")),
        }
    }
}

impl<'de> Deserialize<'de> for SocketMode {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<SocketMode, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
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
    /// The URI of `export` at this address, as NBD clients read it; with `secure` they begin with TLS.
    pub fn uri(&self, export: &str, secure: bool) -> String {
        let export = percent_encoded(export.as_bytes(), b"");
        let scheme = if secure { "nbds" } else { "nbd" };
        match self {
            NbdAddress::Unix(path) => {
                let path = percent_encoded(path.as_os_str().as_encoded_bytes(), b"/");
                format!("{scheme}+unix:///{export}?socket={path}")
            }
            NbdAddress::Tcp { host, port } => {
                // One may listen on all addresses, but not connect to all.
                let host = if matches!(host.as_str(), "0.0.0.0" | "::") { "localhost" } else { host };
                let host = if host.contains(':') { format!("[{host}]") } else { host.to_owned() };
                let port = if *port == 10_809 { String::new() } else { format!(":{port}") };
                format!("{scheme}://{host}{port}/{export}")
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

/// Where metrics are read: `HOST:PORT`, as it is bound.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MetricsAddress(pub String);

impl fmt::Display for MetricsAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for MetricsAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<MetricsAddress, String> {
        let is_host = |host: &str| match host.strip_prefix('[') {
            Some(inner) => inner.ends_with(']'),
            None => !host.is_empty() && !host.contains(':'),
        };
        match text.rsplit_once(':') {
            Some((host, port)) if is_host(host) && port.parse().is_ok_and(|port: u16| port > 0) => {
                Ok(MetricsAddress(text.to_owned()))
            }
            _ => Err(format!(
                "metrics address {text:?} cannot be read: write HOST:PORT, or [ADDRESS]:PORT for IPv6"
            )),
        }
    }
}

impl<'de> Deserialize<'de> for MetricsAddress {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<MetricsAddress, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}
