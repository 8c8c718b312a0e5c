//! The chain that shows when a record is missing or was changed.

use serde::Serialize;
use sha2::{Digest, Sha256};

use crate::time::Time;

/// A SHA-256.
pub type Sha = [u8; 32];

/// Records of one writer, each with the hash of the one before.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Chain {
    records: u64,
    head: Option<Sha>,
}

impl Chain {
    /// The next record as a line, without its end: the envelope around `fields`, which must serialise as a map.
    #[must_use]
    pub fn line(&mut self, time: Time, class: u16, fields: &impl Serialize) -> String {
        let head = self.head();
        let envelope = Envelope {
            seq: self.records,
            time,
            class,
            fields,
            prev: head.as_deref(),
        };
        // Strings, numbers and structs always serialise.
        let text = serde_json::to_string(&envelope).unwrap_or_default();
        self.records += 1;
        self.head = Some(sha256(text.as_bytes()));
        text
    }

    /// The chain of which the last record is known, from a status. Records that were written after that status are
    /// followed by others of the same number: the log shows both.
    #[must_use]
    pub fn resume(records: u64, head: &str) -> Option<Self> {
        Some(Self {
            records,
            head: Some(parse_hex(head)?),
        })
    }

    /// How many records there are.
    #[must_use]
    pub fn records(&self) -> u64 {
        self.records
    }

    /// Hash of the last record, in hexadecimal digits: it covers all before it.
    #[must_use]
    pub fn head(&self) -> Option<String> {
        self.head.as_ref().map(|head| hex(head))
    }
}

#[derive(Serialize)]
struct Envelope<'a, T> {
    seq: u64,
    time: Time,
    class: u16,
    #[serde(flatten)]
    fields: &'a T,
    #[serde(skip_serializing_if = "Option::is_none")]
    prev: Option<&'a str>,
}

/// The hash of these bytes.
#[must_use]
pub fn sha256(bytes: &[u8]) -> Sha {
    Sha256::digest(bytes).into()
}

/// Bytes in lower-case hexadecimal digits.
#[must_use]
pub fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digits = bytes.iter().flat_map(|byte| [byte >> 4, byte & 15]);
    digits
        .map(|digit| char::from(DIGITS[usize::from(digit)]))
        .collect()
}

/// A SHA-256 from its 64 lower-case hexadecimal digits.
#[must_use]
pub fn parse_hex(text: &str) -> Option<Sha> {
    let digit = |byte: u8| match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    };
    let text = <&[u8; 64]>::try_from(text.as_bytes()).ok()?;
    let mut sha = [0; 32];
    for (byte, pair) in sha.iter_mut().zip(text.chunks_exact(2)) {
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Some(sha)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn line(chain: &mut Chain, text: &str) -> String {
        chain.line(Time(0), 1007, &json!({ "text": text }))
    }

    #[test]
    fn each_record_holds_the_hash_of_the_one_before() {
        let mut chain = Chain::default();
        let lines: Vec<String> = (0..5).map(|n| line(&mut chain, &n.to_string())).collect();
        for (at, line) in lines.iter().enumerate() {
            let record: Value = serde_json::from_str(line).unwrap();
            assert_eq!(record["seq"], at);
            assert_eq!(record["text"], at.to_string());
            let before = at.checked_sub(1).map(|at| hex(&sha256(lines[at].as_bytes())));
            assert_eq!(record.get("prev").and_then(Value::as_str), before.as_deref());
        }
        assert_eq!(chain.records(), 5);
        assert_eq!(chain.head(), Some(hex(&sha256(lines[4].as_bytes()))));
    }

    #[test]
    fn a_chain_goes_on_from_what_a_status_holds() {
        let mut chain = Chain::default();
        let _ = line(&mut chain, "first");
        let mut resumed = Chain::resume(chain.records(), &chain.head().unwrap()).unwrap();
        assert_eq!(line(&mut resumed, "x"), line(&mut chain, "x"));
        assert_eq!(resumed, chain);
        for wrong in ["", "abc", &"g".repeat(64), &"A".repeat(64), &"a".repeat(65)] {
            assert!(Chain::resume(1, wrong).is_none());
        }
    }
}
