//! Budgets: how soon their exhaustion ends a run, and that no crash of the gateway gives anything back.

use agentsandbox_api::reason::Reason;
use agentsandbox_api::sandbox::AgentSandbox;
use e2e::burn::{COST, RESERVATION, count, namespace};
use e2e::egress::Journal;
use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};

#[tokio::test]
async fn an_exhausted_budget_ends_the_run_within_two_seconds() {
    let (harness, host) = namespace("two-seconds", json!({})).await.unwrap();
    let arguments = ["chat", host.as_str(), "1", "12", "60"];
    harness
        .start_script(
            "burn",
            "burn.py",
            &arguments,
            json!({"limits": {"modelRequests": 10}}),
        )
        .await
        .unwrap();
    let status = harness.finished("burn").await.unwrap();
    let reason = status.result.clone().unwrap().reason;
    assert_eq!(reason, Some(Reason::ModelRequestBudgetExceeded));
    // What it did before can still be read.
    let actions = harness.actions_of("burn", &status).await.unwrap();
    let end = actions.last().unwrap();
    assert_eq!(end["reason"], "ModelRequestBudgetExceeded", "{end:#}");
    // From the gateway's first refusal to the command's end; how soon the verdict follows is the cluster's matter.
    let log = harness.gateway_log().await.unwrap();
    let refused = log
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .find(|record| {
            record["run"]["sandbox"] == "burn"
                && record["action"] == "deny"
                && record["reason"] == "ModelRequestBudgetExceeded"
        })
        .expect("a refusal");
    let moment = |record: &Value| record["time"].as_str().unwrap().parse::<Timestamp>().unwrap();
    let took = moment(end).duration_since(moment(&refused));
    println!("ended {took:#} after the first refusal");
    assert!((0..2000).contains(&took.as_millis()), "{took:#}");
    harness.finish().await.unwrap();
}

/// Rule 33: a crash costs each run what it had in flight and 1 % of its budget, and gives nothing back. Runs that are idle
/// lose nothing by all crashes but the first.
#[tokio::test]
async fn a_gateway_that_is_killed_resets_no_budget() {
    const LIMIT: i64 = 40_000;
    const KILLS: i64 = 20;
    const THREADS: i64 = 3;
    const IDLE: [&str; 2] = ["idle-1", "idle-2"];
    /// What all crashes may cost at most.
    const LOST: i64 = (KILLS + 1) * (LIMIT / 100 + THREADS * RESERVATION);
    let (harness, host) = namespace("killed", json!({})).await.unwrap();
    // A new gateway takes seconds to serve; twenty of them take longer than a run has by default.
    let more =
        |cpu: &str| json!({"limits": {"tokens": LIMIT, "runtimeSeconds": 900}, "resources": {"cpu": cpu}});
    for idle in IDLE {
        harness
            .start_script(idle, "burn.py", &["chat", &host, "1", "1", "3000"], more("100m"))
            .await
            .unwrap();
    }
    let sandboxes = harness.api::<AgentSandbox>();
    let egress_of = |name: &'static str| {
        let sandboxes = sandboxes.clone();
        async move { Ok::<_, kube::Error>(sandboxes.get(name).await?.status.unwrap_or_default().egress) }
    };
    for idle in IDLE {
        harness
            .eventually("an idle run's one request", || async move {
                let egress = egress_of(idle).await?;
                Ok(egress.filter(|egress| egress.used.tokens == COST).map(|_| ()))
            })
            .await
            .unwrap();
    }
    let journal = Journal::open(&harness);
    harness
        .start_script("burn", "burn.py", &["chat", &host, "3", "100000"], more("600m"))
        .await
        .unwrap();
    let served = || count(journal.requests_to(&host).len());
    for kill in 1..=KILLS {
        harness
            .eventually("more requests", || async {
                // The last crash comes before the budget can be exhausted.
                Ok((served() >= kill * (LIMIT - LOST) / COST / (KILLS + 5)).then_some(()))
            })
            .await
            .unwrap();
        harness.kill_gateway().await.unwrap();
    }
    let run = harness.ended_script("burn").await.unwrap();
    let (egress, spent) = (run.egress(), COST * served());
    println!("spent {spent} of {LIMIT} with {KILLS} kills: {egress:?}");
    let reason = run.status.result.clone().unwrap().reason;
    assert_eq!(
        reason,
        Some(Reason::TokenBudgetExceeded),
        "{}",
        run.log.lines().rev().take(20).collect::<String>()
    );
    assert!(spent <= LIMIT, "{spent}");
    assert!(spent >= LIMIT - LOST, "{spent} spent, at most {LOST} may be lost");
    assert!(
        egress.claimed.tokens <= LIMIT && egress.used.tokens <= LIMIT,
        "{egress:?}"
    );
    for idle in IDLE {
        let egress = egress_of(idle).await.unwrap();
        let egress = egress.unwrap();
        println!("{idle} after {KILLS} kills: {egress:?}");
        assert_eq!(egress.used.tokens, COST);
        assert!(egress.claimed.tokens <= COST + LIMIT / 100, "{egress:?}");
    }
    harness.finish().await.unwrap();
}
