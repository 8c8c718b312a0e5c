//! What a sandbox used of what it may, a bar for each.

use agentsandbox_api::run::LiveState;
use agentsandbox_api::sandbox::{AgentSandbox, AgentSandboxStatus};
use k8s_openapi::jiff::Timestamp;

use crate::ceilings::Ceilings;
use crate::term;

/// One line for each figure that is known, with a bar where there is a ceiling.
pub fn rows(
    sandbox: &AgentSandbox,
    status: &AgentSandboxStatus,
    live: Option<&LiveState>,
    most: &Ceilings,
    now: Timestamp,
) -> Vec<String> {
    let used = used(status, live, now);
    let is_session = sandbox.spec.session.is_some();
    [
        row("time", used.seconds, whole(most.runtime_seconds), term::seconds),
        row("cpu", used.cpu_seconds, None, term::seconds),
        row("memory", used.memory, whole(most.memory_bytes), bytes),
        row("disk", used.disk, whole(most.disk_bytes), bytes),
        row("processes", used.processes, whole(most.processes), count),
        row(
            "steps",
            used.steps.filter(|_| is_session),
            whole(most.steps),
            count,
        ),
        row("requests", used.model_requests, whole(most.model_requests), count),
        row("tokens", used.tokens, whole(most.tokens), count),
        row("egress", used.egress_bytes, whole(most.egress_bytes), bytes),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// Figures; absent where they are not known.
#[derive(Default)]
struct Used {
    seconds: Option<f64>,
    cpu_seconds: Option<f64>,
    memory: Option<f64>,
    disk: Option<f64>,
    processes: Option<f64>,
    steps: Option<f64>,
    model_requests: Option<f64>,
    tokens: Option<f64>,
    egress_bytes: Option<f64>,
}

/// Of a run that has ended its peaks, of one that runs what it uses now.
#[allow(clippy::cast_precision_loss)]
fn used(status: &AgentSandboxStatus, live: Option<&LiveState>, now: Timestamp) -> Used {
    let signed = |figure: i64| figure as f64;
    let egress = status.egress.as_ref();
    let mut used = Used {
        model_requests: egress.map(|egress| signed(egress.used.model_requests)),
        tokens: egress.map(|egress| signed(egress.used.tokens)),
        egress_bytes: egress.map(|egress| signed(egress.used.bytes)),
        ..Used::default()
    };
    if let Some(live) = live {
        used.seconds = live
            .started_at_ms
            .map(|begun| (now.as_millisecond() as f64 - begun as f64).max(0.0) / 1000.0);
        used.cpu_seconds = live.usage.cpu_ms.map(|cpu| cpu.value as f64 / 1000.0);
        used.memory = whole(live.memory_bytes);
        used.disk = whole(live.disk_bytes);
        used.processes = whole(live.processes);
        used.steps = whole(live.steps.as_ref().map(|steps| steps.taken));
    } else if let Some(usage) = &status.usage {
        used.seconds = usage.wall_seconds;
        used.cpu_seconds = usage.cpu_seconds;
        used.memory = usage.memory_peak_bytes.map(signed);
        used.disk = usage.disk_written_bytes.map(signed);
        used.processes = usage.processes_peak.map(signed);
        used.steps = usage.steps.map(signed);
    }
    used
}

#[allow(clippy::cast_precision_loss)]
fn whole(figure: Option<u64>) -> Option<f64> {
    figure.map(|figure| figure as f64)
}

#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
fn bytes(figure: f64) -> String {
    term::bytes(figure.max(0.0) as u64)
}

fn count(figure: f64) -> String {
    format!("{figure:.0}")
}

fn row(name: &str, used: Option<f64>, most: Option<f64>, show: fn(f64) -> String) -> Option<String> {
    let used = used?;
    let text = match most {
        Some(most) if most > 0.0 => format!("{}  {} of {}", term::bar(used, most), show(used), show(most)),
        Some(_) => format!("{} of none", show(used)),
        None => show(used),
    };
    Some(format!("{name:<11}{text}"))
}
