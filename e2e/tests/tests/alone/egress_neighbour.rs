//! A neighbour that uses the same gateway as hard as it can.

use std::collections::BTreeMap;

use e2e::Harness;
use e2e::egress::{policy, records_of, roads};
use serde_json::json;

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
