//! OpenAI's chat completions, and those of servers that speak them.
//!
//! Fields as in the official SDKs (`chat/completion_create_params`) and
//! <https://platform.openai.com/docs/api-reference/chat/create>.

use agentsandbox_api::policy::Provider;

use crate::rules::ModelRule;

use super::Refusal;
use super::json::{Object, Value};
use super::request::{MAX_OUTPUT_TOKENS, Terms, flag, inner_limit, limit, most_output, written_bytes};
use super::shape::{Fields, Kind, Others, Shape, Tagged};

/// Most answers of one request.
const MAX_CHOICES: i64 = 128;

/// Marks the end of a prefix to be cached; the second spelling is that of servers that pass Anthropic's on.
const BREAKPOINT: (&str, Shape) = (
    "prompt_cache_breakpoint",
    Shape::Fields(&[("mode", Shape::Text), ("ttl", Shape::Text)]),
);
const CACHE_CONTROL: (&str, Shape) = (
    "cache_control",
    Shape::Fields(&[("type", Shape::Text), ("ttl", Shape::Text)]),
);

const PART: Tagged = Tagged {
    tag: "type",
    default: None,
    kinds: &[
        (
            "text",
            Kind::of(&[
                ("type", Shape::Text),
                ("text", Shape::Text),
                BREAKPOINT,
                CACHE_CONTROL,
            ]),
        ),
        (
            "refusal",
            Kind::of(&[("type", Shape::Text), ("refusal", Shape::Text)]),
        ),
        (
            "image_url",
            Kind::of(&[
                ("type", Shape::Text),
                (
                    "image_url",
                    Shape::Fields(&[("url", Shape::DataUrl), ("detail", Shape::Text)]),
                ),
                BREAKPOINT,
                CACHE_CONTROL,
            ]),
        ),
        (
            "input_audio",
            Kind::of(&[
                ("type", Shape::Text),
                (
                    "input_audio",
                    Shape::Fields(&[("data", Shape::Inline), ("format", Shape::Text)]),
                ),
                BREAKPOINT,
            ]),
        ),
        (
            "file",
            Kind::of(&[
                ("type", Shape::Text),
                (
                    "file",
                    Shape::Fields(&[
                        ("file_data", Shape::Inline),
                        ("filename", Shape::Text),
                        ("file_id", Shape::Unset),
                    ]),
                ),
                BREAKPOINT,
                CACHE_CONTROL,
            ]),
        ),
    ],
    others: Others::Unknown,
};

const CALL: Tagged = Tagged {
    tag: "type",
    default: Some("function"),
    kinds: &[
        (
            "function",
            Kind::of(&[
                ("id", Shape::Text),
                ("type", Shape::Text),
                // Part of the calls that a stream gives.
                ("index", Shape::Scalar),
                ("function", Shape::Fields(FUNCTION_CALL)),
                // Signatures of thoughts, which Gemini wants back.
                ("extra_content", Shape::Free),
            ]),
        ),
        (
            "custom",
            Kind::of(&[
                ("id", Shape::Text),
                ("type", Shape::Text),
                ("index", Shape::Scalar),
                (
                    "custom",
                    Shape::Fields(&[("name", Shape::Text), ("input", Shape::Text)]),
                ),
            ]),
        ),
    ],
    others: Others::Unknown,
};

const FUNCTION_CALL: Fields = &[
    ("name", Shape::Text),
    ("arguments", Shape::Text),
    // Added by the SDKs' helpers for structured output.
    ("parsed_arguments", Shape::Free),
];

/// One list for all roles: an answer is commonly sent back as it came, `null`s and all.
const MESSAGE: Fields = &[
    ("role", Shape::Text),
    ("content", Shape::TextOr(&Shape::List(&Shape::Tagged(&PART)))),
    ("name", Shape::Text),
    ("refusal", Shape::Text),
    ("annotations", Shape::Free),
    // An id of an answer that is kept with the account.
    ("audio", Shape::Unset),
    ("tool_calls", Shape::List(&Shape::Tagged(&CALL))),
    ("tool_call_id", Shape::Text),
    ("function_call", Shape::Fields(FUNCTION_CALL)),
    ("parsed", Shape::Free),
    // The thoughts of an answer, as servers other than OpenAI's call them.
    ("reasoning", Shape::Text),
    ("reasoning_content", Shape::Text),
    ("reasoning_details", Shape::Free),
    ("cache_control", CACHE_CONTROL.1),
    ("prefix", Shape::Scalar),
];

const FUNCTION: Fields = &[
    ("name", Shape::Text),
    ("description", Shape::Text),
    ("parameters", Shape::Free),
    ("strict", Shape::Scalar),
];

const TOOL: Tagged = Tagged {
    tag: "type",
    default: None,
    kinds: &[
        (
            "function",
            Kind::of(&[
                ("type", Shape::Text),
                ("function", Shape::Fields(FUNCTION)),
                CACHE_CONTROL,
            ]),
        ),
        (
            "custom",
            Kind::of(&[
                ("type", Shape::Text),
                (
                    "custom",
                    Shape::Fields(&[
                        ("name", Shape::Text),
                        ("description", Shape::Text),
                        ("format", Shape::Free),
                    ]),
                ),
            ]),
        ),
    ],
    others: Others::Tools,
};

const TOOL_CHOICE: Shape = Shape::TextOr(&Shape::Fields(&[
    ("type", Shape::Text),
    ("function", Shape::Fields(&[("name", Shape::Text)])),
    ("custom", Shape::Fields(&[("name", Shape::Text)])),
    (
        "allowed_tools",
        Shape::Fields(&[("mode", Shape::Text), ("tools", Shape::Free)]),
    ),
]));

const FORMAT: Shape = Shape::Fields(&[
    ("type", Shape::Text),
    (
        "json_schema",
        Shape::Fields(&[
            ("name", Shape::Text),
            ("description", Shape::Text),
            ("schema", Shape::Free),
            ("strict", Shape::Scalar),
        ]),
    ),
    // How some servers take the schema.
    ("schema", Shape::Free),
]);

/// Fields of OpenAI's endpoint.
const OPENAI: Fields = &[
    ("messages", Shape::List(&Shape::Fields(MESSAGE))),
    ("model", Shape::Text),
    (
        "audio",
        Shape::Fields(&[("voice", Shape::Text), ("format", Shape::Text)]),
    ),
    ("frequency_penalty", Shape::Scalar),
    (
        "function_call",
        Shape::TextOr(&Shape::Fields(&[("name", Shape::Text)])),
    ),
    ("functions", Shape::List(&Shape::Fields(FUNCTION))),
    ("logit_bias", Shape::Map(&Shape::Scalar)),
    ("logprobs", Shape::Scalar),
    ("max_completion_tokens", Shape::Scalar),
    ("max_tokens", Shape::Scalar),
    ("metadata", Shape::Map(&Shape::Text)),
    ("modalities", Shape::List(&Shape::Text)),
    ("n", Shape::Scalar),
    ("parallel_tool_calls", Shape::Scalar),
    (
        "prediction",
        Shape::Fields(&[
            ("type", Shape::Text),
            ("content", Shape::TextOr(&Shape::List(&Shape::Tagged(&PART)))),
        ]),
    ),
    ("presence_penalty", Shape::Scalar),
    ("prompt_cache_key", Shape::Text),
    (
        "prompt_cache_options",
        Shape::Fields(&[("mode", Shape::Text), ("ttl", Shape::Text)]),
    ),
    ("prompt_cache_retention", Shape::Text),
    ("reasoning_effort", Shape::Text),
    ("response_format", FORMAT),
    ("safety_identifier", Shape::Text),
    ("seed", Shape::Scalar),
    ("service_tier", Shape::Text),
    ("stop", Shape::TextOr(&Shape::List(&Shape::Text))),
    ("store", Shape::Scalar),
    ("stream", Shape::Scalar),
    (
        "stream_options",
        Shape::Fields(&[
            ("include_usage", Shape::Scalar),
            ("include_obfuscation", Shape::Scalar),
        ]),
    ),
    ("temperature", Shape::Scalar),
    ("tool_choice", TOOL_CHOICE),
    ("tools", Shape::List(&Shape::Tagged(&TOOL))),
    ("top_logprobs", Shape::Scalar),
    ("top_p", Shape::Scalar),
    ("user", Shape::Text),
    ("verbosity", Shape::Text),
    (
        "web_search_options",
        Shape::Server(&["web_search", "web_search_preview"]),
    ),
];

/// Fields of other servers, beside those: how to sample, and whether to think. None that asks for more output than
/// `n` and `max_tokens` say (`best_of`, `use_beam_search`), for other models (`models`), or for something to be
/// fetched (`plugins`).
const COMPATIBLE: Fields = &[
    ("top_k", Shape::Scalar),
    ("top_a", Shape::Scalar),
    ("min_p", Shape::Scalar),
    ("typical_p", Shape::Scalar),
    ("repetition_penalty", Shape::Scalar),
    ("length_penalty", Shape::Scalar),
    ("min_tokens", Shape::Scalar),
    ("stop_token_ids", Shape::List(&Shape::Scalar)),
    ("skip_special_tokens", Shape::Scalar),
    ("spaces_between_special_tokens", Shape::Scalar),
    ("chat_template_kwargs", Shape::Map(&Shape::Scalar)),
    ("enable_thinking", Shape::Scalar),
    ("thinking_budget", Shape::Scalar),
    (
        "thinking",
        Shape::Fields(&[("type", Shape::Text), ("budget_tokens", Shape::Scalar)]),
    ),
    (
        "reasoning",
        Shape::Fields(&[
            ("effort", Shape::Text),
            ("max_tokens", Shape::Scalar),
            ("enabled", Shape::Scalar),
            ("exclude", Shape::Scalar),
        ]),
    ),
    ("reasoning_format", Shape::Text),
    ("include_reasoning", Shape::Scalar),
    ("guided_json", Shape::Free),
    ("guided_regex", Shape::Text),
    ("guided_choice", Shape::List(&Shape::Text)),
    ("guided_grammar", Shape::Text),
    ("structured_outputs", Shape::Free),
];

/// The fields that a provider's endpoint takes.
pub(super) fn fields(provider: Provider) -> &'static [Fields] {
    match provider {
        Provider::OpenAICompatible => &[OPENAI, COMPATIBLE],
        Provider::OpenAI | Provider::Anthropic => &[OPENAI],
    }
}

/// Sets what must be set, and says what the request can cost.
pub(super) fn settle(body: &mut Object<'_>, rule: &ModelRule) -> Result<Terms, Refusal> {
    let compatible = rule.provider == Provider::OpenAICompatible;
    let stream = flag(body, "stream")?;
    let asked_usage = set_stream_options(body, stream);
    // Nothing is kept with the account. Other servers know no `store`; and `metadata` is only for what is kept: OpenAI's
    // refuses it otherwise.
    body.remove("metadata");
    if compatible {
        body.remove("store");
    } else {
        body.set("store", Value::Bool(false));
    }
    let choices = limit(body, "n", 1, MAX_CHOICES)?.unwrap_or(1);
    let most = most_output(
        body,
        &["max_completion_tokens", "max_tokens"],
        // Not all servers know the newer name; not all of OpenAI's models take the older one.
        if compatible {
            "max_tokens"
        } else {
            "max_completion_tokens"
        },
        rule.default_output_tokens,
    )?;
    if compatible {
        bind_output(body, most)?;
    }
    // Some servers count thoughts apart from the answer.
    let thoughts = [
        limit(body, "thinking_budget", 0, MAX_OUTPUT_TOKENS)?,
        inner_limit(body, "thinking", "budget_tokens")?,
        inner_limit(body, "reasoning", "max_tokens")?,
    ]
    .into_iter()
    .flatten()
    .max()
    .unwrap_or(0);
    // A prediction that does not come true is charged as output.
    let predicted = body.get("prediction").map_or(0, written_bytes);
    Ok(Terms {
        output: most
            .saturating_add(thoughts)
            .saturating_add(predicted)
            .saturating_mul(choices),
        input: 0,
        stream,
        drop_usage: stream && !asked_usage,
    })
}

/// Names the most output tokens in every way that the server may know. One that knows `max_tokens` only would generate
/// without bound otherwise; and 0 is «no bound» to some.
fn bind_output(body: &mut Object<'_>, most: i64) -> Result<(), Refusal> {
    body.set("max_tokens", Value::integer(most));
    if body
        .remove("max_completion_tokens")
        .is_some_and(|named| named != Value::Null)
    {
        body.set("max_completion_tokens", Value::integer(most));
    }
    limit(body, "max_tokens", 1, MAX_OUTPUT_TOKENS).map(drop)
}

/// Asks for the usage at the end of a stream, and says whether the client did so too.
fn set_stream_options(body: &mut Object<'_>, stream: bool) -> bool {
    if !stream {
        // OpenAI refuses options of a stream without a stream.
        body.remove("stream_options");
        return false;
    }
    if let Some(Value::Object(options)) = body.get_mut("stream_options") {
        let asked = options.get("include_usage") == Some(&Value::Bool(true));
        options.set("include_usage", Value::Bool(true));
        asked
    } else {
        let mut options = Object::default();
        options.set("include_usage", Value::Bool(true));
        body.set("stream_options", Value::Object(options));
        false
    }
}
