//! Loops that accept connections and can't be starved.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use agentsandbox_egress::deny::Deny;
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

use crate::session::{Event, Session};
use crate::state::{Gateway, Place};

/// When nothing can be accepted (no descriptors are left), it is tried again after so long.
const PAUSE: Duration = Duration::from_millis(50);

/// A sandbox's connection, with its place among all.
pub struct Guest {
    /// The connection.
    pub stream: TcpStream,
    /// Whose it is.
    pub session: Arc<Session>,
    /// Held until the connection and everything that came of it have ended.
    pub place: Place,
}

/// The next connection; `None` once `stopping` is cancelled.
pub async fn accept(listener: &TcpListener, stopping: &CancellationToken) -> Option<(TcpStream, IpAddr)> {
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stopping.cancelled() => return None,
        };
        match accepted {
            Ok((stream, peer)) => return Some((stream, peer.ip().to_canonical())),
            Err(error) => {
                tracing::warn!(%error, "no connection can be accepted");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

/// Accepts connections of bound runs, within their shares, and has each served by a task of its own. All others are
/// closed at once, before anything is kept for them.
pub async fn guests<F>(
    gateway: Arc<Gateway>,
    listener: TcpListener,
    way: &'static str,
    serve: impl Fn(Arc<Gateway>, Guest) -> F,
) where
    F: Future<Output = ()> + Send + 'static,
{
    while let Some((stream, peer)) = accept(&listener, &gateway.stopping).await {
        let Ok(session) = gateway.session(peer) else {
            gateway.stranger(way, peer);
            continue;
        };
        let place = session.admit_request().and_then(|()| gateway.place(&session));
        match place {
            Ok(place) => {
                let _ = stream.set_nodelay(true);
                let guest = Guest {
                    stream,
                    session,
                    place,
                };
                tokio::spawn(serve(gateway.clone(), guest));
            }
            Err(deny) => refuse(&session, deny),
        }
    }
}

fn refuse(session: &Session, deny: Deny) {
    session.deny(&Event::connection("gateway", None), deny);
}
