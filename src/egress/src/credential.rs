//! Credentials: which header, from which Secret, and whether the Secret agrees to the host.

use agentsandbox_api::policy;
use http::{HeaderName, HeaderValue};

use crate::deny::Deny;
use crate::headers;
use crate::name::HostName;

/// Longest value of a Secret that becomes a header, in bytes.
pub const VALUE_MAX: usize = 8 << 10;
/// Longest list of consented hosts, in bytes.
pub const CONSENT_MAX: usize = 64 << 10;

/// A header that the gateway adds to requests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Credential {
    /// Name of the Secret, and of the folder it is mounted at.
    pub secret: String,
    /// Key in the Secret, and name of the file in that folder.
    pub key: String,
    /// The header. What the sandbox sends by this name is removed.
    pub header: HeaderName,
    /// What stands before the Secret's value in the header.
    pub prefix: String,
    /// What stands after it.
    pub suffix: String,
}

impl Credential {
    /// Checks a credential as written.
    ///
    /// # Errors
    /// Every problem, each with the name of its field below `credential`.
    pub fn parse(spec: &policy::Credential) -> Result<Self, Vec<(&'static str, String)>> {
        let mut problems = Vec::new();
        if !is_dns_subdomain(&spec.secret_ref.name) {
            problems.push(("secretRef.name", "is no name of a Secret".to_owned()));
        }
        if !is_secret_key(&spec.secret_ref.key) {
            problems.push(("secretRef.key", "is no key of a Secret".to_owned()));
        } else if spec.secret_ref.key == agentsandbox_api::gateway::CONSENT_KEY {
            problems.push((
                "secretRef.key",
                "is the list of hosts, not a credential".to_owned(),
            ));
        }
        let header = HeaderName::from_bytes(spec.header.as_bytes())
            .ok()
            .filter(|name| name.as_str().len() <= 64);
        match &header {
            None => problems.push(("header", "is no name of a header".to_owned())),
            Some(name) if !headers::may_carry_a_credential(name) => {
                problems.push((
                    "header",
                    format!("{name} frames or routes requests and can't carry a credential"),
                ));
            }
            Some(_) => {}
        }
        let format = spec.format.split_once("{}").filter(|(prefix, suffix)| {
            let is_plain = |text: &str| {
                text.bytes()
                    .all(|byte| (0x20..0x7f).contains(&byte) && !matches!(byte, b'{' | b'}'))
            };
            spec.format.len() <= 128 && is_plain(prefix) && is_plain(suffix)
        });
        if format.is_none() {
            problems.push(("format", "must be printable ASCII with exactly one {}".to_owned()));
        }
        match (header, format) {
            (Some(header), Some((prefix, suffix))) if problems.is_empty() => Ok(Self {
                secret: spec.secret_ref.name.clone(),
                key: spec.secret_ref.key.clone(),
                header,
                prefix: prefix.to_owned(),
                suffix: suffix.to_owned(),
            }),
            _ => Err(problems),
        }
    }

    /// The header's value for the Secret's, marked as sensitive.
    ///
    /// # Errors
    /// [`Deny::CredentialUnavailable`] if the value is empty, too long, or has anything but visible ASCII and inner
    /// spaces: CR, LF and NUL above all, also at its end.
    pub fn value(&self, secret: &[u8]) -> Result<HeaderValue, Deny> {
        let is_usable = !secret.is_empty()
            && secret.len() <= VALUE_MAX
            && secret.iter().all(|byte| (0x20..0x7f).contains(byte))
            && secret.first() != Some(&b' ')
            && secret.last() != Some(&b' ');
        if !is_usable {
            return Err(Deny::CredentialUnavailable);
        }
        let value = [self.prefix.as_bytes(), secret, self.suffix.as_bytes()].concat();
        let mut value = HeaderValue::from_bytes(&value).map_err(|_| Deny::CredentialUnavailable)?;
        value.set_sensitive(true);
        Ok(value)
    }
}

/// Whether the list in a Secret names exactly this host: one name a line, blank lines and those that begin with `#`
/// aside. A wildcard in it names nothing.
///
/// # Errors
/// [`Deny::CredentialUnavailable`] if it does not, or is no text of at most [`CONSENT_MAX`] bytes.
pub fn consent(list: &[u8], host: &HostName) -> Result<(), Deny> {
    let list = std::str::from_utf8(list)
        .ok()
        .filter(|list| list.len() <= CONSENT_MAX)
        .ok_or(Deny::CredentialUnavailable)?;
    list.lines()
        .map(str::trim_ascii)
        .filter(|line| !line.starts_with('#'))
        .any(|line| HostName::parse(line).is_ok_and(|name| name == *host))
        .then_some(())
        .ok_or(Deny::CredentialUnavailable)
}

/// A name of a Kubernetes object (RFC 1123 subdomain). It becomes a folder's name, so nothing else may pass.
fn is_dns_subdomain(name: &str) -> bool {
    (1..=253).contains(&name.len())
        && name.split('.').all(|label| {
            let bytes = label.as_bytes();
            !bytes.is_empty()
                && bytes
                    .iter()
                    .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || *byte == b'-')
                && bytes.first() != Some(&b'-')
                && bytes.last() != Some(&b'-')
        })
}

/// A key of a Secret. It becomes a file's name.
fn is_secret_key(key: &str) -> bool {
    (1..=253).contains(&key.len())
        && key
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.'))
        && key != "."
        && !key.starts_with("..")
}

#[cfg(test)]
mod tests {
    use agentsandbox_api::gateway::CONSENT_KEY;
    use agentsandbox_api::policy::SecretKey;
    use proptest::prelude::*;

    use super::*;

    fn spec(header: &str, format: &str) -> policy::Credential {
        policy::Credential {
            secret_ref: SecretKey {
                name: "token".to_owned(),
                key: "value".to_owned(),
            },
            header: header.to_owned(),
            format: format.to_owned(),
        }
    }

    fn bearer() -> Credential {
        Credential::parse(&spec("Authorization", "Bearer {}")).unwrap()
    }

    #[test]
    fn usual_headers_and_formats_are_taken() {
        for (header, format, value) in [
            ("Authorization", "Bearer {}", "Bearer s3cret"),
            ("authorization", "Basic {}", "Basic s3cret"),
            ("X-Api-Key", "{}", "s3cret"),
            ("PRIVATE-TOKEN", "{}", "s3cret"),
            ("Authorization", "Token token=\"{}\"", "Token token=\"s3cret\""),
        ] {
            let credential = Credential::parse(&spec(header, format)).unwrap();
            let made = credential.value(b"s3cret").unwrap();
            assert_eq!(made, value);
            assert!(made.is_sensitive());
        }
    }

    #[test]
    fn headers_that_frame_or_route_are_refused() {
        for header in [
            "Host",
            "Cookie",
            "Set-Cookie",
            "Content-Length",
            "Content-Type",
            "Transfer-Encoding",
            "Connection",
            "Keep-Alive",
            "TE",
            "Trailer",
            "Upgrade",
            "Proxy-Authorization",
            "Proxy-Connection",
            "Proxy-Anything",
            "X-Forwarded-For",
            "X-Forwarded-Host",
            "Forwarded",
            "Via",
            "X-Original-URL",
            "X-Rewrite-URL",
            "X-HTTP-Method-Override",
            "Expect",
            "Range",
            "If-Match",
            "Accept-Encoding",
            "HTTP2-Settings",
            "Sec-WebSocket-Key",
            "X_Api_Key",
            ":authority",
            "",
            "a b",
            "a\r\nb",
        ] {
            let problems = Credential::parse(&spec(header, "{}")).unwrap_err();
            assert_eq!(problems[0].0, "header", "{header}");
        }
    }

    #[test]
    fn formats_have_one_place_for_the_value_and_nothing_unprintable() {
        for format in [
            "",
            "Bearer",
            "{} {}",
            "{{}}",
            "{",
            "Bearer {}\r\nHost: x",
            "Bär {}",
            "\t{}",
            &"a".repeat(200),
        ] {
            let problems = Credential::parse(&spec("Authorization", format)).unwrap_err();
            assert_eq!(problems[0].0, "format", "{format:?}");
        }
    }

    #[test]
    fn a_secret_is_named_as_kubernetes_names_them_so_that_no_path_leads_out_of_its_folder() {
        for (name, key, field) in [
            ("", "k", "secretRef.name"),
            ("../other", "k", "secretRef.name"),
            ("a/b", "k", "secretRef.name"),
            ("A", "k", "secretRef.name"),
            ("a..b", "k", "secretRef.name"),
            ("-a", "k", "secretRef.name"),
            ("a", "", "secretRef.key"),
            ("a", "..", "secretRef.key"),
            ("a", "..data", "secretRef.key"),
            ("a", ".", "secretRef.key"),
            ("a", "b/c", "secretRef.key"),
            ("a", CONSENT_KEY, "secretRef.key"),
        ] {
            let mut spec = spec("Authorization", "{}");
            spec.secret_ref = SecretKey {
                name: name.to_owned(),
                key: key.to_owned(),
            };
            assert_eq!(Credential::parse(&spec).unwrap_err()[0].0, field, "{name} {key}");
        }
    }

    #[test]
    fn every_problem_is_told_at_once() {
        let mut spec = spec("Host", "");
        spec.secret_ref.name = "/".to_owned();
        spec.secret_ref.key = "/".to_owned();
        let fields: Vec<_> = Credential::parse(&spec)
            .unwrap_err()
            .into_iter()
            .map(|(field, _)| field)
            .collect();
        assert_eq!(fields, ["secretRef.name", "secretRef.key", "header", "format"]);
    }

    #[test]
    fn values_that_are_no_plain_text_are_refused() {
        let long = vec![b'a'; VALUE_MAX + 1];
        for value in [
            &b""[..],
            b"abc\n",
            b"abc\r\n",
            b"a\nHost: evil",
            b"a\0b",
            b"a\tb",
            b"\xff\xfe",
            " a".as_bytes(),
            b"a ",
            "ü".as_bytes(),
            &long,
        ] {
            assert_eq!(
                bearer().value(value),
                Err(Deny::CredentialUnavailable),
                "{value:?}"
            );
        }
        assert!(bearer().value(&vec![b'a'; VALUE_MAX]).is_ok());
    }

    #[test]
    fn a_host_is_consented_to_by_its_exact_name() {
        let host = HostName::parse("api.example.org").unwrap();
        for (list, consents) in [
            (&b"api.example.org"[..], true),
            (b"api.example.org\n", true),
            (b"other.org\r\n  API.example.org  \r\n", true),
            (b"# hosts\napi.example.org", true),
            (b"", false),
            (b"\n\n", false),
            (b"example.org", false),
            (b"*.example.org", false),
            (b"*", false),
            (b"api.example.org.evil.com", false),
            (b"evil-api.example.org", false),
            (b"#api.example.org", false),
            (b"api.example.org,other.org", false),
            (b"api.example.org:443", false),
            (b"api.example.org\xff", false),
        ] {
            let found = consent(list, &host).is_ok();
            assert_eq!(found, consents, "{}", String::from_utf8_lossy(list));
        }
        let long = [vec![b'\n'; CONSENT_MAX], b"api.example.org".to_vec()].concat();
        assert_eq!(consent(&long, &host), Err(Deny::CredentialUnavailable));
    }

    proptest! {
        #[test]
        fn any_list_consents_to_a_host_only_by_a_line_with_its_name(list in proptest::collection::vec(any::<u8>(), 0..300)) {
            let host = HostName::parse("a.b").unwrap();
            if consent(&list, &host).is_ok() {
                prop_assert!(list.to_ascii_lowercase().split(|byte| *byte == b'\n').any(|line| line.trim_ascii() == b"a.b"));
            }
        }

        #[test]
        fn any_value_is_refused_or_a_header_of_one_line(value in proptest::collection::vec(any::<u8>(), 0..100)) {
            if let Ok(header) = bearer().value(&value) {
                prop_assert_eq!(header.as_bytes(), [b"Bearer ", &value[..]].concat());
                prop_assert!(header.as_bytes().iter().all(|byte| (0x20..0x7f).contains(byte)));
            }
        }
    }
}
