//! What can be seen without starting anything.

use std::collections::BTreeMap;

use agentsandbox_api::names;
use agentsandbox_api::policy::SandboxPolicy;
use agentsandbox_api::sandbox::AgentSandbox;
use k8s_openapi::api::admissionregistration::v1::ValidatingAdmissionPolicyBinding;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::authorization::v1::{
    ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec,
};
use k8s_openapi::api::core::v1::ResourceQuota;
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::api::node::v1::RuntimeClass;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::api::{ListParams, PostParams};
use kube::{Api, Client, ResourceExt};

use super::Check;
use crate::connection::Connected;

/// Name of the operator's Deployment.
const OPERATOR: &str = "agentsandbox-operator";
/// Admission policies that bound what the operator's and the gateways' accounts may do.
const ADMISSION: [&str; 3] = [
    "agentsandbox-gateway-writes",
    "agentsandbox-operator-gateways",
    "agentsandbox-operator-pods",
];

/// All of it, in the order in which one builds on another.
pub async fn look(connected: &Connected, operator_namespace: &str, policy: &str) -> Vec<Check> {
    let (client, namespace) = (&connected.client, connected.namespace.as_str());
    let mut checks = vec![server(client).await];
    checks.extend(kinds(client, namespace).await);
    checks.push(operator(client, operator_namespace).await);
    checks.push(runtime_classes(client).await);
    checks.extend(policies(client, namespace, policy).await);
    checks.push(foreign_network_policies(client, namespace).await);
    checks.push(quotas(client, namespace).await);
    checks.push(rights(client, namespace).await);
    checks.push(admission(client).await);
    checks
}

async fn server(client: &Client) -> Check {
    const NAME: &str = "API server";
    match client.apiserver_version().await {
        Ok(version) => {
            let minor: u32 = version
                .minor
                .chars()
                .take_while(char::is_ascii_digit)
                .collect::<String>()
                .parse()
                .unwrap_or_default();
            let found = format!("Kubernetes {}.{}", version.major, version.minor);
            if version.major == "1" && minor < 33 {
                let advice = "use 1.33 or newer: the recorder is a sidecar container, which older ones don't have by default or as a stable feature";
                Check::failed(NAME, found, advice)
            } else {
                Check::ok(NAME, found)
            }
        }
        Err(error) => Check::failed(NAME, error.to_string(), "see whether `kubectl version` works"),
    }
}

async fn kinds(client: &Client, namespace: &str) -> Vec<Check> {
    let one = ListParams::default().limit(1);
    let sandboxes = Api::<AgentSandbox>::namespaced(client.clone(), namespace)
        .list(&one)
        .await
        .map(drop);
    let policies = Api::<SandboxPolicy>::namespaced(client.clone(), namespace)
        .list(&one)
        .await
        .map(drop);
    [("AgentSandbox", sandboxes), ("SandboxPolicy", policies)]
        .into_iter()
        .map(|(kind, found)| match found {
            Ok(()) => Check::ok(kind, format!("served as {}/{}", names::GROUP, names::VERSION)),
            Err(kube::Error::Api(status)) if status.code == 404 => Check::failed(
                kind,
                "the API server does not know this kind",
                "install the operator: kubectl apply -k manifests",
            ),
            Err(error) => Check::unseen(kind, &error),
        })
        .collect()
}

async fn operator(client: &Client, namespace: &str) -> Check {
    const NAME: &str = "operator";
    match deployment(client, namespace).await {
        Ok(None) => Check::failed(
            NAME,
            format!("no Deployment {OPERATOR} in namespace {namespace}"),
            "install the operator, or say where it is with --operator-namespace",
        ),
        Ok(Some(deployment)) => {
            let status = deployment.status.unwrap_or_default();
            let (ready, wanted) = (
                status.ready_replicas.unwrap_or(0),
                deployment.spec.and_then(|spec| spec.replicas).unwrap_or(1),
            );
            let found = format!("{ready} of {wanted} replicas ready in namespace {namespace}");
            let advice = format!("kubectl -n {namespace} describe deployment {OPERATOR}");
            match ready {
                0 => Check::failed(NAME, found, &advice),
                ready if ready < wanted => Check::warning(NAME, found, &advice),
                _ => Check::ok(NAME, found),
            }
        }
        Err(error) => Check::unseen(NAME, &error),
    }
}

async fn deployment(client: &Client, namespace: &str) -> Result<Option<Deployment>, kube::Error> {
    Api::<Deployment>::namespaced(client.clone(), namespace)
        .get_opt(OPERATOR)
        .await
}

/// The image that every recorder runs, by the operator's environment.
pub async fn supervisor_image(client: &Client, namespace: &str) -> Result<Option<String>, kube::Error> {
    let pod = deployment(client, namespace)
        .await?
        .and_then(|deployment| deployment.spec)
        .and_then(|spec| spec.template.spec);
    Ok(pod
        .into_iter()
        .flat_map(|pod| pod.containers)
        .flat_map(|container| container.env.unwrap_or_default())
        .find(|variable| variable.name == "SUPERVISOR_IMAGE")
        .and_then(|variable| variable.value))
}

async fn runtime_classes(client: &Client) -> Check {
    const NAME: &str = "runtime classes";
    match Api::<RuntimeClass>::all(client.clone())
        .list(&ListParams::default())
        .await
    {
        Ok(list) if list.items.is_empty() => Check::failed(
            NAME,
            "none",
            "install Kata Containers or gVisor, and the RuntimeClass that comes with it",
        ),
        Ok(list) => {
            let found: Vec<String> = list
                .items
                .iter()
                .map(|class| format!("{} ({})", class.name_any(), class.handler))
                .collect();
            let found = found.join(", ");
            if list.items.iter().any(|class| class.handler.starts_with("kata")) {
                Check::ok(NAME, found)
            } else {
                Check::warning(
                    NAME,
                    found,
                    "none starts virtual machines: policies must lower isolation.minimum, which is MicroVM by default",
                )
            }
        }
        Err(error) => Check::unseen(NAME, &error),
    }
}

async fn policies(client: &Client, namespace: &str, wanted: &str) -> Vec<Check> {
    let list = match Api::<SandboxPolicy>::namespaced(client.clone(), namespace)
        .list(&ListParams::default())
        .await
    {
        Ok(list) => list.items,
        Err(error) => return vec![Check::unseen("policies", &error)],
    };
    let mut checks: Vec<Check> = list
        .iter()
        .map(|policy| {
            let name = format!("policy {}", policy.name_any());
            let conditions = policy.status.iter().flat_map(|status| &status.conditions);
            match conditions
                .into_iter()
                .find(|condition| condition.type_ == "Ready")
            {
                Some(ready) if ready.status == "True" => Check::ok(&name, "Ready"),
                Some(ready) => Check::failed(
                    &name,
                    format!("{}: {}", ready.reason, ready.message),
                    "mend the policy; `kubectl sandbox policy check FILE` explains one without a cluster",
                ),
                None => Check::failed(
                    &name,
                    "the operator has not looked at it yet",
                    "wait a moment, then look at the operator's log",
                ),
            }
        })
        .collect();
    if !list.iter().any(|policy| policy.name_any() == wanted) {
        let found = format!("no SandboxPolicy {wanted} in namespace {namespace}");
        checks.push(if wanted == "default" {
            let advice = "the built-in policy holds: a microVM, no egress, small ceilings";
            Check::warning("policy default", found, advice)
        } else {
            let advice = format!("kubectl get sandboxpolicies -n {namespace}");
            Check::failed(&format!("policy {wanted}"), found, &advice)
        });
    }
    checks
}

/// Network policies add up: one of somebody else's that selects sandboxes widens what they may reach.
async fn foreign_network_policies(client: &Client, namespace: &str) -> Check {
    const NAME: &str = "network policies";
    match Api::<NetworkPolicy>::namespaced(client.clone(), namespace)
        .list(&ListParams::default())
        .await
    {
        Ok(list) => {
            let foreign: Vec<String> = list
                .items
                .iter()
                .filter(|policy| {
                    policy.labels().get(names::LABEL_MANAGED_BY).map(String::as_str) != Some(names::MANAGER)
                })
                .filter(|policy| {
                    let selector = policy.spec.as_ref().and_then(|spec| spec.pod_selector.as_ref());
                    selector.is_none_or(may_select_sandboxes)
                })
                .map(ResourceExt::name_any)
                .collect();
            if foreign.is_empty() {
                Check::ok(
                    NAME,
                    format!("{}, none of others that selects sandboxes", list.items.len()),
                )
            } else {
                Check::failed(
                    NAME,
                    format!("of others, and may select sandboxes: {}", foreign.join(", ")),
                    "exclude pods with the label agentsandbox.dev/sandbox from them, or remove them: sandboxes are refused meanwhile",
                )
            }
        }
        Err(error) => Check::unseen(NAME, &error),
    }
}

/// Whether a selector could match a sandbox's pod, of which labels other than ours are not known.
fn may_select_sandboxes(selector: &LabelSelector) -> bool {
    let empty = BTreeMap::new();
    let labels = selector.match_labels.as_ref().unwrap_or(&empty);
    let ours = [names::LABEL_SANDBOX, names::LABEL_POLICY, names::LABEL_MANAGED_BY];
    let other_label = labels.keys().any(|key| !ours.contains(&key.as_str()));
    let excluded =
        selector
            .match_expressions
            .iter()
            .flatten()
            .any(|expression| match expression.operator.as_str() {
                "DoesNotExist" => expression.key == names::LABEL_SANDBOX,
                "Exists" | "In" => !ours.contains(&expression.key.as_str()),
                _ => false,
            });
    !other_label && !excluded
}

async fn quotas(client: &Client, namespace: &str) -> Check {
    const NAME: &str = "quotas";
    match Api::<ResourceQuota>::namespaced(client.clone(), namespace)
        .list(&ListParams::default())
        .await
    {
        Ok(list) => {
            let full: Vec<String> = list.items.iter().filter_map(used_up).collect();
            if full.is_empty() {
                Check::ok(NAME, format!("{}, none used up", list.items.len()))
            } else {
                Check::warning(
                    NAME,
                    format!("used up: {}", full.join(", ")),
                    "sandboxes wait as QuotaExceeded until there is room",
                )
            }
        }
        Err(error) => Check::unseen(NAME, &error),
    }
}

/// The first thing of a quota that is used up.
fn used_up(quota: &ResourceQuota) -> Option<String> {
    let status = quota.status.as_ref()?;
    let (hard, used) = (status.hard.as_ref()?, status.used.as_ref()?);
    hard.iter()
        .find(|(what, limit)| used.get(*what) == Some(limit) && limit.0 != "0")
        .map(|(what, limit)| format!("{} ({what}: {})", quota.name_any(), limit.0))
}

async fn rights(client: &Client, namespace: &str) -> Check {
    const NAME: &str = "your rights";
    let reviews = Api::<SelfSubjectAccessReview>::all(client.clone());
    let mut missing = Vec::new();
    for (verb, group, resource, subresource) in [
        ("create", names::GROUP, "agentsandboxes", None),
        ("get", names::GROUP, "agentsandboxes", None),
        ("patch", names::GROUP, "agentsandboxes", None),
        ("delete", names::GROUP, "agentsandboxes", None),
        ("get", names::GROUP, "sandboxpolicies", None),
        ("get", "", "pods", Some("log")),
        ("create", "", "pods", Some("exec")),
    ] {
        let review = SelfSubjectAccessReview {
            spec: SelfSubjectAccessReviewSpec {
                resource_attributes: Some(ResourceAttributes {
                    namespace: Some(namespace.to_owned()),
                    verb: Some(verb.to_owned()),
                    group: Some(group.to_owned()),
                    resource: Some(resource.to_owned()),
                    subresource: subresource.map(str::to_owned),
                    ..ResourceAttributes::default()
                }),
                ..SelfSubjectAccessReviewSpec::default()
            },
            ..SelfSubjectAccessReview::default()
        };
        match reviews.create(&PostParams::default(), &review).await {
            Ok(answer) if answer.status.as_ref().is_some_and(|status| status.allowed) => {}
            Ok(_) => missing.push(match subresource {
                Some(sub) => format!("{verb} {resource}/{sub}"),
                None => format!("{verb} {resource}"),
            }),
            Err(error) => return Check::unseen(NAME, &error),
        }
    }
    if missing.is_empty() {
        Check::ok(
            NAME,
            format!("sandboxes, logs and steps in namespace {namespace}"),
        )
    } else {
        Check::warning(
            NAME,
            format!("missing in namespace {namespace}: {}", missing.join(", ")),
            "sandboxes need the first ones, logs pods/log, and steps of sessions pods/exec",
        )
    }
}

async fn admission(client: &Client) -> Check {
    const NAME: &str = "admission";
    match Api::<ValidatingAdmissionPolicyBinding>::all(client.clone())
        .list(&ListParams::default())
        .await
    {
        Ok(list) => {
            let bound: Vec<String> = list.items.iter().map(ResourceExt::name_any).collect();
            let missing: Vec<&str> = ADMISSION
                .into_iter()
                .filter(|name| !bound.iter().any(|bound| bound == name))
                .collect();
            if missing.is_empty() {
                Check::ok(NAME, "the accounts of operator and gateways are bounded")
            } else {
                Check::warning(
                    NAME,
                    format!("not bound: {}", missing.join(", ")),
                    "apply manifests/admission; without it these accounts, and whoever may use pods/exec, are trusted",
                )
            }
        }
        Err(error) => Check::unseen(NAME, &error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
    use serde_json::json;

    fn selector(value: serde_json::Value) -> LabelSelector {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn selectors_that_reach_sandboxes_are_told_from_others() {
        for reaches in [
            json!({}),
            json!({"matchLabels": {"agentsandbox.dev/sandbox": "one"}}),
            json!({"matchExpressions": [{"key": "app", "operator": "DoesNotExist"}]}),
            json!({"matchExpressions": [{"key": "app", "operator": "NotIn", "values": ["x"]}]}),
        ] {
            assert!(may_select_sandboxes(&selector(reaches.clone())), "{reaches}");
        }
        for other in [
            json!({"matchLabels": {"app": "web"}}),
            json!({"matchExpressions": [{"key": "app", "operator": "Exists"}]}),
            json!({"matchExpressions": [{"key": "agentsandbox.dev/sandbox", "operator": "DoesNotExist"}]}),
        ] {
            assert!(!may_select_sandboxes(&selector(other.clone())), "{other}");
        }
    }

    #[test]
    fn a_quota_without_room_is_named() {
        let quota = |used: &str| -> ResourceQuota {
            serde_json::from_value(json!({
                "metadata": {"name": "team"},
                "status": {"hard": {"pods": "2"}, "used": {"pods": used}},
            }))
            .unwrap()
        };
        assert_eq!(used_up(&quota("2")), Some("team (pods: 2)".to_owned()));
        assert_eq!(used_up(&quota("1")), None);
        let mut none = quota("0");
        let nothing = BTreeMap::from([("pods".to_owned(), Quantity("0".into()))]);
        none.status.as_mut().unwrap().hard = Some(nothing);
        assert_eq!(used_up(&none), None);
    }
}
