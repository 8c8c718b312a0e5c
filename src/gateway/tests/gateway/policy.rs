//! Policies that change while something is open.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use agentsandbox_api::sandbox::Limits as AskedLimits;
use agentsandbox_egress::budget::Counters;
use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio_rustls::client::TlsStream;

use crate::harness::{Harness, Sandbox, eventually, is_closed, local, next_registered, read_response};
use crate::inspect::{ask, http2, open, serve_echo, text};
use crate::models::{self, chat, post, stalled_policy};
use crate::world::{answer, http_server, raw_echo};

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

/// Two names of one private address, which a rule opens or does not.
fn private(is_opened: bool) -> Value {
    let mut allow = vec![
        json!({"host": "api.example.test", "tls": "Inspect"}),
        json!({"host": "raw.example.test"}),
    ];
    if is_opened {
        allow.push(json!({"cidr": "10.20.0.0/24", "ports": [443]}));
    }
    json!({"egress": {"allow": allow}})
}

#[tokio::test]
async fn what_a_removed_range_opened_is_reached_no_more() {
    for protocols in [&["http/1.1"][..], &["h2"]] {
        let harness = Harness::start(private(true)).await;
        let address = "10.20.0.7".parse().unwrap();
        let config = harness.world.server("api.example.test", protocols);
        let server = http_server(Some(config), |request: Request<Incoming>| async move {
            if request.uri().path() == "/never" {
                std::future::pending::<()>().await;
            }
            answer("here")
        })
        .await;
        harness.network.route_address(address, 443, server);
        for name in ["api.example.test", "raw.example.test"] {
            harness.network.answer(name, &[&[address]]);
        }
        let sandbox = harness.sandbox("one", 11).await;
        let request = |path: &str| {
            Request::get(format!("https://api.example.test{path}")).body(Full::<Bytes>::default())
        };
        let mut sender = http2(open(&harness, &sandbox, "api.example.test", &["h2"]).await).await;
        let (status, body) = text(sender.send_request(request("/").unwrap()).await.unwrap()).await;
        assert_eq!((status.as_u16(), body.as_str()), (200, "here"));
        let waiting = tokio::spawn(sender.send_request(request("/never").unwrap()));
        // One more connection by HTTP/1.1, which is idle afterwards.
        let (status, _) = text(sender.send_request(request("/").unwrap()).await.unwrap()).await;
        assert_eq!(status, 200);
        let (mut tunnel, head) = harness.connect(&sandbox, "raw.example.test:443").await;
        assert!(head.starts_with("HTTP/1.1 200"), "{head}");
        let session = harness.gateway.session(sandbox.address).unwrap();
        let dialled = || harness.network.dialled.lock().unwrap().len();
        // The connection, the request that waits, and the tunnel.
        let is_waiting = || session.open.len() == 3 && dialled() >= 2;
        eventually(|| is_waiting().then_some(())).await.unwrap();
        tokio::time::sleep(Duration::from_millis(50)).await;
        let before = dialled();

        harness.set_policy(private(false));
        assert!(is_closed(&mut tunnel).await);
        assert_eq!(waiting.await.unwrap().unwrap().status(), 403, "{protocols:?}");
        let (status, body) = text(sender.send_request(request("/").unwrap()).await.unwrap()).await;
        assert!(status == 403 && body.contains("AddressForbidden"), "{body}");
        assert_eq!(dialled(), before, "nothing is tried");
    }
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

/// What the run was charged beside its bytes.
fn charged(harness: &Harness, sandbox: &Sandbox) -> Counters {
    let used = harness
        .gateway
        .session_of(&sandbox.pod_uid)
        .unwrap()
        .account
        .used();
    Counters { bytes: 0, ..used }
}

/// Asks a model, without waiting for the answer.
async fn send(harness: &Harness, sandbox: &Sandbox, host: &str, model: &str) -> TlsStream<TcpStream> {
    let mut stream = open(harness, sandbox, host, &["http/1.1"]).await;
    let request = post("/v1/chat/completions", host, &chat(model, json!({})));
    stream.write_all(request.as_bytes()).await.unwrap();
    stream
}

/// The provider's host answers when it is told to, with this; it counts what it is asked.
async fn answer_later(
    harness: &Harness,
    host: &str,
    status: StatusCode,
    body: Value,
) -> (Arc<AtomicUsize>, Arc<Notify>) {
    let (asked, go) = (Arc::new(AtomicUsize::new(0)), Arc::new(Notify::new()));
    let (counted, gate) = (asked.clone(), go.clone());
    let config = harness.world.server(host, &["http/1.1"]);
    let server = http_server(Some(config), move |_| {
        counted.fetch_add(1, Ordering::SeqCst);
        let (gate, body) = (gate.clone(), body.to_string());
        async move {
            gate.notified().await;
            let mut response = answer(body);
            *response.status_mut() = status;
            response
        }
    })
    .await;
    harness.network.route(host, 443, server);
    (asked, go)
}

#[tokio::test]
async fn a_model_request_that_is_closed_is_paid_for_and_goes_to_no_other_target() {
    for is_gone in [false, true] {
        let (harness, sandbox, provider) = models::start(stalled_policy(), AskedLimits::default()).await;
        let mut stream = send(&harness, &sandbox, "slow.openai.test", "alias").await;
        eventually(|| (provider.requests.lock().unwrap().len() == 1).then_some(()))
            .await
            .unwrap();
        if is_gone {
            harness.gateway.policy_gone("default");
            assert!(is_closed(&mut stream).await);
        } else {
            let mut policy = stalled_policy();
            policy["models"][0]["allow"] = json!(["other"]);
            harness.set_policy(policy);
            let back = read_response(&mut stream).await;
            assert!(
                back.starts_with("HTTP/1.1 403") && back.contains("HostNotAllowed"),
                "{back}"
            );
        }
        harness
            .record("end", Some("HostNotAllowed"), "stalled.openai.test")
            .await;
        harness
            .record("deny", Some("HostNotAllowed"), "slow.openai.test")
            .await;
        assert_eq!(
            provider.requests.lock().unwrap().len(),
            1,
            "no other one is asked"
        );
        let used = charged(&harness, &sandbox);
        assert!(
            used.model_requests == 1 && used.tokens > 20,
            "the first one may have done the work: {used:?}"
        );
    }
}

#[tokio::test]
async fn a_fallback_that_the_policy_no_longer_names_is_not_asked() {
    let (harness, sandbox, provider) = models::start(stalled_policy(), AskedLimits::default()).await;
    let busy = StatusCode::TOO_MANY_REQUESTS;
    let (asked, go) = answer_later(&harness, "stalled.openai.test", busy, json!({})).await;
    let mut stream = send(&harness, &sandbox, "slow.openai.test", "alias").await;
    eventually(|| (asked.load(Ordering::SeqCst) == 1).then_some(()))
        .await
        .unwrap();
    let mut policy = stalled_policy();
    policy["models"][0]["fallbacks"] = json!([]);
    harness.set_policy(policy);
    go.notify_one();
    let back = read_response(&mut stream).await;
    assert!(
        back.starts_with("HTTP/1.1 403") && back.contains("HostNotAllowed"),
        "{back}"
    );
    assert!(provider.requests.lock().unwrap().is_empty());
    assert_eq!(charged(&harness, &sandbox).model_requests, 1);
}

#[tokio::test]
async fn a_request_whose_model_is_cut_while_its_body_trickles_in_is_not_sent() {
    let limits = AskedLimits {
        tokens: Some(1_000),
        model_requests: Some(5),
        ..AskedLimits::default()
    };
    let (harness, sandbox, provider) = models::start(models::policy(), limits).await;
    let session = harness.gateway.session(sandbox.address).unwrap();
    let all = session.model_memory.available_permits();
    let mut stream = open(&harness, &sandbox, "api.openai.test", &["http/1.1"]).await;
    let request = post(
        "/v1/chat/completions",
        "api.openai.test",
        &chat("good", json!({})),
    );
    let (most, rest) = request.split_at(request.len() - 5);
    stream.write_all(most.as_bytes()).await.unwrap();
    eventually(|| (session.model_memory.available_permits() < all).then_some(()))
        .await
        .unwrap();
    let mut policy = models::policy();
    policy["models"][0]["allow"] = json!(["slow"]);
    harness.set_policy(policy);
    let back = ask(&mut stream, rest).await;
    assert!(
        back.starts_with("HTTP/1.1 403") && back.contains("HostNotAllowed"),
        "{back}"
    );
    harness
        .record("deny", Some("HostNotAllowed"), "api.openai.test")
        .await;
    assert!(provider.requests.lock().unwrap().is_empty());
    assert!(harness.network.dialled.lock().unwrap().is_empty());
    assert_eq!(charged(&harness, &sandbox), Counters::ZERO);
    harness.gateway.pod_gone(&sandbox.pod_uid);
    let status = harness.status("one", |status| status.settled).await;
    assert_eq!(
        (status.claimed.tokens, status.claimed.model_requests),
        (0, 0),
        "it was given back"
    );
}

#[tokio::test]
async fn a_request_that_waits_for_budget_while_its_run_ends_is_not_sent() {
    // Enough for one such request at a time, and for many when it is known what they cost.
    let limits = AskedLimits {
        tokens: Some(200),
        ..AskedLimits::default()
    };
    let (harness, sandbox, _) = models::start(models::policy(), limits).await;
    let cost = json!({"usage": {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}});
    let (asked, go) = answer_later(&harness, "api.openai.test", StatusCode::OK, cost).await;
    let session = harness.gateway.session(sandbox.address).unwrap();
    let first = send(&harness, &sandbox, "api.openai.test", "good").await;
    eventually(|| (asked.load(Ordering::SeqCst) == 1).then_some(()))
        .await
        .unwrap();
    let free = session.model_memory.available_permits();
    let second = send(&harness, &sandbox, "api.openai.test", "good").await;
    eventually(|| (session.model_memory.available_permits() < free).then_some(()))
        .await
        .unwrap();
    harness.gateway.pod_gone(&sandbox.pod_uid);
    harness
        .record("deny", Some("UnknownSandbox"), "api.openai.test")
        .await;
    go.notify_one();
    let status = harness.status("one", |status| status.settled).await;
    assert_eq!((status.used.model_requests, status.used.tokens), (1, 10));
    assert_eq!(asked.load(Ordering::SeqCst), 1);
    drop((first, second));
}
