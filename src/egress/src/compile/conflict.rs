//! What can't be seen in one rule or model alone.

use std::collections::{BTreeMap, BTreeSet};

use agentsandbox_api::policy;

use super::Problems;
use crate::name::{HostName, HostPattern};
use crate::path::PathPattern;
use crate::rules::{Destination, Mode, ModelRule, Rule};

/// Rules of the same hosts and ports must agree on how TLS is treated.
pub(super) fn check_modes(rules: &[Option<Rule>], problems: &mut Problems) {
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
pub(super) fn check_ambiguity(rules: &[Option<Rule>], problems: &mut Problems) {
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

/// Names twice, two providers at one host, hosts that rules allow as well.
pub(super) fn check_models(models: &[Option<ModelRule>], rules: &[Option<Rule>], problems: &mut Problems) {
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
