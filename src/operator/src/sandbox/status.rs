//! From where a sandbox stands to its status: the only place that writes conditions of an `AgentSandbox`.

use agentsandbox_api::condition::{reasons, types};
use agentsandbox_api::names;
use agentsandbox_api::reason::Reason;
use agentsandbox_api::sandbox::{AgentSandboxStatus, IsolationStatus, Phase, PolicyStatus, RunResult};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;

use crate::conditions::{Say, find, is_true, set};
use crate::sandbox::admit::admit;
use crate::sandbox::decide::recorded;
use crate::sandbox::pod_view::PodView;
use crate::sandbox::verdict::Verdict;
use crate::sandbox::world::{PodState, PolicyView, Stage, World};

/// The status of a sandbox at `stage`. A new run starts from an empty one.
#[must_use]
pub fn compose(world: &World<'_>, stage: &Stage) -> AgentSandboxStatus {
    let mut status = recorded(world).cloned().unwrap_or_default();
    status.observed_generation = world.sandbox.metadata.generation;
    status.run_id = Some(world.sandbox.spec.run_id.clone());
    if let PodState::Present(pod) = &world.pod {
        // The gateway may have written before us, where an operator ended between pod and status: what it has taken of
        // the run's budgets stays taken.
        if let Some(live) = world
            .sandbox
            .status
            .as_ref()
            .and_then(|status| status.egress.as_ref())
            && live.pod_uid.as_deref() == Some(pod.uid.as_str())
        {
            status.egress = Some(live.clone());
        }
        record_pod(&mut status, pod, world);
    }
    match stage {
        Stage::Waiting {
            reason,
            message,
            stalled,
        } => {
            status.phase = Some(Phase::Pending);
            status.reason = Some((*reason).to_owned());
            let mut say = Speaker::new(&mut status, world);
            say.that(types::ACCEPTED, &Say::no(reason, message));
            say.unfinished();
            say.that(types::READY, &Say::no(reason, message));
            say.progress(reason, message, *stalled);
        }
        Stage::Held { reason, message } => {
            let suspended = *reason == reasons::SUSPENDED;
            let queued = *reason == reasons::QUOTA_EXCEEDED;
            status.phase = Some(match (suspended, queued) {
                (true, _) => Phase::Suspended,
                (_, true) => Phase::Queued,
                _ => Phase::Pending,
            });
            status.reason = Some((*reason).to_owned());
            let stalled = [reasons::POD_REFUSED, reasons::QUOTA_TOO_SMALL].contains(reason);
            let mut say = Speaker::new(&mut status, world);
            say.accepted();
            say.unfinished();
            say.that(types::READY, &Say::no(reason, message));
            say.progress(reason, message, stalled);
        }
        Stage::Starting { reason, message } => {
            status.phase = Some(Phase::Starting);
            status.reason = Some((*reason).to_owned());
            let mut say = Speaker::new(&mut status, world);
            say.accepted();
            say.unfinished();
            say.that(types::READY, &Say::no(reason, message));
            say.progress(reason, message, false);
        }
        Stage::Running => {
            status.phase = Some(Phase::Running);
            status.reason = Some(reasons::RUNNING.to_owned());
            if status.start_time.is_none() {
                status.start_time = Some(Time(world.now));
            }
            let session = world.sandbox.spec.session.is_some();
            let mut say = Speaker::new(&mut status, world);
            say.accepted();
            say.unfinished();
            say.that(
                types::NETWORK_ISOLATED,
                &Say::yes(
                    reasons::PROBE_PASSED,
                    "every forbidden destination was closed before the command started",
                ),
            );
            let message = if session {
                "the session takes steps"
            } else {
                "the command runs"
            };
            say.that(types::READY, &Say::yes(reasons::RUNNING, message));
            say.progress(reasons::RUNNING, message, false);
        }
        Stage::Finished(verdict) => finished(&mut status, world, verdict),
    }
    status
}

/// Whether a status holds a verdict.
#[must_use]
pub fn is_finished(status: &AgentSandboxStatus) -> bool {
    is_true(&status.conditions, types::FINISHED)
}

/// Whether a status says that the command runs.
#[must_use]
pub fn is_running(status: &AgentSandboxStatus) -> bool {
    status.phase == Some(Phase::Running)
}

/// The reason of a verdict.
#[must_use]
pub fn reason(status: &AgentSandboxStatus) -> Option<Reason> {
    status.result.as_ref()?.reason
}

/// Marks that the run's objects are gone, and leaves the verdict.
pub fn expire(status: &mut AgentSandboxStatus, now: Timestamp) {
    let generation = status.observed_generation;
    if !is_true(&status.conditions, types::EXPIRED) {
        set(
            &mut status.conditions,
            types::EXPIRED,
            &Say::yes(
                reasons::TTL_PASSED,
                "the run's pod was removed; the verdict stays",
            ),
            generation,
            now,
        );
    }
}

/// Says why the sandbox was not deleted, although its policy asks for it.
pub fn refuse_deletion(status: &mut AgentSandboxStatus, now: Timestamp) {
    let generation = status.observed_generation;
    let message = "the run's pod was removed; the AgentSandbox stays although cleanup.deleteSandbox is AfterTTL, because a GitOps tool tracks it and would make it, and run it, again";
    set(
        &mut status.conditions,
        types::EXPIRED,
        &Say::yes(reasons::GITOPS_TRACKED, message),
        generation,
        now,
    );
}

fn record_pod(status: &mut AgentSandboxStatus, pod: &PodView, world: &World<'_>) {
    status.pod_name = Some(pod.name.clone());
    status.pod_uid = Some(pod.uid.clone());
    // Named with the next transition: being scheduled alone is worth no write.
    if pod.node.is_some() && (pod.agent.started || pod.has_ended()) {
        status.node_name.clone_from(&pod.node);
    }
    if let PolicyView::Valid { generation, policy } = &world.policy {
        let known = status.policy.get_or_insert_with(PolicyStatus::default);
        known.name.clone_from(&world.identity.policy);
        known.generation = *generation;
        let isolation = status.isolation.get_or_insert_with(IsolationStatus::default);
        // With the first look at the pod, which is the one that made it.
        if isolation.runtime_class_name.is_none() {
            isolation.runtime_class_name = Some(policy.runtime_class.clone());
            known.terms = admit(&world.sandbox.spec, policy).ok().map(|run| run.terms());
        }
    }
}

fn finished(status: &mut AgentSandboxStatus, world: &World<'_>, verdict: &Verdict) {
    let success = verdict.reason.is_success();
    status.phase = Some(if success { Phase::Succeeded } else { Phase::Failed });
    status.reason = Some(verdict.reason.to_string());
    if let Some(started) = verdict.started_at {
        status.start_time = Some(Time(started));
    }
    status.completion_time = Some(Time(verdict.ended_at));
    status.duration = status
        .start_time
        .as_ref()
        .map(|start| for_people(verdict.ended_at.duration_since(start.0).as_secs()));
    if verdict.level.is_some() {
        let isolation = status.isolation.get_or_insert_with(IsolationStatus::default);
        isolation.level = verdict.level;
        isolation.guest_kernel.clone_from(&verdict.guest_kernel);
        isolation.node_kernel = world.node.as_ref().map(|node| node.kernel.clone());
    }
    if verdict.network.is_some() {
        status.network.clone_from(&verdict.network);
    }
    status.usage.clone_from(&verdict.usage);
    status.audit.clone_from(&verdict.audit);
    status.session.clone_from(&verdict.session);
    status.result = Some(RunResult {
        exit_code: verdict.exit_code,
        signal: verdict.signal,
        reason: Some(verdict.reason),
        message: Some(verdict.message.clone()),
        output: verdict.output.clone(),
        evidence: Some(verdict.evidence),
    });
    let reason = verdict.reason.as_str();
    let message = verdict.message.as_str();
    let had_pod = status.pod_uid.is_some();
    let isolated_at = verdict
        .network
        .as_ref()
        .and_then(|network| network.isolated_at.clone());
    let mut say = Speaker::new(status, world);
    if had_pod {
        say.accepted();
    } else {
        say.that(types::ACCEPTED, &Say::no(reason, message));
    }
    if verdict.reason == Reason::NetworkNotIsolated {
        say.that(types::NETWORK_ISOLATED, &Say::no(reasons::PROBE_FAILED, message));
    } else if isolated_at.is_some() {
        say.that(
            types::NETWORK_ISOLATED,
            &Say::yes(
                reasons::PROBE_PASSED,
                "every forbidden destination was closed before the command started, and in every later round",
            ),
        );
    } else {
        say.probe_unknown();
    }
    let ready = if success {
        Say::yes(reason, message)
    } else {
        Say::no(reason, message)
    };
    say.that(types::READY, &ready);
    say.that(types::FINISHED, &Say::yes(reasons::FINISHED, message));
    say.that(
        types::SUCCEEDED,
        &if success {
            Say::yes(reason, message)
        } else {
            Say::no(reason, message)
        },
    );
    say.that(
        types::EXPIRED,
        &Say::no(
            reasons::FINISHED,
            "the run's pod is kept until its TTL has passed",
        ),
    );
    say.that(
        types::RECONCILING,
        &Say::no(reasons::FINISHED, "the run has ended"),
    );
    say.that(
        types::STALLED,
        &if success {
            Say::no(reason, message)
        } else {
            Say::yes(reason, message)
        },
    );
}

/// Sets conditions of one status with the world's generation and time.
struct Speaker<'a> {
    status: &'a mut AgentSandboxStatus,
    generation: Option<i64>,
    now: Timestamp,
}

impl<'a> Speaker<'a> {
    fn new(status: &'a mut AgentSandboxStatus, world: &World<'_>) -> Self {
        Self {
            status,
            generation: world.sandbox.metadata.generation,
            now: world.now,
        }
    }

    fn that(&mut self, type_: &str, say: &Say<'_>) {
        set(&mut self.status.conditions, type_, say, self.generation, self.now);
    }

    fn accepted(&mut self) {
        self.that(
            types::ACCEPTED,
            &Say::yes(reasons::WITHIN_POLICY, "the sandbox is within its policy"),
        );
    }

    fn unfinished(&mut self) {
        if find(&self.status.conditions, types::NETWORK_ISOLATED).is_none() {
            self.probe_unknown();
        }
        let message = "the run has not ended";
        self.that(types::FINISHED, &Say::no(reasons::NOT_FINISHED, message));
        self.that(types::SUCCEEDED, &Say::unknown(reasons::NOT_FINISHED, message));
        self.that(types::EXPIRED, &Say::no(reasons::NOT_FINISHED, message));
    }

    fn probe_unknown(&mut self) {
        self.that(
            types::NETWORK_ISOLATED,
            &Say::unknown(reasons::NOT_PROBED, "the recorder's probe has not reported"),
        );
    }

    fn progress(&mut self, reason: &str, message: &str, stalled: bool) {
        let (reconciling, stalled) = if stalled {
            (Say::no(reason, message), Say::yes(reason, message))
        } else {
            (Say::yes(reason, message), Say::no(reason, ""))
        };
        self.that(types::RECONCILING, &reconciling);
        self.that(types::STALLED, &stalled);
    }
}

/// Seconds as `1h2m3s`.
fn for_people(seconds: i64) -> String {
    let seconds = seconds.max(0);
    let (hours, minutes, rest) = (seconds / 3600, seconds % 3600 / 60, seconds % 60);
    match (hours, minutes) {
        (0, 0) => format!("{rest}s"),
        (0, _) => format!("{minutes}m{rest}s"),
        _ => format!("{hours}h{minutes}m{rest}s"),
    }
}

/// The label that marks what the operator made, for selectors.
#[must_use]
pub fn managed_selector() -> String {
    format!("{}={}", names::LABEL_MANAGED_BY, names::MANAGER)
}
