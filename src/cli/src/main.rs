//! `kubectl sandbox`: what the Agent Sandbox Operator offers, from a terminal.

mod connection;
mod doctor;
mod policy_check;

use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};
use clap_complete::Shell;

use connection::Connection;

/// Sandboxes for code that AI agents wrote.
#[derive(Parser)]
#[command(
    name = "kubectl-sandbox",
    bin_name = "kubectl sandbox",
    version,
    after_help = "Exit codes: 0 all is well; 1 the answer is no (a check failed, a sandbox would be rejected); 2 the command could not be carried out."
)]
struct Cli {
    #[command(flatten)]
    connection: Connection,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Check whether this cluster and namespace can hold sandboxes, and say what to do.
    Doctor(doctor::Doctor),
    /// Work with policies.
    #[command(subcommand)]
    Policy(Policy),
    /// Print a completion script: `source <(kubectl sandbox completion bash)`.
    Completion {
        /// The shell.
        shell: Shell,
    },
}

#[derive(Subcommand)]
enum Policy {
    /// Explain what a policy permits, and whether sandboxes would be accepted. Needs no cluster.
    Check(policy_check::PolicyCheck),
}

/// The answer is no.
const NO: u8 = 1;
/// The command could not be carried out.
const FAILED: u8 = 2;

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    match run(Cli::parse()).await {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(NO),
        Err(error) => {
            anstream::eprintln!("error: {error}");
            ExitCode::from(FAILED)
        }
    }
}

/// Carries it out; whether the answer is yes.
async fn run(cli: Cli) -> Result<bool, Box<dyn std::error::Error>> {
    match cli.command {
        Command::Policy(Policy::Check(check)) => {
            let report = check.run()?;
            anstream::print!("{}", report.text);
            Ok(report.passed)
        }
        Command::Doctor(doctor) => {
            let connected = cli.connection.connect().await?;
            Ok(doctor.run(&connected).await?)
        }
        Command::Completion { shell } => {
            clap_complete::generate(
                shell,
                &mut Cli::command(),
                "kubectl-sandbox",
                &mut std::io::stdout(),
            );
            Ok(true)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
