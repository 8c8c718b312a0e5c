//! OpenAI's API: chat completions, responses, embeddings and the list of models.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::{Value, json};

use super::{Asked, identifier, words_in};
use crate::body::{Response, json as in_json};

/// Tokens of a call of a function.
const CALL: i64 = 5;
const CREATED: i64 = 1_767_225_600;
/// Numbers of an embedding.
const DIMENSIONS: usize = 8;

pub fn models() -> Value {
    let names = ["tiny", "small", "large"];
    let data: Vec<Value> = names
        .iter()
        .map(|name| json!({"id": name, "object": "model", "created": CREATED, "owned_by": "outside"}))
        .collect();
    json!({"object": "list", "data": data})
}

fn finish(asked: &Asked<'_>) -> &'static str {
    if asked.cut_short { "length" } else { "stop" }
}

/// How many answers are wanted.
fn choices(asked: &Asked<'_>) -> i64 {
    asked.body["n"].as_i64().unwrap_or(1).clamp(1, 16)
}

/// The function that the answer calls, if the request offers any and none has been called yet.
fn called<'a>(asked: &Asked<'a>) -> Option<&'a str> {
    let messages = asked.body["messages"].as_array();
    let has_result = messages.is_some_and(|messages| messages.iter().any(|one| one["role"] == "tool"));
    let name = asked.body["tools"][0]["function"]["name"].as_str();
    name.filter(|_| !has_result && !asked.stream)
}

fn chat_usage(asked: &Asked<'_>) -> Option<Value> {
    let one = if called(asked).is_some() {
        CALL
    } else {
        i64::try_from(asked.output).unwrap_or(i64::MAX)
    };
    let output = one * choices(asked);
    asked.usage(&[
        ("prompt_tokens", asked.input),
        ("completion_tokens", output),
        ("total_tokens", asked.input + output),
    ])
}

pub fn chat(asked: &Asked<'_>) -> Response {
    let id = identifier("chatcmpl-");
    if asked.stream {
        return chat_stream(asked, &id);
    }
    let (message, finish) = match called(asked) {
        Some(name) => {
            let call = json!({
                "id": identifier("call_"), "type": "function",
                "function": {"name": name, "arguments": "{\"expression\": \"6 * 7\"}"},
            });
            (
                json!({"role": "assistant", "content": null, "tool_calls": [call]}),
                "tool_calls",
            )
        }
        None => (
            json!({"role": "assistant", "content": asked.text(), "refusal": null}),
            finish(asked),
        ),
    };
    let answers: Vec<Value> = (0..choices(asked))
        .map(|index| json!({"index": index, "finish_reason": finish, "logprobs": null, "message": message}))
        .collect();
    let mut body = json!({
        "id": id, "object": "chat.completion", "created": CREATED, "model": asked.model, "choices": answers,
    });
    if let Some(usage) = chat_usage(asked) {
        body["usage"] = usage;
    }
    in_json(200, &body)
}

fn chat_stream(asked: &Asked<'_>, id: &str) -> Response {
    let chunk = {
        let (id, model) = (id.to_owned(), asked.model.clone());
        move |delta: &Value, finish: Option<&str>| {
            let body = json!({
                "id": id, "object": "chat.completion.chunk", "created": CREATED, "model": model,
                "choices": [{"index": 0, "delta": delta, "finish_reason": finish, "logprobs": null}],
            });
            format!("data: {body}\n\n")
        }
    };
    let before = vec![chunk(&json!({"role": "assistant", "content": ""}), None)];
    let after = vec![chunk(&json!({}), Some(finish(asked)))];
    let mut end = Vec::new();
    if asked.body["stream_options"]["include_usage"] == true
        && let Some(usage) = chat_usage(asked)
    {
        let body = json!({
            "id": id, "object": "chat.completion.chunk", "created": CREATED, "model": asked.model, "choices": [],
            "usage": usage,
        });
        end.push(format!("data: {body}\n\n"));
    }
    end.push("data: [DONE]\n\n".to_owned());
    asked.events(
        before,
        move |word| chunk(&json!({"content": word}), None),
        after,
        end,
    )
}

pub fn embeddings(asked: &Asked<'_>) -> Response {
    let inputs = match &asked.body["input"] {
        Value::Array(inputs) => inputs.clone(),
        one => vec![one.clone()],
    };
    let data: Vec<Value> = inputs
        .iter()
        .enumerate()
        .map(|(index, input)| {
            let size = f32::from(i16::try_from(words_in(input)).unwrap_or(i16::MAX));
            let numbers = [size; DIMENSIONS];
            let embedding = if asked.body["encoding_format"] == "base64" {
                let bytes: Vec<u8> = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
                json!(BASE64.encode(bytes))
            } else {
                json!(numbers)
            };
            json!({"object": "embedding", "index": index, "embedding": embedding})
        })
        .collect();
    let mut body = json!({"object": "list", "data": data, "model": asked.model});
    if let Some(usage) = asked.usage(&[("prompt_tokens", asked.input), ("total_tokens", asked.input)]) {
        body["usage"] = usage;
    }
    in_json(200, &body)
}

pub fn responses(asked: &Asked<'_>) -> Response {
    let (id, item) = (identifier("resp_"), identifier("msg_"));
    let output = i64::try_from(asked.output).unwrap_or(i64::MAX);
    let usage = asked.usage(&[
        ("input_tokens", asked.input),
        ("output_tokens", output),
        ("total_tokens", asked.input + output),
    ]);
    let part = json!({"type": "output_text", "text": asked.text(), "annotations": []});
    let message = json!({
        "id": item, "type": "message", "role": "assistant", "status": "completed", "content": [part],
    });
    let (status, details) = if asked.cut_short {
        ("incomplete", json!({"reason": "max_output_tokens"}))
    } else {
        ("completed", Value::Null)
    };
    let body = |status: &str, output: Value, usage: Option<Value>| {
        json!({
            "id": id, "object": "response", "created_at": CREATED, "model": asked.model, "status": status,
            "output": output, "usage": usage, "error": null, "incomplete_details": details, "instructions": null,
            "metadata": {}, "parallel_tool_calls": true, "temperature": 1.0, "tool_choice": "auto", "tools": [],
            "top_p": 1.0, "store": asked.body["store"],
        })
    };
    let whole = body(status, json!([message]), usage);
    if !asked.stream {
        return in_json(200, &whole);
    }
    let event = |name: &str, mut body: Value| {
        body["type"] = name.into();
        format!("event: {name}\ndata: {body}\n\n")
    };
    let begun = body("in_progress", json!([]), None);
    let started =
        json!({"id": item, "type": "message", "role": "assistant", "status": "in_progress", "content": []});
    let empty = json!({"type": "output_text", "text": "", "annotations": []});
    let before = vec![
        event(
            "response.created",
            json!({"sequence_number": 0, "response": begun}),
        ),
        event(
            "response.output_item.added",
            json!({"sequence_number": 1, "output_index": 0, "item": started}),
        ),
        event(
            "response.content_part.added",
            json!({"sequence_number": 2, "item_id": item, "output_index": 0, "content_index": 0, "part": empty}),
        ),
    ];
    let after = vec![
        event(
            "response.output_text.done",
            json!({
                "sequence_number": 4, "item_id": item, "output_index": 0, "content_index": 0, "text": asked.text(),
                "logprobs": [],
            }),
        ),
        event(
            "response.content_part.done",
            json!({"sequence_number": 5, "item_id": item, "output_index": 0, "content_index": 0, "part": part}),
        ),
        event(
            "response.output_item.done",
            json!({"sequence_number": 6, "output_index": 0, "item": message}),
        ),
    ];
    let end = vec![event(
        &format!("response.{status}"),
        json!({"sequence_number": 7, "response": whole}),
    )];
    let word = move |word: &str| {
        event(
            "response.output_text.delta",
            json!({
                "sequence_number": 3, "item_id": item, "output_index": 0, "content_index": 0, "delta": word,
                "logprobs": [],
            }),
        )
    };
    asked.events(before, word, after, end)
}
