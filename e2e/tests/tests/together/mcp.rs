//! `kubectl sandbox mcp`, as an agent's host uses it: by the protocol's official client.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use agentsandbox_api::sandbox::AgentSandbox;
use e2e::Harness;
use e2e::harness::{AGENT_IMAGE, repository};
use e2e::plugin::text;
use kube::api::ListParams;

/// An interpreter that has the client.
fn python() -> String {
    let folder = repository().join("e2e");
    let made = Command::new(folder.join("python-environment.sh"))
        .arg(folder.join("mcp-client/requirements.txt"))
        .stderr(Stdio::inherit())
        .output()
        .unwrap();
    assert!(made.status.success(), "{made:?}");
    text(&made.stdout).trim().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_works_in_a_session_that_ends_with_its_connection() {
    let harness = Harness::start("mcp").await.unwrap();
    harness.usual_policies().await.unwrap();
    let arguments = [
        "mcp",
        "--image",
        AGENT_IMAGE,
        "--policy",
        "gvisor",
        "--timeout",
        "600",
    ];
    let server = harness.plugin(&arguments).unwrap();
    let mut agent = Command::new(python())
        .arg(repository().join("e2e/mcp-client/check.py"))
        .arg(server.get_program())
        .args(server.get_args())
        .env("KUBECONFIG", harness.cluster.kubeconfig())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut told = String::new();
    BufReader::new(agent.stdout.take().unwrap())
        .read_line(&mut told)
        .unwrap();
    assert_eq!(told, "WORKED\n", "its own words stand above");
    let sandboxes = || async {
        let all = harness.api::<AgentSandbox>();
        all.list(&ListParams::default())
            .await
            .map(|found| found.items.len())
    };
    assert_eq!(sandboxes().await.unwrap(), 1);
    drop(agent.stdin.take());
    assert_eq!(agent.wait().unwrap().code(), Some(0));
    harness
        .eventually("the end of the session", || async {
            Ok((sandboxes().await? == 0).then_some(()))
        })
        .await
        .unwrap();
    harness.finish().await.unwrap();
}
