//! A node that takes no output any more: nothing goes on unrecorded, and nothing is lost.

use std::path::PathBuf;
use std::time::Duration;

use agentsandbox_api::names;
use agentsandbox_api::reason::Reason;
use e2e::Harness;
use e2e::harness::{process_of, repository};
use serde_json::json;

/// Files that are written: some 3 MB of records, while all queues on the way hold half of that.
const FILES: usize = 8_000;
/// How long nothing may have happened before it counts as a standstill.
const STILL: Duration = Duration::from_secs(3);

/// Takes output again, however the test ends.
struct Paused<'a>(&'a Harness);

impl Drop for Paused<'_> {
    fn drop(&mut self) {
        self.0.cluster.resume("containerd");
    }
}

#[tokio::test]
async fn who_acts_while_nobody_takes_the_log_waits_and_nothing_is_lost() {
    let harness = Harness::start("stalled-log").await.unwrap();
    harness.usual_policies().await.unwrap();
    let script = std::fs::read_to_string(repository().join("e2e/tests/scripts/stall.py")).unwrap();
    let spec = json!({
        "policyRef": {"name": "runc"}, "command": ["python3", "stall.py", FILES.to_string()],
        "files": [{"path": "stall.py", "content": script}],
    });
    harness.sandbox("stalled", spec).await.unwrap();
    harness.running("stalled").await.unwrap();
    let pod = harness.pods_of("stalled").await.unwrap().remove(0);
    let workspace = harness
        .eventually("the script's process", || async {
            let pid = process_of(&pod, "python3 stall.py");
            Ok(pid.map(|pid| PathBuf::from(format!("/proc/{pid}/root{}", names::PATH_WORKSPACE))))
        })
        .await
        .unwrap();
    let written = || -> usize {
        let text = std::fs::read_to_string(workspace.join("progress")).unwrap_or_default();
        text.parse().unwrap_or_default()
    };
    let stalled = {
        harness.cluster.pause("containerd");
        let _paused = Paused(&harness);
        std::fs::write(workspace.join("go"), "").unwrap();
        harness
            .eventually("a standstill", || async {
                let before = written();
                tokio::time::sleep(STILL).await;
                Ok((before > 0 && before == written()).then_some(before))
            })
            .await
    };
    let stalled = stalled.unwrap();
    println!("{stalled} of {FILES} files were written before it had to wait");
    assert!(stalled < FILES);
    let status = harness.finished("stalled").await.unwrap();
    let reason = status.result.as_ref().and_then(|result| result.reason);
    assert_eq!(reason, Some(Reason::Completed), "{status:?}");
    let actions = harness.actions_of("stalled", &status).await.unwrap();
    let folder = format!("{}/xxx", names::PATH_WORKSPACE);
    let opens = actions.iter().filter(|action| {
        action["activity"] == "open"
            && action["path"]
                .as_str()
                .is_some_and(|path| path.starts_with(&folder))
    });
    assert_eq!(opens.count(), FILES);
    harness.finish().await.unwrap();
}
