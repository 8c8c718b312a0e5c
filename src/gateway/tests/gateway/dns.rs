//! DNS: nothing comes out of it, and nothing is carried in or out by it.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use hickory_resolver::proto::op::{Message, MessageType, OpCode, Query, ResponseCode};
use hickory_resolver::proto::rr::{Name, RecordType};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UdpSocket;

use crate::harness::{Harness, PATIENCE, Sandbox, connect_from, is_closed, local};

async fn harness() -> (Harness, Sandbox) {
    let harness = Harness::start(
        json!({"egress": {"allow": [{"host": "api.example.test"}, {"host": "*.wild.example.test"}]}}),
    )
    .await;
    let sandbox = harness.sandbox("one", 11).await;
    (harness, sandbox)
}

fn question(name: &str, kind: RecordType) -> Vec<u8> {
    let mut message = Message::new(7, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
    message.to_vec().unwrap()
}

async fn ask_udp(harness: &Harness, from: IpAddr, question: &[u8]) -> Option<Message> {
    let socket = UdpSocket::bind(SocketAddr::new(from, 0)).await.unwrap();
    socket
        .send_to(question, SocketAddr::new(local(1), harness.ports.dns))
        .await
        .unwrap();
    let mut answer = [0; 1500];
    let length = tokio::time::timeout(Duration::from_secs(2), socket.recv(&mut answer))
        .await
        .ok()?
        .unwrap();
    Some(Message::from_vec(&answer[..length]).unwrap())
}

#[tokio::test]
async fn allowed_names_are_the_gateway_s_own_address_and_nothing_else_is() {
    let (harness, sandbox) = harness().await;
    for (name, kind, code, answers) in [
        ("api.example.test.", RecordType::A, ResponseCode::NoError, 1),
        ("API.Example.TEST.", RecordType::A, ResponseCode::NoError, 1),
        ("x.wild.example.test.", RecordType::A, ResponseCode::NoError, 1),
        ("api.example.test.", RecordType::AAAA, ResponseCode::NoError, 0),
        ("api.example.test.", RecordType::HTTPS, ResponseCode::NoError, 0),
        ("api.example.test.", RecordType::SVCB, ResponseCode::NoError, 0),
        ("api.example.test.", RecordType::TXT, ResponseCode::Refused, 0),
        ("api.example.test.", RecordType::ANY, ResponseCode::Refused, 0),
        ("api.example.test.", RecordType::AXFR, ResponseCode::Refused, 0),
        ("api.example.test.", RecordType::NULL, ResponseCode::Refused, 0),
        ("evil.example.test.", RecordType::A, ResponseCode::Refused, 0),
        ("wild.example.test.", RecordType::A, ResponseCode::Refused, 0),
        (
            "api.example.test.agents.svc.cluster.local.",
            RecordType::A,
            ResponseCode::Refused,
            0,
        ),
        ("kubernetes.default.svc.", RecordType::A, ResponseCode::Refused, 0),
        (
            "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa.wild.example.test.",
            RecordType::A,
            ResponseCode::Refused,
            0,
        ),
        ("localhost.", RecordType::A, ResponseCode::Refused, 0),
    ] {
        let answer = ask_udp(&harness, sandbox.address, &question(name, kind))
            .await
            .unwrap();
        assert_eq!(answer.metadata.response_code, code, "{name} {kind}");
        assert_eq!(answer.answers.len(), answers, "{name} {kind}");
        if answers == 1 {
            assert!(
                answer.answers[0].to_string().contains("10.96.7.7"),
                "{}",
                answer.answers[0]
            );
        }
    }
    let record = harness
        .record("deny", Some("HostNotAllowed"), "evil.example.test")
        .await;
    assert_eq!(
        (record["class"].as_u64(), record["method"].as_str()),
        (Some(4003), Some("A"))
    );
    harness
        .record("deny", Some("QueryNotAllowed"), "api.example.test")
        .await;
    harness.status("one", |status| status.denied == 10).await;
}

#[tokio::test]
async fn strangers_learn_nothing() {
    let (harness, _sandbox) = harness().await;
    let answer = ask_udp(&harness, local(99), &question("api.example.test.", RecordType::A))
        .await
        .unwrap();
    assert_eq!(answer.metadata.response_code, ResponseCode::Refused);
    let mut stream = connect_from(local(99), harness.ports.dns).await;
    assert!(is_closed(&mut stream).await);
    let record = harness
        .record("deny", Some("UnknownSandbox"), "dns from 127.0.0.99")
        .await;
    assert!(record.get("run").is_none(), "{record}");
}

#[tokio::test]
async fn over_tcp_the_same_rules_hold() {
    let (harness, sandbox) = harness().await;
    let mut stream = connect_from(sandbox.address, harness.ports.dns).await;
    for (name, code) in [
        ("api.example.test.", ResponseCode::NoError),
        ("evil.example.test.", ResponseCode::Refused),
    ] {
        let question = question(name, RecordType::A);
        stream
            .write_u16(u16::try_from(question.len()).unwrap())
            .await
            .unwrap();
        stream.write_all(&question).await.unwrap();
        let length = stream.read_u16().await.unwrap();
        let mut answer = vec![0; length.into()];
        stream.read_exact(&mut answer).await.unwrap();
        assert_eq!(Message::from_vec(&answer).unwrap().metadata.response_code, code);
    }
    for length in [0_u16, 513, 65_535] {
        let mut stream = connect_from(sandbox.address, harness.ports.dns).await;
        stream.write_u16(length).await.unwrap();
        assert!(is_closed(&mut stream).await, "{length}");
    }
    let mut slow = connect_from(sandbox.address, harness.ports.dns).await;
    slow.write_u16(20).await.unwrap();
    assert!(
        tokio::time::timeout(PATIENCE, is_closed(&mut slow))
            .await
            .unwrap()
    );
}

#[tokio::test]
async fn noise_and_responses_are_not_answered_with_more_than_was_asked() {
    let (harness, sandbox) = harness().await;
    let mut response = question("api.example.test.", RecordType::A);
    response[2] |= 0x80;
    for bytes in [vec![], vec![0; 5], response, vec![0xff; 512], vec![1; 2_000]] {
        let socket = UdpSocket::bind(SocketAddr::new(sandbox.address, 0))
            .await
            .unwrap();
        socket
            .send_to(&bytes, SocketAddr::new(local(1), harness.ports.dns))
            .await
            .unwrap();
        let mut answer = [0; 4_000];
        let received = tokio::time::timeout(Duration::from_millis(200), socket.recv(&mut answer)).await;
        if let Ok(Ok(length)) = received {
            assert!(length <= bytes.len(), "{} bytes for {}", length, bytes.len());
        }
    }
    assert!(
        ask_udp(
            &harness,
            sandbox.address,
            &question("api.example.test.", RecordType::A)
        )
        .await
        .is_some()
    );
}

#[tokio::test]
async fn a_flood_of_questions_is_refused_and_others_are_answered() {
    let harness = Harness::with(
        json!({"egress": {"allow": [{"host": "api.example.test"}]}}),
        &["--queries-per-second", "5"],
    )
    .await;
    let (hog, other) = (
        harness.sandbox("hog", 11).await,
        harness.sandbox("other", 12).await,
    );
    let question = question("api.example.test.", RecordType::A);
    let mut refused = 0;
    for _ in 0..60 {
        let answer = ask_udp(&harness, hog.address, &question).await.unwrap();
        refused += usize::from(answer.metadata.response_code == ResponseCode::Refused);
    }
    assert!(refused > 30, "{refused}");
    let answer = ask_udp(&harness, other.address, &question).await.unwrap();
    assert_eq!(answer.metadata.response_code, ResponseCode::NoError);
    let floods = harness
        .records()
        .iter()
        .filter(|record| record["reason"] == "TooManyRequests")
        .count();
    assert!(floods <= 25, "a flood does not fill the log: {floods}");
    let status = harness.status("hog", |status| status.denied > 0).await;
    assert!(status.denied > 30, "all are counted: {}", status.denied);
}
