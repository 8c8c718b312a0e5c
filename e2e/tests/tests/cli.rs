//! `kubectl sandbox`, as a user calls it.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

use std::path::PathBuf;
use std::process::{Command, Output};

use agentsandbox_api::sandbox::AgentSandbox;
use e2e::Harness;
use e2e::harness::repository;
use kube::api::ListParams;
use serde_json::{Value, json};

/// The plugin, which `e2e/test.sh` builds beside the tests.
fn plugin() -> Command {
    let tests = std::env::current_exe().unwrap();
    let target = tests.parent().and_then(|deps| deps.parent()).unwrap();
    let program = target.join("kubectl-sandbox");
    assert!(
        program.exists(),
        "{}: cargo build -p kubectl-sandbox",
        program.display()
    );
    Command::new(program)
}

fn example(name: &str) -> PathBuf {
    repository().join("examples").join(name)
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn check(files: &[&str]) -> Output {
    let mut command = plugin();
    command.args(["policy", "check"]);
    command.args(files.iter().map(|file| example(file)));
    command.output().unwrap()
}

#[test]
fn policies_are_explained_and_sandboxes_judged_without_a_cluster() {
    let good = check(&["00-policies.yaml", "01-python-job.yaml"]);
    assert_eq!(
        good.status.code(),
        Some(0),
        "{}{}",
        text(&good.stdout),
        text(&good.stderr)
    );
    assert!(text(&good.stdout).contains("AgentSandbox python-job: would be accepted"));
    let bad = check(&["00-policies.yaml", "08-too-much.yaml"]);
    assert_eq!(bad.status.code(), Some(1), "{}", text(&bad.stdout));
    assert!(
        text(&bad.stdout).contains("WOULD BE REJECTED"),
        "{}",
        text(&bad.stdout)
    );
    let none = plugin().args(["policy", "check", "/dev/null"]).output().unwrap();
    assert_eq!(none.status.code(), Some(2));
    assert!(
        text(&none.stderr).contains("error: no SandboxPolicy"),
        "{}",
        text(&none.stderr)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_doctor_proves_what_holds_and_names_what_lacks() {
    let harness = Harness::start("doctor").await.unwrap();
    harness.usual_policies().await.unwrap();
    let doctor = |more: &[&str]| {
        let output = plugin()
            .args(["doctor", "-o", "json", "-n", &harness.namespace])
            .args(more)
            .env("KUBECONFIG", harness.cluster.kubeconfig())
            .output()
            .unwrap();
        let checks: Vec<Value> = serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|error| panic!("{error}: {}{}", text(&output.stdout), text(&output.stderr)));
        (output.status.code(), checks)
    };
    let of = |checks: &[Value], what: &str| {
        let found = checks.iter().find(|check| check["check"] == what);
        found
            .unwrap_or_else(|| panic!("no {what} in {checks:#?}"))
            .clone()
    };

    let (code, checks) = doctor(&["--policy", "gvisor"]);
    assert_eq!(code, Some(0), "{checks:#?}");
    for what in [
        "API server",
        "AgentSandbox",
        "operator",
        "policy gvisor",
        "proof",
        "isolation",
        "network",
    ] {
        assert_eq!(of(&checks, what)["outcome"], "ok", "{checks:#?}");
    }
    assert!(
        of(&checks, "isolation")["found"]
            .to_string()
            .contains("UserspaceKernel")
    );
    // It removes what it made.
    let left = harness
        .api::<AgentSandbox>()
        .list(&ListParams::default())
        .await
        .unwrap();
    let left: Vec<_> = left
        .items
        .iter()
        .filter(|sandbox| sandbox.metadata.deletion_timestamp.is_none())
        .collect();
    assert!(left.is_empty(), "{left:#?}");

    let (code, checks) = doctor(&["--policy", "no-such", "--no-probe"]);
    assert_eq!(code, Some(1));
    assert_eq!(of(&checks, "policy no-such")["outcome"], "failed");

    // A policy of somebody else's that widens what sandboxes may reach.
    let foreign = json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"name": "everybody"}, "spec": {"podSelector": {}, "egress": [{}], "policyTypes": ["Egress"]},
    });
    harness
        .create::<k8s_openapi::api::networking::v1::NetworkPolicy>(foreign)
        .await
        .unwrap();
    let (code, checks) = doctor(&["--policy", "gvisor"]);
    assert_eq!(code, Some(1));
    assert!(
        of(&checks, "network policies")["found"]
            .to_string()
            .contains("everybody")
    );
    assert!(of(&checks, "proof")["found"].to_string().contains("not tried"));
    harness.finish().await.unwrap();
}
