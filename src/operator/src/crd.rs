//! Custom resource definitions, generated from the API's types.

use agentsandbox_api::policy::SandboxPolicy;
use agentsandbox_api::sandbox::AgentSandbox;
use kube::CustomResourceExt;
use serde_json::Value;

/// Which definition.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Kind {
    /// `AgentSandbox`.
    Agentsandbox,
    /// `SandboxPolicy`.
    Sandboxpolicy,
}

/// The definition as YAML.
pub fn yaml(kind: Kind) -> Result<String, serde_saphyr::ser::Error> {
    serde_saphyr::to_string(&definition(kind))
}

/// The definition, with what schemars says beyond the API server's dialect removed.
#[must_use]
pub fn definition(kind: Kind) -> Value {
    let crd = match kind {
        Kind::Agentsandbox => AgentSandbox::crd(),
        Kind::Sandboxpolicy => SandboxPolicy::crd(),
    };
    let mut value = serde_json::to_value(crd).unwrap_or_default();
    simplify(&mut value);
    value
}

/// Drops unknown `format`s (the API server warns of them), and `nullable`: an absent field says as much as a null.
/// Bounds that are whole numbers are written as such, as the API server gives them back.
fn simplify(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            fields.retain(|key, value| match key.as_str() {
                "format" => value.as_str().is_none_or(|format| !format.starts_with("uint")),
                "nullable" => false,
                _ => true,
            });
            fields.values_mut().for_each(simplify);
        }
        Value::Array(items) => items.iter_mut().for_each(simplify),
        Value::Number(number) if number.is_f64() => {
            if let Ok(whole) = number.to_string().trim_end_matches(".0").parse::<i64>() {
                *value = whole.into();
            }
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KINDS: [Kind; 2] = [Kind::Agentsandbox, Kind::Sandboxpolicy];

    /// Calls `check` with every object of a definition and its path.
    fn walk(value: &Value, path: &str, check: &mut impl FnMut(&serde_json::Map<String, Value>, &str)) {
        match value {
            Value::Object(fields) => {
                check(fields, path);
                for (key, value) in fields {
                    walk(value, &format!("{path}.{key}"), check);
                }
            }
            Value::Array(items) => items.iter().for_each(|item| walk(item, path, check)),
            _ => {}
        }
    }

    #[test]
    fn the_definitions_are_in_the_api_servers_dialect() {
        for kind in KINDS {
            walk(&definition(kind), "", &mut |schema, path| {
                assert!(!schema.contains_key("nullable"), "{path}");
                let format = schema.get("format").and_then(Value::as_str).unwrap_or_default();
                assert!(!format.starts_with("uint"), "{path}: {format}");
            });
        }
    }

    #[test]
    fn quantities_are_bounded_ints_or_strings() {
        let crd = definition(Kind::Agentsandbox);
        let spec = &crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"];
        let cpu = &spec["properties"]["resources"]["properties"]["cpu"];
        assert_eq!(cpu["x-kubernetes-int-or-string"], true);
        assert_eq!(cpu["maxLength"], 24);
        // A structural schema has no type beside int-or-string.
        assert!(cpu.get("type").is_none(), "{cpu}");
    }

    #[test]
    fn everything_that_users_write_is_bounded() {
        let mut found = Vec::new();
        for kind in KINDS {
            let crd = definition(kind);
            let schema = &crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"];
            walk(&schema["properties"]["spec"], "spec", &mut |schema, path| {
                let bounded = match schema.get("type").and_then(Value::as_str) {
                    Some("string") => schema.contains_key("maxLength") || schema.contains_key("enum"),
                    Some("array") => schema.contains_key("maxItems"),
                    _ => true,
                };
                // Kubernetes' own types, in an administrator's object.
                if !bounded && !path.starts_with("spec.properties.scheduling.") {
                    found.push(path.to_owned());
                }
            });
        }
        assert!(found.is_empty(), "{found:?}");
    }

    #[test]
    fn the_checked_in_definitions_are_current() {
        let root = concat!(env!("CARGO_MANIFEST_DIR"), "/../../");
        for (kind, file) in [
            (Kind::Agentsandbox, "crds/agentsandbox.dev_agentsandboxes.yaml"),
            (Kind::Sandboxpolicy, "crds/agentsandbox.dev_sandboxpolicies.yaml"),
        ] {
            let checked_in = std::fs::read_to_string(format!("{root}{file}")).unwrap_or_default();
            assert!(
                checked_in == yaml(kind).unwrap(),
                "{file} is stale: run `make generate`"
            );
        }
    }

    #[test]
    fn the_checked_in_reference_is_current() {
        let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/api-reference.md");
        let checked_in = std::fs::read_to_string(file).unwrap_or_default();
        assert!(
            checked_in == crate::reference::markdown(),
            "docs/api-reference.md is stale: run `make generate`"
        );
    }
}
