//! `kubectl sandbox`: what the Agent Sandbox Operator offers, from a terminal.

mod audit;
mod budget;
mod ceilings;
mod complete;
mod connection;
mod cp;
mod doctor;
mod exec;
mod failure;
#[cfg(test)]
mod fake_api;
mod format;
mod gateway;
mod get;
mod lines;
mod list;
mod logs;
mod mcp;
mod page;
mod policy_check;
mod rerun;
mod run;
mod schema;
mod screen;
mod stop;
mod term;
mod top;
mod verify;
mod wait;

use clap::{CommandFactory, Parser, Subcommand};
use clap_complete::Shell;

use connection::Connection;
use failure::{Failure, NO};

/// Sandboxes for code that AI agents wrote.
#[derive(Parser)]
#[command(
    name = "kubectl-sandbox",
    bin_name = "kubectl sandbox",
    version,
    after_help = "Exit codes: 0 all is well; 1 the answer is no (a check failed, a sandbox would be rejected, a log is \
                  broken); 2 the command could not be carried out; 124 what was waited for did not come in time. \
                  `run` and `exec` pass on the exit code of the command in the sandbox: see their --help."
)]
struct Cli {
    #[command(flatten)]
    connection: Connection,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Run(Box<run::Run>),
    List(list::List),
    Get(get::Get),
    Exec(exec::Exec),
    Cp(cp::Cp),
    Logs(logs::Logs),
    Audit(audit::Audit),
    Verify(verify::Verify),
    Top(top::Top),
    Stop(stop::Stop),
    Rerun(rerun::Rerun),
    Wait(wait::Wait),
    Mcp(mcp::Mcp),
    /// Check whether this cluster and namespace can hold sandboxes, and say what to do.
    Doctor(doctor::Doctor),
    /// Work with policies.
    #[command(subcommand)]
    Policy(Policy),
    /// Print a script that completes direct calls: `source <(kubectl-sandbox completion bash)`.
    ///
    /// It is for `kubectl-sandbox` as a command. For `kubectl sandbox` kubectl completes, by asking a program named
    /// `kubectl_complete-sandbox` on the PATH: a link of that name to kubectl-sandbox.
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

#[tokio::main(flavor = "current_thread")]
async fn main() {
    if complete::is_asked() {
        complete::answer();
        return;
    }
    let code = match run(Cli::parse()).await {
        Ok(code) => code,
        Err(failure) => {
            if failure.code != failure::UNREAD {
                anstream::eprintln!("error: {failure}");
            }
            failure.code
        }
    };
    // Not by returning: a thread may still wait for standard input.
    std::process::exit(code.into());
}

/// Carries it out; returns the exit code.
async fn run(cli: Cli) -> Result<u8, Failure> {
    let answer = |yes: bool| if yes { 0 } else { NO };
    let command = match cli.command {
        Command::Policy(Policy::Check(check)) => {
            let report = check.run().map_err(|error| Failure::new(error.to_string()))?;
            term::print_document(&report.text)?;
            return Ok(answer(report.passed));
        }
        Command::Completion { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "kubectl-sandbox", &mut script);
            term::print(&String::from_utf8_lossy(&script))?;
            return Ok(0);
        }
        Command::Verify(verify) => return Ok(answer(verify.run(&cli.connection).await?)),
        command => command,
    };
    let connected = cli.connection.connect().await?;
    match command {
        Command::Run(run) => return run.run(&connected).await,
        Command::Exec(exec) => return exec.run(&connected).await,
        Command::Doctor(doctor) => return doctor.run(&connected).await.map(answer),
        Command::List(list) => list.run(&connected).await?,
        Command::Get(get) => get.run(&connected).await?,
        Command::Cp(cp) => cp.run(&connected).await?,
        Command::Logs(logs) => logs.run(&connected).await?,
        Command::Audit(audit) => audit.run(&connected).await?,
        Command::Top(top) => top.run(&connected).await?,
        Command::Stop(stop) => stop.run(&connected).await?,
        Command::Rerun(rerun) => rerun.run(&connected).await?,
        Command::Wait(wait) => wait.run(&connected).await?,
        Command::Mcp(mcp) => mcp.run(&connected).await?,
        Command::Policy(_) | Command::Completion { .. } | Command::Verify(_) => {}
    }
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent_and_each_command_has_an_example() {
        Cli::command().debug_assert();
        for command in Cli::command().get_subcommands() {
            let help = command
                .get_after_help()
                .map(ToString::to_string)
                .unwrap_or_default();
            let is_plain = matches!(command.get_name(), "policy" | "completion");
            assert!(
                is_plain || help.starts_with("Examples:"),
                "{}",
                command.get_name()
            );
        }
    }
}
