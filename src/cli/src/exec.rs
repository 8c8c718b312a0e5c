//! `kubectl sandbox exec`: one step of a session.

use agentsandbox_client::Step;
use clap::Args;
use tokio::io::AsyncWriteExt;

use crate::connection::Connected;
use crate::failure::{self, Failure};
use crate::screen::{self, Stream};

/// Take a step: run a command in a session, and exit as it does.
///
/// Its exit code is the command's own; 128 + signal if a signal ended it; 124 after --timeout; 125 if the step was
/// refused or the connection broke. Ctrl-C ends the step with all it started; with -i only its input.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  kubectl sandbox exec tools -- python3 -c 'print(6 * 7)'
  kubectl sandbox exec tools -i --timeout 30 -- sort < words.txt")]
pub struct Exec {
    /// The sandbox.
    name: String,
    /// Pass standard input on.
    #[arg(short = 'i', long)]
    stdin: bool,
    /// End the step after so many seconds.
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u32).range(1..))]
    timeout: Option<u32>,
    /// One more entry of the environment.
    #[arg(short, long, value_name = "NAME=VALUE", value_parser = pair)]
    env: Vec<(String, String)>,
    /// Another working directory.
    #[arg(short, long, value_name = "DIR")]
    workdir: Option<String>,
    /// Leave it running, and print the step's number.
    #[arg(short, long, conflicts_with = "stdin")]
    detach: bool,
    /// Let a terminal act on what the command prints.
    #[arg(long)]
    raw: bool,
    /// Program and arguments. No shell is involved.
    #[arg(last = true, required = true, value_name = "COMMAND")]
    command: Vec<String>,
}

/// `NAME=VALUE`.
pub fn pair(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err(format!("{text} is not NAME=VALUE")),
    }
}

impl Exec {
    /// Takes the step; returns its exit code.
    pub async fn run(&self, connected: &Connected) -> Result<u8, Failure> {
        tokio::select! {
            code = self.take(connected) => code.map_err(Failure::without_exit_code),
            _ = tokio::signal::ctrl_c() => Ok(failure::INTERRUPTED),
        }
    }

    async fn take(&self, connected: &Connected) -> Result<u8, Failure> {
        let sandbox = connected.sandboxes().get(&self.name).await?;
        let mut running = sandbox.start_step(&self.step()).await?;
        if let Some(mut stdin) = running.stdin.take() {
            // It ends with the step: a command may read less than there is.
            tokio::spawn(async move {
                let _ = tokio::io::copy(&mut tokio::io::stdin(), &mut stdin).await;
                let _ = stdin.shutdown().await;
            });
        }
        let (stdout, stderr) = (running.stdout.take(), running.stderr.take());
        let out = async {
            match stdout {
                Some(stdout) => screen::pass(stdout, Stream::Out, self.raw).await,
                None => Ok(()),
            }
        };
        let error = async {
            match stderr {
                Some(stderr) => screen::pass(stderr, Stream::Error, self.raw).await,
                None => Ok(()),
            }
        };
        tokio::try_join!(out, error)?;
        let code = running.wait().await?;
        Ok(u8::try_from(code).unwrap_or(u8::MAX))
    }

    fn step(&self) -> Step {
        let mut step = Step::new(self.command.clone());
        if let Some(seconds) = self.timeout {
            step = step.timeout_seconds(seconds);
        }
        for (name, value) in &self.env {
            step = step.env(name, value);
        }
        if let Some(folder) = &self.workdir {
            step = step.working_dir(folder);
        }
        match (self.stdin, self.detach) {
            (true, _) => step.stdin(),
            (_, true) => step.detach(),
            _ => step,
        }
    }
}
