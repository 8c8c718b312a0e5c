//! What the egress gateway decides, free of I/O: the gateway asks, and does what it is told; the operator compiles a
//! policy's rules to find what is wrong with them.
//!
//! * [`name`], [`address`], [`authority`], [`path`]: what a destination may look like, and which can be reached at all.
//! * [`rules`]: a policy's rules, compiled; which connection and which request they allow.
//! * [`client_hello`], [`dns`], [`strict`], [`headers`]: what sandboxes send, read strictly.
//! * [`registration`], [`pod_token`], [`identity`], [`token`]: which run an address belongs to; [`shares`]: how much of
//!   the gateway each may hold.
//! * [`credential`], [`scrub`]: the values that the gateway adds, and that no answer may carry back.
//! * [`budget`], [`models`]: what a run may spend, and what a model request costs.
//! * [`record`]: each decision as a line of the log; [`deny`]: why something was refused.
//!
//! Nothing here reads a clock, a file or a socket, and every text from outside is bounded where it enters.

#![forbid(unsafe_code)]

pub mod address;
pub mod authority;
pub mod budget;
pub mod client_hello;
mod compile;
pub mod credential;
pub mod deny;
pub mod dns;
pub mod headers;
pub mod identity;
pub mod models;
pub mod name;
pub mod path;
pub mod pod_token;
pub mod record;
pub mod registration;
pub mod rules;
pub mod scrub;
pub mod shares;
pub mod strict;
pub mod token;
