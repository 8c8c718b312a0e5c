//! Status in memory, with the conflicts and failures of an API server.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use agentsandbox_api::policy::PolicyEgressStatus;
use agentsandbox_api::sandbox::EgressStatus;
use futures::future::BoxFuture;
use sandbox_gateway::sink::{RunKey, SinkError, StatusSink, Versioned};

/// What happens to a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// Another write comes first.
    Conflict,
    /// It is not made.
    Refused,
    /// It is not made, and nobody knows.
    Lost,
    /// It is made, and nobody knows.
    MadeUnknown,
}

#[derive(Default)]
pub struct FakeSink {
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    version: u64,
    runs: HashMap<String, (Option<EgressStatus>, u64)>,
    policies: HashMap<String, (Option<PolicyEgressStatus>, u64)>,
    troubles: Vec<Trouble>,
    writes: usize,
    policy_reads: usize,
    is_policy_silent: bool,
    history: Vec<EgressStatus>,
}

impl FakeSink {
    pub fn new() -> Arc<Self> {
        let sink = Self::default();
        sink.inner
            .lock()
            .unwrap()
            .policies
            .insert("default".into(), (None, 0));
        Arc::new(sink)
    }

    pub fn create(&self, name: &str) {
        self.inner
            .lock()
            .unwrap()
            .runs
            .entry(name.to_owned())
            .or_default();
    }

    pub fn delete(&self, name: &str) {
        self.inner.lock().unwrap().runs.remove(name);
    }

    pub fn run(&self, name: &str) -> Option<EgressStatus> {
        self.inner.lock().unwrap().runs.get(name)?.0.clone()
    }

    pub fn set_run(&self, name: &str, status: EgressStatus) {
        let mut inner = self.inner.lock().unwrap();
        inner.version += 1;
        let version = inner.version;
        inner.runs.insert(name.to_owned(), (Some(status), version));
    }

    pub fn policy(&self) -> Option<PolicyEgressStatus> {
        self.inner.lock().unwrap().policies.get("default")?.0.clone()
    }

    /// What happens to the next writes.
    pub fn trouble(&self, troubles: &[Trouble]) {
        self.inner.lock().unwrap().troubles = troubles.iter().rev().copied().collect();
    }

    /// Somebody else writes the object.
    pub fn touch(&self, name: &str) {
        let mut inner = self.inner.lock().unwrap();
        inner.version += 1;
        let version = inner.version;
        inner.runs.get_mut(name).unwrap().1 = version;
    }

    pub fn writes(&self) -> usize {
        self.inner.lock().unwrap().writes
    }

    /// How often the policy's status was read.
    pub fn policy_reads(&self) -> usize {
        self.inner.lock().unwrap().policy_reads
    }

    /// From now on nobody learns what the policy's status says.
    pub fn silence_policy(&self) {
        self.inner.lock().unwrap().is_policy_silent = true;
    }

    /// Every status of a run that was ever written.
    pub fn history(&self) -> Vec<EgressStatus> {
        self.inner.lock().unwrap().history.clone()
    }
}

fn store<T: Clone>(
    slot: Option<&mut (Option<T>, u64)>,
    next: u64,
    status: &T,
    version: &str,
    trouble: Option<Trouble>,
) -> Result<String, SinkError> {
    let slot = slot.ok_or(SinkError::Gone)?;
    match trouble {
        Some(Trouble::Conflict) => {
            slot.1 = next;
            return Err(SinkError::Conflict);
        }
        Some(Trouble::Refused) => return Err(SinkError::Refused("played".into())),
        Some(Trouble::Lost) => return Err(SinkError::Unknown("played".into())),
        Some(Trouble::MadeUnknown) | None => {}
    }
    if slot.1.to_string() != version {
        return Err(SinkError::Conflict);
    }
    *slot = (Some(status.clone()), next);
    if trouble.is_some() {
        return Err(SinkError::Unknown("played".into()));
    }
    Ok(next.to_string())
}

impl StatusSink for FakeSink {
    fn load_run<'a>(&'a self, key: &'a RunKey) -> BoxFuture<'a, Result<Versioned<EgressStatus>, SinkError>> {
        Box::pin(async move {
            // Others get their turn between a read and a write, as on a network.
            tokio::task::yield_now().await;
            let inner = self.inner.lock().unwrap();
            let (status, version) = inner.runs.get(&key.sandbox).ok_or(SinkError::Gone)?;
            Ok(Versioned {
                status: status.clone(),
                version: version.to_string(),
            })
        })
    }

    fn store_run<'a>(
        &'a self,
        key: &'a RunKey,
        status: &'a EgressStatus,
        version: &'a str,
    ) -> BoxFuture<'a, Result<String, SinkError>> {
        Box::pin(async move {
            tokio::task::yield_now().await;
            let mut inner = self.inner.lock().unwrap();
            inner.version += 1;
            inner.writes += 1;
            inner.history.push(status.clone());
            let (next, trouble) = (inner.version, inner.troubles.pop());
            store(inner.runs.get_mut(&key.sandbox), next, status, version, trouble)
        })
    }

    fn load_policy<'a>(
        &'a self,
        name: &'a str,
    ) -> BoxFuture<'a, Result<Versioned<PolicyEgressStatus>, SinkError>> {
        Box::pin(async move {
            tokio::task::yield_now().await;
            let is_silent = self.inner.lock().unwrap().is_policy_silent;
            if is_silent {
                std::future::pending::<()>().await;
            }
            let mut inner = self.inner.lock().unwrap();
            inner.policy_reads += 1;
            let (status, version) = inner.policies.get(name).ok_or(SinkError::Gone)?;
            Ok(Versioned {
                status: status.clone(),
                version: version.to_string(),
            })
        })
    }

    fn store_policy<'a>(
        &'a self,
        name: &'a str,
        status: &'a PolicyEgressStatus,
        version: &'a str,
    ) -> BoxFuture<'a, Result<String, SinkError>> {
        Box::pin(async move {
            tokio::task::yield_now().await;
            let mut inner = self.inner.lock().unwrap();
            inner.version += 1;
            let next = inner.version;
            store(inner.policies.get_mut(name), next, status, version, None)
        })
    }
}
