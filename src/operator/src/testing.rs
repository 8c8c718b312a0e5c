//! Fixtures of unit tests.

mod api_server;

use std::sync::Arc;

use agentsandbox_api::policy::SandboxPolicy;
use agentsandbox_api::sandbox::AgentSandbox;
use clap::Parser;
use futures::StreamExt;
use serde_json::{Value, json};

pub use api_server::ApiServer;

use crate::cluster::{ClusterAddresses, NodeAddresses};
use crate::config::Config;
use crate::context::Context;
use crate::facts::Facts;
use crate::metrics::Metrics;
use crate::triggers;

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

/// What an operator reads of a small cluster.
pub fn facts() -> Facts {
    let address = |text: &str| text.parse().unwrap();
    Facts {
        api_server: (address("10.96.0.1"), 443),
        cluster_dns: Some(address("10.96.0.10")),
        canary: vec![address("10.96.9.9")],
        canary_port: 9_444,
    }
}

/// That cluster: pods in 10.244.0.0/16, two nodes, a load balancer, and an API server behind its Service.
pub fn cluster() -> ClusterAddresses {
    let node = |name: &str, address: &str| NodeAddresses {
        name: name.to_owned(),
        ranges: vec![address.parse().unwrap()],
    };
    let config = Config {
        cluster_ranges: "10.244.0.0/16".parse().unwrap(),
        ..config()
    };
    ClusterAddresses::gather(
        &facts(),
        &config,
        &["192.168.9.9:6443".parse().unwrap()],
        &["93.184.216.34/32".parse().unwrap()],
        &[node("a", "192.168.7.1/32"), node("b", "192.168.7.2/32")],
    )
}

/// An operator that has just started beside this server, with its stores filled.
pub async fn start(server: &ApiServer) -> Arc<Context> {
    let (context, triggers) = triggers::start(server.serve().await, config(), facts(), Metrics::default());
    tokio::spawn(triggers.policies.for_each(|_| std::future::ready(())));
    tokio::spawn(triggers.sandboxes.for_each(|_| std::future::ready(())));
    context.synced().await;
    context.controllers_synced().await;
    context
}

/// Puts `from` into `into`, field by field.
pub fn merge(into: &mut Value, from: Value) {
    match (into, from) {
        (Value::Object(into), Value::Object(from)) => {
            for (key, value) in from {
                merge(into.entry(key).or_insert(Value::Null), value);
            }
        }
        (into, from) => *into = from,
    }
}
