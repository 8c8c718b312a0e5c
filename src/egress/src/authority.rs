//! Authorities: what stands in a CONNECT request, a `Host` header and `:authority`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::deny::Deny;
use crate::name::{HostName, NAME_MAX};

/// A destination as it was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Host {
    /// By name.
    Name(HostName),
    /// By address, in its usual form.
    Address(IpAddr),
}

impl std::fmt::Display for Host {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Name(name) => name.fmt(f),
            Self::Address(address) => address.fmt(f),
        }
    }
}

/// Longest authority, in bytes: a name, a colon and a port.
const AUTHORITY_MAX: usize = NAME_MAX + 6;

/// Reads `host:port`; without a port, `default_port` stands in, or the authority is malformed if that is `None` too.
/// User information, empty or padded ports and unusual spellings of addresses are refused.
///
/// # Errors
/// [`Deny::AddressLiteral`] for an address that is not written as it is usually printed, [`Deny::NameMalformed`] for
/// what is neither name nor address, [`Deny::RequestMalformed`] for a port that is none.
pub fn parse(text: &str, default_port: Option<u16>) -> Result<(Host, u16), Deny> {
    if text.is_empty() || text.len() > AUTHORITY_MAX || text.contains('@') {
        return Err(Deny::NameMalformed);
    }
    if let Some(rest) = text.strip_prefix('[') {
        let (address, rest) = rest.split_once(']').ok_or(Deny::AddressLiteral)?;
        let port = match rest.strip_prefix(':') {
            Some(port) => parse_port(port)?,
            None if rest.is_empty() => default_port.ok_or(Deny::RequestMalformed)?,
            None => return Err(Deny::RequestMalformed),
        };
        return Ok((Host::Address(canonical_v6(address)?), port));
    }
    let (host, port) = match text.split_once(':') {
        // More than one colon outside brackets: an IPv6 address that nobody can tell from its port.
        Some((_, port)) if port.contains(':') => return Err(Deny::AddressLiteral),
        Some((host, port)) => (host, parse_port(port)?),
        None => (text, default_port.ok_or(Deny::RequestMalformed)?),
    };
    match HostName::parse(host) {
        Ok(name) => Ok((Host::Name(name), port)),
        Err(Deny::AddressLiteral) => Ok((Host::Address(canonical_v4(host)?), port)),
        Err(deny) => Err(deny),
    }
}

fn canonical_v4(text: &str) -> Result<IpAddr, Deny> {
    match text.parse::<Ipv4Addr>() {
        Ok(address) if address.to_string() == text => Ok(address.into()),
        _ => Err(Deny::AddressLiteral),
    }
}

fn canonical_v6(text: &str) -> Result<IpAddr, Deny> {
    match text.parse::<Ipv6Addr>() {
        Ok(address) if address.to_string() == text => Ok(address.into()),
        _ => Err(Deny::AddressLiteral),
    }
}

fn parse_port(text: &str) -> Result<u16, Deny> {
    let is_plain = (1..=5).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_digit())
        && !text.starts_with('0');
    is_plain
        .then(|| text.parse().ok())
        .flatten()
        .ok_or(Deny::RequestMalformed)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn name(text: &str) -> Host {
        Host::Name(HostName::parse(text).unwrap())
    }

    fn address(text: &str) -> Host {
        Host::Address(text.parse().unwrap())
    }

    #[test]
    fn names_and_addresses_are_read_with_their_ports() {
        for (text, host, port) in [
            ("example.org:443", name("example.org"), 443),
            ("Example.ORG:8443", name("example.org"), 8443),
            ("example.org", name("example.org"), 80),
            ("10.1.2.3:5432", address("10.1.2.3"), 5432),
            ("10.1.2.3", address("10.1.2.3"), 80),
            ("[2001:4860::8888]:53", address("2001:4860::8888"), 53),
            ("[2001:4860::8888]", address("2001:4860::8888"), 80),
            ("example.org:65535", name("example.org"), 65535),
        ] {
            assert_eq!(parse(text, Some(80)), Ok((host, port)), "{text}");
        }
        assert_eq!(parse("example.org", None), Err(Deny::RequestMalformed));
    }

    #[test]
    fn an_address_counts_in_its_usual_form_only() {
        for text in [
            "2130706433:443",
            "0x7f.1:443",
            "0177.0.0.1:443",
            "127.1:443",
            "127.0.0.1.:443",
            "010.0.0.1:443",
            "1.2.3.4.5:443",
            "[::FFFF:1.2.3.4]:443",
            "[2001:4860:0::8888]:443",
            "[2001:4860::8888%eth0]:443",
            "[::1:443",
            "2001:4860::8888:443",
            "::1",
            "[1.2.3.4]:443",
            "[]:443",
        ] {
            assert_eq!(parse(text, Some(443)), Err(Deny::AddressLiteral), "{text}");
        }
    }

    #[test]
    fn user_information_bad_ports_and_nonsense_are_refused() {
        for (text, deny) in [
            ("user@example.org:443", Deny::NameMalformed),
            ("user:pass@example.org:443", Deny::NameMalformed),
            ("example.org@evil.org:443", Deny::NameMalformed),
            ("", Deny::NameMalformed),
            (":443", Deny::NameMalformed),
            ("example.org.:443", Deny::NameMalformed),
            ("exa mple.org:443", Deny::NameMalformed),
            ("example.org/:443", Deny::NameMalformed),
            ("example.org:", Deny::RequestMalformed),
            ("example.org:0", Deny::RequestMalformed),
            ("example.org:00443", Deny::RequestMalformed),
            ("example.org:+443", Deny::RequestMalformed),
            ("example.org: 443", Deny::RequestMalformed),
            ("example.org:65536", Deny::RequestMalformed),
            ("example.org:443443", Deny::RequestMalformed),
            ("example.org:https", Deny::RequestMalformed),
            ("[::1]443", Deny::RequestMalformed),
            ("[::1]:", Deny::RequestMalformed),
        ] {
            assert_eq!(parse(text, Some(443)), Err(deny), "{text:?}");
        }
        assert_eq!(parse(&"a.".repeat(200), Some(443)), Err(Deny::NameMalformed));
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused_and_reads_back(text in ".{0,300}") {
            if let Ok((host, port)) = parse(&text, Some(443)) {
                let again = match host {
                    Host::Address(IpAddr::V6(address)) => format!("[{address}]:{port}"),
                    _ => format!("{host}:{port}"),
                };
                prop_assert_eq!(parse(&again, None), Ok((host, port)));
            }
        }

        #[test]
        fn authority_like_text_is_read_or_refused_and_reads_back(text in "[\\[a-f0-9x.:\\]@%]{0,50}(:[0-9]{0,6})?") {
            if let Ok((host, port)) = parse(&text, Some(443)) {
                let again = match host {
                    Host::Address(IpAddr::V6(address)) => format!("[{address}]:{port}"),
                    _ => format!("{host}:{port}"),
                };
                prop_assert_eq!(parse(&again, None), Ok((host, port)));
            }
        }

        #[test]
        fn every_address_is_read_in_the_form_it_prints(bits in any::<u128>(), small in any::<u32>(), port in 1..=u16::MAX) {
            let (v6, v4) = (Ipv6Addr::from_bits(bits), Ipv4Addr::from_bits(small));
            prop_assert_eq!(parse(&format!("[{v6}]:{port}"), None), Ok((Host::Address(v6.into()), port)));
            prop_assert_eq!(parse(&format!("{v4}:{port}"), None), Ok((Host::Address(v4.into()), port)));
        }
    }
}
