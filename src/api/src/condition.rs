//! Condition types, and the reasons of conditions other than `Succeeded` (for those see [`crate::reason`]).

/// Condition types of both kinds. See the API reference for when each is `True`.
pub mod types {
    /// Policy found, spec within it, runtime class exists, nothing widens the network.
    pub const ACCEPTED: &str = "Accepted";
    /// The recorder's probe saw every forbidden destination closed.
    pub const NETWORK_ISOLATED: &str = "NetworkIsolated";
    /// The command runs; and again when a run has succeeded.
    pub const READY: &str = "Ready";
    /// The run has ended, either way.
    pub const FINISHED: &str = "Finished";
    /// How the run ended; `Unknown` until then.
    pub const SUCCEEDED: &str = "Succeeded";
    /// The children were cleaned up after the TTL; the verdict stays.
    pub const EXPIRED: &str = "Expired";
    /// Work is going on (kstatus).
    pub const RECONCILING: &str = "Reconciling";
    /// Nothing will change without somebody's doing (kstatus).
    pub const STALLED: &str = "Stalled";

    /// Of a policy: its network policies stand.
    pub const NETWORK_READY: &str = "NetworkReady";
    /// Of a policy: its resource quota stands.
    pub const QUOTA_READY: &str = "QuotaReady";
    /// Of a policy: its egress gateway stands.
    pub const GATEWAY_READY: &str = "GatewayReady";
}

/// Reasons of conditions while a sandbox has no verdict.
pub mod reasons {
    /// The sandbox is within its policy.
    pub const WITHIN_POLICY: &str = "WithinPolicy";
    /// The referenced policy does not exist.
    pub const POLICY_NOT_FOUND: &str = "PolicyNotFound";
    /// The referenced policy exists and is not ready.
    pub const POLICY_NOT_READY: &str = "PolicyNotReady";
    /// The runtime class does not exist.
    pub const RUNTIME_CLASS_NOT_FOUND: &str = "RuntimeClassNotFound";
    /// A network policy of somebody else's allows traffic of sandbox pods.
    pub const NETWORK_WIDENED: &str = "NetworkWidened";
    /// The sandbox's network policies do not stand yet.
    pub const NETWORK_NOT_READY: &str = "NetworkNotReady";
    /// The policy's egress gateway does not stand yet, or not any more.
    pub const GATEWAY_NOT_READY: &str = "GatewayNotReady";
    /// A `ConfigMap` or claim is missing or not labelled for sandboxes.
    pub const INPUT_NOT_USABLE: &str = "InputNotUsable";
    /// `spec.suspend` is set.
    pub const SUSPENDED: &str = "Suspended";
    /// The namespace's quota has no room; the sandbox waits its turn.
    pub const QUOTA_EXCEEDED: &str = "QuotaExceeded";
    /// The sandbox alone is above the namespace's quota; others do not wait for it.
    pub const QUOTA_TOO_SMALL: &str = "QuotaTooSmall";
    /// The API server refused the pod, and says why in the message.
    pub const POD_REFUSED: &str = "PodRefused";
    /// The pod waits for a node.
    pub const SCHEDULING: &str = "Scheduling";
    /// The pod's containers are being made.
    pub const STARTING: &str = "Starting";
    /// The image can't be pulled so far; the kubelet retries.
    pub const IMAGE_PULL_RETRYING: &str = "ImagePullRetrying";
    /// The command runs.
    pub const RUNNING: &str = "Running";
    /// The run is being ended.
    pub const ENDING: &str = "Ending";
    /// The run has ended; see `Succeeded`.
    pub const FINISHED: &str = "Finished";
    /// The run has not ended yet.
    pub const NOT_FINISHED: &str = "NotFinished";
    /// The previous run's pod is still going away.
    pub const PREVIOUS_RUN_ENDING: &str = "PreviousRunEnding";
    /// The namespace is being deleted.
    pub const NAMESPACE_TERMINATING: &str = "NamespaceTerminating";
    /// The recorder's probe passed.
    pub const PROBE_PASSED: &str = "ProbePassed";
    /// The recorder's probe did not pass.
    pub const PROBE_FAILED: &str = "ProbeFailed";
    /// The probe has not reported yet.
    pub const NOT_PROBED: &str = "NotProbed";
    /// The TTL has passed and the run's objects are gone.
    pub const TTL_PASSED: &str = "TTLPassed";
    /// `cleanup.deleteSandbox: AfterTTL` is refused on an object that a GitOps tool tracks.
    pub const GITOPS_TRACKED: &str = "GitOpsTracked";

    /// Of a policy: it holds.
    pub const IN_FORCE: &str = "InForce";
    /// Of a policy: a field can't be enforced or contradicts another.
    pub const INVALID: &str = "Invalid";
    /// Of a policy: no such thing is asked for.
    pub const NOT_REQUESTED: &str = "NotRequested";
    /// Of a policy: another policy of the namespace has a quota already.
    pub const QUOTA_OVERLAPS: &str = "QuotaOverlaps";
    /// Of a policy: the API server refused what the operator applied.
    pub const APPLY_FAILED: &str = "ApplyFailed";
    /// Of a policy: what it needs was applied and is not seen back yet.
    pub const APPLYING: &str = "Applying";
}
