//! One sandbox that takes all it can get, and another that works on.

use std::time::{Duration, Instant};

use agentsandbox_api::sandbox::Limits as AskedLimits;
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::client::conn::http2::{Builder, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::harness::{Harness, PATIENCE, Sandbox, connect_from, eventually, is_closed, read_response};
use crate::inspect::{ask, http2, open, text};
use crate::models::{self, chat, post, stalled_policy};
use crate::world::{answer, http_server, raw_echo};

async fn harness(options: &[&str]) -> Harness {
    let policy = json!({"egress": {"allow": [{"cidr": "198.51.100.0/24", "ports": [5432]}]}});
    let harness = Harness::with(policy, options).await;
    harness
        .network
        .route_address("198.51.100.7".parse().unwrap(), 5432, raw_echo("").await);
    harness
}

#[tokio::test]
async fn a_flood_of_connections_leaves_others_their_part() {
    let harness = harness(&[
        "--connections-per-sandbox",
        "32",
        "--requests-per-second",
        "10000",
    ])
    .await;
    let hog = harness.sandbox("hog", 11).await;
    let other = harness.sandbox("other", 12).await;
    let mut held = Vec::new();
    for _ in 0..1_000 {
        held.push(connect_from(hog.address, harness.ports.proxy).await);
    }
    let mut slowest = Duration::ZERO;
    for _ in 0..50 {
        let begun = Instant::now();
        let (mut stream, answer) = harness.connect(&other, "198.51.100.7:5432").await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        stream.write_all(b"ping").await.unwrap();
        let mut back = [0; 4];
        stream.read_exact(&mut back).await.unwrap();
        slowest = slowest.max(begun.elapsed());
    }
    assert!(slowest < Duration::from_secs(1), "{slowest:?}");
    let mut open = 0;
    for stream in &mut held {
        let mut byte = [0; 1];
        open += usize::from(
            tokio::time::timeout(Duration::from_millis(1), stream.read(&mut byte))
                .await
                .is_err(),
        );
    }
    assert!(open <= 33, "{open}");
    harness
        .record("deny", Some("TooManyConnections"), "gateway")
        .await;
    let floods = harness
        .records()
        .iter()
        .filter(|record| record["reason"] == "TooManyConnections")
        .count();
    assert!(floods < 60, "{floods}");
    let status = harness.status("hog", |status| status.denied > 900).await;
    assert_eq!(status.denials.len(), 1);
}

#[tokio::test]
async fn places_are_given_back_when_tunnels_end() {
    let harness = harness(&["--connections-per-sandbox", "4"]).await;
    let sandbox = harness.sandbox("one", 11).await;
    for _ in 0..5 {
        let mut tunnels = Vec::new();
        for _ in 0..4 {
            let (stream, answer) = harness.connect(&sandbox, "198.51.100.7:5432").await;
            assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
            tunnels.push(stream);
        }
        let mut fifth = harness.proxy(&sandbox).await;
        assert!(is_closed(&mut fifth).await, "a tunnel holds its place");
        drop(tunnels);
        let session = harness.gateway.session(sandbox.address).unwrap();
        session.open.empty().await;
        // The place is free a moment later.
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn requests_above_the_rate_are_refused_and_not_recorded_each() {
    let harness = harness(&["--requests-per-second", "5"]).await;
    let sandbox = harness.sandbox("one", 11).await;
    let mut stream = harness.proxy(&sandbox).await;
    let mut refused = 0;
    for _ in 0..100 {
        let request = format!(
            "GET http://evil.example.test/ HTTP/1.1\r\nHost: evil.example.test\r\nProxy-Authorization: {}\r\n\r\n",
            harness.proxy_auth(&sandbox)
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        let back = read_response(&mut stream).await;
        refused += usize::from(back.starts_with("HTTP/1.1 429") && back.contains("TooManyRequests"));
    }
    assert!(refused > 80, "{refused}");
}

#[tokio::test]
async fn a_thousand_idle_tunnels_take_little_memory() {
    const TUNNELS: usize = 1_000;
    let harness = harness(&[
        "--connections-per-sandbox",
        "2000",
        "--requests-per-second",
        "100000",
    ])
    .await;
    let sandbox = harness.sandbox("one", 11).await;
    let mut tunnels = Vec::new();
    // The first ones pay for what is made once.
    for _ in 0..50 {
        tunnels.push(harness.connect(&sandbox, "198.51.100.7:5432").await.0);
    }
    let before = resident();
    for _ in 0..TUNNELS {
        tunnels.push(harness.connect(&sandbox, "198.51.100.7:5432").await.0);
    }
    let each = resident().saturating_sub(before) / TUNNELS;
    // Of this process, which holds both ends and the destination's copy buffer (16 KiB) as well.
    println!("{each} bytes per tunnel, both ends and the destination included");
    assert!(each < 15_000 + 24_000, "{each}");
}

const SLOW: &str = "slow.example.test";

/// A sandbox that may have four requests at once, of a host that answers some of them never.
async fn with_four_turns() -> (Harness, Sandbox) {
    let policy = json!({"egress": {"allow": [{"host": SLOW, "tls": "Inspect"}]}});
    let harness = Harness::with(policy, &["--requests-per-sandbox", "4"]).await;
    let config = harness.world.server(SLOW, &["h2"]);
    let server = http_server(Some(config), |request: Request<Incoming>| async move {
        if request.uri().path() == "/never" {
            std::future::pending::<()>().await;
        }
        answer("x".repeat(1_000))
    })
    .await;
    harness.network.route(SLOW, 443, server);
    let sandbox = harness.sandbox("hog", 11).await;
    (harness, sandbox)
}

fn get(path: &str) -> Request<Full<Bytes>> {
    Request::get(format!("https://{SLOW}{path}"))
        .body(Full::default())
        .unwrap()
}

/// A connection by HTTP/2. To open it is a request as well.
async fn connected(harness: &Harness, sandbox: &Sandbox) -> SendRequest<Full<Bytes>> {
    http2(open(harness, sandbox, SLOW, &["h2"]).await).await
}

/// What a request is answered.
async fn quick(sender: &mut SendRequest<Full<Bytes>>) -> (u16, String) {
    let (status, body) = text(sender.send_request(get("/quick")).await.unwrap()).await;
    (status.as_u16(), body)
}

/// Waits until a request is answered again.
async fn is_served_again(sender: &mut SendRequest<Full<Bytes>>) {
    let served = async {
        while quick(sender).await.0 != 200 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, served).await.unwrap();
}

#[tokio::test]
async fn requests_at_once_are_bounded_over_all_connections_of_a_sandbox() {
    let (harness, hog) = with_four_turns().await;
    let other = harness.sandbox("other", 12).await;
    let mut senders = Vec::new();
    for _ in 0..3 {
        senders.push(connected(&harness, &hog).await);
    }
    let mut another = senders.remove(0);
    let mut waiting = Vec::new();
    for sender in &mut senders {
        for _ in 0..2 {
            waiting.push(tokio::spawn(sender.send_request(get("/never"))));
        }
    }
    let session = harness.gateway.session(hog.address).unwrap();
    // Three connections, and four requests in two of them.
    eventually(|| (session.open.len() == 7).then_some(()))
        .await
        .unwrap();
    let (status, body) = quick(&mut another).await;
    assert!(status == 429 && body.contains("TooManyRequests"), "{body}");
    let mut neighbour = connected(&harness, &other).await;
    for _ in 0..10 {
        assert_eq!(quick(&mut neighbour).await.0, 200, "one after the other");
    }
    for request in waiting {
        request.abort();
    }
    is_served_again(&mut another).await;
}

#[tokio::test]
async fn an_answer_that_nobody_reads_keeps_its_turn() {
    let (harness, hog) = with_four_turns().await;
    let mut another = connected(&harness, &hog).await;
    let stream = open(&harness, &hog, SLOW, &["h2"]).await;
    let (mut sender, connection): (SendRequest<Full<Bytes>>, _) = Builder::new(TokioExecutor::new())
        .initial_stream_window_size(1)
        .handshake(TokioIo::new(stream))
        .await
        .unwrap();
    tokio::spawn(connection);
    let mut unread: Vec<Response<Incoming>> = Vec::new();
    for _ in 0..4 {
        unread.push(sender.send_request(get("/quick")).await.unwrap());
    }
    assert!(unread.iter().all(|answer| answer.status() == 200));
    // Long enough for the answers to have ended at their host.
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(quick(&mut another).await.0, 429);
    drop(unread);
    is_served_again(&mut another).await;
}

#[tokio::test]
async fn a_model_request_that_was_given_up_keeps_its_turn_while_it_goes_on() {
    let options = ["--requests-per-sandbox", "1"];
    let (harness, sandbox, provider) =
        models::start_with(stalled_policy(), AskedLimits::default(), &options).await;
    let host = "slow.openai.test";
    let request = post("/v1/chat/completions", host, &chat("alias", json!({})));
    let mut stream = open(&harness, &sandbox, host, &["http/1.1"]).await;
    let mut another = open(&harness, &sandbox, host, &["http/1.1"]).await;
    stream.write_all(request.as_bytes()).await.unwrap();
    eventually(|| (provider.requests.lock().unwrap().len() == 1).then_some(()))
        .await
        .unwrap();
    drop(stream);
    let session = harness.gateway.session(sandbox.address).unwrap();
    // The connection has ended, the request to the provider has not.
    eventually(|| (session.open.len() == 2).then_some(()))
        .await
        .unwrap();
    let back = ask(&mut another, &request).await;
    assert!(
        back.starts_with("HTTP/1.1 429") && back.contains("TooManyRequests"),
        "{back}"
    );
}

fn resident() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    statm.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
}
