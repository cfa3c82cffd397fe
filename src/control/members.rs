//! What is done to members and spares: the handlers of those routes, and what they take.

use std::sync::Arc;

use axum::extract::State;
use serde::Deserialize;
use utoipa::ToSchema;

use super::Operator;
use super::routes::{Answer, Body, Name, Refusal, decoded, invalid, parse, run};
use crate::api::{Command, Fault, Status, check_path};

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct DeviceBody {
    /// Its absolute path.
    #[schema(pattern = "^/")]
    device: String,
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct ReplaceBody {
    /// The path of a member that is in sync.
    #[schema(pattern = "^/")]
    old: String,
    /// The path of a spare, or of a device that is added first.
    #[schema(pattern = "^/")]
    new: String,
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct InjectBody {
    /// The path of the member.
    device: String,
    /// As on the command line: `read-error=1M+4K`, `latency=200ms`, `hang`, ...
    #[schema(value_type = String, example = "latency=200ms")]
    fault: Fault,
}

/// Treats a member as failed.
#[utoipa::path(
    post,
    path = "/v1/arrays/{name}/fail",
    tag = "members",
    params(("name" = String, Path, description = "The array", example = "vol0")),
    request_body = DeviceBody,
    responses((status = 200, description = "The array, as it is now", body = Status), Refusal)
)]
pub(super) async fn fail<O: Operator>(State(operator): State<Arc<O>>, name: Name, body: Body) -> Answer {
    let (name, device) = (decoded(name)?, device_of(body)?);
    run(operator, Command::Fail { name, device }).await
}

/// Lets go of a faulty member or a spare.
#[utoipa::path(
    post,
    path = "/v1/arrays/{name}/remove",
    tag = "members",
    params(("name" = String, Path, description = "The array", example = "vol0")),
    request_body = DeviceBody,
    responses((status = 200, description = "The array, as it is now", body = Status), Refusal)
)]
pub(super) async fn remove<O: Operator>(State(operator): State<Arc<O>>, name: Name, body: Body) -> Answer {
    let (name, device) = (decoded(name)?, device_of(body)?);
    run(operator, Command::Remove { name, device }).await
}

/// Makes a device a member: a former one is caught up by the bitmap where that is possible, any other becomes a spare.
#[utoipa::path(
    post,
    path = "/v1/arrays/{name}/add",
    tag = "members",
    params(("name" = String, Path, description = "The array", example = "vol0")),
    request_body = DeviceBody,
    responses((status = 200, description = "The array, as it is now", body = Status), Refusal)
)]
pub(super) async fn add<O: Operator>(State(operator): State<Arc<O>>, name: Name, body: Body) -> Answer {
    let (name, device) = (decoded(name)?, device_of(body)?);
    run(operator, Command::Add { name, device }).await
}

/// Takes a former member back, caught up by the bitmap.
#[utoipa::path(
    post,
    path = "/v1/arrays/{name}/re-add",
    tag = "members",
    params(("name" = String, Path, description = "The array", example = "vol0")),
    request_body = DeviceBody,
    responses((status = 200, description = "The array, as it is now", body = Status), Refusal)
)]
pub(super) async fn re_add<O: Operator>(State(operator): State<Arc<O>>, name: Name, body: Body) -> Answer {
    let (name, device) = (decoded(name)?, device_of(body)?);
    run(operator, Command::ReAdd { name, device }).await
}

/// Fills a device with what a member holds, which serves until then.
#[utoipa::path(
    post,
    path = "/v1/arrays/{name}/replace",
    tag = "members",
    params(("name" = String, Path, description = "The array", example = "vol0")),
    request_body = ReplaceBody,
    responses((status = 200, description = "The array, as it is now", body = Status), Refusal)
)]
pub(super) async fn replace<O: Operator>(State(operator): State<Arc<O>>, name: Name, body: Body) -> Answer {
    let name = decoded(name)?;
    let ReplaceBody { old, new } = parse(body)?;
    check_path(&old).and_then(|()| check_path(&new)).map_err(invalid)?;
    run(operator, Command::Replace { name, old, new }).await
}

/// Makes something go wrong with a member; only where raidd was started for that.
#[utoipa::path(
    post,
    path = "/v1/arrays/{name}/inject",
    tag = "members",
    params(("name" = String, Path, description = "The array", example = "vol0")),
    request_body = InjectBody,
    responses((status = 200, description = "The array, as it is now", body = Status), Refusal)
)]
pub(super) async fn inject<O: Operator>(State(operator): State<Arc<O>>, name: Name, body: Body) -> Answer {
    let name = decoded(name)?;
    let InjectBody { device, fault } = parse(body)?;
    run(operator, Command::Inject { name, device, fault }).await
}

fn device_of(body: Body) -> Result<String, Refusal> {
    let DeviceBody { device } = parse(body)?;
    check_path(&device).map_err(invalid)?;
    Ok(device)
}
