//! Fetches the keys by which the API server signs tokens. Every service account may read them.

use std::sync::Arc;
use std::time::Duration;

use http::Request;
use kube::Client;
use serde::Deserialize;
use tracing::warn;

use crate::jwks::Jwks;
use crate::state::Gateway;

/// Keys are fetched anew so often. A rotated key is also asked for when it is met.
const REFRESH: Duration = Duration::from_mins(5);
/// Not more often than this.
const PAUSE: Duration = Duration::from_secs(5);
/// How long one request may take.
const PATIENCE: Duration = Duration::from_secs(10);

#[derive(Deserialize)]
struct Discovery {
    issuer: String,
}

/// Fetches keys until the process ends.
pub async fn run(gateway: Arc<Gateway>, client: Client) {
    loop {
        let rest = match tokio::time::timeout(PATIENCE, fetch(&client)).await {
            Ok(Ok((issuer, jwks))) => {
                gateway.keys.set(issuer, jwks);
                gateway.readiness.set("keys", gateway.keys.is_ready());
                REFRESH
            }
            Ok(Err(error)) => {
                warn!(%error, "the API server's keys can't be fetched");
                PAUSE
            }
            Err(_) => PAUSE,
        };
        tokio::time::sleep(PAUSE).await;
        tokio::select! {
            () = tokio::time::sleep(rest.saturating_sub(PAUSE)) => {}
            () = gateway.stale_keys.notified() => {}
        }
    }
}

async fn fetch(client: &Client) -> Result<(String, Jwks), Box<dyn std::error::Error + Send + Sync>> {
    let get = |path: &str| Request::get(path).body(Vec::new());
    let discovery: Discovery = client.request(get("/.well-known/openid-configuration")?).await?;
    let jwks: Jwks = client.request(get("/openid/v1/jwks")?).await?;
    Ok((discovery.issuer, jwks))
}
