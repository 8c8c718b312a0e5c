//! What the fuzz targets share: a policy, texts out of raw bytes, and a measure of what a call costs.

mod allocations;

use std::sync::LazyLock;

use agentsandbox_egress::rules::EgressPolicy;
use http::header::{HeaderMap, HeaderName, HeaderValue};
use serde_json::json;

pub use allocations::bounded;

/// A policy with a name, a wildcard, a range, an inspected host with paths, and a model of each provider.
pub static POLICY: LazyLock<EgressPolicy> = LazyLock::new(|| {
    let spec = serde_json::from_value(json!({
        "egress": {"allow": [
            {"host": "api.example.org"},
            {"host": "*.wild.example"},
            {"cidr": "10.1.0.0/16", "ports": [22]},
            {"host": "git.example.org", "methods": ["GET"], "paths": ["/repos/", "/login"], "tls": "Inspect"},
        ]},
        "models": [
            {"provider": "OpenAI", "host": "openai.example.org", "allow": ["m"]},
            {"provider": "Anthropic", "host": "anthropic.example.org", "allow": ["m"]},
            {"provider": "OpenAICompatible", "host": "compatible.example.org", "allow": ["m"]},
        ],
    }))
    .expect("a policy");
    EgressPolicy::compile(&spec).expect("a policy that compiles")
});

/// Splits `data` at the places that its own last byte and their successors choose: into pieces as a network brings them.
#[must_use]
pub fn pieces(data: &[u8]) -> Vec<&[u8]> {
    let step = usize::from(data.last().copied().unwrap_or(0) % 31) + 1;
    data.chunks(step).collect()
}

/// `name: value` lines as header fields; lines that can't be are left out, as the HTTP library would refuse them.
#[must_use]
pub fn fields(data: &[u8]) -> HeaderMap {
    let mut map = HeaderMap::new();
    for line in data.split(|byte| *byte == b'\n').take(200) {
        let Some(colon) = line.iter().position(|byte| *byte == b':') else {
            continue;
        };
        let (name, value) = (&line[..colon], line[colon + 1..].trim_ascii());
        if let (Ok(name), Ok(value)) = (HeaderName::from_bytes(name), HeaderValue::from_bytes(value)) {
            map.append(name, value);
        }
    }
    map
}
