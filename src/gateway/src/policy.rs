//! Policies and sandboxes, as far as the gateway needs them.

use std::sync::Arc;

use agentsandbox_api::policy::{Ceilings, SandboxPolicySpec};
use agentsandbox_api::sandbox::Limits as AskedLimits;
use agentsandbox_egress::budget;
use agentsandbox_egress::name::HostPattern;
use agentsandbox_egress::rules::EgressPolicy;

use crate::quota::Quota;

/// A sandbox as the watch shows it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sandbox {
    /// Its name.
    pub name: String,
    /// Its UID.
    pub uid: String,
    /// Its policy.
    pub policy: String,
    /// Its run.
    pub run_id: String,
    /// The ceilings it asks for.
    pub limits: Option<AskedLimits>,
}

/// A policy that compiles.
pub struct Policy {
    /// Its name.
    pub name: String,
    /// What it allows.
    pub rules: EgressPolicy,
    /// Hosts whose TLS the gateway ends.
    pub inspected: Vec<HostPattern>,
    /// What all its runs may spend.
    pub quota: Arc<Quota>,
    defaults: Option<AskedLimits>,
    maximum: Option<AskedLimits>,
}

impl Policy {
    /// Compiles a policy.
    ///
    /// # Errors
    /// Every problem, each naming its field.
    pub fn compile(name: &str, spec: &SandboxPolicySpec, quota: Arc<Quota>) -> Result<Self, Vec<String>> {
        let limits_of =
            |ceilings: &Option<Ceilings>| ceilings.as_ref().and_then(|ceilings| ceilings.limits.clone());
        let rules = EgressPolicy::compile(spec)?;
        Ok(Self {
            name: name.to_owned(),
            inspected: rules.inspected(),
            rules,
            quota,
            defaults: limits_of(&spec.defaults),
            maximum: limits_of(&spec.maximum),
        })
    }

    /// The budgets of a run that asks for these ceilings.
    #[must_use]
    pub fn limits(&self, asked: Option<&AskedLimits>) -> budget::Limits {
        let defaults = self.defaults.as_ref();
        let or =
            |figure: fn(&AskedLimits) -> Option<i64>| asked.and_then(figure).or(defaults.and_then(figure));
        let asked = AskedLimits {
            runtime_seconds: None,
            tokens: or(|limits| limits.tokens),
            model_requests: or(|limits| limits.model_requests),
            steps: or(|limits| limits.steps),
            egress_bytes: or(|limits| limits.egress_bytes),
        };
        budget::Limits::of_run(Some(&asked), self.maximum.as_ref())
    }
}
