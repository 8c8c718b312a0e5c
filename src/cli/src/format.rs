//! `-o`: objects for programs.

use clap::ValueEnum;
use serde::Serialize;
use serde_json::json;

use crate::failure::Failure;
use crate::term;

/// How objects are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// JSON, the whole object.
    Json,
    /// YAML, the whole object.
    Yaml,
    /// More columns.
    Wide,
    /// Kind and name only.
    Name,
}

/// Prints an object as JSON or YAML, if that is what was asked for; whether it was.
pub fn print_object(object: &impl Serialize, format: Option<Format>) -> Result<bool, Failure> {
    let text = match format {
        Some(Format::Json) => {
            serde_json::to_string_pretty(object).map_err(|error| Failure::new(error.to_string()))? + "\n"
        }
        Some(Format::Yaml) => {
            serde_saphyr::to_string(object).map_err(|error| Failure::new(error.to_string()))?
        }
        _ => return Ok(false),
    };
    term::print_document(&text)?;
    Ok(true)
}

/// Prints objects as one list, as kubectl does.
pub fn print_list(objects: &[impl Serialize], format: Option<Format>) -> Result<bool, Failure> {
    print_object(
        &json!({"apiVersion": "v1", "kind": "List", "items": objects}),
        format,
    )
}
