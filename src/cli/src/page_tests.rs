//! Pages of sandboxes in their states.

use super::*;
use agentsandbox_client::Record;
use serde_json::json;

fn sandbox(status: &serde_json::Value) -> AgentSandbox {
    serde_json::from_value(json!({
        "metadata": {"name": "analyst", "namespace": "agents", "creationTimestamp": "2026-01-02T03:04:00Z"},
        "spec": {"image": "python:3.13", "command": ["python3", "main.py\u{1b}[2J"]},
        "status": status,
    }))
    .unwrap()
}

fn known(live: Option<Result<LiveState, String>>) -> Known {
    Known {
        ceilings: Ceilings {
            runtime_seconds: Some(60),
            memory_bytes: Some(128 << 20),
            ..Ceilings::default()
        },
        live,
        records: Ok(Vec::new()),
        now: "2026-01-02T03:05:00Z".parse().unwrap(),
    }
}

fn plain(sandbox: &AgentSandbox, known: &Known) -> String {
    anstream::adapter::strip_str(&page(sandbox, known)).to_string()
}

#[test]
fn a_run_that_failed_shows_why_and_what_it_used() {
    let failed = sandbox(&json!({
        "runId": "", "phase": "Failed", "podName": "analyst-sb00", "nodeName": "node-1",
        "policy": {"name": "strict", "generation": 2},
        "result": {"reason": "NonZeroExit", "exitCode": 3, "message": "exit code 3\nTrace\u{202e}back", "evidence": "Guest"},
        "isolation": {"level": "MicroVM", "runtimeClassName": "kata", "guestKernel": "6.1", "nodeKernel": "6.8"},
        "network": {"isolatedAt": "2026-01-02T03:04:05Z", "rounds": 2, "probes": {"apiserver/TCP": "Timeout", "gateway/TCP": "Connected"}},
        "usage": {"wallSeconds": 15.0, "cpuSeconds": 1.25, "memoryPeakBytes": 134_217_728},
        "egress": {"allowed": 2, "denied": 1, "denials": [{"destination": "evil.example:443", "reason": "NotAllowed", "count": 1}]},
        "audit": {"records": 3, "head": "abcd", "capture": {"commands": "None", "files": "None", "network": "None"}, "evidence": "Guest"},
        "conditions": [{"type": "Succeeded", "status": "False", "reason": "NonZeroExit", "message": "m", "lastTransitionTime": "2026-01-02T03:04:20Z"}],
    }));
    let mut known = known(None);
    let record = r#"{"seq":0,"time":"2026-01-02T03:04:20.000Z","class":6002,"activity":"end","reason":"NonZeroExit","exitCode":3}"#;
    known.records = Ok(vec![Line::from(&Record::parse(record).unwrap())]);
    assert_eq!(
        plain(&failed, &known),
        "\
sandbox    agents/analyst, 1m old
image      python:3.13
command    python3 main.py\\u{1b}[2J
policy     strict, generation 2
pod        analyst-sb00 on node-1
verdict    Failed: NonZeroExit, exit code 3 (says the guest)
message    exit code 3
           Trace\\u{202e}back
isolation  MicroVM, observed inside; runtime class kata; kernel 6.1 on node's 6.8
network    closed since 2026-01-02T03:04:05Z; 2 destinations tried, 2 rounds

usage
time       [#####...............]  25 %  15s of 1m
cpu        1.2s
memory     [####################] 100 %  128Mi of 128Mi
requests   0
tokens     0
egress     0

egress
allowed    2
denied     1
           evil.example:443 (NotAllowed) x1

audit
records    3
head       abcd
captured   commands no, files no, network no

last records
2026-01-02T03:04:20.000Z  run      run ends: NonZeroExit, exit code 3
"
    );
}

#[test]
fn a_run_that_goes_on_shows_what_it_uses_now() {
    let holds = |type_: &str, message: &str| json!({"type": type_, "status": "True", "reason": "r", "message": message, "lastTransitionTime": "2026-01-02T03:04:20Z"});
    let running = sandbox(
        &json!({"runId": "", "phase": "Running", "podName": "p", "isolation": {"runtimeClassName": "kata"},
        "conditions": [holds("Ready", "the command runs"), holds("NetworkIsolated", "every destination was closed")]}),
    );
    let live: LiveState = serde_json::from_value(json!({
        "startedAtMs": 1_767_323_070_000_u64, "memoryBytes": 1_048_576, "audit": {"records": 1, "capture": {"commands": "None", "files": "None", "network": "None"}},
    }))
    .unwrap();
    let text = plain(&running, &known(Some(Ok(live))));
    assert!(
        text.contains("time       [##########..........]  50 %  30s of 1m\n"),
        "{text}"
    );
    assert!(
        text.contains("memory     [#...................]   1 %  1Mi of 128Mi\n"),
        "{text}"
    );
    assert!(text.contains("\naudit\nrecords    1\n"), "{text}");
    for part in [
        "isolation  no weaker than the policy demands; the level is told at the end; runtime class kata\n",
        "network    closed: every destination was closed\n",
    ] {
        assert!(text.contains(part), "{text}");
    }
    let blind = plain(&running, &known(Some(Err("forbidden\u{7}".to_owned()))));
    assert!(
        blind.contains("what it uses now can't be read: forbidden\\u{7}\n"),
        "{blind}"
    );
}

#[test]
fn a_sandbox_that_waits_says_for_what() {
    let queued = sandbox(&json!({"runId": "", "phase": "Queued", "conditions": [
        {"type": "Ready", "status": "False", "reason": "QuotaExceeded", "message": "no room", "lastTransitionTime": "2026-01-02T03:04:20Z"},
    ]}));
    let text = plain(&queued, &known(None));
    assert!(
        text.ends_with("verdict    Queued: QuotaExceeded\nmessage    no room\n"),
        "{text}"
    );
    let new = plain(&sandbox(&json!(null)), &known(None));
    assert!(
        new.ends_with("verdict    not seen by the operator yet\n"),
        "{new}"
    );
}
