//! From a `SandboxPolicy` as written to one that can be enforced.

use std::collections::{BTreeMap, BTreeSet};

use agentsandbox_api::gateway::ModelAccess;
use agentsandbox_api::isolation::IsolationLevel;
use agentsandbox_api::policy::{Ceilings, Cleanup, PullPolicy, SandboxPolicySpec};
use agentsandbox_api::run::RequiredCapture;
use agentsandbox_egress::rules::EgressPolicy;
use ipnet::IpNet;
use k8s_openapi::api::core::v1::Toleration;

use crate::cluster::ClusterAddresses;
use crate::config::Config;
use crate::policy::figures::{
    self, BUILT_IN_DEFAULTS, BUILT_IN_MAXIMUM, BUILT_IN_MAXIMUM_TTL_SECONDS, Budgets, Figures,
};
use crate::policy::models;
use crate::{image, quantity};

/// A policy of which every field can be enforced.
#[derive(Clone, Debug, PartialEq)]
pub struct ValidPolicy {
    /// Runtime class of the pods.
    pub runtime_class: String,
    /// The weakest level under which a command may start.
    pub minimum: IsolationLevel,
    /// Whether commands run as user 0.
    pub as_root: bool,
    /// Allowed image repositories; any, if empty.
    pub images: Vec<String>,
    /// Whether images must be named by digest.
    pub require_digest: bool,
    /// Pull secrets of the kubelet's.
    pub pull_secrets: Vec<String>,
    /// When the kubelet pulls.
    pub pull_policy: PullPolicy,
    /// Node labels to select by.
    pub node_selector: BTreeMap<String, String>,
    /// Tolerated taints.
    pub tolerations: Vec<Toleration>,
    /// Priority class.
    pub priority_class: Option<String>,
    /// What is filled in where a sandbox is silent.
    pub defaults: Figures,
    /// The most a sandbox may ask for.
    pub maximum: Figures,
    /// Longest TTL a sandbox may ask for, in seconds.
    pub maximum_ttl_seconds: i64,
    /// Model tokens, requests, steps and bytes of egress that a sandbox may be given; unbounded if `None`.
    pub maximum_budgets: Budgets,
    /// What holds where a sandbox is silent.
    pub default_budgets: Budgets,
    /// Claims a sandbox may name.
    pub claims: Vec<String>,
    /// Whether two live runs may use one claim.
    pub claims_shared: bool,
    /// Clean-up rules.
    pub cleanup: Cleanup,
    /// What its sandboxes reach through the egress gateway; `None` if nothing.
    pub egress: Option<ValidEgress>,
    /// What must be captured of every run.
    pub audit: RequiredCapture,
}

/// What a policy needs of its namespace's egress gateway.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ValidEgress {
    /// Secrets that the gateway mounts.
    pub secrets: BTreeSet<String>,
    /// Ranges that rules open beyond what is public.
    pub opened: BTreeSet<IpNet>,
    /// Variables by which SDKs find the models.
    pub models: Vec<ModelAccess>,
    /// Whether model requests are possible: each is a step, which the gateway counts.
    pub counts_steps: bool,
}

/// Why a policy can't be enforced: every problem, in the order of the fields.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PolicyProblems {
    /// Fields that are wrong or contradict each other.
    pub invalid: Vec<String>,
}

impl PolicyProblems {
    fn is_empty(&self) -> bool {
        self.invalid.is_empty()
    }

    /// All problems as one sentence.
    #[must_use]
    pub fn message(&self) -> String {
        self.invalid.join("; ")
    }
}

/// Checks a policy against the operator's configuration, which stands above it, and against the cluster, whose own
/// addresses no rule opens.
pub fn validate(
    spec: &SandboxPolicySpec,
    config: &Config,
    cluster: &ClusterAddresses,
) -> Result<ValidPolicy, PolicyProblems> {
    let mut problems = PolicyProblems::default();
    let runtime_class = spec
        .isolation
        .runtime_class_name
        .clone()
        .unwrap_or_else(|| config.default_runtime_class.clone());
    check_isolation(spec, &runtime_class, config, &mut problems);
    check_images(spec, &mut problems);
    check_scheduling(spec, config, &mut problems);

    let maximum = figures::read(
        spec.maximum.as_ref(),
        BUILT_IN_MAXIMUM,
        "spec.maximum",
        &mut problems.invalid,
    );
    let defaults = figures::read(
        spec.defaults.as_ref(),
        BUILT_IN_DEFAULTS.at_most(&maximum),
        "spec.defaults",
        &mut problems.invalid,
    );
    for (field, default, most) in defaults.beside(&maximum) {
        if default > most {
            problems.invalid.push(format!(
                "spec.defaults.{field} ({default}) is above spec.maximum.{field} ({most})"
            ));
        }
    }
    let budgets = |ceilings: &Option<Ceilings>| {
        let limits = ceilings.as_ref().and_then(|ceilings| ceilings.limits.as_ref());
        limits.map(Budgets::of).unwrap_or_default()
    };
    let maximum_budgets = budgets(&spec.maximum);
    let default_budgets = budgets(&spec.defaults);
    for (field, default, most) in default_budgets.above(&maximum_budgets) {
        problems.invalid.push(format!(
            "spec.defaults.{field} ({default}) is above spec.maximum.{field} ({most})"
        ));
    }
    let egress = egress(spec, cluster).unwrap_or_else(|wrong| {
        problems.invalid.extend(wrong);
        None
    });
    for (field, quantity) in [
        ("cpu", spec.quota.as_ref().and_then(|quota| quota.cpu.as_ref())),
        (
            "memory",
            spec.quota.as_ref().and_then(|quota| quota.memory.as_ref()),
        ),
        (
            "ephemeralStorage",
            spec.quota
                .as_ref()
                .and_then(|quota| quota.ephemeral_storage.as_ref()),
        ),
    ] {
        if let Some(Err(error)) = quantity.map(quantity::bytes) {
            problems.invalid.push(format!("spec.quota.{field}: {error}"));
        }
    }
    if !problems.is_empty() {
        return Err(problems);
    }
    let images = spec.images.clone().unwrap_or_default();
    let scheduling = spec.scheduling.clone().unwrap_or_default();
    let workspace = spec.workspace.clone().unwrap_or_default();
    Ok(ValidPolicy {
        runtime_class,
        minimum: spec.isolation.minimum,
        as_root: spec.isolation.allow_root,
        images: images.allow,
        require_digest: images.require_digest,
        pull_secrets: images.pull_secrets,
        pull_policy: images.pull_policy,
        node_selector: scheduling.node_selector,
        tolerations: scheduling.tolerations,
        priority_class: scheduling.priority_class_name,
        defaults,
        maximum,
        maximum_ttl_seconds: spec
            .maximum
            .as_ref()
            .and_then(|maximum| maximum.ttl_seconds_after_finished)
            .unwrap_or(BUILT_IN_MAXIMUM_TTL_SECONDS),
        maximum_budgets,
        default_budgets,
        claims: workspace.persistent_volume_claims,
        claims_shared: workspace.shared,
        cleanup: spec.cleanup.clone(),
        egress,
        audit: spec.audit.clone().unwrap_or_default().require,
    })
}

/// What the egress rules and models of a policy need, whatever else is wrong with it; `None` if there are none.
pub fn egress(
    spec: &SandboxPolicySpec,
    cluster: &ClusterAddresses,
) -> Result<Option<ValidEgress>, Vec<String>> {
    if !asks_for_egress(spec) {
        return Ok(None);
    }
    let policy = EgressPolicy::compile(spec)?;
    let problems = cluster.opened_by(&policy);
    if !problems.is_empty() {
        return Err(problems);
    }
    Ok(Some(ValidEgress {
        secrets: policy.secrets().into_iter().map(str::to_owned).collect(),
        opened: policy.opened().into_iter().collect(),
        models: models::variables(policy.models()),
        counts_steps: !spec.models.is_empty(),
    }))
}

/// Whether a policy has any rule or model, right or wrong.
#[must_use]
pub fn asks_for_egress(spec: &SandboxPolicySpec) -> bool {
    let has_rules = spec
        .egress
        .as_ref()
        .is_some_and(|egress| !egress.allow.is_empty());
    has_rules || !spec.models.is_empty()
}

fn check_isolation(spec: &SandboxPolicySpec, class: &str, config: &Config, problems: &mut PolicyProblems) {
    let isolation = &spec.isolation;
    if !config.allowed_runtime_classes.is_empty()
        && !config.allowed_runtime_classes.iter().any(|c| c == class)
    {
        problems.invalid.push(format!(
            "spec.isolation.runtimeClassName {class} is not one of those the operator allows ({})",
            config.allowed_runtime_classes.join(", ")
        ));
    }
    if isolation.minimum < config.isolation_floor {
        problems.invalid.push(format!(
            "spec.isolation.minimum {} is below the operator's floor, {}",
            isolation.minimum, config.isolation_floor
        ));
    }
    if isolation.allow_root && !config.allow_root {
        problems
            .invalid
            .push("spec.isolation.allowRoot is not allowed by the operator's configuration".to_owned());
    }
    if isolation.allow_root && isolation.minimum != IsolationLevel::MicroVM {
        problems.invalid.push(
            "spec.isolation.allowRoot needs minimum MicroVM: on a shared kernel the process limit does not bind root"
                .to_owned(),
        );
    }
}

fn check_images(spec: &SandboxPolicySpec, problems: &mut PolicyProblems) {
    for pattern in spec.images.iter().flat_map(|images| &images.allow) {
        if !image::is_pattern(pattern) {
            problems.invalid.push(format!(
                "spec.images.allow {pattern:?} is not a repository (registry/path, without wildcards or digest)"
            ));
        }
    }
}

fn check_scheduling(spec: &SandboxPolicySpec, config: &Config, problems: &mut PolicyProblems) {
    let Some(scheduling) = &spec.scheduling else {
        return;
    };
    for key in scheduling.node_selector.keys() {
        if !config.allowed_node_selector_keys.contains(key) {
            problems.invalid.push(format!(
                "spec.scheduling.nodeSelector {key} is not allowed by the operator's configuration"
            ));
        }
    }
    for toleration in &scheduling.tolerations {
        let key = toleration.key.as_deref().unwrap_or("");
        if !config
            .allowed_toleration_keys
            .iter()
            .any(|allowed| allowed == key)
        {
            problems.invalid.push(format!(
                "spec.scheduling.tolerations {key:?} is not allowed by the operator's configuration"
            ));
        }
    }
    if let Some(class) = &scheduling.priority_class_name
        && !config.allowed_priority_classes.contains(class)
    {
        problems.invalid.push(format!(
            "spec.scheduling.priorityClassName {class} is not allowed by the operator's configuration"
        ));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{cluster, config};
    use serde_json::json;

    fn spec(value: serde_json::Value) -> SandboxPolicySpec {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn an_empty_policy_is_the_strictest() {
        let policy = validate(&spec(json!({})), &config(), &cluster()).unwrap();
        assert_eq!(policy.minimum, IsolationLevel::MicroVM);
        assert_eq!(policy.maximum, BUILT_IN_MAXIMUM);
        assert_eq!(policy.defaults, BUILT_IN_DEFAULTS);
        assert!(!policy.as_root);
    }

    #[test]
    fn built_in_defaults_give_way_to_a_lower_maximum() {
        let policy = validate(
            &spec(json!({"maximum": {"resources": {"memory": "64Mi"}}})),
            &config(),
            &cluster(),
        )
        .unwrap();
        assert_eq!(policy.defaults.memory_bytes, 64 << 20);
    }

    #[test]
    fn every_problem_is_named() {
        let problems = validate(
            &spec(json!({
                "isolation": {"minimum": "Container", "allowRoot": true},
                "images": {"allow": ["reg.io/*"]},
                "scheduling": {"nodeSelector": {"pool": "a"}, "priorityClassName": "high"},
                "defaults": {"resources": {"cpu": "8"}, "limits": {"egressBytes": 11}},
                "maximum": {"limits": {"egressBytes": 10}},
                "egress": {"allow": [{"host": "example"}, {"host": "example.org", "cidr": "192.168.8.0/24"}]},
                "models": [{"provider": "OpenAI", "host": "10.0.0.1", "allow": ["m"]}],
            })),
            &config(),
            &cluster(),
        )
        .unwrap_err();
        let all = problems.message();
        for part in [
            "spec.isolation.allowRoot is not allowed",
            "spec.isolation.allowRoot needs minimum MicroVM",
            "spec.images.allow",
            "nodeSelector pool",
            "priorityClassName high",
            "spec.defaults.resources.cpu (8000) is above spec.maximum.resources.cpu (2000)",
            "spec.defaults.limits.egressBytes (11) is above spec.maximum.limits.egressBytes (10)",
            "spec.egress.allow[0]",
            "spec.egress.allow[1]",
            "spec.models[0]",
        ] {
            assert!(all.contains(part), "{part} missing in {all}");
        }
    }

    #[test]
    fn figures_that_nothing_can_hold_are_named() {
        let figures = json!({"resources": {"cpu": "9e27"}});
        let policy = json!({"defaults": figures, "maximum": figures, "quota": {"cpu": "9e27"}});
        let all = validate(&spec(policy), &config(), &cluster())
            .unwrap_err()
            .message();
        for field in ["defaults.resources.cpu", "maximum.resources.cpu", "quota.cpu"] {
            assert!(
                all.contains(&format!("spec.{field}: ")),
                "{field} missing in {all}"
            );
        }
    }

    #[test]
    fn a_policy_without_rules_needs_no_gateway() {
        for value in [json!({}), json!({"egress": {"allow": []}}), json!({"models": []})] {
            assert_eq!(
                validate(&spec(value), &config(), &cluster()).unwrap().egress,
                None
            );
        }
    }

    #[test]
    fn rules_and_models_say_what_the_gateway_needs() {
        let credential = |secret: &str| json!({"secretRef": {"name": secret, "key": "token"}});
        let policy = validate(
            &spec(json!({
                "egress": {"allow": [
                    {"host": "api.github.com", "credential": credential("github")},
                    {"cidr": "192.168.8.0/24", "ports": [5432]},
                ]},
                "models": [{"provider": "Anthropic", "host": "api.anthropic.com", "allow": ["m"], "credential": credential("claude")}],
            })),
            &config(),
            &cluster(),
        )
        .unwrap();
        let egress = policy.egress.unwrap();
        assert_eq!(
            egress.secrets,
            BTreeSet::from(["claude".to_owned(), "github".to_owned()])
        );
        assert_eq!(egress.opened, BTreeSet::from(["192.168.8.0/24".parse().unwrap()]));
        assert_eq!(egress.models[0].key_variable, "ANTHROPIC_API_KEY");
    }

    #[test]
    fn a_range_of_the_cluster_is_not_opened() {
        for (range, what) in [
            ("192.168.7.0/24", "node a"),
            ("93.184.216.0/24", "a load balancer"),
        ] {
            let opening = json!({"egress": {"allow": [{"cidr": range, "ports": [22]}]}});
            let problems = validate(&spec(opening), &config(), &cluster()).unwrap_err();
            assert!(problems.message().contains(what), "{}", problems.message());
        }
    }
}
