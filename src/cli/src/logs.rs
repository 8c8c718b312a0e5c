//! `kubectl sandbox logs`.

use agentsandbox_client::Sandbox;
use clap::Args;

use crate::connection::Connected;
use crate::failure::Failure;
use crate::screen::{self, Stream};

/// Bytes on their way from the log to the screen.
const BUFFER: usize = 64 << 10;

/// Print what the command has printed, standard output and standard error together.
///
/// On a terminal everything is written out that the terminal would act on; into files and pipes go the bytes.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  kubectl sandbox logs analyst
  kubectl sandbox logs -f analyst | tee run.txt")]
pub struct Logs {
    /// The sandbox.
    name: String,
    /// Wait for the start, and go on to the end of the run.
    #[arg(short, long)]
    follow: bool,
    /// Let a terminal act on what is in it.
    #[arg(long)]
    raw: bool,
}

impl Logs {
    /// Prints.
    pub async fn run(&self, connected: &Connected) -> Result<(), Failure> {
        let sandbox = connected.sandboxes().get(&self.name).await?;
        print(&sandbox, self.follow, self.raw).await
    }
}

/// Prints what a sandbox's command has printed.
pub async fn print(sandbox: &Sandbox, follow: bool, raw: bool) -> Result<(), Failure> {
    let (mut into, out_of) = tokio::io::duplex(BUFFER);
    let reading = async move {
        let read = sandbox.output(follow, &mut into).await;
        drop(into);
        read
    };
    let (read, written) = tokio::join!(reading, screen::pass(out_of, Stream::Out, raw));
    written?;
    read?;
    Ok(())
}
