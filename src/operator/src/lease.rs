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
/// After so long without a change the holder is taken for dead.
const DURATION: Duration = Duration::from_secs(15);
/// The holder renews so often: two renewals may fail before another replica takes over.
const RENEWAL: Duration = Duration::from_secs(5);
/// A standby replica looks so often.
const LOOK: Duration = Duration::from_secs(2);
/// The holder stops its work if it could not renew for so long: earlier than another one may take over.
const GIVE_UP: Duration = Duration::from_secs(12);

/// The lease could not be kept.
#[derive(Debug, thiserror::Error)]
pub enum LeaseError {
    /// Somebody else holds it now.
    #[error("another replica took the lease over")]
    Taken,
    /// It could not be renewed in time.
    #[error("the lease could not be renewed for {GIVE_UP:?}")]
    NotRenewed,
}

/// One replica's part in the election.
pub struct Election {
    api: Api<Lease>,
    identity: String,
    seen: Option<Seen>,
}

/// The record as this process last saw it change.
#[derive(Clone, Debug, PartialEq)]
struct Seen {
    record: (Option<String>, Option<Timestamp>),
    at: Instant,
}

impl Election {
    /// A part under this identity, which no other process may use.
    #[must_use]
    pub fn new(client: Client, namespace: &str, identity: String) -> Self {
        Self {
            api: Api::namespaced(client, namespace),
            identity,
            seen: None,
        }
    }

    /// Waits until this replica leads.
    pub async fn acquire(&mut self) {
        loop {
            match self.attempt().await {
                Ok(true) => {
                    info!(identity = self.identity, "leading");
                    return;
                }
                Ok(false) => {}
                Err(error) => warn!(%error, "lease"),
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Renews until that fails for good.
    pub async fn keep(&mut self) -> LeaseError {
        let mut renewed = Instant::now();
        loop {
            tokio::time::sleep(RENEWAL).await;
            match tokio::time::timeout(RENEWAL, self.attempt()).await {
                Ok(Ok(true)) => renewed = Instant::now(),
                Ok(Ok(false)) => return LeaseError::Taken,
                Ok(Err(error)) => warn!(%error, "the lease was not renewed"),
                Err(_) => warn!("the lease was not renewed: no answer"),
            }
            if renewed.elapsed() >= GIVE_UP {
                return LeaseError::NotRenewed;
            }
        }
    }

    /// Gives the lease up, so that another replica need not wait for it to expire.
    pub async fn release(&self) {
        let Ok(Some(mut lease)) = self.api.get_opt(NAME).await else {
            return;
        };
        let spec = lease.spec.get_or_insert_default();
        if spec.holder_identity.as_deref() == Some(&self.identity) {
            spec.holder_identity = None;
            let _ = self.api.replace(NAME, &PostParams::default(), &lease).await;
        }
    }

    /// Takes or renews the lease if that is right; whether this replica holds it then.
    async fn attempt(&mut self) -> kube::Result<bool> {
        let Some(lease) = self.api.get_opt(NAME).await? else {
            let fresh = self.claim(None);
            return swapped(self.api.create(&PostParams::default(), &fresh).await);
        };
        let spec = lease.spec.clone().unwrap_or_default();
        let record = (
            spec.holder_identity.clone(),
            spec.renew_time.as_ref().map(|time| time.0),
        );
        if self.seen.as_ref().is_none_or(|seen| seen.record != record) {
            self.seen = Some(Seen {
                record,
                at: Instant::now(),
            });
        }
        let unchanged_for = self
            .seen
            .as_ref()
            .map_or(Duration::ZERO, |seen| seen.at.elapsed());
        if !may_take(spec.holder_identity.as_deref(), &self.identity, unchanged_for) {
            return Ok(false);
        }
        let claim = self.claim(Some(lease));
        swapped(self.api.replace(NAME, &PostParams::default(), &claim).await)
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
                lease_duration_seconds: i32::try_from(DURATION.as_secs()).ok(),
                acquire_time: acquired,
                renew_time: Some(now),
                lease_transitions: Some(transitions),
                ..LeaseSpec::default()
            }),
        }
    }
}

/// A lease may be taken if nobody holds it, if we do, or if its record has not changed for its duration.
fn may_take(holder: Option<&str>, me: &str, unchanged_for: Duration) -> bool {
    match holder {
        None | Some("") => true,
        Some(holder) => holder == me || unchanged_for >= DURATION,
    }
}

/// A lost race is no error: somebody else was first.
fn swapped(result: kube::Result<Lease>) -> kube::Result<bool> {
    match result {
        Ok(_) => Ok(true),
        Err(kube::Error::Api(status)) if status.is_conflict() || status.is_already_exists() => Ok(false),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_live_holder_is_left_alone_and_a_silent_one_replaced() {
        let table = [
            (None, Duration::ZERO, true),
            (Some(""), Duration::ZERO, true),
            (Some("me"), Duration::ZERO, true),
            (Some("other"), Duration::from_secs(14), false),
            (Some("other"), DURATION, true),
        ];
        for (holder, unchanged, expected) in table {
            assert_eq!(
                may_take(holder, "me", unchanged),
                expected,
                "{holder:?} {unchanged:?}"
            );
        }
    }

    #[test]
    fn the_holder_stops_before_another_may_start() {
        assert!(GIVE_UP < DURATION);
        assert!(RENEWAL * 2 < GIVE_UP);
    }
}
