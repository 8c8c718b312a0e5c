//! The Python client: its own tests, on the real cluster.

use std::process::Command;

use e2e::Harness;
use e2e::harness::repository;

#[tokio::test]
async fn the_python_client_passes_its_tests() {
    let harness = Harness::start("python-client").await.unwrap();
    let policies = repository().join("examples/00-policies.yaml");
    harness
        .kubectl(&["apply", "-f", &policies.to_string_lossy()])
        .unwrap();
    let status = Command::new(repository().join("clients/python/test.sh"))
        .arg("cluster")
        .env("KUBECONFIG", harness.cluster.kubeconfig())
        .env("AGENTSANDBOX_NAMESPACE", &harness.namespace)
        .status()
        .unwrap();
    assert!(status.success(), "{status}");
    harness.finish().await.unwrap();
}
