//! Ordinary web pages, and some that a careful caller must survive.
//!
//! | path | answer |
//! |---|---|
//! | `/echo` and every other | the request as JSON, headers and the body's size and digest included |
//! | `/reflect` | the request's credentials, in a header and in the body; `?split` byte by byte, `?gzip` compressed |
//! | `/digest` | the digest of the request's credentials, by which a caller can see that they changed |
//! | `/redirect?to=URL` | 302 |
//! | `/status?code=N` | that status |
//! | `/bytes?n=N` | so many bytes |
//! | `/endless` | a body without end |
//! | `/slow?seconds=N` | an answer after so many seconds |
//! | `/drip?n=N&ms=M` | N lines, one every M milliseconds |
//! | `/gzip` | a compressed body |
//! | `/cookie` | a cookie |

use std::collections::HashMap;
use std::io::Write;
use std::time::Duration;

use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use http_body_util::BodyExt;
use hyper::Request;
use hyper::body::Incoming;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::body::{Piece, Response, answer, full, json, pieces, text, with_header};
use crate::journal::bounded;
use crate::server::{Connection, host_of};

/// Size of one piece of a large body.
const PIECE: usize = 64 << 10;
/// What an endless body ends at, so that nothing runs for ever.
const ENDLESS: u64 = 64 << 30;
/// Headers that carry credentials.
const CREDENTIALS: [&str; 4] = ["authorization", "x-api-key", "x-token", "cookie"];

/// Answers one request.
pub async fn serve(connection: &Connection, request: Request<Incoming>) -> Response {
    let query = parameters(request.uri().query().unwrap_or_default());
    let number = |name: &str| query.get(name).and_then(|value| value.parse::<u64>().ok());
    match request.uri().path() {
        "/reflect" => reflect(&request, &query),
        "/digest" => text(200, &hex(&Sha256::digest(credentials(&request)))),
        "/redirect" => {
            let to = query.get("to").map_or("/echo", String::as_str);
            with_header(text(302, "elsewhere"), "location", to)
        }
        "/status" => {
            let code = number("code").and_then(|code| u16::try_from(code).ok());
            json(code.unwrap_or(200), &json!({"status": code}))
        }
        "/bytes" => {
            let size = number("n").unwrap_or_default();
            let response = answer(200, "application/octet-stream", pieces(zeros(size)));
            with_header(response, "content-length", &size.to_string())
        }
        "/endless" => answer(200, "application/octet-stream", pieces(zeros(ENDLESS))),
        "/slow" => {
            tokio::time::sleep(Duration::from_secs(number("seconds").unwrap_or(5).min(600))).await;
            text(200, "at last")
        }
        "/drip" => {
            let pause = Duration::from_millis(number("ms").unwrap_or(100));
            let lines = (0..number("n").unwrap_or(10)).flat_map(move |index| {
                [
                    Piece::Bytes(Bytes::from(format!("{index}\n"))),
                    Piece::Pause(pause),
                ]
            });
            answer(200, "text/plain", pieces(lines))
        }
        "/gzip" => compressed(b"{\"compressed\": true}"),
        "/cookie" => with_header(
            json(200, &json!({"cookie": true})),
            "set-cookie",
            "session=of-the-outside; Path=/",
        ),
        _ => echo(connection, request).await,
    }
}

/// The request as JSON.
async fn echo(connection: &Connection, request: Request<Incoming>) -> Response {
    let headers: Vec<Value> = request
        .headers()
        .iter()
        .map(|(name, value)| json!([name.as_str(), bounded(value.as_bytes())]))
        .collect();
    let mut found = json!({
        "method": request.method().as_str(), "host": host_of(&request), "path": request.uri().path(),
        "query": request.uri().query(), "version": format!("{:?}", request.version()),
        "scheme": connection.scheme, "sni": connection.server_name, "address": connection.local.ip().to_string(),
        "port": connection.local.port(), "headers": headers,
    });
    let (mut size, mut digest) = (0, Sha256::new());
    let mut body = request.into_body();
    while let Some(Ok(frame)) = body.frame().await {
        if let Some(data) = frame.data_ref() {
            size += data.len();
            digest.update(data);
        }
    }
    found["bodyBytes"] = json!(size);
    found["bodySha256"] = Value::String(hex(&digest.finalize()));
    json(200, &found)
}

/// Sends credentials back, as a careless or hostile server would.
fn reflect(request: &Request<Incoming>, query: &HashMap<String, String>) -> Response {
    let shown = credentials(request);
    let response = if query.contains_key("gzip") {
        compressed(shown.as_bytes())
    } else if query.contains_key("split") {
        let bytes: Vec<u8> = shown.bytes().collect();
        let one_by_one = bytes.into_iter().flat_map(|byte| {
            [
                Piece::Bytes(Bytes::from(vec![byte])),
                Piece::Pause(Duration::from_millis(1)),
            ]
        });
        answer(200, "text/plain", pieces(one_by_one))
    } else {
        text(200, &shown)
    };
    with_header(response, "x-reflected", &shown)
}

/// Every credential of a request.
fn credentials(request: &Request<Incoming>) -> String {
    let seen: Vec<String> = CREDENTIALS
        .iter()
        .filter_map(|name| {
            let value = request.headers().get(*name)?;
            Some(format!("{name}: {}", bounded(value.as_bytes())))
        })
        .collect();
    seen.join(" | ")
}

fn compressed(content: &[u8]) -> Response {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    let packed = encoder.write_all(content).and_then(|()| encoder.finish());
    let response = answer(200, "application/json", full(packed.unwrap_or_default()));
    with_header(response, "content-encoding", "gzip")
}

fn zeros(size: u64) -> impl Iterator<Item = Piece> + Send + 'static {
    let piece = Bytes::from(vec![0; PIECE]);
    let mut left = size;
    std::iter::from_fn(move || {
        let length = usize::try_from(left).unwrap_or(PIECE).min(PIECE);
        left -= length as u64;
        (length > 0).then(|| Piece::Bytes(piece.slice(..length)))
    })
}

/// The parameters of a query string.
fn parameters(query: &str) -> HashMap<String, String> {
    query
        .split('&')
        .filter(|pair| !pair.is_empty())
        .map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            (name.to_owned(), decoded(value))
        })
        .collect()
}

/// Resolves `%` escapes.
fn decoded(text: &str) -> String {
    let mut out = Vec::new();
    let bytes = text.as_bytes();
    let mut at = 0;
    while at < bytes.len() {
        let escaped = text
            .get(at + 1..at + 3)
            .and_then(|digits| u8::from_str_radix(digits, 16).ok());
        match escaped {
            Some(byte) if bytes[at] == b'%' => {
                out.push(byte);
                at += 3;
            }
            _ => {
                out.push(bytes[at]);
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// Bytes in hex.
pub fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_split_and_unescaped() {
        let found = parameters("to=https%3A%2F%2Fevil.test%2F&split&n=3");
        assert_eq!(found["to"], "https://evil.test/");
        assert_eq!(found["split"], "");
        assert_eq!(found["n"], "3");
    }

    #[test]
    fn zeros_have_the_size_that_was_asked_for() {
        for size in [0_u64, 1, 65_535, 65_536, 65_537, 200_000] {
            let sent: usize = zeros(size)
                .map(|piece| match piece {
                    Piece::Bytes(bytes) => bytes.len(),
                    _ => 0,
                })
                .sum();
            assert_eq!(sent as u64, size);
        }
    }
}
