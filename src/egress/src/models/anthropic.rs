//! Anthropic's messages.
//!
//! Fields as in the official SDKs (`message_create_params`, `beta/message_create_params`) and
//! <https://docs.anthropic.com/en/api/messages>.

use crate::rules::ModelRule;

use super::Refusal;
use super::json::{Object, Value};
use super::request::{Terms, flag, inner_limit, most_output};
use super::shape::{Fields, Kind, Others, Shape, Tagged};

/// Tokens of the system prompt that the provider adds to a request with tools, and of the description of each tool of
/// its own making that the client runs: from 264 to about 735, by model and tool
/// (<https://docs.anthropic.com/en/docs/agents-and-tools/tool-use/overview#pricing>).
const TOOL_PROMPT_TOKENS: i64 = 1_024;

const CACHE_CONTROL: (&str, Shape) = (
    "cache_control",
    Shape::Fields(&[("type", Shape::Text), ("ttl", Shape::Text)]),
);

const TEXT: Kind = Kind::of(&[
    ("type", Shape::Text),
    ("text", Shape::Text),
    // Where an answer's text comes from.
    ("citations", Shape::Free),
    ("parsed_output", Shape::Free),
    CACHE_CONTROL,
]);

/// An image. Not `url`, which the provider would fetch, and not `file`, which is kept with the account.
const IMAGE_SOURCE: Tagged = Tagged {
    tag: "type",
    default: None,
    kinds: &[(
        "base64",
        Kind::of(&[
            ("type", Shape::Text),
            ("media_type", Shape::Text),
            ("data", Shape::Inline),
        ]),
    )],
    others: Others::Unknown,
};

const DOCUMENT_SOURCE: Tagged = Tagged {
    tag: "type",
    default: None,
    kinds: &[
        (
            "base64",
            Kind::of(&[
                ("type", Shape::Text),
                ("media_type", Shape::Text),
                ("data", Shape::Inline),
            ]),
        ),
        (
            "text",
            Kind::of(&[
                ("type", Shape::Text),
                ("media_type", Shape::Text),
                ("data", Shape::Text),
            ]),
        ),
        (
            "content",
            Kind::of(&[
                ("type", Shape::Text),
                (
                    "content",
                    Shape::TextOr(&Shape::List(&Shape::Tagged(&Tagged {
                        tag: "type",
                        default: None,
                        kinds: &[("text", TEXT), ("image", IMAGE)],
                        others: Others::Unknown,
                    }))),
                ),
            ]),
        ),
    ],
    others: Others::Unknown,
};

const IMAGE: Kind = Kind::of(&[
    ("type", Shape::Text),
    ("source", Shape::Tagged(&IMAGE_SOURCE)),
    CACHE_CONTROL,
]);

const DOCUMENT: Kind = Kind::of(&[
    ("type", Shape::Text),
    ("source", Shape::Tagged(&DOCUMENT_SOURCE)),
    ("title", Shape::Text),
    ("context", Shape::Text),
    ("citations", Shape::Fields(&[("enabled", Shape::Scalar)])),
    CACHE_CONTROL,
]);

/// What the client has found. `source` names it, and is not fetched.
const SEARCH_RESULT: Kind = Kind::of(&[
    ("type", Shape::Text),
    ("source", Shape::Text),
    ("title", Shape::Text),
    ("content", Shape::List(&Shape::Tagged(&TEXTS))),
    ("citations", Shape::Fields(&[("enabled", Shape::Scalar)])),
    CACHE_CONTROL,
]);

const TEXTS: Tagged = Tagged {
    tag: "type",
    default: None,
    kinds: &[("text", TEXT)],
    others: Others::Unknown,
};

const TOOL_RESULT: Tagged = Tagged {
    tag: "type",
    default: None,
    kinds: &[
        ("text", TEXT),
        ("image", IMAGE),
        ("document", DOCUMENT),
        ("search_result", SEARCH_RESULT),
        (
            "tool_reference",
            Kind::of(&[("type", Shape::Text), ("tool_name", Shape::Text), CACHE_CONTROL]),
        ),
    ],
    others: Others::Unknown,
};

/// One block of a message. What is not here is the trace of a tool that the provider ran, or names a file that is kept
/// with the account.
const BLOCK: Tagged = Tagged {
    tag: "type",
    default: None,
    kinds: &[
        ("text", TEXT),
        ("image", IMAGE),
        ("document", DOCUMENT),
        ("search_result", SEARCH_RESULT),
        (
            "thinking",
            Kind::of(&[
                ("type", Shape::Text),
                ("thinking", Shape::Text),
                ("signature", Shape::Text),
            ]),
        ),
        (
            "redacted_thinking",
            Kind::of(&[("type", Shape::Text), ("data", Shape::Text)]),
        ),
        (
            "tool_use",
            Kind::of(&[
                ("type", Shape::Text),
                ("id", Shape::Text),
                ("name", Shape::Text),
                ("input", Shape::Free),
                ("caller", Shape::Free),
                ("toolset_name", Shape::Text),
                CACHE_CONTROL,
            ]),
        ),
        (
            "tool_result",
            Kind::of(&[
                ("type", Shape::Text),
                ("tool_use_id", Shape::Text),
                (
                    "content",
                    Shape::TextOr(&Shape::List(&Shape::Tagged(&TOOL_RESULT))),
                ),
                ("is_error", Shape::Scalar),
                CACHE_CONTROL,
            ]),
        ),
        (
            "container_upload",
            Kind::of(&[("type", Shape::Text), ("file_id", Shape::Unset)]),
        ),
    ],
    others: Others::Traces(&[
        ("server_tool_use", SERVER_TOOLS),
        ("web_search_tool_result", &["web_search"]),
        ("web_fetch_tool_result", &["web_fetch"]),
        ("code_execution_tool_result", &["code_execution"]),
        ("bash_code_execution_tool_result", &["code_execution"]),
        ("text_editor_code_execution_tool_result", &["code_execution"]),
        ("tool_search_tool_result", TOOL_SEARCH),
        ("mcp_tool_use", &["mcp_toolset"]),
        ("mcp_tool_result", &["mcp_toolset"]),
    ]),
};

const TOOL_SEARCH: &[&str] = &["tool_search_tool_bm25", "tool_search_tool_regex"];

const SERVER_TOOLS: &[&str] = &[
    "web_search",
    "web_fetch",
    "code_execution",
    "tool_search_tool_bm25",
    "tool_search_tool_regex",
];

const MESSAGE: Fields = &[
    ("role", Shape::Text),
    ("content", Shape::TextOr(&Shape::List(&Shape::Tagged(&BLOCK)))),
];

/// A tool of the provider's making that the client runs.
const fn client_tool(fields: Fields) -> Kind {
    Kind {
        fields,
        overhead: TOOL_PROMPT_TOKENS,
    }
}

const CLIENT_TOOL: Fields = &[
    ("type", Shape::Text),
    ("name", Shape::Text),
    ("max_characters", Shape::Scalar),
    ("display_width_px", Shape::Scalar),
    ("display_height_px", Shape::Scalar),
    ("display_number", Shape::Scalar),
    ("enable_zoom", Shape::Scalar),
    ("strict", Shape::Scalar),
    ("defer_loading", Shape::Scalar),
    ("allowed_callers", Shape::List(&Shape::Text)),
    ("input_examples", Shape::Free),
    CACHE_CONTROL,
];

const TOOL: Tagged = Tagged {
    tag: "type",
    default: Some("custom"),
    kinds: &[
        (
            "custom",
            Kind::of(&[
                ("type", Shape::Text),
                ("name", Shape::Text),
                ("description", Shape::Text),
                ("input_schema", Shape::Free),
                ("strict", Shape::Scalar),
                ("defer_loading", Shape::Scalar),
                ("eager_input_streaming", Shape::Scalar),
                ("allowed_callers", Shape::List(&Shape::Text)),
                ("input_examples", Shape::Free),
                CACHE_CONTROL,
            ]),
        ),
        ("bash_*", client_tool(CLIENT_TOOL)),
        ("text_editor_*", client_tool(CLIENT_TOOL)),
        ("computer_*", client_tool(CLIENT_TOOL)),
        ("memory_*", client_tool(CLIENT_TOOL)),
    ],
    others: Others::Tools,
};

const FORMAT: Shape = Shape::Fields(&[("type", Shape::Text), ("schema", Shape::Free)]);

/// How old results of tools and thoughts are left out. Not `compact_*`: the provider would have a model shorten the
/// conversation, and count its tokens apart.
const EDIT: Tagged = Tagged {
    tag: "type",
    default: None,
    kinds: &[
        ("clear_tool_uses_*", Kind::of(EDIT_FIELDS)),
        ("clear_thinking_*", Kind::of(EDIT_FIELDS)),
    ],
    others: Others::Unknown,
};

const EDIT_FIELDS: Fields = &[
    ("type", Shape::Text),
    ("trigger", Shape::Free),
    ("keep", Shape::Free),
    ("clear_at_least", Shape::Free),
    ("clear_tool_inputs", Shape::Free),
    ("exclude_tools", Shape::List(&Shape::Text)),
];

/// What messages and the count of their tokens both take.
const COMMON: Fields = &[
    ("messages", Shape::List(&Shape::Fields(MESSAGE))),
    ("model", Shape::Text),
    ("cache_control", CACHE_CONTROL.1),
    (
        "context_management",
        Shape::Fields(&[("edits", Shape::List(&Shape::Tagged(&EDIT)))]),
    ),
    ("mcp_servers", Shape::Server(&["mcp_toolset"])),
    (
        "output_config",
        Shape::Fields(&[
            ("effort", Shape::Text),
            ("format", FORMAT),
            ("task_budget", Shape::Map(&Shape::Scalar)),
        ]),
    ),
    ("output_format", FORMAT),
    ("speed", Shape::Text),
    ("system", Shape::TextOr(&Shape::List(&Shape::Tagged(&TEXTS)))),
    (
        "thinking",
        Shape::Fields(&[
            ("type", Shape::Text),
            ("budget_tokens", Shape::Scalar),
            ("display", Shape::Text),
        ]),
    ),
    (
        "tool_choice",
        Shape::Fields(&[
            ("type", Shape::Text),
            ("name", Shape::Text),
            ("disable_parallel_tool_use", Shape::Scalar),
        ]),
    ),
    ("tools", Shape::List(&Shape::Tagged(&TOOL))),
];

/// What messages take beside that.
const MESSAGES: Fields = &[
    ("max_tokens", Shape::Scalar),
    // A computer of the provider's, kept with the account.
    ("container", Shape::Server(&["container"])),
    ("inference_geo", Shape::Text),
    ("metadata", Shape::Fields(&[("user_id", Shape::Text)])),
    ("service_tier", Shape::Text),
    ("stop_sequences", Shape::List(&Shape::Text)),
    ("stream", Shape::Scalar),
    ("temperature", Shape::Scalar),
    ("top_k", Shape::Scalar),
    ("top_p", Shape::Scalar),
];

/// The fields that messages take.
pub(super) fn message_fields() -> &'static [Fields] {
    &[COMMON, MESSAGES]
}

/// The fields that the count of tokens takes.
pub(super) fn count_fields() -> &'static [Fields] {
    &[COMMON]
}

/// Sets what must be set, and says what the request can cost.
pub(super) fn settle(body: &mut Object<'_>, rule: &ModelRule) -> Result<Terms, Refusal> {
    let stream = flag(body, "stream")?;
    let most = most_output(body, &["max_tokens"], "max_tokens", rule.default_output_tokens)?;
    // With interleaved thinking the budget for thoughts may be larger than `max_tokens`.
    let thoughts = inner_limit(body, "thinking", "budget_tokens")?.unwrap_or(0);
    let has_tools = body
        .get("tools")
        .and_then(Value::as_list)
        .is_some_and(|tools| !tools.is_empty());
    Ok(Terms {
        output: most.max(thoughts),
        input: if has_tools { TOOL_PROMPT_TOKENS } else { 0 },
        stream,
        drop_usage: false,
    })
}
