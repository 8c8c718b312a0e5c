//! `kubectl sandbox rerun`.

use std::time::{SystemTime, UNIX_EPOCH};

use clap::Args;

use crate::connection::Connected;
use crate::failure::Failure;
use crate::term;

/// Run a sandbox again, as another run: a new `spec.runId`. One that still runs is ended first.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  kubectl sandbox rerun analyst
  kubectl sandbox rerun analyst --run-id 2026-01-02 && kubectl sandbox wait analyst")]
pub struct Rerun {
    /// The sandbox.
    name: String,
    /// What the new run is called, at most 64 characters; another than the run before.
    #[arg(long, value_name = "ID")]
    run_id: Option<String>,
}

impl Rerun {
    /// Asks for it.
    pub async fn run(&self, connected: &Connected) -> Result<(), Failure> {
        let sandbox = connected.sandboxes().get(&self.name).await?;
        let run_id = match &self.run_id {
            Some(run_id) if *run_id == sandbox.object().await?.spec.run_id => {
                return Err(
                    Failure::new(format!("the run of {} has this id already", self.name))
                        .next("name another with --run-id, or leave it out"),
                );
            }
            Some(run_id) => run_id.clone(),
            None => new_run_id(),
        };
        sandbox.rerun(&run_id).await?;
        Ok(term::print(&format!(
            "agentsandbox/{} runs again as {run_id}\n",
            self.name
        ))?)
    }
}

/// An id that no run before has: milliseconds since 1970.
fn new_run_id() -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    format!("rerun-{}", now.as_millis())
}
