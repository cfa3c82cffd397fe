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
//! | `POST /v1/arrays/{name}/pause`, `resume`, `readonly`, `readwrite` | that | 200, the status document |
//! | `POST /v1/arrays/{name}/tune` | tune; body: the settings to change | 200, the status document |
//! | `POST /v1/arrays/{name}/attach` | attach; body `{"device":PATH,"connections":N,"wait_ms":MS}` or parts of it | 200, the status document |
//! | `POST /v1/arrays/{name}/detach` | detach; body `{"force":bool}` or none | 204 |
//! | `POST /v1/arrays/{name}/inject` | inject; body `{"device":PATH,"fault":FAULT}` | 200, the status document |
//! | `GET /v1/events` | what has happened and what happens, as server-sent events; `?follow=false`: only the former | 200 |
//! | `GET /metrics` | list | 200, Prometheus' text format |
//! | `GET /healthz` | | 200, whenever the server lives |
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

use super::{BODY_BYTES_MAX, Operator, metrics};
use crate::api::{
    AssembleArray, AttachArray, Command, CreateArray, Event, Fault, Problem, ProblemCode, Reply, Scrub,
    Status, Tuning, check_path,
};

/// The routes, served by `operator`.
pub fn router<O: Operator>(operator: Arc<O>) -> Router {
    Router::new()
        .route("/healthz", get(healthz))
        .route("/metrics", get(metrics_of::<O>))
        .route("/v1/events", get(events::<O>))
        .route("/v1/arrays", get(list::<O>).post(create::<O>))
        // An array may well be called `scan`: GET asks for that one.
        .route("/v1/arrays/assemble", post(assemble::<O>).get(status_of_assemble::<O>))
        .route("/v1/arrays/scan", post(scan::<O>).get(status_of_scan::<O>))
        .route("/v1/arrays/{name}", get(status::<O>))
        .route("/v1/arrays/{name}/stop", post(stop::<O>))
        .route("/v1/arrays/{name}/fail", post(fail::<O>))
        .route("/v1/arrays/{name}/remove", post(remove::<O>))
        .route("/v1/arrays/{name}/add", post(add::<O>))
        .route("/v1/arrays/{name}/re-add", post(re_add::<O>))
        .route("/v1/arrays/{name}/replace", post(replace::<O>))
        .route("/v1/arrays/{name}/scrub", post(scrub::<O>))
        .route("/v1/arrays/{name}/findings", get(findings::<O>))
        .route("/v1/arrays/{name}/pause", post(pause::<O>))
        .route("/v1/arrays/{name}/resume", post(resume::<O>))
        .route("/v1/arrays/{name}/readonly", post(read_only::<O>))
        .route("/v1/arrays/{name}/readwrite", post(read_write::<O>))
        .route("/v1/arrays/{name}/tune", post(tune::<O>))
        .route("/v1/arrays/{name}/attach", post(attach::<O>))
        .route("/v1/arrays/{name}/detach", post(detach::<O>))
        .route("/v1/arrays/{name}/inject", post(inject::<O>))
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
struct Refusal(Problem);

impl From<Problem> for Refusal {
    fn from(problem: Problem) -> Refusal {
        Refusal(problem)
    }
}

type Answer = Result<Response, Refusal>;
type Name = Result<Path<String>, PathRejection>;
type Body = Result<Bytes, BytesRejection>;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct DetachBody {
    #[serde(default)]
    force: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct StopBody {
    #[serde(default)]
    force: bool,
    #[serde(default)]
    release: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct DeviceBody {
    device: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ReplaceBody {
    old: String,
    new: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ScrubBody {
    #[serde(default)]
    repair: bool,
    #[serde(default)]
    stop: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct InjectBody {
    device: String,
    fault: Fault,
}

async fn healthz() -> Response {
    json(StatusCode::OK, "application/json", &serde_json::json!({ "status": "ok" }))
}

async fn metrics_of<O: Operator>(State(operator): State<Arc<O>>) -> Answer {
    let started = operator.started();
    let Reply::Arrays(arrays) = operator.execute(Command::List).await? else {
        unreachable!("a list answers with arrays");
    };
    let headers = [(header::CONTENT_TYPE, metrics::CONTENT_TYPE), (header::CACHE_CONTROL, "no-store")];
    Ok((headers, metrics::text(&arrays, started)).into_response())
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct EventsQuery {
    #[serde(default = "yes")]
    follow: bool,
}

fn yes() -> bool {
    true
}

/// Events as they are sent: `id` is what a client may say it has seen, `data` is one line of JSON.
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

async fn list<O: Operator>(State(operator): State<Arc<O>>) -> Answer {
    run(operator, Command::List).await
}

async fn create<O: Operator>(State(operator): State<Arc<O>>, body: Body) -> Answer {
    let request: CreateArray = parse(body)?;
    request.check().map_err(invalid)?;
    let mut response = run(operator, Command::Create(request)).await?;
    *response.status_mut() = StatusCode::CREATED;
    Ok(response)
}

async fn assemble<O: Operator>(State(operator): State<Arc<O>>, body: Body) -> Answer {
    let request: AssembleArray = parse(body)?;
    request.check().map_err(invalid)?;
    run(operator, Command::Assemble(request)).await
}

async fn scan<O: Operator>(State(operator): State<Arc<O>>) -> Answer {
    run(operator, Command::AssembleScan).await
}

async fn status<O: Operator>(State(operator): State<Arc<O>>, name: Name) -> Answer {
    run(operator, Command::Status { name: decoded(name)? }).await
}

async fn status_of_assemble<O: Operator>(State(operator): State<Arc<O>>) -> Answer {
    run(operator, Command::Status { name: "assemble".to_owned() }).await
}

async fn status_of_scan<O: Operator>(State(operator): State<Arc<O>>) -> Answer {
    run(operator, Command::Status { name: "scan".to_owned() }).await
}

async fn stop<O: Operator>(State(operator): State<Arc<O>>, name: Name, body: Body) -> Answer {
    let name = decoded(name)?;
    let StopBody { force, release } = parse(body)?;
    run(operator, Command::Stop { name, force, release }).await
}

async fn fail<O: Operator>(State(operator): State<Arc<O>>, name: Name, body: Body) -> Answer {
    let (name, device) = (decoded(name)?, device_of(body)?);
    run(operator, Command::Fail { name, device }).await
}

async fn remove<O: Operator>(State(operator): State<Arc<O>>, name: Name, body: Body) -> Answer {
    let (name, device) = (decoded(name)?, device_of(body)?);
    run(operator, Command::Remove { name, device }).await
}

async fn add<O: Operator>(State(operator): State<Arc<O>>, name: Name, body: Body) -> Answer {
    let (name, device) = (decoded(name)?, device_of(body)?);
    run(operator, Command::Add { name, device }).await
}

async fn re_add<O: Operator>(State(operator): State<Arc<O>>, name: Name, body: Body) -> Answer {
    let (name, device) = (decoded(name)?, device_of(body)?);
    run(operator, Command::ReAdd { name, device }).await
}

async fn replace<O: Operator>(State(operator): State<Arc<O>>, name: Name, body: Body) -> Answer {
    let name = decoded(name)?;
    let ReplaceBody { old, new } = parse(body)?;
    check_path(&old).and_then(|()| check_path(&new)).map_err(invalid)?;
    run(operator, Command::Replace { name, old, new }).await
}

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

async fn findings<O: Operator>(State(operator): State<Arc<O>>, name: Name) -> Answer {
    run(operator, Command::Findings { name: decoded(name)? }).await
}

async fn pause<O: Operator>(State(operator): State<Arc<O>>, name: Name) -> Answer {
    run(operator, Command::Pause { name: decoded(name)? }).await
}

async fn resume<O: Operator>(State(operator): State<Arc<O>>, name: Name) -> Answer {
    run(operator, Command::Resume { name: decoded(name)? }).await
}

async fn read_only<O: Operator>(State(operator): State<Arc<O>>, name: Name) -> Answer {
    run(operator, Command::ReadOnly { name: decoded(name)? }).await
}

async fn read_write<O: Operator>(State(operator): State<Arc<O>>, name: Name) -> Answer {
    run(operator, Command::ReadWrite { name: decoded(name)? }).await
}

async fn tune<O: Operator>(State(operator): State<Arc<O>>, name: Name, body: Body) -> Answer {
    let name = decoded(name)?;
    let tuning: Tuning = parse(body)?;
    tuning.check().map_err(invalid)?;
    run(operator, Command::Tune { name, tuning }).await
}

async fn attach<O: Operator>(State(operator): State<Arc<O>>, name: Name, body: Body) -> Answer {
    let name = decoded(name)?;
    let how: AttachArray = parse(body)?;
    how.check().map_err(invalid)?;
    run(operator, Command::Attach { name, how }).await
}

async fn detach<O: Operator>(State(operator): State<Arc<O>>, name: Name, body: Body) -> Answer {
    let name = decoded(name)?;
    let DetachBody { force } = parse(body)?;
    run(operator, Command::Detach { name, force }).await
}

async fn inject<O: Operator>(State(operator): State<Arc<O>>, name: Name, body: Body) -> Answer {
    let name = decoded(name)?;
    let InjectBody { device, fault } = parse(body)?;
    run(operator, Command::Inject { name, device, fault }).await
}

fn device_of(body: Body) -> Result<String, Refusal> {
    let DeviceBody { device } = parse(body)?;
    check_path(&device).map_err(invalid)?;
    Ok(device)
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
async fn run<O: Operator>(operator: Arc<O>, command: Command) -> Answer {
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
        Reply::Done => StatusCode::NO_CONTENT.into_response(),
    })
}

fn decoded(name: Name) -> Result<String, Refusal> {
    name.map(|Path(name)| name).map_err(|_| {
        invalid("the array's name in the path is no UTF-8 when percent-decoded: encode it as UTF-8").into()
    })
}

/// The body as a request; none is `{}`.
fn parse<T: DeserializeOwned>(body: Body) -> Result<T, Refusal> {
    let bytes = body.map_err(|rejection| {
        if rejection.status() == StatusCode::PAYLOAD_TOO_LARGE {
            let detail = format!("the request is longer than {BODY_BYTES_MAX} bytes: send less");
            Problem::new(ProblemCode::TooLarge, detail)
        } else {
            invalid("the request's body could not be received: send it again")
        }
    })?;
    let text: &[u8] = if bytes.is_empty() { b"{}" } else { &bytes };
    serde_json::from_slice(text).map_err(|error| {
        invalid(format!("the request is not the JSON it should be: {error}: correct it")).into()
    })
}

fn invalid(detail: impl AsRef<str>) -> Problem {
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
