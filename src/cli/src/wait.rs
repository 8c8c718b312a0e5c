//! `kubectl sandbox wait`.

use std::time::Duration;

use agentsandbox_client::api::sandbox::AgentSandbox;
use agentsandbox_client::{Error, Progress, Until, verdict};
use clap::{Args, ValueEnum};

use crate::connection::Connected;
use crate::failure::Failure;
use crate::term::shown;

/// What to wait for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum For {
    /// Its pod exists, or its command has succeeded.
    Started,
    /// Its command runs or has succeeded, or the session takes steps.
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
            Err(Error::NotFound { .. }) if until == Until::Deleted => return Ok(()),
            found => found?,
        };
        let report = reporter(&self.name, self.quiet);
        let seen = sandbox.wait(until, timeout, report).await?;
        match missed(&seen, until) {
            Some(reason) => Err(Error::Ended {
                name: self.name.clone(),
                until,
                reason,
            }
            .into()),
            None => Ok(()),
        }
    }
}

/// Why a run that has ended is not what was waited for: only a command that has succeeded was ready as well.
fn missed(sandbox: &AgentSandbox, until: Until) -> Option<String> {
    let reason = verdict(sandbox)?;
    let succeeded = reason.is_success() && sandbox.spec.session.is_none();
    (matches!(until, Until::Started | Until::Ready) && !succeeded).then(|| reason.to_string())
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

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_run_that_has_failed_and_a_session_that_is_over_are_not_ready() {
        let ended = |kind: &str, succeeded: &str, reason: &str| -> AgentSandbox {
            let kinds = json!({"command": ["y"], "session": {"idleTimeoutSeconds": 1}});
            serde_json::from_value(json!({
                "metadata": {"name": "a"}, "spec": {"image": "x", kind: kinds[kind]},
                "status": {"runId": "", "podName": "p", "conditions": [
                    {"type": "Succeeded", "status": succeeded, "reason": reason, "message": "m",
                     "lastTransitionTime": "2026-01-01T00:00:00Z"}]},
            }))
            .unwrap()
        };
        let failed = ended("command", "False", "NonZeroExit");
        let succeeded = ended("command", "True", "Completed");
        let idle = ended("session", "True", "IdleTimeout");
        let running = ended("session", "Unknown", "NotFinished");
        for until in [Until::Started, Until::Ready] {
            assert_eq!(missed(&failed, until).as_deref(), Some("NonZeroExit"));
            assert_eq!(missed(&idle, until).as_deref(), Some("IdleTimeout"));
            assert_eq!(missed(&succeeded, until), None);
            assert_eq!(missed(&running, until), None);
        }
        assert_eq!(missed(&failed, Until::Finished), None);
    }
}
