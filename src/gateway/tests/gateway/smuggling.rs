//! Requests that two servers could read in two ways, and clients that take their time.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt as _, Empty};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::harness::{Harness, PATIENCE, Sandbox, connect_from, is_closed, read_response};
use crate::inspect::{open, start_with};
use crate::world::{raw_server, read_head};

const OK: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

/// A host in the clear, and a sandbox that may ask it.
async fn plain_host<F, R>(options: &[&str], serve: F) -> (Harness, Sandbox)
where
    F: Fn(TcpStream) -> R + Send + Sync + 'static,
    R: Future<Output = ()> + Send + 'static,
{
    let policy = json!({"egress": {"allow": [{"host": "plain.example.test", "tls": "None"}]}});
    let harness = Harness::with(policy, options).await;
    let server = raw_server(serve).await;
    harness.network.route("plain.example.test", 80, server);
    let sandbox = harness.sandbox("one", 11).await;
    (harness, sandbox)
}

/// A host in the clear that keeps everything that it reads.
async fn start(options: &[&str]) -> (Harness, Sandbox, Arc<Mutex<Vec<String>>>) {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let kept = seen.clone();
    let (harness, sandbox) = plain_host(options, move |mut stream| {
        let kept = kept.clone();
        async move {
            loop {
                let head = read_head(&mut stream).await;
                if head.is_empty() {
                    return;
                }
                kept.lock().unwrap().push(head);
                let _ = stream.write_all(OK).await;
            }
        }
    })
    .await;
    (harness, sandbox, seen)
}

#[tokio::test]
async fn requests_with_two_readings_reach_nobody() {
    let (harness, sandbox, seen) = start(&[]).await;
    let host = "Host: plain.example.test\r\n";
    for request in [
        format!("POST / HTTP/1.1\r\n{host}Content-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nX"),
        format!("POST / HTTP/1.1\r\n{host}Transfer-Encoding: chunked\r\nContent-Length: 6\r\n\r\n0\r\n\r\nX"),
        format!("POST / HTTP/1.1\r\n{host}Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n"),
        format!("POST / HTTP/1.1\r\n{host}Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n"),
        format!(
            "POST / HTTP/1.1\r\n{host}Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n"
        ),
        format!("POST / HTTP/1.1\r\n{host}Content-Length: 1\r\nContent-Length: 2\r\n\r\nXY"),
        format!("GET / HTTP/1.1\r\n{host}X: a\r\n folded\r\n\r\n"),
        format!("GET / HTTP/1.1\r\n{host}X: a\nY: b\r\n\r\n"),
        "GET / HTTP/1.1\nHost: plain.example.test\n\n".to_owned(),
        format!("GET / HTTP/1.1\r\n{host}Host: evil.example.test\r\n\r\n"),
        "GET / HTTP/1.1\r\n\r\n".to_owned(),
        format!("GET  / HTTP/1.1\r\n{host}\r\n"),
        format!("GET / HTTP/1.1\r\n{host}X: a\0\r\n\r\n"),
        format!("GET / HTTP/1.1\r\n{host}Connection: host\r\n\r\n"),
        "GET / HTTP/1.1\r\nHost: plain.example.test, evil.example.test\r\n\r\n".to_owned(),
    ] {
        let mut stream = connect_from(sandbox.address, harness.ports.http).await;
        stream.write_all(request.as_bytes()).await.unwrap();
        let back = read_response(&mut stream).await;
        assert!(back.starts_with("HTTP/1.1 40"), "{request:?}: {back}");
        assert!(back.contains("\"reason\""), "{request:?}: {back}");
    }
    assert_eq!(*seen.lock().unwrap(), Vec::<String>::new());
    let status = harness.status("one", |status| status.denied >= 15).await;
    assert_eq!(status.allowed, 0);
}

#[tokio::test]
async fn chunks_with_two_readings_never_become_a_second_request() {
    let (harness, sandbox, seen) = start(&[]).await;
    for body in [
        "3;ext=\nGET /evil HTTP/1.1\r\n",
        "3 \r\nabc\r\n0\r\n\r\n",
        "0\r\nX: y\r\n\r\n",
        "g\r\n",
        "-1\r\n",
        "ffffffffffffffff1\r\n",
    ] {
        let mut stream = connect_from(sandbox.address, harness.ports.http).await;
        let request = format!(
            "POST / HTTP/1.1\r\nHost: plain.example.test\r\nTransfer-Encoding: chunked\r\n\r\n{body}"
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        let _ = read_response(&mut stream).await;
        assert!(is_closed(&mut stream).await);
    }
    assert!(
        seen.lock()
            .unwrap()
            .iter()
            .all(|head| head.starts_with("POST / ")),
        "{seen:?}"
    );
}

#[tokio::test]
async fn the_body_of_a_refused_request_is_not_the_next_request() {
    let (harness, sandbox, seen) = start(&[]).await;
    let smuggled = "GET /evil HTTP/1.1\r\nHost: plain.example.test\r\n\r\n";
    let mut stream = connect_from(sandbox.address, harness.ports.http).await;
    let request = format!(
        "POST / HTTP/1.1\r\nHost: evil.example.test\r\nContent-Length: {}\r\n\r\n{smuggled}",
        smuggled.len()
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let back = read_response(&mut stream).await;
    assert!(back.contains("HostNotAllowed"), "{back}");
    assert!(is_closed(&mut stream).await);
    assert!(seen.lock().unwrap().is_empty());
}

#[tokio::test]
async fn pipelined_requests_are_each_judged() {
    let (harness, sandbox, seen) = start(&[]).await;
    let mut stream = connect_from(sandbox.address, harness.ports.http).await;
    let ok = "GET /1 HTTP/1.1\r\nHost: plain.example.test\r\n\r\n";
    let bad = "GET /2 HTTP/1.1\r\nHost: evil.example.test\r\n\r\n";
    stream
        .write_all(format!("{ok}{bad}{ok}").as_bytes())
        .await
        .unwrap();
    assert!(read_response(&mut stream).await.starts_with("HTTP/1.1 200"));
    assert!(read_response(&mut stream).await.starts_with("HTTP/1.1 403"));
    assert!(read_response(&mut stream).await.starts_with("HTTP/1.1 200"));
    assert_eq!(seen.lock().unwrap().len(), 2);
}

#[tokio::test]
async fn socks_tls_and_noise_on_the_proxy_port_are_closed() {
    let (harness, sandbox, _) = start(&[]).await;
    for bytes in [
        &b"\x05\x01\x00"[..],
        b"\x04\x01\x00\x50\x01\x02\x03\x04\x00",
        b"\x16\x03\x01\x02\x00\x01",
        b"\0\0\0\0",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ] {
        let mut stream = harness.proxy(&sandbox).await;
        stream.write_all(bytes).await.unwrap();
        assert!(is_closed(&mut stream).await, "{bytes:?}");
    }
}

#[tokio::test]
async fn a_head_that_never_ends_is_cut_off_by_size_and_by_time() {
    let (harness, sandbox, _) = start(&["--head-timeout-seconds", "1"]).await;
    let mut stream = harness.proxy(&sandbox).await;
    let filler = "X-Filler: aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\r\n".repeat(2_000);
    let _ = stream
        .write_all(b"GET http://plain.example.test/ HTTP/1.1\r\n")
        .await;
    let _ = stream.write_all(filler.as_bytes()).await;
    let back = read_response(&mut stream).await;
    assert!(back.is_empty() || back.contains("RequestTooLarge"), "{back}");

    let begun = Instant::now();
    let mut slow = harness.proxy(&sandbox).await;
    let trickle = async {
        for byte in b"GET http://plain.example.test/"
            .iter()
            .chain(std::iter::repeat(&b'a'))
        {
            if slow.write_all(&[*byte]).await.is_err() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), trickle)
        .await
        .expect("cut off");
    assert!(begun.elapsed() < Duration::from_secs(5));

    // One that says nothing at all.
    let mut silent = harness.proxy(&sandbox).await;
    assert!(is_closed(&mut silent).await);
}

#[tokio::test]
async fn a_body_that_stalls_is_cut_off() {
    let (harness, sandbox, _) = start(&["--body-timeout-seconds", "1"]).await;
    let mut stream = connect_from(sandbox.address, harness.ports.http).await;
    stream
        .write_all(b"POST / HTTP/1.1\r\nHost: plain.example.test\r\nContent-Length: 100\r\n\r\nabc")
        .await
        .unwrap();
    assert!(is_closed(&mut stream).await);
}

#[tokio::test]
async fn an_idle_connection_is_closed_and_an_answer_that_takes_long_is_not() {
    let policy = json!({"egress": {"allow": [{"host": "plain.example.test", "tls": "None"}]}});
    let harness = Harness::with(policy, &["--keep-alive-seconds", "1"]).await;
    let server = raw_server(|mut stream| async move {
        read_head(&mut stream).await;
        let _ = stream
            .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\na")
            .await;
        for _ in 0..2 {
            tokio::time::sleep(Duration::from_millis(1_500)).await;
            let _ = stream.write_all(b"bc").await;
        }
    })
    .await;
    harness.network.route("plain.example.test", 80, server);
    let sandbox = harness.sandbox("one", 11).await;
    let mut stream = connect_from(sandbox.address, harness.ports.http).await;
    stream
        .write_all(b"GET / HTTP/1.1\r\nHost: plain.example.test\r\n\r\n")
        .await
        .unwrap();
    let mut back = Vec::new();
    stream.read_to_end(&mut back).await.unwrap();
    assert!(back.ends_with(b"abcbc"), "{}", String::from_utf8_lossy(&back));
}

#[tokio::test]
async fn a_few_interim_answers_are_passed_over_and_a_flood_ends_the_request() {
    let (harness, sandbox) = plain_host(&[], |mut stream| async move {
        let few = read_head(&mut stream).await.starts_with("GET /few");
        for _ in 0..if few { 5 } else { usize::MAX } {
            let interim = b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n";
            if stream.write_all(interim).await.is_err() {
                return;
            }
        }
        let _ = stream.write_all(OK).await;
    })
    .await;
    for (path, expected) in [("/few", "HTTP/1.1 200"), ("/flood", "HTTP/1.1 502")] {
        let mut stream = connect_from(sandbox.address, harness.ports.http).await;
        let request = format!("GET {path} HTTP/1.1\r\nHost: plain.example.test\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let back = read_response(&mut stream).await;
        assert!(back.starts_with(expected), "{path}: {back}");
    }
}

/// A gateway that is not patient, and a host that is asked by HTTP/2.
async fn http2_host() -> (Harness, Sandbox) {
    let policy = json!({"egress": {"allow": [{"host": "api.example.test", "tls": "Inspect"}]}});
    start_with(
        policy,
        &["--head-timeout-seconds", "1", "--keep-alive-seconds", "1"],
    )
    .await
}

#[tokio::test]
async fn an_http2_connection_whose_first_request_trickles_in_is_cut_off() {
    let (harness, sandbox) = http2_host().await;
    // The preface, no settings, and the head of a frame of 4 KiB of header fields.
    let opening = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0\0\x10\0\x01\x04\0\0\0\x01";
    for at_once in [0, opening.len()] {
        let stream = open(&harness, &sandbox, "api.example.test", &["h2"]).await;
        let (mut read, mut write) = tokio::io::split(stream);
        let trickle = tokio::spawn(async move {
            let mut bytes = opening.to_vec();
            bytes.resize(4_096, 0);
            let _ = write.write_all(&bytes[..at_once]).await;
            for byte in &bytes[at_once..] {
                let _ = write.write_all(&[*byte]).await;
                let _ = write.flush().await;
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        });
        assert!(is_closed(&mut read).await, "{at_once} at once");
        trickle.abort();
    }
}

#[tokio::test]
async fn an_http2_connection_without_a_request_is_closed_whatever_its_pings_say() {
    let (harness, sandbox) = http2_host().await;
    let stream = open(&harness, &sandbox, "api.example.test", &["h2"]).await;
    let (mut sender, connection) = http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .keep_alive_interval(Duration::from_millis(200))
        .keep_alive_while_idle(true)
        .handshake(TokioIo::new(stream))
        .await
        .unwrap();
    let connection = tokio::spawn(connection);
    let request = Request::get("https://api.example.test/")
        .body(Empty::<Bytes>::new())
        .unwrap();
    let response = sender.send_request(request).await.unwrap();
    assert_eq!(response.status(), 200);
    response.into_body().collect().await.unwrap();
    let ended = tokio::time::timeout(PATIENCE, connection).await;
    assert!(ended.is_ok(), "it is still open");
    drop(sender);
}
