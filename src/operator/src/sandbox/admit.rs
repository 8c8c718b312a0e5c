//! From a sandbox as written and a valid policy to a run that can only hold allowed values.

use std::collections::{BTreeMap, BTreeSet};

use agentsandbox_api::gateway::GatewayAccess;
use agentsandbox_api::isolation::IsolationLevel;
use agentsandbox_api::names;
use agentsandbox_api::policy::PullPolicy;
use agentsandbox_api::run::{FileSpec, MountedFiles, RequiredCapture, SessionSpec};
use agentsandbox_api::sandbox::{AgentSandboxSpec, Capture, Quantity, RunTerms};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use k8s_openapi::api::core::v1::Toleration;

use crate::policy::figures::{Budgets, Figures};
use crate::policy::valid::ValidPolicy;
use crate::{image, quantity};

/// Inline contents of `spec.files`, in all.
const FILES_MAX_BYTES: usize = 64 << 10;
/// Command, arguments and environment, in all: with room for base64 they stay well below what `execve` takes.
const COMMAND_MAX_BYTES: usize = 96 << 10;

/// A run within its policy, with every figure known.
#[derive(Clone, Debug, PartialEq)]
pub struct AdmittedRun {
    /// Runtime class of the pod.
    pub runtime_class: String,
    /// The weakest level under which the command may start.
    pub minimum: IsolationLevel,
    /// Whether the command runs as user 0.
    pub as_root: bool,
    /// The image.
    pub image: String,
    /// When the kubelet pulls it.
    pub pull_policy: PullPolicy,
    /// By which secrets.
    pub pull_secrets: Vec<String>,
    /// CPU, memory, disk, processes and time.
    pub figures: Figures,
    /// Bytes of the workspace.
    pub workspace_bytes: u64,
    /// Bytes of `/tmp`.
    pub tmp_bytes: u64,
    /// Program and all arguments.
    pub argv: Vec<String>,
    /// Take steps instead of running a command.
    pub session: Option<SessionSpec>,
    /// Environment.
    pub env: BTreeMap<String, String>,
    /// Working directory.
    pub working_dir: String,
    /// Inline files.
    pub files: Vec<FileSpec>,
    /// `ConfigMap`s to mount into the recorder, in order, with where their files go.
    pub config_maps: Vec<(String, MountedFiles)>,
    /// Claim to use as the workspace.
    pub claim: Option<String>,
    /// Whether two live runs may use it.
    pub claim_shared: bool,
    /// Whether the run's own text is kept.
    pub capture: bool,
    /// What must be captured of its actions, or it does not start.
    pub audit: RequiredCapture,
    /// Node labels to select by.
    pub node_selector: BTreeMap<String, String>,
    /// Tolerated taints.
    pub tolerations: Vec<Toleration>,
    /// Priority class.
    pub priority_class: Option<String>,
    /// The way to the egress gateway. Admission does not know it; it is filled in when the gateway stands.
    pub gateway: Option<GatewayAccess>,
}

impl AdmittedRun {
    /// What of it stands in the pod, whatever becomes of the policy.
    #[must_use]
    pub fn terms(&self) -> RunTerms {
        RunTerms {
            minimum: self.minimum,
            root: self.as_root,
            require: self.audit,
            runtime_seconds: i32::try_from(self.figures.runtime_seconds).unwrap_or(i32::MAX),
        }
    }
}

/// Everything in which a sandbox is not within its policy; one message names it all.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Rejection(Vec<String>);

impl std::fmt::Display for Rejection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0.join("; "))
    }
}

impl Rejection {
    fn add(&mut self, problem: String) {
        self.0.push(problem);
    }
}

/// Fills in what the sandbox leaves to its policy and checks all of it; a rejection names every offending field.
pub fn admit(spec: &AgentSandboxSpec, policy: &ValidPolicy) -> Result<AdmittedRun, Rejection> {
    let mut rejection = Rejection::default();
    check_image(spec, policy, &mut rejection);
    let figures = figures(spec, policy, &mut rejection);
    let (workspace_bytes, tmp_bytes) = folders(spec, &figures, &mut rejection);
    check_budgets(spec, policy, &mut rejection);
    let env = environment(spec, &mut rejection);
    let (files, config_maps) = files(spec, &mut rejection);
    let claim = claim(spec, policy, &mut rejection);
    if let Some(ttl) = spec.ttl_seconds_after_finished
        && ttl > policy.maximum_ttl_seconds
    {
        rejection.add(above(
            "spec.ttlSecondsAfterFinished",
            ttl,
            policy.maximum_ttl_seconds,
        ));
    }
    let argv: Vec<String> = spec.command.iter().chain(&spec.args).flatten().cloned().collect();
    if argv.first().is_some_and(String::is_empty) {
        rejection.add("spec.command[0] is empty".to_owned());
    }
    if argv.iter().any(|argument| argument.contains('\0')) {
        rejection.add("spec.command and spec.args can't hold a NUL character".to_owned());
    }
    let command_bytes = argv.iter().map(String::len).sum::<usize>()
        + env
            .iter()
            .map(|(name, value)| name.len() + value.len())
            .sum::<usize>();
    if command_bytes > COMMAND_MAX_BYTES {
        rejection.add(format!(
            "spec.command, spec.args and spec.env hold {command_bytes} bytes together, at most {COMMAND_MAX_BYTES} are possible"
        ));
    }
    if !rejection.0.is_empty() {
        return Err(rejection);
    }
    let pull_policy = if !policy.pull_secrets.is_empty()
        && !image::has_digest(&spec.image)
        && policy.pull_policy != PullPolicy::Never
    {
        PullPolicy::Always
    } else {
        policy.pull_policy
    };
    Ok(AdmittedRun {
        runtime_class: policy.runtime_class.clone(),
        minimum: policy.minimum,
        as_root: policy.as_root,
        image: spec.image.clone(),
        pull_policy,
        pull_secrets: policy.pull_secrets.clone(),
        figures,
        workspace_bytes,
        tmp_bytes,
        argv,
        session: session(spec, policy),
        env,
        working_dir: spec.working_dir.clone(),
        files,
        config_maps,
        claim,
        claim_shared: policy.claims_shared,
        audit: policy.audit,
        capture: spec
            .result
            .as_ref()
            .is_none_or(|result| result.capture != Capture::None),
        node_selector: policy.node_selector.clone(),
        tolerations: policy.tolerations.clone(),
        priority_class: policy.priority_class.clone(),
        gateway: None,
    })
}

/// Model requests are steps too: where they are possible the gateway alone can count both.
fn session(spec: &AgentSandboxSpec, policy: &ValidPolicy) -> Option<SessionSpec> {
    let session = spec.session.as_ref()?;
    let asked = spec.limits.as_ref().and_then(|limits| limits.steps);
    let most = asked
        .or(policy.default_budgets.steps)
        .or(policy.maximum_budgets.steps);
    Some(SessionSpec {
        idle_timeout_seconds: u32::try_from(session.idle_timeout_seconds).unwrap_or(1),
        steps: most.map(|steps| u64::try_from(steps).unwrap_or_default()),
        gateway_counts: policy.egress.as_ref().is_some_and(|egress| egress.counts_steps),
    })
}

fn check_image(spec: &AgentSandboxSpec, policy: &ValidPolicy, rejection: &mut Rejection) {
    if !image::is_allowed(&spec.image, &policy.images) {
        rejection.add(format!(
            "spec.image {} is in none of the allowed repositories ({})",
            spec.image,
            policy.images.join(", ")
        ));
    }
    if policy.require_digest && !image::has_digest(&spec.image) {
        rejection.add(format!(
            "spec.image {} is not named by digest, as the policy requires",
            spec.image
        ));
    }
}

fn figures(spec: &AgentSandboxSpec, policy: &ValidPolicy, rejection: &mut Rejection) -> Figures {
    let resources = spec.resources.clone().unwrap_or_default();
    let limits = spec.limits.clone().unwrap_or_default();
    let defaults = policy.defaults;
    let mut read = |field: &str,
                    given: Option<&Quantity>,
                    parse: fn(&Quantity) -> Result<u64, quantity::BadQuantity>,
                    most: u64,
                    otherwise: u64| {
        let Some(given) = given else { return otherwise };
        match parse(given) {
            Ok(value) if value > most => {
                let most = if field == "cpu" {
                    format!("{most}m")
                } else {
                    in_binary_units(most)
                };
                rejection.add(above(&format!("spec.resources.{field}"), given, most));
                otherwise
            }
            Ok(value) => value,
            Err(error) => {
                rejection.add(format!("spec.resources.{field}: {error}"));
                otherwise
            }
        }
    };
    let maximum = policy.maximum;
    let cpu_millis = read(
        "cpu",
        resources.cpu.as_ref(),
        quantity::cpu_millis,
        maximum.cpu_millis,
        defaults.cpu_millis,
    );
    let memory_bytes = read(
        "memory",
        resources.memory.as_ref(),
        quantity::bytes,
        maximum.memory_bytes,
        defaults.memory_bytes,
    );
    let disk_bytes = read(
        "ephemeralStorage",
        resources.ephemeral_storage.as_ref(),
        quantity::bytes,
        maximum.disk_bytes,
        defaults.disk_bytes,
    );
    let mut count = |field: &str, given: Option<i32>, most: u32, otherwise: u32| {
        let given = given.and_then(|n| u32::try_from(n).ok()).unwrap_or(otherwise);
        if given > most {
            rejection.add(above(field, given, most));
        }
        given
    };
    Figures {
        cpu_millis,
        memory_bytes,
        disk_bytes,
        processes: count(
            "spec.resources.processes",
            resources.processes,
            maximum.processes,
            defaults.processes,
        ),
        runtime_seconds: count(
            "spec.limits.runtimeSeconds",
            limits.runtime_seconds,
            maximum.runtime_seconds,
            defaults.runtime_seconds,
        ),
    }
}

/// Sizes of the workspace (three quarters of the disk, unless given) and of `/tmp` (an eighth): what is left is
/// for output, which the kubelet counts too.
fn folders(spec: &AgentSandboxSpec, figures: &Figures, rejection: &mut Rejection) -> (u64, u64) {
    let default = figures.disk_bytes / 4 * 3;
    let size = spec
        .workspace
        .as_ref()
        .and_then(|workspace| workspace.size.as_ref());
    let workspace = match size.map(quantity::bytes) {
        None => default,
        Some(Ok(size)) if size > figures.disk_bytes => {
            rejection.add(format!(
                "spec.workspace.size {} is above spec.resources.ephemeralStorage ({})",
                in_binary_units(size),
                in_binary_units(figures.disk_bytes)
            ));
            default
        }
        Some(Ok(size)) => size,
        Some(Err(error)) => {
            rejection.add(format!("spec.workspace.size: {error}"));
            default
        }
    };
    (workspace, (figures.disk_bytes / 8).max(1 << 20))
}

fn check_budgets(spec: &AgentSandboxSpec, policy: &ValidPolicy, rejection: &mut Rejection) {
    let asked = spec.limits.as_ref().map(Budgets::of).unwrap_or_default();
    for (field, asked, most) in asked.above(&policy.maximum_budgets) {
        rejection.add(above(&format!("spec.{field}"), asked, most));
    }
}

fn environment(spec: &AgentSandboxSpec, rejection: &mut Rejection) -> BTreeMap<String, String> {
    let mut env = BTreeMap::new();
    for entry in spec.env.iter().flatten() {
        if names::is_reserved_env(&entry.name) {
            rejection.add(format!("spec.env {} is a reserved name", entry.name));
        }
        if entry.value.contains('\0') {
            rejection.add(format!("spec.env {} holds a NUL character", entry.name));
        }
        env.insert(entry.name.clone(), entry.value.clone());
    }
    env
}

fn files(spec: &AgentSandboxSpec, rejection: &mut Rejection) -> (Vec<FileSpec>, Vec<(String, MountedFiles)>) {
    let (mut inline, mut mounted, mut total, mut seen) = (Vec::new(), Vec::new(), 0, BTreeSet::new());
    for (index, file) in spec.files.iter().flatten().enumerate() {
        let path = &file.path;
        if !is_safe_path(path) {
            rejection.add(format!(
                "spec.files[{index}].path {path:?} must be relative, or below /workspace or /tmp, without .. or empty parts"
            ));
        }
        if !seen.insert(path.clone()) {
            rejection.add(format!("spec.files[{index}].path {path:?} is listed twice"));
        }
        let mode = u32::try_from(file.mode).unwrap_or_default() & 0o777;
        if let Some(content) = &file.content {
            total += content.len();
            inline.push(FileSpec {
                path: path.clone(),
                content: BASE64.encode(content),
                mode,
            });
        }
        if let Some(reference) = &file.config_map_ref {
            let source = format!("{}/{}", names::PATH_RECORDER_FILES, mounted.len());
            mounted.push((
                reference.name.clone(),
                MountedFiles {
                    source,
                    path: path.clone(),
                    mode,
                },
            ));
        }
    }
    if total > FILES_MAX_BYTES {
        rejection.add(format!(
            "spec.files hold {total} bytes inline, at most {FILES_MAX_BYTES} are possible: use a ConfigMap"
        ));
    }
    (inline, mounted)
}

fn is_safe_path(path: &str) -> bool {
    let relative = match path.strip_prefix('/') {
        None => path,
        Some(absolute) => match absolute
            .strip_prefix("workspace/")
            .or_else(|| absolute.strip_prefix("tmp/"))
        {
            Some(rest) => rest,
            None => return absolute == "workspace" || absolute == "tmp",
        },
    };
    !path.contains('\0') && relative.split('/').all(|part| !part.is_empty() && part != "..")
}

fn claim(spec: &AgentSandboxSpec, policy: &ValidPolicy, rejection: &mut Rejection) -> Option<String> {
    let claim = spec
        .workspace
        .as_ref()?
        .persistent_volume_claim
        .as_ref()?
        .claim_name
        .clone();
    if !policy.claims.contains(&claim) {
        rejection.add(format!(
            "spec.workspace.persistentVolumeClaim.claimName {claim} is not among the policy's workspace.persistentVolumeClaims"
        ));
    }
    Some(claim)
}

fn above(field: &str, asked: impl std::fmt::Display, most: impl std::fmt::Display) -> String {
    format!("{field} {asked} is above the policy's maximum, {most}")
}

fn in_binary_units(bytes: u64) -> String {
    for (unit, size) in [("Gi", 1 << 30), ("Mi", 1 << 20), ("Ki", 1 << 10)] {
        if bytes >= size && bytes.is_multiple_of(size) {
            return format!("{}{unit}", bytes / size);
        }
    }
    bytes.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::valid;
    use crate::testing::{cluster, config, policy, sandbox};
    use serde_json::json;

    fn run(
        sandbox_spec: serde_json::Value,
        policy_spec: serde_json::Value,
    ) -> Result<AdmittedRun, Rejection> {
        let policy = valid::validate(&policy(policy_spec).spec, &config(), &cluster()).unwrap();
        admit(&sandbox(sandbox_spec).spec, &policy)
    }

    #[test]
    fn a_silent_sandbox_gets_the_policys_defaults() {
        let run = run(
            json!({}),
            json!({"defaults": {"resources": {"cpu": "250m", "memory": "64Mi"}, "limits": {"runtimeSeconds": 30}}}),
        )
        .unwrap();
        assert_eq!(run.figures.cpu_millis, 250);
        assert_eq!(run.figures.memory_bytes, 64 << 20);
        assert_eq!(run.figures.runtime_seconds, 30);
        assert_eq!(run.workspace_bytes, 768 << 20);
        assert_eq!(run.tmp_bytes, 128 << 20);
    }

    #[test]
    fn a_rejection_names_every_offending_field() {
        let rejection = run(
            json!({
                "image": "evil.io/x",
                "resources": {"cpu": "4", "memory": "8Gi", "ephemeralStorage": "100Gi", "processes": 5000},
                "limits": {"runtimeSeconds": 7200, "tokens": 10, "egressBytes": 2048},
                "env": [{"name": "HTTPS_PROXY", "value": "x"}],
                "files": [{"path": "../x", "content": ""}, {"path": "/etc/passwd", "content": ""}],
                "workspace": {"persistentVolumeClaim": {"claimName": "other"}},
                "ttlSecondsAfterFinished": 999_999,
            }),
            json!({"images": {"allow": ["reg.io/org"]}, "maximum": {"limits": {"tokens": 5, "egressBytes": 1024}}}),
        )
        .unwrap_err()
        .to_string();
        for part in [
            "spec.image evil.io/x",
            "spec.resources.cpu 4 is above the policy's maximum, 2000m",
            "spec.resources.memory 8Gi is above the policy's maximum, 2Gi",
            "spec.resources.ephemeralStorage 100Gi is above the policy's maximum, 4Gi",
            "spec.resources.processes 5000 is above the policy's maximum, 1024",
            "spec.limits.runtimeSeconds 7200 is above the policy's maximum, 3600",
            "spec.limits.tokens 10 is above the policy's maximum, 5",
            "spec.limits.egressBytes 2048 is above the policy's maximum, 1024",
            "spec.env HTTPS_PROXY",
            "spec.files[0].path",
            "spec.files[1].path",
            "claimName other",
            "spec.ttlSecondsAfterFinished 999999",
        ] {
            assert!(rejection.contains(part), "{part} missing in {rejection}");
        }
    }

    #[test]
    fn a_quantity_that_nothing_can_hold_is_refused() {
        let spec = json!({"resources": {"cpu": "9e27", "memory": "9e27"}, "workspace": {"size": "9e27"}});
        let rejection = run(spec, json!({})).unwrap_err().to_string();
        for field in ["resources.cpu", "resources.memory", "workspace.size"] {
            let part = format!("spec.{field}: \"9e27\" is not a Kubernetes quantity");
            assert!(rejection.contains(&part), "{part} missing in {rejection}");
        }
    }

    #[test]
    fn a_session_takes_so_many_steps_as_sandbox_or_policy_say() {
        let of = |limits: serde_json::Value, policy: serde_json::Value| {
            let spec = json!({"session": {"idleTimeoutSeconds": 5}, "command": null, "limits": limits});
            run(spec, policy).unwrap().session.unwrap()
        };
        let defaults = json!({"defaults": {"limits": {"steps": 7}}, "maximum": {"limits": {"steps": 9}}});
        let none = of(json!({}), json!({}));
        assert_eq!(
            none,
            SessionSpec {
                idle_timeout_seconds: 5,
                steps: None,
                gateway_counts: false,
            }
        );
        assert_eq!(of(json!({}), defaults.clone()).steps, Some(7));
        assert_eq!(of(json!({"steps": 8}), defaults).steps, Some(8));
        let maximum = json!({"maximum": {"limits": {"steps": 9}}});
        assert_eq!(of(json!({}), maximum).steps, Some(9));
        // Where model requests are possible, the gateway counts both.
        for (policy, counts) in [
            (
                json!({"models": [{"provider": "OpenAI", "host": "api.openai.com", "allow": ["m"]}]}),
                true,
            ),
            (json!({"egress": {"allow": [{"host": "example.org"}]}}), false),
        ] {
            let session = of(json!({"steps": 6}), policy);
            assert_eq!((session.steps, session.gateway_counts), (Some(6), counts));
        }
        assert_eq!(run(json!({}), json!({})).unwrap().session, None);
    }

    #[test]
    fn private_images_are_pulled_each_time_unless_pinned() {
        let policy = json!({"images": {"pullSecrets": ["reg"]}});
        assert_eq!(
            run(json!({}), policy.clone()).unwrap().pull_policy,
            PullPolicy::Always
        );
        let pinned = json!({"image": format!("reg.io/a@sha256:{}", "0".repeat(64))});
        assert_eq!(run(pinned, policy).unwrap().pull_policy, PullPolicy::IfNotPresent);
    }

    #[test]
    fn paths_that_leave_the_writable_folders_are_refused() {
        for path in [
            "../a",
            "a/../../b",
            "/etc/x",
            "/workspace/../etc",
            "a//b",
            "/workspacex/a",
        ] {
            assert!(!is_safe_path(path), "{path}");
        }
        for path in ["main.py", "src/a.py", "/workspace/a", "/tmp/b"] {
            assert!(is_safe_path(path), "{path}");
        }
    }
}
