//! What the docs show is taken as it stands.

use std::io::Write;
use std::process::Stdio;

use agentsandbox_api::condition::types;
use agentsandbox_api::policy::SandboxPolicy;
use e2e::Harness;
use e2e::harness::{repository, yaml_blocks};
use e2e::steps::Session;
use kube::api::ListParams;

#[tokio::test]
async fn every_policy_of_the_egress_page_gets_a_gateway() {
    let harness = Harness::start("docs").await.unwrap();
    let page = std::fs::read_to_string(repository().join("docs/egress.md")).unwrap();
    let manifests = yaml_blocks(&page);
    for manifest in &manifests {
        let mut command = harness.cluster.kubectl();
        let mut kubectl = command
            .args(["-n", &harness.namespace, "apply", "-f", "-"])
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        kubectl
            .stdin
            .take()
            .unwrap()
            .write_all(manifest.as_bytes())
            .unwrap();
        assert!(kubectl.wait().unwrap().success(), "{manifest}");
    }
    let policies = harness
        .api::<SandboxPolicy>()
        .list(&ListParams::default())
        .await
        .unwrap()
        .items;
    assert_eq!(policies.len(), manifests.len());
    for policy in policies {
        let name = policy.metadata.name.unwrap();
        harness
            .policy_when(&name, |policy| {
                let conditions = policy.status.iter().flat_map(|status| &status.conditions);
                let is_true =
                    |type_: &str| conditions.clone().any(|c| c.type_ == type_ && c.status == "True");
                is_true(types::GATEWAY_READY) && is_true(types::READY)
            })
            .await
            .unwrap();
    }
    harness.finish().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_session_of_the_example_and_that_of_the_page_take_steps() {
    let harness = Harness::start("docs-session").await.unwrap();
    // The examples' policies, of which this one is the default.
    let policies = repository().join("examples/00-policies.yaml");
    harness
        .kubectl(&["apply", "-f", policies.to_str().unwrap()])
        .unwrap();
    let example = repository().join("examples/15-session.yaml");
    harness
        .kubectl(&["apply", "-f", example.to_str().unwrap()])
        .unwrap();
    let session = Session::of(&harness, "session").await.unwrap();
    let step = session
        .step(&["step", "--", "python3", "-c", "print(6 * 7)"])
        .unwrap();
    assert_eq!((step.code, step.text().as_str()), (0, "42\n"), "{}", step.stderr);
    let page = std::fs::read_to_string(repository().join("docs/sessions.md")).unwrap();
    for manifest in yaml_blocks(&page) {
        let file = std::env::temp_dir().join(format!("session-{}.yaml", std::process::id()));
        std::fs::write(&file, manifest).unwrap();
        harness
            .kubectl(&["apply", "--dry-run=server", "-f", file.to_str().unwrap()])
            .unwrap();
        std::fs::remove_file(&file).unwrap();
    }
    harness.finish().await.unwrap();
}
