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
pub async fn serve(listener: TcpListener, metrics: Metrics, readiness: Readiness) -> std::io::Result<()> {
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
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

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

    #[tokio::test]
    async fn health_is_not_readiness() {
        let readiness = Readiness::new(["caches"]);
        let listener = bind(0).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(serve(listener, Metrics::default(), readiness.clone()));
        assert!(fetch(port, "/healthz").await.starts_with("HTTP/1.1 200"));
        let waiting = fetch(port, "/readyz").await;
        assert!(
            waiting.starts_with("HTTP/1.1 503") && waiting.ends_with("waiting for: caches\n"),
            "{waiting}"
        );
        readiness.set("caches");
        assert!(fetch(port, "/readyz").await.starts_with("HTTP/1.1 200"));
        let metrics = fetch(port, "/metrics").await;
        assert!(
            metrics.contains("application/openmetrics-text") && metrics.ends_with("# EOF\n"),
            "{metrics}"
        );
    }

    async fn fetch(port: u16, path: &str) -> String {
        let mut stream = tokio::net::TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }
}
