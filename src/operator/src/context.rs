//! What every reconciliation shares: the client, the configuration and the stores of watched objects.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use agentsandbox_api::names;
use agentsandbox_api::policy::{SandboxPolicy, SandboxPolicySpec};
use agentsandbox_api::sandbox::AgentSandbox;
use futures::StreamExt;
use futures::channel::mpsc;
use futures::stream::BoxStream;
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Node, NodeSpec, Pod, ResourceQuota, Service, ServiceAccount};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::api::node::v1::RuntimeClass;
use k8s_openapi::api::rbac::v1::RoleBinding;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use kube::runtime::reflector::{ObjectRef, Store};
use kube::runtime::watcher;
use kube::{Api, Client, Resource, ResourceExt};
use tracing::warn;

use crate::cluster::{ClusterAddresses, NodeAddresses, endpoints};
use crate::config::Config;
use crate::facts::Facts;
use crate::metrics::Metrics;
use crate::policy::valid::{self, PolicyProblems, ValidPolicy};
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
    /// What the operator made of egress gateways.
    pub gateways: Gateways,
    /// All runtime classes.
    pub runtime_classes: Store<RuntimeClass>,
    /// All nodes, reduced to name, addresses, kernel and readiness.
    pub nodes: Store<Node>,
    /// Where the API server is, behind its Service.
    api_servers: Store<EndpointSlice>,
    synced: [Synced; 10],
    controllers_synced: [Synced; 2],
    events: Recorder,
    overwritten: Mutex<HashMap<String, String>>,
}

/// The objects of egress gateways, in all namespaces.
pub struct Gateways {
    /// Their accounts.
    pub accounts: Store<ServiceAccount>,
    /// What gives these accounts their rights.
    pub bindings: Store<RoleBinding>,
    /// Their Services.
    pub services: Store<Service>,
    /// Their Deployments.
    pub deployments: Store<Deployment>,
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
        let (accounts, accounts_synced, account_stream) = watch(
            "ServiceAccount",
            scoped(&client, &config),
            ours(),
            metrics.clone(),
            |_: &mut ServiceAccount| {},
        );
        let (bindings, bindings_synced, binding_stream) = watch(
            "RoleBinding",
            scoped(&client, &config),
            ours(),
            metrics.clone(),
            |_: &mut RoleBinding| {},
        );
        let (services, services_synced, service_stream) = watch(
            "Service",
            scoped(&client, &config),
            ours(),
            metrics.clone(),
            |_: &mut Service| {},
        );
        let (deployments, deployments_synced, deployment_stream) = watch(
            "Deployment",
            scoped(&client, &config),
            ours(),
            metrics.clone(),
            |_: &mut Deployment| {},
        );
        let (api_servers, api_servers_synced, api_server_stream) = watch(
            "EndpointSlice",
            Api::namespaced(client.clone(), "default"),
            any().fields("metadata.name=kubernetes"),
            metrics.clone(),
            |_: &mut EndpointSlice| {},
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
            gateways: Gateways {
                accounts,
                bindings,
                services,
                deployments,
            },
            runtime_classes,
            nodes,
            api_servers,
            synced: [
                pods_synced,
                networks_synced,
                quotas_synced,
                accounts_synced,
                bindings_synced,
                services_synced,
                deployments_synced,
                api_servers_synced,
                classes_synced,
                nodes_synced,
            ],
            controllers_synced: [sandboxes_synced, policies_synced],
            events,
            overwritten: Mutex::default(),
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
            for owner in owner_policies(&policy) {
                let _ = policies_of.unbounded_send(owner);
            }
        });
        // A gateway is every policy's that owns it: whatever became of it, they look.
        let wake_owners = |policies_of: &mpsc::UnboundedSender<_>, owners: Vec<ObjectRef<SandboxPolicy>>| {
            for owner in owners {
                let _ = policies_of.unbounded_send(owner);
            }
        };
        let policies_of = to_policies.clone();
        drive(account_stream, move |object| {
            wake_owners(&policies_of, owner_policies(&object));
        });
        let policies_of = to_policies.clone();
        drive(binding_stream, move |object| {
            wake_owners(&policies_of, owner_policies(&object));
        });
        let policies_of = to_policies.clone();
        drive(service_stream, move |object| {
            wake_owners(&policies_of, owner_policies(&object));
        });
        let policies_of = to_policies.clone();
        drive(deployment_stream, move |object| {
            wake_owners(&policies_of, owner_policies(&object));
        });
        let (shared, policies_of) = (context.clone(), to_policies.clone());
        drive(api_server_stream, move |_| {
            wake_owners(&policies_of, shared.with_egress(|_| true));
        });
        let (send, shared, policies_of) = (to_sandboxes.clone(), context.clone(), to_policies.clone());
        drive(quota_stream, move |quota| {
            shared
                .oldest_queued(&quota.namespace().unwrap_or_default())
                .into_iter()
                .for_each(|next| {
                    let _ = send.unbounded_send(next);
                });
            for owner in owner_policies(&quota) {
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
        let (shared, policies_of) = (context.clone(), to_policies.clone());
        let mut known: HashMap<String, NodeAddresses> = HashMap::new();
        drive(node_stream, move |node| {
            // Nodes report every few seconds; their addresses stay.
            let found = NodeAddresses::of(&node);
            if known.get(&found.name) != Some(&found) {
                known.insert(found.name.clone(), found);
                wake_owners(&policies_of, shared.with_egress(|_| true));
            }
        });
        let (send, shared, policies_of) = (to_sandboxes.clone(), context.clone(), to_policies.clone());
        let policies = policy_stream.inspect(move |policy: &SandboxPolicy| {
            let (name, namespace) = (policy.name_any(), policy.namespace().unwrap_or_default());
            shared
                .unfinished_in(&namespace, |sandbox| sandbox.spec.policy_ref.name == name)
                .for_each(|sandbox| {
                    let _ = send.unbounded_send(sandbox);
                });
            // What the gateway mounts and reaches is what all policies of the namespace need.
            let others = shared.with_egress(|other| {
                other.metadata.namespace.as_deref() == Some(namespace.as_str()) && other.name_any() != name
            });
            wake_owners(&policies_of, others);
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

    /// The cluster's own addresses, as they are known now.
    #[must_use]
    pub fn cluster_addresses(&self) -> ClusterAddresses {
        let api_servers: Vec<_> = self
            .api_servers
            .state()
            .iter()
            .flat_map(|slice| endpoints(slice))
            .collect();
        let mut nodes: Vec<_> = self
            .nodes
            .state()
            .iter()
            .map(|node| NodeAddresses::of(node))
            .collect();
        nodes.sort_by(|one, other| one.name.cmp(&other.name));
        ClusterAddresses::gather(&self.facts, &self.config, &api_servers, &nodes)
    }

    /// Checks a policy against the configuration and the cluster. Its addresses are gathered only for a policy that
    /// could open one.
    pub fn valid_policy(&self, spec: &SandboxPolicySpec) -> Result<ValidPolicy, PolicyProblems> {
        valid::validate(spec, &self.config, &self.cluster_for(spec))
    }

    /// What the egress rules of a policy need; see [`valid::egress`].
    pub fn valid_egress(&self, spec: &SandboxPolicySpec) -> Result<Option<valid::ValidEgress>, Vec<String>> {
        valid::egress(spec, &self.cluster_for(spec))
    }

    fn cluster_for(&self, spec: &SandboxPolicySpec) -> ClusterAddresses {
        let mut rules = spec.egress.iter().flat_map(|egress| &egress.allow);
        if rules.any(|rule| rule.cidr.is_some()) {
            self.cluster_addresses()
        } else {
            ClusterAddresses::default()
        }
    }

    /// Policies that ask for any egress.
    fn with_egress(&self, filter: impl Fn(&SandboxPolicy) -> bool) -> Vec<ObjectRef<SandboxPolicy>> {
        self.policies
            .state()
            .iter()
            .filter(|policy| valid::asks_for_egress(&policy.spec) && filter(policy))
            .map(|policy| ObjectRef::from_obj(&**policy))
            .collect()
    }

    /// Remembers that a version of an object was overwritten, for [`Context::is_overwritten`].
    pub fn overwrote(&self, old: &impl Resource, new: &impl Resource) {
        let (old, new) = (old.meta(), new.meta());
        if let (Some(uid), Some(version)) = (&old.uid, &old.resource_version)
            && old.resource_version != new.resource_version
        {
            self.overwritten().insert(uid.clone(), version.clone());
        }
    }

    /// Whether a version from a store is one that this operator has overwritten since: deciding by it would end in a
    /// conflict. The write's own event is on its way.
    pub fn is_overwritten(&self, object: &impl Resource) -> bool {
        let meta = object.meta();
        let (Some(uid), Some(version)) = (&meta.uid, &meta.resource_version) else {
            return false;
        };
        let mut overwritten = self.overwritten();
        let is_old = overwritten.get(uid) == Some(version);
        if !is_old {
            overwritten.remove(uid);
        }
        is_old
    }

    fn overwritten(&self) -> MutexGuard<'_, HashMap<String, String>> {
        // Nothing panics while it holds the lock, and each entry stands alone.
        self.overwritten.lock().unwrap_or_else(PoisonError::into_inner)
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

fn owner_policies(object: &impl ResourceExt) -> Vec<ObjectRef<SandboxPolicy>> {
    let namespace = object.namespace().unwrap_or_default();
    let owners = object.owner_references().iter();
    owners
        .filter(|owner| owner.kind == "SandboxPolicy")
        .map(|owner| ObjectRef::new(&owner.name).within(&namespace))
        .collect()
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
    if let Some(spec) = &mut node.spec {
        *spec = NodeSpec {
            pod_cidrs: spec.pod_cidrs.take(),
            ..NodeSpec::default()
        };
    }
    node.metadata.annotations = None;
    if let Some(status) = &mut node.status {
        status.images = None;
        status.capacity = None;
        status.allocatable = None;
    }
}
