//! The `ResourceQuota` of a policy.

use std::collections::BTreeMap;

use agentsandbox_api::names;
use agentsandbox_api::policy::Quota;
use k8s_openapi::api::core::v1::{ResourceQuota, ResourceQuotaSpec};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;

use crate::build::from_policy;

/// Name of a policy's `ResourceQuota`.
#[must_use]
pub fn quota_name(policy: &str) -> String {
    format!("{}{policy}", names::QUOTA_PREFIX)
}

/// Whether a quota bounds anything that a `ResourceQuota` can count. Tokens and model requests are the gateway's to
/// count, and several policies may bound them.
#[must_use]
pub fn is_needed(quota: &Quota) -> bool {
    quota.sandboxes.is_some()
        || quota.cpu.is_some()
        || quota.memory.is_some()
        || quota.ephemeral_storage.is_some()
}

/// The quota with scope `Terminating`: it counts exactly the pods that set `activeDeadlineSeconds`, as every
/// sandbox pod does. Requests and limits of our pods are equal, so one of them bounds both.
#[must_use]
pub fn build(namespace: &str, policy: &str, quota: &Quota, owner: OwnerReference) -> ResourceQuota {
    let mut hard = BTreeMap::new();
    if let Some(sandboxes) = quota.sandboxes {
        hard.insert("pods".to_owned(), Quantity(sandboxes.to_string()));
    }
    for (name, quantity) in [
        ("limits.cpu", &quota.cpu),
        ("limits.memory", &quota.memory),
        ("limits.ephemeral-storage", &quota.ephemeral_storage),
    ] {
        if let Some(quantity) = quantity {
            hard.insert(name.to_owned(), Quantity(quantity.0.clone()));
        }
    }
    ResourceQuota {
        metadata: from_policy(namespace, quota_name(policy), vec![owner]),
        spec: Some(ResourceQuotaSpec {
            hard: Some(hard),
            scopes: Some(vec!["Terminating".to_owned()]),
            scope_selector: None,
        }),
        status: None,
    }
}

/// Whether `live` bounds just what `built` bounds.
#[must_use]
pub fn stands(live: &ResourceQuota, built: &ResourceQuota) -> bool {
    let (Some(live), Some(built)) = (&live.spec, &built.spec) else {
        return false;
    };
    let (live_hard, built_hard) = (
        live.hard.clone().unwrap_or_default(),
        built.hard.clone().unwrap_or_default(),
    );
    live.scopes == built.scopes
        && live_hard.len() == built_hard.len()
        && live_hard.iter().all(|(name, amount)| {
            built_hard
                .get(name)
                .is_some_and(|other| crate::quantity::same_amount(&amount.0, &other.0))
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_alone_need_no_resource_quota() {
        let table = [
            ("{}", false),
            (r#"{"tokens": 5, "modelRequests": 2, "windowSeconds": 60}"#, false),
            (r#"{"tokens": 5, "sandboxes": 2}"#, true),
            (r#"{"cpu": "2"}"#, true),
            (r#"{"memory": "2Gi"}"#, true),
            (r#"{"ephemeralStorage": "2Gi"}"#, true),
        ];
        for (quota, needed) in table {
            assert_eq!(
                is_needed(&serde_json::from_str(quota).unwrap()),
                needed,
                "{quota}"
            );
        }
    }
}
