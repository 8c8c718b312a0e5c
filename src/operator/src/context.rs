//! What every reconciliation shares: the client, the configuration and the stores of watched objects.

use agentsandbox_api::policy::{SandboxPolicy, SandboxPolicySpec};
use agentsandbox_api::sandbox::AgentSandbox;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Node, Pod, ResourceQuota, Service, ServiceAccount};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::api::node::v1::RuntimeClass;
use k8s_openapi::api::rbac::v1::RoleBinding;
use kube::runtime::events::{Event, EventType, Recorder};
use kube::runtime::reflector::{ObjectRef, Store};
use kube::{Client, Resource, ResourceExt};
use tracing::warn;

use crate::cluster::{ClusterAddresses, NodeAddresses, endpoints, load_balancer_addresses};
use crate::config::Config;
use crate::facts::Facts;
use crate::metrics::Metrics;
use crate::own_writes::OwnWrites;
use crate::policy::valid::{self, PolicyProblems, ValidPolicy};
use crate::request::{REQUEST_TIMEOUT, RequestError};
use crate::watch::Synced;

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
    /// What the stores may not show yet.
    pub own_writes: OwnWrites,
    /// Held by whoever makes a pod that must be the only one of its claim.
    pub claims: tokio::sync::Mutex<()>,
    /// Where the API server is, behind its Service.
    pub(crate) api_servers: Store<EndpointSlice>,
    /// Services of type `LoadBalancer`, reduced to their names and addresses.
    pub(crate) load_balancers: Store<Service>,
    pub(crate) synced: [Synced; 11],
    pub(crate) controllers_synced: [Synced; 2],
    pub(crate) events: Recorder,
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

impl Context {
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
        let mut load_balancers: Vec<_> = self
            .load_balancers
            .state()
            .iter()
            .flat_map(|service| load_balancer_addresses(service))
            .collect();
        load_balancers.sort_unstable();
        let mut nodes: Vec<_> = self
            .nodes
            .state()
            .iter()
            .map(|node| NodeAddresses::of(node))
            .collect();
        nodes.sort_by(|one, other| one.name.cmp(&other.name));
        ClusterAddresses::gather(&self.facts, &self.config, &api_servers, &load_balancers, &nodes)
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
    pub(crate) fn with_egress(
        &self,
        filter: impl Fn(&SandboxPolicy) -> bool,
    ) -> Vec<ObjectRef<SandboxPolicy>> {
        self.policies
            .state()
            .iter()
            .filter(|policy| valid::asks_for_egress(&policy.spec) && filter(policy))
            .map(|policy| ObjectRef::from_obj(&**policy))
            .collect()
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
        if !matches!(verb, "get" | "list") {
            self.metrics.api_write(verb, kind, result.is_ok());
        }
        result
    }

    /// The two oldest sandboxes of a namespace that wait for its quota: the next in line, and one to spare.
    pub(crate) fn oldest_queued(&self, namespace: &str) -> Vec<ObjectRef<AgentSandbox>> {
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

    pub(crate) fn unfinished_in<'a>(
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

pub(crate) fn is_finished(sandbox: &AgentSandbox) -> bool {
    sandbox
        .status
        .as_ref()
        .is_some_and(crate::sandbox::status::is_finished)
}
