//! What happens to an array, told to whoever listens: members failing and coming into service, sync actions beginning,
//! getting on and ending.
//!
//! Invariants:
//! - The listener is called after the fact, on the array's own thread, and must not wait. Without one nothing is kept.
//! - The engine never asks whether anybody heard it: an event is news, not a record. What must be known after a crash is
//!   in the superblocks.

use std::cell::RefCell;

use super::array::Array;
use super::member::{Member, MemberState};
use super::sync::SyncAction;
use crate::io::{Device, Runtime};

/// Progress is told whenever it has come so many percent further; mdadm's `--increment`.
const PERCENT_STEP: u64 = 20;

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A member in sync has failed.
    Fail {
        /// Its path.
        member: String,
    },
    /// A spare, or a member that was being filled, has failed.
    FailSpare {
        /// Its path.
        member: String,
    },
    /// A member has been filled and is in sync.
    SpareActive {
        /// Its path.
        member: String,
    },
    /// A sync action has begun.
    SyncStarted(SyncAction),
    /// It has come so far, in percent: a multiple of 20.
    SyncProgress(SyncAction, u64),
    /// It is complete.
    SyncFinished {
        /// What is.
        action: SyncAction,
        /// Sectors that disagreed, as far as that was looked for.
        mismatched_sectors: u64,
    },
}

type Listener = Box<dyn Fn(Event)>;

/// Who is told.
#[derive(Default)]
pub(super) struct Listeners(RefCell<Option<Listener>>);

impl<D: Device + 'static, R: Runtime> Array<D, R> {
    /// Tells `listener` of everything from now on, instead of whoever was told before.
    pub fn listen(&self, listener: impl Fn(Event) + 'static) {
        *self.sync.listeners.0.borrow_mut() = Some(Box::new(listener));
    }

    pub(super) fn tell(&self, event: Event) {
        self.note_standing();
        if let Some(listener) = &*self.sync.listeners.0.borrow() {
            listener(event);
        }
    }

    /// A member is faulty now and was `before`.
    pub(super) fn tell_failure(&self, member: &Member<D>, before: MemberState) {
        let member = member.label.clone();
        self.tell(match before {
            MemberState::InSync => Event::Fail { member },
            _ => Event::FailSpare { member },
        });
    }

    /// A sync action has come from `before` to `done`, of `total`.
    pub(super) fn tell_progress(&self, action: SyncAction, before: u64, done: u64, total: u64) {
        let percent = |part: u64| (u128::from(part) * 100 / u128::from(total.max(1))) as u64;
        let step = percent(done) / PERCENT_STEP;
        if step > percent(before) / PERCENT_STEP && step * PERCENT_STEP < 100 {
            self.tell(Event::SyncProgress(action, step * PERCENT_STEP));
        }
    }
}
