//! Tests that take the operator, the gateway, a node or the machine away from all others, or measure or count what others
//! would disturb: one at a time, with `--test-threads=1`.
#![allow(clippy::unwrap_used, missing_docs)]

mod budgets;
mod cluster;
mod egress_credentials;
mod egress_neighbour;
mod load_balancer;
mod lost_node;
mod network;
mod operator;
mod raw_exec;
mod stalled_log;
mod watched_namespace;
