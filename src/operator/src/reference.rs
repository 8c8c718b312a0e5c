//! The API reference, generated from the custom resource definitions.

use std::fmt::Write as _;

use agentsandbox_api::reason::Reason;
use serde_json::{Map, Value};

use crate::crd::{Kind, definition};

/// The reference as Markdown.
#[must_use]
pub fn markdown() -> String {
    let mut page = String::from(
        "# API reference\n\nGroup `agentsandbox.dev`, version `v1alpha1`. Generated from the types in `src/api`; do not edit.\n",
    );
    for kind in [Kind::Agentsandbox, Kind::Sandboxpolicy] {
        let crd = definition(kind);
        let name = crd["spec"]["names"]["kind"].as_str().unwrap_or_default();
        let schema = &crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"];
        let short: Vec<&str> = crd["spec"]["names"]["shortNames"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .collect();
        let _ = write!(
            page,
            "\n## {name}\n\n{}\n\nShort names: `{}`.\n",
            text(schema),
            short.join("`, `")
        );
        for rule in rules(schema) {
            let _ = write!(page, "\n* Rule: {rule}\n");
        }
        for part in ["spec", "status"] {
            section(
                &mut page,
                &format!("{name}.{part}"),
                part,
                &schema["properties"][part],
            );
        }
    }
    conditions(&mut page);
    page
}

/// Condition types and reasons stand in the API crate as documented constants; their documentation is the source of
/// these tables.
const CONDITIONS: &str = include_str!("../../api/src/condition.rs");

fn conditions(page: &mut String) {
    page.push_str("\n## Conditions\n");
    for (module, title, column) in [
        ("types", "Condition types", "`True` when"),
        (
            "reasons",
            "Reasons of conditions other than `Succeeded`",
            "meaning",
        ),
    ] {
        let _ = write!(page, "\n### {title}\n\n| name | {column} |\n|---|---|\n");
        for (name, documentation) in constants(CONDITIONS, module) {
            let _ = writeln!(page, "| `{name}` | {} |", cell(&documentation));
        }
    }
    page.push_str(
        "\n### Reasons of `Succeeded`, and of `result.reason`\n\n| name | `Succeeded` | meaning |\n|---|---|---|\n",
    );
    for (name, documentation) in verdicts() {
        let outcome = match name.parse::<Reason>() {
            Ok(reason) if reason.is_success() => "`True`",
            _ => "`False`",
        };
        let _ = writeln!(page, "| `{name}` | {outcome} | {} |", cell(&documentation));
    }
}

/// Value and documentation of each string constant of one module of a source file.
fn constants(source: &str, module: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut documentation: Vec<&str> = Vec::new();
    let begin = format!("pub mod {module} {{");
    let lines = source.lines().skip_while(|line| *line != begin).skip(1);
    for line in lines.take_while(|line| *line != "}").map(str::trim) {
        if let Some(text) = line.strip_prefix("///") {
            documentation.push(text.trim());
        } else if line.starts_with("pub const ") {
            let value = line.split('"').nth(1).unwrap_or_default();
            found.push((value.to_owned(), documentation.join(" ")));
            documentation.clear();
        }
    }
    found
}

/// Name and documentation of each [`Reason`], from its schema.
fn verdicts() -> Vec<(String, String)> {
    let schema = k8s_openapi::schemars::schema_for!(Reason).to_value();
    let variants = schema["oneOf"].as_array().into_iter().flatten();
    variants
        .filter_map(|variant| Some((variant["const"].as_str()?.to_owned(), text(variant))))
        .collect()
}

fn section(page: &mut String, title: &str, path: &str, schema: &Value) {
    let Some(properties) = schema["properties"].as_object() else {
        return;
    };
    let _ = writeln!(page, "\n### {title}\n");
    let rules = rules(schema);
    for rule in &rules {
        let _ = writeln!(page, "* Rule: {rule}");
    }
    if !rules.is_empty() {
        page.push('\n');
    }
    let _ = write!(page, "| field | type | default | meaning |\n|---|---|---|---|\n");
    let required: Vec<&str> = schema["required"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect();
    for (field, schema) in properties {
        let mark = if required.contains(&field.as_str()) {
            " (required)"
        } else {
            ""
        };
        let default = schema
            .get("default")
            .map(|value| format!("`{value}`"))
            .unwrap_or_default();
        let _ = writeln!(
            page,
            "| `{field}`{mark} | {} | {default} | {} |",
            type_of(schema),
            meaning(schema)
        );
    }
    for (field, schema) in properties {
        let inner = if schema["type"] == "array" {
            &schema["items"]
        } else {
            schema
        };
        // Conditions are Kubernetes' own type.
        if inner["properties"].is_object() && field != "conditions" {
            section(
                page,
                &format!("{path}.{field}"),
                &format!("{path}.{field}"),
                inner,
            );
        }
    }
}

fn type_of(schema: &Value) -> String {
    if schema["x-kubernetes-int-or-string"] == true {
        return "quantity".to_owned();
    }
    match schema["type"].as_str() {
        Some("array") => format!("list of {}", type_of(&schema["items"])),
        Some("object") if schema["additionalProperties"].is_object() => {
            format!("map to {}", type_of(&schema["additionalProperties"]))
        }
        Some(name) => name.to_owned(),
        None => "any".to_owned(),
    }
}

fn meaning(schema: &Value) -> String {
    let mut parts = vec![text(schema)];
    if let Some(values) = schema["enum"].as_array() {
        let values: Vec<String> = values
            .iter()
            .filter_map(Value::as_str)
            .map(|value| format!("`{value}`"))
            .collect();
        parts.push(format!("One of {}.", values.join(", ")));
    }
    if let Some(fields) = schema.as_object() {
        let bounds = bounds(fields);
        if !bounds.is_empty() {
            parts.push(format!("({})", bounds.join(", ")));
        }
    }
    // An object's own rules stand above its table.
    if !schema["properties"].is_object() {
        parts.extend(rules(schema).iter().map(|rule| format!("Rule: {}.", cell(rule))));
    }
    parts.retain(|part| !part.is_empty());
    parts.join(" ")
}

fn bounds(fields: &Map<String, Value>) -> Vec<String> {
    [
        ("minimum", "at least"),
        ("maximum", "at most"),
        ("minLength", "length at least"),
        ("maxLength", "length at most"),
        ("minItems", "items at least"),
        ("maxItems", "items at most"),
        ("pattern", "pattern"),
    ]
    .iter()
    .filter_map(|(key, words)| {
        let value = fields.get(*key)?;
        let value = value.as_f64().map_or_else(
            || {
                value
                    .as_str()
                    .map(|text| format!("`{}`", text.replace('|', "\\|")))
            },
            |n| Some(n.to_string()),
        );
        Some(format!("{words} {}", value?))
    })
    .collect()
}

fn rules(schema: &Value) -> Vec<String> {
    let rules = schema["x-kubernetes-validations"]
        .as_array()
        .into_iter()
        .flatten();
    rules
        .filter_map(|rule| rule["message"].as_str())
        .map(str::to_owned)
        .collect()
}

fn text(schema: &Value) -> String {
    cell(schema["description"].as_str().unwrap_or_default())
}

/// Text that fits into a cell of a table.
fn cell(text: &str) -> String {
    text.replace('\n', " ").replace('|', "\\|")
}

#[cfg(test)]
mod tests {
    use agentsandbox_api::condition::{reasons, types};

    use super::*;

    #[test]
    fn every_condition_reason_and_verdict_is_explained() {
        let types = constants(CONDITIONS, "types");
        let reasons = constants(CONDITIONS, "reasons");
        assert_eq!(
            types.len() + reasons.len(),
            CONDITIONS.matches("pub const ").count()
        );
        let verdicts = verdicts();
        for (name, documentation) in types.iter().chain(&reasons).chain(&verdicts) {
            assert!(
                !name.is_empty() && !documentation.is_empty(),
                "{name}: {documentation}"
            );
        }
        assert!(types.iter().any(|(name, _)| name == types::STALLED));
        assert!(reasons.iter().any(|(name, _)| name == reasons::TTL_PASSED));
        assert!(verdicts.iter().all(|(name, _)| name.parse::<Reason>().is_ok()));
        assert!(
            verdicts
                .iter()
                .any(|(name, _)| name == Reason::OomKilled.as_str())
        );
        assert!(
            verdicts
                .iter()
                .any(|(name, _)| name == Reason::UnexpectedPrivilege.as_str())
        );
    }
}
