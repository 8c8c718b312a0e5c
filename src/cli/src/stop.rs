//! `kubectl sandbox stop`.

use clap::Args;

use crate::connection::Connected;
use crate::failure::Failure;
use crate::term;

/// End runs now. Their verdict becomes `Stopped`, unless they have one.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  kubectl sandbox stop analyst
  kubectl sandbox stop analyst && kubectl sandbox wait analyst")]
pub struct Stop {
    /// The sandboxes.
    #[arg(required = true, value_name = "NAME")]
    names: Vec<String>,
}

impl Stop {
    /// Asks for it.
    pub async fn run(&self, connected: &Connected) -> Result<(), Failure> {
        let sandboxes = connected.sandboxes();
        for name in &self.names {
            sandboxes.get(name).await?.stop().await?;
            term::print(&format!("agentsandbox/{name} is asked to stop\n"))?;
        }
        Ok(())
    }
}
