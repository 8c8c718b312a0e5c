//! The operator itself: killed at every phase of a run, and counted in what it writes.

use std::collections::BTreeMap;

use agentsandbox_api::condition::types;
use agentsandbox_api::reason::Reason;
use e2e::Harness;
use e2e::harness::{OPERATOR_NAMESPACE, is};
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::{DeleteParams, ListParams};
use serde_json::{Value, json};

/// Ends every replica at once, as a crash of its node would.
async fn kill_operator(harness: &Harness) {
    let pods: Api<Pod> = Api::namespaced(harness.client.clone(), OPERATOR_NAMESPACE);
    let now = DeleteParams {
        grace_period_seconds: Some(0),
        ..DeleteParams::default()
    };
    pods.delete_collection(
        &now,
        &ListParams::default().labels("app.kubernetes.io/name=agentsandbox-operator"),
    )
    .await
    .unwrap();
}

#[tokio::test]
async fn a_run_ends_the_same_whenever_the_operator_is_killed() {
    let harness = Harness::start("crash").await.unwrap();
    harness.usual_policies().await.unwrap();
    let command = json!([
        "python3",
        "-c",
        "import time, os; time.sleep(4); open(os.environ['SANDBOX_OUTPUT'], 'w').write('done')"
    ]);
    let spec = |seconds: i64| json!({"policyRef": {"name": "runc"}, "command": command, "ttlSecondsAfterFinished": seconds});

    // Before it is seen.
    kill_operator(&harness).await;
    harness.sandbox("unseen", spec(3600)).await.unwrap();
    // While its pod starts.
    harness.sandbox("starting", spec(3600)).await.unwrap();
    harness
        .eventually("a pod", || async {
            Ok(harness.pods_of("starting").await?.into_iter().next())
        })
        .await
        .unwrap();
    kill_operator(&harness).await;
    // While it runs.
    harness.running("starting").await.unwrap();
    kill_operator(&harness).await;
    harness.finished("starting").await.unwrap();
    // While it ends: the pod is over, its result not yet taken.
    harness.sandbox("ending", spec(3600)).await.unwrap();
    harness.running("ending").await.unwrap();
    kill_operator(&harness).await;
    harness
        .eventually("the end of the pod", || async {
            let pods = harness.pods_of("ending").await?;
            Ok(pods
                .into_iter()
                .find(|pod| pod.status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Succeeded")))
        })
        .await
        .unwrap();
    kill_operator(&harness).await;
    // While its TTL runs.
    harness.sandbox("expiring", spec(2)).await.unwrap();
    harness.finished("expiring").await.unwrap();
    kill_operator(&harness).await;
    harness
        .when("expiring", "expiry", |s| is(s, types::EXPIRED, "True"))
        .await
        .unwrap();
    harness.without_pods("expiring").await.unwrap();

    for name in ["unseen", "starting", "ending", "expiring"] {
        let status = harness.finished(name).await.unwrap();
        let result = status.result.unwrap();
        assert_eq!(
            (result.reason, result.exit_code, result.output.as_deref()),
            (Some(Reason::Completed), Some(0), Some("done")),
            "{name}"
        );
        assert!(
            harness.pods_of(name).await.unwrap().len() <= 1,
            "{name}: at most one pod"
        );
    }
    let made = pods_made(&harness);
    assert!(
        made.values().all(|count| *count == 1),
        "one pod for each run: {made:?}"
    );
    harness.finish().await.unwrap();
}

/// How many pods of each name the operator has made, by the audit log.
fn pods_made(harness: &Harness) -> BTreeMap<String, usize> {
    let mut made = BTreeMap::new();
    for entry in operator_writes(harness) {
        if entry["verb"] == "create"
            && entry["objectRef"]["resource"] == "pods"
            && entry["responseStatus"]["code"] == 201
        {
            *made
                .entry(entry["objectRef"]["name"].as_str().unwrap_or_default().to_owned())
                .or_default() += 1;
        }
    }
    made
}

/// What the operator wrote in a namespace, by the API server's audit log.
fn operator_writes(harness: &Harness) -> Vec<Value> {
    let text = std::fs::read_to_string(harness.cluster.audit_log()).unwrap();
    text.lines()
        .filter(|line| {
            line.contains("system:serviceaccount:agentsandbox-system:agentsandbox-operator")
                && line.contains(&harness.namespace)
        })
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .filter(|entry| {
            entry["stage"] == "ResponseComplete"
                && entry["objectRef"]["namespace"] == harness.namespace.as_str()
        })
        .collect()
}

#[tokio::test]
async fn a_run_costs_at_most_six_writes() {
    let harness = Harness::start("writes").await.unwrap();
    harness.usual_policies().await.unwrap();
    // A pod that is kept for a while costs one write more, when it goes: the mark that it was removed. A run that ends
    // before it is seen running costs one less.
    for (name, seconds, ttl, bound) in [("fast", "0", 0, 6), ("slow", "5", 0, 6), ("kept", "5", 5, 7)] {
        let before = operator_writes(&harness).len();
        harness.sandbox(name, json!({"policyRef": {"name": "runc"}, "command": ["sleep", seconds], "ttlSecondsAfterFinished": ttl})).await.unwrap();
        harness
            .when(name, "expiry", |s| is(s, types::EXPIRED, "True"))
            .await
            .unwrap();
        harness.without_pods(name).await.unwrap();
        let writes: Vec<String> = operator_writes(&harness)
            .split_off(before)
            .iter()
            .map(|entry| {
                format!(
                    "{} {}/{}",
                    entry["verb"].as_str().unwrap_or_default(),
                    entry["objectRef"]["resource"].as_str().unwrap_or_default(),
                    entry["objectRef"]["subresource"].as_str().unwrap_or_default()
                )
            })
            .collect();
        let (objects, events): (Vec<&String>, Vec<&String>) = writes
            .iter()
            .filter(|write| {
                write.contains("pods/") || write.contains("agentsandboxes/") || write.contains("events/")
            })
            .partition(|write| !write.contains("events/"));
        println!(
            "{name}: {} writes {objects:?}, {} events",
            objects.len(),
            events.len()
        );
        assert!(objects.len() <= bound, "{objects:?}");
        assert!(events.len() <= 2, "{events:?}");
    }
    harness.finish().await.unwrap();
}

/// Rule 21: the operator sees only NetworkPolicies. What else may open the network is seen by the recorder, which asks
/// again during the run; here nobody else is there to see it.
#[tokio::test]
async fn a_network_that_opens_during_a_run_is_seen_from_inside() {
    let harness = Harness::start("opening").await.unwrap();
    harness.usual_policies().await.unwrap();
    for policy in ["runc", "gvisor"] {
        harness
            .sandbox(
                policy,
                json!({"policyRef": {"name": policy}, "command": ["sleep", "50"]}),
            )
            .await
            .unwrap();
        harness.running(policy).await.unwrap();
    }
    let scale = |replicas: &str| {
        let replicas = format!("--replicas={replicas}");
        harness
            .kubectl(&[
                "-n",
                OPERATOR_NAMESPACE,
                "scale",
                "deployment/agentsandbox-operator",
                &replicas,
            ])
            .unwrap();
    };
    scale("0");
    let pods: Api<Pod> = Api::namespaced(harness.client.clone(), OPERATOR_NAMESPACE);
    harness
        .eventually("the end of the operator", || async {
            Ok(pods
                .list(&ListParams::default())
                .await?
                .items
                .is_empty()
                .then_some(()))
        })
        .await
        .unwrap();
    harness
        .network_policy(
            "opening",
            json!({"podSelector": {}, "policyTypes": ["Egress"], "egress": [{}]}),
        )
        .await
        .unwrap();
    for policy in ["runc", "gvisor"] {
        harness
            .eventually("the end of the pod", || async {
                let pods = harness.pods_of(policy).await?;
                let phase = |pod: &Pod| pod.status.as_ref().and_then(|status| status.phase.clone());
                Ok(pods
                    .first()
                    .and_then(phase)
                    .filter(|phase| phase == "Failed")
                    .map(|_| ()))
            })
            .await
            .unwrap();
    }
    scale("2");
    for policy in ["runc", "gvisor"] {
        let found = harness.finished(policy).await.unwrap().result.unwrap();
        assert_eq!(found.reason, Some(Reason::NetworkNotIsolated), "{found:?}");
        let message = found.message.unwrap();
        assert!(message.contains("apiserver"), "{policy}: {message}");
    }
    harness.finish().await.unwrap();
}
