//! `kubectl sandbox wait`.

use std::time::Duration;

use agentsandbox_client::{Progress, Until};
use clap::{Args, ValueEnum};

use crate::connection::Connected;
use crate::failure::Failure;
use crate::term::shown;

/// What to wait for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum For {
    /// Its pod exists.
    Started,
    /// Its command runs, or the session takes steps; or it has ended.
    Ready,
    /// The run has ended, either way.
    Finished,
    /// The run has ended well.
    Succeeded,
    /// The object is gone.
    Deleted,
}

/// Wait for a sandbox, and say on standard error what happens meanwhile.
///
/// Exit code 0 when it came, 1 if the run ended otherwise, 124 if it did not come in time.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  kubectl sandbox wait analyst
  kubectl sandbox wait tools --for=ready --timeout 60")]
pub struct Wait {
    /// The sandbox.
    name: String,
    /// What to wait for.
    #[arg(long = "for", value_enum, default_value = "finished", value_name = "WHAT")]
    what: For,
    /// Longest wait, in seconds; as long as it takes if absent.
    #[arg(long, value_name = "SECONDS")]
    timeout: Option<u64>,
    /// Say nothing meanwhile.
    #[arg(short, long)]
    quiet: bool,
}

impl Wait {
    /// Waits.
    pub async fn run(&self, connected: &Connected) -> Result<(), Failure> {
        let until = match self.what {
            For::Started => Until::Started,
            For::Ready => Until::Ready,
            For::Finished => Until::Finished,
            For::Succeeded => Until::Succeeded,
            For::Deleted => Until::Deleted,
        };
        let timeout = self.timeout.map(Duration::from_secs);
        let found = connected.sandboxes().get(&self.name).await;
        let sandbox = match found {
            Err(agentsandbox_client::Error::NotFound { .. }) if until == Until::Deleted => return Ok(()),
            found => found?,
        };
        let report = reporter(&self.name, self.quiet);
        sandbox.wait(until, timeout, report).await?;
        Ok(())
    }
}

/// Says on standard error where a sandbox stands.
pub fn reporter(name: &str, quiet: bool) -> impl FnMut(&Progress) + use<> {
    let name = name.to_owned();
    move |progress| {
        if !quiet {
            anstream::eprintln!("{name}: {}", shown(&progress.to_string()));
        }
    }
}
