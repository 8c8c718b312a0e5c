//! One page on a sandbox. Everything in it that may be the sandbox's own text is made safe to show.

use std::fmt::Write as _;

use agentsandbox_api::action::Means;
use agentsandbox_api::condition::types;
use agentsandbox_api::run::{Expectation, LiveState};
use agentsandbox_api::sandbox::{AgentSandbox, AgentSandboxStatus, Phase};
use agentsandbox_client::Progress;
use anstyle::Style;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;

use crate::budget;
use crate::ceilings::Ceilings;
use crate::lines::Line;
use crate::term::{self, shown, shown_lines, styled};

/// What is known beside the object.
pub struct Known {
    /// What it may use.
    pub ceilings: Ceilings,
    /// What it uses now, if it runs, or why that can't be told.
    pub live: Option<Result<LiveState, String>>,
    /// The last records of its action log, or why they can't be read.
    pub records: Result<Vec<Line>, String>,
    /// Now.
    pub now: Timestamp,
}

/// Width of the words on the left.
const LEFT: usize = 11;

/// The page, with colours.
pub fn page(sandbox: &AgentSandbox, known: &Known) -> String {
    let status = sandbox.status.clone().unwrap_or_default();
    let mut page = Page::default();
    page.head(sandbox, &status, known.now);
    page.verdict(sandbox, &status);
    page.isolation(&status);
    page.network(&status);
    page.budgets(sandbox, &status, known);
    page.egress(&status);
    page.audit(&status, known);
    page.steps(&status, known);
    page.records(known);
    page.text
}

fn condition<'a>(status: &'a AgentSandboxStatus, type_: &str) -> Option<&'a Condition> {
    status
        .conditions
        .iter()
        .find(|condition| condition.type_ == type_)
}

#[derive(Default)]
struct Page {
    text: String,
}

impl Page {
    fn line(&mut self, left: &str, right: &str) {
        let _ = writeln!(self.text, "{left:<LEFT$}{right}");
    }

    fn heading(&mut self, text: &str) {
        let _ = writeln!(self.text, "\n{}", styled(term::BOLD, text));
    }

    fn head(&mut self, sandbox: &AgentSandbox, status: &AgentSandboxStatus, now: Timestamp) {
        let age = sandbox
            .creation_timestamp()
            .map(|time| format!(", {} old", term::age(time.0, now)))
            .unwrap_or_default();
        let namespace = sandbox.namespace().unwrap_or_default();
        self.line(
            "sandbox",
            &format!("{namespace}/{}{age}", styled(term::BOLD, &sandbox.name_any())),
        );
        self.line("image", &shown(&sandbox.spec.image));
        let what = match (&sandbox.spec.session, &sandbox.spec.command) {
            (Some(session), _) => format!("session, idle for at most {}s", session.idle_timeout_seconds),
            (None, command) => shown(&command.clone().unwrap_or_default().join(" ")),
        };
        self.line("command", &what);
        let policy = match &status.policy {
            Some(policy) => format!("{}, generation {}", shown(&policy.name), policy.generation),
            None => shown(&sandbox.spec.policy_ref.name),
        };
        self.line("policy", &policy);
        if !sandbox.spec.run_id.is_empty() {
            self.line("run", &shown(&sandbox.spec.run_id));
        }
        if let Some(pod) = &status.pod_name {
            let node = status.node_name.as_deref().unwrap_or("no node yet");
            self.line("pod", &format!("{} on {}", shown(pod), shown(node)));
        }
    }

    fn verdict(&mut self, sandbox: &AgentSandbox, status: &AgentSandboxStatus) {
        let progress = Progress::of(sandbox);
        let style: Style = match progress.phase {
            Some(Phase::Succeeded | Phase::Running) => term::GOOD,
            Some(Phase::Failed) => term::BAD,
            _ => term::FAIR,
        };
        let phase = progress
            .phase
            .map_or("not seen by the operator yet".to_owned(), |phase| {
                phase.to_string()
            });
        let mut verdict = styled(style, &phase);
        if !progress.reason.is_empty() && progress.reason != phase {
            let _ = write!(verdict, ": {}", shown(&progress.reason));
        }
        let result = status.result.clone().unwrap_or_default();
        if let Some(code) = result.exit_code {
            let _ = write!(verdict, ", exit code {code}");
        }
        if let Some(evidence) = result.evidence {
            let _ = write!(verdict, " (says the {})", format!("{evidence:?}").to_lowercase());
        }
        self.line("verdict", &verdict);
        let message = result.message.unwrap_or(progress.message);
        self.paragraph("message", &message);
        self.paragraph("output", &result.output.unwrap_or_default());
    }

    fn paragraph(&mut self, left: &str, text: &str) {
        for (number, line) in shown_lines(text).enumerate() {
            self.line(if number == 0 { left } else { "" }, &line);
        }
    }

    fn isolation(&mut self, status: &AgentSandboxStatus) {
        let Some(isolation) = &status.isolation else {
            return;
        };
        let level = match isolation.level {
            Some(level) => styled(term::GOOD, &format!("{level}, observed inside")),
            // The recorder gives the go only then; the level itself comes with its record.
            None if condition(status, types::READY).is_some_and(|ready| ready.status == "True") => styled(
                term::GOOD,
                "no weaker than the policy demands; the level is told at the end",
            ),
            None if status.completion_time.is_some() => styled(term::FAIR, "not observed"),
            None => styled(term::FAIR, "not observed yet"),
        };
        let class = isolation.runtime_class_name.as_deref().unwrap_or("none");
        let mut text = format!("{level}; runtime class {}", shown(class));
        if let (Some(guest), Some(node)) = (&isolation.guest_kernel, &isolation.node_kernel) {
            let _ = write!(text, "; kernel {} on node's {}", shown(guest), shown(node));
        }
        self.line("isolation", &text);
    }

    fn network(&mut self, status: &AgentSandboxStatus) {
        let Some(network) = &status.network else {
            // While it runs the condition alone speaks of it.
            if let Some(isolated) = condition(status, types::NETWORK_ISOLATED) {
                let word = match isolated.status.as_str() {
                    "True" => styled(term::GOOD, "closed"),
                    "False" => styled(term::BAD, "not closed"),
                    _ => styled(term::FAIR, "not proven yet"),
                };
                self.line("network", &format!("{word}: {}", shown(&isolated.message)));
            }
            return;
        };
        let open: Vec<String> = network
            .probes
            .iter()
            .filter(|(name, outcome)| !name.starts_with("gateway/") && !outcome.meets(Expectation::Closed))
            .map(|(name, outcome)| format!("{} ({outcome:?})", shown(name)))
            .collect();
        let rounds = network.rounds.unwrap_or_default();
        let text = match (&network.isolated_at, open.is_empty()) {
            (_, false) => styled(term::BAD, &format!("reachable: {}", open.join(", "))),
            (Some(since), true) => format!(
                "{} since {}; {} destinations tried, {rounds} rounds",
                styled(term::GOOD, "closed"),
                since.0,
                network.probes.len()
            ),
            (None, true) => styled(term::FAIR, "not proven yet"),
        };
        self.line("network", &text);
    }

    fn budgets(&mut self, sandbox: &AgentSandbox, status: &AgentSandboxStatus, known: &Known) {
        let live = known.live.as_ref().and_then(|live| live.as_ref().ok());
        let rows = budget::rows(sandbox, status, live, &known.ceilings, known.now);
        let note = match &known.live {
            Some(Err(why)) => format!("what it uses now can't be read: {}", shown(why)),
            _ => String::new(),
        };
        if rows.is_empty() && note.is_empty() {
            return;
        }
        self.heading("usage");
        for row in rows {
            let _ = writeln!(self.text, "{row}");
        }
        if !note.is_empty() {
            let _ = writeln!(self.text, "{note}");
        }
    }

    fn egress(&mut self, status: &AgentSandboxStatus) {
        let Some(egress) = &status.egress else { return };
        self.heading("egress");
        self.line("allowed", &egress.allowed.to_string());
        self.line("denied", &egress.denied.to_string());
        for denial in &egress.denials {
            let text = format!(
                "{} ({}) x{}",
                shown(&denial.destination),
                shown(&denial.reason),
                denial.count
            );
            self.line("", &styled(term::BAD, &text));
        }
    }

    fn audit(&mut self, status: &AgentSandboxStatus, known: &Known) {
        let live = known.live.as_ref().and_then(|live| live.as_ref().ok());
        let (records, head, capture, lost) = match (&status.audit, live) {
            (Some(audit), _) => (
                audit.records.to_string(),
                audit.head.clone(),
                audit.capture,
                audit.suppressed + audit.lost,
            ),
            (None, Some(live)) => {
                let audit = &live.audit;
                let lost = audit.suppressed + audit.lost;
                let lost = i64::try_from(lost).unwrap_or(i64::MAX);
                (audit.records.to_string(), audit.head.clone(), audit.capture, lost)
            }
            (None, None) => return,
        };
        self.heading("audit");
        self.line("records", &records);
        if let Some(head) = head {
            self.line("head", &shown(&head));
        }
        let means = |means: Means| match means {
            Means::None => "no".to_owned(),
            other => format!("{other:?}"),
        };
        let captured = format!(
            "commands {}, files {}, network {}",
            means(capture.commands),
            means(capture.files),
            means(capture.network)
        );
        self.line("captured", &captured);
        if lost > 0 {
            self.line("left out", &styled(term::FAIR, &lost.to_string()));
        }
    }

    fn steps(&mut self, status: &AgentSandboxStatus, known: &Known) {
        let live = known
            .live
            .as_ref()
            .and_then(|live| live.as_ref().ok())
            .and_then(|live| live.steps.as_ref());
        let last: Vec<(i64, &str, Option<i32>)> = match (&status.session, live) {
            (Some(session), _) => {
                let steps = session.last_steps.iter();
                steps
                    .map(|step| (step.step, step.command.as_str(), step.exit_code))
                    .collect()
            }
            (None, Some(live)) => {
                let number = |step: u64| i64::try_from(step).unwrap_or(i64::MAX);
                let steps = live.last.iter();
                steps
                    .map(|step| (number(step.step), step.command.as_str(), step.exit_code))
                    .collect()
            }
            (None, None) => Vec::new(),
        };
        if last.is_empty() {
            return;
        }
        self.heading("last steps");
        for (number, command, code) in last {
            let code = code.map_or("no exit code".to_owned(), |code| format!("exit code {code}"));
            self.line(&number.to_string(), &format!("{} ({code})", shown(command)));
        }
    }

    fn records(&mut self, known: &Known) {
        match &known.records {
            Ok(records) if records.is_empty() => {}
            Ok(records) => {
                self.heading("last records");
                for record in records {
                    let _ = writeln!(self.text, "{record}");
                }
            }
            Err(why) => {
                self.heading("last records");
                let _ = writeln!(self.text, "they can't be read: {}", shown(why));
            }
        }
    }
}

#[cfg(test)]
#[path = "page_tests.rs"]
mod tests;
