//! Carries out a decision: the only place of the sandbox controller that writes.

use std::collections::BTreeMap;

use agentsandbox_api::isolation::IsolationRequirement;
use agentsandbox_api::names;
use agentsandbox_api::reason::Reason;
use agentsandbox_api::sandbox::{AgentSandbox, AgentSandboxStatus, Phase};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams, Preconditions};
use kube::{Api, ResourceExt};
use serde_json::json;
use tracing::{info, warn};

use crate::build::compare::{first_difference, later_difference};
use crate::build::{network_policy, pod};
use crate::context::Context;
use crate::quantity;
use crate::request::RequestError;
use crate::sandbox::dereference::{claim_in_use, claim_user, is_owned, unlike};
use crate::sandbox::pod_view::{ENDING_SECONDS, PodView};
use crate::sandbox::world::{Action, Creation, Decision, NetworkView, PodState, World};
use crate::sandbox::{ReconcileError, admit::AdmittedRun, status};

/// Creates the pod of a run, or learns why there can't be one; the world says so afterwards.
pub async fn create_pod(
    world: &mut World<'_>,
    run: &AdmittedRun,
    isolation: IsolationRequirement,
    context: &Context,
) -> Result<(), ReconcileError> {
    // One at a time, from the look at who uses the claim to the pod that does.
    let mut turn = None;
    if let Some(claim) = run.claim.as_deref().filter(|_| !run.claim_shared) {
        turn = Some(context.claims.lock().await);
        if let Some(user) = live_claim_user(claim, world, context).await? {
            world.inputs = Err(claim_in_use(claim, &user));
            return Ok(());
        }
    }
    confirm_unfinished(world, context).await?;
    let built = pod::build(&world.identity, run, isolation, &context.facts, &context.config);
    let name = world.identity.pod_name();
    let pods = pods(world, context);
    let created = context
        .request(
            "create",
            "Pod",
            &name,
            pods.create(&PostParams::default(), &built),
        )
        .await;
    let live = match created {
        Ok(pod) => {
            world.creation = first_difference(&built, &pod).map(Creation::Mutated);
            pod
        }
        Err(error) => match refusal(&error) {
            Some(Creation::Conflict(_)) => {
                let found = context.request("get", "Pod", &name, pods.get(&name)).await?;
                if let Some(conflict) = conflict(&built, &found, world) {
                    world.creation = Some(conflict);
                    return Ok(());
                }
                found
            }
            Some(refused) => {
                world.creation = Some(refused);
                return Ok(());
            }
            None => return Err(error.into()),
        },
    };
    drop(turn);
    world.pod = PodState::Present(Box::new(PodView::of(&live, &world.identity.labels())));
    Ok(())
}

/// The other live run that uses a claim, as the API server knows it.
async fn live_claim_user(
    claim: &str,
    world: &World<'_>,
    context: &Context,
) -> Result<Option<String>, ReconcileError> {
    let of_sandboxes = ListParams::default().labels(names::LABEL_SANDBOX);
    let live = context
        .request("list", "Pod", claim, pods(world, context).list(&of_sandboxes))
        .await?;
    let name = world.identity.pod_name();
    Ok(claim_user(
        claim,
        live.iter().filter(|pod| pod.name_any() != name),
    ))
}

/// What is wrong with a pod that was there already.
fn conflict(built: &Pod, found: &Pod, world: &World<'_>) -> Option<Creation> {
    let name = world.identity.pod_name();
    if !is_owned(found, &world.identity) {
        return Some(Creation::Conflict(format!(
            "a pod named {name} exists and does not belong to this AgentSandbox; delete it and set another runId"
        )));
    }
    later_difference(built, found).map(|path| unlike(&name, &path))
}

/// Before a command may run, the API server itself is asked whether this run is still to be done: a store may lag
/// behind, and a finished run must not run again.
async fn confirm_unfinished(world: &World<'_>, context: &Context) -> Result<(), ReconcileError> {
    let name = world.sandbox.name_any();
    let live = context
        .request("get", "AgentSandbox", &name, sandboxes(world, context).get(&name))
        .await?;
    if live.metadata.resource_version == world.sandbox.metadata.resource_version {
        Ok(())
    } else {
        Err(ReconcileError::Stale(name))
    }
}

/// What the API server's refusal of a pod means; `None` if it is no refusal of this pod.
fn refusal(error: &RequestError) -> Option<Creation> {
    let status = error.status()?;
    let message = status.message.clone();
    if status.is_already_exists() {
        Some(Creation::Conflict(message))
    } else if status.is_forbidden() && message.contains("exceeded quota") {
        Some(if is_above_quota(&message) {
            Creation::AboveQuota(message)
        } else {
            Creation::QuotaExceeded(message)
        })
    } else if error.is_namespace_terminating() {
        Some(Creation::NamespaceTerminating)
    } else if status.is_forbidden() || status.is_invalid() || status.code == 400 {
        Some(Creation::Refused(message))
    } else {
        None
    }
}

/// Whether a quota's refusal (`exceeded quota: NAME, requested: limits.cpu=2, used: limits.cpu=1, limited: limits.cpu=1`)
/// says that there would be no room in an empty namespace either.
fn is_above_quota(message: &str) -> bool {
    let amounts = |label: &str| -> BTreeMap<String, String> {
        let after = message.split_once(label).map_or("", |(_, after)| after);
        // The next label has a space before it; amounts have none between them.
        let list = after.split_once(", ").map_or(after, |(list, _)| list);
        list.split(',')
            .filter_map(|amount| amount.split_once('='))
            .map(|(resource, amount)| (resource.to_owned(), amount.to_owned()))
            .collect()
    };
    let limited = amounts("limited: ");
    amounts("requested: ").iter().any(|(resource, requested)| {
        limited
            .get(resource)
            .is_some_and(|limit| quantity::is_more(requested, limit))
    })
}

/// What comes before the status.
pub async fn before(world: &World<'_>, decision: &Decision, context: &Context) -> Result<(), ReconcileError> {
    for action in &decision.before {
        match action {
            Action::EndPod(reason, message) => end_pod(world, *reason, message, context).await?,
            Action::RemoveEarlierPod => remove_earlier(world, context).await?,
            _ => {}
        }
    }
    if world.network == NetworkView::Closed {
        return Ok(());
    }
    let deny_all = network_policy::deny_all(&world.identity.namespace);
    match crate::policy::apply_network_policy(&deny_all, context).await {
        // What is to be said of a run does not wait for this.
        Err(error) if !matches!(world.pod, PodState::Absent) => {
            warn!(%error, "the network policy that denies all can't be put right");
            Ok(())
        }
        other => Ok(other?),
    }
}

/// Writes the status if it changed, by resource version, and tells of the transition.
pub async fn report(world: &World<'_>, decision: &Decision, context: &Context) -> Result<(), ReconcileError> {
    let old = world.sandbox.status.clone().unwrap_or_default();
    if old == decision.status {
        return Ok(());
    }
    let name = world.sandbox.name_any();
    let mut object = AgentSandbox {
        status: Some(decision.status.clone()),
        ..world.sandbox.clone()
    };
    object.metadata.managed_fields = None;
    let parameters = PostParams {
        field_manager: Some(names::MANAGER.to_owned()),
        ..PostParams::default()
    };
    let api = sandboxes(world, context);
    let written = context
        .request(
            "update",
            "AgentSandbox/status",
            &name,
            api.replace_status(&name, &parameters, &object),
        )
        .await;
    match written {
        Ok(written) => context.own_writes.overwrote(world.sandbox, &written),
        Err(error) if error.is_not_found() => {}
        Err(error) => return Err(error.into()),
    }
    tell(world, &old, &decision.status, context).await;
    Ok(())
}

/// One event per transition that a person would want to read, and the metrics of starts and ends.
async fn tell(world: &World<'_>, old: &AgentSandboxStatus, new: &AgentSandboxStatus, context: &Context) {
    let finished = status::is_finished(new) && !(status::is_finished(old) && old.run_id == new.run_id);
    let reason = new.reason.clone().unwrap_or_default();
    if finished {
        let verdict = status::reason(new);
        if let Some(verdict) = verdict {
            context.metrics.finished(verdict);
        }
        let message = new
            .result
            .as_ref()
            .and_then(|result| result.message.clone())
            .unwrap_or_default();
        info!(%reason, "finished");
        context
            .event(
                world.sandbox,
                !verdict.is_some_and(Reason::is_success),
                &reason,
                &message,
            )
            .await;
        return;
    }
    if old.reason == new.reason && old.run_id == new.run_id || status::is_finished(new) {
        return;
    }
    if new.phase == Some(Phase::Running)
        && let (Some(created), Some(isolation)) = (&world.sandbox.metadata.creation_timestamp, &new.isolation)
    {
        let seconds = world.now.duration_since(created.0).as_secs_f64();
        context.metrics.start_duration(
            isolation.runtime_class_name.as_deref().unwrap_or_default(),
            seconds,
        );
    }
    let warning = matches!(new.phase, Some(Phase::Pending | Phase::Queued))
        || reason == agentsandbox_api::condition::reasons::IMAGE_PULL_RETRYING;
    if warning || new.phase == Some(Phase::Running) {
        let message = crate::conditions::find(&new.conditions, agentsandbox_api::condition::types::READY)
            .map(|ready| ready.message.clone())
            .unwrap_or_default();
        context.event(world.sandbox, warning, &reason, &message).await;
    }
}

/// What comes after the status: only now may the pod go.
pub async fn after(world: &World<'_>, decision: &Decision, context: &Context) -> Result<(), ReconcileError> {
    for action in &decision.after {
        match (action, &world.pod) {
            (Action::DeletePod, PodState::Present(pod)) => {
                delete(&pods(world, context), &pod.name, &pod.uid, context).await?;
            }
            (Action::ReleasePod, PodState::Present(pod)) => {
                release(&pods(world, context), &pod.name, &pod.uid, context).await?;
            }
            (Action::RemoveEarlierPod, _) => remove_earlier(world, context).await?,
            (Action::DeleteSandbox, _) => {
                let name = world.sandbox.name_any();
                let uid = world.sandbox.uid();
                let parameters = DeleteParams::background().preconditions(Preconditions {
                    uid,
                    resource_version: None,
                });
                ignore_missing(
                    context
                        .request(
                            "delete",
                            "AgentSandbox",
                            &name,
                            sandboxes(world, context).delete(&name, &parameters),
                        )
                        .await,
                )?;
            }
            _ => {}
        }
    }
    Ok(())
}

/// Marks the pod with the cause, so that a restarted operator knows it, and ends it. One whose command runs is ended by
/// its kubelet, by a deadline that is past already: so it stays, with its logs, as every other pod of a finished run.
/// That takes it up to a second longer than a deletion; a run that has used up a budget is ended from inside meanwhile, as
/// its recorder hears it from the egress gateway. One that never ran has nothing to keep, and one whose kubelet let a
/// deadline pass is given up. These are deleted, and the finalizer keeps them until their result is known.
async fn end_pod(
    world: &World<'_>,
    reason: Reason,
    message: &str,
    context: &Context,
) -> Result<(), ReconcileError> {
    let PodState::Present(pod) = &world.pod else {
        return Ok(());
    };
    let has_run = pod.agent.started || pod.agent.ended.is_some();
    let by_kubelet = has_run && reason != Reason::DeadlineExceeded && pod.ending.is_none();
    if context.own_writes.is_deleted(&pod.uid) || by_kubelet && context.own_writes.is_ended(&pod.uid) {
        return Ok(());
    }
    info!(%reason, message, "ending the run");
    let mark = json!({"metadata": {"uid": pod.uid, "annotations": {
        names::ANNOTATION_CAUSE: reason.as_str(),
        names::ANNOTATION_CAUSE_MESSAGE: message.chars().take(900).collect::<String>(),
    }}});
    let api = pods(world, context);
    if by_kubelet {
        let mut ended = mark.clone();
        ended["metadata"]["annotations"][names::ANNOTATION_CAUSE_TIME] = json!(world.now.to_string());
        ended["spec"] = json!({"activeDeadlineSeconds": ENDING_SECONDS});
        match patch(&api, &pod.name, Patch::Merge(ended), context).await {
            Ok(_) => {
                context.own_writes.ended(&pod.uid);
                return Ok(());
            }
            Err(error) if error.is_not_found() => return Ok(()),
            // Whatever refuses it, the run ends.
            Err(error) if refusal(&error).is_some() => {
                warn!(%error, "the pod's deadline can't be changed, so it is deleted with its logs");
            }
            Err(error) => return Err(error.into()),
        }
    }
    ignore_missing(patch(&api, &pod.name, Patch::Merge(mark), context).await)?;
    delete(&pods(world, context), &pod.name, &pod.uid, context).await
}

async fn patch<P: serde::Serialize + std::fmt::Debug>(
    api: &Api<Pod>,
    name: &str,
    change: Patch<P>,
    context: &Context,
) -> Result<Pod, RequestError> {
    let parameters = PatchParams::default();
    let request = api.patch(name, &parameters, &change);
    context.request("patch", "Pod", name, request).await
}

async fn remove_earlier(world: &World<'_>, context: &Context) -> Result<(), ReconcileError> {
    let PodState::OfEarlierRun {
        uid,
        name,
        deleting,
        held,
    } = &world.pod
    else {
        return Ok(());
    };
    if !deleting {
        delete(&pods(world, context), name, uid, context).await?;
    }
    if *held {
        release(&pods(world, context), name, uid, context).await?;
    }
    Ok(())
}

/// Deletes a pod, once.
pub async fn delete(api: &Api<Pod>, name: &str, uid: &str, context: &Context) -> Result<(), ReconcileError> {
    if context.own_writes.is_deleted(uid) {
        return Ok(());
    }
    let parameters = DeleteParams::default().preconditions(Preconditions {
        uid: Some(uid.to_owned()),
        resource_version: None,
    });
    let request = api.delete(name, &parameters);
    ignore_missing(context.request("delete", "Pod", name, request).await)?;
    context.own_writes.deleted(uid);
    Ok(())
}

/// Takes our finalizer off a pod; other finalizers stay.
pub async fn release(api: &Api<Pod>, name: &str, uid: &str, context: &Context) -> Result<(), ReconcileError> {
    let live = context
        .request("get", "Pod", name, api.get_metadata_opt(name))
        .await?;
    let Some(live) = live.filter(|live| live.metadata.uid.as_deref() == Some(uid)) else {
        return Ok(());
    };
    let finalizers = live.metadata.finalizers.clone().unwrap_or_default();
    let Some(index) = finalizers.iter().position(|name| name == names::FINALIZER_RESULT) else {
        return Ok(());
    };
    let path = format!("/metadata/finalizers/{index}");
    let removal: Patch<()> = Patch::Json(
        serde_json::from_value(json!([
            {"op": "test", "path": path, "value": names::FINALIZER_RESULT},
            {"op": "remove", "path": path},
        ]))
        .unwrap_or_default(),
    );
    ignore_missing(patch(api, name, removal, context).await)
}

/// Whatever was to be changed or deleted is gone: that will do.
fn ignore_missing<T>(result: Result<T, RequestError>) -> Result<(), ReconcileError> {
    match result {
        Ok(_) => Ok(()),
        Err(error) if error.is_not_found() || error.is_conflict() => Ok(()),
        Err(error) => Err(error.into()),
    }
}

fn pods(world: &World<'_>, context: &Context) -> Api<Pod> {
    Api::namespaced(context.client.clone(), &world.identity.namespace)
}

fn sandboxes(world: &World<'_>, context: &Context) -> Api<AgentSandbox> {
    Api::namespaced(context.client.clone(), &world.identity.namespace)
}

#[cfg(test)]
#[path = "apply_tests.rs"]
mod tests;
