//! Which steps were taken, and how they went.

use std::collections::{BTreeMap, VecDeque};
use std::time::Instant;

use agentsandbox_api::run::{LAST_STEPS, STEP_COMMAND_MAX_BYTES, StepSummary, StepsSummary};

use crate::{sys, text};

/// Counts steps.
#[derive(Default)]
pub struct Ledger {
    taken: u64,
    refused: u64,
    serial: u64,
    open: BTreeMap<u64, Instant>,
    last: VecDeque<StepSummary>,
}

impl Ledger {
    /// A number for the next question to the egress gateway.
    pub fn next_serial(&mut self) -> u64 {
        self.serial += 1;
        self.serial
    }

    /// A step begins; its number.
    pub fn begin(&mut self, argv: &[String]) -> u64 {
        self.taken += 1;
        self.open.insert(self.taken, Instant::now());
        let command = text::sanitised(argv.join(" ").as_bytes()).replace(['\n', '\t'], " ");
        self.last.push_front(StepSummary {
            step: self.taken,
            command: text::head(&command, STEP_COMMAND_MAX_BYTES),
            started_at_ms: sys::now_ms(),
            ..StepSummary::default()
        });
        self.last.truncate(LAST_STEPS);
        self.taken
    }

    /// A step ends; how long it took, in milliseconds, if it was open.
    pub fn end(&mut self, step: u64, exit_code: i32) -> Option<u64> {
        let begun = self.open.remove(&step)?;
        let millis = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        if let Some(listed) = self.last.iter_mut().find(|listed| listed.step == step) {
            listed.duration_millis = Some(millis);
            listed.exit_code = Some(exit_code);
        }
        Some(millis)
    }

    /// A step was refused.
    pub fn refuse(&mut self) {
        self.refused += 1;
    }

    /// Steps taken.
    pub fn taken(&self) -> u64 {
        self.taken
    }

    /// Steps that run.
    pub fn running(&self) -> usize {
        self.open.len()
    }

    /// The numbers of those.
    pub fn open(&self) -> Vec<u64> {
        self.open.keys().copied().collect()
    }

    /// All in short.
    pub fn summary(&self) -> StepsSummary {
        StepsSummary {
            taken: self.taken,
            refused: self.refused,
            last: self.last.iter().cloned().collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_steps_are_listed_latest_first_and_harmless() {
        let mut ledger = Ledger::default();
        for n in 0..8 {
            let step = ledger.begin(&[format!("c{n}"), "\x1b[31m\n".into(), "x".repeat(100)]);
            if n != 7 {
                assert!(ledger.end(step, n).is_some());
            }
        }
        assert_eq!(ledger.end(1, 0), None);
        ledger.refuse();
        let summary = ledger.summary();
        assert_eq!(
            (summary.taken, summary.refused, summary.last.len()),
            (8, 1, LAST_STEPS)
        );
        assert_eq!((summary.last[0].step, summary.last[0].exit_code), (8, None));
        assert_eq!((summary.last[1].step, summary.last[1].exit_code), (7, Some(6)));
        assert!(
            summary
                .last
                .iter()
                .all(|step| step.command.len() <= STEP_COMMAND_MAX_BYTES)
        );
        assert!(
            summary.last[0].command.starts_with("c7   x"),
            "{}",
            summary.last[0].command
        );
        assert_eq!((ledger.running(), ledger.open()), (1, vec![8]));
    }
}
