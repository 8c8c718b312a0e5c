//! Host names and the patterns of them that rules hold.

use std::fmt;
use std::str::FromStr;

use crate::deny::Deny;

/// Longest name, in bytes (RFC 1035, without the final dot).
pub const NAME_MAX: usize = 253;
/// Longest label, in bytes (RFC 1035).
pub const LABEL_MAX: usize = 63;
/// Longest label that a wildcard stands for, in bytes. Ordinary ones hold a UUID or a SHA-1 at most; those that carry
/// data to the name servers of the domain are as long as they can be.
pub const WILDCARD_LABEL_MAX: usize = 48;
/// Longest part of a name that a wildcard stands for, in bytes.
pub const WILDCARD_MAX: usize = 96;

/// A fully qualified host name: lower-case letters, digits, `-` and `_`, two labels at least, no final dot. An address
/// in any spelling is none, because the last label begins with a letter.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct HostName(Box<str>);

impl HostName {
    /// Reads a name; capital letters become small.
    ///
    /// # Errors
    /// [`Deny::AddressLiteral`] for what resolvers take for an address (`1.2.3.4`, `0x7f.1`, `2130706433`, `[::1]`),
    /// [`Deny::NameMalformed`] for everything else that is no name.
    pub fn parse(text: &str) -> Result<Self, Deny> {
        if text.is_empty() || text.len() > NAME_MAX + 1 {
            return Err(Deny::NameMalformed);
        }
        if looks_like_an_address(text) {
            return Err(Deny::AddressLiteral);
        }
        let mut labels = 0;
        for label in text.split('.') {
            labels += 1;
            let bytes = label.as_bytes();
            let well_formed = (1..=LABEL_MAX).contains(&bytes.len())
                && bytes
                    .iter()
                    .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
                && bytes.first() != Some(&b'-')
                && bytes.last() != Some(&b'-');
            if !well_formed {
                return Err(Deny::NameMalformed);
            }
        }
        let last = text.rsplit('.').next().unwrap_or_default();
        let is_top_level =
            last.as_bytes().first().is_some_and(u8::is_ascii_alphabetic) && !last.contains('_');
        if labels < 2 || text.len() > NAME_MAX || !is_top_level {
            return Err(Deny::NameMalformed);
        }
        Ok(Self(text.to_ascii_lowercase().into()))
    }

    /// The name, in small letters, without a final dot.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Whether the last part is a number as the parsers of addresses know it (the WHATWG URL standard, «ends in a number»),
/// or the whole is in the form of an IPv6 address.
fn looks_like_an_address(text: &str) -> bool {
    if text.contains([':', '[', ']']) {
        return true;
    }
    let text = text.strip_suffix('.').unwrap_or(text);
    let last = text.rsplit('.').next().unwrap_or_default();
    if !last.is_empty() && last.bytes().all(|byte| byte.is_ascii_digit()) {
        return true;
    }
    last.strip_prefix("0x")
        .or_else(|| last.strip_prefix("0X"))
        .is_some_and(|digits| digits.bytes().all(|byte| byte.is_ascii_hexdigit()))
}

impl fmt::Display for HostName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for HostName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for HostName {
    type Err = Deny;

    fn from_str(text: &str) -> Result<Self, Deny> {
        Self::parse(text)
    }
}

/// Which names a rule speaks of.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum HostPattern {
    /// This name.
    Exact(HostName),
    /// Every name below this one, and not this one itself: `*.example.org`.
    Below(HostName),
}

impl HostPattern {
    /// Whether the pattern speaks of `host`. What a wildcard stands for is bounded by [`WILDCARD_MAX`] and
    /// [`WILDCARD_LABEL_MAX`].
    #[must_use]
    pub fn matches(&self, host: &HostName) -> bool {
        match self {
            Self::Exact(name) => name == host,
            Self::Below(name) => host
                .as_str()
                .strip_suffix(name.as_str())
                .and_then(|rest| rest.strip_suffix('.'))
                .is_some_and(|below| {
                    !below.is_empty()
                        && below.len() <= WILDCARD_MAX
                        && below.split('.').all(|label| label.len() <= WILDCARD_LABEL_MAX)
                }),
        }
    }

    /// How narrow the pattern is: of two that match the same host, the one with the greater value says more about it.
    #[must_use]
    pub fn specificity(&self) -> (bool, usize) {
        match self {
            Self::Exact(name) => (true, name.as_str().len()),
            Self::Below(name) => (false, name.as_str().len()),
        }
    }

    /// The name itself, or the name below which the pattern matches.
    #[must_use]
    pub fn name(&self) -> &HostName {
        match self {
            Self::Exact(name) | Self::Below(name) => name,
        }
    }

    /// Whether the pattern matches more than one name.
    #[must_use]
    pub fn is_wildcard(&self) -> bool {
        matches!(self, Self::Below(_))
    }
}

impl FromStr for HostPattern {
    type Err = Deny;

    fn from_str(text: &str) -> Result<Self, Deny> {
        match text.strip_prefix("*.") {
            Some(name) => Ok(Self::Below(HostName::parse(name)?)),
            None => Ok(Self::Exact(HostName::parse(text)?)),
        }
    }
}

impl fmt::Display for HostPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(name) => fmt::Display::fmt(name, f),
            Self::Below(name) => write!(f, "*.{name}"),
        }
    }
}
