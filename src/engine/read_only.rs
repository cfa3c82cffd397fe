//! The operator makes an array read-only, and lets it be written again.
//!
//! Invariants:
//! - What clients were told is written is durable, on all members, and the superblocks say clean (or what awaits resync)
//!   before anybody is told that the array is read-only.
//! - From then on nothing is written to any member, and nobody's state changes, until `set_read_write` or a stop.
//! - Only the operator's own word is taken back. An array that is read-only because its last copy has failed, or because
//!   it was assembled so, stays that.
//!
//! A crash on the way leaves superblocks that say dirty, or clean after the flush and with nobody writing: each is true.

use std::time::Duration;

use super::array::Array;
use super::error::Refusal;
use super::state::Phase;
use crate::io::{Device, IoError, Runtime};
use crate::layout::Level;

/// How often it is looked whether the last write has ended.
const DRAIN_CHECK: Duration = Duration::from_millis(1);

impl<D: Device + 'static, R: Runtime> Array<D, R> {
    /// Operator's `readonly`: writes under way end, new ones are refused, sync actions stop, and the array is flushed and
    /// marked clean. Nothing is done where it takes no writes already.
    ///
    /// # Errors
    /// The array could not be flushed or marked clean. It goes on as before, or is read-only for that.
    pub async fn set_read_only(&self) -> Result<(), Refusal> {
        // No lock: a change of members that waits for one would be waited for here.
        while self.is_draining() {
            self.runtime.sleep(DRAIN_CHECK).await;
        }
        if self.state.borrow().phase == Phase::ReadOnly {
            return Ok(());
        }
        let failed =
            |error: &IoError| Refusal::NotNow(format!("{}: not made read-only: {error}", self.name()));
        // Counted, so that a stop waits for it.
        let _busy = self.enter(false).map_err(|error| failed(&error))?;
        self.state.borrow_mut().phase = Phase::ReadOnly;
        match self.drain_and_mark_clean().await {
            Ok(()) => {
                tracing::info!(array = self.name(), "read-only, as the operator said");
                Ok(())
            }
            Err(error) => {
                self.take_writes_again();
                Err(failed(&error))
            }
        }
    }

    /// Operator's `readwrite`: takes `readonly` back.
    ///
    /// # Errors
    /// It is read-only for another reason, or a flush has failed since.
    pub fn set_read_write(&self) -> Result<(), Refusal> {
        let name = self.name();
        {
            let state = self.state.borrow();
            if matches!(state.phase, Phase::Clean | Phase::Active) {
                return Ok(());
            }
            if !state.is_protected || state.phase == Phase::Stopped {
                let why = state.read_only.as_deref().unwrap_or("it is just being stopped or made so");
                return Err(Refusal::NotNow(format!(
                    "{name} is not read-only by the operator's word: {why}; stop it, mend that, and assemble it again"
                )));
            }
            if state.flush_lost {
                return Err(Refusal::NotNow(format!(
                    "{name}: a flush has failed while it was read-only, so a member may have lost what it held; stop it and \
                     assemble it again, which looks at all of them"
                )));
            }
        }
        {
            let mut state = self.state.borrow_mut();
            (state.is_protected, state.read_only) = (false, None);
        }
        self.take_writes_again();
        tracing::info!(array = name, "read-write again");
        Ok(())
    }

    /// Nothing is let in any more, but what was has not ended.
    fn is_draining(&self) -> bool {
        let state = self.state.borrow();
        state.phase == Phase::ReadOnly && state.read_only.is_none()
    }

    /// Writes may begin again, as on an idle array: the first one has the superblocks say dirty, whatever they say now.
    fn take_writes_again(&self) {
        {
            let mut state = self.state.borrow_mut();
            if state.phase != Phase::ReadOnly || state.read_only.is_some() {
                return;
            }
            assert!(state.in_flight == 0, "an array that takes no writes has some under way");
            state.phase = Phase::Clean;
        }
        self.watch_idle_bits();
        self.kick();
    }

    /// Nothing new is let in any more: waits for what has been, then does what a stop does.
    async fn drain_and_mark_clean(&self) -> Result<(), IoError> {
        while self.state.borrow().writing > 0 {
            self.runtime.sleep(DRAIN_CHECK).await;
        }
        self.end_sync_task().await;
        self.flush_members().await?;
        let _lane = self.lane.lock(0..1).await;
        let mut is_due = self.take_stock() && self.level() != Level::Raid0;
        // A read may find a member absent meanwhile, which is to be on record, too.
        while std::mem::take(&mut is_due) || self.superblocks_are_behind() {
            self.write_generation(false).await?;
        }
        let mut state = self.state.borrow_mut();
        if state.phase == Phase::ReadOnly && state.read_only.is_none() {
            state.read_only = Some("the operator said so".into());
            state.is_protected = true;
        }
        Ok(())
    }

    /// Whether they say less than is the case of an array that nobody writes.
    fn superblocks_are_behind(&self) -> bool {
        if self.level() == Level::Raid0 {
            return false;
        }
        let is_unrecorded = {
            let state = self.state.borrow();
            state.written < state.wanted
        };
        is_unrecorded || !self.says_all()
    }
}
