//! Requests that must be refused, by name of what is to blame.

use agentsandbox_api::policy::Provider;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::super::{Endpoint, MAX_DETAIL_BYTES, Refusal, endpoint, header_allowed, prepare, query};
use super::{rule, try_prepare};
use crate::deny::Deny;

fn refusal(provider: Provider, endpoint: &Endpoint, body: &Value) -> Refusal {
    let rule = rule(provider);
    match try_prepare(&rule, endpoint, body) {
        Ok(_) => panic!("accepted: {body}"),
        Err(refusal) => refusal,
    }
}

#[test]
fn fields_of_chats_that_reach_out_or_keep_things_are_refused() {
    let content = |part: Value| json!({"messages": [{"role": "user", "content": [part]}]});
    for (members, deny, detail) in [
        (
            json!({"messages": [], "plugins": []}),
            Deny::FieldNotAllowed,
            "plugins",
        ),
        (
            json!({"messages": [], "models": ["x"]}),
            Deny::FieldNotAllowed,
            "models",
        ),
        (
            json!({"messages": [], "best_of": 5}),
            Deny::FieldNotAllowed,
            "best_of",
        ),
        (
            json!({"messages": [], "Store": true}),
            Deny::FieldNotAllowed,
            "Store",
        ),
        (
            content(json!({"type": "image_url", "image_url": {"url": "https://evil.test/?q=secret"}})),
            Deny::FieldNotAllowed,
            "messages.0.content.0.image_url.url: the document must lie in the request itself",
        ),
        (
            content(json!({"type": "image_url", "image_url": {"url": "//evil/x"}})),
            Deny::FieldNotAllowed,
            "messages.0.content.0.image_url.url: the document must lie in the request itself",
        ),
        (
            content(json!({"type": "file", "file": {"file_id": "file-1"}})),
            Deny::FieldNotAllowed,
            "messages.0.content.0.file.file_id",
        ),
        (
            content(json!({"type": "file", "file": {"file_data": "https://evil.test/a.pdf"}})),
            Deny::FieldNotAllowed,
            "messages.0.content.0.file.file_data: the document must lie in the request itself",
        ),
        (
            content(json!({"type": "video_url", "video_url": {"url": "https://evil.test"}})),
            Deny::FieldNotAllowed,
            "messages.0.content.0.type: video_url",
        ),
        (
            content(json!({"text": "x"})),
            Deny::BodyMalformed,
            "messages.0.content.0.type: missing",
        ),
        (
            json!({"messages": [{"role": "assistant", "audio": {"id": "audio_1"}}]}),
            Deny::FieldNotAllowed,
            "messages.0.audio",
        ),
        (
            json!({"messages": [], "tools": [{"type": "web_search"}]}),
            Deny::ServerToolNotAllowed,
            "tools.0: web_search",
        ),
        (
            json!({"messages": [], "web_search_options": {}}),
            Deny::ServerToolNotAllowed,
            "web_search_options",
        ),
        (
            json!({"messages": "Hi"}),
            Deny::BodyMalformed,
            "messages: not of the right type",
        ),
        (
            json!({"messages": {"0": 1}}),
            Deny::BodyMalformed,
            "messages: not of the right type",
        ),
        (
            json!({"messages": [], "stream": "true"}),
            Deny::BodyMalformed,
            "stream: not true or false",
        ),
    ] {
        let mut body = members;
        body["model"] = "model-a".into();
        let refusal = refusal(Provider::OpenAI, &Endpoint::ChatCompletions, &body);
        assert_eq!((refusal.deny, refusal.detail.as_str()), (deny, detail), "{body}");
    }
}

#[test]
fn numbers_that_decide_the_cost_are_whole_and_bounded() {
    for (provider, endpoint, members) in [
        (Provider::OpenAI, Endpoint::ChatCompletions, json!({"n": 0})),
        (Provider::OpenAI, Endpoint::ChatCompletions, json!({"n": 129})),
        (Provider::OpenAI, Endpoint::ChatCompletions, json!({"n": -1})),
        (Provider::OpenAI, Endpoint::ChatCompletions, json!({"n": 1.5})),
        (Provider::OpenAI, Endpoint::ChatCompletions, json!({"n": "2"})),
        (
            Provider::OpenAI,
            Endpoint::ChatCompletions,
            json!({"max_tokens": -1}),
        ),
        (
            Provider::OpenAI,
            Endpoint::ChatCompletions,
            json!({"max_tokens": 1e3}),
        ),
        (
            Provider::OpenAI,
            Endpoint::ChatCompletions,
            json!({"max_tokens": u64::MAX}),
        ),
        (
            Provider::OpenAI,
            Endpoint::ChatCompletions,
            json!({"max_completion_tokens": true}),
        ),
        (
            Provider::OpenAI,
            Endpoint::ChatCompletions,
            json!({"max_tokens": 1, "max_completion_tokens": 10_000_001}),
        ),
        // No bound, to some servers.
        (
            Provider::OpenAICompatible,
            Endpoint::ChatCompletions,
            json!({"max_tokens": 0}),
        ),
        (
            Provider::OpenAICompatible,
            Endpoint::ChatCompletions,
            json!({"max_completion_tokens": 0}),
        ),
        (
            Provider::OpenAI,
            Endpoint::Responses,
            json!({"max_output_tokens": "9"}),
        ),
        (
            Provider::Anthropic,
            Endpoint::Messages,
            json!({"max_tokens": [1]}),
        ),
        (
            Provider::Anthropic,
            Endpoint::Messages,
            json!({"thinking": {"type": "enabled", "budget_tokens": -5}}),
        ),
    ] {
        let mut body = members;
        body["model"] = "model-a".into();
        assert_eq!(
            refusal(provider, &endpoint, &body).deny,
            Deny::BodyMalformed,
            "{body}"
        );
    }
}

#[test]
fn fields_of_responses_that_reach_out_or_keep_things_are_refused() {
    let content = |part: Value| json!({"input": [{"role": "user", "content": [part]}]});
    for (members, deny, detail) in [
        (json!({"background": true}), Deny::FieldNotAllowed, "background"),
        (
            json!({"previous_response_id": "resp_1"}),
            Deny::FieldNotAllowed,
            "previous_response_id",
        ),
        (
            json!({"conversation": "conv_1"}),
            Deny::FieldNotAllowed,
            "conversation",
        ),
        (
            json!({"conversation": {"id": "conv_1"}}),
            Deny::FieldNotAllowed,
            "conversation",
        ),
        (
            json!({"prompt": {"id": "pmpt_1"}}),
            Deny::FieldNotAllowed,
            "prompt",
        ),
        (
            json!({"context_management": [{"type": "compaction"}]}),
            Deny::FieldNotAllowed,
            "context_management",
        ),
        (
            json!({"reasoning": {"mode": "pro"}}),
            Deny::FieldNotAllowed,
            "reasoning.mode",
        ),
        (
            json!({"input": [{"type": "item_reference", "id": "msg_1"}]}),
            Deny::FieldNotAllowed,
            "input.0.id",
        ),
        (
            content(json!({"type": "input_image", "image_url": "https://evil.test/"})),
            Deny::FieldNotAllowed,
            "input.0.content.0.image_url: the document must lie in the request itself",
        ),
        (
            content(json!({"type": "input_image", "file_id": "file-1"})),
            Deny::FieldNotAllowed,
            "input.0.content.0.file_id",
        ),
        (
            content(json!({"type": "input_file", "file_url": "https://evil.test/"})),
            Deny::FieldNotAllowed,
            "input.0.content.0.file_url",
        ),
        (
            json!({"input": [{"type": "function_call_output", "call_id": "c", "output": [
                {"type": "input_file", "file_url": "https://evil.test/"}]}]}),
            Deny::FieldNotAllowed,
            "input.0.output.0.file_url",
        ),
        (
            json!({"input": [{"type": "computer_call_output", "call_id": "c", "output": {
                "type": "computer_screenshot", "image_url": "https://evil.test/"}}]}),
            Deny::FieldNotAllowed,
            "input.0.output.image_url: the document must lie in the request itself",
        ),
        (
            json!({"input": [{"type": "web_search_call", "id": "ws_1"}]}),
            Deny::ServerToolNotAllowed,
            "input.0: web_search_call",
        ),
        (
            json!({"tools": [{"type": "namespace", "name": "n", "tools": [{"type": "mcp", "server_url": "https://evil.test"}]}]}),
            Deny::ServerToolNotAllowed,
            "tools.0.tools.0: mcp",
        ),
    ] {
        let mut body = members;
        body["model"] = "model-a".into();
        let refusal = refusal(Provider::OpenAI, &Endpoint::Responses, &body);
        assert_eq!((refusal.deny, refusal.detail.as_str()), (deny, detail), "{body}");
    }
}

#[test]
fn tools_that_openai_runs_are_refused() {
    for tool in [
        "mcp",
        "web_search",
        "web_search_preview",
        "web_search_2025_08_26",
        "file_search",
        "code_interpreter",
        "image_generation",
        "computer",
        "computer_use_preview",
        "shell",
        "tool_search",
        "programmatic_tool_calling",
        "",
    ] {
        let body = json!({"model": "model-a", "input": "x", "tools": [{"type": tool}]});
        assert_eq!(
            refusal(Provider::OpenAI, &Endpoint::Responses, &body).deny,
            Deny::ServerToolNotAllowed,
            "{tool}"
        );
    }
}

#[test]
fn fields_of_messages_that_reach_out_or_keep_things_are_refused() {
    let block = |block: Value| json!({"messages": [{"role": "user", "content": [block]}]});
    for (members, deny, detail) in [
        (
            json!({"mcp_servers": [{"type": "url", "url": "https://evil.test", "name": "x"}]}),
            Deny::ServerToolNotAllowed,
            "mcp_servers",
        ),
        (
            json!({"container": "container_1"}),
            Deny::ServerToolNotAllowed,
            "container",
        ),
        (json!({"fallbacks": []}), Deny::FieldNotAllowed, "fallbacks"),
        (
            json!({"user_profile_id": "p"}),
            Deny::FieldNotAllowed,
            "user_profile_id",
        ),
        (
            json!({"context_management": {"edits": [{"type": "compact_20260112"}]}}),
            Deny::FieldNotAllowed,
            "context_management.edits.0.type: compact_20260112",
        ),
        (
            block(json!({"type": "image", "source": {"type": "url", "url": "https://evil.test/"}})),
            Deny::FieldNotAllowed,
            "messages.0.content.0.source.type: url",
        ),
        (
            block(json!({"type": "image", "source": {"type": "file", "file_id": "file_1"}})),
            Deny::FieldNotAllowed,
            "messages.0.content.0.source.type: file",
        ),
        (
            block(json!({"type": "document", "source": {"type": "url", "url": "https://evil.test/"}})),
            Deny::FieldNotAllowed,
            "messages.0.content.0.source.type: url",
        ),
        (
            block(
                json!({"type": "document", "source": {"type": "content", "content": [
                {"type": "image", "source": {"type": "url", "url": "https://evil.test/"}}]}}),
            ),
            Deny::FieldNotAllowed,
            "messages.0.content.0.source.content.0.source.type: url",
        ),
        (
            block(json!({"type": "tool_result", "tool_use_id": "t", "content": [
                {"type": "document", "source": {"type": "url", "url": "https://evil.test/"}}]})),
            Deny::FieldNotAllowed,
            "messages.0.content.0.content.0.source.type: url",
        ),
        (
            block(json!({"type": "container_upload", "file_id": "file_1"})),
            Deny::FieldNotAllowed,
            "messages.0.content.0.file_id",
        ),
        (
            block(json!({"type": "server_tool_use", "id": "s", "name": "web_search", "input": {}})),
            Deny::ServerToolNotAllowed,
            "messages.0.content.0: server_tool_use",
        ),
        (
            block(json!({"type": "compaction", "content": "x"})),
            Deny::ServerToolNotAllowed,
            "messages.0.content.0: compaction",
        ),
    ] {
        let mut body = members;
        body["model"] = "model-a".into();
        body["max_tokens"] = 5.into();
        let refusal = refusal(Provider::Anthropic, &Endpoint::Messages, &body);
        assert_eq!((refusal.deny, refusal.detail.as_str()), (deny, detail), "{body}");
    }
    for tool in [
        "web_search_20250305",
        "web_fetch_20250910",
        "code_execution_20250522",
        "tool_search_tool_bm25_20251119",
        "mcp_toolset",
        "advisor_20260301",
        "bash_code_execution_20250825",
        "bash_2025",
        "custom_20250101x",
    ] {
        let body = json!({"model": "model-a", "max_tokens": 5, "messages": [], "tools": [{"type": tool, "name": "x"}]});
        assert_eq!(
            refusal(Provider::Anthropic, &Endpoint::Messages, &body).deny,
            Deny::ServerToolNotAllowed,
            "{tool}"
        );
    }
}

#[test]
fn bodies_that_could_be_read_in_two_ways_are_refused() {
    let rule = rule(Provider::OpenAI);
    for body in [
        &br#"{"model":"model-a","model":"gpt-expensive","input":"x"}"#[..],
        br#"{"model":"model-a","\u006dodel":"gpt-expensive","input":"x"}"#,
        br#"{"model":"model-a","input":"x"}{"model":"gpt-expensive"}"#,
        br#"[{"model":"model-a"}]"#,
        b"",
        b"model=model-a&input=x",
        br#"{"input":"x"}"#,
        br#"{"model":null,"input":"x"}"#,
        br#"{"model":["model-a"],"input":"x"}"#,
        b"\xef\xbb\xbf{\"model\":\"model-a\"}",
    ] {
        let refusal = prepare(&[&rule], &Endpoint::Embeddings, body).unwrap_err();
        assert_eq!(
            refusal.deny,
            Deny::BodyMalformed,
            "{}",
            String::from_utf8_lossy(body)
        );
    }
}

#[test]
fn models_that_are_not_on_the_list_are_refused() {
    for model in ["", "model", "model-a ", "MODEL-A", "model-a\u{0}", "model-аlpha"] {
        let body = json!({"model": model, "input": "x"});
        let refusal = refusal(Provider::OpenAI, &Endpoint::Embeddings, &body);
        assert_eq!(refusal.deny, Deny::ModelNotAllowed, "{model}");
    }
    let no_rules = prepare(&[], &Endpoint::Embeddings, br#"{"model":"model-a","input":"x"}"#);
    assert_eq!(no_rules.unwrap_err().deny, Deny::ModelNotAllowed);
}

#[test]
fn refusals_are_short_and_printable_whatever_they_name() {
    let rule = rule(Provider::OpenAI);
    let name = "\u{1b}[31m\n\u{202e}".repeat(1_000);
    for body in [
        json!({"model": "model-a", name.clone(): 1}),
        json!({"model": name.clone()}),
        json!({"model": "model-a", "logit_bias": {name.clone(): []}}),
        json!({"model": "model-a", "tools": [{"type": name}]}),
    ] {
        let refusal = try_prepare(&rule, &Endpoint::ChatCompletions, &body).unwrap_err();
        assert!(!refusal.detail.is_empty() && refusal.detail.len() <= MAX_DETAIL_BYTES);
        assert!(
            refusal.detail.bytes().all(|byte| (0x20..0x7f).contains(&byte)),
            "{refusal:?}"
        );
    }
}

#[test]
fn only_metered_endpoints_are_answered() {
    let model = |name: &str| Ok(Endpoint::Model(name.to_owned()));
    let unmetered = || Err(Deny::EndpointNotMetered);
    for (provider, method, path, expected) in [
        (
            Provider::OpenAI,
            "POST",
            "/v1/chat/completions",
            Ok(Endpoint::ChatCompletions),
        ),
        (Provider::OpenAI, "POST", "/v1/responses", Ok(Endpoint::Responses)),
        (
            Provider::OpenAI,
            "POST",
            "/v1/embeddings",
            Ok(Endpoint::Embeddings),
        ),
        (Provider::OpenAI, "GET", "/v1/models", Ok(Endpoint::Models)),
        (Provider::OpenAI, "GET", "/v1/models/gpt-4o", model("gpt-4o")),
        (Provider::OpenAI, "GET", "/v1/chat/completions", unmetered()),
        (Provider::OpenAI, "POST", "/chat/completions", unmetered()),
        (Provider::OpenAI, "POST", "/v1/chat/completions/", unmetered()),
        (Provider::OpenAI, "POST", "/v1//chat/completions", unmetered()),
        (Provider::OpenAI, "post", "/v1/chat/completions", unmetered()),
        (Provider::OpenAI, "GET", "/v1/responses/resp_1", unmetered()),
        (Provider::OpenAI, "DELETE", "/v1/models/gpt-4o", unmetered()),
        (Provider::OpenAI, "POST", "/v1/responses/compact", unmetered()),
        (
            Provider::OpenAI,
            "POST",
            "/v1/responses/input_tokens",
            unmetered(),
        ),
        (Provider::OpenAI, "POST", "/v1/files", unmetered()),
        (Provider::OpenAI, "POST", "/v1/batches", unmetered()),
        (Provider::OpenAI, "GET", "/v1/realtime", unmetered()),
        (Provider::OpenAI, "POST", "/v1/messages", unmetered()),
        (Provider::OpenAI, "POST", "/v1/images/generations", unmetered()),
        (Provider::OpenAI, "POST", "/v1/audio/speech", unmetered()),
        (
            Provider::Anthropic,
            "POST",
            "/v1/messages",
            Ok(Endpoint::Messages),
        ),
        (
            Provider::Anthropic,
            "POST",
            "/v1/messages/count_tokens",
            Ok(Endpoint::CountTokens),
        ),
        (Provider::Anthropic, "GET", "/v1/models", Ok(Endpoint::Models)),
        (Provider::Anthropic, "POST", "/v1/messages/batches", unmetered()),
        (Provider::Anthropic, "POST", "/v1/complete", unmetered()),
        (Provider::Anthropic, "POST", "/v1/chat/completions", unmetered()),
        (Provider::Anthropic, "POST", "/v1/files", unmetered()),
        (
            Provider::OpenAICompatible,
            "POST",
            "/v1/chat/completions",
            Ok(Endpoint::ChatCompletions),
        ),
        (
            Provider::OpenAICompatible,
            "POST",
            "/api/v1/chat/completions",
            Ok(Endpoint::ChatCompletions),
        ),
        (
            Provider::OpenAICompatible,
            "POST",
            "/openai/v1/embeddings",
            Ok(Endpoint::Embeddings),
        ),
        (
            Provider::OpenAICompatible,
            "POST",
            "/chat/completions",
            Ok(Endpoint::ChatCompletions),
        ),
        (
            Provider::OpenAICompatible,
            "GET",
            "/v1/models/org/model:7b",
            model("org/model:7b"),
        ),
        (
            Provider::OpenAICompatible,
            "POST",
            "/openai/deployments/x/chat/completions",
            unmetered(),
        ),
        (Provider::OpenAICompatible, "POST", "/v1/responses", unmetered()),
        (Provider::OpenAICompatible, "GET", "/v1/models/", unmetered()),
        (Provider::OpenAICompatible, "GET", "/v1/models/a b", unmetered()),
        (Provider::OpenAICompatible, "POST", "/api/chat", unmetered()),
    ] {
        assert_eq!(endpoint(provider, method, path), expected, "{method} {path}");
    }
}

#[test]
fn of_queries_only_what_is_known_passes() {
    let known =
        |provider, endpoint: &Endpoint, text| query(provider, endpoint, text).map_err(|refusal| refusal.deny);
    let refused = Err(Deny::FieldNotAllowed);
    for (provider, endpoint, text, expected) in [
        (Provider::OpenAI, Endpoint::Responses, None, Ok(None)),
        (Provider::OpenAI, Endpoint::Responses, Some(""), Ok(None)),
        (Provider::OpenAI, Endpoint::Responses, Some("beta=true"), refused),
        (
            Provider::OpenAI,
            Endpoint::ChatCompletions,
            Some("api-version=1"),
            refused,
        ),
        (
            Provider::Anthropic,
            Endpoint::Messages,
            Some("beta=true"),
            Ok(Some("beta=true")),
        ),
        (
            Provider::Anthropic,
            Endpoint::CountTokens,
            Some("beta=true"),
            Ok(Some("beta=true")),
        ),
        (
            Provider::Anthropic,
            Endpoint::Messages,
            Some("beta=false"),
            refused,
        ),
        (
            Provider::Anthropic,
            Endpoint::Messages,
            Some("beta=true&x=1"),
            refused,
        ),
        (Provider::Anthropic, Endpoint::Messages, Some("limit=3"), refused),
        (
            Provider::Anthropic,
            Endpoint::Models,
            Some("limit=1000&after_id=a"),
            Ok(None),
        ),
        (
            Provider::Anthropic,
            Endpoint::Models,
            Some("limit=1000&key=a"),
            refused,
        ),
    ] {
        assert_eq!(known(provider, &endpoint, text), expected, "{text:?}");
    }
}

#[test]
fn of_headers_only_what_is_known_passes() {
    for (provider, name, expected) in [
        (Provider::OpenAI, "Content-Type", true),
        (Provider::OpenAI, "x-stainless-retry-count", true),
        (Provider::OpenAI, "OpenAI-Organization", false),
        (Provider::OpenAI, "OpenAI-Project", false),
        (Provider::OpenAI, "anthropic-beta", false),
        (Provider::OpenAI, "Authorization", false),
        (Provider::OpenAI, "Cookie", false),
        (Provider::Anthropic, "Anthropic-Beta", true),
        (Provider::Anthropic, "x-api-key", false),
        (Provider::OpenAICompatible, "X-Title", false),
    ] {
        assert_eq!(header_allowed(provider, name), expected, "{name}");
    }
}

/// Values as an attacker may put them anywhere.
fn any_value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Into::into),
        any::<i32>().prop_map(Into::into),
        prop::sample::select(vec![
            "https://evil.test/",
            "data:,x",
            "text",
            "function",
            "url",
            "auto",
            "file-1"
        ])
        .prop_map(Into::into),
    ];
    leaf.prop_recursive(4, 24, 5, |inner| {
        let name = prop::sample::select(vec![
            "type",
            "role",
            "content",
            "text",
            "image_url",
            "url",
            "source",
            "tools",
            "input",
            "data",
            "file_id",
            "id",
            "messages",
            "max_tokens",
            "n",
            "stream",
            "stream_options",
            "store",
            "thinking",
            "output",
        ]);
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Into::into),
            prop::collection::hash_map(name.prop_map(str::to_owned), inner, 0..5)
                .prop_map(|members| Value::Object(members.into_iter().collect())),
        ]
    })
}

fn any_endpoint() -> impl Strategy<Value = (Provider, Endpoint)> {
    prop::sample::select(vec![
        (Provider::OpenAI, Endpoint::ChatCompletions),
        (Provider::OpenAICompatible, Endpoint::ChatCompletions),
        (Provider::OpenAI, Endpoint::Responses),
        (Provider::OpenAI, Endpoint::Embeddings),
        (Provider::Anthropic, Endpoint::Messages),
        (Provider::Anthropic, Endpoint::CountTokens),
    ])
}

/// Whether a URL lies where a provider could fetch it: under a name that is not free text.
fn fetches(value: &Value) -> bool {
    match value {
        Value::Object(members) => members.iter().any(|(name, value)| {
            (matches!(name.as_str(), "url" | "image_url" | "file_id" | "file_url")
                && value.as_str().is_some_and(|text| !text.starts_with("data:")))
                || fetches(value)
        }),
        Value::Array(list) => list.iter().any(fetches),
        _ => false,
    }
}

proptest! {
    #[test]
    fn whatever_is_sent_is_refused_or_keeps_nothing_and_fetches_nothing(
        (provider, endpoint) in any_endpoint(),
        mut members in prop::collection::hash_map(
            prop::sample::select(vec![
                "messages", "input", "n", "max_tokens", "max_completion_tokens", "stream", "stream_options", "store",
                "tools", "thinking", "system", "background", "previous_response_id", "metadata",
            ]),
            any_value(),
            0..4,
        ),
    ) {
        members.insert("model", "model-a".into());
        let body = serde_json::to_value(members).unwrap();
        let rule = rule(provider);
        if let Ok(prepared) = try_prepare(&rule, &endpoint, &body) {
            let sent: Value = serde_json::from_slice(&prepared.body_for("model-a")).unwrap();
            prop_assert!(prepared.reservation >= 0);
            if provider == Provider::OpenAI && endpoint != Endpoint::Embeddings {
                prop_assert_eq!(&sent["store"], &Value::Bool(false));
            }
            if endpoint == Endpoint::ChatCompletions {
                prop_assert_eq!(sent["stream_options"]["include_usage"].as_bool(), prepared.stream.then_some(true));
            }
            if endpoint != Endpoint::Embeddings && endpoint != Endpoint::CountTokens {
                prop_assert!(
                    ["max_tokens", "max_completion_tokens", "max_output_tokens"].iter().any(|name| sent[name].is_i64()),
                    "{}", sent
                );
            }
            if provider == Provider::OpenAICompatible {
                prop_assert!(sent["max_tokens"].as_i64().is_some_and(|most| most >= 1), "{}", sent);
            }
            prop_assert!(sent.get("background").is_none_or(|value| !value.as_bool().unwrap_or(false)));
            // Schemas and the arguments of tools are free text.
            let mut checked = sent.clone();
            checked.as_object_mut().unwrap().remove("tools");
            if endpoint != Endpoint::Messages && endpoint != Endpoint::CountTokens && endpoint != Endpoint::Responses {
                prop_assert!(!fetches(&checked), "{}", sent);
            }
        }
    }

    #[test]
    fn any_bytes_are_refused_or_prepared(
        (provider, endpoint) in any_endpoint(),
        bytes in prop::collection::vec(any::<u8>(), 0..300),
    ) {
        let rule = rule(provider);
        let _ = prepare(&[&rule], &endpoint, &bytes);
    }
}
