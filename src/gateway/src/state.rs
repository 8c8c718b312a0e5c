//! What all parts of the gateway share: who is who, what each policy allows, and how much of the gateway is taken.
//!
//! [`crate::watch`] tells it what the API server shows, [`crate::register`] what recorders say. It holds no client of
//! its own, so tests play both.

mod binding;

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::{Duration, Instant};

use agentsandbox_api::policy::SandboxPolicySpec;
use agentsandbox_egress::deny::Deny;
use agentsandbox_egress::identity::{Pod, Registry};
use agentsandbox_egress::record::{Action, Class};
use agentsandbox_egress::rules::EgressPolicy;
use agentsandbox_egress::shares::{Bucket, Places};
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{info, warn};

pub use self::binding::unbound;

use crate::ca::Authority;
use crate::config::Limits;
use crate::credentials::Credentials;
use crate::health::Readiness;
use crate::jwks::Keys;
use crate::log::Log;
use crate::metrics::{Metrics, Open};
use crate::network::Network;
pub use crate::policy::{Policy, Sandbox};
use crate::quota::{Clock, Quota, RELEASE_EVERY};
use crate::session::{Event, Session};
use crate::sink::StatusSink;
use crate::tls::Trust;

/// So many strangers a second are recorded, and as many refused registrations.
const STRANGER_RECORDS: u32 = 5;
/// How long a gateway that stops takes for its last writes.
const STOP_PATIENCE: Duration = Duration::from_secs(5);
/// What the gateway is made of.
pub struct Parts {
    /// Namespace whose sandboxes are served.
    pub namespace: String,
    /// Addresses of the gateway's Service.
    pub addresses: Vec<IpAddr>,
    /// Shares and patience.
    pub limits: Limits,
    /// The world outside.
    pub network: Arc<dyn Network>,
    /// TLS with it.
    pub trust: Trust,
    /// Mounted Secrets.
    pub credentials: Credentials,
    /// Signs for inspected hosts.
    pub authority: Authority,
    /// Where budgets are kept.
    pub sink: Arc<dyn StatusSink>,
    /// Decisions.
    pub log: Log,
    /// Metrics.
    pub metrics: Metrics,
    /// What is waited for.
    pub readiness: Readiness,
    /// Seconds since 1970.
    pub clock: Clock,
}

/// The gateway.
pub struct Gateway {
    /// Namespace whose sandboxes are served.
    pub namespace: String,
    /// Addresses of the gateway's Service.
    pub addresses: Vec<IpAddr>,
    /// Shares and patience.
    pub limits: Limits,
    /// The world outside.
    pub network: Arc<dyn Network>,
    /// TLS with it.
    pub trust: Trust,
    /// Mounted Secrets.
    pub credentials: Credentials,
    /// Signs for inspected hosts.
    pub authority: Authority,
    /// The API server's keys.
    pub keys: Keys,
    /// Asks for the API server's keys anew.
    pub stale_keys: tokio::sync::Notify,
    /// Decisions.
    pub log: Arc<Log>,
    /// Metrics.
    pub metrics: Metrics,
    /// What is waited for.
    pub readiness: Readiness,
    /// Seconds since 1970.
    pub clock: Clock,
    /// Cancelled when nothing new is begun any more.
    pub stopping: CancellationToken,
    /// Memory for the bodies of model requests, in KiB.
    pub model_memory: Arc<Semaphore>,
    /// Changes when a policy or a binding does: recorders are told.
    pub changed: watch::Sender<u64>,
    sink: Arc<dyn StatusSink>,
    directory: RwLock<Directory>,
    policies: RwLock<HashMap<String, Arc<Policy>>>,
    quotas: Mutex<HashMap<String, Arc<Quota>>>,
    places: Arc<Mutex<Places<String>>>,
    turns: Arc<Mutex<Places<String>>>,
    tasks: TaskTracker,
    stranger_records: Mutex<Bucket>,
    registration_records: Mutex<Bucket>,
}

#[derive(Default)]
struct Directory {
    registry: Registry,
    sessions: HashMap<String, Arc<Session>>,
    sandboxes: HashMap<String, Sandbox>,
}

/// One connection's place among all, until it is dropped.
pub struct Place {
    places: Arc<Mutex<Places<String>>>,
    holder: String,
    _open: Open,
}

impl Drop for Place {
    fn drop(&mut self) {
        lock(&self.places).free(&self.holder);
    }
}

/// One request's turn among all. Whatever can lie in memory because of the request holds it.
pub type Turn = Arc<OneTurn>;

/// See [`Turn`].
pub struct OneTurn {
    turns: Arc<Mutex<Places<String>>>,
    holder: String,
}

#[cfg(test)]
impl OneTurn {
    pub(crate) fn of_tests() -> Turn {
        Arc::new(Self {
            turns: Arc::new(Mutex::new(Places::new(1, 1))),
            holder: String::new(),
        })
    }
}

impl Drop for OneTurn {
    fn drop(&mut self) {
        lock(&self.turns).free(&self.holder);
    }
}

impl Gateway {
    /// Puts the parts together. Nothing is served before policies, pods, sandboxes and keys are known.
    #[must_use]
    pub fn new(parts: Parts) -> Arc<Self> {
        let places = Places::new(parts.limits.connections, parts.limits.connections_per_sandbox);
        let turns = Places::new(parts.limits.requests, parts.limits.requests_per_sandbox);
        let few_records = || {
            let bucket = Bucket::new(STRANGER_RECORDS * 4, STRANGER_RECORDS, Instant::now());
            Mutex::new(bucket)
        };
        Arc::new(Self {
            namespace: parts.namespace,
            addresses: parts.addresses,
            model_memory: Arc::new(Semaphore::new(parts.limits.model_body_memory / 1_024)),
            limits: parts.limits,
            network: parts.network,
            trust: parts.trust,
            credentials: parts.credentials,
            authority: parts.authority,
            keys: Keys::default(),
            stale_keys: tokio::sync::Notify::new(),
            log: Arc::new(parts.log),
            metrics: parts.metrics,
            readiness: parts.readiness,
            clock: parts.clock,
            stopping: CancellationToken::new(),
            changed: watch::Sender::new(0),
            sink: parts.sink,
            directory: RwLock::default(),
            policies: RwLock::default(),
            quotas: Mutex::default(),
            places: Arc::new(Mutex::new(places)),
            turns: Arc::new(Mutex::new(turns)),
            tasks: TaskTracker::new(),
            stranger_records: few_records(),
            registration_records: few_records(),
        })
    }

    /// The watch shows a pod.
    pub fn pod_seen(self: &Arc<Self>, pod: Pod) {
        let lost = self.directory_mut().registry.observe(pod);
        self.end_runs(lost);
    }

    /// The watch shows that a pod is gone.
    pub fn pod_gone(self: &Arc<Self>, uid: &str) {
        let lost = self.directory_mut().registry.forget(uid);
        self.end_runs(lost);
    }

    /// The watch shows a sandbox.
    pub fn sandbox_seen(&self, sandbox: Sandbox) {
        self.directory_mut()
            .sandboxes
            .insert(sandbox.name.clone(), sandbox);
    }

    /// The watch shows that a sandbox is gone. Its pod goes by itself.
    pub fn sandbox_gone(&self, name: &str) {
        self.directory_mut().sandboxes.remove(name);
    }

    /// The watch shows a policy. What it does not allow any more is closed; if it does not compile, it allows nothing.
    pub fn policy_seen(&self, name: &str, spec: &SandboxPolicySpec) {
        let quota = self.quota(name);
        quota.set(spec.quota.as_ref());
        match Policy::compile(name, spec, quota) {
            Ok(policy) => {
                self.policies_mut().insert(name.to_owned(), Arc::new(policy));
            }
            Err(problems) => {
                warn!(
                    policy = name,
                    problems = problems.join("; "),
                    "the policy can't be used; its sandboxes are refused"
                );
                self.policies_mut().remove(name);
            }
        }
        self.recheck(name);
    }

    /// The watch shows that a policy is gone: its sandboxes are refused, and what they have open is closed.
    pub fn policy_gone(&self, name: &str) {
        self.policies_mut().remove(name);
        self.authority.forget(name);
        self.recheck(name);
        lock(&self.quotas).remove(name);
    }

    /// Names that are known, for comparing with a new list of a watch.
    #[must_use]
    pub fn pod_uids(&self) -> Vec<String> {
        self.directory().registry.uids().map(str::to_owned).collect()
    }

    /// The policy, if it can be used.
    ///
    /// # Errors
    /// [`Deny::NotReady`].
    pub fn policy(&self, name: &str) -> Result<Arc<Policy>, Deny> {
        self.policies().get(name).cloned().ok_or(Deny::NotReady)
    }

    /// The run that an address is bound to.
    ///
    /// # Errors
    /// [`Deny::UnknownSandbox`].
    pub fn session(&self, peer: IpAddr) -> Result<Arc<Session>, Deny> {
        let directory = self.directory();
        let run = directory.registry.lookup(peer)?;
        let session = directory.sessions.get(&run.pod_uid).ok_or(Deny::UnknownSandbox)?;
        if Arc::ptr_eq(&session.run, run) {
            Ok(session.clone())
        } else {
            Err(Deny::UnknownSandbox)
        }
    }

    /// Somebody came from an address that belongs to no run. All are counted, a few a second are recorded.
    pub fn stranger(&self, way: &'static str, peer: IpAddr) {
        let peer = peer.to_canonical();
        self.metrics.stranger(way);
        // A recorder probes the proxy before it registers.
        let is_expected = self.directory().registry.pod_at(peer).is_some();
        if is_expected || !lock(&self.stranger_records).take(Instant::now()) {
            return;
        }
        let mut event = Event::connection(format!("{way} from {peer}"), None);
        if way == "dns" {
            event.class = Class::Dns;
        }
        let record = event.record(Action::Deny, Some(Deny::UnknownSandbox), None);
        if self.log.append_stranger(&record).is_err() {
            self.metrics.record_lost();
        }
    }

    /// A registration was refused: `tell` says why in the program's own log, a few times a second, because any pod of
    /// the namespace can ask.
    pub fn registration_refused(&self, tell: impl FnOnce()) {
        if lock(&self.registration_records).take(Instant::now()) {
            tell();
        }
    }

    /// A place for one more connection of a run.
    ///
    /// # Errors
    /// [`Deny::TooManyConnections`].
    pub fn place(&self, session: &Session) -> Result<Place, Deny> {
        if !lock(&self.places).take(&session.run.pod_uid) {
            return Err(Deny::TooManyConnections);
        }
        Ok(Place {
            places: self.places.clone(),
            holder: session.run.pod_uid.clone(),
            _open: self.metrics.connection(),
        })
    }

    /// A turn for one more request of a run.
    ///
    /// # Errors
    /// [`Deny::TooManyRequests`].
    pub fn turn(&self, session: &Session) -> Result<Turn, Deny> {
        if !lock(&self.turns).take(&session.run.pod_uid) {
            return Err(Deny::TooManyRequests);
        }
        Ok(Arc::new(OneTurn {
            turns: self.turns.clone(),
            holder: session.run.pod_uid.clone(),
        }))
    }

    /// Closes what a policy does not allow any more.
    fn recheck(&self, name: &str) {
        let policy = self.policy(name).ok();
        let sessions: Vec<Arc<Session>> = self
            .directory()
            .sessions
            .values()
            .filter(|session| session.run.policy == name)
            .cloned()
            .collect();
        for session in sessions {
            match &policy {
                Some(policy) => {
                    session.account.set_limits(policy.limits(session.asked.as_ref()));
                    session
                        .pool
                        .recheck(|address| self.may_reach(&policy.rules, address).is_ok());
                }
                None => session.pool.clear(),
            }
            session
                .open
                .recheck(policy.as_deref().map(|policy| &policy.rules), |rules, address| {
                    self.may_reach(rules, address).is_ok()
                });
        }
        self.tell_recorders();
    }

    /// Whether an address may be reached under these rules.
    ///
    /// # Errors
    /// [`Deny::AddressForbidden`].
    pub(crate) fn may_reach(&self, rules: &EgressPolicy, address: SocketAddr) -> Result<(), Deny> {
        self.network.check(address.ip(), &rules.opened_at(address.port()))
    }

    fn tell_recorders(&self) {
        self.changed.send_modify(|version| *version += 1);
    }

    fn quota(&self, policy: &str) -> Arc<Quota> {
        lock(&self.quotas)
            .entry(policy.to_owned())
            .or_insert_with(|| {
                Quota::new(
                    self.sink.clone(),
                    policy,
                    self.metrics.clone(),
                    self.clock.clone(),
                )
            })
            .clone()
    }

    /// Gives back, now and then, what was claimed of quotas and is not needed. Cancel it to end it.
    pub async fn release_quotas(&self) {
        loop {
            tokio::time::sleep(RELEASE_EVERY).await;
            let quotas: Vec<Arc<Quota>> = lock(&self.quotas).values().cloned().collect();
            for quota in quotas.iter().filter(|quota| quota.has_surplus()) {
                quota.release(false).await;
            }
        }
    }

    /// Ends in good order: nothing new is begun, what is open gets `patience` to end, and all that is unspent is given
    /// back.
    pub async fn stop(self: &Arc<Self>, patience: Duration) {
        self.stopping.cancel();
        self.tell_recorders();
        let sessions: Vec<Arc<Session>> = self.directory().sessions.values().cloned().collect();
        let all_closed = futures::future::join_all(sessions.iter().map(|session| session.open.empty()));
        if tokio::time::timeout(patience, all_closed).await.is_err() {
            info!("closing what is still open");
        }
        for session in &sessions {
            session.ended.cancel();
        }
        self.tasks.close();
        // With `patience` this stays below the Deployment's grace period of 30 s.
        if tokio::time::timeout(STOP_PATIENCE, self.tasks.wait())
            .await
            .is_err()
        {
            warn!("stopped before all figures were written; what was claimed and not spent is lost");
        }
        let quotas: Vec<Arc<Quota>> = lock(&self.quotas).values().cloned().collect();
        let released = futures::future::join_all(quotas.iter().map(|quota| quota.release(true)));
        let _ = tokio::time::timeout(STOP_PATIENCE / 2, released).await;
    }

    fn directory(&self) -> RwLockReadGuard<'_, Directory> {
        self.directory.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn directory_mut(&self) -> RwLockWriteGuard<'_, Directory> {
        self.directory.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn policies(&self) -> RwLockReadGuard<'_, HashMap<String, Arc<Policy>>> {
        self.policies.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn policies_mut(&self) -> RwLockWriteGuard<'_, HashMap<String, Arc<Policy>>> {
        self.policies.write().unwrap_or_else(PoisonError::into_inner)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
