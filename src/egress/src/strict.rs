//! What HTTP/1 request bytes may look like before the HTTP library sees them.
//!
//! The library is lenient where RFC 9112 lets a recipient be: it takes a bare LF for a line's end, and of a request
//! with both `Content-Length` and `Transfer-Encoding` it silently forgets the former. Each leniency is a place where the
//! server behind might read another request than the gateway has judged. [`Strict`] walks along the bytes, follows
//! heads and bodies by itself, and passes on only what has one reading.
//!
//! Synchronous and without I/O.

use crate::deny::Deny;

/// Longest head of a request, in bytes.
pub const MAX_HEAD_BYTES: usize = 32 << 10;
/// Most header fields of a request.
pub const MAX_HEADERS: usize = 100;
/// Longest line of a chunk's size: 16 hexadecimal digits and CRLF.
const MAX_CHUNK_LINE: usize = 18;

/// Follows the requests of one connection.
#[derive(Debug, Default)]
pub struct Strict {
    state: State,
    /// How many bytes of an unfinished head were searched for its end.
    searched: usize,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    #[default]
    Head,
    /// So many bytes of a body are left.
    Length(u64),
    ChunkSize,
    /// So many bytes of a chunk are left.
    ChunkData(u64),
    ChunkEnd,
    /// The empty line behind the last chunk.
    LastEnd,
    /// No HTTP any more: behind CONNECT, or a request that asks for another protocol. Such a connection carries no
    /// further request: it is taken over or closed.
    Raw,
}

/// How the body behind a head is framed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Framing {
    Length(u64),
    Chunked,
    Raw,
}

impl Strict {
    /// How many of the first `bytes` may go on now. The caller gives the rest again, with what has arrived behind it; 0
    /// asks for more.
    ///
    /// # Errors
    /// [`Deny::RequestMalformed`] for what has no one reading, [`Deny::RequestTooLarge`] for a head beyond its ceilings.
    pub fn advance(&mut self, bytes: &[u8]) -> Result<usize, Deny> {
        let mut passed = 0;
        loop {
            let rest = &bytes[passed..];
            if rest.is_empty() {
                return Ok(passed);
            }
            let step = match self.state {
                State::Head => self.head(rest)?,
                State::Length(left) => {
                    let step = take(left, rest.len());
                    self.state = match left - step as u64 {
                        0 => State::Head,
                        left => State::Length(left),
                    };
                    step
                }
                State::ChunkSize => match chunk_size(rest)? {
                    Some((0, step)) => {
                        self.state = State::LastEnd;
                        step
                    }
                    Some((size, step)) => {
                        self.state = State::ChunkData(size);
                        step
                    }
                    None => 0,
                },
                State::ChunkData(left) => {
                    let step = take(left, rest.len());
                    self.state = match left - step as u64 {
                        0 => State::ChunkEnd,
                        left => State::ChunkData(left),
                    };
                    step
                }
                State::ChunkEnd => self.line_end(rest, State::ChunkSize)?,
                State::LastEnd => self.line_end(rest, State::Head)?,
                State::Raw => rest.len(),
            };
            if step == 0 {
                return Ok(passed);
            }
            passed += step;
        }
    }

    /// Whether the next byte begins, or continues, a head.
    #[must_use]
    pub fn in_head(&self) -> bool {
        self.state == State::Head
    }

    /// Whether the bytes are no HTTP any more.
    #[must_use]
    pub fn is_raw(&self) -> bool {
        self.state == State::Raw
    }

    fn head(&mut self, bytes: &[u8]) -> Result<usize, Deny> {
        // The end may begin up to three bytes before what is new.
        let from = self.searched.saturating_sub(3).min(bytes.len());
        let end = bytes[from..]
            .windows(4)
            .position(|window| window == b"\r\n\r\n")
            .map(|at| from + at + 4);
        let Some(end) = end else {
            self.searched = bytes.len();
            early(bytes)?;
            if bytes.len() >= MAX_HEAD_BYTES {
                return Err(Deny::RequestTooLarge);
            }
            return Ok(0);
        };
        if end > MAX_HEAD_BYTES {
            return Err(Deny::RequestTooLarge);
        }
        self.searched = 0;
        self.state = match head(&bytes[..end - 2])? {
            Framing::Length(0) => State::Head,
            Framing::Length(length) => State::Length(length),
            Framing::Chunked => State::ChunkSize,
            Framing::Raw => State::Raw,
        };
        Ok(end)
    }

    fn line_end(&mut self, bytes: &[u8], next: State) -> Result<usize, Deny> {
        match bytes {
            [b'\r', b'\n', ..] => {
                self.state = next;
                Ok(2)
            }
            [b'\r'] => Ok(0),
            // Trailers, too: nothing of ours needs them, and what they may hold differs between servers.
            _ => Err(Deny::RequestMalformed),
        }
    }
}

fn take(left: u64, available: usize) -> usize {
    usize::try_from(left).map_or(available, |left| left.min(available))
}

/// What can be said of an unfinished head: that it begins with a method, and that no LF stands alone. So neither SOCKS,
/// TLS nor endless garbage waits for the time-out.
fn early(bytes: &[u8]) -> Result<(), Deny> {
    let method = bytes.iter().take(32).take_while(|byte| is_token(**byte)).count();
    if method == 0 || method == 32 || (method < bytes.len() && bytes[method] != b' ') {
        return Err(Deny::RequestMalformed);
    }
    let lone = bytes
        .iter()
        .enumerate()
        .any(|(at, byte)| *byte == b'\n' && (at == 0 || bytes[at - 1] != b'\r'));
    if lone { Err(Deny::RequestMalformed) } else { Ok(()) }
}

fn chunk_size(bytes: &[u8]) -> Result<Option<(u64, usize)>, Deny> {
    let digits = bytes
        .iter()
        .take(MAX_CHUNK_LINE)
        .take_while(|byte| byte.is_ascii_hexdigit())
        .count();
    if digits > 16 {
        return Err(Deny::RequestMalformed);
    }
    match bytes.get(digits..) {
        None | Some([]) => return Ok(None),
        Some([b'\r']) if digits > 0 => return Ok(None),
        Some([b'\r', b'\n', ..]) if digits > 0 => {}
        // Chunk extensions, too.
        Some(_) => return Err(Deny::RequestMalformed),
    }
    let size = std::str::from_utf8(&bytes[..digits])
        .ok()
        .and_then(|digits| u64::from_str_radix(digits, 16).ok())
        .filter(|size| i64::try_from(*size).is_ok())
        .ok_or(Deny::RequestMalformed)?;
    Ok(Some((size, digits + 2)))
}

/// `bytes` holds the request line and all fields, each with its CRLF, without the empty line.
fn head(bytes: &[u8]) -> Result<Framing, Deny> {
    let mut lines = lines(bytes)?.into_iter();
    let request = request_line(lines.next().ok_or(Deny::RequestMalformed)?)?;
    let mut fields = Fields::default();
    for line in lines {
        fields.add(line)?;
    }
    fields.framing(&request)
}

/// Splits at CRLF, and lets neither CR nor LF stand alone.
fn lines(bytes: &[u8]) -> Result<Vec<&[u8]>, Deny> {
    let mut lines = Vec::new();
    let mut rest = bytes;
    while !rest.is_empty() {
        let end = rest
            .iter()
            .position(|byte| matches!(byte, b'\r' | b'\n'))
            .ok_or(Deny::RequestMalformed)?;
        if rest[end..].len() < 2 || rest[end] != b'\r' || rest[end + 1] != b'\n' {
            return Err(Deny::RequestMalformed);
        }
        lines.push(&rest[..end]);
        if lines.len() > MAX_HEADERS + 1 {
            return Err(Deny::RequestTooLarge);
        }
        rest = &rest[end + 2..];
    }
    Ok(lines)
}

struct RequestLine {
    connect: bool,
    http_11: bool,
}

fn request_line(line: &[u8]) -> Result<RequestLine, Deny> {
    let mut parts = line.split(|byte| *byte == b' ');
    let (Some(method), Some(target), Some(version), None) =
        (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return Err(Deny::RequestMalformed);
    };
    let method_ok = (1..32).contains(&method.len()) && method.iter().copied().all(is_token);
    let target_ok = !target.is_empty() && target.iter().all(|byte| (0x21..0x7f).contains(byte));
    let http_11 = match version {
        b"HTTP/1.1" => true,
        b"HTTP/1.0" => false,
        _ => return Err(Deny::RequestMalformed),
    };
    if method_ok && target_ok {
        Ok(RequestLine {
            connect: method == b"CONNECT",
            http_11,
        })
    } else {
        Err(Deny::RequestMalformed)
    }
}

#[derive(Default)]
struct Fields {
    hosts: usize,
    length: Option<u64>,
    chunked: bool,
    upgrade: bool,
}

impl Fields {
    fn add(&mut self, line: &[u8]) -> Result<(), Deny> {
        // A line that begins with blank continues the one before (obs-fold): its name is empty here.
        let colon = line
            .iter()
            .position(|byte| *byte == b':')
            .ok_or(Deny::RequestMalformed)?;
        let (name, value) = (&line[..colon], line[colon + 1..].trim_ascii());
        if name.is_empty() || !name.iter().copied().all(is_token) {
            return Err(Deny::RequestMalformed);
        }
        if value
            .iter()
            .any(|byte| (*byte < 0x20 && *byte != b'\t') || *byte == 0x7f)
        {
            return Err(Deny::RequestMalformed);
        }
        if name.eq_ignore_ascii_case(b"host") {
            self.hosts += 1;
        } else if name.eq_ignore_ascii_case(b"content-length") {
            if self.length.replace(content_length(value)?).is_some() {
                return Err(Deny::RequestMalformed);
            }
        } else if name.eq_ignore_ascii_case(b"transfer-encoding") {
            if self.chunked || !value.eq_ignore_ascii_case(b"chunked") {
                return Err(Deny::RequestMalformed);
            }
            self.chunked = true;
        } else if name.eq_ignore_ascii_case(b"upgrade") {
            self.upgrade = true;
        }
        Ok(())
    }

    fn framing(&self, request: &RequestLine) -> Result<Framing, Deny> {
        if self.hosts > 1 || (self.hosts == 0 && request.http_11 && !request.connect) {
            return Err(Deny::RequestMalformed);
        }
        let takes_over = request.connect || self.upgrade;
        match (self.chunked, self.length) {
            (true, Some(_)) => Err(Deny::RequestMalformed),
            (true, None) if takes_over || !request.http_11 => Err(Deny::RequestMalformed),
            (false, Some(1..)) if takes_over => Err(Deny::RequestMalformed),
            _ if takes_over => Ok(Framing::Raw),
            (true, None) => Ok(Framing::Chunked),
            (false, length) => Ok(Framing::Length(length.unwrap_or(0))),
        }
    }
}

fn content_length(value: &[u8]) -> Result<u64, Deny> {
    if value.is_empty() || value.len() > 18 || !value.iter().all(u8::is_ascii_digit) {
        return Err(Deny::RequestMalformed);
    }
    std::str::from_utf8(value)
        .ok()
        .and_then(|value| value.parse().ok())
        .ok_or(Deny::RequestMalformed)
}

/// A `tchar` of RFC 9110, section 5.6.2.
fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const OK: &str = "GET / HTTP/1.1\r\nHost: a.example\r\n";

    fn all(text: &str) -> Result<usize, Deny> {
        Strict::default().advance(text.as_bytes())
    }

    #[test]
    fn well_formed_requests_pass_as_they_are() {
        for text in [
            "GET / HTTP/1.1\r\nHost: a.example\r\n\r\n".to_owned(),
            "GET / HTTP/1.0\r\n\r\n".to_owned(),
            "POST /x?y HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc".to_owned(),
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: Chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"
                .to_owned(),
            "CONNECT a.example:443 HTTP/1.1\r\nHost: a.example:443\r\n\r\n\x16\x03\x01".to_owned(),
            format!("{OK}\r\n{OK}\r\n"),
            format!("{OK}X: caf\u{e9}\tx\r\n\r\n"),
        ] {
            assert_eq!(all(&text), Ok(text.len()), "{text:?}");
        }
    }

    #[test]
    fn what_has_two_readings_is_refused() {
        for text in [
            "GET / HTTP/1.1\nHost: a\n\n".to_owned(),
            "GET / HTTP/1.1\r\nHost: a\r\nX: 1\nY: 2\r\n\r\n".to_owned(),
            "GET / HTTP/1.1\r\nHost: a\rX: 1\r\n\r\n".to_owned(),
            format!("{OK} folded\r\n\r\n"),
            format!("{OK}X: 1\r\n\tfolded: 1\r\n\r\n"),
            format!("{OK}Content-Length : 3\r\n\r\nabc"),
            format!("{OK}Host: b.example\r\n\r\n"),
            "GET / HTTP/1.1\r\n\r\n".to_owned(),
            format!("{OK}Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
            format!("{OK}Transfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n0\r\n\r\n"),
            format!("{OK}Content-Length: 3\r\nContent-Length: 3\r\n\r\nabc"),
            format!("{OK}Content-Length: 3, 3\r\n\r\nabc"),
            format!("{OK}Content-Length: +3\r\n\r\nabc"),
            format!("{OK}Content-Length: 0x3\r\n\r\nabc"),
            format!("{OK}Content-Length: -1\r\n\r\nabc"),
            format!("{OK}Content-Length: 99999999999999999999\r\n\r\nabc"),
            format!("{OK}Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n"),
            format!("{OK}Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n"),
            format!("{OK}Transfer-Encoding: xchunked\r\n\r\n"),
            "POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n".to_owned(),
            format!("{OK}X: a\0b\r\n\r\n"),
            format!("{OK}: empty\r\n\r\n"),
            format!("{OK}no colon\r\n\r\n"),
            "GET  / HTTP/1.1\r\nHost: a\r\n\r\n".to_owned(),
            "GET / HTTP/1.1 \r\nHost: a\r\n\r\n".to_owned(),
            "GET / HTTP/2.0\r\nHost: a\r\n\r\n".to_owned(),
            "GET /\u{e9} HTTP/1.1\r\nHost: a\r\n\r\n".to_owned(),
            "\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n".to_owned(),
            " GET / HTTP/1.1\r\nHost: a\r\n\r\n".to_owned(),
            "CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\nContent-Length: 5\r\n\r\nhello".to_owned(),
            format!("{OK}Upgrade: websocket\r\nTransfer-Encoding: chunked\r\n\r\n"),
        ] {
            assert_eq!(all(&text), Err(Deny::RequestMalformed), "{text:?}");
        }
    }

    #[test]
    fn chunks_have_one_spelling() {
        let head = format!("{OK}Transfer-Encoding: chunked\r\n\r\n");
        for body in [
            "3;x=1\r\nabc\r\n",
            "3 \r\nabc",
            "\r\n",
            "3\nabc",
            "3\r\nabcd\r\n",
            "0\r\nX: 1\r\n\r\n",
            "11111111111111111\r\n",
            "ffffffffffffffff\r\n",
        ] {
            assert_eq!(
                all(&format!("{head}{body}")),
                Err(Deny::RequestMalformed),
                "{body:?}"
            );
        }
    }

    #[test]
    fn other_protocols_are_refused_by_their_first_bytes() {
        for bytes in [
            &b"\x05\x01\x00"[..],
            b"\x04\x01",
            b"\x16\x03\x01\x02\x00",
            b"\0",
            b"\n",
        ] {
            assert_eq!(
                Strict::default().advance(bytes),
                Err(Deny::RequestMalformed),
                "{bytes:?}"
            );
        }
    }

    #[test]
    fn a_head_without_end_is_refused_at_its_ceiling() {
        let mut text = OK.to_owned();
        while text.len() < MAX_HEAD_BYTES {
            text.push_str("X-Filler: aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\r\n");
        }
        assert_eq!(all(&text), Err(Deny::RequestTooLarge));
        let many = format!("{OK}{}\r\n", "A: b\r\n".repeat(MAX_HEADERS + 1));
        assert_eq!(all(&many), Err(Deny::RequestTooLarge));
    }

    #[test]
    fn behind_connect_and_upgrade_bytes_are_no_requests() {
        let text = format!("{OK}Upgrade: websocket\r\nConnection: upgrade\r\n\r\nGET / HTTP/1.1\n\n");
        let mut strict = Strict::default();
        assert_eq!(strict.advance(text.as_bytes()), Ok(text.len()));
        assert!(strict.is_raw());
    }

    proptest! {
        #[test]
        fn the_cut_of_the_bytes_does_not_change_the_verdict(cuts in prop::collection::vec(1usize..40, 0..40)) {
            let text = format!(
                "{OK}\r\nPOST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n10\r\n0123456789abcdef\r\n0\r\n\r\n\
                 POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 30\r\n\r\n{}{OK}\r\n",
                "x".repeat(30)
            );
            let (mut strict, mut pending, mut out) = (Strict::default(), Vec::new(), Vec::new());
            let mut rest = text.as_bytes();
            let mut cuts = cuts.into_iter();
            while !rest.is_empty() {
                let step = cuts.next().unwrap_or(rest.len()).min(rest.len());
                pending.extend_from_slice(&rest[..step]);
                rest = &rest[step..];
                let passed = strict.advance(&pending).unwrap();
                out.extend(pending.drain(..passed));
            }
            prop_assert_eq!(out, text.as_bytes());
            prop_assert!(strict.in_head());
        }

        #[test]
        fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..512)) {
            let _ = Strict::default().advance(&bytes);
            let mut text = OK.as_bytes().to_vec();
            text.extend_from_slice(&bytes);
            let _ = Strict::default().advance(&text);
        }
    }
}
