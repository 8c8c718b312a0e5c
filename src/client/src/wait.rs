//! What happens until a sandbox runs, or has ended.

use std::fmt;
use std::time::Duration;

use agentsandbox_api::condition::types;
use agentsandbox_api::sandbox::{AgentSandbox, AgentSandboxStatus, Phase};
use futures::{StreamExt, pin_mut};
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, watch_object};

use crate::sandbox::verdict;
use crate::{Error, Result, Sandbox};

/// What to wait for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Until {
    /// Its pod exists.
    Started,
    /// Its command runs, or the session takes steps. A run that has ended meanwhile counts.
    Ready,
    /// The run has ended, either way.
    Finished,
    /// The run has ended well.
    Succeeded,
    /// The object is gone.
    Deleted,
}

impl fmt::Display for Until {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Started => "started",
            Self::Ready => "ready",
            Self::Finished => "finished",
            Self::Succeeded => "succeeded",
            Self::Deleted => "deleted",
        })
    }
}

/// Where a sandbox stands. A new one comes whenever something of it changes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// In one word; `None` before the operator has seen it.
    pub phase: Option<Phase>,
    /// Why, for programs: the reason of the condition that decides, such as `QuotaExceeded` or `ImagePullRetrying`.
    pub reason: String,
    /// Why, for people. May quote text of the sandbox, not to be trusted.
    pub message: String,
}

impl Progress {
    /// Where a sandbox stands.
    #[must_use]
    pub fn of(sandbox: &AgentSandbox) -> Self {
        let Some(status) = sandbox.status.as_ref().filter(|_| is_current(sandbox)) else {
            return Self::default();
        };
        let find = |type_: &str| status.conditions.iter().find(|found| found.type_ == type_);
        let refused = find(types::ACCEPTED).filter(|accepted| accepted.status == "False");
        let ended = find(types::SUCCEEDED).filter(|succeeded| succeeded.status != "Unknown");
        let deciding = ended.or(refused).or_else(|| find(types::READY));
        Self {
            phase: status.phase,
            reason: deciding.map(|found| found.reason.clone()).unwrap_or_default(),
            message: deciding.map(|found| found.message.clone()).unwrap_or_default(),
        }
    }
}

impl fmt::Display for Progress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.phase {
            Some(phase) => write!(f, "{phase}")?,
            None => f.write_str("not seen by the operator yet")?,
        }
        if !self.reason.is_empty() {
            write!(f, " ({})", self.reason)?;
        }
        if !self.message.is_empty() {
            write!(f, ": {}", self.message)?;
        }
        Ok(())
    }
}

/// Whether status speaks of the run that spec asks for.
pub(crate) fn is_current(sandbox: &AgentSandbox) -> bool {
    let run = |status: &AgentSandboxStatus| status.run_id.clone().unwrap_or_default();
    sandbox
        .status
        .as_ref()
        .is_some_and(|status| run(status) == sandbox.spec.run_id)
}

impl Sandbox {
    /// Waits, and says what happens meanwhile. Returns the object as it was then; for [`Until::Deleted`] as it was last.
    ///
    /// A connection that breaks is made again; without a timeout this waits as long as it takes.
    pub async fn wait(
        &self,
        until: Until,
        timeout: Option<Duration>,
        mut on_progress: impl FnMut(&Progress),
    ) -> Result<AgentSandbox> {
        let mut last = Progress::default();
        let waiting = self.wait_until(until, |progress| {
            last = progress.clone();
            on_progress(progress);
        });
        let Some(timeout) = timeout else {
            return waiting.await;
        };
        match tokio::time::timeout(timeout, waiting).await {
            Ok(outcome) => outcome,
            Err(_) => Err(Error::Timeout {
                name: self.name().to_owned(),
                until,
                timeout,
                last: last.to_string(),
            }),
        }
    }

    /// Waits until the object is gone.
    pub async fn gone(&self, timeout: Option<Duration>) -> Result<()> {
        match self.wait(Until::Deleted, timeout, |_| {}).await {
            Ok(_) | Err(Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    async fn wait_until(&self, until: Until, mut on_progress: impl FnMut(&Progress)) -> Result<AgentSandbox> {
        // Says at once that there is no such sandbox, or no right to read it.
        let mut seen = self.object().await?;
        let mut last: Option<Progress> = None;
        let changes = watch_object(self.api(), self.name()).default_backoff();
        pin_mut!(changes);
        loop {
            let progress = Progress::of(&seen);
            if last.as_ref() != Some(&progress) {
                on_progress(&progress);
                last = Some(progress);
            }
            if reached(&seen, until) {
                return Ok(seen);
            }
            if let Some(reason) = verdict(&seen).filter(|_| until == Until::Succeeded) {
                return Err(Error::Ended {
                    name: self.name().to_owned(),
                    until,
                    reason: reason.to_string(),
                });
            }
            seen = loop {
                match changes.next().await {
                    Some(Ok(Some(object))) => match self.check(&object) {
                        Ok(()) => break object,
                        Err(_) if until == Until::Deleted => return Ok(seen),
                        Err(error) => return Err(error),
                    },
                    Some(Ok(None)) if until == Until::Deleted => return Ok(seen),
                    Some(Ok(None)) => return Err(self.deleted()),
                    Some(Err(error)) => give_up_if_refused(error)?,
                    None => return Err(Error::Disconnected("the watch ended".to_owned())),
                }
            };
        }
    }
}

/// A watch is tried again, unless the API server says that it never will be let in.
fn give_up_if_refused(error: watcher::Error) -> Result<()> {
    use watcher::Error as Watch;
    match error {
        Watch::InitialListFailed(kube::Error::Api(status))
        | Watch::WatchStartFailed(kube::Error::Api(status))
            if matches!(status.code, 401 | 403) =>
        {
            Err(kube::Error::Api(status).into())
        }
        _ => Ok(()),
    }
}

fn reached(sandbox: &AgentSandbox, until: Until) -> bool {
    let Some(status) = sandbox.status.as_ref().filter(|_| is_current(sandbox)) else {
        return false;
    };
    let is_true = |type_: &str| {
        status
            .conditions
            .iter()
            .any(|condition| condition.type_ == type_ && condition.status == "True")
    };
    match until {
        Until::Started => status.pod_name.is_some() || is_true(types::FINISHED),
        Until::Ready => is_true(types::READY) || is_true(types::FINISHED),
        Until::Finished => is_true(types::FINISHED),
        Until::Succeeded => is_true(types::SUCCEEDED),
        Until::Deleted => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn sandbox(run: &str, status: &serde_json::Value) -> AgentSandbox {
        serde_json::from_value(json!({
            "metadata": {"name": "a"},
            "spec": {"image": "x", "command": ["y"], "runId": run},
            "status": status,
        }))
        .unwrap()
    }

    fn condition(type_: &str, status: &str, reason: &str) -> serde_json::Value {
        json!({"type": type_, "status": status, "reason": reason, "message": "m",
               "lastTransitionTime": "2026-01-01T00:00:00Z"})
    }

    #[test]
    fn a_verdict_of_another_run_is_none() {
        let ended = json!({"runId": "1", "podName": "p", "conditions": [
            condition("Finished", "True", "Finished"), condition("Succeeded", "True", "Completed"),
        ]});
        let (old, current) = (sandbox("2", &ended), sandbox("1", &ended));
        assert!(!reached(&old, Until::Finished) && !reached(&old, Until::Started));
        assert_eq!(verdict(&old), None);
        assert!(reached(&current, Until::Finished) && reached(&current, Until::Succeeded));
        assert!(reached(&current, Until::Ready));
        assert_eq!(
            verdict(&current),
            Some(agentsandbox_api::reason::Reason::Completed)
        );
    }

    #[test]
    fn progress_tells_the_condition_that_decides() {
        let queued = sandbox(
            "",
            &json!({"runId": "", "phase": "Queued", "conditions": [
                condition("Accepted", "True", "WithinPolicy"), condition("Ready", "False", "QuotaExceeded"),
                condition("Succeeded", "Unknown", "NotFinished"),
            ]}),
        );
        assert_eq!(Progress::of(&queued).to_string(), "Queued (QuotaExceeded): m");
        let refused = sandbox(
            "",
            &json!({"runId": "", "phase": "Pending", "conditions": [
                condition("Accepted", "False", "PolicyNotFound"), condition("Ready", "False", "PolicyNotFound"),
            ]}),
        );
        assert_eq!(Progress::of(&refused).reason, "PolicyNotFound");
        assert_eq!(
            Progress::of(&sandbox("", &json!(null))).to_string(),
            "not seen by the operator yet"
        );
    }
}
