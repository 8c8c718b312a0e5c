//! What an answer costs, read from it as it passes.
//!
//! The provider's count is taken where it can be true. Where it is missing or can't be, the charge is what the request
//! was reserved with: the most that it can have cost.

use super::Endpoint;
use super::event_stream::{Data, Decoder};
use super::request::{Bounds, Prepared};
use super::scan::{Path, Scalar, Scanner, Sink, Tally};

/// Bytes of text that one token stands for at most, in a text that a model writes. The vocabularies' tokens average 3 to
/// 5 bytes; the longest (runs of spaces, `-` or `=`) have up to 128, but no answer consists of them. So a sixteenth of
/// the bytes is a floor that no honest count of a real text is below.
const MAX_BYTES_PER_TOKEN: i64 = 16;

/// A count is absurd if it is more than this many times what the request can cost, or the model can hold. Up to that it
/// is believed, though it be more than was reserved: what the provider counts is what it bills.
const ABSURD_FACTOR: i64 = 16;

/// What a model request cost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Charge {
    /// Tokens read by the model, cached ones included.
    pub input: i64,
    /// Tokens written by the model, thoughts included.
    pub output: i64,
    /// Whether a part of it is an estimate, because the provider did not say, or said what can't be.
    pub estimated: bool,
}

impl Charge {
    /// Input and output together.
    #[must_use]
    pub fn tokens(self) -> i64 {
        self.input.saturating_add(self.output)
    }
}

/// Reads what an answer costs, in bounded memory, whatever its size and however it is cut.
#[derive(Clone, Debug)]
pub struct Meter {
    form: Form,
    reading: Reading,
}

/// How the answer is written.
#[derive(Clone, Debug)]
enum Form {
    /// Not known before its first byte.
    Unknown,
    /// One document.
    Document(Scanner),
    /// A stream of events.
    Stream(Decoder),
}

impl Meter {
    /// The meter of one attempt's answer. `content_type` is what the answer says it is.
    #[must_use]
    pub fn new(prepared: &Prepared<'_>, content_type: Option<&str>) -> Self {
        let content_type = content_type.unwrap_or_default().to_ascii_lowercase();
        let form = if content_type.starts_with("text/event-stream") {
            Form::Stream(Decoder::default())
        } else if content_type.starts_with("application/json") {
            Form::Document(Scanner::default())
        } else {
            Form::Unknown
        };
        Self {
            form,
            reading: Reading::new(&prepared.endpoint, prepared.bounds),
        }
    }

    /// Bytes of the answer's body, in any pieces, not compressed.
    pub fn feed(&mut self, chunk: &[u8]) {
        if matches!(self.form, Form::Unknown) {
            match chunk.iter().find(|byte| !byte.is_ascii_whitespace()) {
                None => return,
                Some(b'{' | b'[') => self.form = Form::Document(Scanner::default()),
                Some(_) => self.form = Form::Stream(Decoder::default()),
            }
        }
        match &mut self.form {
            Form::Unknown => {}
            Form::Document(scanner) => scanner.feed(chunk, &mut self.reading.figures),
            Form::Stream(decoder) => {
                self.reading.figures.is_stream = true;
                decoder.feed(chunk, &mut self.reading);
            }
        }
    }

    /// What it cost. `status` is the answer's HTTP status; `complete` whether its body ended as it should.
    #[must_use]
    pub fn finish(self, status: u16, complete: bool) -> Charge {
        self.reading.charge(status, complete)
    }
}

/// Which answer it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Chat,
    Responses,
    Embeddings,
    Messages,
    /// Costs nothing.
    Free,
}

/// The documents of an answer, one after the other.
#[derive(Clone, Debug)]
struct Reading {
    bounds: Bounds,
    /// Of the documents of a stream.
    scanner: Scanner,
    /// The event's first bytes.
    start: [u8; 8],
    start_length: usize,
    figures: Figures,
}

impl Reading {
    fn new(endpoint: &Endpoint, bounds: Bounds) -> Self {
        Self {
            bounds,
            scanner: Scanner::default(),
            start: [0; 8],
            start_length: 0,
            figures: Figures {
                kind: match endpoint {
                    Endpoint::ChatCompletions => Kind::Chat,
                    Endpoint::Responses => Kind::Responses,
                    Endpoint::Embeddings => Kind::Embeddings,
                    Endpoint::Messages => Kind::Messages,
                    Endpoint::CountTokens | Endpoint::Models | Endpoint::Model(_) => Kind::Free,
                },
                is_stream: false,
                usage: Usage::default(),
                text: Text::default(),
                ended: false,
            },
        }
    }

    fn charge(&self, status: u16, complete: bool) -> Charge {
        let Bounds { input, output, .. } = self.bounds;
        if self.figures.kind == Kind::Free {
            return Charge::default();
        }
        let usage = &self.figures.usage;
        let observed = self.observed();
        let is_error = !(200..300).contains(&status);
        if is_error && usage.is_absent() {
            // Providers charge nothing for what they refuse or fail to answer.
            return Charge {
                input: 0,
                output: observed,
                estimated: observed > 0,
            };
        }
        let ceiling = input
            .saturating_add(output)
            .max(self.bounds.context)
            .saturating_mul(ABSURD_FACTOR);
        let believed = |count: Option<i64>| count.filter(|count| !usage.is_false && *count <= ceiling);

        let mut charge = Charge::default();
        match believed(usage.input()) {
            // Something was read. (Some servers leave out what they had in their cache.)
            Some(0) if self.bounds.text_bytes > 0 => {
                charge.input = (self.bounds.text_bytes / MAX_BYTES_PER_TOKEN).max(1);
                charge.estimated = true;
            }
            Some(count) => charge.input = count,
            None => {
                charge.input = input;
                charge.estimated = true;
            }
        }
        // A stream's count of what was written is true at its end only; and what the provider had written when the
        // stream broke is not known: it may have gone on, and reasoning is not seen at all. What was seen is no bound
        // from above, so all that was reserved is charged.
        let is_final = complete || self.figures.ended || !self.figures.is_stream;
        match believed(usage.output()).filter(|_| is_final) {
            Some(count) if count >= observed => charge.output = count,
            Some(_) => {
                charge.output = observed;
                charge.estimated = true;
            }
            None => {
                charge.output = output.max(observed);
                charge.estimated |= charge.output > 0;
            }
        }
        charge
    }

    /// Fewest tokens that what was seen of the answer can be.
    fn observed(&self) -> i64 {
        let bytes = i64::try_from(self.figures.text.bytes()).unwrap_or(i64::MAX);
        (bytes / MAX_BYTES_PER_TOKEN).max(i64::from(bytes > 0))
    }
}

impl Data for Reading {
    fn data(&mut self, bytes: &[u8]) {
        for (place, byte) in self.start[self.start_length..].iter_mut().zip(bytes) {
            *place = *byte;
        }
        self.start_length = (self.start_length + bytes.len()).min(self.start.len());
        self.scanner.feed(bytes, &mut self.figures);
    }

    fn end(&mut self) {
        // OpenAI's mark of the end, which is no document.
        if self.start[..self.start_length].starts_with(b"[DONE]") {
            self.figures.ended = true;
        }
        self.start_length = 0;
        self.scanner.reset();
        self.figures.text.document_ends();
    }
}

/// What was found in the documents so far.
#[derive(Clone, Debug)]
struct Figures {
    kind: Kind,
    is_stream: bool,
    usage: Usage,
    text: Text,
    /// The stream has said that it ends.
    ended: bool,
}

/// Bytes of text that was written.
#[derive(Clone, Copy, Debug, Default)]
struct Text {
    /// In the pieces of a stream.
    pieces: u64,
    /// In the document that is being read.
    document: u64,
    /// The most in one document: the last event of a stream repeats the whole.
    whole: u64,
}

impl Text {
    fn document_ends(&mut self) {
        self.whole = self.whole.max(self.document);
        self.document = 0;
    }

    fn bytes(self) -> u64 {
        self.pieces.max(self.whole).max(self.document)
    }
}

/// What the provider has counted: of each figure the largest that was seen. Streams count up; and of two figures for one
/// thing the smaller one is a lie.
#[derive(Clone, Copy, Debug, Default)]
struct Usage {
    input: Option<i64>,
    cache_written: Option<i64>,
    cache_read: Option<i64>,
    output: Option<i64>,
    total: Option<i64>,
    /// Some figure is no whole number from 0.
    is_false: bool,
}

impl Usage {
    fn is_absent(&self) -> bool {
        self.input.is_none() && self.output.is_none() && !self.is_false
    }

    /// What was read: with Anthropic, what was cached is counted apart.
    fn input(&self) -> Option<i64> {
        self.input.map(|input| {
            input
                .saturating_add(self.cache_written.unwrap_or(0))
                .saturating_add(self.cache_read.unwrap_or(0))
        })
    }

    /// What was written: some servers count thoughts in the total only. A total that is less than its part is a lie.
    fn output(&self) -> Option<i64> {
        match self.total.zip(self.input) {
            Some((total, input)) if total < input => None,
            Some((total, input)) => self.output.max(Some(total - input)),
            None => self.output,
        }
    }

    fn place(&mut self, name: &[u8]) -> Option<&mut Option<i64>> {
        Some(match name {
            b"prompt_tokens" | b"input_tokens" => &mut self.input,
            b"completion_tokens" | b"output_tokens" => &mut self.output,
            b"cache_creation_input_tokens" => &mut self.cache_written,
            b"cache_read_input_tokens" => &mut self.cache_read,
            b"total_tokens" => &mut self.total,
            _ => return None,
        })
    }

    fn read(&mut self, name: &[u8], scalar: Scalar<'_>) {
        let Some(place) = self.place(name) else { return };
        let count = match scalar {
            Scalar::Null => return,
            Scalar::Number(text) => std::str::from_utf8(text)
                .ok()
                .and_then(|text| text.parse::<i64>().ok())
                .filter(|count| *count >= 0),
            Scalar::Text | Scalar::Bool => None,
        };
        match count {
            Some(count) => *place = (*place).max(Some(count)),
            None => self.is_false = true,
        }
    }
}

/// Names of what a model writes in an answer's choice.
const CHOICE_TEXT: [&[u8]; 8] = [
    b"content",
    b"text",
    b"refusal",
    b"reasoning",
    b"reasoning_content",
    b"arguments",
    b"input",
    b"transcript",
];

impl Sink for Figures {
    fn counts(&self, path: Path<'_>) -> Option<Tally> {
        let name = path.last_name();
        let (is_text, tally) = match self.kind {
            Kind::Chat => (
                path.starts_with(&["choices", "*"])
                    && CHOICE_TEXT.contains(&name)
                    // The thoughts once more.
                    && !path.has("reasoning_details"),
                if self.is_stream {
                    Tally::Piece
                } else {
                    Tally::Whole
                },
            ),
            Kind::Responses if self.is_stream && path.is(&["delta"]) => (true, Tally::Piece),
            Kind::Responses => (
                path.starts_with(if self.is_stream {
                    &["response", "output"]
                } else {
                    &["output"]
                }) && matches!(name, b"text" | b"refusal" | b"arguments" | b"input"),
                Tally::Whole,
            ),
            Kind::Messages if self.is_stream => (
                matches!(
                    path.below(&["delta"]).or(path.below(&["content_block"])),
                    Some(b"text" | b"thinking" | b"partial_json")
                ),
                Tally::Piece,
            ),
            Kind::Messages => (
                matches!(path.below(&["content", "*"]), Some(b"text" | b"thinking"))
                    || path.starts_with(&["content", "*", "input"]),
                Tally::Whole,
            ),
            Kind::Embeddings | Kind::Free => (false, Tally::Whole),
        };
        is_text.then_some(tally)
    }

    fn count(&mut self, tally: Tally, bytes: u64) {
        let place = match tally {
            Tally::Piece => &mut self.text.pieces,
            Tally::Whole => &mut self.text.document,
        };
        *place = place.saturating_add(bytes);
    }

    fn scalar(&mut self, path: Path<'_>, scalar: Scalar<'_>) {
        let name = match self.kind {
            Kind::Free => return,
            Kind::Responses if self.is_stream => path.below(&["response", "usage"]),
            Kind::Messages if self.is_stream => {
                if path.is(&["delta", "stop_reason"]) && scalar == Scalar::Text {
                    self.ended = true;
                }
                path.below(&["usage"]).or_else(|| {
                    // At the start only what was read is known.
                    path.below(&["message", "usage"])
                        .filter(|name| *name != b"output_tokens")
                })
            }
            Kind::Chat | Kind::Embeddings | Kind::Responses | Kind::Messages => path.below(&["usage"]),
        };
        if let Some(name) = name {
            self.usage.read(name, scalar);
            // Only the last event of a response has its usage.
            self.ended |= self.kind == Kind::Responses && self.usage.output.is_some();
        }
    }
}
