//! Something that was allowed and goes on: a tunnel, a request, an answer. It counts its bytes, and its end is a record.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU16, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use agentsandbox_egress::deny::Deny;
use agentsandbox_egress::models::Charge;
use agentsandbox_egress::record::{Action, End};
use tokio_util::sync::CancellationToken;

use crate::account::bytes_of;
use crate::open::{Allowed, OpenGuard};
use crate::session::{Event, Session};
use crate::state::{Gateway, Turn};

/// A rule's own ceiling of bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RuleCap {
    /// What tells the rule from others, also when the policy is edited.
    pub name: String,
    /// Most bytes of one run.
    pub max_bytes: u64,
}

/// Which way bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From the sandbox.
    Sent,
    /// To the sandbox.
    Received,
}

/// Something that was allowed and goes on. Its end is recorded when the last holder drops it.
pub struct Exchange {
    /// Whose it is.
    pub session: Arc<Session>,
    /// In what words it was recorded.
    pub event: Event,
    begun: Instant,
    sent: AtomicU64,
    received: AtomicU64,
    moved_ms: AtomicU64,
    status: AtomicU16,
    outcome: Mutex<Outcome>,
    cap: Option<RuleCap>,
    open: OpenGuard,
    /// Of a request, not of a connection.
    turn: Option<Turn>,
}

#[derive(Default)]
struct Outcome {
    reason: Option<Deny>,
    charge: Option<Charge>,
}

impl Exchange {
    /// Records that it is allowed, and begins it, if the run's policy of this moment still allows it.
    ///
    /// # Errors
    /// As [`Exchange::closed_by`]; [`Deny::NotReady`] if the policy is gone; [`Deny::LogFull`].
    pub fn begin(
        gateway: &Gateway,
        session: &Arc<Session>,
        event: Event,
        allowed: Allowed,
        cap: Option<RuleCap>,
        turn: Option<Turn>,
    ) -> Result<Arc<Self>, Deny> {
        // Whoever edits the policy closes what is open. It may have been edited since it was asked, when this was not:
        // hence the policy is read once more, and not before this is open.
        let open = session.open.insert(allowed, &session.ended);
        let is_allowed = open.is_allowed(&gateway.policy(&session.run.policy)?.rules);
        if !is_allowed || open.cancel.is_cancelled() {
            return Err(why_closed(session));
        }
        session.allow(&event)?;
        Ok(Arc::new(Self {
            session: session.clone(),
            event,
            begun: Instant::now(),
            sent: AtomicU64::new(0),
            received: AtomicU64::new(0),
            moved_ms: AtomicU64::new(0),
            status: AtomicU16::new(0),
            outcome: Mutex::default(),
            cap,
            open,
            turn,
        }))
    }

    /// The turn of the request that it is.
    #[must_use]
    pub fn turn(&self) -> Option<&Turn> {
        self.turn.as_ref()
    }

    /// A connection for it was made to this address, or one that was made before is used. It may go on if the policy of
    /// this moment opens the address, and is closed when that one no longer does.
    ///
    /// # Errors
    /// [`Deny::AddressForbidden`]; as [`Exchange::closed_by`] if the policy is gone.
    pub fn reached(&self, gateway: &Gateway, address: SocketAddr) -> Result<(), Deny> {
        // As with `begin`: first it is known, then the policy is read.
        self.open.reached(address);
        let policy = gateway
            .policy(&self.session.run.policy)
            .map_err(|_| self.closed_by())?;
        gateway.may_reach(&policy.rules, address)
    }

    /// Cancelled when it must be closed.
    #[must_use]
    pub fn cancel(&self) -> &CancellationToken {
        &self.open.cancel
    }

    /// Why it must be closed, once it is cancelled: its run has ended, or its policy no longer allows it.
    #[must_use]
    pub fn closed_by(&self) -> Deny {
        why_closed(&self.session)
    }

    /// Whether it may go on.
    ///
    /// # Errors
    /// As [`Exchange::closed_by`].
    pub fn check(&self) -> Result<(), Deny> {
        if self.cancel().is_cancelled() {
            Err(self.closed_by())
        } else {
            Ok(())
        }
    }

    /// The answer's status.
    pub fn answered(&self, status: u16) {
        self.status.store(status, Ordering::Relaxed);
    }

    /// Why it ends early; the first reason counts.
    pub fn fail(&self, deny: Deny) {
        self.outcome().reason.get_or_insert(deny);
    }

    /// Why it has failed.
    #[must_use]
    pub fn failure(&self) -> Option<Deny> {
        self.outcome().reason
    }

    /// What it cost, if it was a model's.
    pub fn charged(&self, charge: Charge) {
        self.outcome().charge = Some(charge);
    }

    /// How long no byte has moved.
    #[must_use]
    pub fn still(&self) -> Duration {
        self.begun
            .elapsed()
            .saturating_sub(Duration::from_millis(self.moved_ms.load(Ordering::Relaxed)))
    }

    /// Charges bytes to the run, without waiting; `None` if the run's budget must be asked for more, see
    /// [`Exchange::spend`].
    pub fn try_spend(&self, direction: Direction, bytes: u64) -> Option<Result<(), Deny>> {
        let spent = self.session.account.spend_bytes(bytes)?;
        Some(spent.and_then(|()| self.moved(direction, bytes)))
    }

    /// Charges bytes to the run.
    ///
    /// # Errors
    /// [`Deny::EgressByteBudgetExceeded`], of the run or of the rule; [`Deny::NotReady`] if the budget can't be written.
    pub async fn spend(&self, direction: Direction, bytes: u64) -> Result<(), Deny> {
        if let Some(spent) = self.try_spend(direction, bytes) {
            return spent;
        }
        let need = bytes_of(bytes);
        self.session.account.reserve(need, need).await?.spend(need);
        self.moved(direction, bytes)
    }

    /// Counts bytes that were charged already.
    ///
    /// # Errors
    /// [`Deny::EgressByteBudgetExceeded`], of the rule.
    pub fn moved(&self, direction: Direction, bytes: u64) -> Result<(), Deny> {
        let counter = match direction {
            Direction::Sent => &self.sent,
            Direction::Received => &self.received,
        };
        counter.fetch_add(bytes, Ordering::Relaxed);
        let now = u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.moved_ms.store(now, Ordering::Relaxed);
        match &self.cap {
            Some(cap) => self.session.spend_rule(cap, bytes),
            None => Ok(()),
        }
    }

    fn outcome(&self) -> MutexGuard<'_, Outcome> {
        self.outcome.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn why_closed(session: &Session) -> Deny {
    if session.ended.is_cancelled() {
        Deny::UnknownSandbox
    } else {
        Deny::HostNotAllowed
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        let (sent, received) = (*self.sent.get_mut(), *self.received.get_mut());
        let status = *self.status.get_mut();
        let outcome = self.outcome.get_mut().unwrap_or_else(PoisonError::into_inner);
        let end = End {
            status: (status != 0).then_some(status),
            bytes_sent: sent,
            bytes_received: received,
            duration_millis: u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX),
            input_tokens: outcome.charge.map(|charge| charge.input),
            output_tokens: outcome.charge.map(|charge| charge.output),
            estimated: outcome.charge.is_some_and(|charge| charge.estimated),
        };
        self.session.metrics.bytes(sent, received);
        self.session
            .append(&self.event.record(Action::End, outcome.reason, Some(end)));
    }
}
