//! The controller of `SandboxPolicy`: network policies first, then the egress gateway, the quota, and status.

pub mod figures;
pub mod gateway;
pub mod models;
mod quota;
pub mod valid;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use agentsandbox_api::condition::{reasons, types};
use agentsandbox_api::names;
use agentsandbox_api::policy::{SandboxCounts, SandboxPolicy, SandboxPolicyStatus};
use agentsandbox_api::sandbox::{AgentSandbox, Phase};
use futures::StreamExt;
use futures::channel::mpsc::UnboundedReceiver;
use futures::stream::BoxStream;
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use k8s_openapi::jiff::Timestamp;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use kube::runtime::Controller;
use kube::runtime::controller::{self, Action as Requeue};
use kube::runtime::reflector::ObjectRef;
use kube::{Api, Resource, ResourceExt};
use tracing::{debug, instrument, warn};

use crate::build::{network_policy, resource_quota};
use crate::conditions::{self, Say};
use crate::context::Context;
use crate::jitter::jittered;
use crate::reconcile::{Class, Panicked, measured};
use crate::request::RequestError;
use crate::sandbox::decide::is_gitops_tracked;
use crate::sandbox::status::is_finished;

/// How often the counts of sandboxes are brought up to date at most: they must not cost writes per run.
const COUNT_INTERVAL: Duration = Duration::from_secs(30);

/// Why a reconciliation has to be tried again.
#[derive(Debug, thiserror::Error)]
pub enum ReconcileError {
    /// A request failed.
    #[error(transparent)]
    Request(#[from] RequestError),
    /// It panicked.
    #[error(transparent)]
    Panicked(#[from] Panicked),
}

impl Class for ReconcileError {
    fn class(&self) -> &'static str {
        match self {
            Self::Request(error) if error.is_conflict() => "conflict",
            Self::Request(_) => "request",
            Self::Panicked(_) => "panic",
        }
    }
}

/// Runs the controller until it is told to stop.
pub async fn controller(
    context: Arc<Context>,
    policies: BoxStream<'static, SandboxPolicy>,
    related: UnboundedReceiver<ObjectRef<SandboxPolicy>>,
    stop: impl Future<Output = ()> + Send + Sync + 'static,
) {
    let store = context.policies.clone();
    // Many sandboxes end at once; one look at their policy serves them all.
    let config = controller::Config::default()
        .concurrency(4)
        .debounce(Duration::from_millis(50));
    Controller::for_stream(policies.map(Ok), store)
        .reconcile_on(related)
        .with_config(config)
        .graceful_shutdown_on(stop)
        .run(reconcile, retry, context)
        .for_each(|result| {
            if let Err(error) = result {
                debug!(%error, "policy controller");
            }
            std::future::ready(())
        })
        .await;
}

#[allow(clippy::needless_pass_by_value)] // the signature is kube's
fn retry(_: Arc<SandboxPolicy>, error: &ReconcileError, _: Arc<Context>) -> Requeue {
    match error {
        // The policy goes with it.
        ReconcileError::Request(request) if request.is_namespace_terminating() => {
            return Requeue::requeue(jittered(COUNT_INTERVAL));
        }
        ReconcileError::Request(request) if request.is_conflict() => {}
        error => warn!(%error, "trying again"),
    }
    Requeue::requeue(jittered(Duration::from_secs(2)))
}

#[instrument(skip_all, fields(policy = %policy.name_any(), namespace = policy.namespace()))]
async fn reconcile(policy: Arc<SandboxPolicy>, context: Arc<Context>) -> Result<Requeue, ReconcileError> {
    context.controllers_synced().await;
    let work = Box::pin(run_once(&policy, &context));
    measured(&context.metrics, "SandboxPolicy", work).await
}

async fn run_once(policy: &SandboxPolicy, context: &Context) -> Result<Requeue, ReconcileError> {
    if policy.metadata.deletion_timestamp.is_some() {
        return Ok(Requeue::await_change());
    }
    let namespace = policy.namespace().unwrap_or_default();
    let name = policy.name_any();
    let owner = owner_reference(policy);
    apply_network_policy(&network_policy::deny_all(&namespace), context).await?;
    let own = network_policy::for_policy(&namespace, &name, owner.clone(), needs_gateway(policy, context));
    apply_network_policy(&own, context).await?;
    let gateway = gateway::ensure(&namespace, context).await?;
    let overlap = quota::overlapping(policy, context);
    quota::apply(policy, overlap.is_none(), owner, context).await?;
    prune_finished(policy, context).await?;

    let now = Timestamp::now();
    let mut status = policy.status.clone().unwrap_or_default();
    compose(&mut status, policy, overlap.as_deref(), &gateway, context, now);
    report(policy, &status, context).await?;
    Ok(Requeue::requeue(jittered(COUNT_INTERVAL)))
}

/// The policy as owner of what it needs; the garbage collector removes all of that with it.
#[must_use]
pub fn owner_reference(policy: &SandboxPolicy) -> OwnerReference {
    OwnerReference {
        block_owner_deletion: Some(false),
        ..policy.controller_owner_ref(&()).unwrap_or_default()
    }
}

/// Whether the sandboxes of a policy reach the egress gateway. Rules that are wrong open nothing.
#[must_use]
pub fn needs_gateway(policy: &SandboxPolicy, context: &Context) -> bool {
    matches!(context.valid_egress(&policy.spec), Ok(Some(_)))
}

/// What a policy's status says of its quota.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum QuotaSays {
    /// The `ResourceQuota` stands, or none is needed.
    InForce,
    /// It does not stand yet.
    Applying,
    /// It can't be kept apart from another policy's; the message.
    Overlaps(String),
}

/// What a policy's status says of its quota, of the spec that it has now.
#[must_use]
pub fn quota_of(policy: &SandboxPolicy) -> QuotaSays {
    let said = policy
        .status
        .as_ref()
        .and_then(|status| conditions::find(&status.conditions, types::QUOTA_READY))
        .filter(|said| said.observed_generation == policy.metadata.generation);
    match said {
        Some(said) if said.status == "False" => QuotaSays::Overlaps(said.message.clone()),
        None if policy.spec.quota.as_ref().is_some_and(resource_quota::is_needed) => QuotaSays::Applying,
        Some(_) | None => QuotaSays::InForce,
    }
}

fn compose(
    status: &mut SandboxPolicyStatus,
    policy: &SandboxPolicy,
    overlap: Option<&str>,
    gateway: &gateway::State,
    context: &Context,
    now: Timestamp,
) {
    let generation = policy.metadata.generation;
    let mut say =
        |type_: &str, say: &Say<'_>| conditions::set(&mut status.conditions, type_, say, generation, now);
    say(
        types::NETWORK_READY,
        &Say::yes(
            reasons::IN_FORCE,
            "sandbox pods of this namespace are denied all traffic, but for that to the egress gateway where their policy needs it",
        ),
    );
    let overlap_message = overlap.map(|other| {
        format!("SandboxPolicy {other} of this namespace has a quota already, and a ResourceQuota can't tell the pods of two policies apart: give this policy a namespace of its own, or no quota")
    });
    let quota = quota_says(policy, overlap_message.as_deref());
    say(types::QUOTA_READY, &quota);
    let problems = context.valid_policy(&policy.spec).err().unwrap_or_default();
    let message = problems.message();
    let egress_problems = context
        .valid_egress(&policy.spec)
        .err()
        .unwrap_or_default()
        .join("; ");
    let gateway = gateway_says(policy, &egress_problems, gateway);
    say(types::GATEWAY_READY, &gateway);
    let ready = if !problems.invalid.is_empty() {
        Say::no(reasons::INVALID, &message)
    } else if quota.status == "False" {
        quota
    } else if gateway.status == "False" {
        gateway
    } else {
        Say::yes(reasons::IN_FORCE, "the policy is enforced")
    };
    say(types::READY, &ready);
    // What is on its way comes by itself.
    let stalled = if ready.status == "False" && ready.reason != reasons::APPLYING {
        Say::yes(ready.reason, ready.message)
    } else {
        Say::no(reasons::IN_FORCE, "")
    };
    say(types::STALLED, &stalled);
    status.observed_generation = generation;
    status.sandboxes = Some(counts(policy, context));
}

fn quota_says<'a>(policy: &SandboxPolicy, overlap: Option<&'a str>) -> Say<'a> {
    match (overlap, policy.spec.quota.as_ref()) {
        (Some(message), _) => Say::no(reasons::QUOTA_OVERLAPS, message),
        (None, Some(quota)) if resource_quota::is_needed(quota) => Say::yes(
            reasons::IN_FORCE,
            "a ResourceQuota counts every sandbox of this namespace",
        ),
        (None, Some(_)) => Say::yes(
            reasons::NOT_REQUESTED,
            "the quota bounds only what the egress gateway counts",
        ),
        (None, None) => Say::yes(reasons::NOT_REQUESTED, "the policy sets no quota"),
    }
}

fn gateway_says<'a>(policy: &SandboxPolicy, problems: &'a str, state: &'a gateway::State) -> Say<'a> {
    if !valid::asks_for_egress(&policy.spec) {
        return Say::yes(
            reasons::NOT_REQUESTED,
            "the policy allows no egress, so no gateway is needed",
        );
    }
    if !problems.is_empty() {
        return Say::no(reasons::INVALID, problems);
    }
    match state {
        gateway::State::InForce => Say::yes(reasons::IN_FORCE, "the egress gateway serves this policy"),
        gateway::State::Applying(why) => Say::no(reasons::APPLYING, why),
        gateway::State::Failed(why) => Say::no(reasons::APPLY_FAILED, why),
        // Another policy's edit came between; the next look tells.
        gateway::State::NotRequested => Say::no(reasons::APPLYING, "the egress gateway is not made yet"),
    }
}

fn counts(policy: &SandboxPolicy, context: &Context) -> SandboxCounts {
    let mut counts = SandboxCounts::default();
    for sandbox in of_policy(policy, context) {
        match sandbox.status.as_ref().and_then(|status| status.phase) {
            None | Some(Phase::Pending | Phase::Suspended | Phase::Queued) => counts.pending += 1,
            Some(Phase::Starting | Phase::Running) => counts.running += 1,
            Some(Phase::Succeeded) => counts.succeeded += 1,
            Some(Phase::Failed) => counts.failed += 1,
        }
    }
    counts
}

fn of_policy(policy: &SandboxPolicy, context: &Context) -> Vec<Arc<AgentSandbox>> {
    let (name, namespace) = (policy.name_any(), policy.namespace());
    let mine = |sandbox: &Arc<AgentSandbox>| {
        sandbox.namespace() == namespace && sandbox.spec.policy_ref.name == name
    };
    context.sandboxes.state().into_iter().filter(mine).collect()
}

/// Deletes the oldest finished sandboxes above `cleanup.keepFinished`; what a GitOps tool tracks stays.
async fn prune_finished(policy: &SandboxPolicy, context: &Context) -> Result<(), RequestError> {
    let Some(keep) = policy
        .spec
        .cleanup
        .keep_finished
        .and_then(|n| usize::try_from(n).ok())
    else {
        return Ok(());
    };
    let mut finished: Vec<_> = of_policy(policy, context)
        .into_iter()
        .filter(|sandbox| {
            sandbox.status.as_ref().is_some_and(is_finished) && sandbox.metadata.deletion_timestamp.is_none()
        })
        .filter(|sandbox| !is_gitops_tracked(sandbox))
        .collect();
    finished.sort_by_key(|sandbox| {
        std::cmp::Reverse(
            sandbox
                .status
                .as_ref()
                .and_then(|status| status.completion_time.as_ref().map(|t| t.0)),
        )
    });
    for sandbox in finished.into_iter().skip(keep) {
        let (name, namespace) = (sandbox.name_any(), sandbox.namespace().unwrap_or_default());
        let api: Api<AgentSandbox> = Api::namespaced(context.client.clone(), &namespace);
        let parameters = DeleteParams::background().preconditions(Preconditions {
            uid: sandbox.uid(),
            resource_version: None,
        });
        match context
            .request("delete", "AgentSandbox", &name, api.delete(&name, &parameters))
            .await
        {
            Err(error) if !error.is_not_found() && !error.is_conflict() => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

async fn report(
    policy: &SandboxPolicy,
    status: &SandboxPolicyStatus,
    context: &Context,
) -> Result<(), RequestError> {
    let old = policy.status.clone().unwrap_or_default();
    if old == *status {
        return Ok(());
    }
    let name = policy.name_any();
    let api: Api<SandboxPolicy> =
        Api::namespaced(context.client.clone(), &policy.namespace().unwrap_or_default());
    let mut object = SandboxPolicy {
        status: Some(status.clone()),
        ..policy.clone()
    };
    object.metadata.managed_fields = None;
    let parameters = PostParams {
        field_manager: Some(names::MANAGER.to_owned()),
        ..PostParams::default()
    };
    context
        .request(
            "update",
            "SandboxPolicy/status",
            &name,
            api.replace_status(&name, &parameters, &object),
        )
        .await?;
    let ready = |status: &SandboxPolicyStatus| conditions::find(&status.conditions, types::READY).cloned();
    if let (old, Some(new)) = (ready(&old), ready(status))
        && old.is_none_or(|old| old.reason != new.reason)
    {
        context
            .event(policy, new.status != "True", &new.reason, &new.message)
            .await;
    }
    Ok(())
}

/// Applies one of our network policies unless it stands already.
pub async fn apply_network_policy(built: &NetworkPolicy, context: &Context) -> Result<(), RequestError> {
    let (name, namespace) = (built.name_any(), built.namespace().unwrap_or_default());
    let live = context
        .network_policies
        .get(&ObjectRef::new(&name).within(&namespace));
    let owners = |policy: &NetworkPolicy| {
        let mut owners: Vec<_> = policy
            .owner_references()
            .iter()
            .map(|owner| owner.uid.clone())
            .collect();
        owners.sort();
        owners
    };
    if live.is_some_and(|live| network_policy::stands(&live, built) && owners(&live) == owners(built)) {
        return Ok(());
    }
    let api: Api<NetworkPolicy> = Api::namespaced(context.client.clone(), &namespace);
    // Rules that somebody added have another owner in managedFields; named and forced, even as none, they go.
    let mut object = serde_json::to_value(built).unwrap_or_default();
    object["apiVersion"] = "networking.k8s.io/v1".into();
    object["kind"] = "NetworkPolicy".into();
    for direction in ["ingress", "egress"] {
        let rules = &mut object["spec"][direction];
        if rules.is_null() {
            *rules = serde_json::json!([]);
        }
    }
    let parameters = PatchParams::apply(names::MANAGER).force();
    context
        .request(
            "apply",
            "NetworkPolicy",
            &name,
            api.patch(&name, &parameters, &Patch::Apply(object)),
        )
        .await?;
    Ok(())
}

/// Sandboxes of all policies by phase, for the metrics.
#[must_use]
pub fn phases(context: &Context) -> BTreeMap<Phase, i64> {
    let mut phases = BTreeMap::new();
    for sandbox in context.sandboxes.state() {
        let phase = sandbox
            .status
            .as_ref()
            .and_then(|status| status.phase)
            .unwrap_or(Phase::Pending);
        *phases.entry(phase).or_default() += 1;
    }
    phases
}
