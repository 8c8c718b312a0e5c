//! OpenAI's responses.
//!
//! Fields as in the official SDKs (`responses/response_create_params`, `response_input_param`, `tool_param`) and
//! <https://platform.openai.com/docs/api-reference/responses/create>.

use crate::rules::ModelRule;

use super::Refusal;
use super::json::{Object, Value};
use super::request::{Terms, flag, most_output};
use super::shape::{Fields, Kind, Others, Shape, Tagged};

const BREAKPOINT: (&str, Shape) = (
    "prompt_cache_breakpoint",
    Shape::Fields(&[("mode", Shape::Text), ("ttl", Shape::Text)]),
);

/// Content of a message of any role: an answer's is sent back as it came.
const PART: Tagged = Tagged {
    tag: "type",
    default: None,
    kinds: &[
        (
            "input_text",
            Kind::of(&[("type", Shape::Text), ("text", Shape::Text), BREAKPOINT]),
        ),
        (
            "input_image",
            Kind::of(&[
                ("type", Shape::Text),
                ("image_url", Shape::DataUrl),
                ("detail", Shape::Text),
                ("file_id", Shape::Unset),
                BREAKPOINT,
            ]),
        ),
        (
            "input_file",
            Kind::of(&[
                ("type", Shape::Text),
                ("file_data", Shape::Inline),
                ("filename", Shape::Text),
                ("detail", Shape::Text),
                ("file_id", Shape::Unset),
                ("file_url", Shape::Unset),
                BREAKPOINT,
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
            ]),
        ),
        (
            "output_text",
            Kind::of(&[
                ("type", Shape::Text),
                ("text", Shape::Text),
                ("annotations", Shape::Free),
                ("logprobs", Shape::Free),
                ("parsed", Shape::Free),
            ]),
        ),
        (
            "refusal",
            Kind::of(&[("type", Shape::Text), ("refusal", Shape::Text)]),
        ),
        ("text", Kind::of(&[("type", Shape::Text), ("text", Shape::Text)])),
        (
            "summary_text",
            Kind::of(&[("type", Shape::Text), ("text", Shape::Text)]),
        ),
        (
            "reasoning_text",
            Kind::of(&[("type", Shape::Text), ("text", Shape::Text)]),
        ),
    ],
    others: Others::Unknown,
};

const PARTS: Shape = Shape::TextOr(&Shape::List(&Shape::Tagged(&PART)));

/// A call of a tool that the client runs. `caller` says which program of the provider's has called it, if one did.
const CALLER: (&str, Shape) = ("caller", Shape::Free);

/// One item of a conversation. What is not here is the trace of a tool that the provider ran, or a reference to an item
/// that is kept with the account (`item_reference`).
const ITEM: Tagged = Tagged {
    tag: "type",
    default: Some("message"),
    kinds: &[
        (
            "message",
            Kind::of(&[
                ("type", Shape::Text),
                ("role", Shape::Text),
                ("content", PARTS),
                ("id", Shape::Text),
                ("status", Shape::Text),
                ("phase", Shape::Text),
            ]),
        ),
        (
            "reasoning",
            Kind::of(&[
                ("type", Shape::Text),
                ("id", Shape::Text),
                ("summary", PARTS),
                ("content", PARTS),
                ("encrypted_content", Shape::Text),
                ("status", Shape::Text),
            ]),
        ),
        (
            "function_call",
            Kind::of(&[
                ("type", Shape::Text),
                ("id", Shape::Text),
                ("call_id", Shape::Text),
                ("name", Shape::Text),
                ("namespace", Shape::Text),
                ("arguments", Shape::Text),
                ("parsed_arguments", Shape::Free),
                ("status", Shape::Text),
                ("async", Shape::Scalar),
                CALLER,
            ]),
        ),
        (
            "function_call_output",
            Kind::of(&[
                ("type", Shape::Text),
                ("id", Shape::Text),
                ("call_id", Shape::Text),
                ("output", PARTS),
                ("status", Shape::Text),
                CALLER,
            ]),
        ),
        (
            "custom_tool_call",
            Kind::of(&[
                ("type", Shape::Text),
                ("id", Shape::Text),
                ("call_id", Shape::Text),
                ("name", Shape::Text),
                ("namespace", Shape::Text),
                ("input", Shape::Text),
                ("status", Shape::Text),
                CALLER,
            ]),
        ),
        (
            "custom_tool_call_output",
            Kind::of(&[
                ("type", Shape::Text),
                ("id", Shape::Text),
                ("call_id", Shape::Text),
                ("output", PARTS),
                ("status", Shape::Text),
                CALLER,
            ]),
        ),
        (
            "local_shell_call",
            Kind::of(&[
                ("type", Shape::Text),
                ("id", Shape::Text),
                ("call_id", Shape::Text),
                ("action", Shape::Free),
                ("status", Shape::Text),
            ]),
        ),
        (
            "local_shell_call_output",
            Kind::of(&[
                ("type", Shape::Text),
                ("id", Shape::Text),
                ("call_id", Shape::Text),
                ("output", Shape::Text),
                ("status", Shape::Text),
            ]),
        ),
        (
            "apply_patch_call",
            Kind::of(&[
                ("type", Shape::Text),
                ("id", Shape::Text),
                ("call_id", Shape::Text),
                ("operation", Shape::Free),
                ("status", Shape::Text),
                CALLER,
            ]),
        ),
        (
            "apply_patch_call_output",
            Kind::of(&[
                ("type", Shape::Text),
                ("id", Shape::Text),
                ("call_id", Shape::Text),
                ("output", Shape::Text),
                ("status", Shape::Text),
                CALLER,
            ]),
        ),
        (
            "computer_call_output",
            Kind::of(&[
                ("type", Shape::Text),
                ("id", Shape::Text),
                ("call_id", Shape::Text),
                (
                    "output",
                    Shape::Fields(&[
                        ("type", Shape::Text),
                        ("image_url", Shape::DataUrl),
                        ("file_id", Shape::Unset),
                    ]),
                ),
                ("acknowledged_safety_checks", Shape::Free),
                ("status", Shape::Text),
            ]),
        ),
        ("item_reference", Kind::of(REFERENCE)),
    ],
    others: Others::Traces(&[
        ("web_search_call", &["web_search", "web_search_preview"]),
        ("file_search_call", &["file_search"]),
        ("code_interpreter_call", &["code_interpreter"]),
        ("image_generation_call", &["image_generation"]),
        (
            "computer_call",
            &["computer", "computer_use", "computer_use_preview"],
        ),
        ("shell_call", &["shell"]),
        ("shell_call_output", &["shell"]),
        ("tool_search_call", &["tool_search"]),
        ("tool_search_output", &["tool_search"]),
        ("mcp_list_tools", &["mcp"]),
        ("mcp_call", &["mcp"]),
        ("mcp_approval_request", &["mcp"]),
        ("mcp_approval_response", &["mcp"]),
    ]),
};

const REFERENCE: Fields = &[("type", Shape::Text), ("id", Shape::Unset)];

const FUNCTION: Kind = Kind::of(&[
    ("type", Shape::Text),
    ("name", Shape::Text),
    ("description", Shape::Text),
    ("parameters", Shape::Free),
    ("output_schema", Shape::Free),
    ("strict", Shape::Scalar),
    ("allowed_callers", Shape::List(&Shape::Text)),
    ("defer_loading", Shape::Scalar),
]);

const CUSTOM: Kind = Kind::of(&[
    ("type", Shape::Text),
    ("name", Shape::Text),
    ("description", Shape::Text),
    ("format", Shape::Free),
    ("allowed_callers", Shape::List(&Shape::Text)),
    ("defer_loading", Shape::Scalar),
]);

/// Tools that the client runs.
const TOOL: Tagged = Tagged {
    tag: "type",
    default: None,
    kinds: &[
        ("function", FUNCTION),
        ("custom", CUSTOM),
        ("local_shell", Kind::of(&[("type", Shape::Text)])),
        ("apply_patch", Kind::of(&[("type", Shape::Text)])),
        (
            "namespace",
            Kind::of(&[
                ("type", Shape::Text),
                ("name", Shape::Text),
                ("description", Shape::Text),
                (
                    "tools",
                    Shape::List(&Shape::Tagged(&Tagged {
                        tag: "type",
                        default: None,
                        kinds: &[("function", FUNCTION), ("custom", CUSTOM)],
                        others: Others::Tools,
                    })),
                ),
            ]),
        ),
    ],
    others: Others::Tools,
};

const TOOL_CHOICE: Shape = Shape::TextOr(&Shape::Fields(&[
    ("type", Shape::Text),
    ("name", Shape::Text),
    ("mode", Shape::Text),
    ("tools", Shape::Free),
    ("server_label", Shape::Text),
]));

const FIELDS: Fields = &[
    ("input", Shape::TextOr(&Shape::List(&Shape::Tagged(&ITEM)))),
    ("model", Shape::Text),
    // A run that goes on without the client, to be fetched later.
    ("background", Shape::Off),
    // Conversations, answers and prompts that are kept with the account.
    ("conversation", Shape::Unset),
    ("previous_response_id", Shape::Unset),
    ("prompt", Shape::Unset),
    // Has the provider shorten the conversation, with a model of its choice.
    ("context_management", Shape::Unset),
    ("include", Shape::List(&Shape::Text)),
    ("instructions", Shape::Text),
    ("max_output_tokens", Shape::Scalar),
    ("max_tool_calls", Shape::Scalar),
    ("metadata", Shape::Map(&Shape::Text)),
    ("parallel_tool_calls", Shape::Scalar),
    ("prompt_cache_key", Shape::Text),
    (
        "prompt_cache_options",
        Shape::Fields(&[("mode", Shape::Text), ("ttl", Shape::Text)]),
    ),
    ("prompt_cache_retention", Shape::Text),
    (
        "reasoning",
        // Not `mode`: more than one answer is made for it, whatever `max_output_tokens` says.
        Shape::Fields(&[
            ("effort", Shape::Text),
            ("summary", Shape::Text),
            ("generate_summary", Shape::Text),
            ("context", Shape::Text),
        ]),
    ),
    ("safety_identifier", Shape::Text),
    ("service_tier", Shape::Text),
    ("store", Shape::Scalar),
    ("stream", Shape::Scalar),
    (
        "stream_options",
        Shape::Fields(&[("include_obfuscation", Shape::Scalar)]),
    ),
    ("temperature", Shape::Scalar),
    (
        "text",
        Shape::Fields(&[
            (
                "format",
                Shape::Fields(&[
                    ("type", Shape::Text),
                    ("name", Shape::Text),
                    ("description", Shape::Text),
                    ("schema", Shape::Free),
                    ("strict", Shape::Scalar),
                ]),
            ),
            ("verbosity", Shape::Text),
        ]),
    ),
    ("tool_choice", TOOL_CHOICE),
    ("tools", Shape::List(&Shape::Tagged(&TOOL))),
    ("top_logprobs", Shape::Scalar),
    ("top_p", Shape::Scalar),
    ("truncation", Shape::Text),
    ("user", Shape::Text),
];

/// The fields that the endpoint takes.
pub(super) fn fields() -> &'static [Fields] {
    &[FIELDS]
}

/// Sets what must be set, and says what the request can cost.
pub(super) fn settle(body: &mut Object<'_>, rule: &ModelRule) -> Result<Terms, Refusal> {
    let stream = flag(body, "stream")?;
    if !stream {
        body.remove("stream_options");
    }
    body.set("store", Value::Bool(false));
    forget_ids(body);
    let output = most_output(
        body,
        &["max_output_tokens"],
        "max_output_tokens",
        rule.default_output_tokens,
    )?;
    Ok(Terms {
        output,
        input: 0,
        stream,
        drop_usage: false,
    })
}

/// Takes the ids out of the items of the conversation. Programs send an answer's items back as they came; but the
/// provider has kept none of them, and fails to find what an id names. Items stand without ids too, except thoughts that
/// are not there in full (`encrypted_content`, which the client asks for by `include`): those go.
fn forget_ids(body: &mut Object<'_>) {
    let Some(Value::List(items)) = body.get_mut("input") else {
        return;
    };
    items.retain(|item| {
        item.as_object().is_none_or(|item| {
            item.get("type").and_then(Value::as_text) != Some("reasoning")
                || item.get_set("encrypted_content").is_some()
        })
    });
    for item in items {
        // The trace of a tool that the provider ran is named by nothing but its id.
        let Value::Object(item) = item else { continue };
        let kind = item.get_set("type").map_or(Some("message"), Value::as_text);
        if kind.is_some_and(|kind| ITEM.kinds.iter().any(|(known, _)| *known == kind)) {
            item.remove("id");
        }
    }
}
