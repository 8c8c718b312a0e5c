//! Whose an address is, and who may say so.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use agentsandbox_api::sandbox::Limits as AskedLimits;
use k8s_openapi::jiff::Timestamp;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::harness::{
    Harness, NAMESPACE, connect_from, is_closed, local, next_registered, proxy_auth, read_response, sha256,
};
use crate::world::raw_echo;

fn policy() -> serde_json::Value {
    json!({"egress": {"allow": [{"cidr": "198.51.100.0/24", "ports": [5432]}, {"host": "api.example.test", "tls": "Inspect"}]}})
}

async fn harness() -> Harness {
    let harness = Harness::start(policy()).await;
    harness
        .network
        .route_address("198.51.100.7".parse().unwrap(), 5432, raw_echo("").await);
    harness
}

#[tokio::test]
async fn an_unknown_address_is_closed_at_once() {
    let harness = harness().await;
    for port in [harness.ports.proxy, harness.ports.tls, harness.ports.http] {
        let mut stream = connect_from(local(77), port).await;
        let _ = stream
            .write_all(b"GET http://api.example.test/ HTTP/1.1\r\n\r\n")
            .await;
        assert!(is_closed(&mut stream).await);
    }
}

#[tokio::test]
async fn a_pod_that_is_not_seen_yet_is_told_to_try_again() {
    let harness = harness().await;
    let (answer, _) = harness.register("one", 11, &"a".repeat(64)).await;
    assert!(!answer.bound && answer.retry, "{answer:?}");
    harness.show("one", 11, AskedLimits::default());
    let (answer, _) = harness.register("one", 11, &"a".repeat(64)).await;
    assert!(answer.bound && answer.ca.is_some_and(|ca| ca.contains("BEGIN CERTIFICATE")));
    // Registering again with the same token changes nothing.
    let (answer, _) = harness.register("one", 11, &"a".repeat(64)).await;
    assert!(answer.bound);
}

/// Counts the program's own warnings.
struct Warnings(Arc<AtomicUsize>);

impl tracing::Subscriber for Warnings {
    fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
        *metadata.level() == tracing::Level::WARN
    }
    fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        tracing::span::Id::from_u64(1)
    }
    fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}
    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}
    fn event(&self, _: &tracing::Event<'_>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
    fn enter(&self, _: &tracing::span::Id) {}
    fn exit(&self, _: &tracing::span::Id) {}
}

#[tokio::test]
async fn a_flood_of_refused_registrations_does_not_fill_the_log() {
    const EACH: usize = 100;
    let harness = harness().await;
    harness.show("one", 11, AskedLimits::default());
    let expires = Timestamp::now().as_second() + 600;
    let token = |namespace: &str| harness.signer.pod_token(namespace, "uid-one", expires);
    let warnings = Arc::new(AtomicUsize::new(0));
    let _logging = tracing::subscriber::set_default(Warnings(warnings.clone()));
    let begun = Instant::now();
    for token in ["x.y.z".to_owned(), token("other"), token(NAMESPACE)] {
        // From an address that is not the pod's.
        let line = json!({"podUid": "uid-one", "token": token, "runTokenSha256": sha256("token")});
        for _ in 0..EACH {
            let (answer, _) = harness.send_registration(12, &line.to_string()).await;
            assert!(!answer.bound, "{answer:?}");
        }
    }
    let told = warnings.load(Ordering::Relaxed);
    let most = 20 + 5 * usize::try_from(begun.elapsed().as_secs() + 1).unwrap();
    assert!((1..=most).contains(&told), "{told} of {}", 3 * EACH);
}

#[tokio::test]
async fn registrations_of_others_are_refused() {
    let harness = harness().await;
    harness.show("one", 11, AskedLimits::default());
    let expires = Timestamp::now().as_second() + 600;
    let hash = sha256("token");
    let token = |namespace: &str, uid: &str| harness.signer.pod_token(namespace, uid, expires);
    let stranger = sandbox_gateway::jwks::testing::Signer::generate();
    for (last, uid, jwt) in [
        // From another address, of another pod, of another namespace, expired, signed by nobody, not a token at all.
        (12, "uid-one", token(NAMESPACE, "uid-one")),
        (11, "uid-one", token(NAMESPACE, "uid-two")),
        (11, "uid-two", token(NAMESPACE, "uid-one")),
        (11, "uid-one", token("other", "uid-one")),
        (
            11,
            "uid-one",
            harness.signer.pod_token(NAMESPACE, "uid-one", expires - 10_000),
        ),
        (11, "uid-one", stranger.pod_token(NAMESPACE, "uid-one", expires)),
        (11, "uid-one", "x.y.z".to_owned()),
    ] {
        let line = json!({"podUid": uid, "token": jwt, "runTokenSha256": hash}).to_string();
        let (answer, _) = harness.send_registration(last, &line).await;
        assert!(!answer.bound && answer.ca.is_none(), "{answer:?}");
    }
    for line in ["{}", "nonsense", "", &"x".repeat(1_000)] {
        let (answer, _) = harness.send_registration(11, line).await;
        assert!(!answer.bound && !answer.retry);
    }
    assert!(harness.gateway.session(local(11)).is_err());
}

#[tokio::test]
async fn every_request_of_the_proxy_needs_the_run_s_own_token() {
    let harness = harness().await;
    let one = harness.sandbox("one", 11).await;
    let two = harness.sandbox("two", 12).await;
    for (auth, expected) in [
        (None, "TokenRequired"),
        (Some(proxy_auth(&two.token)), "TokenWrong"),
        (Some(proxy_auth("")), "TokenRequired"),
        (Some("Bearer x".to_owned()), "TokenRequired"),
        (Some("Basic !!!".to_owned()), "TokenRequired"),
    ] {
        let mut stream = harness.proxy(&one).await;
        let auth = auth
            .map(|auth| format!("Proxy-Authorization: {auth}\r\n"))
            .unwrap_or_default();
        let request = format!("CONNECT 198.51.100.7:5432 HTTP/1.1\r\nHost: 198.51.100.7:5432\r\n{auth}\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let back = read_response(&mut stream).await;
        assert!(
            back.starts_with("HTTP/1.1 407") && back.contains(expected),
            "{back}"
        );
        assert!(
            back.to_lowercase().contains("proxy-authenticate: basic"),
            "{back}"
        );
    }
    assert!(harness.network.dialled.lock().unwrap().is_empty());
}

#[tokio::test]
async fn a_pod_that_ends_takes_its_binding_and_its_tunnels_with_it() {
    let harness = harness().await;
    let mut one = harness.sandbox("one", 11).await;
    let (mut tunnel, answer) = harness.connect(&one, "198.51.100.7:5432").await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    let mut ended = harness.pod("one", 11);
    ended.ended = true;
    harness.gateway.pod_seen(ended);
    assert!(is_closed(&mut tunnel).await);
    let told = next_registered(&mut one.recorder).await.unwrap();
    assert!(!told.bound, "{told:?}");
    let mut stream = harness.proxy(&one).await;
    assert!(is_closed(&mut stream).await, "a stale address is a stranger's");
    let status = harness.status("one", |status| status.settled).await;
    assert_eq!(status.pod_uid.as_deref(), Some("uid-one"));
}

#[tokio::test]
async fn an_address_that_is_used_again_is_nobody_s_until_the_old_pod_is_gone() {
    let harness = harness().await;
    let mut one = harness.sandbox("one", 11).await;
    let (mut tunnel, _) = harness.connect(&one, "198.51.100.7:5432").await;
    // Another pod is seen at the same address: one of the two is a lie, or late.
    harness.show("two", 11, AskedLimits::default());
    assert!(is_closed(&mut tunnel).await);
    assert!(harness.gateway.session(local(11)).is_err());
    let (answer, _) = harness.register("two", 11, &"b".repeat(64)).await;
    assert!(!answer.bound && answer.retry, "{answer:?}");
    assert!(!next_registered(&mut one.recorder).await.unwrap().bound);
    harness.gateway.pod_gone("uid-one");
    let (answer, _) = harness.register("two", 11, &"b".repeat(64)).await;
    assert!(answer.bound, "{answer:?}");
    assert_eq!(harness.gateway.session(local(11)).unwrap().run.sandbox, "two");
    // The first one's token is worth nothing now.
    let mut stream = harness.proxy(&one).await;
    let request = format!(
        "CONNECT 198.51.100.7:5432 HTTP/1.1\r\nHost: 198.51.100.7:5432\r\nProxy-Authorization: {}\r\n\r\n",
        proxy_auth(&one.token)
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    assert!(read_response(&mut stream).await.contains("TokenWrong"));
}

#[tokio::test]
async fn a_second_token_for_the_same_pod_voids_it() {
    let harness = harness().await;
    let one = harness.sandbox("one", 11).await;
    let (mut tunnel, _) = harness.connect(&one, "198.51.100.7:5432").await;
    let (answer, _) = harness.register("one", 11, &"c".repeat(64)).await;
    assert!(!answer.bound && !answer.retry, "{answer:?}");
    assert!(is_closed(&mut tunnel).await);
    let (answer, _) = harness.register("one", 11, &one.token).await;
    assert!(!answer.bound, "neither of the two: {answer:?}");
}

#[tokio::test]
async fn pods_on_the_node_s_network_are_never_bound() {
    let harness = harness().await;
    harness.show("one", 11, AskedLimits::default());
    let mut pod = harness.pod("one", 11);
    pod.host_network = true;
    harness.gateway.pod_seen(pod);
    let (answer, _) = harness.register("one", 11, &"a".repeat(64)).await;
    assert!(!answer.bound);
}

#[tokio::test]
async fn a_recorder_s_connections_are_few() {
    let harness = harness().await;
    let mut open = Vec::new();
    for _ in 0..20 {
        open.push(connect_from(local(66), harness.ports.register).await);
    }
    let mut closed = 0;
    for stream in &mut open {
        let mut byte = [0; 1];
        let read = tokio::time::timeout(std::time::Duration::from_millis(100), stream.read(&mut byte)).await;
        closed += usize::from(matches!(read, Ok(Ok(0) | Err(_))));
    }
    assert_eq!(closed, 16);
}
