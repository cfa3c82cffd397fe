//! The RAID levels: md's numbers and names for them.

use std::fmt;

/// A RAID level that raidd serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Level {
    /// Striping, no redundancy.
    Raid0,
    /// Every member has everything.
    Raid1,
    /// Striping with parity on the last member.
    Raid4,
    /// Striping with rotating parity.
    Raid5,
    /// Striping with two parities, P and Q.
    Raid6,
    /// Striping with several copies of each chunk.
    Raid10,
}

impl Level {
    /// All of them, in ascending order.
    pub const ALL: [Level; 6] =
        [Level::Raid0, Level::Raid1, Level::Raid4, Level::Raid5, Level::Raid6, Level::Raid10];

    /// The level of md's number, as in the superblock. None for those that raidd does not serve (linear is -1).
    pub fn from_md(number: i32) -> Option<Level> {
        Level::ALL.into_iter().find(|level| level.md() == number)
    }

    /// md's number, as in the superblock.
    pub const fn md(self) -> i32 {
        match self {
            Level::Raid0 => 0,
            Level::Raid1 => 1,
            Level::Raid4 => 4,
            Level::Raid5 => 5,
            Level::Raid6 => 6,
            Level::Raid10 => 10,
        }
    }

    /// md's name: "raid5".
    pub const fn name(self) -> &'static str {
        match self {
            Level::Raid0 => "raid0",
            Level::Raid1 => "raid1",
            Level::Raid4 => "raid4",
            Level::Raid5 => "raid5",
            Level::Raid6 => "raid6",
            Level::Raid10 => "raid10",
        }
    }

    /// The level that mdadm understands by "raid5", "5", "stripe" or "mirror".
    pub fn parse(text: &str) -> Option<Level> {
        match text {
            "stripe" => Some(Level::Raid0),
            "mirror" => Some(Level::Raid1),
            _ => Level::ALL
                .into_iter()
                .find(|level| text == level.name() || level.name().strip_prefix("raid") == Some(text)),
        }
    }

    /// Parity chunks in each stripe: 0, 1 or 2.
    pub const fn parity_count(self) -> usize {
        match self {
            Level::Raid0 | Level::Raid1 | Level::Raid10 => 0,
            Level::Raid4 | Level::Raid5 => 1,
            Level::Raid6 => 2,
        }
    }

    /// Whether the array can lose a member at all.
    pub const fn is_redundant(self) -> bool {
        !matches!(self, Level::Raid0)
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_names_lead_back() {
        for level in Level::ALL {
            assert_eq!(Level::from_md(level.md()), Some(level));
            assert_eq!(Level::parse(level.name()), Some(level));
            assert_eq!(Level::parse(&level.md().to_string()), Some(level));
            assert_eq!(level.to_string(), format!("raid{}", level.md()));
        }
    }

    #[test]
    fn others_are_unknown() {
        assert_eq!(Level::from_md(-1), None);
        assert_eq!(Level::from_md(-4), None);
        assert_eq!(Level::from_md(2), None);
        for text in ["", "raid", "raid2", "05", "linear", "RAID5"] {
            assert_eq!(Level::parse(text), None, "{text}");
        }
    }
}
