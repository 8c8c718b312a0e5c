//! What every reconciliation shares: the client, the configuration and the stores of watched objects.

use std::sync::Arc;
use std::time::Duration;

use agentsandbox_api::names;
use agentsandbox_api::policy::SandboxPolicy;
use agentsandbox_api::sandbox::AgentSandbox;
use futures::StreamExt;
use futures::channel::mpsc;
use futures::stream::BoxStream;
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::core::v1::{Node, Pod, ResourceQuota};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::api::node::v1::RuntimeClass;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use kube::runtime::reflector::{ObjectRef, Store};
use kube::runtime::watcher;
use kube::{Api, Client, Resource, ResourceExt};
use tracing::warn;

use crate::config::Config;
use crate::facts::Facts;
use crate::metrics::Metrics;
use crate::own_writes::OwnWrites;
use crate::watch::{Synced, drive, watch};

/// How long any one request to the API server may take.
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(20);

/// Shared by all reconciliations.
pub struct Context {
    /// Client of the API server.
    pub client: Client,
    /// The operator's configuration.
    pub config: Config,
    /// What it knows of its cluster.
    pub facts: Facts,
    /// Metrics.
    pub metrics: Metrics,
    /// All sandboxes.
    pub sandboxes: Store<AgentSandbox>,
    /// All policies.
    pub policies: Store<SandboxPolicy>,
    /// All sandbox pods, without the recorders' environment.
    pub pods: Store<Pod>,
    /// All network policies.
    pub network_policies: Store<NetworkPolicy>,
    /// The quotas that the operator made.
    pub quotas: Store<ResourceQuota>,
    /// All runtime classes.
    pub runtime_classes: Store<RuntimeClass>,
    /// All nodes, reduced to name, kernel and readiness.
    pub nodes: Store<Node>,
    /// What the stores may not show yet.
    pub own_writes: OwnWrites,
    synced: [Synced; 5],
    controllers_synced: [Synced; 2],
    events: Recorder,
}

/// Streams that drive the controllers.
pub struct Triggers {
    /// Sandboxes that were touched.
    pub sandboxes: BoxStream<'static, AgentSandbox>,
    /// Sandboxes to look at because something else was touched.
    pub related_sandboxes: mpsc::UnboundedReceiver<ObjectRef<AgentSandbox>>,
    /// Policies that were touched.
    pub policies: BoxStream<'static, SandboxPolicy>,
    /// Policies to look at because something else was touched.
    pub related_policies: mpsc::UnboundedReceiver<ObjectRef<SandboxPolicy>>,
    /// Pods that were touched, for the sweeper of orphans.
    pub pods: mpsc::UnboundedReceiver<ObjectRef<Pod>>,
}

/// A request that took too long or failed.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// The API server said no, or could not be reached.
    #[error("{verb} {kind} {name}: {source}")]
    Api {
        /// What was asked.
        verb: &'static str,
        /// Of which kind.
        kind: &'static str,
        /// Of which object.
        name: String,
        /// Why.
        source: Box<kube::Error>,
    },
    /// No answer in time.
    #[error("{verb} {kind} {name}: no answer within {REQUEST_TIMEOUT:?}")]
    Timeout {
        /// What was asked.
        verb: &'static str,
        /// Of which kind.
        kind: &'static str,
        /// Of which object.
        name: String,
    },
}

impl RequestError {
    /// The API server's answer, if it was one.
    #[must_use]
    pub fn status(&self) -> Option<&kube::core::Status> {
        match self {
            Self::Api { source, .. } => match &**source {
                kube::Error::Api(status) => Some(status),
                _ => None,
            },
            Self::Timeout { .. } => None,
        }
    }

    /// Whether the object does not exist.
    #[must_use]
    pub fn is_not_found(&self) -> bool {
        self.status().is_some_and(kube::core::Status::is_not_found)
    }

    /// Whether nothing new may be made because the namespace is being deleted.
    #[must_use]
    pub fn is_namespace_terminating(&self) -> bool {
        self.status()
            .is_some_and(|status| status.is_forbidden() && status.message.contains("being terminated"))
    }

    /// Whether another write came first.
    #[must_use]
    pub fn is_conflict(&self) -> bool {
        self.status().is_some_and(kube::core::Status::is_conflict)
    }
}

impl Context {
    /// Starts every watch but the two that drive the controllers; see [`Context::synced`] for when all are warm.
    #[allow(clippy::too_many_lines)] // one paragraph per watch and whom it wakes
    pub fn start(client: Client, config: Config, facts: Facts, metrics: Metrics) -> (Arc<Self>, Triggers) {
        let any = watcher::Config::default;
        let ours = || any().labels(&crate::sandbox::status::managed_selector());
        let (sandboxes, sandboxes_synced, sandbox_stream) = watch(
            "AgentSandbox",
            scoped(&client, &config),
            any(),
            metrics.clone(),
            |_: &mut AgentSandbox| {},
        );
        let (policies, policies_synced, policy_stream) = watch(
            "SandboxPolicy",
            scoped(&client, &config),
            any(),
            metrics.clone(),
            |_: &mut SandboxPolicy| {},
        );
        let (pods, pods_synced, pod_stream) = watch(
            "Pod",
            scoped(&client, &config),
            any().labels(names::LABEL_SANDBOX),
            metrics.clone(),
            prune_pod,
        );
        let (network_policies, networks_synced, network_stream) = watch(
            "NetworkPolicy",
            scoped(&client, &config),
            any(),
            metrics.clone(),
            |_: &mut NetworkPolicy| {},
        );
        let (quotas, quotas_synced, quota_stream) = watch(
            "ResourceQuota",
            scoped(&client, &config),
            ours(),
            metrics.clone(),
            |_: &mut ResourceQuota| {},
        );
        let (runtime_classes, classes_synced, class_stream) = watch(
            "RuntimeClass",
            Api::all(client.clone()),
            any(),
            metrics.clone(),
            |_: &mut RuntimeClass| {},
        );
        let (nodes, nodes_synced, node_stream) = watch(
            "Node",
            Api::all(client.clone()),
            any(),
            metrics.clone(),
            prune_node,
        );

        let (to_sandboxes, related_sandboxes) = mpsc::unbounded();
        let (to_policies, related_policies) = mpsc::unbounded();
        let (to_sweeper, swept_pods) = mpsc::unbounded();
        let events = Recorder::new(client.clone(), Reporter::from(names::MANAGER));
        let context = Arc::new(Self {
            client,
            config,
            facts,
            metrics,
            sandboxes,
            policies,
            pods,
            network_policies,
            quotas,
            runtime_classes,
            nodes,
            synced: [
                pods_synced,
                networks_synced,
                quotas_synced,
                classes_synced,
                nodes_synced,
            ],
            controllers_synced: [sandboxes_synced, policies_synced],
            events,
            own_writes: OwnWrites::default(),
        });

        let (send, shared) = (to_sandboxes.clone(), context.clone());
        drive(pod_stream, move |pod| {
            let namespace = pod.namespace().unwrap_or_default();
            for owner in pod
                .owner_references()
                .iter()
                .filter(|owner| owner.kind == "AgentSandbox")
            {
                let _ = send.unbounded_send(ObjectRef::new(&owner.name).within(&namespace));
            }
            let _ = to_sweeper.unbounded_send(ObjectRef::from_obj(&pod));
            if pod
                .status
                .as_ref()
                .and_then(|s| s.phase.as_deref())
                .is_some_and(|p| p == "Succeeded" || p == "Failed")
            {
                shared.oldest_queued(&namespace).into_iter().for_each(|next| {
                    let _ = send.unbounded_send(next);
                });
            }
        });
        let (send, shared, policies_of) = (to_sandboxes.clone(), context.clone(), to_policies.clone());
        drive(network_stream, move |policy| {
            let namespace = policy.namespace().unwrap_or_default();
            shared.unfinished_in(&namespace, |_| true).for_each(|sandbox| {
                let _ = send.unbounded_send(sandbox);
            });
            if let Some(owner) = owner_policy(&policy) {
                let _ = policies_of.unbounded_send(owner);
            }
        });
        let (send, shared, policies_of) = (to_sandboxes.clone(), context.clone(), to_policies.clone());
        drive(quota_stream, move |quota| {
            shared
                .oldest_queued(&quota.namespace().unwrap_or_default())
                .into_iter()
                .for_each(|next| {
                    let _ = send.unbounded_send(next);
                });
            if let Some(owner) = owner_policy(&quota) {
                let _ = policies_of.unbounded_send(owner);
            }
        });
        let (send, shared) = (to_sandboxes.clone(), context.clone());
        drive(class_stream, move |_| {
            for sandbox in shared.sandboxes.state() {
                if !is_finished(&sandbox) {
                    let _ = send.unbounded_send(ObjectRef::from_obj(&*sandbox));
                }
            }
        });
        drive(node_stream, |_| {});
        let (send, shared) = (to_sandboxes.clone(), context.clone());
        let policies = policy_stream.inspect(move |policy: &SandboxPolicy| {
            let name = policy.name_any();
            shared
                .unfinished_in(&policy.namespace().unwrap_or_default(), |sandbox| {
                    sandbox.spec.policy_ref.name == name
                })
                .for_each(|sandbox| {
                    let _ = send.unbounded_send(sandbox);
                });
        });
        let (send, shared, policies_of) = (to_sandboxes, context.clone(), to_policies);
        let sandboxes = sandbox_stream.inspect(move |sandbox: &AgentSandbox| {
            let namespace = sandbox.namespace().unwrap_or_default();
            if is_finished(sandbox) || sandbox.metadata.deletion_timestamp.is_some() {
                shared.oldest_queued(&namespace).into_iter().for_each(|next| {
                    let _ = send.unbounded_send(next);
                });
                let _ = policies_of
                    .unbounded_send(ObjectRef::new(&sandbox.spec.policy_ref.name).within(&namespace));
            }
        });
        let triggers = Triggers {
            sandboxes: sandboxes.boxed(),
            related_sandboxes,
            policies: policies.boxed(),
            related_policies,
            pods: swept_pods,
        };
        (context, triggers)
    }

    /// Waits until every store is warm that is filled whether or not this replica leads.
    pub async fn synced(&self) {
        for synced in &self.synced {
            synced.wait().await;
        }
    }

    /// Waits until the stores of both controllers are warm, which fill when these run: a policy that was not heard of
    /// yet is not a deleted one. A controller begins no work before its own store is warm, so none waits for itself.
    pub async fn controllers_synced(&self) {
        for synced in &self.controllers_synced {
            synced.wait().await;
        }
    }

    /// An event on one of the users' objects. A failure is counted and costs nobody else anything.
    pub async fn event(
        &self,
        object: &impl Resource<DynamicType = ()>,
        warning: bool,
        reason: &str,
        note: &str,
    ) {
        let event = Event {
            type_: if warning {
                EventType::Warning
            } else {
                EventType::Normal
            },
            reason: reason.to_owned(),
            note: Some(note.chars().take(900).collect()),
            action: "Reconcile".to_owned(),
            secondary: None,
        };
        let published = tokio::time::timeout(
            REQUEST_TIMEOUT,
            self.events.publish(&event, &object.object_ref(&())),
        )
        .await;
        let ok = matches!(published, Ok(Ok(())));
        self.metrics.api_write("create", "Event", ok);
        if !ok {
            warn!(reason, "an event could not be written");
        }
    }

    /// A request with its bound; writes are counted.
    pub async fn request<T>(
        &self,
        verb: &'static str,
        kind: &'static str,
        name: &str,
        request: impl Future<Output = kube::Result<T>>,
    ) -> Result<T, RequestError> {
        let answer = tokio::time::timeout(REQUEST_TIMEOUT, request).await;
        let result = match answer {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(source)) => Err(RequestError::Api {
                verb,
                kind,
                name: name.to_owned(),
                source: Box::new(source),
            }),
            Err(_) => Err(RequestError::Timeout {
                verb,
                kind,
                name: name.to_owned(),
            }),
        };
        if verb != "get" {
            self.metrics.api_write(verb, kind, result.is_ok());
        }
        result
    }

    /// The two oldest sandboxes of a namespace that wait for its quota: the next in line, and one to spare.
    fn oldest_queued(&self, namespace: &str) -> Vec<ObjectRef<AgentSandbox>> {
        let mut queued: Vec<_> = self
            .sandboxes
            .state()
            .into_iter()
            .filter(|sandbox| {
                sandbox.namespace().as_deref() == Some(namespace) && crate::sandbox::is_queued(sandbox)
            })
            .collect();
        queued.sort_by_cached_key(|sandbox| crate::sandbox::queue_key(sandbox));
        queued
            .iter()
            .take(2)
            .map(|sandbox| ObjectRef::from_obj(&**sandbox))
            .collect()
    }

    fn unfinished_in<'a>(
        &'a self,
        namespace: &'a str,
        filter: impl Fn(&AgentSandbox) -> bool + 'a,
    ) -> impl Iterator<Item = ObjectRef<AgentSandbox>> + 'a {
        self.sandboxes
            .state()
            .into_iter()
            .filter(move |sandbox| {
                sandbox.namespace().as_deref() == Some(namespace) && !is_finished(sandbox) && filter(sandbox)
            })
            .map(|sandbox| ObjectRef::from_obj(&*sandbox))
    }
}

/// The API of a kind in the namespaces that the operator watches.
#[must_use]
pub fn scoped<K>(client: &Client, config: &Config) -> Api<K>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
{
    match &config.watch_namespace {
        Some(namespace) => Api::namespaced(client.clone(), namespace),
        None => Api::all(client.clone()),
    }
}

fn is_finished(sandbox: &AgentSandbox) -> bool {
    sandbox
        .status
        .as_ref()
        .is_some_and(crate::sandbox::status::is_finished)
}

fn owner_policy(object: &impl ResourceExt) -> Option<ObjectRef<SandboxPolicy>> {
    let owner = object
        .owner_references()
        .iter()
        .find(|owner| owner.kind == "SandboxPolicy")?;
    Some(ObjectRef::new(&owner.name).within(&object.namespace().unwrap_or_default()))
}

/// The run spec may weigh 200 KB; nothing reads it from the store.
fn prune_pod(pod: &mut Pod) {
    if let Some(spec) = &mut pod.spec {
        for container in spec.init_containers.iter_mut().flatten() {
            container.env = None;
        }
    }
}

fn prune_node(node: &mut Node) {
    node.spec = None;
    node.metadata.annotations = None;
    if let Some(status) = &mut node.status {
        status.images = None;
        status.addresses = None;
        status.capacity = None;
        status.allocatable = None;
    }
}
