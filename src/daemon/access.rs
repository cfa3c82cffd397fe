//! Who may use which export, and how: by where a client comes from, and by who it has proved to be.
//!
//! Invariants:
//! - An export's own rules hold instead of those of `*`, not beside them. Without either everybody may do everything.
//! - Where addresses and identities are both named, a client has to be among both. An empty list is nobody.
//! - A client that may not use an export cannot tell that it is there.
//! - A client that has proved nothing has no identity, however it is connected.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use serde::{Deserialize, Deserializer};

use crate::tls::{Identity, TlsFiles};

/// Stands for all exports that have no rules of their own.
const EVERY_OTHER: &str = "*";

/// The rules of all exports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AccessRules {
    /// Clients may ask what there is.
    pub may_list: bool,
    /// By name; `*` for those that are not named.
    pub exports: BTreeMap<String, ExportRules>,
}

/// The rules of one export.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExportRules {
    /// It takes no writes, whatever the array does.
    #[serde(default)]
    pub read_only: bool,
    /// Where its clients may come from; anywhere if it does not say.
    pub allow_addresses: Option<Vec<AddressRule>>,
    /// Who its clients may be; anybody if it does not say.
    pub allow_identities: Option<Vec<IdentityRule>>,
}

/// How an export may be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Read and written.
    ReadWrite,
    /// Read.
    ReadOnly,
}

/// Where a client comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// A Unix socket.
    Unix,
    /// An address in the network.
    Ip(IpAddr),
}

impl AccessRules {
    /// How such a client may use an export, if at all.
    pub fn access(&self, export: &str, source: Source, identity: Option<&Identity>) -> Option<Access> {
        let Some(rules) = self.exports.get(export).or_else(|| self.exports.get(EVERY_OTHER)) else {
            return Some(Access::ReadWrite);
        };
        let place = rules.allow_addresses.as_ref();
        let person = rules.allow_identities.as_ref();
        let allowed = place.is_none_or(|allowed| allowed.iter().any(|rule| rule.covers(source)))
            && person.is_none_or(|allowed| {
                identity.is_some_and(|identity| allowed.iter().any(|rule| rule.is(identity)))
            });
        match (allowed, rules.read_only) {
            (false, _) => None,
            (true, true) => Some(Access::ReadOnly),
            (true, false) => Some(Access::ReadWrite),
        }
    }

    /// Whether somebody can be who the rules speak of. Says what is wrong and what to do.
    pub fn check(&self, tls: Option<&TlsFiles>) -> Result<(), String> {
        for (export, rules) in &self.exports {
            for rule in rules.allow_identities.iter().flatten() {
                let (proof, option) = match rule {
                    IdentityRule::Certificate(_) => (tls.and_then(|files| files.ca.as_ref()), "--tls-ca"),
                    IdentityRule::PreSharedKey(_) => (tls.and_then(|files| files.psk.as_ref()), "--tls-psk"),
                };
                if proof.is_none() {
                    return Err(format!(
                        "export {export:?} is for {rule}, which nobody can prove to be: turn TLS on with {option}"
                    ));
                }
            }
        }
        Ok(())
    }
}

/// Clients from one place: `unix`, an address, or a network in CIDR notation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AddressRule {
    /// Those on Unix sockets.
    Unix,
    /// Those whose address has these first bits.
    Net {
        /// Any address of the network.
        address: IpAddr,
        /// How many bits count.
        prefix_bits: u8,
    },
}

impl AddressRule {
    fn covers(self, source: Source) -> bool {
        match (self, source) {
            (AddressRule::Unix, Source::Unix) => true,
            (AddressRule::Net { address, prefix_bits }, Source::Ip(found)) => {
                // On a socket for both families an IPv4 client shows as ::ffff:a.b.c.d.
                first_bits(address, prefix_bits) == first_bits(found.to_canonical(), prefix_bits)
            }
            (AddressRule::Unix, Source::Ip(_)) | (AddressRule::Net { .. }, Source::Unix) => false,
        }
    }
}

/// The family, and the first so many bits of the address.
fn first_bits(address: IpAddr, prefix_bits: u8) -> (u8, u128) {
    let (width, bits) = match address {
        IpAddr::V4(address) => (32, u128::from(address.to_bits())),
        IpAddr::V6(address) => (128, address.to_bits()),
    };
    (width, bits.checked_shr(u32::from(width - prefix_bits.min(width))).unwrap_or(0))
}

impl FromStr for AddressRule {
    type Err = String;

    fn from_str(text: &str) -> Result<AddressRule, String> {
        if text == "unix" {
            return Ok(AddressRule::Unix);
        }
        let malformed = || {
            format!("address {text:?} cannot be read: write unix, 192.0.2.1, 192.0.2.0/24, ::1 or fe80::/10")
        };
        let (address, prefix) = text.split_once('/').map_or((text, None), |(head, tail)| (head, Some(tail)));
        let address: IpAddr = address.parse().map_err(|_| malformed())?;
        let width = if address.is_ipv4() { 32 } else { 128 };
        let prefix_bits = match prefix {
            None => width,
            Some(digits) if digits.bytes().all(|byte| byte.is_ascii_digit()) => {
                digits.parse().ok().filter(|bits| *bits <= width).ok_or_else(malformed)?
            }
            Some(_) => return Err(malformed()),
        };
        Ok(AddressRule::Net { address, prefix_bits })
    }
}

/// One client: `cert:NAME` or `psk:NAME`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum IdentityRule {
    /// Whoever has a certificate with this common name or DNS name.
    Certificate(String),
    /// Whoever has the pre-shared key of this name.
    PreSharedKey(String),
}

impl IdentityRule {
    fn is(&self, identity: &Identity) -> bool {
        match (self, identity) {
            (IdentityRule::Certificate(wanted), Identity::Certificate(names)) => names.contains(wanted),
            (IdentityRule::PreSharedKey(wanted), Identity::PreSharedKey(name)) => wanted == name,
            (IdentityRule::Certificate(_), Identity::PreSharedKey(_))
            | (IdentityRule::PreSharedKey(_), Identity::Certificate(_)) => false,
        }
    }
}

impl fmt::Display for IdentityRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            IdentityRule::Certificate(name) => write!(f, "cert:{name}"),
            IdentityRule::PreSharedKey(name) => write!(f, "psk:{name}"),
        }
    }
}

impl FromStr for IdentityRule {
    type Err = String;

    fn from_str(text: &str) -> Result<IdentityRule, String> {
        match text.split_once(':') {
            Some(("cert", name)) if !name.is_empty() => Ok(IdentityRule::Certificate(name.to_owned())),
            Some(("psk", name)) if !name.is_empty() => Ok(IdentityRule::PreSharedKey(name.to_owned())),
            _ => Err(format!("identity {text:?} cannot be read: write cert:NAME or psk:NAME")),
        }
    }
}

impl<'de> Deserialize<'de> for AddressRule {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<AddressRule, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

impl<'de> Deserialize<'de> for IdentityRule {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<IdentityRule, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(toml: &str) -> AccessRules {
        AccessRules { may_list: true, exports: toml::from_str(toml).unwrap() }
    }

    fn from(address: &str) -> Source {
        Source::Ip(address.parse().unwrap())
    }

    fn psk(name: &str) -> Identity {
        Identity::PreSharedKey(name.to_owned())
    }

    fn certificate(names: &[&str]) -> Identity {
        Identity::Certificate(names.iter().map(|&name| name.to_owned()).collect())
    }

    #[test]
    fn without_rules_everybody_may_do_everything() {
        assert_eq!(rules("").access("vol0", Source::Unix, None), Some(Access::ReadWrite));
        let others = rules("[other]\nread_only = true");
        assert_eq!(others.access("vol0", from("192.0.2.1"), None), Some(Access::ReadWrite));
    }

    #[test]
    fn own_rules_hold_instead_of_those_of_the_others() {
        let rules = rules(
            r#"
            [vol0]
            [vol1]
            read_only = true
            allow_addresses = []
            ["*"]
            read_only = true
            allow_addresses = ["unix"]
            "#,
        );
        for (export, unix, tcp) in [
            ("vol0", Some(Access::ReadWrite), Some(Access::ReadWrite)),
            ("vol1", None, None),
            ("vol2", Some(Access::ReadOnly), None),
        ] {
            assert_eq!(rules.access(export, Source::Unix, None), unix, "{export}");
            assert_eq!(rules.access(export, from("::1"), None), tcp, "{export}");
        }
    }

    #[test]
    fn networks() {
        for (rule, inside, outside) in [
            ("127.0.0.0/8", &["127.0.0.1", "127.255.0.9", "::ffff:127.0.0.1"][..], &["128.0.0.1", "::1"][..]),
            ("192.0.2.77/25", &["192.0.2.0", "192.0.2.127"], &["192.0.2.128", "192.0.3.0"]),
            ("192.0.2.7", &["192.0.2.7"], &["192.0.2.6", "::c000:207"]),
            ("0.0.0.0/0", &["0.0.0.0", "255.255.255.255"], &["::", "::1"]),
            ("::/0", &["::1", "fe80::1"], &["192.0.2.1", "::ffff:192.0.2.1"]),
            ("fe80::/10", &["fe80::1", "febf::1"], &["fec0::1"]),
            ("2001:db8::1/128", &["2001:db8::1"], &["2001:db8::2"]),
        ] {
            let parsed: AddressRule = rule.parse().unwrap();
            assert!(inside.iter().all(|address| parsed.covers(from(address))), "{rule}");
            assert!(!outside.iter().any(|address| parsed.covers(from(address))), "{rule}");
            assert!(!parsed.covers(Source::Unix));
        }
        assert!(AddressRule::Unix.covers(Source::Unix) && !AddressRule::Unix.covers(from("::1")));
    }

    #[test]
    fn identities() {
        let rules = rules(
            r#"["*"]
            allow_identities = ["cert:backup.example", "psk:bob", "psk:urn:x"]"#,
        );
        let allowed = |identity: Option<Identity>| {
            rules.access("vol0", Source::Unix, identity.as_ref()) == Some(Access::ReadWrite)
        };
        assert!(allowed(Some(certificate(&["someone", "backup.example"]))));
        assert!(allowed(Some(psk("bob"))) && allowed(Some(psk("urn:x"))));
        for stranger in [psk("backup.example"), psk("alice"), certificate(&["bob"]), certificate(&[])] {
            assert!(!allowed(Some(stranger)));
        }
        assert!(!allowed(None));
    }

    #[test]
    fn both_have_to_hold() {
        let rules =
            rules("[vol0]\nread_only = true\nallow_addresses = [\"::1\"]\nallow_identities = [\"psk:bob\"]");
        let bob = psk("bob");
        assert_eq!(rules.access("vol0", from("::1"), Some(&bob)), Some(Access::ReadOnly));
        assert_eq!(rules.access("vol0", from("::2"), Some(&bob)), None);
        assert_eq!(rules.access("vol0", from("::1"), None), None);
    }

    #[test]
    fn what_makes_no_sense_is_said() {
        for text in
            ["", "unixx", "10.0.0", "10.0.0.0/33", "10.0.0.0/", "::/129", "::1/+1", "a.example/8", "1/2/3"]
        {
            assert!(text.parse::<AddressRule>().unwrap_err().contains("write unix"), "{text}");
        }
        for text in ["alice", "cert:", "psk:", "CERT:alice", ":alice"] {
            assert!(text.parse::<IdentityRule>().unwrap_err().contains("write cert:NAME"), "{text}");
        }
    }

    #[test]
    fn whom_nobody_can_prove_to_be() {
        let with = |ca: bool, psk: bool| TlsFiles {
            ca: ca.then(|| "/ca".into()),
            psk: psk.then(|| "/psk".into()),
            ..TlsFiles::default()
        };
        let certificates = rules("[a]\nallow_identities = [\"cert:alice\"]");
        let keys = rules("[a]\nallow_identities = [\"psk:alice\"]");
        assert!(certificates.check(Some(&with(true, false))).is_ok());
        assert!(certificates.check(Some(&with(false, true))).unwrap_err().contains("--tls-ca"));
        assert!(keys.check(Some(&with(false, true))).is_ok());
        assert!(keys.check(Some(&with(true, false))).unwrap_err().contains("--tls-psk"));
        assert!(keys.check(None).unwrap_err().contains("psk:alice"));
        assert!(rules("[a]\nread_only = true").check(None).is_ok());
    }
}
