//! The shipped manifests grant what the operator needs and nothing that would make it, or an editor, an administrator.

// Clippy takes only functions marked #[test] for tests; this whole file is one.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::path::{Path, PathBuf};

use serde_json::Value;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../manifests")
}

/// Every object below a folder of the manifests.
fn objects(folder: &Path) -> Vec<Value> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(objects(&path));
        } else if path.extension().is_some_and(|extension| extension == "yaml") {
            let text = std::fs::read_to_string(&path).unwrap();
            found.extend(serde_saphyr::from_multiple::<Value>(&text).unwrap());
        }
    }
    found
}

fn named<'a>(objects: &'a [Value], kind: &str, name: &str) -> &'a Value {
    objects
        .iter()
        .find(|object| object["kind"] == kind && object["metadata"]["name"] == name)
        .unwrap_or_else(|| panic!("{kind} {name} is missing"))
}

fn words<'a>(rule: &'a Value, field: &str) -> Vec<&'a str> {
    rule[field]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect()
}

/// All rules of roles that are bound to the operator's own account.
fn rules_of_the_operator(objects: &[Value]) -> Vec<&Value> {
    objects
        .iter()
        .filter(|object| {
            object["kind"].as_str().is_some_and(|kind| kind.ends_with("Role"))
                && object["metadata"]["name"]
                    .as_str()
                    .is_some_and(|name| name.starts_with("agentsandbox-operator"))
        })
        .flat_map(|role| role["rules"].as_array().unwrap())
        .collect()
}

#[test]
fn the_operator_can_read_no_secret_and_become_nobody_else() {
    let objects = objects(&root());
    let rules = rules_of_the_operator(&objects);
    assert!(rules.len() > 10);
    for rule in rules {
        for field in ["apiGroups", "resources", "verbs"] {
            assert!(!words(rule, field).contains(&"*"), "{rule}");
        }
        for verb in ["escalate", "bind", "impersonate", "deletecollection"] {
            assert!(!words(rule, "verbs").contains(&verb), "{rule}");
        }
        for resource in words(rule, "resources") {
            let forbidden = [
                "secrets",
                "serviceaccounts",
                "nodes/proxy",
                "certificatesigningrequests",
            ];
            assert!(!forbidden.contains(&resource), "{rule}");
            let subresource_of_pods = resource.starts_with("pods/");
            let token = resource.ends_with("/token");
            assert!(!subresource_of_pods && !token, "{rule}");
            assert!(
                !words(rule, "apiGroups").contains(&"rbac.authorization.k8s.io"),
                "{rule}"
            );
        }
    }
}

#[test]
fn the_operator_never_writes_what_users_wrote() {
    let objects = objects(&root());
    for rule in rules_of_the_operator(&objects) {
        let resources = words(rule, "resources");
        if resources.contains(&"agentsandboxes") || resources.contains(&"sandboxpolicies") {
            for verb in ["create", "update", "patch"] {
                assert!(!words(rule, "verbs").contains(&verb), "{rule}");
            }
        }
    }
}

#[test]
fn editors_get_neither_policies_nor_any_status() {
    let objects = objects(&root());
    for role in objects.iter().filter(|object| object["kind"] == "ClusterRole") {
        let labels = &role["metadata"]["labels"];
        let aggregated = ["edit", "admin", "view"]
            .iter()
            .filter(|to| labels[format!("rbac.authorization.k8s.io/aggregate-to-{to}")] == "true")
            .count();
        if aggregated == 0 {
            continue;
        }
        for rule in role["rules"].as_array().unwrap() {
            let writes = words(rule, "verbs")
                .iter()
                .any(|verb| !["get", "list", "watch"].contains(verb));
            for resource in words(rule, "resources") {
                assert!(
                    !writes || resource == "agentsandboxes",
                    "{}: {rule}",
                    role["metadata"]["name"]
                );
            }
        }
    }
    let edit = named(&objects, "ClusterRole", "agentsandbox-edit");
    assert_eq!(
        edit["metadata"]["labels"]["rbac.authorization.k8s.io/aggregate-to-edit"],
        "true"
    );
    assert!(
        named(&objects, "ClusterRole", "agentsandbox-policy-admin")["metadata"]
            .get("labels")
            .is_none()
    );
}

#[test]
fn one_namespace_needs_the_same_rights_as_all() {
    let sorted = |rules: Vec<Value>| {
        let mut rules: Vec<String> = rules.iter().map(Value::to_string).collect();
        rules.sort();
        rules
    };
    let rules = |objects: &[Value], kind: &str, name: &str| {
        named(objects, kind, name)["rules"].as_array().unwrap().clone()
    };
    let objects = objects(&root());
    let mut parts = rules(&objects, "Role", "agentsandbox-operator-sandboxes");
    parts.extend(rules(&objects, "ClusterRole", "agentsandbox-operator-reads"));
    assert_eq!(
        sorted(parts),
        sorted(rules(&objects, "ClusterRole", "agentsandbox-operator"))
    );
}

#[test]
fn ports_and_names_agree_with_the_operators_defaults() {
    #[derive(clap::Parser)]
    struct Wrapper {
        #[command(flatten)]
        config: sandbox_operator::config::Config,
    }
    let config = <Wrapper as clap::Parser>::parse_from(["test"]).config;
    let objects = objects(&root());
    let canary = named(&objects, "Service", &config.canary_service);
    let ports = canary["spec"]["ports"].as_array().unwrap();
    let protocols: Vec<&str> = ports
        .iter()
        .filter_map(|port| port["protocol"].as_str())
        .collect();
    assert_eq!(protocols, ["TCP", "UDP"]);
    assert!(ports.iter().all(|port| port["port"] == config.canary_port));
    assert_eq!(
        named(&objects, "Service", "agentsandbox-metrics")["spec"]["ports"][0]["port"],
        config.http_port
    );
    let policy = named(&objects, "NetworkPolicy", "agentsandbox-operator");
    let open: Vec<u64> = policy["spec"]["ingress"][0]["ports"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|port| port["port"].as_u64())
        .collect();
    assert_eq!(
        open,
        [config.http_port, config.canary_port, config.canary_port].map(u64::from)
    );
    named(&objects, "Namespace", &config.namespace);
    // The lease is given up before the kubelet's patience ends.
    let pod = &named(&objects, "Deployment", "agentsandbox-operator")["spec"]["template"]["spec"];
    assert!(pod["terminationGracePeriodSeconds"].as_u64().unwrap() > 13);
}
