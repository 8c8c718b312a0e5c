//! From a registration to a session, and from a session to its last figures.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use agentsandbox_api::gateway::Registered;
use agentsandbox_egress::identity::{Outcome, Run, Sha};
use tracing::{info, warn};

use super::Gateway;
use crate::account::Account;
use crate::session::Session;
use crate::sink::{RunKey, SinkError};

/// How long the last write of a run waits for what is still open: the operator waits for it 10 s.
const SETTLE_PATIENCE: Duration = Duration::from_secs(6);
/// Attempts of a run's last write, each of several tries, with a pause between them.
const LAST_ATTEMPTS: u32 = 20;
const LAST_PAUSE: Duration = Duration::from_secs(3);
/// Connections to destinations that nobody used for so long are closed.
const POOL_SWEEP: Duration = Duration::from_secs(15);

impl Gateway {
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
                self.registration_refused(|| warn!(%peer, pod_uid, message, "registration refused"));
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

    /// Ends the sessions of runs that are bound no more.
    pub(super) fn end_runs(&self, lost: Vec<Arc<Run>>) {
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
