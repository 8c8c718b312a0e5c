//! From a policy as written to one that can be enforced, or to everything that is wrong with it.

use std::collections::{BTreeMap, BTreeSet};

use agentsandbox_api::policy::{self, EgressRule, Model, ModelTarget, SandboxPolicySpec, TlsMode};
use ipnet::IpNet;

use crate::address;
use crate::credential::Credential;
use crate::deny::Deny;
use crate::name::{HostName, HostPattern};
use crate::path::PathPattern;
use crate::rules::{Destination, EgressPolicy, Mode, ModelRule, Rule, Target};

/// Longest model name, in bytes.
const MODEL_NAME_MAX: usize = 128;

pub(crate) fn compile(spec: &SandboxPolicySpec) -> Result<EgressPolicy, Vec<String>> {
    let mut problems = Problems(Vec::new());
    let allow = spec
        .egress
        .as_ref()
        .map(|egress| egress.allow.as_slice())
        .unwrap_or_default();
    // Rules that do not compile leave a gap, so that the others keep their index for the checks between them.
    let rules: Vec<Option<Rule>> = allow
        .iter()
        .enumerate()
        .map(|(index, rule)| compile_rule(rule, &mut problems.at(format!("spec.egress.allow[{index}]"))))
        .collect();
    check_modes(&rules, &mut problems);
    check_ambiguity(&rules, &mut problems);
    let models: Vec<Option<ModelRule>> = spec
        .models
        .iter()
        .enumerate()
        .map(|(index, model)| compile_model(index, model, &mut problems.at(format!("spec.models[{index}]"))))
        .collect();
    check_models(&models, &rules, &mut problems);
    if !problems.0.is_empty() {
        return Err(problems.0);
    }
    Ok(EgressPolicy {
        rules: rules.into_iter().flatten().collect(),
        models: models.into_iter().flatten().collect(),
    })
}

struct Problems(Vec<String>);

impl Problems {
    fn at(&mut self, field: String) -> Field<'_> {
        Field {
            problems: self,
            field,
        }
    }
}

/// Collects the problems of one field and those below it.
struct Field<'a> {
    problems: &'a mut Problems,
    field: String,
}

impl Field<'_> {
    /// Notes a problem of the field itself.
    fn is(&mut self, problem: &str) {
        self.problems.0.push(format!("{} {problem}", self.field));
    }

    /// Notes a problem of a field below it.
    fn has(&mut self, name: &str, problem: &str) {
        self.problems.0.push(format!("{}.{name} {problem}", self.field));
    }

    fn count(&self) -> usize {
        self.problems.0.len()
    }
}

fn compile_rule(rule: &EgressRule, field: &mut Field<'_>) -> Option<Rule> {
    let before = field.count();
    let compiled = match (&rule.host, &rule.cidr) {
        (Some(host), None) => compile_host_rule(rule, host, field),
        (None, Some(cidr)) => compile_range_rule(rule, cidr, field),
        _ => {
            field.is("must have exactly one of host and cidr");
            None
        }
    };
    compiled.filter(|_| field.count() == before)
}

fn compile_host_rule(rule: &EgressRule, host: &str, field: &mut Field<'_>) -> Option<Rule> {
    let pattern = parse_pattern(host, field);
    let is_wildcard = host.starts_with("*.");
    let http_fields = [
        ("methods", !rule.methods.is_empty()),
        ("paths", !rule.paths.is_empty()),
        ("credential", rule.credential.is_some()),
        ("maxRequestBytes", rule.max_request_bytes.is_some()),
        ("upgrade", rule.upgrade),
    ];
    let sees_requests = http_fields.iter().any(|(_, is_set)| *is_set);
    let mode = match rule.tls {
        Some(TlsMode::None) => Mode::Plain,
        Some(TlsMode::Inspect) => Mode::Inspect,
        None if is_wildcard || sees_requests => Mode::Inspect,
        Some(TlsMode::Passthrough) | None => Mode::Passthrough,
    };
    if mode == Mode::Passthrough {
        for (name, _) in http_fields.iter().filter(|(_, is_set)| *is_set) {
            field.has(name, "needs tls: Inspect: passed-through TLS shows no request");
        }
    }
    if rule.credential.is_some() {
        if is_wildcard {
            field.has(
                "credential",
                "can't be used with a wildcard: name each host that gets it",
            );
        }
        if mode == Mode::Plain {
            field.has(
                "credential",
                "can't be used with tls: None: it would travel in the clear",
            );
        }
    }
    let default_port = if mode == Mode::Plain { 80 } else { 443 };
    let ports = parse_ports(&rule.ports, Some(default_port), field);
    let methods = parse_methods(&rule.methods, field);
    let paths = parse_paths(&rule.paths, field);
    let credential = rule
        .credential
        .as_ref()
        .and_then(|credential| parse_credential(credential, "credential", field));
    let max_request_bytes = parse_bytes("maxRequestBytes", rule.max_request_bytes, field);
    let max_bytes = parse_bytes("maxBytes", rule.max_bytes, field);
    Some(Rule {
        destination: Destination::Host(pattern?),
        ports,
        mode,
        methods,
        paths,
        credential,
        max_request_bytes,
        max_bytes,
        upgrade: rule.upgrade,
    })
}

fn compile_range_rule(rule: &EgressRule, cidr: &str, field: &mut Field<'_>) -> Option<Rule> {
    let host_fields = [
        ("tls", rule.tls.is_some()),
        ("methods", !rule.methods.is_empty()),
        ("paths", !rule.paths.is_empty()),
        ("credential", rule.credential.is_some()),
        ("maxRequestBytes", rule.max_request_bytes.is_some()),
        ("upgrade", rule.upgrade),
    ];
    let net = parse_range(cidr, field);
    let ports = parse_ports(&rule.ports, None, field);
    for (name, _) in host_fields.iter().filter(|(_, is_set)| *is_set) {
        field.has(name, "is for hosts: a cidr rule passes bytes");
    }
    let max_bytes = parse_bytes("maxBytes", rule.max_bytes, field);
    Some(Rule {
        destination: Destination::Range(net?),
        ports,
        mode: Mode::Address,
        methods: Vec::new(),
        paths: Vec::new(),
        credential: None,
        max_request_bytes: None,
        max_bytes,
        upgrade: false,
    })
}

fn parse_pattern(host: &str, field: &mut Field<'_>) -> Option<HostPattern> {
    match host.parse() {
        Ok(pattern) => Some(pattern),
        Err(deny) => {
            field.has("host", name_problem(host, deny));
            None
        }
    }
}

fn parse_host(host: &str, name: &str, field: &mut Field<'_>) -> Option<HostName> {
    match HostName::parse(host) {
        Ok(host) => Some(host),
        Err(deny) => {
            field.has(name, name_problem(host, deny));
            None
        }
    }
}

fn name_problem(host: &str, deny: Deny) -> &'static str {
    if host.contains("://") {
        "is a URL: write the name alone"
    } else if host.split_once(':').is_some_and(|(name, port)| {
        !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit()) && !name.is_empty()
    }) {
        "has a port: write it in ports"
    } else if deny == Deny::AddressLiteral {
        "is an address: use cidr"
    } else if host.ends_with('.') {
        "ends with a dot: write it without"
    } else if host.contains('*') {
        "has a wildcard where none can be: *.example.org is one, for names below a domain"
    } else {
        "is no fully qualified host name"
    }
}

fn parse_range(cidr: &str, field: &mut Field<'_>) -> Option<IpNet> {
    let Ok(net) = cidr.parse::<IpNet>() else {
        field.has("cidr", "is no range such as 192.168.7.0/24");
        return None;
    };
    if net.trunc() != net {
        field.has(
            "cidr",
            &format!("has bits beyond its prefix: {} is the range", net.trunc()),
        );
        return None;
    }
    if let Some(why) = address::never_within(net) {
        field.has("cidr", &format!("holds addresses that no rule opens ({why})"));
        return None;
    }
    Some(net)
}

fn parse_ports(ports: &[i32], default: Option<u16>, field: &mut Field<'_>) -> Vec<u16> {
    let mut parsed = BTreeSet::new();
    for port in ports {
        match u16::try_from(*port) {
            Ok(port) if port > 0 => {
                parsed.insert(port);
            }
            _ => field.has("ports", &format!("has {port}, which is no port")),
        }
    }
    match default {
        Some(port) if ports.is_empty() => vec![port],
        None if ports.is_empty() => {
            field.has("ports", "is required with cidr");
            Vec::new()
        }
        _ => parsed.into_iter().collect(),
    }
}

fn parse_methods(methods: &[String], field: &mut Field<'_>) -> Vec<String> {
    for method in methods {
        let is_token =
            (1..=16).contains(&method.len()) && method.bytes().all(|byte| byte.is_ascii_uppercase());
        if !is_token {
            field.has("methods", "has what is no method: capital letters only");
        } else if method == "CONNECT" || method == "TRACE" {
            field.has("methods", &format!("has {method}, which is never allowed"));
        }
    }
    methods.to_vec()
}

fn parse_paths(paths: &[String], field: &mut Field<'_>) -> Vec<PathPattern> {
    let mut parsed = Vec::new();
    for (index, path) in paths.iter().enumerate() {
        match PathPattern::parse(path) {
            Ok(pattern) => parsed.push(pattern),
            Err(_) if path.contains(['?', '#', '*']) => field.has(
                &format!("paths[{index}]"),
                "has a query, a fragment or a wildcard: a path that ends with / allows everything below it",
            ),
            Err(_) => field.has(
                &format!("paths[{index}]"),
                "is no path that requests can have: it must begin with /, without dot segments, //, ; or encoded slashes",
            ),
        }
    }
    parsed
}

fn parse_bytes(name: &str, bytes: Option<i64>, field: &mut Field<'_>) -> Option<u64> {
    let bytes = bytes?;
    let parsed = u64::try_from(bytes).ok();
    if parsed.is_none() {
        field.has(name, "is below 0");
    }
    parsed
}

fn parse_credential(spec: &policy::Credential, name: &str, field: &mut Field<'_>) -> Option<Credential> {
    match Credential::parse(spec) {
        Ok(credential) => Some(credential),
        Err(problems) => {
            for (below, problem) in problems {
                field.has(&format!("{name}.{below}"), &problem);
            }
            None
        }
    }
}

/// Rules of the same hosts and ports must agree on how TLS is treated.
fn check_modes(rules: &[Option<Rule>], problems: &mut Problems) {
    let mut modes: BTreeMap<(&HostPattern, u16), (usize, Mode)> = BTreeMap::new();
    for (index, rule) in rules.iter().enumerate() {
        let Some(rule) = rule else { continue };
        let Destination::Host(pattern) = &rule.destination else {
            continue;
        };
        for port in &rule.ports {
            let (first, mode) = *modes.entry((pattern, *port)).or_insert((index, rule.mode));
            if mode != rule.mode {
                problems.at(format!("spec.egress.allow[{index}]")).has(
                    "tls",
                    &format!("treats {pattern}:{port} otherwise than spec.egress.allow[{first}]"),
                );
                break;
            }
        }
    }
}

/// A request to which a credential would be added may match one rule only. A rule that matches whatever a credentialed
/// one does would have all its requests refused.
fn check_ambiguity(rules: &[Option<Rule>], problems: &mut Problems) {
    for (index, rule) in rules.iter().enumerate() {
        let Some(rule) = rule.as_ref().filter(|rule| rule.credential.is_some()) else {
            continue;
        };
        let shadow = rules.iter().enumerate().find(|(other, candidate)| {
            *other != index
                && candidate
                    .as_ref()
                    .is_some_and(|candidate| covers(candidate, rule))
        });
        if let Some((other, _)) = shadow {
            problems.at(format!("spec.egress.allow[{index}]")).has(
                "credential",
                &format!(
                    "can't be used: spec.egress.allow[{other}] matches the same requests, and exactly one may"
                ),
            );
        }
    }
}

/// Whether every request that `rule` allows is allowed by `wide` as well.
fn covers(wide: &Rule, rule: &Rule) -> bool {
    let (Destination::Host(pattern), Destination::Host(HostPattern::Exact(host))) =
        (&wide.destination, &rule.destination)
    else {
        return false;
    };
    let covers_paths = |path: &PathPattern| {
        wide.paths.iter().any(|cover| match (cover, path) {
            (PathPattern::Below(prefix), PathPattern::Exact(path) | PathPattern::Below(path)) => {
                path.starts_with(&**prefix)
            }
            (PathPattern::Exact(exact), PathPattern::Exact(path)) => exact == path,
            (PathPattern::Exact(_), PathPattern::Below(_)) => false,
        })
    };
    wide.mode == rule.mode
        && pattern.matches(host)
        && rule.ports.iter().all(|port| wide.ports.contains(port))
        && (wide.methods.is_empty()
            || (!rule.methods.is_empty() && rule.methods.iter().all(|method| wide.methods.contains(method))))
        && (wide.paths.is_empty() || (!rule.paths.is_empty() && rule.paths.iter().all(covers_paths)))
}

fn compile_model(index: usize, model: &Model, field: &mut Field<'_>) -> Option<ModelRule> {
    let before = field.count();
    let host = parse_host(&model.host, "host", field);
    check_model_names(&model.allow, field);
    let credential = model
        .credential
        .as_ref()
        .and_then(|credential| parse_credential(credential, "credential", field));
    let first = model.route.as_ref().map(|route| ("route".to_owned(), route));
    let others = model
        .fallbacks
        .iter()
        .enumerate()
        .map(|(index, target)| (format!("fallbacks[{index}]"), target));
    let mut targets: Vec<Target> = first
        .into_iter()
        .chain(others)
        .filter_map(|(name, target)| {
            let mut target = compile_target(target, &name, field)?;
            // The same host gets the same key; another one never gets it by silence.
            if target.credential.is_none() && Some(&target.host) == host.as_ref() {
                target.credential.clone_from(&credential);
            }
            Some(target)
        })
        .collect();
    if let Some(host) = host.as_ref().filter(|_| model.route.is_none()) {
        let target = Target {
            host: host.clone(),
            model: None,
            credential: credential.clone(),
        };
        targets.insert(0, target);
    }
    if credential.is_some() && !targets.iter().any(|target| Some(&target.host) == host.as_ref()) {
        field.has(
            "credential",
            "is for host, which no request reaches: route has a credential of its own",
        );
    }
    for tool in &model.server_tools {
        if !is_printable(tool, 64) {
            field.has("serverTools", "has what is no type of a tool");
        }
    }
    if model.default_output_tokens < 1 {
        field.has("defaultOutputTokens", "is below 1");
    }
    if model.context_tokens < 1 {
        field.has("contextTokens", "is below 1");
    }
    if field.count() > before {
        return None;
    }
    Some(ModelRule {
        index,
        provider: model.provider,
        host: host?,
        allow: model.allow.clone(),
        credential,
        targets,
        server_tools: model.server_tools.clone(),
        default_output_tokens: model.default_output_tokens,
        context_tokens: model.context_tokens,
    })
}

fn check_model_names(names: &[String], field: &mut Field<'_>) {
    if names.is_empty() {
        field.has("allow", "names no model");
    }
    for name in names {
        if !is_printable(name, MODEL_NAME_MAX) {
            field.has("allow", "has what is no name of a model");
        }
    }
}

fn compile_target(target: &ModelTarget, name: &str, field: &mut Field<'_>) -> Option<Target> {
    let host = parse_host(&target.host, &format!("{name}.host"), field);
    if target
        .model
        .as_ref()
        .is_some_and(|model| !is_printable(model, MODEL_NAME_MAX))
    {
        field.has(&format!("{name}.model"), "is no name of a model");
    }
    let credential = target
        .credential
        .as_ref()
        .and_then(|credential| parse_credential(credential, &format!("{name}.credential"), field));
    Some(Target {
        host: host?,
        model: target.model.clone(),
        credential,
    })
}

fn is_printable(text: &str, max: usize) -> bool {
    (1..=max).contains(&text.len()) && text.bytes().all(|byte| (0x21..0x7f).contains(&byte))
}

/// What can't be seen in one entry alone: names twice, two providers at one host, hosts that rules allow as well.
fn check_models(models: &[Option<ModelRule>], rules: &[Option<Rule>], problems: &mut Problems) {
    let mut names: BTreeMap<(&HostName, &str), usize> = BTreeMap::new();
    let mut providers: BTreeMap<&HostName, (usize, policy::Provider)> = BTreeMap::new();
    for (index, model) in models.iter().enumerate() {
        let Some(model) = model else { continue };
        let mut field = problems.at(format!("spec.models[{index}]"));
        let (first, provider) = *providers.entry(&model.host).or_insert((index, model.provider));
        if provider != model.provider {
            field.has(
                "provider",
                &format!("is another one than that of spec.models[{first}], which has the same host"),
            );
        }
        for name in &model.allow {
            if let Some(first) = names.insert((&model.host, name), index) {
                field.has(
                    "allow",
                    &format!(
                        "has {name:?}, which spec.models[{first}] allows at {} already",
                        model.host
                    ),
                );
            }
        }
        // A rule for the host would let requests pass that are not metered, with or without the key.
        let hosts: BTreeSet<&HostName> = model
            .targets
            .iter()
            .map(|target| &target.host)
            .chain([&model.host])
            .collect();
        for host in hosts {
            for (rule_index, rule) in rules.iter().enumerate() {
                let Some(Destination::Host(pattern)) = rule.as_ref().map(|rule| &rule.destination) else {
                    continue;
                };
                if pattern.matches(host) {
                    field.is(&format!(
                        "asks {host}, which spec.egress.allow[{rule_index}] ({pattern}) allows unmetered: a model's host can't be in both"
                    ));
                }
            }
        }
    }
}

#[cfg(test)]
#[path = "compile_tests.rs"]
mod tests;
