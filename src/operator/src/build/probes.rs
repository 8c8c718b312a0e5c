//! What the recorder probes.

use agentsandbox_api::gateway;
use agentsandbox_api::run::{Expectation, ProbeTarget, Transport};

use crate::facts::Facts;
use crate::sandbox::admit::AdmittedRun;

/// Destinations that must be closed to every sandbox. The API server, the cluster's DNS, the node's kubelet and the
/// canary are there and answer, so silence from them shows that a policy is enforced; the metadata addresses are
/// what an agent would go for. The gateway alone must be open.
#[must_use]
pub fn targets(run: &AdmittedRun, facts: &Facts) -> Vec<ProbeTarget> {
    let closed = |name: &str, address: String, port: u16, transport: Transport| ProbeTarget {
        name: name.to_owned(),
        address,
        port,
        transport,
        expect: Expectation::Closed,
    };
    let mut targets = vec![
        closed(
            "apiserver",
            facts.api_server.0.to_string(),
            facts.api_server.1,
            Transport::Tcp,
        ),
        closed("node", "$HOST_IP".to_owned(), 10_250, Transport::Tcp),
        closed("node", "$HOST_IP".to_owned(), 10_250, Transport::Udp),
        closed("metadata", "169.254.169.254".to_owned(), 80, Transport::Tcp),
        closed("metadata-v6", "fd00:ec2::254".to_owned(), 80, Transport::Tcp),
    ];
    if let Some(dns) = facts.cluster_dns {
        targets.push(closed("dns", dns.to_string(), 53, Transport::Tcp));
        targets.push(closed("dns", dns.to_string(), 53, Transport::Udp));
    }
    for (index, address) in facts.canary.iter().enumerate() {
        let name = if index == 0 {
            "canary".to_owned()
        } else {
            format!("canary-{index}")
        };
        targets.push(closed(
            &name,
            address.to_string(),
            facts.canary_port,
            Transport::Tcp,
        ));
        targets.push(closed(
            &name,
            address.to_string(),
            facts.canary_port,
            Transport::Udp,
        ));
    }
    targets.extend(run.gateway.iter().map(|access| ProbeTarget {
        name: "gateway".to_owned(),
        address: access.address.clone(),
        port: gateway::PORT_PROXY,
        transport: Transport::Tcp,
        expect: Expectation::Open,
    }));
    targets
}
