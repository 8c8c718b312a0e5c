//! Network policies: one per namespace that denies everything to every sandbox pod, and one per `SandboxPolicy`.

use std::collections::BTreeMap;

use agentsandbox_api::names;
use k8s_openapi::api::networking::v1::{
    NetworkPolicy, NetworkPolicyEgressRule, NetworkPolicyPeer, NetworkPolicySpec,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{
    LabelSelector, LabelSelectorRequirement, OwnerReference,
};

use crate::build::compare::is_of_node;
use crate::build::from_policy;
use crate::build::gateway::ways_in;
use crate::build::gateway_network::{gateway_pods, port};

/// Denies all traffic, both ways, to every sandbox pod of the namespace.
///
/// It selects by the existence of the sandbox label, so it holds for pods of every policy, and for those of a
/// policy that was deleted; for the same reason nothing owns it.
#[must_use]
pub fn deny_all(namespace: &str) -> NetworkPolicy {
    NetworkPolicy {
        metadata: from_policy(namespace, names::DENY_ALL_NETWORK_POLICY.to_owned(), Vec::new()),
        spec: Some(NetworkPolicySpec {
            pod_selector: Some(LabelSelector {
                match_expressions: Some(vec![LabelSelectorRequirement {
                    key: names::LABEL_SANDBOX.to_owned(),
                    operator: "Exists".to_owned(),
                    values: None,
                }]),
                match_labels: None,
            }),
            ..deny_both_ways()
        }),
    }
}

/// What the pods of one policy may reach beyond the namespace-wide deny: the egress gateway of their namespace if the
/// policy needs it, and nothing else. The label is the policy's plain name, so that anybody can see which pods it
/// selects.
#[must_use]
pub fn for_policy(namespace: &str, policy: &str, owner: OwnerReference, gateway: bool) -> NetworkPolicy {
    let to_gateway = || NetworkPolicyEgressRule {
        to: Some(vec![gateway_peer()]),
        ports: Some(
            ways_in()
                .map(|(number, protocol)| port(number, protocol))
                .collect(),
        ),
    };
    NetworkPolicy {
        metadata: from_policy(namespace, policy_name(policy), vec![owner]),
        spec: Some(NetworkPolicySpec {
            egress: gateway.then(|| vec![to_gateway()]),
            pod_selector: Some(LabelSelector {
                match_labels: Some(BTreeMap::from([(
                    names::LABEL_POLICY.to_owned(),
                    policy.to_owned(),
                )])),
                match_expressions: None,
            }),
            ..deny_both_ways()
        }),
    }
}

fn gateway_peer() -> NetworkPolicyPeer {
    NetworkPolicyPeer {
        pod_selector: Some(gateway_pods()),
        ..NetworkPolicyPeer::default()
    }
}

/// Name of a policy's own `NetworkPolicy`.
#[must_use]
pub fn policy_name(policy: &str) -> String {
    format!("{}{policy}", names::NETWORK_POLICY_PREFIX)
}

/// Whether `live` says just what `built` says.
#[must_use]
pub fn stands(live: &NetworkPolicy, built: &NetworkPolicy) -> bool {
    let (Some(live), Some(built)) = (&live.spec, &built.spec) else {
        return false;
    };
    live.pod_selector == built.pod_selector
        && live.policy_types == built.policy_types
        && live.ingress.as_deref().unwrap_or_default() == built.ingress.as_deref().unwrap_or_default()
        && live.egress.as_deref().unwrap_or_default() == built.egress.as_deref().unwrap_or_default()
}

/// Whether all that a policy opens is the way out to the egress gateway, as a policy's own does. One that an earlier
/// version made, or that the policy's last edit is about to change, does no more.
#[must_use]
pub fn leads_to_gateway_only(policy: &NetworkPolicy) -> bool {
    let Some(spec) = &policy.spec else { return false };
    let to_gateway = |rule: &NetworkPolicyEgressRule| {
        let to = rule.to.as_deref().unwrap_or_default();
        // A rule without peers leads everywhere.
        !to.is_empty() && to.iter().all(|peer| *peer == gateway_peer())
    };
    spec.ingress.iter().flatten().next().is_none() && spec.egress.iter().flatten().all(to_gateway)
}

/// Whether a policy that is not ours adds traffic to pods with these labels: policies add up, so any rule of
/// another policy that selects our pods opens what ours close.
#[must_use]
pub fn widens(policy: &NetworkPolicy, pod_labels: &BTreeMap<String, String>) -> bool {
    let Some(spec) = &policy.spec else { return false };
    let has_rules = spec.ingress.as_ref().is_some_and(|rules| !rules.is_empty())
        || spec.egress.as_ref().is_some_and(|rules| !rules.is_empty());
    has_rules
        && spec
            .pod_selector
            .as_ref()
            .is_none_or(|selector| selects(selector, pod_labels))
}

fn selects(selector: &LabelSelector, labels: &BTreeMap<String, String>) -> bool {
    let by_labels = selector
        .match_labels
        .iter()
        .flatten()
        .all(|(key, value)| is_of_node(key) || labels.get(key) == Some(value));
    let by_expressions = selector.match_expressions.iter().flatten().all(|requirement| {
        let have = labels.get(&requirement.key);
        let listed = || have.is_some_and(|value| requirement.values.iter().flatten().any(|v| v == value));
        match requirement.operator.as_str() {
            _ if is_of_node(&requirement.key) => true,
            "In" => listed(),
            "NotIn" => !listed(),
            "Exists" => have.is_some(),
            "DoesNotExist" => have.is_none(),
            // An operator of a newer API, or a label that comes with the node: assume that it selects.
            _ => true,
        }
    });
    by_labels && by_expressions
}

fn deny_both_ways() -> NetworkPolicySpec {
    NetworkPolicySpec {
        policy_types: Some(vec!["Ingress".to_owned(), "Egress".to_owned()]),
        ..NetworkPolicySpec::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::owner_reference;
    use crate::testing;
    use serde_json::json;

    fn labels() -> BTreeMap<String, String> {
        BTreeMap::from([
            (names::LABEL_SANDBOX.to_owned(), "job".to_owned()),
            (names::LABEL_POLICY.to_owned(), "default".to_owned()),
        ])
    }

    fn policy(spec: &serde_json::Value) -> NetworkPolicy {
        serde_json::from_value(json!({"metadata": {"name": "foreign"}, "spec": spec})).unwrap()
    }

    #[test]
    fn a_foreign_policy_widens_only_if_it_selects_our_pods_and_allows_something() {
        let table = [
            (json!({"podSelector": {}, "egress": [{}]}), true),
            (
                json!({"podSelector": {}, "ingress": [{"from": [{"podSelector": {}}]}]}),
                true,
            ),
            (
                json!({"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}),
                false,
            ),
            (
                json!({"podSelector": {"matchLabels": {"app": "web"}}, "egress": [{}]}),
                false,
            ),
            (
                json!({"podSelector": {"matchLabels": {names::LABEL_POLICY: "default"}}, "egress": [{}]}),
                true,
            ),
            (
                json!({"podSelector": {"matchExpressions": [{"key": "app", "operator": "DoesNotExist"}]}, "egress": [{}]}),
                true,
            ),
            // Sandboxes get these labels with their node.
            (
                json!({"podSelector": {"matchLabels": {"topology.kubernetes.io/zone": "a"}}, "egress": [{}]}),
                true,
            ),
            (
                json!({"podSelector": {"matchExpressions": [{"key": "topology.kubernetes.io/region", "operator": "In", "values": ["a"]}]}, "egress": [{}]}),
                true,
            ),
            (
                json!({"podSelector": {"matchExpressions": [{"key": names::LABEL_SANDBOX, "operator": "NotIn", "values": ["job"]}]}, "egress": [{}]}),
                false,
            ),
        ];
        for (spec, expected) in table {
            assert_eq!(widens(&policy(&spec), &labels()), expected, "{spec}");
        }
    }

    #[test]
    fn an_altered_copy_of_ours_does_not_stand() {
        let built = deny_all("ns");
        let mut live = built.clone();
        assert!(stands(&live, &built));
        live.spec.as_mut().unwrap().policy_types = Some(vec!["Ingress".into()]);
        assert!(!stands(&live, &built));
        let mut opened = built.clone();
        opened.spec.as_mut().unwrap().egress = Some(vec![
            k8s_openapi::api::networking::v1::NetworkPolicyEgressRule::default(),
        ]);
        assert!(!stands(&opened, &built));
    }

    #[test]
    fn a_policy_with_a_gateway_opens_the_way_to_it_and_nothing_else() {
        let policy = testing::policy(json!({}));
        let built = |gateway| for_policy("ns", "default", owner_reference(&policy), gateway);
        insta::assert_json_snapshot!(built(true));
        assert!(built(false).spec.unwrap().egress.is_none());
        assert!(stands(&built(true), &built(true)));
        assert!(!stands(&built(true), &built(false)));
        assert!(!stands(&built(false), &built(true)));
        let mut wider = built(true);
        let rules = wider.spec.as_mut().unwrap().egress.as_mut().unwrap();
        rules[0].to.as_mut().unwrap().push(NetworkPolicyPeer::default());
        assert!(!stands(&wider, &built(true)));
        let (wide, gatewayless) = (
            leads_to_gateway_only(&wider),
            leads_to_gateway_only(&built(false)),
        );
        assert_eq!((wide, gatewayless), (false, true));
        let mut narrower = built(true);
        narrower.spec.as_mut().unwrap().egress.as_mut().unwrap()[0].ports = None;
        assert!(!stands(&narrower, &built(true)));
        assert!(leads_to_gateway_only(&narrower));
        for foreign in [
            json!({"podSelector": {}, "egress": [{}]}),
            json!({"podSelector": {}, "egress": [{"to": []}]}),
            json!({"podSelector": {}, "egress": [{"to": [{"podSelector": gateway_pods(), "namespaceSelector": {}}]}]}),
            json!({"podSelector": {}, "ingress": [{}]}),
        ] {
            assert!(!leads_to_gateway_only(&self::policy(&foreign)), "{foreign}");
        }
    }

    #[test]
    fn the_gateways_own_policies_widen_no_sandbox() {
        let needs = crate::build::gateway::Needs::default();
        for policy in [
            crate::build::gateway_network::ingress(&needs),
            crate::build::gateway_network::egress(&needs, &testing::cluster()),
        ] {
            assert!(!widens(&policy, &labels()));
        }
    }
}
