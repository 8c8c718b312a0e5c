//! The controller of `AgentSandbox`: dereference → decide → apply → report.

pub mod admit;
mod apply;
pub mod decide;
mod dereference;
mod egress;
pub mod orphans;
pub mod pod_view;
mod start;
pub mod status;
pub mod verdict;
pub mod world;

use std::sync::Arc;
use std::time::Duration;

use agentsandbox_api::condition::{reasons, types};
use agentsandbox_api::sandbox::AgentSandbox;
use futures::StreamExt;
use futures::channel::mpsc::UnboundedReceiver;
use futures::stream::BoxStream;
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;
use kube::runtime::Controller;
use kube::runtime::controller::{self, Action as Requeue};
use kube::runtime::reflector::ObjectRef;
use tracing::{debug, instrument, warn};

use crate::conditions;
use crate::context::Context;
use crate::jitter::jittered;
use crate::reconcile::{Class, Panicked, measured};
use crate::request::RequestError;

/// When to look again if the event of an own write does not come.
const OWN_WRITE_RECHECK: Duration = Duration::from_secs(1);

/// Why a reconciliation has to be tried again.
#[derive(Debug, thiserror::Error)]
pub enum ReconcileError {
    /// A request failed.
    #[error(transparent)]
    Request(#[from] RequestError),
    /// Another write came first; what was decided may be stale.
    #[error("{0} was written by somebody else meanwhile")]
    Stale(String),
    /// It panicked.
    #[error(transparent)]
    Panicked(#[from] Panicked),
}

impl Class for ReconcileError {
    fn class(&self) -> &'static str {
        match self {
            Self::Request(error) if error.is_conflict() => "conflict",
            Self::Request(_) => "request",
            Self::Stale(_) => "stale",
            Self::Panicked(_) => "panic",
        }
    }
}

/// Runs the controller until it is told to stop.
pub async fn controller(
    context: Arc<Context>,
    sandboxes: BoxStream<'static, AgentSandbox>,
    related: UnboundedReceiver<ObjectRef<AgentSandbox>>,
    stop: impl Future<Output = ()> + Send + Sync + 'static,
) {
    let store = context.sandboxes.clone();
    Controller::for_stream(sandboxes.map(Ok), store)
        .reconcile_on(related)
        .with_config(controller::Config::default().concurrency(context.config.concurrency))
        .graceful_shutdown_on(stop)
        .run(reconcile, retry, context)
        .for_each(|result| {
            if let Err(error) = result {
                debug!(%error, "sandbox controller");
            }
            std::future::ready(())
        })
        .await;
}

#[instrument(skip_all, fields(sandbox = %sandbox.name_any(), namespace = sandbox.namespace()))]
async fn reconcile(sandbox: Arc<AgentSandbox>, context: Arc<Context>) -> Result<Requeue, ReconcileError> {
    context.controllers_synced().await;
    let work = Box::pin(run_once(&sandbox, &context));
    measured(&context.metrics, "AgentSandbox", work).await
}

async fn run_once(sandbox: &AgentSandbox, context: &Context) -> Result<Requeue, ReconcileError> {
    if sandbox.metadata.deletion_timestamp.is_some() {
        // The pod goes with its owner; the sweeper takes the finalizer off it.
        return Ok(Requeue::await_change());
    }
    if context.own_writes.is_overwritten(sandbox) {
        return Ok(Requeue::requeue(OWN_WRITE_RECHECK));
    }
    let mut world = dereference::dereference(sandbox, context, Timestamp::now()).await?;
    let mut decision = decide::decide(&world);
    if let [world::Action::CreatePod(run, isolation)] = decision.before.as_slice() {
        apply::create_pod(&mut world, run, isolation.clone(), context).await?;
        decision = decide::decide(&world);
    }
    apply::before(&world, &decision, context).await?;
    apply::report(&world, &decision, context).await?;
    apply::after(&world, &decision, context).await?;
    Ok(decision
        .wake
        .map_or_else(Requeue::await_change, |wake| Requeue::requeue(jittered(wake))))
}

#[allow(clippy::needless_pass_by_value)] // the signature is kube's
fn retry(_: Arc<AgentSandbox>, error: &ReconcileError, _: Arc<Context>) -> Requeue {
    match error {
        ReconcileError::Stale(_) => Requeue::requeue(jittered(Duration::from_millis(200))),
        ReconcileError::Request(request) if request.is_conflict() => {
            Requeue::requeue(jittered(Duration::from_millis(200)))
        }
        error => {
            warn!(%error, "trying again");
            Requeue::requeue(jittered(Duration::from_secs(5)))
        }
    }
}

/// Whether a sandbox waits for its namespace's quota.
#[must_use]
pub fn is_queued(sandbox: &AgentSandbox) -> bool {
    sandbox.metadata.deletion_timestamp.is_none()
        && !sandbox.spec.suspend
        && !sandbox.spec.stop
        && sandbox.status.as_ref().is_some_and(|status| {
            status.run_id.as_deref() == Some(sandbox.spec.run_id.as_str())
                && conditions::find(&status.conditions, types::READY)
                    .is_some_and(|ready| ready.reason == reasons::QUOTA_EXCEEDED)
        })
}

/// Order in the queue: by age, then by name.
#[must_use]
pub fn queue_key(sandbox: &AgentSandbox) -> (Option<Timestamp>, String) {
    (
        sandbox.metadata.creation_timestamp.as_ref().map(|time| time.0),
        sandbox.name_any(),
    )
}
