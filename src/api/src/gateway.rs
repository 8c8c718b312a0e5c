//! What the egress gateway and the parts around it exchange: its ports, its place in a namespace, and the registration
//! by which a recorder tells it whose pod it is.
//!
//! Before the go, the recorder connects to [`PORT_REGISTER`] of the gateway from the pod's own address and sends one
//! [`Register`] as a line of JSON; the gateway answers with one [`Registered`] line and leaves the connection open. A
//! recorder whose connection breaks registers again: the gateway may have been replaced. The recorder of a session whose
//! steps the gateway counts sends a [`StepCharge`] line for each, and hears a [`StepCharged`] line. A charge that is not
//! answered is not sent again: it may have been made, and then stays so. When a budget is used up, the gateway says so in
//! a [`BudgetExhausted`] line, and the recorder ends the run.

use serde::{Deserialize, Serialize};

use crate::reason::Reason;

/// Name of the gateway's Deployment, Service, service account, binding and network policies in each namespace.
pub const NAME: &str = "agentsandbox-gateway";
/// Label of the gateway's pods, and its value.
pub const LABEL: (&str, &str) = ("app.kubernetes.io/name", NAME);
/// Field manager of the gateway's writes.
pub const MANAGER: &str = "agentsandbox-gateway";
/// Audience of the projected token that only the recorder holds.
pub const AUDIENCE: &str = "gateway.agentsandbox.dev";
/// Folder of the recorder with that token.
pub const PATH_TOKEN: &str = "/var/run/gateway-token";
/// File of the token in [`PATH_TOKEN`].
pub const TOKEN_FILE: &str = "token";
/// Folder of the gateway below which each Secret is mounted by its name.
pub const PATH_CREDENTIALS: &str = "/var/run/credentials";
/// Key of a Secret that lists the hosts to which its other values may be sent, one a line.
pub const CONSENT_KEY: &str = "agentsandbox.dev.hosts";
/// Folder of the gateway that outlives its container, not its pod: the authority's key.
pub const PATH_STATE: &str = "/var/run/gateway";

/// Forward proxy: CONNECT and absolute-form requests.
pub const PORT_PROXY: u16 = 3128;
/// Where recorders register.
pub const PORT_REGISTER: u16 = 3129;
/// DNS over UDP and TCP, in the pod; the Service offers it as 53.
pub const PORT_DNS: u16 = 5353;
/// TLS of steered connections, in the pod; the Service offers it as 443.
pub const PORT_TLS: u16 = 8443;
/// Plain HTTP of steered connections, in the pod; the Service offers it as 80.
pub const PORT_HTTP: u16 = 8080;
/// `/healthz`, `/readyz` and `/metrics`.
pub const PORT_HEALTH: u16 = 9443;

/// User name of the proxy credentials; the password is the run's token.
pub const PROXY_USER: &str = "run";
/// Where the certificate bundle lies in the sandbox.
pub const PATH_CA_BUNDLE: &str = "/tmp/.sandbox-ca.crt";
/// Variables by which programs find their certificate bundle: OpenSSL and Go, Python's requests, curl, git, pip,
/// Node.js, npm (either case), and the AWS SDKs.
pub const CA_VARIABLES: [&str; 9] = [
    "SSL_CERT_FILE",
    "REQUESTS_CA_BUNDLE",
    "CURL_CA_BUNDLE",
    "GIT_SSL_CAINFO",
    "PIP_CERT",
    "NODE_EXTRA_CA_CERTS",
    "NPM_CONFIG_CAFILE",
    "npm_config_cafile",
    "AWS_CA_BUNDLE",
];
/// Where the settings of GNU wget lie in the sandbox, which knows no variable for a bundle.
pub const PATH_WGETRC: &str = "/tmp/.sandbox-wgetrc";
/// The variable by which wget finds them, in place of `~/.wgetrc`.
pub const WGETRC_VARIABLE: &str = "WGETRC";
/// Longest registration line, either way, in bytes.
pub const REGISTER_MAX_BYTES: usize = 64 << 10;

/// A recorder's registration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Register {
    /// UID of the pod.
    pub pod_uid: String,
    /// The projected token of audience [`AUDIENCE`]: a JWT of the cluster's, bound to the pod.
    pub token: String,
    /// SHA-256, in hex, of the run's token, which the recorder made and the sandbox presents.
    pub run_token_sha256: String,
}

/// The gateway's answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Registered {
    /// Whether the address is bound to the pod now.
    pub bound: bool,
    /// Whether to try again, if it is not: the gateway's own watch may not have seen the pod yet.
    #[serde(default)]
    pub retry: bool,
    /// Why not.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
    /// Certificate (PEM) of the authority that signs for inspected hosts; absent if the policy inspects none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca: Option<String>,
}

/// Longest line with a [`StepCharge`], in bytes.
pub const CHARGE_MAX_BYTES: usize = 64;

/// A line of the recorder after it is bound: one step is about to be taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StepCharge {
    /// Number of the question, by which the recorder knows the answer again: higher than any before it of this run, on
    /// this connection or an earlier one. Nothing is charged for another, and the gateway ends the connection.
    pub charge: u64,
}

/// The gateway's answer to a [`StepCharge`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StepCharged {
    /// Number of the question.
    pub charged: u64,
    /// Whether the step is within the budget. It is charged then, whatever becomes of it.
    pub granted: bool,
    /// Why not, in one word: `StepBudgetExceeded`, or why the gateway can't tell.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// For the person who reads it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
}

/// A line of the gateway after it is bound, at most once on each connection: the run is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BudgetExhausted {
    /// Which budget; one of those that [`Reason::budget`] knows.
    pub exhausted: Reason,
}

impl BudgetExhausted {
    /// What is told of it, if it names a budget.
    #[must_use]
    pub fn message(self) -> Option<String> {
        let field = self.exhausted.budget()?;
        Some(format!(
            "the run has used up {field}; status.egress has the figures"
        ))
    }
}

/// What the recorder needs to reach the gateway; part of the run spec.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct GatewayAccess {
    /// Address of the gateway's Service.
    pub address: String,
    /// Providers whose usual variables are set, so that their SDKs find the gateway.
    #[serde(default)]
    pub models: Vec<ModelAccess>,
}

/// One provider's variables.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ModelAccess {
    /// Variable that gets the run's token in place of a key, such as `OPENAI_API_KEY`.
    pub key_variable: String,
    /// Variable that gets the base URL, such as `OPENAI_BASE_URL`.
    pub url_variable: String,
    /// The base URL.
    pub url: String,
}
