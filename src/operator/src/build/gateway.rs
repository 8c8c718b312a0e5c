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
#[path = "gateway_tests.rs"]
mod tests;
