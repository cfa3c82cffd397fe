//! The names of layouts, as mdadm takes and prints them.
//!
//! The number is what the superblock holds; what it means is in [`parity`](super::parity), [`raid0`](super::raid0) and
//! [`raid10`](super::raid10). A name says nothing about whether an array of some shape can have the layout:
//! [`Geometry::new`](super::Geometry::new) does.

use super::{Level, raid0, raid10};

/// Both of RAID5 and of RAID6. The first name of a number is the one that is printed.
const PARITY: [(&str, u32); 11] = [
    ("left-asymmetric", 0),
    ("right-asymmetric", 1),
    ("left-symmetric", 2),
    ("right-symmetric", 3),
    ("parity-first", 4),
    ("parity-last", 5),
    ("default", 2),
    ("la", 0),
    ("ra", 1),
    ("ls", 2),
    ("rs", 3),
];

/// DDF's names for what RAID5 has anyway.
const RAID5: [(&str, u32); 3] = [("ddf-zero-restart", 1), ("ddf-N-restart", 0), ("ddf-N-continue", 2)];

const RAID6: [(&str, u32); 8] = [
    ("ddf-zero-restart", 8),
    ("ddf-N-restart", 9),
    ("ddf-N-continue", 10),
    ("left-asymmetric-6", 16),
    ("right-asymmetric-6", 17),
    ("left-symmetric-6", 18),
    ("right-symmetric-6", 19),
    ("parity-first-6", 20),
];

const RAID0: [(&str, u32); 2] = [("original", 1), ("alternate", 2)];

/// All names of a level's layouts; none for RAID10, whose names are made of numbers.
fn names(level: Level) -> impl Iterator<Item = (&'static str, u32)> {
    let (common, own): (&[_], &[_]) = match level {
        Level::Raid0 => (&RAID0, &[]),
        Level::Raid5 => (&PARITY, &RAID5),
        Level::Raid6 => (&PARITY, &RAID6),
        Level::Raid1 | Level::Raid4 | Level::Raid10 => (&[], &[]),
    };
    common.iter().chain(own).copied()
}

/// What mdadm prints for a layout: "left-symmetric", "near=2", "original". None if the level has no layouts (RAID1,
/// RAID4) or not this one. RAID10's far sets are not in the name.
pub fn layout_name(level: Level, layout: u32) -> Option<String> {
    if level == Level::Raid10 {
        let (near, far) = raid10::copy_counts(layout);
        if near == 0 || far == 0 || near * far == 1 {
            return None;
        }
        let mut parts = Vec::new();
        if near != 1 {
            parts.push(format!("near={near}"));
        }
        if far != 1 {
            let kind = if raid10::is_offset(layout) { "offset" } else { "far" };
            parts.push(format!("{kind}={far}"));
        }
        return Some(parts.join(", "));
    }
    names(level).find(|(_, number)| *number == layout).map(|(name, _)| name.to_owned())
}

/// The layout of a name that mdadm takes ("left-symmetric", "ls", "n2", "original") or that [`layout_name`] gives. None
/// if the level has none of this name.
pub fn parse_layout(level: Level, text: &str) -> Option<u32> {
    if level == Level::Raid10 {
        return parse_raid10(text);
    }
    names(level).find(|(name, _)| *name == text).map(|(_, number)| number)
}

/// The layout that mdadm creates an array with unless told otherwise. (Whether RAID0's has to be recorded depends on its
/// members.)
pub fn default_layout(level: Level) -> u32 {
    match level {
        Level::Raid5 | Level::Raid6 => 2,
        Level::Raid10 => raid10::layout(2, 1, false),
        Level::Raid0 => raid0::ORIGINAL,
        Level::Raid1 | Level::Raid4 => 0,
    }
}

/// "n2", "f2" and "o2", or what is printed: "near=2", "far=2", "offset=2", "near=2, far=2".
fn parse_raid10(text: &str) -> Option<u32> {
    let (mut near, mut far, mut offset) = (None, None, false);
    for part in text.split(", ") {
        let digits = part.find(|c: char| c.is_ascii_digit())?;
        let (kind, count) = part.split_at(digits);
        let count: u8 = count.parse().ok().filter(|count| *count > 0)?;
        let place = match kind {
            "n" | "near=" => &mut near,
            "f" | "far=" => &mut far,
            "o" | "offset=" => {
                offset = true;
                &mut far
            }
            _ => return None,
        };
        if place.replace(count).is_some() {
            return None;
        }
    }
    Some(raid10::layout(near.unwrap_or(1), far.unwrap_or(1), offset))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn printed_names_lead_back() {
        for level in Level::ALL {
            for layout in 0..0x2_0000 {
                if let Some(name) = layout_name(level, layout) {
                    let offset_of_one = layout & 0x1_ff00 == 0x1_0100; // nothing is offset if there is one far copy
                    let layout = if offset_of_one { layout & 0xffff } else { layout };
                    assert_eq!(parse_layout(level, &name), Some(layout), "{level} {name}");
                }
            }
        }
    }

    #[test]
    fn names_of_mdadm() {
        let cases = [
            (Level::Raid5, "left-symmetric", 2),
            (Level::Raid5, "ls", 2),
            (Level::Raid5, "la", 0),
            (Level::Raid5, "ra", 1),
            (Level::Raid5, "rs", 3),
            (Level::Raid5, "parity-last", 5),
            (Level::Raid5, "ddf-N-restart", 0),
            (Level::Raid6, "default", 2),
            (Level::Raid6, "parity-first", 4),
            (Level::Raid6, "ddf-zero-restart", 8),
            (Level::Raid6, "ddf-N-restart", 9),
            (Level::Raid6, "ddf-N-continue", 10),
            (Level::Raid6, "left-symmetric-6", 18),
            (Level::Raid6, "parity-first-6", 20),
            (Level::Raid10, "n2", 0x102),
            (Level::Raid10, "f2", 0x201),
            (Level::Raid10, "o3", 0x1_0301),
            (Level::Raid10, "near=2, far=3", 0x302),
            (Level::Raid0, "original", 1),
            (Level::Raid0, "alternate", 2),
        ];
        for (level, name, layout) in cases {
            assert_eq!(parse_layout(level, name), Some(layout), "{level} {name}");
        }
    }

    #[test]
    fn printed_as_mdadm_does() {
        let cases = [
            (Level::Raid5, 2, Some("left-symmetric")),
            (Level::Raid5, 8, None),
            (Level::Raid6, 8, Some("ddf-zero-restart")),
            (Level::Raid6, 7, None),
            (Level::Raid10, 0x102, Some("near=2")),
            (Level::Raid10, 0x201, Some("far=2")),
            (Level::Raid10, 0x1_0201, Some("offset=2")),
            (Level::Raid10, 0x1_0202, Some("near=2, offset=2")),
            (Level::Raid10, 0x101, None),
            (Level::Raid10, 0x2, None),
            (Level::Raid0, 1, Some("original")),
            (Level::Raid0, 0, None),
            (Level::Raid1, 0, None),
            (Level::Raid4, 0, None),
        ];
        for (level, layout, name) in cases {
            assert_eq!(layout_name(level, layout).as_deref(), name, "{level} {layout:#x}");
        }
    }

    #[test]
    fn nonsense_is_refused() {
        for text in ["", "n", "2", "n0", "n256", "x2", "n2n2", "n2, n2", "f2, o2", "near", "n-2", "n+2", ", "]
        {
            assert_eq!(parse_layout(Level::Raid10, text), None, "{text}");
        }
        for level in [Level::Raid0, Level::Raid1, Level::Raid4, Level::Raid5, Level::Raid6] {
            assert_eq!(parse_layout(level, "n2"), None);
            assert_eq!(parse_layout(level, ""), None);
        }
        assert_eq!(parse_layout(Level::Raid5, "left-symmetric-6"), None);
        assert_eq!(parse_layout(Level::Raid4, "left-symmetric"), None);
    }

    #[test]
    fn defaults() {
        assert_eq!(Level::ALL.map(default_layout), [1, 0, 0, 2, 2, 0x102]);
    }
}
