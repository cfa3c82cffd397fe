//! Changing an array into a larger one, one of more copies, or one with or without a bitmap, under its clients.
//!
//! The array is stopped, changed at its assembly, and started again, on the same devices, which stay open and locked. Requests
//! wait meanwhile (`array_home`); connections and the kernel's device stay as they are. A client's idea of the size is that of
//! its handshake; the kernel is told.
//!
//! Invariants:
//! - Nothing is stopped for what cannot be done: the engine is asked before, of the array as it runs, and once more when it has
//!   come to rest; and what the members say has been read.
//! - Nobody's request is refused: the array is stopped when all that were let in have ended.
//! - What fails before anything has been written leaves the array as it was. One that could not be flushed is not started
//!   again (laws 3 and 8): it is listed with the reason, as after a start that failed.

use std::sync::Arc;
use std::time::Duration;

use super::array_home::{ArrayId, give_up, go_away, present, resident, settle_in};
use super::event_log::Teller;
use super::faults::MemberDisk;
use super::operator::{Operator, internal, problem, refusal_problem};
use super::registry::Entry;
use super::start::{Beginning, start_here};
use crate::api::{BitmapChoice, GrowArray, Problem, ProblemCode, Reply, Tuning};
use crate::engine::{AssembleOptions, Change, Memory, Refusal, load};
use crate::io::Clock;
use crate::md::format_uuid;
use crate::reactor::runtime;
use crate::units::Sector;

/// How often a member's metadata is read before it counts as damaged.
const LOOKS: u32 = 4;
/// What is waited in between.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

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
    async fn start(
        &self,
        devices: Vec<(MemberDisk, String)>,
        change: Option<Change>,
        paused: bool,
    ) -> Result<(), Refusal> {
        let options = AssembleOptions { name: Some(self.name.clone()), change, ..Default::default() };
        let beginning = Beginning {
            strict: change.is_some(),
            options,
            tuning: self.tuning.clone(),
            protect: false,
            paused,
            teller: self.teller.clone(),
        };
        start_here(self.id, devices, beginning, &self.memory).await
    }

    fn not_now(&self, why: &str) -> Refusal {
        Refusal::NotNow(format!("{}: {why}", self.name))
    }

    /// Stops the array, and starts it again as what it is to be. Runs where it lives.
    async fn change(&self, change: Change) -> Outcome {
        let Some(array) = present(self.id).await else {
            return Outcome::AsBefore(self.not_now("it is being stopped"));
        };
        measure(&array.devices());
        if let Err(refusal) = array.check_change(change) {
            return Outcome::AsBefore(refusal);
        }
        if let Err(refusal) = look(array.devices(), &self.memory).await {
            return Outcome::AsBefore(refusal);
        }
        drop(array);
        let Some(array) = go_away(self.id) else {
            return Outcome::AsBefore(self.not_now("it is being stopped"));
        };
        let at_rest = array.come_to_rest().await;
        if let Err(refusal) = at_rest.and_then(|()| array.check_change(change)) {
            settle_in(self.id, array);
            return Outcome::AsBefore(refusal);
        }
        let stopped = array.stop().await;
        let (devices, facts) = (array.devices(), array.status());
        drop(array);
        if stopped.is_err() || facts.read_only.is_some() {
            // Whoever started it again would forget that what had been written may be lost.
            give_up(self.id);
            let why = stopped.err().map_or("a member failed".to_owned(), |error| error.to_string());
            return Outcome::Gone(self.not_now(&format!("it could not be flushed and marked clean: {why}")));
        }
        let Err(refusal) = self.start(devices.clone(), Some(change), facts.is_paused).await else {
            return self.record().await;
        };
        match self.start(devices, None, facts.is_paused).await {
            Ok(()) => Outcome::AsBefore(refusal),
            Err(worse) => {
                give_up(self.id);
                tracing::error!(array = self.name, %refusal, "was not changed");
                Outcome::Gone(worse)
            }
        }
    }

    /// Makes sure that the superblocks say it; nothing that clients write comes before that anyhow.
    async fn record(&self) -> Outcome {
        let recorded = match resident(self.id) {
            Some(array) => array.record_what_changed().await,
            None => return Outcome::AsBefore(self.not_now("it is being stopped")),
        };
        match recorded {
            Ok(()) => Outcome::Changed,
            Err(error) => {
                Outcome::AsBefore(self.not_now(&format!("the change could not be recorded: {error}")))
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

/// Whether the metadata of all can be read. A running array never reads it again: what was damaged meanwhile is to show before it
/// is stopped. It may be written just now, so whoever cannot be read is asked again.
async fn look(devices: Vec<(MemberDisk, String)>, memory: &Memory) -> Result<(), Refusal> {
    for (device, label) in devices {
        let mut tries = 0;
        while let Err(refusal) = load(device.clone(), label.clone(), &memory.metadata, &runtime()).await {
            tries += 1;
            if tries == LOOKS {
                return Err(refusal);
            }
            runtime().sleep(LOOK_AGAIN).await;
        }
    }
    Ok(())
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
            self.update_device(&entry).await.map_err(|error| {
                let why = format!(
                    "{name} has been changed, but its block device could not be told: {error}; detach it and attach it again"
                );
                problem(error.code, why)
            })?;
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
        let why = format!(
            "{name} was stopped to be changed, and cannot be started again: {refusal}; mend or leave out that member, then \
             raidctl assemble {name}"
        );
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
