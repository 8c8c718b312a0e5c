//! What operator, recorder and supervisor exchange about one run.
//!
//! The operator puts a [`RunSpec`] into the recorder's environment. The supervisor, process 1 of the agent
//! container, connects to the recorder over loopback before any user code exists and sends
//! [`FromSupervisor::Hello`]. The recorder answers [`FromRecorder::Go`] or [`FromRecorder::NoGo`]; at the end
//! the supervisor sends [`FromSupervisor::Ended`], and the recorder writes the [`CompletionRecord`] as its own
//! termination message, where the kubelet finds it and no code of the user's can write. Messages are JSON,
//! one a line.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::action::{AuditSummary, Capture, Seen};
use crate::gateway::GatewayAccess;
use crate::isolation::{IsolationLevel, IsolationRequirement};
use crate::reason::Reason;
use crate::step::{StepNews, StepOrder};

/// Version of [`CompletionRecord`] and of the messages; the operator refuses a record of another.
pub const RECORD_VERSION: u32 = 1;
/// The kubelet keeps at most this much of a termination message.
pub const RECORD_MAX_BYTES: usize = 4096;
/// Ceiling of `result.output`, in bytes after JSON escaping.
pub const OUTPUT_MAX_BYTES: usize = 1024;
/// Ceiling of the standard-error tail in `result.message`, in bytes after JSON escaping.
pub const STDERR_TAIL_MAX_BYTES: usize = 512;

/// Exit code of the supervisor when the recorder refused the start.
pub const EXIT_NO_GO: i32 = 125;
/// Exit code when the command exists and can't be executed, as in a shell.
pub const EXIT_NOT_EXECUTABLE: i32 = 126;
/// Exit code when the command was not found, as in a shell.
pub const EXIT_NOT_FOUND: i32 = 127;

/// Everything the recorder needs for one run. Only `command` reaches the agent container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RunSpec {
    /// UID of the `AgentSandbox`.
    pub sandbox_uid: String,
    /// Its `spec.runId`, empty if unset.
    pub run_id: String,
    /// Namespace of the sandbox.
    #[serde(default)]
    pub namespace: String,
    /// Name of the sandbox.
    #[serde(default)]
    pub sandbox: String,
    /// Name of the policy.
    #[serde(default)]
    pub policy: String,
    /// What must be captured, or the command does not start.
    #[serde(default)]
    pub audit: RequiredCapture,
    /// Take steps instead of running a command, if set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session: Option<SessionSpec>,
    /// What must be observed before the command starts.
    pub isolation: IsolationRequirement,
    /// Destinations the recorder probes, before the start and every [`RunSpec::probe_interval_seconds`].
    pub probes: Vec<ProbeTarget>,
    /// How often the probe repeats during the run, in seconds.
    pub probe_interval_seconds: u32,
    /// How long the recorder waits, from its own start, for the network to be closed, in seconds.
    pub probe_timeout_seconds: u32,
    /// The user's command.
    pub command: CommandSpec,
    /// Files of `ConfigMap`s: what to read below [`crate::names::PATH_RECORDER_FILES`], and where it goes.
    pub mounted_files: Vec<MountedFiles>,
    /// The egress gateway, if the policy allows anything.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway: Option<GatewayAccess>,
}

/// Kinds of action that must be captured.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "crd", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct RequiredCapture {
    /// Every command.
    #[serde(default)]
    pub commands: bool,
    /// Every file written.
    #[serde(default)]
    pub files: bool,
    /// Every attempt to reach the network.
    #[serde(default)]
    pub network: bool,
}

impl RequiredCapture {
    /// Whether anything must be captured.
    #[must_use]
    pub fn is_any(self) -> bool {
        self.commands || self.files || self.network
    }

    /// Whether anything must be captured that need not be by `other`.
    #[must_use]
    pub fn demands_more_than(self, other: Self) -> bool {
        self.commands && !other.commands || self.files && !other.files || self.network && !other.network
    }
}

/// A run that takes steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SessionSpec {
    /// The session ends after so many seconds without a step.
    pub idle_timeout_seconds: u32,
    /// Most steps; unlimited if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub steps: Option<u64>,
    /// Whether each step must be granted by the egress gateway, which counts model requests as steps too.
    #[serde(default)]
    pub gateway_counts: bool,
}

/// Files of one `ConfigMap`: each key becomes a file below `path`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MountedFiles {
    /// Folder in the recorder.
    pub source: String,
    /// Folder in the sandbox.
    pub path: String,
    /// Permission bits.
    pub mode: u32,
}

/// The user's command and what bounds it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CommandSpec {
    /// Program and arguments; the program is looked up in PATH unless it holds a slash. Empty in a session.
    pub argv: Vec<String>,
    /// Whether the run takes steps instead of running a command.
    #[serde(default)]
    pub session: bool,
    /// Entries of the environment beside the image's own, which the agent container already has.
    pub env: BTreeMap<String, String>,
    /// Working directory; made if it is missing below a writable folder.
    pub working_dir: String,
    /// Files written before the start.
    pub files: Vec<FileSpec>,
    /// Wall-clock limit in seconds, from the start of the command.
    pub runtime_seconds: u32,
    /// Most processes and threads of the run at once.
    pub processes: u32,
    /// The agent container's memory limit in bytes.
    pub memory_bytes: u64,
    /// Most bytes in the workspace.
    pub workspace_bytes: u64,
    /// Most bytes in `/tmp`.
    pub tmp_bytes: u64,
    /// Folders that are writable by design; any other writable mount voids the run.
    pub writable: Vec<String>,
    /// Whether output and the tail of standard error are kept in the record.
    pub capture: bool,
    /// User the command must run as.
    pub uid: u32,
    /// What must be captured throughout: an action that can't be read ends the run. The recorder fills it in.
    #[serde(default)]
    pub audit: RequiredCapture,
    /// Certificate (PEM) of the egress gateway's authority, to be trusted beside those that the image trusts. The
    /// recorder fills it in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificate: Option<String>,
}

/// One file of the run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FileSpec {
    /// Path, relative to the workspace or absolute below a writable folder.
    pub path: String,
    /// The content, base64.
    pub content: String,
    /// Permission bits.
    pub mode: u32,
}

/// Transport of a probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Transport {
    /// A connection attempt.
    #[serde(rename = "TCP")]
    Tcp,
    /// A datagram, and whatever comes back.
    #[serde(rename = "UDP")]
    Udp,
}

/// What a probe must find.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Expectation {
    /// Silence, or administratively prohibited. A refused connection is an open road: the packet got out.
    Closed,
    /// An established connection.
    Open,
}

/// One destination to probe.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ProbeTarget {
    /// Short name for status, such as `apiserver`.
    pub name: String,
    /// IP address (IPv4 or IPv6), or `$HOST_IP` for the node's.
    pub address: String,
    /// Port.
    pub port: u16,
    /// TCP or UDP.
    pub transport: Transport,
    /// What must be found.
    pub expect: Expectation,
}

/// What one probe found, by the last round that counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "crd", derive(schemars::JsonSchema))]
pub enum ProbeOutcome {
    /// Nothing came back within 250 ms: closed.
    Timeout,
    /// A local or remote "unreachable" or "prohibited": closed.
    Unreachable,
    /// A reset or a port-unreachable came back: the packet got out, the road is open.
    Refused,
    /// The connection was established, or a datagram came back: open.
    Connected,
    /// The probe itself failed, which proves nothing and counts as not closed and not open.
    Error,
}

impl ProbeOutcome {
    /// Whether this outcome is what `expect` asks for.
    #[must_use]
    pub fn meets(self, expect: Expectation) -> bool {
        match expect {
            Expectation::Closed => matches!(self, Self::Timeout | Self::Unreachable),
            Expectation::Open => matches!(self, Self::Connected),
        }
    }
}

/// Messages of the supervisor to the recorder.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "camelCase")]
pub enum FromSupervisor {
    /// First message, before any user code exists.
    Hello(Evidence),
    /// What is captured, and how: before the command is started.
    Capture(Capture),
    /// The command was started.
    Started {
        /// Unix time in milliseconds.
        at_ms: u64,
    },
    /// What was seen since the last such message, in order.
    Actions {
        /// The actions.
        actions: Vec<Seen>,
    },
    /// News of a step.
    Step {
        /// Its number.
        step: u64,
        /// The news.
        news: StepNews,
    },
    /// The answer to [`FromRecorder::Report`].
    Report(Box<Report>),
    /// The command and everything it started has ended.
    Ended(Box<Ended>),
}

/// Messages of the recorder to the supervisor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "camelCase")]
pub enum FromRecorder {
    /// Start this command.
    Go(Box<CommandSpec>),
    /// Do not start; end with [`EXIT_NO_GO`].
    NoGo {
        /// Why.
        reason: Reason,
        /// For the person who reads the status.
        message: String,
    },
    /// The egress gateway was replaced: trust this authority in place of the one before.
    Trust {
        /// Certificate (PEM) of the authority.
        certificate: String,
    },
    /// Something to do about a step of a session.
    Step {
        /// Its number.
        step: u64,
        /// What to do.
        order: StepOrder,
    },
    /// Say what is in use now.
    Report,
    /// What so many messages of actions told is written down; the log has room for more.
    Taken {
        /// How many since the last such answer.
        messages: u32,
    },
    /// End the run now: kill everything, report.
    Stop {
        /// Why.
        reason: Reason,
        /// For the person who reads the status.
        message: String,
    },
}

/// What a run uses now, as the supervisor measures it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// What was used so far.
    pub usage: MeasuredUsage,
    /// Memory in use now, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_bytes: Option<u64>,
    /// Processes and threads now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub processes: Option<u64>,
    /// Bytes in workspace and `/tmp` now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk_bytes: Option<u64>,
}

/// What the supervisor sees of its own confinement.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Evidence {
    /// `uname -r`.
    pub kernel_release: String,
    /// `/proc/sys/kernel/random/boot_id`.
    pub boot_id: String,
    /// Effective user id.
    pub uid: u32,
    /// Effective, permitted, inheritable, bounding and ambient capabilities, or-ed.
    pub capabilities: u64,
    /// Whether `no_new_privs` is set.
    pub no_new_privs: bool,
    /// Seccomp mode of `/proc/self/status`: 0 none, 2 filter; absent where the kernel does not say (gVisor).
    pub seccomp: Option<u32>,
    /// Mount points that the run's user can write to.
    pub writable_mounts: Vec<String>,
    /// Whether a service-account token is mounted.
    pub service_account_token: bool,
}

/// How the command ended, and what it used.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Ended {
    /// Why, as the supervisor sees it.
    pub reason: Option<Reason>,
    /// Exit code of the command; 128 + signal if a signal ended it.
    pub exit_code: i32,
    /// The signal that ended it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub signal: Option<i32>,
    /// For the person who reads the status; not the user's text.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
    /// Last lines of standard error: the user's text, bounded and free of control characters.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub stderr_tail: String,
    /// What the command left in `$SANDBOX_OUTPUT`: the user's text, bounded and free of control characters.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub output: Option<String>,
    /// What the run used.
    pub usage: MeasuredUsage,
    /// Actions of which path or arguments could not be read.
    #[serde(default)]
    pub unreadable: u64,
    /// Actions that were seen and could not be sent before the end.
    #[serde(default)]
    pub lost: u64,
}

/// Where a figure comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "crd", derive(schemars::JsonSchema))]
pub enum UsageSource {
    /// A counter of cgroup v2, kept by the kernel.
    CgroupV2,
    /// A counter of cgroup v1, kept by the kernel.
    CgroupV1,
    /// `getrusage` of the ended children.
    Rusage,
    /// The highest of the supervisor's own samples: a lower bound.
    Sampled,
}

/// A measured figure with its source.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Figure<T> {
    /// The figure.
    #[serde(rename = "v")]
    pub value: T,
    /// Where it comes from.
    #[serde(rename = "s")]
    pub source: UsageSource,
}

/// What a run used, measured from inside. A figure that could not be measured is absent, never 0.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MeasuredUsage {
    /// From the start of the command to its end, in milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub wall_ms: Option<u64>,
    /// User and system time of the whole container, in milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_ms: Option<Figure<u64>>,
    /// Highest memory use of the whole container, in bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_peak_bytes: Option<Figure<u64>>,
    /// Bytes written to disk, in bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disk_written_bytes: Option<Figure<u64>>,
    /// Most processes at once.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub processes_peak: Option<Figure<u64>>,
    /// Bytes sent by the pod's network interfaces (loopback aside).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes_sent: Option<u64>,
    /// Bytes received by the pod's network interfaces (loopback aside).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes_received: Option<u64>,
}

/// The completion record: the recorder's termination message, at most [`RECORD_MAX_BYTES`] of JSON.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CompletionRecord {
    /// [`RECORD_VERSION`].
    pub version: u32,
    /// UID of the `AgentSandbox`, as in the run spec.
    pub sandbox_uid: String,
    /// UID of the pod, from the downward API.
    pub pod_uid: String,
    /// The run, as in the run spec.
    pub run_id: String,
    /// Whether the supervisor said that the command was started.
    pub started: bool,
    /// Unix time in milliseconds of the start.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub started_at_ms: Option<u64>,
    /// Unix time in milliseconds of the end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ended_at_ms: Option<u64>,
    /// Why the run ended, as recorder and supervisor see it.
    pub reason: Reason,
    /// Exit code that the agent container must show at the kubelet.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    /// The signal that ended the command.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub signal: Option<i32>,
    /// For the person who reads the status.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
    /// See [`Ended::stderr_tail`].
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub stderr_tail: String,
    /// See [`Ended::output`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub output: Option<String>,
    /// What was observed of the isolation.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub isolation: Option<ObservedIsolation>,
    /// What the probe found.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub network: Option<ObservedNetwork>,
    /// What the run used.
    #[serde(default)]
    pub usage: MeasuredUsage,
    /// The action log in figures.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub audit: Option<AuditSummary>,
    /// Steps of a session.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub steps: Option<StepsSummary>,
}

/// Steps of a session: how many, and the last of them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StepsSummary {
    /// Steps that were started.
    pub taken: u64,
    /// Steps that were refused.
    #[serde(default)]
    pub refused: u64,
    /// The last ones, the latest first; at most [`LAST_STEPS`].
    #[serde(default)]
    pub last: Vec<StepSummary>,
}

/// How many steps a [`StepsSummary`] lists.
pub const LAST_STEPS: usize = 5;
/// Longest command text of a listed step, in bytes.
pub const STEP_COMMAND_MAX_BYTES: usize = 64;

/// One step in short.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StepSummary {
    /// Its number, from 1.
    pub step: u64,
    /// Program and arguments, at most [`STEP_COMMAND_MAX_BYTES`]: text of the sandbox's user.
    pub command: String,
    /// Unix time in milliseconds of its start.
    pub started_at_ms: u64,
    /// How long it took, in milliseconds; absent while it runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub duration_millis: Option<u64>,
    /// Its exit code, as the caller got it; absent while it runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
}

/// A run as it stands now: what `sandbox-supervisor status` prints in the recorder container.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LiveState {
    /// Unix time in milliseconds of the command's start; absent before it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at_ms: Option<u64>,
    /// What was used so far.
    #[serde(default)]
    pub usage: MeasuredUsage,
    /// Memory in use now, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_bytes: Option<u64>,
    /// Processes and threads now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub processes: Option<u64>,
    /// Bytes in workspace and `/tmp` now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk_bytes: Option<u64>,
    /// The action log in figures.
    #[serde(default)]
    pub audit: AuditSummary,
    /// Steps of a session.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub steps: Option<StepsSummary>,
}

/// The isolation that was observed inside the pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ObservedIsolation {
    /// The level that follows.
    pub level: IsolationLevel,
    /// `uname -r` inside the pod.
    pub kernel_release: String,
    /// Boot id inside the pod.
    pub boot_id: String,
}

/// What the recorder's probe found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ObservedNetwork {
    /// Unix time in milliseconds of the first round in which every destination was as expected.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub isolated_at_ms: Option<u64>,
    /// How many rounds were run.
    pub rounds: u32,
    /// Outcome by `name/transport`, of the last round.
    pub probes: BTreeMap<String, ProbeOutcome>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refused_connection_is_an_open_road() {
        assert!(!ProbeOutcome::Refused.meets(Expectation::Closed));
        assert!(!ProbeOutcome::Connected.meets(Expectation::Closed));
        assert!(!ProbeOutcome::Error.meets(Expectation::Closed));
        assert!(ProbeOutcome::Timeout.meets(Expectation::Closed));
        assert!(ProbeOutcome::Unreachable.meets(Expectation::Closed));
        assert!(!ProbeOutcome::Refused.meets(Expectation::Open));
    }
}
