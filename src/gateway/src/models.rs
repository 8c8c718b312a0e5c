//! Requests to models: parsed, written anew, paid for before they are sent, and measured as they are answered.

use std::sync::Arc;
use std::time::Duration;

use agentsandbox_egress::budget::Counters;
use agentsandbox_egress::deny::Deny;
use agentsandbox_egress::headers;
use agentsandbox_egress::models::{
    self, Charge, Endpoint, MAX_REQUEST_BYTES, Meter, Prepared, Refusal, catalog,
};
use agentsandbox_egress::record::{Class, RuleName};
use agentsandbox_egress::rules::{MODEL_PORT, Target};
use bytes::{Bytes, BytesMut};
use http::header::{self, HeaderMap, HeaderValue};
use http::{Method, Request, Response, StatusCode, Uri};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use tokio::sync::{OwnedSemaphorePermit, oneshot};
use tokio::time::Instant;

use crate::body::{Body, Carried, full};
use crate::credentials::Ready;
use crate::exchange::{Direction, Exchange};
use crate::forward::{bad_answer, clean_answer, head_bytes};
use crate::inside::{Asked, Inside};
use crate::metered::{Bill, Leave, Metered};
use crate::open::Allowed;
use crate::session::Event;
use crate::state::{Policy, Turn};
use crate::upstream::{Lease, Origin, send};

/// Answers a request at a model's host.
///
/// # Errors
/// Why it is refused, or why there is no answer.
pub async fn ask(
    inside: &Arc<Inside>,
    policy: Arc<Policy>,
    asked: Asked,
    event: &mut Event,
) -> Result<Response<Body>, Refusal> {
    event.class = Class::Model;
    let rules = policy.rules.models_at(&asked.origin.host);
    let provider = rules.first().ok_or(Deny::HostNotAllowed)?.provider;
    let endpoint = models::endpoint(provider, asked.parts.method.as_str(), asked.path())?;
    let query = models::query(provider, &endpoint, asked.parts.uri.query())?;
    let listed = match &endpoint {
        Endpoint::Models => Some(catalog::list(provider, &rules)),
        Endpoint::Model(name) => Some(catalog::model(provider, &rules, name).ok_or(Deny::ModelNotAllowed)?),
        _ => None,
    };
    if let Some(listed) = listed {
        inside.session.allow(event)?;
        return Ok(json(listed));
    }
    if asked.facts.encoded {
        return Err(Deny::EncodingNotAllowed.into());
    }
    let mut headers = HeaderMap::new();
    for (name, value) in &asked.parts.headers {
        if models::header_allowed(provider, name.as_str()) {
            headers.append(name.clone(), value.clone());
        }
    }
    headers::ask_for_identity(&mut headers);
    let mut target = asked.path().to_owned();
    if let Some(query) = query {
        target.push('?');
        target.push_str(query);
    }
    let target = target.parse::<Uri>().map_err(|_| Deny::PathMalformed)?;
    let method = asked.parts.method.clone();
    let (host, http1) = (asked.origin.host.clone(), asked.origin.http1);
    let head = head_bytes(method.as_str(), target.to_string().len(), &asked.parts.headers);
    let turn = asked.turn.clone();
    let (body, memory) = collect(inside, asked).await?;
    drop(rules);

    // In a task of its own: a request that the sandbox gives up may have been sent, and is paid for all the same.
    let round = Round {
        inside: inside.clone(),
        policy,
        endpoint,
        http1,
        host,
        method,
        target,
        headers,
        head,
        event: event.clone(),
        turn,
    };
    let (tell, told) = oneshot::channel();
    tokio::spawn(async move {
        let mut round = round;
        let answer = round.run(body, memory).await;
        let Round { inside, event, .. } = round;
        if let Err((Err(refusal), event)) = tell.send((answer, event)) {
            // The sandbox has gone, and with it whoever records what is refused.
            inside.session.deny(&event, refusal.deny);
        }
    });
    let (answer, decided) = told.await.map_err(|_| Deny::NotReady)?;
    *event = decided;
    answer
}

/// Reads the whole body, within the sandbox's part of the memory that there is for bodies.
async fn collect(inside: &Inside, asked: Asked) -> Result<(Bytes, Vec<OwnedSemaphorePermit>), Refusal> {
    let max = MAX_REQUEST_BYTES as u64;
    if asked.facts.content_length.is_some_and(|length| length > max) {
        return Err(Deny::RequestTooLarge.into());
    }
    let (gateway, session) = (&inside.gateway, &inside.session);
    let patience = gateway.limits.patience().body;
    let mut body = asked.body;
    let mut bytes = BytesMut::new();
    let mut memory = Vec::new();
    loop {
        let frame = tokio::select! {
            frame = tokio::time::timeout(patience, body.frame()) => frame.map_err(|_| Deny::RequestMalformed)?,
            () = session.ended.cancelled() => return Err(Deny::UnknownSandbox.into()),
        };
        let Some(frame) = frame else { break };
        let Ok(data) = frame.map_err(|_| Deny::RequestMalformed)?.into_data() else {
            continue;
        };
        if bytes.len() + data.len() > MAX_REQUEST_BYTES {
            return Err(Deny::RequestTooLarge.into());
        }
        // The body, what is read of it and what is written anew: about three times its size, accounted for as twice.
        let kib = u32::try_from(data.len() / 512 + 1).unwrap_or(u32::MAX);
        for part in [&session.model_memory, &gateway.model_memory] {
            let permit = part.clone().try_acquire_many_owned(kib);
            memory.push(permit.map_err(|_| Deny::TooManyRequests)?);
        }
        bytes.extend_from_slice(&data);
    }
    Ok((bytes.freeze(), memory))
}

/// One request, and all attempts to have it answered.
struct Round {
    inside: Arc<Inside>,
    policy: Arc<Policy>,
    endpoint: Endpoint,
    http1: bool,
    host: agentsandbox_egress::name::HostName,
    method: Method,
    target: Uri,
    headers: HeaderMap,
    head: u64,
    event: Event,
    turn: Turn,
}

impl Round {
    async fn run(
        &mut self,
        body: Bytes,
        memory: Vec<OwnedSemaphorePermit>,
    ) -> Result<Response<Body>, Refusal> {
        let policy = self.policy.clone();
        let rules = policy.rules.models_at(&self.host);
        let prepared = models::prepare(&rules, &self.endpoint, &body)?;
        let received = body.len() as u64;
        drop(body);
        self.event.rule = Some(RuleName::Model(prepared.rule.index));
        self.event.model = Some(prepared.model.clone());
        let mut leave = self.leave(&prepared).await?;
        let targets = &prepared.rule.targets;
        for (index, target) in targets.iter().enumerate() {
            let is_last = index + 1 == targets.len();
            let bytes = if index == 0 { received + self.head } else { 0 };
            let attempt = self.attempt(&prepared, target, leave, bytes, is_last).await;
            let may_help = match &attempt {
                Ok(response) => is_trouble(response.status()),
                Err(refusal) => matches!(
                    refusal.deny,
                    Deny::UpstreamUnreachable | Deny::UpstreamTimeout | Deny::UpstreamUntrusted
                ),
            };
            if is_last || !may_help {
                drop(memory);
                return attempt;
            }
            // Another attempt is another request, to be paid for like the first.
            drop(attempt);
            leave = self.leave(&prepared).await?;
        }
        Err(Deny::UpstreamUnreachable.into())
    }

    async fn leave(&self, prepared: &Prepared<'_>) -> Result<Leave, Deny> {
        let need = Counters {
            tokens: prepared.reservation,
            model_requests: 1,
            steps: 1,
            bytes: 0,
        };
        let session = &self.inside.session;
        let leave = async {
            let quota = self.policy.quota.reserve(need).await?;
            let run = session.account.reserve(need, need).await?;
            Ok(Leave { run, quota })
        };
        tokio::select! {
            leave = leave => leave,
            () = session.ended.cancelled() => Err(Deny::UnknownSandbox),
        }
    }

    /// Sends the request to one target.
    async fn attempt(
        &self,
        prepared: &Prepared<'_>,
        target: &Target,
        leave: Leave,
        bytes: u64,
        is_last: bool,
    ) -> Result<Response<Body>, Refusal> {
        let (gateway, session) = (&self.inside.gateway, &self.inside.session);
        let mut event = self.event.clone();
        target.host.as_str().clone_into(&mut event.destination);
        event.port = Some(MODEL_PORT);
        let model = target.model.as_deref().unwrap_or(&prepared.model);
        let credential = target
            .credential
            .as_ref()
            .map(|credential| {
                gateway
                    .credentials
                    .for_host(credential, &target.host)
                    .map(|ready| (credential, ready))
            })
            .transpose()?;
        let body = prepared.body_for(model);
        let mut request = Request::new(full(body));
        *request.method_mut() = self.method.clone();
        *request.uri_mut() = self.target.clone();
        *request.headers_mut() = self.headers.clone();
        request
            .headers_mut()
            .insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        let mut secret = None;
        if let Some((credential, Ready { value, secret: bytes })) = credential {
            request.headers_mut().remove(&credential.header);
            request.headers_mut().insert(credential.header.clone(), value);
            secret = Some(bytes);
        }
        let origin = Origin {
            host: target.host.clone(),
            port: MODEL_PORT,
            tls: true,
            http1: self.http1,
        };
        let allowed = Allowed::Model {
            host: self.host.clone(),
            model: prepared.model.clone(),
            target: target.clone(),
            server_tools: prepared.rule.server_tools.clone(),
        };
        let exchange = Exchange::begin(gateway, session, event, allowed, None, Some(self.turn.clone()))?;
        if bytes > 0 {
            exchange
                .spend(Direction::Sent, bytes)
                .await
                .inspect_err(|deny| exchange.fail(*deny))?;
        }
        // What this moment's policy opens, and not the one's by which the body was read.
        let policy = gateway
            .policy(&session.run.policy)
            .inspect_err(|deny| exchange.fail(*deny))?;
        let opened = policy.rules.opened_at(MODEL_PORT);
        let begun = Instant::now();
        // From here on it may be answered: whoever drops the bill pays for all of it.
        let bill = Bill::new(&exchange, leave, prepared.unanswered());
        let answer = send(gateway, &exchange, &origin, &opened, request);
        let (patience, drain) = (
            gateway.limits.model_response_timeout(),
            gateway.limits.model_drain(),
        );
        let outcome = waited(&exchange, patience, drain, answer).await;
        let (response, connection) = match outcome {
            Ok(answered) => answered,
            Err(deny) => {
                match deny {
                    // Nothing was sent: nobody was there, or it was closed before.
                    Deny::UpstreamUntrusted
                    | Deny::AddressForbidden
                    | Deny::NameMalformed
                    | Deny::HostNotAllowed
                    | Deny::UnknownSandbox => bill.settle(Charge::default()),
                    _ => drop(bill),
                }
                // That it was closed is no fault of the target's: no other one is asked.
                let deny = exchange.check().err().unwrap_or(deny);
                exchange.fail(deny);
                return Err(deny.into());
            }
        };
        gateway.metrics.first_byte("model", begun.elapsed());
        if is_trouble(response.status()) && !is_last {
            // Another target is asked instead. What this one says of its trouble is not worth the wait.
            let status = response.status();
            exchange.answered(status.as_u16());
            bill.settle(Meter::new(prepared, None).finish(status.as_u16(), true));
            exchange.check().inspect_err(|deny| exchange.fail(*deny))?;
            let mut response = Response::new(full(Bytes::new()));
            *response.status_mut() = status;
            return Ok(response);
        }
        self.back(prepared, response, connection, secret, exchange, bill)
            .await
    }

    async fn back(
        &self,
        prepared: &Prepared<'_>,
        response: Response<Incoming>,
        lease: Lease,
        secret: Option<Arc<[u8]>>,
        exchange: Arc<Exchange>,
        bill: Bill,
    ) -> Result<Response<Body>, Refusal> {
        let limits = &self.inside.gateway.limits;
        let (mut parts, body) = response.into_parts();
        exchange.answered(parts.status.as_u16());
        if headers::is_encoded(&parts.headers) || parts.status == StatusCode::SWITCHING_PROTOCOLS {
            // What it cost can't be read, nor can it be searched.
            return Ok(bad_answer(&exchange, Deny::EncodingNotAllowed));
        }
        let received = head_bytes("", 0, &parts.headers);
        exchange
            .spend(Direction::Received, received)
            .await
            .inspect_err(|deny| exchange.fail(*deny))?;
        let kind = parts
            .headers
            .get(header::CONTENT_TYPE)
            .and_then(|kind| kind.to_str().ok());
        let meter = Meter::new(prepared, kind);
        // A provider's cookies are never for the sandbox, with a key or without.
        let nothing: &[u8] = &[];
        let found = clean_answer(&mut parts.headers, Some(secret.as_deref().unwrap_or(nothing)))?;
        if found > 0 {
            exchange.session.scrubbed(found);
        }
        parts.extensions.clear();
        let filter = prepared.filter();
        if filter.is_some() {
            parts.headers.remove(header::CONTENT_LENGTH);
        }
        let session = exchange.session.clone();
        let body = Carried::new(body, exchange, Direction::Received, limits.idle_timeout())
            .without(secret)
            .at_end(move |complete| {
                if complete {
                    lease.give_back(&session);
                }
            });
        let status = parts.status.as_u16();
        let metered = Metered::new(body, filter, meter, status, bill, limits.model_drain());
        Ok(Response::from_parts(parts, metered.boxed_unsync()))
    }
}

/// Whether another target may do better.
fn is_trouble(status: StatusCode) -> bool {
    status == StatusCode::TOO_MANY_REQUESTS || status.is_server_error()
}

/// Waits for the head of a model's answer. A request that must be closed has been sent all the same: it is waited for
/// `drain` more, so that it is known what it cost.
async fn waited<T>(
    exchange: &Exchange,
    patience: Duration,
    drain: Duration,
    answer: impl Future<Output = Result<T, Deny>>,
) -> Result<T, Deny> {
    tokio::pin!(answer);
    tokio::select! {
        answer = tokio::time::timeout(patience, &mut answer) => return answer.unwrap_or(Err(Deny::UpstreamTimeout)),
        () = exchange.cancel().cancelled() => {}
    }
    tokio::time::timeout(drain.min(patience), answer)
        .await
        .unwrap_or(Err(Deny::UpstreamTimeout))
}

fn json(body: Vec<u8>) -> Response<Body> {
    let mut response = Response::new(full(body));
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}
