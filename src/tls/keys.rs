//! The file of pre-shared keys: a line `NAME:KEY` each, the key in hexadecimal, as psktool writes it.
//!
//! Invariants:
//! - A name is there once, of 1 to 128 bytes of UTF-8 without control characters: what TLS libraries take for an identity.
//! - A key is of 16 to 64 bytes: with fewer, whoever records a handshake could try all of them.

use std::collections::BTreeMap;
use std::fmt;

const NAME_BYTES_MAX: usize = 128;
const KEY_BYTES_MIN: usize = 16;
const KEY_BYTES_MAX: usize = 64;

/// Keys by name.
pub(super) struct PreSharedKeys(BTreeMap<String, Vec<u8>>);

impl PreSharedKeys {
    /// Reads the text of a file; fails with the line's number and what is wrong with it.
    pub(super) fn parse(text: &str) -> Result<PreSharedKeys, (usize, String)> {
        let mut keys = BTreeMap::new();
        for (index, line) in text.lines().enumerate() {
            if line.trim().is_empty() {
                continue;
            }
            let (name, key) = parse_line(line).map_err(|what| (index + 1, what))?;
            if keys.insert(name.to_owned(), key).is_some() {
                return Err((index + 1, format!("the name {name:?} is there twice: leave one")));
            }
        }
        match keys.is_empty() {
            true => Err((1, "there is no key in it: make one with psktool -u NAME -p FILE".to_owned())),
            false => Ok(PreSharedKeys(keys)),
        }
    }

    /// The key of that name.
    pub(super) fn get(&self, name: &str) -> Option<&[u8]> {
        self.0.get(name).map(Vec::as_slice)
    }
}

impl fmt::Debug for PreSharedKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("PreSharedKeys").field(&self.0.len()).finish()
    }
}

fn parse_line(line: &str) -> Result<(&str, Vec<u8>), String> {
    // The name may contain colons, the key does not.
    let (name, key) = line
        .rsplit_once(':')
        .ok_or("it is not of the form NAME:KEY: write it as psktool -u NAME -p FILE does")?;
    if name.starts_with('#') {
        // psktool's way to write names that are no text.
        return Err("names in hexadecimal (#...) are not supported: choose one of plain text".to_owned());
    }
    if !(1..=NAME_BYTES_MAX).contains(&name.len()) || name.chars().any(char::is_control) {
        return Err(format!("the name is no text of 1 to {NAME_BYTES_MAX} bytes: choose another"));
    }
    let key = parse_hex(key.trim_end())
        .ok_or_else(|| format!("the key of {name:?} is not hexadecimal: make one with psktool"))?;
    if !(KEY_BYTES_MIN..=KEY_BYTES_MAX).contains(&key.len()) {
        return Err(format!(
            "the key of {name:?} has {} bytes: make one of {KEY_BYTES_MIN} to {KEY_BYTES_MAX} with psktool",
            key.len()
        ));
    }
    Ok((name, key))
}

fn parse_hex(text: &str) -> Option<Vec<u8>> {
    if !text.len().is_multiple_of(2) || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    let digit = |byte: u8| char::from(byte).to_digit(16).map(|digit| digit as u8);
    text.as_bytes().chunks_exact(2).map(|pair| Some(digit(pair[0])? << 4 | digit(pair[1])?)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "000102030405060708090a0b0c0d0eFF";

    #[test]
    fn names_and_keys() {
        let text = format!("alice:{KEY}\n\nurn:x:größe:{KEY}{KEY}\r\n");
        let keys = PreSharedKeys::parse(&text).unwrap();
        assert_eq!(keys.get("alice"), Some(&[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 255][..]));
        assert_eq!(keys.get("urn:x:größe").map(<[u8]>::len), Some(32));
        assert_eq!(keys.get("Alice"), None);
        assert_eq!(format!("{keys:?}"), "PreSharedKeys(2)");
    }

    #[test]
    fn what_is_wrong_is_said_with_its_line() {
        for (text, line, fragment) in [
            (String::new(), 1, "no key"),
            ("alice\n".to_owned(), 1, "NAME:KEY"),
            (format!("alice:{KEY}\nbob:xyz\n"), 2, "not hexadecimal"),
            (format!("alice:{KEY}0"), 1, "not hexadecimal"),
            (format!("alice:+{}", &KEY[1..]), 1, "not hexadecimal"),
            (format!("alice:{}", &KEY[2..]), 1, "15 bytes"),
            (format!("alice:{}", KEY.repeat(5)), 1, "80 bytes"),
            (format!("a:{KEY}\n\na:{KEY}\n"), 3, "twice"),
            (format!(":{KEY}\n"), 1, "the name"),
            (format!("{}:{KEY}\n", "n".repeat(129)), 1, "the name"),
            (format!("a\u{7}:{KEY}\n"), 1, "the name"),
            (format!("#616263:{KEY}\n"), 1, "plain text"),
        ] {
            let (found, what) = PreSharedKeys::parse(&text).unwrap_err();
            assert!(found == line && what.contains(fragment), "{text:?}: {found}: {what}");
            assert!(!what.contains(&KEY[4..]), "a key is shown: {what}");
        }
    }
}
