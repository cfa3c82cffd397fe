//! `assemble` as an operator asks for it: which array, which devices, and what of it is to be changed on the way.

use std::path::PathBuf;

use super::members::{find_members, stored_name};
use super::operator::{Operator, blocking, problem};
use super::probe;
use super::saved::SavedArray;
use crate::api::{AssembleArray, Problem, ProblemCode, Reply, Status, Tuning};
use crate::engine::{AssembleOptions, NewUuid};
use crate::md::{format_uuid, parse_uuid};

impl Operator {
    pub(super) async fn assemble(&self, request: AssembleArray) -> Result<Reply, Problem> {
        request.check().map_err(|why| problem(ProblemCode::InvalidRequest, why))?;
        let uuid = match &request.uuid {
            None => None,
            Some(text) => Some(parse_uuid(text).ok_or_else(|| {
                problem(ProblemCode::InvalidRequest, format!("{text:?} is no UUID: write 32 hex digits"))
            })?),
        };
        let _turn = self.one_at_a_time.lock().await;
        let paths = if request.devices.is_empty() {
            self.places_of(uuid, request.name.as_deref()).await?
        } else {
            request.devices.iter().map(PathBuf::from).collect()
        };
        let strict = !request.devices.is_empty();
        let (uuid, new_uuid) = match request.update_uuid {
            true => (None, Some(new_uuid(uuid))),
            false => (uuid, None),
        };
        let renamed = match &new_uuid {
            Some(new) => self.to_be_renamed(new, &request.devices).await?,
            None => None,
        };
        let new_name = request.name.as_deref().filter(|_| request.update_name);
        let options = AssembleOptions {
            stored_name: new_name.and_then(stored_name),
            name: request.name,
            force: request.force,
            read_only: request.read_only,
            fresh: false,
            new_uuid,
            change: None,
        };
        let status = self.start_array(paths, uuid, strict, options, false).await?;
        match renamed {
            Some(before) => self.rename(before, status).await,
            None => Ok(Reply::Array(Box::new(status))),
        }
    }

    /// Where the members of an array are that is named by its UUID, or by its name.
    async fn places_of(&self, uuid: Option<[u8; 16]>, name: Option<&str>) -> Result<Vec<PathBuf>, Problem> {
        let known = self.state().arrays().to_vec();
        let matching = |saved: &&SavedArray| match uuid {
            Some(uuid) => parse_uuid(&saved.uuid) == Some(uuid),
            None => Some(saved.name.as_str()) == name,
        };
        let found = known.iter().find(matching);
        let uuid = uuid.or_else(|| found.and_then(|saved| parse_uuid(&saved.uuid))).ok_or_else(|| {
            problem(ProblemCode::NoSuchArray, "that array is not known here: name its devices, or its --uuid")
        })?;
        let last_seen = found.map(|saved| saved.members.clone()).unwrap_or_default();
        blocking(move || find_members(&uuid, &last_seen)).await
    }

    /// The array that is remembered and has its last members among these devices: it is not a copy that gets another UUID, but
    /// that array. Refuses a UUID that is another's here.
    async fn to_be_renamed(&self, new: &NewUuid, devices: &[String]) -> Result<Option<SavedArray>, Problem> {
        if let Some(other) = self.saved(&new.uuid) {
            let why = format!(
                "{} is the UUID of {}, which raidd remembers: choose another, or leave --uuid out for a random one",
                other.uuid, other.name
            );
            return Err(problem(ProblemCode::ArrayExists, why));
        }
        let paths: Vec<_> = devices.iter().map(PathBuf::from).collect();
        let found =
            blocking(move || paths.iter().filter_map(|path| probe::superblock(path)).collect::<Vec<_>>());
        let uuids: Vec<_> = found.await?.iter().map(|superblock| superblock.set_uuid).collect();
        let idle = uuids.iter().filter(|uuid| self.service.registry.by_uuid(uuid).is_none());
        let is_here = |saved: &SavedArray| {
            !saved.members.is_empty() && saved.members.iter().all(|path| devices.contains(path))
        };
        let renamed =
            idle.filter_map(|uuid| Some((uuid, self.saved(uuid)?))).find(|(_, saved)| is_here(saved));
        let Some((uuid, saved)) = renamed else { return Ok(None) };
        self.without_device(uuid, &saved.name, false).await?;
        Ok(Some(saved))
    }

    /// An array is remembered by its new UUID only, and goes on as it was.
    async fn rename(&self, before: SavedArray, status: Status) -> Result<Reply, Problem> {
        self.waiting().remove(&before.uuid);
        self.remember(|state| {
            state.update(&status.uuid, |saved| {
                saved.last_scrub_unix_seconds = before.last_scrub_unix_seconds;
                saved.scrub_put_off_unix_seconds = before.scrub_put_off_unix_seconds;
            })?;
            state.forget(&before.uuid)
        });
        if before.tuning == Tuning::default() {
            return Ok(Reply::Array(Box::new(status)));
        }
        self.tune_now(&status.name, before.tuning).await
    }
}

fn new_uuid(named: Option<[u8; 16]>) -> NewUuid {
    let random = || uuid::Uuid::new_v4().into_bytes();
    let new = NewUuid { uuid: named.unwrap_or_else(random), is_named: named.is_some() };
    tracing::info!(uuid = format_uuid(&new.uuid), is_named = new.is_named, "an array is to have a new UUID");
    new
}
