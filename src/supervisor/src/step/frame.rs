//! Frames over the recorder's private socket: kind (1 byte), length (4 bytes, big-endian), content.

use std::io::{self, Read, Write};

use agentsandbox_api::step::StepCommand;
use serde::{Deserialize, Serialize};

/// Longest content of a frame, in bytes: a request with its arguments escaped.
pub const FRAME_MAX: usize = 1 << 20;
/// Bytes before the content.
pub const HEADER: usize = 5;

/// What a frame holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// The first frame, of the caller: a [`Request`].
    Request = b'R',
    /// Standard input.
    Input = b'I',
    /// Standard input has ended.
    InputEnd = b'E',
    /// Standard output.
    Output = b'O',
    /// Standard error.
    Error = b'X',
    /// The last frame, to the caller: an [`Outcome`].
    Outcome = b'Z',
}

impl Kind {
    fn of(byte: u8) -> Option<Self> {
        [
            Self::Request,
            Self::Input,
            Self::InputEnd,
            Self::Output,
            Self::Error,
            Self::Outcome,
        ]
        .into_iter()
        .find(|kind| *kind as u8 == byte)
    }
}

/// What a caller asks for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// A step.
    Step(StepCommand),
    /// The run as it stands now.
    Status,
}

/// What came of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Outcome {
    /// The step has ended.
    Ended {
        /// Its exit code.
        exit_code: i32,
        /// Why it could not be started, or was ended, if so.
        message: String,
    },
    /// The step runs on without its caller.
    Detached {
        /// Its number.
        step: u64,
    },
    /// It was refused.
    Refused {
        /// Why, in one word.
        reason: String,
        /// For the person who asked.
        message: String,
    },
    /// The run as it stands now, as JSON.
    Status(serde_json::Value),
}

/// Appends a frame.
pub fn put(buffer: &mut Vec<u8>, kind: Kind, content: &[u8]) {
    buffer.push(kind as u8);
    buffer.extend(u32::try_from(content.len()).unwrap_or(u32::MAX).to_be_bytes());
    buffer.extend_from_slice(content);
}

/// The frame at the beginning of a buffer: its kind, and the length of its content. `None` if it is not whole yet.
pub fn first(buffer: &[u8]) -> io::Result<Option<(Kind, usize)>> {
    let Some((header, rest)) = buffer.split_at_checked(HEADER) else {
        return Ok(None);
    };
    let (kind, length) = header_of([header[0], header[1], header[2], header[3], header[4]])?;
    Ok((rest.len() >= length).then_some((kind, length)))
}

fn header_of(header: [u8; HEADER]) -> io::Result<(Kind, usize)> {
    let invalid = || io::Error::new(io::ErrorKind::InvalidData, "this is no frame");
    let kind = Kind::of(header[0]).ok_or_else(invalid)?;
    let length = u32::from_be_bytes([header[1], header[2], header[3], header[4]]) as usize;
    if length > FRAME_MAX {
        return Err(invalid());
    }
    Ok((kind, length))
}

/// Reads one frame, waiting for it.
pub fn read(source: &mut impl Read) -> io::Result<(Kind, Vec<u8>)> {
    let mut header = [0; HEADER];
    source.read_exact(&mut header)?;
    let (kind, length) = header_of(header)?;
    let mut content = vec![0; length];
    source.read_exact(&mut content)?;
    Ok((kind, content))
}

/// Writes one frame, waiting for it.
pub fn write(target: &mut impl Write, kind: Kind, content: &[u8]) -> io::Result<()> {
    let mut frame = Vec::with_capacity(HEADER + content.len());
    put(&mut frame, kind, content);
    target.write_all(&frame)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn no_bytes_confuse_the_reader(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(Some((_, length))) = first(&bytes) {
                prop_assert!(bytes.len() >= HEADER + length);
            }
        }

        #[test]
        fn a_frame_is_read_as_it_was_put(content in proptest::collection::vec(any::<u8>(), 0..2000), cut in 0_usize..2000) {
            let mut buffer = Vec::new();
            put(&mut buffer, Kind::Input, &content);
            prop_assert_eq!(first(&buffer).unwrap(), Some((Kind::Input, content.len())));
            prop_assert_eq!(read(&mut buffer.as_slice()).unwrap(), (Kind::Input, content));
            let cut = cut.min(buffer.len() - 1);
            prop_assert_eq!(first(&buffer[..cut]).unwrap(), None);
        }
    }

    #[test]
    fn other_kinds_and_endless_frames_are_refused() {
        assert!(first(b"?\0\0\0\0").is_err());
        assert!(first(b"I\xff\xff\xff\xff").is_err());
    }
}
