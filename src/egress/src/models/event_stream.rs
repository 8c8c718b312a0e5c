//! Streams of events (`text/event-stream`), in bounded memory.

/// Takes out of a stream of chat completions the last chunk, which holds only the usage, if the client did not ask for
/// it.
#[derive(Debug, Default)]
pub struct UsageFilter {}

impl UsageFilter {
    /// Bytes from the provider; returns those for the client.
    #[must_use]
    pub fn feed(&mut self, chunk: &[u8]) -> Vec<u8> {
        chunk.to_vec()
    }

    /// The end of the stream; returns what is left for the client.
    #[must_use]
    pub fn finish(self) -> Vec<u8> {
        Vec::new()
    }
}
