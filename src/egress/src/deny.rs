//! Why something was refused, and the answer that says so to a program.

use serde::{Serialize, Serializer};

macro_rules! reasons {
    ($($(#[$doc:meta])* $name:ident = $status:literal, $message:literal;)*) => {
        /// Why something was refused. The names are what the sandbox is answered, what the log says and what the status
        /// counts.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Deny {
            $($(#[$doc])* $name,)*
        }

        impl Deny {
            /// All reasons.
            pub const ALL: &[Self] = &[$(Self::$name),*];

            /// The reason's name, as answered, logged and counted.
            #[must_use]
            pub fn as_str(self) -> &'static str {
                match self {
                    $(Self::$name => stringify!($name),)*
                }
            }

            /// The HTTP status of the answer.
            #[must_use]
            pub fn status(self) -> u16 {
                match self {
                    $(Self::$name => $status,)*
                }
            }

            /// One sentence for the person or agent who reads the answer.
            #[must_use]
            pub fn message(self) -> &'static str {
                match self {
                    $(Self::$name => $message,)*
                }
            }
        }
    };
}

// Each reason with the status and the sentence of its answer.
reasons! {
    /// No rule names the host.
    HostNotAllowed = 403, "no rule of the policy names this host";
    /// A rule names the host, on other ports.
    PortNotAllowed = 403, "the policy allows this host on other ports only";
    /// A rule names the host and port, for TLS where plain HTTP was asked, or the other way round.
    SchemeNotAllowed = 403, "the policy does not allow this host in this way (https or plain http)";
    /// No rule of the host allows the method.
    MethodNotAllowed = 403, "the policy does not allow this method at this host";
    /// No rule of the host allows the path.
    PathNotAllowed = 403, "the policy does not allow this path at this host";
    /// The path could mean another one to the server than to the rules.
    PathMalformed = 400, "the path has dot segments, empty segments or characters that are not allowed";
    /// The name is no fully qualified host name.
    NameMalformed = 400, "this is no fully qualified host name";
    /// An address stands where a name must be, or is not written in its usual form.
    AddressLiteral = 403, "hosts are reached by name; addresses only where a cidr rule of the policy allows them";
    /// The name leads to an address that no rule opens: private, the cluster's, or special.
    AddressForbidden = 403, "the destination's address is private, the cluster's own or special, and no rule opens it";
    /// The TLS client did not say which name it wants.
    ServerNameMissing = 421, "the TLS client must send a server name";
    /// The TLS client wants another name than it connected to.
    ServerNameMismatch = 421, "the TLS server name is not the host that was connected to";
    /// The TLS client hides the name it wants.
    EncryptedClientHello = 403, "encrypted client hellos are not allowed: the name must be visible";
    /// Something else than TLS came where only TLS is allowed.
    NotTls = 403, "only TLS is allowed to this host and port";
    /// The request names another host than its connection.
    HostMismatch = 421, "the request names another host than its connection";
    /// No run is registered at the address that the connection came from, or more than one.
    UnknownSandbox = 403, "no running sandbox is registered at this address";
    /// The run's token is missing.
    TokenRequired = 407, "the run's token is required";
    /// The token is not this run's.
    TokenWrong = 407, "the token is not that of this run";
    /// The Secret is missing, does not consent to the host, or holds what is no header value.
    CredentialUnavailable = 403, "the credential for this host is missing, unusable or not consented to by its Secret";
    /// More than one rule matches a request to which a credential would be added.
    CredentialAmbiguous = 403, "more than one rule matches this request, and one of them adds a credential";
    /// The body is larger than the rule allows.
    RequestTooLarge = 413, "the request is larger than the policy allows";
    /// A part of a document was asked of a host to which a credential is added.
    RangeNotAllowed = 403, "range requests are not allowed where a credential is added";
    /// The connection would turn into another protocol.
    UpgradeNotAllowed = 403, "the policy does not allow a change of protocol here";
    /// The path at a model's host is no metered endpoint.
    EndpointNotMetered = 403, "this endpoint of the model provider is not offered";
    /// The model is not on the policy's list.
    ModelNotAllowed = 403, "the policy does not allow this model";
    /// The request has a field that is not on the list of those known to be harmless.
    FieldNotAllowed = 400, "the request has a field that is not allowed";
    /// The request asks for a tool that the provider would run.
    ServerToolNotAllowed = 403, "the policy does not allow this tool of the provider's";
    /// The body is not what the endpoint takes.
    BodyMalformed = 400, "the body is not what this endpoint takes";
    /// The body is compressed.
    EncodingNotAllowed = 400, "compressed bodies are not allowed here";
    /// The run's tokens are used up, or what is left can't cover the request.
    TokenBudgetExceeded = 429, "the run's token budget is used up, or too small for this request";
    /// The run's model requests are used up.
    ModelRequestBudgetExceeded = 429, "the run's model requests are used up";
    /// The run's steps are used up.
    StepBudgetExceeded = 429, "the run's steps are used up";
    /// The run's bytes are used up.
    EgressByteBudgetExceeded = 429, "the bytes that the run may exchange are used up";
    /// What all runs of the policy may spend is used up.
    PolicyQuotaExceeded = 429, "what all runs of the policy together may spend is used up";
    /// The sandbox has as many connections as it may.
    TooManyConnections = 429, "the sandbox has too many connections";
    /// The sandbox asks faster than it may.
    TooManyRequests = 429, "the sandbox asks too fast, or for too much at once";
    /// The DNS question is of a kind that is not answered.
    QueryNotAllowed = 403, "this kind of DNS question is not answered";
    /// The gateway does not know its policies or pods yet.
    NotReady = 503, "the gateway is not ready yet";
    /// Decisions can't be recorded at the moment.
    LogFull = 503, "the gateway can't record decisions at the moment";
    /// The request is not well-formed HTTP, or could be read in two ways.
    RequestMalformed = 400, "the request is not well-formed";
    /// The destination could not be resolved or does not answer.
    UpstreamUnreachable = 502, "the destination can't be reached";
    /// The destination did not answer in time.
    UpstreamTimeout = 504, "the destination did not answer in time";
    /// The destination's certificate is not valid for its name.
    UpstreamUntrusted = 502, "the destination's certificate is not valid for its name";
}

impl Deny {
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
    body_with(deny, host, policy, "")
}

/// As [`body`], with what exactly is to blame (a field's name) at the end of the message.
#[must_use]
pub fn body_with(deny: Deny, host: &str, policy: &str, detail: &str) -> Vec<u8> {
    #[derive(Serialize)]
    struct Body<'a> {
        reason: Deny,
        host: &'a str,
        policy: &'a str,
        message: &'a str,
        error: Error<'a>,
    }
    #[derive(Serialize)]
    struct Error<'a> {
        r#type: Deny,
        message: &'a str,
    }
    let message = match detail {
        "" => deny.message().to_owned(),
        detail => format!("{}: {}", deny.message(), crate::record::plain(detail, TEXT_MAX)),
    };
    let body = Body {
        reason: deny,
        host: &crate::record::plain(host, TEXT_MAX),
        policy: &crate::record::plain(policy, TEXT_MAX),
        message: &message,
        error: Error {
            r#type: deny,
            message: &message,
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
        for deny in Deny::ALL.iter().copied() {
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
