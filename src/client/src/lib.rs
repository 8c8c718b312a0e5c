//! Client library of the Agent Sandbox Operator.
//!
//! It offers nothing that the custom resources and `pods/exec` don't: whoever may create `AgentSandbox` objects and
//! exec into their pods may use all of it, and nothing of it needs another server.
//!
//! ```no_run
//! # async fn example() -> Result<(), agentsandbox_client::Error> {
//! use agentsandbox_client::{Sandboxes, SandboxBuilder, Until};
//!
//! let sandboxes = Sandboxes::try_default().await?;
//! let sandbox = sandboxes
//!     .create(
//!         SandboxBuilder::new("python:3.13-slim")
//!             .generate_name("job-")
//!             .command(["python3", "-c", "print(6 * 7)"])
//!             .memory("256Mi")
//!             .runtime_seconds(60),
//!     )
//!     .await?;
//! sandbox.output(true, &mut tokio::io::stdout()).await?;
//! let finished = sandbox.wait(Until::Finished, None, |_| {}).await?;
//! println!("{:?}", agentsandbox_client::verdict(&finished));
//! sandbox.delete().await?;
//! # Ok(())
//! # }
//! ```
//!
//! * [`connect`]: the way to a cluster.
//! * [`Sandboxes`]: the sandboxes of one namespace; [`Sandbox`]: one of them.
//! * [`SandboxBuilder`]: the object to create.
//! * [`Sandbox::wait`] and [`Progress`]: what happens until it runs, or has ended.
//! * [`Step`]: a command in a session, with its streams and exit code.
//! * [`archive`]: files in and out. What comes out of a sandbox is hostile until proven otherwise.
//! * [`Record`]: one line of the action log.

pub mod archive;
mod builder;
pub mod connect;
mod error;
mod exec;
mod files;
mod log;
mod output;
mod sandbox;
mod step;
mod wait;

pub use agentsandbox_api as api;
pub use builder::SandboxBuilder;
pub use error::Error;
pub use log::Record;
pub use sandbox::{Sandbox, Sandboxes, verdict};
pub use step::{EXIT_REFUSED, EXIT_TIMEOUT, RunningStep, Step, StepOutput};
pub use wait::{Progress, Until};

/// The result of everything here.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// The example of the page on clients compiles.
#[cfg(doctest)]
#[doc = include_str!("../../../docs/clients.md")]
struct Page;
