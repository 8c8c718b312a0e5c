//! What all runs of one policy together may spend, kept in the policy's `status.egress`.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use agentsandbox_api::policy::{PolicyEgressStatus, Quota as QuotaSpec};
use agentsandbox_egress::budget::{self, Counters, Ledger, Limits, Reservation, Reserve};
use agentsandbox_egress::deny::Deny;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use tokio::sync::{Mutex as AsyncMutex, Notify};
use tokio::time::{Instant, timeout_at};

use crate::metrics::Metrics;
use crate::sink::{SinkError, StatusSink};

/// How long a request waits for others to be settled, or for the status, before it is refused.
const WAIT: Duration = Duration::from_secs(10);
/// What the status said is believed for so long by whoever is refused.
const BELIEVED: Duration = Duration::from_secs(1);
/// Most attempts of one write, with a pause that doubles from [`PAUSE`].
const ATTEMPTS: u32 = 8;
const PAUSE: Duration = Duration::from_millis(20);
/// What is claimed and not needed any more goes back after so long.
pub const RELEASE_EVERY: Duration = Duration::from_secs(10);

/// Seconds since 1970. Tests put one of their own in its place.
pub type Clock = Arc<dyn Fn() -> i64 + Send + Sync>;

/// A policy's quota.
pub struct Quota {
    sink: Arc<dyn StatusSink>,
    policy: String,
    metrics: Metrics,
    clock: Clock,
    inner: Mutex<Inner>,
    writer: AsyncMutex<()>,
    /// When somebody who was refused has read the status last.
    asked_again: AsyncMutex<Option<Instant>>,
    settled: Notify,
}

struct Inner {
    ledger: Ledger,
    limits: Limits,
    window_seconds: Option<i64>,
    /// Begin of the window that the ledger counts.
    start: Option<i64>,
    /// Taken out of the ledger in this window, and not yet off the status.
    giving: Counters,
}

/// Leave to spend of the quota, which is settled when it is dropped.
#[must_use]
pub struct Share {
    quota: Arc<Quota>,
    reservation: Option<Reservation>,
    spent: Counters,
}

impl Quota {
    /// The quota of a policy. What its status says is read when something is claimed.
    pub fn new(sink: Arc<dyn StatusSink>, policy: &str, metrics: Metrics, clock: Clock) -> Arc<Self> {
        Arc::new(Self {
            sink,
            policy: policy.to_owned(),
            metrics,
            clock,
            inner: Mutex::new(Inner {
                ledger: Ledger::for_policy(Limits::default(), Counters::ZERO),
                limits: Limits::default(),
                window_seconds: None,
                start: None,
                giving: Counters::ZERO,
            }),
            writer: AsyncMutex::new(()),
            asked_again: AsyncMutex::new(None),
            settled: Notify::new(),
        })
    }

    /// What the policy says now.
    pub fn set(&self, spec: Option<&QuotaSpec>) {
        let mut inner = self.inner();
        inner.limits = Limits::of_policy(spec);
        inner.window_seconds = spec.and_then(|spec| spec.window_seconds);
        let limits = inner.limits;
        inner.ledger.set_limits(limits);
        drop(inner);
        self.settled.notify_waiters();
    }

    /// Leave to spend `need` of the quota.
    ///
    /// # Errors
    /// [`Deny::PolicyQuotaExceeded`], or [`Deny::NotReady`] if the status can't be read or written.
    pub async fn reserve(self: &Arc<Self>, need: Counters) -> Result<Share, Deny> {
        let deadline = Instant::now() + WAIT;
        loop {
            let settled = self.settled.notified();
            tokio::pin!(settled);
            settled.as_mut().enable();
            let waits_for = match self.ask(need) {
                Reserve::Granted(reservation) => return Ok(self.share(reservation)),
                Reserve::Wait(deny) => deny,
                Reserve::Refused(deny) if self.is_hopeless(need) => return Err(deny),
                answer => {
                    let (quota, is_refusal) = (self.clone(), matches!(answer, Reserve::Refused(_)));
                    // In a task of its own: a write that was begun is not left halfway.
                    let claim = tokio::spawn(async move {
                        if is_refusal {
                            quota.claim_refused(need).await
                        } else {
                            quota.claim(need).await
                        }
                    });
                    let claimed = timeout_at(deadline, claim).await.map_err(|_| Deny::NotReady)?;
                    match claimed.unwrap_or(Err(Deny::NotReady))? {
                        Claimed::Share(share) => return Ok(share),
                        Claimed::Wait(deny) => deny,
                    }
                }
            };
            if timeout_at(deadline, settled).await.is_err() {
                return Err(waits_for);
            }
        }
    }

    /// Gives back what is claimed and not needed; with `all`, everything unspent. Returns whether that was written.
    pub async fn release(self: &Arc<Self>, all: bool) -> bool {
        let _writer = self.writer.lock().await;
        self.write(None, all).await.is_ok()
    }

    /// Whether something is claimed that is not needed.
    #[must_use]
    pub fn has_surplus(&self) -> bool {
        let inner = self.inner();
        let mut trial = inner.ledger.clone();
        !inner.giving.is_zero() || !trial.release().is_zero() || !inner.ledger.debt().is_zero()
    }

    fn ask(&self, need: Counters) -> Reserve {
        let mut inner = self.inner();
        let window = budget::window((self.clock)(), inner.window_seconds, inner.start);
        if window.fresh {
            // What the new window's status says is seen with the first claim.
            inner.roll(window.start, Counters::ZERO);
        }
        inner.ledger.reserve(need)
    }

    /// Whether it would not fit if nothing was spent.
    fn is_hopeless(&self, need: Counters) -> bool {
        let mut untouched = Ledger::for_policy(self.inner().limits, Counters::ZERO);
        matches!(untouched.reserve(need), Reserve::Refused(_))
    }

    /// Of a refusal, too, the status has the last word: another gateway may have given something back. It is asked once
    /// for all who are refused at about the same time, so that they keep nobody else from claiming.
    async fn claim_refused(self: Arc<Self>, need: Counters) -> Result<Claimed, Deny> {
        let mut asked_again = self.asked_again.lock().await;
        if asked_again.is_none_or(|asked| asked.elapsed() >= BELIEVED) {
            let claimed = self.clone().claim(need).await;
            *asked_again = Some(Instant::now());
            return claimed;
        }
        drop(asked_again);
        match self.ask(need) {
            Reserve::Granted(reservation) => Ok(Claimed::Share(self.share(reservation))),
            Reserve::Refused(deny) => Err(deny),
            Reserve::Wait(deny) => Ok(Claimed::Wait(deny)),
            Reserve::Claim(_) => self.claim(need).await,
        }
    }

    async fn claim(self: Arc<Self>, need: Counters) -> Result<Claimed, Deny> {
        let _writer = self.writer.lock().await;
        match self.write(Some(need), false).await? {
            Written::Reserved(reservation) => Ok(Claimed::Share(self.share(reservation))),
            Written::Wait(deny) => Ok(Claimed::Wait(deny)),
            Written::Done => Err(Deny::NotReady),
        }
    }

    /// One write, tried until it is made, needless or hopeless. With `need` it ends with that reserved.
    async fn write(&self, need: Option<Counters>, all: bool) -> Result<Written, Deny> {
        for attempt in 0..ATTEMPTS {
            if attempt > 0 {
                tokio::time::sleep(PAUSE * 2_u32.pow(attempt - 1)).await;
            }
            let seen = match self.sink.load_policy(&self.policy).await {
                Ok(seen) => seen,
                Err(SinkError::Gone) => return Err(Deny::NotReady),
                Err(error) => {
                    tracing::warn!(policy = self.policy, %error, "status can't be read");
                    continue;
                }
            };
            let (status, claimed, given, start) = match self.plan(seen.status.as_ref(), need, all)? {
                Plan::Done(written) => return Ok(written),
                Plan::Write {
                    status,
                    claimed,
                    given,
                    start,
                } => (status, claimed, given, start),
            };
            let total = counters(&status);
            match self.sink.store_policy(&self.policy, &status, &seen.version).await {
                Ok(_) => {
                    self.metrics.status_write("SandboxPolicy", "ok");
                    let mut inner = self.inner();
                    // What was claimed of a window that has passed meanwhile is nothing in the next.
                    if inner.start == start {
                        inner.ledger.claimed(claimed, total);
                        inner.ledger.returned(given, total);
                    }
                    let granted = need.map(|need| inner.ledger.reserve(need));
                    drop(inner);
                    self.settled.notify_waiters();
                    match granted {
                        None => return Ok(Written::Done),
                        Some(Reserve::Granted(reservation)) => return Ok(Written::Reserved(reservation)),
                        Some(Reserve::Refused(deny)) => return Err(deny),
                        Some(Reserve::Wait(deny)) => return Ok(Written::Wait(deny)),
                        // Somebody was quicker with what was claimed for this.
                        Some(Reserve::Claim(_)) => {}
                    }
                }
                Err(SinkError::Gone) => return Err(Deny::NotReady),
                Err(SinkError::Conflict) => {
                    self.metrics.status_write("SandboxPolicy", "conflict");
                    self.keep(given, start);
                }
                Err(error @ SinkError::Refused(_)) => {
                    self.metrics.status_write("SandboxPolicy", "error");
                    tracing::warn!(policy = self.policy, %error, "status can't be written");
                    self.keep(given, start);
                }
                Err(error @ SinkError::Unknown(_)) => {
                    // What was claimed is lost if it was written, and what was given back if it was not.
                    self.metrics.status_write("SandboxPolicy", "error");
                    tracing::warn!(policy = self.policy, %error, "status may not have been written");
                    let mut inner = self.inner();
                    if inner.start == start {
                        inner.ledger.returned(given, total);
                    }
                }
            }
        }
        Err(Deny::NotReady)
    }

    fn plan(
        &self,
        seen: Option<&PolicyEgressStatus>,
        need: Option<Counters>,
        all: bool,
    ) -> Result<Plan, Deny> {
        let mut inner = self.inner();
        let recorded = seen
            .and_then(|status| status.window_start.as_ref())
            .map(|start| start.0.as_second());
        let window = budget::window((self.clock)(), inner.window_seconds, recorded);
        let total = match seen {
            Some(status) if !window.fresh => counters(status),
            _ => Counters::ZERO,
        };
        if window.start == inner.start {
            inner.ledger.claimed(Counters::ZERO, total);
        } else {
            inner.roll(window.start, total);
        }
        let mut claimed = inner.ledger.debt();
        if let Some(need) = need {
            match inner.ledger.reserve(need) {
                Reserve::Granted(reservation) => return Ok(Plan::Done(Written::Reserved(reservation))),
                Reserve::Wait(deny) => return Ok(Plan::Done(Written::Wait(deny))),
                Reserve::Refused(deny) => return Err(deny),
                Reserve::Claim(add) => {
                    claimed = Counters {
                        tokens: claimed.tokens.max(add.tokens),
                        model_requests: claimed.model_requests.max(add.model_requests),
                        ..Counters::ZERO
                    };
                }
            }
        }
        let surplus = match (need, all) {
            (Some(_), _) => Counters::ZERO,
            (None, true) => inner.ledger.give_back(),
            (None, false) => inner.ledger.release(),
        };
        let given = std::mem::take(&mut inner.giving).plus(surplus);
        if claimed.is_zero() && given.is_zero() {
            return Ok(Plan::Done(Written::Done));
        }
        let next = total.plus(claimed).minus(given).or_zero();
        Ok(Plan::Write {
            status: PolicyEgressStatus {
                window_start: window
                    .start
                    .and_then(|start| Timestamp::from_second(start).ok())
                    .map(Time),
                tokens: next.tokens,
                model_requests: next.model_requests,
            },
            claimed,
            given,
            start: window.start,
        })
    }

    fn keep(&self, given: Counters, start: Option<i64>) {
        let mut inner = self.inner();
        if inner.start == start {
            inner.giving = inner.giving.plus(given);
        }
    }

    fn share(self: &Arc<Self>, reservation: Reservation) -> Share {
        Share {
            quota: self.clone(),
            reservation: Some(reservation),
            spent: Counters::ZERO,
        }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

enum Claimed {
    Share(Share),
    Wait(Deny),
}

enum Written {
    Reserved(Reservation),
    Wait(Deny),
    Done,
}

enum Plan {
    Done(Written),
    Write {
        status: PolicyEgressStatus,
        claimed: Counters,
        given: Counters,
        /// Begin of the window that this is of.
        start: Option<i64>,
    },
}

impl Inner {
    fn roll(&mut self, start: Option<i64>, total: Counters) {
        self.start = start;
        self.giving = Counters::ZERO;
        self.ledger.roll(total);
    }
}

impl Share {
    /// So much has been spent in all. It counts when this is dropped.
    pub fn spend(&mut self, spent: Counters) {
        self.spent = spent;
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        if let Some(reservation) = self.reservation.take() {
            self.quota.inner().ledger.settle(reservation, self.spent);
            self.quota.settled.notify_waiters();
        }
    }
}

fn counters(status: &PolicyEgressStatus) -> Counters {
    Counters {
        tokens: status.tokens,
        model_requests: status.model_requests,
        ..Counters::ZERO
    }
}
