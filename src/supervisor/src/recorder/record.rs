//! The completion record, as the recorder's termination message.

use std::fs::OpenOptions;
use std::io::Write;

use agentsandbox_api::run::{CompletionRecord, RECORD_MAX_BYTES};

use crate::text;

/// Where the kubelet reads a container's termination message. The agent container has another file of its own.
const TERMINATION_LOG: &str = "/dev/termination-log";

/// The record as JSON of at most [`RECORD_MAX_BYTES`]: the user's text gives way first.
pub fn encode(record: &CompletionRecord) -> String {
    let mut record = record.clone();
    loop {
        let text = serde_json::to_string(&record).unwrap_or_default();
        let excess = text.len().saturating_sub(RECORD_MAX_BYTES);
        if excess == 0 {
            return text;
        }
        // Each round leaves less: first the user's text, then ours, then what is only for looking at.
        if record.output.as_ref().is_some_and(|output| !output.is_empty()) {
            record.output = record.output.map(|output| shortened(&output, excess));
        } else if !record.stderr_tail.is_empty() {
            record.stderr_tail = shortened(&record.stderr_tail, excess);
        } else if record
            .steps
            .as_mut()
            .is_some_and(|steps| steps.last.pop().is_some())
        {
        } else if !record.message.is_empty() {
            record.message = shortened(&record.message, excess);
        } else if let Some(network) = record
            .network
            .as_mut()
            .filter(|network| !network.probes.is_empty())
        {
            network.probes.clear();
        } else {
            record.isolation = None;
            record.run_id = text::head(&record.run_id, 64);
        }
    }
}

fn shortened(text: &str, by: usize) -> String {
    let weighs = serde_json::to_string(text).map_or(0, |json| json.len() - 2);
    if weighs <= by + 8 {
        String::new()
    } else {
        text::head(text, weighs - by - 8)
    }
}

/// Writes the record.
pub fn write(record: &CompletionRecord) {
    let text = encode(record);
    let written = OpenOptions::new()
        .write(true)
        .truncate(true)
        .open(TERMINATION_LOG)
        .and_then(|mut file| {
            file.write_all(text.as_bytes())?;
            file.sync_all()
        });
    if let Err(error) = written {
        eprintln!("sandbox-supervisor: {TERMINATION_LOG}: {error}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use agentsandbox_api::action::AuditSummary;
    use agentsandbox_api::reason::Reason;
    use agentsandbox_api::run::{
        LAST_STEPS, MeasuredUsage, ObservedNetwork, ProbeOutcome, StepSummary, StepsSummary,
    };
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_record_always_fits_and_can_be_read(
            output in ".{0,3000}", stderr in ".{0,3000}", message in ".{0,3000}", run_id in ".{0,64}", probes in 0_usize..80,
            command in ".{0,64}",
        ) {
            let step = StepSummary { step: u64::MAX, command, started_at_ms: u64::MAX, duration_millis: Some(u64::MAX), exit_code: Some(i32::MIN) };
            let steps = StepsSummary { taken: u64::MAX, refused: u64::MAX, last: vec![step; LAST_STEPS] };
            let probes = (0..probes).map(|n| (format!("destination-{n}/tcp"), ProbeOutcome::Unreachable)).collect();
            let record = CompletionRecord {
                version: 1, sandbox_uid: "u".repeat(36), pod_uid: "p".repeat(36), run_id, started: true,
                started_at_ms: Some(1), ended_at_ms: Some(2), reason: Reason::NonZeroExit, exit_code: Some(3), signal: None,
                message, stderr_tail: stderr, output: Some(output), isolation: None,
                network: Some(ObservedNetwork { isolated_at_ms: None, rounds: 1, probes }), usage: MeasuredUsage::default(),
                audit: Some(AuditSummary { records: u64::MAX, head: Some("f".repeat(64)), suppressed: u64::MAX, unreadable: u64::MAX, lost: u64::MAX,
                    commands: Some(u64::MAX), files_changed: Some(u64::MAX), ..AuditSummary::default() }),
                steps: Some(steps),
            };
            let text = encode(&record);
            prop_assert!(text.len() <= RECORD_MAX_BYTES);
            let read: CompletionRecord = serde_json::from_str(&text).unwrap();
            prop_assert_eq!(&read.audit, &record.audit);
            prop_assert_eq!(read.steps.map(|steps| steps.taken), Some(u64::MAX));
            prop_assert_eq!((read.exit_code, read.sandbox_uid, read.pod_uid), (record.exit_code, record.sandbox_uid, record.pod_uid));
        }
    }
}
