//! Bodies of answers.

use std::io;
use std::time::Duration;

use bytes::Bytes;
use futures::{StreamExt, stream};
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::Frame;
use serde_json::Value;

/// A body that may break off.
pub type Body = http_body_util::combinators::UnsyncBoxBody<Bytes, io::Error>;
/// An answer.
pub type Response = hyper::Response<Body>;

/// One piece of a stream.
#[derive(Clone, Debug)]
pub enum Piece {
    /// Bytes.
    Bytes(Bytes),
    /// A pause.
    Pause(Duration),
    /// The connection breaks.
    Break,
}

/// A whole body.
pub fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into())
        .map_err(|never| match never {})
        .boxed_unsync()
}

/// A body that is sent piece by piece.
pub fn pieces(pieces: impl Iterator<Item = Piece> + Send + 'static) -> Body {
    let frames = stream::iter(pieces).filter_map(|piece| async move {
        match piece {
            Piece::Bytes(bytes) => Some(Ok(Frame::data(bytes))),
            Piece::Pause(time) => {
                tokio::time::sleep(time).await;
                None
            }
            Piece::Break => {
                // What was sent before must have left, or the reader would see none of it.
                tokio::time::sleep(Duration::from_millis(50)).await;
                Some(Err(io::Error::other("the stream breaks off")))
            }
        }
    });
    BodyExt::boxed_unsync(StreamBody::new(frames))
}

/// An answer with this status, content type and body.
pub fn answer(status: u16, content_type: &str, body: Body) -> Response {
    let mut response = Response::new(body);
    *response.status_mut() = hyper::StatusCode::from_u16(status).unwrap_or_default();
    if let Ok(value) = content_type.parse() {
        response.headers_mut().insert(hyper::header::CONTENT_TYPE, value);
    }
    response
}

/// An answer in JSON.
pub fn json(status: u16, value: &Value) -> Response {
    answer(status, "application/json", full(value.to_string()))
}

/// An answer in plain text.
pub fn text(status: u16, text: &str) -> Response {
    answer(status, "text/plain", full(text.to_owned()))
}

/// The same answer with one more header.
pub fn with_header(mut response: Response, name: &'static str, value: &str) -> Response {
    if let Ok(value) = value.parse() {
        response.headers_mut().append(name, value);
    }
    response
}
