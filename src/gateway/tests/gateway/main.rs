//! The gateway from end to end, on loopback: sandboxes at addresses of their own, a world with an authority of its own,
//! status in memory.

#![allow(missing_docs, clippy::unwrap_used, clippy::panic)] // helpers of tests are tests
#![allow(clippy::unused_self, clippy::needless_pass_by_value)] // they read better so

mod budgets;
mod cluster;
mod credentials;
mod dns;
mod harness;
mod identity;
mod inspect;
mod log;
mod models;
mod policy;
mod shares;
mod sink;
mod smuggling;
mod steps;
mod tunnels;
mod world;
