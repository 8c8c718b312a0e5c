//! Good and bad objects against the real API server, with the exact messages.

#![allow(clippy::too_many_lines)] // the table is one

use e2e::Harness;
use serde_json::{Value, json};

fn manifest(kind: &str, name: &str, spec: &Value) -> String {
    json!({"apiVersion": "agentsandbox.dev/v1alpha1", "kind": kind, "metadata": {"name": name}, "spec": spec})
        .to_string()
}

fn apply(harness: &Harness, text: &str) -> Result<String, String> {
    let file = std::env::temp_dir().join(format!("{}-{:x}.json", harness.namespace, text.len()));
    std::fs::write(&file, text).unwrap();
    let result = harness.kubectl(&["apply", "--dry-run=server", "-f", &file.to_string_lossy()]);
    std::fs::remove_file(&file).unwrap();
    result.map_err(|error| error.to_string())
}

#[tokio::test]
async fn bad_objects_are_refused_with_a_message_that_helps() {
    let harness = Harness::start("api-bad").await.unwrap();
    let long = "n".repeat(53);
    let table: Vec<(&str, &str, Value, &str)> = vec![
        (
            "AgentSandbox",
            "a",
            json!({"command": ["true"]}),
            "spec.image: Required value",
        ),
        (
            "AgentSandbox",
            "a",
            json!({"image": "x"}),
            "set either command (the program to run) or session, not both",
        ),
        (
            "AgentSandbox",
            "a",
            json!({"image": "x", "command": []}),
            "set either command (the program to run) or session, not both",
        ),
        (
            "AgentSandbox",
            "a",
            json!({"image": "x", "command": ["a"], "session": {"idleTimeoutSeconds": 5}}),
            "set either command (the program to run) or session, not both",
        ),
        (
            "AgentSandbox",
            long.as_str(),
            json!({"image": "x", "command": ["a"]}),
            "metadata.name must be at most 52 characters",
        ),
        (
            "AgentSandbox",
            "a",
            json!({"image": "x", "command": ["a"], "comand": ["b"]}),
            "unknown field \"spec.comand\"",
        ),
        (
            "AgentSandbox",
            "a",
            json!({"image": "x", "command": ["a"], "resources": {"memory": "lots"}}),
            "must be a Kubernetes quantity above 0, such as 500m, 2 or 1Gi",
        ),
        (
            "AgentSandbox",
            "a",
            json!({"image": "x", "command": ["a"], "resources": {"cpu": "-1"}}),
            "must be a Kubernetes quantity above 0, such as 500m, 2 or 1Gi",
        ),
        (
            "AgentSandbox",
            "a",
            json!({"image": "x", "command": ["a"], "resources": {"processes": 0}}),
            "should be greater than or equal to 1",
        ),
        (
            "AgentSandbox",
            "a",
            json!({"image": "x", "command": ["a"], "limits": {"runtimeSeconds": "long"}}),
            "spec.limits.runtimeSeconds: Invalid value: \"string\"",
        ),
        (
            "AgentSandbox",
            "a",
            json!({"image": "x y", "command": ["a"]}),
            "spec.image in body should match",
        ),
        (
            "AgentSandbox",
            "a",
            json!({"image": "x", "command": ["a"], "workingDir": "relative"}),
            "spec.workingDir in body should match '^/'",
        ),
        (
            "AgentSandbox",
            "a",
            json!({"image": "x", "command": ["a"], "env": [{"name": "a b"}]}),
            "spec.env[0].name in body should match",
        ),
        (
            "AgentSandbox",
            "a",
            json!({"image": "x", "command": ["a"], "env": [{"name": "A"}, {"name": "A"}]}),
            "Duplicate value",
        ),
        (
            "AgentSandbox",
            "a",
            json!({"image": "x", "command": ["a"], "files": [{"path": "a"}]}),
            "set exactly one of content and configMapRef",
        ),
        (
            "AgentSandbox",
            "a",
            json!({"image": "x", "command": ["a"], "files": [{"path": "a", "content": "", "configMapRef": {"name": "b"}}]}),
            "set exactly one of content and configMapRef",
        ),
        (
            "AgentSandbox",
            "a",
            json!({"image": "x", "command": ["a"], "ttlSecondsAfterFinished": -1}),
            "should be greater than or equal to 0",
        ),
        (
            "SandboxPolicy",
            long.as_str(),
            json!({}),
            "metadata.name must be at most 52 characters",
        ),
        (
            "SandboxPolicy",
            "a",
            json!({"isolation": {"minimum": "Strong"}}),
            "supported values: \"Container\", \"UserspaceKernel\", \"MicroVM\"",
        ),
        (
            "SandboxPolicy",
            "a",
            json!({"quota": {"memory": "much"}}),
            "must be a Kubernetes quantity above 0, such as 500m, 2 or 1Gi",
        ),
        (
            "SandboxPolicy",
            "a",
            json!({"cleanup": {"failedTTLSeconds": -5}}),
            "should be greater than or equal to 0",
        ),
        (
            "SandboxPolicy",
            "a",
            json!({"models": [{"provider": "Nobody", "host": "x"}]}),
            "supported values: \"OpenAI\", \"Anthropic\", \"OpenAICompatible\"",
        ),
    ];
    for (kind, name, spec, message) in &table {
        let error =
            apply(&harness, &manifest(kind, name, spec)).expect_err(&format!("{kind} {spec} was accepted"));
        assert!(
            error.contains(message),
            "{kind} {spec}: {message:?} is not in {error}"
        );
    }
    harness.finish().await.unwrap();
}

#[tokio::test]
async fn good_objects_are_taken_and_defaults_filled_in() {
    let harness = Harness::start("api-good").await.unwrap();
    let longest = "n".repeat(52);
    for (kind, name, spec) in [
        (
            "AgentSandbox",
            longest.as_str(),
            json!({"image": "x", "command": ["a"]}),
        ),
        (
            "AgentSandbox",
            "a",
            json!({"image": "x", "command": ["a"], "resources": {"cpu": 2, "memory": "1Gi"}}),
        ),
        (
            "AgentSandbox",
            "a",
            json!({"image": "x", "session": {"idleTimeoutSeconds": 60}}),
        ),
        ("SandboxPolicy", longest.as_str(), json!({})),
        (
            "SandboxPolicy",
            "a",
            json!({"egress": {"allow": [{"host": "*.example.org", "ports": [443]}]}}),
        ),
    ] {
        apply(&harness, &manifest(kind, name, &spec))
            .unwrap_or_else(|error| panic!("{kind} {spec}: {error}"));
    }
    let sandbox = harness
        .sandbox("plain", json!({"image": "x", "command": ["a"], "suspend": true}))
        .await
        .unwrap();
    assert_eq!(sandbox.spec.policy_ref.name, "default");
    assert_eq!(sandbox.spec.working_dir, "/workspace");
    harness.finish().await.unwrap();
}

#[tokio::test]
async fn a_spec_changes_only_with_its_run() {
    let harness = Harness::start("api-immutable").await.unwrap();
    harness
        .sandbox("job", json!({"image": "x", "command": ["a"], "suspend": true}))
        .await
        .unwrap();
    let patch =
        |change: &str| harness.kubectl(&["patch", "agentsandbox", "job", "--type=merge", "-p", change]);
    for change in [
        r#"{"spec":{"command":["b"]}}"#,
        r#"{"spec":{"image":"y"}}"#,
        r#"{"spec":{"limits":{"runtimeSeconds":5}}}"#,
        r#"{"spec":{"env":[{"name":"A","value":"b"}]}}"#,
    ] {
        let error = patch(change).unwrap_err().to_string();
        assert!(
            error.contains("spec is immutable while runId stays the same"),
            "{change}: {error}"
        );
    }
    for change in [
        r#"{"spec":{"ttlSecondsAfterFinished":5}}"#,
        r#"{"spec":{"stop":true}}"#,
        r#"{"spec":{"runId":"2","command":["b"]}}"#,
    ] {
        patch(change).unwrap();
    }
    harness.finish().await.unwrap();
}

#[tokio::test]
async fn every_field_is_explained() {
    let harness = Harness::start("api-explain").await.unwrap();
    for path in [
        "agentsandbox.spec",
        "agentsandbox.status",
        "sandboxpolicy.spec",
        "sandboxpolicy.spec.isolation",
        "agentsandbox.spec.limits",
    ] {
        let text = harness.kubectl(&["explain", path]).unwrap();
        assert!(!text.contains("<no description>"), "{path}: {text}");
    }
    harness.finish().await.unwrap();
}
