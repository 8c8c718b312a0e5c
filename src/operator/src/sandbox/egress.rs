//! What the egress gateway says of a run, and what follows from it.

use std::net::IpAddr;

use agentsandbox_api::condition::types;
use agentsandbox_api::gateway::{BudgetExhausted, GatewayAccess};
use agentsandbox_api::reason::Reason;
use agentsandbox_api::sandbox::{AgentSandboxStatus, EgressStatus};
use k8s_openapi::jiff::SignedDuration;

use crate::conditions;
use crate::policy::valid::ValidPolicy;
use crate::sandbox::pod_view::PodView;
use crate::sandbox::world::World;

/// How long after the verdict the egress gateway's final figures are still added to the usage.
const SETTLEMENT: SignedDuration = SignedDuration::from_secs(10);

/// The way to the gateway at this address, for a run under this policy.
pub(super) fn access(address: IpAddr, policy: &ValidPolicy) -> GatewayAccess {
    let egress = policy.egress.as_ref();
    GatewayAccess {
        address: address.to_string(),
        models: egress.map(|egress| egress.models.clone()).unwrap_or_default(),
    }
}

/// Adds the egress gateway's figures to the usage, once they are final. They come after the pod's end, so most often
/// after the verdict; those that come late are left where the gateway wrote them.
pub(super) fn fold(world: &World<'_>, status: &mut AgentSandboxStatus) {
    let in_time = conditions::find(&status.conditions, types::FINISHED)
        .is_some_and(|finished| world.now.duration_since(finished.last_transition_time.0) <= SETTLEMENT);
    let own = status
        .egress
        .as_ref()
        .filter(|egress| egress.settled && egress.pod_uid.is_some() && egress.pod_uid == status.pod_uid);
    if let Some(egress) = own.filter(|_| in_time) {
        let usage = status.usage.get_or_insert_default();
        if usage.model_requests.is_none() {
            usage.model_requests = Some(egress.used.model_requests);
            // Where the gateway counts a session's steps, none is taken that it has not charged: its figure holds all
            // that the record has, and no guest has written it. Where it does not, it has charged none.
            if egress.used.steps > 0 || usage.steps.is_none() {
                usage.steps = Some(egress.used.steps);
            }
            usage.input_tokens = Some(egress.input_tokens);
            usage.output_tokens = Some(egress.output_tokens);
            usage.egress_allowed = Some(egress.allowed);
            usage.egress_denied = Some(egress.denied);
        }
    }
}

/// What the egress gateway says of this pod's run.
fn egress_of<'a>(world: &World<'a>, pod: &PodView) -> Option<&'a EgressStatus> {
    let egress = world.sandbox.status.as_ref()?.egress.as_ref()?;
    (egress.pod_uid.as_deref() == Some(pod.uid.as_str())).then_some(egress)
}

/// The budget that this pod's run has used up, if the egress gateway says so. It may name no other reason.
pub(super) fn exhausted(world: &World<'_>, pod: &PodView) -> Option<(Reason, String)> {
    let exhausted = egress_of(world, pod)?.exhausted?;
    let message = BudgetExhausted { exhausted }.message()?;
    Some((exhausted, message))
}
