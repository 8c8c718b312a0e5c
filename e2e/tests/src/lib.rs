//! What end-to-end tests, demo and benchmarks share: a client of the cluster, waiting with bounds, the scenarios.

pub mod burn;
pub mod egress;
pub mod harness;
pub mod plugin;
pub mod scenarios;
pub mod steps;

pub use harness::{Harness, HarnessError};
