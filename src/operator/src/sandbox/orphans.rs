//! Sweeps pods that are no sandbox's run (any more): deletes them and takes our finalizer off, so that none runs unseen,
//! and that neither the garbage collector nor the deletion of a namespace waits for a result that nobody can read.

use std::sync::Arc;

use agentsandbox_api::names;
use agentsandbox_api::sandbox::AgentSandbox;
use futures::StreamExt;
use futures::channel::mpsc::UnboundedReceiver;
use k8s_openapi::api::core::v1::Pod;
use kube::runtime::reflector::ObjectRef;
use kube::{Api, ResourceExt};
use tracing::{info, warn};

use crate::build::pod::RunIdentity;
use crate::context::Context;
use crate::sandbox::dereference::is_owned;
use crate::sandbox::{ReconcileError, apply};

/// How often every pod is looked at without any event: a pod event may come before the sandbox's deletion is seen.
const SWEEP: std::time::Duration = std::time::Duration::from_secs(20);

/// Runs the sweeper until its channel closes.
pub async fn sweep(context: Arc<Context>, mut touched: UnboundedReceiver<ObjectRef<Pod>>) {
    let mut ticks = tokio::time::interval(SWEEP);
    loop {
        tokio::select! {
            pod = touched.next() => {
                let Some(pod) = pod else { return };
                if let Some(pod) = context.pods.get(&pod) {
                    look_at(&pod, &context).await;
                }
            }
            _ = ticks.tick() => {
                for pod in context.pods.state() {
                    look_at(&pod, &context).await;
                }
            }
        }
    }
}

async fn look_at(pod: &Pod, context: &Context) {
    if !pod
        .finalizers()
        .iter()
        .any(|name| name == names::FINALIZER_RESULT)
    {
        return;
    }
    match remove_if_orphan(pod, context).await {
        Ok(true) => info!(pod = pod.name_any(), "let a pod go that is no sandbox's run"),
        Ok(false) => {}
        Err(error) => warn!(pod = pod.name_any(), %error, "an orphan could not be let go, trying again"),
    }
}

async fn remove_if_orphan(pod: &Pod, context: &Context) -> Result<bool, ReconcileError> {
    let namespace = pod.namespace().unwrap_or_default();
    let is_deleted = pod.metadata.deletion_timestamp.is_some();
    let owner = pod
        .owner_references()
        .iter()
        .find(|owner| owner.kind == "AgentSandbox");
    if let Some(owner) = owner {
        let cached = context
            .sandboxes
            .get(&ObjectRef::new(&owner.name).within(&namespace));
        if cached.as_ref().is_some_and(|sandbox| is_run_of(pod, sandbox)) {
            return Ok(false);
        }
        // A pod whose owner is gone is deleted by the garbage collector.
        if !is_deleted && !cached.is_some_and(|sandbox| is_of(pod, &sandbox)) {
            return Ok(false);
        }
        // A store may lag behind: the API server has the last word.
        let api: Api<AgentSandbox> = Api::namespaced(context.client.clone(), &namespace);
        let live = context
            .request("get", "AgentSandbox", &owner.name, api.get_opt(&owner.name))
            .await?;
        if live.as_ref().is_some_and(|live| is_run_of(pod, live)) {
            return Ok(false);
        }
    }
    let api: Api<Pod> = Api::namespaced(context.client.clone(), &namespace);
    let (name, uid) = (pod.name_any(), pod.uid().unwrap_or_default());
    if !is_deleted {
        apply::delete(&api, &name, &uid, context).await?;
    }
    apply::release(&api, &name, &uid, context).await?;
    Ok(true)
}

/// Whether a sandbox that stays owns the pod.
fn is_of(pod: &Pod, sandbox: &AgentSandbox) -> bool {
    sandbox.metadata.deletion_timestamp.is_none() && is_owned(pod, &RunIdentity::of(sandbox))
}

/// Whether it knows the pod too: by its status, or by its run of now. One that it does not know was made just before
/// `runId` was changed, by an operator that could not write it down any more.
fn is_run_of(pod: &Pod, sandbox: &AgentSandbox) -> bool {
    let name = pod.name_any();
    let recorded = sandbox
        .status
        .as_ref()
        .and_then(|status| status.pod_name.as_ref());
    is_of(pod, sandbox) && (recorded == Some(&name) || RunIdentity::of(sandbox).pod_name() == name)
}

#[cfg(test)]
#[path = "orphans_tests.rs"]
mod tests;
