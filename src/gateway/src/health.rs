//! `/metrics`, `/healthz` and `/readyz`. Health is not readiness: a gateway that waits for its watches is healthy.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::Ipv6Addr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

use crate::metrics::Metrics;

/// Longest that one connection may last.
const PATIENCE: Duration = Duration::from_secs(30);
/// Most connections at once: kubelet and metrics collectors.
const MAX_CONNECTIONS: usize = 16;

/// What the gateway still waits for before it is ready.
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

    /// Whether this gate is passed.
    pub fn set(&self, gate: &'static str, passed: bool) {
        self.gates().insert(gate, passed);
    }

    /// The gates that are not passed.
    #[must_use]
    pub fn missing(&self) -> Vec<&'static str> {
        self.gates()
            .iter()
            .filter(|(_, passed)| !**passed)
            .map(|(gate, _)| *gate)
            .collect()
    }

    fn gates(&self) -> std::sync::MutexGuard<'_, BTreeMap<&'static str, bool>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Serves until the process ends.
pub async fn serve(listener: TcpListener, metrics: Metrics, readiness: Readiness) {
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let Ok(place) = places.clone().acquire_owned().await else {
            return;
        };
        let Ok((stream, _)) = listener.accept().await else {
            // Out of descriptors, most likely: they come back.
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let (metrics, readiness) = (metrics.clone(), readiness.clone());
        tokio::spawn(async move {
            let service = service_fn(move |request| {
                let answer = answer(&request, &metrics, &readiness);
                async move { Ok::<_, Infallible>(answer) }
            });
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(Duration::from_secs(5))
                .keep_alive(false)
                .serve_connection(TokioIo::new(stream), service);
            let _ = tokio::time::timeout(PATIENCE, connection).await;
            drop(place);
        });
    }
}

fn answer<B>(request: &Request<B>, metrics: &Metrics, readiness: &Readiness) -> Response<Full<Bytes>> {
    let text = "text/plain; charset=utf-8";
    let (status, kind, body) = match request.uri().path() {
        "/healthz" => (StatusCode::OK, text, "ok\n".to_owned()),
        "/readyz" => {
            let missing = readiness.missing();
            if missing.is_empty() {
                (StatusCode::OK, text, "ok\n".to_owned())
            } else {
                let waits = format!("waiting for: {}\n", missing.join(", "));
                (StatusCode::SERVICE_UNAVAILABLE, text, waits)
            }
        }
        "/metrics" => (
            StatusCode::OK,
            "application/openmetrics-text; version=1.0.0; charset=utf-8",
            metrics.encode(),
        ),
        _ => (StatusCode::NOT_FOUND, text, "not found\n".to_owned()),
    };
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, header::HeaderValue::from_static(kind));
    response
}

/// Listens on IPv6 and IPv4, or on IPv4 where the kernel has no IPv6.
pub async fn bind(port: u16) -> std::io::Result<TcpListener> {
    match TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)).await {
        Ok(listener) => Ok(listener),
        Err(_) => TcpListener::bind(("0.0.0.0", port)).await,
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test]
    async fn health_is_not_readiness() {
        let readiness = Readiness::new(["pods", "keys"]);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(serve(listener, Metrics::default(), readiness.clone()));
        assert!(fetch(port, "/healthz").await.starts_with("HTTP/1.1 200"));
        readiness.set("keys", true);
        let waiting = fetch(port, "/readyz").await;
        assert!(
            waiting.starts_with("HTTP/1.1 503") && waiting.ends_with("waiting for: pods\n"),
            "{waiting}"
        );
        readiness.set("pods", true);
        assert!(fetch(port, "/readyz").await.starts_with("HTTP/1.1 200"));
        readiness.set("pods", false);
        assert!(fetch(port, "/readyz").await.starts_with("HTTP/1.1 503"));
        let metrics = fetch(port, "/metrics").await;
        assert!(
            metrics.contains("application/openmetrics-text") && metrics.ends_with("# EOF\n"),
            "{metrics}"
        );
        assert!(fetch(port, "/other").await.starts_with("HTTP/1.1 404"));
    }

    async fn fetch(port: u16, path: &str) -> String {
        let mut stream = tokio::net::TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }
}
