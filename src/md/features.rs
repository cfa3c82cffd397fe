//! The superblock's feature map: what a reader must know about, and so may refuse.

use std::fmt;

/// The bits of a superblock's `feature_map`.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Features(pub u32);

/// Each bit with the name that tools print for it.
const NAMES: [(Features, &str); 13] = [
    (Features::BITMAP, "bitmap_offset"),
    (Features::RECOVERY_OFFSET, "recovery_offset"),
    (Features::RESHAPE, "reshape_active"),
    (Features::BAD_BLOCKS, "bad_blocks"),
    (Features::REPLACEMENT, "replacement"),
    (Features::RESHAPE_BACKWARDS, "reshape_backwards"),
    (Features::NEW_OFFSET, "new_offset"),
    (Features::RECOVERY_BITMAP, "recovery_bitmap"),
    (Features::CLUSTERED, "clustered"),
    (Features::JOURNAL, "journal"),
    (Features::PPL, "ppl"),
    (Features::MULTIPLE_PPLS, "multiple_ppls"),
    (Features::RAID0_LAYOUT, "raid0_layout"),
];

impl Features {
    /// No feature.
    pub const NONE: Features = Features(0);
    /// There is an internal write-intent bitmap at `bitmap_offset`.
    pub const BITMAP: Features = Features(1);
    /// The member is being filled: only what lies below `recovery_offset` is right.
    pub const RECOVERY_OFFSET: Features = Features(2);
    /// A reshape was under way.
    pub const RESHAPE: Features = Features(4);
    /// The bad-block log is not empty.
    pub const BAD_BLOCKS: Features = Features(8);
    /// The member is to replace an active one of the same slot.
    pub const REPLACEMENT: Features = Features(16);
    /// The reshape runs from the end to the start.
    pub const RESHAPE_BACKWARDS: Features = Features(32);
    /// The reshape moves the data offset.
    pub const NEW_OFFSET: Features = Features(64);
    /// Recovery of this member is guided by the bitmap: a re-add.
    pub const RECOVERY_BITMAP: Features = Features(128);
    /// The bitmap is that of a clustered array.
    pub const CLUSTERED: Features = Features(256);
    /// The array has a journal device.
    pub const JOURNAL: Features = Features(512);
    /// The array has a partial parity log.
    pub const PPL: Features = Features(1024);
    /// The partial parity log holds several headers.
    pub const MULTIPLE_PPLS: Features = Features(2048);
    /// `layout` of a RAID0 with several zones is meant.
    pub const RAID0_LAYOUT: Features = Features(4096);

    /// What a superblock says of its own member only.
    pub const OF_ONE_MEMBER: Features = Features(2 | 8 | 16 | 128);

    /// Whether every bit of `other` is set.
    pub const fn contains(self, other: Features) -> bool {
        self.0 & other.0 == other.0
    }

    /// Whether any bit of `other` is set.
    pub const fn intersects(self, other: Features) -> bool {
        self.0 & other.0 != 0
    }

    /// Sets the bits of `other`.
    pub fn insert(&mut self, other: Features) {
        self.0 |= other.0;
    }

    /// Clears the bits of `other`.
    pub fn remove(&mut self, other: Features) {
        self.0 &= !other.0;
    }

    /// The bits that have no name here: from the future, or damage.
    pub fn unknown(self) -> Features {
        Features(NAMES.iter().fold(self.0, |left, (known, _)| left & !known.0))
    }

    /// The names of the bits that are set and known, lowest bit first.
    pub fn names(self) -> Vec<&'static str> {
        NAMES.iter().filter(|(bit, _)| self.contains(*bit)).map(|(_, name)| *name).collect()
    }
}

impl std::ops::BitOr for Features {
    type Output = Features;
    fn bitor(self, other: Features) -> Features {
        Features(self.0 | other.0)
    }
}

impl fmt::Debug for Features {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Features({:#x} {})", self.0, self.names().join(" "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_come_and_go() {
        let mut features = Features::BITMAP | Features::PPL;
        assert!(features.contains(Features::PPL) && !features.contains(Features::PPL | Features::JOURNAL));
        assert!(features.intersects(Features::PPL | Features::JOURNAL));
        features.insert(Features::RAID0_LAYOUT);
        features.remove(Features::PPL);
        assert_eq!(features.names(), ["bitmap_offset", "raid0_layout"]);
        assert_eq!(features.unknown(), Features::NONE);
        assert_eq!(Features(0x8000_2001).unknown(), Features(0x8000_2000));
    }
}
