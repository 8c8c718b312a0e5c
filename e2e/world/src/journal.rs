//! What reached the outside world, one JSON object a line on standard output.

use std::io::Write;
use std::sync::atomic::{AtomicU64, Ordering};

use serde_json::{Value, json};

/// Longest text that is kept of anything a caller sent.
const TEXT_MAX: usize = 400;

/// Writes the lines.
#[derive(Default)]
pub struct Journal {
    lines: AtomicU64,
}

impl Journal {
    /// Writes one line: what happened, and its details.
    pub fn note(&self, what: &str, mut details: Value) {
        details["what"] = what.into();
        details["line"] = json!(self.lines.fetch_add(1, Ordering::Relaxed));
        let mut out = std::io::stdout().lock();
        let _ = writeln!(out, "{details}");
    }
}

/// The beginning of what a caller sent.
pub fn bounded(bytes: &[u8]) -> String {
    String::from_utf8_lossy(&bytes[..bytes.len().min(TEXT_MAX)]).into_owned()
}
