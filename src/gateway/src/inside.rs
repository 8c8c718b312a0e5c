//! Requests of sandboxes, wherever they came in: each is judged by itself, also the second one of a connection.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Instant;

use agentsandbox_egress::authority::Host;
use agentsandbox_egress::deny::{self, Deny};
use agentsandbox_egress::headers::{self, Facts};
use agentsandbox_egress::models::Refusal;
use agentsandbox_egress::name::HostName;
use agentsandbox_egress::rules::{Permit, Scheme};
use agentsandbox_egress::token;
use bytes::Bytes;
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Version, header};
use http_body::{Body as HttpBody, Frame, SizeHint};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;

use crate::body::{Body, BoxError, full, held};
use crate::guard::{Activity, Busy};
use crate::session::{Event, Session};
use crate::state::{Gateway, Place, Turn};
use crate::upstream::Origin;
use crate::{connect, forward, models};

/// Where requests of a connection came in, and what is known of all of them.
pub struct Inside {
    /// The gateway.
    pub gateway: Arc<Gateway>,
    /// Whose they are.
    pub session: Arc<Session>,
    /// Where they came in.
    pub entry: Entry,
    /// Whether the run's token was shown when the connection was opened.
    pub token_shown: bool,
    /// What the connection is doing.
    pub activity: Arc<Activity>,
    /// Its place among all connections.
    pub place: Arc<Place>,
}

/// Where requests come in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Entry {
    /// The forward proxy: CONNECT, and requests in absolute form.
    Proxy,
    /// A connection to one host: what its requests name must be that.
    Pinned {
        /// Through TLS that was ended here, or in the clear.
        scheme: Scheme,
        /// The host.
        host: HostName,
        /// The port.
        port: u16,
    },
    /// Plain HTTP that DNS has led here: the host is what the request names.
    Steered,
}

/// A request that is well-formed and names where it goes.
pub struct Asked {
    /// Everything but the body.
    pub parts: Parts,
    /// The body.
    pub body: Incoming,
    /// What its headers say of it.
    pub facts: Facts,
    /// Where it goes.
    pub origin: Origin,
    /// When it came.
    pub came: Instant,
    /// Its turn.
    pub turn: Turn,
}

impl Asked {
    /// The path, without query.
    #[must_use]
    pub fn path(&self) -> &str {
        self.parts.uri.path()
    }

    /// Through TLS or not.
    #[must_use]
    pub fn scheme(&self) -> Scheme {
        if self.origin.tls {
            Scheme::Https
        } else {
            Scheme::Http
        }
    }
}

/// Answers one request.
pub async fn answer(inside: Arc<Inside>, request: Request<Incoming>) -> Response<Body> {
    let busy = inside.activity.request();
    let version = request.version();
    let closes = closes_after_refusal(&request);
    let named = named_host(request.uri().host(), request.headers());
    let mut event = Event::request(named, None, request.method().as_str(), request.uri().path());
    let turn = inside
        .session
        .admit_request()
        .and_then(|()| inside.gateway.turn(&inside.session));
    let handled = match &turn {
        // Boxed: it is large, and an answer that waits to be read does not need it any more.
        Ok(turn) => Box::pin(handle(&inside, request, &mut event, turn)).await,
        Err(deny) => Err((*deny).into()),
    };
    let mut response = match handled {
        Ok(response) => response,
        Err(refusal) => {
            inside.session.deny(&event, refusal.deny);
            let mut response = refused(&refusal, &event.destination, &inside.session.run.policy);
            if version < Version::HTTP_2 && closes {
                response
                    .headers_mut()
                    .insert(header::CONNECTION, HeaderValue::from_static("close"));
            }
            response
        }
    };
    let is_http2 = version == Version::HTTP_2;
    let turn = turn.ok();
    if let (Some(turn), true) = (&turn, is_http2) {
        hold_head(response.headers_mut(), turn);
    }
    response.map(|body| {
        let kept = Kept {
            body,
            turn,
            is_http2,
            _busy: busy,
        };
        kept.boxed_unsync()
    })
}

/// Has a head hold its request's turn until it is written. HTTP/2 queues the heads of all streams for a peer that reads
/// nothing.
fn hold_head(headers: &mut HeaderMap, turn: &Turn) {
    if let Some(value) = headers.values_mut().next() {
        let bytes = held(Bytes::copy_from_slice(value.as_bytes()), turn);
        if let Ok(mut waiting) = HeaderValue::from_maybe_shared(bytes) {
            // Else the compression would keep it for later heads.
            waiting.set_sensitive(true);
            *value = waiting;
        }
    }
}

async fn handle(
    inside: &Arc<Inside>,
    request: Request<Incoming>,
    event: &mut Event,
    turn: &Turn,
) -> Result<Response<Body>, Refusal> {
    let came = Instant::now();
    let facts = headers::facts(request.version(), request.method().as_str(), request.headers())?;
    let is_proxy = inside.entry == Entry::Proxy;
    if is_proxy {
        let token = token::of_proxy(request.headers()).ok_or(Deny::TokenRequired)?;
        inside.session.run.check_token(&token)?;
    }
    if request.method() == Method::CONNECT {
        if !is_proxy {
            return Err(Deny::MethodNotAllowed.into());
        }
        return Box::pin(connect::connect(inside, request, event))
            .await
            .map_err(Refusal::from);
    }
    let (parts, body) = request.into_parts();
    let origin = origin(&inside.entry, &parts, event)?;
    let asked = Asked {
        parts,
        body,
        facts,
        origin,
        came,
        turn: turn.clone(),
    };
    let policy = inside.gateway.policy(&inside.session.run.policy)?;
    let permit = policy.rules.request(
        asked.scheme(),
        &asked.origin.host,
        asked.origin.port,
        asked.parts.method.as_str(),
        asked.path(),
        facts.upgrade,
    )?;
    event.rule = Some(permit.name());
    if permit.needs_token() && !is_proxy && !inside.token_shown {
        let token = token::of_key(&asked.parts.headers).ok_or(Deny::TokenRequired)?;
        inside.session.run.check_token(&token)?;
    }
    match permit {
        Permit::Rule { index, .. } => forward::by_rule(inside, policy.clone(), index, asked, event).await,
        Permit::Model(_) => Box::pin(models::ask(inside, policy.clone(), asked, event)).await,
    }
}

/// Where a request goes: the authority that it names, which is the one that its connection was opened for.
fn origin(entry: &Entry, parts: &Parts, event: &mut Event) -> Result<Origin, Deny> {
    let (scheme, default_port) = match entry {
        Entry::Proxy => {
            // The form that only proxies get (RFC 9112, section 3.2.2). Through TLS it comes by CONNECT.
            match parts.uri.scheme_str() {
                Some("http") => {}
                Some(_) => return Err(Deny::SchemeNotAllowed),
                None => return Err(Deny::RequestMalformed),
            }
            (Scheme::Http, 80)
        }
        Entry::Steered => (Scheme::Http, 80),
        Entry::Pinned { scheme, port, .. } => (*scheme, *port),
    };
    let expected = match scheme {
        Scheme::Https => "https",
        Scheme::Http => "http",
    };
    if parts.uri.scheme_str().is_some_and(|scheme| scheme != expected) {
        return Err(Deny::SchemeNotAllowed);
    }
    let authority = parts.uri.authority().map(http::uri::Authority::as_str);
    let (host, port) = headers::authority(parts.version, authority, &parts.headers, default_port)?;
    event.destination = host.to_string();
    event.port = Some(port);
    let Host::Name(host) = host else {
        return Err(Deny::AddressLiteral);
    };
    match entry {
        Entry::Pinned {
            host: pinned,
            port: pinned_port,
            ..
        } if host != *pinned || port != *pinned_port => return Err(Deny::HostMismatch),
        // Steered connections come in by the one port that plain HTTP has.
        Entry::Steered if port != 80 => return Err(Deny::PortNotAllowed),
        _ => {}
    }
    Ok(Origin {
        host,
        port,
        tls: scheme == Scheme::Https,
        http1: parts.version < Version::HTTP_2,
    })
}

/// Takes the run's token out of where an API key would be: it is for the gateway only.
pub fn strip_token(headers: &mut HeaderMap, session: &Session) {
    for name in [
        header::AUTHORIZATION,
        header::HeaderName::from_static("x-api-key"),
    ] {
        let is_token = headers.get_all(&name).iter().any(|value| {
            let text = value.to_str().unwrap_or_default().trim();
            let token = match text.split_once(' ') {
                Some((scheme, token)) if scheme.eq_ignore_ascii_case("bearer") => token.trim(),
                _ => text,
            };
            session.run.check_token(token).is_ok()
        });
        if is_token {
            headers.remove(&name);
        }
    }
}

/// The answer to what is refused.
#[must_use]
pub fn refused(refusal: &Refusal, host: &str, policy: &str) -> Response<Body> {
    let mut response = Response::new(full(explanation(refusal, host, policy)));
    *response.status_mut() =
        StatusCode::from_u16(refusal.deny.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    if refusal.deny.status() == 407 {
        headers.insert(
            header::PROXY_AUTHENTICATE,
            HeaderValue::from_static("Basic realm=\"sandbox\""),
        );
    }
    response
}

fn explanation(refusal: &Refusal, host: &str, policy: &str) -> Bytes {
    let body = deny::body(refusal.deny, host, policy);
    if refusal.detail.is_empty() {
        return body.into();
    }
    let Ok(mut json) = serde_json::from_slice::<serde_json::Value>(&body) else {
        return body.into();
    };
    json["detail"] = refusal.detail.clone().into();
    json["error"]["message"] = refusal.to_string().into();
    json.to_string().into()
}

/// The same for bytes that were no request.
#[must_use]
pub fn refused_bytes(deny: Deny, policy: &str) -> Bytes {
    let body = deny::body(deny, "", policy);
    let status = StatusCode::from_u16(deny.status()).unwrap_or(StatusCode::BAD_REQUEST);
    let mut answer = format!(
        "HTTP/1.1 {} {}\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
        status.as_str(),
        status.canonical_reason().unwrap_or("Refused"),
        body.len()
    )
    .into_bytes();
    answer.extend_from_slice(&body);
    answer.into()
}

/// Whether the connection can't go on after a refusal: what follows the head is no request.
fn closes_after_refusal(request: &Request<Incoming>) -> bool {
    request.method() == Method::CONNECT
        || request.headers().contains_key(header::UPGRADE)
        || !request.body().is_end_stream()
}

/// What a request names, for the record of a refusal: the sandbox's own text.
fn named_host(uri: Option<&str>, headers: &HeaderMap) -> String {
    let header = || {
        headers
            .get(header::HOST)
            .map(|host| String::from_utf8_lossy(host.as_bytes()))
    };
    match uri {
        Some(host) => host.chars().take(261).collect(),
        None => header().unwrap_or_default().chars().take(261).collect(),
    }
}

/// A body while which its connection is busy, and its request has its turn.
struct Kept {
    body: Body,
    turn: Option<Turn>,
    is_http2: bool,
    _busy: Busy,
}

impl HttpBody for Kept {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        let Some(turn) = self.turn.as_ref().filter(|_| self.is_http2) else {
            return Poll::Ready(frame);
        };
        Poll::Ready(frame.map(|frame| frame.map(|frame| frame.map_data(|data| held(data, turn)))))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::OneTurn;

    #[test]
    fn a_head_holds_its_turn_until_it_is_written() {
        let turn = OneTurn::of_tests();
        let mut headers = HeaderMap::new();
        headers.insert(header::SERVER, HeaderValue::from_static("x"));
        headers.insert(header::ETAG, HeaderValue::from_static("y"));
        let before = headers.clone();
        hold_head(&mut headers, &turn);
        assert_eq!(headers, before);
        assert_eq!(Arc::strong_count(&turn), 2);
        assert!(
            headers.values().any(HeaderValue::is_sensitive),
            "or the compression keeps it"
        );
        drop(headers);
        assert_eq!(Arc::strong_count(&turn), 1);
    }
}
