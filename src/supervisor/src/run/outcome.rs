//! What a run has come to, once nothing of it lives.

use std::io::Read;
use std::time::Duration;

use agentsandbox_api::names;
use agentsandbox_api::reason::Reason;
use agentsandbox_api::run::{Ended, OUTPUT_MAX_BYTES, STDERR_TAIL_MAX_BYTES};

use super::Run;
use super::child::Child;
use crate::{sys, text};

/// Exit code of a session that something ended before it was idle: that of SIGTERM, as in a shell.
const EXIT_ENDED: i32 = 128 + libc::SIGTERM;

impl Run {
    /// A session has no command whose exit could be told; only one that was idle has ended by itself.
    fn account_for_session(&mut self, wall: Duration) -> Ended {
        let (reason, message) = self
            .ending
            .take()
            .map_or((Reason::SandboxLost, String::new()), |ending| {
                (ending.reason, ending.message)
            });
        Ended {
            reason: Some(reason),
            exit_code: if reason.is_success() { 0 } else { EXIT_ENDED },
            message,
            output: self.spec.capture.then(output).flatten(),
            usage: self.meter.usage(wall),
            ..Ended::default()
        }
    }

    /// Reason, exit code and figures of a run that is over.
    pub(super) fn account(&mut self, child: Option<&Child>, wall: Duration) -> Ended {
        let Some(child) = child else {
            return self.account_for_session(wall);
        };
        let stderr = child.stderr_tail();
        let (code, signal) = self
            .main_end
            .map_or((None, Some(libc::SIGKILL)), |end| (end.code, end.signal));
        let exit_code = code.unwrap_or_else(|| 128 + signal.unwrap_or(libc::SIGKILL));
        let oom = self.meter.was_oom_killed();
        let (reason, message) = match self.ending.take() {
            Some(ending) => (ending.reason, ending.message),
            None if oom && (signal == Some(libc::SIGKILL) || exit_code == 137) => (
                Reason::OomKilled,
                "the kernel ended the command at its memory limit".to_owned(),
            ),
            None if signal == Some(libc::SIGXFSZ) => (
                Reason::DiskLimitExceeded,
                "the command tried to write a file larger than its workspace".to_owned(),
            ),
            None => match (exit_code, signal) {
                (0, _) => (Reason::Completed, String::new()),
                (_, Some(signal)) => (
                    Reason::Signaled,
                    format!("the command was ended by signal {signal}"),
                ),
                (code, None) if oom => (
                    Reason::NonZeroExit,
                    format!(
                        "the command ended with exit code {code}, after the kernel ended a process of it at the memory limit"
                    ),
                ),
                (code, None) => (
                    Reason::NonZeroExit,
                    format!("the command ended with exit code {code}"),
                ),
            },
        };
        Ended {
            reason: Some(reason),
            exit_code,
            signal,
            message,
            stderr_tail: if self.spec.capture && exit_code != 0 {
                text::tail(&text::sanitised(&stderr), STDERR_TAIL_MAX_BYTES)
            } else {
                String::new()
            },
            output: self.spec.capture.then(output).flatten(),
            usage: self.meter.usage(wall),
            unreadable: 0,
            lost: 0,
        }
    }
}

/// What the command left as its output.
fn output() -> Option<String> {
    let file = sys::open_untrusted(names::PATH_OUTPUT).ok()?;
    if !file.metadata().ok()?.is_file() {
        return None;
    }
    let mut bytes = Vec::new();
    file.take(4 * OUTPUT_MAX_BYTES as u64)
        .read_to_end(&mut bytes)
        .ok()?;
    Some(text::head(&text::sanitised(&bytes), OUTPUT_MAX_BYTES))
}
