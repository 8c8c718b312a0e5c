//! The cluster's own addresses, as far as they are known: no egress rule opens them.

use std::net::{IpAddr, SocketAddr};

use agentsandbox_egress::rules::{Destination, EgressPolicy};
use ipnet::IpNet;
use k8s_openapi::api::core::v1::{Node, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::ResourceExt;

use crate::config::Config;
use crate::facts::Facts;

/// Most addresses of one load balancer: more would make the network policies of all gateways too large.
const LOAD_BALANCER_MAX: usize = 64;

/// Addresses of nodes, pods, Services, load balancers and the API server.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClusterAddresses {
    /// Ranges, with what they are.
    known: Vec<(IpNet, String)>,
    api_servers: Vec<SocketAddr>,
    dns: Option<IpAddr>,
    /// How many of `known` do not come and go with nodes and load balancers; they lead.
    lasting: usize,
}

impl ClusterAddresses {
    /// Puts together what is configured, what was read at the start, and what is watched.
    #[must_use]
    pub fn gather(
        facts: &Facts,
        config: &Config,
        endpoints: &[SocketAddr],
        load_balancers: &[IpNet],
        nodes: &[NodeAddresses],
    ) -> Self {
        let mut known: Vec<(IpNet, String)> = config
            .cluster_ranges
            .0
            .iter()
            .map(|range| (*range, "the configured cluster range".to_owned()))
            .collect();
        let service = SocketAddr::new(facts.api_server.0, facts.api_server.1);
        let api_servers: Vec<SocketAddr> = std::iter::once(service)
            .chain(endpoints.iter().copied())
            .collect();
        for server in &api_servers {
            known.push((server.ip().into(), "the API server".to_owned()));
        }
        known.extend(
            facts
                .cluster_dns
                .map(|dns| (dns.into(), "the cluster's DNS".to_owned())),
        );
        known.extend(
            facts
                .canary
                .iter()
                .map(|canary| ((*canary).into(), "the operator".to_owned())),
        );
        let lasting = known.len();
        let balancers = load_balancers.iter();
        known.extend(balancers.map(|address| (*address, "a load balancer".to_owned())));
        for node in nodes {
            let what = format!("node {}", node.name);
            known.extend(node.ranges.iter().map(|range| (*range, what.clone())));
        }
        Self {
            known,
            api_servers,
            dns: facts.cluster_dns,
            lasting,
        }
    }

    /// All ranges, in order.
    pub fn nets(&self) -> impl Iterator<Item = IpNet> {
        let mut nets: Vec<IpNet> = self.known.iter().map(|(net, _)| *net).collect();
        nets.sort_unstable();
        nets.dedup();
        nets.into_iter()
    }

    /// Those that do not come and go with nodes and load balancers, for the gateway's own checks: one that changes
    /// replaces the gateway. The others are closed by its network policy; the configuration should name their ranges as
    /// well.
    #[must_use]
    pub fn lasting(&self) -> String {
        let mut nets: Vec<IpNet> = self.known[..self.lasting].iter().map(|(net, _)| *net).collect();
        nets.sort_unstable();
        nets.dedup();
        let texts: Vec<String> = nets.iter().map(IpNet::to_string).collect();
        texts.join(",")
    }

    /// The API server: its Service, and what stands behind it.
    pub fn api_servers(&self) -> impl Iterator<Item = SocketAddr> {
        self.api_servers.iter().copied()
    }

    /// The cluster's DNS.
    #[must_use]
    pub fn dns(&self) -> Option<IpAddr> {
        self.dns
    }

    /// Every rule that would open an address of the cluster, as a problem of its field.
    #[must_use]
    pub fn opened_by(&self, policy: &EgressPolicy) -> Vec<String> {
        let ranges = policy
            .rules()
            .iter()
            .enumerate()
            .filter_map(|(index, rule)| match rule.destination {
                Destination::Range(range) => Some((index, range)),
                Destination::Host(_) => None,
            });
        ranges
            .filter_map(|(index, range)| {
                let (net, what) = self
                    .known
                    .iter()
                    .find(|(net, _)| net.contains(&range) || range.contains(net))?;
                Some(format!(
                    "spec.egress.allow[{index}].cidr {range} holds addresses of the cluster, which no rule opens: {what} ({net})"
                ))
            })
            .collect()
    }
}

/// A node's addresses, and the ranges that its pods get.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeAddresses {
    /// The node's name.
    pub name: String,
    /// Its addresses, and its pods' ranges.
    pub ranges: Vec<IpNet>,
}

impl NodeAddresses {
    /// Reads a node; names and what can't be read are left out.
    #[must_use]
    pub fn of(node: &Node) -> Self {
        let addresses = node
            .status
            .iter()
            .flat_map(|status| status.addresses.iter().flatten())
            .filter_map(|address| address.address.parse::<IpAddr>().ok())
            .map(IpNet::from);
        let pods = node
            .spec
            .iter()
            .flat_map(|spec| spec.pod_cidrs.iter().flatten())
            .filter_map(|range| range.parse::<IpNet>().ok())
            .map(|range| range.trunc());
        let mut ranges: Vec<IpNet> = addresses.chain(pods).collect();
        ranges.sort_unstable();
        ranges.dedup();
        Self {
            name: node.name_any(),
            ranges,
        }
    }
}

/// Addresses by which a Service of type `LoadBalancer` is reached from outside of the cluster: what its load balancer
/// has given it, and what it lists itself. Host names and what can't be read are left out.
#[must_use]
pub fn load_balancer_addresses(service: &Service) -> Vec<IpNet> {
    let spec = service.spec.as_ref();
    let Some(spec) = spec.filter(|spec| spec.type_.as_deref() == Some("LoadBalancer")) else {
        return Vec::new();
    };
    let status = service.status.as_ref();
    let ingress = status
        .and_then(|status| status.load_balancer.as_ref())
        .into_iter()
        .flat_map(|balancer| balancer.ingress.iter().flatten());
    let mut addresses: Vec<IpNet> = ingress
        .filter_map(|ingress| ingress.ip.as_ref())
        .chain(spec.external_ips.iter().flatten())
        .filter_map(|address| address.parse::<IpAddr>().ok())
        .take(LOAD_BALANCER_MAX)
        .map(|address| address.to_canonical().into())
        .collect();
    addresses.sort_unstable();
    addresses
}

/// Addresses and ports of a slice's endpoints.
#[must_use]
pub fn endpoints(slice: &EndpointSlice) -> Vec<SocketAddr> {
    let ports: Vec<u16> = slice
        .ports
        .iter()
        .flatten()
        .filter_map(|port| u16::try_from(port.port?).ok())
        .collect();
    slice
        .endpoints
        .iter()
        .flatten()
        .flat_map(|endpoint| endpoint.addresses.iter())
        .filter_map(|address| address.parse::<IpAddr>().ok())
        .flat_map(|address| ports.iter().map(move |port| SocketAddr::new(address, *port)))
        .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::testing;

    #[test]
    fn a_node_has_its_addresses_and_its_pods() {
        let node: Node = serde_json::from_value(json!({
            "metadata": {"name": "a"},
            "spec": {"podCIDR": "10.244.1.0/24", "podCIDRs": ["10.244.1.0/24", "fd00:1::/64"]},
            "status": {"addresses": [{"type": "InternalIP", "address": "192.168.7.1"}, {"type": "Hostname", "address": "a"}]},
        }))
        .unwrap();
        let texts: Vec<String> = NodeAddresses::of(&node)
            .ranges
            .iter()
            .map(IpNet::to_string)
            .collect();
        assert_eq!(texts, ["10.244.1.0/24", "192.168.7.1/32", "fd00:1::/64"]);
    }

    fn load_balancer(spec: &serde_json::Value) -> Vec<String> {
        let service = serde_json::from_value(json!({
            "metadata": {"name": "web", "namespace": "shop"}, "spec": spec,
            "status": {"loadBalancer": {"ingress": [
                {"ip": "2001:db8::7"}, {"ip": "203.0.113.7", "ipMode": "VIP"}, {"hostname": "lb.example.org"}, {},
            ]}},
        }));
        let found = load_balancer_addresses(&service.unwrap());
        found.iter().map(IpNet::to_string).collect()
    }

    #[test]
    fn a_load_balancer_has_what_it_was_given_and_what_its_service_lists() {
        let external = json!(["198.51.100.7", "::ffff:198.51.100.8", "nonsense"]);
        let spec = json!({"type": "LoadBalancer", "clusterIP": "10.96.5.5", "externalIPs": external});
        assert_eq!(
            load_balancer(&spec),
            [
                "198.51.100.7/32",
                "198.51.100.8/32",
                "203.0.113.7/32",
                "2001:db8::7/128"
            ]
        );
        let spec = json!({"type": "NodePort", "externalIPs": external});
        assert!(load_balancer(&spec).is_empty());
    }

    #[test]
    fn one_service_can_not_list_addresses_without_end() {
        let many: Vec<String> = (0..200).map(|last| format!("198.51.100.{last}")).collect();
        let found = load_balancer(&json!({"type": "LoadBalancer", "externalIPs": many}));
        assert_eq!(found.len(), 64);
        assert!(
            found.contains(&"203.0.113.7/32".to_owned()),
            "what it was given comes first"
        );
    }

    #[test]
    fn endpoints_are_every_address_at_every_port() {
        let slice: EndpointSlice = serde_json::from_value(json!({
            "metadata": {"name": "kubernetes"}, "addressType": "IPv4",
            "endpoints": [{"addresses": ["192.168.7.1"]}, {"addresses": ["192.168.7.2"]}], "ports": [{"name": "https", "port": 6443}],
        }))
        .unwrap();
        let texts: Vec<String> = endpoints(&slice).iter().map(SocketAddr::to_string).collect();
        assert_eq!(texts, ["192.168.7.1:6443", "192.168.7.2:6443"]);
    }

    #[test]
    fn a_range_with_an_address_of_the_cluster_is_named_with_it() {
        let policy = |ranges: &[&str]| {
            let allow: Vec<_> = ranges
                .iter()
                .map(|range| json!({"cidr": range, "ports": [5432]}))
                .collect();
            EgressPolicy::compile(&testing::policy(json!({"egress": {"allow": allow}})).spec).unwrap()
        };
        let cluster = testing::cluster();
        assert!(
            cluster
                .opened_by(&policy(&["192.168.8.0/24", "10.20.0.0/16"]))
                .is_empty()
        );
        let table = [
            ("192.168.7.0/24", "node a (192.168.7.1/32)"),
            ("192.168.0.0/16", "the API server"),
            ("10.244.9.0/24", "the configured cluster range (10.244.0.0/16)"),
            ("10.96.0.1/32", "the API server"),
            ("192.168.9.9/32", "the API server"),
            ("10.96.0.10/32", "the cluster's DNS"),
            ("93.184.216.34/32", "a load balancer (93.184.216.34/32)"),
        ];
        for (range, what) in table {
            let problems = cluster.opened_by(&policy(&["192.168.8.0/24", range]));
            let [problem] = problems.as_slice() else {
                panic!("{range}: {problems:?}")
            };
            assert!(
                problem.starts_with("spec.egress.allow[1].cidr") && problem.contains(what),
                "{problem}"
            );
        }
    }

    #[test]
    fn nodes_and_load_balancers_that_come_and_go_do_not_change_what_the_gateway_is_started_with() {
        let lasting = testing::cluster().lasting();
        assert_eq!(
            lasting,
            "10.96.0.1/32,10.96.0.10/32,10.96.9.9/32,10.244.0.0/16,192.168.9.9/32"
        );
        assert!(agentsandbox_egress::address::ClusterRanges::parse(&lasting).is_ok());
    }
}
