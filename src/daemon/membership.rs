//! What the operator does to a running array: its members (fail, remove, add, re-add, replace), its sync action, its
//! settings.
//!
//! Invariants:
//! - A device is opened exclusively before it is looked at, and by the descriptor that will do its I/O; one that holds
//!   something else than a member of this very array is refused, and nothing is written to it.
//! - After every change the paths that the next start will look at are on record.
//! - The engine decides what may be done to an array; here is decided only what may be done to a device.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::array_home::{DiskArray, present};
use super::faults::MemberDisk;
use super::members::{Candidate, identify, open_to_add};
use super::operator::{Operator, blocking, internal, problem, refusal_problem};
use super::registry::Entry;
use super::report;
use crate::api::{Fault, Hedge, Problem, ProblemCode, ReadPolicy, Reply, Scrub, Tuning};
use crate::engine::{self, Health, Refusal, create::NewMember};
use crate::io::Device;
use crate::md::{Role, Superblock, format_uuid};
use crate::reactor::{Disk, runtime};
use crate::units::MemberSlot;

/// Makes settings hold; those that are not named stay.
pub fn apply(array: &DiskArray, tuning: &Tuning) {
    array.set_recovery_speed(tuning.recovery_min, tuning.recovery_max);
    if let Some(ms) = tuning.member_timeout_ms {
        array.set_member_timeout(Duration::from_millis(ms));
    }
    if let Some(write_through) = tuning.write_through {
        array.set_write_through(write_through);
    }
    if let Some(policy) = tuning.read_policy {
        array.set_read_policy(match policy {
            ReadPolicy::RoundRobin => engine::ReadPolicy::RoundRobin,
            ReadPolicy::LeastPending => engine::ReadPolicy::LeastPending,
            ReadPolicy::Latency => engine::ReadPolicy::Latency,
            ReadPolicy::Prefer(slot) => engine::ReadPolicy::Prefer(MemberSlot(slot)),
        });
    }
    if let Some(hedge) = tuning.hedge {
        array.set_hedge(match hedge {
            Hedge::Off => engine::Hedge::Off,
            Hedge::Auto => engine::Hedge::Auto,
            Hedge::AfterMs(ms) => engine::Hedge::After(Duration::from_millis(ms)),
        });
    }
}

/// Which spare it is, by its superblock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SpareIdentity {
    pub set_uuid: [u8; 16],
    pub device_uuid: [u8; 16],
    pub dev_number: u32,
}

impl SpareIdentity {
    /// Of this superblock; none if it is no spare's.
    pub fn of(superblock: &Superblock) -> Option<SpareIdentity> {
        let Superblock { set_uuid, device_uuid, dev_number, .. } = *superblock;
        (superblock.role() == Role::Spare).then_some(SpareIdentity { set_uuid, device_uuid, dev_number })
    }
}

/// How a device comes to an array.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Welcome {
    /// As a former member, by the bitmap, or not at all.
    Back,
    /// As a former member if that can be, else as a new one.
    BackOrNew,
    /// As a new one, whatever it was.
    New,
    /// As a new one, if it is this spare of another array, which has just let go of it; nothing else is.
    Spare(SpareIdentity),
}

impl Operator {
    pub(super) fn entry(&self, name: &str) -> Result<Arc<Entry>, Problem> {
        self.service.registry.get(name).ok_or_else(|| Problem::no_such_array(name))
    }

    /// Does something to an array, on the reactor where it lives.
    pub(super) async fn on_array<T, F>(
        entry: &Entry,
        job: impl FnOnce(std::rc::Rc<DiskArray>) -> F + Send + 'static,
    ) -> Result<T, Problem>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, Refusal>> + 'static,
    {
        let id = entry.id;
        let done = entry.home.call(move || async move {
            match present(id).await {
                Some(array) => job(array).await,
                None => Err(Refusal::NotNow("the array is being stopped".into())),
            }
        });
        done.await.map_err(|_| internal("a reactor has ended"))?.map_err(|refusal| refusal_problem(&refusal))
    }

    /// The member that `device` leads to, by the path that the array knows it by. None: no member.
    async fn member_at(entry: &Entry, device: &str) -> Result<Option<String>, Problem> {
        let paths = Self::on_array(entry, |array| async move { Ok(array.member_paths()) }).await?;
        let wanted = PathBuf::from(device);
        blocking(move || {
            if let Some(literally) = paths.iter().find(|path| Path::new(path) == wanted) {
                return Some(literally.clone());
            }
            // The same disk may be named by another path than the one it was opened by.
            let identity = identify(&wanted).ok()?;
            paths.into_iter().find(|path| identify(Path::new(path)).ok() == Some(identity))
        })
        .await
    }

    async fn member_called(entry: &Entry, device: &str) -> Result<String, Problem> {
        let name = &entry.name;
        Self::member_at(entry, device).await?.ok_or_else(|| {
            let why = format!("{device} is no member of {name}: raidctl status {name} shows its members");
            problem(ProblemCode::NoSuchMember, why)
        })
    }

    /// What the array is now; after a change of its members also put on record.
    pub(super) async fn changed(&self, entry: &Entry) -> Result<Reply, Problem> {
        let paths = Self::on_array(entry, |array| async move { Ok(array.member_paths()) }).await?;
        let status = self.status_of(entry).await?;
        let last = status.clone();
        self.remember(|state| {
            state.update(&format_uuid(&entry.uuid), |saved| {
                (saved.members, saved.last) = (paths, last);
            })
        });
        Ok(Reply::Array(Box::new(status)))
    }

    pub(super) async fn fail(&self, name: &str, device: String) -> Result<Reply, Problem> {
        let entry = self.entry(name)?;
        let label = Self::member_called(&entry, &device).await?;
        let failed = Self::on_array(&entry, |array| async move { array.fail(&label).await }).await;
        failed.map_err(|why| match why.code {
            ProblemCode::WrongState => problem(ProblemCode::LastCopy, why.detail),
            _ => why,
        })?;
        self.changed(&entry).await
    }

    pub(super) async fn remove(&self, name: &str, device: String) -> Result<Reply, Problem> {
        let entry = self.entry(name)?;
        let label = Self::member_called(&entry, &device).await?;
        Self::on_array(&entry, |array| async move { array.remove(&label).await }).await?;
        self.changed(&entry).await
    }

    pub(super) async fn add(&self, name: &str, device: String) -> Result<Reply, Problem> {
        let entry = self.entry(name)?;
        self.welcome(&entry, device, Welcome::BackOrNew).await?;
        self.changed(&entry).await
    }

    pub(super) async fn re_add(&self, name: &str, device: String) -> Result<Reply, Problem> {
        let entry = self.entry(name)?;
        self.welcome(&entry, device, Welcome::Back).await?;
        self.changed(&entry).await
    }

    pub(super) async fn replace(&self, name: &str, old: String, new: String) -> Result<Reply, Problem> {
        let entry = self.entry(name)?;
        let old = Self::member_called(&entry, &old).await?;
        let new = match Self::member_at(&entry, &new).await? {
            Some(label) => label,
            None => {
                self.check_replaceable(&entry, &old).await?;
                self.welcome(&entry, new.clone(), Welcome::New).await?;
                // It is a member now, whatever becomes of the rest.
                self.changed(&entry).await?;
                new
            }
        };
        Self::on_array(&entry, |array| async move { array.replace(&old, &new).await }).await?;
        self.changed(&entry).await
    }

    /// Before a device is made a spare for nothing.
    async fn check_replaceable(&self, entry: &Entry, old: &str) -> Result<(), Problem> {
        let status = self.status_of(entry).await?;
        let is_in_sync = status.members.iter().any(|member| {
            member.path.as_deref() == Some(old) && member.state == crate::api::MemberState::InSync
        });
        if is_in_sync {
            return Ok(());
        }
        let why = format!(
            "{old} is not in sync, so there is nothing to copy from it: raidctl add {} NEW fills a vacant slot",
            entry.name
        );
        Err(problem(ProblemCode::WrongState, why))
    }

    pub(super) async fn welcome(
        &self,
        entry: &Entry,
        device: String,
        welcome: Welcome,
    ) -> Result<(), Problem> {
        let name = entry.name.clone();
        if let Some(label) = Self::member_at(entry, &device).await? {
            let why = format!(
                "{label} is a member of {name} already: raidctl status {name} shows it; a faulty one has to be removed first, \
                 with raidctl remove {name} {label}"
            );
            return Err(problem(ProblemCode::WrongState, why));
        }
        let uuid = entry.uuid;
        let (Candidate { disk, label }, was_member) =
            blocking(move || open_to_add(&device, &uuid, welcome)).await??;
        let pool = self.memory.metadata.clone();
        let injectable = self.injectable;
        let device_uuid = uuid::Uuid::new_v4().into_bytes();
        Self::on_array(entry, move |array| async move {
            let disk = MemberDisk::new(Disk::new(disk), &label, injectable);
            if was_member && matches!(welcome, Welcome::Back | Welcome::BackOrNew) {
                let back = match engine::load(disk.clone(), label.clone(), &pool, &runtime()).await {
                    Ok(found) => array.re_add(found).await,
                    Err(refusal) => Err(refusal),
                };
                match back {
                    Err(why) if welcome == Welcome::BackOrNew => {
                        // What is out of reach without it must not be made so for good.
                        if array.health() == Health::Failed {
                            return Err(Refusal::NotNow(format!(
                                "{label}: {name} has failed, and adding a former member anew would destroy what is on it: stop \
                                 {name}, then assemble it with this member"
                            )));
                        }
                        tracing::info!(array = name, member = label, %why, "not re-added; added anew");
                    }
                    done => return done,
                }
            }
            array.add(NewMember { device: disk, label }, device_uuid).await
        })
        .await
    }

    pub(super) async fn scrub(&self, name: &str, scrub: Scrub) -> Result<Reply, Problem> {
        let entry = self.entry(name)?;
        Self::on_array(&entry, move |array| async move {
            let begun = match scrub {
                Scrub::Check => array.scrub(false),
                Scrub::Repair => array.scrub(true),
                Scrub::Stop => {
                    array.stop_scrub();
                    true
                }
            };
            if begun {
                return Ok(());
            }
            Err(Refusal::NotNow(format!(
                "{}: there is nothing to scrub: it is a RAID 0, which has no redundancy to compare, or it is read-only",
                array.name()
            )))
        })
        .await?;
        if scrub == Scrub::Stop {
            self.put_off_scrub(&entry);
        }
        Ok(Reply::Array(Box::new(self.status_of(&entry).await?)))
    }

    pub(super) async fn findings(&self, name: &str) -> Result<Reply, Problem> {
        let entry = self.entry(name)?;
        let found = Self::on_array(&entry, |array| async move { Ok(report::findings(&array)) }).await?;
        Ok(Reply::Findings(found))
    }

    pub(super) async fn set_read_only(&self, name: &str, read_only: bool) -> Result<Reply, Problem> {
        // Not while it is being stopped, which would have to wait for the superblocks anyway.
        let _turn = self.one_at_a_time.lock().await;
        let entry = self.entry(name)?;
        let done = Self::on_array(&entry, move |array| async move {
            if read_only { array.set_read_only().await } else { array.set_read_write() }
        });
        done.await?;
        self.remember(|state| state.update(&format_uuid(&entry.uuid), |saved| saved.protected = read_only));
        Ok(Reply::Array(Box::new(self.status_of(&entry).await?)))
    }

    pub(super) async fn set_paused(&self, name: &str, paused: bool) -> Result<Reply, Problem> {
        let entry = self.entry(name)?;
        Self::on_array(&entry, move |array| async move {
            if paused {
                array.pause();
            } else {
                array.resume();
            }
            Ok(())
        })
        .await?;
        Ok(Reply::Array(Box::new(self.status_of(&entry).await?)))
    }

    pub(super) async fn tune(&self, name: &str, tuning: Tuning) -> Result<Reply, Problem> {
        // Not while it is being changed into something else, which takes the settings of before.
        let _turn = self.one_at_a_time.lock().await;
        self.tune_now(name, tuning).await
    }

    /// The same, for who has the turn.
    pub(super) async fn tune_now(&self, name: &str, tuning: Tuning) -> Result<Reply, Problem> {
        let entry = self.entry(name)?;
        let before = self.status_of(&entry).await?.tuning.unwrap_or_default();
        tuning.clone().or(before).check().map_err(|why| problem(ProblemCode::InvalidRequest, why))?;
        let settings = tuning.clone();
        Self::on_array(&entry, move |array| async move {
            apply(&array, &settings);
            Ok(())
        })
        .await?;
        let settings = tuning.clone();
        self.remember(|state| {
            state.update(&format_uuid(&entry.uuid), |saved| {
                saved.tuning = settings.or(std::mem::take(&mut saved.tuning));
            })
        });
        if tuning.write_through == Some(true) {
            // What was answered before is meant, too.
            let flushed = Self::on_array(&entry, |array| async move {
                let not_yet =
                    |error| Refusal::NotNow(format!("what was written before cannot be flushed: {error}"));
                array.flush().await.map_err(not_yet)
            });
            flushed.await?;
        }
        if tuning.member_timeout_ms.is_some()
            && let Err(error) = self.update_device(&entry).await
        {
            tracing::error!(array = name, %error, "the device's timeout cannot be changed");
        }
        Ok(Reply::Array(Box::new(self.status_of(&entry).await?)))
    }

    pub(super) async fn inject(&self, name: &str, device: String, fault: Fault) -> Result<Reply, Problem> {
        if !self.injectable {
            return Err(problem(
                ProblemCode::WrongState,
                "faults can be injected only where raidd runs with --enable-fault-injection: start one so, with data that \
                 nobody needs",
            ));
        }
        let entry = self.entry(name)?;
        let label = Self::member_called(&entry, &device).await?;
        let pool = self.memory.metadata.clone();
        tracing::warn!(array = name, member = label, %fault, "injecting a fault");
        Self::on_array(&entry, move |array| async move {
            let refuse = |why: String| Refusal::NotNow(format!("{label}: {why}"));
            let facts = array.status();
            let facts = facts.members.iter().chain(&facts.spares);
            let member = facts.into_iter().find(|member| member.path.as_deref() == Some(&label));
            let at = member.map(|member| member.data_offset.bytes());
            let (Some(at), Some(disk)) = (at, MemberDisk::injectable(&label)) else {
                return Err(refuse("it is gone; look again with raidctl status".into()));
            };
            disk.inject(fault, at, &pool)
                .await
                .map_err(|error| refuse(format!("cannot inject {fault}: {error}")))
        })
        .await?;
        Ok(Reply::Array(Box::new(self.status_of(&entry).await?)))
    }
}
