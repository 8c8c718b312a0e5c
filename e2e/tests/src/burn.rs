//! Budgets that `burn.py` spends.

use serde_json::{Value, json};

use crate::egress::policy;
use crate::{Harness, HarnessError};

/// Tokens of one request of `burn.py`.
pub const COST: i64 = 50;
/// What the gateway reserves for one of them is less: the bytes of its body and what it may write.
pub const RESERVATION: i64 = 300;

/// A namespace whose model has a host of its own, by which its requests are counted outside.
///
/// # Errors
/// If it can't be made.
pub async fn namespace(test: &str, more: Value) -> Result<(Harness, String), HarnessError> {
    let harness = Harness::start(test).await?;
    let host = format!("{}.models.test", harness.namespace);
    let data = [("key", "sk-real-burn"), ("agentsandbox.dev.hosts", host.as_str())];
    harness.secret("openai", &data).await?;
    let models = json!([{
        "provider": "OpenAI", "host": host, "allow": ["tiny"],
        "credential": {"secretRef": {"name": "openai", "key": "key"}},
    }]);
    let allow = json!([{"host": "big.example.test", "tls": "Inspect"}]);
    harness.policy("default", policy(&allow, &models, more)).await?;
    Ok((harness, host))
}

/// Requests as a figure of budgets.
#[must_use]
pub fn count(number: usize) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}
