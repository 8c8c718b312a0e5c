//! Tests whose sandboxes are large, as they run whole package managers and SDKs: on two processors no more than two fit.
//! What reaches the outside world stands in one journal, so each test asks it for hosts or words of its own.
#![allow(clippy::unwrap_used, missing_docs)]

mod budgets;
mod docs;
mod egress;
mod egress_policies;
mod egress_refused;
mod models;
