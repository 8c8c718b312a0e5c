//! Takes a credential's value out of what a server answers: the exact value, also across the borders of chunks. A server
//! that answers it in another form (encoded, split, reversed) is not caught.

use http::{HeaderMap, HeaderValue};

/// What stands in the place of each byte of the value, so that lengths stay as announced.
const MASK: u8 = b'*';

/// Replaces each occurrence of a value in a stream of bytes.
///
/// It holds back only bytes that may be the beginning of the value (Knuth, Morris and Pratt's automaton), so an event
/// stream is not delayed.
#[derive(Clone)]
pub struct Scrubber {
    value: Box<[u8]>,
    /// For each length matched, the length of the longest proper prefix that is a suffix of it.
    fallback: Box<[usize]>,
    /// How many bytes of the value the stream's end matches; these are held back.
    matched: usize,
    found: u64,
}

impl Scrubber {
    /// For a value; an empty one is never found.
    #[must_use]
    pub fn new(value: &[u8]) -> Self {
        let mut fallback = vec![0; value.len()];
        let mut length = 0;
        for at in 1..value.len() {
            while length > 0 && value[at] != value[length] {
                length = fallback[length - 1];
            }
            if value[at] == value[length] {
                length += 1;
            }
            fallback[at] = length;
        }
        Self {
            value: value.into(),
            fallback: fallback.into(),
            matched: 0,
            found: 0,
        }
    }

    /// Takes the next bytes and appends to `out` what is known to be harmless by now.
    pub fn feed(&mut self, chunk: &[u8], out: &mut Vec<u8>) {
        if self.value.is_empty() {
            out.extend_from_slice(chunk);
            return;
        }
        out.reserve(chunk.len() + self.matched);
        let mut rest = chunk;
        while let Some((&byte, after)) = rest.split_first() {
            if self.matched == 0 {
                // The common case, in one go: nothing of the value in sight.
                let clean = rest
                    .iter()
                    .position(|byte| *byte == self.value[0])
                    .unwrap_or(rest.len());
                out.extend_from_slice(&rest[..clean]);
                if clean == rest.len() {
                    return;
                }
                rest = &rest[clean + 1..];
                self.advance(out);
                continue;
            }
            while self.matched > 0 && byte != self.value[self.matched] {
                // What is no longer part of a match can go.
                let kept = self.fallback[self.matched - 1];
                out.extend_from_slice(&self.value[..self.matched - kept]);
                self.matched = kept;
            }
            if byte == self.value[self.matched] {
                self.advance(out);
            } else {
                out.push(byte);
            }
            rest = after;
        }
    }

    /// The stream has ended: appends what was held back.
    pub fn finish(&mut self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.value[..self.matched]);
        self.matched = 0;
    }

    /// How often the value was found.
    #[must_use]
    pub fn found(&self) -> u64 {
        self.found
    }

    /// One more byte of the value matches.
    fn advance(&mut self, out: &mut Vec<u8>) {
        self.matched += 1;
        if self.matched == self.value.len() {
            out.resize(out.len() + self.matched, MASK);
            self.matched = 0;
            self.found += 1;
        }
    }
}

impl std::fmt::Debug for Scrubber {
    /// Without the value.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Scrubber")
            .field("found", &self.found)
            .finish_non_exhaustive()
    }
}

/// Replaces a value in the values of headers; says how often it was found.
pub fn headers(headers: &mut HeaderMap, value: &[u8]) -> u64 {
    let mut found = 0;
    for field in headers.values_mut() {
        let mut scrubber = Scrubber::new(value);
        let mut clean = Vec::new();
        scrubber.feed(field.as_bytes(), &mut clean);
        scrubber.finish(&mut clean);
        if scrubber.found() > 0 {
            found += scrubber.found();
            // Bytes of a field's value replaced by `*` are a field's value.
            *field = HeaderValue::from_bytes(&clean).unwrap_or_else(|_| HeaderValue::from_static("*"));
        }
    }
    found
}
