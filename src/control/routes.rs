//! Which request is which command, and what the answers look like.
//!
//! | method and path | command | answer |
//! |---|---|---|
//! | `GET /v1/arrays` | list | 200, an array of status documents |
//! | `POST /v1/arrays` | create | 201, the status document |
//! | `POST /v1/arrays/assemble` | assemble | 200, the status document |
//! | `POST /v1/arrays/scan` | assemble every array that can be found | 200, an array of status documents |
//! | `GET /v1/arrays/{name}` | status | 200, the status document |
//! | `POST /v1/arrays/{name}/stop` | stop; body `{"force":bool,"release":bool}` or none | 204 |
//! | `POST /v1/arrays/{name}/fail`, `remove`, `add`, `re-add` | that; body `{"device":PATH}` | 200, the status document |
//! | `POST /v1/arrays/{name}/replace` | replace; body `{"old":PATH,"new":PATH}` | 200, the status document |
//! | `POST /v1/arrays/{name}/scrub` | scrub; body `{"repair":bool,"stop":bool}` or none | 200, the status document |
//! | `GET /v1/arrays/{name}/findings` | what scrubs found | 200, the findings |
//! | `GET /v1/arrays/{name}/stats` | what it and its members have done | 200, the counts |
//! | `POST /v1/arrays/{name}/pause`, `resume`, `readonly`, `readwrite` | that | 200, the status document |
//! | `POST /v1/arrays/{name}/tune` | tune; body: the settings to change | 200, the status document |
//! | `POST /v1/arrays/{name}/grow` | grow; body: one of `size_bytes`, `max`, `raid_devices`, `bitmap` | 200, the status document |
//! | `POST /v1/arrays/{name}/attach` | attach; body `{"device":PATH,"connections":N,"wait_ms":MS}` or parts of it | 200, the status document |
//! | `POST /v1/arrays/{name}/detach` | detach; body `{"force":bool}` or none | 204 |
//! | `POST /v1/arrays/{name}/inject` | inject; body `{"device":PATH,"fault":FAULT}` | 200, the status document |
//! | `GET /v1/daemon` | what the daemon is and does | 200, that |
//! | `GET /v1/openapi.json` | | 200, all of this for programs: an OpenAPI document (`openapi`) |
//! | `GET /v1/events` | what has happened and what happens, as server-sent events; `?follow=false`: only the former | 200 |
//! | `GET /metrics` | list | 200, Prometheus' text format |
//! | `GET /healthz` | | 200, whenever the server lives |
//!
//! The table of routes is here once (`routes!`). What each takes and answers stands at its handler, here or in `members`, where the
//! document is made of it. A test holds the two together.
//!
//! Bodies are JSON whatever Content-Type says: `curl -d` names another one, and there is nothing else they could be.

use std::convert::Infallible;
use std::sync::Arc;

use axum::Router;
use axum::body::{Body as AxumBody, Bytes};
use axum::extract::rejection::{BytesRejection, PathRejection, QueryRejection};
use axum::extract::{DefaultBodyLimit, Path, Query, State};
use axum::http::{HeaderName, HeaderValue, Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use futures_util::stream::{self, StreamExt};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::sync::broadcast::error::RecvError;
use utoipa::{IntoParams, IntoResponses, ToSchema};

use super::{BODY_BYTES_MAX, Operator, members, metrics, openapi};
use crate::api::{
    AssembleArray, AttachArray, Command, CreateArray, DaemonStatus, Event, Findings, GrowArray, Problem,
    ProblemCode, Reply, Scrub, Stats, Status, Tuning,
};

/// Declares the routes: method, path and handler of each, for an operator `O`.
macro_rules! routes {
    ($($method:ident $path:literal $handler:expr;)+) => {
        fn routes<O: Operator>() -> Router<Arc<O>> {
            Router::new()$(.route($path, $method($handler)))+
        }

        /// Methods and paths, for the test that they are all documented.
        #[cfg(test)]
        pub(super) const ROUTES: &[(&str, &str)] = &[$((stringify!($method), $path),)+];
    };
}

routes! {
    get "/healthz" healthz;
    get "/metrics" metrics_of::<O>;
    get "/v1/openapi.json" document;
    get "/v1/daemon" daemon::<O>;
    get "/v1/events" events::<O>;
    get "/v1/arrays" list::<O>;
    post "/v1/arrays" create::<O>;
    post "/v1/arrays/assemble" assemble::<O>;
    post "/v1/arrays/scan" scan::<O>;
    get "/v1/arrays/{name}" status::<O>;
    post "/v1/arrays/{name}/stop" stop::<O>;
    post "/v1/arrays/{name}/fail" members::fail::<O>;
    post "/v1/arrays/{name}/remove" members::remove::<O>;
    post "/v1/arrays/{name}/add" members::add::<O>;
    post "/v1/arrays/{name}/re-add" members::re_add::<O>;
    post "/v1/arrays/{name}/replace" members::replace::<O>;
    post "/v1/arrays/{name}/scrub" scrub::<O>;
    get "/v1/arrays/{name}/findings" findings::<O>;
    get "/v1/arrays/{name}/stats" stats::<O>;
    post "/v1/arrays/{name}/pause" pause::<O>;
    post "/v1/arrays/{name}/resume" resume::<O>;
    post "/v1/arrays/{name}/readonly" read_only::<O>;
    post "/v1/arrays/{name}/readwrite" read_write::<O>;
    post "/v1/arrays/{name}/tune" tune::<O>;
    post "/v1/arrays/{name}/grow" grow::<O>;
    post "/v1/arrays/{name}/attach" attach::<O>;
    post "/v1/arrays/{name}/detach" detach::<O>;
    post "/v1/arrays/{name}/inject" members::inject::<O>;
}

/// The routes, served by `operator`.
pub fn router<O: Operator>(operator: Arc<O>) -> Router {
    routes()
        // An array may well be called `scan`: GET asks for that one.
        .route("/v1/arrays/assemble", get(status_of_assemble::<O>))
        .route("/v1/arrays/scan", get(status_of_scan::<O>))
        .fallback(unknown_path)
        .method_not_allowed_fallback(unknown_method)
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .with_state(operator)
}

/// What is served where nothing may be changed and nothing asked: metrics, and whether the server lives.
pub(super) fn metrics_router<O: Operator>(operator: Arc<O>) -> Router {
    Router::new()
        .route("/healthz", get(healthz))
        .route("/metrics", get(metrics_of::<O>))
        .fallback(unknown_path)
        .method_not_allowed_fallback(unknown_method)
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .with_state(operator)
}

/// What a handler may refuse with.
#[derive(IntoResponses)]
#[response(
    status = "default",
    description = "It was refused or failed: what, why and what to do",
    content_type = "application/problem+json"
)]
pub(super) struct Refusal(Problem);

impl From<Problem> for Refusal {
    fn from(problem: Problem) -> Refusal {
        Refusal(problem)
    }
}

pub(super) type Answer = Result<Response, Refusal>;
pub(super) type Name = Result<Path<String>, PathRejection>;
pub(super) type Body = Result<Bytes, BytesRejection>;

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct DetachBody {
    /// Also a device in use: whoever uses it gets I/O errors.
    #[serde(default)]
    force: bool,
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct StopBody {
    /// Disconnects the clients first.
    #[serde(default)]
    force: bool,
    /// Forgets the array, too, so that mdadm and the kernel may take it.
    #[serde(default)]
    release: bool,
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct ScrubBody {
    /// Mends what disagrees.
    #[serde(default)]
    repair: bool,
    /// Ends the scrub that runs; the next one goes on from there.
    #[serde(default)]
    stop: bool,
}

/// That the server lives.
#[derive(Serialize, ToSchema)]
pub(super) struct Alive {
    /// `ok`.
    status: &'static str,
}

/// Whether the server lives.
#[utoipa::path(
    get,
    path = "/healthz",
    tag = "daemon",
    responses((status = 200, description = "It does", body = Alive), Refusal)
)]
async fn healthz() -> Response {
    json(StatusCode::OK, "application/json", &Alive { status: "ok" })
}

/// This document.
#[utoipa::path(
    get,
    path = "/v1/openapi.json",
    tag = "daemon",
    responses((status = 200, description = "An OpenAPI document", body = Object), Refusal)
)]
async fn document() -> Response {
    json(StatusCode::OK, "application/json", &openapi::document())
}

/// What is known of all arrays, for Prometheus.
#[utoipa::path(
    get,
    path = "/metrics",
    tag = "daemon",
    responses((status = 200, description = "Prometheus' text format", body = String, content_type = "text/plain"), Refusal)
)]
async fn metrics_of<O: Operator>(State(operator): State<Arc<O>>) -> Answer {
    let text = metrics::scrape(operator.as_ref()).await?;
    let headers = [(header::CONTENT_TYPE, metrics::CONTENT_TYPE), (header::CACHE_CONTROL, "no-store")];
    Ok((headers, text).into_response())
}

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct EventsQuery {
    /// Whether to stay and be told what happens from now on. Default: true.
    #[serde(default = "yes")]
    #[param(required = false)]
    follow: bool,
}

fn yes() -> bool {
    true
}

/// What the daemon itself is and does.
#[utoipa::path(
    get,
    path = "/v1/daemon",
    tag = "daemon",
    responses((status = 200, description = "The daemon, as it is now", body = DaemonStatus), Refusal)
)]
async fn daemon<O: Operator>(State(operator): State<Arc<O>>) -> Answer {
    run(operator, Command::Daemon).await
}

/// What has happened and what happens: server-sent events, `data` of each being one event.
#[utoipa::path(
    get,
    path = "/v1/events",
    tag = "daemon",
    params(EventsQuery),
    responses((status = 200, description = "Events, oldest first", body = Event, content_type = "text/event-stream"), Refusal)
)]
async fn events<O: Operator>(
    State(operator): State<Arc<O>>,
    query: Result<Query<EventsQuery>, QueryRejection>,
) -> Answer {
    let Ok(Query(EventsQuery { follow })) = query else {
        return Err(invalid("the only question about events is follow=true or follow=false: ask that").into());
    };
    let (past, live) = operator.events();
    let past: Vec<_> = past.iter().map(|event| Ok::<_, Infallible>(sent(event))).collect();
    let live = stream::unfold(live.filter(|_| follow), |live| async move {
        let mut live = live?;
        let bytes = match live.recv().await {
            Ok(event) => sent(&event),
            // A comment, which clients pass over.
            Err(RecvError::Lagged(missed)) => Bytes::from(format!(": {missed} events missed\n\n")),
            Err(RecvError::Closed) => return None,
        };
        Some((Ok(bytes), Some(live)))
    });
    let headers = [(header::CONTENT_TYPE, "text/event-stream"), (header::CACHE_CONTROL, "no-store")];
    Ok((headers, AxumBody::from_stream(stream::iter(past).chain(live))).into_response())
}

fn sent(event: &Event) -> Bytes {
    let data = serde_json::to_string(event).expect("an event is plain data");
    Bytes::from(format!("id: {}\ndata: {data}\n\n", event.id))
}

/// All arrays, in the order of their names.
#[utoipa::path(
    get,
    path = "/v1/arrays",
    tag = "arrays",
    responses((status = 200, description = "The arrays", body = [Status]), Refusal)
)]
async fn list<O: Operator>(State(operator): State<Arc<O>>) -> Answer {
    run(operator, Command::List).await
}

/// Makes a new array of these devices, starts and exports it.
#[utoipa::path(
    post,
    path = "/v1/arrays",
    tag = "arrays",
    request_body = CreateArray,
    responses((status = 201, description = "The new array", body = Status), Refusal)
)]
async fn create<O: Operator>(State(operator): State<Arc<O>>, body: Body) -> Answer {
    let request: CreateArray = parse(body)?;
    request.check().map_err(invalid)?;
    let mut response = run(operator, Command::Create(request)).await?;
    *response.status_mut() = StatusCode::CREATED;
    Ok(response)
}

/// Starts an array from its superblocks.
#[utoipa::path(
    post,
    path = "/v1/arrays/assemble",
    tag = "arrays",
    request_body = AssembleArray,
    responses((status = 200, description = "The array, as it is now", body = Status), Refusal)
)]
async fn assemble<O: Operator>(State(operator): State<Arc<O>>, body: Body) -> Answer {
    let request: AssembleArray = parse(body)?;
    request.check().map_err(invalid)?;
    run(operator, Command::Assemble(request)).await
}

/// Looks through all block devices and starts every array that can be started.
#[utoipa::path(
    post,
    path = "/v1/arrays/scan",
    tag = "arrays",
    responses((status = 200, description = "Those that it started", body = [Status]), Refusal)
)]
async fn scan<O: Operator>(State(operator): State<Arc<O>>) -> Answer {
    run(operator, Command::AssembleScan).await
}

/// One array.
#[utoipa::path(
    get,
    path = "/v1/arrays/{name}",
    tag = "arrays",
    params(("name" = String, Path, description = "The array", example = "vol0")),
    responses((status = 200, description = "The array, as it is now", body = Status), Refusal)
)]
async fn status<O: Operator>(State(operator): State<Arc<O>>, name: Name) -> Answer {
    run(operator, Command::Status { name: decoded(name)? }).await
}

async fn status_of_assemble<O: Operator>(State(operator): State<Arc<O>>) -> Answer {
    run(operator, Command::Status { name: "assemble".to_owned() }).await
}

async fn status_of_scan<O: Operator>(State(operator): State<Arc<O>>) -> Answer {
    run(operator, Command::Status { name: "scan".to_owned() }).await
}

/// Flushes an array, marks it clean and lets its members go.
#[utoipa::path(
    post,
    path = "/v1/arrays/{name}/stop",
    tag = "arrays",
    params(("name" = String, Path, description = "The array", example = "vol0")),
    request_body = Option<StopBody>,
    responses((status = 204, description = "It is stopped"), Refusal)
)]
async fn stop<O: Operator>(State(operator): State<Arc<O>>, name: Name, body: Body) -> Answer {
    let name = decoded(name)?;
    let StopBody { force, release } = parse(body)?;
    run(operator, Command::Stop { name, force, release }).await
}

/// Looks for redundancy that disagrees.
#[utoipa::path(
    post,
    path = "/v1/arrays/{name}/scrub",
    tag = "sync actions",
    params(("name" = String, Path, description = "The array", example = "vol0")),
    request_body = Option<ScrubBody>,
    responses((status = 200, description = "The array, as it is now", body = Status), Refusal)
)]
async fn scrub<O: Operator>(State(operator): State<Arc<O>>, name: Name, body: Body) -> Answer {
    let name = decoded(name)?;
    let ScrubBody { repair, stop } = parse(body)?;
    let scrub = match (repair, stop) {
        (true, true) => return Err(invalid("a scrub cannot be stopped and begun at once: choose one").into()),
        (true, false) => Scrub::Repair,
        (false, true) => Scrub::Stop,
        (false, false) => Scrub::Check,
    };
    run(operator, Command::Scrub { name, scrub }).await
}

/// What the last or the running scrub found.
#[utoipa::path(
    get,
    path = "/v1/arrays/{name}/findings",
    tag = "sync actions",
    params(("name" = String, Path, description = "The array", example = "vol0")),
    responses((status = 200, description = "What it found, oldest first", body = Findings), Refusal)
)]
async fn findings<O: Operator>(State(operator): State<Arc<O>>, name: Name) -> Answer {
    run(operator, Command::Findings { name: decoded(name)? }).await
}

/// What an array and its members have done since it was started.
#[utoipa::path(
    get,
    path = "/v1/arrays/{name}/stats",
    tag = "arrays",
    params(("name" = String, Path, description = "The array", example = "vol0")),
    responses((status = 200, description = "Counts that only rise, and how long things took", body = Stats), Refusal)
)]
async fn stats<O: Operator>(State(operator): State<Arc<O>>, name: Name) -> Answer {
    run(operator, Command::Stats { name: decoded(name)? }).await
}

/// Holds the sync action where it is.
#[utoipa::path(
    post,
    path = "/v1/arrays/{name}/pause",
    tag = "sync actions",
    params(("name" = String, Path, description = "The array", example = "vol0")),
    responses((status = 200, description = "The array, as it is now", body = Status), Refusal)
)]
async fn pause<O: Operator>(State(operator): State<Arc<O>>, name: Name) -> Answer {
    run(operator, Command::Pause { name: decoded(name)? }).await
}

/// Lets the sync action go on.
#[utoipa::path(
    post,
    path = "/v1/arrays/{name}/resume",
    tag = "sync actions",
    params(("name" = String, Path, description = "The array", example = "vol0")),
    responses((status = 200, description = "The array, as it is now", body = Status), Refusal)
)]
async fn resume<O: Operator>(State(operator): State<Arc<O>>, name: Name) -> Answer {
    run(operator, Command::Resume { name: decoded(name)? }).await
}

/// Takes no more writes, flushes the array and marks it clean; also after a restart.
#[utoipa::path(
    post,
    path = "/v1/arrays/{name}/readonly",
    tag = "arrays",
    params(("name" = String, Path, description = "The array", example = "vol0")),
    responses((status = 200, description = "The array, as it is now", body = Status), Refusal)
)]
async fn read_only<O: Operator>(State(operator): State<Arc<O>>, name: Name) -> Answer {
    run(operator, Command::ReadOnly { name: decoded(name)? }).await
}

/// Takes writes again.
#[utoipa::path(
    post,
    path = "/v1/arrays/{name}/readwrite",
    tag = "arrays",
    params(("name" = String, Path, description = "The array", example = "vol0")),
    responses((status = 200, description = "The array, as it is now", body = Status), Refusal)
)]
async fn read_write<O: Operator>(State(operator): State<Arc<O>>, name: Name) -> Answer {
    run(operator, Command::ReadWrite { name: decoded(name)? }).await
}

/// Changes settings, now and for every later start; those that are not named stay as they are.
#[utoipa::path(
    post,
    path = "/v1/arrays/{name}/tune",
    tag = "arrays",
    params(("name" = String, Path, description = "The array", example = "vol0")),
    request_body = Option<Tuning>,
    responses((status = 200, description = "The array, as it is now", body = Status), Refusal)
)]
async fn tune<O: Operator>(State(operator): State<Arc<O>>, name: Name, body: Body) -> Answer {
    let name = decoded(name)?;
    let tuning: Tuning = parse(body)?;
    tuning.check().map_err(invalid)?;
    run(operator, Command::Tune { name, tuning }).await
}

/// Makes the array larger, of more or fewer copies, or one with or without a bitmap; clients wait for a moment.
#[utoipa::path(
    post,
    path = "/v1/arrays/{name}/grow",
    tag = "arrays",
    params(("name" = String, Path, description = "The array", example = "vol0")),
    request_body = GrowArray,
    responses((status = 200, description = "The array, as it is now", body = Status), Refusal)
)]
async fn grow<O: Operator>(State(operator): State<Arc<O>>, name: Name, body: Body) -> Answer {
    let name = decoded(name)?;
    let how: GrowArray = parse(body)?;
    how.check().map_err(invalid)?;
    run(operator, Command::Grow { name, how }).await
}

/// Makes the array a block device of this machine, now and after every later start.
#[utoipa::path(
    post,
    path = "/v1/arrays/{name}/attach",
    tag = "devices",
    params(("name" = String, Path, description = "The array", example = "vol0")),
    request_body = Option<AttachArray>,
    responses((status = 200, description = "The array, as it is now", body = Status), Refusal)
)]
async fn attach<O: Operator>(State(operator): State<Arc<O>>, name: Name, body: Body) -> Answer {
    let name = decoded(name)?;
    let how: AttachArray = parse(body)?;
    how.check().map_err(invalid)?;
    run(operator, Command::Attach { name, how }).await
}

/// Takes that device away.
#[utoipa::path(
    post,
    path = "/v1/arrays/{name}/detach",
    tag = "devices",
    params(("name" = String, Path, description = "The array", example = "vol0")),
    request_body = Option<DetachBody>,
    responses((status = 204, description = "It is gone"), Refusal)
)]
async fn detach<O: Operator>(State(operator): State<Arc<O>>, name: Name, body: Body) -> Answer {
    let name = decoded(name)?;
    let DetachBody { force } = parse(body)?;
    run(operator, Command::Detach { name, force }).await
}

async fn unknown_path(uri: Uri) -> Refusal {
    Refusal(Problem::new(
        ProblemCode::NotFound,
        format!("there is nothing at {:?}: the arrays are at /v1/arrays", uri.path()),
    ))
}

async fn unknown_method(method: Method, uri: Uri) -> Refusal {
    Refusal(Problem::new(
        ProblemCode::MethodNotAllowed,
        format!("{:?} cannot be asked with {method}: GET shows, POST does", uri.path()),
    ))
}

/// Hands a command over. It runs as a task of its own: a client that leaves drops its request, and an array must not be
/// left half made for that.
pub(super) async fn run<O: Operator>(operator: Arc<O>, command: Command) -> Answer {
    let task = tokio::spawn(async move { operator.execute(command).await });
    let reply = task.await.map_err(|error| {
        tracing::error!(%error, "a command did not end");
        Problem::new(
            ProblemCode::Internal,
            "raidd failed at this command: its log says where; please report it",
        )
    })??;
    Ok(match reply {
        Reply::Array(array) => json::<Status>(StatusCode::OK, "application/json", &array),
        Reply::Arrays(arrays) => json(StatusCode::OK, "application/json", &arrays),
        Reply::Findings(findings) => json(StatusCode::OK, "application/json", &findings),
        Reply::Stats(stats) => json(StatusCode::OK, "application/json", &stats),
        Reply::Daemon(daemon) => json(StatusCode::OK, "application/json", &daemon),
        Reply::Done => StatusCode::NO_CONTENT.into_response(),
    })
}

pub(super) fn decoded(name: Name) -> Result<String, Refusal> {
    name.map(|Path(name)| name).map_err(|_| {
        invalid("the array's name in the path is no UTF-8 when percent-decoded: encode it as UTF-8").into()
    })
}

/// The body as a request; none, or `null`, is `{}`.
pub(super) fn parse<T: DeserializeOwned>(body: Body) -> Result<T, Refusal> {
    let bytes = body.map_err(|rejection| {
        if rejection.status() == StatusCode::PAYLOAD_TOO_LARGE {
            let detail = format!("the request is longer than {BODY_BYTES_MAX} bytes: send less");
            Problem::new(ProblemCode::TooLarge, detail)
        } else {
            invalid("the request's body could not be received: send it again")
        }
    })?;
    let is_none = bytes.is_empty() || bytes.trim_ascii() == b"null";
    let text: &[u8] = if is_none { b"{}" } else { &bytes };
    if !text.trim_ascii_start().starts_with(b"{") {
        // serde would take a list for the fields in their order.
        return Err(invalid("the request is not a JSON object, like {\"force\": true}: correct it").into());
    }
    serde_json::from_slice(text).map_err(|error| {
        invalid(format!("the request is not the JSON it should be: {error}: correct it")).into()
    })
}

pub(super) fn invalid(detail: impl AsRef<str>) -> Problem {
    Problem::new(ProblemCode::InvalidRequest, detail)
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.0.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        json(status, "application/problem+json", &self.0)
    }
}

fn json<T: Serialize>(status: StatusCode, kind: &'static str, document: &T) -> Response {
    let headers: [(HeaderName, HeaderValue); 1] = [(header::CONTENT_TYPE, HeaderValue::from_static(kind))];
    match serde_json::to_vec(document) {
        Ok(mut text) => {
            text.push(b'\n'); // for people with curl
            (status, headers, text).into_response()
        }
        Err(error) => {
            tracing::error!(%error, "an answer cannot be written as JSON");
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
        }
    }
}
