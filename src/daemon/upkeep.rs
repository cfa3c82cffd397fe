//! What the daemon does for its arrays unasked, now and then: scrubs that are due, members that have come back, a look at
//! their health, spares for those that have none.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc::Receiver;

use super::observe::HealthWatch;
use super::operator::Operator;
use super::returning::Returning;
use super::sharing::Sharing;
use super::uevents;

/// How often it looks.
const TICK: Duration = Duration::from_secs(10);
/// A new device is left alone so long: others look at it, too.
const SETTLE: Duration = Duration::from_millis(500);

/// Runs until it is dropped.
pub async fn run(operator: Arc<Operator>) {
    let mut news = uevents::listen()
        .inspect_err(|error| tracing::warn!(%error, "no news of devices: they are looked for now and then"))
        .ok();
    let mut returning = Returning::default();
    let mut health = HealthWatch::new();
    let mut sharing = Sharing::default();
    loop {
        let entries = operator.service.registry.all();
        returning.keep(|id| entries.iter().any(|entry| entry.id == id));
        for entry in entries {
            operator.scrub_if_due(&entry).await;
            operator.take_back(&entry, &mut returning).await;
        }
        health.look(&operator).await;
        operator.share_spares(&mut sharing).await;
        wait(&mut news, &mut returning).await;
    }
}

/// Waits for news, or until it is time to look.
async fn wait(news: &mut Option<Receiver<PathBuf>>, returning: &mut Returning) {
    let Some(source) = news else { return tokio::time::sleep(TICK).await };
    let mut patience = TICK;
    while let Ok(path) = tokio::time::timeout(patience, source.recv()).await {
        let Some(path) = path else {
            *news = None;
            return tokio::time::sleep(TICK).await;
        };
        returning.note(path);
        patience = SETTLE;
    }
}
