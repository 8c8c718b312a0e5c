//! One sandbox that takes all it can get, and another that works on.

use std::time::{Duration, Instant};

use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::harness::{Harness, connect_from, is_closed, read_response};
use crate::world::raw_echo;

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

fn resident() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    statm.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
}
