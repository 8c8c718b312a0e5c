//! CONNECT and steered TLS that is passed on.

use std::net::IpAddr;
use std::time::Duration;

use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::harness::{Harness, Sandbox, connect_from, is_closed, read_response};
use crate::world::{echo, http_server, raw_echo, tls};

async fn harness() -> (Harness, Sandbox) {
    let harness = Harness::start(json!({"egress": {"allow": [
        {"host": "api.example.test"},
        {"host": "plain.example.test", "tls": "None"},
        {"cidr": "198.51.100.0/24", "ports": [5432]},
        {"cidr": "10.1.0.0/16", "ports": [5432]},
    ]}}))
    .await;
    let config = harness.world.server("api.example.test", &["http/1.1"]);
    let server = http_server(Some(config), echo).await;
    harness.network.route("api.example.test", 443, server);
    let sandbox = harness.sandbox("one", 11).await;
    (harness, sandbox)
}

async fn get(stream: &mut (impl AsyncReadExt + AsyncWriteExt + Unpin), host: &str) -> String {
    let request = format!("GET /x HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    read_response(stream).await
}

#[tokio::test]
async fn an_allowed_host_is_reached_end_to_end() {
    let (harness, sandbox) = harness().await;
    let (stream, answer) = harness.connect(&sandbox, "api.example.test:443").await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    let mut stream = tls(stream, &harness.world.pem, "api.example.test", &[])
        .await
        .unwrap();
    let answer = get(&mut stream, "api.example.test").await;
    assert!(answer.contains("GET /x"), "{answer}");
    drop(stream);
    let allow = harness.record("allow", None, "api.example.test").await;
    let end = harness.record("end", None, "api.example.test").await;
    assert_eq!(allow["rule"], "egress.allow[0]");
    assert!(
        end["bytesSent"].as_u64().unwrap() > 200 && end["bytesReceived"].as_u64().unwrap() > 500,
        "{end}"
    );
    let status = harness.status("one", |status| status.used.bytes > 0).await;
    assert_eq!(status.allowed, 1);
    assert_eq!(
        u64::try_from(status.used.bytes).unwrap(),
        end["bytesSent"].as_u64().unwrap() + end["bytesReceived"].as_u64().unwrap()
    );
}

#[tokio::test]
async fn steered_tls_is_passed_on_by_its_server_name() {
    let (harness, sandbox) = harness().await;
    let stream = connect_from(sandbox.address, harness.ports.tls).await;
    let mut stream = tls(stream, &harness.world.pem, "api.example.test", &[])
        .await
        .unwrap();
    assert!(get(&mut stream, "api.example.test").await.contains("GET /x"));
    let stream = connect_from(sandbox.address, harness.ports.tls).await;
    assert!(
        tls(stream, &harness.world.pem, "evil.example.test", &[])
            .await
            .is_err()
    );
    harness
        .record("deny", Some("HostNotAllowed"), "evil.example.test")
        .await;
}

#[tokio::test]
async fn another_name_in_the_tunnel_than_in_connect_closes_it() {
    let (harness, sandbox) = harness().await;
    let (stream, _) = harness.connect(&sandbox, "api.example.test:443").await;
    assert!(
        tls(stream, &harness.world.pem, "other.example.test", &[])
            .await
            .is_err()
    );
    harness
        .record("deny", Some("ServerNameMismatch"), "api.example.test")
        .await;
}

#[tokio::test]
async fn a_tunnel_for_tls_carries_nothing_else() {
    let (harness, sandbox) = harness().await;
    for bytes in [
        &b"GET / HTTP/1.1\r\nHost: api.example.test\r\n\r\n"[..],
        b"SSH-2.0-x\r\n",
        &[0x16, 3, 1, 0, 0],
    ] {
        let (mut stream, answer) = harness.connect(&sandbox, "api.example.test:443").await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        stream.write_all(bytes).await.unwrap();
        assert!(is_closed(&mut stream).await);
    }
    harness.record("deny", Some("NotTls"), "api.example.test").await;
}

/// A ClientHello without extensions, with no name, or with an encrypted one inside.
fn hello(extensions: &[u8]) -> Vec<u8> {
    let mut body = vec![3, 3];
    body.extend([7; 32]);
    body.extend([0, 0, 2, 0x13, 1, 1, 0]);
    body.extend(u16::try_from(extensions.len()).unwrap().to_be_bytes());
    body.extend(extensions);
    let mut message = vec![1, 0];
    message.extend(u16::try_from(body.len()).unwrap().to_be_bytes());
    message.extend(body);
    let mut record = vec![22, 3, 1];
    record.extend(u16::try_from(message.len()).unwrap().to_be_bytes());
    record.extend(message);
    record
}

#[tokio::test]
async fn a_hello_without_a_name_or_with_a_hidden_one_is_refused() {
    let (harness, sandbox) = harness().await;
    let name = b"api.example.test";
    let mut with_name = vec![0, 0, 0, 21, 0, 19, 0, 0, 16];
    with_name.extend(name);
    let ech = [with_name.as_slice(), &[0xfe, 0x0d, 0, 1, 0]].concat();
    for (extensions, reason, destination) in [
        (&[0, 23, 0, 0][..], "ServerNameMissing", ""),
        (&ech, "EncryptedClientHello", "api.example.test"),
    ] {
        let mut stream = connect_from(sandbox.address, harness.ports.tls).await;
        stream.write_all(&hello(extensions)).await.unwrap();
        assert!(is_closed(&mut stream).await);
        harness.record("deny", Some(reason), destination).await;
        let (mut stream, _) = harness.connect(&sandbox, "api.example.test:443").await;
        stream.write_all(&hello(extensions)).await.unwrap();
        assert!(is_closed(&mut stream).await);
        harness.record("deny", Some(reason), "api.example.test").await;
    }
}

#[tokio::test]
async fn names_ports_and_addresses_that_no_rule_allows_are_refused_with_a_reason() {
    let (harness, sandbox) = harness().await;
    for (authority, status, reason) in [
        ("evil.example.test:443", 403, "HostNotAllowed"),
        ("api.example.test.evil.test:443", 403, "HostNotAllowed"),
        ("xapi.example.test:443", 403, "HostNotAllowed"),
        ("api.example.test:80", 403, "PortNotAllowed"),
        ("api.example.test:22", 403, "PortNotAllowed"),
        ("plain.example.test:443", 403, "PortNotAllowed"),
        ("93.184.216.1:443", 403, "AddressLiteral"),
        ("198.51.100.7:22", 403, "PortNotAllowed"),
        ("127.0.0.1:443", 403, "AddressLiteral"),
        ("2130706433:443", 403, "AddressLiteral"),
        ("0x7f.1:443", 403, "AddressLiteral"),
        ("0x7f000001:443", 403, "AddressLiteral"),
        ("017700000001:443", 403, "AddressLiteral"),
        ("127.1:443", 403, "AddressLiteral"),
        ("[::1]:443", 403, "AddressLiteral"),
        ("[::ffff:127.0.0.1]:443", 403, "AddressLiteral"),
        ("[::ffff:198.51.100.7]:5432", 403, "AddressLiteral"),
        ("[::ffff:c633:6407]:5432", 403, "AddressLiteral"),
        ("169.254.169.254:80", 403, "AddressLiteral"),
        ("198.51.100.07:5432", 403, "AddressLiteral"),
        ("api.example.test.:443", 400, "NameMalformed"),
        ("API..example.test:443", 400, "NameMalformed"),
        ("localhost:443", 400, "NameMalformed"),
    ] {
        let (_, answer) = harness.connect(&sandbox, authority).await;
        let expected = format!("HTTP/1.1 {status}");
        assert!(
            answer.contains(&format!("\"reason\":\"{reason}\"")),
            "{authority}: {answer}"
        );
        assert!(
            answer.starts_with(&expected) || reason == "NameMalformed",
            "{authority}: {answer}"
        );
        let body: serde_json::Value = serde_json::from_str(answer.split("\r\n\r\n").nth(1).unwrap()).unwrap();
        assert_eq!(body["policy"], "default", "{answer}");
        assert_eq!(body["error"]["type"], reason);
    }
    assert!(harness.network.dialled.lock().unwrap().is_empty());
    let status = harness.status("one", |status| status.denied == 23).await;
    assert_eq!(status.denials.len(), 16);
    assert_eq!(status.allowed, 0);
}

#[tokio::test]
async fn user_information_and_missing_ports_are_malformed() {
    let (harness, sandbox) = harness().await;
    for authority in [
        "user@api.example.test:443",
        "api.example.test",
        "api.example.test:0443",
        "api.example.test:443:443",
    ] {
        let mut stream = harness.proxy(&sandbox).await;
        let request = format!(
            "CONNECT {authority} HTTP/1.1\r\nHost: api.example.test:443\r\nProxy-Authorization: {}\r\n\r\n",
            harness.proxy_auth(&sandbox)
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        let answer = read_response(&mut stream).await;
        assert!(answer.starts_with("HTTP/1.1 4"), "{authority}: {answer}");
    }
    assert!(harness.network.dialled.lock().unwrap().is_empty());
}

#[tokio::test]
async fn ranges_are_reached_by_their_usual_address_only() {
    let (harness, sandbox) = harness().await;
    let server = raw_echo("hello ").await;
    for address in ["198.51.100.7", "10.1.2.3"] {
        harness
            .network
            .route_address(address.parse().unwrap(), 5432, server);
        let (mut stream, answer) = harness.connect(&sandbox, &format!("{address}:5432")).await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        stream.write_all(b"any bytes").await.unwrap();
        stream.shutdown().await.unwrap();
        let mut back = String::new();
        stream.read_to_string(&mut back).await.unwrap();
        // Half-closed, and still answered.
        assert_eq!(back, "hello any bytes");
        harness.record("end", None, address).await;
    }
}

#[tokio::test]
async fn a_range_never_opens_the_cluster() {
    let harness =
        Harness::start(json!({"egress": {"allow": [{"cidr": "10.0.0.0/8", "ports": [443]}]}})).await;
    let sandbox = harness.sandbox("one", 11).await;
    let (_, answer) = harness.connect(&sandbox, "10.96.0.1:443").await;
    assert!(answer.contains("AddressForbidden"), "{answer}");
    assert!(harness.network.dialled.lock().unwrap().is_empty());
}

#[tokio::test]
async fn names_of_forbidden_addresses_are_never_dialled() {
    let (harness, sandbox) = harness().await;
    for address in [
        "10.0.0.1",
        "127.0.0.1",
        "169.254.169.254",
        "168.63.129.16",
        "10.96.0.1",
        "203.0.113.9",
        "::1",
        "fe80::1",
        "64:ff9b::a00:1",
        "::ffff:10.0.0.1",
        "100.64.0.1",
    ] {
        let address: IpAddr = address.parse().unwrap();
        harness.network.answer("api.example.test", &[&[address]]);
        let (_, answer) = harness.connect(&sandbox, "api.example.test:443").await;
        assert!(answer.contains("AddressForbidden"), "{address}: {answer}");
    }
    assert!(harness.network.dialled.lock().unwrap().is_empty());
}

#[tokio::test]
async fn an_answer_that_is_rebound_between_two_connections_is_checked_again() {
    let (harness, sandbox) = harness().await;
    let public: IpAddr = "93.184.216.1".parse().unwrap();
    harness
        .network
        .answer("api.example.test", &[&[public], &["127.0.0.1".parse().unwrap()]]);
    let (_, first) = harness.connect(&sandbox, "api.example.test:443").await;
    let (_, second) = harness.connect(&sandbox, "api.example.test:443").await;
    assert!(
        first.starts_with("HTTP/1.1 200") && second.contains("AddressForbidden"),
        "{first} {second}"
    );
    // What is dialled is the address that was checked, never the name.
    assert_eq!(
        *harness.network.dialled.lock().unwrap(),
        [format!("{public}:443").parse().unwrap()]
    );
}

#[tokio::test]
async fn a_destination_that_is_not_there_is_a_bad_gateway() {
    let (harness, sandbox) = harness().await;
    harness
        .network
        .answer("api.example.test", &[&["93.184.216.99".parse().unwrap()]]);
    let (_, answer) = harness.connect(&sandbox, "api.example.test:443").await;
    assert!(
        answer.starts_with("HTTP/1.1 502") && answer.contains("UpstreamUnreachable"),
        "{answer}"
    );
    // It was allowed: nothing was denied.
    let status = harness.status("one", |status| status.allowed == 1).await;
    assert_eq!(status.denied, 0);
    harness
        .record("end", Some("UpstreamUnreachable"), "api.example.test")
        .await;
}

#[tokio::test]
async fn a_tunnel_in_which_nothing_moves_is_closed() {
    let harness = Harness::with(
        json!({"egress": {"allow": [{"cidr": "198.51.100.0/24", "ports": [5432]}]}}),
        &["--idle-timeout-seconds", "1"],
    )
    .await;
    let sandbox = harness.sandbox("one", 11).await;
    harness
        .network
        .route_address("198.51.100.7".parse().unwrap(), 5432, raw_echo("").await);
    let (mut stream, _) = harness.connect(&sandbox, "198.51.100.7:5432").await;
    assert!(is_closed(&mut stream).await);
    harness
        .record("end", Some("UpstreamTimeout"), "198.51.100.7")
        .await;
}

#[tokio::test]
async fn large_transfers_go_through_whole_with_either_side_slow() {
    const SIZE: usize = 32 << 20;
    let (harness, sandbox) = harness().await;
    harness
        .network
        .route_address("198.51.100.7".parse().unwrap(), 5432, raw_echo("").await);
    let (stream, _) = harness.connect(&sandbox, "198.51.100.7:5432").await;
    let (mut read, mut write) = stream.into_split();
    let writer = tokio::spawn(async move {
        let piece: Vec<u8> = (0..=255).cycle().take(64 << 10).collect();
        for _ in 0..SIZE / piece.len() {
            write.write_all(&piece).await.unwrap();
        }
        write.shutdown().await.unwrap();
    });
    // Nothing is read for a while: what was sent waits in the kernel, not in the gateway.
    tokio::time::sleep(Duration::from_millis(200)).await;
    let mut buffer = vec![0; 64 << 10];
    let mut total = 0;
    loop {
        let length = read.read(&mut buffer).await.unwrap();
        if length == 0 {
            break;
        }
        for (at, byte) in buffer[..length].iter().enumerate() {
            assert_eq!(usize::from(*byte), (total + at) % 256);
        }
        total += length;
    }
    writer.await.unwrap();
    assert_eq!(total, SIZE);
    let end = harness.record("end", None, "198.51.100.7").await;
    assert_eq!(
        (end["bytesSent"].as_u64(), end["bytesReceived"].as_u64()),
        (Some(SIZE as u64), Some(SIZE as u64))
    );
}
