//! CONNECT: tunnels through the forward proxy, to names and to addresses.

use std::net::IpAddr;
use std::sync::Arc;

use agentsandbox_egress::authority::{self, Host};
use agentsandbox_egress::deny::Deny;
use agentsandbox_egress::headers;
use agentsandbox_egress::name::HostName;
use agentsandbox_egress::record::RuleName;
use agentsandbox_egress::rules::{Rule, Scheme, Way};
use bytes::{Bytes, BytesMut};
use futures::future::BoxFuture;
use http::{Request, Response};
use hyper::body::Incoming;
use hyper::upgrade::{OnUpgrade, Parts};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use crate::body::{Body, empty};
use crate::client_io::{ClientIo, Prefixed};
use crate::exchange::{Exchange, RuleCap};
use crate::guard::Guarded;
use crate::hello;
use crate::inside::{Entry, Inside};
use crate::network::{reach_address, reach_host};
use crate::open::Allowed;
use crate::session::Event;
use crate::steered;
use crate::{inspect, relay};

/// What follows on a tunnel once it is open.
enum Next {
    /// Bytes, to the connection that was made.
    Address(TcpStream),
    /// TLS, which must name the host, to the connection that was made.
    Passthrough(HostName, TcpStream),
    /// TLS, which must name the host, and is ended here.
    Inspect(HostName, u16),
    /// Requests in the clear, which must name the host.
    Plain(HostName, u16),
}

/// Answers a CONNECT whose token was shown.
///
/// # Errors
/// Why there is no tunnel.
pub async fn connect(
    inside: &Arc<Inside>,
    mut request: Request<Incoming>,
    event: &mut Event,
) -> Result<Response<Body>, Deny> {
    let target = request
        .uri()
        .authority()
        .map(|authority| authority.as_str().to_owned())
        .ok_or(Deny::RequestMalformed)?;
    *event = Event::connection(target.as_str(), None);
    event.method = Some("CONNECT".to_owned());
    let (host, port) = authority::parse(&target, None)?;
    event.destination = host.to_string();
    event.port = Some(port);
    // A `Host` field, where there is one, says the same.
    headers::authority(request.version(), Some(&target), request.headers(), port)?;
    let (exchange, next) = match host {
        Host::Address(address) => to_address(inside, event, address, port).await?,
        Host::Name(host) => to_name(inside, event, host, port).await?,
    };
    exchange.answered(200);
    let upgrade = hyper::upgrade::on(&mut request);
    tokio::spawn(run(inside.clone(), upgrade, exchange, next));
    Ok(Response::new(empty()))
}

async fn to_address(
    inside: &Arc<Inside>,
    event: &mut Event,
    address: IpAddr,
    port: u16,
) -> Result<(Arc<Exchange>, Next), Deny> {
    let (gateway, session) = (&inside.gateway, &inside.session);
    let policy = gateway.policy(&session.run.policy)?;
    let index = policy.rules.connect_address(address, port)?;
    event.rule = Some(RuleName::Allow(index));
    let opened = policy.rules.opened_at(port);
    gateway.network.check(address, &opened)?;
    let cap = policy.rules.rules().get(index).and_then(rule_cap);
    let exchange = Exchange::begin(
        gateway,
        session,
        event.clone(),
        Allowed::Address { address, port },
        cap,
        None,
    )?;
    let timeout = gateway.limits.connect_timeout();
    let reached = reach_address(&*gateway.network, address, port, &opened, timeout).await;
    let upstream = reached.inspect_err(|deny| exchange.fail(*deny))?;
    Ok((exchange, Next::Address(upstream)))
}

async fn to_name(
    inside: &Arc<Inside>,
    event: &mut Event,
    host: HostName,
    port: u16,
) -> Result<(Arc<Exchange>, Next), Deny> {
    let (gateway, session) = (&inside.gateway, &inside.session);
    let policy = gateway.policy(&session.run.policy)?;
    let way = policy.rules.connect(&host, port)?;
    let allowed = Allowed::Host {
        host: host.clone(),
        port,
        way: way.into(),
    };
    let rule = match way {
        Way::Passthrough { rule } => Some(rule),
        Way::Inspect | Way::Plain => None,
    };
    event.rule = rule.map(RuleName::Allow);
    let cap = rule
        .and_then(|rule| policy.rules.rules().get(rule))
        .and_then(rule_cap);
    let exchange = Exchange::begin(gateway, session, event.clone(), allowed, cap, None)?;
    let next = match way {
        Way::Inspect => Next::Inspect(host, port),
        Way::Plain => Next::Plain(host, port),
        Way::Passthrough { .. } => {
            let opened = policy.rules.opened_at(port);
            let timeout = gateway.limits.connect_timeout();
            let reached = reach_host(&*gateway.network, &host, port, &opened, timeout).await;
            let (upstream, address) = reached.inspect_err(|deny| exchange.fail(*deny))?;
            exchange
                .reached(gateway, address)
                .inspect_err(|deny| exchange.fail(*deny))?;
            Next::Passthrough(host, upstream)
        }
    };
    Ok((exchange, next))
}

/// A rule's own ceiling of bytes.
#[must_use]
pub fn rule_cap(rule: &Rule) -> Option<RuleCap> {
    Some(RuleCap {
        max_bytes: rule.max_bytes?,
        name: format!("{:?} {:?} {:?}", rule.destination, rule.ports, rule.paths),
    })
}

/// Boxed, because what it serves may be asked for a tunnel again, and refuses it: its type would hold itself.
fn run(
    inside: Arc<Inside>,
    upgrade: OnUpgrade,
    exchange: Arc<Exchange>,
    next: Next,
) -> BoxFuture<'static, ()> {
    Box::pin(go_on(inside, upgrade, exchange, next))
}

async fn go_on(inside: Arc<Inside>, upgrade: OnUpgrade, exchange: Arc<Exchange>, next: Next) {
    let patience = inside.gateway.limits.head_timeout();
    let upgraded = tokio::select! {
        upgraded = tokio::time::timeout(patience, upgrade) => upgraded,
        () = exchange.cancel().cancelled() => return,
    };
    let Ok(Ok(upgraded)) = upgraded else {
        return;
    };
    let Ok(parts) = upgraded.downcast::<TokioIo<Guarded<ClientIo>>>() else {
        return;
    };
    let Some(client) = bare(parts) else { return };
    match next {
        Next::Address(upstream) => {
            let (prefix, client) = client.into_parts();
            tunnel(&inside, &exchange, client, prefix, upstream).await;
        }
        Next::Passthrough(host, upstream) => {
            if let Some((client, hello)) = opening(&inside, &exchange, client, &host).await {
                tunnel(&inside, &exchange, client, hello, upstream).await;
            }
        }
        Next::Inspect(host, port) => {
            if let Some((client, hello)) = opening(&inside, &exchange, client, &host).await {
                let client = Prefixed::new(hello, client);
                // Boxed, like the next: a tunnel that only passes bytes on needs no room for it.
                Box::pin(inspect::serve(inside, exchange, client, host, port, true)).await;
            }
        }
        Next::Plain(host, port) => {
            let entry = Entry::Pinned {
                scheme: Scheme::Http,
                host,
                port,
            };
            let client = ClientIo::Plain(client);
            Box::pin(steered::serve_http(inside, exchange, client, false, entry, true)).await;
        }
    }
}

/// The TCP connection below everything that was wrapped around it, with what was read of it and not used.
fn bare(parts: Parts<TokioIo<Guarded<ClientIo>>>) -> Option<Prefixed> {
    let (io, held_back) = parts.io.into_inner().into_inner();
    let ClientIo::Plain(io) = io else { return None };
    let (unread, stream) = io.into_parts();
    let mut prefix = BytesMut::new();
    for piece in [parts.read_buf, held_back, unread] {
        prefix.extend_from_slice(&piece);
    }
    Some(Prefixed::new(prefix.freeze(), stream))
}

/// Reads the ClientHello that must come, and compares the name in it.
async fn opening(
    inside: &Inside,
    exchange: &Exchange,
    mut client: Prefixed,
    host: &HostName,
) -> Option<(TcpStream, Bytes)> {
    let patience = inside.gateway.limits.head_timeout();
    let opening = tokio::select! {
        opening = hello::read(&mut client, patience) => opening,
        () = exchange.cancel().cancelled() => return None,
    };
    let deny = match opening {
        Ok(opening) if opening.host == *host => {
            let (rest, client) = client.into_parts();
            let mut bytes = BytesMut::from(opening.bytes);
            bytes.extend_from_slice(&rest);
            return Some((client, bytes.freeze()));
        }
        Ok(_) => Deny::ServerNameMismatch,
        Err(no) => no.deny,
    };
    exchange.fail(deny);
    inside.session.deny(&exchange.event, deny);
    None
}

/// Passes on what came first, then everything.
pub async fn tunnel(
    inside: &Inside,
    exchange: &Exchange,
    client: TcpStream,
    first: Bytes,
    mut upstream: TcpStream,
) {
    if !first.is_empty()
        && !relay::send_first(
            exchange,
            &mut upstream,
            &first,
            inside.gateway.limits.head_timeout(),
        )
        .await
    {
        return;
    }
    drop(first);
    relay::relay(exchange, client, upstream, inside.gateway.limits.idle_timeout()).await;
}
