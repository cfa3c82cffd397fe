//! Deliberate faults, to prove that the simulator would find them: it is built with `--cfg raidd_mutants`, chooses one at
//! run time, and has to fail. In every other build [`is`] is `false` at compile time, and nothing of this is left.

/// A deliberate fault. Each breaks one law.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mutant {
    /// A write is answered before the failure of a member that missed it is durable (law 1).
    AcknowledgeBeforePersist,
    /// A write that has joined another's is answered before that is done (law 1).
    AnswerJoinedEarly,
    /// A failed member is not recorded in the superblocks at all (law 1).
    ForgetToRecordFailure,
    /// Data is written without its bit in the bitmap (law 2).
    SkipBitmapWrite,
    /// Data is written before its bit is durable (law 2).
    BitAfterData,
    /// Bits are cleared although a member is out that will need them (law 2).
    ClearBitsDegraded,
    /// Data is written before the superblocks say dirty (law 2).
    WriteBeforeDirty,
    /// Data is written without an entry in the partial parity log (law 2).
    SkipPplWrite,
    /// Data is written before its entry in the partial parity log (law 2).
    DataBeforePpl,
    /// The partial parity log is written anew while what it protects is being written (law 2).
    ReusePplEarly,
    /// Clean is written without a flush of the members (law 2).
    CleanWithoutFlush,
    /// Clean is written although somebody writes (law 2).
    CleanWhileWriting,
    /// A flush leaves out the last member (law 3).
    ForgetOneFlush,
    /// A member that was filled is called in sync without a flush (law 3).
    InSyncWithoutFlush,
    /// A checkpoint of a resync or a recovery is written ahead of the flush that it needs (law 3).
    CheckpointAheadOfFlush,
    /// Stripes are written without a lock (law 4).
    WriteWithoutLock,
    /// Degraded reads take no lock (law 4).
    ReadWithoutLock,
    /// A resync takes no lock (law 4).
    ResyncWithoutLock,
    /// A recovery takes no lock (law 4).
    FillWithoutLock,
    /// Read-modify-write in rows that await resync (law 5).
    ModifyUntrusted,
    /// Missing data is worked out in rows that await resync (law 5).
    RecoverUntrusted,
    /// Copies take turns in rows that await resync (law 5).
    AnyCopyUntrusted,
    /// A member that is being filled is read above its offset (law 5).
    ReadAboveOffset,
    /// A faulty member is read (law 5).
    ReadFaulty,
    /// Resync takes its truth from the last copy, reads from the first (law 5).
    ResyncFromOtherCopy,
    /// Rows torn by a failed write are trusted (law 5).
    ForgetSuspects,
    /// Holes are those of whoever has the place, in sync or not (law 5).
    HolesOfAnybody,
    /// A stale member is taken for in sync (law 7).
    TrustStale,
    /// The role table of the freshest is not asked (law 7).
    IgnoreRoles,
    /// Dirty and degraded arrays are started (law 7).
    StartDirtyDegraded,
    /// A member is failed although nobody else has its data (law 8).
    FailLastCopy,
    /// A member's data may be failed away while parity is not trusted (law 8).
    FailWhileUnclean,
    /// Q is computed with a wrong coefficient.
    WrongCoefficient,
    /// New parity forgets old data that is not written.
    ForgetOldData,
    /// A read that came short is taken for whole.
    IgnoreShortRead,
    /// The unaligned end of a write is filled up with zeroes instead of what was there.
    ForgetEdges,
}

impl Mutant {
    /// All of them.
    pub const ALL: &[Mutant] = &[
        Mutant::AcknowledgeBeforePersist,
        Mutant::AnswerJoinedEarly,
        Mutant::ForgetToRecordFailure,
        Mutant::SkipBitmapWrite,
        Mutant::BitAfterData,
        Mutant::ClearBitsDegraded,
        Mutant::WriteBeforeDirty,
        Mutant::SkipPplWrite,
        Mutant::DataBeforePpl,
        Mutant::ReusePplEarly,
        Mutant::CleanWithoutFlush,
        Mutant::CleanWhileWriting,
        Mutant::ForgetOneFlush,
        Mutant::InSyncWithoutFlush,
        Mutant::CheckpointAheadOfFlush,
        Mutant::WriteWithoutLock,
        Mutant::ReadWithoutLock,
        Mutant::ResyncWithoutLock,
        Mutant::FillWithoutLock,
        Mutant::ModifyUntrusted,
        Mutant::RecoverUntrusted,
        Mutant::AnyCopyUntrusted,
        Mutant::ReadAboveOffset,
        Mutant::ReadFaulty,
        Mutant::ResyncFromOtherCopy,
        Mutant::ForgetSuspects,
        Mutant::HolesOfAnybody,
        Mutant::TrustStale,
        Mutant::IgnoreRoles,
        Mutant::StartDirtyDegraded,
        Mutant::FailLastCopy,
        Mutant::FailWhileUnclean,
        Mutant::WrongCoefficient,
        Mutant::ForgetOldData,
        Mutant::IgnoreShortRead,
        Mutant::ForgetEdges,
    ];
}

/// Whether this fault is on.
#[cfg(not(raidd_mutants))]
#[inline(always)]
pub const fn is(_mutant: Mutant) -> bool {
    false
}

#[cfg(raidd_mutants)]
pub use chosen::{choose, is};

#[cfg(raidd_mutants)]
mod chosen {
    use super::Mutant;
    use std::cell::Cell;

    thread_local! {
        static CHOSEN: Cell<Option<Mutant>> = const { Cell::new(None) };
    }

    /// Turns one on, on this thread, and all others off.
    pub fn choose(mutant: Option<Mutant>) {
        CHOSEN.set(mutant);
    }

    /// Whether this fault is on.
    pub fn is(mutant: Mutant) -> bool {
        CHOSEN.get() == Some(mutant)
    }
}
