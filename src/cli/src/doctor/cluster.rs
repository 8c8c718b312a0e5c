//! What can be seen without starting anything.

use std::collections::BTreeMap;

use agentsandbox_api::names;
use agentsandbox_api::policy::SandboxPolicy;
use agentsandbox_api::sandbox::AgentSandbox;
use k8s_openapi::api::admissionregistration::v1::{
    ValidatingAdmissionPolicy, ValidatingAdmissionPolicyBinding,
};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::authorization::v1::{
    ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec,
};
use k8s_openapi::api::core::v1::ResourceQuota;
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::api::node::v1::RuntimeClass;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::api::{ListParams, ObjectList, PostParams};
use kube::{Api, Client, ResourceExt};
use sandbox_operator::quantity;

use super::Check;
use crate::connection::Connected;

/// Name of the operator's Deployment.
const OPERATOR: &str = "agentsandbox-operator";
/// The admission policy that bounds what goes into running pods of the project.
const EXEC: &str = "agentsandbox-exec";
/// The admission policy by which sandboxes' pods are the operator's.
const PODS: &str = "agentsandbox-pods";
/// All admission policies of `manifests/admission`; the others bound what the operator's and the gateways' accounts may
/// do.
const ADMISSION: [&str; 5] = [
    EXEC,
    "agentsandbox-gateway-writes",
    "agentsandbox-operator-gateways",
    "agentsandbox-operator-pods",
    PODS,
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

/// The first thing of a quota that is used up. What may not be used at all is not.
fn used_up(quota: &ResourceQuota) -> Option<String> {
    let status = quota.status.as_ref()?;
    let (hard, used) = (status.hard.as_ref()?, status.used.as_ref()?);
    // Thousandths, because processors are shared in parts.
    let amount = |text: &Quantity| quantity::cpu_millis(&text.0.as_str().into()).ok();
    hard.iter()
        .find(|(what, limit)| {
            let used = used.get(*what).and_then(amount);
            amount(limit).is_some_and(|limit| used >= Some(limit))
        })
        .map(|(what, limit)| format!("{} ({what}: {})", quota.name_any(), limit.0))
}

async fn rights(client: &Client, namespace: &str) -> Check {
    const NAME: &str = "your rights";
    let reviews = Api::<SelfSubjectAccessReview>::all(client.clone());
    let mut missing = Vec::new();
    for (verb, group, resource, subresource) in [
        ("create", names::GROUP, "agentsandboxes", None),
        ("get", names::GROUP, "agentsandboxes", None),
        ("list", names::GROUP, "agentsandboxes", None),
        ("watch", names::GROUP, "agentsandboxes", None),
        ("patch", names::GROUP, "agentsandboxes", None),
        ("delete", names::GROUP, "agentsandboxes", None),
        ("get", names::GROUP, "sandboxpolicies", None),
        ("get", "", "pods", Some("log")),
        // An exec over a WebSocket is a GET; API servers since 1.35 ask for both.
        ("get", "", "pods", Some("exec")),
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
    let all = ListParams::default();
    let policies = Api::<ValidatingAdmissionPolicy>::all(client.clone())
        .list(&all)
        .await;
    let bindings = Api::<ValidatingAdmissionPolicyBinding>::all(client.clone())
        .list(&all)
        .await;
    match (found(policies), found(bindings)) {
        (Ok(policies), Ok(bindings)) => enforced(&policies, &bindings),
        (Err(error), _) | (_, Err(error)) => Check::unseen("admission", &error),
    }
}

/// The objects of a list; none where the API server is too old to know their kind.
fn found<K: Clone>(list: Result<ObjectList<K>, kube::Error>) -> Result<Vec<K>, kube::Error> {
    match list {
        Ok(list) => Ok(list.items),
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

/// Whether each of our policies is there and bound such that it refuses.
fn enforced(policies: &[ValidatingAdmissionPolicy], bindings: &[ValidatingAdmissionPolicyBinding]) -> Check {
    const NAME: &str = "admission";
    let refuses = |name: &str| {
        let mut bound = bindings.iter().filter(|binding| binding.spec.policy_name == name);
        let denies = |action: &String| action == "Deny";
        bound.any(|binding| binding.spec.validation_actions.iter().any(denies))
    };
    let lacking: Vec<&str> = ADMISSION
        .into_iter()
        .filter(|name| !policies.iter().any(|policy| policy.name_any() == *name) || !refuses(name))
        .collect();
    if lacking.is_empty() {
        let found =
            "steps are the only way into sandboxes; the accounts of operator and gateways are bounded";
        return Check::ok(NAME, found);
    }
    let mut trusted = Vec::new();
    if lacking.contains(&EXEC) {
        trusted
            .push("exec users are trusted: who may exec into pods gets into sandboxes past their recorders");
    }
    if lacking.contains(&PODS) {
        trusted.push("who may create or change pods is trusted: theirs can pass for sandboxes");
    }
    if lacking.iter().any(|name| ![EXEC, PODS].contains(name)) {
        trusted.push("the accounts of operator and gateways are trusted");
    }
    Check::warning(
        NAME,
        format!("not enforced: {}; {}", lacking.join(", "), trusted.join("; ")),
        "kubectl apply -k manifests/admission",
    )
}

#[cfg(test)]
mod tests {
    use super::super::Outcome;
    use super::*;
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
        let told = |what: &str, hard: &str, used: &str| {
            used_up(
                &serde_json::from_value(json!({
                    "metadata": {"name": "team"},
                    "status": {"hard": {what: hard}, "used": {what: used}},
                }))
                .unwrap(),
            )
        };
        for (what, hard, used) in [
            ("pods", "2", "2"),
            ("pods", "2", "3"),
            ("limits.memory", "2048Mi", "2Gi"),
            ("limits.cpu", "1500m", "1.5"),
        ] {
            assert_eq!(
                told(what, hard, used),
                Some(format!("team ({what}: {hard})")),
                "{used}"
            );
        }
        for (what, hard, used) in [
            ("pods", "2", "1"),
            ("pods", "10", "9"),
            ("pods", "0", "0"),
            ("limits.memory", "2Gi", "2000Mi"),
            ("limits.cpu", "2", "1500m"),
        ] {
            assert_eq!(told(what, hard, used), None, "{what}: {used} of {hard}");
        }
    }

    /// Objects of one kind in `manifests/admission`.
    fn shipped<K: serde::de::DeserializeOwned>(kind: &str) -> Vec<K> {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../manifests/admission");
        let files = std::fs::read_dir(folder).unwrap();
        files
            .map(|file| std::fs::read_to_string(file.unwrap().path()).unwrap())
            .flat_map(|text| serde_saphyr::from_multiple::<serde_json::Value>(&text).unwrap())
            .filter(|object| object["kind"] == kind)
            .map(|object| serde_json::from_value(object).unwrap())
            .collect()
    }

    fn shipped_policies() -> Vec<ValidatingAdmissionPolicy> {
        shipped("ValidatingAdmissionPolicy")
    }

    fn shipped_bindings() -> Vec<ValidatingAdmissionPolicyBinding> {
        shipped("ValidatingAdmissionPolicyBinding")
    }

    #[test]
    fn every_shipped_admission_policy_is_looked_for() {
        let mut names: Vec<String> = shipped_policies().iter().map(ResourceExt::name_any).collect();
        names.sort();
        assert_eq!(names, ADMISSION);
        let check = enforced(&shipped_policies(), &shipped_bindings());
        assert_eq!(check.outcome, Outcome::Ok, "{check:?}");
    }

    #[test]
    fn a_policy_that_refuses_nothing_is_named_with_who_is_trusted_then() {
        type Change = fn(&mut ValidatingAdmissionPolicyBinding);
        let changes: [Change; 2] = [
            |binding| "another".clone_into(&mut binding.spec.policy_name),
            |binding| binding.spec.validation_actions = vec!["Audit".to_owned()],
        ];
        for name in ADMISSION {
            let (exec_users, makers) = (name == EXEC, name == PODS);
            let judge = |check: Check| {
                assert_eq!(check.outcome, Outcome::Warning, "{check:?}");
                assert!(
                    check.found.starts_with(&format!("not enforced: {name};")),
                    "{check:?}"
                );
                assert_eq!(
                    check.found.contains("exec users are trusted"),
                    exec_users,
                    "{check:?}"
                );
                assert_eq!(
                    check.found.contains("create or change pods is trusted"),
                    makers,
                    "{check:?}"
                );
                assert_eq!(
                    check.found.contains("accounts of operator"),
                    !exec_users && !makers,
                    "{check:?}"
                );
                assert!(check.advice.unwrap().contains("manifests/admission"));
            };
            for change in changes {
                let mut bindings = shipped_bindings();
                bindings
                    .iter_mut()
                    .filter(|binding| binding.name_any() == name)
                    .for_each(change);
                judge(enforced(&shipped_policies(), &bindings));
            }
            let mut policies = shipped_policies();
            policies.retain(|policy| policy.name_any() != name);
            judge(enforced(&policies, &shipped_bindings()));
        }
        // The binding's own name says nothing.
        let mut bindings = shipped_bindings();
        for binding in &mut bindings {
            binding.metadata.name = Some("mine".to_owned());
        }
        assert_eq!(enforced(&shipped_policies(), &bindings).outcome, Outcome::Ok);
    }
}
