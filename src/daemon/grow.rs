//! Changing an array into a larger one, one of more copies, or one with or without a bitmap, under its clients.
//!
//! The array is stopped, changed at its assembly, and started again, on the same devices, which stay open and locked. Requests
//! wait meanwhile (`array_home`); connections and the kernel's device stay as they are. A client's idea of the size is that of
//! its handshake; the kernel is told.
//!
//! Invariants:
//! - Nothing is stopped for what cannot be done: the engine is asked before, of the array as it runs.
//! - Whatever fails on the way, the array is started again as its superblocks say it is. Where not even that can be done it
//!   does not run any more, and is listed with the reason, as after a start that failed.

use std::sync::Arc;

use super::array_home::{ArrayId, give_up, go_away, present};
use super::event_log::Teller;
use super::faults::MemberDisk;
use super::operator::{Operator, internal, problem, refusal_problem};
use super::registry::Entry;
use super::start::{Beginning, start_here};
use crate::api::{BitmapChoice, GrowArray, Problem, ProblemCode, Reply, Tuning};
use crate::engine::{AssembleOptions, Change, Memory, Refusal};
use crate::md::format_uuid;
use crate::units::Sector;

/// What became of an array that was to be changed.
enum Outcome {
    Changed,
    /// It runs as before.
    AsBefore(Refusal),
    /// It does not run any more.
    Gone(Refusal),
}

/// What is needed to start an array again.
#[derive(Clone)]
struct Restart {
    id: ArrayId,
    name: String,
    tuning: Tuning,
    teller: Teller,
    memory: Memory,
}

impl Restart {
    async fn start(&self, devices: Vec<(MemberDisk, String)>, change: Option<Change>) -> Result<(), Refusal> {
        let options = AssembleOptions { name: Some(self.name.clone()), change, ..Default::default() };
        let beginning = Beginning {
            strict: change.is_some(),
            options,
            tuning: self.tuning.clone(),
            protect: false,
            teller: self.teller.clone(),
        };
        start_here(self.id, devices, beginning, &self.memory).await
    }

    /// Stops the array, and starts it again as what it is to be. Runs where it lives.
    async fn change(&self, change: Change) -> Outcome {
        let Some(array) = present(self.id).await else {
            return Outcome::AsBefore(Refusal::NotNow("the array is being stopped".into()));
        };
        measure(&array.devices());
        if let Err(refusal) = array.check_change(change) {
            return Outcome::AsBefore(refusal);
        }
        drop(array);
        let Some(array) = go_away(self.id) else {
            return Outcome::AsBefore(Refusal::NotNow("the array is being stopped".into()));
        };
        let devices = array.devices();
        let stopped = array.stop().await;
        drop(array);
        let changed = match stopped {
            Ok(()) => self.start(devices.clone(), Some(change)).await,
            Err(error) => {
                let why = format!("{}: it could not be flushed and marked clean: {error}", self.name);
                Err(Refusal::NotNow(why))
            }
        };
        let Err(refusal) = changed else { return Outcome::Changed };
        match self.start(devices, None).await {
            Ok(()) => Outcome::AsBefore(refusal),
            Err(worse) => {
                give_up(self.id);
                tracing::error!(array = self.name, %refusal, "was not changed");
                Outcome::Gone(worse)
            }
        }
    }
}

/// Finds out how large the devices have become.
fn measure(devices: &[(MemberDisk, String)]) {
    for (device, label) in devices {
        if let Err(error) = device.measure() {
            tracing::warn!(member = label, %error, "its size is not known; taken for what it was");
        }
    }
}

impl Operator {
    /// Operator's `grow`.
    pub(super) async fn grow(&self, name: &str, how: &GrowArray) -> Result<Reply, Problem> {
        how.check().map_err(|why| problem(ProblemCode::InvalidRequest, why))?;
        let _turn = self.one_at_a_time.lock().await;
        let entry = self.entry(name)?;
        let change = change_of(how)?;
        self.note_scrub(&entry).await;
        let restart = Restart {
            id: entry.id,
            name: entry.name.clone(),
            tuning: self.saved(&entry.uuid).map(|saved| saved.tuning).unwrap_or_default(),
            teller: self.events.teller(),
            memory: self.memory.clone(),
        };
        let done = entry.home.call(move || async move { restart.change(change).await });
        match done.await.map_err(|_| internal("a reactor has ended"))? {
            Outcome::Changed => {}
            Outcome::AsBefore(refusal) => return Err(refusal_problem(&refusal)),
            Outcome::Gone(refusal) => return Err(self.lost(&entry, &refusal)),
        }
        tracing::info!(array = name, ?change, "changed");
        if matches!(change, Change::MemberSize(_)) {
            self.update_device(&entry).await;
        }
        let status = self.status_of(&entry).await?;
        let last = status.clone();
        self.remember(|state| state.update(&format_uuid(&entry.uuid), |saved| saved.last = last));
        Ok(Reply::Array(Box::new(status)))
    }

    /// An array that could not be started again after it was stopped to be changed: whoever is connected to it is told so with
    /// every request.
    fn lost(&self, entry: &Arc<Entry>, refusal: &Refusal) -> Problem {
        let name = &entry.name;
        self.service.registry.remove(name);
        self.waiting().insert(format_uuid(&entry.uuid), refusal.to_string());
        self.events.teller().tell(name, "DeviceDisappeared", None);
        tracing::error!(array = name, %refusal, "cannot be started again");
        let why = format!("{name} was stopped to be changed, and cannot be started again: {refusal}");
        problem(ProblemCode::MemberIo, why)
    }
}

fn change_of(how: &GrowArray) -> Result<Change, Problem> {
    match (how.max, how.size_bytes, how.raid_devices, how.bitmap) {
        (true, None, None, None) => Ok(Change::MemberSize(None)),
        (false, Some(bytes), None, None) => Ok(Change::MemberSize(Some(Sector::floor(bytes)))),
        (false, None, Some(slots), None) => Ok(Change::Slots(slots)),
        (false, None, None, Some(bitmap)) => Ok(Change::Bitmap(bitmap == BitmapChoice::Internal)),
        _ => Err(internal("a request that was checked names not just one change")),
    }
}
