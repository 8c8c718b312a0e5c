//! Tables and laws of model requests. The bodies are those that the official SDKs of Python and Node send and get, with
//! shortened texts.

mod accepted;
mod answers;
mod json;
mod meters;
mod refused;
mod streams;

use agentsandbox_api::policy::Provider;
use serde_json::Value;

use super::{Endpoint, Prepared, Refusal, prepare};
use crate::name::HostName;
use crate::rules::{ModelRule, Target};

/// A rule for `model-a` and `model-b` that names no tools.
fn rule(provider: Provider) -> ModelRule {
    let host = HostName::parse("models.example.test").unwrap();
    ModelRule {
        index: 0,
        provider,
        host: host.clone(),
        allow: vec!["model-a".into(), "model-b".into()],
        credential: None,
        targets: vec![Target {
            host,
            model: None,
            credential: None,
        }],
        server_tools: Vec::new(),
        default_output_tokens: 1_000,
        context_tokens: 50_000,
    }
}

fn try_prepare<'a>(rule: &'a ModelRule, endpoint: &Endpoint, body: &Value) -> Result<Prepared<'a>, Refusal> {
    prepare(&[rule], endpoint, &serde_json::to_vec(body).unwrap())
}

/// A request that must be accepted, and the body that is sent.
fn accepted<'a>(rule: &'a ModelRule, endpoint: &Endpoint, body: &Value) -> (Prepared<'a>, Value) {
    let prepared = try_prepare(rule, endpoint, body).unwrap_or_else(|refusal| panic!("{refusal}: {body}"));
    let sent = serde_json::from_slice(&prepared.body_for(&prepared.model)).unwrap();
    (prepared, sent)
}
