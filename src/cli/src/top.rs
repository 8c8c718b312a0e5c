//! `kubectl sandbox top`: what running sandboxes use now.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use agentsandbox_api::run::LiveState;
use agentsandbox_api::sandbox::{AgentSandbox, Phase};
use clap::Args;
use futures::StreamExt;
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;

use crate::ceilings::{self, Ceilings};
use crate::connection::Connected;
use crate::failure::Failure;
use crate::term::{self, Table};

/// Sandboxes asked at once.
const AT_ONCE: usize = 8;

/// Show what running sandboxes use now, beside what they may.
///
/// Each sandbox is asked through pods/exec. Where a policy was changed since a run began, the ceilings shown may be
/// others than those that hold for it. Exit code 2 if a sandbox that was named does not run, or none could be asked.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  kubectl sandbox top
  kubectl sandbox top tools analyst
  watch kubectl sandbox top")]
pub struct Top {
    /// The sandboxes; all that run if absent.
    names: Vec<String>,
    /// Only sandboxes with these labels.
    #[arg(
        short = 'l',
        long,
        default_value = "",
        hide_default_value = true,
        value_name = "SELECTOR"
    )]
    selector: String,
}

impl Top {
    /// Shows.
    pub async fn run(&self, connected: &Connected) -> Result<(), Failure> {
        let sandboxes = connected.sandboxes();
        let mut running = sandboxes.list(&self.selector).await?;
        running.retain(|sandbox| {
            let phase = sandbox.status.as_ref().and_then(|status| status.phase);
            phase == Some(Phase::Running)
                && (self.names.is_empty() || self.names.contains(&sandbox.name_any()))
        });
        if running.is_empty() && self.names.is_empty() {
            anstream::eprintln!("No such sandbox runs in namespace {}.", connected.namespace);
            return Ok(());
        }
        let mut policies = BTreeMap::new();
        for sandbox in &running {
            let name = sandbox.spec.policy_ref.name.clone();
            if let Entry::Vacant(place) = policies.entry(name) {
                place.insert(ceilings::policy_of(&connected.client, sandbox).await);
            }
        }
        let asked: Vec<_> = futures::stream::iter(&running)
            .map(|sandbox| {
                let handle = sandboxes.sandbox(sandbox.name_any());
                async move { handle.live().await }
            })
            .buffered(AT_ONCE)
            .collect()
            .await;
        let mut table = Table::new(&[
            "NAME",
            "TIME",
            "CPU",
            "MEMORY",
            "DISK",
            "PROCESSES",
            "STEPS",
            "TOKENS",
            "EGRESS",
        ]);
        let mut failed = None;
        let mut rows = 0;
        for (sandbox, live) in running.iter().zip(asked) {
            let policy = policies
                .get(&sandbox.spec.policy_ref.name)
                .and_then(Option::as_ref);
            let ceilings = ceilings::ceilings(sandbox, policy);
            match live {
                Ok(live) => {
                    table.row(row(sandbox, &live, &ceilings, Timestamp::now()));
                    rows += 1;
                }
                Err(error) => {
                    let failure = Failure::from(error);
                    anstream::eprintln!("{}: {failure}", sandbox.name_any());
                    failed = Some(Failure::new("no sandbox could be asked").code(failure.code));
                }
            }
        }
        if rows > 0 {
            term::print(&table.to_string())?;
            failed = None;
        }
        match self.absent(&running) {
            absent if absent.is_empty() => failed.map_or(Ok(()), Err),
            absent => Err(Failure::new(format!(
                "does not run in namespace {}: {}",
                connected.namespace,
                absent.join(", ")
            ))
            .next(format!("kubectl sandbox list -n {}", connected.namespace))),
        }
    }

    /// The sandboxes that were named and are not among these.
    fn absent(&self, running: &[AgentSandbox]) -> Vec<&str> {
        let runs = |name: &&String| running.iter().any(|sandbox| sandbox.name_any() == **name);
        self.names
            .iter()
            .filter(|name| !runs(name))
            .map(String::as_str)
            .collect()
    }
}

#[allow(clippy::cast_precision_loss)]
fn row(sandbox: &AgentSandbox, live: &LiveState, most: &Ceilings, now: Timestamp) -> Vec<String> {
    let of = |used: Option<String>, limit: Option<String>| match (used, limit) {
        (Some(used), Some(limit)) => format!("{used}/{limit}"),
        (Some(used), None) => used,
        (None, _) => String::new(),
    };
    let bytes = |used: Option<u64>, limit: Option<u64>| of(used.map(term::bytes), limit.map(term::bytes));
    let count =
        |used: Option<u64>, limit: Option<u64>| of(used.map(|n| n.to_string()), limit.map(|n| n.to_string()));
    let passed = live.started_at_ms.map(|begun| {
        let now = u64::try_from(now.as_millisecond()).unwrap_or_default();
        term::seconds(now.saturating_sub(begun) as f64 / 1000.0)
    });
    let egress = sandbox.status.as_ref().and_then(|status| status.egress.as_ref());
    let spent = |figure: i64| u64::try_from(figure).unwrap_or_default();
    vec![
        sandbox.name_any(),
        of(
            passed,
            most.runtime_seconds.map(|seconds| term::seconds(seconds as f64)),
        ),
        live.usage
            .cpu_ms
            .map(|cpu| term::seconds(cpu.value as f64 / 1000.0))
            .unwrap_or_default(),
        bytes(live.memory_bytes, most.memory_bytes),
        bytes(live.disk_bytes, most.disk_bytes),
        count(live.processes, most.processes),
        count(live.steps.as_ref().map(|steps| steps.taken), most.steps),
        count(egress.map(|egress| spent(egress.used.tokens)), most.tokens),
        bytes(egress.map(|egress| spent(egress.used.bytes)), most.egress_bytes),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_is_used_stands_beside_what_may_be() {
        let sandbox: AgentSandbox = serde_json::from_value(
            json!({"metadata": {"name": "a"}, "spec": {"image": "x", "command": ["y"]}}),
        )
        .unwrap();
        let live: LiveState = serde_json::from_value(json!({
            "startedAtMs": 1000, "memoryBytes": 1_048_576, "processes": 3, "usage": {"cpuMs": {"v": 1500, "s": "CgroupV2"}},
        }))
        .unwrap();
        let most = Ceilings {
            runtime_seconds: Some(60),
            memory_bytes: Some(128 << 20),
            ..Ceilings::default()
        };
        let row = row(&sandbox, &live, &most, Timestamp::from_second(6).unwrap());
        assert_eq!(row, ["a", "5.0s/1m", "1.5s", "1Mi/128Mi", "", "3", "", "", ""]);
    }
}
