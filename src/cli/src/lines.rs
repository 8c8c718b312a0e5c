//! Records of the action log and of the egress gateway, as lines for people.

use std::fmt::Write as _;

use agentsandbox_api::action::{Action, Basis};
use agentsandbox_client::Record;
use clap::ValueEnum;
use serde::Deserialize;

use crate::term::{self, shown};

/// Kinds of records.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Kind {
    /// Life of the run: its begin and end, signals, warnings.
    Run,
    /// Steps of a session.
    Step,
    /// Programs.
    Process,
    /// Files.
    File,
    /// Connections as the sandbox attempts them.
    Network,
    /// What the egress gateway decided.
    Egress,
}

/// One record, ready to show.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// When, RFC 3339 with milliseconds.
    pub time: String,
    /// What kind.
    pub kind: Kind,
    /// Whether something was refused.
    pub denied: bool,
    /// What happened.
    pub text: String,
    /// The record as it was written.
    pub raw: String,
    /// UID of the gateway's pod in whose log it stands; empty for the recorder's.
    pub gateway: String,
}

impl std::fmt::Display for Line {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let kind = format!("{:?}", self.kind).to_lowercase();
        let text = if self.denied {
            term::styled(term::BAD, &self.text)
        } else {
            self.text.clone()
        };
        write!(
            f,
            "{}  {kind:<7}  {text}",
            term::styled(term::FAINT, &shown(&self.time))
        )
    }
}

impl From<&Record> for Line {
    fn from(record: &Record) -> Self {
        let (denied, text) = match &record.action {
            Some(action) => (
                matches!(action, Action::StepRefused { .. } | Action::Refused { .. }),
                told(action),
            ),
            None => (false, shown(&record.line)),
        };
        Self {
            time: record.time.clone(),
            kind: match record.class {
                1001 => Kind::File,
                1007 => Kind::Process,
                4001 => Kind::Network,
                6003 => Kind::Step,
                _ => Kind::Run,
            },
            denied,
            text,
            raw: record.line.clone(),
            gateway: String::new(),
        }
    }
}

fn words(argv: &[String]) -> String {
    shown(&argv.join(" "))
}

/// What happened. Texts are the sandbox's own.
fn told(action: &Action) -> String {
    match action {
        Action::Begin { run_id, policy, .. } => {
            let run = if run_id.is_empty() {
                String::new()
            } else {
                format!(" {}", shown(run_id))
            };
            format!("run{run} begins under policy {}", shown(policy))
        }
        Action::End { reason, exit_code } => {
            let code = exit_code
                .map(|code| format!(", exit code {code}"))
                .unwrap_or_default();
            format!("run ends: {reason}{code}")
        }
        Action::Signal { signal, reason } => format!("signal {signal} is sent: {reason}"),
        Action::Warning {
            resource,
            used,
            limit,
        } => {
            format!("{} is nearly used up: {used} of {limit}", shown(resource))
        }
        Action::Suppressed { records } => {
            format!("{records} records are left out: the run's share of the log is used up")
        }
        Action::Step { step, argv, .. } => format!("step {step}: {}", words(argv)),
        Action::StepEnd {
            step,
            exit_code,
            duration_millis,
        } => format!(
            "step {step} ends: exit code {exit_code} after {}",
            millis(*duration_millis)
        ),
        Action::StepRefused { argv, reason } => format!("step refused ({}): {}", shown(reason), words(argv)),
        Action::Exec {
            basis,
            pid,
            argv,
            path,
            ..
        } => {
            let does = match basis {
                Basis::Claimed => "asks to run",
                Basis::Observed => "runs",
            };
            format!("[{pid}] {does} {} ({})", words(argv), shown(path))
        }
        Action::Foreign { pid, argv, .. } => format!("[{pid}] from outside: {}", words(argv)),
        Action::Exit { pid, code, signal } => match (code, signal) {
            (_, Some(signal)) => format!("[{pid}] ends by signal {signal}"),
            (Some(code), None) => format!("[{pid}] ends: exit code {code}"),
            (None, None) => format!("[{pid}] ends"),
        },
        Action::Refused { pid, call } => format!("[{pid}] refused: {}", shown(call)),
        Action::Connect {
            pid, address, port, ..
        } => {
            let port = port.map(|port| format!(":{port}")).unwrap_or_default();
            format!("[{pid}] connects to {}{port}", shown(address))
        }
        files => told_of_files(files),
    }
}

fn told_of_files(action: &Action) -> String {
    match action {
        Action::Open { pid, path } => format!("[{pid}] writes {}", shown(path)),
        Action::Remove { pid, path } => format!("[{pid}] removes {}", shown(path)),
        Action::Rename { pid, path, to } => format!("[{pid}] renames {} to {}", shown(path), shown(to)),
        Action::MakeFolder { pid, path } => format!("[{pid}] makes folder {}", shown(path)),
        Action::Change {
            change, path, size, ..
        } => {
            let size = size
                .map(|size| format!(" ({})", term::bytes(size)))
                .unwrap_or_default();
            format!("{} {}{size}", format!("{change:?}").to_lowercase(), shown(path))
        }
        Action::Changes {
            files, incomplete, ..
        } => {
            let incomplete = incomplete
                .as_ref()
                .map(|why| format!(", incomplete: {}", shown(why)))
                .unwrap_or_default();
            format!("{files} files changed in the workspace{incomplete}")
        }
        other => shown(&format!("{other:?}")),
    }
}

#[allow(clippy::cast_precision_loss)]
fn millis(millis: u64) -> String {
    term::seconds(millis as f64 / 1000.0)
}

/// A record of the egress gateway.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Decision {
    time: String,
    run: Run,
    action: String,
    #[serde(default)]
    reason: Option<String>,
    destination: String,
    #[serde(default)]
    port: Option<u16>,
    #[serde(default)]
    method: Option<String>,
    #[serde(default)]
    path: Option<String>,
    #[serde(default)]
    rule: Option<String>,
    #[serde(default)]
    model: Option<String>,
    #[serde(default)]
    status: Option<u16>,
    #[serde(default)]
    bytes_sent: u64,
    #[serde(default)]
    bytes_received: u64,
    #[serde(default)]
    duration_millis: u64,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Run {
    pod_uid: String,
}

impl Line {
    /// The record that a line of a gateway's log holds, if it is of the run with this pod.
    pub fn of_gateway(line: &str, gateway: &str, pod_uid: &str) -> Option<Self> {
        let decision: Decision = serde_json::from_str(line).ok()?;
        if decision.run.pod_uid != pod_uid {
            return None;
        }
        Some(Self {
            denied: decision.action == "deny",
            text: decided(&decision),
            time: decision.time,
            kind: Kind::Egress,
            raw: line.to_owned(),
            gateway: gateway.to_owned(),
        })
    }
}

fn decided(decision: &Decision) -> String {
    let mut text = shown(&decision.action);
    if let Some(method) = &decision.method {
        let _ = write!(text, " {}", shown(method));
    }
    let _ = write!(text, " {}", shown(&decision.destination));
    if let Some(port) = decision.port {
        let _ = write!(text, ":{port}");
    }
    if let Some(path) = &decision.path {
        text += &shown(path);
    }
    if let Some(model) = &decision.model {
        let _ = write!(text, " model {}", shown(model));
    }
    if let Some(reason) = &decision.reason {
        let _ = write!(text, " ({})", shown(reason));
    } else if let Some(rule) = &decision.rule {
        let _ = write!(text, " by {}", shown(rule));
    }
    if decision.action == "end" {
        let status = decision
            .status
            .map(|status| format!(" status {status},"))
            .unwrap_or_default();
        let _ = write!(
            text,
            ":{status} {} sent, {} received in {}",
            term::bytes(decision.bytes_sent),
            term::bytes(decision.bytes_received),
            millis(decision.duration_millis)
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown_line(line: &str) -> (Kind, bool, String) {
        let line = Line::from(&Record::parse(line).unwrap());
        (line.kind, line.denied, line.text)
    }

    #[test]
    fn records_are_told_in_words_and_nothing_in_them_reaches_the_terminal() {
        let envelope = r#""seq":1,"time":"2026-01-02T03:04:05.678Z","prev":"ab","#;
        for (fields, expected) in [
            (
                r#""class":6003,"activity":"step","step":2,"argv":["sh","-c","echo \u001b[2J"]"#,
                (Kind::Step, false, r"step 2: sh -c echo \u{1b}[2J"),
            ),
            (
                r#""class":6003,"activity":"stepEnd","step":2,"exitCode":7,"durationMillis":1234"#,
                (Kind::Step, false, "step 2 ends: exit code 7 after 1.2s"),
            ),
            (
                r#""class":6003,"activity":"stepRefused","argv":["x"],"reason":"StepBudgetExceeded""#,
                (Kind::Step, true, "step refused (StepBudgetExceeded): x"),
            ),
            (
                r#""class":6002,"activity":"end","reason":"Completed","exitCode":0"#,
                (Kind::Run, false, "run ends: Completed, exit code 0"),
            ),
            (
                r#""class":1001,"activity":"change","change":"created","path":"a\u202eb","size":2048"#,
                (Kind::File, false, r"created a\u{202e}b (2Ki)"),
            ),
        ] {
            let (kind, denied, text) = expected;
            assert_eq!(
                shown_line(&format!("{{{envelope}{fields}}}")),
                (kind, denied, text.to_owned())
            );
        }
        let newer = r#"{"seq":1,"time":"t","class":9,"activity":"unheardOf"}"#;
        assert_eq!(shown_line(newer), (Kind::Run, false, newer.to_owned()));
    }

    #[test]
    fn the_gateways_records_are_those_of_the_runs_pod() {
        let line = r#"{"seq":4,"time":"t","class":4002,"run":{"podUid":"p"},"action":"deny","reason":"NotAllowed","destination":"evil.example","port":443,"method":"GET","path":"/x"}"#;
        let found = Line::of_gateway(line, "g", "p").unwrap();
        assert_eq!(found.text, "deny GET evil.example:443/x (NotAllowed)");
        assert!(found.denied && found.kind == Kind::Egress);
        assert_eq!(Line::of_gateway(line, "g", "q"), None);
        let end = r#"{"seq":5,"time":"t","class":4001,"run":{"podUid":"p"},"action":"end","destination":"a","port":443,"status":200,"bytesSent":1024,"bytesReceived":3,"durationMillis":250}"#;
        assert_eq!(
            Line::of_gateway(end, "g", "p").unwrap().text,
            "end a:443: status 200, 1Ki sent, 3 received in 0.2s"
        );
    }
}
