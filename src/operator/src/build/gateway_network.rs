//! What the egress gateway's own pods may be reached by, and reach: a second line behind the gateway's own checks.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use agentsandbox_api::{gateway, names};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use k8s_openapi::api::networking::v1::{
    IPBlock, NetworkPolicy, NetworkPolicyEgressRule, NetworkPolicyIngressRule, NetworkPolicyPeer,
    NetworkPolicyPort, NetworkPolicySpec,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, LabelSelectorRequirement};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use crate::build::from_policy;
use crate::build::gateway::{Needs, ways_in};
use crate::cluster::ClusterAddresses;

/// Name of the policy for connections into the gateway.
pub const INGRESS_NAME: &str = "agentsandbox-gateway-ingress";
/// Name of the policy for connections of the gateway.
pub const EGRESS_NAME: &str = "agentsandbox-gateway-egress";

/// All of IPv4.
const ALL_V4: Ipv4Net = v4(0, 0, 0, 0, 0);
/// IPv4 that is not public: this network, private, shared, loopback, link-local with metadata, protocol assignments,
/// documentation, 6to4 relays, benchmarking, multicast and reserved (RFC 6890), and a metadata address outside of these.
const SPECIAL_V4: [Ipv4Net; 15] = [
    v4(0, 0, 0, 0, 8),
    v4(10, 0, 0, 0, 8),
    v4(100, 64, 0, 0, 10),
    v4(127, 0, 0, 0, 8),
    v4(168, 63, 129, 16, 32),
    v4(169, 254, 0, 0, 16),
    v4(172, 16, 0, 0, 12),
    v4(192, 0, 0, 0, 24),
    v4(192, 0, 2, 0, 24),
    v4(192, 88, 99, 0, 24),
    v4(192, 168, 0, 0, 16),
    v4(198, 18, 0, 0, 15),
    v4(198, 51, 100, 0, 24),
    v4(203, 0, 113, 0, 24),
    v4(224, 0, 0, 0, 3),
];
/// The assigned unicast space of IPv6.
const ALL_V6: Ipv6Net = v6(0x2000, 0, 3);
/// What of it is not public: Teredo and protocol assignments, 6to4, documentation.
const SPECIAL_V6: [Ipv6Net; 4] = [
    v6(0x2001, 0, 23),
    v6(0x2001, 0x0db8, 32),
    v6(0x2002, 0, 16),
    v6(0x3fff, 0, 20),
];

const fn v4(a: u8, b: u8, c: u8, d: u8, prefix: u8) -> Ipv4Net {
    Ipv4Net::new_assert(Ipv4Addr::new(a, b, c, d), prefix)
}

const fn v6(a: u16, b: u16, prefix: u8) -> Ipv6Net {
    Ipv6Net::new_assert(Ipv6Addr::new(a, b, 0, 0, 0, 0, 0, 0), prefix)
}

/// Lets in sandboxes of the namespace, at the ports that are theirs, and the kubelet's probes.
#[must_use]
pub fn ingress(needs: &Needs) -> NetworkPolicy {
    let sandboxes = NetworkPolicyPeer {
        pod_selector: Some(LabelSelector {
            match_expressions: Some(vec![LabelSelectorRequirement {
                key: names::LABEL_SANDBOX.to_owned(),
                operator: "Exists".to_owned(),
                values: None,
            }]),
            match_labels: None,
        }),
        ..NetworkPolicyPeer::default()
    };
    policy(
        needs,
        INGRESS_NAME,
        NetworkPolicySpec {
            policy_types: Some(vec!["Ingress".to_owned()]),
            ingress: Some(vec![
                NetworkPolicyIngressRule {
                    from: Some(vec![sandboxes]),
                    ports: Some(
                        ways_in()
                            .map(|(number, protocol)| port(number, protocol))
                            .collect(),
                    ),
                },
                // The kubelet's address differs from node to node.
                NetworkPolicyIngressRule {
                    from: None,
                    ports: Some(vec![port(gateway::PORT_HEALTH, "TCP")]),
                },
            ]),
            ..NetworkPolicySpec::default()
        },
    )
}

/// Lets the gateway reach public addresses and what rules open, never the cluster; beside them the API server, which it
/// watches, and the cluster's DNS.
#[must_use]
pub fn egress(needs: &Needs, cluster: &ClusterAddresses) -> NetworkPolicy {
    let closed: Vec<IpNet> = cluster.nets().collect();
    let special = SPECIAL_V4
        .map(IpNet::V4)
        .into_iter()
        .chain(SPECIAL_V6.map(IpNet::V6))
        .chain(closed.iter().copied());
    let special: Vec<IpNet> = special.collect();
    let public = [IpNet::V4(ALL_V4), IpNet::V6(ALL_V6)]
        .into_iter()
        .filter_map(|all| block(all, &special));
    let opened = needs.opened.iter().filter_map(|range| block(*range, &closed));
    let mut rules = vec![
        NetworkPolicyEgressRule {
            to: Some(public.chain(opened).collect()),
            ports: None,
        },
        NetworkPolicyEgressRule {
            to: Some(name_servers(cluster)),
            ports: Some(vec![port(53, "UDP"), port(53, "TCP")]),
        },
    ];
    rules.extend(api_servers(cluster));
    policy(
        needs,
        EGRESS_NAME,
        NetworkPolicySpec {
            policy_types: Some(vec!["Egress".to_owned()]),
            egress: Some(rules),
            ..NetworkPolicySpec::default()
        },
    )
}

/// A range without those of `closed` that lie in it; `None` if one of them holds all of it.
fn block(range: IpNet, closed: &[IpNet]) -> Option<NetworkPolicyPeer> {
    if closed.iter().any(|net| net.contains(&range)) {
        return None;
    }
    let within: Vec<IpNet> = closed
        .iter()
        .filter(|net| range.contains(*net))
        .copied()
        .collect();
    let except: Vec<String> = IpNet::aggregate(&within).iter().map(IpNet::to_string).collect();
    Some(peer(IPBlock {
        cidr: range.to_string(),
        except: (!except.is_empty()).then_some(except),
    }))
}

/// The cluster's DNS by its usual labels, and by its Service's address where it is no pod of kube-system.
fn name_servers(cluster: &ClusterAddresses) -> Vec<NetworkPolicyPeer> {
    let selector = |key: &str, value: &str| {
        Some(LabelSelector {
            match_labels: Some(BTreeMap::from([(key.to_owned(), value.to_owned())])),
            match_expressions: None,
        })
    };
    let pods = NetworkPolicyPeer {
        namespace_selector: selector("kubernetes.io/metadata.name", "kube-system"),
        pod_selector: selector("k8s-app", "kube-dns"),
        ip_block: None,
    };
    std::iter::once(pods).chain(cluster.dns().map(single)).collect()
}

/// One rule for each port of the API server: its Service, and what stands behind it.
fn api_servers(cluster: &ClusterAddresses) -> Vec<NetworkPolicyEgressRule> {
    let mut by_port: BTreeMap<u16, BTreeSet<IpAddr>> = BTreeMap::new();
    for address in cluster.api_servers() {
        by_port.entry(address.port()).or_default().insert(address.ip());
    }
    by_port
        .into_iter()
        .map(|(number, addresses)| NetworkPolicyEgressRule {
            to: Some(addresses.into_iter().map(single).collect()),
            ports: Some(vec![port(number, "TCP")]),
        })
        .collect()
}

fn single(address: IpAddr) -> NetworkPolicyPeer {
    peer(IPBlock {
        cidr: IpNet::from(address).to_string(),
        except: None,
    })
}

fn peer(block: IPBlock) -> NetworkPolicyPeer {
    NetworkPolicyPeer {
        ip_block: Some(block),
        ..NetworkPolicyPeer::default()
    }
}

/// A port of a network policy.
#[must_use]
pub fn port(number: u16, protocol: &str) -> NetworkPolicyPort {
    NetworkPolicyPort {
        port: Some(IntOrString::Int(number.into())),
        protocol: Some(protocol.to_owned()),
        end_port: None,
    }
}

/// Pods of the gateway in the same namespace.
#[must_use]
pub fn gateway_pods() -> LabelSelector {
    LabelSelector {
        match_labels: Some(BTreeMap::from([(
            gateway::LABEL.0.to_owned(),
            gateway::LABEL.1.to_owned(),
        )])),
        match_expressions: None,
    }
}

fn policy(needs: &Needs, name: &str, spec: NetworkPolicySpec) -> NetworkPolicy {
    NetworkPolicy {
        metadata: from_policy(&needs.namespace, name.to_owned(), needs.owners.clone()),
        spec: Some(NetworkPolicySpec {
            pod_selector: Some(gateway_pods()),
            ..spec
        }),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::testing;

    fn needs(opened: &[&str]) -> Needs {
        Needs {
            namespace: "ns".into(),
            opened: opened.iter().map(|range| range.parse().unwrap()).collect(),
            ..Needs::default()
        }
    }

    #[test]
    fn sandboxes_come_in_and_nobody_else() {
        insta::assert_json_snapshot!(ingress(&needs(&[])));
    }

    #[test]
    fn the_gateway_reaches_public_addresses_its_name_servers_and_the_api_server() {
        insta::assert_json_snapshot!(egress(&needs(&[]), &testing::cluster()));
    }

    /// The blocks of the first rule.
    fn blocks(opened: &[&str], cluster: &ClusterAddresses) -> Vec<Value> {
        let policy = serde_json::to_value(egress(&needs(opened), cluster)).unwrap();
        let to = policy["spec"]["egress"][0]["to"].as_array().unwrap();
        to.iter().map(|peer| peer["ipBlock"].clone()).collect()
    }

    #[test]
    fn a_range_that_a_rule_opens_is_opened_without_the_cluster_in_it() {
        // The fixture's nodes are 192.168.7.1 and .2, its pods 10.244.0.0/16.
        let found = blocks(&["192.168.7.0/24", "192.168.8.0/24"], &testing::cluster());
        assert_eq!(
            found[2..],
            [
                json!({"cidr": "192.168.7.0/24", "except": ["192.168.7.1/32", "192.168.7.2/32"]}),
                json!({"cidr": "192.168.8.0/24"}),
            ]
        );
        let found = blocks(&["10.244.7.0/24"], &testing::cluster());
        assert_eq!(found.len(), 2, "a range of pods is opened by nothing: {found:?}");
    }

    #[test]
    fn public_addresses_of_the_cluster_are_closed() {
        let config = testing::config();
        let cluster = ClusterAddresses::gather(
            &testing::facts(),
            &config,
            &["93.184.216.9:443".parse().unwrap()],
            &[],
            &[],
        );
        let found = blocks(&[], &cluster);
        let except = found[0]["except"].as_array().unwrap();
        assert!(except.contains(&json!("93.184.216.9/32")), "{except:?}");
    }

    #[test]
    fn load_balancers_are_closed_in_what_is_public_and_in_what_rules_open() {
        let found = blocks(&["93.184.216.0/24"], &testing::cluster());
        for block in [&found[0], &found[2]] {
            let except = block["except"].as_array().unwrap();
            assert!(except.contains(&json!("93.184.216.34/32")), "{block}");
        }
    }
}
