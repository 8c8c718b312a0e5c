//! What changes while sandboxes use the gateway: policies, neighbours, the gateway itself; and the log of it all.

use std::collections::BTreeMap;

use agentsandbox_api::policy::SandboxPolicy;
use agentsandbox_api::reason::Reason;
use cluster::tools::hex;
use e2e::Harness;
use e2e::egress::policy;
use kube::api::DeleteParams;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

fn roads() -> Value {
    json!([
        {"host": "seen.example.test", "tls": "Inspect"},
        {"host": "big.example.test", "tls": "Inspect"},
        {"host": "through.example.test"},
        {"host": "long.example.test", "tls": "Inspect"},
        {"host": "socket.example.test", "upgrade": true},
        {"host": "plain.example.test", "tls": "None"},
        {"cidr": "93.184.216.0/24", "ports": [9000]},
    ])
}

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
async fn a_neighbour_that_takes_everything_does_not_starve_the_others() {
    let harness = Harness::start("neighbour").await.unwrap();
    harness
        .policy("default", policy(&roads(), &json!([]), json!({})))
        .await
        .unwrap();
    let quiet = harness
        .script("quiet", "neighbour.py", &["9"], json!({}))
        .await
        .unwrap();
    // The hog's own processor share is bounded as any sandbox's; the gateway's is what it competes for.
    let small = json!({"resources": {"cpu": "500m", "memory": "512Mi", "processes": 64}});
    harness
        .start_script("hog", "hog.py", &["50"], small)
        .await
        .unwrap();
    harness.printed("hog", "HOGGING").await.unwrap();
    let beside = harness
        .script("beside", "neighbour.py", &["18"], json!({}))
        .await
        .unwrap();
    let hog = harness.ended_script("hog").await.unwrap();
    println!(
        "quiet {:?}\nbeside {:?}\nhog {:?}",
        quiet.outcomes, beside.outcomes, hog.outcomes
    );
    let number = |run: &e2e::egress::Run, name: &str| run.outcomes[name].parse::<f64>().unwrap();
    for kind in ["dns", "new", "kept"] {
        for (run, when) in [(&quiet, "quiet"), (&beside, "beside")] {
            assert_eq!(
                run.outcomes[&format!("{kind} failures")],
                "0",
                "{kind}, {when}\n{}",
                run.log
            );
        }
        let (before, during) = (
            number(&quiet, &format!("{kind} p99")),
            number(&beside, &format!("{kind} p99")),
        );
        // Both sandboxes, the gateway, the outside world and the cluster share this machine's processors.
        assert!(
            during < before.mul_add(10.0, 750.0),
            "{kind}: {before} ms before, {during} ms beside"
        );
    }
    // It really did try: connections, look-ups and bytes, of each far more than the neighbour. How many is the machine's.
    assert!(number(&hog, "connections") + number(&hog, "refused") > 1_000.0);
    assert!(number(&hog, "queries") > 1_000.0 && number(&hog, "answers") > 0.0);
    assert!(number(&hog, "bytes") > 1e7);
    // It met the ceilings of connections and of look-ups. Status names the latest refusals only.
    let log = harness.gateway_log().await.unwrap();
    let mut denied: BTreeMap<(i64, String), usize> = BTreeMap::new();
    for (_, record) in records_of(&log, "hog") {
        if let (Some(class), Some(reason)) = (record["class"].as_i64(), record["reason"].as_str()) {
            *denied.entry((class, reason.to_owned())).or_default() += 1;
        }
    }
    println!("hog denied {denied:?}");
    for ceiling in [(4001, "TooManyConnections"), (4003, "TooManyRequests")] {
        assert!(
            denied.contains_key(&(ceiling.0, ceiling.1.to_owned())),
            "{ceiling:?} is not among {denied:?}"
        );
    }
    assert!(hog.egress().denied > 500, "{:?}", hog.egress());
    harness.finish().await.unwrap();
}

/// Lines of the gateway's decisions for one sandbox, as they were printed.
fn records_of<'a>(log: &'a str, sandbox: &str) -> Vec<(&'a str, Value)> {
    log.lines()
        .filter_map(|line| Some((line, serde_json::from_str::<Value>(line).ok()?)))
        .filter(|(_, record)| record["run"]["sandbox"] == sandbox && record["seq"].is_u64())
        .collect()
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
