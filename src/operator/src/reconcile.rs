//! One reconciliation: measured, and kept from ending the operator.

use std::any::Any;
use std::panic::AssertUnwindSafe;

use futures::FutureExt;

use crate::metrics::Metrics;

/// A reconciliation that panicked. One object that nobody thought of must not end the work on all others, here and in
/// the replica that would take over.
#[derive(Debug, thiserror::Error)]
#[error("panicked: {0}; this is a defect of the operator, please report it with the log")]
pub struct Panicked(String);

/// What the metrics call a reconciliation that failed.
pub trait Class {
    /// One word.
    fn class(&self) -> &'static str;
}

/// Carries out one reconciliation of this kind. A panic is an error as any other.
pub async fn measured<T, E>(
    metrics: &Metrics,
    kind: &'static str,
    work: impl Future<Output = Result<T, E>>,
) -> Result<T, E>
where
    E: From<Panicked> + Class,
{
    let measured = metrics.reconcile(kind);
    // The stores' locks are not poisoned by a panic, nor are the operator's own, and each entry in them stands alone.
    let result = AssertUnwindSafe(work)
        .catch_unwind()
        .await
        .unwrap_or_else(|panic| Err(Panicked(text(&*panic)).into()));
    match &result {
        Ok(_) => measured.ok(),
        Err(error) => measured.error(error.class()),
    }
    result
}

fn text(panic: &(dyn Any + Send)) -> String {
    let fixed = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    fixed
        .or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "its reason is no text".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sandbox::ReconcileError;

    async fn outcome(work: impl Future<Output = Result<(), ReconcileError>>) -> (Option<String>, String) {
        let metrics = Metrics::default();
        let result = measured(&metrics, "AgentSandbox", work).await;
        let error = result.err().map(|error| error.to_string());
        (error, metrics.encode())
    }

    fn counted(metrics: &str, outcome: &str) -> bool {
        let line = format!(
            "agentsandbox_reconcile_duration_seconds_count{{kind=\"AgentSandbox\",outcome=\"{outcome}\"}} 1"
        );
        metrics.contains(&line)
    }

    #[tokio::test]
    async fn a_panic_is_an_error_of_its_own_object() {
        let (error, metrics) = outcome(async {
            tokio::task::yield_now().await;
            panic!("a sum of {} overflowed", 7)
        })
        .await;
        assert!(error.is_some_and(|error| error.contains("a sum of 7 overflowed")));
        assert!(counted(&metrics, "panic"), "{metrics}");
        let (error, _) = outcome(async { panic!("fixed") }).await;
        assert!(error.is_some_and(|error| error.contains("fixed")));
    }

    #[tokio::test]
    async fn what_goes_well_and_what_fails_stays_as_it_is() {
        let (error, metrics) = outcome(async { Ok(()) }).await;
        assert!(error.is_none() && counted(&metrics, "ok"), "{metrics}");
        let (error, metrics) = outcome(async { Err(ReconcileError::Stale("job".into())) }).await;
        assert!(error.is_some_and(|error| error.starts_with("job ")));
        assert!(counted(&metrics, "stale"), "{metrics}");
    }
}
