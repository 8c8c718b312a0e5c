//! Records of the action log: one line of JSON each, `{"seq","time","class",…,"prev"}`.
//!
//! The recorder of a run and the egress gateway write the same envelope. [`chain::Chain`] numbers records and puts the
//! hash of each into the next; [`record::prepare`] makes an action of a sandbox fit to be written: bounded, redacted,
//! free of characters that a terminal acts on; [`verify::Verifier`] checks a saved log.
#![forbid(unsafe_code)]

pub mod chain;
pub mod record;
pub mod redact;
pub mod text;
pub mod time;
pub mod verify;
