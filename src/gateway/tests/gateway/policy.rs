//! Policies that change while something is open.

use std::time::{Duration, Instant};

use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::harness::{Harness, Sandbox, is_closed, local, next_registered};
use crate::inspect::{ask, open, serve_echo};
use crate::world::raw_echo;

async fn harness() -> (Harness, Sandbox) {
    let harness = Harness::start(json!({"egress": {"allow": [
        {"cidr": "198.51.100.0/24", "ports": [5432]},
        {"cidr": "203.0.113.0/24", "ports": [5432]},
        {"host": "api.example.test", "tls": "Inspect"},
    ]}}))
    .await;
    for address in ["198.51.100.7", "203.0.113.7"] {
        harness
            .network
            .route_address(address.parse().unwrap(), 5432, raw_echo("").await);
    }
    serve_echo(&harness, "api.example.test", &[]).await;
    let sandbox = harness.sandbox("one", 11).await;
    (harness, sandbox)
}

#[tokio::test]
async fn a_tightened_policy_closes_what_it_no_longer_allows_within_a_second() {
    let (harness, sandbox) = harness().await;
    let (mut kept, _) = harness.connect(&sandbox, "198.51.100.7:5432").await;
    let (mut gone, _) = harness.connect(&sandbox, "203.0.113.7:5432").await;
    let mut inspected = open(&harness, &sandbox, "api.example.test", &[]).await;
    assert!(
        ask(&mut inspected, "GET / HTTP/1.1\r\nHost: api.example.test\r\n\r\n")
            .await
            .starts_with("HTTP/1.1 200")
    );
    let begun = Instant::now();
    harness.set_policy(json!({"egress": {"allow": [{"cidr": "198.51.100.0/24", "ports": [5432]}]}}));
    assert!(is_closed(&mut gone).await && is_closed(&mut inspected).await);
    assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
    kept.write_all(b"still here").await.unwrap();
    let mut back = [0; 10];
    kept.read_exact(&mut back).await.unwrap();
    assert_eq!(&back, b"still here");
    let (_, answer) = harness.connect(&sandbox, "203.0.113.7:5432").await;
    assert!(answer.contains("AddressLiteral"), "{answer}");
}

#[tokio::test]
async fn a_kept_alive_connection_obeys_the_policy_of_each_moment() {
    let (harness, sandbox) = harness().await;
    let mut stream = open(&harness, &sandbox, "api.example.test", &[]).await;
    let get = "GET /a HTTP/1.1\r\nHost: api.example.test\r\n\r\n";
    assert!(ask(&mut stream, get).await.starts_with("HTTP/1.1 200"));
    harness.set_policy(json!({"egress": {"allow": [{"host": "api.example.test", "paths": ["/b"]}]}}));
    let back = ask(&mut stream, get).await;
    assert!(back.contains("PathNotAllowed"), "{back}");
    assert!(
        ask(&mut stream, &get.replace("/a", "/b"))
            .await
            .starts_with("HTTP/1.1 200")
    );
}

#[tokio::test]
async fn a_policy_that_is_gone_or_does_not_compile_refuses_everything() {
    for broken in [false, true] {
        let (harness, mut sandbox) = harness().await;
        let (mut tunnel, _) = harness.connect(&sandbox, "198.51.100.7:5432").await;
        if broken {
            harness.set_policy(json!({"egress": {"allow": [{"host": "not a name"}]}}));
        } else {
            harness.gateway.policy_gone("default");
        }
        assert!(is_closed(&mut tunnel).await);
        let (_, answer) = harness.connect(&sandbox, "198.51.100.7:5432").await;
        assert!(answer.contains("NotReady"), "{answer}");
        assert!(!next_registered(&mut sandbox.recorder).await.unwrap().bound);
        let (answer, _) = harness.register("one", 11, &sandbox.token).await;
        assert!(!answer.bound || broken, "{answer:?}");
    }
}

#[tokio::test]
async fn a_recorder_is_told_of_a_new_certificate() {
    let (harness, mut sandbox) = harness().await;
    harness.set_policy(json!({"egress": {"allow": [
        {"host": "api.example.test", "tls": "Inspect"},
        {"host": "more.example.test", "tls": "Inspect"},
    ]}}));
    let told = next_registered(&mut sandbox.recorder).await.unwrap();
    assert!(told.bound && told.ca.is_some() && told.ca != sandbox.ca);
    // The old certificate is still good for what it was made for.
    let mut stream = open(&harness, &sandbox, "api.example.test", &[]).await;
    assert!(
        ask(&mut stream, "GET / HTTP/1.1\r\nHost: api.example.test\r\n\r\n")
            .await
            .starts_with("HTTP/1.1 200")
    );
}

#[tokio::test]
async fn a_gateway_that_stops_gives_back_and_tells_its_recorders() {
    let (harness, mut sandbox) = harness().await;
    let (mut tunnel, _) = harness.connect(&sandbox, "198.51.100.7:5432").await;
    let gateway = harness.gateway.clone();
    let stop = tokio::spawn(async move { gateway.stop(Duration::from_millis(300)).await });
    assert!(!next_registered(&mut sandbox.recorder).await.unwrap().bound);
    tunnel.write_all(b"last").await.unwrap();
    let mut back = [0; 4];
    tunnel.read_exact(&mut back).await.unwrap();
    assert!(is_closed(&mut tunnel).await, "after its time");
    stop.await.unwrap();
    assert!(
        harness.gateway.session(local(11)).is_ok(),
        "the run has not ended"
    );
    let status = harness.sink.run("one").unwrap();
    assert!(!status.settled && status.used.bytes == 8, "{status:?}");
}
