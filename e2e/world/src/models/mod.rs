//! APIs of model providers. Answers are words, and tokens are counted as words, so that every figure can be foretold:
//! input is the words of all texts of the request, output the words of the answer. `say N` in the last text asks for N
//! words; without it there are eight. A chat that offers a function and holds no result of one yet is answered by a
//! call of the first, which costs five.
//!
//! Hosts below `models.test` want a key that begins with `sk-real-`. The name of the model can ask for trouble:
//!
//! | model | trouble |
//! |---|---|
//! | `no-usage`, `negative-usage`, `false-usage`, `huge-usage`, `text-usage` | the figures in `usage` |
//! | `cut`, `cut-before-usage` | a stream that breaks off in the middle, or before its usage |
//! | `too-many`, `broken`, `slow` | 429, 500, an answer after 20 s |
//! | `endless` | a stream without end |
//! | `compressed` | a compressed answer, though nobody asked for one |
//! | `redirecting` | 302 to `redirected.test` |
//!
//! Hosts that begin with `busy.` answer 429, with `down.` 503.

mod anthropic;
mod openai;

use std::time::Duration;

use bytes::Bytes;
use hyper::http::request::Parts;
use serde_json::{Value, json};

use crate::body::{Piece, Response, answer, json as in_json, pieces, text, with_header};

/// Words of an answer that nobody asked to be longer or shorter.
const USUAL_WORDS: usize = 8;
/// Most words of an answer.
const WORDS_MAX: usize = 1_000_000;
/// Tokens of a picture or a sound.
const PICTURE: i64 = 100;
/// What a provider's key begins with.
const KEY: &str = "sk-real-";

/// What is asked of a model.
struct Asked<'a> {
    body: &'a Value,
    model: String,
    stream: bool,
    input: i64,
    /// Words of the answer.
    output: usize,
    /// Whether the answer is shorter than it would be, because of the request's own limit.
    cut_short: bool,
}

/// Answers one request.
pub async fn serve(parts: &Parts, body: &[u8]) -> Response {
    let host = host(parts);
    let anthropic = parts.headers.contains_key("anthropic-version");
    if host.ends_with("models.test") && !has_key(parts, anthropic) {
        return failure(anthropic, 401, "authentication_error", "this is no key");
    }
    if host.starts_with("busy.") {
        return failure(anthropic, 429, "rate_limit_error", "too many requests");
    }
    if host.starts_with("down.") {
        return failure(anthropic, 503, "overloaded_error", "down");
    }
    let asked = serde_json::from_slice::<Value>(body).unwrap_or(Value::Null);
    match (parts.method.as_str(), parts.uri.path()) {
        ("GET", "/v1/models") if anthropic => in_json(200, &anthropic::models()),
        ("GET", "/v1/models") => in_json(200, &openai::models()),
        ("POST", "/v1/chat/completions") => trouble(&asked, "messages", openai::chat).await,
        ("POST", "/v1/responses") => trouble(&asked, "input", openai::responses).await,
        ("POST", "/v1/embeddings") => trouble(&asked, "input", openai::embeddings).await,
        ("POST", "/v1/messages") => trouble(&asked, "messages", anthropic::messages).await,
        ("POST", "/v1/messages/count_tokens") => trouble(&asked, "messages", anthropic::count).await,
        // Whatever else a provider has answers as well: it is not for want of an answer that nobody gets one.
        _ => in_json(200, &json!({"unmetered": parts.uri.path(), "bytes": body.len()})),
    }
}

fn host(parts: &Parts) -> String {
    let authority = parts.uri.authority().map(ToString::to_string);
    let header = || Some(parts.headers.get("host")?.to_str().ok()?.to_owned());
    authority.or_else(header).unwrap_or_default()
}

fn has_key(parts: &Parts, anthropic: bool) -> bool {
    let value = |name| {
        parts
            .headers
            .get(name)
            .and_then(|value| value.to_str().ok())
            .unwrap_or_default()
    };
    let key = if anthropic {
        value("x-api-key")
    } else {
        value("authorization").trim_start_matches("Bearer ")
    };
    key.starts_with(KEY)
}

fn failure(anthropic: bool, status: u16, kind: &str, message: &str) -> Response {
    let error = json!({"type": kind, "message": message});
    let body = if anthropic {
        json!({"type": "error", "error": error})
    } else {
        json!({"error": error})
    };
    // Clients must not wait long before they try again.
    with_header(in_json(status, &body), "retry-after-ms", "10")
}

/// Makes the trouble that the model's name asks for, or answers.
async fn trouble(body: &Value, texts: &str, respond: fn(&Asked<'_>) -> Response) -> Response {
    let model = body["model"].as_str().unwrap_or_default().to_owned();
    match model.as_str() {
        "" => return failure(false, 400, "invalid_request_error", "no model"),
        "too-many" => return failure(false, 429, "rate_limit_error", "too many requests"),
        "broken" => return failure(false, 500, "server_error", "broken"),
        "slow" => tokio::time::sleep(Duration::from_secs(20)).await,
        "redirecting" => {
            return with_header(
                text(302, ""),
                "location",
                "https://redirected.test/v1/chat/completions",
            );
        }
        _ => {}
    }
    let input = words_in(&body[texts]) + words_in(&body["system"]) + words_in(&body["instructions"]);
    let wanted = wanted_words(&body[texts]);
    let limit = ["max_completion_tokens", "max_tokens", "max_output_tokens"]
        .iter()
        .find_map(|name| body[*name].as_u64())
        .and_then(|limit| usize::try_from(limit).ok())
        .unwrap_or(WORDS_MAX);
    let response = respond(&Asked {
        body,
        stream: body["stream"] == true,
        input,
        output: wanted.min(limit),
        cut_short: wanted > limit,
        model: model.clone(),
    });
    if model == "compressed" {
        return with_header(response, "content-encoding", "gzip");
    }
    response
}

/// Words of all texts in a value; a picture or sound counts as a hundred.
fn words_in(value: &Value) -> i64 {
    match value {
        Value::String(text) => i64::try_from(text.split_whitespace().count()).unwrap_or(i64::MAX),
        Value::Array(values) => values.iter().map(words_in).sum(),
        Value::Object(fields) => {
            let picture = fields
                .get("type")
                .and_then(Value::as_str)
                .is_some_and(|kind| kind.contains("image") || kind.contains("audio"));
            if picture {
                return PICTURE;
            }
            ["content", "text"]
                .iter()
                .filter_map(|name| fields.get(*name))
                .map(words_in)
                .sum()
        }
        _ => 0,
    }
}

/// How many words the last text asks for.
fn wanted_words(value: &Value) -> usize {
    let text = last_text(value).unwrap_or_default();
    let mut words = text.split_whitespace().skip_while(|word| *word != "say").skip(1);
    let asked = words.next().and_then(|word| word.parse().ok());
    asked.unwrap_or(USUAL_WORDS).min(WORDS_MAX)
}

fn last_text(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Array(values) => values.iter().rev().find_map(last_text),
        Value::Object(fields) => ["content", "text"]
            .iter()
            .find_map(|name| fields.get(*name).and_then(last_text)),
        _ => None,
    }
}

impl Asked<'_> {
    /// The answer's words.
    fn words(&self) -> impl Iterator<Item = &'static str> + Send + use<> {
        let last = self.output;
        (0..last).map(move |index| if index + 1 == last { "word" } else { "word " })
    }

    /// The answer.
    fn text(&self) -> String {
        self.words().collect()
    }

    /// Puts figures into a `usage`, as the model's name wants them: true ones, false ones, or none.
    fn usage(&self, figures: &[(&str, i64)]) -> Option<Value> {
        let mut usage = json!({});
        for (name, figure) in figures {
            usage[*name] = match self.model.as_str() {
                "no-usage" => return None,
                "negative-usage" => json!(-1 - figure),
                "false-usage" => json!(0),
                "huge-usage" => json!(i64::MAX),
                "text-usage" => json!(figure.to_string()),
                _ => json!(figure),
            };
        }
        Some(usage)
    }

    /// A stream of events: these before the words, one for each word, and these after them. The model's name may want
    /// it to break off.
    fn events(
        &self,
        before: Vec<String>,
        word: impl Fn(&str) -> String + Send + 'static,
        after: Vec<String>,
        usage: Vec<String>,
    ) -> Response {
        let cut = self.model == "cut";
        let cut_before_usage = self.model == "cut-before-usage";
        let endless = self.model == "endless";
        let said = if cut { self.output / 2 } else { self.output };
        let words: Box<dyn Iterator<Item = &'static str> + Send> = if endless {
            Box::new(std::iter::repeat("word "))
        } else {
            Box::new(self.words().take(said))
        };
        let end = if cut || cut_before_usage {
            vec![Piece::Break]
        } else {
            after.into_iter().chain(usage).map(piece).collect()
        };
        let stream = before
            .into_iter()
            .map(piece)
            .chain(words.map(move |text| piece(word(text))))
            .chain(end);
        answer(200, "text/event-stream", pieces(stream))
    }
}

fn piece(text: String) -> Piece {
    Piece::Bytes(Bytes::from(text))
}

/// An identifier that is different each time.
fn identifier(prefix: &str) -> String {
    static COUNT: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);
    let number = COUNT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    format!("{prefix}{number:08x}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_counted_wherever_texts_stand() {
        for (value, words) in [
            (json!("one two  three"), 3),
            (
                json!([{"role": "user", "content": "one two"}, {"role": "user", "content": "three"}]),
                3,
            ),
            (
                json!([{"content": [{"type": "text", "text": "one two"}, {"type": "image_url", "image_url": {}}]}]),
                102,
            ),
            (json!(null), 0),
        ] {
            assert_eq!(words_in(&value), words, "{value}");
        }
    }

    #[test]
    fn the_last_text_says_how_long_the_answer_is() {
        let messages =
            json!([{"content": "say 5"}, {"content": [{"type": "text", "text": "please say 12 words"}]}]);
        assert_eq!(wanted_words(&messages), 12);
        assert_eq!(wanted_words(&json!("hello")), USUAL_WORDS);
        assert_eq!(wanted_words(&json!("say nothing")), USUAL_WORDS);
    }
}
