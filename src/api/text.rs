//! What people type: sizes, names, levels, UUIDs, and where the control socket is when they say nothing.
//!
//! Every error is one line that says what is wrong and how to write it.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

/// Bytes of the longest name: the superblock has 32 bytes for it, the last of them NUL.
pub const NAME_BYTES_MAX: usize = 31;

/// A size in bytes: a whole number, by itself or with K, M, G, T or P behind it (or KiB and so on), which are powers of
/// 1024.
///
/// # Errors
/// A line that says what is wrong with the text.
pub fn parse_size(text: &str) -> Result<u64, String> {
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, unit) = text.split_at(digits);
    let malformed = || {
        format!(
            "size {text:?} is not a whole number of bytes, or of K, M, G, T or P (powers of 1024): write it like 512K or 4M"
        )
    };
    if number.is_empty() {
        return Err(malformed());
    }
    let shift = match unit.to_ascii_uppercase().as_str() {
        "" | "B" => 0,
        "K" | "KIB" => 10,
        "M" | "MIB" => 20,
        "G" | "GIB" => 30,
        "T" | "TIB" => 40,
        "P" | "PIB" => 50,
        _ => return Err(malformed()),
    };
    let too_large = || format!("size {text:?} is too large: the most is 16384P less a byte");
    let number: u64 = number.parse().map_err(|_| too_large())?;
    number.checked_mul(1 << shift).ok_or_else(too_large)
}

/// A stretch of time in milliseconds: whole numbers with ms, s, m or min, h or d behind them, as in `1s`, `10m`, `1h30m`.
///
/// # Errors
/// A line that says what is wrong with the text.
pub fn parse_duration_ms(text: &str) -> Result<u64, String> {
    let malformed =
        || format!("time {text:?} is not a whole number of ms, s, m, h or d: write it like 500ms, 5s or 10m");
    let (mut rest, mut total) = (text, 0_u64);
    while !rest.is_empty() || text.is_empty() {
        let digits = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        let (number, tail) = rest.split_at(digits);
        let letters = tail.len() - tail.trim_start_matches(|c: char| c.is_ascii_lowercase()).len();
        let (unit, tail) = tail.split_at(letters);
        let ms = match unit {
            "ms" => 1,
            "s" | "sec" => 1000,
            "m" | "min" => 60_000,
            "h" => 3_600_000,
            "d" => 86_400_000,
            _ => return Err(malformed()),
        };
        let number: u64 = number.parse().map_err(|_| malformed())?;
        total = number.checked_mul(ms).and_then(|ms| total.checked_add(ms)).ok_or_else(malformed)?;
        rest = tail;
    }
    Ok(total)
}

/// Whether an array may be called that. The name stands in a superblock, in URIs, in HTTP paths and on command lines, so
/// it is at most [`NAME_BYTES_MAX`] bytes of UTF-8 without blanks, control characters, `/` and `:`, does not start with
/// `-`, and is neither `.` nor `..`.
///
/// # Errors
/// A line that says what is wrong with the name.
pub fn valid_name(name: &str) -> Result<(), String> {
    let wrong = if name.is_empty() {
        "it is empty"
    } else if name.len() > NAME_BYTES_MAX {
        "it is longer than 31 bytes"
    } else if name == "." || name == ".." {
        "it is reserved"
    } else if name.starts_with('-') {
        "it starts with `-`, like an option"
    } else if name.contains(['/', ':']) {
        "it contains `/` or `:`"
    } else if name.chars().any(|c| c.is_whitespace() || c.is_control() || is_invisible(c)) {
        "it contains blanks or characters that cannot be seen"
    } else {
        return Ok(());
    };
    Err(format!("{name:?} cannot be an array's name, because {wrong}: choose one like vol0"))
}

/// Characters that are neither blanks nor controls and yet show nothing, or turn the text around them.
fn is_invisible(c: char) -> bool {
    matches!(c, '\u{ad}' | '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}'
        | '\u{fff0}'..='\u{fffb}' | '\u{e0000}'..='\u{e0fff}')
}

/// The level as md counts it: `5`, `raid5`, `RAID5` and `raid-5` are 5.
pub(super) fn parse_level(text: &str) -> Result<u8, String> {
    let lower = text.to_ascii_lowercase();
    let number =
        lower.strip_prefix("raid").map_or(lower.as_str(), |rest| rest.strip_prefix('-').unwrap_or(rest));
    match number {
        "0" => Ok(0),
        "1" => Ok(1),
        "4" => Ok(4),
        "5" => Ok(5),
        "6" => Ok(6),
        "10" => Ok(10),
        _ => Err(format!("there is no RAID level {text:?}: choose 0, 1, 4, 5, 6 or 10")),
    }
}

/// A UUID: 32 hex digits, with `:` or `-` anywhere between them, so both mdadm's way of writing it and the common one
/// are read.
///
/// # Errors
/// A line that says what is wrong with the text.
pub fn parse_uuid(text: &str) -> Result<[u8; 16], String> {
    let digits: Option<Vec<u8>> = text
        .chars()
        .filter(|c| *c != ':' && *c != '-')
        .map(|c| c.to_digit(16).and_then(|digit| u8::try_from(digit).ok()))
        .collect();
    let pairs = digits.filter(|digits| digits.len() == 32).ok_or_else(|| {
        format!("{text:?} is no UUID of 32 hex digits: copy it from `raidctl examine` or `mdadm --examine`")
    })?;
    Ok(std::array::from_fn(|i| pairs[2 * i] << 4 | pairs[2 * i + 1]))
}

/// Where the control socket is when nobody says anything: below /run for root, below `runtime_dir` (the value of
/// XDG_RUNTIME_DIR) for others. None if there is no such folder.
pub fn default_control_path(is_root: bool, runtime_dir: Option<&OsStr>) -> Option<PathBuf> {
    let base = if is_root { Path::new("/run") } else { Path::new(runtime_dir?) };
    base.is_absolute().then(|| base.join("raidd/control.sock"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_powers_of_1024() {
        for (text, bytes) in [
            ("0", 0),
            ("4096", 4096),
            ("512B", 512),
            ("512K", 524_288),
            ("512k", 524_288),
            ("512KiB", 524_288),
            ("4M", 4 << 20),
            ("1G", 1 << 30),
            ("1GiB", 1 << 30),
            ("1T", 1 << 40),
            ("2P", 2 << 50),
            ("18446744073709551615", u64::MAX),
        ] {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
    }

    #[test]
    fn times_have_units() {
        for (text, ms) in [
            ("0s", 0),
            ("200ms", 200),
            ("1s", 1000),
            ("10m", 600_000),
            ("1h30m", 5_400_000),
            ("30d", 2_592_000_000),
        ] {
            assert_eq!(parse_duration_ms(text), Ok(ms), "{text}");
        }
        for text in ["", "5", "s", "1.5s", "-1s", "1 s", "5x", "1s2", "99999999999999999999d"] {
            assert!(parse_duration_ms(text).unwrap_err().contains("500ms, 5s or 10m"), "{text}");
        }
    }

    #[test]
    fn bad_sizes_are_explained() {
        for text in ["", "K", "-1", "+1", "1.5G", "512KB", "1 G", "1X", "0x10", " 1", "1GiBB", "½"] {
            assert!(parse_size(text).unwrap_err().contains("write it like 512K"), "{text}");
        }
        for text in ["18446744073709551616", "16384P", "99999999999999999999999999"] {
            assert!(parse_size(text).unwrap_err().contains("too large"), "{text}");
        }
    }

    #[test]
    fn names_fit_everywhere() {
        for name in ["vol0", "a", "Daten_2.neu", "größe", "x@y", "%41", "0123456789012345678901234567890"] {
            assert_eq!(valid_name(name), Ok(()), "{name}");
        }
        for (name, why) in [
            ("", "empty"),
            ("01234567890123456789012345678901", "longer"),
            (".", "reserved"),
            ("..", "reserved"),
            ("-v", "option"),
            ("a/b", "`/`"),
            ("host:0", "`:`"),
            ("a b", "blanks"),
            ("a\n", "blanks"),
            ("a\0b", "blanks"),
            ("a\u{202e}b", "cannot be seen"),
        ] {
            let error = valid_name(name).unwrap_err();
            assert!(error.contains(why), "{name:?}: {error}");
            assert!(!error.chars().any(char::is_control));
        }
    }

    #[test]
    fn levels_have_many_spellings() {
        assert_eq!(parse_level("5"), Ok(5));
        assert_eq!(parse_level("raid10"), Ok(10));
        assert_eq!(parse_level("RAID-6"), Ok(6));
        for text in ["", "2", "raid", "raid50", "-1", "linear", "05"] {
            assert!(parse_level(text).unwrap_err().contains("choose 0, 1, 4, 5, 6 or 10"), "{text}");
        }
    }

    #[test]
    fn uuids_are_read_as_mdadm_and_others_write_them() {
        let bytes: [u8; 16] = std::array::from_fn(|i| u8::try_from(i).unwrap() * 0x11);
        assert_eq!(parse_uuid("00112233:44556677:8899aabb:ccddeeff"), Ok(bytes));
        assert_eq!(parse_uuid("00112233-4455-6677-8899-AABBCCDDEEFF"), Ok(bytes));
        for text in ["", "6f1c", "00112233:44556677:8899aabb:ccddeefg", "００"] {
            assert!(parse_uuid(text).is_err(), "{text}");
        }
    }

    #[test]
    fn the_control_socket_depends_on_who_runs_it() {
        let path = |text: &str| Some(PathBuf::from(text));
        assert_eq!(default_control_path(true, None), path("/run/raidd/control.sock"));
        assert_eq!(
            default_control_path(true, Some(OsStr::new("/run/user/0"))),
            path("/run/raidd/control.sock")
        );
        let user = default_control_path(false, Some(OsStr::new("/run/user/7")));
        assert_eq!(user, path("/run/user/7/raidd/control.sock"));
        assert_eq!(default_control_path(false, None), None);
        assert_eq!(default_control_path(false, Some(OsStr::new(""))), None);
    }
}
