//! `kubectl sandbox doctor`: whether this cluster and namespace can hold sandboxes.
//!
//! The proof is a sandbox: it is isolated as its policy says, or its verdict says what lacks. Everything else that is
//! looked at explains a failure of that, or warns of what a single run can't show.

mod cluster;
mod probe;

use std::fmt::Write as _;

use anstyle::{AnsiColor, Style};
use clap::Args;
use serde::Serialize;

use crate::connection::Connected;
use crate::failure::Failure;
use crate::term;

/// Check whether this cluster and namespace can hold sandboxes, and say what to do.
///
/// Exit code 1 if a check failed. What can't be checked, because the right to look is missing, is a warning.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  kubectl sandbox doctor -n agents
  kubectl sandbox doctor -n agents --policy strict     prove that this policy's isolation holds
  kubectl sandbox doctor -n agents --no-probe          look, and start nothing")]
pub struct Doctor {
    /// Policy under which the proving sandbox runs.
    #[arg(long, default_value = "default", value_name = "NAME")]
    policy: String,
    /// Namespace of the operator.
    #[arg(long, default_value = "agentsandbox-system", value_name = "NAME")]
    operator_namespace: String,
    /// Start no sandbox: network and isolation stay unproven.
    #[arg(long)]
    no_probe: bool,
    /// Image of the proving sandbox; the supervisor's own if absent. Its command must be `--command`.
    #[arg(long, requires = "command", value_name = "IMAGE")]
    image: Option<String>,
    /// Command of the proving sandbox, separated by spaces.
    #[arg(long, value_name = "COMMAND")]
    command: Option<String>,
    /// Longest wait for the proving sandbox, in seconds.
    #[arg(long, default_value_t = 180, value_name = "SECONDS")]
    timeout: u64,
    /// Print JSON.
    #[arg(short, long, value_parser = ["json"], value_name = "FORMAT")]
    output: Option<String>,
}

/// How a check came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Outcome {
    Ok,
    Warning,
    Failed,
}

/// One thing that was checked.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Check {
    /// What was checked.
    #[serde(rename = "check")]
    what: String,
    outcome: Outcome,
    /// What was found.
    found: String,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    advice: Option<String>,
}

impl Check {
    fn ok(check: &str, found: impl Into<String>) -> Self {
        Self::of(check, Outcome::Ok, found, None)
    }

    fn warning(check: &str, found: impl Into<String>, advice: &str) -> Self {
        Self::of(check, Outcome::Warning, found, Some(advice))
    }

    fn failed(check: &str, found: impl Into<String>, advice: &str) -> Self {
        Self::of(check, Outcome::Failed, found, Some(advice))
    }

    /// What could not be looked at. A missing right is no fault of the cluster's.
    fn unseen(check: &str, error: &kube::Error) -> Self {
        match error {
            kube::Error::Api(status) if status.code == 403 => Self::warning(
                check,
                format!("you may not look at this: {}", status.message),
                "ask whoever administers the cluster to run this command",
            ),
            other => Self::failed(check, other.to_string(), "see the error"),
        }
    }

    fn of(check: &str, outcome: Outcome, found: impl Into<String>, advice: Option<&str>) -> Self {
        Self {
            what: check.to_owned(),
            outcome,
            found: found.into(),
            advice: advice.map(str::to_owned),
        }
    }
}

impl Doctor {
    /// Checks, and prints; whether nothing failed.
    pub async fn run(&self, connected: &Connected) -> Result<bool, Failure> {
        let as_json = self.output.is_some();
        let mut checks = Vec::new();
        for check in cluster::look(connected, &self.operator_namespace, &self.policy).await {
            checks.push(shown(check, as_json)?);
        }
        if self.no_probe {
            let check = Check::warning(
                "proof",
                "no sandbox was started",
                "run without --no-probe: that network policies are enforced can't be seen, only tried",
            );
            checks.push(shown(check, as_json)?);
        } else if checks.iter().any(|check| check.outcome == Outcome::Failed) {
            let check = Check::warning(
                "proof",
                "not tried, because of what failed above",
                "mend that first",
            );
            checks.push(shown(check, as_json)?);
        } else {
            for check in probe::prove(self, connected).await {
                checks.push(shown(check, as_json)?);
            }
        }
        if as_json {
            let text = serde_json::to_string_pretty(&checks).unwrap_or_default();
            term::print_document(&(text + "\n"))?;
        }
        Ok(!checks.iter().any(|check| check.outcome == Outcome::Failed))
    }
}

/// Prints a check when it is known: the proof takes its time.
fn shown(check: Check, as_json: bool) -> std::io::Result<Check> {
    if !as_json {
        term::print(&text(&check))?;
    }
    Ok(check)
}

fn text(check: &Check) -> String {
    let (word, colour) = match check.outcome {
        Outcome::Ok => ("ok", AnsiColor::Green),
        Outcome::Warning => ("warning", AnsiColor::Yellow),
        Outcome::Failed => ("FAILED", AnsiColor::Red),
    };
    let style = Style::new().fg_color(Some(colour.into()));
    let mut text = format!("{style}{word:<8}{style:#}{:<17} {}\n", check.what, check.found);
    if let Some(advice) = &check.advice {
        let _ = writeln!(text, "{:26}{advice}", "");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_names_do_not_run_into_what_was_found() {
        let text = text(&Check::ok("policy with-a-long-name", "Ready"));
        assert!(text.contains("with-a-long-name Ready"), "{text}");
    }

    #[test]
    fn a_check_says_what_to_do() {
        let text = text(&Check::failed("crds", "absent", "install them"));
        assert!(text.contains("FAILED"));
        assert!(
            text.lines().count() == 2 && text.contains("install them"),
            "{text}"
        );
    }

    #[test]
    fn a_missing_right_is_a_warning_and_another_error_a_failure() {
        let error = |code: u16| {
            kube::Error::Api(Box::new(
                kube::core::Status::failure("no", "Forbidden").with_code(code),
            ))
        };
        assert_eq!(Check::unseen("x", &error(403)).outcome, Outcome::Warning);
        assert_eq!(Check::unseen("x", &error(500)).outcome, Outcome::Failed);
    }
}
