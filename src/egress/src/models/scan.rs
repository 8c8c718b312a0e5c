//! JSON read as it passes: byte by byte, in bounded memory, for the few values of it that matter.
//!
//! An answer may be many megabytes (embeddings, or the last event of a stream, which repeats the whole answer), and comes
//! in any pieces. Nothing of it is kept but the way to the value that is being read, and a number's digits.

/// Deeper values are not read: the document is given up.
const MAX_DEPTH: usize = 128;
/// Longer names match nothing.
const MAX_NAME_BYTES: usize = 32;
/// Longer numbers are given to the sink cut, and so are no whole number that fits.
const MAX_NUMBER_BYTES: usize = 24;

/// What takes the values.
pub(super) trait Sink {
    /// Whether, and as what, the bytes of the string at this place are to be counted.
    fn counts(&self, path: Path<'_>) -> Option<Tally>;
    /// So many more bytes of such a string.
    fn count(&mut self, tally: Tally, bytes: u64);
    /// A value that is neither object nor array.
    fn scalar(&mut self, path: Path<'_>, scalar: Scalar<'_>);
}

/// What the bytes of a string are counted as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tally {
    /// A piece of what is written over many documents.
    Piece,
    /// A part of what is written in one document.
    Whole,
}

/// A value that is neither object nor array.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scalar<'a> {
    /// A number as it is written.
    Number(&'a [u8]),
    /// A string.
    Text,
    /// `true` or `false`.
    Bool,
    /// `null`.
    Null,
}

/// Where a value lies: the names on the way to it, `*` for the place in an array.
#[derive(Clone, Copy)]
pub(super) struct Path<'a>(&'a [Frame]);

impl<'a> Path<'a> {
    /// Whether it is exactly this way.
    pub(super) fn is(self, way: &[&str]) -> bool {
        self.0.len() == way.len() && self.starts_with(way)
    }

    /// Whether it begins with this way.
    pub(super) fn starts_with(self, way: &[&str]) -> bool {
        self.0.len() >= way.len()
            && self
                .0
                .iter()
                .zip(way)
                .all(|(frame, name)| frame.name() == name.as_bytes())
    }

    /// If it is this way and one name more: that name.
    pub(super) fn below(self, way: &[&str]) -> Option<&'a [u8]> {
        (self.0.len() == way.len() + 1 && self.starts_with(way))
            .then(|| self.0.last().map(Frame::name))
            .flatten()
    }

    /// Whether this name is on the way.
    pub(super) fn has(self, name: &str) -> bool {
        self.0
            .iter()
            .any(|frame| frame.is_object && frame.name() == name.as_bytes())
    }

    /// The last name on the way that is no place in an array.
    pub(super) fn last_name(self) -> &'a [u8] {
        self.0
            .iter()
            .rev()
            .find(|frame| frame.is_object)
            .map_or(b"", Frame::name)
    }
}

#[derive(Clone, Copy, Debug)]
struct Frame {
    is_object: bool,
    name: [u8; MAX_NAME_BYTES],
    /// More than [`MAX_NAME_BYTES`] if the name did not fit.
    length: usize,
}

impl Frame {
    fn new(is_object: bool) -> Self {
        Self {
            is_object,
            name: [0; MAX_NAME_BYTES],
            length: 0,
        }
    }

    fn name(&self) -> &[u8] {
        if self.is_object {
            // A name that did not fit is none.
            self.name.get(..self.length).unwrap_or_default()
        } else {
            b"*"
        }
    }

    fn push(&mut self, byte: u8) {
        if let Some(place) = self.name.get_mut(self.length) {
            *place = byte;
        }
        self.length = (self.length + 1).min(MAX_NAME_BYTES + 1);
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// A value must follow; in a new array its end may.
    Value {
        or_end: bool,
    },
    /// A name must follow; in a new object its end may.
    Name {
        or_end: bool,
    },
    Colon,
    /// A comma or an end must follow.
    After,
    InName,
    InText(Option<Tally>),
    /// The byte after a backslash.
    Escape {
        in_name: bool,
        tally: Option<Tally>,
    },
    /// The digits of such an escape.
    Code {
        left: u8,
        tally: Option<Tally>,
    },
    InNumber,
    InWord,
    /// The document has ended; only white space may follow.
    Ended,
    /// It is no JSON.
    Broken,
}

/// Reads one document.
#[derive(Clone, Debug)]
pub(super) struct Scanner {
    state: State,
    frames: Vec<Frame>,
    scalar: [u8; MAX_NUMBER_BYTES],
    length: usize,
}

impl Default for Scanner {
    fn default() -> Self {
        Self {
            state: State::Value { or_end: false },
            frames: Vec::new(),
            scalar: [0; MAX_NUMBER_BYTES],
            length: 0,
        }
    }
}

impl Scanner {
    /// Begins another document.
    pub(super) fn reset(&mut self) {
        self.state = State::Value { or_end: false };
        self.frames.clear();
        self.length = 0;
    }

    /// More bytes of the document.
    pub(super) fn feed(&mut self, mut bytes: &[u8], sink: &mut impl Sink) {
        while let Some((&first, rest)) = bytes.split_first() {
            // Strings are nearly all of an answer: over what is plain in them in one go.
            if let State::InText(tally) = self.state {
                let plain = bytes
                    .iter()
                    .position(|byte| *byte == b'"' || *byte == b'\\')
                    .unwrap_or(bytes.len());
                if plain > 0 {
                    if let Some(tally) = tally {
                        sink.count(tally, u64::try_from(plain).unwrap_or(u64::MAX));
                    }
                    bytes = &bytes[plain..];
                    continue;
                }
            }
            if self.state == State::Broken {
                return;
            }
            if self.step(first, sink) {
                bytes = rest;
            }
        }
    }

    /// Takes one byte; false if it is to be looked at again, as what follows a number.
    fn step(&mut self, byte: u8, sink: &mut impl Sink) -> bool {
        match self.state {
            State::InName => self.in_name(byte),
            State::InText(tally) => match byte {
                b'"' => {
                    sink.scalar(Path(&self.frames), Scalar::Text);
                    self.after_value();
                }
                b'\\' => {
                    self.state = State::Escape {
                        in_name: false,
                        tally,
                    }
                }
                _ => {}
            },
            State::Escape { in_name, tally } => {
                if in_name {
                    // No name that matters is written with escapes; what is, matches nothing.
                    if let Some(frame) = self.frames.last_mut() {
                        frame.length = MAX_NAME_BYTES + 1;
                    }
                    self.state = State::InName;
                } else {
                    // `\u4f60` stands for up to three bytes, all else for one.
                    let is_code = byte == b'u';
                    if let Some(tally) = tally {
                        sink.count(tally, if is_code { 2 } else { 1 });
                    }
                    self.state = if is_code {
                        State::Code { left: 4, tally }
                    } else {
                        State::InText(tally)
                    };
                }
            }
            State::Code { left, tally } if byte.is_ascii_hexdigit() => {
                self.state = if left > 1 {
                    State::Code {
                        left: left - 1,
                        tally,
                    }
                } else {
                    State::InText(tally)
                };
            }
            State::Code { .. } => self.state = State::Broken,
            State::InNumber if is_number(byte) => self.keep(byte),
            State::InWord if byte.is_ascii_lowercase() => self.keep(byte),
            State::InNumber => {
                let digits = self.scalar.get(..self.length).unwrap_or(b"too long");
                sink.scalar(Path(&self.frames), Scalar::Number(digits));
                self.after_value();
                return false;
            }
            State::InWord => {
                let scalar = match self.scalar.get(..self.length) {
                    Some(b"true" | b"false") => Some(Scalar::Bool),
                    Some(b"null") => Some(Scalar::Null),
                    _ => None,
                };
                match scalar {
                    Some(scalar) => {
                        sink.scalar(Path(&self.frames), scalar);
                        self.after_value();
                    }
                    None => self.state = State::Broken,
                }
                return false;
            }
            _ if matches!(byte, b' ' | b'\n' | b'\r' | b'\t') => {}
            State::Value { or_end } => self.value(byte, or_end, sink),
            State::Name { or_end } => match byte {
                b'"' => {
                    if let Some(frame) = self.frames.last_mut() {
                        frame.length = 0;
                    }
                    self.state = State::InName;
                }
                b'}' if or_end => self.close(true),
                _ => self.state = State::Broken,
            },
            State::Colon if byte == b':' => self.state = State::Value { or_end: false },
            State::After => match (byte, self.frames.last().map(|frame| frame.is_object)) {
                (b',', Some(true)) => self.state = State::Name { or_end: false },
                (b',', Some(false)) => self.state = State::Value { or_end: false },
                (b'}', _) => self.close(true),
                (b']', _) => self.close(false),
                _ => self.state = State::Broken,
            },
            State::Colon | State::Ended | State::Broken => self.state = State::Broken,
        }
        true
    }

    fn in_name(&mut self, byte: u8) {
        match byte {
            b'"' => self.state = State::Colon,
            b'\\' => {
                self.state = State::Escape {
                    in_name: true,
                    tally: None,
                }
            }
            byte => {
                if let Some(frame) = self.frames.last_mut() {
                    frame.push(byte);
                }
            }
        }
    }

    fn value(&mut self, byte: u8, or_end: bool, sink: &mut impl Sink) {
        match byte {
            b'"' => self.state = State::InText(sink.counts(Path(&self.frames))),
            b'{' | b'[' if self.frames.len() >= MAX_DEPTH => self.state = State::Broken,
            b'{' => {
                self.frames.push(Frame::new(true));
                self.state = State::Name { or_end: true };
            }
            b'[' => {
                self.frames.push(Frame::new(false));
                self.state = State::Value { or_end: true };
            }
            b']' if or_end => self.close(false),
            byte if byte == b'-' || byte.is_ascii_digit() => {
                self.length = 0;
                self.keep(byte);
                self.state = State::InNumber;
            }
            byte if byte.is_ascii_lowercase() => {
                self.length = 0;
                self.keep(byte);
                self.state = State::InWord;
            }
            _ => self.state = State::Broken,
        }
    }

    fn keep(&mut self, byte: u8) {
        if let Some(place) = self.scalar.get_mut(self.length) {
            *place = byte;
        }
        self.length = (self.length + 1).min(MAX_NUMBER_BYTES + 1);
    }

    fn close(&mut self, object: bool) {
        match self.frames.pop() {
            Some(frame) if frame.is_object == object => self.after_value(),
            _ => self.state = State::Broken,
        }
    }

    fn after_value(&mut self) {
        self.state = if self.frames.is_empty() {
            State::Ended
        } else {
            State::After
        };
    }
}

fn is_number(byte: u8) -> bool {
    byte.is_ascii_digit() || matches!(byte, b'-' | b'+' | b'.' | b'e' | b'E')
}
