//! The lists of models, which the gateway answers by itself: those that the policy allows, and nothing of what else the
//! key can reach.

use agentsandbox_api::policy::Provider;
use serde_json::{Value, json};

use crate::rules::ModelRule;

/// The answer to `GET /v1/models`: the allowed models, once each, all on one page.
#[must_use]
pub fn list(provider: Provider, rules: &[&ModelRule]) -> Vec<u8> {
    let mut names: Vec<&str> = Vec::new();
    for name in rules.iter().flat_map(|rule| &rule.allow) {
        if !names.contains(&name.as_str()) {
            names.push(name);
        }
    }
    let data: Vec<Value> = names.iter().map(|name| entry(provider, name)).collect();
    match provider {
        Provider::OpenAI | Provider::OpenAICompatible => json!({"object": "list", "data": data}),
        Provider::Anthropic => json!({
            "data": data,
            "has_more": false,
            "first_id": names.first(),
            "last_id": names.last(),
        }),
    }
    .to_string()
    .into_bytes()
}

/// The answer to `GET /v1/models/{name}`; absent if the model is not allowed.
#[must_use]
pub fn model(provider: Provider, rules: &[&ModelRule], name: &str) -> Option<Vec<u8>> {
    rules
        .iter()
        .any(|rule| rule.allow.iter().any(|allowed| allowed == name))
        .then(|| entry(provider, name).to_string().into_bytes())
}

/// A model as its provider's API shows it. When it was made is not known here, and must be said.
fn entry(provider: Provider, name: &str) -> Value {
    match provider {
        Provider::OpenAI | Provider::OpenAICompatible => json!({
            "id": name,
            "object": "model",
            "created": 0,
            "owned_by": "sandbox-policy",
        }),
        Provider::Anthropic => json!({
            "id": name,
            "type": "model",
            "display_name": name,
            "created_at": "1970-01-01T00:00:00Z",
        }),
    }
}
