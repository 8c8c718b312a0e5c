//! A raw `kubectl exec` where no admission policy refuses it: the doctor warns of that, and the action log tells of who
//! came in past the recorder.

use e2e::Harness;
use e2e::harness::{HarnessError, name_of};
use serde_json::{Value, json};

/// Longer than the supervisor's pause between two looks.
const VISIT: &[&str] = &["sleep", "3"];

/// A visit, once the API server has heard that nobody refuses it any more.
async fn visit(harness: &Harness, sandbox: &str) {
    let pod = name_of(&harness.pods_of(sandbox).await.unwrap()[0]);
    let mut arguments = vec!["exec", &pod, "-c", "agent", "--"];
    arguments.extend(VISIT);
    harness
        .eventually("an exec that is not refused", || async {
            match harness.kubectl(&arguments) {
                Err(HarnessError::Kubectl(why)) if why.contains("agentsandbox-exec") => Ok(None),
                done => done.map(Some),
            }
        })
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn who_comes_in_past_the_recorder_is_told_as_such_and_the_doctor_warns() {
    let harness = Harness::start("raw-exec").await.unwrap();
    harness.usual_policies().await.unwrap();
    for class in ["runc", "gvisor"] {
        let spec = json!({"policyRef": {"name": class}, "command": ["sleep", "25"]});
        harness.sandbox(class, spec).await.unwrap();
    }
    for class in ["runc", "gvisor"] {
        harness.running(class).await.unwrap();
    }
    harness.unbind("agentsandbox-exec").unwrap();
    let (_, doctor, _) = harness
        .call(&["doctor", "-o", "json", "--policy", "runc", "--no-probe"])
        .unwrap();
    for class in ["runc", "gvisor"] {
        visit(&harness, class).await;
    }
    harness.bind_again().unwrap();

    let checks: Vec<Value> = serde_json::from_str(&doctor).unwrap();
    let admission = checks.iter().find(|check| check["check"] == "admission").unwrap();
    assert_eq!(admission["outcome"], "warning", "{admission}");
    let found = admission["found"].as_str().unwrap();
    assert!(found.contains("exec users are trusted"), "{found}");
    for class in ["runc", "gvisor"] {
        let status = harness.finished(class).await.unwrap();
        let records = harness.actions_of(class, &status).await.unwrap();
        let foreign: Vec<&Value> = records
            .iter()
            .filter(|record| record["activity"] == "foreign")
            .collect();
        assert_eq!(foreign.len(), 1, "{class}: {records:#?}");
        assert_eq!(foreign[0]["argv"], json!(VISIT), "{class}");
    }
    harness.finish().await.unwrap();
}
