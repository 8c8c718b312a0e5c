//! Anthropic's API: messages, their count of tokens, and the list of models.

use serde_json::{Value, json};

use super::{Asked, identifier};
use crate::body::{Response, json as in_json};

pub fn models() -> Value {
    let data: Vec<Value> = ["tiny", "small", "large"]
        .iter()
        .map(|name| json!({"type": "model", "id": name, "display_name": name, "created_at": "2026-01-01T00:00:00Z"}))
        .collect();
    json!({"data": data, "has_more": false, "first_id": "tiny", "last_id": "large"})
}

pub fn count(asked: &Asked<'_>) -> Response {
    in_json(200, &json!({"input_tokens": asked.input}))
}

pub fn messages(asked: &Asked<'_>) -> Response {
    let id = identifier("msg_");
    let output = i64::try_from(asked.output).unwrap_or(i64::MAX);
    let stop = if asked.cut_short { "max_tokens" } else { "end_turn" };
    let message = |content: Value, stop: Option<&str>, usage: Option<Value>| {
        let mut body = json!({
            "id": id, "type": "message", "role": "assistant", "model": asked.model, "content": content,
            "stop_reason": stop, "stop_sequence": null,
        });
        if let Some(usage) = usage {
            body["usage"] = usage;
        }
        body
    };
    if !asked.stream {
        let usage = asked.usage(&[
            ("input_tokens", asked.input),
            ("output_tokens", output),
            ("cache_creation_input_tokens", 0),
            ("cache_read_input_tokens", 0),
        ]);
        let content = json!([{"type": "text", "text": asked.text()}]);
        return in_json(200, &message(content, Some(stop), usage));
    }
    let event = |name: &str, mut body: Value| {
        body["type"] = name.into();
        format!("event: {name}\ndata: {body}\n\n")
    };
    let first = asked.usage(&[("input_tokens", asked.input), ("output_tokens", 1)]);
    let before = vec![
        event(
            "message_start",
            json!({"message": message(json!([]), None, first)}),
        ),
        event(
            "content_block_start",
            json!({"index": 0, "content_block": {"type": "text", "text": ""}}),
        ),
        event("ping", json!({})),
    ];
    let word = move |word: &str| {
        event(
            "content_block_delta",
            json!({"index": 0, "delta": {"type": "text_delta", "text": word}}),
        )
    };
    let after = vec![event("content_block_stop", json!({"index": 0}))];
    let mut delta = json!({"delta": {"stop_reason": stop, "stop_sequence": null}});
    if let Some(usage) = asked.usage(&[("output_tokens", output)]) {
        delta["usage"] = usage;
    }
    let end = vec![event("message_delta", delta), event("message_stop", json!({}))];
    asked.events(before, word, after, end)
}
