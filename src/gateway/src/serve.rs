//! HTTP connections of sandboxes, whatever they came through.

use std::convert::Infallible;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use agentsandbox_egress::headers::{BLOCK_MAX, FIELDS_MAX};
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio_util::sync::CancellationToken;

use crate::client_io::ClientIo;
use crate::guard::{Activity, Guarded};
use crate::inside::{self, Inside};
use crate::session::Event;

// What a request can hold in memory, by HTTP/2 on both sides, with a peer on each that sends and does not read: 64 KiB
// of its body here and 48 (a buffer and a piece) on the way out; 128 KiB of its answer, see `crate::upstream`, and 48
// on the way back; two heads of 32 KiB. That is 352 KiB: 88 MiB for the 256 requests of one sandbox, 352 MiB for the
// 1,024 of all. With 96 MiB of model requests' bodies and what an idle gateway has, that fits the 512 MiB of its pod.

/// What HTTP/2 keeps for one stream, and for one connection, in bytes.
const STREAM_WINDOW: u32 = 64 << 10;
const CONNECTION_WINDOW: u32 = 512 << 10;
/// What waits to be written to one stream, in bytes, beside the piece that reached it.
const SEND_BUFFER: usize = 32 << 10;
/// Most streams of one connection at once.
const MAX_STREAMS: u32 = 100;
/// How often it is looked whether a connection is idle.
const LOOK: Duration = Duration::from_secs(5);

/// Serves one connection until it ends, is idle for too long, or `cancel` is cancelled.
pub async fn serve(io: ClientIo, is_http2: bool, inside: Arc<Inside>, cancel: CancellationToken) {
    let limits = &inside.gateway.limits;
    let patience = limits.patience();
    let idle = Idle {
        activity: inside.activity.clone(),
        stopping: inside.gateway.stopping.clone(),
        first: is_http2.then_some(patience.head),
        keep_alive: limits.keep_alive(),
        still: limits.idle_timeout(),
        cancel,
    };
    let service = {
        let inside = inside.clone();
        service_fn(move |request| {
            let answer = inside::answer(inside.clone(), request);
            async move { Ok::<_, Infallible>(answer.await) }
        })
    };
    let activity = inside.activity.clone();
    if is_http2 {
        let io = TokioIo::new(Guarded::http2(io, patience, activity));
        let mut builder = http2::Builder::new(TokioExecutor::new());
        builder
            .timer(TokioTimer::new())
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_concurrent_streams(MAX_STREAMS)
            .max_header_list_size(u32::try_from(BLOCK_MAX).unwrap_or(u32::MAX))
            .max_send_buf_size(SEND_BUFFER)
            .keep_alive_interval(Duration::from_secs(30))
            .keep_alive_timeout(Duration::from_secs(20));
        let mut connection = pin!(builder.serve_connection(io, service));
        let over = tokio::select! {
            _ = connection.as_mut() => return,
            over = idle.over() => over,
        };
        connection.as_mut().graceful_shutdown();
        tokio::select! {
            _ = connection => {}
            () = idle.last(over) => {}
        }
    } else {
        let on_malformed = {
            let inside = inside.clone();
            Box::new(move |deny| {
                let session = &inside.session;
                session.deny(&Event::request("", None, "", ""), deny);
                inside::refused_bytes(deny, &session.run.policy)
            })
        };
        let io = TokioIo::new(Guarded::http1(io, patience, activity, on_malformed));
        let mut builder = http1::Builder::new();
        builder
            .timer(TokioTimer::new())
            // The guard measures: the library's own clock also runs while an answer is under way.
            .header_read_timeout(None)
            .max_headers(FIELDS_MAX)
            .max_buf_size(BLOCK_MAX.max(64 << 10));
        let mut connection = pin!(builder.serve_connection(io, service).with_upgrades());
        let over = tokio::select! {
            _ = connection.as_mut() => return,
            over = idle.over() => over,
        };
        connection.as_mut().graceful_shutdown();
        tokio::select! {
            _ = connection => {}
            () = idle.last(over) => {}
        }
    }
}

/// Why a connection ends.
#[derive(Clone, Copy)]
enum Over {
    /// It may not go on.
    Cancelled,
    /// Nothing has happened on it for long.
    Idle,
    /// The gateway stops: what is under way may end by itself.
    Stopping,
}

/// Tells when a connection has had its time.
struct Idle {
    activity: Arc<Activity>,
    stopping: CancellationToken,
    /// How long the first request may take, head and all, of a connection whose heads nobody else measures: HTTP/2.
    first: Option<Duration>,
    keep_alive: Duration,
    still: Duration,
    cancel: CancellationToken,
}

impl Idle {
    /// Why nothing new is begun on it any more.
    async fn over(&self) -> Over {
        let look = self.look();
        loop {
            tokio::select! {
                () = self.cancel.cancelled() => return Over::Cancelled,
                () = self.stopping.cancelled() => return Over::Stopping,
                () = tokio::time::sleep(look) => {}
            }
            if self.is_over() {
                return Over::Idle;
            }
        }
    }

    fn is_over(&self) -> bool {
        let activity = &self.activity;
        if activity.is_busy() {
            return activity.still() >= self.still;
        }
        match self.first {
            Some(first) if !activity.was_asked() => activity.unasked() >= first,
            // Bytes move without any request, too: pings, or a head that trickles in.
            Some(_) => activity.unasked() >= self.keep_alive,
            None => activity.still() >= self.keep_alive,
        }
    }

    fn look(&self) -> Duration {
        LOOK.min(self.keep_alive).min(self.first.unwrap_or(LOOK))
    }

    /// Until what is under way must end as well.
    async fn last(&self, over: Over) {
        match over {
            Over::Cancelled => {}
            // A request may have come just before the peer was told: it is answered.
            Over::Idle => loop {
                tokio::select! {
                    () = self.cancel.cancelled() => return,
                    () = tokio::time::sleep(self.look()) => {}
                }
                if !self.activity.is_busy() || self.activity.still() >= self.still {
                    return;
                }
            },
            Over::Stopping => self.cancel.cancelled().await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_request_that_came_as_an_idle_connection_was_retired_is_answered() {
        let idle = Idle {
            activity: Activity::new(),
            stopping: CancellationToken::new(),
            first: None,
            keep_alive: Duration::from_millis(5),
            still: Duration::from_mins(10),
            cancel: CancellationToken::new(),
        };
        let busy = idle.activity.request();
        let over = tokio::time::timeout(Duration::from_millis(100), idle.last(Over::Idle)).await;
        assert!(over.is_err(), "it is being answered");
        drop(busy);
        idle.last(Over::Idle).await;
        let _busy = idle.activity.request();
        idle.cancel.cancel();
        idle.last(Over::Idle).await;
    }
}
