//! Steps of a session, charged at the gateway: together with model requests, once each, and to nobody else's budget.

use std::collections::BTreeSet;
use std::time::Duration;

use agentsandbox_api::gateway::{BudgetExhausted, StepCharged};
use agentsandbox_api::reason::Reason;
use agentsandbox_api::sandbox::{EgressCounters, EgressStatus, Limits as AskedLimits};
use agentsandbox_egress::budget::Counters;
use serde::de::DeserializeOwned;
use serde_json::json;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

use crate::harness::{Harness, PATIENCE, Sandbox, is_closed, local, next_registered};
use crate::models::{self, chat, complete};
use crate::sink::{FakeSink, Trouble};

fn steps(most: i64) -> AskedLimits {
    AskedLimits {
        steps: Some(most),
        ..AskedLimits::default()
    }
}

async fn send(recorder: &mut BufReader<TcpStream>, text: &str) {
    // The gateway may have hung up already.
    let _ = recorder.get_mut().write_all(text.as_bytes()).await;
}

async fn heard<T: DeserializeOwned>(recorder: &mut BufReader<TcpStream>) -> T {
    let mut line = String::new();
    let read = recorder.read_line(&mut line);
    tokio::time::timeout(PATIENCE, read).await.unwrap().unwrap();
    serde_json::from_str(&line).unwrap()
}

async fn charge(recorder: &mut BufReader<TcpStream>, number: u64) -> StepCharged {
    send(recorder, &format!("{{\"charge\":{number}}}\n")).await;
    let answer: StepCharged = heard(recorder).await;
    assert_eq!(answer.charged, number);
    answer
}

fn granted(number: u64) -> StepCharged {
    StepCharged {
        charged: number,
        granted: true,
        reason: String::new(),
        message: String::new(),
    }
}

/// The recorder's connection broke, and it registers again.
async fn again(harness: &Harness, sandbox: &Sandbox) -> BufReader<TcpStream> {
    let (answer, recorder) = harness.register("one", 11, &sandbox.token).await;
    assert!(answer.bound, "{answer:?}");
    recorder
}

#[tokio::test]
async fn steps_and_model_requests_are_counted_together() {
    let (harness, mut sandbox, provider) = models::start(models::policy(), steps(6)).await;
    for number in 1..=3 {
        assert_eq!(charge(&mut sandbox.recorder, number).await, granted(number));
        let back = complete(&harness, &sandbox, &chat("good", json!({}))).await;
        assert!(back.starts_with("HTTP/1.1 200"), "{back}");
    }
    let status = harness.status("one", |status| status.used.steps == 6).await;
    assert_eq!((status.used.model_requests, status.exhausted), (3, None));
    let refused = charge(&mut sandbox.recorder, 4).await;
    assert!(
        !refused.granted && refused.reason == "StepBudgetExceeded" && !refused.message.is_empty(),
        "{refused:?}"
    );
    let back = complete(&harness, &sandbox, &chat("good", json!({}))).await;
    assert!(
        back.starts_with("HTTP/1.1 429") && back.contains("StepBudgetExceeded"),
        "{back}"
    );
    harness
        .status("one", |status| {
            status.exhausted == Some(Reason::StepBudgetExceeded)
        })
        .await;
    assert_eq!(provider.requests.lock().unwrap().len(), 3);
    // So its recorder ends it.
    let told: BudgetExhausted = heard(&mut sandbox.recorder).await;
    assert_eq!(told.exhausted, Reason::StepBudgetExceeded);
    harness.gateway.pod_gone(&sandbox.pod_uid);
    let status = harness.status("one", |status| status.settled).await;
    assert_eq!(
        (
            status.used.steps,
            status.claimed.steps,
            status.used.model_requests
        ),
        (6, 6, 3)
    );
    assert!(
        harness
            .sink
            .history()
            .iter()
            .all(|written| written.claimed.steps <= 6)
    );
    // Each is one record.
    harness.record("deny", Some("StepBudgetExceeded"), "step").await;
    let of_steps: Vec<_> = harness
        .records()
        .into_iter()
        .filter(|record| record["destination"] == "step")
        .map(|record| (record["class"].as_u64(), record["action"].clone()))
        .collect();
    let expected = ["allow", "allow", "allow", "deny"].map(|action| (Some(6003), action.into()));
    assert_eq!(of_steps, expected);
}

#[tokio::test]
async fn steps_without_a_limit_are_counted_as_well() {
    let (harness, mut sandbox, _) = models::start(models::policy(), AskedLimits::default()).await;
    for number in 1..=2 {
        assert_eq!(charge(&mut sandbox.recorder, number).await, granted(number));
    }
    let status = harness.status("one", |status| status.used.steps == 2).await;
    assert_eq!(
        (status.claimed.steps, status.used.model_requests, status.allowed),
        (0, 0, 2)
    );
}

#[tokio::test]
async fn a_number_is_charged_once_whatever_the_connection() {
    let (harness, mut sandbox, _) = models::start(models::policy(), steps(10)).await;
    // Numbers may be left out.
    for number in [1, 2, 5] {
        assert_eq!(charge(&mut sandbox.recorder, number).await, granted(number));
    }
    for repeated in [5, 3, 0] {
        send(&mut sandbox.recorder, &format!("{{\"charge\":{repeated}}}\n")).await;
        assert!(is_closed(&mut sandbox.recorder).await, "{repeated}");
        sandbox.recorder = again(&harness, &sandbox).await;
    }
    assert_eq!(charge(&mut sandbox.recorder, 6).await, granted(6));
    let session = harness.gateway.session(sandbox.address).unwrap();
    assert_eq!(session.account.used().steps, 4);
}

#[tokio::test]
async fn what_a_recorder_never_heard_of_stays_charged() {
    let (harness, mut sandbox, _) = models::start(models::policy(), steps(10)).await;
    send(&mut sandbox.recorder, "{\"charge\":1}\n").await;
    harness.status("one", |status| status.used.steps == 1).await;
    // The answer is lost with the connection; the recorder asks anew with the next number.
    sandbox.recorder = again(&harness, &sandbox).await;
    assert_eq!(charge(&mut sandbox.recorder, 2).await, granted(2));
    let session = harness.gateway.session(sandbox.address).unwrap();
    assert_eq!(session.account.used().steps, 2);
}

#[tokio::test]
async fn a_recorder_spends_its_own_budget_only() {
    let (harness, mut one, _) = models::start(models::policy(), steps(2)).await;
    let mut two = harness.sandbox_with("two", 12, steps(2)).await;
    for number in 1..=2 {
        assert!(charge(&mut one.recorder, number).await.granted);
    }
    assert!(!charge(&mut one.recorder, 3).await.granted);
    for number in 1..=2 {
        assert!(charge(&mut two.recorder, number).await.granted);
    }
    // Somebody else at the run's address, and somebody elsewhere, who have shown no token.
    for last in [11, 66] {
        let (answer, mut stream) = harness.send_registration(last, "{\"charge\":9}").await;
        assert!(!answer.bound && !answer.retry, "{answer:?}");
        send(&mut stream, "{\"charge\":10}\n").await;
        assert!(is_closed(&mut stream).await);
    }
    for sandbox in [&one, &two] {
        let session = harness.gateway.session(sandbox.address).unwrap();
        assert_eq!(session.account.used().steps, 2);
    }
}

#[tokio::test]
async fn a_run_that_has_ended_takes_no_steps() {
    let (harness, mut sandbox, _) = models::start(models::policy(), steps(2)).await;
    harness.gateway.pod_gone(&sandbox.pod_uid);
    send(&mut sandbox.recorder, "{\"charge\":1}\n").await;
    assert!(!next_registered(&mut sandbox.recorder).await.unwrap().bound);
    assert!(is_closed(&mut sandbox.recorder).await);
    let status = harness.status("one", |status| status.settled).await;
    assert_eq!(status.used.steps, 0);
}

#[tokio::test]
async fn anything_but_a_charge_ends_the_connection_and_costs_nothing() {
    let (harness, mut sandbox, _) = models::start(models::policy(), steps(10)).await;
    let long = format!("{{\"charge\":1{}}}\n", " ".repeat(100));
    let endless = "1".repeat(1 << 20);
    for garbage in [
        "\n",
        "nonsense\n",
        "{\"charge\":-1}\n",
        "{\"charge\":1,\"charge\":2}\n",
        "{\"charge\":1,\"steps\":0}\n",
        "GET / HTTP/1.1\r\n\r\n",
        "{\"podUid\":\"uid-one\",\"token\":\"x\",\"runTokenSha256\":\"x\"}\n",
        "\u{0}\u{0}\n",
        &long,
        &endless,
    ] {
        send(&mut sandbox.recorder, garbage).await;
        assert!(is_closed(&mut sandbox.recorder).await, "{garbage:.40}");
        sandbox.recorder = again(&harness, &sandbox).await;
    }
    let session = harness.gateway.session(local(11)).unwrap();
    assert_eq!(session.account.used().steps, 0);
    // A line may come in pieces.
    for piece in ["{\"cha", "rge\"", ":1}"] {
        send(&mut sandbox.recorder, piece).await;
        tokio::task::yield_now().await;
    }
    send(&mut sandbox.recorder, "\n").await;
    assert_eq!(heard::<StepCharged>(&mut sandbox.recorder).await, granted(1));
}

#[tokio::test]
async fn a_flood_is_slowed_down_and_overspends_nothing() {
    const LIMIT: i64 = 150;
    const CHARGES: u64 = 250;
    let (harness, mut sandbox, _) = models::start(models::policy(), steps(LIMIT)).await;
    let begun = std::time::Instant::now();
    let lines: Vec<_> = (1..=CHARGES)
        .map(|number| format!("{{\"charge\":{number}}}\n"))
        .collect();
    send(&mut sandbox.recorder, &lines.concat()).await;
    let (mut numbers, mut good, mut ends) = (BTreeSet::new(), 0, 0);
    while numbers.len() < lines.len() || ends == 0 {
        let line: serde_json::Value = heard(&mut sandbox.recorder).await;
        if line["exhausted"] == "StepBudgetExceeded" {
            ends += 1;
            continue;
        }
        let answer: StepCharged = serde_json::from_value(line).unwrap();
        assert!(numbers.insert(answer.charged), "answered twice: {answer:?}");
        good += i64::from(answer.granted);
        assert!(
            answer.granted || answer.reason == "StepBudgetExceeded",
            "{answer:?}"
        );
    }
    assert_eq!(
        (good, numbers.first(), numbers.last()),
        (LIMIT, Some(&1), Some(&CHARGES))
    );
    assert_eq!(ends, 1, "it is told once");
    // 128 at once, then 100 a second.
    assert!(begun.elapsed().as_millis() > 1_000, "{:?}", begun.elapsed());
    let status = harness.status("one", |status| status.used.steps == LIMIT).await;
    assert_eq!(status.claimed.steps, LIMIT);
    assert!(
        harness
            .sink
            .history()
            .iter()
            .all(|written| written.claimed.steps <= LIMIT)
    );
}

#[tokio::test]
async fn no_step_is_granted_while_the_status_can_not_be_written() {
    let (harness, mut sandbox, _) = models::start(models::policy(), steps(5)).await;
    harness.sink.trouble(&[Trouble::Refused; 100]);
    let begun = std::time::Instant::now();
    let refused = charge(&mut sandbox.recorder, 1).await;
    assert!(!refused.granted && refused.reason == "NotReady", "{refused:?}");
    assert!(
        begun.elapsed().as_millis() < 5_000,
        "the recorder has given up: {:?}",
        begun.elapsed()
    );
    harness.sink.trouble(&[]);
    assert_eq!(charge(&mut sandbox.recorder, 2).await, granted(2));
    let status = harness.status("one", |status| status.used.steps == 1).await;
    assert_eq!(status.exhausted, None);
}

#[tokio::test]
async fn a_step_waits_a_while_for_what_is_in_flight() {
    let (harness, mut sandbox, _) = models::start(models::policy(), steps(1)).await;
    let one = Counters {
        steps: 1,
        ..Counters::ZERO
    };
    let account = harness.gateway.session(sandbox.address).unwrap().account.clone();
    // A request that is not sent after all.
    let held = account.reserve(one, one).await.unwrap();
    send(&mut sandbox.recorder, "{\"charge\":1}\n").await;
    let early = tokio::time::timeout(Duration::from_millis(200), sandbox.recorder.get_mut().readable());
    assert!(early.await.is_err(), "answered while the last step was in flight");
    drop(held);
    assert_eq!(heard::<StepCharged>(&mut sandbox.recorder).await, granted(1));

    let (harness, mut sandbox, _) = models::start(models::policy(), steps(1)).await;
    let account = harness.gateway.session(sandbox.address).unwrap().account.clone();
    let mut held = account.reserve(one, one).await.unwrap();
    let refused = charge(&mut sandbox.recorder, 1).await;
    assert_eq!(
        (refused.granted, refused.reason.as_str()),
        (false, "StepBudgetExceeded")
    );
    held.spend(one);
    drop(held);
    assert_eq!(account.used().steps, 1);
}

#[tokio::test]
async fn steps_that_another_gateway_has_claimed_count_as_taken() {
    let harness = models::gateway(models::policy(), FakeSink::new()).await.0;
    let counters = |steps| EgressCounters {
        steps,
        ..EgressCounters::default()
    };
    harness.sink.set_run(
        "one",
        EgressStatus {
            pod_uid: Some("uid-one".into()),
            claimed: counters(4),
            used: counters(3),
            ..EgressStatus::default()
        },
    );
    let mut sandbox = harness.sandbox_with("one", 11, steps(5)).await;
    // The recorder goes on counting where it was.
    assert_eq!(charge(&mut sandbox.recorder, 9).await, granted(9));
    assert_eq!(
        charge(&mut sandbox.recorder, 10).await.reason,
        "StepBudgetExceeded"
    );
    let status = harness.status("one", |status| status.used.steps == 4).await;
    assert_eq!(status.claimed.steps, 5);
}
