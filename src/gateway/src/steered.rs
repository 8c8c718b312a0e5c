//! Connections that came because DNS has led them here: TLS by its server name, plain HTTP by its `Host`.

use std::sync::Arc;

use agentsandbox_egress::deny::Deny;
use agentsandbox_egress::record::RuleName;
use agentsandbox_egress::rules::{MODEL_PORT, Way};
use bytes::{Bytes, BytesMut};

use crate::accept::Guest;
use crate::client_io::{ClientIo, Prefixed};
use crate::connect::{rule_cap, tunnel};
use crate::exchange::Exchange;
use crate::guard::Activity;
use crate::hello::{self, Opening};
use crate::inside::{Entry, Inside};
use crate::inspect;
use crate::network::reach_host;
use crate::open::Allowed;
use crate::serve::serve;
use crate::session::Event;
use crate::state::Gateway;

/// The port that steered TLS is meant for: the Service's.
const TLS_PORT: u16 = MODEL_PORT;

/// Serves the forward proxy's connections.
pub async fn proxy(gateway: Arc<Gateway>, guest: Guest) {
    http(gateway, guest, Entry::Proxy).await;
}

/// Serves steered plain HTTP.
pub async fn plain(gateway: Arc<Gateway>, guest: Guest) {
    http(gateway, guest, Entry::Steered).await;
}

async fn http(gateway: Arc<Gateway>, guest: Guest, entry: Entry) {
    let cancel = guest.session.ended.clone();
    let inside = Arc::new(Inside {
        gateway,
        session: guest.session,
        entry,
        token_shown: false,
        activity: Activity::new(),
        place: Arc::new(guest.place),
    });
    let client = ClientIo::Plain(Prefixed::new(Bytes::new(), guest.stream));
    serve(client, false, inside, cancel).await;
}

/// Serves steered TLS.
pub async fn tls(gateway: Arc<Gateway>, guest: Guest) {
    let Guest {
        stream,
        session,
        place,
    } = guest;
    let mut client = Prefixed::new(Bytes::new(), stream);
    let patience = gateway.limits.head_timeout();
    let opening = tokio::select! {
        opening = hello::read(&mut client, patience) => opening,
        () = session.ended.cancelled() => return,
    };
    let opening = match opening {
        Ok(opening) => opening,
        Err(no) => {
            session.deny(&Event::connection(no.name, Some(TLS_PORT)), no.deny);
            return;
        }
    };
    let inside = Arc::new(Inside {
        gateway,
        session,
        entry: Entry::Steered,
        token_shown: false,
        activity: Activity::new(),
        place: Arc::new(place),
    });
    let mut event = Event::connection(opening.host.as_str(), Some(TLS_PORT));
    if let Err(deny) = go_on(&inside, client, opening, &mut event).await {
        inside.session.deny(&event, deny);
    }
}

async fn go_on(
    inside: &Arc<Inside>,
    client: Prefixed,
    opening: Opening,
    event: &mut Event,
) -> Result<(), Deny> {
    let (gateway, session) = (&inside.gateway, &inside.session);
    let policy = gateway.policy(&session.run.policy)?;
    let Opening { host, bytes } = opening;
    let way = policy.rules.connect(&host, TLS_PORT)?;
    let allowed = Allowed::Host {
        host: host.clone(),
        port: TLS_PORT,
        way: way.into(),
    };
    let (unread, client) = client.into_parts();
    let mut first = BytesMut::from(bytes);
    first.extend_from_slice(&unread);
    match way {
        Way::Plain => Err(Deny::SchemeNotAllowed),
        Way::Inspect => {
            drop(policy);
            let exchange = Exchange::begin(gateway, session, event.clone(), allowed, None, None)?;
            let client = Prefixed::new(first.freeze(), client);
            // Boxed: a tunnel that only passes bytes on needs no room for it.
            Box::pin(inspect::serve(
                inside.clone(),
                exchange,
                client,
                host,
                TLS_PORT,
                false,
            ))
            .await;
            Ok(())
        }
        Way::Passthrough { rule } => {
            event.rule = Some(RuleName::Allow(rule));
            let cap = policy.rules.rules().get(rule).and_then(rule_cap);
            let opened = policy.rules.opened_at(TLS_PORT);
            drop(policy);
            let exchange = Exchange::begin(gateway, session, event.clone(), allowed, cap, None)?;
            let timeout = gateway.limits.connect_timeout();
            let reached = reach_host(&*gateway.network, &host, TLS_PORT, &opened, timeout).await;
            let (upstream, address) = reached.inspect_err(|deny| exchange.fail(*deny))?;
            exchange
                .reached(gateway, address)
                .inspect_err(|deny| exchange.fail(*deny))?;
            tunnel(inside, &exchange, client, first.freeze(), upstream).await;
            Ok(())
        }
    }
}

/// Serves the requests of a connection to one host. `exchange` is the connection's: its end is this one's.
pub async fn serve_http(
    inside: Arc<Inside>,
    exchange: Arc<Exchange>,
    client: ClientIo,
    is_http2: bool,
    entry: Entry,
    token_shown: bool,
) {
    let cancel = exchange.cancel().clone();
    let inner = Arc::new(Inside {
        gateway: inside.gateway.clone(),
        session: inside.session.clone(),
        entry,
        token_shown,
        activity: Activity::new(),
        place: inside.place.clone(),
    });
    drop(inside);
    serve(client, is_http2, inner, cancel).await;
    drop(exchange);
}
