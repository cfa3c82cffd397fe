//! Scrubs that begin by themselves: so long after the last whole one has ended, whoever began that.
//!
//! Invariants:
//! - One begins only on an array that is healthy, may be written and does nothing else.
//! - What counts as the last one is in the state directory, so that a restart neither forgets nor repeats it. An array
//!   that never had one counts from its creation, and one whose scrub the operator stopped from then.

use std::time::{SystemTime, UNIX_EPOCH};

use super::operator::Operator;
use super::registry::Entry;
use super::saved::SavedArray;
use crate::engine::{ArrayStatus, Health, Phase};
use crate::md::format_uuid;

fn now_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// Whether a scheduled scrub is to begin.
fn is_due(saved: &SavedArray, created_seconds: u64, now_seconds: u64) -> bool {
    let interval_ms = saved.tuning.scrub_interval_ms.unwrap_or(0);
    let last = saved.last_scrub_unix_seconds.max(saved.scrub_put_off_unix_seconds).unwrap_or(created_seconds);
    interval_ms > 0 && now_seconds >= last.saturating_add(interval_ms / 1000)
}

/// Whether an array has nothing better to do.
fn is_at_rest(facts: &ArrayStatus) -> bool {
    facts.health == Health::Optimal
        && matches!(facts.phase, Phase::Clean | Phase::Active)
        && facts.sync.is_none()
        && !facts.resync_is_due
        && !facts.is_paused
}

impl Operator {
    /// Begins a scrub that is due.
    pub(super) async fn scrub_if_due(&self, entry: &Entry) {
        self.note_scrub(entry).await;
        let Some(saved) = self.saved(&entry.uuid) else { return };
        let Some(facts) = self.facts_of(entry).await else { return };
        if !is_due(&saved, facts.created_seconds, now_seconds()) || !is_at_rest(&facts) {
            return;
        }
        let begun = Self::on_array(entry, |array| async move { Ok(array.scrub(false)) }).await;
        if matches!(begun, Ok(true)) {
            tracing::info!(array = entry.name, "a scheduled scrub begins");
        }
    }

    /// Puts the end of the last scrub on record.
    pub(super) async fn note_scrub(&self, entry: &Entry) {
        let last = Self::on_array(entry, |array| async move { Ok(array.last_scrub()) }).await;
        let Some(seconds) = last.ok().flatten().map(|when| when.as_secs()) else { return };
        let known = self.saved(&entry.uuid).and_then(|saved| saved.last_scrub_unix_seconds);
        if known < Some(seconds) {
            self.remember(|state| {
                state.update(&format_uuid(&entry.uuid), |saved| saved.last_scrub_unix_seconds = Some(seconds))
            });
        }
    }

    /// The operator stopped a scrub: what is scheduled begins an interval later.
    pub(super) fn put_off_scrub(&self, entry: &Entry) {
        let now = now_seconds();
        self.remember(|state| {
            state.update(&format_uuid(&entry.uuid), |saved| saved.scrub_put_off_unix_seconds = Some(now))
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scrub_is_due_an_interval_after_the_last() {
        let text = r#"{"uuid":"","name":"","members":[],"start":true,"last":{"name":"","uuid":"","level":"raid1",
            "layout":null,"chunk_bytes":0,"size_bytes":0,"member_size_bytes":0,"metadata":"1.2","events":0,
            "consistency_policy":"bitmap","state":"clean","health":"optimal","nbd_uri":null,"connections":0,
            "members":[],"spares":[],"sync":{"action":"idle","done_bytes":0,"total_bytes":0,"bytes_per_sec":0,
            "eta_seconds":null,"mismatches":0}}}"#;
        let mut saved: SavedArray = serde_json::from_str(text).unwrap();
        assert!(!is_due(&saved, 0, u64::MAX), "never, unless it was asked for");
        saved.tuning.scrub_interval_ms = Some(60_000);
        assert!(!is_due(&saved, 1000, 1059) && is_due(&saved, 1000, 1060), "from its creation");
        saved.last_scrub_unix_seconds = Some(2000);
        assert!(!is_due(&saved, 1000, 2059) && is_due(&saved, 1000, 2060));
        saved.scrub_put_off_unix_seconds = Some(2030);
        assert!(!is_due(&saved, 1000, 2060) && is_due(&saved, 1000, 2090), "put off");
        saved.tuning.scrub_interval_ms = Some(0);
        assert!(!is_due(&saved, 1000, u64::MAX), "never");
    }
}
