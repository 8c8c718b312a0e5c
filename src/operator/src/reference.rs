//! The API reference, generated from the custom resource definitions.

use std::fmt::Write as _;

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
        for part in ["spec", "status"] {
            section(
                &mut page,
                &format!("{name}.{part}"),
                part,
                &schema["properties"][part],
            );
        }
    }
    page
}

fn section(page: &mut String, title: &str, path: &str, schema: &Value) {
    let Some(properties) = schema["properties"].as_object() else {
        return;
    };
    let _ = write!(page, "\n### {title}\n");
    for rule in rules(schema) {
        let _ = write!(page, "\n* Rule: {rule}");
    }
    let _ = write!(
        page,
        "\n\n| field | type | default | meaning |\n|---|---|---|---|\n"
    );
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
    parts.retain(|part| !part.is_empty());
    parts.join(" ")
}

fn bounds(fields: &Map<String, Value>) -> Vec<String> {
    [
        ("minimum", "at least"),
        ("maximum", "at most"),
        ("minLength", "length at least"),
        ("maxLength", "length at most"),
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
    schema["description"]
        .as_str()
        .unwrap_or_default()
        .replace('\n', " ")
        .replace('|', "\\|")
}
