//! The `ResourceQuota` of a policy: only one policy of a namespace can have one.

use agentsandbox_api::names;
use agentsandbox_api::policy::SandboxPolicy;
use k8s_openapi::api::core::v1::ResourceQuota;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::api::{DeleteParams, Patch, PatchParams};
use kube::runtime::reflector::ObjectRef;
use kube::{Api, ResourceExt};

use crate::build::resource_quota;
use crate::context::Context;
use crate::request::RequestError;

/// The older policy of the namespace that has a quota already.
pub(super) fn overlapping(policy: &SandboxPolicy, context: &Context) -> Option<String> {
    let has_quota =
        |policy: &SandboxPolicy| policy.spec.quota.as_ref().is_some_and(resource_quota::is_needed);
    if !has_quota(policy) {
        return None;
    }
    let key = |policy: &SandboxPolicy| {
        (
            policy.metadata.creation_timestamp.as_ref().map(|t| t.0),
            policy.name_any(),
        )
    };
    context
        .policies
        .state()
        .iter()
        .filter(|other| other.namespace() == policy.namespace() && has_quota(other))
        .filter(|other| other.metadata.deletion_timestamp.is_none() && key(other) < key(policy))
        .map(|other| other.name_any())
        .next()
}

/// Applies the `ResourceQuota` of a policy unless it stands, or removes it.
pub(super) async fn apply(
    policy: &SandboxPolicy,
    allowed: bool,
    owner: OwnerReference,
    context: &Context,
) -> Result<(), RequestError> {
    let (name, namespace) = (policy.name_any(), policy.namespace().unwrap_or_default());
    let quota_name = resource_quota::quota_name(&name);
    let api: Api<ResourceQuota> = Api::namespaced(context.client.clone(), &namespace);
    let live = context
        .quotas
        .get(&ObjectRef::new(&quota_name).within(&namespace));
    let needed = policy
        .spec
        .quota
        .as_ref()
        .filter(|quota| resource_quota::is_needed(quota));
    let Some(quota) = needed.filter(|_| allowed) else {
        if live.is_some() {
            match context
                .request(
                    "delete",
                    "ResourceQuota",
                    &quota_name,
                    api.delete(&quota_name, &DeleteParams::default()),
                )
                .await
            {
                Err(error) if !error.is_not_found() => return Err(error),
                _ => {}
            }
        }
        return Ok(());
    };
    let built = resource_quota::build(&namespace, &name, quota, owner);
    if live.is_some_and(|live| resource_quota::stands(&live, &built)) {
        return Ok(());
    }
    let parameters = PatchParams::apply(names::MANAGER).force();
    context
        .request(
            "apply",
            "ResourceQuota",
            &quota_name,
            api.patch(&quota_name, &parameters, &Patch::Apply(&built)),
        )
        .await?;
    Ok(())
}
