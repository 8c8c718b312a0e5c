//! A namespace of a real cluster for one test, and conditions to wait for. Nothing here sleeps for a fixed time.

use std::fmt::Debug;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use agentsandbox_api::condition::types;
use agentsandbox_api::names::LABEL_SANDBOX;
use agentsandbox_api::policy::SandboxPolicy;
use agentsandbox_api::sandbox::{AgentSandbox, AgentSandboxStatus};
use cluster::Cluster;
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::core::v1::{Event, Namespace, Pod};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, Config, Resource, ResourceExt};
use serde_json::{Value, json};

/// Longest wait for anything that a sandbox does on a slow, shared machine. A dead node's verdict takes nearly two minutes
/// by the operator's own bounds.
pub const PATIENCE: Duration = Duration::from_mins(3);
/// Pause between two looks.
pub(crate) const LOOK: Duration = Duration::from_millis(150);

/// Namespace of the operator.
pub const OPERATOR_NAMESPACE: &str = "agentsandbox-system";
/// The image with Python, git, curl and Node.js.
pub const AGENT_IMAGE: &str = "agent-sandbox.local/agent:1";

/// Why a test or the demo can't go on.
#[derive(Debug, thiserror::Error)]
pub enum HarnessError {
    /// The cluster is not there.
    #[error(transparent)]
    Cluster(#[from] cluster::Error),
    /// The API server said no.
    #[error(transparent)]
    Kube(#[from] kube::Error),
    /// The kubeconfig can't be used.
    #[error(transparent)]
    Kubeconfig(#[from] kube::config::KubeconfigError),
    /// An object in a test is wrong.
    #[error(transparent)]
    Json(#[from] serde_json::Error),
    /// Something did not happen in time.
    #[error("{what} did not happen within {PATIENCE:?}; last seen: {seen}")]
    Late {
        /// What was waited for.
        what: String,
        /// What was seen last.
        seen: String,
    },
    /// kubectl failed.
    #[error("kubectl: {0}")]
    Kubectl(String),
    /// A program on this machine failed.
    #[error(transparent)]
    Program(std::io::Error),
}

/// The result of everything here.
pub type Result<T> = std::result::Result<T, HarnessError>;

/// One namespace of the cluster.
#[derive(Clone)]
pub struct Harness {
    /// The cluster.
    pub cluster: Cluster,
    /// Client as its administrator.
    pub client: Client,
    /// The namespace.
    pub namespace: String,
}

/// What a policy says to get a runtime class of the cluster and to demand what that gives.
#[must_use]
pub fn isolation(runtime_class: &str) -> Value {
    let minimum = match runtime_class {
        "runc" => "Container",
        _ => "UserspaceKernel",
    };
    json!({"runtimeClassName": runtime_class, "minimum": minimum})
}

impl Harness {
    /// Attaches to the cluster that `AGENTSANDBOX_CLUSTER` names (default `test`) and makes a namespace of its own for
    /// one test. Pod Security "restricted" holds in it: what the operator makes must pass.
    pub async fn start(test: &str) -> Result<Self> {
        let name = std::env::var("AGENTSANDBOX_CLUSTER").unwrap_or_else(|_| "test".to_owned());
        let unique = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .unwrap_or_default();
        Self::in_namespace(&name, &format!("{test}-{:x}", unique.as_millis() & 0x00ff_ffff)).await
    }

    /// Attaches to a cluster, and makes a namespace unless it is there.
    pub async fn in_namespace(cluster: &str, namespace: &str) -> Result<Self> {
        let cluster = Cluster::attach(cluster)?;
        let kubeconfig = Kubeconfig::read_from(cluster.kubeconfig())?;
        let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
        let harness = Self {
            cluster,
            client: Client::try_from(config)?,
            namespace: namespace.to_owned(),
        };
        let object: Namespace = serde_json::from_value(json!({"metadata": {
            "name": namespace, "labels": {"pod-security.kubernetes.io/enforce": "restricted"},
        }}))?;
        match Api::<Namespace>::all(harness.client.clone())
            .create(&PostParams::default(), &object)
            .await
        {
            Err(kube::Error::Api(status)) if status.is_already_exists() => {}
            other => drop(other?),
        }
        harness
            .eventually("the default service account", || async {
                let accounts: Api<k8s_openapi::api::core::v1::ServiceAccount> = harness.api();
                Ok(accounts.get_opt("default").await?.map(|_| ()))
            })
            .await?;
        Ok(harness)
    }

    /// Deletes the namespace, and waits until it is gone: what a test made must be removable.
    pub async fn finish(self) -> Result<()> {
        let api: Api<Namespace> = Api::all(self.client.clone());
        api.delete(&self.namespace, &DeleteParams::default()).await?;
        self.eventually("the end of the namespace", || async {
            Ok(api.get_opt(&self.namespace).await?.is_none().then_some(()))
        })
        .await
    }

    /// API of a kind in the namespace.
    #[must_use]
    pub fn api<K: Resource<DynamicType = (), Scope = NamespaceResourceScope>>(&self) -> Api<K> {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    /// Creates a sandbox.
    pub async fn sandbox(&self, name: &str, spec: Value) -> Result<AgentSandbox> {
        let object = json!({
            "apiVersion": "agentsandbox.dev/v1alpha1", "kind": "AgentSandbox",
            "metadata": {"name": name, "namespace": self.namespace}, "spec": with_image(spec),
        });
        Ok(self
            .api()
            .create(&PostParams::default(), &serde_json::from_value(object)?)
            .await?)
    }

    /// Creates a policy, and waits until it is seen.
    pub async fn policy(&self, name: &str, spec: Value) -> Result<SandboxPolicy> {
        let object = json!({
            "apiVersion": "agentsandbox.dev/v1alpha1", "kind": "SandboxPolicy",
            "metadata": {"name": name, "namespace": self.namespace}, "spec": spec,
        });
        self.api::<SandboxPolicy>()
            .create(&PostParams::default(), &serde_json::from_value(object)?)
            .await?;
        self.policy_when(name, |policy| {
            policy
                .status
                .as_ref()
                .is_some_and(|status| !status.conditions.is_empty())
        })
        .await
    }

    /// Creates a network policy.
    pub async fn network_policy(&self, name: &str, spec: Value) -> Result<NetworkPolicy> {
        let object = json!({"metadata": {"name": name}, "spec": spec});
        Ok(self
            .api()
            .create(&PostParams::default(), &serde_json::from_value(object)?)
            .await?)
    }

    /// The policies most tests use: `gvisor` and `runc`, each demanding what it gives.
    pub async fn usual_policies(&self) -> Result<()> {
        for name in ["gvisor", "runc"] {
            self.policy(name, json!({
                "isolation": isolation(name),
                "defaults": {"resources": {"cpu": "200m", "memory": "128Mi", "ephemeralStorage": "128Mi", "processes": 64},
                             "limits": {"runtimeSeconds": 60}},
            }))
            .await?;
        }
        Ok(())
    }

    /// Merges a change into an object.
    pub async fn patch<K>(&self, name: &str, change: Value) -> Result<K>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
            + Clone
            + serde::de::DeserializeOwned
            + Debug,
    {
        Ok(self
            .api::<K>()
            .patch(name, &PatchParams::default(), &Patch::Merge(change))
            .await?)
    }

    /// The status of a sandbox, once it is as it should be.
    pub async fn when(
        &self,
        name: &str,
        what: &str,
        holds: impl Fn(&AgentSandboxStatus) -> bool,
    ) -> Result<AgentSandboxStatus> {
        let mut seen = String::new();
        let begun = Instant::now();
        while begun.elapsed() < PATIENCE {
            let sandbox = self.api::<AgentSandbox>().get_opt(name).await?;
            if let Some(status) = sandbox.and_then(|sandbox| sandbox.status) {
                if holds(&status) {
                    return Ok(status);
                }
                seen = serde_json::to_string(&status)?;
            }
            tokio::time::sleep(LOOK).await;
        }
        Err(HarnessError::Late {
            what: format!("sandbox {name}: {what}"),
            seen,
        })
    }

    /// The status of a sandbox, once it has a verdict.
    pub async fn finished(&self, name: &str) -> Result<AgentSandboxStatus> {
        self.when(name, "a verdict", |status| is(status, types::FINISHED, "True"))
            .await
    }

    /// The status of a sandbox, once its command runs.
    pub async fn running(&self, name: &str) -> Result<AgentSandboxStatus> {
        self.when(name, "its command running", |status| {
            is(status, types::READY, "True") && !is(status, types::FINISHED, "True")
        })
        .await
    }

    /// A policy, once it is as it should be.
    pub async fn policy_when(
        &self,
        name: &str,
        holds: impl Fn(&SandboxPolicy) -> bool,
    ) -> Result<SandboxPolicy> {
        self.eventually(&format!("policy {name}"), || async {
            Ok(self
                .api::<SandboxPolicy>()
                .get_opt(name)
                .await?
                .filter(|policy| holds(policy)))
        })
        .await
    }

    /// Pods of the namespace that belong to a sandbox.
    pub async fn pods_of(&self, sandbox: &str) -> Result<Vec<Pod>> {
        let selector = format!("{LABEL_SANDBOX}={sandbox}");
        Ok(self
            .api::<Pod>()
            .list(&ListParams::default().labels(&selector))
            .await?
            .items)
    }

    /// Waits until a sandbox has no pod.
    pub async fn without_pods(&self, sandbox: &str) -> Result<()> {
        self.eventually(&format!("sandbox {sandbox} without pods"), || async {
            Ok(self.pods_of(sandbox).await?.is_empty().then_some(()))
        })
        .await
    }

    /// Deletes all sandboxes, and waits until none has a pod. Gateways stay, as their policies do.
    pub async fn without_sandboxes(&self) -> Result<()> {
        self.api::<AgentSandbox>()
            .delete_collection(&DeleteParams::default(), &ListParams::default())
            .await?;
        self.eventually("the end of all sandboxes' pods", || async {
            let pods = self.api::<Pod>();
            let left = pods.list(&ListParams::default().labels(LABEL_SANDBOX)).await?;
            Ok(left.items.is_empty().then_some(()))
        })
        .await
    }

    /// Reasons of the events on an object.
    pub async fn events_on(&self, name: &str) -> Result<Vec<String>> {
        let selector = format!("involvedObject.name={name}");
        let events = self
            .api::<Event>()
            .list(&ListParams::default().fields(&selector))
            .await?;
        Ok(events
            .items
            .into_iter()
            .filter_map(|event| event.reason)
            .collect())
    }

    /// Waits for something, with a bound.
    pub async fn eventually<T, F: Future<Output = Result<Option<T>>>>(
        &self,
        what: &str,
        mut look: impl FnMut() -> F,
    ) -> Result<T> {
        let begun = Instant::now();
        while begun.elapsed() < PATIENCE {
            if let Some(found) = look().await? {
                return Ok(found);
            }
            tokio::time::sleep(LOOK).await;
        }
        Err(HarnessError::Late {
            what: what.to_owned(),
            seen: "nothing".to_owned(),
        })
    }

    /// Takes the binding of an admission policy away, so that it refuses nothing, until it is bound again. Others must not
    /// need it meanwhile.
    pub fn unbind(&self, policy: &str) -> Result<String> {
        self.kubectl(&["delete", "validatingadmissionpolicybinding", policy])
    }

    /// Binds all admission policies as they are shipped.
    pub fn bind_again(&self) -> Result<String> {
        let manifests = repository().join("manifests/admission").display().to_string();
        self.kubectl(&["apply", "-k", &manifests])
    }

    /// Runs kubectl in the namespace, as a user would.
    pub fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        let output = self
            .cluster
            .kubectl()
            .args(["-n", &self.namespace])
            .args(arguments)
            .output()
            .map_err(|error| HarnessError::Kubectl(error.to_string()))?;
        if output.status.success() {
            Ok(String::from_utf8_lossy(&output.stdout).into_owned())
        } else {
            Err(HarnessError::Kubectl(
                String::from_utf8_lossy(&output.stderr).into_owned(),
            ))
        }
    }
}

/// Process of a pod on the node, by its cgroup and words of its command line.
#[must_use]
pub fn process_of(pod: &Pod, words: &str) -> Option<i32> {
    let uid = pod.uid()?;
    std::fs::read_dir("/proc").ok()?.flatten().find_map(|entry| {
        let pid = entry.file_name().to_str()?.parse().ok()?;
        let cgroup = std::fs::read_to_string(entry.path().join("cgroup")).ok()?;
        let command = std::fs::read(entry.path().join("cmdline")).ok()?;
        let command = String::from_utf8_lossy(&command).replace('\0', " ");
        (cgroup.contains(&uid) && command.contains(words)).then_some(pid)
    })
}

/// Whether a condition has this status.
#[must_use]
pub fn is(status: &AgentSandboxStatus, type_: &str, value: &str) -> bool {
    status
        .conditions
        .iter()
        .any(|condition| condition.type_ == type_ && condition.status == value)
}

/// The reason of a condition.
#[must_use]
pub fn reason_of<'a>(status: &'a AgentSandboxStatus, type_: &str) -> &'a str {
    status
        .conditions
        .iter()
        .find(|condition| condition.type_ == type_)
        .map_or("", |condition| condition.reason.as_str())
}

/// The message of a condition.
#[must_use]
pub fn message_of<'a>(status: &'a AgentSandboxStatus, type_: &str) -> &'a str {
    status
        .conditions
        .iter()
        .find(|condition| condition.type_ == type_)
        .map_or("", |condition| condition.message.as_str())
}

/// The repository's root.
#[must_use]
pub fn repository() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."))
}

/// The YAML blocks of a page of the repository, in their order.
#[must_use]
pub fn yaml_blocks(page: &str) -> Vec<&str> {
    page.split("```yaml\n")
        .skip(1)
        .filter_map(|rest| rest.split("```").next())
        .collect()
}

/// Name of an object.
#[must_use]
pub fn name_of(object: &impl ResourceExt) -> String {
    object.name_any()
}

fn with_image(mut spec: Value) -> Value {
    if spec.get("image").is_none() {
        spec["image"] = AGENT_IMAGE.into();
    }
    spec
}
