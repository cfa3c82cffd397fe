//! What can be seen of arrays and of the daemon beside their status: counts, load, memory, and what the health watch has found.

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use super::array_home::ArrayId;
use super::health::Watch;
use super::operator::Operator;
use super::registry::Entry;
use super::report;
use crate::api::{
    Concern, DaemonStatus, LATENCY_BOUNDS_US, PoolStatus, Problem, ReactorStatus, Reply, Stats, Status,
};
use crate::io::Pool;

/// How often the health watch looks.
const LOOK_EVERY: Duration = Duration::from_secs(10);

/// What the health watch knows, by array.
#[derive(Default)]
pub(super) struct Concerns(Mutex<HashMap<ArrayId, Vec<Concern>>>);

impl Concerns {
    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<ArrayId, Vec<Concern>>> {
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// What concerns the owner of an array.
    pub fn of(&self, id: ArrayId) -> Vec<Concern> {
        self.lock().get(&id).cloned().unwrap_or_default()
    }
}

/// The health watch over all arrays.
pub(super) struct HealthWatch {
    watches: HashMap<ArrayId, Watch>,
    began: Instant,
    looked: Option<Instant>,
}

impl HealthWatch {
    pub fn new() -> HealthWatch {
        HealthWatch { watches: HashMap::new(), began: Instant::now(), looked: None }
    }

    /// Looks, if it is time to, and tells of what is new.
    pub async fn look(&mut self, operator: &Operator) {
        if self.looked.is_some_and(|looked| looked.elapsed() < LOOK_EVERY) {
            return;
        }
        self.looked = Some(Instant::now());
        let entries = operator.service.registry.all();
        self.watches.retain(|id, _| entries.iter().any(|entry| entry.id == *id));
        operator.concerns.lock().retain(|id, _| entries.iter().any(|entry| entry.id == *id));
        let unix_seconds = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        for entry in entries {
            let (Ok(status), Ok(stats)) = (operator.status_of(&entry).await, stats_of(&entry).await) else {
                continue;
            };
            let watch = self.watches.entry(entry.id).or_default();
            let found = watch.look(&status, &stats, self.began.elapsed(), unix_seconds);
            let before = operator.concerns.lock().insert(entry.id, found.clone()).unwrap_or_default();
            for concern in found {
                let is_same =
                    |other: &Concern| (other.kind, &other.device) == (concern.kind, &concern.device);
                if !before.iter().any(is_same) {
                    tracing::warn!(array = entry.name, concern = %concern.kind, "{}", concern.text);
                    operator.events.teller().tell(&entry.name, concern.kind.event(), concern.device);
                }
            }
        }
    }
}

/// What an array and its members have done.
async fn stats_of(entry: &Entry) -> Result<Stats, Problem> {
    let stats = Operator::on_array(entry, |array| async move { Ok(array.stats(&LATENCY_BOUNDS_US)) }).await?;
    Ok(report::stats(&entry.name, &stats))
}

/// What a status says of concerns: in a list of its own, and among all that its owner should know.
pub(super) fn add_concerns(status: &mut Status, concerns: Vec<Concern>) {
    status.warnings.extend(concerns.iter().map(|concern| concern.text.clone()));
    status.concerns = concerns;
}

impl Operator {
    pub(super) async fn stats(&self, name: &str) -> Result<Reply, Problem> {
        let stats = stats_of(self.entry(name)?.as_ref()).await?;
        Ok(Reply::Stats(Box::new(stats)))
    }

    /// What the daemon is and does.
    pub(super) fn daemon(&self) -> Reply {
        let micros = |time: Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        let reactors = self.service.reactors.iter().map(|reactor| {
            let load = reactor.load();
            ReactorStatus {
                index: reactor.index() as u64,
                uptime_us: micros(load.up),
                asleep_us: micros(load.asleep),
                ring_calls: reactor.ring_calls(),
            }
        });
        let pool = |name: &str, pool: &Pool| PoolStatus {
            pool: name.to_owned(),
            total_bytes: pool.total_bytes() as u64,
            used_bytes: (pool.total_bytes() - pool.free_bytes()) as u64,
        };
        let (clients, memory) = (&self.service.pools, &self.memory);
        let mut pools = vec![
            pool("messages", &clients.messages),
            pool("receive", &clients.receive),
            pool("payloads", &clients.payloads),
            pool("scratch", &memory.scratch),
            pool("edges", &memory.edges),
            pool("rescue", &memory.rescue),
            pool("metadata", &memory.metadata),
        ];
        pools.extend(self.service.ciphertext().map(|ciphertext| pool("ciphertext", ciphertext)));
        Reply::Daemon(DaemonStatus {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            started_unix_ms: u64::try_from(self.started.as_millis()).unwrap_or(u64::MAX),
            reactors: reactors.collect(),
            pools,
            connections: self.service.connections() as u64,
        })
    }
}
