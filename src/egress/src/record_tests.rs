//! Tables and laws of [`super`].

use proptest::prelude::*;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::*;

fn run() -> RunIdentity {
    RunIdentity {
        namespace: "team".to_owned(),
        sandbox: "agent".to_owned(),
        pod_uid: "u-1".to_owned(),
        run_id: "1".to_owned(),
        policy: "default".to_owned(),
    }
}

fn denied<'a>(destination: &'a str, path: Option<&'a str>) -> Record<'a> {
    Record {
        time: "2026-01-02T03:04:05.678901Z".parse().unwrap(),
        class: Class::Request,
        action: Action::Deny,
        reason: Some(Deny::PathNotAllowed),
        destination,
        port: Some(443),
        method: Some("GET"),
        path,
        rule: None,
        model: None,
        end: None,
    }
}

fn hash(line: &str) -> String {
    hex(&Sha256::digest(line.as_bytes()).into())
}

#[test]
fn a_record_is_one_line_of_json() {
    let mut chain = Chain::default();
    let line = chain.line(
        Some(&run()),
        &denied("api.example.org", Some("/a/b?token=secret")),
    );
    let first: Value = serde_json::from_str(&line).unwrap();
    assert_eq!(
        first,
        json!({
            "seq": 0, "time": "2026-01-02T03:04:05.678Z", "class": 4002,
            "run": {"namespace": "team", "sandbox": "agent", "podUid": "u-1", "runId": "1", "policy": "default"},
            "action": "deny", "reason": "PathNotAllowed",
            "destination": "api.example.org", "port": 443, "method": "GET", "path": "/a/b",
        })
    );
    let ended = Record {
        action: Action::End,
        class: Class::Model,
        reason: None,
        rule: Some(RuleName::Model(2)),
        model: Some("gpt"),
        end: Some(End {
            status: Some(200),
            bytes_sent: 1,
            bytes_received: 2,
            duration_millis: 3,
            input_tokens: Some(4),
            output_tokens: Some(5),
            estimated: true,
        }),
        ..denied("api.example.org", None)
    };
    let second: Value = serde_json::from_str(&chain.line(None, &ended)).unwrap();
    assert_eq!(
        second,
        json!({
            "seq": 1, "time": "2026-01-02T03:04:05.678Z", "class": 6003, "action": "end",
            "destination": "api.example.org", "port": 443, "method": "GET", "rule": "models[2]", "model": "gpt",
            "status": 200, "bytesSent": 1, "bytesReceived": 2, "durationMillis": 3,
            "inputTokens": 4, "outputTokens": 5, "estimated": true, "prev": hash(&line),
        })
    );
}

#[test]
fn each_record_holds_the_hash_of_the_one_before() {
    let mut chain = Chain::default();
    let lines: Vec<String> = (0..5)
        .map(|_| chain.line(None, &denied("a.example", None)))
        .collect();
    for (at, line) in lines.iter().enumerate() {
        let record: Value = serde_json::from_str(line).unwrap();
        assert_eq!(record["seq"], at);
        let before = at.checked_sub(1).map(|at| hash(&lines[at]));
        assert_eq!(record.get("prev").and_then(Value::as_str), before.as_deref());
    }
    assert_eq!(chain.records(), 5);
    assert_eq!(chain.head(), Some(hash(&lines[4])));
}

#[test]
fn a_chain_goes_on_from_what_a_status_holds() {
    let mut chain = Chain::default();
    let _ = chain.line(None, &denied("a.example", None));
    let mut resumed = Chain::resume(chain.records(), &chain.head().unwrap()).unwrap();
    assert_eq!(
        resumed.line(None, &denied("b.example", None)),
        chain.line(None, &denied("b.example", None))
    );
    assert_eq!(resumed.head(), chain.head());
    for wrong in ["", "abc", &"g".repeat(64), &"a".repeat(65)] {
        assert!(Chain::resume(1, wrong).is_none());
    }
}

#[test]
fn neither_queries_nor_passwords_are_logged() {
    let line = Chain::default().line(None, &denied("run:s3cret@a.example:443", Some("/a?key=s3cret")));
    assert!(!line.contains("s3cret"), "{line}");
    assert!(line.contains("\"destination\":\"a.example:443\""), "{line}");
}

#[test]
fn text_becomes_plain_and_short() {
    for (text, max, expected) in [
        ("plain text", 20, "plain text"),
        ("a\nb\r\0\u{1b}[31mc", 20, "a?b???[31mc"),
        ("gr\u{fc}n \u{202e}txt", 20, "gr?n ?txt"),
        ("0123456789", 10, "0123456789"),
        ("0123456789a", 10, "0123456..."),
        ("\u{fc}\u{fc}\u{fc}\u{fc}\u{fc}\u{fc}", 10, "??????"),
        ("abc", 2, "..."),
        ("", 5, ""),
    ] {
        assert_eq!(plain(text, max), expected, "{text:?}");
    }
}

#[test]
fn the_classes_are_those_of_ocsf() {
    let numbers = [
        Class::Connection,
        Class::Request,
        Class::Dns,
        Class::Model,
        Class::Step,
    ]
    .map(Class::number);
    assert_eq!(numbers, [4001, 4002, 4003, 6003, 6003]);
}

proptest! {
    #[test]
    fn whatever_the_texts_a_line_is_plain_bounded_json(text in ".{0,2000}", quotes in "[\"\\\\]{0,2000}") {
        for text in [&text, &quotes] {
            let run = RunIdentity {
                namespace: plain(text, 253).into_owned(),
                sandbox: plain(text, 253).into_owned(),
                pod_uid: plain(text, TEXT_MAX).into_owned(),
                run_id: plain(text, TEXT_MAX).into_owned(),
                policy: plain(text, 253).into_owned(),
            };
            let record = Record {
                method: Some(text),
                model: Some(text),
                rule: Some(RuleName::Allow(usize::MAX)),
                end: Some(End { status: Some(u16::MAX), bytes_sent: u64::MAX, bytes_received: u64::MAX, duration_millis: u64::MAX, input_tokens: Some(i64::MIN), output_tokens: Some(i64::MIN), estimated: true }),
                ..denied(text, Some(text))
            };
            let mut chain = Chain::default();
            let _ = chain.line(None, &record);
            let line = chain.line(Some(&run), &record);
            prop_assert!(line.len() <= LINE_MAX, "{}", line.len());
            prop_assert!(line.bytes().all(|byte| (0x20..0x7f).contains(&byte)));
            prop_assert!(serde_json::from_str::<Value>(&line).is_ok());
        }
    }

    #[test]
    fn plain_text_is_never_longer_than_asked(text in ".{0,300}", max in 3..200_usize) {
        prop_assert!(plain(&text, max).len() <= max);
        let once = plain(&text, max);
        prop_assert_eq!(plain(&once, max), once.clone());
    }
}
