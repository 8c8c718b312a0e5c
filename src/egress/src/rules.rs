//! A policy's rules, compiled: which connection and which request they allow.
//!
//! Rules only allow, so their order does not matter. Three laws hold where several speak of one destination:
//! * the narrowest host pattern of a port says how its TLS is treated, and equal patterns agree (else the policy does
//!   not compile);
//! * a request is allowed if any rule of the right kind allows it, and of several the narrowest one bounds it;
//! * where one of those that match adds a credential, no other may match.

use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::net::IpAddr;

use agentsandbox_api::policy::{Provider, SandboxPolicySpec};
use ipnet::IpNet;

use crate::credential::Credential;
use crate::deny::Deny;
use crate::name::{HostName, HostPattern};
use crate::path::{self, PathPattern};

/// Port of every model host.
pub const MODEL_PORT: u16 = 443;

/// The rules and models of one policy.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EgressPolicy {
    pub(crate) rules: Vec<Rule>,
    pub(crate) models: Vec<ModelRule>,
}

/// One rule of `spec.egress.allow`, at the same index there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// What it speaks of.
    pub destination: Destination,
    /// On which ports; never empty.
    pub ports: Vec<u16>,
    /// How connections are treated.
    pub mode: Mode,
    /// Allowed methods; all, if empty.
    pub methods: Vec<String>,
    /// Allowed paths; all, if empty.
    pub paths: Vec<PathPattern>,
    /// The header to add.
    pub credential: Option<Credential>,
    /// Most bytes of one request's body.
    pub max_request_bytes: Option<u64>,
    /// Most bytes, both ways together, that one run may exchange by this rule.
    pub max_bytes: Option<u64>,
    /// Whether a request may turn into a WebSocket.
    pub upgrade: bool,
}

/// What a rule speaks of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Destination {
    /// Hosts by name.
    Host(HostPattern),
    /// Addresses.
    Range(IpNet),
}

/// How a rule's connections are treated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// TLS from end to end.
    Passthrough,
    /// TLS that the gateway ends, and begins anew.
    Inspect,
    /// Plain HTTP.
    Plain,
    /// Bytes to an address.
    Address,
}

/// One entry of `spec.models`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelRule {
    /// Its index in `spec.models`.
    pub index: usize,
    /// The provider's API.
    pub provider: Provider,
    /// The host that the sandbox asks.
    pub host: HostName,
    /// Allowed model names.
    pub allow: Vec<String>,
    /// The key for `host`.
    pub credential: Option<Credential>,
    /// Where requests go: the first, and the others in their order when it fails. Never empty.
    pub targets: Vec<Target>,
    /// Tools of the provider's that a request may ask for.
    pub server_tools: Vec<String>,
    /// Most output tokens of a request that names none.
    pub default_output_tokens: i64,
    /// The model's context window, in tokens.
    pub context_tokens: i64,
}

/// Where a model request goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// The host.
    pub host: HostName,
    /// The model it is asked for; the one that the request names if absent.
    pub model: Option<String>,
    /// The key for this host.
    pub credential: Option<Credential>,
}

/// What may follow on a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// TLS, passed on as it is; its server name must be the host.
    Passthrough {
        /// Index of the rule.
        rule: usize,
    },
    /// TLS, which the gateway ends; then requests.
    Inspect,
    /// Requests in plain HTTP.
    Plain,
}

/// How a request came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheme {
    /// Through TLS that the gateway ended.
    Https,
    /// In the clear.
    Http,
}

/// What allows a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Permit<'a> {
    /// A rule of `spec.egress.allow`.
    Rule {
        /// Its index.
        index: usize,
        /// The rule.
        rule: &'a Rule,
    },
    /// A model host: the first of its entries, see [`EgressPolicy::models_at`]; the endpoint and the model are still
    /// to be checked.
    Model(&'a ModelRule),
}

impl Permit<'_> {
    /// Whether the request must carry the run's token, because the gateway adds a credential or spends a budget of
    /// somebody else's.
    #[must_use]
    pub fn needs_token(&self) -> bool {
        match self {
            Self::Rule { rule, .. } => rule.credential.is_some(),
            Self::Model(_) => true,
        }
    }

    /// The rule as the log names it: `egress.allow[3]` or `models[0]`.
    #[must_use]
    pub fn name(&self) -> crate::record::RuleName {
        match self {
            Self::Rule { index, .. } => crate::record::RuleName::Allow(*index),
            Self::Model(model) => crate::record::RuleName::Model(model.index),
        }
    }
}

impl EgressPolicy {
    /// Compiles the rules and models of a policy.
    ///
    /// # Errors
    /// Every problem, in the order of the fields, each naming its field.
    pub fn compile(spec: &SandboxPolicySpec) -> Result<Self, Vec<String>> {
        crate::compile::compile(spec)
    }

    /// Whether nothing is allowed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.rules.is_empty() && self.models.is_empty()
    }

    /// The Secrets that the gateway needs.
    #[must_use]
    pub fn secrets(&self) -> BTreeSet<&str> {
        let of_rules = self.rules.iter().map(|rule| &rule.credential);
        let of_models = self.models.iter().flat_map(|model| {
            let of_targets = model.targets.iter().map(|target| &target.credential);
            of_targets.chain([&model.credential])
        });
        of_rules
            .chain(of_models)
            .flatten()
            .map(|credential| credential.secret.as_str())
            .collect()
    }

    /// The hosts whose TLS the gateway ends, each once, in order.
    #[must_use]
    pub fn inspected(&self) -> Vec<HostPattern> {
        let of_rules = self.rules.iter().filter_map(|rule| match &rule.destination {
            Destination::Host(pattern) if rule.mode == Mode::Inspect => Some(pattern.clone()),
            _ => None,
        });
        let of_models = self
            .models
            .iter()
            .map(|model| HostPattern::Exact(model.host.clone()));
        of_rules
            .chain(of_models)
            .collect::<BTreeSet<_>>()
            .into_iter()
            .collect()
    }

    /// The rules, at their index in `spec.egress.allow`.
    #[must_use]
    pub fn rules(&self) -> &[Rule] {
        &self.rules
    }

    /// The models, at their index in `spec.models`.
    #[must_use]
    pub fn models(&self) -> &[ModelRule] {
        &self.models
    }

    /// The entries of `spec.models` for one host.
    #[must_use]
    pub fn models_at(&self, host: &HostName) -> Vec<&ModelRule> {
        self.models.iter().filter(|model| model.host == *host).collect()
    }

    /// All ranges that rules open.
    #[must_use]
    pub fn opened(&self) -> Vec<IpNet> {
        self.ranges().map(|(_, _, net)| net).collect()
    }

    /// The ranges that rules open on one port.
    #[must_use]
    pub fn opened_at(&self, port: u16) -> Vec<IpNet> {
        self.ranges()
            .filter(|(_, rule, _)| rule.ports.contains(&port))
            .map(|(_, _, net)| net)
            .collect()
    }

    /// Whether some rule or model names the host: DNS answers for it.
    #[must_use]
    pub fn names(&self, host: &HostName) -> bool {
        self.models.iter().any(|model| model.host == *host) || self.rules_of(host).next().is_some()
    }

    /// What may follow on a connection to `host`.
    ///
    /// # Errors
    /// [`Deny::HostNotAllowed`], [`Deny::PortNotAllowed`].
    pub fn connect(&self, host: &HostName, port: u16) -> Result<Way, Deny> {
        if self.models.iter().any(|model| model.host == *host) {
            return if port == MODEL_PORT {
                Ok(Way::Inspect)
            } else {
                Err(Deny::PortNotAllowed)
            };
        }
        let mut deny = Deny::HostNotAllowed;
        let mut narrowest: Option<(_, usize, &Rule)> = None;
        for (index, pattern, rule) in self.rules_of(host) {
            deny = Deny::PortNotAllowed;
            if !rule.ports.contains(&port) {
                continue;
            }
            // Of equal patterns the one with the lower ceiling counts, wherever it stands.
            let rank = (pattern.specificity(), Reverse(rule.max_bytes.unwrap_or(u64::MAX)));
            if narrowest.as_ref().is_none_or(|(best, _, _)| rank > *best) {
                narrowest = Some((rank, index, rule));
            }
        }
        let (_, index, rule) = narrowest.ok_or(deny)?;
        Ok(match rule.mode {
            Mode::Inspect => Way::Inspect,
            Mode::Plain => Way::Plain,
            Mode::Passthrough | Mode::Address => Way::Passthrough { rule: index },
        })
    }

    /// Which rule opens an address. The address itself must pass [`crate::address::check`] as well.
    ///
    /// # Errors
    /// [`Deny::AddressLiteral`] if no range holds it, [`Deny::PortNotAllowed`] if one does, on other ports.
    pub fn connect_address(&self, ip: IpAddr, port: u16) -> Result<usize, Deny> {
        let mut deny = Deny::AddressLiteral;
        let mut narrowest: Option<(_, usize)> = None;
        for (index, rule, net) in self.ranges().filter(|(_, _, net)| net.contains(&ip)) {
            deny = Deny::PortNotAllowed;
            if !rule.ports.contains(&port) {
                continue;
            }
            let rank = (net.prefix_len(), Reverse(rule.max_bytes.unwrap_or(u64::MAX)));
            if narrowest.as_ref().is_none_or(|(best, _)| rank > *best) {
                narrowest = Some((rank, index));
            }
        }
        narrowest.map(|(_, index)| index).ok_or(deny)
    }

    /// What allows a request. `path` is without its query; `upgrade` says whether the request would turn the connection
    /// into a WebSocket.
    ///
    /// # Errors
    /// The reason of the rule that came closest to allowing it, in the order host, port, scheme, method, path, upgrade;
    /// [`Deny::PathMalformed`] before all of them; [`Deny::CredentialAmbiguous`] if several rules allow it and one of
    /// them adds a credential.
    pub fn request(
        &self,
        scheme: Scheme,
        host: &HostName,
        port: u16,
        method: &str,
        path: &str,
        upgrade: bool,
    ) -> Result<Permit<'_>, Deny> {
        path::check(path)?;
        if let Some(model) = self.models.iter().find(|model| model.host == *host) {
            return match (scheme, port, upgrade) {
                (_, port, _) if port != MODEL_PORT => Err(Deny::PortNotAllowed),
                (Scheme::Http, _, _) => Err(Deny::SchemeNotAllowed),
                (_, _, true) => Err(Deny::UpgradeNotAllowed),
                (Scheme::Https, _, false) => Ok(Permit::Model(model)),
            };
        }
        let mode = match scheme {
            Scheme::Https => Mode::Inspect,
            Scheme::Http => Mode::Plain,
        };
        let mut closest = (0, Deny::HostNotAllowed);
        let mut matching = 0;
        let mut credentials = false;
        let mut narrowest: Option<(_, usize, &Rule)> = None;
        for (index, pattern, rule) in self.rules_of(host) {
            let width = match rule.allows(mode, port, method, path) {
                Ok(width) => width,
                Err(nearness) => {
                    closest = closest.max(nearness);
                    continue;
                }
            };
            matching += 1;
            credentials |= rule.credential.is_some();
            if upgrade && !rule.upgrade {
                closest = closest.max((5, Deny::UpgradeNotAllowed));
                continue;
            }
            let rank = (
                pattern.specificity(),
                width,
                Reverse(rule.max_request_bytes.unwrap_or(u64::MAX)),
                Reverse(rule.max_bytes.unwrap_or(u64::MAX)),
            );
            if narrowest.as_ref().is_none_or(|(best, _, _)| rank > *best) {
                narrowest = Some((rank, index, rule));
            }
        }
        if credentials && matching > 1 {
            return Err(Deny::CredentialAmbiguous);
        }
        narrowest
            .map(|(_, index, rule)| Permit::Rule { index, rule })
            .ok_or(closest.1)
    }

    fn rules_of<'a>(&'a self, host: &HostName) -> impl Iterator<Item = (usize, &'a HostPattern, &'a Rule)> {
        self.rules
            .iter()
            .enumerate()
            .filter_map(move |(index, rule)| match &rule.destination {
                Destination::Host(pattern) if pattern.matches(host) => Some((index, pattern, rule)),
                _ => None,
            })
    }

    fn ranges(&self) -> impl Iterator<Item = (usize, &Rule, IpNet)> {
        self.rules
            .iter()
            .enumerate()
            .filter_map(|(index, rule)| match rule.destination {
                Destination::Range(net) => Some((index, rule, net)),
                Destination::Host(_) => None,
            })
    }
}

/// How narrowly a rule allows a request: by an exact path, by how long a prefix, by listed methods.
type Width = ((bool, usize), bool);

impl Rule {
    /// How narrowly the rule allows the request; else how near it came to, and why not.
    fn allows(&self, mode: Mode, port: u16, method: &str, path: &str) -> Result<Width, (u8, Deny)> {
        if !self.ports.contains(&port) {
            return Err((1, Deny::PortNotAllowed));
        }
        if self.mode != mode {
            return Err((2, Deny::SchemeNotAllowed));
        }
        let is_method = if self.methods.is_empty() {
            method != "CONNECT" && method != "TRACE"
        } else {
            self.methods.iter().any(|allowed| allowed == method)
        };
        if !is_method {
            return Err((3, Deny::MethodNotAllowed));
        }
        if self.paths.is_empty() {
            return Ok(((false, 0), !self.methods.is_empty()));
        }
        self.paths
            .iter()
            .filter(|pattern| pattern.matches(path))
            .map(|pattern| match pattern {
                PathPattern::Exact(exact) => (true, exact.len()),
                PathPattern::Below(prefix) => (false, prefix.len()),
            })
            .max()
            .map(|width| (width, !self.methods.is_empty()))
            .ok_or((4, Deny::PathNotAllowed))
    }
}

#[cfg(test)]
#[path = "rules_tests.rs"]
mod tests;
