//! The shipped manifests grant what the operator needs and nothing that would make it, or an editor, an administrator.

// Clippy takes only functions marked #[test] for tests; this whole file is one.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use agentsandbox_api::{gateway, names};
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
                "nodes/proxy",
                "certificatesigningrequests",
                "roles",
                "clusterroles",
                "clusterrolebindings",
            ];
            assert!(!forbidden.contains(&resource), "{rule}");
            let subresource_of_pods = resource.starts_with("pods/");
            let token = resource.ends_with("/token");
            assert!(!subresource_of_pods && !token, "{rule}");
        }
    }
}

#[test]
fn the_operator_changes_no_deployment_service_account_or_binding_but_its_gateways() {
    let objects = objects(&root());
    let kinds = ["deployments", "services", "serviceaccounts", "rolebindings"];
    let mut creates = BTreeSet::new();
    for rule in rules_of_the_operator(&objects) {
        let resources = words(rule, "resources");
        for kind in kinds.iter().filter(|kind| resources.contains(*kind)) {
            let verbs = words(rule, "verbs");
            // A right to create can't be bound to a name; the admission policy is.
            creates.extend(verbs.contains(&"create").then_some(*kind));
            let named = ["get", "update", "patch", "delete"]
                .iter()
                .any(|verb| verbs.contains(verb));
            let only = words(rule, "resourceNames");
            let reads_only = verbs == ["get"];
            assert!(
                !named || reads_only && only.len() == 1 || only == [gateway::NAME],
                "{rule}"
            );
        }
    }
    assert_eq!(creates, BTreeSet::from(kinds));
}

/// One permission: API group, resource, verb.
type Permission<'a> = (&'a str, &'a str, &'a str);

fn permissions<'a>(rules: impl IntoIterator<Item = &'a Value>) -> BTreeSet<Permission<'a>> {
    let mut found = BTreeSet::new();
    for rule in rules
        .into_iter()
        .filter(|rule| rule.get("resourceNames").is_none())
    {
        for group in words(rule, "apiGroups") {
            for resource in words(rule, "resources") {
                found.extend(
                    words(rule, "verbs")
                        .into_iter()
                        .map(|verb| (group, resource, verb)),
                );
            }
        }
    }
    found
}

#[test]
fn the_operator_holds_all_that_it_gives_to_gateways() {
    let objects = objects(&root());
    let granted = permissions(
        named(&objects, "ClusterRole", gateway::NAME)["rules"]
            .as_array()
            .unwrap(),
    );
    for (_, resource, verb) in &granted {
        let writes = !["get", "list", "watch"].contains(verb);
        assert!(!writes || resource.ends_with("/status"), "{resource}: {verb}");
        assert!(!resource.contains("secrets"), "{resource}");
    }
    for (kind, name) in [
        ("ClusterRole", "agentsandbox-operator"),
        ("Role", "agentsandbox-operator-sandboxes"),
    ] {
        let held = permissions(named(&objects, kind, name)["rules"].as_array().unwrap());
        let missing: Vec<_> = granted.difference(&held).collect();
        assert!(missing.is_empty(), "{name} lacks {missing:?}");
    }
}

#[test]
fn every_admission_policy_is_bound_and_fails_closed() {
    let objects = objects(&root());
    let policies: Vec<&Value> = objects
        .iter()
        .filter(|object| object["kind"] == "ValidatingAdmissionPolicy")
        .collect();
    assert_eq!(policies.len(), 5);
    for policy in policies {
        let name = policy["metadata"]["name"].as_str().unwrap();
        assert_eq!(policy["spec"]["failurePolicy"], "Fail", "{name}");
        let binding = named(&objects, "ValidatingAdmissionPolicyBinding", name);
        assert_eq!(binding["spec"]["policyName"], name);
        assert_eq!(words(&binding["spec"], "validationActions"), ["Deny"]);
    }
}

#[test]
fn admission_policies_name_the_accounts_labels_and_names_that_the_program_uses() {
    let objects = objects(&root());
    let text = |name: &str| named(&objects, "ValidatingAdmissionPolicy", name)["spec"].to_string();
    let account = format!(
        "system:serviceaccount:{}:agentsandbox-operator",
        named(&objects, "ServiceAccount", "agentsandbox-operator")["metadata"]
            .get("namespace")
            .and_then(Value::as_str)
            .unwrap_or("agentsandbox-system")
    );
    let domain = format!("'{}/'", names::GROUP);
    let expected = [
        ("agentsandbox-gateway-writes", vec![gateway::NAME, "'egress'"]),
        (
            "agentsandbox-operator-pods",
            vec![
                &account,
                names::LABEL_SANDBOX,
                names::LABEL_POLICY,
                names::LABEL_MANAGED_BY,
                names::FINALIZER_RESULT,
                gateway::AUDIENCE,
            ],
        ),
        (
            "agentsandbox-exec",
            vec![
                gateway::NAME,
                names::POD_MARK,
                names::CONTAINER_RECORDER,
                names::PATH_SUPERVISOR_IN_IMAGE,
            ],
        ),
        (
            "agentsandbox-operator-gateways",
            vec![&account, gateway::NAME, gateway::LABEL.0],
        ),
        ("agentsandbox-pods", vec![&account, &domain, "'AgentSandbox'"]),
    ];
    for (policy, words) in expected {
        for word in words {
            assert!(text(policy).contains(word), "{policy}: {word}");
        }
    }
}

/// What a policy looks at: operations, each with a resource of the core group.
fn matched(policy: &Value) -> BTreeSet<(&str, &str)> {
    let rules = policy["spec"]["matchConstraints"]["resourceRules"].as_array();
    rules
        .unwrap()
        .iter()
        .flat_map(|rule| {
            let resources = words(rule, "resources");
            words(rule, "operations")
                .into_iter()
                .flat_map(move |operation| resources.clone().into_iter().map(move |what| (operation, what)))
        })
        .collect()
}

#[test]
fn every_way_into_a_running_pod_is_looked_at() {
    let objects = objects(&root());
    let exec = named(&objects, "ValidatingAdmissionPolicy", "agentsandbox-exec");
    let ways = [
        ("CONNECT", "pods/exec"),
        ("CONNECT", "pods/attach"),
        ("CONNECT", "pods/portforward"),
        ("CONNECT", "pods/proxy"),
        ("UPDATE", "pods/ephemeralcontainers"),
        ("UPDATE", "pods/resize"),
    ];
    assert_eq!(matched(exec), BTreeSet::from(ways));
    let pods = named(&objects, "ValidatingAdmissionPolicy", "agentsandbox-pods");
    assert_eq!(
        matched(pods),
        BTreeSet::from([("CREATE", "pods"), ("UPDATE", "pods")])
    );
}

#[test]
fn the_operators_account_puts_no_secret_into_an_environment() {
    let objects = objects(&root());
    for name in ["agentsandbox-operator-pods", "agentsandbox-operator-gateways"] {
        let policy = named(&objects, "ValidatingAdmissionPolicy", name);
        let validations = policy["spec"]["validations"].as_array().unwrap();
        let closed = validations.iter().any(|validation| {
            let expression = validation["expression"].as_str().unwrap();
            expression.contains("!has(container.envFrom)")
                && expression.contains("!has(entry.valueFrom) || has(entry.valueFrom.fieldRef)")
        });
        assert!(closed, "{name}");
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
    let container =
        &named(&objects, "Deployment", "agentsandbox-operator")["spec"]["template"]["spec"]["containers"][0];
    for (variable, default) in [
        ("SUPERVISOR_IMAGE", &config.supervisor_image),
        ("GATEWAY_IMAGE", &config.gateway_image),
    ] {
        let env = container["env"].as_array().unwrap();
        let entry = env.iter().find(|entry| entry["name"] == variable).unwrap();
        assert_eq!(entry["value"], **default, "{variable}");
    }
    // The lease is given up before the kubelet's patience ends.
    let pod = &named(&objects, "Deployment", "agentsandbox-operator")["spec"]["template"]["spec"];
    assert!(pod["terminationGracePeriodSeconds"].as_u64().unwrap() > 13);
}
