//! `sandbox-operator`: runs the controller, and prints what is generated from the API's types.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use sandbox_operator::{config::Config, crd, reference, run};
use tracing_subscriber::EnvFilter;

/// The command line.
#[derive(Parser)]
#[command(
    version,
    about = "The Agent Sandbox Operator: turns AgentSandbox and SandboxPolicy into isolated, network-denied, bounded pods."
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the controller. `RUST_LOG` sets the log level (default: info).
    Run {
        #[command(flatten)]
        config: Box<Config>,
    },
    /// Print a custom resource definition as YAML.
    Crd {
        /// Which one.
        #[arg(value_enum)]
        kind: crd::Kind,
    },
    /// Print the API reference as Markdown.
    ApiReference,
}

#[tokio::main]
async fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Run { config } => {
            log(config.log_json);
            run::run(*config).await.map_err(|error| error.to_string())
        }
        Command::Crd { kind } => crd::yaml(kind)
            .map(|text| print!("{text}"))
            .map_err(|error| error.to_string()),
        Command::ApiReference => {
            print!("{}", reference::markdown());
            Ok(())
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("sandbox-operator: {error}");
            ExitCode::FAILURE
        }
    }
}

fn log(json: bool) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    if json {
        builder.json().init();
    } else {
        builder.with_ansi(false).init();
    }
}
