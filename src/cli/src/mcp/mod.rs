//! `kubectl sandbox mcp`: a session as tools for an AI agent, by the Model Context Protocol on standard input and output.

mod server;
mod session;

use std::sync::Arc;

use agentsandbox_client::SandboxBuilder;
use clap::Args;
use rmcp::ServiceExt;
use rmcp::transport::stdio;

use crate::connection::Connected;
use crate::failure::Failure;
use crate::term::shown;
use server::Server;
use session::Session;

/// Serve a session to an AI agent: run_command, write_file, read_file and list_files, by MCP over standard input and
/// output.
///
/// The session is made at the beginning and deleted at the end, when standard input closes or a signal comes. Should
/// this program be killed, its idle timeout ends it. The agent gets no more than the policy permits.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  kubectl sandbox mcp --image python:3.13-slim --policy strict
  claude mcp add sandbox -- kubectl sandbox mcp -n agents --image python:3.13-slim")]
pub struct Mcp {
    /// Container image.
    #[arg(long, value_name = "IMAGE")]
    image: String,
    /// The policy that bounds it.
    #[arg(short, long, default_value = "default", value_name = "NAME")]
    policy: String,
    /// The session ends after so many seconds without a step.
    #[arg(long, default_value_t = 1800, value_name = "SECONDS")]
    idle: i32,
    /// Wall-clock limit of the session, in seconds; the policy's if absent.
    #[arg(short, long, value_name = "SECONDS")]
    timeout: Option<i32>,
}

impl Mcp {
    /// Serves until standard input closes or a signal comes.
    pub async fn run(&self, connected: &Connected) -> Result<(), Failure> {
        let mut wanted = SandboxBuilder::new(&self.image)
            .generate_name("mcp-")
            .policy(&self.policy)
            .session(self.idle);
        if let Some(seconds) = self.timeout {
            wanted = wanted.runtime_seconds(seconds);
        }
        let session = Arc::new(Session::new(connected.sandboxes(), wanted.build()));
        let beginning = tokio::spawn({
            let session = session.clone();
            // A failure is told again to whoever calls a tool.
            async move {
                if let Err(why) = session.begin().await {
                    anstream::eprintln!("{}", shown(&why));
                }
            }
        });
        let served = tokio::select! {
            served = serve(session.clone()) => served,
            told = ended_by_signal() => told,
        };
        beginning.abort();
        session.end().await?;
        served
    }
}

async fn serve(session: Arc<Session>) -> Result<(), Failure> {
    let lost = |error: String| Failure::new(format!("the connection to the agent: {error}"));
    let running = Server::new(session).serve(stdio()).await;
    let running = running.map_err(|error| lost(error.to_string()))?;
    running.waiting().await.map_err(|error| lost(error.to_string()))?;
    Ok(())
}

async fn ended_by_signal() -> Result<(), Failure> {
    tokio::select! {
        told = tokio::signal::ctrl_c() => told?,
        told = terminated() => told?,
    }
    Ok(())
}

#[cfg(unix)]
async fn terminated() -> std::io::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    signal(SignalKind::terminate())?.recv().await;
    Ok(())
}

#[cfg(not(unix))]
async fn terminated() -> std::io::Result<()> {
    std::future::pending().await
}
