//! From a policy as written to one that can be enforced, or to everything that is wrong with it.

mod conflict;
mod model;
mod rule;

use agentsandbox_api::policy::{self, SandboxPolicySpec};

use crate::credential::Credential;
use crate::rules::{EgressPolicy, ModelRule, Rule};

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
        .map(|(index, rule)| rule::compile(rule, &mut problems.at(format!("spec.egress.allow[{index}]"))))
        .collect();
    conflict::check_modes(&rules, &mut problems);
    conflict::check_ambiguity(&rules, &mut problems);
    let models: Vec<Option<ModelRule>> = spec
        .models
        .iter()
        .enumerate()
        .map(|(index, model)| model::compile(index, model, &mut problems.at(format!("spec.models[{index}]"))))
        .collect();
    conflict::check_models(&models, &rules, &mut problems);
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

#[cfg(test)]
mod tests;
