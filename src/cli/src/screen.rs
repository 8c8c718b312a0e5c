//! What a command prints, on its way to ours: byte for byte into files and pipes, made safe on a terminal.

use std::io::{self, IsTerminal};

use agentsandbox_action_log::text::visible;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// Bytes moved at once.
const PIECE: usize = 32 << 10;

/// Where it goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    /// Standard output.
    Out,
    /// Standard error.
    Error,
}

/// Passes a stream of a sandbox on to its end. Unless `raw`, a terminal gets it with everything written out that it
/// would act on.
pub async fn pass(from: impl AsyncRead + Unpin, to: Stream, raw: bool) -> io::Result<()> {
    match to {
        Stream::Out => copy(from, tokio::io::stdout(), !raw && io::stdout().is_terminal()).await,
        Stream::Error => copy(from, tokio::io::stderr(), !raw && io::stderr().is_terminal()).await,
    }
}

async fn copy(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    safe: bool,
) -> io::Result<()> {
    let mut piece = vec![0; PIECE];
    let mut filter = Filter::default();
    loop {
        let length = from.read(&mut piece).await?;
        let shown = match (safe, length) {
            (false, _) => None,
            (true, 0) => Some(filter.end()),
            (true, _) => Some(filter.pass(&piece[..length])),
        };
        to.write_all(shown.as_ref().map_or(&piece[..length], |text| text.as_bytes()))
            .await?;
        to.flush().await?;
        if length == 0 {
            return Ok(());
        }
    }
}

/// Makes text safe piece by piece. Line ends and tabs stay.
#[derive(Debug, Default)]
struct Filter {
    /// The beginning of a character whose end has not come yet.
    begun: Vec<u8>,
}

impl Filter {
    fn pass(&mut self, piece: &[u8]) -> String {
        let bytes = [&self.begun, piece].concat();
        self.begun.clear();
        let mut safe = String::with_capacity(bytes.len());
        let mut rest = &bytes[..];
        loop {
            match std::str::from_utf8(rest) {
                Ok(text) => {
                    write_out(text, &mut safe);
                    return safe;
                }
                Err(error) => {
                    let (text, after) = rest.split_at(error.valid_up_to());
                    write_out(&String::from_utf8_lossy(text), &mut safe);
                    let Some(length) = error.error_len() else {
                        self.begun = after.to_vec();
                        return safe;
                    };
                    write_bytes(&after[..length], &mut safe);
                    rest = &after[length..];
                }
            }
        }
    }

    fn end(&mut self) -> String {
        let mut safe = String::new();
        write_bytes(&self.begun, &mut safe);
        self.begun.clear();
        safe
    }
}

fn write_out(text: &str, safe: &mut String) {
    for part in text.split_inclusive(['\n', '\t']) {
        let (plain, kept) = match part.char_indices().next_back() {
            Some((at, last @ ('\n' | '\t'))) => (&part[..at], Some(last)),
            _ => (part, None),
        };
        safe.push_str(&visible(plain, usize::MAX));
        safe.extend(kept);
    }
}

fn write_bytes(bytes: &[u8], safe: &mut String) {
    for byte in bytes {
        safe.extend(std::ascii::escape_default(*byte).map(char::from));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_terminal_gets_nothing_to_act_on_however_it_is_cut() {
        let text = "a\tb\n\u{1b}[2Jé\u{202e}\r\u{9b}\"c\\".as_bytes();
        let text = [text, &[0xff, b'x', 0xe2, 0x80]].concat();
        for size in 1..text.len() {
            let mut filter = Filter::default();
            let mut safe: String = text.chunks(size).map(|piece| filter.pass(piece)).collect();
            safe += &filter.end();
            assert_eq!(
                safe, "a\tb\n\\u{1b}[2Jé\\u{202e}\\r\\u{9b}\"c\\\\xffx\\xe2\\x80",
                "{size}"
            );
        }
    }

    #[tokio::test]
    async fn files_get_every_byte() {
        let mut written = Vec::new();
        copy(&b"\x1b[2J\xff\n"[..], &mut written, false).await.unwrap();
        assert_eq!(written, b"\x1b[2J\xff\n");
    }
}
