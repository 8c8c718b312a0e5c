//! One entry of `spec.models`.

use agentsandbox_api::policy::{Model, ModelTarget};

use super::{Field, parse_credential};
use crate::deny::Deny;
use crate::name::HostName;
use crate::rules::{ModelRule, Target};

/// Longest model name, in bytes.
const MODEL_NAME_MAX: usize = 128;

/// Compiles one entry of `spec.models`.
pub(super) fn compile(index: usize, model: &Model, field: &mut Field<'_>) -> Option<ModelRule> {
    let before = field.count();
    let host = parse_host(&model.host, "host", field);
    check_model_names(&model.allow, field);
    let credential = model
        .credential
        .as_ref()
        .and_then(|credential| parse_credential(credential, "credential", field));
    let first = model.route.as_ref().map(|route| ("route".to_owned(), route));
    let others = model
        .fallbacks
        .iter()
        .enumerate()
        .map(|(index, target)| (format!("fallbacks[{index}]"), target));
    let mut targets: Vec<Target> = first
        .into_iter()
        .chain(others)
        .filter_map(|(name, target)| {
            let mut target = compile_target(target, &name, field)?;
            // The same host gets the same key; another one never gets it by silence.
            if target.credential.is_none() && Some(&target.host) == host.as_ref() {
                target.credential.clone_from(&credential);
            }
            Some(target)
        })
        .collect();
    if let Some(host) = host.as_ref().filter(|_| model.route.is_none()) {
        let target = Target {
            host: host.clone(),
            model: None,
            credential: credential.clone(),
        };
        targets.insert(0, target);
    }
    if credential.is_some() && !targets.iter().any(|target| Some(&target.host) == host.as_ref()) {
        field.has(
            "credential",
            "is for host, which no request reaches: route has a credential of its own",
        );
    }
    for tool in &model.server_tools {
        if !is_printable(tool, 64) {
            field.has("serverTools", "has what is no type of a tool");
        }
    }
    if model.default_output_tokens < 1 {
        field.has("defaultOutputTokens", "is below 1");
    }
    if model.context_tokens < 1 {
        field.has("contextTokens", "is below 1");
    }
    if field.count() > before {
        return None;
    }
    Some(ModelRule {
        index,
        provider: model.provider,
        host: host?,
        allow: model.allow.clone(),
        credential,
        targets,
        server_tools: model.server_tools.clone(),
        default_output_tokens: model.default_output_tokens,
        context_tokens: model.context_tokens,
    })
}

fn check_model_names(names: &[String], field: &mut Field<'_>) {
    if names.is_empty() {
        field.has("allow", "names no model");
    }
    for name in names {
        if !is_printable(name, MODEL_NAME_MAX) {
            field.has("allow", "has what is no name of a model");
        }
    }
}

fn compile_target(target: &ModelTarget, name: &str, field: &mut Field<'_>) -> Option<Target> {
    let host = parse_host(&target.host, &format!("{name}.host"), field);
    if target
        .model
        .as_ref()
        .is_some_and(|model| !is_printable(model, MODEL_NAME_MAX))
    {
        field.has(&format!("{name}.model"), "is no name of a model");
    }
    let credential = target
        .credential
        .as_ref()
        .and_then(|credential| parse_credential(credential, &format!("{name}.credential"), field));
    Some(Target {
        host: host?,
        model: target.model.clone(),
        credential,
    })
}

fn is_printable(text: &str, max: usize) -> bool {
    (1..=max).contains(&text.len()) && text.bytes().all(|byte| (0x21..0x7f).contains(&byte))
}

fn parse_host(host: &str, name: &str, field: &mut Field<'_>) -> Option<HostName> {
    match HostName::parse(host) {
        Ok(host) => Some(host),
        Err(deny) => {
            let problem = if host.contains('*') {
                "has a wildcard: a model's host is one name"
            } else if deny == Deny::AddressLiteral {
                "is an address, or has a port: a model's host is a name, and asked at port 443"
            } else {
                "is no fully qualified host name"
            };
            field.has(name, problem);
            None
        }
    }
}
