//! Models: metered, bounded, and asked with a key that no sandbox sees.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use agentsandbox_api::reason::Reason;
use agentsandbox_api::sandbox::Limits as AskedLimits;
use bytes::Bytes;
use http::{Request, StatusCode};
use http_body::Frame;
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::Incoming;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::harness::{Harness, Sandbox, connect_from, eventually, is_closed};
use crate::inspect::{ask, open};
use crate::sink::FakeSink;
use crate::world::{Answer, answer, boxed, http_server, tls};

const KEY: &str = "sk-real-key-of-the-provider";

/// What the provider was asked.
#[derive(Default)]
pub struct Provider {
    pub requests: Mutex<Vec<(String, Value)>>,
    pub open: AtomicUsize,
    pub most_open: AtomicUsize,
}

pub fn policy() -> Value {
    policy_with(json!({}))
}

pub fn policy_with(more: Value) -> Value {
    let credential = json!({"secretRef": {"name": "models", "key": "openai"}});
    let mut policy = json!({"models": [
        {"provider": "OpenAI", "host": "api.openai.test", "credential": credential, "contextTokens": 1000, "defaultOutputTokens": 50,
         "allow": ["good", "no-usage", "false-usage", "negative", "cut", "gzip", "slow", "broken"]},
        {"provider": "Anthropic", "host": "api.anthropic.test", "allow": ["claude"], "contextTokens": 1000,
         "credential": {"secretRef": {"name": "models", "key": "openai"}, "header": "x-api-key", "format": "{}"}},
        {"provider": "OpenAI", "host": "routed.openai.test", "allow": ["alias"], "contextTokens": 1000,
         "route": {"host": "busy.openai.test", "model": "real-one"},
         "fallbacks": [
            {"host": "dead.openai.test", "model": "real-two"},
            {"host": "api.openai.test", "model": "good", "credential": credential},
         ]},
        {"provider": "OpenAICompatible", "host": "llm.example.test", "allow": ["local"], "contextTokens": 1000,
         "credential": credential},
    ]});
    for (name, value) in more.as_object().unwrap() {
        policy[name] = value.clone();
    }
    policy
}

/// A policy whose first target takes requests and never answers.
pub fn stalled_policy() -> Value {
    json!({"models": [
        {"provider": "OpenAI", "host": "slow.openai.test", "allow": ["alias", "other"], "contextTokens": 1000,
         "route": {"host": "stalled.openai.test", "model": "real-one"},
         "fallbacks": [
            {"host": "api.openai.test", "model": "good",
             "credential": {"secretRef": {"name": "models", "key": "openai"}}},
         ]},
    ]})
}

pub async fn start(policy: Value, limits: AskedLimits) -> (Harness, Sandbox, Arc<Provider>) {
    start_with(policy, limits, &[]).await
}

/// With options of the gateway's command line.
pub async fn start_with(
    policy: Value,
    limits: AskedLimits,
    options: &[&str],
) -> (Harness, Sandbox, Arc<Provider>) {
    let (harness, provider) = gateway_with(policy, FakeSink::new(), options).await;
    let sandbox = harness.sandbox_with("one", 11, limits).await;
    (harness, sandbox, provider)
}

pub async fn gateway(policy: Value, sink: Arc<FakeSink>) -> (Harness, Arc<Provider>) {
    gateway_with(policy, sink, &[]).await
}

async fn gateway_with(policy: Value, sink: Arc<FakeSink>, options: &[&str]) -> (Harness, Arc<Provider>) {
    let options = [&["--model-drain-seconds", "2"], options].concat();
    let harness = Harness::beside(policy, &options, sink, Arc::default()).await;
    let provider = Arc::new(Provider::default());
    for host in [
        "api.openai.test",
        "api.anthropic.test",
        "llm.example.test",
        "busy.openai.test",
        "stalled.openai.test",
    ] {
        let kept = provider.clone();
        let config = harness.world.server(host, &["h2", "http/1.1"]);
        let server = http_server(Some(config), move |request| provide(kept.clone(), request, host)).await;
        harness.network.route(host, 443, server);
    }
    let hosts = "api.openai.test\napi.anthropic.test\nllm.example.test\n";
    harness.secret("models", "openai", KEY, hosts);
    (harness, provider)
}

async fn provide(provider: Arc<Provider>, request: Request<Incoming>, host: &str) -> Answer {
    let (parts, body) = request.into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    let asked: Value = serde_json::from_slice(&body).unwrap_or(Value::Null);
    let mut seen = asked.clone();
    for (name, value) in &parts.headers {
        seen[format!("header {name}")] = value.to_str().unwrap().into();
    }
    provider
        .requests
        .lock()
        .unwrap()
        .push((parts.uri.path().to_owned(), seen));
    if host.starts_with("stalled") {
        std::future::pending::<()>().await;
    }
    if host.starts_with("busy") {
        let mut response = answer("{\"error\":{}}");
        *response.status_mut() = StatusCode::TOO_MANY_REQUESTS;
        return response;
    }
    let key = parts
        .headers
        .get("authorization")
        .or(parts.headers.get("x-api-key"));
    if !key.is_some_and(|key| key.to_str().unwrap().ends_with(KEY)) {
        let mut response = answer("{\"error\":{}}");
        *response.status_mut() = StatusCode::UNAUTHORIZED;
        return response;
    }
    let open = provider.open.fetch_add(1, Ordering::SeqCst) + 1;
    provider.most_open.fetch_max(open, Ordering::SeqCst);
    tokio::time::sleep(Duration::from_millis(20)).await;
    provider.open.fetch_sub(1, Ordering::SeqCst);
    let model = asked["model"].as_str().unwrap_or_default().to_owned();
    if model == "broken" {
        let mut response = answer("{\"error\":{\"message\":\"broken\"}}");
        *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
        return response;
    }
    if asked["stream"] == true {
        return if parts.uri.path() == "/v1/messages" {
            events(anthropic_events(), false)
        } else {
            events(openai_events(&model, &asked), model == "cut")
        };
    }
    let usage = match model.as_str() {
        "no-usage" => Value::Null,
        "false-usage" => json!({"prompt_tokens": "many", "completion_tokens": 1e300}),
        "negative" => json!({"prompt_tokens": -100, "completion_tokens": -5, "total_tokens": -105}),
        _ => json!({"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}),
    };
    let json = if parts.uri.path() == "/v1/messages" {
        json!({"type": "message", "content": [{"type": "text", "text": "hi"}], "usage": {"input_tokens": 5, "output_tokens": 6}})
    } else {
        json!({"object": "chat.completion", "model": model, "choices": [{"message": {"role": "assistant", "content": format!("hi {KEY}")}}], "usage": usage})
    };
    let mut response = answer(json.to_string());
    response
        .headers_mut()
        .insert("content-type", "application/json".parse().unwrap());
    response
        .headers_mut()
        .insert("set-cookie", "a=b".parse().unwrap());
    if model == "gzip" {
        response
            .headers_mut()
            .insert("content-encoding", "gzip".parse().unwrap());
    }
    response
}

fn openai_events(model: &str, asked: &Value) -> Vec<String> {
    let chunk = |delta: &str| json!({"object": "chat.completion.chunk", "choices": [{"index": 0, "delta": {"content": delta}}]});
    let mut events: Vec<String> = ["one ", "two ", "three"]
        .iter()
        .map(|delta| format!("data: {}\n\n", chunk(delta)))
        .collect();
    if model == "cut" {
        return events;
    }
    assert_eq!(
        asked["stream_options"]["include_usage"], true,
        "usage is always asked for"
    );
    let usage = json!({"object": "chat.completion.chunk", "choices": [], "usage": {"prompt_tokens": 11, "completion_tokens": 4, "total_tokens": 15}});
    events.push(format!("data: {usage}\n\n"));
    events.push("data: [DONE]\n\n".to_owned());
    events
}

fn anthropic_events() -> Vec<String> {
    [
        ("message_start", json!({"type": "message_start", "message": {"usage": {"input_tokens": 20, "output_tokens": 1}}})),
        ("content_block_delta", json!({"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "hi"}})),
        ("message_delta", json!({"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 9}})),
        ("message_stop", json!({"type": "message_stop"})),
    ]
    .iter()
    .map(|(event, data)| format!("event: {event}\ndata: {data}\n\n"))
    .collect()
}

fn events(events: Vec<String>, is_cut: bool) -> Answer {
    let stream = futures::stream::unfold((events.into_iter(), is_cut), |(mut events, is_cut)| async move {
        tokio::time::sleep(Duration::from_millis(50)).await;
        match events.next() {
            Some(event) => Some((Ok(Frame::data(Bytes::from(event))), (events, is_cut))),
            None if is_cut => Some((Err(std::io::Error::other("cut")), (events, false))),
            None => None,
        }
    });
    let mut response = http::Response::new(boxed(StreamBody::new(stream)));
    response
        .headers_mut()
        .insert("content-type", "text/event-stream".parse().unwrap());
    response
}

pub fn post(path: &str, host: &str, body: &Value) -> String {
    let body = body.to_string();
    format!(
        "POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
}

pub fn chat(model: &str, more: Value) -> Value {
    let mut body =
        json!({"model": model, "max_tokens": 20, "messages": [{"role": "user", "content": "hello"}]});
    for (name, value) in more.as_object().unwrap() {
        body[name] = value.clone();
    }
    body
}

pub async fn complete(harness: &Harness, sandbox: &Sandbox, body: &Value) -> String {
    let mut stream = open(harness, sandbox, "api.openai.test", &["http/1.1"]).await;
    ask(
        &mut stream,
        &post("/v1/chat/completions", "api.openai.test", body),
    )
    .await
}

#[tokio::test]
async fn a_request_is_sent_with_the_key_and_its_cost_stands_in_status() {
    let (harness, sandbox, provider) = start(policy(), AskedLimits::default()).await;
    let mut stream = open(&harness, &sandbox, "api.openai.test", &["http/1.1"]).await;
    let body = post(
        "/v1/chat/completions",
        "api.openai.test",
        &chat("good", json!({})),
    );
    let with_key = body.replace(
        "Content-Type",
        &format!(
            "Authorization: Bearer {}\r\nOpenAI-Organization: org-x\r\nX-Other: 1\r\nContent-Type",
            sandbox.token
        ),
    );
    let back = ask(&mut stream, &with_key).await;
    assert!(
        back.starts_with("HTTP/1.1 200") && back.contains("\"total_tokens\":10"),
        "{back}"
    );
    assert!(
        !back.contains(KEY) && !back.contains("set-cookie") && back.contains("****"),
        "{back}"
    );
    let (path, seen) = provider.requests.lock().unwrap()[0].clone();
    assert_eq!(path, "/v1/chat/completions");
    assert_eq!(seen["header authorization"], format!("Bearer {KEY}"));
    assert_eq!(seen["store"], false, "nothing is kept: {seen}");
    assert!(
        seen.get("header openai-organization").is_none() && seen.get("header x-other").is_none(),
        "{seen}"
    );
    assert_eq!(seen["header accept-encoding"], "identity");
    let status = harness.status("one", |status| status.used.tokens == 10).await;
    assert_eq!(
        (
            status.used.model_requests,
            status.input_tokens,
            status.output_tokens,
            status.estimated_tokens
        ),
        (1, 7, 3, 0)
    );
    let end = harness
        .records()
        .into_iter()
        .find(|record| record["class"] == 6003 && record["action"] == "end");
    let end = match end {
        Some(end) => end,
        None => harness.record("end", None, "api.openai.test").await,
    };
    assert_eq!(
        (
            end["model"].as_str(),
            end["inputTokens"].as_i64(),
            end["outputTokens"].as_i64()
        ),
        (Some("good"), Some(7), Some(3))
    );
    assert_eq!(end["rule"], "models[0]");
    assert!(
        !harness.log_text().contains(KEY) && !harness.log_text().contains("hello"),
        "neither keys nor prompts"
    );
}

#[tokio::test]
async fn events_arrive_one_by_one_and_usage_that_nobody_asked_for_does_not() {
    let (harness, sandbox, _) = start(policy(), AskedLimits::default()).await;
    for (options, shown) in [
        (json!({"stream": true}), false),
        (
            json!({"stream": true, "stream_options": {"include_usage": true}}),
            true,
        ),
    ] {
        let mut stream = open(&harness, &sandbox, "api.openai.test", &["http/1.1"]).await;
        stream
            .write_all(post("/v1/chat/completions", "api.openai.test", &chat("good", options)).as_bytes())
            .await
            .unwrap();
        let mut back = String::new();
        let mut reads = 0;
        let mut buffer = [0; 4096];
        while !back.contains("[DONE]") {
            let read = stream.read(&mut buffer).await.unwrap();
            back.push_str(&String::from_utf8_lossy(&buffer[..read]));
            reads += 1;
        }
        assert!(reads >= 4, "not collected before it is sent: {reads}");
        assert_eq!(back.contains("prompt_tokens"), shown, "{back}");
    }
    harness
        .status("one", |status| {
            status.used.tokens == 30 && status.used.model_requests == 2
        })
        .await;
}

#[tokio::test]
async fn anthropic_messages_are_metered_with_and_without_a_stream() {
    let (harness, sandbox, provider) = start(policy(), AskedLimits::default()).await;
    // Steered, as its SDK does it: the run's token is the key.
    for (stream_it, tokens) in [(false, 11), (true, 40)] {
        let stream = connect_from(sandbox.address, harness.ports.tls).await;
        let mut stream = tls(stream, sandbox.ca.as_ref().unwrap(), "api.anthropic.test", &[])
            .await
            .unwrap();
        let body = json!({"model": "claude", "max_tokens": 30, "stream": stream_it, "messages": [{"role": "user", "content": "hi"}]});
        let request = post("/v1/messages", "api.anthropic.test", &body).replace(
            "Content-Type",
            &format!(
                "x-api-key: {}\r\nanthropic-version: 2023-06-01\r\nContent-Type",
                sandbox.token
            ),
        );
        let back = ask(&mut stream, &request).await;
        assert!(back.starts_with("HTTP/1.1 200"), "{back}");
        harness.status("one", |status| status.used.tokens == tokens).await;
    }
    let requests = provider.requests.lock().unwrap();
    assert_eq!(requests[0].1["header x-api-key"], KEY);
    assert_eq!(requests[0].1["header anthropic-version"], "2023-06-01");
}

#[tokio::test]
async fn only_metered_endpoints_and_allowed_models_and_fields_are_offered() {
    let (harness, sandbox, provider) = start(policy(), AskedLimits::default()).await;
    let mut stream = open(&harness, &sandbox, "api.openai.test", &["http/1.1"]).await;
    for path in [
        "/v1/files",
        "/v1/batches",
        "/v1/assistants",
        "/v1/chat/completions/x",
        "/v1/fine_tuning/jobs",
        "/v1/realtime",
        "/",
    ] {
        let back = ask(
            &mut stream,
            &post(path, "api.openai.test", &chat("good", json!({}))),
        )
        .await;
        assert!(
            back.starts_with("HTTP/1.1 403") && back.contains("EndpointNotMetered"),
            "{path}: {back}"
        );
        stream = open(&harness, &sandbox, "api.openai.test", &["http/1.1"]).await;
    }
    for (body, reason) in [
        (chat("gpt-unknown", json!({})), "ModelNotAllowed"),
        (chat("good", json!({"unknown_field": 1})), "FieldNotAllowed"),
        (
            chat(
                "good",
                json!({"tools": [{"type": "mcp", "server_url": "https://evil"}]}),
            ),
            "ServerToolNotAllowed",
        ),
        (chat("good", json!({"max_tokens": -5})), "BodyMalformed"),
        (json!([1, 2]), "BodyMalformed"),
    ] {
        let back = complete(&harness, &sandbox, &body).await;
        assert!(
            back.contains(reason) || (back.contains("FieldNotAllowed") && reason != "ModelNotAllowed"),
            "{reason}: {back}"
        );
        assert!(
            back.starts_with("HTTP/1.1 4") && back.contains("\"reason\""),
            "{back}"
        );
    }
    let duplicate = "{\"model\":\"good\",\"model\":\"other\",\"messages\":[]}";
    let request = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nHost: api.openai.test\r\nContent-Length: {}\r\n\r\n{duplicate}",
        duplicate.len()
    );
    let mut stream = open(&harness, &sandbox, "api.openai.test", &["http/1.1"]).await;
    assert!(ask(&mut stream, &request).await.contains("BodyMalformed"));
    let request = request.replace("Host", "Content-Encoding: gzip\r\nHost");
    let mut stream = open(&harness, &sandbox, "api.openai.test", &["http/1.1"]).await;
    assert!(ask(&mut stream, &request).await.contains("EncodingNotAllowed"));
    let mut stream = open(&harness, &sandbox, "api.openai.test", &["http/1.1"]).await;
    let back = ask(
        &mut stream,
        "GET /v1/models HTTP/1.1\r\nHost: api.openai.test\r\n\r\n",
    )
    .await;
    assert!(
        back.contains("\"good\"") && !back.contains("claude"),
        "the gateway's own list: {back}"
    );
    assert!(provider.requests.lock().unwrap().is_empty());
    let status = harness.status("one", |status| status.denied > 0).await;
    assert_eq!((status.used.tokens, status.used.model_requests), (0, 0));
}

#[tokio::test]
async fn what_a_provider_does_not_say_or_falsely_says_is_charged_by_estimate() {
    for (model, stream) in [
        ("no-usage", false),
        ("false-usage", false),
        ("negative", false),
        ("cut", true),
        ("gzip", false),
    ] {
        let (harness, sandbox, _) = start(policy(), AskedLimits::default()).await;
        let back = complete(&harness, &sandbox, &chat(model, json!({"stream": stream}))).await;
        assert!(model != "gzip" || back.contains("EncodingNotAllowed"), "{back}");
        let status = harness
            .status("one", |status| status.used.model_requests == 1)
            .await;
        assert!(status.used.tokens >= 20, "{model}: {status:?}");
        assert_eq!(status.estimated_tokens, status.used.tokens, "{model}");
        assert!(status.input_tokens >= 0 && status.output_tokens >= 0);
    }
}

#[tokio::test]
async fn an_answer_that_the_sandbox_gives_up_is_read_on_and_paid_for() {
    let (harness, sandbox, _) = start(policy(), AskedLimits::default()).await;
    let mut stream = open(&harness, &sandbox, "api.openai.test", &["http/1.1"]).await;
    stream
        .write_all(
            post(
                "/v1/chat/completions",
                "api.openai.test",
                &chat("good", json!({"stream": true})),
            )
            .as_bytes(),
        )
        .await
        .unwrap();
    let mut first = [0; 10];
    stream.read_exact(&mut first).await.unwrap();
    drop(stream);
    let status = harness
        .status("one", |status| status.used.model_requests == 1)
        .await;
    assert_eq!(
        (status.used.tokens, status.estimated_tokens),
        (15, 0),
        "exactly, by the provider's own count"
    );
    // Given up before anything was answered.
    let mut stream = open(&harness, &sandbox, "api.openai.test", &["http/1.1"]).await;
    stream
        .write_all(
            post(
                "/v1/chat/completions",
                "api.openai.test",
                &chat("good", json!({})),
            )
            .as_bytes(),
        )
        .await
        .unwrap();
    stream.flush().await.unwrap();
    let session = harness.gateway.session(sandbox.address).unwrap();
    eventually(|| {
        (harness
            .records()
            .iter()
            .filter(|record| record["class"] == 6003 && record["action"] == "allow")
            .count()
            == 2)
            .then_some(())
    })
    .await
    .unwrap();
    drop(stream);
    drop(session);
    harness
        .status("one", |status| {
            status.used.model_requests == 2 && status.used.tokens == 25
        })
        .await;
}

#[tokio::test]
async fn a_run_that_ends_with_a_request_under_way_pays_for_it() {
    let (harness, sandbox, _) = start(policy(), AskedLimits::default()).await;
    let mut stream = open(&harness, &sandbox, "api.openai.test", &["http/1.1"]).await;
    stream
        .write_all(
            post(
                "/v1/chat/completions",
                "api.openai.test",
                &chat("good", json!({"stream": true})),
            )
            .as_bytes(),
        )
        .await
        .unwrap();
    let mut first = [0; 10];
    stream.read_exact(&mut first).await.unwrap();
    harness.gateway.pod_gone(&sandbox.pod_uid);
    assert!(is_closed(&mut stream).await);
    let status = harness.status("one", |status| status.settled).await;
    assert_eq!((status.used.tokens, status.used.model_requests), (15, 1));
}

#[tokio::test]
async fn routes_and_fallbacks_are_tried_in_order_each_with_its_own_key() {
    let (harness, sandbox, provider) = start(policy(), AskedLimits::default()).await;
    let mut stream = open(&harness, &sandbox, "routed.openai.test", &["http/1.1"]).await;
    let back = ask(
        &mut stream,
        &post(
            "/v1/chat/completions",
            "routed.openai.test",
            &chat("alias", json!({})),
        ),
    )
    .await;
    assert!(back.starts_with("HTTP/1.1 200"), "{back}");
    let requests = provider.requests.lock().unwrap().clone();
    let asked: Vec<_> = requests
        .iter()
        .map(|(_, seen)| seen["model"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(asked, ["real-one", "good"]);
    assert!(
        requests[0].1.get("header authorization").is_none(),
        "no key for a host that has none"
    );
    assert_eq!(requests[1].1["header authorization"], format!("Bearer {KEY}"));
    // Each attempt is a request; the busy and the dead one have cost no tokens that anybody knows of.
    let status = harness
        .status("one", |status| status.used.model_requests == 3)
        .await;
    assert!(status.input_tokens >= 7, "{status:?}");
    harness
        .record("end", Some("UpstreamUnreachable"), "dead.openai.test")
        .await;
    harness.record("end", None, "busy.openai.test").await;
}

#[tokio::test]
async fn a_target_that_does_not_answer_in_time_is_paid_for_and_the_next_one_is_asked() {
    let options = ["--model-response-timeout-seconds", "1"];
    let (harness, sandbox, provider) = start_with(stalled_policy(), AskedLimits::default(), &options).await;
    let mut stream = open(&harness, &sandbox, "slow.openai.test", &["http/1.1"]).await;
    let request = post(
        "/v1/chat/completions",
        "slow.openai.test",
        &chat("alias", json!({})),
    );
    let back = ask(&mut stream, &request).await;
    assert!(
        back.starts_with("HTTP/1.1 200") && back.contains("\"total_tokens\":10"),
        "{back}"
    );
    let requests = provider.requests.lock().unwrap().clone();
    let asked: Vec<_> = requests.iter().map(|(_, seen)| &seen["model"]).collect();
    assert_eq!(asked, ["real-one", "good"]);
    harness
        .record("end", Some("UpstreamTimeout"), "stalled.openai.test")
        .await;
    let status = harness
        .status("one", |status| status.used.model_requests == 2)
        .await;
    assert!(
        status.estimated_tokens > 20,
        "it may have done the work: {status:?}"
    );
    assert_eq!(status.used.tokens, status.estimated_tokens + 10);
}

#[tokio::test]
async fn a_server_that_is_compatible_with_openai_s_is_asked_with_its_own_fields_and_metered() {
    let (harness, sandbox, provider) = start(policy(), AskedLimits::default()).await;
    let mut stream = open(&harness, &sandbox, "llm.example.test", &["http/1.1"]).await;
    let body = chat("local", json!({"top_k": 5}));
    let back = ask(
        &mut stream,
        &post("/v1/chat/completions", "llm.example.test", &body),
    )
    .await;
    assert!(back.starts_with("HTTP/1.1 200") && !back.contains(KEY), "{back}");
    let (_, seen) = provider.requests.lock().unwrap()[0].clone();
    assert_eq!(
        (&seen["model"], &seen["top_k"], &seen["header authorization"]),
        (&json!("local"), &json!(5), &json!(format!("Bearer {KEY}")))
    );
    assert!(
        seen.get("store").is_none(),
        "other servers know no such field: {seen}"
    );
    let status = harness.status("one", |status| status.used.tokens == 10).await;
    assert_eq!((status.used.model_requests, status.estimated_tokens), (1, 0));
    let back = complete(&harness, &sandbox, &chat("good", json!({"top_k": 5}))).await;
    assert!(
        back.contains("FieldNotAllowed"),
        "OpenAI knows no such field: {back}"
    );
}

#[tokio::test]
async fn a_provider_s_own_failure_costs_a_request_and_no_tokens() {
    let (harness, sandbox, _) = start(policy(), AskedLimits::default()).await;
    let back = complete(&harness, &sandbox, &chat("broken", json!({}))).await;
    assert!(
        back.starts_with("HTTP/1.1 500") && back.contains("broken"),
        "{back}"
    );
    let status = harness
        .status("one", |status| status.used.model_requests == 1)
        .await;
    assert_eq!(status.used.tokens, 0);
}

#[tokio::test]
async fn parallel_requests_never_overspend_and_the_run_is_told_to_end() {
    const LIMIT: i64 = 1_000;
    let limits = AskedLimits {
        tokens: Some(LIMIT),
        ..AskedLimits::default()
    };
    let (harness, sandbox, provider) = start(policy(), limits).await;
    let harness = Arc::new(harness);
    let sandbox = Arc::new(sandbox);
    let mut requests = tokio::task::JoinSet::new();
    for _ in 0..40 {
        let (harness, sandbox) = (harness.clone(), sandbox.clone());
        // Each may cost some 120 tokens, and costs what is reserved, for its usage is missing.
        requests.spawn(async move { complete(&harness, &sandbox, &chat("no-usage", json!({}))).await });
    }
    let answers: Vec<String> = requests.join_all().await;
    let (good, refused): (Vec<_>, Vec<_>) = answers
        .iter()
        .partition(|answer| answer.starts_with("HTTP/1.1 200"));
    assert!(
        !good.is_empty() && !refused.is_empty(),
        "{} {}",
        good.len(),
        refused.len()
    );
    for answer in refused {
        assert!(
            answer.starts_with("HTTP/1.1 429") && answer.contains("TokenBudgetExceeded"),
            "{answer}"
        );
        assert!(answer.contains("\"type\":\"TokenBudgetExceeded\""), "{answer}");
    }
    assert_eq!(provider.requests.lock().unwrap().len(), good.len());
    let status = harness
        .status("one", |status| {
            status.exhausted.is_some() && status.used.model_requests == i64::try_from(good.len()).unwrap()
        })
        .await;
    assert_eq!(status.exhausted, Some(Reason::TokenBudgetExceeded));
    assert!(
        status.used.tokens <= LIMIT && status.used.tokens > LIMIT / 2,
        "{status:?}"
    );
    assert!(status.claimed.tokens <= LIMIT && status.claimed.tokens >= status.used.tokens);
    for written in harness.sink.history() {
        assert!(written.claimed.tokens <= LIMIT, "at no time: {written:?}");
    }
}

#[tokio::test]
async fn requests_and_steps_have_budgets_of_their_own() {
    for (limits, reason) in [
        (
            AskedLimits {
                model_requests: Some(3),
                steps: Some(10),
                ..AskedLimits::default()
            },
            Reason::ModelRequestBudgetExceeded,
        ),
        (
            AskedLimits {
                model_requests: Some(10),
                steps: Some(3),
                ..AskedLimits::default()
            },
            Reason::StepBudgetExceeded,
        ),
    ] {
        let (harness, sandbox, provider) = start(policy(), limits).await;
        for _ in 0..3 {
            let back = complete(&harness, &sandbox, &chat("good", json!({}))).await;
            assert!(back.starts_with("HTTP/1.1 200"), "{back}");
        }
        assert_eq!(
            harness.sink.run("one").and_then(|status| status.exhausted),
            None,
            "the third answer is still read"
        );
        let back = complete(&harness, &sandbox, &chat("good", json!({}))).await;
        assert!(
            back.starts_with("HTTP/1.1 429") && back.contains(reason.as_str()),
            "{back}"
        );
        let begun = std::time::Instant::now();
        harness
            .status("one", |status| status.exhausted == Some(reason))
            .await;
        assert!(begun.elapsed() < Duration::from_secs(2));
        assert_eq!(provider.requests.lock().unwrap().len(), 3);
    }
}

#[tokio::test]
async fn the_policy_s_defaults_and_maximum_hold_where_a_sandbox_is_silent() {
    for more in [
        json!({"maximum": {"limits": {"modelRequests": 1}}}),
        json!({"defaults": {"limits": {"modelRequests": 1}}, "maximum": {"limits": {"modelRequests": 5}}}),
    ] {
        let (harness, sandbox, _) = start(policy_with(more), AskedLimits::default()).await;
        assert!(
            complete(&harness, &sandbox, &chat("good", json!({})))
                .await
                .starts_with("HTTP/1.1 200")
        );
        assert!(
            complete(&harness, &sandbox, &chat("good", json!({})))
                .await
                .contains("ModelRequestBudgetExceeded")
        );
    }
}

#[tokio::test]
async fn a_quota_is_shared_by_all_runs_and_comes_anew_with_its_window() {
    let quota = json!({"quota": {"modelRequests": 3, "windowSeconds": 3600}});
    let (harness, sandbox, provider) = start(policy_with(quota), AskedLimits::default()).await;
    let other = harness.sandbox("two", 12).await;
    for (run, expected) in [
        (&sandbox, "200"),
        (&other, "200"),
        (&sandbox, "200"),
        (&other, "429"),
        (&sandbox, "429"),
    ] {
        let back = complete(&harness, run, &chat("good", json!({}))).await;
        assert!(back.starts_with(&format!("HTTP/1.1 {expected}")), "{back}");
        assert!(
            expected == "200" || back.contains("PolicyQuotaExceeded"),
            "{back}"
        );
    }
    assert_eq!(provider.requests.lock().unwrap().len(), 3);
    let status = harness.sink.policy().unwrap();
    assert_eq!(status.model_requests, 3);
    assert!(status.window_start.is_some());
    assert_eq!(
        harness.sink.run("two").and_then(|status| status.exhausted),
        None,
        "a quota ends no run"
    );
    harness.now.fetch_add(3600, Ordering::Relaxed);
    assert!(
        complete(&harness, &other, &chat("good", json!({})))
            .await
            .starts_with("HTTP/1.1 200")
    );
    let now = harness.sink.policy().unwrap();
    assert_eq!(now.model_requests, 1);
    assert!(now.window_start > status.window_start);
}

#[tokio::test]
async fn two_gateways_share_one_budget_and_one_quota() {
    let sink = FakeSink::new();
    let policy = policy_with(json!({"quota": {"tokens": 100_000, "modelRequests": 12}}));
    let (first, _) = gateway(policy.clone(), sink.clone()).await;
    let (second, _) = gateway(policy, sink.clone()).await;
    let limits = AskedLimits {
        model_requests: Some(10),
        tokens: Some(5_000),
        ..AskedLimits::default()
    };
    let at_first = Arc::new(first.sandbox_with("one", 11, limits.clone()).await);
    let at_second = Arc::new(second.sandbox_with("one", 11, limits).await);
    let (first, second) = (Arc::new(first), Arc::new(second));
    let mut requests = tokio::task::JoinSet::new();
    for number in 0..16 {
        let (harness, sandbox) = if number % 2 == 0 {
            (first.clone(), at_first.clone())
        } else {
            (second.clone(), at_second.clone())
        };
        requests.spawn(async move { complete(&harness, &sandbox, &chat("good", json!({}))).await });
    }
    let answers: Vec<String> = requests.join_all().await;
    let good = answers
        .iter()
        .filter(|answer| answer.starts_with("HTTP/1.1 200"))
        .count();
    assert_eq!(good, 10, "{answers:#?}");
    first.gateway.stop(Duration::from_secs(1)).await;
    second.gateway.stop(Duration::from_secs(1)).await;
    let status = sink.run("one").unwrap();
    assert_eq!(
        (status.used.model_requests, status.used.tokens),
        (10, 100),
        "both write one status: {status:?}"
    );
    assert_eq!(
        (status.claimed.model_requests, status.claimed.tokens),
        (10, 100),
        "what was not spent is given back"
    );
    let quota = sink.policy().unwrap();
    assert_eq!((quota.model_requests, quota.tokens), (10, 100), "{quota:?}");
}

#[tokio::test]
async fn a_crashed_gateway_costs_a_chunk_and_never_resets_a_budget() {
    let sink = FakeSink::new();
    let limits = AskedLimits {
        tokens: Some(10_000),
        ..AskedLimits::default()
    };
    let mut spent = 0;
    for kill in 0..5 {
        let (harness, _) = gateway(policy(), sink.clone()).await;
        let sandbox = harness.sandbox_with("one", 11, limits.clone()).await;
        let back = complete(&harness, &sandbox, &chat("good", json!({}))).await;
        assert!(back.starts_with("HTTP/1.1 200"), "{kill}: {back}");
        spent += 10;
        harness.status("one", |status| status.used.tokens == spent).await;
        // Dropped without a word: what it had claimed stays claimed.
        let status = sink.run("one").unwrap();
        assert!(
            status.claimed.tokens >= spent && status.claimed.tokens <= spent + (kill + 1) * 250,
            "{status:?}"
        );
    }
}
