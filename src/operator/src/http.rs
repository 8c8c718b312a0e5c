//! `/metrics`, `/healthz` and `/readyz`. Health is not readiness: a replica that waits for its caches is healthy.

use std::collections::BTreeMap;
use std::net::Ipv6Addr;
use std::sync::{Arc, Mutex, PoisonError};

use axum::Router;
use axum::http::{StatusCode, header};
use axum::routing::get;
use tokio::net::TcpListener;

use crate::metrics::Metrics;

/// What this replica still waits for before it is ready.
#[derive(Clone, Debug)]
pub struct Readiness(Arc<Mutex<BTreeMap<&'static str, bool>>>);

impl Readiness {
    /// Not ready until each gate is set.
    #[must_use]
    pub fn new<const N: usize>(gates: [&'static str; N]) -> Self {
        Self(Arc::new(Mutex::new(
            gates.into_iter().map(|gate| (gate, false)).collect(),
        )))
    }

    /// This gate is passed.
    pub fn set(&self, gate: &'static str) {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(gate, true);
    }

    /// The gates that are not passed.
    #[must_use]
    pub fn missing(&self) -> Vec<&'static str> {
        let gates = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        gates
            .iter()
            .filter(|(_, passed)| !**passed)
            .map(|(gate, _)| *gate)
            .collect()
    }
}

/// Serves until the process ends.
pub async fn serve(port: u16, metrics: Metrics, readiness: Readiness) -> std::io::Result<()> {
    let listener = bind(port).await?;
    let router = Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(move || async move { ready(&readiness) }))
        .route(
            "/metrics",
            get(move || async move {
                let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
                ([(header::CONTENT_TYPE, kind)], metrics.encode())
            }),
        );
    axum::serve(listener, router).await
}

/// Listens on IPv6 and IPv4, or on IPv4 where the kernel has no IPv6.
pub async fn bind(port: u16) -> std::io::Result<TcpListener> {
    match TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)).await {
        Ok(listener) => Ok(listener),
        Err(_) => TcpListener::bind(("0.0.0.0", port)).await,
    }
}

fn ready(readiness: &Readiness) -> (StatusCode, String) {
    let missing = readiness.missing();
    if missing.is_empty() {
        (StatusCode::OK, "ok\n".to_owned())
    } else {
        (
            StatusCode::SERVICE_UNAVAILABLE,
            format!("waiting for: {}\n", missing.join(", ")),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readiness_names_what_it_waits_for() {
        let readiness = Readiness::new(["caches", "canary"]);
        readiness.set("canary");
        assert_eq!(
            ready(&readiness),
            (
                StatusCode::SERVICE_UNAVAILABLE,
                "waiting for: caches\n".to_owned()
            )
        );
        readiness.set("caches");
        assert_eq!(ready(&readiness).0, StatusCode::OK);
    }
}
