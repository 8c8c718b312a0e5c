//! OpenAI's embeddings, and those of servers that speak them.
//!
//! Fields as in the official SDKs (`embedding_create_params`) and
//! <https://platform.openai.com/docs/api-reference/embeddings/create>.

use agentsandbox_api::policy::Provider;

use super::request::Terms;
use super::shape::{Fields, Shape};

const OPENAI: Fields = &[
    // Texts, or their tokens as numbers.
    (
        "input",
        Shape::TextOr(&Shape::List(&Shape::ScalarOr(&Shape::List(&Shape::Scalar)))),
    ),
    ("model", Shape::Text),
    ("dimensions", Shape::Scalar),
    ("encoding_format", Shape::Text),
    ("user", Shape::Text),
];

const COMPATIBLE: Fields = &[
    ("input_type", Shape::Text),
    ("truncate", Shape::Scalar),
    ("truncate_prompt_tokens", Shape::Scalar),
];

/// The fields that a provider's endpoint takes.
pub(super) fn fields(provider: Provider) -> &'static [Fields] {
    match provider {
        Provider::OpenAICompatible => &[OPENAI, COMPATIBLE],
        Provider::OpenAI | Provider::Anthropic => &[OPENAI],
    }
}

/// What the request can cost: it writes nothing.
pub(super) fn settle() -> Terms {
    Terms {
        output: 0,
        input: 0,
        stream: false,
        drop_usage: false,
    }
}
