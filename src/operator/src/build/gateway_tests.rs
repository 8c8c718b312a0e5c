//! The whole gateway, and how changes to it are told from what the API server fills in.

use serde_json::{Value, json};

use super::*;
use crate::build::compare::{object_difference, overwriting_patch};
use crate::testing::{self, merge};

fn needs() -> Needs {
    let owner = |name: &str, uid: &str| OwnerReference {
        api_version: "agentsandbox.dev/v1alpha1".into(),
        kind: "SandboxPolicy".into(),
        name: name.into(),
        uid: uid.into(),
        controller: None,
        block_owner_deletion: Some(false),
    };
    Needs {
        namespace: "ns".into(),
        owners: vec![owner("default", "1"), owner("other", "2")],
        secrets: BTreeSet::from(["github".to_owned(), "openai".to_owned()]),
        opened: BTreeSet::new(),
    }
}

fn built() -> Deployment {
    let addresses = ["10.96.3.4".parse().unwrap(), "fd00::4".parse().unwrap()];
    deployment(
        &needs(),
        &addresses,
        "10.96.0.1,10.244.0.0/16",
        &testing::config(),
    )
}

#[test]
fn the_deployment() {
    insta::assert_json_snapshot!(built());
}

#[test]
fn the_service_its_account_and_its_binding() {
    insta::assert_json_snapshot!((
        service(&needs()),
        service_account(&needs()),
        role_binding(&needs())
    ));
}

/// What the API server returns for a Deployment: the same with its own fields.
fn live(built: &Deployment) -> Deployment {
    let mut live = serde_json::to_value(built).unwrap();
    let filled = json!({
        "metadata": {"uid": "u", "resourceVersion": "7", "generation": 1, "annotations": {"deployment.kubernetes.io/revision": "1"}},
        "spec": {"template": {"metadata": {"creationTimestamp": null, "annotations": {"kubectl.kubernetes.io/restartedAt": "x"}},
            "spec": {"schedulerName": "default-scheduler", "serviceAccount": "agentsandbox-gateway"}}},
        "status": {"observedGeneration": 1},
    });
    merge(&mut live, filled);
    let container = &mut live["spec"]["template"]["spec"]["containers"][0];
    merge(
        container,
        json!({"terminationMessagePath": "/dev/termination-log", "terminationMessagePolicy": "File"}),
    );
    for name in ["startupProbe", "readinessProbe", "livenessProbe"] {
        merge(
            &mut container[name],
            json!({"successThreshold": 1, "httpGet": {"scheme": "HTTP"}}),
        );
    }
    container["resources"]["limits"]["memory"] = "512Mi".into();
    serde_json::from_value(live).unwrap()
}

fn changed(path: &[&str], value: Value) -> Deployment {
    let mut object = serde_json::to_value(live(&built())).unwrap();
    let pointer = format!("/{}", path.join("/"));
    if let Some(place) = object.pointer_mut(&pointer) {
        *place = value;
    } else {
        let (last, parents) = path.split_last().unwrap();
        let parent = object.pointer_mut(&format!("/{}", parents.join("/"))).unwrap();
        match parent {
            Value::Array(items) => items.push(value),
            parent => parent[*last] = value,
        }
    }
    serde_json::from_value(object).unwrap()
}

#[test]
fn a_deployment_as_the_api_server_returns_it_stands() {
    assert_eq!(object_difference(&built(), &live(&built())), None);
}

#[test]
fn every_change_to_the_deployment_is_seen_and_can_be_undone() {
    let pod = ["spec", "template", "spec"];
    let inside = |rest: &[&'static str]| [&pod[..], rest].concat();
    let table = [
        (vec!["spec", "replicas"], json!(2)),
        (inside(&["hostNetwork"]), json!(true)),
        (inside(&["serviceAccountName"]), json!("default")),
        (
            inside(&["initContainers"]),
            json!([{"name": "x", "image": "evil"}]),
        ),
        (
            inside(&["containers", "1"]),
            json!({"name": "x", "image": "evil"}),
        ),
        (inside(&["containers", "0", "image"]), json!("evil")),
        (inside(&["containers", "0", "command"]), json!(["sh"])),
        (
            inside(&["containers", "0", "env", "9"]),
            json!({"name": "SSLKEYLOGFILE", "value": "/x"}),
        ),
        (
            inside(&["containers", "0", "securityContext", "privileged"]),
            json!(true),
        ),
        (
            inside(&["volumes", "9"]),
            json!({"name": "host", "hostPath": {"path": "/"}}),
        ),
        (vec!["metadata", "ownerReferences"], json!([])),
        (vec!["metadata", "labels"], json!({})),
    ];
    for (path, value) in table {
        let live = changed(&path, value);
        let found = object_difference(&built(), &live);
        assert!(found.is_some(), "{path:?} was not seen");
        // Applied as RFC 7396 says, the patch leaves what was built.
        let mut patched = serde_json::to_value(&live).unwrap();
        merge_patch(&mut patched, overwriting_patch(&built(), &live));
        let patched: Deployment = serde_json::from_value(patched).unwrap();
        assert_eq!(object_difference(&built(), &patched), None, "{path:?}");
    }
}

fn merge_patch(into: &mut Value, patch: Value) {
    let Value::Object(patch) = patch else {
        *into = patch;
        return;
    };
    if !into.is_object() {
        *into = json!({});
    }
    for (key, value) in patch {
        if value.is_null() {
            into.as_object_mut().unwrap().remove(&key);
        } else {
            merge_patch(&mut into[key.as_str()], value);
        }
    }
}

#[test]
fn a_service_as_the_api_server_returns_it_stands_until_it_is_changed() {
    let built = service(&needs());
    let mut live = built.clone();
    let spec = live.spec.as_mut().unwrap();
    spec.cluster_ip = Some("10.96.3.4".into());
    spec.cluster_ips = Some(vec!["10.96.3.4".into()]);
    spec.ip_families = Some(vec!["IPv4".into()]);
    assert_eq!(object_difference(&built, &live), None);
    let mut opened = live.clone();
    opened.spec.as_mut().unwrap().external_ips = Some(vec!["203.0.113.7".into()]);
    assert_eq!(
        object_difference(&built, &opened).as_deref(),
        Some("spec.externalIPs")
    );
    let mut redirected = live.clone();
    redirected.spec.as_mut().unwrap().selector = Some(BTreeMap::from([("app".into(), "evil".into())]));
    assert!(object_difference(&built, &redirected).is_some());
}

#[test]
fn pull_secrets_that_somebody_gave_the_account_are_left() {
    let built = service_account(&needs());
    let mut live = built.clone();
    live.image_pull_secrets = Some(vec![k8s_openapi::api::core::v1::LocalObjectReference {
        name: "registry".into(),
    }]);
    assert_eq!(object_difference(&built, &live), None);
}
