//! The pod of one run: a recorder as its sidecar, and the user's command below the supervisor.

use std::collections::BTreeMap;

use agentsandbox_api::gateway;
use agentsandbox_api::isolation::IsolationRequirement;
use agentsandbox_api::names;
use agentsandbox_api::policy::PullPolicy;
use agentsandbox_api::run::{CommandSpec, RequiredCapture, RunSpec};
use agentsandbox_api::sandbox::AgentSandbox;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use k8s_openapi::api::core::v1::{
    Capabilities, ConfigMapVolumeSource, Container, EmptyDirVolumeSource, EnvVar, EnvVarSource, ExecAction,
    HTTPGetAction, Lifecycle, LifecycleHandler, LocalObjectReference, ObjectFieldSelector,
    PersistentVolumeClaimVolumeSource, Pod, PodDNSConfig, PodDNSConfigOption, PodSecurityContext, PodSpec,
    Probe, ProjectedVolumeSource, ResourceRequirements, SeccompProfile, SecurityContext,
    ServiceAccountTokenProjection, Volume, VolumeMount, VolumeProjection,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::ResourceExt;

use crate::build::{hex_hash, probes, short_hash};
use crate::config::Config;
use crate::facts::Facts;
use crate::quantity::{from_bytes, from_millis};
use crate::sandbox::admit::AdmittedRun;

/// The recorder's own share: it sleeps but for the start, the probes and the end.
pub const RECORDER_CPU_MILLIS: u64 = 100;
/// Memory of the recorder, in bytes; the supervisor's two processes stay below 4 MiB together.
pub const RECORDER_MEMORY_BYTES: u64 = 32 << 20;
/// Disk of the recorder, in bytes: the installed binary and its mark.
pub const RECORDER_DISK_BYTES: u64 = 32 << 20;
/// From SIGTERM to SIGKILL, in seconds: the supervisor's own grace for the command, and time to report.
pub const TERMINATION_GRACE_SECONDS: i64 = 15;
/// Lifetime of the recorder's token, in seconds; the kubelet renews it when a fifth is left.
const TOKEN_SECONDS: i64 = 3_600;
/// Name of the token's volume.
const TOKEN_VOLUME: &str = "gateway-token";
/// One environment entry may hold 128 KiB (`MAX_ARG_STRLEN`), its name included.
const ENV_PIECE_BYTES: usize = 120 << 10;

/// Whose run a pod is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunIdentity {
    /// Namespace of sandbox and pod.
    pub namespace: String,
    /// Name of the sandbox.
    pub sandbox: String,
    /// UID of the sandbox.
    pub sandbox_uid: String,
    /// The run.
    pub run_id: String,
    /// Name of its policy.
    pub policy: String,
}

impl RunIdentity {
    /// Of the run that a sandbox asks for now.
    #[must_use]
    pub fn of(sandbox: &AgentSandbox) -> Self {
        Self {
            namespace: sandbox.namespace().unwrap_or_default(),
            sandbox: sandbox.name_any(),
            sandbox_uid: sandbox.uid().unwrap_or_default(),
            run_id: sandbox.spec.run_id.clone(),
            policy: sandbox.spec.policy_ref.name.clone(),
        }
    }

    /// Name of the run's pod: two runs, and two sandboxes of one name after each other, never share one.
    #[must_use]
    pub fn pod_name(&self) -> String {
        // With the longest name of a sandbox, 52 characters, exactly the 63 of a host name.
        format!(
            "{}{}{}",
            self.sandbox,
            names::POD_MARK,
            short_hash(&format!("{}/{}", self.sandbox_uid, self.run_id))
        )
    }

    /// A user id of the run's own, from the configured range: two runs on one node share no limits by user.
    #[must_use]
    pub fn uid(&self, config: &Config) -> u32 {
        let hash = hex_hash(format!("{}/{}", self.sandbox_uid, self.run_id).as_bytes());
        let number = u32::from_str_radix(&hash[..8], 16).unwrap_or_default();
        config.uid_range_start + number % config.uid_range_size.max(1)
    }

    /// The labels of the run's pod.
    #[must_use]
    pub fn labels(&self) -> BTreeMap<String, String> {
        BTreeMap::from([
            (names::LABEL_MANAGED_BY.to_owned(), names::MANAGER.to_owned()),
            (names::LABEL_SANDBOX.to_owned(), self.sandbox.clone()),
            (names::LABEL_POLICY.to_owned(), self.policy.clone()),
        ])
    }

    fn owner(&self) -> OwnerReference {
        OwnerReference {
            api_version: format!("{}/{}", names::GROUP, names::VERSION),
            kind: "AgentSandbox".to_owned(),
            name: self.sandbox.clone(),
            uid: self.sandbox_uid.clone(),
            controller: Some(true),
            // True would need the right to update the owner's finalizers (OwnerReferencesPermissionEnforcement).
            block_owner_deletion: Some(false),
        }
    }
}

/// Builds the pod of a run.
#[must_use]
pub fn build(
    identity: &RunIdentity,
    run: &AdmittedRun,
    isolation: IsolationRequirement,
    facts: &Facts,
    config: &Config,
) -> Pod {
    let uid = if run.as_root { 0 } else { identity.uid(config) };
    let run_spec = run_spec(identity, run, isolation, uid, facts, config);
    Pod {
        metadata: ObjectMeta {
            name: Some(identity.pod_name()),
            namespace: Some(identity.namespace.clone()),
            labels: Some(identity.labels()),
            annotations: Some(BTreeMap::from([(
                names::ANNOTATION_RUN.to_owned(),
                identity.run_id.clone(),
            )])),
            owner_references: Some(vec![identity.owner()]),
            finalizers: Some(vec![names::FINALIZER_RESULT.to_owned()]),
            ..ObjectMeta::default()
        },
        spec: Some(PodSpec {
            restart_policy: Some("Never".to_owned()),
            service_account_name: Some("default".to_owned()),
            automount_service_account_token: Some(false),
            enable_service_links: Some(false),
            runtime_class_name: Some(run.runtime_class.clone()),
            termination_grace_period_seconds: Some(TERMINATION_GRACE_SECONDS),
            active_deadline_seconds: Some(i64::from(
                config.start_timeout_seconds + run.figures.runtime_seconds + config.deadline_grace_seconds,
            )),
            dns_policy: Some("None".to_owned()),
            dns_config: Some(dns_config(run)),
            security_context: Some(PodSecurityContext {
                run_as_non_root: Some(!run.as_root),
                fs_group: Some(i64::from(uid)),
                seccomp_profile: Some(runtime_default()),
                ..PodSecurityContext::default()
            }),
            priority_class_name: run.priority_class.clone(),
            node_selector: (!run.node_selector.is_empty()).then(|| run.node_selector.clone()),
            tolerations: (!run.tolerations.is_empty()).then(|| run.tolerations.clone()),
            image_pull_secrets: (!run.pull_secrets.is_empty()).then(|| {
                run.pull_secrets
                    .iter()
                    .map(|name| LocalObjectReference { name: name.clone() })
                    .collect()
            }),
            volumes: Some(volumes(run)),
            init_containers: Some(vec![recorder(run, &run_spec, config)]),
            containers: vec![agent(run, uid, config)],
            ..PodSpec::default()
        }),
        status: None,
    }
}

/// The gateway answers for the names that the policy allows. Without one no name can be resolved, and a nameserver that
/// refuses at once beats one that is silent.
fn dns_config(run: &AdmittedRun) -> PodDNSConfig {
    match &run.gateway {
        Some(access) => PodDNSConfig {
            nameservers: Some(vec![access.address.clone()]),
            options: Some(vec![PodDNSConfigOption {
                name: Some("ndots".to_owned()),
                value: Some("1".to_owned()),
            }]),
            searches: None,
        },
        None => PodDNSConfig {
            nameservers: Some(vec!["127.0.0.1".to_owned()]),
            ..PodDNSConfig::default()
        },
    }
}

fn run_spec(
    identity: &RunIdentity,
    run: &AdmittedRun,
    isolation: IsolationRequirement,
    uid: u32,
    facts: &Facts,
    config: &Config,
) -> RunSpec {
    RunSpec {
        sandbox_uid: identity.sandbox_uid.clone(),
        run_id: identity.run_id.clone(),
        namespace: identity.namespace.clone(),
        sandbox: identity.sandbox.clone(),
        policy: identity.policy.clone(),
        audit: run.audit,
        session: run.session,
        isolation,
        probes: probes::targets(run, facts),
        probe_interval_seconds: config.probe_interval_seconds,
        probe_timeout_seconds: config.probe_timeout_seconds,
        command: CommandSpec {
            argv: run.argv.clone(),
            session: run.session.is_some(),
            env: run.env.clone(),
            working_dir: run.working_dir.clone(),
            files: run.files.clone(),
            runtime_seconds: run.figures.runtime_seconds,
            processes: run.figures.processes,
            memory_bytes: run.figures.memory_bytes,
            workspace_bytes: run.workspace_bytes,
            tmp_bytes: run.tmp_bytes,
            writable: vec![names::PATH_WORKSPACE.to_owned(), names::PATH_TMP.to_owned()],
            capture: run.capture,
            uid,
            audit: RequiredCapture::default(),
            certificate: None,
        },
        mounted_files: run
            .config_maps
            .iter()
            .map(|(_, mounted)| mounted.clone())
            .collect(),
        gateway: run.gateway.clone(),
    }
}

fn recorder(run: &AdmittedRun, run_spec: &RunSpec, config: &Config) -> Container {
    let mut env = vec![
        field_env(names::ENV_HOST_IP, "status.hostIP"),
        field_env(names::ENV_POD_UID, "metadata.uid"),
    ];
    env.extend(run_env(run_spec));
    let mut mounts = vec![
        mount("install", names::PATH_INSTALL, false),
        mount("recorder-state", names::PATH_RECORDER_STATE, false),
    ];
    for (index, (_, mounted)) in run.config_maps.iter().enumerate() {
        mounts.push(mount(&format!("files-{index}"), &mounted.source, true));
    }
    if run.gateway.is_some() {
        mounts.push(mount(TOKEN_VOLUME, gateway::PATH_TOKEN, true));
    }
    Container {
        name: names::CONTAINER_RECORDER.to_owned(),
        image: Some(config.supervisor_image.clone()),
        image_pull_policy: Some("IfNotPresent".to_owned()),
        restart_policy: Some("Always".to_owned()),
        command: Some(vec![
            names::PATH_SUPERVISOR_IN_IMAGE.to_owned(),
            "record".to_owned(),
        ]),
        working_dir: Some("/".to_owned()),
        env: Some(env),
        lifecycle: Some(Lifecycle {
            post_start: Some(LifecycleHandler {
                exec: Some(ExecAction {
                    command: Some(vec![
                        names::PATH_SUPERVISOR_IN_IMAGE.to_owned(),
                        "install".to_owned(),
                        names::PATH_INSTALL.to_owned(),
                    ]),
                }),
                ..LifecycleHandler::default()
            }),
            ..Lifecycle::default()
        }),
        termination_message_policy: Some("File".to_owned()),
        resources: Some(equal_resources(
            RECORDER_CPU_MILLIS,
            RECORDER_MEMORY_BYTES,
            RECORDER_DISK_BYTES,
        )),
        security_context: Some(restricted(config.recorder_uid())),
        volume_mounts: Some(mounts),
        ..Container::default()
    }
}

fn agent(run: &AdmittedRun, uid: u32, config: &Config) -> Container {
    Container {
        name: names::CONTAINER_AGENT.to_owned(),
        image: Some(run.image.clone()),
        image_pull_policy: Some(
            match run.pull_policy {
                PullPolicy::IfNotPresent => "IfNotPresent",
                PullPolicy::Always => "Always",
                PullPolicy::Never => "Never",
            }
            .to_owned(),
        ),
        command: Some(vec![names::PATH_SUPERVISOR.to_owned(), "run".to_owned()]),
        // An image's own WORKDIR is the image author's text; the supervisor changes directory itself.
        working_dir: Some("/".to_owned()),
        termination_message_policy: Some("File".to_owned()),
        resources: Some(equal_resources(
            run.figures.cpu_millis,
            run.figures.memory_bytes,
            run.figures.disk_bytes,
        )),
        security_context: Some(restricted(uid)),
        // Answered by the recorder: on the recorder itself it would deadlock, as the agent starts after it.
        startup_probe: Some(Probe {
            http_get: Some(HTTPGetAction {
                path: Some("/started".to_owned()),
                port: IntOrString::Int(i32::from(names::PORT_STARTUP)),
                ..HTTPGetAction::default()
            }),
            period_seconds: Some(1),
            timeout_seconds: Some(2),
            failure_threshold: Some(i32::try_from(config.start_timeout_seconds).unwrap_or(i32::MAX)),
            ..Probe::default()
        }),
        volume_mounts: Some(vec![
            mount("install", names::PATH_INSTALL, true),
            mount("workspace", names::PATH_WORKSPACE, false),
            mount("tmp", names::PATH_TMP, false),
        ]),
        ..Container::default()
    }
}

fn volumes(run: &AdmittedRun) -> Vec<Volume> {
    let workspace = match &run.claim {
        None => empty_dir("workspace", run.workspace_bytes),
        Some(claim) => Volume {
            name: "workspace".to_owned(),
            persistent_volume_claim: Some(PersistentVolumeClaimVolumeSource {
                claim_name: claim.clone(),
                read_only: None,
            }),
            ..Volume::default()
        },
    };
    let mut volumes = vec![
        empty_dir("install", 16 << 20),
        empty_dir("recorder-state", 1 << 20),
        workspace,
        empty_dir("tmp", run.tmp_bytes),
    ];
    for (index, (name, _)) in run.config_maps.iter().enumerate() {
        volumes.push(Volume {
            name: format!("files-{index}"),
            config_map: Some(ConfigMapVolumeSource {
                name: name.clone(),
                ..ConfigMapVolumeSource::default()
            }),
            ..Volume::default()
        });
    }
    volumes.extend(run.gateway.as_ref().map(|_| gateway_token()));
    volumes
}

/// The token by which the recorder, and nobody else in the pod, shows the gateway whose pod it is. The kubelet gives its
/// file to the pod's fsGroup, of which both containers are; only the recorder has it mounted.
fn gateway_token() -> Volume {
    Volume {
        name: TOKEN_VOLUME.to_owned(),
        projected: Some(ProjectedVolumeSource {
            default_mode: Some(0o440),
            sources: Some(vec![VolumeProjection {
                service_account_token: Some(ServiceAccountTokenProjection {
                    audience: Some(gateway::AUDIENCE.to_owned()),
                    expiration_seconds: Some(TOKEN_SECONDS),
                    path: gateway::TOKEN_FILE.to_owned(),
                }),
                ..VolumeProjection::default()
            }]),
        }),
        ..Volume::default()
    }
}

/// The run spec as environment entries: base64, because the kubelet expands `$(NAME)` in literal values.
fn run_env(run_spec: &RunSpec) -> Vec<EnvVar> {
    let json = serde_json::to_vec(run_spec).unwrap_or_default();
    let text = BASE64.encode(json);
    text.as_bytes()
        .chunks(ENV_PIECE_BYTES)
        .enumerate()
        .map(|(index, piece)| EnvVar {
            name: format!("{}{index}", names::ENV_RUN_PREFIX),
            value: Some(String::from_utf8_lossy(piece).into_owned()),
            value_from: None,
        })
        .collect()
}

fn field_env(name: &str, path: &str) -> EnvVar {
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

/// Pod Security "restricted", and a read-only root.
fn restricted(uid: u32) -> SecurityContext {
    SecurityContext {
        run_as_user: Some(i64::from(uid)),
        run_as_group: Some(i64::from(uid)),
        run_as_non_root: Some(uid != 0),
        privileged: Some(false),
        allow_privilege_escalation: Some(false),
        read_only_root_filesystem: Some(true),
        capabilities: Some(Capabilities {
            drop: Some(vec!["ALL".to_owned()]),
            add: None,
        }),
        seccomp_profile: Some(runtime_default()),
        ..SecurityContext::default()
    }
}

fn runtime_default() -> SeccompProfile {
    SeccompProfile {
        type_: "RuntimeDefault".to_owned(),
        localhost_profile: None,
    }
}

/// Requests equal limits: Kata sizes its virtual machine by the limits, and mis-sizes it if either is missing.
fn equal_resources(cpu_millis: u64, memory_bytes: u64, disk_bytes: u64) -> ResourceRequirements {
    let amounts: BTreeMap<String, Quantity> = BTreeMap::from([
        ("cpu".to_owned(), from_millis(cpu_millis)),
        ("memory".to_owned(), from_bytes(memory_bytes)),
        ("ephemeral-storage".to_owned(), from_bytes(disk_bytes)),
    ]);
    ResourceRequirements {
        requests: Some(amounts.clone()),
        limits: Some(amounts),
        claims: None,
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

fn empty_dir(name: &str, bytes: u64) -> Volume {
    Volume {
        name: name.to_owned(),
        empty_dir: Some(EmptyDirVolumeSource {
            medium: None,
            size_limit: Some(from_bytes(bytes)),
        }),
        ..Volume::default()
    }
}

#[cfg(test)]
#[path = "pod_tests.rs"]
mod tests;
