//! What is watched, and whom each change wakes.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::Arc;

use agentsandbox_api::names;
use agentsandbox_api::policy::SandboxPolicy;
use agentsandbox_api::sandbox::AgentSandbox;
use futures::StreamExt;
use futures::channel::mpsc;
use futures::stream::BoxStream;
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Node, NodeSpec, Pod, ResourceQuota, Service, ServiceAccount, ServiceSpec};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::api::node::v1::RuntimeClass;
use k8s_openapi::api::rbac::v1::RoleBinding;
use kube::runtime::events::{Recorder, Reporter};
use kube::runtime::reflector::ObjectRef;
use kube::runtime::watcher;
use kube::{Api, Client, Resource, ResourceExt};

use crate::cluster::{NodeAddresses, load_balancer_addresses};
use crate::config::Config;
use crate::context::{Context, Gateways, is_finished};
use crate::facts::Facts;
use crate::metrics::Metrics;
use crate::own_writes::OwnWrites;
use crate::watch::{drive, watch};

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

/// Starts every watch but the two that drive the controllers; see [`Context::synced`] for when all are warm.
#[allow(clippy::too_many_lines)] // one paragraph per watch and whom it wakes
pub fn start(client: Client, config: Config, facts: Facts, metrics: Metrics) -> (Arc<Context>, Triggers) {
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
    let (load_balancers, balancers_synced, balancer_stream) = watch(
        "Service",
        scoped(&client, &config),
        any().fields("spec.type=LoadBalancer"),
        metrics.clone(),
        prune_load_balancer,
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
    let context = Arc::new(Context {
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
        load_balancers,
        synced: [
            pods_synced,
            networks_synced,
            quotas_synced,
            accounts_synced,
            bindings_synced,
            services_synced,
            deployments_synced,
            api_servers_synced,
            balancers_synced,
            classes_synced,
            nodes_synced,
        ],
        controllers_synced: [sandboxes_synced, policies_synced],
        events,
        own_writes: OwnWrites::default(),
        claims: tokio::sync::Mutex::default(),
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
    let mut known = HashMap::new();
    drive(balancer_stream, move |service| {
        let object = ObjectRef::from_obj(&service);
        let exists = shared.load_balancers.get(&object).is_some();
        // Those that wait for an address, and those that have none but a host name, close nothing.
        let found = Some(load_balancer_addresses(&service)).filter(|found| exists && !found.is_empty());
        if is_news(&mut known, object, found) {
            wake_owners(&policies_of, shared.with_egress(|_| true));
        }
    });
    let (shared, policies_of) = (context.clone(), to_policies.clone());
    let mut known = HashMap::new();
    drive(node_stream, move |node| {
        // Nodes report every few seconds; their addresses stay.
        let object = ObjectRef::from_obj(&node);
        let exists = shared.nodes.get(&object).is_some();
        let found = Some(NodeAddresses::of(&node)).filter(|_| exists);
        if is_news(&mut known, object, found) {
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
            let _ =
                policies_of.unbounded_send(ObjectRef::new(&sandbox.spec.policy_ref.name).within(&namespace));
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

/// Remembers what was found of an object, `None` if it is gone, and says whether it is something else than before.
fn is_news<K: Hash + Eq, V: PartialEq>(known: &mut HashMap<K, V>, object: K, found: Option<V>) -> bool {
    match found {
        Some(found) if known.get(&object) == Some(&found) => false,
        Some(found) => {
            known.insert(object, found);
            true
        }
        None => known.remove(&object).is_some(),
    }
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

fn prune_load_balancer(service: &mut Service) {
    service.metadata.annotations = None;
    service.metadata.labels = None;
    if let Some(spec) = &mut service.spec {
        *spec = ServiceSpec {
            type_: spec.type_.take(),
            external_ips: spec.external_ips.take(),
            ..ServiceSpec::default()
        };
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

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn only_what_has_changed_is_news() {
        let mut known = HashMap::new();
        let mut is_news = |found| is_news(&mut known, "web", found);
        assert!(!is_news(None), "it never was there");
        assert!(is_news(Some(1)));
        assert!(!is_news(Some(1)));
        assert!(is_news(Some(2)));
        assert!(is_news(None));
        assert!(!is_news(None));
    }

    #[test]
    fn a_load_balancers_addresses_survive_pruning() {
        let mut service: Service = serde_json::from_value(json!({
            "metadata": {"name": "web", "namespace": "shop", "annotations": {"a": "b"}},
            "spec": {"type": "LoadBalancer", "externalIPs": ["198.51.100.7"], "selector": {"app": "web"}},
            "status": {"loadBalancer": {"ingress": [{"ip": "203.0.113.7"}]}},
        }))
        .unwrap();
        let before = load_balancer_addresses(&service);
        assert!(!before.is_empty());
        prune_load_balancer(&mut service);
        assert_eq!(load_balancer_addresses(&service), before);
        assert_eq!(service.spec.unwrap().selector, None);
    }
}
