//! Tests whose sandboxes run whole package managers and SDKs: on two processors no more than two fit.
#![allow(clippy::unwrap_used, missing_docs)]

mod docs;
mod egress;
mod egress_refused;
