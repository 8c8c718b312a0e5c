//! The egress gateway of a namespace: one for all its policies, owned by those that need it, so that the garbage
//! collector removes it with the last of them, whether or not an operator runs then.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use agentsandbox_api::gateway;
use k8s_openapi::api::apps::v1::{Deployment, DeploymentSpec, DeploymentStrategy, RollingUpdateDeployment};
use k8s_openapi::api::core::v1::{
    Capabilities, Container, ContainerPort, EmptyDirVolumeSource, EnvVar, EnvVarSource, HTTPGetAction,
    ObjectFieldSelector, PodSecurityContext, PodSpec, PodTemplateSpec, Probe, ResourceRequirements,
    SeccompProfile, SecretVolumeSource, SecurityContext, Service, ServiceAccount, ServicePort, ServiceSpec,
    Volume, VolumeMount,
};
use k8s_openapi::api::rbac::v1::{RoleBinding, RoleRef, Subject};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta, OwnerReference};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use crate::build::{from_policy, labelled};
use crate::config::Config;
use crate::quantity::{from_bytes, from_millis};

/// User and group of the gateway: those of a distroless image's `nonroot`.
const USER: i64 = 65_532;
/// Bytes of the folder with the authority's key, which is in memory and never on a disk.
const STATE_BYTES: u64 = 1 << 20;
/// From SIGTERM to SIGKILL, in seconds: the gateway gives connections 20 s, and then settles what it has taken.
const TERMINATION_GRACE_SECONDS: i64 = 30;
/// Permission bits of the mounted Secrets: readable by the gateway's group.
const SECRET_MODE: i32 = 0o440;

/// What the policies of a namespace need of their gateway.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Needs {
    /// Namespace.
    pub namespace: String,
    /// The policies, in the order of their names.
    pub owners: Vec<OwnerReference>,
    /// Secrets to mount.
    pub secrets: BTreeSet<String>,
    /// Ranges that rules open beyond what is public.
    pub opened: BTreeSet<ipnet::IpNet>,
}

/// The port of the Service, the port of the pod, and what it is.
struct Port {
    name: &'static str,
    service: u16,
    pod: u16,
    protocol: &'static str,
}

/// Every way in, of the Service and of the pod.
const PORTS: [Port; 6] = [
    Port::new("proxy", gateway::PORT_PROXY, gateway::PORT_PROXY, "TCP"),
    Port::new("register", gateway::PORT_REGISTER, gateway::PORT_REGISTER, "TCP"),
    Port::new("dns", 53, gateway::PORT_DNS, "UDP"),
    Port::new("dns-tcp", 53, gateway::PORT_DNS, "TCP"),
    Port::new("https", 443, gateway::PORT_TLS, "TCP"),
    Port::new("http", 80, gateway::PORT_HTTP, "TCP"),
];

impl Port {
    const fn new(name: &'static str, service: u16, pod: u16, protocol: &'static str) -> Self {
        Self {
            name,
            service,
            pod,
            protocol,
        }
    }
}

/// Ports and protocols of the pod that sandboxes use.
pub fn ways_in() -> impl Iterator<Item = (u16, &'static str)> {
    PORTS.iter().map(|port| (port.pod, port.protocol))
}

/// The account that the gateway's pods run as.
#[must_use]
pub fn service_account(needs: &Needs) -> ServiceAccount {
    ServiceAccount {
        metadata: metadata(needs),
        ..ServiceAccount::default()
    }
}

/// Gives the account what the `ClusterRole` of the manifests lists, in this namespace.
#[must_use]
pub fn role_binding(needs: &Needs) -> RoleBinding {
    RoleBinding {
        metadata: metadata(needs),
        role_ref: RoleRef {
            api_group: Some("rbac.authorization.k8s.io".to_owned()),
            kind: "ClusterRole".to_owned(),
            name: gateway::NAME.to_owned(),
        },
        subjects: Some(vec![Subject {
            kind: "ServiceAccount".to_owned(),
            name: gateway::NAME.to_owned(),
            namespace: Some(needs.namespace.clone()),
            api_group: None,
        }]),
    }
}

/// The address that sandboxes know: nameserver, proxy, and what their names resolve to.
#[must_use]
pub fn service(needs: &Needs) -> Service {
    Service {
        metadata: metadata(needs),
        spec: Some(ServiceSpec {
            type_: Some("ClusterIP".to_owned()),
            selector: Some(selector()),
            ip_family_policy: Some("PreferDualStack".to_owned()),
            internal_traffic_policy: Some("Cluster".to_owned()),
            session_affinity: Some("None".to_owned()),
            ports: Some(
                PORTS
                    .iter()
                    .map(|port| ServicePort {
                        name: Some(port.name.to_owned()),
                        port: port.service.into(),
                        target_port: Some(IntOrString::Int(port.pod.into())),
                        protocol: Some(port.protocol.to_owned()),
                        ..ServicePort::default()
                    })
                    .collect(),
            ),
            ..ServiceSpec::default()
        }),
        status: None,
    }
}

/// The gateway's pods. `addresses` are those of the live Service; `cluster` lists what no rule opens.
#[must_use]
pub fn deployment(needs: &Needs, addresses: &[IpAddr], cluster: &str, config: &Config) -> Deployment {
    Deployment {
        metadata: metadata(needs),
        spec: Some(DeploymentSpec {
            replicas: Some(1),
            revision_history_limit: Some(2),
            progress_deadline_seconds: Some(120),
            selector: LabelSelector {
                match_labels: Some(selector()),
                match_expressions: None,
            },
            // The old pod serves until the new one does: a Secret that a policy names for the first time, or another
            // image, leaves no gap.
            strategy: Some(DeploymentStrategy {
                type_: Some("RollingUpdate".to_owned()),
                rolling_update: Some(RollingUpdateDeployment {
                    max_surge: Some(IntOrString::Int(1)),
                    max_unavailable: Some(IntOrString::Int(0)),
                }),
            }),
            template: PodTemplateSpec {
                metadata: Some(ObjectMeta {
                    labels: Some(labelled(selector())),
                    ..ObjectMeta::default()
                }),
                spec: Some(pod(needs, addresses, cluster, config)),
            },
            ..DeploymentSpec::default()
        }),
        status: None,
    }
}

/// Pod Security "restricted", and a read-only root.
fn pod(needs: &Needs, addresses: &[IpAddr], cluster: &str, config: &Config) -> PodSpec {
    PodSpec {
        service_account_name: Some(gateway::NAME.to_owned()),
        automount_service_account_token: Some(true),
        enable_service_links: Some(false),
        dns_policy: Some("ClusterFirst".to_owned()),
        restart_policy: Some("Always".to_owned()),
        termination_grace_period_seconds: Some(TERMINATION_GRACE_SECONDS),
        priority_class_name: Some(config.gateway_priority_class.clone()).filter(|class| !class.is_empty()),
        security_context: Some(PodSecurityContext {
            run_as_non_root: Some(true),
            run_as_user: Some(USER),
            run_as_group: Some(USER),
            // Secrets and the folder for the key belong to this group.
            fs_group: Some(USER),
            seccomp_profile: Some(runtime_default()),
            ..PodSecurityContext::default()
        }),
        volumes: Some(volumes(needs)),
        containers: vec![container(needs, addresses, cluster, config)],
        ..PodSpec::default()
    }
}

fn container(needs: &Needs, addresses: &[IpAddr], cluster: &str, config: &Config) -> Container {
    let mut ports: Vec<ContainerPort> = PORTS
        .iter()
        .map(|port| container_port(port.name, port.pod, port.protocol))
        .collect();
    ports.push(container_port("health", gateway::PORT_HEALTH, "TCP"));
    let mut mounts = vec![mount("state", gateway::PATH_STATE, false)];
    for (index, secret) in needs.secrets.iter().enumerate() {
        mounts.push(mount(
            &credential_volume(index),
            &format!("{}/{secret}", gateway::PATH_CREDENTIALS),
            true,
        ));
    }
    Container {
        name: "gateway".to_owned(),
        image: Some(config.gateway_image.clone()),
        image_pull_policy: Some("IfNotPresent".to_owned()),
        env: Some(environment(addresses, cluster, config)),
        ports: Some(ports),
        startup_probe: Some(probe("/healthz", 1, 30)),
        readiness_probe: Some(probe("/readyz", 2, 3)),
        liveness_probe: Some(probe("/healthz", 10, 3)),
        resources: Some(ResourceRequirements {
            requests: Some(BTreeMap::from([
                ("cpu".to_owned(), from_millis(config.gateway_cpu_millis)),
                ("memory".to_owned(), from_bytes(config.gateway_memory_bytes())),
            ])),
            // No limit on CPU: a gateway that is throttled slows every sandbox of the namespace.
            limits: Some(BTreeMap::from([(
                "memory".to_owned(),
                from_bytes(config.gateway_memory_bytes()),
            )])),
            claims: None,
        }),
        security_context: Some(SecurityContext {
            run_as_non_root: Some(true),
            privileged: Some(false),
            allow_privilege_escalation: Some(false),
            read_only_root_filesystem: Some(true),
            capabilities: Some(Capabilities {
                drop: Some(vec!["ALL".to_owned()]),
                add: None,
            }),
            ..SecurityContext::default()
        }),
        volume_mounts: Some(mounts),
        ..Container::default()
    }
}

fn environment(addresses: &[IpAddr], cluster: &str, config: &Config) -> Vec<EnvVar> {
    let joined: Vec<String> = addresses.iter().map(IpAddr::to_string).collect();
    let mut env = vec![
        field("POD_NAMESPACE", "metadata.namespace"),
        field("POD_NAME", "metadata.name"),
        field("POD_IP", "status.podIP"),
        value("GATEWAY_ADDRESSES", &joined.join(",")),
        value("CLUSTER_RANGES", cluster),
    ];
    if !config.gateway_extra_ca.is_empty() {
        env.push(value("EXTRA_CA", &config.gateway_extra_ca));
    }
    if config.log_json {
        env.push(value("LOG_JSON", "true"));
    }
    env
}

/// The authority's key, and each Secret that a policy names. A Secret that does not exist yet appears by itself.
fn volumes(needs: &Needs) -> Vec<Volume> {
    let state = Volume {
        name: "state".to_owned(),
        empty_dir: Some(EmptyDirVolumeSource {
            medium: Some("Memory".to_owned()),
            size_limit: Some(from_bytes(STATE_BYTES)),
        }),
        ..Volume::default()
    };
    let secrets = needs.secrets.iter().enumerate().map(|(index, secret)| Volume {
        name: credential_volume(index),
        secret: Some(SecretVolumeSource {
            secret_name: Some(secret.clone()),
            optional: Some(true),
            default_mode: Some(SECRET_MODE),
            items: None,
        }),
        ..Volume::default()
    });
    std::iter::once(state).chain(secrets).collect()
}

/// A Secret's name may be longer than a volume's.
fn credential_volume(index: usize) -> String {
    format!("credential-{index}")
}

fn selector() -> BTreeMap<String, String> {
    BTreeMap::from([(gateway::LABEL.0.to_owned(), gateway::LABEL.1.to_owned())])
}

fn metadata(needs: &Needs) -> ObjectMeta {
    from_policy(&needs.namespace, gateway::NAME.to_owned(), needs.owners.clone())
}

fn runtime_default() -> SeccompProfile {
    SeccompProfile {
        type_: "RuntimeDefault".to_owned(),
        localhost_profile: None,
    }
}

fn probe(path: &str, period_seconds: i32, failure_threshold: i32) -> Probe {
    Probe {
        http_get: Some(HTTPGetAction {
            path: Some(path.to_owned()),
            port: IntOrString::Int(gateway::PORT_HEALTH.into()),
            ..HTTPGetAction::default()
        }),
        period_seconds: Some(period_seconds),
        timeout_seconds: Some(2),
        failure_threshold: Some(failure_threshold),
        ..Probe::default()
    }
}

fn container_port(name: &str, port: u16, protocol: &str) -> ContainerPort {
    ContainerPort {
        name: Some(name.to_owned()),
        container_port: port.into(),
        protocol: Some(protocol.to_owned()),
        ..ContainerPort::default()
    }
}

fn mount(name: &str, path: &str, read_only: bool) -> VolumeMount {
    VolumeMount {
        name: name.to_owned(),
        mount_path: path.to_owned(),
        read_only: read_only.then_some(true),
        ..VolumeMount::default()
    }
}

fn value(name: &str, value: &str) -> EnvVar {
    EnvVar {
        name: name.to_owned(),
        value: Some(value.to_owned()),
        value_from: None,
    }
}

fn field(name: &str, path: &str) -> EnvVar {
    EnvVar {
        name: name.to_owned(),
        value: None,
        value_from: Some(EnvVarSource {
            field_ref: Some(ObjectFieldSelector {
                field_path: path.to_owned(),
                api_version: None,
            }),
            ..EnvVarSource::default()
        }),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::build::compare::{object_difference, overwriting_patch};
    use crate::testing::{self, merge};

    fn needs() -> Needs {
        let owner = |name: &str, uid: &str| OwnerReference {
            api_version: "agentsandbox.dev/v1alpha1".into(),
            kind: "SandboxPolicy".into(),
            name: name.into(),
            uid: uid.into(),
            controller: None,
            block_owner_deletion: Some(false),
        };
        Needs {
            namespace: "ns".into(),
            owners: vec![owner("default", "1"), owner("other", "2")],
            secrets: BTreeSet::from(["github".to_owned(), "openai".to_owned()]),
            opened: BTreeSet::new(),
        }
    }

    fn built() -> Deployment {
        let addresses = ["10.96.3.4".parse().unwrap(), "fd00::4".parse().unwrap()];
        deployment(
            &needs(),
            &addresses,
            "10.96.0.1,10.244.0.0/16",
            &testing::config(),
        )
    }

    #[test]
    fn the_deployment() {
        insta::assert_json_snapshot!(built());
    }

    #[test]
    fn the_service_its_account_and_its_binding() {
        insta::assert_json_snapshot!((
            service(&needs()),
            service_account(&needs()),
            role_binding(&needs())
        ));
    }

    /// What the API server returns for a Deployment: the same with its own fields.
    fn live(built: &Deployment) -> Deployment {
        let mut live = serde_json::to_value(built).unwrap();
        let filled = json!({
            "metadata": {"uid": "u", "resourceVersion": "7", "generation": 1, "annotations": {"deployment.kubernetes.io/revision": "1"}},
            "spec": {"template": {"metadata": {"creationTimestamp": null, "annotations": {"kubectl.kubernetes.io/restartedAt": "x"}},
                "spec": {"schedulerName": "default-scheduler", "serviceAccount": "agentsandbox-gateway"}}},
            "status": {"observedGeneration": 1},
        });
        merge(&mut live, filled);
        let container = &mut live["spec"]["template"]["spec"]["containers"][0];
        merge(
            container,
            json!({"terminationMessagePath": "/dev/termination-log", "terminationMessagePolicy": "File"}),
        );
        for name in ["startupProbe", "readinessProbe", "livenessProbe"] {
            merge(
                &mut container[name],
                json!({"successThreshold": 1, "httpGet": {"scheme": "HTTP"}}),
            );
        }
        container["resources"]["limits"]["memory"] = "512Mi".into();
        serde_json::from_value(live).unwrap()
    }

    fn changed(path: &[&str], value: Value) -> Deployment {
        let mut object = serde_json::to_value(live(&built())).unwrap();
        let pointer = format!("/{}", path.join("/"));
        if let Some(place) = object.pointer_mut(&pointer) {
            *place = value;
        } else {
            let (last, parents) = path.split_last().unwrap();
            let parent = object.pointer_mut(&format!("/{}", parents.join("/"))).unwrap();
            match parent {
                Value::Array(items) => items.push(value),
                parent => parent[*last] = value,
            }
        }
        serde_json::from_value(object).unwrap()
    }

    #[test]
    fn a_deployment_as_the_api_server_returns_it_stands() {
        assert_eq!(object_difference(&built(), &live(&built())), None);
    }

    #[test]
    fn every_change_to_the_deployment_is_seen_and_can_be_undone() {
        let pod = ["spec", "template", "spec"];
        let inside = |rest: &[&'static str]| [&pod[..], rest].concat();
        let table = [
            (vec!["spec", "replicas"], json!(2)),
            (inside(&["hostNetwork"]), json!(true)),
            (inside(&["serviceAccountName"]), json!("default")),
            (
                inside(&["initContainers"]),
                json!([{"name": "x", "image": "evil"}]),
            ),
            (
                inside(&["containers", "1"]),
                json!({"name": "x", "image": "evil"}),
            ),
            (inside(&["containers", "0", "image"]), json!("evil")),
            (inside(&["containers", "0", "command"]), json!(["sh"])),
            (
                inside(&["containers", "0", "env", "9"]),
                json!({"name": "SSLKEYLOGFILE", "value": "/x"}),
            ),
            (
                inside(&["containers", "0", "securityContext", "privileged"]),
                json!(true),
            ),
            (
                inside(&["volumes", "9"]),
                json!({"name": "host", "hostPath": {"path": "/"}}),
            ),
            (vec!["metadata", "ownerReferences"], json!([])),
            (vec!["metadata", "labels"], json!({})),
        ];
        for (path, value) in table {
            let live = changed(&path, value);
            let found = object_difference(&built(), &live);
            assert!(found.is_some(), "{path:?} was not seen");
            // Applied as RFC 7396 says, the patch leaves what was built.
            let mut patched = serde_json::to_value(&live).unwrap();
            merge_patch(&mut patched, overwriting_patch(&built(), &live));
            let patched: Deployment = serde_json::from_value(patched).unwrap();
            assert_eq!(object_difference(&built(), &patched), None, "{path:?}");
        }
    }

    fn merge_patch(into: &mut Value, patch: Value) {
        let Value::Object(patch) = patch else {
            *into = patch;
            return;
        };
        if !into.is_object() {
            *into = json!({});
        }
        for (key, value) in patch {
            if value.is_null() {
                into.as_object_mut().unwrap().remove(&key);
            } else {
                merge_patch(&mut into[key.as_str()], value);
            }
        }
    }

    #[test]
    fn a_service_as_the_api_server_returns_it_stands_until_it_is_changed() {
        let built = service(&needs());
        let mut live = built.clone();
        let spec = live.spec.as_mut().unwrap();
        spec.cluster_ip = Some("10.96.3.4".into());
        spec.cluster_ips = Some(vec!["10.96.3.4".into()]);
        spec.ip_families = Some(vec!["IPv4".into()]);
        assert_eq!(object_difference(&built, &live), None);
        let mut opened = live.clone();
        opened.spec.as_mut().unwrap().external_ips = Some(vec!["203.0.113.7".into()]);
        assert_eq!(
            object_difference(&built, &opened).as_deref(),
            Some("spec.externalIPs")
        );
        let mut redirected = live.clone();
        redirected.spec.as_mut().unwrap().selector = Some(BTreeMap::from([("app".into(), "evil".into())]));
        assert!(object_difference(&built, &redirected).is_some());
    }

    #[test]
    fn pull_secrets_that_somebody_gave_the_account_are_left() {
        let built = service_account(&needs());
        let mut live = built.clone();
        live.image_pull_secrets = Some(vec![k8s_openapi::api::core::v1::LocalObjectReference {
            name: "registry".into(),
        }]);
        assert_eq!(object_difference(&built, &live), None);
    }
}
