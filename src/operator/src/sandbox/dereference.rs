//! Gathers the world of one sandbox from the stores; the API server is asked only where a store can't know.

use std::collections::BTreeSet;

use agentsandbox_api::condition::types;
use agentsandbox_api::names;
use agentsandbox_api::policy::{SandboxPolicy, SandboxPolicySpec};
use agentsandbox_api::sandbox::AgentSandbox;
use k8s_openapi::api::core::v1::{ConfigMap, Node, PersistentVolumeClaim, Pod};
use k8s_openapi::jiff::Timestamp;
use kube::runtime::reflector::ObjectRef;
use kube::{Api, ResourceExt};

use crate::build::compare::later_difference;
use crate::build::pod::RunIdentity;
use crate::build::{self, network_policy};
use crate::conditions;
use crate::context::Context;
use crate::policy::{self, QuotaSays, owner_reference};
use crate::sandbox::pod_view::PodView;
use crate::sandbox::world::{
    Action, Creation, GatewayView, NetworkView, NodeView, PodState, PolicyView, World,
};
use crate::sandbox::{ReconcileError, decide, is_queued, queue_key, status};

/// The world of one sandbox, now.
pub async fn dereference<'a>(
    sandbox: &'a AgentSandbox,
    context: &'a Context,
    now: Timestamp,
) -> Result<World<'a>, ReconcileError> {
    let identity = RunIdentity::of(sandbox);
    let policy_object = context
        .policies
        .get(&ObjectRef::new(&identity.policy).within(&identity.namespace));
    let policy = policy_view(policy_object.as_deref(), &identity.policy, context);
    let pod = find_pod(sandbox, &identity, context).await?;
    let node = node_of(sandbox, &pod, context);
    let runtime_handler = match &policy {
        PolicyView::Valid { policy, .. } => context
            .runtime_classes
            .get(&ObjectRef::new(&policy.runtime_class))
            .map(|class| class.handler.clone()),
        _ => None,
    };
    let network = network_view(&identity, policy_object.as_deref(), context);
    let gateway = gateway_view(&policy, policy_object.as_deref(), context);
    let waits = matches!(pod, PodState::Absent) && !sandbox.status.as_ref().is_some_and(status::is_finished);
    let inputs = if waits {
        usable_inputs(sandbox, &identity, &policy, context).await?
    } else {
        Ok(())
    };
    let behind_in_queue = waits && is_behind(sandbox, &identity.namespace, context);
    let node_kernels: BTreeSet<String> = context
        .nodes
        .state()
        .iter()
        .map(|node| node_view(node).kernel)
        .filter(|kernel| !kernel.is_empty())
        .collect();
    let mut world = World {
        sandbox,
        identity,
        policy,
        runtime_handler,
        node_kernels: node_kernels.into_iter().collect(),
        pod,
        node,
        network,
        gateway,
        inputs,
        behind_in_queue,
        creation: None,
        config: &context.config,
        now,
    };
    recognise(&mut world, context).await?;
    Ok(world)
}

/// A pod that the status names is the run's. Another one was made by an operator that could not write it down any more,
/// or by somebody who wants a verdict and the policy's egress: it must be just what would be made now.
async fn recognise(world: &mut World<'_>, context: &Context) -> Result<(), ReconcileError> {
    let PodState::Present(view) = &world.pod else {
        return Ok(());
    };
    let recorded = decide::recorded(world);
    let known = recorded.and_then(|status| status.pod_uid.as_deref());
    if known == Some(view.uid.as_str()) {
        return Ok(());
    }
    if recorded.is_some_and(status::is_finished) {
        world.pod = left_over(view);
        return Ok(());
    }
    // Where the run has a pod, another one is not looked at: that would be a second run.
    if known.is_none() {
        let name = view.name.clone();
        let pods: Api<Pod> = Api::namespaced(context.client.clone(), &world.identity.namespace);
        // The stores lack what recorders are told.
        let live = context.request("get", "Pod", &name, pods.get_opt(&name)).await?;
        if let (Some(built), Some(live)) = (planned(world, context), live) {
            match later_difference(&built, &live) {
                None => return Ok(()),
                Some(path) => world.creation = Some(unlike(&name, &path)),
            }
        }
    }
    world.pod = PodState::Absent;
    world.node = node_of(world.sandbox, &world.pod, context);
    Ok(())
}

/// The pod that this run would get now; `None` while something that it needs is missing.
fn planned(world: &World<'_>, context: &Context) -> Option<Pod> {
    let mut sandbox = world.sandbox.clone();
    sandbox.spec.suspend = false;
    sandbox.spec.stop = false;
    let free = World {
        sandbox: &sandbox,
        pod: PodState::Absent,
        network: NetworkView::Closed,
        inputs: Ok(()),
        behind_in_queue: false,
        creation: None,
        ..world.clone()
    };
    match decide::decide(&free).before.as_slice() {
        [Action::CreatePod(run, isolation)] => Some(build::pod::build(
            &world.identity,
            run,
            isolation.clone(),
            &context.facts,
            &context.config,
        )),
        _ => None,
    }
}

/// What is said of a pod that has the name and the owner of a run's, and is another one.
pub(super) fn unlike(name: &str, path: &str) -> Creation {
    Creation::Conflict(format!(
        "a pod named {name} exists that is not as this run's would be ({path}); it is removed; set another runId"
    ))
}

fn left_over(view: &PodView) -> PodState {
    PodState::OfEarlierRun {
        uid: view.uid.clone(),
        name: view.name.clone(),
        deleting: view.deleted.is_some(),
        held: view.held,
    }
}

fn node_of(sandbox: &AgentSandbox, pod: &PodState, context: &Context) -> Option<NodeView> {
    match pod {
        PodState::Present(view) => view.node.as_deref(),
        _ => sandbox
            .status
            .as_ref()
            .and_then(|status| status.node_name.as_deref()),
    }
    .and_then(|name| context.nodes.get(&ObjectRef::new(name)))
    .map(|node| node_view(&node))
}

fn policy_view(policy: Option<&SandboxPolicy>, name: &str, context: &Context) -> PolicyView {
    let built_in = SandboxPolicySpec::default();
    let (spec, generation) = match policy {
        Some(policy) if policy.metadata.deletion_timestamp.is_none() => {
            match policy::quota_of(policy) {
                QuotaSays::InForce => {}
                QuotaSays::Applying => return PolicyView::Applying,
                QuotaSays::Overlaps(why) => return PolicyView::NotReady(why),
            }
            (&policy.spec, policy.metadata.generation.unwrap_or_default())
        }
        None if name == "default" => (&built_in, 0),
        Some(_) | None => return PolicyView::Missing,
    };
    match context.valid_policy(spec) {
        Ok(valid) => PolicyView::Valid {
            generation,
            policy: Box::new(valid),
        },
        Err(problems) => PolicyView::NotReady(problems.message()),
    }
}

/// The run's pod. Gone from a label-filtered watch is not gone: labels can be changed, so a pod that was there is
/// asked for by name.
async fn find_pod(
    sandbox: &AgentSandbox,
    identity: &RunIdentity,
    context: &Context,
) -> Result<PodState, ReconcileError> {
    let name = identity.pod_name();
    if let Some(pod) = context
        .pods
        .get(&ObjectRef::new(&name).within(&identity.namespace))
        && is_owned(&pod, identity)
    {
        return Ok(PodState::Present(Box::new(PodView::of(&pod, &identity.labels()))));
    }
    let status = sandbox.status.as_ref();
    let Some(known) = status.and_then(|status| status.pod_name.as_ref()) else {
        return Ok(PodState::Absent);
    };
    if *known == name {
        // Once the run's objects were removed there is nothing to ask for.
        if status.is_some_and(|s| conditions::is_true(&s.conditions, types::EXPIRED)) {
            return Ok(PodState::Absent);
        }
        let pods: Api<Pod> = Api::namespaced(context.client.clone(), &identity.namespace);
        let live = context.request("get", "Pod", &name, pods.get_opt(&name)).await?;
        return Ok(match live {
            Some(pod) if is_owned(&pod, identity) => {
                PodState::Present(Box::new(PodView::of(&pod, &identity.labels())))
            }
            _ => PodState::Absent,
        });
    }
    Ok(
        match context
            .pods
            .get(&ObjectRef::new(known).within(&identity.namespace))
        {
            Some(pod) if is_owned(&pod, identity) => left_over(&PodView::of(&pod, &identity.labels())),
            _ => PodState::Absent,
        },
    )
}

pub(super) fn is_owned(pod: &Pod, identity: &RunIdentity) -> bool {
    pod.owner_references().iter().any(|owner| {
        let group = owner.api_version.split('/').next();
        owner.uid == identity.sandbox_uid
            && owner.controller == Some(true)
            // The admission policy tells owners by these.
            && owner.kind == "AgentSandbox"
            && group == Some(names::GROUP)
    })
}

fn node_view(node: &Node) -> NodeView {
    let status = node.status.clone().unwrap_or_default();
    let info = status.node_info.unwrap_or_default();
    let ready = status
        .conditions
        .iter()
        .flatten()
        .any(|c| c.type_ == "Ready" && c.status == "True");
    NodeView {
        boot_id: info.boot_id,
        kernel: info.kernel_version,
        ready,
    }
}

fn network_view(identity: &RunIdentity, policy: Option<&SandboxPolicy>, context: &Context) -> NetworkView {
    let namespace = &identity.namespace;
    let labels = identity.labels();
    // A name alone makes nothing ours: whoever may write network policies may take it.
    let own_name = policy.map(|policy| network_policy::policy_name(&policy.name_any()));
    let mut widening: Vec<String> = context
        .network_policies
        .state()
        .iter()
        .filter(|np| np.namespace().as_deref() == Some(namespace.as_str()))
        .filter(|np| own_name.as_ref() != Some(&np.name_any()) || !network_policy::leads_to_gateway_only(np))
        .filter(|np| network_policy::widens(np, &labels))
        .map(|np| np.name_any())
        .collect();
    widening.sort();
    if !widening.is_empty() {
        return NetworkView::Widened(widening.join(", "));
    }
    let stands = |name: &str, built: &k8s_openapi::api::networking::v1::NetworkPolicy| {
        context
            .network_policies
            .get(&ObjectRef::new(name).within(namespace))
            .is_some_and(|live| {
                live.metadata.deletion_timestamp.is_none() && network_policy::stands(&live, built)
            })
    };
    let deny_all = stands(
        names::DENY_ALL_NETWORK_POLICY,
        &network_policy::deny_all(namespace),
    );
    let own = policy.is_none_or(|policy| {
        let name = policy.name_any();
        let gateway = policy::needs_gateway(policy, context);
        let built = network_policy::for_policy(namespace, &name, owner_reference(policy), gateway);
        stands(&network_policy::policy_name(&name), &built)
    });
    if deny_all && own {
        NetworkView::Closed
    } else {
        NetworkView::NotReady
    }
}

/// The egress gateway, as the policy's own status says: it was applied for this version of the policy, and serves.
fn gateway_view(view: &PolicyView, policy: Option<&SandboxPolicy>, context: &Context) -> GatewayView {
    let (PolicyView::Valid { policy: valid, .. }, Some(policy)) = (view, policy) else {
        return GatewayView::NotNeeded;
    };
    if valid.egress.is_none() {
        return GatewayView::NotNeeded;
    }
    let not_ready = |why: &str| GatewayView::NotReady(why.to_owned());
    let said = policy
        .status
        .as_ref()
        .and_then(|status| conditions::find(&status.conditions, types::GATEWAY_READY))
        .filter(|said| said.observed_generation == policy.metadata.generation);
    match said {
        None => return not_ready("it is being made"),
        Some(said) if said.status != "True" => return not_ready(&said.message),
        Some(_) => {}
    }
    let service =
        ObjectRef::new(agentsandbox_api::gateway::NAME).within(&policy.namespace().unwrap_or_default());
    context
        .gateways
        .services
        .get(&service)
        .and_then(|service| policy::gateway::addresses(&service).first().copied())
        .map_or_else(|| not_ready("its Service has no address"), GatewayView::Ready)
}

/// Whether an older sandbox of the namespace waits for the quota.
fn is_behind(sandbox: &AgentSandbox, namespace: &str, context: &Context) -> bool {
    let mine = queue_key(sandbox);
    context.sandboxes.state().iter().any(|other| {
        other.namespace().as_deref() == Some(namespace)
            && other.uid() != sandbox.uid()
            && is_queued(other)
            && queue_key(other) < mine
    })
}

/// What is wrong with the `ConfigMap`s and the claim that a sandbox names. Only their labels are asked for.
async fn usable_inputs(
    sandbox: &AgentSandbox,
    identity: &RunIdentity,
    policy: &PolicyView,
    context: &Context,
) -> Result<Result<(), String>, ReconcileError> {
    let label = names::LABEL_USABLE;
    for reference in sandbox
        .spec
        .files
        .iter()
        .flatten()
        .filter_map(|file| file.config_map_ref.as_ref())
    {
        let name = &reference.name;
        let api: Api<ConfigMap> = Api::namespaced(context.client.clone(), &identity.namespace);
        let found = context
            .request("get", "ConfigMap", name, api.get_metadata_opt(name))
            .await?;
        match found {
            None => return Ok(Err(format!("ConfigMap {name} does not exist"))),
            Some(object) if object.labels().get(label).is_none_or(|value| value != "true") => {
                return Ok(Err(format!(
                    "ConfigMap {name} does not carry the label {label}: \"true\""
                )));
            }
            Some(_) => {}
        }
    }
    let Some(claim) = sandbox
        .spec
        .workspace
        .as_ref()
        .and_then(|w| w.persistent_volume_claim.as_ref())
    else {
        return Ok(Ok(()));
    };
    let name = &claim.claim_name;
    let api: Api<PersistentVolumeClaim> = Api::namespaced(context.client.clone(), &identity.namespace);
    match context
        .request("get", "PersistentVolumeClaim", name, api.get_metadata_opt(name))
        .await?
    {
        None => return Ok(Err(format!("PersistentVolumeClaim {name} does not exist"))),
        Some(object) if object.labels().get(label).is_none_or(|value| value != "true") => {
            return Ok(Err(format!(
                "PersistentVolumeClaim {name} does not carry the label {label}: \"true\""
            )));
        }
        Some(_) => {}
    }
    let shared = matches!(policy, PolicyView::Valid { policy, .. } if policy.claims_shared);
    let pods = context.pods.state();
    let here = pods
        .iter()
        .filter(|pod| pod.namespace().as_deref() == Some(identity.namespace.as_str()))
        .map(|pod| &**pod);
    Ok(match claim_user(name, here) {
        Some(user) if !shared => Err(claim_in_use(name, &user)),
        _ => Ok(()),
    })
}

/// The live run, among pods of a namespace, that uses a claim.
pub(super) fn claim_user<'a>(claim: &str, pods: impl IntoIterator<Item = &'a Pod>) -> Option<String> {
    let uses = |pod: &Pod| {
        pod.spec
            .iter()
            .flat_map(|spec| spec.volumes.iter().flatten())
            .filter_map(|volume| volume.persistent_volume_claim.as_ref())
            .any(|source| source.claim_name == claim)
    };
    pods.into_iter()
        .find(|pod| uses(pod) && !PodView::of(pod, pod.labels()).has_ended())
        .map(ResourceExt::name_any)
}

pub(super) fn claim_in_use(claim: &str, user: &str) -> String {
    format!(
        "PersistentVolumeClaim {claim} is in use by the live run of pod {user}, and the policy does not share claims"
    )
}

#[cfg(test)]
#[path = "dereference_tests.rs"]
mod tests;
