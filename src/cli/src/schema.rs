//! What the API server itself refuses of an object that is to be created, by its kind's definition.

use std::collections::HashSet;

use regex::Regex;
use sandbox_operator::crd::{self, Kind};
use sandbox_operator::quantity;
use serde_json::Value;

/// Longest name that the API server generates from a prefix: prefix and five characters.
const GENERATED: usize = 5;

/// Why the API server would refuse this object, and what of it; nothing if it would not. Unknown fields, and types that
/// the kind does not have, are found when the object is read.
pub fn refused(kind: Kind, object: &Value) -> Vec<String> {
    let definition = crd::definition(kind);
    let mut schema = definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"].clone();
    // Of what is created the status is dropped.
    if let Some(properties) = schema["properties"].as_object_mut() {
        properties.retain(|name, _| name == "spec");
    }
    let mut problems = Vec::new();
    name(object, &mut problems);
    check(&schema, object, "", &mut problems);
    problems
}

/// Names are those of DNS: RFC 1123.
fn name(object: &Value, problems: &mut Vec<String>) {
    let text = |key: &str| object["metadata"][key].as_str().unwrap_or_default();
    let (name, prefix) = (text("name"), text("generateName"));
    let is_name = |name: &str| {
        name.split('.').all(|label| {
            let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
            label.starts_with(plain) && label.ends_with(plain) && label.chars().all(|c| plain(c) || c == '-')
        })
    };
    if name.is_empty() && prefix.is_empty() {
        problems.push("metadata.name or metadata.generateName is required".to_owned());
    } else if !(name.is_empty() || is_name(name)) {
        problems.push("metadata.name must consist of small letters, digits, - and .".to_owned());
    } else if name.is_empty() && !is_name(&format!("{prefix}x")) {
        problems.push("metadata.generateName must consist of small letters, digits, - and .".to_owned());
    }
}

/// Checks a value by the part of the schema that is meant for it.
fn check(schema: &Value, value: &Value, path: &str, problems: &mut Vec<String>) {
    let at = |what: &str| {
        if path.is_empty() {
            what.to_owned()
        } else {
            format!("{path}.{what}")
        }
    };
    let mut problem = |what: String| problems.push(format!("{path} {what}").trim_start().to_owned());
    if let Some(allowed) = schema["enum"].as_array()
        && !allowed.contains(value)
    {
        let allowed: Vec<String> = allowed.iter().map(ToString::to_string).collect();
        problem(format!("must be one of {}", allowed.join(", ")));
    }
    match value {
        Value::String(text) => {
            within(schema, "Length", text.chars().count(), "characters", &mut problem);
            let pattern = schema["pattern"]
                .as_str()
                .and_then(|pattern| Regex::new(pattern).ok());
            if pattern.is_some_and(|pattern| !pattern.is_match(text)) {
                problem(format!("must match {}", schema["pattern"]));
            }
        }
        Value::Number(number) => {
            let (number, bound) = (number.as_f64().unwrap_or_default(), |key: &str| {
                schema[key].as_f64()
            });
            if bound("minimum").is_some_and(|least| number < least) {
                problem(format!("must be at least {}", schema["minimum"]));
            }
            if bound("maximum").is_some_and(|most| number > most) {
                problem(format!("must be at most {}", schema["maximum"]));
            }
        }
        Value::Array(items) => {
            within(schema, "Items", items.len(), "entries", &mut problem);
            let keys: Vec<&str> = schema["x-kubernetes-list-map-keys"]
                .as_array()
                .into_iter()
                .flatten()
                .filter_map(Value::as_str)
                .collect();
            let mut seen = HashSet::new();
            for item in items.iter().filter(|_| !keys.is_empty()) {
                let key: Vec<String> = keys.iter().map(|key| item[*key].to_string()).collect();
                if !seen.insert(key.clone()) {
                    problem(format!("holds {} twice", key.join(", ")));
                }
            }
            for (index, item) in items.iter().enumerate() {
                check(&schema["items"], item, &format!("{path}[{index}]"), problems);
            }
        }
        Value::Object(fields) => {
            within(schema, "Properties", fields.len(), "entries", &mut problem);
            for required in schema["required"].as_array().into_iter().flatten() {
                let required = required.as_str().unwrap_or_default();
                if !has(value, required) {
                    problems.push(format!("{} is required", at(required)));
                }
            }
            // A null is as good as nothing.
            for (name, field) in fields.iter().filter(|(_, field)| !field.is_null()) {
                let schema = schema["properties"]
                    .get(name)
                    .unwrap_or(&schema["additionalProperties"]);
                check(schema, field, &at(name), problems);
            }
        }
        Value::Null | Value::Bool(_) => {}
    }
    for rule in schema["x-kubernetes-validations"]
        .as_array()
        .into_iter()
        .flatten()
    {
        if holds(rule["rule"].as_str().unwrap_or_default(), value) == Some(false) {
            let message = rule["message"].as_str().unwrap_or_default();
            problems.push(format!("{path} {message}").trim_start().to_owned());
        }
    }
}

/// Whether a size lies within its bounds, `minLength` and `maxLength` for instance.
fn within(schema: &Value, what: &str, size: usize, unit: &str, problem: &mut impl FnMut(String)) {
    let bound = |which: &str| schema[format!("{which}{what}")].as_u64();
    let size = size as u64;
    if let Some(least) = bound("min").filter(|least| size < *least) {
        problem(format!("must hold at least {least} {unit}"));
    }
    if let Some(most) = bound("max").filter(|most| size > *most) {
        problem(format!("must hold at most {most} {unit}"));
    }
}

fn has(object: &Value, field: &str) -> bool {
    object.get(field).is_some_and(|field| !field.is_null())
}

/// Whether a rule of ours in CEL holds for a value of a new object; `None` for a rule that is not known here.
fn holds(rule: &str, value: &Value) -> Option<bool> {
    Some(match rule {
        "self.metadata.name.size() <= 52" => {
            let length = |key: &str| value["metadata"][key].as_str().map(|name| name.chars().count());
            let generated = || length("generateName").map(|prefix| prefix + GENERATED);
            length("name")
                .or_else(generated)
                .is_none_or(|length| length <= 52)
        }
        "has(self.session) != (has(self.command) && self.command.size() > 0)" => {
            let command = value["command"].as_array().is_some_and(|words| !words.is_empty());
            has(value, "session") != command
        }
        "has(self.content) != has(self.configMapRef)" => has(value, "content") != has(value, "configMapRef"),
        "has(self.host) != has(self.cidr)" => has(value, "host") != has(value, "cidr"),
        "isQuantity(string(self)) && quantity(string(self)).isGreaterThan(quantity('0'))" => {
            let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            quantity::is_more(&text, "0")
        }
        // Of changes only.
        rule if rule.contains("oldSelf") => true,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// Calls for each rule in CEL, and for each keyword, of a schema.
    fn each(schema: &Value, rule: &mut impl FnMut(&str), keyword: &mut impl FnMut(&str)) {
        for found in schema["x-kubernetes-validations"]
            .as_array()
            .into_iter()
            .flatten()
        {
            rule(found["rule"].as_str().unwrap());
        }
        for (name, part) in schema.as_object().into_iter().flatten() {
            keyword(name);
            match name.as_str() {
                "properties" => part
                    .as_object()
                    .unwrap()
                    .values()
                    .for_each(|part| each(part, rule, keyword)),
                "items" | "additionalProperties" => each(part, rule, keyword),
                _ => {}
            }
        }
    }

    #[test]
    fn every_rule_and_keyword_of_the_definitions_is_known() {
        const KNOWN: [&str; 22] = [
            "additionalProperties",
            "default",
            "description",
            "enum",
            "format",
            "items",
            "maxItems",
            "maxLength",
            "maxProperties",
            "maximum",
            "minItems",
            "minLength",
            "minimum",
            "pattern",
            "properties",
            "required",
            "title",
            "type",
            "x-kubernetes-int-or-string",
            "x-kubernetes-list-map-keys",
            "x-kubernetes-list-type",
            "x-kubernetes-validations",
        ];
        let mut rules = 0;
        for kind in [Kind::Agentsandbox, Kind::Sandboxpolicy] {
            let definition = crd::definition(kind);
            each(
                &definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"],
                &mut |rule| {
                    rules += 1;
                    assert!(holds(rule, &json!({})).is_some(), "{rule}");
                },
                &mut |keyword| assert!(KNOWN.contains(&keyword), "{keyword}"),
            );
        }
        assert!(rules > 10, "{rules}");
    }

    fn problems(kind: Kind, change: impl FnOnce(&mut Value)) -> Vec<String> {
        let mut object = match kind {
            Kind::Agentsandbox => {
                json!({"metadata": {"name": "one"}, "spec": {"image": "x", "command": ["y"], "env": null}})
            }
            Kind::Sandboxpolicy => json!({"metadata": {"generateName": "one-"}, "spec": {}}),
        };
        change(&mut object);
        refused(kind, &object)
    }

    #[test]
    fn what_the_api_server_refuses_is_named() {
        let cases: [(&str, Value, &str); 15] = [
            (
                "/metadata/name",
                json!("a".repeat(53)),
                "metadata.name must be at most 52 characters",
            ),
            (
                "/metadata/name",
                json!("One"),
                "metadata.name must consist of small letters, digits, - and .",
            ),
            (
                "/metadata/name",
                json!(null),
                "metadata.name or metadata.generateName is required",
            ),
            ("/spec/command", json!([]), "spec set either command"),
            ("/spec/command", json!(null), "spec set either command"),
            (
                "/spec/session",
                json!({"idleTimeoutSeconds": 60}),
                "spec set either command",
            ),
            (
                "/spec/image",
                json!(""),
                "spec.image must hold at least 1 characters",
            ),
            ("/spec/image", json!("a b"), "spec.image must match"),
            (
                "/spec/image",
                json!("a".repeat(5000)),
                "spec.image must hold at most",
            ),
            (
                "/spec/limits",
                json!({"runtimeSeconds": -5}),
                "spec.limits.runtimeSeconds must be at least",
            ),
            (
                "/spec/resources",
                json!({"cpu": "0"}),
                "spec.resources.cpu must be a Kubernetes quantity",
            ),
            (
                "/spec/resources",
                json!({"memory": "much"}),
                "spec.resources.memory must be a Kubernetes quantity",
            ),
            (
                "/spec/files",
                json!([{"path": "a"}]),
                "spec.files[0] set exactly one of content and configMapRef",
            ),
            (
                "/spec/env",
                json!([{"name": "1A", "value": ""}]),
                "spec.env[0].name must match",
            ),
            (
                "/spec/env",
                json!([{"name": "A", "value": "x"}, {"name": "A", "value": "y"}]),
                "spec.env holds \"A\" twice",
            ),
        ];
        for (place, value, expected) in cases {
            let found = problems(Kind::Agentsandbox, |object| {
                let (parent, field) = place.rsplit_once('/').unwrap();
                object.pointer_mut(parent).unwrap()[field] = value;
            });
            assert!(
                found.iter().any(|problem| problem.starts_with(expected)),
                "{place}: {found:?}"
            );
        }
        let both = json!({"allow": [{"host": "a.test", "cidr": "10.0.0.0/8"}, {"host": "a.test", "methods": ["get"]}]});
        let found = problems(Kind::Sandboxpolicy, |object| object["spec"]["egress"] = both);
        assert!(
            found[0].starts_with("spec.egress.allow[0] set exactly one of host and cidr"),
            "{found:?}"
        );
        assert!(
            found[1].starts_with("spec.egress.allow[1].methods[0] must match"),
            "{found:?}"
        );
        let found = problems(Kind::Sandboxpolicy, |object| {
            object["spec"]["isolation"] = json!({"minimum": "Best"});
        });
        assert!(
            found[0].starts_with("spec.isolation.minimum must be one of"),
            "{found:?}"
        );
    }

    #[test]
    fn good_objects_and_all_examples_pass() {
        for kind in [Kind::Agentsandbox, Kind::Sandboxpolicy] {
            assert_eq!(problems(kind, |_| {}), [""; 0]);
        }
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples");
        let mut checked = 0;
        for file in std::fs::read_dir(folder).unwrap() {
            let text = std::fs::read_to_string(file.unwrap().path()).unwrap();
            for object in serde_saphyr::from_multiple::<Value>(&text).unwrap() {
                let kind = match object["kind"].as_str() {
                    Some("AgentSandbox") => Kind::Agentsandbox,
                    Some("SandboxPolicy") => Kind::Sandboxpolicy,
                    _ => continue,
                };
                assert_eq!(refused(kind, &object), [""; 0], "{}", object["metadata"]["name"]);
                checked += 1;
            }
        }
        assert!(checked > 15, "{checked}");
    }
}
