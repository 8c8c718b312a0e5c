//! Fixtures of unit tests.

use agentsandbox_api::policy::SandboxPolicy;
use agentsandbox_api::sandbox::AgentSandbox;
use clap::Parser;
use serde_json::{Value, json};

use crate::config::Config;

/// The configuration with every default, as if no flag and no variable were set.
pub fn config() -> Config {
    #[derive(Parser)]
    struct Wrapper {
        #[command(flatten)]
        config: Config,
    }
    Wrapper::parse_from(["test"]).config
}

/// A sandbox with this spec.
pub fn sandbox(spec: Value) -> AgentSandbox {
    let mut full = json!({"image": "reg.io/agent:1", "command": ["true"]});
    merge(&mut full, spec);
    serde_json::from_value(json!({
        "apiVersion": "agentsandbox.dev/v1alpha1", "kind": "AgentSandbox",
        "metadata": {"name": "job", "namespace": "ns", "uid": "11111111-2222-3333-4444-555555555555",
            "generation": 1, "resourceVersion": "1", "creationTimestamp": "2026-01-01T00:00:00Z"},
        "spec": full,
    }))
    .unwrap()
}

/// A policy with this spec.
#[allow(clippy::needless_pass_by_value)] // reads better at the calls
pub fn policy(spec: Value) -> SandboxPolicy {
    serde_json::from_value(json!({
        "apiVersion": "agentsandbox.dev/v1alpha1", "kind": "SandboxPolicy",
        "metadata": {"name": "default", "namespace": "ns", "uid": "99999999-2222-3333-4444-555555555555", "generation": 3},
        "spec": spec,
    }))
    .unwrap()
}

fn merge(into: &mut Value, from: Value) {
    match (into, from) {
        (Value::Object(into), Value::Object(from)) => {
            for (key, value) in from {
                merge(into.entry(key).or_insert(Value::Null), value);
            }
        }
        (into, from) => *into = from,
    }
}
