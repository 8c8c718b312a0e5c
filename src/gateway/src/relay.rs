//! Bytes from one connection to another, both ways, in memory that an idle tunnel does not have.
//!
//! Nothing is kept per direction but what one side has sent and the other does not take yet. What is read at once lies in
//! a buffer of the thread, not of the tunnel.

use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use agentsandbox_egress::budget::Counters;
use agentsandbox_egress::deny::Deny;
use agentsandbox_egress::scrub::Scrubber;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;

use crate::account::{Held, bytes_of};
use crate::exchange::{Direction, Exchange};

/// What is read at once.
const STEP: usize = 128 << 10;
/// Steps of one direction before others get their turn.
const TURNS: usize = 2;
/// Buffer of each direction of a relay that goes through TLS.
const SMALL_STEP: usize = 16 << 10;

thread_local! {
    static BUFFER: RefCell<Box<[u8]>> = RefCell::new(vec![0; STEP].into());
}

type Claim = Pin<Box<dyn Future<Output = Result<Held, Deny>> + Send>>;

/// One direction of a tunnel.
struct Half {
    direction: Direction,
    /// Read, and not taken yet.
    waiting: Vec<u8>,
    /// A part of the run's budget that is being asked for.
    claim: Option<Claim>,
    /// The reading side has said all.
    ended: bool,
    /// The writing side knows.
    told: bool,
}

/// Why a relay ends before both sides have said all.
enum Stop {
    /// One of the connections broke.
    Broken,
    /// It may not go on.
    Deny(Deny),
}

impl From<io::Error> for Stop {
    fn from(_: io::Error) -> Self {
        Self::Broken
    }
}

impl From<Deny> for Stop {
    fn from(deny: Deny) -> Self {
        Self::Deny(deny)
    }
}

impl Half {
    fn new(direction: Direction) -> Self {
        Self {
            direction,
            waiting: Vec::new(),
            claim: None,
            ended: false,
            told: false,
        }
    }

    /// Carries what there is; ready when the reading side has said all and the writing side knows.
    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut TcpStream,
        to: &mut TcpStream,
        exchange: &Exchange,
    ) -> Poll<Result<(), Stop>> {
        for _ in 0..TURNS {
            ready!(self.poll_drain(cx, to))?;
            if self.ended {
                if !self.told {
                    ready!(Pin::new(&mut *to).poll_shutdown(cx))?;
                    self.told = true;
                }
                return Poll::Ready(Ok(()));
            }
            let leave = ready!(self.poll_leave(cx, exchange))?;
            ready!(self.poll_step(cx, from, to, exchange, leave))?;
        }
        // There may be more, and others have their turn first.
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Writes what is waiting.
    fn poll_drain(&mut self, cx: &mut Context<'_>, to: &mut TcpStream) -> Poll<io::Result<()>> {
        while !self.waiting.is_empty() {
            let written = ready!(Pin::new(&mut *to).poll_write(cx, &self.waiting))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.waiting.drain(..written);
        }
        // Its memory is not kept for the life of the tunnel.
        self.waiting = Vec::new();
        Poll::Ready(Ok(()))
    }

    /// Leave to read, if the run has a budget of bytes.
    fn poll_leave(&mut self, cx: &mut Context<'_>, exchange: &Exchange) -> Poll<Result<Option<Held>, Stop>> {
        if let Some(claim) = &mut self.claim {
            let claimed = ready!(claim.as_mut().poll(cx));
            self.claim = None;
            return Poll::Ready(claimed.map(Some).map_err(Stop::from));
        }
        let account = &exchange.session.account;
        if !account.counts_bytes() {
            return Poll::Ready(Ok(None));
        }
        if let Some(held) = account.try_reserve(least(), most()) {
            return Poll::Ready(held.map(Some).map_err(Stop::from));
        }
        let account = account.clone();
        let claim = self
            .claim
            .insert(Box::pin(async move { account.reserve(least(), most()).await }));
        let claimed = ready!(claim.as_mut().poll(cx));
        self.claim = None;
        Poll::Ready(claimed.map(Some).map_err(Stop::from))
    }

    /// Reads once, and writes as much of it as goes.
    fn poll_step(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut TcpStream,
        to: &mut TcpStream,
        exchange: &Exchange,
        leave: Option<Held>,
    ) -> Poll<Result<(), Stop>> {
        BUFFER.with_borrow_mut(|buffer| {
            let granted = leave.as_ref().map_or(STEP, |leave| {
                usize::try_from(leave.granted().bytes).unwrap_or(0).min(STEP)
            });
            let mut read = ReadBuf::new(&mut buffer[..granted]);
            // Without leave that was not used: dropped, it is given back.
            ready!(Pin::new(from).poll_read(cx, &mut read))?;
            let read = read.filled();
            if read.is_empty() {
                self.ended = true;
                return Poll::Ready(Ok(()));
            }
            let length = read.len() as u64;
            match leave {
                Some(mut leave) => leave.spend(bytes_of(length)),
                None => {
                    exchange.session.account.spend_freely(length);
                }
            }
            exchange.moved(self.direction, length)?;
            match Pin::new(to).poll_write(cx, read) {
                Poll::Ready(written) => {
                    let written = written?;
                    if written < read.len() {
                        self.waiting = read[written..].to_vec();
                    }
                }
                Poll::Pending => self.waiting = read.to_vec(),
            }
            Poll::Ready(Ok(()))
        })
    }
}

fn least() -> Counters {
    bytes_of(1)
}

fn most() -> Counters {
    bytes_of(STEP as u64)
}

/// Carries bytes until both sides have said all, one breaks, nothing moves for `idle`, or the exchange must be closed.
/// Why it ended early stands in the exchange.
pub async fn relay(exchange: &Exchange, client: TcpStream, upstream: TcpStream, idle: Duration) {
    if let Err(Stop::Deny(deny)) = carry(exchange, client, upstream, idle).await {
        exchange.fail(deny);
    }
}

async fn carry(
    exchange: &Exchange,
    mut client: TcpStream,
    mut upstream: TcpStream,
    idle: Duration,
) -> Result<(), Stop> {
    let mut out = Half::new(Direction::Sent);
    let mut back = Half::new(Direction::Received);
    let both = poll_fn(|cx| {
        let sent = out.poll(cx, &mut client, &mut upstream, exchange)?;
        let received = back.poll(cx, &mut upstream, &mut client, exchange)?;
        if sent.is_ready() && received.is_ready() {
            Poll::Ready(Ok(()))
        } else {
            Poll::Pending
        }
    });
    tokio::select! {
        ended = both => ended,
        () = exchange.cancel().cancelled() => Err(Stop::Deny(exchange.closed_by())),
        () = still(exchange, idle) => Err(Stop::Deny(Deny::UpstreamTimeout)),
    }
}

/// Waits until nothing has moved for so long.
async fn still(exchange: &Exchange, idle: Duration) {
    loop {
        let left = idle.saturating_sub(exchange.still());
        if left.is_zero() {
            return;
        }
        tokio::time::sleep(left).await;
    }
}

/// The same for connections through TLS: an upgraded WebSocket, whose two sides are whatever the HTTP library gives.
/// `secret` is taken out of what comes back; its length stays, and so do the frames.
pub async fn relay_any<A, B>(
    exchange: &Exchange,
    client: A,
    upstream: B,
    idle: Duration,
    secret: Option<&[u8]>,
) where
    A: AsyncRead + AsyncWrite,
    B: AsyncRead + AsyncWrite,
{
    let (mut client_read, mut client_write) = tokio::io::split(client);
    let (mut upstream_read, mut upstream_write) = tokio::io::split(upstream);
    let out = one_way(
        &mut client_read,
        &mut upstream_write,
        exchange,
        Direction::Sent,
        None,
    );
    let back = one_way(
        &mut upstream_read,
        &mut client_write,
        exchange,
        Direction::Received,
        secret.map(Scrubber::new),
    );
    let both = async { tokio::try_join!(out, back).map(drop) };
    let ended = tokio::select! {
        ended = both => ended,
        () = still(exchange, idle) => Err(Stop::Deny(Deny::UpstreamTimeout)),
        () = exchange.cancel().cancelled() => Err(Stop::Deny(exchange.closed_by())),
    };
    if let Err(Stop::Deny(deny)) = ended {
        exchange.fail(deny);
    }
}

async fn one_way(
    from: &mut (impl AsyncRead + Unpin),
    to: &mut (impl AsyncWrite + Unpin),
    exchange: &Exchange,
    direction: Direction,
    mut scrubber: Option<Scrubber>,
) -> Result<(), Stop> {
    let mut buffer = vec![0; SMALL_STEP];
    let mut clean = Vec::new();
    loop {
        let read = from.read(&mut buffer).await?;
        if read > 0 {
            exchange.spend(direction, read as u64).await?;
        }
        match &mut scrubber {
            Some(scrubber) => {
                clean.clear();
                if read == 0 {
                    scrubber.finish(&mut clean);
                } else {
                    scrubber.feed(&buffer[..read], &mut clean);
                }
                to.write_all(&clean).await?;
            }
            None => to.write_all(&buffer[..read]).await?,
        }
        to.flush().await?;
        if read == 0 {
            if let Some(found) = scrubber.as_ref().map(Scrubber::found).filter(|found| *found > 0) {
                exchange.session.scrubbed(found);
            }
            to.shutdown().await?;
            return Ok(());
        }
    }
}

/// Sends what was read before it was known where it goes; says whether it went.
pub async fn send_first(
    exchange: &Exchange,
    upstream: &mut TcpStream,
    first: &[u8],
    patience: Duration,
) -> bool {
    let all = async {
        exchange.spend(Direction::Sent, first.len() as u64).await?;
        upstream.write_all(first).await?;
        Ok(())
    };
    let outcome = tokio::select! {
        gone = tokio::time::timeout(patience, all) => gone.unwrap_or(Err(Stop::Deny(Deny::UpstreamTimeout))),
        () = exchange.cancel().cancelled() => Err(Stop::Deny(exchange.closed_by())),
    };
    match outcome {
        Ok(()) => true,
        Err(stop) => {
            if let Stop::Deny(deny) = stop {
                exchange.fail(deny);
            }
            false
        }
    }
}
