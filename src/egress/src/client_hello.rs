//! The first message of a TLS client (RFC 8446 4.1.2), read from the bytes that come before anything is answered.

/// Most bytes looked at, record headers included.
pub const HELLO_MAX: usize = 16 << 10;

/// What the first bytes of a connection are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Hello {
    /// The beginning of a ClientHello; more bytes are needed.
    Partial,
    /// A ClientHello.
    Complete {
        /// The name that the client wants, as it wrote it; `None` if it sent none, or one that is no ASCII text.
        server_name: Option<String>,
        /// Whether it hides a second ClientHello with the real name.
        encrypted: bool,
        /// Whether it offers HTTP/2.
        alpn_h2: bool,
    },
    /// Anything else, a ClientHello that breaks the rules of its encoding included.
    NotTls,
}

/// Record type «handshake».
const HANDSHAKE: u8 = 22;
/// Handshake type «client_hello».
const CLIENT_HELLO: u8 = 1;
/// Extension «server_name» (RFC 6066).
const SERVER_NAME: u16 = 0;
/// Extension «application_layer_protocol_negotiation» (RFC 7301).
const ALPN: u16 = 16;
/// Extension «encrypted_client_hello» (RFC 9849), and «encrypted_server_name» of its first drafts.
const ENCRYPTED: [u16; 2] = [0xfe0d, 0xffce];

/// Reads a ClientHello from the first bytes of a connection. It may be spread over several records; bytes after it are
/// not looked at.
#[must_use]
pub fn parse(bytes: &[u8]) -> Hello {
    let message = match message(bytes) {
        Ok(message) => message,
        Err(hello) => return hello,
    };
    client_hello(&message).unwrap_or(Hello::NotTls)
}

/// The body of the first handshake message, put together from records.
fn message(bytes: &[u8]) -> Result<Vec<u8>, Hello> {
    let mut message: Vec<u8> = Vec::new();
    let mut rest = &bytes[..bytes.len().min(HELLO_MAX)];
    let needs_more = if bytes.len() >= HELLO_MAX {
        Hello::NotTls
    } else {
        Hello::Partial
    };
    loop {
        // What has come of the header must be right already: a client that sends one wrong byte need not be waited for.
        let is_header = rest.first().is_none_or(|kind| *kind == HANDSHAKE)
            && rest.get(1).is_none_or(|major| *major == 3)
            && rest.get(2).is_none_or(|minor| (1..=4).contains(minor));
        if !is_header {
            return Err(Hello::NotTls);
        }
        let Some((header, after)) = rest.split_at_checked(5) else {
            return Err(needs_more);
        };
        let length = usize::from(u16::from_be_bytes([header[3], header[4]]));
        // An empty handshake record is forbidden (RFC 8446 5.1), one above 2^14 bytes as well.
        if length == 0 || length > 1 << 14 {
            return Err(Hello::NotTls);
        }
        let fragment = &after[..length.min(after.len())];
        message.extend_from_slice(fragment);
        if message.first().is_some_and(|kind| *kind != CLIENT_HELLO) {
            return Err(Hello::NotTls);
        }
        if let Some((header, body)) = message.split_at_checked(4) {
            let wanted = usize::from(header[1]) << 16 | usize::from(header[2]) << 8 | usize::from(header[3]);
            if wanted > HELLO_MAX {
                return Err(Hello::NotTls);
            }
            if body.len() >= wanted {
                // A ClientHello is alone in its flight: nothing may follow it in the same record, whether it has come
                // already or not. Else the verdict would depend on how the network has cut the bytes.
                return if body.len() == wanted && fragment.len() == length {
                    Ok(body.to_vec())
                } else {
                    Err(Hello::NotTls)
                };
            }
        }
        if fragment.len() < length {
            return Err(needs_more);
        }
        rest = &after[length..];
    }
}

fn client_hello(body: &[u8]) -> Option<Hello> {
    let mut body = Reader(body);
    let version = body.u16()?;
    body.take(32)?;
    let session = body.vec8()?;
    let suites = body.vec16()?;
    let compressions = body.vec8()?;
    let is_well_formed = version >> 8 == 3
        && session.len() <= 32
        && !suites.is_empty()
        && suites.len().is_multiple_of(2)
        && !compressions.is_empty();
    if !is_well_formed {
        return None;
    }
    let mut server_name = None;
    let mut encrypted = false;
    let mut alpn_h2 = false;
    // Before extensions were invented a ClientHello ended here.
    if !body.0.is_empty() {
        let mut extensions = Reader(body.vec16()?);
        let mut seen = Vec::new();
        while !extensions.0.is_empty() {
            let kind = extensions.u16()?;
            let data = extensions.vec16()?;
            // Twice the same extension: client and server could each believe another one.
            if seen.contains(&kind) {
                return None;
            }
            seen.push(kind);
            match kind {
                SERVER_NAME => server_name = read_server_name(data)?,
                ALPN => alpn_h2 = read_alpn(data)?,
                _ => encrypted |= ENCRYPTED.contains(&kind),
            }
        }
        if !body.0.is_empty() {
            return None;
        }
    }
    Some(Hello::Complete {
        server_name,
        encrypted,
        alpn_h2,
    })
}

/// The outer `None` is a malformed extension, the inner one a name that is no ASCII text.
#[allow(clippy::option_option)] // said just above
fn read_server_name(data: &[u8]) -> Option<Option<String>> {
    let mut data = Reader(data);
    let mut names = Reader(data.vec16()?);
    // The one type there is; a list with two of it is forbidden (RFC 6066 3).
    let kind = names.u8()?;
    let name = names.vec16()?;
    if kind != 0 || name.is_empty() || !names.0.is_empty() || !data.0.is_empty() {
        return None;
    }
    let is_text = name.iter().all(|byte| (0x21..0x7f).contains(byte)) && name.len() <= 255;
    Some(is_text.then(|| String::from_utf8_lossy(name).into_owned()))
}

fn read_alpn(data: &[u8]) -> Option<bool> {
    let mut data = Reader(data);
    let mut protocols = Reader(data.vec16()?);
    let mut is_http2 = false;
    while !protocols.0.is_empty() {
        let protocol = protocols.vec8()?;
        if protocol.is_empty() {
            return None;
        }
        is_http2 |= protocol == b"h2";
    }
    data.0.is_empty().then_some(is_http2)
}

/// Reads from the front of a slice; `None` where it is too short.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(taken)
    }

    fn u8(&mut self) -> Option<u8> {
        self.take(1).map(|bytes| bytes[0])
    }

    fn u16(&mut self) -> Option<u16> {
        self.take(2).map(|bytes| u16::from_be_bytes([bytes[0], bytes[1]]))
    }

    fn vec8(&mut self) -> Option<&'a [u8]> {
        let length = self.u8()?;
        self.take(length.into())
    }

    fn vec16(&mut self) -> Option<&'a [u8]> {
        let length = self.u16()?;
        self.take(length.into())
    }
}

#[cfg(test)]
#[path = "client_hello_tests.rs"]
mod tests;
