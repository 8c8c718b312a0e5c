//! Whether what the API server holds is still what was built: mutating webhooks, and people, may add containers,
//! volumes, tokens and environment.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::quantity::same_amount;

/// Fields that the API server and its built-in admission plugins fill in where the built object is silent, and what
/// `kubectl rollout restart` writes into a Deployment's template. Anything else that appears is somebody's mutation.
const FILLED_IN: [&str; 28] = [
    "annotations",
    "apiVersion",
    "clusterIP",
    "clusterIPs",
    "defaultMode",
    "dnsPolicy",
    "fsGroupChangePolicy",
    "imagePullSecrets",
    "ipFamilies",
    "nodeName",
    "nodeSelector",
    "overhead",
    "preemptionPolicy",
    "priority",
    "protocol",
    "scheme",
    "schedulerName",
    "serviceAccount",
    "serviceAccountName",
    "successThreshold",
    "terminationMessagePath",
    "terminationMessagePolicy",
    "tolerations",
    "topologySpreadConstraints",
    "procMount",
    "periodSeconds",
    "timeoutSeconds",
    "imagePullPolicy",
];

/// Whether the API server gives a pod this label of its node when it is bound (Kubernetes 1.35).
#[must_use]
pub fn is_of_node(label: &str) -> bool {
    ["topology.kubernetes.io/region", "topology.kubernetes.io/zone"].contains(&label)
}

/// Whether a pod has the labels that it was built with, those of its node aside.
#[must_use]
pub fn keeps_labels(built: &BTreeMap<String, String>, live: &Pod) -> bool {
    let live = live.metadata.labels.iter().flatten();
    live.filter(|(key, _)| !is_of_node(key)).eq(built)
}

/// An annotation by which somebody gives a pod's runtime orders; the operator gives none.
#[must_use]
pub fn runtime_annotation(pod: &Pod) -> Option<&str> {
    let annotations = pod.metadata.annotations.iter().flatten();
    annotations
        .map(|(key, _)| key.as_str())
        .find(|key| key.starts_with("io.katacontainers."))
}

/// As [`first_difference`], of a pod that was made a while ago: its deadline may have been drawn nearer since.
#[must_use]
pub fn later_difference(built: &Pod, live: &Pod) -> Option<String> {
    let deadline = built.spec.as_ref().and_then(|spec| spec.active_deadline_seconds);
    let mut live = live.clone();
    if let Some(spec) = &mut live.spec
        && spec
            .active_deadline_seconds
            .is_some_and(|seconds| Some(seconds) < deadline)
    {
        spec.active_deadline_seconds = deadline;
    }
    first_difference(built, &live)
}

/// The first difference between what was built and what the API server returned, as a path; `None` if there is none.
#[must_use]
pub fn first_difference(built: &Pod, live: &Pod) -> Option<String> {
    if !keeps_labels(built.labels(), live) {
        return Some("metadata.labels".to_owned());
    }
    if let Some(key) = runtime_annotation(live) {
        return Some(format!("metadata.annotations.{key}"));
    }
    let (Ok(built), Ok(live)) = (
        serde_json::to_value(&built.spec),
        serde_json::to_value(&live.spec),
    ) else {
        return Some("spec".to_owned());
    };
    difference("spec", &built, &live)
}

/// What an object of ours says beside its metadata and status, by field.
fn content(object: &impl Serialize) -> Map<String, Value> {
    match serde_json::to_value(object) {
        Ok(Value::Object(mut fields)) => {
            for field in ["apiVersion", "kind", "metadata", "status"] {
                fields.remove(field);
            }
            fields
        }
        _ => Map::new(),
    }
}

/// The first thing in which a shared object is not what was built: its owners, its labels, or what it says. Labels and
/// owners that somebody added are theirs.
#[must_use]
pub fn object_difference<K: ResourceExt + Serialize>(built: &K, live: &K) -> Option<String> {
    if live.meta().deletion_timestamp.is_some() {
        return Some("metadata.deletionTimestamp".to_owned());
    }
    let unlabelled = built
        .labels()
        .iter()
        .find(|(key, value)| live.labels().get(*key) != Some(value));
    if let Some((key, _)) = unlabelled {
        return Some(format!("metadata.labels.{key}"));
    }
    let ours = |object: &K| {
        let mut owners: Vec<_> = object
            .owner_references()
            .iter()
            .filter(|owner| owner.kind == "SandboxPolicy")
            .map(|owner| owner.uid.clone())
            .collect();
        owners.sort();
        owners
    };
    if ours(built) != ours(live) {
        return Some("metadata.ownerReferences".to_owned());
    }
    let live = content(live);
    content(built)
        .iter()
        .find_map(|(field, value)| difference(field, value, live.get(field).unwrap_or(&Value::Null)))
}

/// A merge patch (RFC 7396) that makes a live object say what was built and nothing else, labels and owners of others
/// aside.
#[must_use]
pub fn overwriting_patch<K: ResourceExt + Serialize>(built: &K, live: &K) -> Value {
    let others = live
        .owner_references()
        .iter()
        .filter(|owner| owner.kind != "SandboxPolicy");
    let owners: Vec<_> = built.owner_references().iter().chain(others).collect();
    let metadata = json!({"labels": built.labels(), "ownerReferences": owners});
    let live = content(live);
    let mut patch: Map<String, Value> = content(built)
        .into_iter()
        .map(|(field, value)| {
            let forced = overwriting(value, live.get(&field).unwrap_or(&Value::Null));
            (field, forced)
        })
        .collect();
    patch.insert("metadata".to_owned(), metadata);
    Value::Object(patch)
}

fn overwriting(built: Value, live: &Value) -> Value {
    let (Value::Object(built), Value::Object(live)) = (&built, live) else {
        // A merge patch replaces lists as a whole.
        return built;
    };
    let foreign = live
        .iter()
        .filter(|(key, value)| {
            !built.contains_key(*key) && !FILLED_IN.contains(&key.as_str()) && !is_empty(value)
        })
        .map(|(key, _)| (key.clone(), Value::Null));
    built
        .iter()
        .map(|(key, value)| {
            let other = live.get(key).unwrap_or(&Value::Null);
            (key.clone(), overwriting(value.clone(), other))
        })
        .chain(foreign)
        .collect()
}

fn difference(path: &str, built: &Value, live: &Value) -> Option<String> {
    match (built, live) {
        (Value::Object(built), Value::Object(live)) => {
            for (key, value) in built {
                let below = format!("{path}.{key}");
                match live.get(key) {
                    None if is_empty(value) => {}
                    None => return Some(below),
                    Some(other) => {
                        if let Some(found) = difference(&below, value, other) {
                            return Some(found);
                        }
                    }
                }
            }
            live.iter()
                .find(|(key, value)| {
                    !built.contains_key(*key) && !FILLED_IN.contains(&key.as_str()) && !is_empty(value)
                })
                .map(|(key, _)| format!("{path}.{key}"))
        }
        // A runtime class may add tolerations and an admission plugin its own: the built ones must lead.
        (Value::Array(built), Value::Array(live)) if path == "spec.tolerations" => {
            (!live.starts_with(built)).then(|| path.to_owned())
        }
        (Value::Array(built), Value::Array(live)) => {
            if built.len() != live.len() {
                return Some(path.to_owned());
            }
            built
                .iter()
                .zip(live)
                .enumerate()
                .find_map(|(index, (built, live))| difference(&format!("{path}[{index}]"), built, live))
        }
        (Value::String(built), Value::String(live)) if built != live => {
            let is_amount = path.contains(".resources.") || path.ends_with(".sizeLimit");
            (!(is_amount && same_amount(built, live))).then(|| path.to_owned())
        }
        _ => (built != live).then(|| path.to_owned()),
    }
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.is_empty(),
        _ => false,
    }
}
