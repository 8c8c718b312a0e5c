//! What all parts of the gateway share: who is who, what each policy allows, and how much of the gateway is taken.
//!
//! [`crate::watch`] tells it what the API server shows, [`crate::register`] what recorders say. It holds no client of
//! its own, so tests play both.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::{Duration, Instant};

use agentsandbox_api::gateway::Registered;
use agentsandbox_api::policy::SandboxPolicySpec;
use agentsandbox_egress::deny::Deny;
use agentsandbox_egress::identity::{Outcome, Pod, Registry, Run, Sha};
use agentsandbox_egress::record::{Action, Class};
use agentsandbox_egress::shares::{Bucket, Places};
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{info, warn};

use crate::account::Account;
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
use crate::sink::{RunKey, SinkError, StatusSink};
use crate::tls::Trust;

/// So many strangers a second are recorded.
const STRANGER_RECORDS: u32 = 5;
/// How long the last write of a run waits for what is still open: the operator waits for it 10 s.
const SETTLE_PATIENCE: Duration = Duration::from_secs(6);
/// How long a gateway that stops takes for its last writes.
const STOP_PATIENCE: Duration = Duration::from_secs(5);
/// Attempts of a run's last write, each of several tries, with a pause between them.
const LAST_ATTEMPTS: u32 = 20;
const LAST_PAUSE: Duration = Duration::from_secs(3);
/// Connections to destinations that nobody used for so long are closed.
const POOL_SWEEP: Duration = Duration::from_secs(15);

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
    tasks: TaskTracker,
    stranger_records: Mutex<Bucket>,
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

impl Gateway {
    /// Puts the parts together. Nothing is served before policies, pods, sandboxes and keys are known.
    #[must_use]
    pub fn new(parts: Parts) -> Arc<Self> {
        let places = Places::new(parts.limits.connections, parts.limits.connections_per_sandbox);
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
            tasks: TaskTracker::new(),
            stranger_records: Mutex::new(Bucket::new(
                STRANGER_RECORDS * 4,
                STRANGER_RECORDS,
                Instant::now(),
            )),
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

    /// A recorder registers from `peer`; its token has been verified and names this pod.
    ///
    /// # Errors
    /// What the recorder is told if its address is not bound.
    pub async fn register(
        self: &Arc<Self>,
        peer: IpAddr,
        pod_uid: &str,
        token: Sha,
    ) -> Result<Arc<Run>, Registered> {
        let (outcome, lost) = self.directory_mut().registry.register(peer, pod_uid, token);
        self.end_runs(lost);
        let run = match outcome {
            Outcome::Bound(run) => run,
            Outcome::Retry(message) => return Err(unbound(true, message)),
            Outcome::Refused(message) => {
                warn!(%peer, pod_uid, message, "registration refused");
                return Err(unbound(false, message));
            }
        };
        if self.stopping.is_cancelled() {
            return Err(unbound(true, "the gateway is stopping"));
        }
        self.bind(&run, peer)
            .await
            .map(|()| run)
            .map_err(|message| unbound(true, message))
    }

    /// What a recorder that is bound is told.
    pub fn standing(&self, run: &Arc<Run>) -> Registered {
        if self.stopping.is_cancelled() || !self.has_session(run) {
            return unbound(true, "the binding has ended");
        }
        let Ok(policy) = self.policy(&run.policy) else {
            return unbound(true, "the policy is not known, or can't be used");
        };
        match self.authority.of_policy(&policy.name, &policy.inspected) {
            Ok(authority) => Registered {
                bound: true,
                retry: false,
                message: String::new(),
                ca: authority.map(|authority| authority.pem().to_owned()),
            },
            Err(error) => {
                warn!(policy = policy.name, %error, "no certificate");
                unbound(true, "the gateway can't make a certificate")
            }
        }
    }

    /// The session of a pod.
    #[must_use]
    pub fn session_of(&self, pod_uid: &str) -> Option<Arc<Session>> {
        self.directory().sessions.get(pod_uid).cloned()
    }

    async fn bind(self: &Arc<Self>, run: &Arc<Run>, peer: IpAddr) -> Result<(), &'static str> {
        if self.has_session(run) {
            return Ok(());
        }
        let policy = self
            .policy(&run.policy)
            .map_err(|_| "the policy is not known yet, or can't be used")?;
        let sandbox = self
            .directory()
            .sandboxes
            .get(&run.sandbox)
            .cloned()
            .filter(|sandbox| sandbox.policy == run.policy && sandbox.run_id == run.run_id)
            .ok_or("the sandbox is not known yet")?;
        let key = RunKey {
            namespace: run.namespace.clone(),
            sandbox: run.sandbox.clone(),
            sandbox_uid: sandbox.uid,
            pod_uid: run.pod_uid.clone(),
        };
        let seen = self.sink.load_run(&key).await.map_err(|error| {
            if error != SinkError::Gone {
                warn!(sandbox = key.sandbox, %error, "status can't be read");
            }
            "the sandbox's status can't be read"
        })?;
        let limits = policy.limits(sandbox.limits.as_ref());
        let account = Account::new(self.sink.clone(), key, limits, seen, self.metrics.clone());
        let session = Session::new(
            run.clone(),
            account,
            sandbox.limits,
            &self.limits,
            self.log.clone(),
            self.metrics.clone(),
        );
        {
            let mut directory = self.directory_mut();
            // While the status was read, another registration may have come first, or the pod may have ended.
            let known = directory.sessions.get(&run.pod_uid);
            if known.is_some_and(|known| Arc::ptr_eq(&known.run, run)) {
                return Ok(());
            }
            let bound = directory.registry.lookup(peer);
            if !bound.is_ok_and(|bound| Arc::ptr_eq(bound, run)) {
                return Err("the pod has ended");
            }
            directory.sessions.insert(run.pod_uid.clone(), session.clone());
        }
        info!(
            sandbox = run.sandbox,
            pod_uid = run.pod_uid,
            policy = run.policy,
            "bound"
        );
        // A policy that was edited meanwhile has found no session to tell.
        if let Ok(policy) = self.policy(&run.policy) {
            session.account.set_limits(policy.limits(session.asked.as_ref()));
        }
        self.tasks.spawn(self.clone().keep(session));
        Ok(())
    }

    /// The session of a run, while it is bound.
    #[must_use]
    pub fn session_of_run(&self, run: &Arc<Run>) -> Option<Arc<Session>> {
        self.session_of(&run.pod_uid)
            .filter(|session| Arc::ptr_eq(&session.run, run))
    }

    fn has_session(&self, run: &Arc<Run>) -> bool {
        self.session_of_run(run).is_some()
    }

    /// Reports a run's figures while it lives, and settles them when it has ended.
    async fn keep(self: Arc<Self>, session: Arc<Session>) {
        let sweep = async {
            loop {
                tokio::time::sleep(POOL_SWEEP).await;
                session.pool.sweep();
            }
        };
        tokio::select! {
            () = session.account.clone().report() => {}
            () = sweep => {}
            () = session.ended.cancelled() => {}
        }
        session.pool.clear();
        if tokio::time::timeout(SETTLE_PATIENCE, session.open.empty())
            .await
            .is_err()
        {
            // An answer of a model is still read for its usage. What is known is told meanwhile.
            session.account.close(false).await;
            let _ =
                tokio::time::timeout(self.limits.model_drain() + SETTLE_PATIENCE, session.open.empty()).await;
        }
        for attempt in 0..LAST_ATTEMPTS {
            // A gateway that stops, and a pod that was bound anew, have not ended the run.
            let has_run_ended = !self.directory().sessions.contains_key(&session.run.pod_uid);
            if session.account.close(has_run_ended).await || self.is_forgotten(&session) {
                break;
            }
            if attempt + 1 == LAST_ATTEMPTS {
                warn!(
                    sandbox = session.run.sandbox,
                    "the last figures could not be written"
                );
            }
            tokio::select! {
                () = tokio::time::sleep(LAST_PAUSE) => {}
                () = self.stopping.cancelled(), if attempt > 2 => break,
            }
        }
        info!(
            sandbox = session.run.sandbox,
            pod_uid = session.run.pod_uid,
            "settled"
        );
    }

    /// Whether the sandbox itself is gone: nobody will read its figures.
    fn is_forgotten(&self, session: &Session) -> bool {
        !self.directory().sandboxes.contains_key(&session.run.sandbox)
    }

    fn end_runs(&self, lost: Vec<Arc<Run>>) {
        if lost.is_empty() {
            return;
        }
        for run in lost {
            let mut directory = self.directory_mut();
            let is_this = directory
                .sessions
                .get(&run.pod_uid)
                .is_some_and(|session| Arc::ptr_eq(&session.run, &run));
            let session = is_this.then(|| directory.sessions.remove(&run.pod_uid)).flatten();
            drop(directory);
            if let Some(session) = session {
                info!(sandbox = run.sandbox, pod_uid = run.pod_uid, "unbound");
                session.ended.cancel();
            }
        }
        self.tell_recorders();
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
            if let Some(policy) = &policy {
                session.account.set_limits(policy.limits(session.asked.as_ref()));
            }
            session
                .open
                .recheck(policy.as_deref().map(|policy| &policy.rules));
        }
        self.tell_recorders();
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

/// What a recorder is told whose address is not bound.
#[must_use]
pub fn unbound(retry: bool, message: &str) -> Registered {
    Registered {
        bound: false,
        retry,
        message: message.to_owned(),
        ca: None,
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
