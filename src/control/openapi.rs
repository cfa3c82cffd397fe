//! What the control interface is, for programs: an OpenAPI document, made of the types of `api` and of what stands at the
//! handlers of `routes` and `members`.

use utoipa::OpenApi;

use super::{members, routes};
use crate::api::Problem;

#[derive(OpenApi)]
#[openapi(
    info(
        title = "raidd",
        description = "Software RAID in userspace. Bodies are JSON; every refusal is a problem document (RFC 9457) whose `code` is for programs and \
                       whose `detail` is for people."
    ),
    tags(
        (name = "arrays", description = "Arrays as a whole"),
        (name = "members", description = "Their members and spares"),
        (name = "sync actions", description = "Resync, recovery, check and repair"),
        (name = "devices", description = "Arrays as block devices of this machine's kernel"),
        (name = "daemon", description = "The daemon and its news")
    ),
    components(schemas(Problem)),
    paths(
        routes::healthz,
        routes::metrics_of,
        routes::document,
        routes::daemon,
        routes::events,
        routes::list,
        routes::create,
        routes::assemble,
        routes::scan,
        routes::status,
        routes::stop,
        members::fail,
        members::remove,
        members::add,
        members::re_add,
        members::replace,
        routes::scrub,
        routes::findings,
        routes::stats,
        routes::pause,
        routes::resume,
        routes::read_only,
        routes::read_write,
        routes::tune,
        routes::grow,
        routes::attach,
        routes::detach,
        members::inject,
    )
)]
struct Document;

/// The document.
pub(super) fn document() -> utoipa::openapi::OpenApi {
    Document::openapi()
}
