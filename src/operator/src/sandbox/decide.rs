//! What should happen next with one sandbox: a pure function of the world and the time.

use std::net::IpAddr;
use std::time::Duration;

use agentsandbox_api::condition::{reasons, types};
use agentsandbox_api::gateway::GatewayAccess;
use agentsandbox_api::isolation::IsolationRequirement;
use agentsandbox_api::policy::{Cleanup, DeleteSandbox};
use agentsandbox_api::reason::Reason;
use agentsandbox_api::sandbox::{AgentSandbox, AgentSandboxStatus, EgressStatus};
use k8s_openapi::jiff::{SignedDuration, Timestamp};

use crate::build::pod::{RunIdentity, TERMINATION_GRACE_SECONDS};
use crate::conditions;
use crate::config::Config;
use crate::policy::valid::ValidPolicy;
use crate::sandbox::admit::{AdmittedRun, Rejection, admit};
use crate::sandbox::pod_view::PodView;
use crate::sandbox::status;
use crate::sandbox::verdict::{Expected, Verdict, judge};

/// How long a policy that is not there may still be on its way, in seconds: one `kubectl apply` brings both.
const POLICY_PATIENCE_SECONDS: i64 = 30;
/// How long nothing is said of a new sandbox of which the policy or its network policies may still be on their way:
/// one `kubectl apply` brings both, and most often the next look finds them.
const SETTLING: SignedDuration = SignedDuration::from_secs(1);
/// How often a settling sandbox is looked at.
const SETTLING_RECHECK: Duration = Duration::from_millis(250);
/// How long after the agent container's end the recorder may take to end too, in seconds.
const WINDING_DOWN_SECONDS: i64 = 30;
/// How long after the verdict the egress gateway's final figures are still added to the usage.
const SETTLEMENT: SignedDuration = SignedDuration::from_secs(10);
/// How often a waiting sandbox is looked at without any event.
const WAITING_RECHECK: Duration = Duration::from_secs(30);

/// The policy as the operator sees it.
#[derive(Clone, Debug)]
pub enum PolicyView {
    /// It holds.
    Valid {
        /// Its `metadata.generation`; 0 is the built-in policy.
        generation: i64,
        /// What it says.
        policy: Box<ValidPolicy>,
    },
    /// It exists and can't be enforced.
    NotReady(String),
    /// It does not exist, or is being deleted.
    Missing,
}

/// Whether the network is closed as far as the API server can tell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NetworkView {
    /// Our policies stand and nobody else's widens them.
    Closed,
    /// Ours do not stand yet.
    NotReady,
    /// Somebody else's policy allows traffic of this sandbox.
    Widened(String),
}

/// The egress gateway of the namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GatewayView {
    /// The policy allows no egress.
    NotNeeded,
    /// It does not serve this policy yet; why.
    NotReady(String),
    /// It serves, at this address.
    Ready(IpAddr),
}

/// What came of the attempt to create the pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Creation {
    /// The namespace's quota has no room.
    QuotaExceeded(String),
    /// The API server refused it otherwise.
    Refused(String),
    /// A pod of this name exists and is not this run's.
    Conflict(String),
    /// What the API server made of it is not what was built.
    Mutated(String),
    /// The namespace is being deleted.
    NamespaceTerminating,
}

/// The node that the run's pod is bound to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeView {
    /// Boot id.
    pub boot_id: String,
    /// Kernel release.
    pub kernel: String,
    /// Whether it reports that it is ready.
    pub ready: bool,
}

/// The run's pod as the API server has it.
#[derive(Clone, Debug, PartialEq)]
pub enum PodState {
    /// There is none.
    Absent,
    /// There is one of this run.
    Present(Box<PodView>),
    /// The pod of an earlier run is still there.
    OfEarlierRun {
        /// Its UID.
        uid: String,
        /// Its name.
        name: String,
        /// Whether its deletion was asked for.
        deleting: bool,
        /// Whether it still holds our finalizer.
        held: bool,
    },
}

/// Everything a decision depends on.
#[derive(Clone, Debug)]
pub struct World<'a> {
    /// The sandbox.
    pub sandbox: &'a AgentSandbox,
    /// Whose run it is.
    pub identity: RunIdentity,
    /// Its policy.
    pub policy: PolicyView,
    /// Handler of the runtime class; `None` if the class does not exist.
    pub runtime_handler: Option<String>,
    /// Distinct kernel releases of the nodes.
    pub node_kernels: Vec<String>,
    /// The run's pod.
    pub pod: PodState,
    /// The node of the pod, if it exists.
    pub node: Option<NodeView>,
    /// The network.
    pub network: NetworkView,
    /// The egress gateway.
    pub gateway: GatewayView,
    /// What is wrong with the `ConfigMap`s and the claim that the sandbox names.
    pub inputs: Result<(), String>,
    /// Whether an older sandbox of the namespace waits for the quota.
    pub behind_in_queue: bool,
    /// What came of the attempt to create the pod, in this reconciliation.
    pub creation: Option<Creation>,
    /// The operator's configuration.
    pub config: &'a Config,
    /// Now.
    pub now: Timestamp,
}

/// One thing to do.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Create the pod of this run, then decide again.
    CreatePod(Box<AdmittedRun>, IsolationRequirement),
    /// Mark the pod with the cause and delete it.
    EndPod(Reason, String),
    /// Delete the pod, whose result is known.
    DeletePod,
    /// Take our finalizer off the pod.
    ReleasePod,
    /// Take our finalizer off an earlier run's pod, and delete it.
    RemoveEarlierPod,
    /// Delete the sandbox itself.
    DeleteSandbox,
}

/// What to do before and after the status is written, and when to look again.
#[derive(Clone, Debug, PartialEq)]
pub struct Decision {
    /// Done before the status is written.
    pub before: Vec<Action>,
    /// The status.
    pub status: AgentSandboxStatus,
    /// Done after the status is written.
    pub after: Vec<Action>,
    /// When to look again without any event.
    pub wake: Option<Duration>,
}

/// Where a sandbox stands.
#[derive(Clone, Debug, PartialEq)]
pub enum Stage {
    /// Not accepted: something it needs is missing.
    Waiting {
        /// Reason of `Accepted`.
        reason: &'static str,
        /// Message of `Accepted`.
        message: String,
        /// Whether nothing will change by itself.
        stalled: bool,
    },
    /// Accepted, and kept from starting.
    Held {
        /// Reason of `Ready`.
        reason: &'static str,
        /// Message of `Ready`.
        message: String,
    },
    /// Its pod is being made.
    Starting {
        /// Reason of `Ready`.
        reason: &'static str,
        /// Message of `Ready`.
        message: String,
    },
    /// Its command runs.
    Running,
    /// It ended.
    Finished(Box<Verdict>),
}

/// Decides.
#[must_use]
pub fn decide(world: &World<'_>) -> Decision {
    if let Some(finished) = after_the_end(world) {
        return finished;
    }
    match &world.pod {
        PodState::OfEarlierRun { .. } => stay(
            world,
            &Stage::Held {
                reason: reasons::PREVIOUS_RUN_ENDING,
                message: "the pod of the previous run is going away".to_owned(),
            },
            vec![Action::RemoveEarlierPod],
            Some(Duration::from_secs(5)),
        ),
        PodState::Present(pod) => with_pod(world, pod),
        PodState::Absent if has_had_pod(world) => {
            let reason =
                if world.node.is_none() && recorded(world).and_then(|s| s.node_name.as_ref()).is_some() {
                    Reason::NodeLost
                } else {
                    Reason::SandboxLost
                };
            finish(
                world,
                Verdict::of_operator(reason, "the run's pod is gone; it is not run again", world.now),
            )
        }
        PodState::Absent => without_pod(world),
    }
}

/// A sandbox whose verdict stands: only cleaning up is left.
fn after_the_end(world: &World<'_>) -> Option<Decision> {
    let status = recorded(world).filter(|status| status::is_finished(status))?;
    let mut next = status.clone();
    next.observed_generation = world.sandbox.metadata.generation;
    let (mut after, mut wake) = (Vec::new(), None);
    let expires = expiration(world, &next);
    next.expiration_time = expires.map(Into::into);
    fold_egress(world, &mut next);
    let is_over = expires.is_none_or(|time| time <= world.now);
    match &world.pod {
        PodState::Present(pod) if pod.has_ended() || world.node.is_none() => {
            if is_over && pod.deleted.is_none() {
                after.push(Action::DeletePod);
            }
            if pod.held {
                after.push(Action::ReleasePod);
            }
        }
        // A verdict without the pod's end (a lost node): the finalizer stays until the node reports or is gone.
        PodState::Present(_) => wake = Some(WAITING_RECHECK),
        PodState::OfEarlierRun { .. } => after.push(Action::RemoveEarlierPod),
        PodState::Absent => {}
    }
    if is_over && (matches!(world.pod, PodState::Absent) || after.contains(&Action::DeletePod)) {
        status::expire(&mut next, world.now);
        if deletes_sandbox(world, &mut next) {
            after.push(Action::DeleteSandbox);
        }
    } else if let Some(time) = expires {
        wake = Some(wake.map_or(until(time, world.now), |other| other.min(until(time, world.now))));
    }
    Some(Decision {
        before: Vec::new(),
        status: next,
        after,
        wake,
    })
}

/// Adds the egress gateway's figures to the usage, once they are final. They come after the pod's end, so most often
/// after the verdict; those that come late are left where the gateway wrote them.
fn fold_egress(world: &World<'_>, status: &mut AgentSandboxStatus) {
    let in_time = conditions::find(&status.conditions, types::FINISHED)
        .is_some_and(|finished| world.now <= finished.last_transition_time.0 + SETTLEMENT);
    let own = status
        .egress
        .as_ref()
        .filter(|egress| egress.settled && egress.pod_uid.is_some() && egress.pod_uid == status.pod_uid);
    if let Some(egress) = own.filter(|_| in_time) {
        let usage = status.usage.get_or_insert_default();
        if usage.model_requests.is_none() {
            usage.model_requests = Some(egress.used.model_requests);
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
fn exhausted(world: &World<'_>, pod: &PodView) -> Option<(Reason, String)> {
    let reason = egress_of(world, pod)?.exhausted?;
    let field = match reason {
        Reason::TokenBudgetExceeded => "limits.tokens",
        Reason::ModelRequestBudgetExceeded => "limits.modelRequests",
        Reason::StepBudgetExceeded => "limits.steps",
        Reason::EgressByteBudgetExceeded => "limits.egressBytes",
        _ => return None,
    };
    Some((
        reason,
        format!("the run has used up {field}; status.egress has the figures"),
    ))
}

fn with_pod(world: &World<'_>, pod: &PodView) -> Decision {
    let creation_trouble = match &world.creation {
        Some(Creation::Mutated(what)) => Some(format!(
            "the API server returned a pod with another {what} than was built; a webhook changed it"
        )),
        _ => pod
            .tampered
            .as_ref()
            .map(|what| format!("the pod was changed after it was made: {what}")),
    };
    if pod.has_ended() || nothing_will_come(world, pod) {
        let expected = Expected {
            sandbox_uid: &world.identity.sandbox_uid,
            run_id: &world.identity.run_id,
            minimum: minimum(world),
            node_boot_id: world.node.as_ref().map(|node| node.boot_id.as_str()),
        };
        let mut verdict = judge(pod, expected, world.now);
        if !pod.has_ended()
            && verdict.reason == Reason::SandboxLost
            && world.node.as_ref().is_none_or(|node| !node.ready)
        {
            verdict.reason = Reason::NodeLost;
            "the node stopped reporting; whether the process has stopped is not known"
                .clone_into(&mut verdict.message);
        }
        // A command that fails because the gateway refuses it ends by itself, often before anybody can end it.
        if matches!(verdict.reason, Reason::NonZeroExit | Reason::Signaled)
            && let Some((reason, message)) = exhausted(world, pod)
        {
            verdict.reason = reason;
            verdict.message = format!("{message}; {}", verdict.message);
        }
        return finish(world, verdict);
    }
    let stage = current_stage(world, pod);
    if pod.deleted.is_some() {
        let wake = until_after(pod.deleted, ending_seconds(world), world.now);
        return stay(world, &stage, Vec::new(), Some(wake));
    }
    if let Some((reason, message)) = creation_trouble
        .map(|why| (Reason::PodMutated, why))
        .or_else(|| end_cause(world, pod))
    {
        return stay(
            world,
            &stage,
            vec![Action::EndPod(reason, message)],
            Some(Duration::from_secs(5)),
        );
    }
    let wake = next_deadline(world, pod);
    stay(world, &stage, Vec::new(), Some(wake))
}

/// The reason, if any, for which the operator must end this run now.
fn end_cause(world: &World<'_>, pod: &PodView) -> Option<(Reason, String)> {
    if world.sandbox.spec.stop {
        return Some((Reason::Stopped, "spec.stop was set".to_owned()));
    }
    match &world.policy {
        PolicyView::Missing => {
            return Some((
                Reason::PolicyDeleted,
                format!(
                    "SandboxPolicy {} was deleted during the run",
                    world.identity.policy
                ),
            ));
        }
        // The built-in policy that takes a deleted one's place is not the one the run was accepted under.
        PolicyView::Valid { generation: 0, .. } if began_under_object(world) => {
            return Some((
                Reason::PolicyDeleted,
                format!(
                    "SandboxPolicy {} was deleted during the run",
                    world.identity.policy
                ),
            ));
        }
        PolicyView::Valid { policy, .. } => match admit(&world.sandbox.spec, policy) {
            Err(rejection) => {
                return Some((
                    Reason::PolicyRejected,
                    format!("the policy was tightened during the run: {rejection}"),
                ));
            }
            Ok(run) => {
                let started_with =
                    recorded(world).and_then(|s| s.isolation.as_ref()?.runtime_class_name.clone());
                if started_with.is_some_and(|class| class != run.runtime_class) {
                    return Some((
                        Reason::PolicyRejected,
                        "the policy names another runtime class since the run began".to_owned(),
                    ));
                }
            }
        },
        // A policy that can't be read tightens nothing; it lets nothing new start, and says so in its own status.
        PolicyView::NotReady(_) => {}
    }
    if let NetworkView::Widened(by) = &world.network {
        return Some((Reason::NetworkNotIsolated, widened_message(by)));
    }
    if let Some(cause) = exhausted(world, pod) {
        return Some(cause);
    }
    let age = |seconds: u32| {
        pod.created
            .is_some_and(|created| world.now >= created + SignedDuration::from_secs(seconds.into()))
    };
    if let Some(pull) = pod.failing_pull() {
        return (pull.hopeless || age(world.config.image_pull_timeout_seconds))
            .then_some((Reason::ImagePullFailed, pull.message));
    }
    if !pod.agent.started && pod.agent.ended.is_none() && age(world.config.start_timeout_seconds) {
        let why = pod
            .unschedulable
            .clone()
            .or_else(|| pod.waiting_message())
            .unwrap_or_else(|| "the pod did not report".to_owned());
        return Some((
            Reason::StartTimeout,
            format!(
                "the command did not start within {} s: {why}",
                world.config.start_timeout_seconds
            ),
        ));
    }
    age(last_line_seconds(world)).then(|| {
        (
            Reason::DeadlineExceeded,
            "the sandbox ran past its deadline and did not report".to_owned(),
        )
    })
}

fn current_stage(world: &World<'_>, pod: &PodView) -> Stage {
    if pod.agent.started {
        return Stage::Running;
    }
    // A status that once said Running stays so until the end: the states after it are transient.
    if recorded(world).is_some_and(status::is_running) {
        return Stage::Running;
    }
    let (reason, message) = if let Some(pull) = pod.failing_pull() {
        (
            reasons::IMAGE_PULL_RETRYING,
            pull.message.split(": ").take(2).collect::<Vec<_>>().join(": "),
        )
    } else if let Some(why) = &pod.unschedulable {
        (reasons::SCHEDULING, why.clone())
    } else {
        (reasons::STARTING, format!("pod {} is being started", pod.name))
    };
    Stage::Starting { reason, message }
}

fn without_pod(world: &World<'_>) -> Decision {
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
        GatewayView::Ready(address) => {
            run.gateway = Some(GatewayAccess {
                address: address.to_string(),
                models: policy
                    .egress
                    .as_ref()
                    .map(|egress| egress.models.clone())
                    .unwrap_or_default(),
            });
        }
    }
    match &world.creation {
        Some(Creation::Conflict(why)) => {
            return finish(
                world,
                Verdict::of_operator(Reason::PodConflict, why.clone(), world.now),
            );
        }
        Some(Creation::Mutated(why)) => {
            return finish(
                world,
                Verdict::of_operator(Reason::PodMutated, why.clone(), world.now),
            );
        }
        Some(Creation::QuotaExceeded(why)) => return hold(world, reasons::QUOTA_EXCEEDED, why.clone()),
        Some(Creation::Refused(why)) => return hold(world, reasons::POD_REFUSED, why.clone()),
        Some(Creation::NamespaceTerminating) => {
            return hold(
                world,
                reasons::NAMESPACE_TERMINATING,
                "the namespace is being deleted".to_owned(),
            );
        }
        None => {}
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

fn reject(world: &World<'_>, rejection: &Rejection) -> Decision {
    finish(
        world,
        Verdict::of_operator(Reason::PolicyRejected, rejection.to_string(), world.now),
    )
}

fn wait(world: &World<'_>, reason: &'static str, message: String, stalled: bool) -> Decision {
    let created = world.sandbox.metadata.creation_timestamp.as_ref();
    let passing = [
        reasons::NETWORK_NOT_READY,
        reasons::GATEWAY_NOT_READY,
        reasons::POLICY_NOT_FOUND,
    ];
    let settles = passing.contains(&reason)
        && world.sandbox.status.is_none()
        && created.is_some_and(|created| world.now < created.0 + SETTLING);
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

fn stay(world: &World<'_>, stage: &Stage, before: Vec<Action>, wake: Option<Duration>) -> Decision {
    Decision {
        before,
        status: status::compose(world, stage),
        after: Vec::new(),
        wake,
    }
}

/// Writes the verdict, then lets the pod go: neither a drain nor a `kubectl delete pod` loses a result.
fn finish(world: &World<'_>, verdict: Verdict) -> Decision {
    let ended_at = verdict.ended_at;
    let mut status = status::compose(world, &Stage::Finished(Box::new(verdict)));
    fold_egress(world, &mut status);
    let expires = expiration(world, &status);
    status.expiration_time = expires.map(Into::into);
    let mut after = Vec::new();
    let mut wake = expires.map(|time| until(time, world.now));
    if let PodState::Present(pod) = &world.pod {
        if expires.is_some_and(|time| time <= world.now.max(ended_at)) && pod.deleted.is_none() {
            after.push(Action::DeletePod);
        }
        if pod.held && (pod.has_ended() || world.node.is_none()) {
            after.push(Action::ReleasePod);
        }
    }
    if after.contains(&Action::DeletePod) {
        status::expire(&mut status, world.now);
        wake = None;
        if deletes_sandbox(world, &mut status) {
            after.push(Action::DeleteSandbox);
        }
    }
    Decision {
        before: Vec::new(),
        status,
        after,
        wake,
    }
}

/// Whether no report can be expected any more from a pod that has not ended.
fn nothing_will_come(world: &World<'_>, pod: &PodView) -> bool {
    let passed = |since: Option<Timestamp>, seconds: i64| {
        since.is_some_and(|since| world.now >= since + SignedDuration::from_secs(seconds))
    };
    let agent_ended = pod.agent.ended.as_ref().and_then(|end| end.finished_at);
    pod.is_winding_down() && passed(agent_ended, WINDING_DOWN_SECONDS)
        || passed(pod.deleted, ending_seconds(world))
}

/// From the deletion of a pod to the moment from which nothing more is expected of its node.
fn ending_seconds(world: &World<'_>) -> i64 {
    TERMINATION_GRACE_SECONDS + 2 * i64::from(world.config.deadline_grace_seconds)
}

/// The operator's own clock, the third line behind the supervisor's and the kubelet's, in seconds from the pod's
/// creation.
fn last_line_seconds(world: &World<'_>) -> u32 {
    let runtime = match &world.policy {
        PolicyView::Valid { policy, .. } => admit(&world.sandbox.spec, policy)
            .map_or(policy.maximum.runtime_seconds, |run| run.figures.runtime_seconds),
        _ => 0,
    };
    world.config.start_timeout_seconds + runtime + 2 * world.config.deadline_grace_seconds
}

fn next_deadline(world: &World<'_>, pod: &PodView) -> Duration {
    let mut seconds = vec![i64::from(last_line_seconds(world))];
    if !pod.agent.started {
        seconds.push(world.config.start_timeout_seconds.into());
    }
    if pod.failing_pull().is_some() {
        seconds.push(world.config.image_pull_timeout_seconds.into());
    }
    if pod.is_winding_down() {
        return Duration::from_secs(5);
    }
    seconds
        .into_iter()
        .map(|seconds| until_after(pod.created, seconds, world.now))
        .min()
        .unwrap_or(WAITING_RECHECK)
}

fn expiration(world: &World<'_>, status: &AgentSandboxStatus) -> Option<Timestamp> {
    let ended = status.completion_time.as_ref()?.0;
    let cleanup = cleanup(world);
    let succeeded = status::reason(status).is_some_and(Reason::is_success);
    let by_policy = if succeeded {
        cleanup.succeeded_ttl_seconds
    } else {
        cleanup.failed_ttl_seconds
    };
    let most = match &world.policy {
        PolicyView::Valid { policy, .. } => policy.maximum_ttl_seconds,
        _ => i64::MAX,
    };
    let ttl = world
        .sandbox
        .spec
        .ttl_seconds_after_finished
        .map_or(by_policy, |ttl| ttl.min(most.max(by_policy)));
    Some(ended + SignedDuration::from_secs(ttl))
}

fn cleanup(world: &World<'_>) -> Cleanup {
    match &world.policy {
        PolicyView::Valid { policy, .. } => policy.cleanup.clone(),
        _ => Cleanup::default(),
    }
}

fn deletes_sandbox(world: &World<'_>, status: &mut AgentSandboxStatus) -> bool {
    if cleanup(world).delete_sandbox != DeleteSandbox::AfterTTL {
        return false;
    }
    if is_gitops_tracked(world.sandbox) {
        status::refuse_deletion(status, world.now);
        return false;
    }
    true
}

/// Whether Argo CD or Flux would make the object again if it went.
#[must_use]
pub fn is_gitops_tracked(sandbox: &AgentSandbox) -> bool {
    let meta = &sandbox.metadata;
    let annotated = meta
        .annotations
        .iter()
        .flatten()
        .any(|(key, _)| key == "argocd.argoproj.io/tracking-id");
    let labelled = meta.labels.iter().flatten().any(|(key, _)| {
        key == "app.kubernetes.io/instance"
            || key == "kustomize.toolkit.fluxcd.io/name"
            || key == "helm.toolkit.fluxcd.io/name"
    });
    annotated || labelled
}

fn minimum(world: &World<'_>) -> agentsandbox_api::isolation::IsolationLevel {
    match &world.policy {
        PolicyView::Valid { policy, .. } => policy.minimum,
        // The recorder checked the minimum before the start; without a policy nothing weaker is known.
        _ => agentsandbox_api::isolation::IsolationLevel::Container,
    }
}

/// The status, if it speaks of this run.
pub(super) fn recorded<'a>(world: &World<'a>) -> Option<&'a AgentSandboxStatus> {
    world
        .sandbox
        .status
        .as_ref()
        .filter(|status| status.run_id.as_deref() == Some(world.sandbox.spec.run_id.as_str()))
}

fn began_under_object(world: &World<'_>) -> bool {
    recorded(world)
        .and_then(|status| status.policy.as_ref())
        .is_some_and(|policy| policy.generation > 0)
}

fn has_had_pod(world: &World<'_>) -> bool {
    recorded(world).is_some_and(|status| status.pod_uid.is_some())
}

fn widened_message(by: &str) -> String {
    format!(
        "NetworkPolicy {by} of somebody else's also selects sandbox pods and allows traffic; policies add up, so remove it or narrow its podSelector"
    )
}

fn until(time: Timestamp, now: Timestamp) -> Duration {
    Duration::try_from(time.duration_since(now)).unwrap_or_default() + Duration::from_millis(50)
}

fn until_after(since: Option<Timestamp>, seconds: i64, now: Timestamp) -> Duration {
    until(since.unwrap_or(now) + SignedDuration::from_secs(seconds), now)
}

#[cfg(test)]
#[path = "decide_tests.rs"]
mod tests;
