//! What one run has spent and may spend, kept in its `status.egress`.
//!
//! [`Ledger`] decides; this does its writes. All writes of one run go one after the other, each by compare-and-swap on
//! the version that it began from, and each carries everything that is known by then: claims, what is given back, and
//! the figures as *differences* to the last write, so that several gateways can write one status.

mod writing;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use agentsandbox_api::reason::Reason;
use agentsandbox_api::sandbox::EgressStatus;
use agentsandbox_egress::budget::{Counters, Ledger, Limits, Reservation, Reserve};
use agentsandbox_egress::deny::Deny;
use agentsandbox_egress::models::Charge;
use agentsandbox_egress::record::Chain;
use k8s_openapi::jiff::Timestamp;
use tokio::sync::{Mutex as AsyncMutex, Notify};
use tokio::time::{Instant, timeout_at};

use crate::denials::Denials;
use crate::metrics::Metrics;
use crate::sink::{RunKey, StatusSink, Versioned};

pub use self::writing::WRITE_EVERY;
use self::writing::{Purpose, Stop, Writer, base};

/// How long a request waits for others to be settled before it is refused for want of budget.
const WAIT: Duration = Duration::from_secs(10);

/// Sums of one gateway for one run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Figures {
    allowed: i64,
    denied: i64,
    input: i64,
    output: i64,
    estimated: i64,
    records: i64,
    used: Counters,
}

/// A run's account.
pub struct Account {
    sink: Arc<dyn StatusSink>,
    key: RunKey,
    metrics: Metrics,
    /// The run's records.
    pub chain: Mutex<Chain>,
    inner: Mutex<Inner>,
    /// Whether the run has a budget of bytes at all.
    counts_bytes: AtomicBool,
    /// Bytes of a run that has none: counted, and never waited for.
    free_bytes: AtomicU64,
    writer: AsyncMutex<Writer>,
    settled: Notify,
    dirty: Notify,
    urgent: Notify,
}

struct Inner {
    ledger: Ledger,
    figures: Figures,
    reported: Figures,
    denials: Denials,
    /// Taken out of the ledger, and not yet off the status.
    giving: Counters,
    told_exhausted: bool,
}

/// Leave to spend, which is settled when it is dropped: by what [`Held::spend`] was told until then.
#[must_use]
pub struct Held {
    account: Arc<Account>,
    reservation: Option<Reservation>,
    spent: Counters,
}

impl Account {
    /// The account of a run whose `status.egress` is `seen`.
    pub fn new(
        sink: Arc<dyn StatusSink>,
        key: RunKey,
        limits: Limits,
        seen: Versioned<EgressStatus>,
        metrics: Metrics,
    ) -> Arc<Self> {
        let base = base(&key, seen.status.as_ref());
        let chain = chain_after(&base);
        Arc::new(Self {
            sink,
            metrics,
            inner: Mutex::new(Inner {
                ledger: Ledger::new(limits, base.claimed.into()),
                figures: Figures::default(),
                reported: Figures {
                    records: i64::try_from(chain.records()).unwrap_or(i64::MAX),
                    ..Figures::default()
                },
                denials: Denials::default(),
                giving: Counters::ZERO,
                told_exhausted: false,
            }),
            chain: Mutex::new(chain),
            counts_bytes: AtomicBool::new(limits.bytes.is_some()),
            free_bytes: AtomicU64::new(0),
            key,
            writer: AsyncMutex::new(Writer::upon(seen)),
            settled: Notify::new(),
            dirty: Notify::new(),
            urgent: Notify::new(),
        })
    }

    /// Other limits from now on: the policy was edited.
    pub fn set_limits(&self, limits: Limits) {
        let mut inner = self.inner();
        if limits.bytes.is_some() && !self.counts_bytes.swap(true, Ordering::SeqCst) {
            // What was free until now counts against the new budget.
            let spent = bytes_of(self.free_bytes.swap(0, Ordering::SeqCst));
            if let Reserve::Granted(reservation) = inner.ledger.reserve(spent) {
                inner.ledger.settle(reservation, spent);
            }
        }
        inner.ledger.set_limits(limits);
        drop(inner);
        self.settled.notify_waiters();
    }

    /// Something was allowed.
    pub fn allowed(&self) {
        self.inner().figures.allowed += 1;
        self.dirty.notify_one();
    }

    /// Something was refused.
    pub fn denied(&self, destination: &str, deny: Deny, at: Timestamp) {
        let mut inner = self.inner();
        inner.figures.denied += 1;
        inner.denials.add(destination, deny, at);
        drop(inner);
        self.dirty.notify_one();
    }

    /// What a model request cost, of `used.tokens`.
    pub fn charged(&self, charge: Charge) {
        let mut inner = self.inner();
        let figures = &mut inner.figures;
        figures.input = figures.input.saturating_add(charge.input);
        figures.output = figures.output.saturating_add(charge.output);
        if charge.estimated {
            figures.estimated = figures.estimated.saturating_add(charge.tokens());
        }
    }

    /// Leave to spend at least `least` and up to `most`, if it is there without a claim; `None` if it may be there after
    /// one.
    pub fn try_reserve(self: &Arc<Self>, least: Counters, most: Counters) -> Option<Result<Held, Deny>> {
        let answer = self.inner().ledger.reserve_between(least, most);
        match answer {
            Reserve::Granted(reservation) => Some(Ok(self.hold(reservation))),
            Reserve::Refused(deny) => {
                self.after_change();
                Some(Err(deny))
            }
            Reserve::Claim(_) | Reserve::Wait(_) => None,
        }
    }

    /// Leave to spend at least `least` and up to `most`. Claims from the status what it needs, and waits a while for
    /// what is in flight.
    ///
    /// # Errors
    /// The budget that is too small, or [`Deny::NotReady`] if the status can't be written.
    pub async fn reserve(self: &Arc<Self>, least: Counters, most: Counters) -> Result<Held, Deny> {
        self.reserve_within(WAIT, least, most).await
    }

    /// As [`Account::reserve`], but waits no longer than `wait` for what is in flight.
    ///
    /// # Errors
    /// As [`Account::reserve`].
    pub async fn reserve_within(
        self: &Arc<Self>,
        wait: Duration,
        least: Counters,
        most: Counters,
    ) -> Result<Held, Deny> {
        let deadline = Instant::now() + wait;
        loop {
            let settled = self.settled.notified();
            tokio::pin!(settled);
            settled.as_mut().enable();
            let answer = self.inner().ledger.reserve_between(least, most);
            let waits_for = match answer {
                Reserve::Granted(reservation) => return Ok(self.hold(reservation)),
                Reserve::Refused(deny) => {
                    self.after_change();
                    return Err(deny);
                }
                Reserve::Wait(deny) => deny,
                Reserve::Claim(_) => {
                    // In a task of its own: a request that is given up must not leave half a write behind.
                    let account = self.clone();
                    let claim = tokio::spawn(async move { account.claim(least, most).await });
                    match claim.await.unwrap_or(Err(Stop::Deny(Deny::NotReady))) {
                        Ok(held) => return Ok(held),
                        Err(Stop::Deny(deny)) => return Err(deny),
                        Err(Stop::Wait(deny)) => deny,
                    }
                }
            };
            if timeout_at(deadline, settled).await.is_err() {
                return Err(waits_for);
            }
        }
    }

    async fn claim(self: Arc<Self>, least: Counters, most: Counters) -> Result<Held, Stop> {
        let mut writer = self.writer.lock().await;
        match self.write(&mut writer, Purpose::Claim(least, most)).await? {
            Some(reservation) => Ok(self.hold(reservation)),
            None => Err(Stop::Deny(Deny::NotReady)),
        }
    }

    /// Counts bytes of a run that has no budget of bytes; false if it has one, and they must be reserved.
    pub fn spend_freely(&self, bytes: u64) -> bool {
        if self.counts_bytes.load(Ordering::Relaxed) {
            return false;
        }
        self.free_bytes.fetch_add(bytes, Ordering::Relaxed);
        self.dirty.notify_one();
        true
    }

    /// Whether the run has a budget of bytes.
    #[must_use]
    pub fn counts_bytes(&self) -> bool {
        self.counts_bytes.load(Ordering::Relaxed)
    }

    /// Spends bytes that have been exchanged, if they are there without a claim; else says that they are not.
    pub fn spend_bytes(self: &Arc<Self>, bytes: u64) -> Option<Result<(), Deny>> {
        if self.spend_freely(bytes) {
            return Some(Ok(()));
        }
        let need = bytes_of(bytes);
        self.try_reserve(need, need)
            .map(|held| held.map(|mut held| held.spend(need)))
    }

    /// What was used of the budgets through this gateway.
    #[must_use]
    pub fn used(&self) -> Counters {
        self.figures(&self.inner()).used
    }

    /// Waits until a budget is used up, which ends the run.
    pub async fn exhaustion(&self) -> Reason {
        loop {
            let settled = self.settled.notified();
            tokio::pin!(settled);
            settled.as_mut().enable();
            if let Some(reason) = self.inner().ledger.exhausted() {
                return reason;
            }
            settled.await;
        }
    }

    fn figures(&self, inner: &Inner) -> Figures {
        let records = self
            .chain
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .records();
        Figures {
            records: i64::try_from(records).unwrap_or(i64::MAX),
            used: inner
                .ledger
                .used()
                .plus(bytes_of(self.free_bytes.load(Ordering::SeqCst))),
            ..inner.figures
        }
    }

    fn hold(self: &Arc<Self>, reservation: Reservation) -> Held {
        Held {
            account: self.clone(),
            reservation: Some(reservation),
            spent: Counters::ZERO,
        }
    }

    /// Tells whoever waits, and whoever ends the run, what has changed.
    fn after_change(&self) {
        let is_news = {
            let inner = self.inner();
            inner.ledger.exhausted().is_some() && !inner.told_exhausted
        };
        self.settled.notify_waiters();
        if is_news {
            self.urgent.notify_one();
        }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Held {
    /// How much may be spent.
    #[must_use]
    pub fn granted(&self) -> Counters {
        self.reservation
            .as_ref()
            .map_or(Counters::ZERO, Reservation::granted)
    }

    /// So much has been spent in all. It counts when this is dropped.
    pub fn spend(&mut self, spent: Counters) {
        self.spent = spent;
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if let Some(reservation) = self.reservation.take() {
            self.account.inner().ledger.settle(reservation, self.spent);
            self.account.after_change();
            if !self.spent.is_zero() {
                self.account.dirty.notify_one();
            }
        }
    }
}

/// Bytes as counters.
#[must_use]
pub fn bytes_of(bytes: u64) -> Counters {
    Counters {
        bytes: i64::try_from(bytes).unwrap_or(i64::MAX),
        ..Counters::ZERO
    }
}

/// The chain of a run's records, which goes on where another gateway has left it.
fn chain_after(base: &EgressStatus) -> Chain {
    let records = u64::try_from(base.records).unwrap_or(0);
    base.head
        .as_deref()
        .and_then(|head| Chain::resume(records, head))
        .unwrap_or_default()
}
