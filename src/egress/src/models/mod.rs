//! Model requests: which are sent on, in what form, and what they cost.
//!
//! A provider is a computer of somebody else's that acts on our key. So a request is not passed through: it is parsed,
//! each field of it checked against a list of those known to be harmless, and written anew. What would let the provider
//! reach out (tools that it runs, documents that it fetches) or keep things (stored answers, files, conversations) is
//! refused or switched off, and what decides the cost (`max_tokens`, `n`) is bounded.
//!
//! The round of a caller: [`endpoint`] and [`query`], then for a list of models [`catalog`]; otherwise [`prepare`] the
//! body, reserve [`Prepared::reservation`] tokens and one request, send [`Prepared::body_for`] the target's model with
//! the headers that [`header_allowed`] lets through, feed the answer to a [`Meter`] (and, if there is one, through
//! [`Prepared::filter`] on its way to the client), and settle its [`Charge`].

mod anthropic;
pub mod catalog;
mod event_stream;
mod json;
mod meter;
mod openai_chat;
mod openai_embeddings;
mod openai_responses;
mod request;
mod scan;
mod shape;
#[cfg(test)]
mod tests;

use std::fmt;

use agentsandbox_api::policy::Provider;

use crate::deny::Deny;

pub use event_stream::UsageFilter;
pub use meter::{Charge, Meter};
pub use request::{Prepared, prepare};

/// Largest body of a model request, in bytes: the providers' own limit on messages is 32 MB
/// (<https://docs.anthropic.com/en/api/errors#request-size-limits>).
pub const MAX_REQUEST_BYTES: usize = 32 << 20;

/// Longest [`Refusal::detail`], in bytes.
pub const MAX_DETAIL_BYTES: usize = 200;

/// Why a model request is not sent, and what in it is to blame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The reason.
    pub deny: Deny,
    /// What in the request is to blame, such as the name of the field: printable ASCII, at most [`MAX_DETAIL_BYTES`].
    /// Names in it are the sandbox's own text.
    pub detail: String,
}

impl Refusal {
    /// A refusal whose detail is made printable and cut.
    #[must_use]
    pub fn new(deny: Deny, detail: impl fmt::Display) -> Self {
        let detail = detail
            .to_string()
            .chars()
            .take(MAX_DETAIL_BYTES)
            .map(|char| {
                if char.is_ascii_graphic() || char == ' ' {
                    char
                } else {
                    '?'
                }
            })
            .collect();
        Self { deny, detail }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.detail.is_empty() {
            out.write_str(self.deny.message())
        } else {
            write!(out, "{} ({})", self.deny.message(), self.detail)
        }
    }
}

impl From<Deny> for Refusal {
    fn from(deny: Deny) -> Self {
        Self {
            deny,
            detail: String::new(),
        }
    }
}

/// What a model's host answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// OpenAI's chat completions.
    ChatCompletions,
    /// OpenAI's responses.
    Responses,
    /// OpenAI's embeddings.
    Embeddings,
    /// Anthropic's messages.
    Messages,
    /// Anthropic's count of the tokens of a message, which costs none.
    CountTokens,
    /// The list of models: the gateway answers with those allowed, see [`catalog::list`].
    Models,
    /// One model: answered by the gateway too, see [`catalog::model`].
    Model(String),
}

impl Endpoint {
    /// Whether the gateway answers it by itself.
    #[must_use]
    pub fn is_local(&self) -> bool {
        matches!(self, Self::Models | Self::Model(_))
    }
}

/// Where servers that speak OpenAI's API have it. A list, because whatever else they offer below other paths is not
/// metered.
const COMPATIBLE_BASES: [&str; 9] = [
    "/v1",
    "",
    "/api/v1",
    "/openai/v1",
    "/inference/v1",
    "/v1beta/openai",
    "/compatible-mode/v1",
    "/api/v3",
    "/api/paas/v4",
];

/// Longest name of a model in a path, as in the policy's list.
const MAX_MODEL_BYTES: usize = 128;

/// The metered endpoint at a path (without query) of a model's host.
pub fn endpoint(provider: Provider, method: &str, path: &str) -> Result<Endpoint, Deny> {
    let bases: &[&str] = match provider {
        Provider::OpenAI | Provider::Anthropic => &["/v1"],
        Provider::OpenAICompatible => &COMPATIBLE_BASES,
    };
    bases
        .iter()
        .filter_map(|base| path.strip_prefix(base))
        .find_map(|rest| below(provider, method, rest))
        .ok_or(Deny::EndpointNotMetered)
}

fn below(provider: Provider, method: &str, rest: &str) -> Option<Endpoint> {
    match (method, rest, provider) {
        ("POST", "/chat/completions", Provider::OpenAI | Provider::OpenAICompatible) => {
            Some(Endpoint::ChatCompletions)
        }
        ("POST", "/embeddings", Provider::OpenAI | Provider::OpenAICompatible) => Some(Endpoint::Embeddings),
        ("POST", "/responses", Provider::OpenAI) => Some(Endpoint::Responses),
        ("POST", "/messages", Provider::Anthropic) => Some(Endpoint::Messages),
        ("POST", "/messages/count_tokens", Provider::Anthropic) => Some(Endpoint::CountTokens),
        ("GET", "/models", _) => Some(Endpoint::Models),
        ("GET", _, _) => rest
            .strip_prefix("/models/")
            .filter(|name| {
                !name.is_empty()
                    && name.len() <= MAX_MODEL_BYTES
                    && name
                        .bytes()
                        .all(|byte| byte.is_ascii_alphanumeric() || b"-._:@/".contains(&byte))
            })
            .map(|name| Endpoint::Model(name.to_owned())),
        _ => None,
    }
}

/// What of a request's query is sent on. A query can select what no list of fields knows; only these are known:
/// Anthropic's `beta=true`, and the paging of lists of models, which the gateway answers whole.
pub fn query(
    provider: Provider,
    endpoint: &Endpoint,
    query: Option<&str>,
) -> Result<Option<&'static str>, Refusal> {
    let Some(text) = query.filter(|text| !text.is_empty()) else {
        return Ok(None);
    };
    let mut beta = None;
    for part in text.split('&') {
        let (name, value) = part.split_once('=').unwrap_or((part, ""));
        match (name, value) {
            ("beta", "true") if provider == Provider::Anthropic => beta = Some("beta=true"),
            ("limit" | "after_id" | "before_id" | "after" | "order", _)
                if *endpoint == Endpoint::Models && value.len() <= MAX_MODEL_BYTES => {}
            _ => {
                return Err(Refusal::new(
                    Deny::FieldNotAllowed,
                    format_args!("query parameter {name}"),
                ));
            }
        }
    }
    Ok(beta)
}

/// Whether a request's header goes on to the provider. A list, because a header can select another account of the same
/// key (`OpenAI-Organization`, `OpenAI-Project`) or what no list of fields knows.
#[must_use]
pub fn header_allowed(provider: Provider, name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    match name.as_str() {
        "accept" | "content-type" | "user-agent" | "idempotency-key" => true,
        "anthropic-version" | "anthropic-beta" => provider == Provider::Anthropic,
        "x-client-request-id" => provider == Provider::OpenAI,
        _ => name.starts_with("x-stainless-"),
    }
}
