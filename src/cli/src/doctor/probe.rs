//! The proof: a sandbox, which says itself what held.

use std::time::{Duration, Instant};

use agentsandbox_api::run::{Expectation, ProbeOutcome};
use agentsandbox_api::sandbox::{AgentSandbox, AgentSandboxStatus, Phase};
use kube::api::{DeleteParams, PostParams};
use kube::{Api, ResourceExt};
use serde_json::json;

use super::{Check, Doctor, cluster};
use crate::connection::Connected;

/// Between two looks at the sandbox.
const LOOK: Duration = Duration::from_millis(500);
/// Wall-clock limit of the sandbox's own command, in seconds.
const RUNTIME_SECONDS: u32 = 30;

/// Runs a sandbox under the policy, reads what it proves, and removes it.
pub async fn prove(doctor: &Doctor, connected: &Connected) -> Vec<Check> {
    const NAME: &str = "proof";
    let client = &connected.client;
    let (image, command) = match (&doctor.image, &doctor.command) {
        (Some(image), Some(command)) => (
            image.clone(),
            command.split_whitespace().map(str::to_owned).collect::<Vec<_>>(),
        ),
        _ => match cluster::supervisor_image(client, &doctor.operator_namespace).await {
            Ok(Some(image)) => (
                image,
                vec!["/sandbox-supervisor".to_owned(), "--version".to_owned()],
            ),
            Ok(None) => {
                let advice = "name an image and its command with --image and --command";
                return vec![Check::failed(
                    NAME,
                    "the operator does not say which image the supervisor is in",
                    advice,
                )];
            }
            Err(kube::Error::Api(status)) if status.is_forbidden() => {
                let advice = "name an image and its command with --image and --command";
                let found = "not tried: the supervisor's image stands in the operator's Deployment, which you may not read";
                return vec![Check::warning(NAME, found, advice)];
            }
            Err(error) => return vec![Check::unseen(NAME, &error)],
        },
    };
    let sandboxes = Api::<AgentSandbox>::namespaced(client.clone(), &connected.namespace);
    let wanted = json!({
        "apiVersion": "agentsandbox.dev/v1alpha1",
        "kind": "AgentSandbox",
        "metadata": {"generateName": "doctor-"},
        "spec": {
            "policyRef": {"name": doctor.policy},
            "image": image,
            "command": command,
            "limits": {"runtimeSeconds": RUNTIME_SECONDS},
        },
    });
    let made = match serde_json::from_value(wanted) {
        Ok(sandbox) => sandboxes.create(&PostParams::default(), &sandbox).await,
        Err(error) => return vec![Check::failed(NAME, error.to_string(), "see the error")],
    };
    let name = match made {
        Ok(sandbox) => sandbox.name_any(),
        Err(error) => return vec![Check::failed(NAME, error.to_string(), "see the error")],
    };
    let status = finished(&sandboxes, &name, Duration::from_secs(doctor.timeout)).await;
    let removed = sandboxes.delete(&name, &DeleteParams::background()).await;
    let mut checks = match status {
        Ok(status) => judge(&status),
        Err(error) => vec![Check::failed(NAME, error.to_string(), "see the error")],
    };
    if let Err(error) = removed {
        checks.push(Check::warning(
            "clean-up",
            format!("AgentSandbox {name} could not be deleted: {error}"),
            "delete it by hand",
        ));
    }
    checks
}

/// The sandbox's status once it has ended, or when the wait is over.
async fn finished(
    sandboxes: &Api<AgentSandbox>,
    name: &str,
    patience: Duration,
) -> Result<AgentSandboxStatus, kube::Error> {
    let begun = Instant::now();
    loop {
        let status = sandboxes.get(name).await?.status.unwrap_or_default();
        let ended = matches!(status.phase, Some(Phase::Succeeded | Phase::Failed));
        if ended || begun.elapsed() > patience {
            return Ok(status);
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// What a sandbox's status proves.
fn judge(status: &AgentSandboxStatus) -> Vec<Check> {
    let result = status.result.clone().unwrap_or_default();
    let Some(reason) = result.reason else {
        let phase = status
            .phase
            .map_or_else(|| "no phase".to_owned(), |phase| phase.to_string());
        let message = status
            .conditions
            .iter()
            .rev()
            .find(|condition| condition.status != "True" && !condition.message.is_empty())
            .map(|condition| format!(": {}", condition.message))
            .unwrap_or_default();
        return vec![Check::failed(
            "proof",
            format!("the sandbox did not end in time ({phase}{message})"),
            "see whether nodes have room, and wait longer with --timeout",
        )];
    };
    let mut checks = vec![if reason.is_success() {
        Check::ok("proof", "a sandbox ran to its end")
    } else {
        let message = result.message.unwrap_or_default();
        Check::failed(
            "proof",
            format!("the sandbox ended with {reason}: {message}"),
            "docs/troubleshooting.md explains each reason",
        )
    }];
    if let Some(level) = status.isolation.as_ref().and_then(|isolation| isolation.level) {
        checks.push(Check::ok(
            "isolation",
            format!("{level}, observed inside and checked against the node"),
        ));
    }
    if let Some(network) = &status.network {
        let open: Vec<String> = network
            .probes
            .iter()
            .filter(|(name, outcome)| !name.starts_with("gateway/") && is_open(**outcome))
            .map(|(name, outcome)| format!("{name} ({outcome:?})"))
            .collect();
        checks.push(match (open.is_empty(), network.isolated_at.is_some()) {
            (true, true) => Check::ok(
                "network",
                format!(
                    "{} destinations tried from inside, closed as they must be",
                    network.probes.len()
                ),
            ),
            (true, false) => Check::failed(
                "network",
                "not proven: the sandbox ended before all destinations were seen closed",
                "mend first what ended it, then run this again",
            ),
            (false, _) => Check::failed(
                "network",
                format!("reachable from inside: {}", open.join(", ")),
                "this cluster does not enforce NetworkPolicies: install a network plugin that does",
            ),
        });
    }
    checks
}

fn is_open(outcome: ProbeOutcome) -> bool {
    !outcome.meets(Expectation::Closed)
}

#[cfg(test)]
mod tests {
    use super::super::Outcome;
    use super::*;

    fn status(value: serde_json::Value) -> AgentSandboxStatus {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn a_run_that_ended_well_proves_isolation_and_network() {
        let checks = judge(&status(json!({
            "phase": "Succeeded", "result": {"reason": "Completed", "exitCode": 0},
            "isolation": {"level": "UserspaceKernel"},
            "network": {"isolatedAt": "2026-01-01T00:00:00Z", "rounds": 1,
                        "probes": {"apiserver/TCP": "Timeout", "gateway/TCP": "Connected"}},
        })));
        assert_eq!(checks.len(), 3);
        assert!(
            checks.iter().all(|check| check.outcome == Outcome::Ok),
            "{checks:?}"
        );
    }

    #[test]
    fn an_open_destination_a_bad_end_and_no_end_fail() {
        let open = judge(&status(json!({
            "phase": "Failed", "result": {"reason": "NetworkNotIsolated", "message": "not closed"},
            "network": {"rounds": 9, "probes": {"apiserver/TCP": "Connected"}},
        })));
        let failed = |checks: &[Check]| {
            checks
                .iter()
                .filter(|check| check.outcome == Outcome::Failed)
                .count()
        };
        assert_eq!(failed(&open), 2, "{open:?}");
        assert!(open[1].found.contains("apiserver/TCP (Connected)"));
        assert!(open[1].advice.as_ref().unwrap().contains("does not enforce"));
        let early = judge(&status(json!({
            "phase": "Failed", "result": {"reason": "SandboxLost", "message": "gone"},
            "network": {"rounds": 1, "probes": {"apiserver/TCP": "Timeout"}},
        })));
        assert_eq!(failed(&early), 2, "{early:?}");
        assert!(early[1].found.starts_with("not proven"), "{early:?}");
        let waiting = judge(&status(json!({"phase": "Queued"})));
        assert_eq!(failed(&waiting), 1);
        assert!(waiting[0].found.contains("Queued"));
    }
}
