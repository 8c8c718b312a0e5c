//! Holds a run within its limits, and ends it.

use std::time::{Duration, Instant};

use agentsandbox_api::action::Action;
use agentsandbox_api::reason::Reason;

use super::child::Child;
use super::{Ending, HIDDEN, Run, TICK, usage};
use crate::sys;

/// From the polite signal to the last one.
const GRACE: Duration = Duration::from_secs(2);
/// The same for who has used up a budget, and must be gone within 2 s.
const BUDGET_GRACE: Duration = Duration::from_secs(1);
/// A kernel that does not bound memory inside (gVisor) is helped from this share of the limit on, in percent.
const MEMORY_GUARD_PERCENT: u64 = 95;

impl Run {
    /// Looks whether the run is within its limits, and ends it if not; kills what an end has left.
    pub(super) fn enforce(&mut self, child: Option<&Child>) {
        let now = Instant::now();
        if let Some(ending) = &mut self.ending {
            if now >= ending.kill_at {
                sys::kill_everything();
                if !ending.killed {
                    self.capturing.note(Action::Signal {
                        signal: libc::SIGKILL,
                        reason: ending.reason,
                    });
                }
                ending.killed = true;
                // Whatever is born meanwhile dies in the next round.
                ending.kill_at = now + TICK;
            }
            return;
        }
        let runtime = u64::from(self.spec.runtime_seconds);
        if self.begun.elapsed() >= Duration::from_secs(runtime) {
            return self.end(
                child,
                Reason::DeadlineExceeded,
                format!(
                    "the {} ran for {runtime} s, its limit",
                    if self.spec.session { "session" } else { "command" }
                ),
            );
        }
        if self.spec.audit.is_any() && self.capturing.figures().unreadable > 0 {
            return self.end_now(Reason::AuditUnavailable, HIDDEN.to_owned());
        }
        let (processes, memory) = self.meter.sample();
        self.warn(processes, memory);
        if processes > u64::from(self.spec.processes) {
            let message = format!(
                "{processes} processes and threads, at most {} are allowed",
                self.spec.processes
            );
            return self.end_now(Reason::ProcessLimitExceeded, message);
        }
        let guarded = self.spec.memory_bytes / 100 * MEMORY_GUARD_PERCENT;
        if let Some(memory) = memory.filter(|memory| *memory > guarded) {
            let message = format!(
                "{memory} bytes of memory in use, the limit is {}",
                self.spec.memory_bytes
            );
            return self.end_now(Reason::OomKilled, message);
        }
        if let Some(over) = self.disk.check() {
            self.end_now(Reason::DiskLimitExceeded, over);
        }
    }

    /// Says once of each resource that it is nearly used up, and of each process that it is not ours.
    fn warn(&mut self, processes: u64, memory: Option<u64>) {
        let disk = self.disk.used();
        let memory = memory.or_else(usage::memory);
        let spec = &self.spec;
        let used = [
            ("memory", memory.unwrap_or_default(), spec.memory_bytes),
            ("processes", processes, spec.processes.into()),
            (
                "disk",
                disk.unwrap_or_default(),
                spec.workspace_bytes.saturating_add(spec.tmp_bytes),
            ),
            (
                "time",
                self.begun.elapsed().as_secs(),
                spec.runtime_seconds.into(),
            ),
        ];
        for (resource, used, limit) in used {
            if let Some(warning) = self.warnings.check(resource, used, limit) {
                self.capturing.note(warning);
            }
        }
        self.foreign.look(&self.capturing);
    }

    /// Ends the run politely: the command may still write down what it knows.
    pub(super) fn end(&mut self, child: Option<&Child>, reason: Reason, message: String) {
        if self.ending.is_none() {
            match child {
                Some(child) => sys::signal_group(child.pid, libc::SIGTERM),
                None => sys::ask_everything_to_end(),
            }
            self.capturing.note(Action::Signal {
                signal: libc::SIGTERM,
                reason,
            });
            let grace = if reason.budget().is_some() {
                BUDGET_GRACE
            } else {
                GRACE
            };
            self.ending = Some(Ending {
                reason,
                message,
                kill_at: Instant::now() + grace,
                killed: false,
            });
        }
    }

    /// Ends the run without grace: it is using up what others need.
    pub(super) fn end_now(&mut self, reason: Reason, message: String) {
        if self.ending.is_some() {
            return;
        }
        sys::kill_everything();
        self.capturing.note(Action::Signal {
            signal: libc::SIGKILL,
            reason,
        });
        self.ending = Some(Ending {
            reason,
            message,
            kill_at: Instant::now() + TICK,
            killed: true,
        });
    }
}
