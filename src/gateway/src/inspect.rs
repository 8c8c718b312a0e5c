//! TLS that is ended here, so that each request in it can be judged.

use std::sync::Arc;

use agentsandbox_egress::deny::Deny;
use agentsandbox_egress::name::HostName;
use agentsandbox_egress::rules::Scheme;
use tokio_rustls::TlsAcceptor;

use crate::client_io::{ClientIo, Prefixed};
use crate::exchange::Exchange;
use crate::inside::{Entry, Inside};
use crate::steered::serve_http;

/// Shakes hands in the name of `host`, which the client has asked for, then serves its requests.
pub async fn serve(
    inside: Arc<Inside>,
    exchange: Arc<Exchange>,
    client: Prefixed,
    host: HostName,
    port: u16,
    token_shown: bool,
) {
    let gateway = &inside.gateway;
    let Ok(policy) = gateway.policy(&inside.session.run.policy) else {
        return;
    };
    let config = match gateway
        .authority
        .server_config(&policy.name, &policy.inspected, &host)
    {
        Ok(Some(config)) => config,
        Ok(None) => return,
        Err(error) => {
            tracing::warn!(policy = policy.name, %error, "no certificate");
            exchange.fail(Deny::NotReady);
            return;
        }
    };
    drop(policy);
    let accept = TlsAcceptor::from(config).accept(client);
    let accepted = tokio::select! {
        accepted = tokio::time::timeout(gateway.limits.head_timeout(), accept) => accepted,
        () = exchange.cancel().cancelled() => return,
    };
    // A client that does not trust the authority says so, and goes.
    let Ok(Ok(stream)) = accepted else {
        exchange.fail(Deny::NotTls);
        return;
    };
    let is_http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
    let entry = Entry::Pinned {
        scheme: Scheme::Https,
        host,
        port,
    };
    serve_http(
        inside,
        exchange,
        ClientIo::Tls(Box::new(stream)),
        is_http2,
        entry,
        token_shown,
    )
    .await;
}
