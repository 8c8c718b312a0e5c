//! Whether what the API server made of a pod is still what was built: mutating webhooks may add containers,
//! volumes, tokens and environment.

use k8s_openapi::api::core::v1::Pod;
use serde_json::Value;

use crate::quantity::same_amount;

/// Fields that the API server and its built-in admission plugins fill in where the built pod is silent. Anything
/// else that appears is somebody's mutation.
const FILLED_IN: [&str; 24] = [
    "apiVersion",
    "defaultMode",
    "dnsPolicy",
    "fsGroupChangePolicy",
    "imagePullSecrets",
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

/// The first difference between what was built and what the API server returned, as a path; `None` if there is none.
#[must_use]
pub fn first_difference(built: &Pod, live: &Pod) -> Option<String> {
    if built.metadata.labels != live.metadata.labels {
        return Some("metadata.labels".to_owned());
    }
    let foreign = live
        .metadata
        .annotations
        .iter()
        .flatten()
        .find(|(key, _)| key.starts_with("io.katacontainers."));
    if let Some((key, _)) = foreign {
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
