//! `kubectl sandbox policy check`: what a policy permits, and whether a sandbox would be accepted under it, without any
//! cluster: the operator's own validation is run here, and before it what the API server checks by the kinds' definitions.

use std::fmt::Write as _;
use std::path::PathBuf;

use agentsandbox_api::policy::{EgressRule, Model, SandboxPolicy, SandboxPolicySpec};
use agentsandbox_api::sandbox::AgentSandbox;
use clap::{Args, Parser};
use kube::ResourceExt;
use sandbox_operator::cluster::ClusterAddresses;
use sandbox_operator::config::Config;
use sandbox_operator::crd::Kind;
use sandbox_operator::policy::valid::{ValidPolicy, validate};
use sandbox_operator::sandbox::admit::admit;

use crate::schema;

/// Explain what a policy permits, and whether sandboxes would be accepted. Needs no cluster.
///
/// Both the API server's checks by the kinds' definitions and the operator's own are made. What only a cluster knows is
/// not checked: whether the runtime class and Secrets exist, which addresses are the cluster's own, whether the object is
/// there already and may be changed so, and what admission policies and quotas say. Exit code 1 if a policy can't be
/// enforced or a sandbox would be rejected.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  kubectl sandbox policy check policy.yaml
  kubectl sandbox policy check policy.yaml sandbox.yaml     would this sandbox be accepted?
  kubectl kustomize overlays/prod | kubectl sandbox policy check -")]
pub struct PolicyCheck {
    /// Manifests of policies and sandboxes, YAML or JSON; `-` reads standard input.
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Settings of the operator that differ from its defaults, as the flags of `sandbox-operator run`.
    #[arg(long, value_name = "FLAGS", default_value = "", allow_hyphen_values = true)]
    operator_flags: String,
}

/// Why the check could not be made.
#[derive(Debug, thiserror::Error)]
pub enum CheckError {
    /// A file could not be read.
    #[error("{file}: {source}")]
    Read {
        /// The file.
        file: String,
        /// Why.
        source: std::io::Error,
    },
    /// A manifest is not what it says.
    #[error("{file}, document {number}: {message}")]
    Manifest {
        /// The file.
        file: String,
        /// Its place in the file, from 1.
        number: usize,
        /// What is wrong.
        message: String,
    },
    /// There is nothing to check.
    #[error("no SandboxPolicy and no AgentSandbox in these files")]
    Nothing,
    /// The operator's flags.
    #[error("--operator-flags: {0}")]
    Flags(String),
}

/// The manifests of all files, each with what the API server would refuse of it.
#[derive(Debug, Default)]
struct Manifests {
    policies: Vec<(SandboxPolicy, Vec<String>)>,
    sandboxes: Vec<(AgentSandbox, Vec<String>)>,
}

/// What was found, as text for people, and whether all is well.
#[derive(Debug, PartialEq, Eq)]
pub struct Report {
    /// The text.
    pub text: String,
    /// Whether every policy can be enforced and every sandbox would be accepted.
    pub passed: bool,
}

impl PolicyCheck {
    /// Checks.
    pub fn run(&self) -> Result<Report, CheckError> {
        let mut manifests = Manifests::default();
        for file in &self.files {
            let name = file.display().to_string();
            let text = if name == "-" {
                std::io::read_to_string(std::io::stdin())
            } else {
                std::fs::read_to_string(file)
            };
            let text = text.map_err(|source| CheckError::Read {
                file: name.clone(),
                source,
            })?;
            manifests.read(&name, &text)?;
        }
        check(&manifests, &config(&self.operator_flags)?)
    }
}

/// The operator's configuration: its defaults, and these flags.
pub fn config(flags: &str) -> Result<Config, CheckError> {
    #[derive(Parser)]
    struct Operator {
        #[command(flatten)]
        config: Config,
    }
    let words = std::iter::once("sandbox-operator").chain(flags.split_whitespace());
    Operator::try_parse_from(words)
        .map(|operator| operator.config)
        .map_err(|error| CheckError::Flags(error.to_string()))
}

impl Manifests {
    fn read(&mut self, file: &str, text: &str) -> Result<(), CheckError> {
        let wrong_at = |number: usize, message: String| CheckError::Manifest {
            file: file.to_owned(),
            number,
            message,
        };
        let documents: Vec<serde_json::Value> =
            serde_saphyr::from_multiple(text).map_err(|error| wrong_at(1, error.to_string()))?;
        for (index, value) in documents.into_iter().enumerate() {
            let wrong = |message: String| wrong_at(index + 1, message);
            let items = match value.get("items").and_then(|items| items.as_array()) {
                Some(items) => items.clone(),
                None => vec![value],
            };
            for item in items {
                let kind = item
                    .get("kind")
                    .and_then(|kind| kind.as_str())
                    .unwrap_or_default();
                match kind {
                    "SandboxPolicy" => {
                        let refused = schema::refused(Kind::Sandboxpolicy, &item);
                        self.policies.push((strict(item).map_err(wrong)?, refused));
                    }
                    "AgentSandbox" => {
                        let refused = schema::refused(Kind::Agentsandbox, &item);
                        self.sandboxes.push((strict(item).map_err(wrong)?, refused));
                    }
                    _ => {}
                }
            }
        }
        Ok(())
    }
}

/// An object, and an error for a field that its kind does not have: the API server would drop it with a warning, or
/// refuse it.
fn strict<T: serde::de::DeserializeOwned>(value: serde_json::Value) -> Result<T, String> {
    let mut unknown = Vec::new();
    let object = serde_ignored::deserialize(value, |path| unknown.push(path.to_string()))
        .map_err(|error| error.to_string())?;
    let unknown: Vec<String> = unknown
        .into_iter()
        // Of metadata and status not every field is modelled.
        .filter(|path| path.starts_with("spec"))
        .collect();
    if unknown.is_empty() {
        Ok(object)
    } else {
        Err(format!("unknown field {}", unknown.join(", ")))
    }
}

fn check(manifests: &Manifests, config: &Config) -> Result<Report, CheckError> {
    if manifests.policies.is_empty() && manifests.sandboxes.is_empty() {
        return Err(CheckError::Nothing);
    }
    let mut text = String::new();
    let mut passed = true;
    let mut valid = Vec::new();
    for (policy, refused) in &manifests.policies {
        let name = policy.name_any();
        if !refused.is_empty() {
            passed = false;
            let _ = writeln!(text, "SandboxPolicy {name}: WOULD BE REFUSED BY THE API SERVER");
            list(&mut text, refused);
            text.push('\n');
            valid.push((name, None));
            continue;
        }
        match validate(&policy.spec, config, &ClusterAddresses::default()) {
            Ok(found) => {
                let _ = writeln!(text, "SandboxPolicy {name}: can be enforced\n");
                explain(&mut text, &policy.spec, &found);
                valid.push((name, Some(found)));
            }
            Err(problems) => {
                passed = false;
                let _ = writeln!(text, "SandboxPolicy {name}: CAN'T BE ENFORCED");
                list(&mut text, &problems.invalid);
                text.push('\n');
                valid.push((name, None));
            }
        }
    }
    for (sandbox, refused) in &manifests.sandboxes {
        let (name, wanted) = (sandbox.name_any(), &sandbox.spec.policy_ref.name);
        let policy = valid.iter().find(|(name, _)| name == wanted);
        let verdict = match policy {
            None if wanted == "default" => built_in(config).and_then(|policy| judged(sandbox, &policy)),
            None => Err(format!("no SandboxPolicy {wanted} in these files")),
            Some((_, None)) => Err(format!("SandboxPolicy {wanted} can't be enforced")),
            Some((_, Some(policy))) => judged(sandbox, policy),
        };
        let problems = if refused.is_empty() {
            verdict
                .err()
                .map(|why| ("WOULD BE REJECTED", why.split("; ").map(str::to_owned).collect()))
        } else {
            Some(("WOULD BE REFUSED BY THE API SERVER", refused.clone()))
        };
        match problems {
            None => {
                let _ = writeln!(text, "AgentSandbox {name}: would be accepted by policy {wanted}");
            }
            Some((verdict, problems)) => {
                passed = false;
                let _ = writeln!(text, "AgentSandbox {name}: {verdict}");
                list(&mut text, &problems);
            }
        }
    }
    Ok(Report { text, passed })
}

fn list(text: &mut String, problems: &[String]) {
    for problem in problems {
        let _ = writeln!(text, "  - {problem}");
    }
}

fn judged(sandbox: &AgentSandbox, policy: &ValidPolicy) -> Result<(), String> {
    admit(&sandbox.spec, policy)
        .map(|_| ())
        .map_err(|rejection| rejection.to_string())
}

/// The policy that holds for the name `default` where there is none.
fn built_in(config: &Config) -> Result<ValidPolicy, String> {
    validate(
        &SandboxPolicySpec::default(),
        config,
        &ClusterAddresses::default(),
    )
    .map_err(|problems| problems.message())
}

fn explain(text: &mut String, spec: &SandboxPolicySpec, policy: &ValidPolicy) {
    let mut line = |name: &str, value: String| {
        let _ = writeln!(text, "  {name:<12} {value}");
    };
    line(
        "isolation",
        format!(
            "{} on runtime class {}; less, observed at run time, and the command does not start{}",
            policy.minimum,
            policy.runtime_class,
            if policy.as_root { "; runs as root" } else { "" }
        ),
    );
    let images = match (policy.images.is_empty(), policy.require_digest) {
        (true, false) => "any".to_owned(),
        (true, true) => "any, by digest".to_owned(),
        (false, digest) => format!(
            "{}{}",
            policy.images.join(", "),
            if digest { ", by digest" } else { "" }
        ),
    };
    line("images", images);
    let (most, default) = (policy.maximum, policy.defaults);
    line(
        "at most",
        format!(
            "{} CPU, {} memory, {} disk, {} processes, {} s (defaults: {}, {}, {}, {}, {} s)",
            cpus(most.cpu_millis),
            bytes(most.memory_bytes),
            bytes(most.disk_bytes),
            most.processes,
            most.runtime_seconds,
            cpus(default.cpu_millis),
            bytes(default.memory_bytes),
            bytes(default.disk_bytes),
            default.processes,
            default.runtime_seconds,
        ),
    );
    let budgets = policy.maximum_budgets;
    let budget = |figure: Option<i64>, what: &str| {
        figure.map_or_else(|| format!("{what} not limited"), |most| format!("{most} {what}"))
    };
    line(
        "budgets",
        [
            budget(budgets.tokens, "tokens"),
            budget(budgets.model_requests, "model requests"),
            budget(budgets.steps, "steps"),
            budget(budgets.egress_bytes, "bytes of egress"),
        ]
        .join(", "),
    );
    let rules = spec.egress.iter().flat_map(|egress| &egress.allow);
    let network: Vec<String> = rules.map(rule).chain(spec.models.iter().map(model)).collect();
    if network.is_empty() {
        line("network", "nothing can be reached".to_owned());
    }
    for (index, allowed) in network.into_iter().enumerate() {
        line(if index == 0 { "network" } else { "" }, allowed);
    }
    if let Some(audit) = &spec.audit {
        let required: Vec<&str> = [
            (audit.require.commands, "commands"),
            (audit.require.files, "files"),
            (audit.require.network, "network"),
        ]
        .into_iter()
        .filter_map(|(required, what)| required.then_some(what))
        .collect();
        if !required.is_empty() {
            line("capture", format!("{} required", required.join(", ")));
        }
    }
    text.push('\n');
}

fn rule(rule: &EgressRule) -> String {
    let target = rule.host.as_ref().or(rule.cidr.as_ref());
    let ports: Vec<String> = rule.ports.iter().map(i32::to_string).collect();
    let mut says = target.cloned().unwrap_or_default();
    if !ports.is_empty() {
        says = format!("{says} ports {}", ports.join(", "));
    }
    if !rule.methods.is_empty() {
        says = format!("{says}, {}", rule.methods.join(" "));
    }
    if !rule.paths.is_empty() {
        says = format!("{says} {}", rule.paths.join(" "));
    }
    if let Some(credential) = &rule.credential {
        says = format!(
            "{says}, with the credential of Secret {}",
            credential.secret_ref.name
        );
    }
    says
}

fn model(model: &Model) -> String {
    let credential = model.credential.as_ref().map_or_else(String::new, |credential| {
        format!(", with the key of Secret {}", credential.secret_ref.name)
    });
    format!(
        "{} (metered model API): {}{credential}",
        model.host,
        model.allow.join(", ")
    )
}

fn cpus(millis: u64) -> String {
    if millis.is_multiple_of(1000) {
        (millis / 1000).to_string()
    } else {
        format!("{millis}m")
    }
}

fn bytes(bytes: u64) -> String {
    for (shift, unit) in [(30, "Gi"), (20, "Mi"), (10, "Ki")] {
        if bytes >= 1 << shift && bytes.is_multiple_of(1 << shift) {
            return format!("{}{unit}", bytes >> shift);
        }
    }
    bytes.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    const POLICY: &str = "
apiVersion: agentsandbox.dev/v1alpha1
kind: SandboxPolicy
metadata: {name: team}
spec:
  isolation: {runtimeClassName: gvisor, minimum: UserspaceKernel}
  maximum: {limits: {runtimeSeconds: 60, tokens: 1000}}
  defaults: {limits: {runtimeSeconds: 30}}
  egress: {allow: [{host: api.example.test, methods: [GET], paths: [/v1/]}]}
";

    fn report(text: &str) -> Result<Report, CheckError> {
        let mut manifests = Manifests::default();
        manifests.read("test.yaml", text)?;
        check(&manifests, &config("").unwrap())
    }

    fn sandbox(spec: &str) -> String {
        format!(
            "\n---\napiVersion: agentsandbox.dev/v1alpha1\nkind: AgentSandbox\nmetadata: {{name: one}}\nspec: {{image: x, command: [a], {spec}}}\n"
        )
    }

    #[test]
    fn a_policy_is_explained_and_a_sandbox_within_it_accepted() {
        let text = format!(
            "{POLICY}{}",
            sandbox("policyRef: {name: team}, limits: {tokens: 10}")
        );
        let report = report(&text).unwrap();
        assert!(report.passed, "{}", report.text);
        for part in [
            "SandboxPolicy team: can be enforced",
            "UserspaceKernel on runtime class gvisor",
            "1000 tokens",
            "api.example.test, GET /v1/",
            "AgentSandbox one: would be accepted by policy team",
        ] {
            assert!(report.text.contains(part), "{part}: {}", report.text);
        }
    }

    #[test]
    fn each_reason_for_a_rejection_is_named() {
        let text = format!(
            "{POLICY}{}",
            sandbox("policyRef: {name: team}, limits: {runtimeSeconds: 61, tokens: 2000}")
        );
        let report = report(&text).unwrap();
        assert!(!report.passed);
        assert!(report.text.contains("WOULD BE REJECTED"));
        assert!(report.text.contains("limits.runtimeSeconds"), "{}", report.text);
        assert!(report.text.contains("limits.tokens"), "{}", report.text);
    }

    #[test]
    fn what_the_api_server_refuses_fails_the_check_whatever_the_policy_permits() {
        let session = sandbox("session: {idleTimeoutSeconds: 60}, limits: {runtimeSeconds: 5}");
        let refused = report(&session).unwrap();
        assert!(!refused.passed);
        assert!(
            refused
                .text
                .starts_with("AgentSandbox one: WOULD BE REFUSED BY THE API SERVER\n  - spec set either"),
            "{}",
            refused.text
        );
        let policy = POLICY.replace("methods: [GET]", "methods: [get]");
        let refused = report(&policy).unwrap();
        assert!(!refused.passed);
        assert!(
            refused
                .text
                .contains("spec.egress.allow[0].methods[0] must match"),
            "{}",
            refused.text
        );
    }

    #[test]
    fn a_policy_that_cant_be_enforced_fails_the_check() {
        let text = POLICY.replace("minimum: UserspaceKernel", "minimum: Container, allowRoot: true");
        let report = report(&text).unwrap();
        assert!(!report.passed);
        assert!(report.text.contains("CAN'T BE ENFORCED"));
        assert!(report.text.contains("allowRoot"), "{}", report.text);
    }

    #[test]
    fn a_missing_policy_and_the_built_in_one() {
        let missing = report(&sandbox("policyRef: {name: other}")).unwrap();
        assert!(!missing.passed);
        assert!(missing.text.contains("no SandboxPolicy other in these files"));
        let built_in = report(&sandbox("limits: {runtimeSeconds: 5}")).unwrap();
        assert!(built_in.passed, "{}", built_in.text);
    }

    #[test]
    fn unknown_fields_and_empty_files_are_errors() {
        let unknown = report(&sandbox("netwrk: open")).unwrap_err().to_string();
        assert!(unknown.contains("unknown field spec.netwrk"), "{unknown}");
        assert!(matches!(report("kind: ConfigMap"), Err(CheckError::Nothing)));
        assert!(config("--no-such-flag").is_err());
    }
}
