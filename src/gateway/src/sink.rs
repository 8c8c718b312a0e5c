//! Where budgets are kept: the status of sandboxes and policies, written by compare-and-swap.

use agentsandbox_api::policy::PolicyEgressStatus;
use agentsandbox_api::sandbox::EgressStatus;
use futures::future::BoxFuture;

/// Which run's status is meant.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct RunKey {
    /// Namespace of the sandbox.
    pub namespace: String,
    /// Its name.
    pub sandbox: String,
    /// UID of the AgentSandbox: another one of the same name is another sandbox.
    pub sandbox_uid: String,
    /// UID of the run's pod.
    pub pod_uid: String,
}

/// A part of a status, at one version of its object.
#[derive(Clone, Debug, PartialEq)]
pub struct Versioned<T> {
    /// The part; absent if nobody wrote it yet.
    pub status: Option<T>,
    /// `metadata.resourceVersion`.
    pub version: String,
}

/// Why a status was not read or written.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SinkError {
    /// Another write came first.
    #[error("another write came first")]
    Conflict,
    /// The object is gone.
    #[error("the object is gone")]
    Gone,
    /// It was certainly not written.
    #[error("not written: {0}")]
    Refused(String),
    /// Nobody knows whether it was written.
    #[error("no answer: {0}")]
    Unknown(String),
}

/// Keeps the gateway's parts of status. Every call is bounded in time by whoever implements it.
pub trait StatusSink: Send + Sync + 'static {
    /// A run's `status.egress`, from the API server itself.
    fn load_run<'a>(&'a self, key: &'a RunKey) -> BoxFuture<'a, Result<Versioned<EgressStatus>, SinkError>>;

    /// Writes a run's `status.egress` if the object is still at `version`; says its new version.
    fn store_run<'a>(
        &'a self,
        key: &'a RunKey,
        status: &'a EgressStatus,
        version: &'a str,
    ) -> BoxFuture<'a, Result<String, SinkError>>;

    /// A policy's `status.egress`, from the API server itself.
    fn load_policy<'a>(
        &'a self,
        name: &'a str,
    ) -> BoxFuture<'a, Result<Versioned<PolicyEgressStatus>, SinkError>>;

    /// Writes a policy's `status.egress` if the object is still at `version`; says its new version.
    fn store_policy<'a>(
        &'a self,
        name: &'a str,
        status: &'a PolicyEgressStatus,
        version: &'a str,
    ) -> BoxFuture<'a, Result<String, SinkError>>;
}
