//! Requests to the API server, and how they fail.

use std::time::Duration;

/// How long any one request to the API server may take.
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(20);

/// A request that took too long or failed.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// The API server said no, or could not be reached.
    #[error("{verb} {kind} {name}: {source}")]
    Api {
        /// What was asked.
        verb: &'static str,
        /// Of which kind.
        kind: &'static str,
        /// Of which object.
        name: String,
        /// Why.
        source: Box<kube::Error>,
    },
    /// No answer in time.
    #[error("{verb} {kind} {name}: no answer within {REQUEST_TIMEOUT:?}")]
    Timeout {
        /// What was asked.
        verb: &'static str,
        /// Of which kind.
        kind: &'static str,
        /// Of which object.
        name: String,
    },
}

impl RequestError {
    /// The API server's answer, if it was one.
    #[must_use]
    pub fn status(&self) -> Option<&kube::core::Status> {
        match self {
            Self::Api { source, .. } => match &**source {
                kube::Error::Api(status) => Some(status),
                _ => None,
            },
            Self::Timeout { .. } => None,
        }
    }

    /// Whether the object does not exist.
    #[must_use]
    pub fn is_not_found(&self) -> bool {
        self.status().is_some_and(kube::core::Status::is_not_found)
    }

    /// Whether nothing new may be made because the namespace is being deleted.
    #[must_use]
    pub fn is_namespace_terminating(&self) -> bool {
        self.status()
            .is_some_and(|status| status.is_forbidden() && status.message.contains("being terminated"))
    }

    /// Whether another write came first.
    #[must_use]
    pub fn is_conflict(&self) -> bool {
        self.status().is_some_and(kube::core::Status::is_conflict)
    }
}
