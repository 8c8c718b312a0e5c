//! How soon the exhaustion of a budget ends a run.

use agentsandbox_api::reason::Reason;
use e2e::burn::namespace;
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
