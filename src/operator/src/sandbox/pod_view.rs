//! What the API server says of a run's pod, reduced to what a verdict needs.

use agentsandbox_api::names;
use agentsandbox_api::reason::Reason;
use agentsandbox_api::run::CompletionRecord;
use k8s_openapi::api::core::v1::{ContainerStatus, Pod};
use k8s_openapi::jiff::Timestamp;

use crate::build::compare::{keeps_labels, runtime_annotation};

/// Reasons for which the kubelet will not get an image by trying on.
const HOPELESS_PULLS: [&str; 2] = ["InvalidImageName", "ErrImageNeverPull"];
/// Reasons for which the kubelet tries on.
const RETRIED_PULLS: [&str; 3] = ["ErrImagePull", "ImagePullBackOff", "RegistryUnavailable"];

/// One container's state.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ContainerView {
    /// Reason and message while it waits.
    pub waiting: Option<(String, String)>,
    /// Whether its startup probe has passed.
    pub started: bool,
    /// How it ended.
    pub ended: Option<ContainerEnd>,
    /// Whether it runs.
    pub running: bool,
    /// How often it was restarted.
    pub restarts: i32,
}

/// How a container ended.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ContainerEnd {
    /// Exit code that the kubelet saw.
    pub exit_code: i32,
    /// Its reason, such as `OOMKilled`.
    pub reason: String,
    /// Its termination message.
    pub message: String,
    /// When it started.
    pub started_at: Option<Timestamp>,
    /// When it ended.
    pub finished_at: Option<Timestamp>,
}

/// A pod's state.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PodView {
    /// Name.
    pub name: String,
    /// UID.
    pub uid: String,
    /// Node it was bound to.
    pub node: Option<String>,
    /// When it was created.
    pub created: Option<Timestamp>,
    /// When its deletion was asked for.
    pub deleted: Option<Timestamp>,
    /// Whether it still holds our finalizer.
    pub held: bool,
    /// Phase.
    pub phase: String,
    /// Reason of the pod as a whole, such as `Evicted` or `DeadlineExceeded`.
    pub reason: String,
    /// Message of the pod as a whole.
    pub message: String,
    /// Why no node takes it.
    pub unschedulable: Option<String>,
    /// The agent container.
    pub agent: ContainerView,
    /// The recorder container.
    pub recorder: ContainerView,
    /// The cause for which the operator ended it.
    pub cause: Option<(String, String)>,
    /// When the operator ended it.
    pub ending: Option<Timestamp>,
    /// What changed since it was built: its labels, its containers, or anything else of its spec.
    pub tampered: Option<String>,
}

/// A pull that fails.
#[derive(Clone, Debug, PartialEq)]
pub struct FailingPull {
    /// Whether trying on is pointless.
    pub hopeless: bool,
    /// The kubelet's words.
    pub message: String,
}

/// The deadline of a pod that the operator ends by its kubelet.
pub const ENDING_SECONDS: i64 = 1;

impl PodView {
    /// Reads a pod. `labels` are those that it was built with.
    #[must_use]
    pub fn of(pod: &Pod, labels: &std::collections::BTreeMap<String, String>) -> Self {
        let meta = &pod.metadata;
        let status = pod.status.clone().unwrap_or_default();
        let annotation = |key: &str| meta.annotations.as_ref().and_then(|all| all.get(key)).cloned();
        let find = |list: &Option<Vec<ContainerStatus>>, name: &str| {
            list.iter()
                .flatten()
                .find(|container| container.name == name)
                .map(ContainerView::of)
                .unwrap_or_default()
        };
        let unschedulable = status
            .conditions
            .iter()
            .flatten()
            .find(|condition| condition.type_ == "PodScheduled" && condition.status == "False")
            .map(|condition| condition.message.clone().unwrap_or_default());
        let ephemeral = pod
            .spec
            .as_ref()
            .and_then(|spec| spec.ephemeral_containers.as_ref())
            .is_some_and(|c| !c.is_empty());
        let ending = annotation(names::ANNOTATION_CAUSE_TIME);
        // The API server counts changes of the spec, of which it lets everybody make some, such as of images. Our own
        // one is the only one, and comes with the time of the run's end and a deadline that is past; a deletion counts
        // as well.
        let deadline = pod.spec.as_ref().and_then(|spec| spec.active_deadline_seconds);
        let ours = ending.is_some() && deadline == Some(ENDING_SECONDS) && meta.generation == Some(2);
        let changed = meta.generation > Some(1) && !ours && meta.deletion_timestamp.is_none();
        let tampered = if ephemeral {
            Some("an ephemeral container was added".to_owned())
        } else if !keeps_labels(labels, pod) {
            Some("its labels were changed".to_owned())
        } else if let Some(key) = runtime_annotation(pod) {
            Some(format!("it was annotated with {key}"))
        } else if changed {
            Some("its spec was changed".to_owned())
        } else {
            None
        };
        Self {
            name: meta.name.clone().unwrap_or_default(),
            uid: meta.uid.clone().unwrap_or_default(),
            node: pod.spec.as_ref().and_then(|spec| spec.node_name.clone()),
            created: meta.creation_timestamp.as_ref().map(|time| time.0),
            deleted: meta.deletion_timestamp.as_ref().map(|time| time.0),
            held: meta
                .finalizers
                .iter()
                .flatten()
                .any(|name| name == names::FINALIZER_RESULT),
            phase: status.phase.clone().unwrap_or_default(),
            reason: status.reason.clone().unwrap_or_default(),
            message: status.message.clone().unwrap_or_default(),
            unschedulable,
            agent: find(&status.container_statuses, names::CONTAINER_AGENT),
            recorder: find(&status.init_container_statuses, names::CONTAINER_RECORDER),
            cause: annotation(names::ANNOTATION_CAUSE).map(|cause| {
                (
                    cause,
                    annotation(names::ANNOTATION_CAUSE_MESSAGE).unwrap_or_default(),
                )
            }),
            // A time that can't be read was long ago.
            ending: ending.map(|time| time.parse().unwrap_or(Timestamp::UNIX_EPOCH)),
            tampered,
        }
    }

    /// Whether nothing of the pod runs any more. The phase lags behind the containers, so they are asked.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        let phase_over = self.phase == "Succeeded" || self.phase == "Failed";
        let containers_over = !self.agent.running && !self.recorder.running;
        let one_ended = self.agent.ended.is_some() || self.recorder.ended.is_some();
        containers_over && (one_ended && self.agent.waiting.is_none() || phase_over)
    }

    /// The cause for which the operator ended it, if that is one.
    #[must_use]
    pub fn own_cause(&self) -> Option<(Reason, String)> {
        let (reason, message) = self.cause.as_ref()?;
        Some((reason.parse().ok()?, message.clone()))
    }

    /// Whether the agent container has ended while the recorder still runs.
    #[must_use]
    pub fn is_winding_down(&self) -> bool {
        self.agent.ended.is_some() && self.recorder.running
    }

    /// The pull of an image that fails.
    #[must_use]
    pub fn failing_pull(&self) -> Option<FailingPull> {
        [
            (&self.recorder, "the supervisor's image"),
            (&self.agent, "the image"),
        ]
        .into_iter()
        .find_map(|(container, what)| {
            let (reason, message) = container.waiting.as_ref()?;
            let hopeless = HOPELESS_PULLS.contains(&reason.as_str());
            (hopeless || RETRIED_PULLS.contains(&reason.as_str())).then(|| FailingPull {
                hopeless,
                message: format!("{what} can't be pulled: {reason}: {message}"),
            })
        })
    }

    /// What the kubelet says of a container that can't be made.
    #[must_use]
    pub fn waiting_message(&self) -> Option<String> {
        [&self.agent, &self.recorder].into_iter().find_map(|container| {
            let (reason, message) = container.waiting.as_ref()?;
            (!message.is_empty()).then(|| format!("{reason}: {message}"))
        })
    }

    /// The completion record, if the recorder left one that can be read.
    #[must_use]
    pub fn record(&self) -> Option<CompletionRecord> {
        serde_json::from_str(&self.recorder.ended.as_ref()?.message).ok()
    }
}

impl ContainerView {
    fn of(status: &ContainerStatus) -> Self {
        let state = status.state.clone().unwrap_or_default();
        Self {
            waiting: state.waiting.map(|waiting| {
                (
                    waiting.reason.unwrap_or_default(),
                    waiting.message.unwrap_or_default(),
                )
            }),
            started: status.started.unwrap_or_default() && state.running.is_some(),
            running: state.running.is_some(),
            ended: state.terminated.map(|end| ContainerEnd {
                exit_code: end.exit_code,
                reason: end.reason.unwrap_or_default(),
                message: end.message.unwrap_or_default(),
                started_at: end.started_at.map(|time| time.0),
                finished_at: end.finished_at.map(|time| time.0),
            }),
            restarts: status.restart_count,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde_json::json;

    use super::*;
    use crate::testing::merge;

    #[test]
    fn a_pod_whose_labels_orders_to_the_runtime_or_spec_were_changed_is_told_from_one_that_ends() {
        let mark = json!({names::ANNOTATION_CAUSE_TIME: "2026-01-01T00:00:00Z"});
        let table = [
            (json!({}), None),
            // Before Kubernetes 1.34 nobody counts.
            (json!({"generation": null}), None),
            (json!({"annotations": {"cni.example/addresses": "x"}}), None),
            (json!({"labels": {"topology.kubernetes.io/zone": "x"}}), None),
            (json!({"generation": 2, "annotations": mark}), None),
            // With the mark of an end, but another change.
            (
                json!({"generation": 3, "annotations": mark}),
                Some("its spec was changed"),
            ),
            (
                json!({"generation": 2, "deletionTimestamp": "2026-01-01T00:00:00Z"}),
                None,
            ),
            (json!({"generation": 2}), Some("its spec was changed")),
            (json!({"labels": {"team": "x"}}), Some("its labels were changed")),
            (
                json!({"annotations": {"io.katacontainers.config.hypervisor.kernel_params": "x"}}),
                Some("it was annotated with io.katacontainers.config.hypervisor.kernel_params"),
            ),
        ];
        let labels = BTreeMap::from([(names::LABEL_SANDBOX.to_owned(), "job".to_owned())]);
        for (change, expected) in table {
            let spec = json!({"activeDeadlineSeconds": ENDING_SECONDS, "containers": []});
            let mut pod = json!({"metadata": {"generation": 1, "labels": labels}, "spec": spec});
            merge(&mut pod["metadata"], change.clone());
            let view = PodView::of(&serde_json::from_value(pod).unwrap(), &labels);
            assert_eq!(view.tampered.as_deref(), expected, "{change}");
        }
        let alive = json!({"generation": 2, "labels": labels, "annotations": mark});
        let pod = json!({"metadata": alive, "spec": {"activeDeadlineSeconds": 600, "containers": []}});
        let view = PodView::of(&serde_json::from_value(pod).unwrap(), &labels);
        assert_eq!(
            view.tampered.as_deref(),
            Some("its spec was changed"),
            "a mark alone ends nothing"
        );
    }
}
