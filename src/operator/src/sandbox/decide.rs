//! What should happen next with one sandbox: a pure function of the world and the time.

use std::time::Duration;

use agentsandbox_api::condition::reasons;
use agentsandbox_api::policy::{Cleanup, DeleteSandbox};
use agentsandbox_api::reason::Reason;
use agentsandbox_api::sandbox::{AgentSandbox, AgentSandboxStatus, RunTerms};
use k8s_openapi::jiff::{SignedDuration, Timestamp};

use crate::build::pod::TERMINATION_GRACE_SECONDS;
use crate::sandbox::admit::{AdmittedRun, admit};
use crate::sandbox::pod_view::PodView;
use crate::sandbox::verdict::{Expected, Verdict, judge, marked_cause};
use crate::sandbox::world::{Action, Creation, Decision, NetworkView, PodState, PolicyView, Stage, World};
use crate::sandbox::{egress, start, status};

/// How long after the agent container's end the recorder may take to end too, in seconds.
const WINDING_DOWN_SECONDS: i64 = 30;
/// The longest runtime that the API takes, in seconds.
const LONGEST_RUNTIME_SECONDS: i32 = 2_592_000;
/// How often a waiting sandbox is looked at without any event.
pub(super) const WAITING_RECHECK: Duration = Duration::from_secs(30);

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
        PodState::Absent => start::without_pod(world),
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
    egress::fold(world, &mut next);
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
            && let Some((reason, message)) = egress::exhausted(world, pod)
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
    if let Some(wake) = left_to_kubelet(world, pod) {
        return stay(world, &stage, Vec::new(), Some(wake));
    }
    // What the run was ended for stays its cause, if the pod has to be deleted as well.
    let earlier = pod.ending.and_then(|_| marked_cause(pod));
    if let Some((reason, message)) = earlier
        .or_else(|| creation_trouble.map(|why| (Reason::PodMutated, why)))
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
                if let Some(how) = tightened(world, &run) {
                    return Some((
                        Reason::PolicyRejected,
                        format!("the policy {how} since the run began"),
                    ));
                }
            }
        },
        // A policy that can't be read tightens nothing; it lets nothing new start, and says so in its own status.
        PolicyView::NotReady(_) | PolicyView::Applying => {}
    }
    if let NetworkView::Widened(by) = &world.network {
        return Some((Reason::NetworkNotIsolated, widened_message(by)));
    }
    if let Some(cause) = egress::exhausted(world, pod) {
        return Some(cause);
    }
    let age = |seconds: i64| has_passed(world, pod.created, seconds);
    if let Some(pull) = pod.failing_pull() {
        return (pull.hopeless || age(world.config.image_pull_timeout_seconds.into()))
            .then_some((Reason::ImagePullFailed, pull.message));
    }
    if !pod.agent.started && pod.agent.ended.is_none() && age(world.config.start_timeout_seconds.into()) {
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

/// In what the policy demands more than what the run's pod was made with, if it does.
fn tightened(world: &World<'_>, run: &AdmittedRun) -> Option<String> {
    let status = recorded(world)?;
    let class = status
        .isolation
        .as_ref()
        .and_then(|isolation| isolation.runtime_class_name.as_ref());
    if class.is_some_and(|class| *class != run.runtime_class) {
        return Some("names another runtime class".to_owned());
    }
    let (then, now) = (terms(world)?, run.terms());
    if now.minimum > then.minimum {
        Some(format!("demands isolation.minimum {}", now.minimum))
    } else if then.root && !now.root {
        Some("does not allow root any more".to_owned())
    } else if now.require.demands_more_than(then.require) {
        Some("demands more in audit.require".to_owned())
    } else {
        None
    }
}

/// What the run's pod was made with.
fn terms(world: &World<'_>) -> Option<RunTerms> {
    recorded(world)?.policy.as_ref()?.terms
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

pub(super) fn stay(
    world: &World<'_>,
    stage: &Stage,
    before: Vec<Action>,
    wake: Option<Duration>,
) -> Decision {
    Decision {
        before,
        status: status::compose(world, stage),
        after: Vec::new(),
        wake,
    }
}

/// Writes the verdict, then lets the pod go: neither a drain nor a `kubectl delete pod` loses a result.
pub(super) fn finish(world: &World<'_>, verdict: Verdict) -> Decision {
    let ended_at = verdict.ended_at;
    let mut status = status::compose(world, &Stage::Finished(Box::new(verdict)));
    egress::fold(world, &mut status);
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
    let agent_ended = pod.agent.ended.as_ref().and_then(|end| end.finished_at);
    pod.is_winding_down() && has_passed(world, agent_ended, WINDING_DOWN_SECONDS)
        || has_passed(world, pod.deleted, ending_seconds(world))
}

fn has_passed(world: &World<'_>, since: Option<Timestamp>, seconds: i64) -> bool {
    since.is_some_and(|since| world.now.duration_since(since) >= SignedDuration::from_secs(seconds))
}

/// How long a run that is being ended is still left to its kubelet. Others may be able to write the marks as well: they
/// mean nothing without a cause, nor at a time so far ahead that no other replica's clock can have told it.
fn left_to_kubelet(world: &World<'_>, pod: &PodView) -> Option<Duration> {
    marked_cause(pod)?;
    let seconds = kubelet_seconds(world);
    let since = pod
        .ending
        .filter(|ending| ending.duration_since(world.now) < SignedDuration::from_secs(seconds))
        .map(|ending| ending.min(world.now))?;
    (!has_passed(world, Some(since), seconds)).then(|| until_after(Some(since), seconds, world.now))
}

/// From the moment a pod's deadline was drawn near to the one from which its kubelet is taken for dead, and the pod is
/// deleted as well.
fn kubelet_seconds(world: &World<'_>) -> i64 {
    TERMINATION_GRACE_SECONDS + i64::from(world.config.deadline_grace_seconds)
}

/// From the deletion of a pod to the moment from which nothing more is expected of its node.
fn ending_seconds(world: &World<'_>) -> i64 {
    TERMINATION_GRACE_SECONDS + 2 * i64::from(world.config.deadline_grace_seconds)
}

/// The operator's own clock, the third line behind the supervisor's and the kubelet's, in seconds from the pod's
/// creation. What the pod was made with counts, whatever has become of the policy.
fn last_line_seconds(world: &World<'_>) -> i64 {
    let admitted = || match &world.policy {
        PolicyView::Valid { policy, .. } => admit(&world.sandbox.spec, policy).ok().map(|run| run.terms()),
        _ => None,
    };
    let runtime = terms(world)
        .or_else(admitted)
        .map_or(LONGEST_RUNTIME_SECONDS, |terms| terms.runtime_seconds);
    i64::from(world.config.start_timeout_seconds)
        + i64::from(runtime)
        + 2 * i64::from(world.config.deadline_grace_seconds)
}

fn next_deadline(world: &World<'_>, pod: &PodView) -> Duration {
    let mut seconds = vec![last_line_seconds(world)];
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
    Some(
        ended
            .checked_add(SignedDuration::from_secs(ttl))
            .unwrap_or(Timestamp::MAX),
    )
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

pub(super) fn widened_message(by: &str) -> String {
    format!(
        "NetworkPolicy {by} of somebody else's also selects sandbox pods and allows traffic; policies add up, so remove it or narrow its podSelector"
    )
}

fn until(time: Timestamp, now: Timestamp) -> Duration {
    wake_in(time.duration_since(now))
}

fn wake_in(left: SignedDuration) -> Duration {
    Duration::try_from(left).unwrap_or_default() + Duration::from_millis(50)
}

fn until_after(since: Option<Timestamp>, seconds: i64, now: Timestamp) -> Duration {
    let left = since
        .unwrap_or(now)
        .duration_since(now)
        .saturating_add(SignedDuration::from_secs(seconds));
    wake_in(left)
}

#[cfg(test)]
#[path = "decide_tests.rs"]
mod tests;
