//! Streams of events (`text/event-stream`), in bounded memory.
//!
//! As in <https://html.spec.whatwg.org/multipage/server-sent-events.html#parsing-an-event-stream>: lines end with CR, LF
//! or both; an empty line ends an event; of an event only its `data` matters here.

use super::json::{self, Value};

/// A larger event is no chunk of nothing but usage: it is passed on unread.
const MAX_HELD_BYTES: usize = 64 << 10;

/// What takes the events' data.
pub(super) trait Data {
    /// More bytes of the event's data.
    fn data(&mut self, bytes: &[u8]);
    /// The event ends.
    fn end(&mut self);
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// At the start of a line; `after_cr` if the last byte was a CR, whose LF may follow.
    Start { after_cr: bool },
    /// In the name of a field, of which so many bytes were those of `data`.
    Field(usize),
    /// After the colon, where one space may follow.
    Colon,
    /// In the data.
    Data,
    /// In a line that doesn't matter.
    Other,
}

/// Finds the data of events in a stream that comes in any pieces.
#[derive(Clone, Debug)]
pub(super) struct Decoder {
    place: Place,
}

impl Default for Decoder {
    fn default() -> Self {
        Self {
            place: Place::Start { after_cr: false },
        }
    }
}

const FIELD: &[u8] = b"data";

impl Decoder {
    /// More bytes of the stream.
    pub(super) fn feed(&mut self, mut bytes: &[u8], to: &mut impl Data) {
        while let Some((&byte, rest)) = bytes.split_first() {
            if matches!(self.place, Place::Data | Place::Other) {
                let line = bytes
                    .iter()
                    .position(|byte| *byte == b'\n' || *byte == b'\r')
                    .unwrap_or(bytes.len());
                if line > 0 {
                    if self.place == Place::Data {
                        to.data(&bytes[..line]);
                    }
                    bytes = &bytes[line..];
                    continue;
                }
            }
            if self.step(byte, to) {
                bytes = rest;
            }
        }
    }

    /// Takes one byte; false if it is to be looked at again.
    fn step(&mut self, byte: u8, to: &mut impl Data) -> bool {
        let is_end = byte == b'\n' || byte == b'\r';
        match self.place {
            Place::Start { after_cr: true } if byte == b'\n' => self.place = Place::Start { after_cr: false },
            Place::Start { .. } if is_end => {
                to.end();
                self.place = Place::Start {
                    after_cr: byte == b'\r',
                };
            }
            Place::Start { .. } => {
                self.place = Place::Field(0);
                return false;
            }
            _ if is_end => {
                if self.place == Place::Data
                    || self.place == Place::Colon
                    || self.place == Place::Field(FIELD.len())
                {
                    // The lines of an event's data are one text.
                    to.data(b"\n");
                }
                self.place = Place::Start {
                    after_cr: byte == b'\r',
                };
            }
            Place::Field(length) => {
                self.place = match FIELD.get(length) {
                    Some(next) if *next == byte => Place::Field(length + 1),
                    None if byte == b':' => Place::Colon,
                    _ => Place::Other,
                }
            }
            Place::Colon => {
                self.place = Place::Data;
                return byte == b' ';
            }
            Place::Data | Place::Other => {}
        }
        true
    }
}

/// Takes out of a stream of chat completions the chunk that holds only the usage, if the client did not ask for it.
///
/// Everything else passes as it came, each event as soon as it is there.
#[derive(Debug, Default)]
pub struct UsageFilter {
    /// The event that is being read.
    held: Vec<u8>,
    /// It is too large to be the one: its rest passes.
    passing: bool,
    /// The line that is being read has a byte.
    line_started: bool,
    /// The last byte was a CR, whose LF may follow.
    after_cr: bool,
}

impl UsageFilter {
    /// Bytes from the provider; returns those for the client.
    #[must_use]
    pub fn feed(&mut self, chunk: &[u8]) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.held.len() + chunk.len());
        let mut rest = chunk;
        while let Some(&first) = rest.first() {
            if first == b'\n' && std::mem::take(&mut self.after_cr) {
                self.take(&rest[..1], &mut out);
                rest = &rest[1..];
                continue;
            }
            self.after_cr = false;
            let Some(end) = rest.iter().position(|byte| *byte == b'\n' || *byte == b'\r') else {
                self.take(rest, &mut out);
                self.line_started = true;
                break;
            };
            self.after_cr = rest[end] == b'\r';
            let is_empty = end == 0 && !self.line_started;
            self.line_started = false;
            self.take(&rest[..=end], &mut out);
            if is_empty {
                self.event_ends(&mut out);
            }
            rest = &rest[end + 1..];
        }
        out
    }

    /// The end of the stream; returns what is left for the client.
    #[must_use]
    pub fn finish(self) -> Vec<u8> {
        self.held
    }

    fn take(&mut self, bytes: &[u8], out: &mut Vec<u8>) {
        // The LF of the CR that has ended an event goes with it: clients may wait for both.
        if self.passing || (self.held.is_empty() && bytes == b"\n") {
            out.extend_from_slice(bytes);
            return;
        }
        self.held.extend_from_slice(bytes);
        if self.held.len() > MAX_HELD_BYTES {
            self.passing = true;
            out.append(&mut self.held);
        }
    }

    fn event_ends(&mut self, out: &mut Vec<u8>) {
        if is_only_usage(&self.held) {
            self.held.clear();
        } else {
            out.append(&mut self.held);
        }
        self.passing = false;
    }
}

/// Whether an event is the chunk that holds the usage of a stream of chat completions, and nothing else: it has no
/// choice (<https://platform.openai.com/docs/api-reference/chat/create#chat-create-stream_options>).
fn is_only_usage(event: &[u8]) -> bool {
    let mut data = Held(Vec::new());
    Decoder::default().feed(event, &mut data);
    json::parse(&data.0).is_ok_and(|chunk| {
        chunk.as_object().is_some_and(|chunk| {
            chunk
                .get("choices")
                .and_then(Value::as_list)
                .is_some_and(<[_]>::is_empty)
                && chunk.get("usage").and_then(Value::as_object).is_some()
        })
    })
}

struct Held(Vec<u8>);

impl Data for Held {
    fn data(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }

    fn end(&mut self) {}
}
