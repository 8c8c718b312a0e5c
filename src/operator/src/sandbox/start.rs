//! What should happen with a sandbox that has no pod and never had one.

use std::time::Duration;

use agentsandbox_api::condition::reasons;
use agentsandbox_api::isolation::IsolationRequirement;
use agentsandbox_api::reason::Reason;
use agentsandbox_api::sandbox::AgentSandboxStatus;
use k8s_openapi::jiff::SignedDuration;

use crate::sandbox::admit::{Rejection, admit};
use crate::sandbox::decide::{WAITING_RECHECK, finish, recorded, stay, widened_message};
use crate::sandbox::egress;
use crate::sandbox::verdict::Verdict;
use crate::sandbox::world::{Action, Creation, Decision, GatewayView, NetworkView, PolicyView, Stage, World};

/// How long a policy that is not there may still be on its way, in seconds: one `kubectl apply` brings both.
const POLICY_PATIENCE_SECONDS: i64 = 30;
/// How long nothing is said of a new sandbox of which the policy or its network policies may still be on their way:
/// one `kubectl apply` brings both, and most often the next look finds them.
const SETTLING: SignedDuration = SignedDuration::from_secs(1);
/// How often a settling sandbox is looked at.
const SETTLING_RECHECK: Duration = Duration::from_millis(250);
pub(super) fn without_pod(world: &World<'_>) -> Decision {
    let spec = &world.sandbox.spec;
    if spec.stop {
        return finish(
            world,
            Verdict::of_operator(
                Reason::Stopped,
                "spec.stop was set before the run began",
                world.now,
            ),
        );
    }
    let policy = match &world.policy {
        PolicyView::Missing => {
            let age = world
                .sandbox
                .metadata
                .creation_timestamp
                .as_ref()
                .map(|time| world.now.duration_since(time.0).as_secs());
            let stalled = age.is_none_or(|age| age >= POLICY_PATIENCE_SECONDS);
            let message = format!(
                "SandboxPolicy {} does not exist in this namespace",
                world.identity.policy
            );
            return wait(world, reasons::POLICY_NOT_FOUND, message, stalled);
        }
        PolicyView::Applying => {
            let message = format!(
                "the quota of SandboxPolicy {} does not stand yet",
                world.identity.policy
            );
            return wait(world, reasons::POLICY_NOT_READY, message, false);
        }
        PolicyView::NotReady(why) => {
            let message = format!("SandboxPolicy {} is not ready: {why}", world.identity.policy);
            return wait(world, reasons::POLICY_NOT_READY, message, true);
        }
        PolicyView::Valid { policy, .. } => policy,
    };
    let mut run = match admit(spec, policy) {
        Ok(run) => run,
        Err(rejection) => return reject(world, &rejection),
    };
    let Some(handler) = &world.runtime_handler else {
        let message = format!(
            "RuntimeClass {} does not exist in this cluster",
            run.runtime_class
        );
        return wait(world, reasons::RUNTIME_CLASS_NOT_FOUND, message, true);
    };
    if let Err(why) = &world.inputs {
        return wait(world, reasons::INPUT_NOT_USABLE, why.clone(), true);
    }
    match &world.network {
        NetworkView::Widened(by) => return wait(world, reasons::NETWORK_WIDENED, widened_message(by), true),
        NetworkView::NotReady => {
            let message = "the network policies do not stand yet".to_owned();
            return wait(world, reasons::NETWORK_NOT_READY, message, false);
        }
        NetworkView::Closed => {}
    }
    match &world.gateway {
        GatewayView::NotNeeded => {}
        GatewayView::NotReady(why) => {
            let message = format!("the egress gateway of this namespace is not ready: {why}");
            return wait(world, reasons::GATEWAY_NOT_READY, message, false);
        }
        GatewayView::Ready(address) => run.gateway = Some(egress::access(*address, policy)),
    }
    if let Some(creation) = &world.creation {
        return refused(world, creation);
    }
    if spec.suspend {
        return hold(world, reasons::SUSPENDED, "spec.suspend is set".to_owned());
    }
    if world.behind_in_queue {
        return hold(
            world,
            reasons::QUOTA_EXCEEDED,
            "older sandboxes of this namespace wait for the quota".to_owned(),
        );
    }
    let isolation = IsolationRequirement {
        minimum: run.minimum,
        vm_handler: world.config.is_vm_handler(handler),
        node_kernels: world.node_kernels.clone(),
    };
    Decision {
        before: vec![Action::CreatePod(Box::new(run), isolation)],
        status: recorded(world).cloned().unwrap_or_default(),
        after: Vec::new(),
        wake: None,
    }
}

/// The API server did not make the pod that was decided on.
fn refused(world: &World<'_>, creation: &Creation) -> Decision {
    match creation {
        Creation::Conflict(why) => finish(
            world,
            Verdict::of_operator(Reason::PodConflict, why.clone(), world.now),
        ),
        Creation::Mutated(why) => finish(
            world,
            Verdict::of_operator(Reason::PodMutated, why.clone(), world.now),
        ),
        Creation::QuotaExceeded(why) => hold(world, reasons::QUOTA_EXCEEDED, why.clone()),
        Creation::AboveQuota(why) => hold(
            world,
            reasons::QUOTA_TOO_SMALL,
            format!("this sandbox alone is above the namespace's quota: {why}"),
        ),
        Creation::Refused(why) => hold(world, reasons::POD_REFUSED, why.clone()),
        Creation::NamespaceTerminating => hold(
            world,
            reasons::NAMESPACE_TERMINATING,
            "the namespace is being deleted".to_owned(),
        ),
    }
}

fn reject(world: &World<'_>, rejection: &Rejection) -> Decision {
    finish(
        world,
        Verdict::of_operator(Reason::PolicyRejected, rejection.to_string(), world.now),
    )
}

fn wait(world: &World<'_>, reason: &'static str, message: String, stalled: bool) -> Decision {
    let created = world.sandbox.metadata.creation_timestamp.as_ref();
    let settles = !stalled
        && world.sandbox.status.is_none()
        && created.is_some_and(|created| world.now.duration_since(created.0) < SETTLING);
    if settles {
        return Decision {
            before: Vec::new(),
            status: AgentSandboxStatus::default(),
            after: Vec::new(),
            wake: Some(SETTLING_RECHECK),
        };
    }
    stay(
        world,
        &Stage::Waiting {
            reason,
            message,
            stalled,
        },
        Vec::new(),
        Some(WAITING_RECHECK),
    )
}

fn hold(world: &World<'_>, reason: &'static str, message: String) -> Decision {
    stay(
        world,
        &Stage::Held { reason, message },
        Vec::new(),
        Some(WAITING_RECHECK),
    )
}
