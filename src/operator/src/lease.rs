//! Leader election on a Lease, by compare-and-swap on its resource version.
//!
//! Whether another holder is dead is judged by this process's own monotonic clock: the lease counts as expired when
//! its record has not changed for the lease's duration since *we* first saw it. Clocks of two nodes are never compared.

use std::time::{Duration, Instant};

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use k8s_openapi::jiff::Timestamp;
use kube::api::PostParams;
use kube::{Api, Client};
use tracing::{info, warn};

/// Name of the Lease.
const NAME: &str = "agentsandbox-operator";
/// How long an orderly end waits to give the lease up; without that, the next holder waits for it to expire.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(3);

/// The times of an election.
#[derive(Clone, Copy, Debug)]
struct Timing {
    /// After so long without a change the holder is taken for dead.
    duration: Duration,
    /// The holder renews so often.
    renewal: Duration,
    /// A standby replica looks, and a holder that failed to renew tries again, so often.
    look: Duration,
    /// How long one attempt may take.
    attempt: Duration,
    /// The holder stops its work so long after it began the last write that succeeded. A standby replica sees that
    /// write later than it was begun, so it waits past this moment by `duration - give_up` at least.
    give_up: Duration,
}

const TIMING: Timing = Timing {
    duration: Duration::from_secs(15),
    renewal: Duration::from_secs(5),
    look: Duration::from_secs(2),
    attempt: Duration::from_secs(5),
    give_up: Duration::from_secs(12),
};

/// The lease could not be kept.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum LeaseError {
    /// Somebody else holds it now.
    #[error("another replica took the lease over")]
    Taken,
    /// It could not be renewed in time.
    #[error("the lease could not be renewed for {:?}", TIMING.give_up)]
    NotRenewed,
}

/// One replica's part in the election.
pub struct Election {
    api: Api<Lease>,
    identity: String,
    timing: Timing,
    seen: Option<Seen>,
    /// When the last write that succeeded was begun.
    renewed: Instant,
}

/// The record as this process last saw it change.
#[derive(Clone, Debug, PartialEq)]
struct Seen {
    record: (Option<String>, Option<Timestamp>),
    at: Instant,
}

/// What came of one look at the lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Attempt {
    /// This replica holds it.
    Held,
    /// Another one does.
    HeldByOther,
    /// The record changed between look and write. That may have been an earlier write of our own, whose answer was
    /// lost: only another look tells.
    Raced,
}

impl Election {
    /// A part under this identity, which no other process may use.
    #[must_use]
    pub fn new(client: Client, namespace: &str, identity: String) -> Self {
        Self {
            api: Api::namespaced(client, namespace),
            identity,
            timing: TIMING,
            seen: None,
            renewed: Instant::now(),
        }
    }

    /// Waits until this replica leads.
    pub async fn acquire(&mut self) {
        while self.bounded_attempt().await != Some(Attempt::Held) {
            tokio::time::sleep(self.timing.look).await;
        }
        info!(identity = self.identity, "leading");
    }

    /// Renews until that fails for good.
    pub async fn keep(&mut self) -> LeaseError {
        loop {
            let deadline = self.renewed + self.timing.give_up;
            match tokio::time::timeout_at(deadline.into(), self.renew()).await {
                Ok(Ok(())) => {}
                Ok(Err(lost)) => return lost,
                Err(_) => return LeaseError::NotRenewed,
            }
        }
    }

    /// One renewal, tried again until it succeeds or somebody else holds the lease.
    async fn renew(&mut self) -> Result<(), LeaseError> {
        tokio::time::sleep(self.timing.renewal).await;
        loop {
            match self.bounded_attempt().await {
                Some(Attempt::Held) => return Ok(()),
                Some(Attempt::HeldByOther) => return Err(LeaseError::Taken),
                Some(Attempt::Raced) | None => tokio::time::sleep(self.timing.look).await,
            }
        }
    }

    /// Gives the lease up, so that another replica need not wait for it to expire. Nothing may be written afterwards.
    pub async fn release(self) {
        let released = tokio::time::timeout(RELEASE_TIMEOUT, async {
            let Some(mut lease) = self.api.get_opt(NAME).await? else {
                return Ok(());
            };
            let spec = lease.spec.get_or_insert_default();
            if spec.holder_identity.as_deref() == Some(&self.identity) {
                spec.holder_identity = None;
                self.api.replace(NAME, &PostParams::default(), &lease).await?;
            }
            Ok::<(), kube::Error>(())
        });
        match released.await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => warn!(%error, "the lease was not given up; it expires"),
            Err(_) => warn!("the lease was not given up: no answer; it expires"),
        }
    }

    /// The client has no read timeout of its own: a connection that died silently must not stop the election.
    async fn bounded_attempt(&mut self) -> Option<Attempt> {
        match tokio::time::timeout(self.timing.attempt, self.attempt()).await {
            Ok(Ok(attempt)) => Some(attempt),
            Ok(Err(error)) => {
                warn!(%error, "lease");
                None
            }
            Err(_) => {
                warn!("lease: no answer");
                None
            }
        }
    }

    /// Takes or renews the lease if that is right.
    async fn attempt(&mut self) -> kube::Result<Attempt> {
        let begun = Instant::now();
        let parameters = PostParams::default();
        let written = match self.api.get_opt(NAME).await? {
            None => self.api.create(&parameters, &self.claim(None)).await,
            Some(lease) => {
                if !self.may_take(lease.spec.as_ref()) {
                    return Ok(Attempt::HeldByOther);
                }
                let claim = self.claim(Some(lease));
                self.api.replace(NAME, &parameters, &claim).await
            }
        };
        match written {
            Ok(_) => {
                self.renewed = begun;
                Ok(Attempt::Held)
            }
            Err(kube::Error::Api(status)) if status.is_conflict() || status.is_already_exists() => {
                Ok(Attempt::Raced)
            }
            Err(error) => Err(error),
        }
    }

    /// Whether this record leaves the lease to us; remembers when it changed.
    fn may_take(&mut self, spec: Option<&LeaseSpec>) -> bool {
        let holder = spec.and_then(|spec| spec.holder_identity.clone());
        let renewed = spec.and_then(|spec| spec.renew_time.as_ref().map(|time| time.0));
        let record = (holder.clone(), renewed);
        let seen = match self.seen.take() {
            Some(seen) if seen.record == record => seen,
            _ => Seen {
                record,
                at: Instant::now(),
            },
        };
        let unchanged_for = seen.at.elapsed();
        self.seen = Some(seen);
        is_free(
            holder.as_deref(),
            &self.identity,
            unchanged_for,
            self.timing.duration,
        )
    }

    fn claim(&self, old: Option<Lease>) -> Lease {
        let now = MicroTime(Timestamp::now());
        let (metadata, spec) = match old {
            Some(lease) => (lease.metadata, lease.spec.unwrap_or_default()),
            None => (
                ObjectMeta {
                    name: Some(NAME.to_owned()),
                    ..ObjectMeta::default()
                },
                LeaseSpec::default(),
            ),
        };
        let changes = spec.holder_identity.as_deref() != Some(&self.identity);
        let transitions = spec.lease_transitions.unwrap_or_default() + i32::from(changes);
        let acquired = if changes {
            Some(now.clone())
        } else {
            spec.acquire_time
        };
        Lease {
            metadata,
            spec: Some(LeaseSpec {
                holder_identity: Some(self.identity.clone()),
                lease_duration_seconds: i32::try_from(self.timing.duration.as_secs()).ok(),
                acquire_time: acquired,
                renew_time: Some(now),
                lease_transitions: Some(transitions),
                ..LeaseSpec::default()
            }),
        }
    }
}

/// A lease is free if nobody holds it, if we do, or if its record has not changed for its duration.
fn is_free(holder: Option<&str>, me: &str, unchanged_for: Duration, duration: Duration) -> bool {
    match holder {
        None | Some("") => true,
        Some(holder) => holder == me || unchanged_for >= duration,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::sync::{Arc, Mutex};

    use axum::Router;
    use axum::body::Bytes;
    use axum::http::StatusCode;
    use axum::routing::{get, post};
    use serde_json::{Value, json};

    use super::*;

    const QUICK: Timing = Timing {
        duration: Duration::from_millis(1_500),
        renewal: Duration::from_millis(50),
        look: Duration::from_millis(20),
        attempt: Duration::from_millis(300),
        give_up: Duration::from_secs(1),
    };

    /// An API server that knows one Lease and compares resource versions; it can stop answering.
    #[derive(Clone, Default)]
    struct Server {
        lease: Arc<Mutex<Option<Value>>>,
        hangs: Arc<AtomicBool>,
    }

    fn refused(code: StatusCode, reason: &str) -> (StatusCode, String) {
        let status = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": reason,
            "message": reason, "code": code.as_u16()});
        (code, status.to_string())
    }

    impl Server {
        async fn start() -> (Self, String) {
            let server = Self::default();
            let (read, created, replaced) = (server.clone(), server.clone(), server.clone());
            let leases = "/apis/coordination.k8s.io/v1/namespaces/ns/leases";
            let router = Router::new()
                .route(leases, post(move |body: Bytes| created.write(body, true)))
                .route(
                    &format!("{leases}/{NAME}"),
                    get(move || read.read()).put(move |body: Bytes| replaced.write(body, false)),
                );
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            let url = format!("http://{}", listener.local_addr().unwrap());
            tokio::spawn(async move { axum::serve(listener, router).await });
            (server, url)
        }

        async fn answer(&self) {
            if self.hangs.load(Ordering::SeqCst) {
                std::future::pending::<()>().await;
            }
        }

        async fn read(self) -> (StatusCode, String) {
            self.answer().await;
            match &*self.lease.lock().unwrap() {
                Some(lease) => (StatusCode::OK, lease.to_string()),
                None => refused(StatusCode::NOT_FOUND, "NotFound"),
            }
        }

        async fn write(self, body: Bytes, create: bool) -> (StatusCode, String) {
            self.answer().await;
            let mut fresh: Value = serde_json::from_slice(&body).unwrap();
            let mut lease = self.lease.lock().unwrap();
            let version = lease
                .as_ref()
                .map(|old| old["metadata"]["resourceVersion"].clone());
            if create && lease.is_some() {
                return refused(StatusCode::CONFLICT, "AlreadyExists");
            }
            if !create && version.as_ref() != Some(&fresh["metadata"]["resourceVersion"]) {
                return refused(StatusCode::CONFLICT, "Conflict");
            }
            let next = version.map_or(1, |old| old.as_str().unwrap().parse::<u64>().unwrap() + 1);
            fresh["metadata"]["resourceVersion"] = json!(next.to_string());
            *lease = Some(fresh.clone());
            (StatusCode::OK, fresh.to_string())
        }

        fn holder(&self) -> Value {
            let lease = self.lease.lock().unwrap();
            lease
                .as_ref()
                .map(|lease| lease["spec"]["holderIdentity"].clone())
                .unwrap_or_default()
        }
    }

    fn candidate(url: &str, identity: &str) -> Election {
        let client = Client::try_from(kube::Config::new(url.parse().unwrap())).unwrap();
        Election {
            timing: QUICK,
            ..Election::new(client, "ns", identity.to_owned())
        }
    }

    async fn soon<T>(future: impl Future<Output = T>) -> T {
        tokio::time::timeout(Duration::from_secs(20), future)
            .await
            .unwrap()
    }

    #[test]
    fn a_live_holder_is_left_alone_and_a_silent_one_replaced() {
        let table = [
            (None, Duration::ZERO, true),
            (Some(""), Duration::ZERO, true),
            (Some("me"), Duration::ZERO, true),
            (Some("other"), Duration::from_secs(14), false),
            (Some("other"), Duration::from_secs(15), true),
        ];
        for (holder, unchanged, expected) in table {
            assert_eq!(
                is_free(holder, "me", unchanged, TIMING.duration),
                expected,
                "{holder:?} {unchanged:?}"
            );
        }
    }

    #[test]
    fn the_holder_stops_before_another_may_start() {
        for timing in [TIMING, QUICK] {
            assert!(timing.give_up < timing.duration);
            // A renewal that gets no answer is tried once more at least.
            assert!(timing.renewal + timing.attempt + timing.look <= timing.give_up);
        }
    }

    #[tokio::test]
    async fn one_of_many_leads() {
        let (server, url) = Server::start().await;
        let mut attempts = tokio::task::JoinSet::new();
        for n in 0..8 {
            let mut candidate = candidate(&url, &format!("replica-{n}"));
            attempts.spawn(async move { candidate.attempt().await.unwrap() });
        }
        let outcomes = attempts.join_all().await;
        let held = outcomes
            .iter()
            .filter(|outcome| **outcome == Attempt::Held)
            .count();
        assert_eq!(held, 1, "{outcomes:?}");
        assert!(server.holder().is_string());
    }

    #[tokio::test]
    async fn an_orderly_end_hands_over_at_once() {
        let (server, url) = Server::start().await;
        let (mut first, mut second) = (candidate(&url, "first"), candidate(&url, "second"));
        soon(first.acquire()).await;
        assert_eq!(second.attempt().await.unwrap(), Attempt::HeldByOther);
        first.release().await;
        assert_eq!(second.attempt().await.unwrap(), Attempt::Held);
        assert_eq!(server.holder(), "second");
        assert_eq!(
            server.lease.lock().unwrap().as_ref().unwrap()["spec"]["leaseTransitions"],
            2
        );
    }

    #[tokio::test]
    async fn a_dead_holder_is_replaced_once_its_lease_has_expired() {
        let (server, url) = Server::start().await;
        let (mut dead, mut next) = (candidate(&url, "dead"), candidate(&url, "next"));
        soon(dead.acquire()).await;
        let died = Instant::now();
        soon(next.acquire()).await;
        assert!(died.elapsed() >= QUICK.duration, "{:?}", died.elapsed());
        assert_eq!(server.holder(), "next");
        // Should it come back, it learns so before it renews, and by its own clock has stopped long before.
        assert_eq!(soon(dead.renew()).await, Err(LeaseError::Taken));
        assert_eq!(soon(dead.keep()).await, LeaseError::NotRenewed);
    }

    #[tokio::test]
    async fn a_live_holder_keeps_the_lease_past_its_duration() {
        let (server, url) = Server::start().await;
        let (mut holder, mut other) = (candidate(&url, "holder"), candidate(&url, "other"));
        soon(holder.acquire()).await;
        let both = async {
            tokio::select! {
                lost = holder.keep() => panic!("{lost}"),
                () = other.acquire() => panic!("two leaders"),
            }
        };
        assert!(tokio::time::timeout(QUICK.duration * 2, both).await.is_err());
        assert_eq!(server.holder(), "holder");
    }

    #[tokio::test]
    async fn a_holder_without_an_answer_stops_before_its_lease_expires() {
        let (server, url) = Server::start().await;
        let mut holder = candidate(&url, "holder");
        soon(holder.acquire()).await;
        server.hangs.store(true, Ordering::SeqCst);
        let renewed = holder.renewed;
        assert_eq!(soon(holder.keep()).await, LeaseError::NotRenewed);
        assert!(renewed.elapsed() < QUICK.duration, "{:?}", renewed.elapsed());
    }

    #[tokio::test]
    async fn a_write_whose_answer_was_lost_does_not_cost_the_lease() {
        let (server, url) = Server::start().await;
        let mut holder = candidate(&url, "holder");
        soon(holder.acquire()).await;
        // The record moves on, still under our identity.
        server.lease.lock().unwrap().as_mut().unwrap()["metadata"]["resourceVersion"] = json!("7");
        soon(holder.renew()).await.unwrap();
        assert_eq!(
            server.lease.lock().unwrap().as_ref().unwrap()["metadata"]["resourceVersion"],
            "8"
        );
    }
}
