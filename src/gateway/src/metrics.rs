//! Metrics in seconds, bytes and counts, without labels per sandbox.

use std::sync::Arc;
use std::time::Duration;

use agentsandbox_egress::deny::Deny;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

type HistogramFamily<L> = Family<L, Histogram, fn() -> Histogram>;

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct DecisionLabels {
    way: &'static str,
    reason: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct WayLabels {
    way: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct DirectionLabels {
    direction: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct KindLabels {
    kind: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct WriteLabels {
    kind: &'static str,
    outcome: &'static str,
}

/// The gateway's metrics; clones share them.
#[derive(Clone)]
pub struct Metrics(Arc<Inner>);

struct Inner {
    registry: Registry,
    decisions: Family<DecisionLabels, Counter>,
    strangers: Family<WayLabels, Counter>,
    connections: Gauge,
    runs: Gauge,
    bytes: Family<DirectionLabels, Counter>,
    tokens: Family<DirectionLabels, Counter>,
    tokens_estimated: Counter,
    first_byte: HistogramFamily<WayLabels>,
    writes: Family<WriteLabels, Counter>,
    watch_errors: Family<KindLabels, Counter>,
    records_lost: Counter,
    scrubbed: Counter,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::with_prefix("agentsandbox_gateway");
        let inner = Inner {
            registry: Registry::default(),
            decisions: Family::default(),
            strangers: Family::default(),
            connections: Gauge::default(),
            runs: Gauge::default(),
            bytes: Family::default(),
            tokens: Family::default(),
            tokens_estimated: Counter::default(),
            // 1 ms to 262 s
            first_byte: Family::new_with_constructor(|| Histogram::new(exponential_buckets(0.001, 4.0, 10))),
            writes: Family::default(),
            watch_errors: Family::default(),
            records_lost: Counter::default(),
            scrubbed: Counter::default(),
        };
        registry.register(
            "decisions",
            "Look-ups, connections, requests and steps by how they were decided",
            inner.decisions.clone(),
        );
        registry.register(
            "strangers",
            "Connections and questions from addresses that belong to no run",
            inner.strangers.clone(),
        );
        registry.register(
            "connections",
            "Open connections of sandboxes",
            inner.connections.clone(),
        );
        registry.register("runs", "Runs whose address is bound", inner.runs.clone());
        registry.register("bytes", "Bytes of sandboxes, by direction", inner.bytes.clone());
        registry.register("tokens", "Model tokens, by direction", inner.tokens.clone());
        registry.register(
            "tokens_estimated",
            "Model tokens that were charged by estimate",
            inner.tokens_estimated.clone(),
        );
        registry.register(
            "first_byte_seconds",
            "From a request's head to the head of its answer",
            inner.first_byte.clone(),
        );
        registry.register("status_writes", "Writes of status", inner.writes.clone());
        registry.register(
            "watch_errors",
            "Watches that failed and were begun again",
            inner.watch_errors.clone(),
        );
        registry.register(
            "records_lost",
            "Records of refusals and ends that found the log's queue full",
            inner.records_lost.clone(),
        );
        registry.register(
            "credentials_scrubbed",
            "Credentials that an answer carried, taken out of it",
            inner.scrubbed.clone(),
        );
        Self(Arc::new(Inner { registry, ..inner }))
    }
}

impl Metrics {
    /// Something was allowed (`None`) or refused.
    pub fn decision(&self, way: &'static str, deny: Option<Deny>) {
        let reason = deny.map_or("Allowed", Deny::as_str);
        self.0
            .decisions
            .get_or_create(&DecisionLabels { way, reason })
            .inc();
    }

    /// Somebody came who is no sandbox of ours.
    pub fn stranger(&self, way: &'static str) {
        self.0.strangers.get_or_create(&WayLabels { way }).inc();
    }

    /// A connection was opened, until the guard is dropped.
    #[must_use]
    pub fn connection(&self) -> Open {
        Open::new(&self.0.connections)
    }

    /// An address was bound, until the guard is dropped.
    #[must_use]
    pub fn run(&self) -> Open {
        Open::new(&self.0.runs)
    }

    /// Bytes that went from a sandbox, and to it.
    pub fn bytes(&self, sent: u64, received: u64) {
        for (direction, bytes) in [("sent", sent), ("received", received)] {
            self.0
                .bytes
                .get_or_create(&DirectionLabels { direction })
                .inc_by(bytes);
        }
    }

    /// What a model request cost.
    pub fn tokens(&self, input: i64, output: i64, estimated: bool) {
        for (direction, tokens) in [("input", input), ("output", output)] {
            let tokens = u64::try_from(tokens).unwrap_or(0);
            self.0
                .tokens
                .get_or_create(&DirectionLabels { direction })
                .inc_by(tokens);
            if estimated {
                self.0.tokens_estimated.inc_by(tokens);
            }
        }
    }

    /// The head of an answer came.
    pub fn first_byte(&self, way: &'static str, after: Duration) {
        self.0
            .first_byte
            .get_or_create(&WayLabels { way })
            .observe(after.as_secs_f64());
    }

    /// A write of status went well, lost against another, or failed.
    pub fn status_write(&self, kind: &'static str, outcome: &'static str) {
        self.0.writes.get_or_create(&WriteLabels { kind, outcome }).inc();
    }

    /// A watch failed and is begun again.
    pub fn watch_error(&self, kind: &'static str) {
        self.0.watch_errors.get_or_create(&KindLabels { kind }).inc();
    }

    /// A record found the queue full.
    pub fn record_lost(&self) {
        self.0.records_lost.inc();
    }

    /// An answer carried a credential.
    pub fn scrubbed(&self, times: u64) {
        self.0.scrubbed.inc_by(times);
    }

    /// All metrics in the text format of OpenMetrics.
    #[must_use]
    pub fn encode(&self) -> String {
        let mut text = String::new();
        // Writing to a String can't fail.
        let _ = encode(&mut text, &self.0.registry);
        text
    }
}

/// Counts one while it lives.
#[derive(Debug)]
pub struct Open(Gauge);

impl Open {
    fn new(gauge: &Gauge) -> Self {
        gauge.inc();
        Self(gauge.clone())
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.dec();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decisions_are_counted_by_reason_and_never_by_sandbox() {
        let metrics = Metrics::default();
        metrics.decision("connect", None);
        metrics.decision("connect", Some(Deny::HostNotAllowed));
        metrics.tokens(10, 5, true);
        let open = metrics.connection();
        let text = metrics.encode();
        assert!(
            text.contains(
                "agentsandbox_gateway_decisions_total{way=\"connect\",reason=\"HostNotAllowed\"} 1"
            ),
            "{text}"
        );
        assert!(
            text.contains("agentsandbox_gateway_tokens_estimated_total 15"),
            "{text}"
        );
        assert!(text.contains("agentsandbox_gateway_connections 1"), "{text}");
        drop(open);
        assert!(metrics.encode().contains("agentsandbox_gateway_connections 0"));
    }
}
