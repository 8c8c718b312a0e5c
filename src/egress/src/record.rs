//! Each decision as one line of the log, and the chain that shows when a line is missing or was changed.

use std::borrow::Cow;

pub use agentsandbox_action_log::text::plain;
use agentsandbox_action_log::time::Time;
use k8s_openapi::jiff::Timestamp;
use serde::{Serialize, Serializer};

use crate::deny::Deny;

/// Longest destination, in bytes: a name and a port.
pub const DESTINATION_MAX: usize = 261;
/// Longest path, in bytes.
pub const PATH_MAX: usize = 512;
/// Longest of the other texts that come from a sandbox, in bytes.
pub const TEXT_MAX: usize = 128;
/// Longest name of an object, in bytes.
const NAME_MAX: usize = 253;
/// Longest method, in bytes.
pub const METHOD_MAX: usize = 32;
/// Longest line, in bytes: the texts at their longest, each of their bytes escaped once (`"` and `\`), and the figures.
pub const LINE_MAX: usize = 5 << 10;

/// Kind of a record, by the class numbers of OCSF (<https://schema.ocsf.io>).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// A connection: 4001.
    Connection,
    /// A request: 4002.
    Request,
    /// A DNS question: 4003.
    Dns,
    /// A request to a model: 6003.
    Model,
    /// A step of a session: 6003, as in the action log.
    Step,
}

impl Class {
    /// Its number.
    #[must_use]
    pub fn number(self) -> u16 {
        match self {
            Self::Connection => 4001,
            Self::Request => 4002,
            Self::Dns => 4003,
            Self::Model | Self::Step => 6003,
        }
    }
}

/// What was done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    /// It was allowed, and is about to happen.
    Allow,
    /// It was refused.
    Deny,
    /// What was allowed before has ended.
    End,
}

/// The run that a record speaks of.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RunIdentity {
    /// Namespace of the sandbox.
    pub namespace: String,
    /// The sandbox.
    pub sandbox: String,
    /// UID of the pod.
    pub pod_uid: String,
    /// The run.
    pub run_id: String,
    /// The policy.
    pub policy: String,
}

impl RunIdentity {
    /// Of a run that is bound to an address.
    #[must_use]
    pub fn of(run: &crate::identity::Run) -> Self {
        Self {
            namespace: plain(&run.namespace, NAME_MAX).into_owned(),
            sandbox: plain(&run.sandbox, NAME_MAX).into_owned(),
            pod_uid: plain(&run.pod_uid, TEXT_MAX).into_owned(),
            run_id: plain(&run.run_id, TEXT_MAX).into_owned(),
            policy: plain(&run.policy, NAME_MAX).into_owned(),
        }
    }
}

/// A rule as its policy names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RuleName {
    /// `egress.allow[…]`
    Allow(usize),
    /// `models[…]`
    Model(usize),
}

impl std::fmt::Display for RuleName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Allow(index) => write!(f, "egress.allow[{index}]"),
            Self::Model(index) => write!(f, "models[{index}]"),
        }
    }
}

impl Serialize for RuleName {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// One decision. The texts may be the sandbox's own: they are bounded and made plain when the record is written.
#[derive(Clone, Debug)]
pub struct Record<'a> {
    /// When.
    pub time: Timestamp,
    /// What kind.
    pub class: Class,
    /// What was done.
    pub action: Action,
    /// Why it was refused, or ended early.
    pub reason: Option<Deny>,
    /// Host or address.
    pub destination: &'a str,
    /// Port.
    pub port: Option<u16>,
    /// Method, or type of a DNS question.
    pub method: Option<&'a str>,
    /// Path, without its query, which is never logged.
    pub path: Option<&'a str>,
    /// What allowed it.
    pub rule: Option<RuleName>,
    /// Model that was asked.
    pub model: Option<&'a str>,
    /// What it came to, at its end.
    pub end: Option<End>,
}

/// What a connection or request came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct End {
    /// HTTP status of the answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
    /// Bytes from the sandbox.
    pub bytes_sent: u64,
    /// Bytes to the sandbox.
    pub bytes_received: u64,
    /// Milliseconds since it was allowed.
    pub duration_millis: u64,
    /// Tokens read by the model.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub input_tokens: Option<i64>,
    /// Tokens written by the model.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub output_tokens: Option<i64>,
    /// Whether the tokens are an estimate.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub estimated: bool,
}

/// The records of one run, each with the hash of the one before.
#[derive(Clone, Debug, Default)]
pub struct Chain(agentsandbox_action_log::chain::Chain);

impl Chain {
    /// The next record as a line, without its end. `run` is absent for what no run could be named for; all of that is a
    /// chain of its own.
    #[must_use]
    pub fn line(&mut self, run: Option<&RunIdentity>, record: &Record<'_>) -> String {
        let fields = Fields {
            run,
            action: record.action,
            reason: record.reason,
            destination: plain(without_user(record.destination), DESTINATION_MAX),
            port: record.port,
            method: record.method.map(|text| plain(text, METHOD_MAX)),
            path: record
                .path
                .map(|text| plain(crate::path::split(text).0, PATH_MAX)),
            rule: record.rule,
            model: record.model.map(|text| plain(text, TEXT_MAX)),
            end: record.end,
        };
        let time = Time(u64::try_from(record.time.as_millisecond()).unwrap_or_default());
        self.0.line(time, record.class.number(), &fields)
    }

    /// The chain of which the last record is known, from a run's status. Records that were written after that status are
    /// followed by others of the same number: the log shows both.
    #[must_use]
    pub fn resume(records: u64, head: &str) -> Option<Self> {
        agentsandbox_action_log::chain::Chain::resume(records, head).map(Self)
    }

    /// How many records there are.
    #[must_use]
    pub fn records(&self) -> u64 {
        self.0.records()
    }

    /// Hash of the last record, in hexadecimal digits: it covers all before it.
    #[must_use]
    pub fn head(&self) -> Option<String> {
        self.0.head()
    }
}

/// A destination as it was asked for may begin with a user's name and password, or a run's token.
fn without_user(destination: &str) -> &str {
    destination.rsplit_once('@').map_or(destination, |(_, host)| host)
}

/// A SHA-256 in hexadecimal digits.
#[must_use]
pub fn hex(sha: &[u8; 32]) -> String {
    agentsandbox_action_log::chain::hex(sha)
}

#[derive(Serialize)]
struct Fields<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    run: Option<&'a RunIdentity>,
    action: Action,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<Deny>,
    destination: Cow<'a, str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    port: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    method: Option<Cow<'a, str>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    path: Option<Cow<'a, str>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    rule: Option<RuleName>,
    #[serde(skip_serializing_if = "Option::is_none")]
    model: Option<Cow<'a, str>>,
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    end: Option<End>,
}

#[cfg(test)]
#[path = "record_tests.rs"]
mod tests;
