//! Bodies on their way through: counted, bounded, cut when they may not go on, never collected.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use agentsandbox_egress::deny::Deny;
use agentsandbox_egress::scrub::{self, Scrubber};
use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};
use http_body_util::BodyExt as _;
use http_body_util::combinators::UnsyncBoxBody;
use tokio::time::{Instant, Sleep};
use tokio_util::sync::WaitForCancellationFutureOwned;

use crate::exchange::{Direction, Exchange};
use crate::state::Turn;

/// What bodies end with when they do not end well.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;
/// Any body.
pub type Body = UnsyncBoxBody<Bytes, BoxError>;

type Claim = Pin<Box<dyn Future<Output = Result<(), Deny>> + Send>>;
/// Called with whether a body ended as it should.
pub type AtEnd = Box<dyn FnOnce(bool) + Send>;

/// A body that is known as a whole.
#[must_use]
pub fn full(bytes: impl Into<Bytes>) -> Body {
    http_body_util::Full::new(bytes.into())
        .map_err(|never| match never {})
        .boxed_unsync()
}

/// Bytes that hold the turn of their request until nobody has them any more: the HTTP library keeps what its peer does
/// not take, also when the body has ended.
#[must_use]
pub fn held(bytes: Bytes, turn: &Turn) -> Bytes {
    Bytes::from_owner(Held {
        bytes,
        _turn: turn.clone(),
    })
}

struct Held {
    bytes: Bytes,
    _turn: Turn,
}

impl AsRef<[u8]> for Held {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

/// A body of nothing.
#[must_use]
pub fn empty() -> Body {
    full(Bytes::new())
}

/// A body that goes through.
#[allow(clippy::struct_excessive_bools)] // each is a fact of its own
pub struct Carried<B> {
    inner: Option<B>,
    exchange: Arc<Exchange>,
    direction: Direction,
    /// Most bytes still to come.
    left: Option<u64>,
    cancelled: Pin<Box<WaitForCancellationFutureOwned>>,
    patience: Duration,
    stall: Option<Pin<Box<Sleep>>>,
    /// A piece that the run's budget must be asked for.
    claim: Option<(Claim, Bytes)>,
    scrubber: Option<Scrubber>,
    secret: Option<Arc<[u8]>>,
    found: u64,
    /// The sandbox's trailers go no further; a destination's do.
    trailers: bool,
    at_end: Option<AtEnd>,
    ended: bool,
    /// It was ended here, and could go on.
    is_cut: bool,
    /// The body itself has said all that it will.
    at_its_end: bool,
}

impl<B: HttpBody> Carried<B> {
    /// A body that is a part of `exchange`, and may rest for `patience`.
    pub fn new(inner: B, exchange: Arc<Exchange>, direction: Direction, patience: Duration) -> Self {
        let at_its_end = inner.is_end_stream();
        Self {
            inner: Some(inner),
            cancelled: Box::pin(exchange.cancel().clone().cancelled_owned()),
            exchange,
            direction,
            left: None,
            patience,
            stall: None,
            claim: None,
            scrubber: None,
            secret: None,
            found: 0,
            trailers: direction == Direction::Received,
            at_end: None,
            ended: false,
            is_cut: false,
            at_its_end,
        }
    }
}

impl<B> Carried<B> {
    /// With at most so many bytes.
    #[must_use]
    pub fn bounded(mut self, most: Option<u64>) -> Self {
        self.left = most;
        self
    }

    /// Without this value in it.
    #[must_use]
    pub fn without(mut self, secret: Option<Arc<[u8]>>) -> Self {
        self.scrubber = secret.as_deref().map(Scrubber::new);
        self.secret = secret;
        self
    }

    /// Calls back at its end: with true if it ended as it should, with false if it was dropped before.
    #[must_use]
    pub fn at_end(mut self, call: impl FnOnce(bool) + Send + 'static) -> Self {
        self.at_end = Some(Box::new(call));
        self
    }

    /// Whether everything has come, though nobody asked whether more would.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.at_its_end && self.claim.is_none()
    }

    /// The body itself, if it could go on, and what was to be called at its end.
    pub fn take(&mut self) -> Option<(B, Option<AtEnd>)> {
        if self.ended && !self.is_cut {
            return None;
        }
        self.ended = true;
        Some((self.inner.take()?, self.at_end.take()))
    }

    fn end(&mut self, complete: bool) {
        if !self.ended {
            self.ended = true;
            let found = self.scrubber.as_ref().map_or(0, Scrubber::found) + self.found;
            if found > 0 {
                self.exchange.session.scrubbed(found);
            }
            if let Some(call) = self.at_end.take() {
                call(complete);
            }
        }
    }

    fn fail<T>(&mut self, deny: Deny) -> Poll<Option<Result<T, BoxError>>> {
        self.exchange.fail(deny);
        self.is_cut = true;
        self.end(false);
        Poll::Ready(Some(Err(Box::new(deny))))
    }
}

impl<B> Carried<B>
where
    B: HttpBody<Data = Bytes> + Unpin,
    B::Error: Into<BoxError>,
{
    /// What of a piece that was paid for goes on.
    fn pass(&mut self, data: Bytes) -> Bytes {
        match (&mut self.scrubber, self.exchange.turn()) {
            (Some(scrubber), _) => {
                let mut clean = Vec::with_capacity(data.len());
                scrubber.feed(&data, &mut clean);
                clean.into()
            }
            // What comes back is held where it is answered.
            (None, Some(turn)) if self.direction == Direction::Sent => held(data, turn),
            (None, _) => data,
        }
    }

    fn poll_inner(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let Some(inner) = &mut self.inner else {
            return Poll::Ready(None);
        };
        match Pin::new(&mut *inner).poll_frame(cx) {
            Poll::Ready(frame) => {
                self.stall = None;
                self.at_its_end = inner.is_end_stream();
                Poll::Ready(frame.map(|frame| frame.map_err(Into::into)))
            }
            Poll::Pending => {
                let patience = self.patience;
                let stall = self
                    .stall
                    .get_or_insert_with(|| Box::pin(tokio::time::sleep_until(Instant::now() + patience)));
                ready!(stall.as_mut().poll(cx));
                let deny = match self.direction {
                    Direction::Sent => Deny::RequestMalformed,
                    Direction::Received => Deny::UpstreamTimeout,
                };
                self.fail(deny)
            }
        }
    }
}

impl<B> HttpBody for Carried<B>
where
    B: HttpBody<Data = Bytes> + Unpin,
    B::Error: Into<BoxError>,
{
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        let this = self.get_mut();
        loop {
            if this.ended {
                return Poll::Ready(None);
            }
            if this.cancelled.as_mut().poll(cx).is_ready() {
                return this.fail(this.exchange.closed_by());
            }
            if let Some((claim, _)) = &mut this.claim {
                let claimed = ready!(claim.as_mut().poll(cx));
                let data = this.claim.take().map(|(_, data)| data).unwrap_or_default();
                if let Err(deny) = claimed {
                    return this.fail(deny);
                }
                let data = this.pass(data);
                if data.is_empty() {
                    continue;
                }
                return Poll::Ready(Some(Ok(Frame::data(data))));
            }
            let frame = match ready!(this.poll_inner(cx)) {
                Some(Ok(frame)) => frame,
                Some(Err(error)) => {
                    this.end(false);
                    return Poll::Ready(Some(Err(error)));
                }
                None => {
                    let mut rest = Vec::new();
                    if let Some(scrubber) = &mut this.scrubber {
                        scrubber.finish(&mut rest);
                    }
                    this.end(true);
                    if rest.is_empty() {
                        return Poll::Ready(None);
                    }
                    return Poll::Ready(Some(Ok(Frame::data(rest.into()))));
                }
            };
            match frame.into_data() {
                Ok(data) => {
                    let length = data.len() as u64;
                    if let Some(left) = &mut this.left {
                        match left.checked_sub(length) {
                            Some(rest) => *left = rest,
                            None => return this.fail(Deny::RequestTooLarge),
                        }
                    }
                    match this.exchange.try_spend(this.direction, length) {
                        Some(Ok(())) => {
                            let data = this.pass(data);
                            if !data.is_empty() {
                                return Poll::Ready(Some(Ok(Frame::data(data))));
                            }
                        }
                        Some(Err(deny)) => return this.fail(deny),
                        None => {
                            let (exchange, direction) = (this.exchange.clone(), this.direction);
                            let claim = Box::pin(async move { exchange.spend(direction, length).await });
                            this.claim = Some((claim, data));
                        }
                    }
                }
                Err(frame) => {
                    if let (true, Ok(mut trailers)) = (this.trailers, frame.into_trailers()) {
                        if let Some(secret) = &this.secret {
                            this.found += scrub::headers(&mut trailers, secret);
                        }
                        return Poll::Ready(Some(Ok(Frame::trailers(trailers))));
                    }
                }
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        // With a scrubber the end brings what was held back; without one, a body of nothing needs no poll.
        self.ended
            || (self.scrubber.is_none()
                && self.claim.is_none()
                && self.inner.as_ref().is_none_or(HttpBody::is_end_stream))
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.as_ref().map(HttpBody::size_hint).unwrap_or_default()
    }
}

impl<B> Drop for Carried<B> {
    fn drop(&mut self) {
        // Whoever reads a body of known length does not ask for more behind its last byte.
        let complete = self.is_complete();
        self.end(complete);
    }
}
