//! Requests that the official SDKs send must pass, changed only where they must be.

use agentsandbox_api::policy::Provider;
use serde_json::{Value, json};

use super::super::{Endpoint, MAX_REQUEST_BYTES, prepare};
use super::{accepted, rule, try_prepare};
use crate::deny::Deny;

const PNG: &str = "data:image/png;base64,iVBORw0KGgo=";

/// Each request with what is sent instead.
fn check(provider: Provider, endpoint: &Endpoint, cases: &[(Value, Value)]) {
    let rule = rule(provider);
    for (body, expected) in cases {
        let (_, sent) = accepted(&rule, endpoint, body);
        assert_eq!(sent, *expected, "{body}");
    }
}

fn with(mut body: Value, members: &Value) -> Value {
    for (name, value) in members.as_object().unwrap() {
        body[name] = value.clone();
    }
    body
}

#[test]
fn ordinary_chats_pass_with_store_off_and_a_limit() {
    let plain = json!({"messages": [{"role": "user", "content": "Hi"}], "model": "model-a"});
    let streamed = with(plain.clone(), &json!({"stream": true}));
    check(
        Provider::OpenAI,
        &Endpoint::ChatCompletions,
        &[
            (
                plain.clone(),
                with(
                    plain.clone(),
                    &json!({"store": false, "max_completion_tokens": 1000}),
                ),
            ),
            (
                with(
                    plain.clone(),
                    &json!({"store": true, "metadata": {"a": "b"}, "max_tokens": 7}),
                ),
                with(plain.clone(), &json!({"store": false, "max_tokens": 7})),
            ),
            (
                with(
                    plain.clone(),
                    &json!({"max_tokens": null, "stream_options": null}),
                ),
                with(
                    plain.clone(),
                    &json!({"store": false, "max_completion_tokens": 1000}),
                ),
            ),
            (
                streamed.clone(),
                with(
                    streamed.clone(),
                    &json!({"store": false, "max_completion_tokens": 1000, "stream_options": {"include_usage": true}}),
                ),
            ),
            (
                with(
                    streamed.clone(),
                    &json!({"max_completion_tokens": 5, "stream_options": {"include_usage": false, "include_obfuscation": false}}),
                ),
                with(
                    streamed.clone(),
                    &json!({
                        "store": false, "max_completion_tokens": 5,
                        "stream_options": {"include_usage": true, "include_obfuscation": false}
                    }),
                ),
            ),
        ],
    );
    // Other servers may not know `store`, nor the newer name of the limit: what they don't know bounds nothing.
    check(
        Provider::OpenAICompatible,
        &Endpoint::ChatCompletions,
        &[
            (
                with(plain.clone(), &json!({"store": true})),
                with(plain.clone(), &json!({"max_tokens": 1000})),
            ),
            (
                with(plain.clone(), &json!({"max_completion_tokens": 3})),
                with(
                    plain.clone(),
                    &json!({"max_completion_tokens": 3, "max_tokens": 3}),
                ),
            ),
            (
                with(
                    plain.clone(),
                    &json!({"max_completion_tokens": 3, "max_tokens": null}),
                ),
                with(
                    plain.clone(),
                    &json!({"max_completion_tokens": 3, "max_tokens": 3}),
                ),
            ),
            (
                with(
                    plain.clone(),
                    &json!({"max_completion_tokens": null, "max_tokens": 4}),
                ),
                with(plain.clone(), &json!({"max_tokens": 4})),
            ),
            (
                with(
                    plain.clone(),
                    &json!({"max_completion_tokens": 0, "max_tokens": 9}),
                ),
                with(
                    plain.clone(),
                    &json!({"max_completion_tokens": 9, "max_tokens": 9}),
                ),
            ),
        ],
    );
}

#[test]
fn all_that_the_sdks_send_for_chats_passes() {
    let rule = rule(Provider::OpenAI);
    let body: Value = serde_json::from_str(include_str!("bodies/chat.json")).unwrap();
    let (prepared, sent) = accepted(&rule, &Endpoint::ChatCompletions, &body);
    assert_eq!(sent, with(body, &json!({"store": false})));
    assert!(prepared.stream);
    assert!(prepared.filter().is_none());
}

#[test]
fn what_other_servers_take_beside_that_passes_there_only() {
    let body = json!({
        "model": "model-a", "messages": [
            {"role": "assistant", "content": "A", "reasoning_content": "hm", "tool_calls": [
                {"id": "1", "type": "function", "index": 0, "function": {"name": "f", "arguments": "{}"},
                 "extra_content": {"google": {"thought_signature": "x"}}}]}
        ],
        "max_tokens": 5, "top_k": 3, "min_p": 0.1, "repetition_penalty": 1.1, "chat_template_kwargs": {"enable_thinking": false},
        "guided_json": {"type": "object"}, "thinking": {"type": "disabled"}
    });
    let compatible = rule(Provider::OpenAICompatible);
    assert_eq!(accepted(&compatible, &Endpoint::ChatCompletions, &body).1, body);
    let openai = rule(Provider::OpenAI);
    let refusal = try_prepare(&openai, &Endpoint::ChatCompletions, &body).unwrap_err();
    assert_eq!(refusal.deny, Deny::FieldNotAllowed);
}

#[test]
fn all_that_the_sdks_send_for_responses_passes_with_store_off() {
    let plain = json!({"model": "model-a", "input": "Hi"});
    check(
        Provider::OpenAI,
        &Endpoint::Responses,
        &[
            (
                plain.clone(),
                with(plain.clone(), &json!({"store": false, "max_output_tokens": 1000})),
            ),
            (
                with(
                    plain.clone(),
                    &json!({"store": true, "background": false, "previous_response_id": null, "conversation": null}),
                ),
                with(
                    plain,
                    &json!({
                        "store": false, "background": false, "previous_response_id": null, "conversation": null,
                        "max_output_tokens": 1000
                    }),
                ),
            ),
        ],
    );
    let rule = rule(Provider::OpenAI);
    let body: Value = serde_json::from_str(include_str!("bodies/response.json")).unwrap();
    let (prepared, sent) = accepted(&rule, &Endpoint::Responses, &body);
    assert!(prepared.stream && prepared.filter().is_none());
    assert_eq!(sent["store"], json!(false));
    let items = sent["input"].as_array().unwrap();
    // The items are as `response.output` gives them; nothing is kept with the account that their ids could name, and
    // thoughts that are not there in full are gone.
    assert_eq!(items.len(), 11);
    assert!(items.iter().all(|item| item.get("id").is_none()), "{sent}");
    assert_eq!(items[2]["encrypted_content"], "gAAA");
    let mut rest = sent.clone();
    rest["input"] = body["input"].clone();
    rest.as_object_mut().unwrap().remove("store");
    assert_eq!(rest, body);
}

#[test]
fn all_that_the_sdks_send_for_messages_passes() {
    let body: Value = serde_json::from_str(include_str!("bodies/message.json")).unwrap();
    let rule = rule(Provider::Anthropic);
    let (prepared, sent) = accepted(&rule, &Endpoint::Messages, &body);
    assert_eq!(sent, body);
    assert!(prepared.stream);
    assert!(prepared.filter().is_none());

    let mut count = json!({"model": "model-a"});
    for name in ["messages", "system", "tools", "tool_choice", "thinking"] {
        count[name] = body[name].clone();
    }
    let (prepared, sent) = accepted(&rule, &Endpoint::CountTokens, &count);
    assert_eq!(sent, count);
    assert_eq!(prepared.reservation, 0);
    let body = with(count, &json!({"max_tokens": 5}));
    assert!(try_prepare(&rule, &Endpoint::CountTokens, &body).is_err());
}

#[test]
fn embeddings_pass_as_they_are() {
    let base = json!({"model": "model-a", "input": "text"});
    let cases: Vec<(Value, Value)> = [
        base.clone(),
        with(
            base.clone(),
            &json!({"input": ["a", "b"], "encoding_format": "base64", "dimensions": 256, "user": "u"}),
        ),
        with(base.clone(), &json!({"input": [1, 2, 3]})),
        with(base, &json!({"input": [[1, 2], [3]]})),
    ]
    .into_iter()
    .map(|body| (body.clone(), body))
    .collect();
    check(Provider::OpenAI, &Endpoint::Embeddings, &cases);
    check(Provider::OpenAICompatible, &Endpoint::Embeddings, &cases);
}

#[test]
fn the_reservation_covers_what_a_request_can_cost() {
    let chat = json!({"model": "model-a", "messages": [{"role": "user", "content": "Hi"}]});
    let message = with(chat.clone(), &json!({"max_tokens": 100}));
    let response = json!({"model": "model-a", "input": "Hi"});
    let image = json!([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": PNG}}]}]);
    let openai = Provider::OpenAI;
    let chats = Endpoint::ChatCompletions;
    for (provider, endpoint, body, output, extra) in [
        (openai, &chats, chat.clone(), 1_000, 0),
        (
            openai,
            &chats,
            with(chat.clone(), &json!({"max_tokens": 7})),
            7,
            0,
        ),
        (
            openai,
            &chats,
            with(
                chat.clone(),
                &json!({"max_tokens": 7, "max_completion_tokens": 9}),
            ),
            9,
            0,
        ),
        (
            openai,
            &chats,
            with(chat.clone(), &json!({"max_tokens": 7, "n": 3})),
            21,
            0,
        ),
        (openai, &chats, with(chat.clone(), &json!({"n": 128})), 128_000, 0),
        (
            openai,
            &chats,
            with(chat.clone(), &json!({"messages": image})),
            1_000,
            50_000 - 34,
        ),
        (
            openai,
            &Endpoint::Responses,
            with(response.clone(), &json!({"max_output_tokens": 20})),
            20,
            0,
        ),
        (openai, &Endpoint::Responses, response, 1_000, 0),
        (
            openai,
            &Endpoint::Embeddings,
            json!({"model": "model-a", "input": "text"}),
            0,
            0,
        ),
        (Provider::Anthropic, &Endpoint::Messages, message.clone(), 100, 0),
        (
            Provider::Anthropic,
            &Endpoint::Messages,
            with(
                message.clone(),
                &json!({"thinking": {"type": "enabled", "budget_tokens": 5000}}),
            ),
            5_000,
            0,
        ),
        (
            Provider::Anthropic,
            &Endpoint::Messages,
            with(
                message,
                &json!({"tools": [{"name": "f", "input_schema": {}}, {"type": "bash_20250124", "name": "bash"}]}),
            ),
            100,
            2 * 1_024,
        ),
        (
            Provider::OpenAICompatible,
            &chats,
            with(chat, &json!({"max_tokens": 10, "thinking_budget": 30})),
            40,
            0,
        ),
    ] {
        let rule = rule(provider);
        let (prepared, _) = accepted(&rule, endpoint, &body);
        // The bytes of what is sent, but for the name `"model":""` and the braces.
        let bytes = i64::try_from(prepared.body_for("model-a").len()).unwrap() - 12;
        assert_eq!(prepared.reservation - output - extra, bytes, "{body}");
    }
}

#[test]
fn the_model_of_the_target_is_put_in_its_place() {
    let rule = rule(Provider::OpenAI);
    let (prepared, _) = accepted(
        &rule,
        &Endpoint::Embeddings,
        &json!({"input": "x", "model": "model-b"}),
    );
    assert_eq!(prepared.model, "model-b");
    assert_eq!(
        prepared.body_for("other/\"model\""),
        br#"{"model":"other/\"model\"","input":"x"}"#
    );
    let empty = prepare(&[&rule], &Endpoint::Embeddings, br#"{"model":"model-a"}"#).unwrap();
    assert_eq!(empty.body_for("m"), br#"{"model":"m"}"#);
}

#[test]
fn the_first_rule_that_allows_the_model_counts() {
    let mut first = rule(Provider::OpenAI);
    first.allow = vec!["model-x".into()];
    let mut second = rule(Provider::OpenAI);
    second.index = 1;
    let body = br#"{"model":"model-a","input":"x"}"#;
    let prepared = prepare(&[&first, &second], &Endpoint::Embeddings, body).unwrap();
    assert_eq!(prepared.rule.index, 1);
}

#[test]
fn a_body_as_large_as_may_be_passes() {
    let rule = rule(Provider::OpenAI);
    let start = br#"{"model":"model-a","input":""#;
    let mut body = start.to_vec();
    body.resize(MAX_REQUEST_BYTES - 2, b'x');
    body.extend_from_slice(b"\"}");
    assert!(prepare(&[&rule], &Endpoint::Embeddings, &body).is_ok());
    body.insert(start.len(), b'x');
    assert_eq!(
        prepare(&[&rule], &Endpoint::Embeddings, &body).unwrap_err().deny,
        Deny::RequestTooLarge
    );
}

#[test]
fn tools_that_the_rule_names_pass_with_their_traces() {
    let mut openai = rule(Provider::OpenAI);
    openai.server_tools = vec!["web_search".into(), "mcp".into()];
    let body = json!({
        "model": "model-a", "max_output_tokens": 10,
        "tools": [{"type": "web_search", "filters": {"allowed_domains": ["x.test"]}}, {"type": "mcp", "server_url": "https://x.test"}],
        "input": [{"id": "ws_1", "type": "web_search_call", "status": "completed", "action": {"type": "search", "query": "q"}},
                  {"id": "mcp_1", "type": "mcp_call", "name": "f", "arguments": "{}", "server_label": "l"}]
    });
    let (prepared, sent) = accepted(&openai, &Endpoint::Responses, &body);
    assert_eq!(sent["input"], body["input"]);
    // What they find becomes input.
    assert!(prepared.reservation > 50_000);
    let chat =
        json!({"model": "model-a", "messages": [], "web_search_options": {"search_context_size": "low"}});
    accepted(&openai, &Endpoint::ChatCompletions, &chat);

    let mut anthropic = rule(Provider::Anthropic);
    anthropic.server_tools = vec![
        "web_search".into(),
        "code_execution_20250825".into(),
        "mcp_toolset".into(),
        "container".into(),
    ];
    let body = json!({
        "model": "model-a", "max_tokens": 10, "container": "c", "mcp_servers": [{"type": "url", "url": "https://x.test"}],
        "tools": [{"type": "web_search_20250305", "name": "web_search", "max_uses": 3},
                  {"type": "code_execution_20250825", "name": "code_execution"}],
        "messages": [{"role": "assistant", "content": [
            {"type": "server_tool_use", "id": "srvtoolu_1", "name": "web_search", "input": {"query": "q"}},
            {"type": "web_search_tool_result", "tool_use_id": "srvtoolu_1", "content": []},
            {"type": "bash_code_execution_tool_result", "tool_use_id": "srvtoolu_2", "content": {}}
        ]}]
    });
    assert_eq!(accepted(&anthropic, &Endpoint::Messages, &body).1, body);
    // Another date of a tool that is named with one is another tool.
    let body = json!({"model": "model-a", "messages": [], "tools": [{"type": "code_execution_20260120", "name": "c"}]});
    let refusal = try_prepare(&anthropic, &Endpoint::Messages, &body).unwrap_err();
    assert_eq!(refusal.deny, Deny::ServerToolNotAllowed);
}
