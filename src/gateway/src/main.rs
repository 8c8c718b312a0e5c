//! `sandbox-gateway`: the way out for the sandboxes of one namespace.

#![forbid(unsafe_code)]

use std::process::ExitCode;

use clap::Parser;
use sandbox_gateway::config::Config;
use sandbox_gateway::run;
use tracing_subscriber::EnvFilter;

/// The command line.
#[derive(Parser)]
#[command(
    version,
    about = "The egress gateway of the Agent Sandbox Operator: allow-listed names, credentials that never enter a sandbox, budgets that hold. Decisions are JSON lines on standard output."
)]
struct Cli {
    #[command(flatten)]
    config: Config,
}

#[tokio::main]
async fn main() -> ExitCode {
    let config = Cli::parse().config;
    log(config.log_json);
    match run::run(config).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("sandbox-gateway: {error}");
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
