//! The sandboxes of a namespace, and one of them.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;

use agentsandbox_api::condition::types;
use agentsandbox_api::reason::Reason;
use agentsandbox_api::sandbox::{AgentSandbox, AgentSandboxStatus, RunResult, Usage};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::{Api, Client, ResourceExt};
use serde_json::json;

use crate::wait::is_current;
use crate::{Error, Result, connect};

/// The sandboxes of one namespace.
#[derive(Clone)]
pub struct Sandboxes {
    client: Client,
    namespace: String,
}

impl Sandboxes {
    /// Those of a namespace. Take the client from [`connect::client`]: kube's own repeats requests that were refused for
    /// the moment, also those that make a sandbox or start a step.
    #[must_use]
    pub fn new(client: Client, namespace: impl Into<String>) -> Self {
        Self {
            client,
            namespace: namespace.into(),
        }
    }

    /// Those of the namespace that kubeconfig, or the pod this runs in, names.
    pub async fn try_default() -> Result<Self> {
        let config = connect::config(None, None).await?;
        let namespace = config.default_namespace.clone();
        Ok(Self::new(connect::client(config)?, namespace))
    }

    /// The namespace.
    #[must_use]
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// The client.
    #[must_use]
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// Creates a sandbox. A name to generate is made up here: whether an error came after the sandbox was made can then
    /// be seen, and no request makes two.
    pub async fn create(&self, sandbox: impl Into<AgentSandbox>) -> Result<Sandbox> {
        let mut wanted = sandbox.into();
        let made_up = match (&wanted.metadata.name, wanted.metadata.generate_name.take()) {
            (None, Some(prefix)) => Some(new_name(&prefix)),
            _ => None,
        };
        if made_up.is_some() {
            wanted.metadata.name.clone_from(&made_up);
        }
        let made = match (self.api().create(&PostParams::default(), &wanted).await, made_up) {
            (Err(error), Some(name)) if may_be_made(&error) => match self.api().get_opt(&name).await {
                Ok(Some(made)) => made,
                _ => return Err(error.into()),
            },
            (made, _) => made?,
        };
        Ok(Sandbox {
            uid: made.uid(),
            ..self.sandbox(made.name_any())
        })
    }

    /// A handle on the sandbox of a name. Nothing is asked yet; what is asked later may find another sandbox of the
    /// same name.
    #[must_use]
    pub fn sandbox(&self, name: impl Into<String>) -> Sandbox {
        Sandbox {
            client: self.client.clone(),
            namespace: self.namespace.clone(),
            name: name.into(),
            uid: None,
        }
    }

    /// A handle on the sandbox that has a name now. Later it finds this one, or none.
    pub async fn get(&self, name: &str) -> Result<Sandbox> {
        let found = self.sandbox(name).object().await?;
        Ok(Sandbox {
            uid: found.uid(),
            ..self.sandbox(name)
        })
    }

    /// All sandboxes that a label selector selects; an empty one selects all.
    pub async fn list(&self, selector: &str) -> Result<Vec<AgentSandbox>> {
        list(&self.api(), selector).await
    }

    /// The sandboxes of all namespaces that a label selector selects.
    pub async fn list_all(&self, selector: &str) -> Result<Vec<AgentSandbox>> {
        list(&Api::all(self.client.clone()), selector).await
    }

    fn api(&self) -> Api<AgentSandbox> {
        Api::namespaced(self.client.clone(), &self.namespace)
    }
}

/// A name that nobody else has.
fn new_name(prefix: &str) -> String {
    format!("{prefix}{:010x}", RandomState::new().hash_one(prefix) >> 24)
}

/// Whether an object may have been made in spite of an error.
fn may_be_made(error: &kube::Error) -> bool {
    match error {
        kube::Error::Api(status) => status.code >= 500 || status.is_already_exists(),
        _ => true,
    }
}

/// Objects asked for at once.
const PAGE: u32 = 500;

async fn list(api: &Api<AgentSandbox>, selector: &str) -> Result<Vec<AgentSandbox>> {
    let mut parameters = ListParams::default().labels(selector).limit(PAGE);
    let mut found = Vec::new();
    loop {
        let page = api.list(&parameters).await?;
        found.extend(page.items);
        match page.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => parameters = parameters.continue_token(&token),
            None => return Ok(found),
        }
    }
}

/// One sandbox.
#[derive(Clone)]
pub struct Sandbox {
    pub(crate) client: Client,
    namespace: String,
    name: String,
    uid: Option<String>,
}

impl Sandbox {
    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its namespace.
    #[must_use]
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// The object as it stands now.
    pub async fn object(&self) -> Result<AgentSandbox> {
        let found = self.api().get_opt(&self.name).await?.ok_or(Error::NotFound {
            name: self.name.clone(),
            namespace: self.namespace.clone(),
        })?;
        self.check(&found)?;
        Ok(found)
    }

    /// Its status as it stands now; empty before the operator has seen it.
    pub async fn status(&self) -> Result<AgentSandboxStatus> {
        Ok(self.object().await?.status.unwrap_or_default())
    }

    /// How it ended, once it has.
    pub async fn result(&self) -> Result<Option<RunResult>> {
        let sandbox = self.object().await?;
        let current = is_current(&sandbox);
        Ok(sandbox
            .status
            .and_then(|status| status.result)
            .filter(|_| current))
    }

    /// What it used, once it has ended. While it runs: [`Sandbox::live`].
    pub async fn usage(&self) -> Result<Option<Usage>> {
        let sandbox = self.object().await?;
        let current = is_current(&sandbox);
        Ok(sandbox.status.and_then(|status| status.usage).filter(|_| current))
    }

    /// Asks that it ends now. Its verdict becomes `Stopped`, unless it has one.
    pub async fn stop(&self) -> Result<()> {
        self.patch(json!({"spec": {"stop": true}})).await
    }

    /// Asks that it runs again, as another run. The one before must have ended, or the operator ends it first.
    pub async fn rerun(&self, run_id: &str) -> Result<()> {
        self.patch(json!({"spec": {"runId": run_id, "stop": false}}))
            .await
    }

    /// Deletes it, and everything of it. It may take a while; [`Sandbox::gone`] waits.
    pub async fn delete(&self) -> Result<()> {
        let mut parameters = DeleteParams::background();
        if let Some(uid) = &self.uid {
            parameters.preconditions = Some(kube::api::Preconditions {
                uid: Some(uid.clone()),
                resource_version: None,
            });
        }
        match self.api().delete(&self.name, &parameters).await {
            Ok(_) => Ok(()),
            Err(error) => Err(self.not_found(error)),
        }
    }

    /// Name of the pod of its run.
    pub(crate) async fn pod_name(&self) -> Result<String> {
        let sandbox = self.object().await?;
        let current = is_current(&sandbox);
        let status = sandbox.status.unwrap_or_default();
        let expired = status
            .conditions
            .iter()
            .any(|condition| condition.type_ == types::EXPIRED && condition.status == "True");
        if let (true, false, Some(pod)) = (current, expired, &status.pod_name) {
            return Ok(pod.clone());
        }
        Err(Error::NoPod {
            name: self.name.clone(),
            phase: status.phase.map_or_else(
                || "not seen by the operator yet".to_owned(),
                |phase| phase.to_string(),
            ),
            reason: match status.reason {
                _ if expired => ", removed after its TTL".to_owned(),
                Some(reason) => format!(", {reason}"),
                None => String::new(),
            },
        })
    }

    pub(crate) fn api(&self) -> Api<AgentSandbox> {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    pub(crate) fn pods(&self) -> Api<Pod> {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    /// Whether an object of the same name is this sandbox.
    pub(crate) fn check(&self, found: &AgentSandbox) -> Result<()> {
        if self.uid.is_some() && self.uid != found.uid() {
            return Err(self.deleted());
        }
        Ok(())
    }

    pub(crate) fn deleted(&self) -> Error {
        Error::Deleted {
            name: self.name.clone(),
        }
    }

    async fn patch(&self, mut change: serde_json::Value) -> Result<()> {
        if let Some(uid) = &self.uid {
            // The API server refuses the change if another object has the name now.
            change["metadata"] = json!({"uid": uid});
        }
        match self
            .api()
            .patch(&self.name, &PatchParams::default(), &Patch::Merge(change))
            .await
        {
            Ok(_) => Ok(()),
            Err(error) => Err(self.not_found(error)),
        }
    }

    fn not_found(&self, error: kube::Error) -> Error {
        match error {
            kube::Error::Api(status) if status.is_not_found() => Error::NotFound {
                name: self.name.clone(),
                namespace: self.namespace.clone(),
            },
            // The UID is another's.
            kube::Error::Api(status) if status.is_conflict() && self.uid.is_some() => self.deleted(),
            other => other.into(),
        }
    }
}

/// Why the current run of a sandbox ended; `None` while it has not.
#[must_use]
pub fn verdict(sandbox: &AgentSandbox) -> Option<Reason> {
    let status = sandbox.status.as_ref().filter(|_| is_current(sandbox))?;
    let condition = status
        .conditions
        .iter()
        .find(|condition| condition.type_ == types::SUCCEEDED && condition.status != "Unknown")?;
    condition.reason.parse().ok()
}

#[cfg(test)]
#[path = "sandbox_tests.rs"]
mod tests;
