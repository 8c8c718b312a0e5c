//! The egress gateway of a namespace: what sandboxes reach instead of the world.
//!
//! What it decides is in `agentsandbox-egress`, free of I/O; this is the I/O.
//!
//! * Ways in: [`accept`] gives each connection its place; [`steered`] serves the forward proxy, steered TLS and plain
//!   HTTP, [`connect`] tunnels, [`dns`] questions, [`register`] recorders, of whose steps it takes [`charges`].
//! * Bytes: [`guard`] looks at requests before the HTTP library does, [`hello`] at TLS; [`relay`] and
//!   [`body`] carry them, counted.
//! * Requests: [`serve`] runs connections, [`inspect`] ends TLS with leaves of [`ca`], [`inside`] judges each request,
//!   [`forward`] and [`models`] (and [`metered`]) send it on by [`upstream`] and [`network`], with [`credentials`] and [`tls`].
//! * Who is who: [`state`] knows policies and runs, told by [`watch`], [`keys`] and [`jwks`]; [`session`] is one run,
//!   [`open`] what it has open, [`exchange`] one thing of that; [`policy`] what it may.
//! * Budgets: [`account`] of a run (with its [`denials`]) and [`quota`] of a policy, kept by a [`sink`], which is [`kube_sink`] in a cluster.
//! * [`log`], [`metrics`], [`health`], [`config`], [`run`].

#![forbid(unsafe_code)]

pub mod accept;
pub mod account;
pub mod body;
pub mod ca;
pub mod charges;
pub mod client_io;
pub mod config;
pub mod connect;
pub mod credentials;
pub mod denials;
pub mod dns;
pub mod exchange;
pub mod forward;
pub mod guard;
pub mod health;
pub mod hello;
pub mod inside;
pub mod inspect;
pub mod jwks;
pub mod keys;
pub mod kube_sink;
pub mod lanes;
pub mod log;
pub mod metered;
pub mod metrics;
pub mod models;
pub mod network;
pub mod open;
pub mod policy;
pub mod quota;
pub mod register;
pub mod relay;
pub mod run;
pub mod serve;
pub mod session;
pub mod sink;
pub mod state;
pub mod steered;
pub mod tls;
pub mod upstream;
pub mod watch;
