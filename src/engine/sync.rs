//! What an array does on its own, beside its clients: one task that brings it back to what it should be.
//!
//! In this order: record failures that no write has recorded, settle what partial parity logs told, resync (also what
//! failed writes have torn), open those logs, give vacant slots to spares, recovery, scrub. The
//! task runs while there is something to do and is started again (`kick`) by whatever gives it something.
//!
//! Invariants:
//! - One sync action at a time, and one task.
//! - The task ends soon after the array is stopped, becomes read-only, or is paused; what it has begun it ends.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use super::array::Array;
use super::events::{Event, Listeners};
use super::state::{Health, Phase};
use crate::io::{Device, IoError, Runtime};
use crate::layout::Level;

/// Bytes a second of each member, below which foreground requests do not push a sync action; md's
/// `dev.raid.speed_limit_min`.
pub const RECOVERY_BYTES_PER_SEC_MIN: u64 = 1000 << 10;
/// Bytes a second of each member, above which a sync action does not go; md's `dev.raid.speed_limit_max`.
pub const RECOVERY_BYTES_PER_SEC_MAX: u64 = 200_000 << 10;

/// Clients count as active so long after their last request.
const FOREGROUND: Duration = Duration::from_millis(50);
/// A sync action that was given up is tried again after so long.
const RETRY_DELAY: Duration = Duration::from_secs(10);
/// How often a sync action that holds itself back looks whether it still must.
const PACE: Duration = Duration::from_millis(100);

/// What an array is doing with its redundancy; md's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SyncAction {
    /// Making redundancy agree, after creation or an unclean stop.
    Resync,
    /// Filling members.
    Recovery,
    /// Looking for redundancy that disagrees.
    Check,
    /// The same, and mending it.
    Repair,
}

/// How far a sync action has come.
#[derive(Clone, Copy, Debug)]
pub struct Progress {
    /// What is being done.
    pub action: SyncAction,
    /// Sectors of each member (resync of copies: of the array) done, counted from the beginning of the array.
    pub done: u64,
    /// Of so many.
    pub total: u64,
    /// When it began, by the array's clock.
    pub started: Duration,
    /// What was done when it began.
    pub started_at: u64,
}

/// The task and what it is about.
pub(super) struct SyncTask {
    running: Cell<bool>,
    kicked: Cell<bool>,
    kick_is_due: Cell<bool>,
    pub progress: Cell<Option<Progress>>,
    pub paused: Cell<bool>,
    pub bytes_per_sec_min: Cell<u64>,
    pub bytes_per_sec_max: Cell<u64>,
    /// When the next window may begin, had nobody else been there.
    pub last_request: Cell<Duration>,
    /// Scrubs: the one that is wanted, and what they found.
    pub scrub: RefCell<super::scrub::ScrubState>,
    pub listeners: Listeners,
}

impl Default for SyncTask {
    fn default() -> Self {
        SyncTask {
            running: Cell::new(false),
            kicked: Cell::new(false),
            kick_is_due: Cell::new(false),
            progress: Cell::new(None),
            paused: Cell::new(false),
            bytes_per_sec_min: Cell::new(RECOVERY_BYTES_PER_SEC_MIN),
            bytes_per_sec_max: Cell::new(RECOVERY_BYTES_PER_SEC_MAX),
            last_request: Cell::new(Duration::ZERO),
            scrub: RefCell::default(),
            listeners: Listeners::default(),
        }
    }
}

impl<D: Device + 'static, R: Runtime> Array<D, R> {
    /// Starts what an array does on its own, if it may be written.
    pub fn start(&self) {
        self.logs.iter().for_each(|logs| logs.is_started.set(true));
        self.kick();
    }

    /// There may be something to do.
    pub(super) fn kick(&self) {
        self.sync.kicked.set(true);
        if self.sync.running.replace(true) {
            return;
        }
        let weak = self.weak.clone();
        self.runtime.spawn(async move {
            let Some(array): Option<Rc<Self>> = weak.upgrade() else { return };
            while array.sync.kicked.replace(false) && array.may_sync() {
                if let Err(error) = array.run_sync_actions().await {
                    tracing::error!(array = array.name(), %error, "sync action given up for now");
                    array.kick_later();
                }
                array.sync.progress.set(None);
            }
            array.sync.running.set(false);
        });
    }

    /// What stood in the way may have gone after a while.
    pub(super) fn kick_later(&self) {
        if self.sync.kick_is_due.replace(true) {
            return;
        }
        let (weak, runtime) = (self.weak.clone(), self.runtime.clone());
        self.runtime.spawn(async move {
            runtime.sleep(RETRY_DELAY).await;
            let Some(array): Option<Rc<Self>> = weak.upgrade() else { return };
            array.sync.kick_is_due.set(false);
            if array.may_sync() {
                array.kick();
            }
        });
    }

    /// Waits for the task to notice that the array is being stopped.
    pub(super) async fn end_sync_task(&self) {
        while self.sync.running.get() {
            self.runtime.sleep(Duration::from_millis(1)).await;
        }
    }

    /// Whether the array does anything on its own.
    pub(super) fn may_sync(&self) -> bool {
        matches!(self.state.borrow().phase, Phase::Clean | Phase::Active)
    }

    /// Whether sync actions are to go on.
    pub(super) fn goes_on(&self) -> bool {
        self.may_sync() && !self.sync.paused.get()
    }

    async fn run_sync_actions(&self) -> Result<(), IoError> {
        loop {
            if self.may_sync() {
                self.persist().await?;
            }
            if !self.goes_on() {
                return Ok(());
            }
            if self.replay_is_due() {
                self.settle_replay().await?;
                continue;
            }
            if self.state.borrow().resync.is_some() {
                self.run_resync().await?;
                continue;
            }
            self.resync_suspects().await?;
            self.open_logs().await?;
            self.record_agreement().await?;
            self.seat_spares().await?;
            if !self.filling().is_empty() {
                self.recover().await?;
                continue;
            }
            if self.sync.scrub.borrow().wanted().is_some() && self.health() != Health::Failed {
                self.scrub_on().await?;
                continue;
            }
            return Ok(());
        }
    }

    /// Whether spares are of any use to this level.
    pub(super) fn keeps_redundancy(&self) -> bool {
        self.level() != Level::Raid0
    }

    pub(super) fn begin_progress(&self, action: SyncAction, done: u64, total: u64) {
        let started = self.runtime.now();
        // A replacement that has been filled, but not yet taken over when the array was stopped, is right to the end of all sectors.
        let done = done.min(total);
        self.sync.progress.set(Some(Progress { action, done, total, started, started_at: done }));
        self.tell(Event::SyncStarted(action));
    }

    pub(super) fn note_progress(&self, done: u64) {
        if let Some(progress) = self.sync.progress.get() {
            let done = done.min(progress.total);
            self.sync.progress.set(Some(Progress { done, ..progress }));
            self.tell_progress(progress.action, progress.done, done, progress.total);
        }
    }

    /// A sync action is complete.
    pub(super) fn end_progress(&self, action: SyncAction) {
        let mismatched_sectors = self.mismatched_sectors();
        self.tell(Event::SyncFinished { action, mismatched_sectors });
    }

    /// Holds a sync action back after so many bytes of each member: to its ceiling, and while clients are active to its
    /// floor. `since` is when the work on those bytes began.
    pub(super) async fn pace(&self, bytes: u64, since: Duration) {
        loop {
            let now = self.runtime.now();
            let foreground = now < self.sync.last_request.get() + FOREGROUND
                && self.sync.last_request.get() > Duration::ZERO;
            let rate = if foreground {
                self.sync.bytes_per_sec_min.get()
            } else {
                self.sync.bytes_per_sec_max.get()
            };
            let due = since + Duration::from_secs_f64(bytes as f64 / rate.max(1) as f64);
            if due <= now || !self.goes_on() {
                return;
            }
            self.runtime.sleep((due - now).min(PACE)).await;
        }
    }

    /// Sets how fast sync actions may go, in bytes a second of each member.
    pub fn set_recovery_speed(&self, min: Option<u64>, max: Option<u64>) {
        self.sync.bytes_per_sec_min.set(min.unwrap_or(self.sync.bytes_per_sec_min.get()));
        self.sync.bytes_per_sec_max.set(max.unwrap_or(self.sync.bytes_per_sec_max.get()));
    }

    /// How long a member has for an operation before it counts as failed.
    pub fn set_member_timeout(&self, timeout: Duration) {
        self.deadlines.set_timeout(timeout);
    }

    /// Holds sync actions where they are; `resume` lets them go on.
    pub fn pause(&self) {
        self.sync.paused.set(true);
    }

    /// Lets sync actions go on.
    pub fn resume(&self) {
        self.sync.paused.set(false);
        self.kick();
    }
}
