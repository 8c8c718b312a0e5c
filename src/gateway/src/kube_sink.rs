//! Status in the API server: server-side apply of our part, by the version that was read.

use std::time::Duration;

use agentsandbox_api::gateway::MANAGER;
use agentsandbox_api::policy::{PolicyEgressStatus, SandboxPolicy};
use agentsandbox_api::sandbox::{AgentSandbox, EgressStatus};
use futures::future::BoxFuture;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::sink::{RunKey, SinkError, StatusSink, Versioned};

/// How long any one request to the API server may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// Keeps status in the API server.
pub struct KubeSink {
    sandboxes: Api<AgentSandbox>,
    policies: Api<SandboxPolicy>,
}

impl KubeSink {
    /// Of one namespace.
    #[must_use]
    pub fn new(client: &Client, namespace: &str) -> Self {
        Self {
            sandboxes: Api::namespaced(client.clone(), namespace),
            policies: Api::namespaced(client.clone(), namespace),
        }
    }
}

impl StatusSink for KubeSink {
    fn load_run<'a>(&'a self, key: &'a RunKey) -> BoxFuture<'a, Result<Versioned<EgressStatus>, SinkError>> {
        Box::pin(async move {
            let sandbox = load(&self.sandboxes, &key.sandbox).await?;
            if sandbox.metadata.uid.as_deref() != Some(key.sandbox_uid.as_str()) {
                return Err(SinkError::Gone);
            }
            Ok(Versioned {
                version: sandbox.resource_version().unwrap_or_default(),
                status: sandbox.status.and_then(|status| status.egress),
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
            let egress = json!(status);
            // The UID as well: a sandbox that was deleted must not be made anew by its name.
            store(
                &self.sandboxes,
                &key.sandbox,
                Some(&key.sandbox_uid),
                &egress,
                version,
            )
            .await
        })
    }

    fn load_policy<'a>(
        &'a self,
        name: &'a str,
    ) -> BoxFuture<'a, Result<Versioned<PolicyEgressStatus>, SinkError>> {
        Box::pin(async move {
            let policy = load(&self.policies, name).await?;
            Ok(Versioned {
                version: policy.resource_version().unwrap_or_default(),
                status: policy.status.and_then(|status| status.egress),
            })
        })
    }

    fn store_policy<'a>(
        &'a self,
        name: &'a str,
        status: &'a PolicyEgressStatus,
        version: &'a str,
    ) -> BoxFuture<'a, Result<String, SinkError>> {
        Box::pin(async move { store(&self.policies, name, None, &json!(status), version).await })
    }
}

async fn load<K>(api: &Api<K>, name: &str) -> Result<K, SinkError>
where
    K: Clone + std::fmt::Debug + DeserializeOwned,
{
    tokio::time::timeout(PATIENCE, api.get(name))
        .await
        .map_err(|_| SinkError::Unknown("no answer in time".to_owned()))?
        .map_err(failed)
}

async fn store<K>(
    api: &Api<K>,
    name: &str,
    uid: Option<&str>,
    egress: &Value,
    version: &str,
) -> Result<String, SinkError>
where
    K: Resource<DynamicType = ()> + Clone + std::fmt::Debug + DeserializeOwned,
{
    let mut object = json!({
        "apiVersion": K::api_version(&()),
        "kind": K::kind(&()),
        "metadata": {"name": name, "resourceVersion": version},
        "status": {"egress": egress},
    });
    if let Some(uid) = uid {
        object["metadata"]["uid"] = uid.into();
    }
    let params = PatchParams::apply(MANAGER).force();
    let patch = Patch::Apply(&object);
    let stored = tokio::time::timeout(PATIENCE, api.patch_status(name, &params, &patch))
        .await
        .map_err(|_| SinkError::Unknown("no answer in time".to_owned()))?
        .map_err(failed)?;
    Ok(stored.resource_version().unwrap_or_default())
}

#[allow(clippy::needless_pass_by_value)] // for map_err
fn failed(error: kube::Error) -> SinkError {
    match &error {
        kube::Error::Api(status) if status.is_conflict() => SinkError::Conflict,
        kube::Error::Api(status) if status.is_not_found() => SinkError::Gone,
        kube::Error::Api(status) if (400..500).contains(&status.code) => {
            SinkError::Refused(error.to_string())
        }
        _ => SinkError::Unknown(error.to_string()),
    }
}
