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
    (Ipv4Addr::UNSPECIFIED, 8, "this network"),
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
    (v6(0x0064, 0xff9b, 0), 32, "NAT64"),
    (v6(0, 0, 0), 8, "unspecified, loopback, an IPv4 address in IPv6"),
    (v6(0x0100, 0, 0), 16, "discard"),
    (v6(0x2001, 0, 0), 23, "Teredo, protocol assignments"),
    (v6(0x2002, 0, 0), 16, "6to4"),
    (v6(0xfd00, 0x0042, 0), 32, "metadata"),
    (v6(0xfd00, 0x00c1, 0), 32, "metadata"),
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    const EVERYTHING: [&str; 2] = ["0.0.0.0/0", "::/0"];

    #[test]
    fn special_addresses_are_never_reached_whatever_is_opened() {
        let opened = EVERYTHING.map(net);
        for text in [
            "0.0.0.0",
            "0.1.2.3",
            "127.0.0.1",
            "127.255.255.254",
            "169.254.169.254",
            "169.254.0.1",
            "168.63.129.16",
            "100.100.100.200",
            "192.0.0.192",
            "192.88.99.1",
            "198.18.0.1",
            "198.19.255.255",
            "224.0.0.1",
            "239.255.255.255",
            "240.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "::127.0.0.1",
            "::ffff:8.8.8.8",
            "::ffff:127.0.0.1",
            "::ffff:0:8.8.8.8",
            "64:ff9b::8.8.8.8",
            "64:ff9b:1::10.0.0.1",
            "100::1",
            "2001::1",
            "2001:0:4136:e378:8000:63bf:3fff:fdd2",
            "2001:10::1",
            "2001:20::1",
            "2002:7f00:1::",
            "2002:808:808::1",
            "fd00:42::42",
            "fd00:c1::a9fe:a9fe",
            "fd00:ec2::254",
            "fd20:ce::254",
            "fe80::1",
            "fec0::1",
            "ff02::1",
            "4000::1",
            "5f00::1",
            "9999::1",
        ] {
            assert!(never(ip(text)).is_some(), "{text}");
            assert_eq!(
                check(ip(text), &ClusterRanges::default(), &opened),
                Err(Deny::AddressForbidden),
                "{text}"
            );
        }
    }

    #[test]
    fn private_addresses_are_reached_only_where_a_rule_opens_them() {
        for (text, range) in [
            ("10.1.2.3", "10.1.2.0/24"),
            ("172.16.0.1", "172.16.0.0/12"),
            ("172.31.255.255", "172.31.255.255/32"),
            ("192.168.1.1", "192.168.0.0/16"),
            ("100.64.0.1", "100.64.0.0/24"),
            ("192.0.2.1", "192.0.2.0/24"),
            ("203.0.113.9", "203.0.113.0/24"),
            ("fd12:3456::1", "fd12:3456::/32"),
            ("fc00::1", "fc00::/64"),
            ("2001:db8::1", "2001:db8::/32"),
            ("3fff::1", "3fff::/20"),
        ] {
            let none = ClusterRanges::default();
            assert_eq!(never(ip(text)), None, "{text}");
            assert_eq!(check(ip(text), &none, &[]), Err(Deny::AddressForbidden), "{text}");
            assert_eq!(check(ip(text), &none, &[net(range)]), Ok(()), "{text}");
            assert_eq!(
                check(ip(text), &none, &[net("10.99.0.0/16")]),
                Err(Deny::AddressForbidden),
                "{text}"
            );
            let cluster = ClusterRanges::parse(range).unwrap();
            assert_eq!(
                check(ip(text), &cluster, &[net(range)]),
                Err(Deny::AddressForbidden),
                "{text}"
            );
        }
    }

    #[test]
    fn public_addresses_are_reached_unless_they_are_the_clusters() {
        let cluster = ClusterRanges::parse("8.8.8.8, 2606:4700::/32").unwrap();
        for text in [
            "1.1.1.1",
            "172.32.0.1",
            "172.15.0.1",
            "192.169.0.1",
            "100.128.0.1",
            "2a00:1450::1",
            "2001:4860::8888",
        ] {
            assert_eq!(check(ip(text), &cluster, &[]), Ok(()), "{text}");
        }
        for text in ["8.8.8.8", "::ffff:8.8.8.8", "2606:4700::1111"] {
            assert_eq!(
                check(ip(text), &cluster, &EVERYTHING.map(net)),
                Err(Deny::AddressForbidden),
                "{text}"
            );
        }
    }

    #[test]
    fn cluster_ranges_are_read_from_lists() {
        let ranges = ClusterRanges::parse("10.96.0.0/12, 10.244.1.7/16\nfd00::/8 192.168.0.5,,").unwrap();
        for text in [
            "10.96.0.1",
            "10.244.200.1",
            "fd00::1",
            "192.168.0.5",
            "::ffff:10.96.0.1",
        ] {
            assert!(ranges.contains(ip(text)), "{text}");
        }
        assert!(!ranges.contains(ip("192.168.0.6")));
        assert_eq!(ClusterRanges::parse(""), Ok(ClusterRanges::default()));
        for wrong in ["10.0.0.0/33", "cluster.local", "10.0.0", "10.0.0.0/8;"] {
            assert!(
                ClusterRanges::parse(wrong).unwrap_err().contains("neither"),
                "{wrong}"
            );
        }
        let many = "10.0.0.1,".repeat(CLUSTER_MAX + 1);
        assert!(ClusterRanges::parse(&many).unwrap_err().contains("more than"));
    }

    #[test]
    fn an_address_that_became_known_later_is_the_clusters_too() {
        let mut ranges = ClusterRanges::default();
        ranges.insert(ip("::ffff:5.6.7.8"));
        assert!(ranges.contains(ip("5.6.7.8")));
    }

    #[test]
    fn ranges_that_hold_a_special_address_are_told() {
        for (text, why) in [
            ("0.0.0.0/0", "this network"),
            ("100.64.0.0/10", "metadata"),
            ("168.63.0.0/16", "metadata"),
            ("127.0.0.0/24", "loopback"),
            ("169.254.169.254/32", "link-local, metadata"),
            ("128.0.0.0/1", "metadata"),
            ("240.0.0.0/8", "reserved, broadcast"),
            ("::/0", "NAT64"),
            (
                "::ffff:0.0.0.0/96",
                "unspecified, loopback, an IPv4 address in IPv6",
            ),
            ("64:ff9b::/96", "NAT64"),
            ("2000::/3", "Teredo, protocol assignments"),
            ("fd00::/8", "metadata"),
            ("fe80::/64", "link-local"),
            ("4000::/16", "not assigned"),
        ] {
            assert_eq!(never_within(net(text)), Some(why), "{text}");
        }
        for text in [
            "10.0.0.0/8",
            "192.168.0.0/16",
            "172.16.0.0/12",
            "100.64.0.0/11",
            "8.8.8.0/24",
            "fd12::/16",
            "2a00::/16",
        ] {
            assert_eq!(never_within(net(text)), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn a_range_that_can_be_opened_holds_no_special_address(bits in any::<u32>(), prefix in 0..=32_u8, host in any::<u32>(), v6 in any::<u128>(), prefix6 in 0..=128_u8, host6 in any::<u128>()) {
            let range = ipnet::Ipv4Net::new(Ipv4Addr::from_bits(bits), prefix).unwrap().trunc();
            if never_within(range.into()).is_none() {
                let inside = Ipv4Addr::from_bits(range.network().to_bits() | (host & range.hostmask().to_bits()));
                prop_assert_eq!(never(inside.into()), None, "{} in {}", inside, range);
            }
            let range = ipnet::Ipv6Net::new(Ipv6Addr::from_bits(v6), prefix6).unwrap().trunc();
            if never_within(range.into()).is_none() {
                let inside = Ipv6Addr::from_bits(range.network().to_bits() | (host6 & range.hostmask().to_bits()));
                prop_assert_eq!(never(inside.into()), None, "{} in {}", inside, range);
            }
        }

        #[test]
        fn opening_a_range_opens_nothing_outside_of_it(bits in any::<u32>(), prefix in 8..=32_u8, other in any::<u32>()) {
            let range: IpNet = ipnet::Ipv4Net::new(Ipv4Addr::from_bits(bits), prefix).unwrap().trunc().into();
            let other: IpAddr = Ipv4Addr::from_bits(other).into();
            let none = ClusterRanges::default();
            if !range.contains(&other) {
                prop_assert_eq!(check(other, &none, &[range]), check(other, &none, &[]));
            }
        }

        #[test]
        fn no_ipv4_address_is_reached_through_ipv6(bits in any::<u32>()) {
            let v4 = Ipv4Addr::from_bits(bits);
            let [a, b, c, d] = v4.octets().map(u128::from);
            let low = a << 24 | b << 16 | c << 8 | d;
            for form in [low, low | 0xffff << 32, low | 0xffff << 48, low | 0x0064_ff9b << 96, low << 80 | 0x2002 << 112] {
                prop_assert!(never(Ipv6Addr::from_bits(form).into()).is_some());
            }
        }

        #[test]
        fn any_list_is_read_or_refused(list in "[0-9a-f:./, \n]{0,200}") {
            let _ = ClusterRanges::parse(&list);
        }
    }
}
