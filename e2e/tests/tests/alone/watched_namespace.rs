//! The operator for one namespace, with rights in this one only. The last of the tests: it takes the operator of the
//! others away for a while.

use std::io::Write;
use std::process::{Command, Stdio};

use agentsandbox_api::reason::Reason;
use agentsandbox_api::sandbox::AgentSandbox;
use e2e::Harness;
use e2e::harness::{OPERATOR_NAMESPACE, repository};
use serde_json::json;

fn apply(harness: &Harness, text: &str) {
    let mut command = harness.cluster.kubectl();
    let mut kubectl = command
        .args(["apply", "-f", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    kubectl.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    assert!(kubectl.wait().unwrap().success());
}

fn answer(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[tokio::test]
async fn an_operator_for_one_namespace_needs_rights_in_this_one_only() {
    let (watched, other) = (
        Harness::start("watched").await.unwrap(),
        Harness::start("other").await.unwrap(),
    );
    let overlay = repository().join("manifests/namespaced");
    let manifests = answer(watched.cluster.kubectl().arg("kustomize").arg(&overlay));
    let manifests = manifests
        .replace(
            "namespace: agents\n",
            &format!("namespace: {}\n", watched.namespace),
        )
        .replace("value: agents\n", &format!("value: {}\n", watched.namespace));
    let rollout = || {
        watched
            .kubectl(&[
                "-n",
                OPERATOR_NAMESPACE,
                "rollout",
                "status",
                "deployment/agentsandbox-operator",
                "--timeout=90s",
            ])
            .unwrap();
    };
    watched
        .kubectl(&["delete", "clusterrolebinding", "agentsandbox-operator"])
        .unwrap();
    apply(&watched, &manifests);
    rollout();

    watched.usual_policies().await.unwrap();
    let spec = json!({"policyRef": {"name": "runc"}, "command": ["true"], "ttlSecondsAfterFinished": 0});
    other.sandbox("job", spec.clone()).await.unwrap();
    watched.sandbox("job", spec).await.unwrap();
    let found = watched.finished("job").await.unwrap().result.unwrap();
    watched.without_pods("job").await.unwrap();
    let untouched = other.api::<AgentSandbox>().get("job").await.unwrap();

    let all = repository().join("manifests");
    answer(watched.cluster.kubectl().args(["apply", "-k"]).arg(&all));
    let reads = "agentsandbox-operator-reads";
    watched
        .kubectl(&["delete", "clusterrole,clusterrolebinding", reads])
        .unwrap();
    rollout();
    other.usual_policies().await.unwrap();
    let taken_over = other.finished("job").await.unwrap().result.unwrap();
    assert_eq!(found.reason, Some(Reason::Completed), "{found:?}");
    assert_eq!(untouched.status, None);
    assert_eq!(taken_over.reason, Some(Reason::Completed), "{taken_over:?}");
    other.finish().await.unwrap();
    watched.finish().await.unwrap();
}
