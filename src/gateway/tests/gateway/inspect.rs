//! Requests in TLS that is ended by the gateway, and in the clear.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Empty, Full, StreamBody};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

use crate::harness::{Harness, Sandbox, connect_from, is_closed, read_response};
use crate::world::{Answer, answer, boxed, echo, http_server, raw_server, read_head, tls};

pub async fn start(policy: Value) -> (Harness, Sandbox) {
    start_with(policy, &[]).await
}

pub async fn start_with(policy: Value, options: &[&str]) -> (Harness, Sandbox) {
    let harness = Harness::with(policy, options).await;
    serve_echo(&harness, "api.example.test", &["h2", "http/1.1"]).await;
    let sandbox = harness.sandbox("one", 11).await;
    (harness, sandbox)
}

pub async fn serve_echo(harness: &Harness, host: &str, protocols: &[&str]) {
    let config = harness.world.server(host, protocols);
    let server = http_server(Some(config), echo).await;
    harness.network.route(host, 443, server);
}

fn policy() -> Value {
    json!({"egress": {"allow": [
        {"host": "api.example.test", "methods": ["GET", "POST", "HEAD"], "paths": ["/v1/", "/exact"], "maxRequestBytes": 1000},
        {"host": "other.example.test", "tls": "Inspect"},
        {"host": "plain.example.test", "tls": "None"},
        {"host": "ws.example.test", "upgrade": true},
    ]}})
}

/// TLS with the gateway, through the proxy.
pub async fn open(
    harness: &Harness,
    sandbox: &Sandbox,
    host: &str,
    protocols: &[&str],
) -> TlsStream<TcpStream> {
    let (stream, answer) = harness.connect(sandbox, &format!("{host}:443")).await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    tls(stream, sandbox.ca.as_ref().unwrap(), host, protocols)
        .await
        .unwrap()
}

pub async fn ask(stream: &mut TlsStream<TcpStream>, request: &str) -> String {
    stream.write_all(request.as_bytes()).await.unwrap();
    read_response(stream).await
}

pub async fn http2(stream: TlsStream<TcpStream>) -> hyper::client::conn::http2::SendRequest<Full<Bytes>> {
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
    let (sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
            .await
            .unwrap();
    tokio::spawn(connection);
    sender
}

pub async fn text(response: Response<Incoming>) -> (StatusCode, String) {
    let status = response.status();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    (status, String::from_utf8_lossy(&body).into_owned())
}

#[tokio::test]
async fn allowed_requests_reach_the_host_by_http1_and_http2() {
    let (harness, sandbox) = start(policy()).await;
    for upstream in [&["http/1.1"][..], &["h2", "http/1.1"]] {
        serve_echo(&harness, "api.example.test", upstream).await;
        let version = if upstream.len() == 2 {
            "HTTP/2.0"
        } else {
            "HTTP/1.1"
        };
        let mut stream = open(&harness, &sandbox, "api.example.test", &["http/1.1"]).await;
        let back = ask(
            &mut stream,
            "POST /v1/x?q=1 HTTP/1.1\r\nHost: api.example.test\r\nContent-Length: 5\r\n\r\nhello",
        )
        .await;
        assert!(
            back.starts_with("HTTP/1.1 200") && back.contains("POST ") && back.contains("/v1/x?q=1"),
            "{back}"
        );
        // The host is spoken to as the sandbox speaks.
        assert!(
            back.contains("HTTP/1.1 POST") && back.contains("body 5"),
            "{back}"
        );
        let stream = open(&harness, &sandbox, "api.example.test", &["h2"]).await;
        let mut sender = http2(stream).await;
        let request = Request::post("https://api.example.test/v1/y")
            .body(Full::new(Bytes::from("hello!")))
            .unwrap();
        let (status, back) = text(sender.send_request(request).await.unwrap()).await;
        assert!(
            status == 200 && back.contains("/v1/y") && back.contains("body 6") && back.contains(version),
            "{back}"
        );
        // A new session, so that the pool begins anew as well.
        harness.gateway.session(sandbox.address).unwrap().pool.clear();
    }
    let record = harness.record("allow", None, "api.example.test").await;
    assert_eq!(record["class"], 4001);
    let request = harness
        .records()
        .into_iter()
        .find(|record| record["class"] == 4002)
        .unwrap();
    assert_eq!(
        (request["path"].as_str(), request["method"].as_str()),
        (Some("/v1/x"), Some("POST"))
    );
    assert!(!harness.log_text().contains("q=1"), "queries are never logged");
}

#[tokio::test]
async fn steered_connections_are_inspected_like_proxied_ones() {
    let (harness, sandbox) = start(policy()).await;
    let stream = connect_from(sandbox.address, harness.ports.tls).await;
    let mut stream = tls(stream, sandbox.ca.as_ref().unwrap(), "api.example.test", &[])
        .await
        .unwrap();
    let back = ask(
        &mut stream,
        "GET /v1/x HTTP/1.1\r\nHost: api.example.test\r\n\r\n",
    )
    .await;
    assert!(back.contains("/v1/x"), "{back}");
    let back = ask(
        &mut stream,
        "GET /v2/x HTTP/1.1\r\nHost: api.example.test\r\n\r\n",
    )
    .await;
    assert!(
        back.starts_with("HTTP/1.1 403") && back.contains("PathNotAllowed"),
        "{back}"
    );
}

#[tokio::test]
async fn what_no_rule_allows_is_refused_request_by_request() {
    let (harness, sandbox) = start(policy()).await;
    let mut stream = open(&harness, &sandbox, "api.example.test", &[]).await;
    for (line, reason) in [
        ("GET /v1 HTTP/1.1", "PathNotAllowed"),
        ("GET /exact/x HTTP/1.1", "PathNotAllowed"),
        ("GET /v1/../admin HTTP/1.1", "PathMalformed"),
        ("GET /v1/%2e%2e/admin HTTP/1.1", "PathMalformed"),
        ("GET /v1/..%2fadmin HTTP/1.1", "PathMalformed"),
        ("GET //v1/x HTTP/1.1", "PathMalformed"),
        ("GET /v1/x;y HTTP/1.1", "PathMalformed"),
        ("GET /v1/a\\b HTTP/1.1", "PathMalformed"),
        ("GET /v1/%00 HTTP/1.1", "PathMalformed"),
        ("DELETE /v1/x HTTP/1.1", "MethodNotAllowed"),
        ("TRACE /v1/x HTTP/1.1", "MethodNotAllowed"),
        ("OPTIONS * HTTP/1.1", "PathMalformed"),
    ] {
        let back = ask(&mut stream, &format!("{line}\r\nHost: api.example.test\r\n\r\n")).await;
        assert!(
            back.starts_with("HTTP/1.1 4") && back.contains(reason),
            "{line}: {back}"
        );
    }
    // The connection was kept all the while.
    let back = ask(
        &mut stream,
        "GET /exact HTTP/1.1\r\nHost: api.example.test\r\n\r\n",
    )
    .await;
    assert!(back.starts_with("HTTP/1.1 200"), "{back}");
}

#[tokio::test]
async fn another_host_on_a_kept_alive_connection_is_misdirected() {
    let (harness, sandbox) = start(policy()).await;
    serve_echo(&harness, "other.example.test", &[]).await;
    let mut stream = open(&harness, &sandbox, "api.example.test", &[]).await;
    let back = ask(
        &mut stream,
        "GET /v1/x HTTP/1.1\r\nHost: api.example.test\r\n\r\n",
    )
    .await;
    assert!(back.starts_with("HTTP/1.1 200"), "{back}");
    for host in [
        "other.example.test",
        "evil.example.test",
        "api.example.test:8443",
        "api.example.test.",
    ] {
        let back = ask(
            &mut stream,
            &format!("GET /v1/x HTTP/1.1\r\nHost: {host}\r\n\r\n"),
        )
        .await;
        assert!(
            back.contains("HostMismatch") || host.ends_with('.') && back.contains("NameMalformed"),
            "{host}: {back}"
        );
        assert!(
            back.starts_with("HTTP/1.1 421") || host.ends_with('.'),
            "{host}: {back}"
        );
    }
    let absolute = "GET https://other.example.test/v1/x HTTP/1.1\r\nHost: api.example.test\r\n\r\n";
    assert!(ask(&mut stream, absolute).await.starts_with("HTTP/1.1 421"));
}

#[tokio::test]
async fn another_host_on_a_second_http2_stream_is_misdirected() {
    let (harness, sandbox) = start(policy()).await;
    let mut sender = http2(open(&harness, &sandbox, "api.example.test", &["h2"]).await).await;
    let request = |uri: &str| Request::get(uri).body(Full::default()).unwrap();
    let (status, _) = text(
        sender
            .send_request(request("https://api.example.test/v1/x"))
            .await
            .unwrap(),
    )
    .await;
    assert_eq!(status, 200);
    let (status, back) = text(
        sender
            .send_request(request("https://other.example.test/v1/x"))
            .await
            .unwrap(),
    )
    .await;
    assert_eq!(status, 421, "{back}");
    let mut two = request("https://api.example.test/v1/x");
    two.headers_mut()
        .insert("host", "other.example.test".parse().unwrap());
    let (status, back) = text(sender.send_request(two).await.unwrap()).await;
    assert_eq!(status, 421, "{back}");
    let (status, _) = text(
        sender
            .send_request(request("https://api.example.test/v1/x"))
            .await
            .unwrap(),
    )
    .await;
    assert_eq!(status, 200, "the connection goes on");
}

#[tokio::test]
async fn an_inspected_tunnel_must_ask_for_its_own_host() {
    let (harness, sandbox) = start(policy()).await;
    let (stream, _) = harness.connect(&sandbox, "api.example.test:443").await;
    assert!(
        tls(stream, sandbox.ca.as_ref().unwrap(), "other.example.test", &[])
            .await
            .is_err()
    );
    harness
        .record("deny", Some("ServerNameMismatch"), "api.example.test")
        .await;
}

#[tokio::test]
async fn plain_http_goes_by_absolute_form_by_steering_and_by_tunnel() {
    let (harness, sandbox) = start(policy()).await;
    let server = http_server(None, echo).await;
    harness.network.route("plain.example.test", 80, server);
    let auth = harness.proxy_auth(&sandbox);
    let mut stream = harness.proxy(&sandbox).await;
    let request = format!(
        "GET http://plain.example.test/a?b HTTP/1.1\r\nHost: plain.example.test\r\nProxy-Authorization: {auth}\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let back = read_response(&mut stream).await;
    assert!(
        back.contains("GET /a?b") && back.contains("host: plain.example.test"),
        "{back}"
    );
    assert!(
        !back.to_lowercase().contains("proxy-authorization"),
        "the token goes no further: {back}"
    );

    let mut stream = connect_from(sandbox.address, harness.ports.http).await;
    stream
        .write_all(b"GET /c HTTP/1.1\r\nHost: plain.example.test\r\n\r\n")
        .await
        .unwrap();
    assert!(read_response(&mut stream).await.contains("GET /c"));
    stream
        .write_all(b"GET /c HTTP/1.1\r\nHost: api.example.test\r\n\r\n")
        .await
        .unwrap();
    let back = read_response(&mut stream).await;
    assert!(back.contains("PortNotAllowed"), "https only: {back}");

    let (mut stream, _) = harness.connect(&sandbox, "plain.example.test:80").await;
    stream
        .write_all(b"GET /d HTTP/1.1\r\nHost: plain.example.test\r\n\r\n")
        .await
        .unwrap();
    assert!(read_response(&mut stream).await.contains("GET /d"));
    stream
        .write_all(b"GET /d HTTP/1.1\r\nHost: evil.example.test\r\n\r\n")
        .await
        .unwrap();
    assert!(read_response(&mut stream).await.starts_with("HTTP/1.1 421"));
}

#[tokio::test]
async fn the_proxy_takes_absolute_form_only_and_one_host_only() {
    let (harness, sandbox) = start(policy()).await;
    let auth = harness.proxy_auth(&sandbox);
    for (line, host, reason) in [
        ("GET /x HTTP/1.1", "plain.example.test", "RequestMalformed"),
        (
            "GET https://api.example.test/v1/x HTTP/1.1",
            "api.example.test",
            "SchemeNotAllowed",
        ),
        (
            "GET http://plain.example.test/x HTTP/1.1",
            "other.example.test",
            "HostMismatch",
        ),
        (
            "GET http://api.example.test/v1/x HTTP/1.1",
            "api.example.test",
            "PortNotAllowed",
        ),
        ("GET http://127.0.0.1/x HTTP/1.1", "127.0.0.1", "AddressLiteral"),
        ("GET http://2130706433/x HTTP/1.1", "2130706433", "AddressLiteral"),
        (
            "GET http://user@plain.example.test/x HTTP/1.1",
            "plain.example.test",
            "NameMalformed",
        ),
        (
            "GET ftp://plain.example.test/x HTTP/1.1",
            "plain.example.test",
            "SchemeNotAllowed",
        ),
    ] {
        let mut stream = harness.proxy(&sandbox).await;
        let request = format!("{line}\r\nHost: {host}\r\nProxy-Authorization: {auth}\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let back = read_response(&mut stream).await;
        assert!(back.contains(reason), "{line}: {back}");
    }
}

#[tokio::test]
async fn fields_that_servers_believe_over_the_request_are_removed() {
    let (harness, sandbox) = start(policy()).await;
    let mut stream = open(&harness, &sandbox, "api.example.test", &[]).await;
    let fields = "X-HTTP-Method-Override: DELETE\r\nX-Method-Override: DELETE\r\nX-Original-URL: /admin\r\nX-Rewrite-URL: /admin\r\n\
        X-Forwarded-For: 1.2.3.4\r\nX-Forwarded-Host: evil\r\nForwarded: for=x\r\nVia: 1.1 x\r\nConnection: keep-alive, x-hop\r\n\
        X-Hop: 1\r\nKeep-Alive: 5\r\nTE: trailers\r\nX-Kept: yes\r\n";
    let back = ask(
        &mut stream,
        &format!("GET /v1/x HTTP/1.1\r\nHost: api.example.test\r\n{fields}\r\n"),
    )
    .await;
    for gone in [
        "override",
        "original-url",
        "rewrite-url",
        "forwarded",
        "via:",
        "x-hop",
        "keep-alive",
    ] {
        assert!(!back.to_lowercase().contains(gone), "{gone}: {back}");
    }
    assert!(back.contains("x-kept: yes"), "{back}");
}

#[tokio::test]
async fn redirects_come_back_as_they_are() {
    let (harness, sandbox) = start(policy()).await;
    let hits = Arc::new(AtomicUsize::new(0));
    let counted = hits.clone();
    let server = http_server(Some(harness.world.server("api.example.test", &[])), move |_| {
        counted.fetch_add(1, Ordering::Relaxed);
        async {
            let mut response = answer("");
            *response.status_mut() = StatusCode::FOUND;
            response
                .headers_mut()
                .insert("location", "https://evil.example.test/".parse().unwrap());
            response
        }
    })
    .await;
    harness.network.route("api.example.test", 443, server);
    let mut stream = open(&harness, &sandbox, "api.example.test", &[]).await;
    let back = ask(
        &mut stream,
        "GET /v1/x HTTP/1.1\r\nHost: api.example.test\r\n\r\n",
    )
    .await;
    assert!(
        back.starts_with("HTTP/1.1 302") && back.contains("https://evil.example.test/"),
        "{back}"
    );
    assert_eq!(hits.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn bodies_over_their_ceiling_are_refused_with_and_without_a_length() {
    let (harness, sandbox) = start(policy()).await;
    let mut stream = open(&harness, &sandbox, "api.example.test", &[]).await;
    let back = ask(
        &mut stream,
        "POST /v1/x HTTP/1.1\r\nHost: api.example.test\r\nContent-Length: 1001\r\n\r\n",
    )
    .await;
    assert!(
        back.starts_with("HTTP/1.1 413") && back.contains("RequestTooLarge"),
        "{back}"
    );
    let mut stream = open(&harness, &sandbox, "api.example.test", &[]).await;
    let chunk = format!("258\r\n{}\r\n", "x".repeat(600));
    let request = format!(
        "POST /v1/x HTTP/1.1\r\nHost: api.example.test\r\nTransfer-Encoding: chunked\r\n\r\n{chunk}{chunk}0\r\n\r\n"
    );
    let back = ask(&mut stream, &request).await;
    assert!(back.starts_with("HTTP/1.1 413"), "{back}");
    let mut stream = open(&harness, &sandbox, "api.example.test", &[]).await;
    let back = ask(
        &mut stream,
        &format!(
            "POST /v1/x HTTP/1.1\r\nHost: api.example.test\r\nContent-Length: 1000\r\n\r\n{}",
            "x".repeat(1000)
        ),
    )
    .await;
    assert!(back.contains("body 1000"), "{back}");
}

#[tokio::test]
async fn a_body_that_waits_for_100_continue_is_sent() {
    let (harness, sandbox) = start(policy()).await;
    let mut stream = open(&harness, &sandbox, "api.example.test", &[]).await;
    let head =
        "POST /v1/x HTTP/1.1\r\nHost: api.example.test\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n";
    let back = ask(&mut stream, head).await;
    assert!(back.starts_with("HTTP/1.1 100"), "{back}");
    let back = ask(&mut stream, "abc").await;
    assert!(
        back.starts_with("HTTP/1.1 200") && back.contains("body 3"),
        "{back}"
    );
}

#[tokio::test]
async fn head_requests_and_empty_answers_keep_the_connection() {
    let (harness, sandbox) = start(policy()).await;
    let mut stream = open(&harness, &sandbox, "api.example.test", &[]).await;
    stream
        .write_all(b"HEAD /v1/x HTTP/1.1\r\nHost: api.example.test\r\n\r\n")
        .await
        .unwrap();
    let back = read_head(&mut stream).await;
    assert!(back.starts_with("HTTP/1.1 200"), "{back}");
    let back = ask(
        &mut stream,
        "GET /v1/x HTTP/1.1\r\nHost: api.example.test\r\n\r\n",
    )
    .await;
    assert!(back.starts_with("HTTP/1.1 200"), "{back}");
}

async fn websocket_echo(mut request: Request<Incoming>) -> Answer {
    let upgrade = hyper::upgrade::on(&mut request);
    let mut response = Response::new(boxed(Empty::new()));
    if request
        .headers()
        .get("upgrade")
        .is_none_or(|value| value != "websocket")
    {
        *response.status_mut() = StatusCode::BAD_REQUEST;
        return response;
    }
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    for (name, value) in [
        ("connection", "upgrade"),
        ("upgrade", "websocket"),
        ("sec-websocket-accept", "x"),
    ] {
        response.headers_mut().insert(name, value.parse().unwrap());
    }
    tokio::spawn(async move {
        let mut stream = TokioIo::new(upgrade.await.unwrap());
        let mut buffer = [0; 100];
        while let Ok(read @ 1..) = stream.read(&mut buffer).await {
            stream
                .write_all(&buffer[..read].to_ascii_uppercase())
                .await
                .unwrap();
        }
    });
    response
}

const WEBSOCKET: &str = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: eA==\r\nSec-WebSocket-Version: 13\r\n\r\n";

#[tokio::test]
async fn websockets_open_where_a_rule_says_so_and_close_when_it_no_longer_does() {
    let (harness, sandbox) = start(policy()).await;
    let server = http_server(
        Some(harness.world.server("ws.example.test", &["http/1.1"])),
        websocket_echo,
    )
    .await;
    harness.network.route("ws.example.test", 443, server);
    let mut stream = open(&harness, &sandbox, "ws.example.test", &[]).await;
    let back = ask(
        &mut stream,
        &format!("GET /chat HTTP/1.1\r\nHost: ws.example.test\r\n{WEBSOCKET}"),
    )
    .await;
    assert!(
        back.starts_with("HTTP/1.1 101") && back.to_lowercase().contains("upgrade: websocket"),
        "{back}"
    );
    stream.write_all(b"hello").await.unwrap();
    let mut echoed = [0; 5];
    stream.read_exact(&mut echoed).await.unwrap();
    assert_eq!(&echoed, b"HELLO");
    harness.set_policy(json!({"egress": {"allow": [{"host": "ws.example.test", "tls": "Inspect"}]}}));
    assert!(is_closed(&mut stream).await);
    let end = harness
        .record("end", Some("HostNotAllowed"), "ws.example.test")
        .await;
    assert_eq!(end["status"], 101);
}

#[tokio::test]
async fn a_flood_of_interim_answers_ends_the_request_for_a_websocket() {
    let (harness, sandbox) = start(policy()).await;
    let acceptor = tokio_rustls::TlsAcceptor::from(harness.world.server("ws.example.test", &["http/1.1"]));
    let server = raw_server(move |stream| {
        let accept = acceptor.accept(stream);
        async move {
            let mut stream = accept.await.unwrap();
            read_head(&mut stream).await;
            while stream
                .write_all(b"HTTP/1.1 103 Early Hints\r\n\r\n")
                .await
                .is_ok()
            {}
        }
    })
    .await;
    harness.network.route("ws.example.test", 443, server);
    let mut stream = open(&harness, &sandbox, "ws.example.test", &[]).await;
    let request = format!("GET /chat HTTP/1.1\r\nHost: ws.example.test\r\n{WEBSOCKET}");
    let back = ask(&mut stream, &request).await;
    assert!(back.starts_with("HTTP/1.1 502"), "{back}");
}

#[tokio::test]
async fn other_changes_of_protocol_are_refused() {
    let (harness, sandbox) = start(policy()).await;
    for (host, path, fields) in [
        ("api.example.test", "/v1/x", WEBSOCKET),
        (
            "ws.example.test",
            "/",
            "Connection: Upgrade\r\nUpgrade: h2c\r\n\r\n",
        ),
        ("ws.example.test", "/", "Upgrade: websocket\r\n\r\n"),
    ] {
        let mut stream = open(&harness, &sandbox, host, &[]).await;
        let back = ask(
            &mut stream,
            &format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n{fields}"),
        )
        .await;
        assert!(
            back.starts_with("HTTP/1.1 403") && back.contains("UpgradeNotAllowed"),
            "{back}"
        );
        assert!(is_closed(&mut stream).await, "what follows is no request");
    }
}

#[tokio::test]
async fn a_connection_whose_change_of_protocol_was_declined_is_closed() {
    let (harness, sandbox) = start(policy()).await;
    serve_echo(&harness, "ws.example.test", &["http/1.1"]).await;
    let mut stream = open(&harness, &sandbox, "ws.example.test", &[]).await;
    let request = format!("GET /chat HTTP/1.1\r\nHost: ws.example.test\r\n{WEBSOCKET}");
    let back = ask(&mut stream, &request).await;
    assert!(
        back.starts_with("HTTP/1.1 200") && back.contains("GET /chat"),
        "{back}"
    );
    assert!(is_closed(&mut stream).await, "what follows was not looked at");
}

#[tokio::test]
async fn certificates_of_others_are_not_believed() {
    let (harness, sandbox) = start(policy()).await;
    let stranger = crate::world::Authority::new();
    for config in [
        stranger.server("api.example.test", &[]),
        harness.world.server("other.example.test", &[]),
    ] {
        let server = http_server(Some(config), echo).await;
        harness.network.route("api.example.test", 443, server);
        let mut stream = open(&harness, &sandbox, "api.example.test", &[]).await;
        let back = ask(
            &mut stream,
            "GET /v1/x HTTP/1.1\r\nHost: api.example.test\r\n\r\n",
        )
        .await;
        assert!(
            back.starts_with("HTTP/1.1 502") && back.contains("UpstreamUntrusted"),
            "{back}"
        );
    }
}

#[tokio::test]
async fn servers_that_are_slow_endless_or_confused_are_given_up() {
    let (harness, sandbox) = start_with(
        json!({"egress": {"allow": [{"host": "plain.example.test", "tls": "None"}]}}),
        &["--response-timeout-seconds", "1"],
    )
    .await;
    for (kind, expected) in [
        ("silent", "504"),
        ("endless", "502"),
        ("trickle", "504"),
        ("garbage", "502"),
        ("both", "200"),
        ("protocol", "502"),
    ] {
        let server = raw_server(move |mut stream| async move {
            read_head(&mut stream).await;
            match kind {
                "silent" => std::future::pending().await,
                "endless" => {
                    let _ = stream.write_all(b"HTTP/1.1 200 OK\r\n").await;
                    while stream.write_all(b"X-Filler: aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\r\n").await.is_ok() {}
                }
                "trickle" => {
                    for byte in b"HTTP/1.1 200 OK\r\nX-Filler: ".iter().chain(std::iter::repeat(&b'a')) {
                        if stream.write_all(&[*byte]).await.is_err() {
                            return;
                        }
                        tokio::time::sleep(Duration::from_millis(100)).await;
                    }
                }
                "garbage" => stream.write_all(b"\x16\x03\x01 nonsense\r\n\r\n").await.unwrap(),
                "protocol" => stream.write_all(b"HTTP/1.1 101 X\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n").await.unwrap(),
                _ => {
                    let text = b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n";
                    stream.write_all(text).await.unwrap();
                }
            }
        })
        .await;
        harness.network.route("plain.example.test", 80, server);
        let mut stream = connect_from(sandbox.address, harness.ports.http).await;
        stream
            .write_all(b"GET /c HTTP/1.1\r\nHost: plain.example.test\r\n\r\n")
            .await
            .unwrap();
        let back = read_response(&mut stream).await;
        assert!(
            back.starts_with(&format!("HTTP/1.1 {expected}")),
            "{kind}: {back}"
        );
        // What two servers could read in two ways reaches the sandbox in one.
        assert!(
            kind != "both" || !back.to_lowercase().contains("content-length"),
            "{back}"
        );
    }
}

#[tokio::test]
async fn an_answer_without_end_ends_with_the_run() {
    let (harness, sandbox) = start(policy()).await;
    let server = http_server(Some(harness.world.server("other.example.test", &[])), |_| async {
        let pieces = futures::stream::repeat_with(|| {
            Ok::<_, std::convert::Infallible>(http_body::Frame::data(Bytes::from_static(&[b'x'; 1000])))
        });
        Response::new(boxed(StreamBody::new(pieces)))
    })
    .await;
    harness.network.route("other.example.test", 443, server);
    let mut stream = open(&harness, &sandbox, "other.example.test", &[]).await;
    stream
        .write_all(b"GET / HTTP/1.1\r\nHost: other.example.test\r\n\r\n")
        .await
        .unwrap();
    let mut buffer = vec![0; 100_000];
    stream.read_exact(&mut buffer).await.unwrap();
    harness.gateway.pod_gone(&sandbox.pod_uid);
    assert!(is_closed(&mut stream).await);
    let status = harness.status("one", |status| status.settled).await;
    assert!(status.used.bytes > 100_000);
}

#[tokio::test]
async fn connections_to_hosts_are_kept_and_never_shared_between_runs() {
    let (harness, sandbox) = start(policy()).await;
    let other = harness.sandbox("two", 12).await;
    for protocols in [&["http/1.1"][..], &["h2"]] {
        let accepted = Arc::new(AtomicUsize::new(0));
        let config = harness.world.server("api.example.test", protocols);
        let inner = http_server(Some(config), echo).await;
        let counted = accepted.clone();
        let server = raw_server(move |mut stream| {
            counted.fetch_add(1, Ordering::Relaxed);
            async move {
                let mut inner = TcpStream::connect(inner).await.unwrap();
                let _ = tokio::io::copy_bidirectional(&mut stream, &mut inner).await;
            }
        })
        .await;
        harness.network.route("api.example.test", 443, server);
        for run in [&sandbox, &other] {
            harness.gateway.session(run.address).unwrap().pool.clear();
            let mut stream = open(&harness, run, "api.example.test", protocols).await;
            if protocols[0] == "h2" {
                let mut sender = http2(stream).await;
                for _ in 0..5 {
                    let request = Request::get("https://api.example.test/v1/x")
                        .body(Full::default())
                        .unwrap();
                    let (status, _) = text(sender.send_request(request).await.unwrap()).await;
                    assert_eq!(status, 200);
                }
                continue;
            }
            for _ in 0..5 {
                let get = "GET /v1/x HTTP/1.1\r\nHost: api.example.test\r\n\r\n";
                let back = ask(&mut stream, get).await;
                assert!(back.starts_with("HTTP/1.1 200"), "{back}");
                // The connection is given back a moment after the answer.
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
        assert_eq!(accepted.load(Ordering::Relaxed), 2, "{protocols:?}");
    }
}

#[tokio::test]
async fn large_bodies_go_through_both_ways_without_being_kept() {
    const SIZE: usize = 64 << 20;
    let (harness, sandbox) = start(policy()).await;
    let server = http_server(
        Some(harness.world.server("other.example.test", &["h2", "http/1.1"])),
        |request: Request<Incoming>| async move { Response::new(boxed(request.into_body())) },
    )
    .await;
    harness.network.route("other.example.test", 443, server);
    let before = resident();
    let stream = open(&harness, &sandbox, "other.example.test", &["http/1.1"]).await;
    let (mut read, mut write) = tokio::io::split(stream);
    let upload = tokio::spawn(async move {
        let head = format!(
            "POST / HTTP/1.1\r\nHost: other.example.test\r\nContent-Length: {SIZE}\r\nConnection: close\r\n\r\n"
        );
        write.write_all(head.as_bytes()).await.unwrap();
        let piece = vec![b'x'; 64 << 10];
        for _ in 0..SIZE / piece.len() {
            write.write_all(&piece).await.unwrap();
        }
        // TLS keeps what the socket did not take at once.
        write.flush().await.unwrap();
    });
    // Long enough to fill every buffer that has no bound.
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(!upload.is_finished(), "back-pressure reaches the sandbox");
    let mut total = 0;
    let mut most = 0;
    let mut buffer = vec![0; 64 << 10];
    loop {
        match read.read(&mut buffer).await {
            Ok(0) | Err(_) => break,
            Ok(length) => total += length,
        }
        most = most.max(resident());
    }
    upload.await.unwrap();
    assert!(total > SIZE, "{total}");
    assert!(most < before + (48 << 20), "{before} {most}");
}

/// Bytes of memory of this process.
fn resident() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    statm.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
}
