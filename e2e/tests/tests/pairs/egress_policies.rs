//! What changes while sandboxes use the gateway: their policy and its end; and the log of it all.

use std::collections::BTreeMap;

use agentsandbox_api::policy::SandboxPolicy;
use agentsandbox_api::reason::Reason;
use cluster::tools::hex;
use e2e::Harness;
use e2e::egress::{policy, records_of, roads};
use kube::api::DeleteParams;
use serde_json::json;
use sha2::{Digest, Sha256};

const TUNNELS: [&str; 6] = [
    "passthrough",
    "passthrough, steered",
    "inspected",
    "websocket",
    "address",
    "plain",
];

#[tokio::test]
async fn what_a_tightened_policy_no_longer_allows_is_closed() {
    let harness = Harness::start("tightened").await.unwrap();
    harness
        .policy("default", policy(&roads(), &json!([]), json!({})))
        .await
        .unwrap();
    harness
        .start_script("tunnels", "tunnels.py", &["0"], json!({}))
        .await
        .unwrap();
    let open = harness.printed("tunnels", "OPEN").await.unwrap();
    for tunnel in TUNNELS {
        assert!(
            open.contains(&format!("'{tunnel}'")),
            "{tunnel} is not open: {open}"
        );
    }
    let left = json!([{"host": "seen.example.test", "tls": "Inspect"}]);
    harness
        .patch::<SandboxPolicy>("default", json!({"spec": {"egress": {"allow": left}}}))
        .await
        .unwrap();
    let run = harness.ended_script("tunnels").await.unwrap();
    let differences = run.differences(&[
        ("again", &["403 HostNotAllowed"]),
        ("again, passthrough", &["403 HostNotAllowed"]),
        ("again, dns", &["REFUSED"]),
        ("what stayed", &["200"]),
        ("*", &["closed"]),
    ]);
    assert!(
        differences.is_empty() && run.outcomes.len() == TUNNELS.len() + 4,
        "{differences:#?}\n{}",
        run.log
    );
    for line in run.log.lines().filter(|line| line.starts_with("CLOSED")) {
        println!("{line}");
    }
    harness.finish().await.unwrap();
}

#[tokio::test]
async fn a_deleted_policy_ends_its_runs_and_its_gateway() {
    let harness = Harness::start("deleted").await.unwrap();
    harness
        .policy("default", policy(&roads(), &json!([]), json!({})))
        .await
        .unwrap();
    harness
        .start_script("tunnels", "tunnels.py", &["60"], json!({}))
        .await
        .unwrap();
    harness.printed("tunnels", "OPEN").await.unwrap();
    harness
        .api::<SandboxPolicy>()
        .delete("default", &DeleteParams::default())
        .await
        .unwrap();
    let found = harness.finished("tunnels").await.unwrap().result.unwrap();
    assert_eq!(found.reason, Some(Reason::PolicyDeleted), "{found:?}");
    harness
        .eventually("the end of the gateway", || async {
            Ok(harness.gateway_pods().await?.is_empty().then_some(()))
        })
        .await
        .unwrap();
    harness.finish().await.unwrap();
}

#[tokio::test]
async fn each_decision_is_one_record_of_a_chain_whose_head_stands_in_status() {
    let harness = Harness::start("records").await.unwrap();
    harness
        .policy("default", policy(&roads(), &json!([]), json!({})))
        .await
        .unwrap();
    let run = harness
        .script("names", "refused_names.py", &[], json!({}))
        .await
        .unwrap();
    let egress = run.egress();
    let log = harness.gateway_log().await.unwrap();
    let records = records_of(&log, "names");
    assert_eq!(
        i64::try_from(records.len()).unwrap(),
        egress.records,
        "{egress:?}"
    );
    let mut previous: Option<String> = None;
    let mut actions: BTreeMap<String, i64> = BTreeMap::new();
    for (index, (line, record)) in records.iter().enumerate() {
        assert_eq!(record["seq"], index, "{line}");
        assert_eq!(record["prev"].as_str().map(str::to_owned), previous, "{line}");
        assert_eq!(record["run"]["policy"], "default");
        assert_eq!(record["run"]["namespace"], harness.namespace.as_str());
        assert!(
            [4001, 4002, 4003, 6003].contains(&record["class"].as_i64().unwrap()),
            "{line}"
        );
        assert!(
            record["action"] != "deny" || record["reason"].is_string(),
            "{line}"
        );
        assert!(
            !line.contains('?') && !line.contains("Basic") && !line.contains("Bearer"),
            "{line}"
        );
        *actions
            .entry(record["action"].as_str().unwrap().to_owned())
            .or_default() += 1;
        previous = Some(hex(&Sha256::digest(line.as_bytes())));
    }
    assert_eq!(previous, egress.head);
    assert_eq!(actions["deny"], egress.denied);
    assert_eq!(actions["allow"], egress.allowed);
    assert!(
        records
            .iter()
            .any(|(_, record)| record["class"] == 4003 && record["destination"] == "evil.test")
    );
    harness.finish().await.unwrap();
}
