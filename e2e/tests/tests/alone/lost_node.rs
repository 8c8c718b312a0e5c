//! A node whose kubelet is dead reports nothing: the operator's own clock ends the run.

use agentsandbox_api::reason::Reason;
use e2e::Harness;
use k8s_openapi::api::core::v1::Node;
use kube::Api;
use serde_json::json;

#[tokio::test]
async fn a_run_finishes_although_its_kubelet_is_dead_and_its_pod_goes_when_it_is_back() {
    let harness = Harness::start("lost-node").await.unwrap();
    harness.usual_policies().await.unwrap();
    for policy in ["runc", "gvisor"] {
        let spec = json!({"policyRef": {"name": policy}, "command": ["sleep", "100"], "limits": {"runtimeSeconds": 5}});
        harness.sandbox(policy, spec).await.unwrap();
    }
    for policy in ["runc", "gvisor"] {
        harness.running(policy).await.unwrap();
    }
    harness.cluster.stop("kubelet");
    let mut verdicts = Vec::new();
    for policy in ["runc", "gvisor"] {
        verdicts.push(harness.finished(policy).await);
    }
    let held = harness.pods_of("runc").await.unwrap().len();
    harness.cluster.restart("kubelet").unwrap();
    let nodes: Api<Node> = Api::all(harness.client.clone());
    harness
        .eventually("the node's return", || async {
            let status = nodes
                .get(harness.cluster.node())
                .await?
                .status
                .unwrap_or_default();
            let is_ready = status
                .conditions
                .iter()
                .flatten()
                .any(|condition| condition.type_ == "Ready" && condition.status == "True");
            Ok(is_ready.then_some(()))
        })
        .await
        .unwrap();
    assert_eq!(
        held, 1,
        "nobody says that the process has ended: its pod is not let go"
    );
    for (policy, verdict) in ["runc", "gvisor"].into_iter().zip(verdicts) {
        let result = verdict.unwrap().result.unwrap();
        assert_eq!(
            result.reason,
            Some(Reason::DeadlineExceeded),
            "{policy}: {result:?}"
        );
        harness.without_pods(policy).await.unwrap();
        let later = harness.finished(policy).await.unwrap().result.unwrap();
        assert_eq!(
            later, result,
            "{policy}: what the node says later changes no verdict"
        );
    }
    harness.finish().await.unwrap();
}
