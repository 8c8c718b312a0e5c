//! What the operator builds: pure functions from validated values to Kubernetes objects, one file per kind.

pub mod compare;
pub mod network_policy;
pub mod pod;
pub mod resource_quota;

use std::fmt::Write as _;

use sha2::{Digest, Sha256};

/// The first ten hex digits of a text's SHA-256.
#[must_use]
pub fn short_hash(text: &str) -> String {
    hex_hash(text.as_bytes())[..10].to_owned()
}

/// SHA-256 in hex.
#[must_use]
pub fn hex_hash(bytes: &[u8]) -> String {
    Sha256::digest(bytes)
        .iter()
        .fold(String::with_capacity(64), |mut hex, byte| {
            let _ = write!(hex, "{byte:02x}");
            hex
        })
}
