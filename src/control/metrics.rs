//! What monitoring reads: the facts of all arrays in Prometheus' text format.
//!
//! Nothing is counted here. At each scrape the documents of `api` are asked for and told as they are, so that they and the
//! metrics cannot disagree: status here, counts and latencies in `work`. Names and units are as <https://prometheus.io/docs/practices/naming/> wants them: base units,
//! `_total` for what only rises, `_info` for what is text.
//!
//! Counters of an array begin at its start: they fall to 0 when it is stopped and started, as Prometheus expects of any.

mod work;

use prometheus::core::{AtomicF64, AtomicU64, GenericCounterVec, GenericGaugeVec};
use prometheus::{Opts, Registry, TextEncoder};

use super::Operator;
use crate::api::{
    ArrayState, Command, DaemonStatus, Health, Member, MemberState, Problem, Reply, Stats, Status, SyncAction,
};

type Gauges = GenericGaugeVec<AtomicF64>;
type Counters = GenericCounterVec<AtomicU64>;
type Times = GenericCounterVec<AtomicF64>;

const STATES: [ArrayState; 4] =
    [ArrayState::Clean, ArrayState::Active, ArrayState::ReadOnly, ArrayState::Inactive];
const HEALTHS: [Health; 3] = [Health::Optimal, Health::Degraded, Health::Failed];
const MEMBER_STATES: [MemberState; 6] = [
    MemberState::InSync,
    MemberState::Recovering,
    MemberState::Replacing,
    MemberState::Spare,
    MemberState::Faulty,
    MemberState::Missing,
];
const ACTIONS: [SyncAction; 5] =
    [SyncAction::Idle, SyncAction::Resync, SyncAction::Recovery, SyncAction::Check, SyncAction::Repair];

/// The type of [`text`], for HTTP.
pub(super) const CONTENT_TYPE: &str = prometheus::TEXT_FORMAT;

/// All metrics, as of now.
pub(super) async fn scrape(operator: &impl Operator) -> Result<String, Problem> {
    let Reply::Daemon(daemon) = operator.execute(Command::Daemon).await? else {
        unreachable!("what the daemon is");
    };
    let Reply::Arrays(arrays) = operator.execute(Command::List).await? else {
        unreachable!("a list answers with arrays");
    };
    let mut stats = Vec::new();
    for array in arrays.iter().filter(|array| array.state != ArrayState::Inactive) {
        // One that has been stopped meanwhile has none any more.
        if let Ok(Reply::Stats(of_array)) =
            operator.execute(Command::Stats { name: array.name.clone() }).await
        {
            stats.push(*of_array);
        }
    }
    Ok(text(&daemon, &arrays, &stats))
}

/// All metrics of these arrays, and what those of them have done that run.
fn text(daemon: &DaemonStatus, arrays: &[Status], stats: &[Stats]) -> String {
    let sheet = Sheet(Registry::new());
    sheet.of_raidd(daemon);
    sheet.of_daemon(daemon);
    sheet.of_arrays(arrays);
    sheet.of_concerns(arrays);
    sheet.of_sync(arrays);
    sheet.of_members(arrays);
    let latencies = [sheet.of_clients(stats), sheet.of_work(stats)];
    let mut families = sheet.0.gather();
    families.extend(latencies.into_iter().filter_map(work::Latencies::family));
    TextEncoder::new().encode_to_string(&families).expect("every family has a name, a help and a type")
}

/// The metrics of one scrape.
struct Sheet(Registry);

impl Sheet {
    fn gauge(&self, name: &str, help: &str, labels: &[&str]) -> Gauges {
        let family = Gauges::new(Opts::new(name, help), labels).expect("names and labels are legal");
        self.0.register(Box::new(family.clone())).expect("every family is made once");
        family
    }

    fn counter(&self, name: &str, help: &str, labels: &[&str]) -> Counters {
        let family = Counters::new(Opts::new(name, help), labels).expect("names and labels are legal");
        self.0.register(Box::new(family.clone())).expect("every family is made once");
        family
    }

    /// A counter of seconds.
    fn time(&self, name: &str, help: &str, labels: &[&str]) -> Times {
        let family = Times::new(Opts::new(name, help), labels).expect("names and labels are legal");
        self.0.register(Box::new(family.clone())).expect("every family is made once");
        family
    }

    fn of_raidd(&self, daemon: &DaemonStatus) {
        let info = self.gauge("raidd_build_info", "Version of raidd.", &["version"]);
        info.with_label_values(&[&daemon.version]).set(1.0);
        let start = self.gauge("raidd_start_time_seconds", "When raidd was started, since 1970 (UTC).", &[]);
        start.with_label_values::<&str>(&[]).set(daemon.started_unix_ms as f64 / 1e3);
    }

    fn of_arrays(&self, arrays: &[Status]) {
        let names = ["array", "uuid", "level", "layout", "metadata", "device"];
        let info =
            self.gauge("raidd_array_info", "What the array is; device is what it is attached as.", &names);
        let size = self.gauge("raidd_array_size_bytes", "Bytes that the array holds.", &["array"]);
        let state = self.gauge(
            "raidd_array_state",
            "1 for what the array does, 0 for all else.",
            &["array", "state"],
        );
        let health = self.gauge(
            "raidd_array_health",
            "1 for what the array's redundancy is worth, 0 for all else.",
            &["array", "health"],
        );
        let redundancy = self.gauge(
            "raidd_array_redundancy_members",
            "How many more members may fail, whichever they are, before data is out of reach.",
            &["array"],
        );
        let connections = self.gauge("raidd_array_connections", "NBD clients connected.", &["array"]);
        let warnings = self.gauge(
            "raidd_array_warnings",
            "Things that its owner should know; status tells them.",
            &["array"],
        );
        let by_whom = ["array", "direction"];
        let client = self.counter(
            "raidd_array_client_bytes_total",
            "Bytes that clients have read or written.",
            &by_whom,
        );
        let member = self.counter(
            "raidd_array_member_bytes_total",
            "Bytes read from or written to members, for whatever purpose; parity is among them.",
            &by_whom,
        );
        for array in arrays {
            let name = array.name.as_str();
            let (layout, device) = (array.layout.as_deref(), array.device.as_deref());
            info.with_label_values(&[
                name,
                &array.uuid,
                &array.level,
                layout.unwrap_or_default(),
                &array.metadata,
                device.unwrap_or_default(),
            ])
            .set(1.0);
            set(&size, &[name], array.size_bytes);
            one_of(&state, name, STATES.map(ArrayState::as_str), array.state.as_str());
            one_of(&health, name, HEALTHS.map(Health::as_str), array.health.as_str());
            if let Some(left) = array.redundancy {
                redundancy.with_label_values(&[name]).set(f64::from(left));
            }
            set(&connections, &[name], array.connections);
            set(&warnings, &[name], array.warnings.len() as u64);
            if let Some(traffic) = &array.traffic {
                client.with_label_values(&[name, "read"]).inc_by(traffic.client_read_bytes);
                client.with_label_values(&[name, "write"]).inc_by(traffic.client_written_bytes);
                member.with_label_values(&[name, "read"]).inc_by(traffic.member_read_bytes);
                member.with_label_values(&[name, "write"]).inc_by(traffic.member_written_bytes);
            }
        }
    }

    fn of_sync(&self, arrays: &[Status]) {
        let action = self.gauge(
            "raidd_array_sync_action",
            "1 for what goes on in the background, 0 for all else.",
            &["array", "action"],
        );
        let paused = self.gauge("raidd_array_sync_paused", "1 while sync actions are held.", &["array"]);
        let done =
            self.gauge("raidd_array_sync_done_bytes", "Bytes of each member that are done.", &["array"]);
        let total = self.gauge(
            "raidd_array_sync_total_bytes",
            "Bytes of each member that are to be done.",
            &["array"],
        );
        let speed = self.gauge(
            "raidd_array_sync_bytes_per_second",
            "Speed of the sync action, of each member.",
            &["array"],
        );
        let mismatches = self.gauge(
            "raidd_array_mismatched_bytes",
            "Bytes that did not agree in the last or running check.",
            &["array"],
        );
        let scrub = self.gauge(
            "raidd_array_last_scrub_timestamp_seconds",
            "When the last whole check or repair ended, since 1970 (UTC).",
            &["array"],
        );
        for array in arrays {
            let (name, sync) = (array.name.as_str(), &array.sync);
            one_of(&action, name, ACTIONS.map(SyncAction::as_str), sync.action.as_str());
            set(&paused, &[name], u64::from(array.sync_paused));
            set(&done, &[name], sync.done_bytes);
            set(&total, &[name], sync.total_bytes);
            set(&speed, &[name], sync.bytes_per_sec);
            set(&mismatches, &[name], sync.mismatched_bytes());
            if let Some(when) = array.last_scrub_unix_seconds {
                set(&scrub, &[name], when);
            }
        }
    }

    fn of_members(&self, arrays: &[Status]) {
        let states =
            self.gauge("raidd_array_members", "Members and spares, by their states.", &["array", "state"]);
        let who = ["array", "slot", "path"];
        let in_sync =
            self.gauge("raidd_member_in_sync", "1 where the slot's member holds all that it should.", &who);
        let kinds = ["array", "slot", "path", "kind"];
        let errors = self.counter(
            "raidd_member_errors_total",
            "Operations of the member that failed, since the array was started.",
            &kinds,
        );
        let corrected = self.counter(
            "raidd_member_corrected_sectors_total",
            "Sectors that could not be read and were mended from redundancy.",
            &who,
        );
        for array in arrays {
            let name = array.name.as_str();
            for state in MEMBER_STATES {
                let members = array.members.iter().filter(|member| member.state == state).count();
                let spares = array.spares.iter().filter(|spare| spare.state == state).count();
                set(&states, &[name, state.as_str()], (members + spares) as u64);
            }
            for Member { slot, path, state, read_errors, write_errors, corrected_errors } in &array.members {
                let (slot, path) = (slot.to_string(), path.as_deref().unwrap_or_default());
                set(&in_sync, &[name, &slot, path], u64::from(*state == MemberState::InSync));
                errors.with_label_values(&[name, &slot, path, "read"]).inc_by(*read_errors);
                errors.with_label_values(&[name, &slot, path, "write"]).inc_by(*write_errors);
                corrected.with_label_values(&[name, &slot, path]).inc_by(*corrected_errors);
            }
        }
    }
}

fn set(family: &Gauges, labels: &[&str], value: u64) {
    family.with_label_values(labels).set(value as f64);
}

/// 1 for the word that holds, 0 for the others: so that a query for any of them finds something.
fn one_of<const N: usize>(family: &Gauges, array: &str, words: [&str; N], holds: &str) {
    for word in words {
        set(family, &[array, word], u64::from(word == holds));
    }
}
