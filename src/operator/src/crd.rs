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
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
