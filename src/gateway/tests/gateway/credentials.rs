//! Credentials: added by the gateway, never seen by a sandbox.

use http::Request;
use hyper::body::Incoming;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;

use crate::harness::{Harness, Sandbox, connect_from, read_response};
use crate::inspect::{ask, open, start};
use crate::world::{Answer, answer, http_server, tls};

const SECRET: &str = "s3cr3t-value-of-the-upstream";

fn policy() -> Value {
    json!({"egress": {"allow": [
        {"host": "api.example.test", "credential": {"secretRef": {"name": "api", "key": "token"}}},
        {"host": "free.example.test", "tls": "Inspect"},
    ]}})
}

async fn harness() -> (Harness, Sandbox) {
    let (harness, sandbox) = start(policy()).await;
    harness.secret("api", "token", SECRET, "# ours\napi.example.test\n");
    (harness, sandbox)
}

fn get(fields: &str) -> String {
    format!("GET /x HTTP/1.1\r\nHost: api.example.test\r\n{fields}\r\n")
}

#[tokio::test]
async fn the_host_gets_the_credential_in_place_of_what_the_sandbox_sends() {
    let (harness, sandbox) = harness().await;
    // The world says what it saw, with the credential masked as the gateway masks every echo of it.
    let seen = format!("authorization: Bearer {}", "*".repeat(SECRET.len()));
    for fields in [
        String::new(),
        "Authorization: Bearer mine\r\n".into(),
        format!("AUTHORIZATION: Bearer {}\r\nAuthorization_: x\r\n", sandbox.token),
    ] {
        let mut stream = open(&harness, &sandbox, "api.example.test", &[]).await;
        let back = ask(&mut stream, &get(&fields)).await;
        assert!(back.starts_with("HTTP/1.1 200") && back.contains(&seen), "{back}");
        assert!(!back.contains("mine") && !back.contains(&sandbox.token), "{back}");
        assert!(back.contains("accept-encoding: identity"), "{back}");
    }
    assert!(!harness.log_text().contains(SECRET));
}

#[tokio::test]
async fn a_steered_request_shows_the_run_s_token_as_its_key() {
    let (harness, sandbox) = harness().await;
    let other = harness.sandbox("two", 12).await;
    for (fields, expected) in [
        (
            format!("Authorization: Bearer {}\r\n", sandbox.token),
            "HTTP/1.1 200",
        ),
        (format!("x-api-key: {}\r\n", sandbox.token), "HTTP/1.1 200"),
        (String::new(), "HTTP/1.1 407"),
        (
            format!("Authorization: Bearer {}\r\n", other.token),
            "HTTP/1.1 407",
        ),
        (
            format!(
                "Authorization: Bearer {}\r\nx-api-key: {}\r\n",
                sandbox.token, other.token
            ),
            "HTTP/1.1 407",
        ),
    ] {
        let stream = connect_from(sandbox.address, harness.ports.tls).await;
        let mut stream = tls(stream, sandbox.ca.as_ref().unwrap(), "api.example.test", &[])
            .await
            .unwrap();
        let back = ask(&mut stream, &get(&fields)).await;
        assert!(back.starts_with(expected), "{fields}: {back}");
        assert!(!back.contains(&sandbox.token), "{back}");
    }
}

#[tokio::test]
async fn the_run_s_token_never_reaches_a_host_without_credential() {
    let (harness, sandbox) = harness().await;
    crate::inspect::serve_echo(&harness, "free.example.test", &[]).await;
    let mut stream = open(&harness, &sandbox, "free.example.test", &[]).await;
    let back = ask(
        &mut stream,
        &format!(
            "GET / HTTP/1.1\r\nHost: free.example.test\r\nAuthorization: Bearer {}\r\n\r\n",
            sandbox.token
        ),
    )
    .await;
    assert!(
        back.starts_with("HTTP/1.1 200") && !back.contains(&sandbox.token),
        "{back}"
    );
    let back = ask(
        &mut stream,
        "GET / HTTP/1.1\r\nHost: free.example.test\r\nAuthorization: Bearer own\r\n\r\n",
    )
    .await;
    assert!(back.contains("Bearer own"), "its own is its own: {back}");
}

#[tokio::test]
async fn a_rotated_secret_is_used_without_a_restart() {
    let (harness, sandbox) = harness().await;
    let mut stream = open(&harness, &sandbox, "api.example.test", &[]).await;
    assert!(
        ask(&mut stream, &get(""))
            .await
            .contains(&"*".repeat(SECRET.len()))
    );
    harness.secret("api", "token", "short", "api.example.test");
    let begun = std::time::Instant::now();
    loop {
        let back = ask(&mut stream, &get("")).await;
        if back.contains("authorization: Bearer *****\n") {
            break;
        }
        assert!(begun.elapsed().as_secs() < 10, "{back}");
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn without_consent_or_value_nothing_is_sent() {
    for (value, hosts) in [
        (SECRET, ""),
        (SECRET, "*.example.test"),
        (SECRET, "other.example.test"),
        (SECRET, "api.example.test.evil.test"),
        ("two\nlines", "api.example.test"),
        ("with\rreturn", "api.example.test"),
        ("with\0nul", "api.example.test"),
        ("", "api.example.test"),
    ] {
        let (harness, sandbox) = start(policy()).await;
        harness.secret("api", "token", value, hosts);
        let mut stream = open(&harness, &sandbox, "api.example.test", &[]).await;
        let back = ask(&mut stream, &get("")).await;
        assert!(
            back.starts_with("HTTP/1.1 403") && back.contains("CredentialUnavailable"),
            "{hosts:?}: {back}"
        );
        assert!(harness.network.dialled.lock().unwrap().is_empty());
    }
    let (harness, sandbox) = start(policy()).await;
    let mut stream = open(&harness, &sandbox, "api.example.test", &[]).await;
    assert!(
        ask(&mut stream, &get("")).await.contains("CredentialUnavailable"),
        "no Secret at all"
    );
}

/// Reflects the credential in every way that a server can.
async fn reflect(request: Request<Incoming>) -> Answer {
    let value = request.headers()["authorization"].clone();
    let mut response = answer(format!("<{}>", value.to_str().unwrap()));
    let headers = response.headers_mut();
    headers.insert("x-echo", value.clone());
    headers.insert(
        "location",
        format!("https://evil.test/?{SECRET}").parse().unwrap(),
    );
    headers.insert("set-cookie", "session=abc".parse().unwrap());
    if request.uri().path() == "/gzip" {
        headers.insert("content-encoding", "gzip".parse().unwrap());
    }
    if request.uri().path() == "/chunks" {
        let pieces: Vec<_> = SECRET
            .bytes()
            .map(|byte| {
                Ok::<_, std::convert::Infallible>(http_body::Frame::data(bytes::Bytes::from(vec![byte])))
            })
            .collect();
        *response.body_mut() =
            crate::world::boxed(http_body_util::StreamBody::new(futures::stream::iter(pieces)));
    }
    response
}

#[tokio::test]
async fn an_answer_that_carries_the_credential_is_cleaned() {
    let (harness, sandbox) = harness().await;
    let server = http_server(Some(harness.world.server("api.example.test", &[])), reflect).await;
    harness.network.route("api.example.test", 443, server);
    for path in ["/", "/chunks"] {
        let mut stream = open(&harness, &sandbox, "api.example.test", &[]).await;
        let back = ask(
            &mut stream,
            &format!("GET {path} HTTP/1.1\r\nHost: api.example.test\r\n\r\n"),
        )
        .await;
        assert!(
            back.starts_with("HTTP/1.1 200") && !back.contains(SECRET),
            "{back}"
        );
        assert!(
            back.contains("****") && !back.to_lowercase().contains("set-cookie"),
            "{back}"
        );
    }
    let mut stream = open(&harness, &sandbox, "api.example.test", &[]).await;
    let back = ask(
        &mut stream,
        "GET /gzip HTTP/1.1\r\nHost: api.example.test\r\n\r\n",
    )
    .await;
    assert!(
        back.starts_with("HTTP/1.1 502") && back.contains("EncodingNotAllowed") && !back.contains(SECRET),
        "what can't be searched goes no further: {back}"
    );
}

#[tokio::test]
async fn parts_of_an_answer_are_not_to_be_had() {
    let (harness, sandbox) = harness().await;
    let mut stream = open(&harness, &sandbox, "api.example.test", &[]).await;
    let back = ask(&mut stream, &get("Range: bytes=0-5\r\n")).await;
    assert!(
        back.starts_with("HTTP/1.1 403") && back.contains("RangeNotAllowed"),
        "{back}"
    );
}

#[tokio::test]
async fn a_policy_that_could_add_two_credentials_is_not_used() {
    let harness = Harness::start(json!({"egress": {"allow": [
        {"host": "api.example.test", "paths": ["/x"], "credential": {"secretRef": {"name": "api", "key": "token"}}},
        {"host": "*.example.test", "tls": "Inspect"},
    ]}}))
    .await;
    harness.show("one", 11, agentsandbox_api::sandbox::Limits::default());
    let (answer, _) = harness.register("one", 11, &"a".repeat(64)).await;
    assert!(!answer.bound && answer.retry, "{answer:?}");
}

#[tokio::test]
async fn credentials_never_travel_in_the_clear() {
    let (harness, sandbox) = harness().await;
    let mut stream = connect_from(sandbox.address, harness.ports.http).await;
    stream.write_all(get("").as_bytes()).await.unwrap();
    let back = read_response(&mut stream).await;
    assert!(back.starts_with("HTTP/1.1 403"), "{back}");
    assert!(harness.network.dialled.lock().unwrap().is_empty());
}
