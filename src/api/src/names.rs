//! Names the project owns: labels, annotations, finalizers, containers, paths, ports and environment.

/// API group of both custom resources.
pub const GROUP: &str = "agentsandbox.dev";
/// API version of both custom resources.
pub const VERSION: &str = "v1alpha1";

/// Label of every sandbox pod; its value is the sandbox's name. The namespace-wide deny selects by its existence.
pub const LABEL_SANDBOX: &str = "agentsandbox.dev/sandbox";
/// Label of every sandbox pod; its value is the policy's name. The policy's own `NetworkPolicy` selects by it.
pub const LABEL_POLICY: &str = "agentsandbox.dev/policy";
/// Standard label that marks what the operator made.
pub const LABEL_MANAGED_BY: &str = "app.kubernetes.io/managed-by";
/// Value of [`LABEL_MANAGED_BY`], and the field manager of every write of the operator.
pub const MANAGER: &str = "agentsandbox-operator";
/// Label that a `ConfigMap` or `PersistentVolumeClaim` must carry with the value `"true"` to be usable by sandboxes.
pub const LABEL_USABLE: &str = "agentsandbox.dev/usable-by-sandboxes";

/// Finalizer on a sandbox's pod: held until the result stands in the sandbox's status.
pub const FINALIZER_RESULT: &str = "agentsandbox.dev/result";
/// Annotation of the pod: the run it belongs to.
pub const ANNOTATION_RUN: &str = "agentsandbox.dev/run-id";
/// Annotation of the pod: the reason for which the operator ended the run, so that a restarted operator knows.
pub const ANNOTATION_CAUSE: &str = "agentsandbox.dev/ended-because";
/// Annotation of the pod: the message that belongs to [`ANNOTATION_CAUSE`].
pub const ANNOTATION_CAUSE_MESSAGE: &str = "agentsandbox.dev/ended-message";
/// Annotation of the pod: when the operator ended it for [`ANNOTATION_CAUSE`], as RFC 3339.
pub const ANNOTATION_CAUSE_TIME: &str = "agentsandbox.dev/ended-at";

/// Name of the `NetworkPolicy` that denies everything, both ways, to every sandbox pod of a namespace.
pub const DENY_ALL_NETWORK_POLICY: &str = "agentsandbox-deny-all";
/// Prefix of the `NetworkPolicy` of one policy.
pub const NETWORK_POLICY_PREFIX: &str = "agentsandbox-policy-";
/// Prefix of the `ResourceQuota` of one policy.
pub const QUOTA_PREFIX: &str = "agentsandbox-policy-";

/// What stands between a sandbox's name and eight hexadecimal digits in the name of its pod. Admission policies tell
/// sandboxes by it, where a request carries no labels.
pub const POD_MARK: &str = "-sb";

/// Container (a sidecar) that probes the network, gives the go, and writes the completion record.
pub const CONTAINER_RECORDER: &str = "recorder";
/// Container in which the user's command runs, below the supervisor as its process 1.
pub const CONTAINER_AGENT: &str = "agent";

/// Folder into which the recorder installs the supervisor, mounted read-only in the agent container.
pub const PATH_INSTALL: &str = "/.sandbox";
/// The installed supervisor, command of the agent container.
pub const PATH_SUPERVISOR: &str = "/.sandbox/sandbox-supervisor";
/// The supervisor in its own image.
pub const PATH_SUPERVISOR_IN_IMAGE: &str = "/sandbox-supervisor";
/// The recorder's private folder: the mark that it has begun.
pub const PATH_RECORDER_STATE: &str = "/var/run/recorder";
/// Socket in [`PATH_RECORDER_STATE`] where the recorder takes steps and questions from processes of its container.
pub const PATH_STEPS: &str = "/var/run/recorder/steps";
/// Folder of the recorder below which `ConfigMap`s are mounted, one folder each, named by its index in `spec.files`.
pub const PATH_RECORDER_FILES: &str = "/var/run/files";
/// Default working directory and HOME of the user's command.
pub const PATH_WORKSPACE: &str = "/workspace";
/// Scratch folder of the user's command.
pub const PATH_TMP: &str = "/tmp";
/// Where the user's command may leave its output; `$SANDBOX_OUTPUT` names it.
pub const PATH_OUTPUT: &str = "/tmp/.sandbox-output";

/// Port on loopback where the recorder takes the supervisor's one connection.
pub const PORT_CONTROL: u16 = 49_871;
/// Port on the pod's address where the recorder answers the agent container's startup probe.
pub const PORT_STARTUP: u16 = 49_872;

/// Prefix of the recorder's environment entries that carry the run, in order from 0: base64 of the JSON of
/// [`crate::run::RunSpec`], cut into pieces because one entry may not exceed 128 KiB.
pub const ENV_RUN_PREFIX: &str = "SANDBOX_RUN_";
/// The node's address, given to the recorder by the downward API.
pub const ENV_HOST_IP: &str = "SANDBOX_HOST_IP";
/// The pod's UID, given to the recorder by the downward API.
pub const ENV_POD_UID: &str = "SANDBOX_POD_UID";
/// Names the output file in the environment of the user's command.
pub const ENV_OUTPUT: &str = "SANDBOX_OUTPUT";

/// Number of the step, in the environment of its processes.
pub const ENV_STEP: &str = "SANDBOX_STEP";

/// Environment names that a sandbox may not set: ours, the proxies', and those that bend the dynamic loader.
#[must_use]
pub fn is_reserved_env(name: &str) -> bool {
    const PREFIXES: [&str; 4] = ["SANDBOX_", "AGENTSANDBOX_", "KUBERNETES_", "LD_"];
    const NAMES: [&str; 5] = ["HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "ALL_PROXY", "FTP_PROXY"];
    let upper = name.to_ascii_uppercase();
    PREFIXES.iter().any(|prefix| upper.starts_with(prefix)) || NAMES.contains(&upper.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_proxy_and_loader_variables_are_reserved_in_any_case() {
        for name in [
            "SANDBOX_OUTPUT",
            "sandbox_x",
            "https_proxy",
            "NO_PROXY",
            "LD_PRELOAD",
            "KUBERNETES_SERVICE_HOST",
        ] {
            assert!(is_reserved_env(name), "{name}");
        }
        for name in ["PATH", "SANDBOXED", "PROXY", "HOME"] {
            assert!(!is_reserved_env(name), "{name}");
        }
    }
}
