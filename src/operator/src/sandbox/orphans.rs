//! Sweeps pods whose sandbox is gone: takes our finalizer off them, so that neither the garbage collector nor the
//! deletion of a namespace waits for a result that nobody can read.

use std::sync::Arc;

use agentsandbox_api::names;
use agentsandbox_api::sandbox::AgentSandbox;
use futures::StreamExt;
use futures::channel::mpsc::UnboundedReceiver;
use k8s_openapi::api::core::v1::Pod;
use kube::runtime::reflector::ObjectRef;
use kube::{Api, ResourceExt};
use tracing::{info, warn};

use crate::context::Context;
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
    // Only deleted pods need us: a pod whose owner is gone is deleted by the garbage collector.
    if pod.metadata.deletion_timestamp.is_none()
        || !pod
            .finalizers()
            .iter()
            .any(|name| name == names::FINALIZER_RESULT)
    {
        return;
    }
    match release_if_orphan(pod, context).await {
        Ok(true) => info!(pod = pod.name_any(), "released a pod whose sandbox is gone"),
        Ok(false) => {}
        Err(error) => warn!(pod = pod.name_any(), %error, "an orphan could not be released, trying again"),
    }
}

async fn release_if_orphan(pod: &Pod, context: &Context) -> Result<bool, ReconcileError> {
    let namespace = pod.namespace().unwrap_or_default();
    let owner = pod
        .owner_references()
        .iter()
        .find(|owner| owner.kind == "AgentSandbox");
    if let Some(owner) = owner {
        let cached = context
            .sandboxes
            .get(&ObjectRef::new(&owner.name).within(&namespace));
        if cached.is_some_and(|sandbox| {
            sandbox.uid().as_deref() == Some(&owner.uid) && sandbox.metadata.deletion_timestamp.is_none()
        }) {
            return Ok(false);
        }
        // A store may lag behind: the API server has the last word.
        let api: Api<AgentSandbox> = Api::namespaced(context.client.clone(), &namespace);
        let live = context
            .request(
                "get",
                "AgentSandbox",
                &owner.name,
                api.get_metadata_opt(&owner.name),
            )
            .await?;
        if live.is_some_and(|live| {
            live.metadata.uid.as_deref() == Some(&owner.uid) && live.metadata.deletion_timestamp.is_none()
        }) {
            return Ok(false);
        }
    }
    let api: Api<Pod> = Api::namespaced(context.client.clone(), &namespace);
    apply::release(&api, &pod.name_any(), &pod.uid().unwrap_or_default(), context).await?;
    Ok(true)
}
