//! The controller of the Agent Sandbox Operator.
//!
//! `sandbox::decide` and `policy::valid` are pure: what should happen with a sandbox, and whether a policy can be
//! enforced. `build` makes Kubernetes objects, purely too. Everything that talks to the API server is in
//! `sandbox::{dereference, apply, orphans}`, `policy`, `lease` and `facts`.

pub mod build;
pub mod canary;
pub mod cluster;
pub mod conditions;
pub mod config;
pub mod context;
pub mod crd;
pub mod facts;
pub mod http;
pub mod image;
pub mod jitter;
pub mod lease;
pub mod metrics;
pub mod own_writes;
pub mod policy;
pub mod quantity;
pub mod reconcile;
pub mod reference;
pub mod request;
pub mod run;
pub mod sandbox;
#[cfg(test)]
mod testing;
pub mod triggers;
pub mod watch;
