//! Makes the egress gateway of a namespace what its policies need, and takes it away when none does.
//!
//! The policies that need it own it together, so the garbage collector removes it with the last of them. What is left
//! for the operator is a policy that was edited so that it needs none any more.

use std::fmt::Debug;
use std::net::IpAddr;

use agentsandbox_api::{gateway, names};
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::networking::v1::NetworkPolicy;
use kube::api::{DeleteParams, Patch, PatchParams, Preconditions};
use kube::runtime::reflector::{ObjectRef, Store};
use kube::{Api, Resource, ResourceExt};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tracing::{info, warn};

use crate::build::compare::{object_difference, overwriting_patch};
use crate::build::gateway::{self as build, Needs};
use crate::build::gateway_network::{self, EGRESS_NAME, INGRESS_NAME};
use crate::context::Context;
use crate::policy::valid::asks_for_egress;
use crate::policy::{apply_network_policy, owner_reference};
use crate::request::RequestError;

/// Where the gateway of a namespace stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// No policy needs one.
    NotRequested,
    /// It was applied, and does not serve yet; why.
    Applying(String),
    /// It serves, as it was built.
    InForce,
    /// It could not be applied; why.
    Failed(String),
}

/// Why a gateway could not be applied.
#[derive(Debug, thiserror::Error)]
enum ApplyError {
    #[error(transparent)]
    Request(#[from] RequestError),
    /// What was applied does not stay as it is.
    #[error("{kind} {name}: something changes {path} each time it is applied; exempt it from that webhook")]
    Altered {
        kind: &'static str,
        name: String,
        path: String,
    },
}

/// Applies what differs, in the order in which each needs the one before, and says where the gateway stands.
pub async fn ensure(namespace: &str, context: &Context) -> Result<State, RequestError> {
    let Some(needs) = needs(namespace, context) else {
        remove(namespace, context).await?;
        return Ok(State::NotRequested);
    };
    match apply(&needs, context).await {
        Ok(deployment) => Ok(state(&deployment)),
        Err(ApplyError::Request(error)) if !is_refusal(&error) => Err(error),
        Err(error) => {
            let why = words(&error);
            warn!(why, "the egress gateway can't be applied");
            Ok(State::Failed(why))
        }
    }
}

/// An error in as few words as a condition has room for: of the API server's answer just its message.
fn words(error: &ApplyError) -> String {
    match error {
        ApplyError::Request(request) => request
            .status()
            .map_or_else(|| error.to_string(), |status| status.message.clone()),
        ApplyError::Altered { .. } => error.to_string(),
    }
}

/// An answer that trying again will not change, and that somebody should read in the policy's status.
fn is_refusal(error: &RequestError) -> bool {
    !error.is_conflict()
        && !error.is_namespace_terminating()
        && error
            .status()
            .is_some_and(|status| (400..500).contains(&status.code) && status.code != 429)
}

/// What the policies of a namespace need together; `None` if none needs a gateway.
fn needs(namespace: &str, context: &Context) -> Option<Needs> {
    let mut needs = Needs {
        namespace: namespace.to_owned(),
        ..Needs::default()
    };
    let mut policies: Vec<_> = context
        .policies
        .state()
        .into_iter()
        .filter(|policy| policy.namespace().as_deref() == Some(namespace))
        .filter(|policy| policy.metadata.deletion_timestamp.is_none() && asks_for_egress(&policy.spec))
        .collect();
    policies.sort_by_key(|policy| policy.name_any());
    let mut valid = 0;
    for policy in policies {
        // A policy whose rules are wrong keeps the gateway that its running sandboxes have, and brings none up.
        let mut owner = owner_reference(&policy);
        owner.controller = None;
        needs.owners.push(owner);
        if let Ok(Some(egress)) = context.valid_egress(&policy.spec) {
            valid += 1;
            needs.secrets.extend(egress.secrets);
            needs.opened.extend(egress.opened);
        }
    }
    let stands = find(&context.gateways.deployments, namespace).is_some();
    (valid > 0 || stands && !needs.owners.is_empty()).then_some(needs)
}

fn find<K>(store: &Store<K>, namespace: &str) -> Option<std::sync::Arc<K>>
where
    K: Resource<DynamicType = ()> + Clone,
{
    store.get(&ObjectRef::new(gateway::NAME).within(namespace))
}

async fn apply(needs: &Needs, context: &Context) -> Result<Deployment, ApplyError> {
    let namespace = needs.namespace.as_str();
    let cluster = context.cluster_addresses();
    apply_network_policy(&gateway_network::ingress(needs), context).await?;
    apply_network_policy(&gateway_network::egress(needs, &cluster), context).await?;
    let stores = &context.gateways;
    put(
        "ServiceAccount",
        build::service_account(needs),
        find(&stores.accounts, namespace).as_deref(),
        context,
    )
    .await?;
    apply_binding(needs, context).await?;
    let service = put(
        "Service",
        build::service(needs),
        find(&stores.services, namespace).as_deref(),
        context,
    )
    .await?;
    let deployment = build::deployment(needs, &addresses(&service), &cluster.lasting(), &context.config);
    put(
        "Deployment",
        deployment,
        find(&stores.deployments, namespace).as_deref(),
        context,
    )
    .await
}

/// A binding can't be turned to another role: one that somebody made of the same name goes.
async fn apply_binding(needs: &Needs, context: &Context) -> Result<(), ApplyError> {
    let built = build::role_binding(needs);
    let mut live = find(&context.gateways.bindings, &needs.namespace);
    if let Some(other) = live.take_if(|live| live.role_ref != built.role_ref) {
        info!(name = gateway::NAME, "removing a binding to another role");
        delete("RoleBinding", &*other, context).await?;
    }
    put("RoleBinding", built, live.as_deref(), context).await?;
    Ok(())
}

/// Addresses of a Service, the cluster's first family first.
#[must_use]
pub fn addresses(service: &Service) -> Vec<IpAddr> {
    service
        .spec
        .iter()
        .flat_map(|spec| spec.cluster_ips.iter().flatten())
        .filter_map(|address| address.parse().ok())
        .collect()
}

/// Makes one object, or puts right what differs.
///
/// Server-side apply would leave what others have put beside our fields and into our lists, so an object that exists is
/// overwritten. What is different even then is somebody's who will not stop.
async fn put<K>(kind: &'static str, built: K, live: Option<&K>, context: &Context) -> Result<K, ApplyError>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
        + Clone
        + Debug
        + Serialize
        + DeserializeOwned,
{
    if let Some(live) = live
        && object_difference(&built, live).is_none()
    {
        return Ok(live.clone());
    }
    let (name, namespace) = (built.name_any(), built.namespace().unwrap_or_default());
    let api: Api<K> = Api::namespaced(context.client.clone(), &namespace);
    // The store holds what carries our label. Somebody may have taken it off, or the name before us.
    let found = context.request("get", kind, &name, api.get_opt(&name)).await?;
    let written = match found {
        Some(found) if object_difference(&built, &found).is_none() => return Ok(found),
        Some(found) => {
            let parameters = PatchParams {
                field_manager: Some(names::MANAGER.to_owned()),
                ..PatchParams::default()
            };
            let patch = Patch::Merge(overwriting_patch(&built, &found));
            context
                .request("patch", kind, &name, api.patch(&name, &parameters, &patch))
                .await?
        }
        None => {
            let parameters = PatchParams::apply(names::MANAGER).force();
            let patch = Patch::Apply(&built);
            context
                .request("apply", kind, &name, api.patch(&name, &parameters, &patch))
                .await?
        }
    };
    match object_difference(&built, &written) {
        None => Ok(written),
        Some(path) => Err(ApplyError::Altered { kind, name, path }),
    }
}

/// Whether a Deployment serves as it was built: nothing of an earlier version is left, and one pod is ready.
fn state(deployment: &Deployment) -> State {
    let status = deployment.status.clone().unwrap_or_default();
    let seen = status.observed_generation >= deployment.metadata.generation;
    let count = |pods: Option<i32>| pods.unwrap_or_default();
    let updated = count(status.updated_replicas);
    if seen && updated > 0 && count(status.replicas) == updated && count(status.available_replicas) == updated
    {
        return State::InForce;
    }
    // Why a pod can't be made or does not come up, in Kubernetes' words.
    let trouble = status
        .conditions
        .iter()
        .flatten()
        .filter(|_| seen)
        .find(|condition| {
            condition.type_ == "ReplicaFailure" && condition.status == "True"
                || condition.type_ == "Progressing" && condition.status == "False"
        })
        .and_then(|condition| condition.message.clone());
    State::Applying(match trouble {
        Some(message) => format!("the egress gateway does not come up: {message}"),
        None => "the egress gateway is coming up".to_owned(),
    })
}

/// Removes the gateway of a namespace, the last part first.
async fn remove(namespace: &str, context: &Context) -> Result<(), RequestError> {
    let stores = &context.gateways;
    if let Some(object) = find(&stores.deployments, namespace) {
        info!(namespace, "no policy needs the egress gateway any more");
        delete("Deployment", &*object, context).await?;
    }
    if let Some(object) = find(&stores.services, namespace) {
        delete("Service", &*object, context).await?;
    }
    if let Some(object) = find(&stores.bindings, namespace) {
        delete("RoleBinding", &*object, context).await?;
    }
    if let Some(object) = find(&stores.accounts, namespace) {
        delete("ServiceAccount", &*object, context).await?;
    }
    for name in [EGRESS_NAME, INGRESS_NAME] {
        let object: Option<std::sync::Arc<NetworkPolicy>> = context
            .network_policies
            .get(&ObjectRef::new(name).within(namespace));
        if let Some(object) = object {
            delete("NetworkPolicy", &*object, context).await?;
        }
    }
    Ok(())
}

/// Deletes an object of ours, and no other that took its name meanwhile.
async fn delete<K>(kind: &'static str, object: &K, context: &Context) -> Result<(), RequestError>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + Debug + DeserializeOwned,
{
    let is_ours = object
        .labels()
        .get(names::LABEL_MANAGED_BY)
        .is_some_and(|manager| manager == names::MANAGER);
    if !is_ours || object.meta().deletion_timestamp.is_some() {
        return Ok(());
    }
    let (name, namespace) = (object.name_any(), object.namespace().unwrap_or_default());
    let api: Api<K> = Api::namespaced(context.client.clone(), &namespace);
    let parameters = DeleteParams::background().preconditions(Preconditions {
        uid: object.uid(),
        resource_version: None,
    });
    match context
        .request("delete", kind, &name, api.delete(&name, &parameters))
        .await
    {
        Err(error) if !error.is_not_found() && !error.is_conflict() => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
#[path = "gateway_tests.rs"]
mod tests;
