//! Servers that break HTTP/1.1, byte by byte, at names that begin with `raw.`: what a gateway must survive. The path
//! says how.

use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::{sleep, timeout};

use crate::World;
use crate::journal::bounded;

/// Longest request head.
const HEAD_MAX: usize = 64 << 10;
/// Longest that a request's head may take to come, and longest that an answer that never comes is waited for.
const STALL: Duration = Duration::from_mins(2);
/// How long a body stalls before it breaks off: longer than a gateway waits for a head.
const BODY_STALL: Duration = Duration::from_secs(65);
/// What an endless answer ends at.
const ENDLESS: usize = 1 << 30;
/// An answer that a caller must never take for one to a request of its own.
const SMUGGLED: &str = "HTTP/1.1 200 OK\r\nContent-Length: 8\r\nX-Smuggled: yes\r\n\r\nsmuggled";

/// Answers requests on one connection until either side has enough.
pub async fn serve<S: AsyncRead + AsyncWrite + Unpin>(world: Arc<World>, mut stream: S) {
    while let Some(head) = timeout(STALL, read_head(&mut stream)).await.ok().flatten() {
        let line = head.lines().next().unwrap_or_default().to_owned();
        world
            .journal
            .note("raw", json!({"head": bounded(head.as_bytes())}));
        let path = line.split(' ').nth(1).unwrap_or_default();
        match misbehave(&mut stream, path).await {
            Ok(true) => {}
            Ok(false) | Err(_) => break,
        }
    }
    let _ = stream.shutdown().await;
}

async fn read_head<S: AsyncRead + Unpin>(stream: &mut S) -> Option<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        if head.len() > HEAD_MAX {
            return None;
        }
        head.push(stream.read_u8().await.ok()?);
    }
    Some(String::from_utf8_lossy(&head).into_owned())
}

/// Misbehaves as the path says; whether the connection goes on.
async fn misbehave<S: AsyncWrite + Unpin>(stream: &mut S, path: &str) -> std::io::Result<bool> {
    const OK: &str = "HTTP/1.1 200 OK\r\n";
    let whole = match path {
        "/endless-header" => {
            send(stream, OK).await?;
            repeat(stream, &format!("X-A: {}\r\n", "a".repeat(1000))).await?;
            return Ok(false);
        }
        "/endless-interim" => {
            repeat(stream, "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n").await?;
            return Ok(false);
        }
        "/endless-trailers" => {
            send(
                stream,
                &format!("{OK}Transfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n"),
            )
            .await?;
            repeat(stream, &format!("X-A: {}\r\n", "a".repeat(1000))).await?;
            return Ok(false);
        }
        "/endless-body" => {
            send(stream, &format!("{OK}Connection: close\r\n\r\n")).await?;
            repeat(stream, &"a".repeat(16 << 10)).await?;
            return Ok(false);
        }
        "/slow-header" => {
            send(stream, OK).await?;
            drip(stream, &format!("X-Slow: {}", "a".repeat(1000))).await?;
            return Ok(false);
        }
        "/no-answer" => {
            sleep(STALL).await;
            return Ok(false);
        }
        "/stalled-body" => {
            send(stream, &format!("{OK}Content-Length: 1000\r\n\r\nbeginning")).await?;
            sleep(BODY_STALL).await;
            return Ok(false);
        }
        // A body in such a coding ends with its connection (RFC 9112, section 6.3).
        "/odd-coding" => {
            let coding = "Transfer-Encoding: chunked, identity";
            send(stream, &format!("{OK}{coding}\r\n\r\n0\r\n\r\n{SMUGGLED}")).await?;
            return Ok(false);
        }
        "/both-lengths" => {
            format!("{OK}Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{SMUGGLED}")
        }
        "/two-lengths" => format!("{OK}Content-Length: 2\r\nContent-Length: 5\r\n\r\nok{SMUGGLED}"),
        "/bad-chunk" => format!("{OK}Transfer-Encoding: chunked\r\n\r\nzz\r\nabc\r\n0\r\n\r\n"),
        "/short-body" => {
            send(stream, &format!("{OK}Content-Length: 1000\r\n\r\nshort")).await?;
            return Ok(false);
        }
        "/unasked" => format!("{OK}Content-Length: 2\r\n\r\nok{SMUGGLED}"),
        "/bare-lf" => "HTTP/1.1 200 OK\nContent-Length: 2\n\nok".to_owned(),
        "/folded" => format!("{OK}X-A: one\r\n two\r\nContent-Length: 2\r\n\r\nok"),
        "/switching" => {
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\nraw bytes"
                .to_owned()
        }
        "/garbage" => "HELLO, THIS IS NO HTTP\r\n\r\n".to_owned(),
        _ => format!("{OK}Content-Length: 2\r\n\r\nok"),
    };
    send(stream, &whole).await?;
    Ok(true)
}

async fn send<S: AsyncWrite + Unpin>(stream: &mut S, text: &str) -> std::io::Result<()> {
    stream.write_all(text.as_bytes()).await?;
    stream.flush().await
}

async fn repeat<S: AsyncWrite + Unpin>(stream: &mut S, text: &str) -> std::io::Result<()> {
    let mut sent = 0;
    while sent < ENDLESS {
        send(stream, text).await?;
        sent += text.len();
    }
    Ok(())
}

async fn drip<S: AsyncWrite + Unpin>(stream: &mut S, text: &str) -> std::io::Result<()> {
    for byte in text.bytes() {
        stream.write_u8(byte).await?;
        stream.flush().await?;
        sleep(Duration::from_millis(500)).await;
    }
    Ok(())
}
