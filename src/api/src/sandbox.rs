//! `AgentSandbox`: one run of one agent.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::action::Capture as CaptureMeans;
use crate::isolation::IsolationLevel;
use crate::reason::Reason;
use crate::run::{ProbeOutcome, RequiredCapture, UsageSource};
pub use crate::schema::Quantity;

/// Spec is immutable while `runId` stays the same; these four fields aside.
const IMMUTABLE: &str = "self.runId != oldSelf.runId || (\
self.policyRef == oldSelf.policyRef && self.image == oldSelf.image && self.workingDir == oldSelf.workingDir && \
has(self.command) == has(oldSelf.command) && (!has(self.command) || self.command == oldSelf.command) && \
has(self.args) == has(oldSelf.args) && (!has(self.args) || self.args == oldSelf.args) && \
has(self.env) == has(oldSelf.env) && (!has(self.env) || self.env == oldSelf.env) && \
has(self.session) == has(oldSelf.session) && (!has(self.session) || self.session == oldSelf.session) && \
has(self.resources) == has(oldSelf.resources) && (!has(self.resources) || self.resources == oldSelf.resources) && \
has(self.limits) == has(oldSelf.limits) && (!has(self.limits) || self.limits == oldSelf.limits) && \
has(self.files) == has(oldSelf.files) && (!has(self.files) || self.files == oldSelf.files) && \
has(self.workspace) == has(oldSelf.workspace) && (!has(self.workspace) || self.workspace == oldSelf.workspace) && \
has(self.result) == has(oldSelf.result) && (!has(self.result) || self.result == oldSelf.result))";

/// One run of one agent: a command in an isolated, network-denied, bounded pod.
///
/// Everything but `runId`, `suspend`, `stop` and `ttlSecondsAfterFinished` is immutable while `runId` stays the same.
#[derive(CustomResource, KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "agentsandbox.dev",
    version = "v1alpha1",
    kind = "AgentSandbox",
    plural = "agentsandboxes",
    namespaced,
    status = "AgentSandboxStatus",
    derive = "PartialEq",
    shortname = "asb",
    shortname = "sandbox",
    category = "agents",
    selectable = ".spec.policyRef.name",
    doc = "One run of one agent: a command in an isolated, network-denied, bounded pod, whose verdict and measured usage stand in status.",
    validation = Rule::new("self.metadata.name.size() <= 52").message("metadata.name must be at most 52 characters"),
    printcolumn(name = "Phase", type_ = "string", json_path = ".status.phase"),
    printcolumn(name = "Reason", type_ = "string", json_path = ".status.reason"),
    printcolumn(name = "Exit", type_ = "integer", json_path = ".status.result.exitCode"),
    printcolumn(name = "Policy", type_ = "string", json_path = ".spec.policyRef.name"),
    printcolumn(name = "Runtime", type_ = "string", json_path = ".status.isolation.runtimeClassName"),
    printcolumn(name = "Duration", type_ = "string", json_path = ".status.duration"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(name = "Isolation", type_ = "string", json_path = ".status.isolation.level", priority = 1),
    printcolumn(name = "Node", type_ = "string", json_path = ".status.nodeName", priority = 1)
)]
#[x_kube(
    validation = Rule::new(IMMUTABLE).message("spec is immutable while runId stays the same: set another runId to run again, or create another AgentSandbox"),
    validation = Rule::new("has(self.session) != (has(self.command) && self.command.size() > 0)").message("set either command (the program to run) or session, not both"),
)]
#[serde(rename_all = "camelCase")]
pub struct AgentSandboxSpec {
    /// The `SandboxPolicy` of the same namespace that bounds this sandbox. Without a policy object named `default`,
    /// a built-in policy holds for that name: a microVM, no egress, small ceilings.
    #[serde(default)]
    pub policy_ref: PolicyRef,

    /// Container image that holds the program. The policy says which images are allowed.
    #[schemars(length(min = 1, max = 512), regex(pattern = r"^[^\s]+$"))]
    pub image: String,

    /// Program and its first arguments, as in a container's `command`. Required unless `session` is set. No shell is
    /// involved; a name without a slash is looked up in the image's PATH.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64), inner(length(max = 32768)))]
    pub command: Option<Vec<String>>,

    /// Further arguments, appended to `command`. Command, arguments and environment together hold at most 96 KiB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 256), inner(length(max = 32768)))]
    pub args: Option<Vec<String>>,

    /// Working directory of the command; made if it is missing in a writable folder.
    #[serde(default = "default_working_dir")]
    #[schemars(length(max = 512), regex(pattern = "^/"))]
    pub working_dir: String,

    /// Environment: names and literal values. Names that begin with SANDBOX_, AGENTSANDBOX_, KUBERNETES_ or LD_, and
    /// the proxy variables, are reserved. Secrets do not belong here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    #[schemars(length(max = 64))]
    pub env: Option<Vec<EnvVar>>,

    /// Run without a command and take steps instead.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session: Option<Session>,

    /// CPU, memory, disk and processes. Each is both request and limit; the policy fills in what is absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resources: Option<Resources>,

    /// Ceilings of the run, enforced outside the agent; the policy fills in what is absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limits: Option<Limits>,

    /// Code and input of the run, written into the sandbox as copies before the command starts; inline contents hold
    /// at most 64 KiB in all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub files: Option<Vec<File>>,

    /// The one folder that the run may fill, `/workspace`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workspace: Option<Workspace>,

    /// What of the run's own text is kept in status.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result: Option<ResultOptions>,

    /// How long the pod of this run is kept once it has finished, in seconds; 0 removes it at once. Overrides the
    /// policy's TTLs, within the policy's maximum. The AgentSandbox itself stays, with its verdict.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 31_536_000))]
    pub ttl_seconds_after_finished: Option<i64>,

    /// Any string. A finished sandbox runs again only when this changes.
    #[serde(default)]
    #[schemars(length(max = 64))]
    pub run_id: String,

    /// Do not start yet. Has no effect on a run that has begun.
    #[serde(default)]
    pub suspend: bool,

    /// End the run now; its verdict is `Stopped`.
    #[serde(default)]
    pub stop: bool,
}

fn default_working_dir() -> String {
    crate::names::PATH_WORKSPACE.to_owned()
}

/// Name of a policy in the same namespace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PolicyRef {
    /// Name of the `SandboxPolicy`.
    #[serde(default = "default_policy")]
    #[schemars(length(min = 1, max = 52))]
    pub name: String,
}

impl Default for PolicyRef {
    fn default() -> Self {
        Self {
            name: default_policy(),
        }
    }
}

fn default_policy() -> String {
    "default".to_owned()
}

/// One environment entry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct EnvVar {
    /// Name.
    #[schemars(length(min = 1, max = 256), regex(pattern = "^[A-Za-z_][A-Za-z0-9_]*$"))]
    pub name: String,
    /// Literal value; nothing is expanded.
    #[serde(default)]
    #[schemars(length(max = 32768))]
    pub value: String,
}

/// A sandbox that takes steps instead of running one command.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Session {
    /// The session ends after so many seconds without a step.
    #[schemars(range(min = 1, max = 86_400))]
    pub idle_timeout_seconds: i32,
}

/// CPU, memory, disk and processes; each is both request and limit.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Resources {
    /// CPUs, such as `500m` or `2`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu: Option<Quantity>,
    /// Memory, such as `512Mi`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<Quantity>,
    /// Everything the run may write to disk: workspace, `/tmp` and output, such as `1Gi`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ephemeral_storage: Option<Quantity>,
    /// Most processes and threads at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65_536))]
    pub processes: Option<i32>,
}

/// Ceilings of a run.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Limits {
    /// Wall-clock seconds, from the start of the command.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 2_592_000))]
    pub runtime_seconds: Option<i32>,
    /// Model tokens, input and output together. Without a model in the policy no token can be spent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub tokens: Option<i64>,
    /// Model requests. Without a model in the policy none can be made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub model_requests: Option<i64>,
    /// Steps: model requests and commands of a session together.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub steps: Option<i64>,
    /// Bytes through the egress gateway, both ways together.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub egress_bytes: Option<i64>,
}

/// One file, or the files of one `ConfigMap`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[x_kube(validation = Rule::new("has(self.content) != has(self.configMapRef)").message("set exactly one of content and configMapRef"))]
#[serde(rename_all = "camelCase")]
pub struct File {
    /// Where it goes: relative to the workspace, or absolute below `/workspace` or `/tmp`. With `configMapRef` this is
    /// a folder, and each key becomes a file in it.
    #[schemars(length(min = 1, max = 512))]
    pub path: String,
    /// The content, as text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 65536))]
    pub content: Option<String>,
    /// A `ConfigMap` of the same namespace that carries the label `agentsandbox.dev/usable-by-sandboxes: "true"`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config_map_ref: Option<LocalRef>,
    /// Permission bits, as a decimal number: 420 is 0644, 493 is 0755.
    #[serde(default = "default_mode")]
    #[schemars(range(min = 0, max = 511))]
    pub mode: i32,
}

fn default_mode() -> i32 {
    0o644
}

/// Name of an object of the same namespace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct LocalRef {
    /// Name.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
}

/// The workspace: an empty folder for this run alone, unless a claim is named.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Workspace {
    /// Most bytes in it; at most `resources.ephemeralStorage`, three quarters of that if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<Quantity>,
    /// Use a claim instead. The policy must name it, and it must carry the label
    /// `agentsandbox.dev/usable-by-sandboxes: "true"`. Two live runs never share one unless the policy says so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub persistent_volume_claim: Option<ClaimRef>,
}

/// A claim of the same namespace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ClaimRef {
    /// Name of the `PersistentVolumeClaim`.
    #[schemars(length(min = 1, max = 253))]
    pub claim_name: String,
}

/// What of the run's own text is kept in status.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ResultOptions {
    /// Whether output and the end of standard error are kept.
    #[serde(default)]
    pub capture: Capture,
}

/// Whether the run's own text is kept in status.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Capture {
    /// Keep `result.output`, and the last lines of standard error of a failed run.
    #[default]
    Text,
    /// Keep neither.
    None,
}

/// What is known of a sandbox. The operator writes it, but for `egress`, which is the egress gateway's.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct AgentSandboxStatus {
    /// The `metadata.generation` that this status speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// The run that this status speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run_id: Option<String>,
    /// One word for people; programs read the conditions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phase: Option<Phase>,
    /// The reason that belongs to the phase, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Name of the run's pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod_name: Option<String>,
    /// UID of the run's pod: a pod of this run was made, and no other will be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod_uid: Option<String>,
    /// The node it ran on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_name: Option<String>,
    /// When the command started, or the pod if the command's start was never reported.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start_time: Option<Time>,
    /// When the run ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub completion_time: Option<Time>,
    /// When the run's pod is removed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expiration_time: Option<Time>,
    /// From start to end, for people (`1m4s`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub duration: Option<String>,
    /// The policy as it stood when the run was accepted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<PolicyStatus>,
    /// The isolation that was asked for and the one that was observed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub isolation: Option<IsolationStatus>,
    /// What the network probe found.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<NetworkStatus>,
    /// How the run ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result: Option<RunResult>,
    /// What the run used. A figure that could not be measured is absent, never 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usage: Option<Usage>,
    /// What the egress gateway allowed, denied and metered. The gateway alone writes it; it is its own evidence.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub egress: Option<EgressStatus>,
    /// The action log in figures, once the run has ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub audit: Option<AuditStatus>,
    /// Steps of a session, once the run has ended; `kubectl sandbox get` shows them while it runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session: Option<SessionStatus>,
    /// Conditions, see the API reference for when each is `True`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    #[schemars(length(max = 16))]
    pub conditions: Vec<Condition>,
}

/// One word for where a sandbox stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub enum Phase {
    /// Not accepted yet: something it needs is missing.
    Pending,
    /// `spec.suspend` is set.
    Suspended,
    /// Accepted; waits for room in the quota.
    Queued,
    /// Its pod is being made.
    Starting,
    /// Its command runs.
    Running,
    /// Ended well.
    Succeeded,
    /// Ended otherwise.
    Failed,
}

impl std::fmt::Display for Phase {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::fmt::Debug::fmt(self, f)
    }
}

/// A policy at one generation.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PolicyStatus {
    /// Name.
    pub name: String,
    /// Its `metadata.generation`; 0 is the built-in policy.
    pub generation: i64,
    /// What it gave the run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub terms: Option<RunTerms>,
}

/// What a policy gave a run when its pod was made, and what does not change with the policy. A policy that demands more
/// since ends the run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RunTerms {
    /// The weakest isolation under which the command may start.
    pub minimum: IsolationLevel,
    /// Whether the command runs as user 0.
    pub root: bool,
    /// What must be captured of its actions.
    pub require: RequiredCapture,
    /// How long the run may take, in seconds.
    pub runtime_seconds: i32,
}

/// The isolation that was asked for and the one that was observed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct IsolationStatus {
    /// The runtime class of the pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub runtime_class_name: Option<String>,
    /// The level that was observed inside the pod, checked against the node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub level: Option<IsolationLevel>,
    /// The kernel release seen inside the pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guest_kernel: Option<String>,
    /// The kernel release of the node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_kernel: Option<String>,
}

/// What the network probe found. It proves the moment of each round, not the future; it repeats during the run.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct NetworkStatus {
    /// The first round in which every destination was as it must be, before the command started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub isolated_at: Option<Time>,
    /// How many rounds were run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rounds: Option<i32>,
    /// Outcome of the last round by `destination/transport`. `Timeout` and `Unreachable` mean closed; `Refused` and
    /// `Connected` mean that a packet got out.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub probes: BTreeMap<String, ProbeOutcome>,
}

/// How a run ended.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RunResult {
    /// Exit code of the command; 128 + signal if a signal ended it; absent if it never started or never reported.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    /// The signal that ended it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signal: Option<i32>,
    /// Why the run ended; the reason of the `Succeeded` condition.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<Reason>,
    /// For people. Ends with the last lines of standard error if the run failed: text of the sandbox, not to be trusted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// What the command left in the file that `$SANDBOX_OUTPUT` names, at most 1 KiB: text of the sandbox, not to be trusted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output: Option<String>,
    /// Who says so: `Guest` is the sandbox's own supervisor, `Kubelet` the node, `Operator` the controller.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub evidence: Option<Evidence>,
}

/// Who vouches for a result.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Evidence {
    /// The recorder and supervisor inside the sandbox.
    #[default]
    Guest,
    /// The kubelet's account of the pod.
    Kubelet,
    /// The operator's own observation.
    Operator,
}

/// What the egress gateway allowed, denied and metered for one run.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct EgressStatus {
    /// UID of the run's pod: figures of another pod are another run's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod_uid: Option<String>,
    /// What the gateway has taken from the run's budgets, in chunks, before it spends them. What a crashed gateway had
    /// taken and not spent stays taken, so that no restart gives a budget back.
    #[serde(default)]
    pub claimed: EgressCounters,
    /// What was spent so far.
    #[serde(default)]
    pub used: EgressCounters,
    /// Tokens read by models, of `used.tokens`.
    #[serde(default)]
    pub input_tokens: i64,
    /// Tokens written by models, of `used.tokens`.
    #[serde(default)]
    pub output_tokens: i64,
    /// Tokens of `used.tokens` that were charged by estimate, because the provider did not say.
    #[serde(default)]
    pub estimated_tokens: i64,
    /// Connections, requests and steps allowed.
    #[serde(default)]
    pub allowed: i64,
    /// Look-ups, connections, requests and steps refused.
    #[serde(default)]
    pub denied: i64,
    /// The last destinations refused, at most 16, the latest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub denials: Vec<EgressDenial>,
    /// The budget that was used up, as the reason with which the run ends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exhausted: Option<Reason>,
    /// Decisions in the gateway's own log of this run.
    #[serde(default)]
    pub records: i64,
    /// Hash of the last of these records, which covers all before it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub head: Option<String>,
    /// Whether these figures are final: the pod has ended and nothing of it is open.
    #[serde(default)]
    pub settled: bool,
}

/// Counters of what a run spends at the gateway.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct EgressCounters {
    /// Model tokens, input and output together.
    #[serde(default)]
    pub tokens: i64,
    /// Model requests; each is a step too.
    #[serde(default)]
    pub model_requests: i64,
    /// Steps: model requests, and the steps of a session under a policy with models.
    #[serde(default)]
    pub steps: i64,
    /// Bytes, both ways together.
    #[serde(default)]
    pub bytes: i64,
}

/// A destination that was refused.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct EgressDenial {
    /// Host or address, and port if known: text of the sandbox, not to be trusted.
    pub destination: String,
    /// Why, as in the answer that the sandbox got.
    pub reason: String,
    /// How often.
    pub count: i64,
    /// When last.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "crate::schema::time_or_none"
    )]
    pub last_time: Option<Time>,
}

/// The action log of a run in figures. The log itself is the output of the pod's container `recorder`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct AuditStatus {
    /// Records in the log.
    pub records: i64,
    /// SHA-256 of the last record, in hexadecimal digits: it covers all before it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub head: Option<String>,
    /// By which means each kind of action was captured.
    pub capture: CaptureMeans,
    /// Actions that were seen and have no record of their own, because the run's share of the log was used up.
    #[serde(default)]
    pub suppressed: i64,
    /// Actions of which the path or arguments could not be read.
    #[serde(default)]
    pub unreadable: i64,
    /// Records that could not be written, because the log was stalled when the run ended.
    #[serde(default)]
    pub lost: i64,
    /// Who says so.
    pub evidence: Evidence,
}

/// Steps of a session.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SessionStatus {
    /// Steps that were started.
    pub steps: i64,
    /// Steps that were refused.
    #[serde(default)]
    pub refused: i64,
    /// The last ones, the latest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8))]
    pub last_steps: Vec<StepStatus>,
}

/// One step.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct StepStatus {
    /// Its number, from 1.
    pub step: i64,
    /// Program and arguments, shortened: text of whoever took the step, not to be trusted.
    pub command: String,
    /// When it began.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start_time: Option<Time>,
    /// How long it took, for people (`1.2s`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub duration: Option<String>,
    /// Its exit code; absent if it was ended with the run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
}

/// What a run used.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Usage {
    /// From the start of the command to its end, in seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wall_seconds: Option<f64>,
    /// User and system time, in seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_seconds: Option<f64>,
    /// Highest memory use, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_peak_bytes: Option<i64>,
    /// Bytes written to disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk_written_bytes: Option<i64>,
    /// Most processes at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub processes_peak: Option<i64>,
    /// Bytes sent by the pod, the recorder's probes included.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes_sent: Option<i64>,
    /// Bytes received by the pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes_received: Option<i64>,
    /// Programs executed, where commands are captured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub commands: Option<i64>,
    /// Files of the workspace that are new, changed or gone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub files_changed: Option<i64>,
    /// Steps: model requests and commands of a session together.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub steps: Option<i64>,
    /// Model requests that the gateway sent on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model_requests: Option<i64>,
    /// Model tokens read, by the provider's count.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub input_tokens: Option<i64>,
    /// Model tokens written, by the provider's count.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output_tokens: Option<i64>,
    /// Connections, requests and steps that the gateway allowed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub egress_allowed: Option<i64>,
    /// Look-ups, connections, requests and steps that the gateway refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub egress_denied: Option<i64>,
    /// Where each measured figure comes from, by its field name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub source: BTreeMap<String, UsageSource>,
}
