//! One request on its way to its destination, and the answer on its way back.

use std::sync::Arc;
use std::time::Duration;

use agentsandbox_egress::credential::Credential;
use agentsandbox_egress::deny::Deny;
use agentsandbox_egress::headers::{self, Facts};
use agentsandbox_egress::models::Refusal;
use agentsandbox_egress::rules::Rule;
use agentsandbox_egress::scrub;
use http::header::{self, HeaderMap, HeaderValue};
use http::{Request, Response, StatusCode, Uri};
use http_body::Body as _;
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;

use crate::body::{Body, Carried, empty};
use crate::connect::rule_cap;
use crate::credentials::Ready;
use crate::exchange::{Direction, Exchange};
use crate::inside::{Asked, Inside, refused, strip_token};
use crate::open::Allowed;
use crate::relay::relay_any;
use crate::session::Event;
use crate::state::Policy;
use crate::upstream::{Lease, send, send_upgrade};

/// A request that waits for an answer is looked at again after so long at least.
const LOOK: Duration = Duration::from_millis(50);

/// Forwards a request that a rule allows.
///
/// # Errors
/// Why it is refused, or why there is no answer.
pub async fn by_rule(
    inside: &Arc<Inside>,
    policy: Arc<Policy>,
    index: usize,
    asked: Asked,
    event: &Event,
) -> Result<Response<Body>, Refusal> {
    let (gateway, session) = (&inside.gateway, &inside.session);
    let rule = policy.rules.rules().get(index).ok_or(Deny::HostNotAllowed)?;
    let most = rule.max_request_bytes;
    if asked
        .facts
        .content_length
        .is_some_and(|length| most.is_some_and(|most| length > most))
    {
        return Err(Deny::RequestTooLarge.into());
    }
    let credential = ready(inside, rule, &asked)?;
    let secret = credential.as_ref().map(|(_, ready)| ready.secret.clone());
    let scheme = asked.scheme();
    let came = asked.came;
    let allowed = Allowed::Request {
        scheme,
        host: asked.origin.host.clone(),
        port: asked.origin.port,
        method: asked.parts.method.to_string(),
        path: asked.path().to_owned(),
        upgrade: asked.facts.upgrade,
        credential: rule.credential.clone(),
    };
    let Asked {
        mut parts,
        body,
        facts,
        origin,
        turn,
        ..
    } = asked;
    let exchange = Exchange::begin(
        gateway,
        session,
        event.clone(),
        allowed,
        rule_cap(rule),
        Some(turn),
    )?;
    let target = parts.uri.path_and_query().cloned();
    parts.uri = target.map_or_else(|| Uri::from_static("/"), Uri::from);
    let sent = head_bytes(parts.method.as_str(), parts.uri.to_string().len(), &parts.headers);
    exchange.spend(Direction::Sent, sent).await?;
    // What this moment's policy opens: the budget may have been waited for.
    let opened = gateway
        .policy(&session.run.policy)
        .inspect_err(|deny| exchange.fail(*deny))?
        .rules
        .opened_at(origin.port);
    clean(&mut parts.headers, rule.credential.as_ref(), &facts, inside);
    if let Some((credential, ready)) = credential {
        headers::for_credential(&mut parts.headers, &facts)?;
        parts.headers.insert(credential.header.clone(), ready.value);
    }
    if facts.upgrade {
        let mut request = Request::from_parts(parts, ());
        let client = hyper::upgrade::on(&mut request);
        headers::set_upgrade(request.headers_mut());
        let answer = send_upgrade(gateway, &exchange, &origin, &opened, request.map(|()| empty()));
        let response = answered(&exchange, gateway.limits.response_timeout(), answer).await?;
        gateway.metrics.first_byte("request", came.elapsed());
        if response.status() == StatusCode::SWITCHING_PROTOCOLS {
            return switch(inside, exchange, client, response, secret);
        }
        let mut response = back(&exchange, response, None, secret, inside).await?;
        // What follows a request for another protocol was not looked at.
        response
            .headers_mut()
            .insert(header::CONNECTION, HeaderValue::from_static("close"));
        return Ok(response);
    }
    let patience = gateway.limits.patience().body;
    let body = if body.is_end_stream() {
        empty()
    } else {
        Carried::new(body, exchange.clone(), Direction::Sent, patience)
            .bounded(most)
            .boxed_unsync()
    };
    let mut request = Request::from_parts(parts, body);
    request.extensions_mut().clear();
    let answer = send(gateway, &exchange, &origin, &opened, request);
    let (response, lease) = answered(&exchange, gateway.limits.response_timeout(), answer).await?;
    gateway.metrics.first_byte("request", came.elapsed());
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        // Nobody asked for another protocol.
        exchange.fail(Deny::UpstreamUnreachable);
        return Err(Deny::UpstreamUnreachable.into());
    }
    back(&exchange, response, Some(lease), secret, inside).await
}

/// The credential of a rule, ready to be added.
fn ready<'a>(
    inside: &Inside,
    rule: &'a Rule,
    asked: &Asked,
) -> Result<Option<(&'a Credential, Ready)>, Deny> {
    let Some(credential) = &rule.credential else {
        return Ok(None);
    };
    // In the clear everybody on the way would read it. Such a policy does not compile.
    if !asked.origin.tls {
        return Err(Deny::SchemeNotAllowed);
    }
    if asked.facts.range {
        return Err(Deny::RangeNotAllowed);
    }
    let ready = inside
        .gateway
        .credentials
        .for_host(credential, &asked.origin.host)?;
    Ok(Some((credential, ready)))
}

/// Takes out of a request what must not go on.
fn clean(headers: &mut HeaderMap, credential: Option<&Credential>, facts: &Facts, inside: &Inside) {
    strip_token(headers, &inside.session);
    headers::clean_request(headers, credential.map(|credential| &credential.header));
    if facts.trailers {
        headers.insert(header::TE, HeaderValue::from_static("trailers"));
    }
}

/// Waits for the head of an answer: as long as bytes of the request move, and `patience` more.
///
/// # Errors
/// Why there is none.
pub async fn answered<T>(
    exchange: &Exchange,
    patience: Duration,
    answer: impl Future<Output = Result<T, Deny>>,
) -> Result<T, Deny> {
    tokio::pin!(answer);
    let result = loop {
        let left = patience.saturating_sub(exchange.still()).max(LOOK);
        tokio::select! {
            // What the request's own body failed for is the reason, not that its connection broke then.
            answer = &mut answer => break answer.map_err(|deny| exchange.failure().unwrap_or(deny)),
            () = exchange.cancel().cancelled() => break Err(exchange.closed_by()),
            () = tokio::time::sleep(left) => if exchange.still() >= patience {
                break Err(Deny::UpstreamTimeout);
            },
        }
    };
    result.inspect_err(|deny| exchange.fail(*deny))
}

/// Prepares an answer's head for the sandbox, and says how often it carried the secret.
///
/// # Errors
/// [`Deny::EncodingNotAllowed`] if the secret could not be found in the body.
pub fn clean_answer(headers: &mut HeaderMap, secret: Option<&[u8]>) -> Result<u64, Deny> {
    let is_encoded = headers::is_encoded(headers);
    if headers.contains_key(header::TRANSFER_ENCODING) {
        // It says how the body was framed; a length beside it does not (RFC 9112, section 6.3).
        headers.remove(header::CONTENT_LENGTH);
    }
    headers::clean_response(headers, secret.is_some());
    let Some(secret) = secret else { return Ok(0) };
    if is_encoded {
        return Err(Deny::EncodingNotAllowed);
    }
    Ok(scrub::headers(headers, secret))
}

/// What the sandbox gets in place of an answer that may not go on: the destination's fault, not its own.
#[must_use]
pub fn bad_answer(exchange: &Exchange, deny: Deny) -> Response<Body> {
    exchange.fail(deny);
    let session = &exchange.session;
    let mut response = refused(&deny.into(), &exchange.event.destination, &session.run.policy);
    *response.status_mut() = StatusCode::BAD_GATEWAY;
    response
}

async fn back(
    exchange: &Arc<Exchange>,
    response: Response<Incoming>,
    lease: Option<Lease>,
    secret: Option<Arc<[u8]>>,
    inside: &Inside,
) -> Result<Response<Body>, Refusal> {
    let (mut parts, body) = response.into_parts();
    exchange.answered(parts.status.as_u16());
    let received = head_bytes("", 0, &parts.headers);
    exchange
        .spend(Direction::Received, received)
        .await
        .inspect_err(|deny| exchange.fail(*deny))?;
    let found = match clean_answer(&mut parts.headers, secret.as_deref()) {
        Ok(found) => found,
        Err(deny) => return Ok(bad_answer(exchange, deny)),
    };
    if found > 0 {
        exchange.session.scrubbed(found);
    }
    parts.extensions.clear();
    let session = exchange.session.clone();
    let idle = inside.gateway.limits.idle_timeout();
    let body = Carried::new(body, exchange.clone(), Direction::Received, idle)
        .without(secret)
        .at_end(move |complete| {
            if let (true, Some(lease)) = (complete, lease) {
                lease.give_back(&session);
            }
        });
    Ok(Response::from_parts(parts, body.boxed_unsync()))
}

/// Answers 101, and carries bytes from then on.
fn switch(
    inside: &Arc<Inside>,
    exchange: Arc<Exchange>,
    client: hyper::upgrade::OnUpgrade,
    mut response: Response<Incoming>,
    secret: Option<Arc<[u8]>>,
) -> Result<Response<Body>, Refusal> {
    let is_websocket = response
        .headers()
        .get(header::UPGRADE)
        .is_some_and(|protocol| protocol.as_bytes().eq_ignore_ascii_case(b"websocket"));
    if !is_websocket {
        exchange.fail(Deny::UpstreamUnreachable);
        return Err(Deny::UpstreamUnreachable.into());
    }
    exchange.answered(101);
    let upstream = hyper::upgrade::on(&mut response);
    let (mut parts, _) = response.into_parts();
    clean_answer(&mut parts.headers, secret.as_deref())?;
    headers::set_upgrade(&mut parts.headers);
    parts.extensions.clear();
    let (patience, idle) = (
        inside.gateway.limits.head_timeout(),
        inside.gateway.limits.idle_timeout(),
    );
    let place = inside.place.clone();
    tokio::spawn(async move {
        let both = async { tokio::try_join!(client, upstream) };
        let upgraded = tokio::select! {
            upgraded = tokio::time::timeout(patience, both) => upgraded,
            () = exchange.cancel().cancelled() => return,
        };
        if let Ok(Ok((client, upstream))) = upgraded {
            let (client, upstream) = (TokioIo::new(client), TokioIo::new(upstream));
            relay_any(&exchange, client, upstream, idle, secret.as_deref()).await;
        }
        drop(place);
    });
    Ok(Response::from_parts(parts, empty()))
}

/// Bytes of a head: the sandbox's budget pays for them, for a head can carry as much as a body.
#[must_use]
pub fn head_bytes(method: &str, target: usize, headers: &HeaderMap) -> u64 {
    let fields: usize = headers
        .iter()
        .map(|(name, value)| name.as_str().len() + value.len() + 4)
        .sum();
    (method.len() + target + fields) as u64
}
