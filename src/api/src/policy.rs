//! `SandboxPolicy`: what the sandboxes of a namespace may do. An administrator's object.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Toleration;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::isolation::IsolationLevel;
use crate::run::RequiredCapture;
use crate::sandbox::{Limits, Quantity, Resources};

/// What the sandboxes of a namespace that name this policy may do. Who may write one decides what runs there.
#[derive(CustomResource, KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "agentsandbox.dev",
    version = "v1alpha1",
    kind = "SandboxPolicy",
    plural = "sandboxpolicies",
    namespaced,
    status = "SandboxPolicyStatus",
    derive = "PartialEq",
    derive = "Default",
    shortname = "sbp",
    category = "agents",
    doc = "What the sandboxes of a namespace that name this policy may do: isolation, images, ceilings, network, cleanup.",
    validation = Rule::new("self.metadata.name.size() <= 52").message("metadata.name must be at most 52 characters"),
    printcolumn(name = "Ready", type_ = "string", json_path = r#".status.conditions[?(@.type=="Ready")].status"#),
    printcolumn(name = "Reason", type_ = "string", json_path = r#".status.conditions[?(@.type=="Ready")].reason"#),
    printcolumn(name = "Minimum", type_ = "string", json_path = ".spec.isolation.minimum"),
    printcolumn(name = "Runtime", type_ = "string", json_path = ".spec.isolation.runtimeClassName"),
    printcolumn(name = "Running", type_ = "integer", json_path = ".status.sandboxes.running"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
pub struct SandboxPolicySpec {
    /// How strongly sandboxes are separated from their node.
    #[serde(default)]
    pub isolation: Isolation,
    /// Which images may run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub images: Option<Images>,
    /// Where the pods go.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scheduling: Option<Scheduling>,
    /// What is filled in where a sandbox is silent. A figure that is absent here too is the built-in default (1 CPU,
    /// 512Mi, 1Gi of disk, 256 processes, 600 s), or the maximum if that is lower.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub defaults: Option<Ceilings>,
    /// The most a sandbox may ask for; one that asks for more is rejected, with all offending fields named. A figure
    /// that is absent here is the built-in maximum (2 CPUs, 2Gi, 4Gi of disk, 1024 processes, 3600 s, TTL 7 days).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub maximum: Option<Ceilings>,
    /// The most that all sandboxes of the namespace may hold at once. Only one policy of a namespace can have one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quota: Option<Quota>,
    /// Which destinations a sandbox may reach. Nothing, if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub egress: Option<Egress>,
    /// Models that a sandbox may ask. None, if absent.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub models: Vec<Model>,
    /// What must be captured of a run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub audit: Option<Audit>,
    /// Claims that a sandbox may name as its workspace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workspace: Option<WorkspacePolicy>,
    /// How long what a run leaves is kept.
    #[serde(default)]
    pub cleanup: Cleanup,
}

/// How strongly sandboxes are separated from their node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Isolation {
    /// The runtime class of the pods, such as `kata-qemu-runtime-rs`, `kata-vm-isolation` or `gvisor`; the operator's
    /// configured default if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63))]
    pub runtime_class_name: Option<String>,
    /// What must be observed inside the pod at run time. With less, the command does not start.
    #[serde(default = "default_minimum")]
    pub minimum: IsolationLevel,
    /// Let the command run as user 0. Needs `minimum: MicroVM`: on a shared kernel the process limit does not bind root.
    #[serde(default)]
    pub allow_root: bool,
}

impl Default for Isolation {
    fn default() -> Self {
        Self {
            runtime_class_name: None,
            minimum: default_minimum(),
            allow_root: false,
        }
    }
}

fn default_minimum() -> IsolationLevel {
    IsolationLevel::MicroVM
}

/// Which images may run, and how the kubelet gets them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Images {
    /// Allowed images as `registry/path`, each matching that repository and everything below it: `reg.io/org` matches
    /// `reg.io/org/app:1`, and neither `reg.io/org-other` nor `reg.io.evil/org`. Every image, if the list is empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(min = 1, max = 255)))]
    pub allow: Vec<String>,
    /// Allow only images that are named by digest.
    #[serde(default)]
    pub require_digest: bool,
    /// Secrets by which the kubelet, never the sandbox, pulls.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8), inner(length(min = 1, max = 253)))]
    pub pull_secrets: Vec<String>,
    /// When the kubelet pulls. `Always` is forced where `pullSecrets` are set and the image is not named by digest.
    #[serde(default)]
    pub pull_policy: PullPolicy,
}

/// When the kubelet pulls an image.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum PullPolicy {
    /// If the node does not have it.
    #[default]
    IfNotPresent,
    /// Before each run.
    Always,
    /// Never: the node must have it.
    Never,
}

/// Where the pods go. The operator's configuration lists what may be named.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Scheduling {
    /// Labels that the node must have.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 16))]
    pub node_selector: BTreeMap<String, String>,
    /// Taints that the pods tolerate.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub tolerations: Vec<Toleration>,
    /// Priority class of the pods.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub priority_class_name: Option<String>,
}

/// Figures for resources, limits and TTL.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Ceilings {
    /// CPU, memory, disk and processes of one sandbox.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resources: Option<Resources>,
    /// Time, tokens, model requests and steps of one run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limits: Option<Limits>,
    /// Of a maximum: the longest TTL a sandbox may ask for, in seconds. Has no meaning in defaults: see `cleanup`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 31_536_000))]
    pub ttl_seconds_after_finished: Option<i64>,
}

/// The most that all sandboxes of the namespace may hold at once.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Quota {
    /// Sandboxes that have a pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 100_000))]
    pub sandboxes: Option<i64>,
    /// CPUs, the recorders' and the runtime's overhead included.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu: Option<Quantity>,
    /// Memory, the recorders' and the runtime's overhead included.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<Quantity>,
    /// Disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ephemeral_storage: Option<Quantity>,
    /// Model tokens over all runs. Without a model in the policy no token can be spent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub tokens: Option<i64>,
    /// Model requests over all runs. Without a model in the policy none can be made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub model_requests: Option<i64>,
    /// Seconds after which `tokens` and `modelRequests` are there anew; never, if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 60, max = 31_536_000))]
    pub window_seconds: Option<i64>,
}

/// Which destinations a sandbox may reach through the egress gateway.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Egress {
    /// Destinations. Everything that no rule allows is refused, and recorded.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 128))]
    pub allow: Vec<EgressRule>,
}

/// One allowed destination: a host or a range of addresses.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[x_kube(validation = Rule::new("has(self.host) != has(self.cidr)").message("set exactly one of host and cidr"))]
#[serde(rename_all = "camelCase")]
pub struct EgressRule {
    /// A fully qualified name, or `*.` and one: `*.example.org` matches neither `example.org` nor `evilexample.org`.
    /// An address is no host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub host: Option<String>,
    /// A range of addresses, for what is not HTTP; reached by CONNECT through the gateway's proxy. Loopback, link-local
    /// and metadata addresses, the API server, nodes, Services and pods can't be opened.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 43))]
    pub cidr: Option<String>,
    /// Ports. For a host 443 if absent, or 80 with `tls: None`; required for a range.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), inner(range(min = 1, max = 65535)))]
    pub ports: Vec<i32>,
    /// How TLS is treated. If absent: `Inspect` for a wildcard, and where `methods`, `paths`, `credential`,
    /// `maxRequestBytes` or `upgrade` is set; `Passthrough` otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<TlsMode>,
    /// Allowed methods; all but CONNECT and TRACE, if empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        length(max = 16),
        inner(length(min = 1, max = 16), regex(pattern = "^[A-Z]+$"))
    )]
    pub methods: Vec<String>,
    /// Allowed paths, without query: one that ends with `/` allows everything below it, another just itself. All, if
    /// empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(min = 1, max = 512), regex(pattern = "^/")))]
    pub paths: Vec<String>,
    /// A header that the gateway adds; the sandbox never sees its value. Not for wildcards, ranges or `tls: None`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credential: Option<Credential>,
    /// Most bytes of one request's body.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub max_request_bytes: Option<i64>,
    /// Most bytes, both ways together, that one run may exchange by this rule. Each process of the gateway counts by
    /// itself, and one that takes over begins anew; `limits.egressBytes` is the ceiling that nothing resets.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub max_bytes: Option<i64>,
    /// Let a request turn into a WebSocket.
    #[serde(default)]
    pub upgrade: bool,
}

/// How the gateway treats TLS of one rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum TlsMode {
    /// End to end between sandbox and host: the gateway sees the name in the ClientHello, and no request.
    Passthrough,
    /// The gateway answers with a certificate of its own authority, which the sandbox is given, and sees each request.
    Inspect,
    /// No TLS: plain HTTP.
    None,
}

/// A header that the gateway adds to requests.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Credential {
    /// Where the value is. The Secret must consent: its key `agentsandbox.dev.hosts` lists the exact host, one a line.
    pub secret_ref: SecretKey,
    /// Name of the header. Never one that frames or routes a request (`Host`, `Cookie`, `Content-Length`, …).
    #[serde(default = "default_credential_header")]
    #[schemars(length(min = 1, max = 64), regex(pattern = "^[A-Za-z0-9-]+$"))]
    pub header: String,
    /// Its value, in which `{}` stands for the Secret's.
    #[serde(default = "default_credential_format")]
    #[schemars(length(min = 2, max = 128), regex(pattern = r"^[^{}\r\n]*\{\}[^{}\r\n]*$"))]
    pub format: String,
}

fn default_credential_header() -> String {
    "Authorization".to_owned()
}

fn default_credential_format() -> String {
    "Bearer {}".to_owned()
}

/// One key of a Secret of the same namespace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SecretKey {
    /// Name of the Secret.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// Key in it.
    #[schemars(length(min = 1, max = 253))]
    pub key: String,
}

/// Models that a sandbox may ask at one host, each request metered. The host answers the metered endpoints only.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Model {
    /// The provider's API.
    pub provider: Provider,
    /// The host that the sandbox asks.
    #[schemars(length(min = 1, max = 253))]
    pub host: String,
    /// Allowed model names, exactly as a request names them.
    #[schemars(length(min = 1, max = 64), inner(length(min = 1, max = 128)))]
    pub allow: Vec<String>,
    /// The key that the gateway adds for `host`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credential: Option<Credential>,
    /// Ask another host or model instead.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub route: Option<ModelTarget>,
    /// Asked in this order when the one before answers 429 or 5xx, or not in time. Each attempt is charged.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 4))]
    pub fallbacks: Vec<ModelTarget>,
    /// Types of tools that the provider runs itself (`web_search`, `code_interpreter`, …) and a request may ask for.
    /// None, if empty: the provider would reach out with the sandbox's data.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), inner(length(min = 1, max = 64)))]
    pub server_tools: Vec<String>,
    /// Most output tokens of a request that names none.
    #[serde(default = "default_output_tokens")]
    #[schemars(range(min = 1, max = 1_000_000))]
    pub default_output_tokens: i64,
    /// What one image or sound can cost at most: the model's context window, in tokens.
    #[serde(default = "default_context_tokens")]
    #[schemars(range(min = 1, max = 100_000_000))]
    pub context_tokens: i64,
}

fn default_output_tokens() -> i64 {
    4_096
}

fn default_context_tokens() -> i64 {
    200_000
}

/// Where a model request goes instead.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ModelTarget {
    /// The host, which speaks the same provider's API.
    #[schemars(length(min = 1, max = 253))]
    pub host: String,
    /// The model that it is asked for; the one that the request names if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 128))]
    pub model: Option<String>,
    /// The key that the gateway adds for this host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credential: Option<Credential>,
}

/// A provider's API.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Provider {
    /// OpenAI: chat completions, responses, embeddings.
    OpenAI,
    /// Anthropic: messages.
    Anthropic,
    /// A server that speaks OpenAI's chat completions and embeddings.
    OpenAICompatible,
}

/// What must be captured of a run.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Audit {
    /// A sandbox of which one of these can't be captured does not start, and one that hides an action from the capture
    /// is ended (`AuditUnavailable`). Which means of capture a runtime class has stands in `status.audit.capture`.
    #[serde(default)]
    pub require: RequiredCapture,
}

/// Claims that a sandbox may name as its workspace.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct WorkspacePolicy {
    /// Names of claims of this namespace.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(min = 1, max = 253)))]
    pub persistent_volume_claims: Vec<String>,
    /// Let two live runs use the same claim.
    #[serde(default)]
    pub shared: bool,
}

/// How long what a run leaves is kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Cleanup {
    /// Seconds after which the pod of a run that succeeded is removed.
    #[serde(default = "default_succeeded_ttl", rename = "succeededTTLSeconds")]
    #[schemars(range(min = 0, max = 31_536_000))]
    pub succeeded_ttl_seconds: i64,
    /// Seconds after which the pod of a run that failed is removed.
    #[serde(default = "default_failed_ttl", rename = "failedTTLSeconds")]
    #[schemars(range(min = 0, max = 31_536_000))]
    pub failed_ttl_seconds: i64,
    /// Whether the AgentSandbox itself goes too. Refused on objects that Argo CD or Flux track: they would make it
    /// again, and the agent would run again.
    #[serde(default)]
    pub delete_sandbox: DeleteSandbox,
    /// Keep the AgentSandboxes of at most so many finished runs of this policy, the youngest; older ones that no GitOps
    /// tool tracks are deleted. All, if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 100_000))]
    pub keep_finished: Option<i32>,
}

impl Default for Cleanup {
    fn default() -> Self {
        Self {
            succeeded_ttl_seconds: default_succeeded_ttl(),
            failed_ttl_seconds: default_failed_ttl(),
            delete_sandbox: DeleteSandbox::default(),
            keep_finished: None,
        }
    }
}

fn default_succeeded_ttl() -> i64 {
    3_600
}

fn default_failed_ttl() -> i64 {
    86_400
}

/// Whether the AgentSandbox itself is deleted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum DeleteSandbox {
    /// It stays, with its verdict.
    #[default]
    Never,
    /// It goes when its TTL has passed.
    AfterTTL,
}

/// What is known of a policy. The operator writes it, but for `egress`, which is the egress gateway's.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct SandboxPolicyStatus {
    /// The `metadata.generation` that this status speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// How many sandboxes name this policy, by where they stand.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sandboxes: Option<SandboxCounts>,
    /// What the egress gateway has counted against `quota.tokens` and `quota.modelRequests`. The gateway alone writes it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub egress: Option<PolicyEgressStatus>,
    /// `Ready`, `NetworkReady`, `QuotaReady` and `GatewayReady`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    #[schemars(length(max = 16))]
    pub conditions: Vec<Condition>,
}

/// How many sandboxes name a policy, by where they stand.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SandboxCounts {
    /// Waiting: not accepted yet, suspended or queued.
    pub pending: i32,
    /// Starting or running.
    pub running: i32,
    /// Ended well.
    pub succeeded: i32,
    /// Ended otherwise.
    pub failed: i32,
}

/// What runs of a policy have taken of its quota.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PolicyEgressStatus {
    /// When the window began that is counted now.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "crate::schema::time_or_none"
    )]
    pub window_start: Option<Time>,
    /// Tokens taken, those taken and not spent yet included.
    #[serde(default)]
    pub tokens: i64,
    /// Model requests taken.
    #[serde(default)]
    pub model_requests: i64,
}
