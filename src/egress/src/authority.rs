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
