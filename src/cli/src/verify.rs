//! `kubectl sandbox verify`: a saved log against what a status says of it.

use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use agentsandbox_action_log::verify::{Expected, Report, Verifier};
use agentsandbox_api::sandbox::AgentSandbox;
use clap::Args;

use crate::connection::Connection;
use crate::failure::Failure;
use crate::term;

/// Check that no line of a saved action log is missing or was changed.
///
/// The log's own chain is checked, and with a sandbox its length and last record against `status.audit`. Exit code 1
/// names the first line that breaks. Without a sandbox no cluster is needed.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  kubectl sandbox audit analyst -o json > analyst.log; kubectl sandbox verify analyst.log analyst
  kubectl sandbox verify analyst.log --object analyst.yaml     of a sandbox that is gone
  kubectl sandbox verify gateway.log analyst --gateway         the egress gateway's log of this run")]
pub struct Verify {
    /// The saved log; `-` reads standard input.
    file: PathBuf,
    /// The sandbox whose status is compared.
    name: Option<String>,
    /// Compare the status of a saved object, YAML or JSON, instead.
    #[arg(long, conflicts_with = "name", value_name = "FILE")]
    object: Option<PathBuf>,
    /// The log is the egress gateway's: the run's records are picked out of it and compared with `status.egress`.
    #[arg(long)]
    gateway: bool,
}

impl Verify {
    /// Checks; whether all is well.
    pub async fn run(&self, connection: &Connection) -> Result<bool, Failure> {
        let sandbox = match (&self.name, &self.object) {
            (Some(name), _) => Some(
                connection
                    .connect()
                    .await?
                    .sandboxes()
                    .sandbox(name)
                    .object()
                    .await?,
            ),
            (None, Some(file)) => Some(read_object(file)?),
            (None, None) => None,
        };
        if self.gateway && sandbox.is_none() {
            return Err(Failure::new("a gateway's log holds many runs")
                .next("name the sandbox, or its saved --object"));
        }
        let expected = sandbox
            .as_ref()
            .map(|sandbox| expected(sandbox, self.gateway))
            .transpose()?;
        let pod_uid = sandbox.and_then(|sandbox| sandbox.status?.pod_uid);
        let verifier = match pod_uid.filter(|_| self.gateway) {
            Some(pod_uid) => Verifier::of_gateway(pod_uid),
            None => Verifier::new(),
        };
        let report = read(open(&self.file)?, verifier, expected.as_ref())?;
        term::print(&judged(&report, expected.is_some()))?;
        Ok(report.broken.is_none())
    }
}

fn open(file: &Path) -> Result<Box<dyn Read>, Failure> {
    if file == Path::new("-") {
        return Ok(Box::new(std::io::stdin()));
    }
    let opened = std::fs::File::open(file);
    let opened = opened.map_err(|error| Failure::new(format!("{}: {error}", file.display())))?;
    Ok(Box::new(opened))
}

fn read_object(file: &Path) -> Result<AgentSandbox, Failure> {
    let wrong = |error: String| Failure::new(format!("{}: {error}", file.display()));
    let text = std::io::read_to_string(open(file)?).map_err(|error| wrong(error.to_string()))?;
    let object: serde_json::Value =
        serde_saphyr::from_str(&text).map_err(|error| wrong(error.to_string()))?;
    if object["kind"] != "AgentSandbox" {
        return Err(wrong("this is no AgentSandbox".to_owned())
            .next("save it with: kubectl get agentsandbox NAME -o yaml"));
    }
    serde_json::from_value(object).map_err(|error| wrong(error.to_string()))
}

/// What a sandbox's status says of its log.
fn expected(sandbox: &AgentSandbox, gateway: bool) -> Result<Expected, Failure> {
    let status = sandbox.status.clone().unwrap_or_default();
    let figures = if gateway {
        status.egress.map(|egress| (egress.records, egress.head))
    } else {
        status.audit.map(|audit| (audit.records, audit.head))
    };
    let (records, head) = figures.ok_or_else(|| {
        Failure::new("the sandbox's status says nothing of its log yet")
            .next("it does once the run has ended: kubectl sandbox wait NAME")
    })?;
    Ok(Expected {
        records: u64::try_from(records).unwrap_or_default(),
        head,
    })
}

fn read(log: impl Read, mut verifier: Verifier, expected: Option<&Expected>) -> Result<Report, Failure> {
    let mut log = BufReader::new(log);
    let mut line = Vec::new();
    while log.read_until(b'\n', &mut line)? > 0 {
        verifier.line(&String::from_utf8_lossy(&line));
        line.clear();
    }
    Ok(verifier.finish(expected))
}

fn judged(report: &Report, compared: bool) -> String {
    let mut text = match &report.broken {
        Some(broken) => term::styled(
            term::BAD,
            &format!("broken at line {}: {}", broken.line, broken.problem),
        ),
        None if compared => term::styled(term::GOOD, "whole, and the one that the status names"),
        None => {
            term::styled(term::GOOD, "unbroken") + ", but compared with no status: the end may be missing"
        }
    };
    let _ = writeln!(text, "\nrecords      {}", report.records);
    if report.foreign > 0 {
        let _ = writeln!(text, "other lines  {}", report.foreign);
    }
    if report.replaced > 0 {
        let _ = writeln!(
            text,
            "replaced     {} (the gateway was restarted)",
            report.replaced
        );
    }
    if let Some(head) = &report.head {
        let _ = writeln!(text, "head         {head}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use agentsandbox_action_log::chain::Chain;
    use agentsandbox_action_log::time::Time;
    use serde_json::json;

    fn log() -> (Vec<String>, Expected) {
        let mut chain = Chain::default();
        let lines = (0..3)
            .map(|n| chain.line(Time(n), 6002, &json!({"n": n})) + "\n")
            .collect();
        let expected = Expected {
            records: 3,
            head: chain.head(),
        };
        (lines, expected)
    }

    fn verdict(lines: &[String], expected: Option<&Expected>) -> String {
        let report = read(lines.concat().as_bytes(), Verifier::new(), expected).unwrap();
        anstream::adapter::strip_str(&judged(&report, expected.is_some())).to_string()
    }

    #[test]
    fn a_whole_log_passes_and_a_changed_one_names_its_line() {
        let (mut lines, expected) = log();
        assert!(verdict(&lines, Some(&expected)).starts_with("whole"));
        assert!(verdict(&lines, None).starts_with("unbroken, but compared with no status"));
        assert!(
            verdict(&lines[..2], Some(&expected)).starts_with("broken at line 2: the log holds 2 records")
        );
        lines[1] = lines[1].replace("\"n\":1", "\"n\":7");
        assert!(verdict(&lines, Some(&expected)).starts_with("broken at line 3: "));
    }

    #[test]
    fn a_status_without_figures_is_no_comparison() {
        let sandbox = |status: serde_json::Value| -> AgentSandbox {
            serde_json::from_value(json!({"metadata": {"name": "a"}, "spec": {"image": "x", "command": ["y"]}, "status": status}))
                .unwrap()
        };
        assert!(expected(&sandbox(json!({})), false).is_err());
        let ended = sandbox(json!({"audit": {"records": 2, "head": "ab", "evidence": "Guest",
            "capture": {"commands": "None", "files": "None", "network": "None"}}}));
        assert_eq!(expected(&ended, false).unwrap().records, 2);
        assert!(expected(&ended, true).is_err());
    }
}
