//! What an answer costs, read from it as it passes.

use super::Prepared;

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
#[derive(Debug)]
pub struct Meter {}

impl Meter {
    /// The meter of one attempt's answer. `content_type` is what the answer says it is.
    #[must_use]
    pub fn new(prepared: &Prepared<'_>, content_type: Option<&str>) -> Self {
        let _ = (prepared, content_type);
        Self {}
    }

    /// Bytes of the answer's body, in any pieces.
    pub fn feed(&mut self, chunk: &[u8]) {
        let _ = chunk;
    }

    /// What it cost. `status` is the answer's HTTP status; `complete` whether its body ended as it should.
    #[must_use]
    pub fn finish(self, status: u16, complete: bool) -> Charge {
        let _ = (status, complete);
        Charge::default()
    }
}
