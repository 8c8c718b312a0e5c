//! What the supervisor sees of a run and the recorder writes down: the records of the action log.
//!
//! Each record is one line of JSON: the envelope (sequence number, time, class, hash of the record before), and the
//! fields of its [`Action`]. The egress gateway's own records have the same envelope.

use serde::{Deserialize, Serialize};

use crate::reason::Reason;
use crate::run::Transport;

/// An action and its time.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Seen {
    /// Unix time in milliseconds.
    pub at_ms: u64,
    /// The action.
    #[serde(flatten)]
    pub action: Action,
}

/// How an action came to be known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Basis {
    /// What a process asked the kernel for. Its memory may have changed between our look and the kernel's.
    Claimed,
    /// What `/proc` showed afterwards.
    Observed,
}

/// By which means actions of one kind are captured.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "crd", derive(schemars::JsonSchema))]
pub enum Means {
    /// The kernel asks the supervisor about each system call (seccomp user notification).
    SeccompNotify,
    /// The supervisor traces all processes (ptrace), on kernels without that.
    Ptrace,
    /// Not captured, but for what the supervisor itself starts.
    #[default]
    None,
}

/// By which means each kind of action is captured.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "crd", derive(schemars::JsonSchema))]
pub struct Capture {
    /// Programs executed.
    pub commands: Means,
    /// Files opened for writing, removed, renamed, made. What the workspace holds at the end is compared in any case.
    pub files: Means,
    /// Connections and datagrams attempted.
    pub network: Means,
}

/// What a file of the workspace became, from the run's start to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Change {
    /// It is new.
    Created,
    /// Its content, mode or kind is another.
    Modified,
    /// It is gone.
    Deleted,
}

/// One action. Texts are the sandbox's own: bounded and made plain when they are written down.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "activity", rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum Action {
    /// The run begins. The first record.
    Begin {
        /// Namespace of the sandbox.
        namespace: String,
        /// The sandbox.
        sandbox: String,
        /// UID of the pod.
        pod_uid: String,
        /// The run.
        run_id: String,
        /// The policy.
        policy: String,
        /// What is captured, and how.
        capture: Capture,
    },
    /// The run has ended. The last record.
    End {
        /// Why.
        reason: Reason,
        /// Exit code of the command.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        exit_code: Option<i32>,
    },
    /// A program is executed.
    Exec {
        /// How this is known.
        basis: Basis,
        /// The process, as its container numbers it.
        pid: u32,
        /// Its parent, told at least with the first program that a process is observed to execute.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        parent: Option<u32>,
        /// The program's path.
        path: String,
        /// Its arguments, the first its own name.
        argv: Vec<String>,
        /// Whether path or arguments were longer than what is kept.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        cut: bool,
    },
    /// A process that executed a program has ended; without code and signal, a signal that is not known ended it.
    Exit {
        /// The process.
        pid: u32,
        /// Its exit code.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        code: Option<i32>,
        /// The signal that ended it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        signal: Option<i32>,
    },
    /// A process was found in the sandbox that the supervisor's tree did not start: a raw `kubectl exec`.
    Foreign {
        /// The process.
        pid: u32,
        /// Its program.
        path: String,
        /// Its arguments.
        argv: Vec<String>,
    },
    /// A file is opened for writing, or created.
    Open {
        /// The process.
        pid: u32,
        /// The file, absolute where the folder it is relative to is known.
        path: String,
    },
    /// A file or folder is removed.
    Remove {
        /// The process.
        pid: u32,
        /// The file.
        path: String,
    },
    /// A file or folder is renamed, or gets another name.
    Rename {
        /// The process.
        pid: u32,
        /// The file.
        path: String,
        /// Its new name.
        to: String,
    },
    /// A folder is made.
    MakeFolder {
        /// The process.
        pid: u32,
        /// The folder.
        path: String,
    },
    /// What a file of the workspace became, from the run's start to its end.
    Change {
        /// What it became.
        change: Change,
        /// The file, relative to the workspace.
        path: String,
        /// Bytes.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        size: Option<u64>,
        /// Permission bits.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        mode: Option<u32>,
        /// SHA-256 of the content, in hexadecimal digits.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        sha256: Option<String>,
    },
    /// The comparison of the workspace found or left out so much.
    Changes {
        /// Files that are new, changed or gone, those without a record of their own included.
        files: u64,
        /// Of those: how many have no record of their own.
        #[serde(default)]
        unlisted: u64,
        /// Why not everything was looked at, if so: too many entries, too deep, too large, out of time.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        incomplete: Option<String>,
    },
    /// A connection or datagram is attempted from inside.
    Connect {
        /// The process.
        pid: u32,
        /// IP address, or path of a local socket.
        address: String,
        /// Port.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        port: Option<u16>,
        /// TCP or UDP, where it could be told.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        transport: Option<Transport>,
    },
    /// A system call that would reach the supervisor, or leave the filter, was refused.
    Refused {
        /// The process.
        pid: u32,
        /// The call, such as `kill(1, 9)`.
        call: String,
    },
    /// A step of a session begins.
    Step {
        /// Its number, from 1.
        step: u64,
        /// Its process, if it was started.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pid: Option<u32>,
        /// Program and arguments.
        argv: Vec<String>,
    },
    /// A step has ended.
    StepEnd {
        /// Its number.
        step: u64,
        /// Its exit code, as the caller gets it.
        exit_code: i32,
        /// Milliseconds since it began.
        duration_millis: u64,
    },
    /// A step was refused.
    StepRefused {
        /// Program and arguments.
        argv: Vec<String>,
        /// Why.
        reason: String,
    },
    /// The supervisor sends a signal to the command's processes.
    Signal {
        /// The signal.
        signal: i32,
        /// Why.
        reason: Reason,
    },
    /// A resource is nearly used up.
    Warning {
        /// Which: `memory`, `processes`, `disk` or `time`.
        resource: String,
        /// What is used.
        used: u64,
        /// What there is.
        limit: u64,
    },
    /// Records of this kind were left out, because the run's share of the log is used up.
    Suppressed {
        /// How many since the last such record.
        records: u64,
    },
}

impl Action {
    /// Its class number in OCSF (<https://schema.ocsf.io>): 1001 file, 1007 process, 4001 network, 6002 life of the
    /// run, 6003 steps.
    #[must_use]
    pub fn class(&self) -> u16 {
        match self {
            Self::Open { .. }
            | Self::Remove { .. }
            | Self::Rename { .. }
            | Self::MakeFolder { .. }
            | Self::Change { .. }
            | Self::Changes { .. } => 1001,
            Self::Exec { .. } | Self::Exit { .. } | Self::Foreign { .. } | Self::Refused { .. } => 1007,
            Self::Connect { .. } => 4001,
            Self::Step { .. } | Self::StepEnd { .. } | Self::StepRefused { .. } => 6003,
            Self::Begin { .. }
            | Self::End { .. }
            | Self::Signal { .. }
            | Self::Warning { .. }
            | Self::Suppressed { .. } => 6002,
        }
    }

    /// Bytes of memory that it takes, but for what the allocator adds.
    #[must_use]
    pub fn memory_bytes(&self) -> usize {
        let all = |texts: &[String]| {
            let own: usize = texts.iter().map(String::len).sum();
            own + size_of_val(texts)
        };
        let texts = match self {
            Self::Begin {
                namespace,
                sandbox,
                pod_uid,
                run_id,
                policy,
                ..
            } => [namespace, sandbox, pod_uid, run_id, policy]
                .map(String::len)
                .iter()
                .sum(),
            Self::Exec { path, argv, .. } | Self::Foreign { path, argv, .. } => path.len() + all(argv),
            Self::Open { path, .. } | Self::Remove { path, .. } | Self::MakeFolder { path, .. } => path.len(),
            Self::Rename { path, to, .. } => path.len() + to.len(),
            Self::Change { path, sha256, .. } => path.len() + sha256.as_ref().map_or(0, String::len),
            Self::Changes { incomplete, .. } => incomplete.as_ref().map_or(0, String::len),
            Self::Connect { address, .. } => address.len(),
            Self::Refused { call, .. } => call.len(),
            Self::Step { argv, .. } => all(argv),
            Self::StepRefused { argv, reason } => all(argv) + reason.len(),
            Self::Warning { resource, .. } => resource.len(),
            Self::End { .. }
            | Self::Exit { .. }
            | Self::StepEnd { .. }
            | Self::Signal { .. }
            | Self::Suppressed { .. } => 0,
        };
        size_of::<Self>() + texts
    }
}

/// The action log of a run in figures; part of the completion record and of the live state.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AuditSummary {
    /// Records written.
    pub records: u64,
    /// SHA-256 of the last record, in hexadecimal digits: it covers all before it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub head: Option<String>,
    /// What was captured, and how.
    pub capture: Capture,
    /// Actions that were seen and have no record of their own, because the run's share of the log was used up.
    #[serde(default)]
    pub suppressed: u64,
    /// Actions of which the path or arguments could not be read.
    #[serde(default)]
    pub unreadable: u64,
    /// Records that could not be written, because the log's pipe was stalled when the run ended.
    #[serde(default)]
    pub lost: u64,
    /// Programs executed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub commands: Option<u64>,
    /// Files of the workspace that are new, changed or gone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub files_changed: Option<u64>,
}
