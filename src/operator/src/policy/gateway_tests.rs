//! The gateway against an API server in memory: what is written, in which order, and when nothing is.

use agentsandbox_api::condition::reasons;
use serde_json::{Value, json};

use super::*;
use crate::testing::{self, ApiServer};

const POLICY: &str = "/apis/agentsandbox.dev/v1alpha1/namespaces/ns/sandboxpolicies/with-egress";
const INGRESS: &str = "/apis/networking.k8s.io/v1/namespaces/ns/networkpolicies/agentsandbox-gateway-ingress";
const EGRESS: &str = "/apis/networking.k8s.io/v1/namespaces/ns/networkpolicies/agentsandbox-gateway-egress";
const ACCOUNT: &str = "/api/v1/namespaces/ns/serviceaccounts/agentsandbox-gateway";
const BINDING: &str = "/apis/rbac.authorization.k8s.io/v1/namespaces/ns/rolebindings/agentsandbox-gateway";
const SERVICE: &str = "/api/v1/namespaces/ns/services/agentsandbox-gateway";
const DEPLOYMENT: &str = "/apis/apps/v1/namespaces/ns/deployments/agentsandbox-gateway";
/// Every part, in the order in which each needs the one before.
const PARTS: [&str; 6] = [INGRESS, EGRESS, ACCOUNT, BINDING, SERVICE, DEPLOYMENT];

fn policy(name: &str, spec: Value) -> Value {
    let mut policy = serde_json::to_value(testing::policy(spec)).unwrap();
    policy["metadata"]["name"] = name.into();
    policy["metadata"]["uid"] = format!("uid-of-{name}").into();
    policy
}

fn with_egress() -> Value {
    policy(
        "with-egress",
        json!({"egress": {"allow": [
            {"host": "api.github.com", "credential": {"secretRef": {"name": "github", "key": "token"}}},
        ]}}),
    )
}

async fn ensured(server: &ApiServer) -> State {
    let context = testing::start(server).await;
    ensure("ns", &context).await.unwrap()
}

fn applied(paths: &[&str]) -> Vec<String> {
    paths.iter().map(|path| format!("apply {path}")).collect()
}

/// A server with one policy that needs a gateway, and the gateway.
async fn with_gateway() -> ApiServer {
    let server = ApiServer::default();
    server.put(POLICY, with_egress());
    assert!(matches!(ensured(&server).await, State::Applying(_)));
    assert_eq!(server.writes(), applied(&PARTS));
    server
}

#[tokio::test]
async fn every_part_is_made_before_the_one_that_needs_it_and_then_left_alone() {
    let server = with_gateway().await;
    let deployment = server.get(DEPLOYMENT).unwrap();
    let pod = &deployment["spec"]["template"]["spec"];
    assert_eq!(pod["volumes"][1]["secret"]["secretName"], "github");
    let addresses = &pod["containers"][0]["env"][3];
    assert_eq!(addresses["value"], "10.96.3.4", "the live Service's: {addresses}");
    assert_eq!(
        deployment["metadata"]["ownerReferences"][0]["uid"],
        "uid-of-with-egress"
    );
    assert!(matches!(ensured(&server).await, State::Applying(_)));
    assert_eq!(server.writes(), Vec::<String>::new());
    server.change(
        DEPLOYMENT,
        json!({"status": {"replicas": 1, "updatedReplicas": 1, "availableReplicas": 1}}),
    );
    assert_eq!(ensured(&server).await, State::InForce);
    assert_eq!(server.writes(), Vec::<String>::new());
}

#[tokio::test]
async fn what_somebody_changed_is_put_right_and_nothing_else_is_touched() {
    let table = [
        (
            DEPLOYMENT,
            "patch",
            json!({"spec": {"template": {"spec": {"hostNetwork": true}}}}),
        ),
        (
            DEPLOYMENT,
            "patch",
            json!({"metadata": {"labels": {names::LABEL_MANAGED_BY: "me"}}}),
        ),
        (
            SERVICE,
            "patch",
            json!({"spec": {"externalIPs": ["203.0.113.7"]}}),
        ),
        (BINDING, "patch", json!({"subjects": []})),
        (EGRESS, "apply", json!({"spec": {"egress": [{}]}})),
    ];
    for (path, verb, change) in table {
        let server = with_gateway().await;
        let before = server.get(path).unwrap();
        server.change(path, change.clone());
        assert!(matches!(ensured(&server).await, State::Applying(_)), "{change}");
        assert_eq!(server.writes(), [format!("{verb} {path}")], "{change}");
        let mut after = server.get(path).unwrap();
        after["metadata"]["resourceVersion"] = before["metadata"]["resourceVersion"].clone();
        assert_eq!(after, before, "{change}");
    }
}

#[tokio::test]
async fn an_address_of_a_load_balancer_is_closed_around_the_gateway_and_replaces_nothing() {
    const BALANCER: &str = "/api/v1/namespaces/shop/services/web";
    let server = with_gateway().await;
    let network = |server: &ApiServer| server.get(EGRESS).unwrap().to_string();
    server.put(
        BALANCER,
        json!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": "web", "namespace": "shop"},
            "spec": {"type": "LoadBalancer", "externalIPs": ["93.184.216.36"]},
            "status": {"loadBalancer": {"ingress": [{"ip": "93.184.216.34"}]}},
        }),
    );
    ensured(&server).await;
    assert_eq!(server.writes(), applied(&[EGRESS]));
    for address in ["93.184.216.34/32", "93.184.216.36/32"] {
        assert!(network(&server).contains(address), "{address}");
    }

    server.change(BALANCER, json!({"spec": {"type": "ClusterIP"}}));
    ensured(&server).await;
    assert_eq!(server.writes(), applied(&[EGRESS]));
    assert!(!network(&server).contains("93.184.216"));
}

#[tokio::test]
async fn a_binding_to_another_role_is_made_anew() {
    let server = with_gateway().await;
    server.change(BINDING, json!({"roleRef": {"name": "cluster-admin"}}));
    ensured(&server).await;
    assert_eq!(
        server.writes(),
        [format!("delete {BINDING}"), format!("apply {BINDING}")]
    );
}

#[tokio::test]
async fn policies_own_the_gateway_together() {
    let server = with_gateway().await;
    let other = policy(
        "another-one",
        json!({"models": [{"provider": "OpenAI", "host": "api.openai.com",
        "allow": ["m"], "credential": {"secretRef": {"name": "openai", "key": "key"}}}]}),
    );
    server.put(&POLICY.replace("with-egress", "another-one"), other);
    ensured(&server).await;
    let deployment = server.get(DEPLOYMENT).unwrap();
    let owners: Vec<&Value> = deployment["metadata"]["ownerReferences"]
        .as_array()
        .unwrap()
        .iter()
        .map(|owner| &owner["name"])
        .collect();
    assert_eq!(owners, ["another-one", "with-egress"]);
    let volumes = deployment["spec"]["template"]["spec"]["volumes"]
        .as_array()
        .unwrap();
    assert_eq!(volumes.len(), 3, "{volumes:?}");
    assert_eq!(server.writes().len(), PARTS.len(), "each part has an owner more");
}

#[tokio::test]
async fn a_gateway_that_no_policy_needs_any_more_goes_the_last_part_first() {
    let server = with_gateway().await;
    server.put(POLICY, policy("with-egress", json!({})));
    assert_eq!(ensured(&server).await, State::NotRequested);
    let mut parts: Vec<String> = PARTS.iter().map(|path| format!("delete {path}")).collect();
    parts.reverse();
    assert_eq!(server.writes(), parts);
    assert_eq!(ensured(&server).await, State::NotRequested);
    assert_eq!(server.writes(), Vec::<String>::new());
}

#[tokio::test]
async fn a_policy_whose_rules_are_wrong_brings_no_gateway_up_and_none_down() {
    let wrong = policy(
        "with-egress",
        json!({"egress": {"allow": [{"host": "localhost"}]}}),
    );
    let server = ApiServer::default();
    server.put(POLICY, wrong.clone());
    assert_eq!(ensured(&server).await, State::NotRequested);
    assert_eq!(server.writes(), Vec::<String>::new());
    let server = with_gateway().await;
    server.put(POLICY, wrong);
    assert!(matches!(ensured(&server).await, State::Applying(_)));
    // Its Secrets go.
    assert_eq!(server.writes(), [format!("patch {DEPLOYMENT}")]);
}

#[tokio::test]
async fn what_the_api_server_refuses_is_said_in_its_words() {
    let server = ApiServer::default();
    server.put(POLICY, with_egress());
    server.refuse(DEPLOYMENT, "violates a policy of the cluster");
    let state = ensured(&server).await;
    assert_eq!(state, State::Failed("violates a policy of the cluster".into()));
    let policy = testing::policy(json!({"egress": {"allow": [{"host": "example.org"}]}}));
    let said = crate::policy::gateway_says(&policy, "", &state);
    assert_eq!((said.status, said.reason), ("False", reasons::APPLY_FAILED));
}

fn deployment(status: &Value) -> Deployment {
    serde_json::from_value(json!({"metadata": {"name": "x", "generation": 2}, "status": status})).unwrap()
}

#[test]
fn a_gateway_is_in_force_when_nothing_of_an_earlier_version_is_left() {
    let ready = json!({"observedGeneration": 2, "replicas": 1, "updatedReplicas": 1, "availableReplicas": 1});
    assert_eq!(state(&deployment(&ready)), State::InForce);
    for (field, value) in [
        ("observedGeneration", 1),
        ("replicas", 2),
        ("updatedReplicas", 0),
        ("availableReplicas", 0),
    ] {
        let mut status = ready.clone();
        status[field] = value.into();
        let state = state(&deployment(&status));
        assert!(matches!(state, State::Applying(_)), "{field}: {state:?}");
    }
}

#[test]
fn what_keeps_a_gateway_from_coming_up_is_said() {
    let status = json!({"observedGeneration": 2, "conditions": [
        {"type": "Progressing", "status": "True", "message": "no"},
        {"type": "ReplicaFailure", "status": "True", "message": "violates PodSecurity"},
    ]});
    let State::Applying(message) = state(&deployment(&status)) else {
        panic!()
    };
    assert!(message.ends_with("violates PodSecurity"), "{message}");
}
