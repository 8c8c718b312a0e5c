//! A node that takes no output any more: nothing goes on unrecorded, and nothing is lost.

use std::time::Duration;

use agentsandbox_api::names;
use agentsandbox_api::reason::Reason;
use e2e::Harness;
use e2e::harness::repository;
use kube::ResourceExt;
use serde_json::{Value, json};

/// How long nothing may have happened before it counts as a standstill.
const STILL: Duration = Duration::from_secs(3);

/// Takes output again, however the test ends.
struct Paused<'a>(&'a Harness);

impl Drop for Paused<'_> {
    fn drop(&mut self) {
        self.0.cluster.resume("containerd");
    }
}

/// Runs the script while nobody takes output, until nothing happens any more, and then to its end; what it did by its log.
async fn stalled(harness: &Harness, class: &str, what: &str, times: usize) -> Vec<Value> {
    let script = std::fs::read_to_string(repository().join("e2e/tests/scripts/stall.py")).unwrap();
    let spec = json!({
        "policyRef": {"name": class}, "command": ["python3", "stall.py", what, times.to_string()],
        "files": [{"path": "stall.py", "content": script}],
        "resources": {"cpu": "400m"}, "limits": {"runtimeSeconds": 150},
    });
    let name = format!("{what}-{class}");
    harness.sandbox(&name, spec).await.unwrap();
    harness.running(&name).await.unwrap();
    let pod = harness.pods_of(&name).await.unwrap().remove(0);
    let workspace = harness.cluster.volumes_of(&pod.uid().unwrap()).join("workspace");
    let done = || -> usize {
        let text = std::fs::read_to_string(workspace.join("progress")).unwrap_or_default();
        text.parse().unwrap_or_default()
    };
    let standstill = {
        harness.cluster.pause("containerd");
        let _paused = Paused(harness);
        std::fs::write(workspace.join("go"), "").unwrap();
        harness
            .eventually("a standstill", || async {
                let before = done();
                tokio::time::sleep(STILL).await;
                Ok((before > 0 && before == done()).then_some(before))
            })
            .await
    };
    let standstill = standstill.unwrap();
    println!("{class}: {standstill} of {times} times it could {what} before it had to wait");
    assert!(standstill < times, "{class}, {what}");
    let status = harness.finished(&name).await.unwrap();
    let reason = status.result.as_ref().and_then(|result| result.reason);
    assert_eq!(reason, Some(Reason::Completed), "{status:?}");
    harness.actions_of(&name, &status).await.unwrap()
}

/// Some 3 MB of records, while all queues on the way hold half of that.
const FILES: usize = 8_000;
/// As many bytes of shorter ones.
const SIGNALS: usize = 20_000;

#[tokio::test]
async fn who_acts_while_nobody_takes_the_log_waits_and_nothing_is_lost() {
    let harness = Harness::start("stalled-log").await.unwrap();
    harness.usual_policies().await.unwrap();
    let folder = format!("{}/xxx", names::PATH_WORKSPACE);
    for class in ["runc", "gvisor"] {
        let actions = stalled(&harness, class, "write", FILES).await;
        let is_told = |action: &&Value| {
            let path = action["path"].as_str().unwrap_or_default();
            action["activity"] == "open" && path.starts_with(&folder)
        };
        assert_eq!(actions.iter().filter(is_told).count(), FILES, "{class}");
    }
    // A call that is refused waits as well.
    let actions = stalled(&harness, "runc", "signal", SIGNALS).await;
    let is_told = |action: &&Value| action["activity"] == "refused";
    assert_eq!(actions.iter().filter(is_told).count(), SIGNALS);
    harness.finish().await.unwrap();
}
