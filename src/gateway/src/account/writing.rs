//! The writes of an account into its run's status: one after the other, each upon what was read or written last.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use agentsandbox_api::sandbox::{EgressCounters, EgressStatus};
use agentsandbox_egress::budget::{Counters, Reservation, Reserve};
use agentsandbox_egress::deny::Deny;

use super::{Account, Figures};
use crate::denials::Denials;
use crate::sink::{RunKey, SinkError, Versioned};

/// Most often a run's figures are written: once in so long. Claims and exhaustion do not wait.
pub const WRITE_EVERY: Duration = Duration::from_secs(2);
/// Most attempts of one write, with a pause that doubles from [`PAUSE`].
const ATTEMPTS: u32 = 8;
const PAUSE: Duration = Duration::from_millis(20);

/// What the last write has left behind.
pub(super) struct Writer {
    seen: Option<Versioned<EgressStatus>>,
    /// A write of which nobody knows whether it was made.
    doubtful: Option<Attempt>,
    /// The run's last write was made: another one would say that there is more to come.
    settled: bool,
}

impl Writer {
    /// Nothing was written yet upon what was read.
    pub(super) fn upon(seen: Versioned<EgressStatus>) -> Self {
        Self {
            seen: Some(seen),
            doubtful: None,
            settled: false,
        }
    }
}

/// One write.
struct Attempt {
    status: EgressStatus,
    figures: Figures,
    denials: Denials,
    claimed: Counters,
    given: Counters,
}

/// Why a write is made.
#[derive(Clone, Copy)]
pub(super) enum Purpose {
    /// To claim at least so much, and up to so much.
    Claim(Counters, Counters),
    /// To tell the figures.
    Report,
    /// The run (`settled`) or the gateway ends: everything unspent is given back.
    Last { settled: bool },
}

enum Plan {
    Granted(Reservation),
    Write(Box<Attempt>),
}

pub(super) enum Stop {
    /// It does not fit before something is settled.
    Wait(Deny),
    /// It does not fit, or the status can't be written.
    Deny(Deny),
}

impl Account {
    /// Writes figures until the run has ended, at most every [`WRITE_EVERY`]. Cancel it to end it.
    pub async fn report(self: Arc<Self>) {
        loop {
            tokio::select! {
                () = self.dirty.notified() => {}
                () = self.urgent.notified() => {}
            }
            if self.is_changed() {
                let account = self.clone();
                let write = tokio::spawn(async move {
                    let mut writer = account.writer.lock().await;
                    account.write(&mut writer, Purpose::Report).await.map(drop)
                });
                let failed = !matches!(write.await, Ok(Ok(())));
                if failed {
                    self.dirty.notify_one();
                }
            }
            let rest = tokio::time::sleep(WRITE_EVERY);
            tokio::select! {
                () = rest => {}
                () = self.urgent.notified() => self.dirty.notify_one(),
            }
        }
    }

    /// The last write: everything unspent is given back. `settled` says that the run has ended; else the gateway has.
    /// Returns whether it was made.
    pub async fn close(self: &Arc<Self>, settled: bool) -> bool {
        let mut writer = self.writer.lock().await;
        let is_made = self.write(&mut writer, Purpose::Last { settled }).await.is_ok();
        writer.settled |= is_made && settled;
        is_made
    }

    fn is_changed(&self) -> bool {
        let inner = self.inner();
        let figures = self.figures(&inner);
        figures != inner.reported
            || inner.ledger.debt() != Counters::ZERO
            || (inner.ledger.exhausted().is_some() && !inner.told_exhausted)
    }

    /// One write, tried until it is made, or needless, or hopeless.
    pub(super) async fn write(
        &self,
        writer: &mut Writer,
        purpose: Purpose,
    ) -> Result<Option<Reservation>, Stop> {
        if writer.settled {
            return Err(Stop::Deny(Deny::UnknownSandbox));
        }
        for attempt in 0..ATTEMPTS {
            if attempt > 0 {
                tokio::time::sleep(PAUSE * 2_u32.pow(attempt - 1)).await;
            }
            if writer.seen.is_none() {
                match self.sink.load_run(&self.key).await {
                    Ok(seen) => writer.seen = Some(seen),
                    Err(SinkError::Gone) => return Err(Stop::Deny(Deny::NotReady)),
                    Err(error) => {
                        tracing::warn!(sandbox = self.key.sandbox, %error, "status can't be read");
                        continue;
                    }
                }
            }
            let Some(seen) = writer.seen.clone() else { continue };
            if let Some(doubtful) = writer.doubtful.take() {
                if seen.status.as_ref() == Some(&doubtful.status) {
                    self.made(&doubtful);
                } else {
                    self.lost(&doubtful);
                }
            }
            let next = match self.plan(seen.status.as_ref(), purpose)? {
                Plan::Granted(reservation) => return Ok(Some(reservation)),
                Plan::Write(next) => *next,
            };
            match self.sink.store_run(&self.key, &next.status, &seen.version).await {
                Ok(version) => {
                    self.metrics.status_write("AgentSandbox", "ok");
                    self.made(&next);
                    writer.seen = Some(Versioned {
                        status: Some(next.status),
                        version,
                    });
                    if let Purpose::Claim(least, most) = purpose {
                        // Alone at the writer, and with what was asked for: this is granted now.
                        match self.inner().ledger.reserve_between(least, most) {
                            Reserve::Granted(reservation) => return Ok(Some(reservation)),
                            Reserve::Wait(deny) => return Err(Stop::Wait(deny)),
                            Reserve::Refused(deny) => return Err(Stop::Deny(deny)),
                            // Somebody was quicker with what was claimed for this.
                            Reserve::Claim(_) => continue,
                        }
                    }
                    return Ok(None);
                }
                Err(SinkError::Conflict) => {
                    self.metrics.status_write("AgentSandbox", "conflict");
                    self.unmade(&next);
                    writer.seen = None;
                }
                Err(SinkError::Gone) => {
                    self.unmade(&next);
                    return Err(Stop::Deny(Deny::NotReady));
                }
                Err(error @ SinkError::Refused(_)) => {
                    self.metrics.status_write("AgentSandbox", "error");
                    tracing::warn!(sandbox = self.key.sandbox, %error, "status can't be written");
                    self.unmade(&next);
                    writer.seen = None;
                }
                Err(error @ SinkError::Unknown(_)) => {
                    self.metrics.status_write("AgentSandbox", "error");
                    tracing::warn!(sandbox = self.key.sandbox, %error, "status may not have been written");
                    writer.doubtful = Some(next);
                    writer.seen = None;
                }
            }
        }
        Err(Stop::Deny(Deny::NotReady))
    }

    /// What is to be written upon `seen`.
    fn plan(&self, seen: Option<&EgressStatus>, purpose: Purpose) -> Result<Plan, Stop> {
        let base = base(&self.key, seen);
        let mut inner = self.inner();
        let figures = self.figures(&inner);
        let ledger = &mut inner.ledger;
        ledger.claimed(Counters::ZERO, base.claimed.into());
        let mut claim = Counters::ZERO;
        if let Purpose::Claim(least, most) = purpose {
            match ledger.reserve_between(least, most) {
                Reserve::Granted(reservation) => return Ok(Plan::Granted(reservation)),
                Reserve::Wait(deny) => return Err(Stop::Wait(deny)),
                Reserve::Refused(deny) => {
                    drop(inner);
                    self.after_change();
                    return Err(Stop::Deny(deny));
                }
                Reserve::Claim(add) => claim = add,
            }
        }
        // A claim covers the debt of its own kind already.
        let debt = ledger.debt();
        let claimed = Counters {
            tokens: claim.tokens.max(debt.tokens),
            model_requests: claim.model_requests.max(debt.model_requests),
            steps: claim.steps.max(debt.steps),
            bytes: claim.bytes.max(debt.bytes),
        };
        let surplus = match purpose {
            // What was claimed a moment ago for somebody who has not taken it yet is no surplus.
            Purpose::Claim(..) => Counters::ZERO,
            Purpose::Report => ledger.release(),
            Purpose::Last { .. } => ledger.give_back(),
        };
        let exhausted = ledger.exhausted();
        let given = std::mem::take(&mut inner.giving).plus(surplus);
        let denials = std::mem::take(&mut inner.denials);
        let new = |now: i64, reported: i64| now.saturating_sub(reported);
        let reported = inner.reported;
        let head = self.chain.lock().unwrap_or_else(PoisonError::into_inner).head();
        let status = EgressStatus {
            pod_uid: Some(self.key.pod_uid.clone()),
            claimed: Counters::from(base.claimed)
                .plus(claimed)
                .minus(given)
                .or_zero()
                .into(),
            used: Counters::from(base.used)
                .plus(figures.used.minus(reported.used))
                .into(),
            input_tokens: base
                .input_tokens
                .saturating_add(new(figures.input, reported.input)),
            output_tokens: base
                .output_tokens
                .saturating_add(new(figures.output, reported.output)),
            estimated_tokens: base
                .estimated_tokens
                .saturating_add(new(figures.estimated, reported.estimated)),
            allowed: base
                .allowed
                .saturating_add(new(figures.allowed, reported.allowed)),
            denied: base.denied.saturating_add(new(figures.denied, reported.denied)),
            denials: denials.shown_with(base.denials),
            exhausted: base.exhausted.or(exhausted),
            records: base.records.max(figures.records),
            head: if figures.records > reported.records {
                head
            } else {
                base.head
            },
            settled: matches!(purpose, Purpose::Last { settled: true }),
        };
        Ok(Plan::Write(Box::new(Attempt {
            status,
            figures,
            denials,
            claimed,
            given,
        })))
    }

    fn made(&self, attempt: &Attempt) {
        let mut inner = self.inner();
        let total = attempt.status.claimed.into();
        inner.ledger.claimed(attempt.claimed, total);
        inner.ledger.returned(attempt.given, total);
        inner.reported = attempt.figures;
        inner.told_exhausted |= attempt.status.exhausted.is_some();
        drop(inner);
        self.settled.notify_waiters();
    }

    /// It was certainly not made: everything of it is still to be written.
    fn unmade(&self, attempt: &Attempt) {
        let mut inner = self.inner();
        inner.giving = inner.giving.plus(attempt.given);
        inner.denials.put_back(&attempt.denials);
    }

    /// It may have been made and overwritten since. What it claimed is not used, and what it gave back is not given back
    /// once more: both are lost at worst.
    fn lost(&self, attempt: &Attempt) {
        let mut inner = self.inner();
        // The total was set from what was read just now.
        let total = attempt.status.claimed.into();
        inner.ledger.returned(attempt.given, total);
        inner.denials.put_back(&attempt.denials);
    }
}

/// What a run's status says; nothing, if it speaks of another pod.
pub(super) fn base(key: &RunKey, seen: Option<&EgressStatus>) -> EgressStatus {
    seen.filter(|status| status.pod_uid.as_deref().is_none_or(|uid| uid == key.pod_uid))
        .cloned()
        .unwrap_or_else(|| EgressStatus {
            pod_uid: Some(key.pod_uid.clone()),
            claimed: EgressCounters::default(),
            ..EgressStatus::default()
        })
}
