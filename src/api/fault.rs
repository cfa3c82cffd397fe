//! Faults that can be put into a member on purpose, to rehearse what happens then, and how people write them.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::{parse_duration_ms, parse_size};

/// The most bytes that are corrupted at once: they are read and written back in one piece.
pub const CORRUPT_BYTES_MAX: u64 = 16 << 20;

/// Bytes of a member's data area, from its beginning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FaultRange {
    /// The first byte.
    pub offset_bytes: u64,
    /// How many; not 0.
    pub len_bytes: u64,
}

/// Something that goes wrong with a member. In JSON: as people write it, `read-error=1M+4K`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Fault {
    /// Reads there fail, until it is written anew, as with a real disk.
    ReadError(FaultRange),
    /// Writes there fail.
    WriteError(FaultRange),
    /// The bytes there are changed, once, behind the array's back.
    Corrupt(FaultRange),
    /// Every operation takes so many milliseconds longer.
    Latency(u64),
    /// No operation ends.
    Hang,
    /// The device is gone: every operation fails.
    Die,
    /// Nothing goes wrong any more. What was corrupted stays so.
    Clear,
}

impl Fault {
    /// Every fault's word: ending with `=` where something is to follow.
    pub const WORDS: &[&str] =
        &["read-error=", "write-error=", "corrupt=", "latency=", "hang", "die", "clear"];

    /// A fault as people write it.
    ///
    /// # Errors
    /// A line that says what is wrong with the text.
    pub fn parse(text: &str) -> Result<Fault, String> {
        let (word, value) = match text.split_once('=') {
            Some((word, value)) => (word, Some(value)),
            None => (text, None),
        };
        let range = || range(text, value);
        match (word, value) {
            ("read-error", _) => range().map(Fault::ReadError),
            ("write-error", _) => range().map(Fault::WriteError),
            ("corrupt", _) => match range()? {
                range if range.len_bytes > CORRUPT_BYTES_MAX => {
                    Err(format!("{text:?} is too much at once: corrupt 16M at most"))
                }
                range => Ok(Fault::Corrupt(range)),
            },
            ("latency", Some(value)) => parse_duration_ms(value).map(Fault::Latency),
            ("latency", None) => Err("latency needs a time: write it like latency=200ms".to_owned()),
            ("hang", None) => Ok(Fault::Hang),
            ("die", None) => Ok(Fault::Die),
            ("clear", None) => Ok(Fault::Clear),
            _ => Err(format!(
                "there is no fault {text:?}: choose read-error=OFF+LEN, write-error=OFF+LEN, corrupt=OFF+LEN, latency=200ms, \
                 hang, die or clear"
            )),
        }
    }
}

/// `OFF+LEN`.
fn range(text: &str, value: Option<&str>) -> Result<FaultRange, String> {
    let malformed = || format!("{text:?} does not say where: write OFF+LEN behind the `=`, like 1M+4K");
    let (offset, len) = value.and_then(|value| value.split_once('+')).ok_or_else(malformed)?;
    let range = FaultRange { offset_bytes: parse_size(offset)?, len_bytes: parse_size(len)? };
    if range.len_bytes == 0 || range.offset_bytes.checked_add(range.len_bytes).is_none() {
        return Err(malformed());
    }
    Ok(range)
}

impl fmt::Display for FaultRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}+{}", self.offset_bytes, self.len_bytes)
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Fault::ReadError(range) => write!(f, "read-error={range}"),
            Fault::WriteError(range) => write!(f, "write-error={range}"),
            Fault::Corrupt(range) => write!(f, "corrupt={range}"),
            Fault::Latency(ms) => write!(f, "latency={ms}ms"),
            Fault::Hang => f.write_str("hang"),
            Fault::Die => f.write_str("die"),
            Fault::Clear => f.write_str("clear"),
        }
    }
}

impl TryFrom<String> for Fault {
    type Error = String;

    fn try_from(text: String) -> Result<Fault, String> {
        Fault::parse(&text)
    }
}

impl From<Fault> for String {
    fn from(fault: Fault) -> String {
        fault.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_are_written_as_they_are_read() {
        for text in [
            "read-error=1048576+4096",
            "write-error=0+512",
            "corrupt=7+1",
            "latency=200ms",
            "hang",
            "die",
            "clear",
        ] {
            assert_eq!(Fault::parse(text).unwrap().to_string(), text);
        }
        let range = FaultRange { offset_bytes: 1 << 20, len_bytes: 4096 };
        assert_eq!(Fault::parse("read-error=1M+4K"), Ok(Fault::ReadError(range)));
        assert_eq!(serde_json::to_string(&Fault::Latency(1000)).unwrap(), r#""latency=1000ms""#);
        assert_eq!(serde_json::from_str::<Fault>(r#""hang""#).unwrap(), Fault::Hang);
    }

    #[test]
    fn every_word_is_the_beginning_of_a_fault() {
        let refusal = Fault::parse("explode").unwrap_err();
        for word in Fault::WORDS {
            assert!(refusal.contains(word), "{word}");
            let rest =
                if word.ends_with('=') { if *word == "latency=" { "1ms" } else { "1M+4K" } } else { "" };
            Fault::parse(&format!("{word}{rest}")).unwrap();
        }
        assert_eq!(refusal.split_once("choose ").unwrap().1.split(", ").count() + 1, Fault::WORDS.len());
    }

    #[test]
    fn nonsense_is_explained() {
        for (text, fragment) in [
            ("", "there is no fault"),
            ("explode", "choose read-error"),
            ("hang=1", "there is no fault"),
            ("read-error", "OFF+LEN"),
            ("read-error=1M", "OFF+LEN"),
            ("read-error=1M+0", "OFF+LEN"),
            ("read-error=16383P+16383P", "OFF+LEN"),
            ("corrupt=x+1", "size"),
            ("corrupt=0+17M", "16M at most"),
            ("latency", "latency=200ms"),
            ("latency=5", "time"),
        ] {
            let error = Fault::parse(text).unwrap_err();
            assert!(error.contains(fragment) && !error.contains('\n'), "{text}: {error}");
        }
    }
}
