//! What the operator builds: pure functions from validated values to Kubernetes objects, one file per kind.

pub mod compare;
pub mod gateway;
pub mod gateway_network;
pub mod network_policy;
pub mod pod;
pub mod probes;
pub mod resource_quota;

use std::collections::BTreeMap;
use std::fmt::Write as _;

use agentsandbox_api::names;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use sha2::{Digest, Sha256};

/// These labels, and the one that marks what the operator made.
#[must_use]
pub fn labelled(mut labels: BTreeMap<String, String>) -> BTreeMap<String, String> {
    labels.insert(names::LABEL_MANAGED_BY.to_owned(), names::MANAGER.to_owned());
    labels
}

/// Metadata of what the operator makes for policies: it goes with the last of its owners, or stays if it has none.
#[must_use]
pub fn from_policy(namespace: &str, name: String, owners: Vec<OwnerReference>) -> ObjectMeta {
    ObjectMeta {
        name: Some(name),
        namespace: Some(namespace.to_owned()),
        labels: Some(labelled(BTreeMap::new())),
        owner_references: (!owners.is_empty()).then_some(owners),
        ..ObjectMeta::default()
    }
}

/// The first eight hex digits of a text's SHA-256.
#[must_use]
pub fn short_hash(text: &str) -> String {
    hex_hash(text.as_bytes())[..8].to_owned()
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
