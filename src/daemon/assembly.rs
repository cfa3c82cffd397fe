//! `assemble` as an operator asks for it: which array, which devices, and what of it is to be changed on the way.

use std::path::PathBuf;

use super::members::{find_members, stored_name};
use super::operator::{Operator, blocking, problem};
use super::saved::SavedArray;
use crate::api::{AssembleArray, Problem, ProblemCode, Reply};
use crate::engine::AssembleOptions;
use crate::md::parse_uuid;

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
        let new_name = request.name.as_deref().filter(|_| request.update_name);
        let stored_name = new_name.and_then(stored_name);
        let status = self
            .start_array(
                paths,
                uuid,
                strict,
                AssembleOptions {
                    name: request.name,
                    force: request.force,
                    read_only: request.read_only,
                    fresh: false,
                    stored_name,
                },
                false,
            )
            .await?;
        Ok(Reply::Array(Box::new(status)))
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
}
