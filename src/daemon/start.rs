//! Starting an array on the reactor where it is to live: from devices to an array that serves.

use futures_util::future::join_all;

use super::array_home::{ArrayId, settle_in};
use super::event_log::Teller;
use super::faults::MemberDisk;
use super::membership::apply;
use crate::api::Tuning;
use crate::engine::{self, AssembleOptions, Memory, Refusal};
use crate::reactor::runtime;

/// How an array is started.
pub(super) struct Beginning {
    /// Every device must be readable; otherwise those that are not, or do not answer, are passed over.
    pub strict: bool,
    pub options: AssembleOptions,
    pub tuning: Tuning,
    /// The operator had made it read-only.
    pub protect: bool,
    /// Its sync actions are held.
    pub paused: bool,
    /// Who is told what happens to it.
    pub teller: Teller,
}

/// Loads, assembles and starts an array on this reactor.
pub(super) async fn start_here(
    id: ArrayId,
    devices: Vec<(MemberDisk, String)>,
    beginning: Beginning,
    memory: &Memory,
) -> Result<(), Refusal> {
    let Beginning { strict, options, tuning, protect, paused, teller } = beginning;
    let runtime = runtime();
    let loads =
        devices.into_iter().map(|(device, label)| engine::load(device, label, &memory.metadata, &runtime));
    let (mut found, mut unreadable) = (Vec::new(), None);
    for loaded in join_all(loads).await {
        match loaded {
            Ok(member) => found.push(member),
            Err(refusal @ Refusal::Unreadable { .. }) if !strict => {
                tracing::warn!(%refusal, "member left out");
                unreadable = Some(refusal);
            }
            Err(refusal) => return Err(refusal),
        }
    }
    if let Some(refusal) = unreadable.filter(|_| found.is_empty()) {
        return Err(refusal);
    }
    let array = engine::assemble(found, &options, memory, &runtime).await?;
    apply(&array, &tuning);
    let name = array.name().to_owned();
    array.listen(move |event| teller.tell_engine(&name, event));
    if protect {
        array.set_read_only().await?;
    }
    if paused {
        array.pause();
    }
    array.start();
    settle_in(id, array);
    Ok(())
}
