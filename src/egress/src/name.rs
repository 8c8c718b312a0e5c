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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn host(text: &str) -> HostName {
        HostName::parse(text).unwrap()
    }

    #[test]
    fn names_are_fully_qualified_and_in_small_letters() {
        for (text, name) in [
            ("api.github.com", "api.github.com"),
            ("API.GitHub.Com", "api.github.com"),
            ("_dmarc.example.org", "_dmarc.example.org"),
            ("xn--mnchen-3ya.de", "xn--mnchen-3ya.de"),
            ("1.2.3.4.example", "1.2.3.4.example"),
            ("0x7f.example", "0x7f.example"),
            ("a.b", "a.b"),
        ] {
            assert_eq!(
                HostName::parse(text).map(|name| name.to_string()),
                Ok(name.to_owned()),
                "{text}"
            );
        }
    }

    #[test]
    fn what_is_no_name_is_refused() {
        let long_label = format!("{}.org", "a".repeat(64));
        let long_name = format!("{}org", "a.".repeat(126));
        for text in [
            "",
            ".",
            "localhost",
            "github",
            "github.com.",
            ".github.com",
            "git..hub.com",
            "-a.org",
            "a-.org",
            "a b.org",
            "a\0.org",
            "a\r\n.org",
            "münchen.de",
            "user@example.org",
            "example.org/path",
            "example.org?",
            "example.org%00",
            "*.example.org",
            "example.c_m",
            &long_label,
            &long_name,
        ] {
            assert_eq!(HostName::parse(text), Err(Deny::NameMalformed), "{text:?}");
        }
        assert!(HostName::parse(&format!("{}.org", "a".repeat(63))).is_ok());
    }

    #[test]
    fn an_address_is_no_name_in_any_spelling() {
        for text in [
            "127.0.0.1",
            "127.0.0.1.",
            "127.1",
            "2130706433",
            "0x7f000001",
            "0x7F.1",
            "0X7f.0.0.1",
            "017700000001",
            "0177.0.0.1",
            "1.2.3.4.5",
            "example.1",
            "example.0x1f",
            "example.0x",
            "::1",
            "[::1]",
            "[::ffff:127.0.0.1]",
            "fe80::1%eth0",
            "example.org:443",
        ] {
            assert_eq!(HostName::parse(text), Err(Deny::AddressLiteral), "{text:?}");
        }
    }

    #[test]
    fn a_wildcard_matches_what_is_below_and_nothing_else() {
        let pattern: HostPattern = "*.Example.org".parse().unwrap();
        assert_eq!(pattern.to_string(), "*.example.org");
        for (name, matches) in [
            ("a.example.org", true),
            ("a.b.example.org", true),
            ("example.org", false),
            ("evilexample.org", false),
            ("evil-example.org", false),
            ("a.example.org.evil.com", false),
            ("example.org.evil.com", false),
            ("a.example.orgx", false),
        ] {
            assert_eq!(pattern.matches(&host(name)), matches, "{name}");
        }
    }

    #[test]
    fn a_wildcard_stands_for_no_more_than_a_name_needs() {
        let pattern: HostPattern = "*.example.org".parse().unwrap();
        let below = |below: &str| pattern.matches(&host(&format!("{below}.example.org")));
        assert!(below("123e4567-e89b-12d3-a456-426614174000"));
        assert!(below(&"a".repeat(WILDCARD_LABEL_MAX)));
        assert!(!below(&"a".repeat(WILDCARD_LABEL_MAX + 1)));
        assert!(below("a.b.c.d"));
        assert!(!below(&["abcdefghi"; 10].join(".")));
    }

    #[test]
    fn a_pattern_is_a_name_or_one_star_before_a_name() {
        for text in [
            "*",
            "*.",
            "*.com",
            "*example.org",
            "*.*.example.org",
            "a.*.org",
            "**.example.org",
            "*.1.2.3.4",
            "",
        ] {
            assert!(text.parse::<HostPattern>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn an_exact_pattern_is_narrower_than_any_wildcard() {
        let specificity = |text: &str| text.parse::<HostPattern>().unwrap().specificity();
        assert!(specificity("a.b.org") > specificity("*.b.org"));
        assert!(specificity("a.org") > specificity("*.very.long.name.org"));
        assert!(specificity("*.a.b.org") > specificity("*.b.org"));
    }

    proptest! {
        #[test]
        fn any_text_is_a_name_that_reads_back_or_is_refused(text in ".{0,300}") {
            if let Ok(name) = HostName::parse(&text) {
                prop_assert_eq!(name.as_str(), text.to_ascii_lowercase());
                prop_assert_eq!(&HostName::parse(name.as_str()).unwrap(), &name);
                prop_assert!(name.as_str().parse::<std::net::IpAddr>().is_err());
            }
        }

        #[test]
        fn name_like_text_is_a_name_that_reads_back_or_is_refused(text in "[a-zA-Z0-9_.*-]{1,260}") {
            if let Ok(name) = HostName::parse(&text) {
                prop_assert!(name.as_str().len() <= NAME_MAX && name.as_str().contains('.'));
                prop_assert_eq!(&HostName::parse(name.as_str()).unwrap(), &name);
            }
            if let Ok(pattern) = text.parse::<HostPattern>() {
                prop_assert_eq!(pattern.to_string().parse::<HostPattern>(), Ok(pattern));
            }
        }

        #[test]
        fn no_number_that_resolvers_take_for_an_address_is_a_name(parts in proptest::collection::vec(any::<u32>(), 1..5), forms in proptest::collection::vec(0..3_u8, 5)) {
            let text: Vec<String> = parts.iter().zip(&forms).map(|(part, form)| match form {
                0 => part.to_string(),
                1 => format!("0x{part:x}"),
                _ => format!("0{part:o}"),
            }).collect();
            prop_assert_eq!(HostName::parse(&text.join(".")), Err(Deny::AddressLiteral));
        }

        #[test]
        fn a_wildcard_never_matches_its_own_domain_or_a_name_outside(domain in "[a-z]{1,8}\\.[a-z]{2,4}", other in "[a-z.-]{1,20}") {
            let pattern = HostPattern::Below(host(&domain));
            prop_assert!(!pattern.matches(&host(&domain)));
            if let Ok(name) = HostName::parse(&other) {
                let suffix = format!(".{domain}");
                prop_assert_eq!(pattern.matches(&name), name.as_str().ends_with(&suffix) && name.as_str().len() > suffix.len());
            }
        }
    }
}
