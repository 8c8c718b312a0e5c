//! Which addresses can be reached: public ones, and private ones that a rule opens; some never.

use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use crate::deny::Deny;

/// The cluster's own ranges and addresses: Services, pods, nodes, the API server, the gateway. No rule opens them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClusterRanges {
    nets: Vec<IpNet>,
    addresses: HashSet<IpAddr>,
}

/// Most ranges and addresses of a list.
const CLUSTER_MAX: usize = 32_768;

impl ClusterRanges {
    /// Reads ranges and single addresses, separated by commas or white space.
    ///
    /// # Errors
    /// The first entry that is neither, or a list of more than 32,768.
    pub fn parse(list: &str) -> Result<Self, String> {
        let mut ranges = Self::default();
        for (count, entry) in list
            .split(|character: char| character == ',' || character.is_ascii_whitespace())
            .filter(|entry| !entry.is_empty())
            .enumerate()
        {
            if count >= CLUSTER_MAX {
                return Err(format!("more than {CLUSTER_MAX} ranges"));
            }
            match (entry.parse::<IpAddr>(), entry.parse::<IpNet>()) {
                (Ok(address), _) => ranges.insert(address),
                (_, Ok(net)) => ranges.nets.push(net.trunc()),
                _ => {
                    let entry: String = entry.chars().take(64).collect();
                    return Err(format!(
                        "{entry:?} is neither an address nor a range such as 10.96.0.0/12"
                    ));
                }
            }
        }
        ranges.nets.sort_unstable();
        ranges.nets.dedup();
        Ok(ranges)
    }

    /// Adds an address that became known later: a node's, the gateway's own.
    pub fn insert(&mut self, address: IpAddr) {
        self.addresses.insert(address.to_canonical());
    }

    /// Whether the address is the cluster's.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.addresses.contains(&address) || self.nets.iter().any(|net| net.contains(&address))
    }
}

/// IPv4 ranges that no rule opens, and why.
const NEVER_V4: &[(Ipv4Addr, u8, &str)] = &[
    (Ipv4Addr::new(0, 0, 0, 0), 8, "this network"),
    (Ipv4Addr::new(100, 100, 100, 200), 32, "metadata"),
    (Ipv4Addr::new(127, 0, 0, 0), 8, "loopback"),
    (Ipv4Addr::new(168, 63, 129, 16), 32, "metadata"),
    (Ipv4Addr::new(169, 254, 0, 0), 16, "link-local, metadata"),
    (Ipv4Addr::new(192, 0, 0, 0), 24, "protocol assignments, metadata"),
    (Ipv4Addr::new(192, 88, 99, 0), 24, "6to4 relays"),
    (Ipv4Addr::new(198, 18, 0, 0), 15, "benchmarking"),
    (Ipv4Addr::new(224, 0, 0, 0), 4, "multicast"),
    (Ipv4Addr::new(240, 0, 0, 0), 4, "reserved, broadcast"),
];

/// IPv4 ranges that are not public, and that a rule can open.
const PRIVATE_V4: &[(Ipv4Addr, u8)] = &[
    (Ipv4Addr::new(10, 0, 0, 0), 8),
    (Ipv4Addr::new(100, 64, 0, 0), 10),
    (Ipv4Addr::new(172, 16, 0, 0), 12),
    (Ipv4Addr::new(192, 0, 2, 0), 24),
    (Ipv4Addr::new(192, 168, 0, 0), 16),
    (Ipv4Addr::new(198, 51, 100, 0), 24),
    (Ipv4Addr::new(203, 0, 113, 0), 24),
];

/// IPv6 ranges that no rule opens, and why. Those that carry an IPv4 address are refused whole: whether the address in
/// them is harmless depends on who translates it. Everything outside 2000::/3 and fc00::/7 is refused as well.
const NEVER_V6: &[(Ipv6Addr, u8, &str)] = &[
    (v6(0, 0, 0), 8, "unspecified, loopback, an IPv4 address in IPv6"),
    (v6(0x0064, 0xff9b, 0), 32, "NAT64"),
    (v6(0x0064, 0xff9b, 1), 48, "NAT64"),
    (v6(0x0100, 0, 0), 16, "discard"),
    (v6(0x2001, 0, 0), 23, "Teredo, protocol assignments"),
    (v6(0x2002, 0, 0), 16, "6to4"),
    (v6(0xfd00, 0x0ec2, 0), 32, "metadata"),
    (v6(0xfd20, 0x00ce, 0), 32, "metadata"),
    (v6(0xfe80, 0, 0), 10, "link-local"),
    (v6(0xfec0, 0, 0), 10, "site-local"),
    (v6(0xff00, 0, 0), 8, "multicast"),
];

/// IPv6 ranges that are not public, and that a rule can open.
const PRIVATE_V6: &[(Ipv6Addr, u8)] = &[
    (v6(0x2001, 0x0db8, 0), 32),
    (v6(0x3fff, 0, 0), 20),
    (v6(0xfc00, 0, 0), 7),
];

const fn v6(first: u16, second: u16, third: u16) -> Ipv6Addr {
    Ipv6Addr::new(first, second, third, 0, 0, 0, 0, 0)
}

fn in_v4(address: Ipv4Addr, net: Ipv4Addr, prefix: u8) -> bool {
    (address.to_bits() ^ net.to_bits()).leading_zeros() >= u32::from(prefix)
}

fn in_v6(address: Ipv6Addr, net: Ipv6Addr, prefix: u8) -> bool {
    (address.to_bits() ^ net.to_bits()).leading_zeros() >= u32::from(prefix)
}

/// Why no rule opens this address; `None` if one can. Sources: the IANA special-purpose address registries (RFC 6890),
/// and the metadata addresses that the large clouds document.
#[must_use]
pub fn never(ip: IpAddr) -> Option<&'static str> {
    match ip {
        IpAddr::V4(ip) => NEVER_V4
            .iter()
            .find(|(net, prefix, _)| in_v4(ip, *net, *prefix))
            .map(|(_, _, why)| *why),
        IpAddr::V6(ip) => NEVER_V6
            .iter()
            .find(|(net, prefix, _)| in_v6(ip, *net, *prefix))
            .map(|(_, _, why)| *why)
            .or_else(|| {
                let is_unicast = in_v6(ip, v6(0x2000, 0, 0), 3) || in_v6(ip, v6(0xfc00, 0, 0), 7);
                (!is_unicast).then_some("not assigned")
            }),
    }
}

/// Why no rule can open the whole of this range: a part of it that [`never`] refuses. `None` if one can.
#[must_use]
pub fn never_within(net: IpNet) -> Option<&'static str> {
    let special = match net {
        IpNet::V4(net) => NEVER_V4
            .iter()
            .find(|(special, prefix, _)| net.contains(special) || in_v4(net.network(), *special, *prefix))
            .map(|(_, _, why)| *why),
        IpNet::V6(net) => NEVER_V6
            .iter()
            .find(|(special, prefix, _)| net.contains(special) || in_v6(net.network(), *special, *prefix))
            .map(|(_, _, why)| *why),
    };
    // A range that holds no special one lies in or out of the assigned space as a whole, unless it is wider than it.
    special
        .or_else(|| never(net.network()))
        .or_else(|| never(net.broadcast()))
}

/// Whether an address is on the public Internet.
fn is_public(ip: IpAddr) -> bool {
    never(ip).is_none()
        && match ip {
            IpAddr::V4(ip) => !PRIVATE_V4.iter().any(|(net, prefix)| in_v4(ip, *net, *prefix)),
            IpAddr::V6(ip) => !PRIVATE_V6.iter().any(|(net, prefix)| in_v6(ip, *net, *prefix)),
        }
}

/// Whether the gateway may dial `ip`: a public address, or a private one that `opened` contains; never the cluster's or
/// a special one.
///
/// # Errors
/// [`Deny::AddressForbidden`].
pub fn check(ip: IpAddr, cluster: &ClusterRanges, opened: &[IpNet]) -> Result<(), Deny> {
    if never(ip).is_some() || cluster.contains(ip) {
        return Err(Deny::AddressForbidden);
    }
    if is_public(ip) || opened.iter().any(|net| net.contains(&ip)) {
        return Ok(());
    }
    Err(Deny::AddressForbidden)
}
