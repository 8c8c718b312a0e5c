//! Which pods the sweeper lets go, by an API server in memory.

use serde_json::{Value, json};

use super::*;
use crate::testing::{self, ApiServer};

const SANDBOX: &str = "/apis/agentsandbox.dev/v1alpha1/namespaces/ns/agentsandboxes/job-1";

fn asking(spec: Value) -> AgentSandbox {
    let mut sandbox = testing::sandbox(spec);
    sandbox.metadata.name = Some("job-1".to_owned());
    sandbox
}

/// A pod of `sandbox` as it would be now.
fn pod_of(sandbox: &AgentSandbox) -> Value {
    json!({"kind": "Pod", "apiVersion": "v1", "metadata": {
        "name": RunIdentity::of(sandbox).pod_name(), "namespace": "ns", "uid": "a",
        "finalizers": [names::FINALIZER_RESULT],
        "ownerReferences": [{"apiVersion": "agentsandbox.dev/v1alpha1", "kind": "AgentSandbox", "controller": true,
            "name": "job-1", "uid": sandbox.uid()}],
    }})
}

/// The first thing that is asked for of a pod beside a sandbox.
async fn swept(pod: Value, sandbox: Option<&AgentSandbox>) -> Vec<String> {
    let server = ApiServer::default();
    if let Some(sandbox) = sandbox {
        server.put(SANDBOX, serde_json::to_value(sandbox).unwrap());
    }
    let pod: Pod = serde_json::from_value(pod).unwrap();
    let path = format!("/api/v1/namespaces/ns/pods/{}", pod.name_any());
    server.put(&path, serde_json::to_value(&pod).unwrap());
    server.refuse(&path, "what was asked for is all that counts");
    let context = testing::start(&server).await;
    look_at(&pod, &context).await;
    server
        .writes()
        .into_iter()
        .map(|write| write.replace(&path, "the pod"))
        .collect()
}

#[tokio::test]
async fn a_pod_that_its_sandbox_does_not_know_is_deleted() {
    let sandbox = asking(json!({"runId": "1"}));
    let pod = pod_of(&sandbox);
    let name = pod["metadata"]["name"].clone();
    let mut next = asking(json!({"runId": "2"}));
    let none: [&str; 0] = [];

    assert_eq!(swept(pod.clone(), Some(&sandbox)).await, none);
    // Made just before the run id was changed, and never written down.
    assert_eq!(swept(pod.clone(), Some(&next)).await, ["delete the pod"]);
    // Written down: the controller removes it, before it makes the next one.
    next.status = Some(serde_json::from_value(json!({"runId": "1", "podName": name})).unwrap());
    assert_eq!(swept(pod.clone(), Some(&next)).await, none);

    let mut foreign = pod;
    foreign["metadata"]["finalizers"] = json!([]);
    assert_eq!(swept(foreign, Some(&asking(json!({"runId": "2"})))).await, none);
}

#[tokio::test]
async fn a_pod_whose_sandbox_is_gone_is_released_once_it_is_deleted() {
    let sandbox = asking(json!({}));
    let pod = pod_of(&sandbox);
    let mut deleted = pod.clone();
    deleted["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
    let mut another = sandbox.clone();
    another.metadata.uid = Some("another".to_owned());
    let mut going = sandbox.clone();
    going.metadata.deletion_timestamp = going.metadata.creation_timestamp.clone();

    let none: [&str; 0] = [];
    for gone in [None, Some(&another), Some(&going)] {
        // The garbage collector deletes it.
        assert_eq!(swept(pod.clone(), gone).await, none, "{gone:?}");
        assert_eq!(swept(deleted.clone(), gone).await, ["patch the pod"], "{gone:?}");
    }
    assert_eq!(swept(deleted, Some(&sandbox)).await, none);
}
