//! The NetworkPolicy engine of the cluster, without which nothing else about the network would prove anything.

use e2e::Harness;
use e2e::harness::name_of;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{ListParams, PostParams};
use serde_json::{Value, json};

const PODS_OF_EACH_RUNTIME: usize = 20;

fn dialler(name: &str, class: &str, labels: &Value, target: &str) -> Pod {
    serde_json::from_value(json!({
        "metadata": {"name": name, "labels": labels},
        "spec": {
            "runtimeClassName": class, "restartPolicy": "Never", "automountServiceAccountToken": false,
            "securityContext": {"runAsNonRoot": true, "runAsUser": 65532, "seccompProfile": {"type": "RuntimeDefault"}},
            "containers": [{
                "name": "main", "image": "agent-sandbox.local/testtool:dev", "imagePullPolicy": "Never",
                "args": ["dial", target, "2"],
                "securityContext": {"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}},
            }],
        },
    }))
    .unwrap()
}

/// Exit codes of all pods, once they have ended.
async fn exit_codes(harness: &Harness, prefix: &str) -> Vec<i32> {
    harness
        .eventually("the end of the diallers", || async {
            let pods = harness.api::<Pod>().list(&ListParams::default()).await?.items;
            let codes: Vec<Option<i32>> = pods
                .iter()
                .filter(|pod| name_of(*pod).starts_with(prefix))
                .map(|pod| {
                    Some(
                        pod.status
                            .as_ref()?
                            .container_statuses
                            .as_ref()?
                            .first()?
                            .state
                            .as_ref()?
                            .terminated
                            .as_ref()?
                            .exit_code,
                    )
                })
                .collect();
            Ok(codes.into_iter().collect::<Option<Vec<i32>>>())
        })
        .await
        .unwrap()
}

#[tokio::test]
async fn a_denied_pod_gets_nothing_through_from_its_first_packet_on() {
    let harness = Harness::start("first-packet").await.unwrap();
    harness
        .network_policy(
            "deny",
            json!({"podSelector": {"matchLabels": {"denied": "yes"}}, "policyTypes": ["Ingress", "Egress"]}),
        )
        .await
        .unwrap();
    // The control: the same dial from a pod that nothing denies gets through, so silence means denial.
    for class in ["runc", "gvisor"] {
        for (index, target) in ["172.30.0.10:443", "10.96.0.1:443"].iter().enumerate() {
            harness
                .api()
                .create(
                    &PostParams::default(),
                    &dialler(&format!("free-{class}-{index}"), class, &json!({}), target),
                )
                .await
                .unwrap();
        }
    }
    assert_eq!(exit_codes(&harness, "free-").await, [9, 9, 9, 9]);
    for batch in 0..PODS_OF_EACH_RUNTIME / 5 {
        for class in ["runc", "gvisor"] {
            for number in 0..5 {
                let target = if number % 2 == 0 {
                    "172.30.0.10:443"
                } else {
                    "10.96.0.1:443"
                };
                let pod = dialler(
                    &format!("denied-{class}-{batch}-{number}"),
                    class,
                    &json!({"denied": "yes"}),
                    target,
                );
                harness.api().create(&PostParams::default(), &pod).await.unwrap();
            }
        }
        let codes = exit_codes(&harness, "denied-").await;
        assert!(codes.iter().all(|code| *code == 0), "batch {batch}: {codes:?}");
    }
    assert_eq!(
        exit_codes(&harness, "denied-").await.len(),
        2 * PODS_OF_EACH_RUNTIME
    );
    harness.finish().await.unwrap();
}
