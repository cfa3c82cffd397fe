//! What was done and how long it took, as metrics: of clients, of members, and of the daemon itself.
//!
//! Histograms come as they were counted by the engine; the registry knows only those that it counts itself.

use prometheus::proto::{Bucket, Histogram, LabelPair, Metric, MetricFamily, MetricType};

use super::{Sheet, set};
use crate::api::{ConcernKind, DaemonStatus, LATENCY_BOUNDS_US, MemberStats, Operations, Stats, Status};

/// A family of histograms that were counted elsewhere.
pub(super) struct Latencies {
    name: &'static str,
    help: &'static str,
    labels: &'static [&'static str],
    metrics: Vec<Metric>,
}

impl Latencies {
    fn new(name: &'static str, help: &'static str, labels: &'static [&'static str]) -> Latencies {
        Latencies { name, help, labels, metrics: Vec::new() }
    }

    fn add(&mut self, values: &[&str], operations: &Operations) {
        assert_eq!(self.labels.len(), values.len());
        let pairs = self.labels.iter().zip(values).map(|(name, value)| {
            let mut pair = LabelPair::default();
            pair.set_name((*name).to_owned());
            pair.set_value((*value).to_owned());
            pair
        });
        let buckets = LATENCY_BOUNDS_US.iter().zip(&operations.within).map(|(bound_us, count)| {
            let mut bucket = Bucket::default();
            bucket.set_upper_bound(seconds(*bound_us));
            bucket.set_cumulative_count(*count);
            bucket
        });
        let mut histogram = Histogram::default();
        histogram.set_bucket(buckets.collect());
        histogram.set_sample_count(operations.count);
        histogram.set_sample_sum(seconds(operations.total_us));
        let mut metric = Metric::from_label(pairs.collect());
        metric.set_histogram(histogram);
        self.metrics.push(metric);
    }

    /// As the registry's come.
    pub fn family(self) -> Option<MetricFamily> {
        if self.metrics.is_empty() {
            return None;
        }
        let mut family = MetricFamily::default();
        family.set_name(self.name.to_owned());
        family.set_help(self.help.to_owned());
        family.set_field_type(MetricType::HISTOGRAM);
        family.set_metric(self.metrics);
        Some(family)
    }
}

fn seconds(us: u64) -> f64 {
    us as f64 / 1e6
}

impl Sheet {
    /// The daemon: who is connected, how busy its threads are, what of its memory is in use.
    pub(super) fn of_daemon(&self, daemon: &DaemonStatus) {
        let connections =
            self.gauge("raidd_connections", "NBD connections, of all arrays and of none yet.", &[]);
        connections.with_label_values::<&str>(&[]).set(daemon.connections as f64);
        let busy = self.time(
            "raidd_reactor_busy_seconds_total",
            "Time that a reactor was awake: it worked, or looked for work before a sleep.",
            &["reactor"],
        );
        let calls = self.counter(
            "raidd_reactor_ring_calls_total",
            "Calls of the kernel for a reactor's ring.",
            &["reactor"],
        );
        for reactor in &daemon.reactors {
            let index = reactor.index.to_string();
            let awake_us = reactor.uptime_us.saturating_sub(reactor.asleep_us);
            busy.with_label_values(&[&index]).inc_by(seconds(awake_us));
            calls.with_label_values(&[&index]).inc_by(reactor.ring_calls);
        }
        let limit = self.gauge("raidd_memory_limit_bytes", "Memory for data, by what it is for.", &["pool"]);
        let used = self.gauge("raidd_memory_used_bytes", "What of it is in use.", &["pool"]);
        for pool in &daemon.pools {
            set(&limit, &[&pool.pool], pool.total_bytes);
            set(&used, &[&pool.pool], pool.used_bytes);
        }
    }

    /// What the health watch has found.
    pub(super) fn of_concerns(&self, arrays: &[Status]) {
        let concerns = self.gauge(
            "raidd_array_concerns",
            "What the health watch has found, by kind; status tells which and what to do.",
            &["array", "concern"],
        );
        for array in arrays {
            for kind in ConcernKind::ALL {
                let count = array.concerns.iter().filter(|concern| concern.kind == kind).count();
                set(&concerns, &[&array.name, kind.as_str()], count as u64);
            }
        }
    }

    /// Arrays: how long they have been what, and what clients asked of them.
    pub(super) fn of_clients(&self, arrays: &[Stats]) -> Latencies {
        let of = &["array"];
        let up = self.gauge("raidd_array_uptime_seconds", "Time since the array was started.", of);
        let degraded = self.time(
            "raidd_array_degraded_seconds_total",
            "Time since then with a slot that had no member in sync.",
            of,
        );
        let unavailable = self.time(
            "raidd_array_unavailable_seconds_total",
            "Time since then with data out of reach, or without taking writes because they could not be kept.",
            of,
        );
        let failover = self.gauge(
            "raidd_array_failover_duration_seconds",
            "The longest wait of a client's read or write that was under way when a member failed the last time.",
            of,
        );
        let in_flight = self.gauge("raidd_array_requests_in_flight", "Requests of clients under way.", of);
        let hedged = self.counter(
            "raidd_array_hedged_reads_total",
            "Reads that took longer than usual and were asked of other members, too.",
            of,
        );
        let errors = self.counter(
            "raidd_array_request_errors_total",
            "Requests of clients that were answered with an error.",
            &["array", "operation"],
        );
        let mut latencies = Latencies::new(
            "raidd_array_request_duration_seconds",
            "What requests of clients took, from when the array had them until it had the answer.",
            &["array", "operation"],
        );
        for array in arrays {
            let name = array.name.as_str();
            up.with_label_values(&[name]).set(array.uptime_ms as f64 / 1e3);
            degraded.with_label_values(&[name]).inc_by(array.degraded_ms as f64 / 1e3);
            unavailable.with_label_values(&[name]).inc_by(array.unavailable_ms as f64 / 1e3);
            if let Some(us) = array.failover_us {
                failover.with_label_values(&[name]).set(seconds(us));
            }
            set(&in_flight, &[name], array.in_flight);
            hedged.with_label_values(&[name]).inc_by(array.hedged_reads);
            for (operation, operations) in [
                ("read", &array.reads),
                ("write", &array.writes),
                ("flush", &array.flushes),
                ("other", &array.others),
            ] {
                errors.with_label_values(&[name, operation]).inc_by(operations.errors);
                latencies.add(&[name, operation], operations);
            }
        }
        latencies
    }

    /// Members: what they were asked for.
    pub(super) fn of_work(&self, arrays: &[Stats]) -> Latencies {
        let who = &["array", "slot", "path"];
        let in_flight =
            self.gauge("raidd_member_operations_in_flight", "Operations of the member under way.", who);
        let bytes = self.counter(
            "raidd_member_bytes_total",
            "Bytes read from or written to the member.",
            &["array", "slot", "path", "direction"],
        );
        let faults = self.counter(
            "raidd_member_faults_total",
            "Operations of the member that failed, by what was wrong.",
            &["array", "slot", "path", "cause"],
        );
        let mut latencies = Latencies::new(
            "raidd_member_operation_duration_seconds",
            "What operations of the member took.",
            &["array", "slot", "path", "operation"],
        );
        for array in arrays {
            for member in &array.members {
                let MemberStats { slot, path, in_flight: pending, reads, writes, flushes, errors } = member;
                let slot = slot.map(|slot| slot.to_string()).unwrap_or_default();
                let who = [array.name.as_str(), &slot, path.as_deref().unwrap_or_default()];
                let with = |last: &'static str| [who[0], who[1], who[2], last];
                set(&in_flight, &who, *pending);
                bytes.with_label_values(&with("read")).inc_by(reads.bytes);
                bytes.with_label_values(&with("write")).inc_by(writes.bytes);
                for (cause, count) in [
                    ("media", errors.media),
                    ("timeout", errors.timeout),
                    ("gone", errors.gone),
                    ("other", errors.other),
                ] {
                    faults.with_label_values(&with(cause)).inc_by(count);
                }
                for (operation, operations) in [("read", reads), ("write", writes), ("flush", flushes)] {
                    latencies.add(&with(operation), operations);
                }
            }
        }
        latencies
    }
}
