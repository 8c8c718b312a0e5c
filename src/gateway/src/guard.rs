//! The bytes of a sandbox's connection on their way to the HTTP library: strictly formed, and never late.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use agentsandbox_egress::deny::Deny;
use agentsandbox_egress::strict::Strict;
use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Sleep;

/// What is read at once while a head is collected.
const STEP: usize = 4 << 10;

/// How long a peer may take.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// From the first byte of a head, or from the start of the connection, to the head's end.
    pub head: Duration,
    /// Between two pieces of a body.
    pub body: Duration,
}

/// What the parts of one connection know of each other.
#[derive(Debug)]
pub struct Activity {
    begun: Instant,
    requests: AtomicUsize,
    asked: AtomicBool,
    moved_ms: AtomicU64,
    ended_ms: AtomicU64,
}

impl Activity {
    /// A connection on which nothing has happened yet.
    #[must_use]
    pub fn new() -> Arc<Self> {
        Arc::new(Self {
            begun: Instant::now(),
            requests: AtomicUsize::new(0),
            asked: AtomicBool::new(false),
            moved_ms: AtomicU64::new(0),
            ended_ms: AtomicU64::new(0),
        })
    }

    /// A byte went either way.
    pub fn moved(&self) {
        self.moved_ms.store(self.now_ms(), Ordering::Relaxed);
    }

    /// How long nothing has moved.
    #[must_use]
    pub fn still(&self) -> Duration {
        self.since(&self.moved_ms)
    }

    /// How long it is since the last request was answered, or since the start of the connection.
    #[must_use]
    pub fn unasked(&self) -> Duration {
        self.since(&self.ended_ms)
    }

    /// Whether a request has come.
    #[must_use]
    pub fn was_asked(&self) -> bool {
        self.asked.load(Ordering::Relaxed)
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn since(&self, moment: &AtomicU64) -> Duration {
        let moment = Duration::from_millis(moment.load(Ordering::Relaxed));
        self.begun.elapsed().saturating_sub(moment)
    }

    /// Whether a request is being answered.
    #[must_use]
    pub fn is_busy(&self) -> bool {
        self.requests.load(Ordering::Acquire) > 0
    }

    /// A request is being answered, until the guard is dropped.
    #[must_use]
    pub fn request(self: &Arc<Self>) -> Busy {
        self.requests.fetch_add(1, Ordering::Relaxed);
        self.asked.store(true, Ordering::Relaxed);
        Busy(self.clone())
    }
}

/// A request that is being answered.
#[derive(Debug)]
pub struct Busy(Arc<Activity>);

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.ended_ms.store(self.0.now_ms(), Ordering::Relaxed);
        self.0.requests.fetch_sub(1, Ordering::Release);
        self.0.moved();
    }
}

/// Told of the first malformed bytes, before the connection ends; gives what is still said to the peer.
pub type OnMalformed = Box<dyn FnOnce(Deny) -> Bytes + Send>;

/// A connection whose requests are checked by [`Strict`] before anybody else reads them.
pub struct Guarded<S> {
    inner: S,
    strict: Option<Strict>,
    /// Read, and not passed on.
    pending: BytesMut,
    /// So many of the pending bytes may be passed on.
    passed: usize,
    ended: bool,
    fresh: bool,
    deadline: Option<Pin<Box<Sleep>>>,
    patience: Patience,
    activity: Arc<Activity>,
    on_malformed: Option<OnMalformed>,
}

impl<S> Guarded<S> {
    /// A connection that speaks HTTP/1.
    pub fn http1(inner: S, patience: Patience, activity: Arc<Activity>, on_malformed: OnMalformed) -> Self {
        Self {
            inner,
            strict: Some(Strict::default()),
            pending: BytesMut::new(),
            passed: 0,
            ended: false,
            fresh: true,
            deadline: None,
            patience,
            activity,
            on_malformed: Some(on_malformed),
        }
    }

    /// A connection that speaks HTTP/2, whose frames have one reading only. Whoever serves it sees to it that requests
    /// come in time.
    pub fn http2(inner: S, patience: Patience, activity: Arc<Activity>) -> Self {
        Self {
            strict: None,
            on_malformed: None,
            ..Self::http1(inner, patience, activity, Box::new(|_| Bytes::new()))
        }
    }

    /// The connection itself, and what was read of it and not passed on.
    pub fn into_inner(self) -> (S, Bytes) {
        (self.inner, self.pending.freeze())
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Guarded<S> {
    fn in_head(&self) -> bool {
        self.strict.as_ref().is_some_and(Strict::in_head)
    }

    /// Reads into `pending`.
    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let mut step = [0; STEP];
        let mut buffer = ReadBuf::new(&mut step);
        match Pin::new(&mut self.inner).poll_read(cx, &mut buffer) {
            Poll::Ready(Ok(())) => {
                let read = buffer.filled();
                self.pending.extend_from_slice(read);
                Poll::Ready(Ok(read.len()))
            }
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            Poll::Pending => Poll::Pending,
        }
    }

    /// Nothing can be read now: whether the peer still has time.
    fn poll_patience(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let raw = self.strict.as_ref().is_none_or(Strict::is_raw);
        let patience = if raw {
            None
        } else if !self.in_head() {
            Some(self.patience.body)
        } else if self.fresh || !self.pending.is_empty() {
            Some(self.patience.head)
        } else {
            // Between two requests: whoever serves the connection ends it when it was idle for long.
            None
        };
        let Some(patience) = patience else {
            self.deadline = None;
            return Poll::Pending;
        };
        let deadline = self
            .deadline
            .get_or_insert_with(|| Box::pin(tokio::time::sleep(patience)));
        deadline.as_mut().poll(cx)
    }

    fn refuse(&mut self, deny: Deny, cx: &mut Context<'_>) {
        self.ended = true;
        self.pending = BytesMut::new();
        self.passed = 0;
        if let Some(tell) = self.on_malformed.take() {
            let answer = tell(deny);
            // While another answer is under way its end can't be told from the start of this one.
            if !self.activity.is_busy() && !answer.is_empty() {
                // Best effort: a peer that does not read gets no explanation.
                let _ = Pin::new(&mut self.inner).poll_write(cx, &answer);
            }
        }
    }

    /// Looks at what is pending.
    fn judge(&mut self, cx: &mut Context<'_>) {
        let Some(strict) = &mut self.strict else {
            self.passed = self.pending.len();
            return;
        };
        match strict.advance(&self.pending) {
            Ok(passed) => {
                self.passed = passed;
                if passed > 0 {
                    self.fresh = false;
                    self.deadline = None;
                }
            }
            Err(deny) => self.refuse(deny, cx),
        }
    }

    /// Reads straight into the caller's buffer, and takes back what may not be passed on yet.
    fn poll_direct(&mut self, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.inner).poll_read(cx, buffer))?;
        let Some(strict) = &mut self.strict else {
            self.activity.moved();
            return Poll::Ready(Ok(()));
        };
        let read = &buffer.filled()[before..];
        self.ended = read.is_empty();
        match strict.advance(read) {
            Ok(passed) => {
                self.pending.extend_from_slice(&read[passed..]);
                buffer.set_filled(before + passed);
            }
            Err(deny) => {
                buffer.set_filled(before);
                self.refuse(deny, cx);
            }
        }
        self.deadline = None;
        self.activity.moved();
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Guarded<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buffer.filled().len();
        loop {
            if this.passed > 0 {
                let step = this.passed.min(buffer.remaining());
                buffer.put_slice(&this.pending[..step]);
                this.pending.advance(step);
                this.passed -= step;
                if this.pending.is_empty() {
                    this.pending = BytesMut::new();
                }
                this.activity.moved();
                return Poll::Ready(Ok(()));
            }
            if this.ended || buffer.remaining() == 0 {
                return Poll::Ready(Ok(()));
            }
            let polled = if this.pending.is_empty() && !this.in_head() {
                this.poll_direct(cx, buffer)
            } else {
                match this.poll_fill(cx) {
                    Poll::Ready(Ok(0)) => {
                        this.ended = true;
                        Poll::Ready(Ok(()))
                    }
                    Poll::Ready(Ok(_)) => {
                        this.judge(cx);
                        Poll::Ready(Ok(()))
                    }
                    Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
                    Poll::Pending => Poll::Pending,
                }
            };
            match polled {
                Poll::Ready(Ok(())) if buffer.filled().len() > before => return Poll::Ready(Ok(())),
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => {
                    ready!(this.poll_patience(cx));
                    this.ended = true;
                    return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
                }
            }
            if this.strict.is_none() {
                return Poll::Ready(Ok(()));
            }
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Guarded<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = ready!(Pin::new(&mut this.inner).poll_write(cx, bytes))?;
        this.activity.moved();
        Poll::Ready(Ok(written))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = ready!(Pin::new(&mut this.inner).poll_write_vectored(cx, pieces))?;
        this.activity.moved();
        Poll::Ready(Ok(written))
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    const PATIENCE: Patience = Patience {
        head: Duration::from_secs(10),
        body: Duration::from_mins(1),
    };

    fn guarded() -> (Guarded<tokio::io::DuplexStream>, tokio::io::DuplexStream) {
        let (near, far) = tokio::io::duplex(1 << 20);
        let answer = Box::new(|deny: Deny| Bytes::from(format!("refused {}", deny.as_str())));
        (Guarded::http1(near, PATIENCE, Activity::new(), answer), far)
    }

    #[tokio::test]
    async fn whole_requests_arrive_as_they_were_sent() {
        let (mut guarded, mut far) = guarded();
        let body = "b".repeat(100_000);
        let text = format!(
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\n{body}GET / HTTP/1.1\r\nHost: a\r\n\r\n"
        );
        far.write_all(text.as_bytes()).await.unwrap();
        far.shutdown().await.unwrap();
        let mut out = String::new();
        guarded.read_to_string(&mut out).await.unwrap();
        assert_eq!(out, text);
    }

    #[tokio::test]
    async fn nothing_of_an_unfinished_head_is_passed_on() {
        let (mut guarded, mut far) = guarded();
        far.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n").await.unwrap();
        far.shutdown().await.unwrap();
        let mut out = Vec::new();
        guarded.read_to_end(&mut out).await.unwrap();
        assert!(out.is_empty());
    }

    #[tokio::test]
    async fn a_malformed_head_is_answered_and_ends_the_connection() {
        let (mut guarded, mut far) = guarded();
        far.write_all(b"GET / HTTP/1.1\nHost: a\n\n").await.unwrap();
        let mut out = Vec::new();
        guarded.read_to_end(&mut out).await.unwrap();
        drop(guarded);
        let mut answer = String::new();
        far.read_to_string(&mut answer).await.unwrap();
        assert_eq!((out.len(), answer.as_str()), (0, "refused RequestMalformed"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_head_that_trickles_in_is_cut_off() {
        let (mut guarded, mut far) = guarded();
        let trickle = tokio::spawn(async move {
            for byte in b"GET / HTTP/1.1\r\nHost: a\r\nX: yyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyy" {
                tokio::time::sleep(Duration::from_secs(1)).await;
                if far.write_all(&[*byte]).await.is_err() {
                    break;
                }
            }
        });
        let begun = tokio::time::Instant::now();
        let error = guarded.read_u8().await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert!(begun.elapsed() < Duration::from_secs(12), "{:?}", begun.elapsed());
        trickle.abort();
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_stalls_is_cut_off_and_an_idle_connection_is_not() {
        let (mut guarded, mut far) = guarded();
        far.write_all(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nabc")
            .await
            .unwrap();
        let mut out = vec![0; 100];
        let _ = guarded.read(&mut out).await.unwrap();
        assert_eq!(
            guarded.read(&mut out).await.unwrap_err().kind(),
            io::ErrorKind::TimedOut
        );

        let (mut guarded, mut far) = self::guarded();
        far.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
        let _ = guarded.read(&mut out).await.unwrap();
        let idle = tokio::time::timeout(Duration::from_hours(1), guarded.read(&mut out)).await;
        assert!(idle.is_err(), "still waiting");
    }
}
