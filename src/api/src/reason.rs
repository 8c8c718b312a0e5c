//! Why a run ended: the reasons of the `Succeeded` condition.

use serde::{Deserialize, Serialize};

/// Why a run ended. Two are successes: [`Reason::Completed`] and [`Reason::IdleTimeout`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "crd", derive(schemars::JsonSchema))]
pub enum Reason {
    /// The command ended with exit code 0.
    Completed,
    /// The command ended with another exit code.
    NonZeroExit,
    /// The command was ended by a signal that nobody of ours sent.
    Signaled,
    /// The kernel, or the supervisor where the kernel can't, ended the command at its memory limit.
    #[serde(rename = "OOMKilled")]
    OomKilled,
    /// The run reached `limits.runtimeSeconds`.
    DeadlineExceeded,
    /// A session took no step for its idle timeout.
    IdleTimeout,
    /// `spec.stop` was set.
    Stopped,
    /// The run used up `limits.tokens`.
    TokenBudgetExceeded,
    /// The run used up `limits.modelRequests`.
    ModelRequestBudgetExceeded,
    /// The run used up `limits.steps`.
    StepBudgetExceeded,
    /// The run used up `limits.egressBytes`.
    EgressByteBudgetExceeded,
    /// The run wrote more than its workspace or ephemeral storage holds.
    DiskLimitExceeded,
    /// The run was ended because it had more processes than allowed, where the kernel could not refuse them.
    ProcessLimitExceeded,
    /// The sandbox asks for what its policy, or the policy as it was tightened, does not allow.
    PolicyRejected,
    /// The policy was deleted during the run.
    PolicyDeleted,
    /// A forbidden destination was reachable, before the run or during it.
    NetworkNotIsolated,
    /// What was observed inside the pod is weaker than `isolation.minimum`.
    IsolationTooWeak,
    /// What `audit.require` asks for can't be captured.
    AuditUnavailable,
    /// The image could not be pulled within the bound.
    ImagePullFailed,
    /// The pod did not come to run the command within the bound.
    StartTimeout,
    /// The kubelet evicted the pod.
    Evicted,
    /// The node stopped reporting.
    NodeLost,
    /// The pod went away, or ended without a completion record that agrees with what the kubelet saw.
    SandboxLost,
    /// What the API server made of the pod is not what the operator built.
    PodMutated,
    /// A pod of the name that the run needs exists and belongs to somebody else.
    PodConflict,
    /// A writable mount that the operator did not make was found in the sandbox (an image's `VOLUME`).
    UnexpectedMount,
    /// The process that would start the command holds more rights than the pod was built with.
    UnexpectedPrivilege,
}

impl Reason {
    /// Whether this end counts as a success.
    #[must_use]
    pub fn is_success(self) -> bool {
        matches!(self, Self::Completed | Self::IdleTimeout)
    }

    /// The field of the budget that the run has used up, if this is why it ended.
    #[must_use]
    pub fn budget(self) -> Option<&'static str> {
        match self {
            Self::TokenBudgetExceeded => Some("limits.tokens"),
            Self::ModelRequestBudgetExceeded => Some("limits.modelRequests"),
            Self::StepBudgetExceeded => Some("limits.steps"),
            Self::EgressByteBudgetExceeded => Some("limits.egressBytes"),
            _ => None,
        }
    }

    /// The name as it stands in conditions, records and metrics.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Completed => "Completed",
            Self::NonZeroExit => "NonZeroExit",
            Self::Signaled => "Signaled",
            Self::OomKilled => "OOMKilled",
            Self::DeadlineExceeded => "DeadlineExceeded",
            Self::IdleTimeout => "IdleTimeout",
            Self::Stopped => "Stopped",
            Self::TokenBudgetExceeded => "TokenBudgetExceeded",
            Self::ModelRequestBudgetExceeded => "ModelRequestBudgetExceeded",
            Self::StepBudgetExceeded => "StepBudgetExceeded",
            Self::EgressByteBudgetExceeded => "EgressByteBudgetExceeded",
            Self::DiskLimitExceeded => "DiskLimitExceeded",
            Self::ProcessLimitExceeded => "ProcessLimitExceeded",
            Self::PolicyRejected => "PolicyRejected",
            Self::PolicyDeleted => "PolicyDeleted",
            Self::NetworkNotIsolated => "NetworkNotIsolated",
            Self::IsolationTooWeak => "IsolationTooWeak",
            Self::AuditUnavailable => "AuditUnavailable",
            Self::ImagePullFailed => "ImagePullFailed",
            Self::StartTimeout => "StartTimeout",
            Self::Evicted => "Evicted",
            Self::NodeLost => "NodeLost",
            Self::SandboxLost => "SandboxLost",
            Self::PodMutated => "PodMutated",
            Self::PodConflict => "PodConflict",
            Self::UnexpectedMount => "UnexpectedMount",
            Self::UnexpectedPrivilege => "UnexpectedPrivilege",
        }
    }
}

impl std::str::FromStr for Reason {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        serde_json::from_value(serde_json::Value::String(text.to_owned())).map_err(|_| ())
    }
}

impl std::fmt::Display for Reason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}
