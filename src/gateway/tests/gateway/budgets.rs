//! Budgets of bytes, and what stands in status, whatever the API server does.

use std::sync::Arc;
use std::time::{Duration, Instant};

use agentsandbox_api::reason::Reason;
use agentsandbox_api::sandbox::{EgressCounters, EgressStatus, Limits as AskedLimits};
use agentsandbox_egress::budget::Counters;
use agentsandbox_egress::deny::Deny;
use sandbox_gateway::account::bytes_of;
use sandbox_gateway::metrics::Metrics;
use sandbox_gateway::quota::Quota;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::harness::{Harness, Sandbox, eventually, hex, is_closed};
use crate::inspect::{ask, open, serve_echo};
use crate::models;
use crate::sink::{FakeSink, Trouble};
use crate::world::raw_echo;

async fn start(limits: AskedLimits) -> (Harness, Sandbox) {
    let harness = Harness::start(json!({"egress": {"allow": [
        {"cidr": "198.51.100.0/24", "ports": [5432]},
        {"cidr": "203.0.113.0/24", "ports": [5432], "maxBytes": 1000},
        {"host": "api.example.test", "tls": "Inspect"},
    ]}}))
    .await;
    for address in ["198.51.100.7", "203.0.113.7"] {
        harness
            .network
            .route_address(address.parse().unwrap(), 5432, raw_echo("").await);
    }
    serve_echo(&harness, "api.example.test", &[]).await;
    let sandbox = harness.sandbox_with("one", 11, limits).await;
    (harness, sandbox)
}

fn bytes(most: i64) -> AskedLimits {
    AskedLimits {
        egress_bytes: Some(most),
        ..AskedLimits::default()
    }
}

/// Sends until the other side has had enough; says how many bytes came back.
async fn exchange(harness: &Harness, sandbox: &Sandbox, authority: &str, size: usize) -> usize {
    let (stream, answer) = harness.connect(sandbox, authority).await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    let (mut read, mut write) = stream.into_split();
    let sender = tokio::spawn(async move {
        let _ = write.write_all(&vec![b'x'; size]).await;
        let _ = write.shutdown().await;
    });
    let mut back = Vec::new();
    let _ = read.read_to_end(&mut back).await;
    sender.await.unwrap();
    back.len()
}

#[tokio::test]
async fn a_tunnel_ends_when_the_run_s_bytes_are_used_up() {
    const LIMIT: i64 = 200_000;
    let (harness, sandbox) = start(bytes(LIMIT)).await;
    let back = exchange(&harness, &sandbox, "198.51.100.7:5432", 1 << 20).await;
    assert!(back < 200_000, "{back}");
    let begun = Instant::now();
    let status = harness.status("one", |status| status.exhausted.is_some()).await;
    assert!(begun.elapsed() < Duration::from_secs(2));
    assert_eq!(status.exhausted, Some(Reason::EgressByteBudgetExceeded));
    let session = harness.gateway.session(sandbox.address).unwrap();
    assert!(
        session.account.used().bytes <= LIMIT,
        "{:?}",
        session.account.used()
    );
    assert!(
        harness
            .sink
            .history()
            .iter()
            .all(|written| written.claimed.bytes <= LIMIT)
    );
    harness
        .record("end", Some("EgressByteBudgetExceeded"), "198.51.100.7")
        .await;
    // Requests are refused as well: their heads are bytes, too.
    let mut stream = open(&harness, &sandbox, "api.example.test", &[]).await;
    let back = ask(&mut stream, "GET / HTTP/1.1\r\nHost: api.example.test\r\n\r\n").await;
    assert!(
        back.starts_with("HTTP/1.1 429") && back.contains("EgressByteBudgetExceeded"),
        "{back}"
    );
}

#[tokio::test]
async fn many_tunnels_share_the_run_s_bytes() {
    const LIMIT: i64 = 400_000;
    let (harness, sandbox) = start(bytes(LIMIT)).await;
    let mut tunnels = Vec::new();
    for _ in 0..8 {
        tunnels.push(exchange(&harness, &sandbox, "198.51.100.7:5432", 200_000));
    }
    let total: usize = futures::future::join_all(tunnels).await.into_iter().sum();
    assert!(total < 400_000, "{total}");
    let used = harness.gateway.session(sandbox.address).unwrap().account.used();
    assert!(used.bytes <= LIMIT && used.bytes > LIMIT / 2, "{used:?}");
}

#[tokio::test]
async fn idle_tunnels_hold_none_of_the_budget() {
    let (harness, sandbox) = start(bytes(100_000)).await;
    let mut idle = Vec::new();
    for _ in 0..20 {
        let (mut stream, _) = harness.connect(&sandbox, "198.51.100.7:5432").await;
        stream.write_all(b"x").await.unwrap();
        stream.read_exact(&mut [0]).await.unwrap();
        idle.push(stream);
    }
    assert_eq!(
        exchange(&harness, &sandbox, "198.51.100.7:5432", 40_000).await,
        40_000
    );
}

#[tokio::test]
async fn a_rule_s_own_ceiling_ends_its_tunnels_and_not_the_run() {
    let (harness, sandbox) = start(AskedLimits::default()).await;
    let back = exchange(&harness, &sandbox, "203.0.113.7:5432", 100_000).await;
    assert!(back < 100_000, "{back}");
    assert_eq!(
        exchange(&harness, &sandbox, "198.51.100.7:5432", 5_000).await,
        5_000
    );
    let status = harness.status("one", |status| status.used.bytes > 10_000).await;
    assert_eq!(status.exhausted, None);
    let (mut again, _) = harness.connect(&sandbox, "203.0.113.7:5432").await;
    again.write_all(b"x").await.unwrap();
    assert!(is_closed(&mut again).await, "also in another tunnel");
}

#[tokio::test]
async fn conflicts_refusals_and_lost_answers_change_no_figure() {
    for troubles in [
        vec![Trouble::Conflict; 3],
        vec![Trouble::Refused, Trouble::Conflict],
        vec![Trouble::Lost, Trouble::Lost],
        vec![Trouble::MadeUnknown; 3],
        vec![
            Trouble::MadeUnknown,
            Trouble::Lost,
            Trouble::Conflict,
            Trouble::MadeUnknown,
        ],
    ] {
        let limits = AskedLimits {
            model_requests: Some(5),
            tokens: Some(2_000),
            ..AskedLimits::default()
        };
        let (harness, sandbox, _) = models::start(models::policy(), limits).await;
        for request in 0..3 {
            harness.sink.trouble(&troubles);
            let back = models::complete(&harness, &sandbox, &models::chat("good", json!({}))).await;
            assert!(back.starts_with("HTTP/1.1 200"), "{troubles:?} {request}: {back}");
            harness.sink.touch("one");
        }
        harness.gateway.pod_gone(&sandbox.pod_uid);
        let status = harness.status("one", |status| status.settled).await;
        assert_eq!(
            (
                status.used.tokens,
                status.used.model_requests,
                status.input_tokens
            ),
            (30, 3, 21),
            "{troubles:?}"
        );
        assert!(
            status.claimed.model_requests >= 3 && status.claimed.model_requests <= 5,
            "{troubles:?}: {status:?}"
        );
        if !troubles.contains(&Trouble::Lost) {
            assert_eq!(
                (status.claimed.model_requests, status.claimed.tokens),
                (3, 30),
                "{troubles:?}"
            );
        }
    }
}

#[tokio::test]
async fn nothing_is_spent_while_the_status_can_not_be_written() {
    let (harness, sandbox, provider) = models::start(
        models::policy(),
        AskedLimits {
            tokens: Some(1_000),
            ..AskedLimits::default()
        },
    )
    .await;
    harness.sink.trouble(&[Trouble::Refused; 100]);
    let back = models::complete(&harness, &sandbox, &models::chat("good", json!({}))).await;
    assert!(
        back.starts_with("HTTP/1.1 503") && back.contains("NotReady"),
        "{back}"
    );
    assert!(provider.requests.lock().unwrap().is_empty());
    harness.sink.trouble(&[]);
    assert!(
        models::complete(&harness, &sandbox, &models::chat("good", json!({})))
            .await
            .starts_with("HTTP/1.1 200")
    );
}

#[tokio::test]
async fn what_another_gateway_has_claimed_counts_as_spent() {
    let harness = models::gateway(models::policy(), crate::sink::FakeSink::new())
        .await
        .0;
    harness.sink.set_run(
        "one",
        EgressStatus {
            pod_uid: Some("uid-one".into()),
            claimed: EgressCounters {
                model_requests: 4,
                ..EgressCounters::default()
            },
            used: EgressCounters {
                model_requests: 2,
                ..EgressCounters::default()
            },
            records: 41,
            head: Some("ab".repeat(32)),
            allowed: 9,
            ..EgressStatus::default()
        },
    );
    let limits = AskedLimits {
        model_requests: Some(5),
        ..AskedLimits::default()
    };
    let sandbox = harness.sandbox_with("one", 11, limits).await;
    assert!(
        models::complete(&harness, &sandbox, &models::chat("good", json!({})))
            .await
            .starts_with("HTTP/1.1 200")
    );
    assert!(
        models::complete(&harness, &sandbox, &models::chat("good", json!({})))
            .await
            .starts_with("HTTP/1.1 429")
    );
    let status = harness
        .status("one", |status| status.used.model_requests == 3)
        .await;
    assert_eq!(status.claimed.model_requests, 5);
    assert!(status.allowed > 9 && status.records > 41, "{status:?}");
    // The chain goes on where the other one has left it.
    let first = &harness.records()[0];
    assert_eq!(
        (first["seq"].as_u64(), first["prev"].as_str()),
        (Some(41), Some("ab".repeat(32).as_str()))
    );
}

#[tokio::test]
async fn figures_of_an_earlier_run_are_not_this_one_s() {
    let harness = models::gateway(models::policy(), crate::sink::FakeSink::new())
        .await
        .0;
    harness.sink.set_run(
        "one",
        EgressStatus {
            pod_uid: Some("uid-of-another-pod".into()),
            claimed: EgressCounters {
                model_requests: 5,
                ..EgressCounters::default()
            },
            exhausted: Some(Reason::ModelRequestBudgetExceeded),
            settled: true,
            ..EgressStatus::default()
        },
    );
    let limits = AskedLimits {
        model_requests: Some(5),
        ..AskedLimits::default()
    };
    let sandbox = harness.sandbox_with("one", 11, limits).await;
    assert!(
        models::complete(&harness, &sandbox, &models::chat("good", json!({})))
            .await
            .starts_with("HTTP/1.1 200")
    );
    let status = harness
        .status("one", |status| status.used.model_requests == 1)
        .await;
    assert_eq!(
        (status.exhausted, status.settled, status.pod_uid.as_deref()),
        (None, false, Some("uid-one"))
    );
}

#[tokio::test]
async fn nothing_is_claimed_after_a_run_s_last_figures() {
    let (harness, sandbox) = start(bytes(1_000)).await;
    let session = harness.gateway.session(sandbox.address).unwrap();
    harness.gateway.pod_gone(&sandbox.pod_uid);
    let last = harness.status("one", |status| status.settled).await;
    let claimed = session.account.reserve(bytes_of(10), bytes_of(10)).await;
    assert_eq!(claimed.err(), Some(Deny::UnknownSandbox));
    assert_eq!(harness.sink.run("one"), Some(last));
}

fn quota(sink: &Arc<FakeSink>, limits: Value) -> Arc<Quota> {
    let quota = Quota::new(sink.clone(), "default", Metrics::default(), Arc::new(|| 0));
    quota.set(Some(&serde_json::from_value(limits).unwrap()));
    quota
}

fn tokens(tokens: i64) -> Counters {
    Counters {
        tokens,
        ..Counters::ZERO
    }
}

#[tokio::test]
async fn what_no_quota_can_hold_is_refused_without_a_look_at_the_status() {
    let sink = FakeSink::new();
    let quota = quota(&sink, json!({"tokens": 100}));
    for _ in 0..10 {
        let refused = quota.reserve(tokens(101)).await;
        assert_eq!(refused.err(), Some(Deny::PolicyQuotaExceeded));
    }
    assert_eq!(sink.policy_reads(), 0);
    assert!(quota.reserve(tokens(100)).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn those_whom_a_used_up_quota_refuses_share_one_look_at_the_status() {
    let sink = FakeSink::new();
    let (mine, another) = (
        quota(&sink, json!({"tokens": 100})),
        quota(&sink, json!({"tokens": 100})),
    );
    let held = another.reserve(tokens(60)).await.unwrap();
    mine.reserve(tokens(40)).await.unwrap().spend(tokens(40));
    let before = sink.policy_reads();
    let refused = futures::future::join_all((0..50).map(|_| mine.reserve(tokens(50)))).await;
    assert!(refused.iter().all(Result::is_err));
    assert_eq!(sink.policy_reads(), before + 1);
    // What another gateway gives back is seen a moment later.
    drop(held);
    assert!(another.release(true).await);
    tokio::time::advance(Duration::from_secs(1)).await;
    assert!(mine.reserve(tokens(50)).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_status_that_nobody_can_read_keeps_no_request_waiting_for_long() {
    let sink = FakeSink::new();
    let quota = quota(&sink, json!({"tokens": 100}));
    sink.silence_policy();
    let refused = tokio::time::timeout(Duration::from_mins(1), quota.reserve(tokens(1))).await;
    assert_eq!(refused.unwrap().err(), Some(Deny::NotReady));
}

#[tokio::test]
async fn figures_are_written_at_most_every_two_seconds() {
    let (harness, sandbox) = start(AskedLimits::default()).await;
    let begun = Instant::now();
    for _ in 0..200 {
        let (_, answer) = harness.connect(&sandbox, "evil.example.test:443").await;
        assert!(answer.contains("HostNotAllowed"));
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let most = 2 + usize::try_from(begun.elapsed().as_secs() / 2).unwrap();
    assert!(
        harness.sink.writes() <= most,
        "{} writes in {:?}",
        harness.sink.writes(),
        begun.elapsed()
    );
    let status = harness.status("one", |status| status.denied == 200).await;
    assert_eq!(status.denials.len(), 1);
    assert_eq!(
        (status.denials[0].destination.as_str(), status.denials[0].count),
        ("evil.example.test:443", 200)
    );
}

#[tokio::test]
async fn an_idle_run_writes_nothing() {
    let (harness, _sandbox) = start(bytes(1_000)).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(harness.sink.writes(), 0);
}

#[tokio::test]
async fn the_chain_of_records_covers_all_of_them_and_its_head_stands_in_status() {
    use sha2::{Digest, Sha256};
    let (harness, sandbox) = start(AskedLimits::default()).await;
    exchange(&harness, &sandbox, "198.51.100.7:5432", 10).await;
    harness.connect(&sandbox, "evil.example.test:443").await;
    harness.gateway.pod_gone(&sandbox.pod_uid);
    let status = harness.status("one", |status| status.settled).await;
    let text = eventually(|| Some(harness.log_text()).filter(|text| text.lines().count() == 3))
        .await
        .unwrap();
    let mut prev = None;
    for (seq, line) in text.lines().enumerate() {
        let record: serde_json::Value = serde_json::from_str(line).unwrap();
        assert_eq!(record["seq"].as_u64(), Some(seq as u64));
        assert_eq!(record["prev"].as_str().map(str::to_owned), prev);
        assert_eq!(record["run"]["sandbox"], "one");
        prev = Some(hex(&Sha256::digest(line.as_bytes())));
    }
    assert_eq!((status.records, status.head), (3, prev));
}

#[tokio::test]
async fn a_sandbox_that_is_deleted_keeps_nobody_waiting() {
    let (harness, sandbox) = start(AskedLimits::default()).await;
    harness.sink.delete("one");
    harness.gateway.sandbox_gone("one");
    harness.gateway.pod_gone(&sandbox.pod_uid);
    let begun = Instant::now();
    harness.gateway.stop(Duration::from_secs(1)).await;
    assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());
}
