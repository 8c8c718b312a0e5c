//! Headers of requests and answers: what is refused, what is removed before they go on.
//!
//! The order of use: [`facts`] when a request has arrived (refuses what could be read in two ways), [`authority`] (which
//! host it means), the rules, [`clean_request`], then the credential; and [`clean_response`] for the answer.

use http::Version;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};

use crate::authority::{self, Host};
use crate::deny::Deny;

/// Largest header block, in bytes: names, values and 4 for each field's separators.
pub const BLOCK_MAX: usize = 32 << 10;
/// Most fields.
pub const FIELDS_MAX: usize = 100;

/// What matters of a request's headers before a rule is chosen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(clippy::struct_excessive_bools)] // independent facts, each with a name
pub struct Facts {
    /// The request would turn the connection into a WebSocket.
    pub upgrade: bool,
    /// The client takes trailers (`TE: trailers`), which gRPC servers insist on.
    pub trailers: bool,
    /// A part of the document is asked for.
    pub range: bool,
    /// Bytes of the body, if said.
    pub content_length: Option<u64>,
    /// The body is compressed.
    pub encoded: bool,
}

/// Reads a request's headers and refuses what could be read in two ways: more than one `Host` or `Content-Length`, both
/// of `Content-Length` and `Transfer-Encoding`, a transfer coding but `chunked`, framing fields named by `Connection`,
/// more than [`BLOCK_MAX`] bytes or [`FIELDS_MAX`] fields.
///
/// # Errors
/// [`Deny::RequestMalformed`]; [`Deny::UpgradeNotAllowed`] for a change to another protocol than WebSocket.
pub fn facts(version: Version, method: &str, headers: &HeaderMap) -> Result<Facts, Deny> {
    bounded(headers)?;
    for single in [
        header::HOST,
        header::CONTENT_LENGTH,
        header::TRANSFER_ENCODING,
        header::UPGRADE,
    ] {
        if headers.get_all(single).iter().count() > 1 {
            return Err(Deny::RequestMalformed);
        }
    }
    let is_http2 = version >= Version::HTTP_2;
    let content_length = match headers.get(header::CONTENT_LENGTH) {
        Some(value) => Some(content_length(value)?),
        None => None,
    };
    if let Some(coding) = headers.get(header::TRANSFER_ENCODING) {
        let is_chunked = coding.as_bytes().eq_ignore_ascii_case(b"chunked");
        if !is_chunked || content_length.is_some() || version != Version::HTTP_11 {
            return Err(Deny::RequestMalformed);
        }
    }
    let mut asks_upgrade = false;
    for option in list(headers, &header::CONNECTION) {
        // A hop-by-hop field goes no further: naming one of these would change what the next server reads.
        let name = option.to_ascii_lowercase();
        if FRAMING.contains(&name.as_str()) || is_http2 {
            return Err(Deny::RequestMalformed);
        }
        asks_upgrade |= name == "upgrade";
    }
    let trailers = list(headers, &header::TE).any(|coding| coding.eq_ignore_ascii_case("trailers"));
    if is_http2 {
        // `TE: trailers` is the one field of a connection that HTTP/2 has.
        let is_foreign = |name: &&&str| headers.contains_key(**name) && !(**name == "te" && trailers);
        if CONNECTION_SPECIFIC.iter().find(is_foreign).is_some() {
            return Err(Deny::RequestMalformed);
        }
    }
    let upgrade = match headers.get(header::UPGRADE) {
        None => false,
        Some(protocol) => {
            let is_websocket = protocol.as_bytes().eq_ignore_ascii_case(b"websocket");
            if !is_websocket || !asks_upgrade || method != "GET" || version != Version::HTTP_11 {
                return Err(Deny::UpgradeNotAllowed);
            }
            // What follows such a request is the other protocol's, or a body: not both.
            if content_length.is_some_and(|length| length > 0)
                || headers.contains_key(header::TRANSFER_ENCODING)
            {
                return Err(Deny::RequestMalformed);
            }
            true
        }
    };
    Ok(Facts {
        upgrade,
        trailers,
        range: headers.contains_key(header::RANGE) || headers.contains_key(header::IF_RANGE),
        content_length,
        encoded: is_encoded(headers),
    })
}

/// The one host and port that a request means: `uri` is the authority of its target (absolute form, or HTTP/2's
/// `:authority`), if it has one; `Host` must agree with it.
///
/// # Errors
/// [`Deny::RequestMalformed`] without either, or without `Host` in HTTP/1.1; [`Deny::HostMismatch`] if they differ; those
/// of [`authority::parse`].
pub fn authority(
    version: Version,
    uri: Option<&str>,
    headers: &HeaderMap,
    default_port: u16,
) -> Result<(Host, u16), Deny> {
    let mut hosts = headers.get_all(header::HOST).iter();
    let host = hosts.next();
    if hosts.next().is_some() || (host.is_none() && version == Version::HTTP_11) {
        return Err(Deny::RequestMalformed);
    }
    let host = match host {
        Some(value) => {
            let text = value.to_str().map_err(|_| Deny::RequestMalformed)?;
            Some(authority::parse(text, Some(default_port))?)
        }
        None => None,
    };
    let uri = match uri {
        Some(text) => Some(authority::parse(text, Some(default_port))?),
        None => None,
    };
    match (uri, host) {
        (Some(uri), Some(host)) if uri != host => Err(Deny::HostMismatch),
        (Some(meant), _) | (None, Some(meant)) => Ok(meant),
        (None, None) => Err(Deny::RequestMalformed),
    }
}

/// Removes what must not go on: the fields that `Connection` names, all that belong to one connection, those that speak
/// of proxies or of another method or path, and what the client sent by the credential's name; each also with `_` in the
/// place of `-`, which some servers (CGI, WSGI) can't tell apart. `Host` goes as well: the gateway sets it from what it
/// checked. Framing is left to the HTTP implementation. For the trailers of a request as well.
pub fn clean_request(headers: &mut HeaderMap, credential: Option<&HeaderName>) {
    strip_connection(headers);
    let is_unwanted = |name: &&HeaderName| {
        let dashed = name.as_str().replace('_', "-");
        let is_alias = dashed != name.as_str();
        let dashed = dashed.as_str();
        dashed == "host"
            || dashed.starts_with("x-forwarded")
            || dashed.starts_with("proxy-")
            || STRIPPED.contains(&dashed)
            || (is_alias && (FRAMING.contains(&dashed) || CONNECTION_SPECIFIC.contains(&dashed)))
            || credential.is_some_and(|credential| credential.as_str() == dashed)
    };
    let unwanted: Vec<HeaderName> = headers.keys().filter(is_unwanted).cloned().collect();
    for name in unwanted {
        headers.remove(name);
    }
}

/// Prepares a cleaned request for a host to which a credential is added: the answer must come uncompressed, so that the
/// value can be found in it.
///
/// # Errors
/// [`Deny::RangeNotAllowed`]: parts of an answer could carry the value in pieces.
pub fn for_credential(headers: &mut HeaderMap, facts: &Facts) -> Result<(), Deny> {
    if facts.range {
        return Err(Deny::RangeNotAllowed);
    }
    ask_for_identity(headers);
    Ok(())
}

/// Writes the fields of a change to WebSocket, which [`clean_request`] and [`clean_response`] remove: for a request that
/// its rule allows to, and for the answer 101 to it.
pub fn set_upgrade(headers: &mut HeaderMap) {
    headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
}

/// Asks for an uncompressed answer.
pub fn ask_for_identity(headers: &mut HeaderMap) {
    headers.insert(header::ACCEPT_ENCODING, HeaderValue::from_static("identity"));
}

/// Removes from an answer what belongs to the connection to the server or leads past the gateway (`Alt-Svc`); with a
/// credential also cookies, which would be credentials of their own, and the offer of ranges.
pub fn clean_response(headers: &mut HeaderMap, credentialed: bool) {
    strip_connection(headers);
    headers.remove(header::ALT_SVC);
    if credentialed {
        headers.remove(header::SET_COOKIE);
        headers.remove("set-cookie2");
        headers.remove(header::ACCEPT_RANGES);
    }
}

/// Whether a body is compressed, or coded in any way but `identity`.
#[must_use]
pub fn is_encoded(headers: &HeaderMap) -> bool {
    let mut codings = list(headers, &header::CONTENT_ENCODING).peekable();
    let is_unreadable = headers
        .get_all(header::CONTENT_ENCODING)
        .iter()
        .any(|value| value.to_str().is_err());
    is_unreadable || codings.any(|coding| !coding.eq_ignore_ascii_case("identity"))
}

/// Whether a credential may be sent in this header: none that frames, routes or conditions a request.
#[must_use]
pub fn may_carry_a_credential(name: &HeaderName) -> bool {
    let name = name.as_str();
    !(FRAMING.contains(&name)
        || CONNECTION_SPECIFIC.contains(&name)
        || STRIPPED.contains(&name)
        || NEVER_A_CREDENTIAL.contains(&name)
        || name.starts_with("proxy-")
        || name.starts_with("x-forwarded")
        || name.starts_with("sec-")
        || name.starts_with("content-")
        || name.starts_with("accept")
        || name.starts_with("if-")
        || name.contains('_'))
}

/// Fields that say where a request ends and whom it is for.
const FRAMING: &[&str] = &["content-length", "host", "transfer-encoding"];

/// Fields of one connection only (RFC 9110 7.6.1, RFC 9113 8.2.2).
const CONNECTION_SPECIFIC: &[&str] = &[
    "connection",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authentication-info",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "http2-settings",
];

/// Fields that some servers believe over the request's own method, path, host or client.
const STRIPPED: &[&str] = &[
    "client-ip",
    "expect",
    "forwarded",
    "true-client-ip",
    "via",
    "x-client-ip",
    "x-cluster-client-ip",
    "x-host",
    "x-http-host-override",
    "x-http-method",
    "x-http-method-override",
    "x-http-path-override",
    "x-method-override",
    "x-original-host",
    "x-original-method",
    "x-original-uri",
    "x-original-url",
    "x-override-url",
    "x-proxy-url",
    "x-real-ip",
    "x-rewrite-url",
];

/// Further fields in which no credential is sent.
const NEVER_A_CREDENTIAL: &[&str] = &[
    "alt-used",
    "cache-control",
    "cookie",
    "date",
    "early-data",
    "max-forwards",
    "origin",
    "pragma",
    "range",
    "referer",
    "set-cookie",
    "user-agent",
];

/// Removes the fields that `Connection` names, then all that belong to one connection.
fn strip_connection(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = list(headers, &header::CONNECTION)
        .filter_map(|option| HeaderName::from_bytes(option.as_bytes()).ok())
        .filter(|name| !FRAMING.contains(&name.as_str()))
        .collect();
    for name in named {
        headers.remove(name);
    }
    for name in CONNECTION_SPECIFIC {
        headers.remove(*name);
    }
}

fn bounded(headers: &HeaderMap) -> Result<(), Deny> {
    let bytes: usize = headers
        .iter()
        .map(|(name, value)| name.as_str().len() + value.len() + 4)
        .sum();
    if headers.len() > FIELDS_MAX || bytes > BLOCK_MAX {
        return Err(Deny::RequestMalformed);
    }
    Ok(())
}

fn content_length(value: &HeaderValue) -> Result<u64, Deny> {
    let bytes = value.as_bytes();
    let is_plain = (1..=19).contains(&bytes.len()) && bytes.iter().all(u8::is_ascii_digit);
    is_plain
        .then(|| value.to_str().ok()?.parse().ok())
        .flatten()
        .ok_or(Deny::RequestMalformed)
}

/// The elements of a field's comma-separated values.
fn list<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a str> {
    headers
        .get_all(name)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(str::trim)
        .filter(|element| !element.is_empty())
}

#[cfg(test)]
#[path = "headers_tests.rs"]
mod tests;
