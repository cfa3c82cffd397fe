//! Meta contexts: the questions about ranges that a client may ask with BLOCK_STATUS, by their names on the wire.

use crate::io::ExtentKind;

/// The protocol's own: the flags are HOLE (1) and ZERO (2).
const ALLOCATION: &str = "base:allocation";
/// raidd's own, described in docs/nbd-support.md.
const HEALTH: &str = "raidd:health";
/// raidd's own, described in docs/nbd-support.md.
const DIRTY: &str = "raidd:dirty";

/// The name of a question.
pub(super) fn name(kind: ExtentKind) -> &'static str {
    match kind {
        ExtentKind::Allocation => ALLOCATION,
        ExtentKind::Health => HEALTH,
        ExtentKind::Dirty => DIRTY,
    }
}

/// The number that stands for it on any connection that has chosen it.
pub(super) fn id(kind: ExtentKind) -> u32 {
    match kind {
        ExtentKind::Allocation => 1,
        ExtentKind::Health => 2,
        ExtentKind::Dirty => 3,
    }
}

/// A set of questions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Contexts(u8);

impl Contexts {
    pub(super) const NONE: Contexts = Contexts(0);

    pub(super) fn of(kinds: &[ExtentKind]) -> Contexts {
        kinds.iter().fold(Contexts::NONE, |set, &kind| set.with(kind))
    }

    pub(super) fn with(self, kind: ExtentKind) -> Contexts {
        Contexts(self.0 | 1 << id(kind))
    }

    pub(super) fn has(self, kind: ExtentKind) -> bool {
        self.0 & 1 << id(kind) != 0
    }

    pub(super) fn is_empty(self) -> bool {
        self.0 == 0
    }

    pub(super) fn len(self) -> usize {
        self.iter().count()
    }

    pub(super) fn iter(self) -> impl Iterator<Item = ExtentKind> {
        ExtentKind::ALL.into_iter().filter(move |&kind| self.has(kind))
    }

    /// Those of them that have these numbers; `None` if one is not among them or comes twice.
    pub(super) fn with_ids(self, ids: impl Iterator<Item = u32>) -> Option<Contexts> {
        let mut chosen = Contexts::NONE;
        for wanted in ids {
            let kind = self.iter().find(|&kind| id(kind) == wanted && !chosen.has(kind))?;
            chosen = chosen.with(kind);
        }
        Some(chosen)
    }

    /// Those of them that a query names, which may be anything. A namespace ("base:") names all in it where
    /// `wildcards` count.
    pub(super) fn matching(self, query: &[u8], wildcards: bool) -> Contexts {
        let names = |kind: &ExtentKind| {
            let name = name(*kind).as_bytes();
            name == query || wildcards && query.ends_with(b":") && name.starts_with(query)
        };
        Contexts::of(&self.iter().filter(names).collect::<Vec<_>>())
    }

    pub(super) fn union(self, other: Contexts) -> Contexts {
        Contexts(self.0 | other.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_name_contexts() {
        let all = Contexts::of(&ExtentKind::ALL);
        let only = Contexts::default().with(ExtentKind::Allocation);
        assert_eq!(all.len(), 3);
        assert_eq!(all.matching(b"base:allocation", false), only);
        assert_eq!(all.matching(b"base:", true), only);
        assert_eq!(all.matching(b"raidd:", true).len(), 2);
        for nothing in
            [&b"base:"[..], b"raidd:", b"", b"base", b"base:alloc", b"other:allocation", b"\xff\xfe"]
        {
            assert!(all.matching(nothing, false).is_empty(), "{nothing:?}");
        }
        for nothing in [&b":"[..], b"", b"base", b"other:", b"raidd:h"] {
            assert!(all.matching(nothing, true).is_empty(), "{nothing:?}");
        }
        assert!(only.matching(b"raidd:health", false).is_empty());
    }

    #[test]
    fn ids_name_contexts_once() {
        let some = Contexts::of(&[ExtentKind::Allocation, ExtentKind::Dirty]);
        assert_eq!(some.with_ids([3].into_iter()), Some(Contexts::default().with(ExtentKind::Dirty)));
        assert_eq!(some.with_ids([1, 3].into_iter()), Some(some));
        assert_eq!(some.with_ids([].into_iter()), Some(Contexts::default()));
        for wrong in [vec![2], vec![3, 3], vec![1, 0], vec![u32::MAX]] {
            assert_eq!(some.with_ids(wrong.into_iter()), None);
        }
    }
}
