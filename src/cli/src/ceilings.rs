//! What a sandbox may use: its own word, and its policy's where it is silent.

use agentsandbox_api::policy::{SandboxPolicy, SandboxPolicySpec};
use agentsandbox_api::sandbox::AgentSandbox;
use kube::{Api, Client};
use sandbox_operator::cluster::ClusterAddresses;
use sandbox_operator::policy::valid::{ValidPolicy, validate};
use sandbox_operator::quantity;
use sandbox_operator::sandbox::admit::admit;

use crate::policy_check;

/// Ceilings of one sandbox. What is not known is absent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ceilings {
    /// Wall-clock time, in seconds.
    pub runtime_seconds: Option<u64>,
    /// Thousandths of a CPU.
    pub cpu_millis: Option<u64>,
    /// Memory, in bytes.
    pub memory_bytes: Option<u64>,
    /// Disk, in bytes.
    pub disk_bytes: Option<u64>,
    /// Processes at once.
    pub processes: Option<u64>,
    /// Model tokens.
    pub tokens: Option<u64>,
    /// Model requests.
    pub model_requests: Option<u64>,
    /// Steps.
    pub steps: Option<u64>,
    /// Bytes through the gateway.
    pub egress_bytes: Option<u64>,
}

/// The policy that a sandbox names, as it stands now; `None` if it is not there, or may not be read.
pub async fn policy_of(client: &Client, sandbox: &AgentSandbox) -> Option<SandboxPolicySpec> {
    let namespace = sandbox.metadata.namespace.as_deref()?;
    let name = &sandbox.spec.policy_ref.name;
    match Api::<SandboxPolicy>::namespaced(client.clone(), namespace)
        .get_opt(name)
        .await
    {
        Ok(Some(policy)) => Some(policy.spec),
        // Where there is none of this name, the built-in policy holds.
        Ok(None) if name == "default" => Some(SandboxPolicySpec::default()),
        Ok(None) | Err(_) => None,
    }
}

/// Ceilings under a policy as it stands now. Where the policy, or the operator's own defaults, were changed since the
/// run began, they may be others than those that held.
pub fn ceilings(sandbox: &AgentSandbox, policy: Option<&SandboxPolicySpec>) -> Ceilings {
    let valid: Option<ValidPolicy> = policy.and_then(|policy| {
        let config = policy_check::config("").ok()?;
        validate(policy, &config, &ClusterAddresses::default()).ok()
    });
    let own = own(sandbox);
    let Some(valid) = valid else { return own };
    let budget = |own: Option<u64>, default: Option<i64>, maximum: Option<i64>| {
        own.or(default
            .or(maximum)
            .map(|most| u64::try_from(most).unwrap_or_default()))
    };
    let (default, most) = (valid.default_budgets, valid.maximum_budgets);
    let figures = admit(&sandbox.spec, &valid).map_or(valid.defaults, |run| run.figures);
    Ceilings {
        runtime_seconds: own.runtime_seconds.or(Some(figures.runtime_seconds.into())),
        cpu_millis: own.cpu_millis.or(Some(figures.cpu_millis)),
        memory_bytes: own.memory_bytes.or(Some(figures.memory_bytes)),
        disk_bytes: own.disk_bytes.or(Some(figures.disk_bytes)),
        processes: own.processes.or(Some(figures.processes.into())),
        tokens: budget(own.tokens, default.tokens, most.tokens),
        model_requests: budget(own.model_requests, default.model_requests, most.model_requests),
        steps: budget(own.steps, default.steps, most.steps),
        egress_bytes: budget(own.egress_bytes, default.egress_bytes, most.egress_bytes),
    }
}

/// What the sandbox says itself.
fn own(sandbox: &AgentSandbox) -> Ceilings {
    let resources = sandbox.spec.resources.clone().unwrap_or_default();
    let limits = sandbox.spec.limits.clone().unwrap_or_default();
    let whole = |figure: Option<i64>| figure.and_then(|figure| u64::try_from(figure).ok());
    let bytes = |amount: Option<agentsandbox_api::sandbox::Quantity>| {
        amount.and_then(|amount| quantity::bytes(&amount).ok())
    };
    Ceilings {
        runtime_seconds: whole(limits.runtime_seconds.map(Into::into)),
        cpu_millis: resources.cpu.and_then(|cpu| quantity::cpu_millis(&cpu).ok()),
        memory_bytes: bytes(resources.memory),
        disk_bytes: bytes(resources.ephemeral_storage),
        processes: whole(resources.processes.map(Into::into)),
        tokens: whole(limits.tokens),
        model_requests: whole(limits.model_requests),
        steps: whole(limits.steps),
        egress_bytes: whole(limits.egress_bytes),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_sandboxs_word_comes_first_then_the_policys() {
        let sandbox: AgentSandbox = serde_json::from_value(json!({"metadata": {"name": "a"}, "spec": {
            "image": "x", "command": ["y"], "resources": {"memory": "64Mi"}, "limits": {"steps": 5},
        }}))
        .unwrap();
        let policy: SandboxPolicySpec = serde_json::from_value(json!({
            "isolation": {"runtimeClassName": "kata"},
            "defaults": {"resources": {"memory": "128Mi", "processes": 7}, "limits": {"runtimeSeconds": 30, "tokens": 9}},
            "maximum": {"limits": {"steps": 50, "modelRequests": 3}},
        }))
        .unwrap();
        let found = ceilings(&sandbox, Some(&policy));
        assert_eq!((found.memory_bytes, found.steps), (Some(64 << 20), Some(5)));
        assert_eq!((found.processes, found.runtime_seconds), (Some(7), Some(30)));
        assert_eq!(
            (found.tokens, found.model_requests, found.egress_bytes),
            (Some(9), Some(3), None)
        );
        let alone = ceilings(&sandbox, None);
        assert_eq!((alone.memory_bytes, alone.processes), (Some(64 << 20), None));
    }
}
