//! Metrics in seconds and counts, without labels per object.

use std::sync::Arc;
use std::time::Instant;

use agentsandbox_api::reason::Reason;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

type HistogramFamily<L> = Family<L, Histogram, fn() -> Histogram>;

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct ReconcileLabels {
    kind: &'static str,
    outcome: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct ReasonLabels {
    reason: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct KindLabels {
    kind: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct WriteLabels {
    verb: &'static str,
    kind: &'static str,
    outcome: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct ClassLabels {
    runtime_class: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct PhaseLabels {
    phase: String,
}

/// The operator's metrics; clones share them.
#[derive(Clone)]
pub struct Metrics(Arc<Inner>);

struct Inner {
    registry: Registry,
    reconciles: HistogramFamily<ReconcileLabels>,
    finished: Family<ReasonLabels, Counter>,
    watch_errors: Family<KindLabels, Counter>,
    writes: Family<WriteLabels, Counter>,
    starts: HistogramFamily<ClassLabels>,
    sandboxes: Family<PhaseLabels, Gauge>,
    leader: Gauge,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::with_prefix("agentsandbox");
        let inner = Inner {
            // 1 ms to 16 s
            reconciles: Family::new_with_constructor(|| Histogram::new(exponential_buckets(0.001, 4.0, 8))),
            // 100 ms to 400 s
            starts: Family::new_with_constructor(|| Histogram::new(exponential_buckets(0.1, 2.0, 13))),
            finished: Family::default(),
            watch_errors: Family::default(),
            writes: Family::default(),
            sandboxes: Family::default(),
            leader: Gauge::default(),
            registry: Registry::default(),
        };
        registry.register(
            "reconcile_duration_seconds",
            "Time of one reconciliation",
            inner.reconciles.clone(),
        );
        registry.register(
            "start_duration_seconds",
            "From the creation of a sandbox to its command running",
            inner.starts.clone(),
        );
        registry.register("finished", "Runs that ended, by reason", inner.finished.clone());
        registry.register(
            "watch_errors",
            "Watches that failed and were begun again",
            inner.watch_errors.clone(),
        );
        registry.register("api_writes", "Writes to the API server", inner.writes.clone());
        registry.register("sandboxes", "Sandboxes by phase", inner.sandboxes.clone());
        registry.register(
            "leader",
            "1 while this replica holds the lease",
            inner.leader.clone(),
        );
        Self(Arc::new(Inner { registry, ..inner }))
    }
}

impl Metrics {
    /// Measures one reconciliation, until the guard is told how it went.
    #[must_use]
    pub fn reconcile(&self, kind: &'static str) -> ReconcileGuard {
        ReconcileGuard {
            metrics: self.clone(),
            kind,
            outcome: "cancelled",
            begun: Instant::now(),
        }
    }

    /// A run ended.
    pub fn finished(&self, reason: Reason) {
        self.0
            .finished
            .get_or_create(&ReasonLabels {
                reason: reason.as_str(),
            })
            .inc();
    }

    /// A watch failed and is begun again.
    pub fn watch_error(&self, kind: &'static str) {
        self.0.watch_errors.get_or_create(&KindLabels { kind }).inc();
    }

    /// A write to the API server.
    pub fn api_write(&self, verb: &'static str, kind: &'static str, ok: bool) {
        let outcome = if ok { "ok" } else { "error" };
        self.0
            .writes
            .get_or_create(&WriteLabels { verb, kind, outcome })
            .inc();
    }

    /// A command runs, so many seconds after its sandbox was created.
    pub fn start_duration(&self, runtime_class: &str, seconds: f64) {
        self.0
            .starts
            .get_or_create(&ClassLabels {
                runtime_class: runtime_class.to_owned(),
            })
            .observe(seconds);
    }

    /// How many sandboxes stand at a phase.
    pub fn set_sandboxes(&self, phase: String, count: i64) {
        self.0.sandboxes.get_or_create(&PhaseLabels { phase }).set(count);
    }

    /// Whether this replica leads.
    pub fn set_leader(&self, leads: bool) {
        self.0.leader.set(i64::from(leads));
    }

    /// All metrics in the text format of `OpenMetrics`.
    #[must_use]
    pub fn encode(&self) -> String {
        let mut text = String::new();
        // Writing to a String can't fail.
        let _ = encode(&mut text, &self.0.registry);
        text
    }
}

/// Measures one reconciliation. Dropped without a word, it counts as `cancelled`.
pub struct ReconcileGuard {
    metrics: Metrics,
    kind: &'static str,
    outcome: &'static str,
    begun: Instant,
}

impl ReconcileGuard {
    /// It went well.
    pub fn ok(mut self) {
        self.outcome = "ok";
    }

    /// It failed for this class of reason.
    pub fn error(mut self, class: &'static str) {
        self.outcome = class;
    }
}

impl Drop for ReconcileGuard {
    fn drop(&mut self) {
        let labels = ReconcileLabels {
            kind: self.kind,
            outcome: self.outcome,
        };
        self.metrics
            .0
            .reconciles
            .get_or_create(&labels)
            .observe(self.begun.elapsed().as_secs_f64());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_are_in_base_units_and_counted() {
        let metrics = Metrics::default();
        metrics.finished(Reason::OomKilled);
        metrics.start_duration("gvisor", 1.5);
        metrics.reconcile("AgentSandbox").ok();
        drop(metrics.reconcile("SandboxPolicy"));
        let text = metrics.encode();
        assert!(
            text.contains("agentsandbox_finished_total{reason=\"OOMKilled\"} 1"),
            "{text}"
        );
        assert!(
            text.contains("agentsandbox_start_duration_seconds_sum{runtime_class=\"gvisor\"} 1.5"),
            "{text}"
        );
        assert!(text.contains(
            "agentsandbox_reconcile_duration_seconds_count{kind=\"AgentSandbox\",outcome=\"ok\"} 1"
        ));
        assert!(text.contains(
            "agentsandbox_reconcile_duration_seconds_count{kind=\"SandboxPolicy\",outcome=\"cancelled\"} 1"
        ));
    }
}
