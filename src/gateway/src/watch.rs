//! What the API server shows of the namespace: policies, sandboxes and their pods.
//!
//! Each kind is watched once, by a watch of its own that backs off by itself. A new list, after a watch has broken, is
//! compared with what was known, so that nothing that went away meanwhile is kept.

use std::collections::HashMap;
use std::fmt::Debug;
use std::net::IpAddr;
use std::sync::Arc;

use agentsandbox_api::names;
use agentsandbox_api::policy::SandboxPolicy;
use agentsandbox_api::sandbox::AgentSandbox;
use agentsandbox_api::watched::Watched;
use agentsandbox_egress::identity;
use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::core::v1::Pod;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use tracing::warn;

use crate::state::{Gateway, Sandbox};

/// A change that a watch shows.
#[derive(Debug, PartialEq)]
enum Change<K> {
    /// An object is there, or is another one now.
    Seen(Box<K>),
    /// The object of this name and UID is not there any more.
    Gone {
        /// Its name.
        name: String,
        /// Its UID.
        uid: String,
    },
    /// Everything that is there has been shown.
    Synced,
}

/// Makes changes of a watch's events.
#[derive(Debug, Default)]
struct Known {
    /// UID by name.
    known: HashMap<String, String>,
    listed: Option<HashMap<String, String>>,
}

impl Known {
    fn changes<K: Resource>(&mut self, event: watcher::Event<K>) -> Vec<Change<K>> {
        match event {
            watcher::Event::Init => {
                self.listed = Some(HashMap::new());
                Vec::new()
            }
            watcher::Event::InitApply(object) => {
                if let Some(listed) = &mut self.listed {
                    listed.insert(object.name_any(), object.uid().unwrap_or_default());
                }
                self.seen(object)
            }
            watcher::Event::InitDone => {
                let listed = self.listed.take().unwrap_or_default();
                let gone = self.known.iter().filter(|(name, _)| !listed.contains_key(*name));
                let mut changes: Vec<_> = gone
                    .map(|(name, uid)| Change::Gone {
                        name: name.clone(),
                        uid: uid.clone(),
                    })
                    .collect();
                self.known = listed;
                changes.push(Change::Synced);
                changes
            }
            watcher::Event::Apply(object) => self.seen(object),
            watcher::Event::Delete(object) => {
                let (name, uid) = (object.name_any(), object.uid().unwrap_or_default());
                self.known.remove(&name);
                vec![Change::Gone { name, uid }]
            }
        }
    }

    fn seen<K: Resource>(&mut self, object: K) -> Vec<Change<K>> {
        let (name, uid) = (object.name_any(), object.uid().unwrap_or_default());
        let before = self.known.insert(name.clone(), uid.clone());
        let mut changes = Vec::new();
        // Deleted and made anew between two events.
        if let Some(before) = before.filter(|before| *before != uid) {
            changes.push(Change::Gone { name, uid: before });
        }
        changes.push(Change::Seen(Box::new(object)));
        changes
    }
}

/// Watches policies, sandboxes and pods until the process ends.
pub async fn run(gateway: Arc<Gateway>, client: Client) {
    let namespace = gateway.namespace.clone();
    let any = watcher::Config::default;
    let policies = follow(
        "SandboxPolicy",
        Api::namespaced(client.clone(), &namespace),
        any(),
        &gateway,
        |gateway, change: Change<SandboxPolicy>| match change {
            Change::Seen(policy) => gateway.policy_seen(&policy.name_any(), &policy.spec),
            Change::Gone { name, .. } => gateway.policy_gone(&name),
            Change::Synced => gateway.readiness.set("policies", true),
        },
    );
    let sandboxes = follow(
        "AgentSandbox",
        Api::namespaced(client.clone(), &namespace),
        any(),
        &gateway,
        |gateway, change: Change<AgentSandbox>| match change {
            Change::Seen(sandbox) => gateway.sandbox_seen(view_of_sandbox(&sandbox)),
            Change::Gone { name, .. } => gateway.sandbox_gone(&name),
            Change::Synced => gateway.readiness.set("sandboxes", true),
        },
    );
    let pods = follow(
        "Pod",
        Api::namespaced(client, &namespace),
        any().labels(names::LABEL_SANDBOX),
        &gateway,
        |gateway, change: Change<Pod>| match change {
            Change::Seen(pod) => match view_of_pod(&pod) {
                Some(view) => gateway.pod_seen(view),
                None => gateway.pod_gone(&pod.uid().unwrap_or_default()),
            },
            Change::Gone { uid, .. } => gateway.pod_gone(&uid),
            Change::Synced => gateway.readiness.set("pods", true),
        },
    );
    tokio::join!(policies, sandboxes, pods);
}

async fn follow<K>(
    kind: &'static str,
    api: Api<Watched<K>>,
    config: watcher::Config,
    gateway: &Arc<Gateway>,
    mut apply: impl FnMut(&Arc<Gateway>, Change<K>),
) where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + 'static,
{
    let mut known = Known::default();
    let stream = watcher(api, config).default_backoff().map_ok(Watched::event);
    let mut stream = std::pin::pin!(stream);
    while let Some(event) = stream.next().await {
        match event {
            Ok(event) => {
                for change in known.changes(event) {
                    apply(gateway, change);
                }
            }
            Err(error) => {
                gateway.metrics.watch_error(kind);
                warn!(kind, %error, "watch failed, trying again");
            }
        }
    }
}

fn view_of_sandbox(sandbox: &AgentSandbox) -> Sandbox {
    Sandbox {
        name: sandbox.name_any(),
        uid: sandbox.uid().unwrap_or_default(),
        policy: sandbox.spec.policy_ref.name.clone(),
        run_id: sandbox.spec.run_id.clone(),
        limits: sandbox.spec.limits.clone(),
    }
}

/// A pod with our label that a sandbox controls. Another pod with that label is nobody's.
fn view_of_pod(pod: &Pod) -> Option<identity::Pod> {
    let sandbox = pod.labels().get(names::LABEL_SANDBOX)?.clone();
    let is_owned = pod
        .owner_references()
        .iter()
        .any(|owner| owner.kind == "AgentSandbox" && owner.name == sandbox && owner.controller == Some(true));
    if !is_owned {
        return None;
    }
    let status = pod.status.as_ref();
    let phase = status.and_then(|status| status.phase.as_deref());
    let addresses = status
        .and_then(|status| status.pod_ips.as_deref())
        .unwrap_or_default()
        .iter()
        .filter_map(|address| address.ip.parse::<IpAddr>().ok());
    Some(identity::Pod {
        uid: pod.uid()?,
        namespace: pod.namespace()?,
        sandbox,
        run_id: pod
            .annotations()
            .get(names::ANNOTATION_RUN)
            .cloned()
            .unwrap_or_default(),
        policy: pod.labels().get(names::LABEL_POLICY).cloned().unwrap_or_default(),
        addresses: addresses.collect(),
        host_network: pod
            .spec
            .as_ref()
            .and_then(|spec| spec.host_network)
            .unwrap_or(false),
        ended: matches!(phase, Some("Succeeded" | "Failed")) || pod.metadata.deletion_timestamp.is_some(),
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(name: &str, uid: &str) -> Pod {
        serde_json::from_value(json!({
            "metadata": {
                "name": name, "uid": uid, "namespace": "agents",
                "labels": {"agentsandbox.dev/sandbox": "sb", "agentsandbox.dev/policy": "default"},
                "annotations": {"agentsandbox.dev/run-id": "1"},
                "ownerReferences": [{"apiVersion": "agentsandbox.dev/v1alpha1", "kind": "AgentSandbox", "name": "sb", "uid": "s", "controller": true}],
            },
            "spec": {"containers": []},
            "status": {"phase": "Running", "podIPs": [{"ip": "10.0.0.7"}, {"ip": "fd00::7"}]},
        }))
        .unwrap()
    }

    fn names_of(changes: &[Change<Pod>]) -> Vec<String> {
        changes
            .iter()
            .map(|change| match change {
                Change::Seen(pod) => format!("+{}", pod.uid().unwrap()),
                Change::Gone { uid, .. } => format!("-{uid}"),
                Change::Synced => "synced".to_owned(),
            })
            .collect()
    }

    #[test]
    fn what_a_new_list_does_not_show_is_gone() {
        let mut known = Known::default();
        known.changes::<Pod>(watcher::Event::Init);
        known.changes(watcher::Event::InitApply(pod("a", "1")));
        known.changes(watcher::Event::InitApply(pod("b", "2")));
        assert_eq!(names_of(&known.changes(watcher::Event::InitDone)), ["synced"]);
        known.changes::<Pod>(watcher::Event::Init);
        assert_eq!(
            names_of(&known.changes(watcher::Event::InitApply(pod("b", "3")))),
            ["-2", "+3"]
        );
        assert_eq!(
            names_of(&known.changes(watcher::Event::InitDone)),
            ["-1", "synced"]
        );
        assert_eq!(
            names_of(&known.changes(watcher::Event::Delete(pod("b", "3")))),
            ["-3"]
        );
    }

    #[test]
    fn a_pod_is_seen_as_its_sandbox_s_run() {
        let view = view_of_pod(&pod("a", "1")).unwrap();
        let expected = identity::Pod {
            uid: "1".into(),
            namespace: "agents".into(),
            sandbox: "sb".into(),
            run_id: "1".into(),
            policy: "default".into(),
            addresses: vec!["10.0.0.7".parse().unwrap(), "fd00::7".parse().unwrap()],
            host_network: false,
            ended: false,
        };
        assert_eq!(view, expected);
    }

    #[test]
    fn ended_and_foreign_pods_are_no_runs() {
        let change = |pointer: &str, value: serde_json::Value| {
            let mut json = serde_json::to_value(pod("a", "1")).unwrap();
            *json.pointer_mut(pointer).unwrap() = value;
            view_of_pod(&serde_json::from_value(json).unwrap())
        };
        assert!(change("/status/phase", json!("Succeeded")).unwrap().ended);
        assert!(change("/status/phase", json!("Failed")).unwrap().ended);
        assert!(
            change("/spec", json!({"containers": [], "hostNetwork": true}))
                .unwrap()
                .host_network
        );
        assert_eq!(change("/metadata/ownerReferences/0/kind", json!("Job")), None);
        assert_eq!(change("/metadata/ownerReferences/0/name", json!("other")), None);
        assert_eq!(
            change("/metadata/ownerReferences/0/controller", json!(false)),
            None
        );
        let mut deleted = pod("a", "1");
        deleted.metadata.deletion_timestamp =
            Some(serde_json::from_value(json!("2026-11-24T10:00:00Z")).unwrap());
        assert!(view_of_pod(&deleted).unwrap().ended);
    }
}
