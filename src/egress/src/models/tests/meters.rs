//! What answers cost. The bodies are as the providers' references show them.

use agentsandbox_api::policy::Provider;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::super::{Charge, Endpoint, Meter, Prepared};
use super::{rule, try_prepare};
use crate::rules::ModelRule;

const JSON: Option<&str> = Some("application/json");
const EVENTS: Option<&str> = Some("text/event-stream; charset=utf-8");

/// A request of each kind; each may write 500 tokens.
fn prepared(rule: &ModelRule, kind: Kind) -> Prepared<'_> {
    let (endpoint, body) = match kind {
        Kind::Chat => (
            Endpoint::ChatCompletions,
            json!({"model": "model-a", "messages": [{"role": "user", "content": "Say hello."}], "max_tokens": 500}),
        ),
        Kind::Responses => (
            Endpoint::Responses,
            json!({"model": "model-a", "input": "Say hello.", "max_output_tokens": 500}),
        ),
        Kind::Embeddings => (
            Endpoint::Embeddings,
            json!({"model": "model-a", "input": "hello"}),
        ),
        Kind::Messages => (
            Endpoint::Messages,
            json!({"model": "model-a", "messages": [{"role": "user", "content": "Say hello."}], "max_tokens": 500}),
        ),
        Kind::Count => (
            Endpoint::CountTokens,
            json!({"model": "model-a", "messages": [{"role": "user", "content": "Say hello."}]}),
        ),
    };
    try_prepare(rule, &endpoint, &body).unwrap()
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    Chat,
    Responses,
    Embeddings,
    Messages,
    Count,
}

impl Kind {
    fn provider(self) -> Provider {
        match self {
            Self::Messages | Self::Count => Provider::Anthropic,
            _ => Provider::OpenAI,
        }
    }
}

/// An answer: what it says it is, its body, its status, and whether it ended as it should.
#[derive(Clone, Debug)]
struct Answer {
    content_type: Option<&'static str>,
    body: String,
    status: u16,
    complete: bool,
}

fn document(body: &Value) -> Answer {
    Answer {
        content_type: JSON,
        body: body.to_string(),
        status: 200,
        complete: true,
    }
}

fn stream(body: impl Into<String>) -> Answer {
    Answer {
        content_type: EVENTS,
        body: body.into(),
        status: 200,
        complete: true,
    }
}

/// `data:` lines, as OpenAI sends them.
fn chunks(chunks: &[Value]) -> String {
    let chunk = |stream: String, chunk| stream + &format!("data: {chunk}\n\n");
    chunks.iter().fold(String::new(), chunk)
}

/// `event:` and `data:` lines, as Anthropic and OpenAI's responses send them.
fn events(events: &[Value]) -> String {
    events.iter().fold(String::new(), |stream, event| {
        stream + &format!("event: {}\ndata: {event}\n\n", event["type"].as_str().unwrap())
    })
}

fn charge_in_pieces(kind: Kind, answer: &Answer, pieces: &[usize]) -> Charge {
    let rule = rule(kind.provider());
    let mut meter = Meter::new(&prepared(&rule, kind), answer.content_type);
    let mut rest = answer.body.as_bytes();
    for piece in pieces {
        let (piece, after) = rest.split_at((*piece).min(rest.len()));
        meter.feed(piece);
        rest = after;
    }
    meter.feed(rest);
    meter.finish(answer.status, answer.complete)
}

fn charge(kind: Kind, answer: &Answer) -> Charge {
    charge_in_pieces(kind, answer, &[])
}

/// What was reserved, input and output apart.
fn bounds(kind: Kind) -> Charge {
    let rule = rule(kind.provider());
    prepared(&rule, kind).unanswered()
}

fn exact(input: i64, output: i64) -> Charge {
    Charge {
        input,
        output,
        estimated: false,
    }
}

fn chat_usage(usage: &Value) -> Answer {
    document(&json!({
        "id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "model-a",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "Hello!", "refusal": null, "annotations": []},
                     "logprobs": null, "finish_reason": "stop"}],
        "usage": usage, "service_tier": "default", "system_fingerprint": "fp"
    }))
}

fn chat_chunk(delta: &Value, finish: &Value) -> Value {
    json!({"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "model-a", "usage": null,
           "choices": [{"index": 0, "delta": delta, "logprobs": null, "finish_reason": finish}], "obfuscation": "x".repeat(64)})
}

fn chat_stream() -> String {
    let usage = json!({"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "model-a", "choices": [],
        "usage": {"prompt_tokens": 19, "completion_tokens": 10, "total_tokens": 29,
                  "prompt_tokens_details": {"cached_tokens": 7}, "completion_tokens_details": {"reasoning_tokens": 4}}});
    chunks(&[
        chat_chunk(&json!({"role": "assistant", "content": ""}), &Value::Null),
        chat_chunk(&json!({"content": "Hello"}), &Value::Null),
        chat_chunk(&json!({"content": "!"}), &Value::Null),
        chat_chunk(&json!({}), &json!("stop")),
        usage,
    ]) + "data: [DONE]\n\n"
}

fn response(status: &str, usage: &Value) -> Value {
    json!({"id": "resp_1", "object": "response", "created_at": 1, "status": status, "error": null, "model": "model-a",
        "output": [{"id": "msg_1", "type": "message", "status": "completed", "role": "assistant",
                    "content": [{"type": "output_text", "text": "Hello!", "annotations": []}]}],
        "parallel_tool_calls": true, "store": false, "text": {"format": {"type": "text"}}, "usage": usage, "metadata": {}})
}

fn response_usage() -> Value {
    json!({"input_tokens": 36, "input_tokens_details": {"cached_tokens": 30}, "output_tokens": 87,
           "output_tokens_details": {"reasoning_tokens": 64}, "total_tokens": 123})
}

fn response_stream(last: &str, usage: &Value) -> String {
    events(&[
        json!({"type": "response.created", "sequence_number": 0, "response": response("in_progress", &Value::Null)}),
        json!({"type": "response.output_text.delta", "item_id": "msg_1", "delta": "Hel", "logprobs": [], "obfuscation": "abc"}),
        json!({"type": "response.output_text.delta", "item_id": "msg_1", "delta": "lo!", "logprobs": []}),
        json!({"type": "response.output_text.done", "item_id": "msg_1", "text": "Hello!", "logprobs": []}),
        json!({"type": last, "sequence_number": 9, "response": response("completed", usage)}),
    ])
}

fn message_start(usage: &Value) -> Value {
    json!({"type": "message_start", "message": {"id": "msg_1", "type": "message", "role": "assistant", "content": [],
           "model": "model-a", "stop_reason": null, "stop_sequence": null, "usage": usage}})
}

fn message_events(delta: &Value) -> Vec<Value> {
    vec![
        message_start(
            &json!({"input_tokens": 25, "cache_creation_input_tokens": 100, "cache_read_input_tokens": 50, "output_tokens": 1}),
        ),
        json!({"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}),
        json!({"type": "ping"}),
        json!({"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "Hello"}}),
        json!({"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "!"}}),
        json!({"type": "content_block_stop", "index": 0}),
        delta.clone(),
        json!({"type": "message_stop"}),
    ]
}

fn message_delta() -> Value {
    json!({"type": "message_delta", "delta": {"stop_reason": "end_turn", "stop_sequence": null}, "usage": {"output_tokens": 15}})
}

fn message() -> Value {
    json!({"id": "msg_1", "type": "message", "role": "assistant", "model": "model-a",
        "content": [{"type": "thinking", "thinking": "hm", "signature": "s".repeat(4_000)}, {"type": "text", "text": "Hi!"},
                    {"type": "tool_use", "id": "toolu_1", "name": "f", "input": {"x": "y"}}],
        "stop_reason": "end_turn", "stop_sequence": null,
        "usage": {"input_tokens": 20, "cache_creation_input_tokens": 3, "cache_read_input_tokens": 4, "output_tokens": 503,
                  "service_tier": "standard", "cache_creation": {"ephemeral_5m_input_tokens": 3, "ephemeral_1h_input_tokens": 0}}})
}

fn embeddings() -> Value {
    json!({"object": "list", "data": [{"object": "embedding", "index": 0, "embedding": vec![0.0023; 3_000]}],
           "model": "model-a", "usage": {"prompt_tokens": 8, "total_tokens": 8}})
}

/// Answers that say what they cost, and what that is.
fn honest() -> Vec<(Kind, Answer, Charge)> {
    vec![
        (
            Kind::Chat,
            chat_usage(&json!({"prompt_tokens": 19, "completion_tokens": 10, "total_tokens": 29})),
            exact(19, 10),
        ),
        // Thoughts that are in the total only.
        (
            Kind::Chat,
            chat_usage(&json!({"prompt_tokens": 19, "completion_tokens": 10, "total_tokens": 140})),
            exact(19, 121),
        ),
        // No total.
        (
            Kind::Chat,
            chat_usage(&json!({"completion_tokens": 10, "prompt_tokens": 19})),
            exact(19, 10),
        ),
        // More than was reserved: believed.
        (
            Kind::Chat,
            chat_usage(&json!({"prompt_tokens": 900, "completion_tokens": 700, "total_tokens": 1600})),
            exact(900, 700),
        ),
        (Kind::Chat, stream(chat_stream()), exact(19, 10)),
        (
            Kind::Chat,
            stream(chat_stream().replace('\n', "\r\n")),
            exact(19, 10),
        ),
        (
            Kind::Chat,
            stream(chat_stream().replace('\n', "\r")),
            exact(19, 10),
        ),
        (
            Kind::Chat,
            stream(chat_stream().replace("data: ", "data:")),
            exact(19, 10),
        ),
        (
            Kind::Chat,
            stream(format!(
                ": keep-alive\n\n{}",
                chat_stream().replace("data: [DONE]\n\n", "")
            )),
            exact(19, 10),
        ),
        // The end was said before the connection broke.
        (
            Kind::Chat,
            Answer {
                complete: false,
                ..stream(chat_stream())
            },
            exact(19, 10),
        ),
        (
            Kind::Responses,
            document(&response("completed", &response_usage())),
            exact(36, 87),
        ),
        (
            Kind::Responses,
            stream(response_stream("response.completed", &response_usage())),
            exact(36, 87),
        ),
        (
            Kind::Responses,
            stream(response_stream("response.incomplete", &response_usage())),
            exact(36, 87),
        ),
        (
            Kind::Responses,
            stream(response_stream("response.failed", &response_usage())),
            exact(36, 87),
        ),
        (Kind::Messages, document(&message()), exact(27, 503)),
        (
            Kind::Messages,
            stream(events(&message_events(&message_delta()))),
            exact(175, 15),
        ),
        // What was read is said again at the end, and is more by then.
        (
            Kind::Messages,
            stream(events(&message_events(&json!({
                "type": "message_delta", "delta": {"stop_reason": "end_turn"},
                "usage": {"input_tokens": 40, "cache_creation_input_tokens": 100, "cache_read_input_tokens": 60, "output_tokens": 15}
            })))),
            exact(200, 15),
        ),
        (Kind::Embeddings, document(&embeddings()), exact(8, 0)),
        (Kind::Count, document(&json!({"input_tokens": 2095})), exact(0, 0)),
    ]
}

#[test]
fn what_an_honest_provider_counts_is_charged() {
    for (kind, answer, expected) in honest() {
        assert_eq!(charge(kind, &answer), expected, "{kind:?} {}", answer.body);
    }
}

#[test]
fn the_form_is_told_by_its_first_byte_if_the_answer_does_not_say() {
    for (kind, answer, expected) in honest() {
        for content_type in [None, Some("text/plain"), Some("")] {
            let answer = Answer {
                content_type,
                body: format!(" \n{}", answer.body),
                ..answer.clone()
            };
            assert_eq!(charge(kind, &answer), expected, "{kind:?} {}", answer.body);
        }
    }
}

#[test]
fn counts_that_can_not_be_true_are_charged_with_all_that_was_reserved() {
    let reserved = bounds(Kind::Chat);
    for usage in [
        json!(null),
        json!({}),
        json!([]),
        json!("none"),
        json!({"prompt_tokens": null, "completion_tokens": null}),
        json!({"prompt_tokens": -5, "completion_tokens": -5, "total_tokens": -10}),
        json!({"prompt_tokens": -1, "completion_tokens": 10}),
        json!({"prompt_tokens": 19, "completion_tokens": -9_223_372_036_854_775_808_i64}),
        json!({"prompt_tokens": 1.5, "completion_tokens": 10.0}),
        json!({"prompt_tokens": "19", "completion_tokens": "10"}),
        json!({"prompt_tokens": true, "completion_tokens": false}),
        json!({"prompt_tokens": 1e300, "completion_tokens": 1}),
        json!({"prompt_tokens": u64::MAX, "completion_tokens": u64::MAX}),
        json!({"prompt_tokens": i64::MAX, "completion_tokens": i64::MAX, "total_tokens": i64::MAX}),
        json!({"usage": {"prompt_tokens": 19, "completion_tokens": 10}}),
    ] {
        assert_eq!(charge(Kind::Chat, &chat_usage(&usage)), reserved, "{usage}");
    }
    // One of both.
    for (usage, input, output) in [
        (json!({"prompt_tokens": 19}), 19, reserved.output),
        (json!({"completion_tokens": 10}), reserved.input, 10),
        (
            json!({"prompt_tokens": 19, "completion_tokens": i64::MAX}),
            19,
            reserved.output,
        ),
        (
            json!({"prompt_tokens": 19, "completion_tokens": 10, "total_tokens": 3}),
            19,
            reserved.output,
        ),
    ] {
        let found = charge(Kind::Chat, &chat_usage(&usage));
        let expected = Charge {
            input,
            output,
            estimated: true,
        };
        assert_eq!(found, expected, "{usage}");
    }
}

#[test]
fn of_two_counts_the_larger_is_charged() {
    let answer = Answer {
        body: r#"{"choices":[],"usage":{"prompt_tokens":1,"prompt_tokens":19,"completion_tokens":10,"completion_tokens":2},
                  "usage":{"prompt_tokens":0,"completion_tokens":0}}"#
            .to_owned(),
        ..document(&json!({}))
    };
    assert_eq!(charge(Kind::Chat, &answer), exact(19, 10));
}

#[test]
fn nothing_read_is_not_believed() {
    let found = charge(
        Kind::Chat,
        &chat_usage(&json!({"prompt_tokens": 0, "completion_tokens": 10})),
    );
    assert!(
        found.estimated && found.input >= 5 && found.input < 10,
        "{found:?}"
    );
    assert_eq!(found.output, 10);
}

#[test]
fn less_written_than_was_seen_is_not_believed() {
    let long = "word ".repeat(320);
    let usage = json!({"prompt_tokens": 19, "completion_tokens": 3, "total_tokens": 22});
    let few = json!({"input_tokens": 19, "output_tokens": 3});
    let mut chat: Value = serde_json::from_str(&chat_usage(&usage).body).unwrap();
    chat["choices"][0]["message"]["content"] = long.clone().into();
    let mut calls: Value = serde_json::from_str(&chat_usage(&usage).body).unwrap();
    calls["choices"][0]["message"]["tool_calls"] =
        json!([{"id": "c", "type": "function", "function": {"name": "f", "arguments": long}}]);
    let streamed = chunks(&[
        chat_chunk(&json!({"content": long[..800]}), &Value::Null),
        chat_chunk(&json!({"reasoning_content": long[800..]}), &Value::Null),
        json!({"choices": [], "usage": usage}),
    ]);
    let mut whole = response("completed", &few);
    whole["output"][0]["content"][0]["text"] = long.clone().into();
    let deltas = events(&[
        json!({"type": "response.function_call_arguments.delta", "delta": long}),
        json!({"type": "response.completed", "response": response("completed", &few)}),
    ]);
    let only_last = events(&[json!({"type": "response.completed", "response": whole})]);
    let mut text = message();
    text["usage"] = few.clone();
    text["content"][1]["text"] = long.clone().into();
    let mut input = message();
    input["usage"] = few.clone();
    input["content"][2]["input"] = json!({"a": [{"b": long}]});
    let mut thinking = message_events(
        &json!({"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 3}}),
    );
    thinking[0] = message_start(&json!({"input_tokens": 19, "output_tokens": 1}));
    thinking[3] = json!({"type": "content_block_delta", "index": 0, "delta": {"type": "thinking_delta", "thinking": long}});
    for (kind, answer) in [
        (Kind::Chat, document(&chat)),
        (Kind::Chat, document(&calls)),
        (Kind::Chat, stream(streamed)),
        (Kind::Responses, document(&whole)),
        (Kind::Responses, stream(deltas)),
        (Kind::Responses, stream(only_last)),
        (Kind::Messages, document(&text)),
        (Kind::Messages, document(&input)),
        (Kind::Messages, stream(events(&thinking))),
    ] {
        let found = charge(kind, &answer);
        assert!(found.estimated, "{}", answer.body);
        assert_eq!((found.input, found.output), (19, 100), "{}", answer.body);
    }
}

#[test]
fn what_a_model_writes_is_no_usage() {
    let fake =
        r#"{"usage":{"prompt_tokens":0,"completion_tokens":0,"input_tokens":900,"output_tokens":900}}"#;
    let lines = format!("\n\ndata: {fake}\n\ndata: [DONE]\n\n");
    let usage = json!({"prompt_tokens": 19, "completion_tokens": 40, "total_tokens": 59});
    let few = json!({"input_tokens": 19, "output_tokens": 40});
    let mut chat: Value = serde_json::from_str(&chat_usage(&usage).body).unwrap();
    chat["choices"][0]["message"]["content"] = lines.clone().into();
    let streamed = chunks(&[
        chat_chunk(&json!({"content": lines}), &Value::Null),
        json!({"choices": [], "usage": usage}),
    ]);
    let mut whole = response("completed", &few);
    whole["output"][0]["content"][0]["text"] = lines.clone().into();
    whole["metadata"] = serde_json::from_str(fake).unwrap();
    // The arguments of a tool are an object of the model's.
    let mut input = message();
    input["usage"] = few;
    input["content"][2]["input"] = serde_json::from_str(fake).unwrap();
    for (kind, answer) in [
        (Kind::Chat, document(&chat)),
        (Kind::Chat, stream(streamed)),
        (Kind::Responses, document(&whole)),
        (Kind::Messages, document(&input)),
    ] {
        assert_eq!(charge(kind, &answer), exact(19, 40), "{}", answer.body);
    }
}

#[test]
fn escapes_of_a_text_are_no_text() {
    let usage = json!({"prompt_tokens": 19, "completion_tokens": 40, "total_tokens": 59});
    let escaped = chat_usage(&usage)
        .body
        .replace("Hello!", &"\\u4f60\\u597d".repeat(100));
    let answer = Answer {
        body: escaped,
        ..document(&json!({}))
    };
    assert_eq!(charge(Kind::Chat, &answer), exact(19, 40));
}

#[test]
fn a_stream_that_is_cut_before_its_usage_is_charged_with_all_that_may_have_been_written() {
    let reserved = |kind| bounds(kind);
    let before = |text: String, mark: &str| text[..text.find(mark).unwrap()].to_owned();
    let messages = events(&message_events(&message_delta()));
    for complete in [true, false] {
        let cut = |body: String| Answer {
            complete,
            ..stream(body)
        };
        for (kind, body) in [
            (Kind::Chat, before(chat_stream(), "\"usage\":{")),
            (Kind::Chat, String::new()),
            (
                Kind::Responses,
                before(
                    response_stream("response.completed", &response_usage()),
                    "\"input_tokens\"",
                ),
            ),
            (Kind::Responses, response_stream("response.failed", &Value::Null)),
            (Kind::Messages, before(messages.clone(), "\"input_tokens\"")),
            (
                Kind::Messages,
                events(&[
                    json!({"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}),
                ]),
            ),
        ] {
            assert_eq!(charge(kind, &cut(body.clone())), reserved(kind), "{body}");
        }
        // What was read is said at the start.
        let found = charge(
            Kind::Messages,
            &cut(before(messages.clone(), "event: message_delta")),
        );
        let expected = Charge {
            input: 175,
            output: reserved(Kind::Messages).output,
            estimated: true,
        };
        assert_eq!(found, expected);
    }
    // A count that grows with the stream is no last one.
    let growing = chunks(&[
        json!({"choices": [{"delta": {"content": "x"}}], "usage": {"prompt_tokens": 19, "completion_tokens": 1}}),
    ]);
    let answer = Answer {
        complete: false,
        ..stream(growing)
    };
    assert_eq!(charge(Kind::Chat, &answer).output, 500);
}

#[test]
fn more_seen_than_could_be_written_is_charged_with_what_was_seen() {
    let body = chunks(&[chat_chunk(
        &json!({"content": "word ".repeat(4_000)}),
        &Value::Null,
    )]);
    let answer = Answer {
        complete: false,
        ..stream(body)
    };
    assert_eq!(charge(Kind::Chat, &answer).output, 20_000 / 16);
}

#[test]
fn refusals_and_failures_of_the_provider_cost_nothing() {
    for status in [400, 401, 404, 413, 429, 500, 503, 529, 302] {
        for (kind, body) in [
            (
                Kind::Chat,
                json!({"error": {"message": "Rate limit reached", "type": "requests", "code": "rate_limit_exceeded"}}),
            ),
            (
                Kind::Messages,
                json!({"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}),
            ),
            (Kind::Embeddings, json!({})),
        ] {
            let answer = Answer {
                status,
                complete: false,
                ..document(&body)
            };
            assert_eq!(charge(kind, &answer), exact(0, 0), "{status}");
        }
    }
    // But what it counts or writes nevertheless is charged.
    let answer = Answer {
        status: 500,
        ..chat_usage(&json!({"prompt_tokens": 19, "completion_tokens": 10}))
    };
    assert_eq!(charge(Kind::Chat, &answer), exact(19, 10));
    let mut long: Value = serde_json::from_str(&chat_usage(&Value::Null).body).unwrap();
    long["choices"][0]["message"]["content"] = "x".repeat(1_600).into();
    let answer = Answer {
        status: 500,
        ..document(&long)
    };
    let expected = Charge {
        input: 0,
        output: 100,
        estimated: true,
    };
    assert_eq!(charge(Kind::Chat, &answer), expected);
}

#[test]
fn an_answer_that_is_no_json_is_charged_with_all_that_was_reserved() {
    for body in [
        "<html>",
        "{",
        "}",
        "null",
        "[[[[",
        "{\"usage\":",
        "\u{0}\u{1}",
        "data: {\"usage\"",
        "data: data: {}\n\n",
    ] {
        for content_type in [JSON, EVENTS, None] {
            let answer = Answer {
                content_type,
                body: body.to_owned(),
                status: 200,
                complete: true,
            };
            assert_eq!(charge(Kind::Chat, &answer), bounds(Kind::Chat), "{body}");
        }
    }
    let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    let answer = Answer {
        body: deep,
        ..document(&json!({}))
    };
    assert_eq!(charge(Kind::Chat, &answer), bounds(Kind::Chat));
}

#[test]
fn a_meter_is_small_whatever_passes() {
    let rule = rule(Provider::OpenAI);
    let mut meter = Meter::new(&prepared(&rule, Kind::Chat), EVENTS);
    // A line, a name, a string, a number and a nest without end.
    for start in [
        "data: {\"",
        "data: {\"a\":\"",
        "data: {\"usage\":{\"prompt_tokens\":1",
        "data: ",
        "event: ",
    ] {
        meter.feed(start.as_bytes());
        for _ in 0..1_000 {
            meter.feed(&[b'1'; 1_000]);
        }
        meter.feed(b"\n\n");
    }
    for _ in 0..1_000 {
        meter.feed(b"data: [[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[\n");
    }
    let printed = format!("{meter:?}");
    assert!(printed.len() < 64 << 10, "{}", printed.len());
    let found = meter.finish(200, true);
    assert_eq!(found, bounds(Kind::Chat));
}

proptest! {
    #[test]
    fn the_charge_does_not_depend_on_how_an_answer_is_cut(
        at in any::<prop::sample::Index>(),
        pieces in prop::collection::vec(1..40_usize, 0..200),
    ) {
        let all = honest();
        let (kind, answer, expected) = &all[at.index(all.len())];
        prop_assert_eq!(charge_in_pieces(*kind, answer, &pieces), *expected);
    }

    #[test]
    fn a_damaged_answer_costs_the_same_however_it_is_cut(
        at in any::<prop::sample::Index>(),
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>(), 0..4_usize), 1..4),
        pieces in prop::collection::vec(1..40_usize, 0..200),
        content_type in prop::sample::select(vec![JSON, EVENTS, None]),
    ) {
        let all = honest();
        let (kind, answer, _) = &all[at.index(all.len())];
        let mut bytes = answer.body.clone().into_bytes();
        for (at, byte, how) in damage {
            let at = at.index(bytes.len());
            match how {
                0 => bytes[at] = byte,
                1 => bytes.insert(at, b"\"\\{}[]:,\n\r-9"[usize::from(byte) % 12]),
                2 => bytes.truncate(at + 1),
                _ => {
                    bytes.remove(at);
                    bytes.push(byte);
                }
            }
        }
        let rule = rule(kind.provider());
        let prepared = prepared(&rule, *kind);
        let mut whole = Meter::new(&prepared, content_type);
        whole.feed(&bytes);
        let whole = whole.finish(answer.status, answer.complete);
        let mut meter = Meter::new(&prepared, content_type);
        let mut rest = &bytes[..];
        for piece in pieces {
            let (piece, after) = rest.split_at(piece.min(rest.len()));
            meter.feed(piece);
            rest = after;
        }
        meter.feed(rest);
        prop_assert_eq!(meter.finish(answer.status, answer.complete), whole);
        prop_assert!(whole.input >= 0 && whole.output >= 0);
    }

    #[test]
    fn a_charge_is_never_negative_nor_below_what_was_seen(
        bytes in prop::collection::vec(any::<u8>(), 0..300),
        status in 100..600_u16,
        complete in any::<bool>(),
        at in 0..5_usize,
        content_type in prop::sample::select(vec![JSON, EVENTS, None]),
    ) {
        let kind = [Kind::Chat, Kind::Responses, Kind::Embeddings, Kind::Messages, Kind::Count][at];
        let rule = rule(kind.provider());
        let mut meter = Meter::new(&prepared(&rule, kind), content_type);
        meter.feed(&bytes);
        let found = meter.finish(status, complete);
        prop_assert!(found.input >= 0 && found.output >= 0 && found.tokens() >= 0);
    }

    #[test]
    fn a_cut_stream_costs_no_less_than_the_whole(
        at in any::<prop::sample::Index>(),
        which in 0..3_usize,
    ) {
        let (kind, body) = [
            (Kind::Chat, chat_stream()),
            (Kind::Responses, response_stream("response.completed", &response_usage())),
            (Kind::Messages, events(&message_events(&message_delta()))),
        ][which].clone();
        let whole = charge(kind, &stream(body.clone()));
        let cut = Answer { complete: false, ..stream(&body[..at.index(body.len())]) };
        let found = charge(kind, &cut);
        prop_assert!(found.output >= whole.output, "{:?}", found);
        // Unless the provider has said what was read, all that can have been read is charged; and these requests are
        // shorter than what their answers say.
        prop_assert!(found.input >= whole.input.min(bounds(kind).input), "{:?}", found);
    }

    #[test]
    fn any_usage_is_charged_within_what_can_be(
        prompt in any::<i64>(), completion in any::<i64>(), total in prop::option::of(any::<i64>()),
    ) {
        let mut usage = json!({"prompt_tokens": prompt, "completion_tokens": completion});
        if let Some(total) = total {
            usage["total_tokens"] = total.into();
        }
        let found = charge(Kind::Chat, &chat_usage(&usage));
        let reserved = bounds(Kind::Chat);
        let most = (reserved.tokens().max(50_000)) * 16;
        prop_assert!((1..=most).contains(&found.input) && (0..=most).contains(&found.output), "{:?}", found);
    }
}
