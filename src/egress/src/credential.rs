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
