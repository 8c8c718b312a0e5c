//! Bytes from one connection to another, both ways, in memory that an idle tunnel does not have.
//!
//! Nothing is kept per direction but what one side has sent and the other does not take yet. What is read at once lies in
//! a buffer of the thread, not of the tunnel.

use std::cell::RefCell;
use std::io;
use std::time::Duration;

use agentsandbox_egress::budget::Counters;
use agentsandbox_egress::deny::Deny;
use agentsandbox_egress::scrub::Scrubber;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::account::{Held, bytes_of};
use crate::session::{Direction, Exchange};

/// What is read at once.
const STEP: usize = 64 << 10;
/// Steps of one direction before others get their turn.
const TURNS: usize = 4;
/// Buffer of each direction of a relay that goes through TLS.
const SMALL_STEP: usize = 16 << 10;

thread_local! {
    static BUFFER: RefCell<Box<[u8]>> = RefCell::new(vec![0; STEP].into());
}

/// One direction of a tunnel.
struct Half {
    direction: Direction,
    /// Read, and not taken yet.
    waiting: Vec<u8>,
    /// The reading side has said all.
    ended: bool,
    /// The writing side knows.
    told: bool,
}

/// How a turn of one direction ended.
enum Turn {
    /// There is nothing to read, or no room to write.
    Rest,
    /// There may be more.
    More,
    /// The run's budget must be asked for more first.
    Claim,
}

impl Half {
    fn new(direction: Direction) -> Self {
        Self {
            direction,
            waiting: Vec::new(),
            ended: false,
            told: false,
        }
    }

    /// Waits until a turn may do something.
    async fn ready(&self, from: &TcpStream, to: &TcpStream) -> io::Result<()> {
        if !self.waiting.is_empty() {
            to.writable().await
        } else if self.ended {
            std::future::pending().await
        } else {
            from.readable().await
        }
    }

    fn turn(
        &mut self,
        from: &TcpStream,
        to: &TcpStream,
        exchange: &Exchange,
        mut held: Option<Held>,
    ) -> Result<Turn, Stop> {
        BUFFER.with_borrow_mut(|buffer| {
            for _ in 0..TURNS {
                if !self.drain(to)? {
                    return Ok(Turn::Rest);
                }
                if self.ended {
                    return Ok(Turn::Rest);
                }
                let mut leave = match held.take() {
                    Some(held) => held,
                    None => match exchange.session.account.try_reserve(least(), most()) {
                        Some(held) => held?,
                        None => return Ok(Turn::Claim),
                    },
                };
                let granted = usize::try_from(leave.granted().bytes).unwrap_or(0).min(STEP);
                let read = match from.try_read(&mut buffer[..granted]) {
                    Ok(0) => {
                        self.ended = true;
                        return Ok(Turn::Rest);
                    }
                    Ok(read) => read,
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(Turn::Rest),
                    Err(error) => return Err(error.into()),
                };
                leave.spend(bytes_of(read as u64));
                drop(leave);
                exchange.moved(self.direction, read as u64)?;
                let written = write(to, &buffer[..read])?;
                if written < read {
                    self.waiting = buffer[written..read].to_vec();
                    return Ok(Turn::Rest);
                }
            }
            Ok(Turn::More)
        })
    }

    /// Writes what is waiting; says whether nothing is left.
    fn drain(&mut self, to: &TcpStream) -> io::Result<bool> {
        if self.waiting.is_empty() {
            return Ok(true);
        }
        let written = write(to, &self.waiting)?;
        if written == self.waiting.len() {
            self.waiting = Vec::new();
            return Ok(true);
        }
        self.waiting.drain(..written);
        Ok(false)
    }

    /// Everything was read and written, and the writing side is not told yet.
    fn must_tell(&self) -> bool {
        self.ended && self.waiting.is_empty() && !self.told
    }
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

fn least() -> Counters {
    bytes_of(1)
}

fn most() -> Counters {
    bytes_of(STEP as u64)
}

fn write(to: &TcpStream, bytes: &[u8]) -> io::Result<usize> {
    let mut written = 0;
    while written < bytes.len() {
        match to.try_write(&bytes[written..]) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(step) => written += step,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
            Err(error) => return Err(error),
        }
    }
    Ok(written)
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
    let timer = tokio::time::sleep(idle);
    tokio::pin!(timer);
    loop {
        if out.must_tell() {
            out.told = true;
            upstream.shutdown().await?;
        }
        if back.must_tell() {
            back.told = true;
            client.shutdown().await?;
        }
        if out.told && back.told {
            return Ok(());
        }
        let is_out = tokio::select! {
            ready = out.ready(&client, &upstream) => { ready?; true }
            ready = back.ready(&upstream, &client) => { ready?; false }
            () = exchange.cancel().cancelled() => return Err(Stop::Deny(exchange.closed_by())),
            () = timer.as_mut() => {
                let still = exchange.still();
                if still >= idle {
                    return Err(Stop::Deny(Deny::UpstreamTimeout));
                }
                timer.as_mut().reset(tokio::time::Instant::now() + idle.saturating_sub(still));
                continue;
            }
        };
        let (half, from, to) = if is_out {
            (&mut out, &client, &upstream)
        } else {
            (&mut back, &upstream, &client)
        };
        match half.turn(from, to, exchange, None)? {
            Turn::Rest => {}
            Turn::More => tokio::task::yield_now().await,
            Turn::Claim => {
                let reserve = exchange.session.account.reserve(least(), most());
                let held = tokio::select! {
                    held = reserve => held?,
                    () = exchange.cancel().cancelled() => return Err(Stop::Deny(exchange.closed_by())),
                };
                half.turn(from, to, exchange, Some(held))?;
            }
        }
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
    let watchdog = async {
        loop {
            let left = idle.saturating_sub(exchange.still());
            if left.is_zero() {
                return;
            }
            tokio::time::sleep(left).await;
        }
    };
    let ended = tokio::select! {
        ended = both => ended,
        () = watchdog => Err(Stop::Deny(Deny::UpstreamTimeout)),
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
pub async fn send_first(exchange: &Exchange, upstream: &TcpStream, first: &[u8], patience: Duration) -> bool {
    let all = async {
        exchange.spend(Direction::Sent, first.len() as u64).await?;
        let mut written = 0;
        while written < first.len() {
            upstream.writable().await?;
            written += write(upstream, &first[written..])?;
        }
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
