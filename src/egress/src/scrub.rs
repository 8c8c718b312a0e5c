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
        let holds = !value.is_empty()
            && field
                .as_bytes()
                .windows(value.len())
                .any(|window| window == value);
        if !holds {
            continue;
        }
        let mut scrubber = Scrubber::new(value);
        let mut clean = Vec::new();
        scrubber.feed(field.as_bytes(), &mut clean);
        scrubber.finish(&mut clean);
        found += scrubber.found();
        // A field's value with `*` in it still is one.
        *field = HeaderValue::from_bytes(&clean).unwrap_or_else(|_| HeaderValue::from_static("*"));
    }
    found
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn scrub(value: &[u8], chunks: &[&[u8]]) -> (Vec<u8>, u64) {
        let mut scrubber = Scrubber::new(value);
        let mut out = Vec::new();
        for chunk in chunks {
            scrubber.feed(chunk, &mut out);
        }
        scrubber.finish(&mut out);
        (out, scrubber.found())
    }

    #[test]
    fn the_value_is_masked_across_any_border() {
        let text = b"before s3cret after";
        for at in 0..text.len() {
            let (one, two) = text.split_at(at);
            assert_eq!(
                scrub(b"s3cret", &[one, two]),
                (b"before ****** after".to_vec(), 1),
                "{at}"
            );
        }
        let bytes: Vec<&[u8]> = text.chunks(1).collect();
        assert_eq!(scrub(b"s3cret", &bytes).0, b"before ****** after");
    }

    #[test]
    fn beginnings_of_the_value_that_lead_nowhere_stay() {
        assert_eq!(scrub(b"aab", &[b"aa", b"aa", b"c"]), (b"aaaac".to_vec(), 0));
        assert_eq!(scrub(b"aab", &[b"aaa", b"b"]), (b"a***".to_vec(), 1));
        assert_eq!(scrub(b"abab", &[b"aba"]), (b"aba".to_vec(), 0));
        assert_eq!(scrub(b"abac", &[b"ababac"]), (b"ab****".to_vec(), 1));
    }

    #[test]
    fn nothing_is_held_back_that_is_no_beginning_of_the_value() {
        let mut scrubber = Scrubber::new(b"s3cret");
        let mut out = Vec::new();
        scrubber.feed(b"data: hello\n\n", &mut out);
        assert_eq!(out, b"data: hello\n\n");
        scrubber.feed(b"s3", &mut out);
        assert_eq!(out, b"data: hello\n\n");
        scrubber.feed(b"!", &mut out);
        assert_eq!(out, b"data: hello\n\ns3!");
    }

    #[test]
    fn an_empty_value_changes_nothing() {
        assert_eq!(scrub(b"", &[b"abc"]), (b"abc".to_vec(), 0));
    }

    #[test]
    fn headers_lose_the_value_and_keep_their_length() {
        let mut map = HeaderMap::new();
        map.append("x-echo", HeaderValue::from_static("Bearer s3cret"));
        map.append("x-echo", HeaderValue::from_static("s3crets3cret"));
        map.append("x-other", HeaderValue::from_static("plain"));
        assert_eq!(headers(&mut map, b"s3cret"), 3);
        let echoes: Vec<_> = map.get_all("x-echo").iter().collect();
        assert_eq!(echoes, ["Bearer ******", "************"]);
        assert_eq!(map["x-other"], "plain");
    }

    #[test]
    fn its_debug_form_does_not_tell_the_value() {
        assert!(!format!("{:?}", Scrubber::new(b"s3cret")).contains("s3cret"));
    }

    /// As [`Scrubber`] should do: the value is replaced from left to right in the whole text.
    fn reference(value: &[u8], text: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        let mut at = 0;
        while at < text.len() {
            if text[at..].starts_with(value) {
                out.resize(out.len() + value.len(), MASK);
                at += value.len();
            } else {
                out.push(text[at]);
                at += 1;
            }
        }
        out
    }

    proptest! {
        // Few letters, so that overlaps are frequent.
        #[test]
        fn chunks_are_scrubbed_as_the_whole_is(value in "[ab]{1,6}", chunks in proptest::collection::vec("[abc]{0,9}", 0..20)) {
            let text = chunks.concat();
            let pieces: Vec<&[u8]> = chunks.iter().map(String::as_bytes).collect();
            let (out, _) = scrub(value.as_bytes(), &pieces);
            prop_assert_eq!(&out, &reference(value.as_bytes(), text.as_bytes()));
            prop_assert_eq!(out.len(), text.len());
            prop_assert!(!out.windows(value.len()).any(|window| window == value.as_bytes()));
        }

        #[test]
        fn any_bytes_keep_their_length(value in proptest::collection::vec(any::<u8>(), 0..40), chunks in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..60), 0..10)) {
            let pieces: Vec<&[u8]> = chunks.iter().map(Vec::as_slice).collect();
            prop_assert_eq!(scrub(&value, &pieces).0.len(), chunks.concat().len());
        }
    }
}
