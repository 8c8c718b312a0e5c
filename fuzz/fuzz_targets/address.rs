//! Addresses that a name server answers, and lists of ranges.
#![no_main]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use agentsandbox_egress::address::{ClusterRanges, check, never, never_within};
use agentsandbox_fuzz::bounded;
use ipnet::IpNet;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let everything: [IpNet; 2] = [
        IpNet::new(Ipv4Addr::UNSPECIFIED.into(), 0).expect("a range"),
        IpNet::new(Ipv6Addr::UNSPECIFIED.into(), 0).expect("a range"),
    ];
    let none = ClusterRanges::default();
    if let Some(bytes) = data.first_chunk::<16>() {
        let v6 = Ipv6Addr::from(*bytes);
        let v4 = Ipv4Addr::from([bytes[0], bytes[1], bytes[2], bytes[3]]);
        for address in [IpAddr::V6(v6), IpAddr::V4(v4), IpAddr::V6(v4.to_ipv6_mapped())] {
            let verdict = check(address, &none, &everything);
            assert_eq!(verdict.is_err(), never(address).is_some(), "{address}");
            if check(address, &none, &[]).is_ok() {
                assert!(verdict.is_ok(), "a rule opens, it closes nothing");
            }
            if address.is_loopback() || address.is_unspecified() || address.is_multicast() {
                assert!(verdict.is_err(), "{address}");
            }
            // An IPv4 address in the clothes of IPv6 is no way around what is refused of IPv4.
            if let IpAddr::V6(inner) = address
                && inner.to_ipv4().is_some()
            {
                assert!(verdict.is_err(), "{address}");
            }
            let mut cluster = ClusterRanges::default();
            cluster.insert(address);
            assert!(check(address, &cluster, &everything).is_err());
            let prefix = data.get(16).copied().unwrap_or(24) % 129;
            if let Ok(net) = IpNet::new(address, prefix)
                && never_within(net).is_none()
            {
                assert!(
                    never(address).is_none(),
                    "{net} can be opened, and holds {address}"
                );
            }
        }
    }
    if let Ok(text) = std::str::from_utf8(data) {
        let ranges = bounded(data, 16 << 10, 200, || ClusterRanges::parse(text));
        if ranges.is_ok()
            && let Some(first) = text
                .split(|character: char| character == ',' || character.is_ascii_whitespace())
                .find_map(|entry| entry.parse::<IpAddr>().ok())
        {
            assert!(check(first, &ranges.expect("read"), &everything).is_err());
        }
    }
});
