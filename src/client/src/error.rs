//! Why something can't be had.

use std::time::Duration;

use crate::archive::ArchiveError;
use crate::wait::Until;

/// Why something can't be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// There is no such sandbox.
    #[error("no sandbox named {name} in namespace {namespace}")]
    NotFound {
        /// Its name.
        name: String,
        /// Where it was looked for.
        namespace: String,
    },
    /// The sandbox was deleted, and perhaps made anew, while something waited for it.
    #[error("sandbox {name} was deleted")]
    Deleted {
        /// Its name.
        name: String,
    },
    /// The sandbox has no pod: it has not started yet, or its pod was removed after its TTL.
    #[error("sandbox {name} has no pod ({phase}{reason})")]
    NoPod {
        /// Its name.
        name: String,
        /// Where it stands.
        phase: String,
        /// Why, with a comma before it; empty if unknown.
        reason: String,
    },
    /// What was waited for did not come in time.
    #[error("sandbox {name} did not become {until} within {}s; it is {last}", timeout.as_secs())]
    Timeout {
        /// Its name.
        name: String,
        /// What was waited for.
        until: Until,
        /// How long.
        timeout: Duration,
        /// Where it stood then.
        last: String,
    },
    /// The sandbox ended before it was what was waited for.
    #[error("sandbox {name} has ended ({reason}) and will not become {until}")]
    Ended {
        /// Its name.
        name: String,
        /// What was waited for.
        until: Until,
        /// Why it ended.
        reason: String,
    },
    /// The run has ended, and with it what was under way in the sandbox.
    #[error("sandbox {name} has ended ({reason})")]
    RunEnded {
        /// Its name.
        name: String,
        /// Why it ended.
        reason: String,
    },
    /// The recorder refused a step.
    #[error("step refused: {reason}: {message}")]
    StepRefused {
        /// A word for programs, such as `StepBudgetExceeded`.
        reason: String,
        /// For people.
        message: String,
    },
    /// A step did not end within its own time limit and a grace, or its end was not reported.
    #[error("the step's end was not reported within {}s", .0.as_secs())]
    StepTimeout(Duration),
    /// The API server is older than Kubernetes 1.30, and can't end a command's standard input.
    #[error(
        "the API server speaks an exec protocol that can't end standard input: it is older than Kubernetes 1.30"
    )]
    OldApiServer,
    /// The exec connection broke before the exit code came.
    #[error("the connection to the sandbox ended before the exit code came{}{}", if .0.is_empty() { "" } else { ": " }, .0)]
    Disconnected(String),
    /// A step printed more than the caller was ready to keep.
    #[error("the step printed more than {limit} bytes")]
    OutputTooLong {
        /// The bound.
        limit: usize,
    },
    /// The recorder's program failed, or said what can't be understood.
    #[error("the recorder answered: {0}")]
    Recorder(String),
    /// Files could not be packed or unpacked.
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    /// The API server said no, or can't be reached.
    #[error(transparent)]
    Kube(#[from] kube::Error),
    /// The kubeconfig can't be used.
    #[error("the kubeconfig can't be used: {0}")]
    Kubeconfig(#[from] kube::config::KubeconfigError),
    /// No configuration leads to a cluster.
    #[error("no cluster is configured: {0}")]
    Config(#[from] kube::config::InferConfigError),
    /// Reading or writing failed here.
    #[error(transparent)]
    Io(#[from] std::io::Error),
}

impl Error {
    /// The HTTP status with which the API server refused, if it did.
    #[must_use]
    pub fn api_code(&self) -> Option<u16> {
        match self {
            Self::Kube(kube::Error::Api(status)) => Some(status.code),
            _ => None,
        }
    }
}
