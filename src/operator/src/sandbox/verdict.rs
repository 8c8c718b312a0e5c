//! From an ended pod to the verdict on its run.

use std::collections::BTreeMap;

use agentsandbox_api::action::AuditSummary;
use agentsandbox_api::isolation::IsolationLevel;
use agentsandbox_api::reason::Reason;
use agentsandbox_api::run::{
    CompletionRecord, Figure, LAST_STEPS, MeasuredUsage, RECORD_VERSION, STEP_COMMAND_MAX_BYTES, StepsSummary,
};
use agentsandbox_api::sandbox::{AuditStatus, Evidence, NetworkStatus, SessionStatus, StepStatus, Usage};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;

use crate::sandbox::pod_view::PodView;

/// How a run ended, with everything that was found out about it.
#[derive(Clone, Debug, PartialEq)]
pub struct Verdict {
    /// Why.
    pub reason: Reason,
    /// For the person who reads the status.
    pub message: String,
    /// Exit code of the command.
    pub exit_code: Option<i32>,
    /// The signal that ended it.
    pub signal: Option<i32>,
    /// What the command left as its output.
    pub output: Option<String>,
    /// Who says so.
    pub evidence: Evidence,
    /// When the command started.
    pub started_at: Option<Timestamp>,
    /// When the run ended.
    pub ended_at: Timestamp,
    /// The isolation level that held.
    pub level: Option<IsolationLevel>,
    /// Kernel seen inside.
    pub guest_kernel: Option<String>,
    /// What the probe found.
    pub network: Option<NetworkStatus>,
    /// What the run used.
    pub usage: Option<Usage>,
    /// The action log in figures.
    pub audit: Option<AuditStatus>,
    /// Its steps, if it was a session.
    pub session: Option<SessionStatus>,
}

impl Verdict {
    /// A verdict that the operator reaches without a pod's evidence.
    #[must_use]
    pub fn of_operator(reason: Reason, message: impl Into<String>, now: Timestamp) -> Self {
        Self {
            reason,
            message: message.into(),
            exit_code: None,
            signal: None,
            output: None,
            evidence: Evidence::Operator,
            started_at: None,
            ended_at: now,
            level: None,
            guest_kernel: None,
            network: None,
            usage: None,
            audit: None,
            session: None,
        }
    }
}

/// What a record must say to be this run's.
#[derive(Clone, Copy, Debug)]
pub struct Expected<'a> {
    /// UID of the sandbox.
    pub sandbox_uid: &'a str,
    /// The run.
    pub run_id: &'a str,
    /// The weakest level under which a run counts.
    pub minimum: IsolationLevel,
    /// Boot id of the node that the pod ran on, if the node still exists.
    pub node_boot_id: Option<&'a str>,
}

/// Judges a pod of which nothing runs any more.
#[must_use]
pub fn judge(view: &PodView, expected: Expected<'_>, now: Timestamp) -> Verdict {
    match own_record(view, expected) {
        Ok(record) => from_record(view, &record, expected, now),
        Err(doubt) => without_record(view, &doubt, now),
    }
}

/// The record, if it can be this run's; else what is wrong with it.
fn own_record(view: &PodView, expected: Expected<'_>) -> Result<CompletionRecord, String> {
    if view.recorder.restarts > 0 {
        return Err("the recorder was restarted during the run".to_owned());
    }
    let record = view.record().ok_or("the run left no completion record")?;
    if record.version != RECORD_VERSION
        || record.sandbox_uid != expected.sandbox_uid
        || record.pod_uid != view.uid
        || record.run_id != expected.run_id
    {
        return Err("the completion record is not this run's".to_owned());
    }
    Ok(record)
}

fn from_record(view: &PodView, record: &CompletionRecord, expected: Expected<'_>, now: Timestamp) -> Verdict {
    let ended_at = timestamp(record.ended_at_ms)
        .or_else(|| finished_at(view))
        .unwrap_or(now);
    // The guest's word, from which its pod's TTL counts: the pod would go at once, or never.
    let ended_at = view
        .created
        .map_or(ended_at, |created| ended_at.max(created))
        .min(now);
    let (level, contradiction) = checked_level(record, expected);
    let (reason, message) = contradiction.unwrap_or_else(|| record_reason(view, record));
    let keeps_result = reason == record.reason || matches!(reason, Reason::OomKilled);
    let mut message = message;
    if !reason.is_success() && !record.stderr_tail.is_empty() {
        message = format!("{message}: {}", record.stderr_tail.trim_end());
    }
    Verdict {
        reason,
        message,
        // A session has no command whose exit code could be told.
        exit_code: record
            .exit_code
            .filter(|_| record.started && record.steps.is_none()),
        signal: record.signal,
        output: record.output.clone().filter(|_| keeps_result),
        evidence: Evidence::Guest,
        started_at: timestamp(record.started_at_ms),
        ended_at,
        level,
        guest_kernel: record
            .isolation
            .as_ref()
            .map(|isolation| isolation.kernel_release.clone()),
        network: record.network.as_ref().map(|network| NetworkStatus {
            isolated_at: timestamp(network.isolated_at_ms).map(Time),
            rounds: i32::try_from(network.rounds).ok(),
            probes: network.probes.clone(),
        }),
        usage: record.started.then(|| Usage {
            steps: record.steps.as_ref().map(|steps| count(steps.taken)),
            commands: record.audit.as_ref().and_then(|audit| audit.commands.map(count)),
            files_changed: record
                .audit
                .as_ref()
                .and_then(|audit| audit.files_changed.map(count)),
            ..usage(&record.usage)
        }),
        audit: record.audit.as_ref().map(audit),
        session: record.steps.as_ref().map(session),
    }
}

/// The level the record claims, checked against the node the pod ran on: a boot id is the kernel's own, so the
/// node's boot id seen inside means the node's kernel.
fn checked_level(
    record: &CompletionRecord,
    expected: Expected<'_>,
) -> (Option<IsolationLevel>, Option<(Reason, String)>) {
    let Some(isolation) = &record.isolation else {
        return (None, None);
    };
    let same_kernel = expected
        .node_boot_id
        .is_some_and(|node| node == isolation.boot_id);
    let level = if same_kernel {
        IsolationLevel::Container
    } else {
        isolation.level
    };
    if level != isolation.level && level < expected.minimum {
        let message = format!(
            "the recorder took the isolation for {}, and the boot id shows the node's own kernel; the policy demands {}",
            isolation.level, expected.minimum
        );
        return (Some(level), Some((Reason::IsolationTooWeak, message)));
    }
    (Some(level), None)
}

fn record_reason(view: &PodView, record: &CompletionRecord) -> (Reason, String) {
    let agent_exit = view.agent.ended.as_ref().map(|end| end.exit_code);
    let agent_oom = view
        .agent
        .ended
        .as_ref()
        .is_some_and(|end| end.reason == "OOMKilled");
    // The kubelet says so as well of a run that went on after the kernel had ended one of its processes, and that was ended
    // for another reason, which must not be hidden so.
    let by_kernel = match record.reason {
        Reason::OomKilled | Reason::Signaled | Reason::NonZeroExit => true,
        Reason::Stopped | Reason::SandboxLost => outside_cause(view).is_none(),
        _ => false,
    };
    if agent_oom && by_kernel {
        return (
            Reason::OomKilled,
            "the kernel ended the sandbox at its memory limit".to_owned(),
        );
    }
    if let (Some(recorded), Some(seen)) = (record.exit_code, agent_exit)
        && recorded != seen
    {
        let message = format!("the completion record says exit code {recorded} and the kubelet saw {seen}");
        return (Reason::SandboxLost, message);
    }
    if let Some(end) = view
        .agent
        .ended
        .as_ref()
        .filter(|end| end.reason == "StartError" && !record.started)
    {
        // The runtime's words: the command never ran, so nothing of the user's is in them.
        return (
            Reason::StartTimeout,
            format!("the agent container could not be started: {}", end.message),
        );
    }
    match record.reason {
        Reason::Completed if record.exit_code != Some(0) || agent_exit != Some(0) || !record.started => (
            Reason::SandboxLost,
            "a completion record without an exit code 0 of the command is no success".to_owned(),
        ),
        Reason::IdleTimeout
            if record.exit_code != Some(0)
                || agent_exit != Some(0)
                || !record.started
                || record.steps.is_none() =>
        {
            (
                Reason::SandboxLost,
                "only a session that had begun can end idle, and then with exit code 0".to_owned(),
            )
        }
        Reason::Completed => (Reason::Completed, "the command ended with exit code 0".to_owned()),
        // From inside it can only be seen that somebody outside ended the run, that the connection broke, or that
        // the agent container never came.
        Reason::Stopped | Reason::SandboxLost | Reason::StartTimeout => {
            outside_cause(view).unwrap_or_else(|| {
                let message = described(record.reason, record);
                match record.reason {
                    Reason::StartTimeout if view.deleted.is_none() => (Reason::StartTimeout, message),
                    _ => (Reason::SandboxLost, lost(view, &message)),
                }
            })
        }
        reason => (reason, described(reason, record)),
    }
}

fn described(reason: Reason, record: &CompletionRecord) -> String {
    if !record.message.is_empty() {
        return record.message.clone();
    }
    match (reason, record.exit_code, record.signal) {
        (Reason::NonZeroExit, Some(code), _) => format!("the command ended with exit code {code}"),
        (Reason::Signaled, _, Some(signal)) => format!("the command was ended by signal {signal}"),
        _ => reason.to_string(),
    }
}

fn without_record(view: &PodView, doubt: &str, now: Timestamp) -> Verdict {
    let agent = view.agent.ended.as_ref();
    let (reason, message) = outside_cause(view).unwrap_or_else(|| {
        if [&view.agent, &view.recorder]
            .iter()
            .any(|c| c.ended.as_ref().is_some_and(|end| end.reason == "OOMKilled"))
        {
            (
                Reason::OomKilled,
                "the kernel ended the whole sandbox at its memory limit".to_owned(),
            )
        } else {
            (Reason::SandboxLost, lost(view, doubt))
        }
    });
    Verdict {
        exit_code: agent
            .filter(|_| reason == Reason::OomKilled)
            .map(|end| end.exit_code),
        evidence: Evidence::Kubelet,
        started_at: agent.and_then(|end| end.started_at),
        ended_at: finished_at(view).unwrap_or(now),
        ..Verdict::of_operator(reason, message, now)
    }
}

/// The cause that the operator marked the pod with, when it ended it. Others may be able to write such a mark, so only
/// what the operator ends runs for counts: above all, no success.
pub(super) fn marked_cause(view: &PodView) -> Option<(Reason, String)> {
    view.own_cause().filter(|(reason, _)| {
        let ends_runs = matches!(
            reason,
            Reason::Stopped
                | Reason::PolicyDeleted
                | Reason::PolicyRejected
                | Reason::NetworkNotIsolated
                | Reason::ImagePullFailed
                | Reason::StartTimeout
                | Reason::DeadlineExceeded
                | Reason::PodMutated
        );
        ends_runs || reason.budget().is_some()
    })
}

/// Why somebody outside the sandbox ended it: the operator's own mark first, then the kubelet's account.
fn outside_cause(view: &PodView) -> Option<(Reason, String)> {
    if let Some(cause) = marked_cause(view) {
        return Some(cause);
    }
    match view.reason.as_str() {
        "Evicted"
            if view.message.contains("ephemeral")
                || view.message.contains("emptyDir")
                || view.message.contains("EmptyDir") =>
        {
            Some((
                Reason::DiskLimitExceeded,
                format!("the kubelet evicted the pod: {}", view.message),
            ))
        }
        "Evicted" => Some((
            Reason::Evicted,
            format!("the kubelet evicted the pod: {}", view.message),
        )),
        "DeadlineExceeded" => Some((
            Reason::DeadlineExceeded,
            "the kubelet ended the pod at its deadline".to_owned(),
        )),
        "NodeLost" | "NodeShutdown" | "Terminated" => Some((
            Reason::NodeLost,
            format!("the node ended the pod: {} {}", view.reason, view.message),
        )),
        _ => None,
    }
}

fn lost(view: &PodView, what: &str) -> String {
    if view.deleted.is_some() {
        format!(
            "somebody deleted the pod {} during the run; it is not run again ({what})",
            view.name
        )
    } else {
        format!("{what}; the run is not run again")
    }
}

fn finished_at(view: &PodView) -> Option<Timestamp> {
    view.agent.ended.as_ref().and_then(|end| end.finished_at)
}

#[allow(clippy::cast_precision_loss, clippy::cast_possible_wrap)] // milliseconds of a run and bytes of a machine
fn usage(measured: &MeasuredUsage) -> Usage {
    let mut source = BTreeMap::new();
    let mut take = |name: &str, figure: Option<Figure<u64>>| {
        figure.map(|figure| {
            source.insert(name.to_owned(), figure.source);
            figure.value
        })
    };
    let cpu = take("cpuSeconds", measured.cpu_ms);
    let memory = take("memoryPeakBytes", measured.memory_peak_bytes);
    let disk = take("diskWrittenBytes", measured.disk_written_bytes);
    let processes = take("processesPeak", measured.processes_peak);
    let seconds = |ms: u64| ms as f64 / 1000.0;
    Usage {
        wall_seconds: measured.wall_ms.map(seconds),
        cpu_seconds: cpu.map(seconds),
        memory_peak_bytes: memory.map(|n| n as i64),
        disk_written_bytes: disk.map(|n| n as i64),
        processes_peak: processes.map(|n| n as i64),
        bytes_sent: measured.bytes_sent.map(|n| n as i64),
        bytes_received: measured.bytes_received.map(|n| n as i64),
        source,
        ..Usage::default()
    }
}

/// The steps as the record tells of them: the guest's own account.
fn session(summary: &StepsSummary) -> SessionStatus {
    SessionStatus {
        steps: count(summary.taken),
        refused: count(summary.refused),
        last_steps: summary
            .last
            .iter()
            .take(LAST_STEPS)
            .map(|step| StepStatus {
                step: count(step.step),
                command: step
                    .command
                    .chars()
                    .filter(|c| !c.is_control())
                    .take(STEP_COMMAND_MAX_BYTES)
                    .collect(),
                start_time: timestamp(Some(step.started_at_ms)).map(Time),
                duration: step
                    .duration_millis
                    .map(|millis| format!("{}.{}s", millis / 1000, millis % 1000 / 100)),
                exit_code: step.exit_code,
            })
            .collect(),
    }
}

/// The log as the record tells of it: the guest's own account. Text that is no hash is not passed on.
fn audit(summary: &AuditSummary) -> AuditStatus {
    let is_hash = |head: &String| head.len() == 64 && head.bytes().all(|byte| byte.is_ascii_hexdigit());
    AuditStatus {
        records: count(summary.records),
        head: summary.head.clone().filter(is_hash),
        capture: summary.capture,
        suppressed: count(summary.suppressed),
        unreadable: count(summary.unreadable),
        lost: count(summary.lost),
        evidence: Evidence::Guest,
    }
}

/// A count as the API holds it.
fn count(figure: u64) -> i64 {
    i64::try_from(figure).unwrap_or(i64::MAX)
}

fn timestamp(ms: Option<u64>) -> Option<Timestamp> {
    Timestamp::from_millisecond(i64::try_from(ms?).ok()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sandbox::pod_view::{ContainerEnd, ContainerView};
    use agentsandbox_api::run::ObservedIsolation;

    fn record(reason: Reason, exit_code: i32) -> CompletionRecord {
        CompletionRecord {
            version: RECORD_VERSION,
            sandbox_uid: "sandbox".into(),
            pod_uid: "pod".into(),
            run_id: String::new(),
            started: true,
            started_at_ms: Some(1_000),
            ended_at_ms: Some(3_500),
            reason,
            exit_code: Some(exit_code),
            signal: None,
            message: String::new(),
            stderr_tail: String::new(),
            output: Some("out".into()),
            isolation: Some(ObservedIsolation {
                level: IsolationLevel::UserspaceKernel,
                kernel_release: "4.19.0-gvisor".into(),
                boot_id: "guest".into(),
            }),
            network: None,
            usage: MeasuredUsage::default(),
            audit: None,
            steps: None,
        }
    }

    fn ended(exit_code: i32, reason: &str, message: String) -> ContainerView {
        ContainerView {
            ended: Some(ContainerEnd {
                exit_code,
                reason: reason.into(),
                message,
                ..ContainerEnd::default()
            }),
            ..ContainerView::default()
        }
    }

    fn view(record: Option<&CompletionRecord>, agent_exit: i32, agent_reason: &str) -> PodView {
        PodView {
            uid: "pod".into(),
            agent: ended(agent_exit, agent_reason, String::new()),
            recorder: ended(
                0,
                "Completed",
                record
                    .map(|r| serde_json::to_string(r).unwrap())
                    .unwrap_or_default(),
            ),
            ..PodView::default()
        }
    }

    fn reason_of(view: &PodView) -> Reason {
        let expected = Expected {
            sandbox_uid: "sandbox",
            run_id: "",
            minimum: IsolationLevel::UserspaceKernel,
            node_boot_id: Some("node"),
        };
        judge(view, expected, Timestamp::UNIX_EPOCH).reason
    }

    #[test]
    fn success_needs_a_record_of_this_run_with_exit_code_0_that_the_kubelet_confirms() {
        let good = record(Reason::Completed, 0);
        assert_eq!(reason_of(&view(Some(&good), 0, "Completed")), Reason::Completed);
        assert_eq!(reason_of(&view(None, 0, "Completed")), Reason::SandboxLost);
        assert_eq!(reason_of(&view(Some(&good), 1, "Error")), Reason::SandboxLost);
        for forge in [
            |r: &mut CompletionRecord| r.pod_uid = "other".into(),
            |r: &mut CompletionRecord| r.sandbox_uid = "other".into(),
            |r: &mut CompletionRecord| r.run_id = "other".into(),
            |r: &mut CompletionRecord| r.version = 99,
            |r: &mut CompletionRecord| r.started = false,
            |r: &mut CompletionRecord| r.exit_code = None,
        ] {
            let mut forged = good.clone();
            forge(&mut forged);
            assert_eq!(
                reason_of(&view(Some(&forged), 0, "Completed")),
                Reason::SandboxLost
            );
        }
        let mut restarted = view(Some(&good), 0, "Completed");
        restarted.recorder.restarts = 1;
        assert_eq!(reason_of(&restarted), Reason::SandboxLost);
    }

    #[test]
    fn the_log_in_figures_is_the_guests_account() {
        let mut told = record(Reason::Completed, 0);
        told.audit = Some(AuditSummary {
            records: u64::MAX,
            head: Some("not a hash".into()),
            suppressed: 2,
            commands: Some(3),
            files_changed: None,
            ..AuditSummary::default()
        });
        let expected = Expected {
            sandbox_uid: "sandbox",
            run_id: "",
            minimum: IsolationLevel::UserspaceKernel,
            node_boot_id: None,
        };
        let verdict = judge(
            &view(Some(&told), 0, "Completed"),
            expected,
            Timestamp::UNIX_EPOCH,
        );
        let audit = verdict.audit.unwrap();
        assert_eq!((audit.records, audit.head, audit.suppressed), (i64::MAX, None, 2));
        assert_eq!(audit.evidence, Evidence::Guest);
        let usage = verdict.usage.unwrap();
        assert_eq!((usage.commands, usage.files_changed), (Some(3), None));
    }

    #[test]
    fn the_nodes_boot_id_inside_means_the_nodes_kernel() {
        let mut lying = record(Reason::Completed, 0);
        lying.isolation.as_mut().unwrap().boot_id = "node".into();
        assert_eq!(
            reason_of(&view(Some(&lying), 0, "Completed")),
            Reason::IsolationTooWeak
        );
    }

    #[test]
    fn the_kernels_oom_kill_is_believed_with_and_without_a_record() {
        assert_eq!(
            reason_of(&view(Some(&record(Reason::Signaled, 137)), 137, "OOMKilled")),
            Reason::OomKilled
        );
        assert_eq!(reason_of(&view(None, 137, "OOMKilled")), Reason::OomKilled);
        // Whoever makes the kernel end a child of its own hides nothing by that.
        for reason in [
            Reason::AuditUnavailable,
            Reason::NetworkNotIsolated,
            Reason::TokenBudgetExceeded,
            Reason::DeadlineExceeded,
        ] {
            assert_eq!(
                reason_of(&view(Some(&record(reason, 143)), 143, "OOMKilled")),
                reason
            );
        }
        let mut stopped = view(Some(&record(Reason::Stopped, 143)), 143, "OOMKilled");
        assert_eq!(reason_of(&stopped), Reason::OomKilled);
        stopped.cause = Some(("PolicyDeleted".into(), "gone".into()));
        assert_eq!(reason_of(&stopped), Reason::PolicyDeleted);
    }

    #[test]
    fn a_run_ended_from_outside_has_the_operators_cause_or_is_lost() {
        let mut stopped = view(Some(&record(Reason::Stopped, 143)), 143, "Error");
        assert_eq!(reason_of(&stopped), Reason::SandboxLost);
        stopped.cause = Some(("PolicyDeleted".into(), "gone".into()));
        assert_eq!(reason_of(&stopped), Reason::PolicyDeleted);
        let mut evicted = view(None, 137, "Error");
        evicted.reason = "Evicted".into();
        evicted.message = "Usage of EmptyDir volume \"workspace\" exceeds the limit".into();
        assert_eq!(reason_of(&evicted), Reason::DiskLimitExceeded);
    }

    #[test]
    fn a_mark_that_the_operator_would_not_set_is_no_cause() {
        for cause in [
            "Completed",
            "IdleTimeout",
            "NonZeroExit",
            "OOMKilled",
            "Evicted",
            "x",
        ] {
            for record in [Some(&record(Reason::Stopped, 143)), None] {
                let mut marked = view(record, 143, "Error");
                marked.cause = Some((cause.into(), String::new()));
                assert_eq!(reason_of(&marked), Reason::SandboxLost, "{cause}");
            }
        }
        for cause in [
            Reason::PodMutated,
            Reason::TokenBudgetExceeded,
            Reason::DeadlineExceeded,
        ] {
            let mut marked = view(None, 143, "Error");
            marked.cause = Some((cause.to_string(), String::new()));
            assert_eq!(reason_of(&marked), cause);
        }
    }

    #[test]
    fn a_run_ended_after_its_pod_was_made_and_before_now() {
        let at = |second: i64| Timestamp::from_second(second).unwrap();
        for (told_ms, second) in [
            (0, 1_000),
            (1_500_000, 1_500),
            (3_000_000, 2_000),
            (253_402_207_200_999, 2_000),
        ] {
            let mut told = record(Reason::Completed, 0);
            told.ended_at_ms = Some(told_ms);
            let mut view = view(Some(&told), 0, "Completed");
            view.created = Some(at(1_000));
            let expected = Expected {
                sandbox_uid: "sandbox",
                run_id: "",
                minimum: IsolationLevel::UserspaceKernel,
                node_boot_id: None,
            };
            assert_eq!(
                judge(&view, expected, at(2_000)).ended_at,
                at(second),
                "{told_ms}"
            );
        }
    }

    #[test]
    fn a_pod_ended_by_the_operator_before_its_start_has_the_operators_cause() {
        let mut early = record(Reason::StartTimeout, 0);
        (early.started, early.exit_code) = (false, None);
        let mut view = view(Some(&early), 137, "Error");
        assert_eq!(reason_of(&view), Reason::StartTimeout);
        view.cause = Some(("ImagePullFailed".into(), "no such image".into()));
        assert_eq!(reason_of(&view), Reason::ImagePullFailed);
    }

    #[test]
    fn a_command_that_ended_well_before_it_could_be_stopped_has_completed() {
        let mut view = view(Some(&record(Reason::Completed, 0)), 0, "Completed");
        view.cause = Some(("Stopped".into(), String::new()));
        assert_eq!(reason_of(&view), Reason::Completed);
    }
}
