//! Whose pod it is that has a run's name, and which network policies are ours, by an API server in memory.

use agentsandbox_api::sandbox::AgentSandboxStatus;
use serde_json::{Value, json};

use super::*;
use crate::sandbox::apply;
use crate::testing::{self, ApiServer};

const NETWORK_POLICIES: &str = "/apis/networking.k8s.io/v1/namespaces/ns/networkpolicies";
const POD: &str = "/api/v1/namespaces/ns/pods/job-sb788fdd64";

/// A namespace without policies, in which the built-in one holds.
fn server() -> ApiServer {
    let server = ApiServer::default();
    server.put(
        "/apis/node.k8s.io/v1/runtimeclasses/vm",
        json!({"kind": "RuntimeClass", "metadata": {"name": testing::config().default_runtime_class}, "handler": "kata"}),
    );
    put_network_policy(&server, &network_policy::deny_all("ns"));
    server
}

fn put_network_policy(server: &ApiServer, policy: &impl serde::Serialize) {
    let policy = serde_json::to_value(policy).unwrap();
    let path = format!(
        "{NETWORK_POLICIES}/{}",
        policy["metadata"]["name"].as_str().unwrap()
    );
    server.put(&path, policy);
}

fn put_policy(server: &ApiServer, policy: &SandboxPolicy) {
    server.put(
        "/apis/agentsandbox.dev/v1alpha1/namespaces/ns/sandboxpolicies/default",
        serde_json::to_value(policy).unwrap(),
    );
}

/// A policy without egress, with its network policy.
fn put_closed_policy(server: &ApiServer, policy: &SandboxPolicy) {
    put_policy(server, policy);
    let network_policy = network_policy::for_policy("ns", "default", owner_reference(policy), false);
    put_network_policy(server, &network_policy);
}

fn now() -> Timestamp {
    "2026-01-01T00:00:05Z".parse().unwrap()
}

/// The pod that the run gets, as the API server has it.
async fn made(server: &ApiServer, sandbox: &AgentSandbox) -> Value {
    let context = testing::start(server).await;
    let world = dereference(sandbox, &context, now()).await.unwrap();
    let mut pod = serde_json::to_value(planned(&world, &context).unwrap()).unwrap();
    testing::merge(
        &mut pod,
        json!({"metadata": {"uid": "a", "creationTimestamp": "2026-01-01T00:00:01Z"},
            "spec": {"nodeName": "node", "schedulerName": "default-scheduler"}}),
    );
    pod
}

/// What is found of a pod, and of the attempt to make one.
async fn found(pod: &Value, sandbox: &AgentSandbox) -> (PodState, Option<Creation>) {
    let server = server();
    server.put(POD, pod.clone());
    let context = testing::start(&server).await;
    let world = dereference(sandbox, &context, now()).await.unwrap();
    (world.pod, world.creation)
}

fn with_status(status: Value) -> AgentSandbox {
    let mut sandbox = testing::sandbox(json!({}));
    let mut full = json!({"runId": ""});
    testing::merge(&mut full, status);
    sandbox.status = Some(serde_json::from_value::<AgentSandboxStatus>(full).unwrap());
    sandbox
}

#[tokio::test]
async fn a_pod_that_the_status_does_not_name_is_the_runs_only_if_it_is_as_it_would_be_made() {
    let sandbox = testing::sandbox(json!({}));
    let genuine = made(&server(), &sandbox).await;
    let (pod, creation) = found(&genuine, &sandbox).await;
    assert!(matches!(pod, PodState::Present(_)), "{pod:?} {creation:?}");

    // Whoever would hold it back or stop it finds it as well, and one that is being ended.
    for spec in [json!({"suspend": true}), json!({"stop": true})] {
        let (pod, creation) = found(&genuine, &testing::sandbox(spec)).await;
        assert!(matches!(pod, PodState::Present(_)), "{pod:?} {creation:?}");
    }
    let mut ending = genuine.clone();
    ending["spec"]["activeDeadlineSeconds"] = 1.into();
    let (pod, creation) = found(&ending, &sandbox).await;
    assert!(matches!(pod, PodState::Present(_)), "{pod:?} {creation:?}");

    let forgeries: [(&str, Value); 5] = [
        ("/spec/initContainers/0/image", "reg.io/forger:1".into()),
        ("/spec/initContainers/0/env/2/value", "e30=".into()),
        ("/spec/containers/0/image", "reg.io/forger:1".into()),
        ("/spec/runtimeClassName", "runc".into()),
        ("/spec/activeDeadlineSeconds", 1_000_000.into()),
    ];
    for (path, value) in forgeries {
        let mut forged = genuine.clone();
        *forged.pointer_mut(path).unwrap() = value;
        let (pod, creation) = found(&forged, &sandbox).await;
        assert_eq!(pod, PodState::Absent, "{path}");
        assert!(
            matches!(creation, Some(Creation::Conflict(_))),
            "{path}: {creation:?}"
        );
    }
}

#[tokio::test]
async fn a_forged_pod_is_no_run_even_where_nothing_could_be_made() {
    let genuine = made(&server(), &testing::sandbox(json!({}))).await;
    let sandbox = testing::sandbox(json!({"policyRef": {"name": "missing"}}));
    let mut forged = genuine;
    forged["metadata"]["labels"][names::LABEL_POLICY] = "missing".into();
    assert_eq!(found(&forged, &sandbox).await, (PodState::Absent, None));
}

#[tokio::test]
async fn a_pod_that_the_status_names_stays_the_runs_whatever_would_be_made_now() {
    let mut pod = made(&server(), &testing::sandbox(json!({}))).await;
    pod["spec"]["initContainers"][0]["image"] = "reg.io/supervisor:of-an-older-version".into();
    let (own, creation) = found(
        &pod,
        &with_status(json!({"podName": "job-sb788fdd64", "podUid": "a"})),
    )
    .await;
    assert!(matches!(own, PodState::Present(_)), "{own:?}");
    assert_eq!(creation, None);
}

#[tokio::test]
async fn no_pod_takes_the_place_of_the_one_that_the_status_names() {
    let pod = made(&server(), &testing::sandbox(json!({}))).await;
    let named = json!({"podName": "job-sb788fdd64", "podUid": "another"});
    assert_eq!(
        found(&pod, &with_status(named.clone())).await,
        (PodState::Absent, None)
    );

    // Of a finished run it is only what is to be removed.
    let finished = json!({"conditions": [{"type": types::FINISHED, "status": "True", "reason": "PodConflict",
        "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z"}]});
    for mut status in [named, json!({})] {
        testing::merge(&mut status, finished.clone());
        let (left, _) = found(&pod, &with_status(status)).await;
        assert!(
            matches!(left, PodState::OfEarlierRun { held: true, .. }),
            "{left:?}"
        );
    }
}

#[tokio::test]
async fn an_owner_of_another_kind_makes_no_pod_the_runs() {
    let sandbox = testing::sandbox(json!({}));
    let genuine = made(&server(), &sandbox).await;
    for (field, value) in [("kind", "Job"), ("apiVersion", "batch/v1"), ("uid", "another")] {
        let mut pod = genuine.clone();
        pod["metadata"]["ownerReferences"][0][field] = value.into();
        assert_eq!(found(&pod, &sandbox).await, (PodState::Absent, None), "{field}");
    }
}

#[tokio::test]
async fn nothing_starts_before_the_quota_of_its_policy_stands() {
    let quota = json!({"quota": {"sandboxes": 1}});
    let said = |status: &str, generation: i64| {
        json!({"conditions": [{"type": types::QUOTA_READY, "status": status, "reason": "InForce", "message": "m",
            "observedGeneration": generation, "lastTransitionTime": "2026-01-01T00:00:00Z"}]})
    };
    let table = [
        (json!({}), json!({}), None),
        (json!({"quota": {"tokens": 5}}), json!({}), None),
        (quota.clone(), said("True", 3), None),
        (quota.clone(), json!({}), Some("does not stand yet")),
        // An edit of the policy is on its way.
        (quota.clone(), said("True", 2), Some("does not stand yet")),
        (quota, said("False", 3), Some("is not ready: m")),
    ];
    for (spec, status, waits) in table {
        let server = server();
        let mut policy = testing::policy(spec.clone());
        policy.status = Some(serde_json::from_value(status.clone()).unwrap());
        put_closed_policy(&server, &policy);
        let context = testing::start(&server).await;
        let mut sandbox = testing::sandbox(json!({}));
        // One that is older is told so.
        sandbox.metadata.creation_timestamp =
            Some("2025-12-31T00:00:00Z".parse::<Timestamp>().unwrap().into());
        let world = dereference(&sandbox, &context, now()).await.unwrap();
        let decision = decide::decide(&world);
        match waits {
            None => assert!(
                matches!(decision.before.as_slice(), [Action::CreatePod(..)]),
                "{spec} {status}: {decision:?}"
            ),
            Some(message) => {
                assert!(decision.before.is_empty(), "{spec} {status}");
                let ready = conditions::find(&decision.status.conditions, types::READY).unwrap();
                assert!(ready.message.contains(message), "{}", ready.message);
            }
        }
    }
}

/// Two sandboxes whose workspace is the same claim.
fn sharing(server: &ApiServer) -> [AgentSandbox; 2] {
    server.put(
        "/api/v1/namespaces/ns/persistentvolumeclaims/data-1",
        json!({"kind": "PersistentVolumeClaim", "apiVersion": "v1",
            "metadata": {"name": "data-1", "labels": {names::LABEL_USABLE: "true"}}}),
    );
    ["one", "two"].map(|name| {
        let mut sandbox =
            testing::sandbox(json!({"workspace": {"persistentVolumeClaim": {"claimName": "data-1"}}}));
        sandbox.metadata.name = Some(name.to_owned());
        sandbox.metadata.uid = Some(format!("{name}111111-2222-3333-4444-555555555555"));
        server.put(
            &format!("/apis/agentsandbox.dev/v1alpha1/namespaces/ns/agentsandboxes/{name}"),
            serde_json::to_value(&sandbox).unwrap(),
        );
        sandbox
    })
}

#[tokio::test]
async fn two_runs_that_begin_at_once_do_not_get_one_claim() {
    for (shared, made) in [(false, 1), (true, 2)] {
        let server = server();
        let policy =
            testing::policy(json!({"workspace": {"persistentVolumeClaims": ["data-1"], "shared": shared}}));
        put_closed_policy(&server, &policy);
        let sandboxes = sharing(&server);
        let context = testing::start(&server).await;
        // The store of pods stays empty: neither knows of the other.
        let run = async |sandbox: &AgentSandbox| {
            let mut world = dereference(sandbox, &context, now()).await.unwrap();
            let decision = decide::decide(&world);
            let [Action::CreatePod(run, isolation)] = decision.before.as_slice() else {
                panic!("{decision:?}");
            };
            apply::create_pod(&mut world, run, isolation.clone(), &context)
                .await
                .unwrap();
            (world.pod != PodState::Absent, world.inputs)
        };
        let (one, two) = tokio::join!(run(&sandboxes[0]), run(&sandboxes[1]));
        let runs = [&one, &two].iter().filter(|(made, _)| *made).count();
        assert_eq!(runs, made, "{one:?} {two:?}");
        let refused = [&one, &two].iter().filter(|(_, inputs)| inputs.is_err()).count();
        assert_eq!(refused, 2 - made, "{one:?} {two:?}");
    }
}

#[tokio::test]
async fn a_network_policy_is_ours_by_what_it_says_and_not_by_its_name() {
    let policy = testing::policy(json!({"egress": {"allow": [{"host": "api.github.com"}]}}));
    let ours = |gateway| network_policy::for_policy("ns", "default", owner_reference(&policy), gateway);
    let everywhere = |name: &str| {
        let mut altered = serde_json::to_value(ours(false)).unwrap();
        altered["metadata"]["name"] = name.into();
        altered["spec"]["egress"] = json!([{}]);
        altered
    };
    let closed = || serde_json::to_value(ours(true)).unwrap();
    let widened = |by: &str| NetworkView::Widened(by.to_owned());
    let table = [
        (closed(), NetworkView::Closed),
        // Another edit of the policy is on its way.
        (serde_json::to_value(ours(false)).unwrap(), NetworkView::NotReady),
        (
            everywhere("agentsandbox-policy-default"),
            widened("agentsandbox-policy-default"),
        ),
        (
            everywhere("agentsandbox-policy-none"),
            widened("agentsandbox-policy-none"),
        ),
        (
            everywhere("agentsandbox-deny-all"),
            widened("agentsandbox-deny-all"),
        ),
    ];
    for (network_policy, expected) in table {
        let server = server();
        put_policy(&server, &policy);
        put_network_policy(&server, &closed());
        put_network_policy(&server, &network_policy);
        let context = testing::start(&server).await;
        let sandbox = testing::sandbox(json!({}));
        let world = dereference(&sandbox, &context, now()).await.unwrap();
        assert_eq!(world.network, expected, "{network_policy}");
    }
}

#[tokio::test]
async fn the_policy_that_denies_all_is_put_right_while_a_run_has_its_pod() {
    let sandbox = testing::sandbox(json!({}));
    let pod = made(&server(), &sandbox).await;
    let path = format!("{NETWORK_POLICIES}/{}", names::DENY_ALL_NETWORK_POLICY);
    let sandbox = with_status(json!({"podName": "job-sb788fdd64", "podUid": "a"}));
    for (change, repairs) in [
        (json!({}), 0),
        (json!({"spec": {"policyTypes": ["Ingress"]}}), 1),
        (
            json!({"spec": {"podSelector": {"matchLabels": {"app": "none"}}}}),
            1,
        ),
    ] {
        let server = server();
        server.put(POD, pod.clone());
        server.change(&path, change.clone());
        let context = testing::start(&server).await;
        let world = dereference(&sandbox, &context, now()).await.unwrap();
        assert!(matches!(world.pod, PodState::Present(_)), "{:?}", world.pod);
        let decision = decide::decide(&world);
        apply::before(&world, &decision, &context).await.unwrap();
        let writes = server.writes();
        let repaired = writes.iter().filter(|write| **write == format!("apply {path}"));
        assert_eq!(repaired.count(), repairs, "{change}: {writes:?}");
    }
}
