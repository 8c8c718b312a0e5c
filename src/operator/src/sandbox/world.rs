//! Everything a decision about one sandbox depends on, and everything that can come of it.

use std::net::IpAddr;
use std::time::Duration;

use agentsandbox_api::isolation::IsolationRequirement;
use agentsandbox_api::reason::Reason;
use agentsandbox_api::sandbox::{AgentSandbox, AgentSandboxStatus};
use k8s_openapi::jiff::Timestamp;

use crate::build::pod::RunIdentity;
use crate::config::Config;
use crate::policy::valid::ValidPolicy;
use crate::sandbox::admit::AdmittedRun;
use crate::sandbox::pod_view::PodView;
use crate::sandbox::verdict::Verdict;

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
    /// It holds, and its quota does not stand yet.
    Applying,
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
    /// The namespace's quota would have no room if nothing else ran.
    AboveQuota(String),
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
    /// Mark the pod with the cause and end it.
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
