//! Why something was refused, and the answer that says so to a program.

use serde::{Serialize, Serializer};

/// Why something was refused. The names are what the sandbox is answered, what the log says and what the status counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Deny {
    /// No rule names the host.
    HostNotAllowed,
    /// A rule names the host, on other ports.
    PortNotAllowed,
    /// A rule names the host and port, for TLS where plain HTTP was asked, or the other way round.
    SchemeNotAllowed,
    /// No rule of the host allows the method.
    MethodNotAllowed,
    /// No rule of the host allows the path.
    PathNotAllowed,
    /// The path could mean another one to the server than to the rules.
    PathMalformed,
    /// The name is no fully qualified host name.
    NameMalformed,
    /// An address stands where a name must be, or is not written in its usual form.
    AddressLiteral,
    /// The name leads to an address that no rule opens: private, the cluster's, or special.
    AddressForbidden,
    /// The TLS client did not say which name it wants.
    ServerNameMissing,
    /// The TLS client wants another name than it connected to.
    ServerNameMismatch,
    /// The TLS client hides the name it wants.
    EncryptedClientHello,
    /// Something else than TLS came where only TLS is allowed.
    NotTls,
    /// The request names another host than its connection.
    HostMismatch,
    /// No run is registered at the address that the connection came from, or more than one.
    UnknownSandbox,
    /// The run's token is missing.
    TokenRequired,
    /// The token is not this run's.
    TokenWrong,
    /// The Secret is missing, does not consent to the host, or holds what is no header value.
    CredentialUnavailable,
    /// More than one rule matches a request to which a credential would be added.
    CredentialAmbiguous,
    /// The body is larger than the rule allows.
    RequestTooLarge,
    /// A part of a document was asked of a host to which a credential is added.
    RangeNotAllowed,
    /// The connection would turn into another protocol.
    UpgradeNotAllowed,
    /// The path at a model's host is no metered endpoint.
    EndpointNotMetered,
    /// The model is not on the policy's list.
    ModelNotAllowed,
    /// The request has a field that is not on the list of those known to be harmless.
    FieldNotAllowed,
    /// The request asks for a tool that the provider would run.
    ServerToolNotAllowed,
    /// The body is not what the endpoint takes.
    BodyMalformed,
    /// The body is compressed.
    EncodingNotAllowed,
    /// The run's tokens are used up, or what is left can't cover the request.
    TokenBudgetExceeded,
    /// The run's model requests are used up.
    ModelRequestBudgetExceeded,
    /// The run's steps are used up.
    StepBudgetExceeded,
    /// The run's bytes are used up.
    EgressByteBudgetExceeded,
    /// What all runs of the policy may spend is used up.
    PolicyQuotaExceeded,
    /// The sandbox has as many connections as it may.
    TooManyConnections,
    /// The sandbox asks faster than it may.
    TooManyRequests,
    /// The DNS question is of a kind that is not answered.
    QueryNotAllowed,
    /// The gateway does not know its policies or pods yet.
    NotReady,
    /// Decisions can't be recorded at the moment.
    LogFull,
    /// The request is not well-formed HTTP, or could be read in two ways.
    RequestMalformed,
    /// The destination could not be resolved or does not answer.
    UpstreamUnreachable,
    /// The destination did not answer in time.
    UpstreamTimeout,
    /// The destination's certificate is not valid for its name.
    UpstreamUntrusted,
}

impl Deny {
    /// All reasons.
    pub const ALL: [Self; 42] = [
        Self::HostNotAllowed,
        Self::PortNotAllowed,
        Self::SchemeNotAllowed,
        Self::MethodNotAllowed,
        Self::PathNotAllowed,
        Self::PathMalformed,
        Self::NameMalformed,
        Self::AddressLiteral,
        Self::AddressForbidden,
        Self::ServerNameMissing,
        Self::ServerNameMismatch,
        Self::EncryptedClientHello,
        Self::NotTls,
        Self::HostMismatch,
        Self::UnknownSandbox,
        Self::TokenRequired,
        Self::TokenWrong,
        Self::CredentialUnavailable,
        Self::CredentialAmbiguous,
        Self::RequestTooLarge,
        Self::RangeNotAllowed,
        Self::UpgradeNotAllowed,
        Self::EndpointNotMetered,
        Self::ModelNotAllowed,
        Self::FieldNotAllowed,
        Self::ServerToolNotAllowed,
        Self::BodyMalformed,
        Self::EncodingNotAllowed,
        Self::TokenBudgetExceeded,
        Self::ModelRequestBudgetExceeded,
        Self::StepBudgetExceeded,
        Self::EgressByteBudgetExceeded,
        Self::PolicyQuotaExceeded,
        Self::TooManyConnections,
        Self::TooManyRequests,
        Self::QueryNotAllowed,
        Self::NotReady,
        Self::LogFull,
        Self::RequestMalformed,
        Self::UpstreamUnreachable,
        Self::UpstreamTimeout,
        Self::UpstreamUntrusted,
    ];

    /// The reason's name, as answered, logged and counted.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        self.facts().0
    }

    /// The HTTP status of the answer.
    #[must_use]
    pub fn status(self) -> u16 {
        self.facts().1
    }

    /// One sentence for the person or agent who reads the answer.
    #[must_use]
    pub fn message(self) -> &'static str {
        self.facts().2
    }

    /// Whether the same request may succeed later without anybody changing anything. Clients of model providers try a
    /// 429 or 5xx again unless the answer's header `x-should-retry` is `false`.
    #[must_use]
    pub fn is_transient(self) -> bool {
        matches!(
            self,
            Self::TooManyConnections
                | Self::TooManyRequests
                | Self::NotReady
                | Self::LogFull
                | Self::UpstreamUnreachable
                | Self::UpstreamTimeout
        )
    }

    fn facts(self) -> (&'static str, u16, &'static str) {
        match self {
            Self::HostNotAllowed => ("HostNotAllowed", 403, "no rule of the policy names this host"),
            Self::PortNotAllowed => (
                "PortNotAllowed",
                403,
                "the policy allows this host on other ports only",
            ),
            Self::SchemeNotAllowed => (
                "SchemeNotAllowed",
                403,
                "the policy does not allow this host in this way (https or plain http)",
            ),
            Self::MethodNotAllowed => (
                "MethodNotAllowed",
                403,
                "the policy does not allow this method at this host",
            ),
            Self::PathNotAllowed => (
                "PathNotAllowed",
                403,
                "the policy does not allow this path at this host",
            ),
            Self::PathMalformed => (
                "PathMalformed",
                400,
                "the path has dot segments, empty segments or characters that are not allowed",
            ),
            Self::NameMalformed => ("NameMalformed", 400, "this is no fully qualified host name"),
            Self::AddressLiteral => (
                "AddressLiteral",
                403,
                "hosts are reached by name; addresses only where a cidr rule of the policy allows them",
            ),
            Self::AddressForbidden => (
                "AddressForbidden",
                403,
                "the destination's address is private, the cluster's own or special, and no rule opens it",
            ),
            Self::ServerNameMissing => ("ServerNameMissing", 421, "the TLS client must send a server name"),
            Self::ServerNameMismatch => (
                "ServerNameMismatch",
                421,
                "the TLS server name is not the host that was connected to",
            ),
            Self::EncryptedClientHello => (
                "EncryptedClientHello",
                403,
                "encrypted client hellos are not allowed: the name must be visible",
            ),
            Self::NotTls => ("NotTls", 403, "only TLS is allowed to this host and port"),
            Self::HostMismatch => (
                "HostMismatch",
                421,
                "the request names another host than its connection",
            ),
            Self::UnknownSandbox => (
                "UnknownSandbox",
                403,
                "no running sandbox is registered at this address",
            ),
            Self::TokenRequired => ("TokenRequired", 407, "the run's token is required"),
            Self::TokenWrong => ("TokenWrong", 407, "the token is not that of this run"),
            Self::CredentialUnavailable => (
                "CredentialUnavailable",
                403,
                "the credential for this host is missing, unusable or not consented to by its Secret",
            ),
            Self::CredentialAmbiguous => (
                "CredentialAmbiguous",
                403,
                "more than one rule matches this request, and one of them adds a credential",
            ),
            Self::RequestTooLarge => (
                "RequestTooLarge",
                413,
                "the request is larger than the policy allows",
            ),
            Self::RangeNotAllowed => (
                "RangeNotAllowed",
                403,
                "range requests are not allowed where a credential is added",
            ),
            Self::UpgradeNotAllowed => (
                "UpgradeNotAllowed",
                403,
                "the policy does not allow a change of protocol here",
            ),
            Self::EndpointNotMetered => (
                "EndpointNotMetered",
                403,
                "this endpoint of the model provider is not offered",
            ),
            Self::ModelNotAllowed => ("ModelNotAllowed", 403, "the policy does not allow this model"),
            Self::FieldNotAllowed => (
                "FieldNotAllowed",
                400,
                "the request has a field that is not allowed",
            ),
            Self::ServerToolNotAllowed => (
                "ServerToolNotAllowed",
                403,
                "the policy does not allow this tool of the provider's",
            ),
            Self::BodyMalformed => ("BodyMalformed", 400, "the body is not what this endpoint takes"),
            Self::EncodingNotAllowed => (
                "EncodingNotAllowed",
                400,
                "compressed bodies are not allowed here",
            ),
            Self::TokenBudgetExceeded => (
                "TokenBudgetExceeded",
                429,
                "the run's token budget is used up, or too small for this request",
            ),
            Self::ModelRequestBudgetExceeded => (
                "ModelRequestBudgetExceeded",
                429,
                "the run's model requests are used up",
            ),
            Self::StepBudgetExceeded => ("StepBudgetExceeded", 429, "the run's steps are used up"),
            Self::EgressByteBudgetExceeded => (
                "EgressByteBudgetExceeded",
                429,
                "the bytes that the run may exchange are used up",
            ),
            Self::PolicyQuotaExceeded => (
                "PolicyQuotaExceeded",
                429,
                "what all runs of the policy together may spend is used up",
            ),
            Self::TooManyConnections => ("TooManyConnections", 429, "the sandbox has too many connections"),
            Self::TooManyRequests => ("TooManyRequests", 429, "the sandbox asks too fast"),
            Self::QueryNotAllowed => (
                "QueryNotAllowed",
                403,
                "this kind of DNS question is not answered",
            ),
            Self::NotReady => ("NotReady", 503, "the gateway is not ready yet"),
            Self::LogFull => ("LogFull", 503, "the gateway can't record decisions at the moment"),
            Self::RequestMalformed => ("RequestMalformed", 400, "the request is not well-formed"),
            Self::UpstreamUnreachable => ("UpstreamUnreachable", 502, "the destination can't be reached"),
            Self::UpstreamTimeout => ("UpstreamTimeout", 504, "the destination did not answer in time"),
            Self::UpstreamUntrusted => (
                "UpstreamUntrusted",
                502,
                "the destination's certificate is not valid for its name",
            ),
        }
    }
}

impl std::fmt::Display for Deny {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

impl std::error::Error for Deny {}

impl Serialize for Deny {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

/// Longest host or policy name in an answer, in bytes.
const TEXT_MAX: usize = 261;

/// The answer's body. `error` repeats reason and message where clients of model providers look for them.
#[must_use]
pub fn body(deny: Deny, host: &str, policy: &str) -> Vec<u8> {
    #[derive(Serialize)]
    struct Body<'a> {
        reason: Deny,
        host: &'a str,
        policy: &'a str,
        message: &'static str,
        error: Error,
    }
    #[derive(Serialize)]
    struct Error {
        r#type: Deny,
        message: &'static str,
    }
    let body = Body {
        reason: deny,
        host: &crate::record::plain(host, TEXT_MAX),
        policy: &crate::record::plain(policy, TEXT_MAX),
        message: deny.message(),
        error: Error {
            r#type: deny,
            message: deny.message(),
        },
    };
    // Strings and structs always serialise; an empty body would still carry the right status.
    serde_json::to_vec(&body).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn each_reason_has_a_name_of_its_own_and_an_error_status() {
        let names: BTreeSet<_> = Deny::ALL.iter().map(|deny| deny.as_str()).collect();
        assert_eq!(names.len(), Deny::ALL.len());
        for deny in Deny::ALL {
            assert_eq!(format!("{deny:?}"), deny.as_str());
            assert!(
                [400, 403, 407, 413, 421, 429, 502, 503, 504].contains(&deny.status()),
                "{deny}"
            );
            assert!(!deny.message().is_empty());
        }
    }

    #[test]
    fn the_body_says_what_was_refused_in_both_places_where_clients_look() {
        let body = body(Deny::HostNotAllowed, "evil.example", "default");
        let json: serde_json::Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(
            json,
            serde_json::json!({
                "reason": "HostNotAllowed", "host": "evil.example", "policy": "default",
                "message": "no rule of the policy names this host",
                "error": {"type": "HostNotAllowed", "message": "no rule of the policy names this host"},
            })
        );
    }

    #[test]
    fn the_body_is_bounded_and_free_of_control_characters_whatever_the_host() {
        let host = "\u{1b}[31m\u{202e}\n".repeat(10_000);
        let body = body(Deny::NameMalformed, &host, &host);
        assert!(body.len() < 2_000);
        assert!(body.iter().all(|byte| (0x20..0x7f).contains(byte)));
    }
}
