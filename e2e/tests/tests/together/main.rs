//! Tests that share the cluster, each in a namespace of its own; three at once, so that none waits long for a
//! processor.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

mod api;
mod audit;
mod cli;
mod cli_session;
mod mcp;
mod python_client;
mod runs;
mod rust_client;
mod scenarios;
mod security;
mod sessions;
