//! `kubectl sandbox stop`.

use clap::Args;

use crate::connection::Connected;
use crate::failure::Failure;
use crate::term;

/// End runs now. Their verdict becomes `Stopped`, unless they have one.
///
/// All are tried. Exit code 2 if one could not be asked.
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
        let mut failed = None;
        for name in &self.names {
            let stopped = async { sandboxes.get(name).await?.stop().await };
            match stopped.await.map_err(Failure::from) {
                Ok(()) => term::print(&format!("agentsandbox/{name} is asked to stop\n"))?,
                Err(failure) => {
                    if let Some(earlier) = failed.replace(failure) {
                        anstream::eprintln!("error: {earlier}");
                    }
                }
            }
        }
        failed.map_or(Ok(()), Err)
    }
}
