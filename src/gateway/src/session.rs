//! One bound run: what it may take, what it has open, and the records of what it did.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use agentsandbox_api::sandbox::Limits as AskedLimits;
use agentsandbox_egress::deny::Deny;
use agentsandbox_egress::identity::Run;
use agentsandbox_egress::models::Charge;
use agentsandbox_egress::record::{Action, Class, End, Record, RuleName, RunIdentity};
use agentsandbox_egress::shares::Bucket;
use k8s_openapi::jiff::Timestamp;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::account::Account;
use crate::config::Limits;
use crate::exchange::RuleCap;
use crate::log::Log;
use crate::metrics::{Metrics, Open};
use crate::open::OpenSet;
use crate::upstream::Pool;

/// So many steps at once, and so many a second after that: far more than can be started.
const STEPS_AT_ONCE: u32 = 128;
const STEPS_PER_SECOND: u32 = 100;
/// Refusals for asking too much are recorded so many times a second; all are counted.
const FLOOD_RECORDS: u32 = 5;

/// A run whose address is bound.
pub struct Session {
    /// Who it is.
    pub run: Arc<Run>,
    identity: RunIdentity,
    /// Its budgets and figures.
    pub account: Arc<Account>,
    /// Cancelled at its end.
    pub ended: CancellationToken,
    /// What it has open.
    pub open: Arc<OpenSet>,
    /// Its connections to destinations, which no other run uses.
    pub pool: Pool,
    /// The ceilings that the sandbox itself asks for.
    pub asked: Option<AskedLimits>,
    rates: Mutex<Rates>,
    /// Number of the last charge that a recorder asked for.
    last_charge: AtomicU64,
    /// Memory for the bodies of model requests, in KiB: at most half of all.
    pub model_memory: Arc<Semaphore>,
    /// Bytes that were exchanged by rules that have a ceiling, by the rule's name.
    rule_bytes: Mutex<HashMap<String, u64>>,
    log: Arc<Log>,
    pub(crate) metrics: Metrics,
    _bound: Open,
}

struct Rates {
    requests: Bucket,
    queries: Bucket,
    steps: Bucket,
    floods: Bucket,
}

/// What is decided about.
#[derive(Clone, Debug)]
pub struct Event {
    /// What kind.
    pub class: Class,
    /// Host or address.
    pub destination: String,
    /// Port.
    pub port: Option<u16>,
    /// Method, or type of a DNS question.
    pub method: Option<String>,
    /// Path, without query.
    pub path: Option<String>,
    /// What allows it.
    pub rule: Option<RuleName>,
    /// Model that is asked.
    pub model: Option<String>,
}

impl Event {
    /// A connection.
    #[must_use]
    pub fn connection(destination: impl Into<String>, port: Option<u16>) -> Self {
        Self {
            class: Class::Connection,
            destination: destination.into(),
            port,
            method: None,
            path: None,
            rule: None,
            model: None,
        }
    }

    /// A request.
    #[must_use]
    pub fn request(destination: impl Into<String>, port: Option<u16>, method: &str, path: &str) -> Self {
        Self {
            class: Class::Request,
            method: Some(method.to_owned()),
            path: Some(path.to_owned()),
            ..Self::connection(destination, port)
        }
    }

    /// A DNS question.
    #[must_use]
    pub fn question(name: String, kind: String) -> Self {
        Self {
            class: Class::Dns,
            method: Some(kind),
            ..Self::connection(name, None)
        }
    }

    /// A step of a session.
    #[must_use]
    pub fn step() -> Self {
        Self {
            class: Class::Step,
            ..Self::connection("step", None)
        }
    }

    /// The record of it.
    #[must_use]
    pub fn record(&self, action: Action, reason: Option<Deny>, end: Option<End>) -> Record<'_> {
        Record {
            time: Timestamp::now(),
            class: self.class,
            action,
            reason,
            destination: &self.destination,
            port: self.port,
            method: self.method.as_deref(),
            path: self.path.as_deref(),
            rule: self.rule,
            model: self.model.as_deref(),
            end,
        }
    }

    fn way(&self) -> &'static str {
        match self.class {
            Class::Connection => "connection",
            Class::Request => "request",
            Class::Dns => "dns",
            Class::Model => "model",
            Class::Step => "step",
        }
    }

    fn place(&self) -> String {
        match self.port {
            Some(port) if self.destination.contains(':') => format!("[{}]:{port}", self.destination),
            Some(port) => format!("{}:{port}", self.destination),
            None => self.destination.clone(),
        }
    }
}

impl Session {
    /// A session that begins now.
    pub fn new(
        run: Arc<Run>,
        account: Arc<Account>,
        asked: Option<AskedLimits>,
        limits: &Limits,
        log: Arc<Log>,
        metrics: Metrics,
    ) -> Arc<Self> {
        let now = Instant::now();
        Arc::new(Self {
            identity: RunIdentity::of(&run),
            run,
            account,
            ended: CancellationToken::new(),
            open: Arc::default(),
            pool: Pool::default(),
            asked,
            rates: Mutex::new(Rates {
                requests: Bucket::new(limits.requests_per_second, limits.requests_per_second, now),
                queries: Bucket::new(
                    limits.queries_per_second.saturating_mul(2),
                    limits.queries_per_second,
                    now,
                ),
                steps: Bucket::new(STEPS_AT_ONCE, STEPS_PER_SECOND, now),
                floods: Bucket::new(FLOOD_RECORDS.saturating_mul(4), FLOOD_RECORDS, now),
            }),
            last_charge: AtomicU64::new(0),
            model_memory: Arc::new(Semaphore::new(limits.model_body_memory / 2_048)),
            rule_bytes: Mutex::default(),
            log,
            _bound: metrics.run(),
            metrics,
        })
    }

    /// Whether one more connection or request is within the sandbox's rate.
    ///
    /// # Errors
    /// [`Deny::TooManyRequests`].
    pub fn admit_request(&self) -> Result<(), Deny> {
        let admitted = self.rates().requests.take(Instant::now());
        admitted.then_some(()).ok_or(Deny::TooManyRequests)
    }

    /// Whether one more DNS question is within the sandbox's rate.
    ///
    /// # Errors
    /// [`Deny::TooManyRequests`].
    pub fn admit_query(&self) -> Result<(), Deny> {
        let admitted = self.rates().queries.take(Instant::now());
        admitted.then_some(()).ok_or(Deny::TooManyRequests)
    }

    /// Whether a charge of this number is new. A number that is not higher than all before it is not.
    pub(crate) fn is_new_charge(&self, number: u64) -> bool {
        self.last_charge.fetch_max(number, Ordering::Relaxed) < number
    }

    /// Waits until one more step is within the run's rate.
    pub(crate) async fn admit_step(&self) {
        loop {
            let wait = {
                let (mut rates, now) = (self.rates(), Instant::now());
                if rates.steps.take(now) {
                    return;
                }
                rates.steps.wait(1, now)
            };
            tokio::time::sleep(wait.unwrap_or_default().max(Duration::from_millis(1))).await;
        }
    }

    /// Records that something is allowed, before it happens.
    ///
    /// # Errors
    /// [`Deny::LogFull`]: then it does not happen.
    pub fn allow(&self, event: &Event) -> Result<(), Deny> {
        let record = event.record(Action::Allow, None, None);
        self.log
            .append(&self.account.chain, Some(&self.identity), &record)?;
        self.account.allowed();
        self.metrics.decision(event.way(), None);
        Ok(())
    }

    /// Records that something is refused.
    pub fn deny(&self, event: &Event, deny: Deny) {
        if matches!(
            deny,
            Deny::UpstreamUnreachable | Deny::UpstreamTimeout | Deny::UpstreamUntrusted
        ) {
            // It was allowed, and went wrong: the record of its end says so.
            self.metrics.decision(event.way(), Some(deny));
            return;
        }
        let now = Timestamp::now();
        self.metrics.decision(event.way(), Some(deny));
        self.account.denied(&event.place(), deny, now);
        let is_flood = matches!(deny, Deny::TooManyConnections | Deny::TooManyRequests);
        if is_flood && !self.rates().floods.take(Instant::now()) {
            return;
        }
        self.append(&event.record(Action::Deny, Some(deny), None));
    }

    /// Adds bytes to what a rule has exchanged in this run.
    ///
    /// # Errors
    /// [`Deny::EgressByteBudgetExceeded`] above its ceiling.
    pub(crate) fn spend_rule(&self, cap: &RuleCap, bytes: u64) -> Result<(), Deny> {
        let mut spent = self.rule_bytes.lock().unwrap_or_else(PoisonError::into_inner);
        let spent = spent.entry(cap.name.clone()).or_insert(0);
        *spent = spent.saturating_add(bytes);
        if *spent > cap.max_bytes {
            Err(Deny::EgressByteBudgetExceeded)
        } else {
            Ok(())
        }
    }

    /// A model request cost so much.
    pub fn charged(&self, charge: Charge) {
        self.account.charged(charge);
        self.metrics.tokens(charge.input, charge.output, charge.estimated);
    }

    /// An answer carried a credential.
    pub fn scrubbed(&self, times: u64) {
        tracing::warn!(
            sandbox = self.run.sandbox,
            times,
            "an answer carried a credential; it was taken out"
        );
        self.metrics.scrubbed(times);
    }

    pub(crate) fn append(&self, record: &Record<'_>) {
        if self
            .log
            .append(&self.account.chain, Some(&self.identity), record)
            .is_err()
        {
            self.metrics.record_lost();
        }
    }

    fn rates(&self) -> MutexGuard<'_, Rates> {
        self.rates.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
