//! Connections to destinations. Each belongs to one run: nothing that one sends can meet what another one reads.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use agentsandbox_egress::deny::Deny;
use agentsandbox_egress::name::HostName;
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{HeaderValue, Request, Response, Uri, Version, header};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use ipnet::IpNet;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::sync::CancellationToken;

use crate::body::Body;
use crate::exchange::Exchange;
use crate::network::reach_host;
use crate::session::Session;
use crate::state::Gateway;

/// An idle connection is used again within so long. Servers close theirs after a minute or so.
const IDLE: Duration = Duration::from_secs(30);
/// Most connections that are kept for one run, to all origins: as many as a sandbox can have requests under way.
const KEPT: usize = 256;
/// Most bytes of an answer's head.
const MAX_HEAD: usize = 64 << 10;
/// Most header fields of an answer.
const MAX_HEADERS: usize = 200;
/// Most interim answers (1xx) to one request. A server has use for one or two.
const MAX_INTERIM: usize = 16;
/// What HTTP/2 keeps for one stream, and for one connection, in bytes; what waits to be written to one stream; and most
/// bytes of a head. [`crate::serve`] has the sum.
const STREAM_WINDOW: u32 = 128 << 10;
const CONNECTION_WINDOW: u32 = 1 << 20;
const SEND_BUFFER: usize = 32 << 10;
const HTTP2_HEAD: u32 = 32 << 10;

/// Where a request goes.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Origin {
    /// The host.
    pub host: HostName,
    /// The port.
    pub port: u16,
    /// Through TLS.
    pub tls: bool,
    /// By HTTP/1.1 only. A destination is spoken to as the sandbox speaks to the gateway, where it can: what it answers
    /// is then what it would have answered without a gateway.
    pub http1: bool,
}

impl Origin {
    /// As `Host` has it: without a port that goes without saying.
    #[must_use]
    pub fn authority(&self) -> String {
        let usual = if self.tls { 443 } else { 80 };
        if self.port == usual {
            self.host.to_string()
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }
}

/// One run's connections.
#[derive(Default)]
pub struct Pool {
    inner: Mutex<HashMap<Origin, Slot>>,
}

#[derive(Default)]
struct Slot {
    shared: Option<(http2::SendRequest<Body>, SocketAddr)>,
    idle: Vec<(Instant, http1::SendRequest<Body>, SocketAddr)>,
}

impl Slot {
    fn len(&self) -> usize {
        self.idle.len() + usize::from(self.shared.is_some())
    }
}

enum Sender {
    Http1(http1::SendRequest<Body>),
    Http2(http2::SendRequest<Body>),
}

/// The connection that an answer came by; given back when the answer has ended.
pub enum Lease {
    /// To be kept, if the answer ended as it should.
    Http1(Origin, http1::SendRequest<Body>, SocketAddr),
    /// Shared anyway.
    Http2,
}

impl Pool {
    /// Closes what nobody used for long.
    pub fn sweep(&self) {
        self.inner().retain(|_, slot| {
            slot.idle
                .retain(|(since, sender, _)| since.elapsed() < IDLE && !sender.is_closed());
            if slot.shared.as_ref().is_some_and(|(shared, _)| shared.is_closed()) {
                slot.shared = None;
            }
            slot.len() > 0
        });
    }

    /// Closes what is connected to where the run may not go any more.
    pub fn recheck(&self, may_reach: impl Fn(SocketAddr) -> bool) {
        self.inner().retain(|_, slot| {
            slot.idle.retain(|(_, _, address)| may_reach(*address));
            slot.shared = slot.shared.take().filter(|(_, address)| may_reach(*address));
            slot.len() > 0
        });
    }

    /// Closes everything that is idle.
    pub fn clear(&self) {
        self.inner().clear();
    }

    /// A connection to an address that may be reached now. Others are closed.
    fn take(&self, origin: &Origin, may_reach: impl Fn(SocketAddr) -> bool) -> Option<(Sender, SocketAddr)> {
        let mut inner = self.inner();
        let slot = inner.get_mut(origin)?;
        if let Some((shared, address)) = &slot.shared {
            if !shared.is_closed() && may_reach(*address) {
                return Some((Sender::Http2(shared.clone()), *address));
            }
            slot.shared = None;
        }
        while let Some((since, sender, address)) = slot.idle.pop() {
            if since.elapsed() < IDLE && sender.is_ready() && may_reach(address) {
                return Some((Sender::Http1(sender), address));
            }
        }
        None
    }

    fn share(&self, origin: &Origin, sender: &http2::SendRequest<Body>, address: SocketAddr) {
        if let Some(slot) = room(&mut self.inner(), origin.clone()) {
            slot.shared = Some((sender.clone(), address));
        }
    }

    fn keep(&self, origin: Origin, sender: http1::SendRequest<Body>, address: SocketAddr) {
        if let Some(slot) = room(&mut self.inner(), origin) {
            slot.idle.push((Instant::now(), sender, address));
        }
    }

    fn inner(&self) -> MutexGuard<'_, HashMap<Origin, Slot>> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Where one more connection is kept, if there is room.
fn room(inner: &mut HashMap<Origin, Slot>, origin: Origin) -> Option<&mut Slot> {
    let kept: usize = inner.values().map(Slot::len).sum();
    (kept < KEPT).then(|| inner.entry(origin).or_default())
}

impl Lease {
    /// The answer has ended as it should: the connection can be used again, once it says so.
    pub fn give_back(self, session: &Arc<Session>) {
        if let Self::Http1(origin, mut sender, address) = self {
            if sender.is_ready() && !session.ended.is_cancelled() {
                session.pool.keep(origin, sender, address);
                return;
            }
            let session = session.clone();
            tokio::spawn(async move {
                let ready = tokio::time::timeout(Duration::from_secs(5), sender.ready()).await;
                if matches!(ready, Ok(Ok(()))) && !session.ended.is_cancelled() {
                    session.pool.keep(origin, sender, address);
                }
            });
        }
    }
}

/// Sends a request whose target is path and query only, by a connection of the pool or a new one. An exchange that is
/// closed before anything was sent sends nothing.
///
/// # Errors
/// What went wrong on the way to the destination; as [`Exchange::closed_by`] if nothing was sent.
pub async fn send(
    gateway: &Gateway,
    exchange: &Exchange,
    origin: &Origin,
    opened: &[IpNet],
    mut request: Request<Body>,
) -> Result<(Response<Incoming>, Lease), Deny> {
    exchange.check()?;
    let session = &exchange.session;
    let target = request.uri().path_and_query().cloned();
    let may_reach = |address: SocketAddr| gateway.network.check(address.ip(), opened).is_ok();
    if let Some((pooled, at)) = session.pool.take(origin, may_reach) {
        exchange.reached(gateway, at)?;
        address(&mut request, origin, target.clone(), &pooled)?;
        match pooled.send(origin, at, request).await {
            Ok(answer) => return Ok(answer),
            // It had been closed, and nothing of the request was sent.
            Err(Unsent::Not(returned)) => request = *returned,
            Err(Unsent::Failed) => return Err(Deny::UpstreamUnreachable),
        }
    }
    // Boxed: a TLS handshake's state is large, and most requests need none.
    let (sender, at) = tokio::select! {
        biased;
        () = exchange.cancel().cancelled() => return Err(exchange.closed_by()),
        connected = Box::pin(connect(gateway, session, origin, opened)) => connected?,
    };
    exchange.reached(gateway, at)?;
    address(&mut request, origin, target, &sender)?;
    match sender.send(origin, at, request).await {
        Ok(answer) => Ok(answer),
        Err(_) => Err(Deny::UpstreamUnreachable),
    }
}

/// Sends a request that may turn the connection into a WebSocket, by a connection of its own.
///
/// # Errors
/// As [`send`].
pub async fn send_upgrade(
    gateway: &Gateway,
    exchange: &Exchange,
    origin: &Origin,
    opened: &[IpNet],
    mut request: Request<Body>,
) -> Result<Response<Incoming>, Deny> {
    let timeout = gateway.limits.connect_timeout();
    let connect = async {
        let (stream, at) = reach_host(&*gateway.network, &origin.host, origin.port, opened, timeout).await?;
        exchange.reached(gateway, at)?;
        if origin.tls {
            let stream = gateway.trust.connect(stream, &origin.host, true).await?;
            begin_http1(stream).await
        } else {
            begin_http1(stream).await
        }
    };
    let sender = tokio::time::timeout(timeout, Box::pin(connect))
        .await
        .unwrap_or(Err(Deny::UpstreamTimeout))?;
    let target = request.uri().path_and_query().cloned();
    let mut sender = Sender::Http1(sender);
    address(&mut request, origin, target, &sender)?;
    match &mut sender {
        Sender::Http1(sender) => send_http1(sender, request)
            .await
            .map_err(|_| Deny::UpstreamUnreachable),
        Sender::Http2(_) => Err(Deny::UpstreamUnreachable),
    }
}

async fn connect(
    gateway: &Gateway,
    session: &Session,
    origin: &Origin,
    opened: &[IpNet],
) -> Result<(Sender, SocketAddr), Deny> {
    let timeout = gateway.limits.connect_timeout();
    let connect = async {
        let (stream, at) = reach_host(&*gateway.network, &origin.host, origin.port, opened, timeout).await?;
        let sender = if origin.tls {
            let stream = gateway.trust.connect(stream, &origin.host, origin.http1).await?;
            if stream.get_ref().1.alpn_protocol() == Some(b"h2") {
                let sender = begin_http2(stream).await?;
                if !session.ended.is_cancelled() {
                    session.pool.share(origin, &sender, at);
                }
                Sender::Http2(sender)
            } else {
                Sender::Http1(begin_http1(stream).await?)
            }
        } else {
            Sender::Http1(begin_http1(stream).await?)
        };
        Ok((sender, at))
    };
    tokio::time::timeout(timeout, connect)
        .await
        .unwrap_or(Err(Deny::UpstreamTimeout))
}

async fn begin_http1<S>(stream: S) -> Result<http1::SendRequest<Body>, Deny>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (sender, connection) = http1::Builder::new()
        .max_headers(MAX_HEADERS)
        .max_buf_size(MAX_HEAD)
        .handshake(TokioIo::new(stream))
        .await
        .map_err(|_| Deny::UpstreamUnreachable)?;
    // It ends when nobody sends or reads by it any more.
    tokio::spawn(connection.with_upgrades());
    Ok(sender)
}

async fn begin_http2<S>(stream: S) -> Result<http2::SendRequest<Body>, Deny>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (sender, connection) = http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_header_list_size(HTTP2_HEAD)
        .max_send_buf_size(SEND_BUFFER)
        .keep_alive_interval(Duration::from_secs(30))
        .keep_alive_timeout(Duration::from_secs(20))
        .handshake(TokioIo::new(stream))
        .await
        .map_err(|_| Deny::UpstreamUnreachable)?;
    // It ends when nobody sends or reads by it any more.
    tokio::spawn(connection);
    Ok(sender)
}

enum Unsent {
    Not(Box<Request<Body>>),
    Failed,
}

impl Sender {
    async fn send(
        self,
        origin: &Origin,
        at: SocketAddr,
        request: Request<Body>,
    ) -> Result<(Response<Incoming>, Lease), Unsent> {
        match self {
            Self::Http1(mut sender) => {
                let response = send_http1(&mut sender, request).await?;
                Ok((response, Lease::Http1(origin.clone(), sender, at)))
            }
            Self::Http2(mut sender) => match sender.try_send_request(request).await {
                Ok(response) => Ok((response, Lease::Http2)),
                Err(mut error) => Err(unsent(error.take_message())),
            },
        }
    }
}

/// Sends a request, and waits for its answer through at most [`MAX_INTERIM`] interim ones.
async fn send_http1(
    sender: &mut http1::SendRequest<Body>,
    mut request: Request<Body>,
) -> Result<Response<Incoming>, Unsent> {
    let flooded = CancellationToken::new();
    let (tell, seen) = (flooded.clone(), AtomicUsize::new(0));
    hyper::ext::on_informational(&mut request, move |_| {
        if seen.fetch_add(1, Ordering::Relaxed) >= MAX_INTERIM {
            tell.cancel();
        }
    });
    tokio::select! {
        answer = sender.try_send_request(request) => answer.map_err(|mut error| unsent(error.take_message())),
        // Nobody waits for the answer any more: the connection is closed.
        () = flooded.cancelled() => Err(Unsent::Failed),
    }
}

fn unsent(request: Option<Request<Body>>) -> Unsent {
    request.map_or(Unsent::Failed, |request| Unsent::Not(Box::new(request)))
}

/// Writes the target in the form of the connection's version.
fn address(
    request: &mut Request<Body>,
    origin: &Origin,
    target: Option<PathAndQuery>,
    sender: &Sender,
) -> Result<(), Deny> {
    let target = target.unwrap_or_else(|| PathAndQuery::from_static("/"));
    let authority = origin.authority();
    match sender {
        Sender::Http1(_) => {
            *request.version_mut() = Version::HTTP_11;
            *request.uri_mut() = Uri::from(target);
            let host = HeaderValue::from_str(&authority).map_err(|_| Deny::NameMalformed)?;
            request.headers_mut().insert(header::HOST, host);
        }
        Sender::Http2(_) => {
            let mut parts = http::uri::Parts::default();
            parts.scheme = Some(if origin.tls { Scheme::HTTPS } else { Scheme::HTTP });
            parts.authority = Some(Authority::try_from(authority).map_err(|_| Deny::NameMalformed)?);
            parts.path_and_query = Some(target);
            *request.version_mut() = Version::HTTP_2;
            *request.uri_mut() = Uri::from_parts(parts).map_err(|_| Deny::PathMalformed)?;
            request.headers_mut().remove(header::HOST);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;

    /// A pool that was given so many connections, to two addresses in turn; how many it has kept; and their other ends.
    async fn pool_of(connections: usize) -> (Pool, impl Fn(&Pool) -> usize, Vec<tokio::io::DuplexStream>) {
        let pool = Pool::default();
        let mut far = Vec::new();
        for number in 0..connections {
            let address = SocketAddr::from(([192, 0, 2, u8::from(number % 4 < 2)], 443));
            let (near, end) = tokio::io::duplex(1 << 10);
            far.push(end);
            let origin = Origin {
                host: format!("h{number}.example.test").parse().unwrap(),
                port: 443,
                tls: true,
                http1: number % 2 == 0,
            };
            if origin.http1 {
                pool.keep(origin, begin_http1(near).await.unwrap(), address);
            } else {
                pool.share(&origin, &begin_http2(near).await.unwrap(), address);
            }
        }
        let kept = |pool: &Pool| pool.inner().values().map(Slot::len).sum::<usize>();
        (pool, kept, far)
    }

    #[tokio::test]
    async fn no_more_connections_are_kept_than_a_run_can_use_at_once() {
        let (pool, kept, _far) = pool_of(KEPT + 10).await;
        assert_eq!(kept(&pool), KEPT);
    }

    #[tokio::test]
    async fn connections_to_where_a_run_may_not_go_any_more_are_closed() {
        let (pool, kept, _far) = pool_of(8).await;
        let forbidden = IpAddr::from([192, 0, 2, 1]);
        pool.recheck(|address| address.ip() != forbidden);
        assert_eq!(kept(&pool), 4);
        assert!(
            pool.inner()
                .values()
                .all(|slot| slot.idle.iter().all(|(_, _, address)| address.ip() != forbidden))
        );
    }
}
