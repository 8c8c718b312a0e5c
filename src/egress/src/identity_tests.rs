//! Tables and laws of [`super`].

use std::collections::HashSet;

use proptest::prelude::*;

use super::*;
use crate::record::hex;

const ADDRESS: &str = "10.0.0.7";
const TOKEN: &str = "one";

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn pod(uid: &str, addresses: &[&str]) -> Pod {
    Pod {
        uid: uid.to_owned(),
        namespace: "team".to_owned(),
        sandbox: format!("sandbox-of-{uid}"),
        run_id: "1".to_owned(),
        policy: "default".to_owned(),
        addresses: addresses.iter().map(|address| ip(address)).collect(),
        ..Pod::default()
    }
}

fn sha(token: &str) -> Sha {
    Sha256::digest(token.as_bytes()).into()
}

/// A registry in which pod `a` is bound at [`ADDRESS`].
fn bound() -> Registry {
    let mut registry = Registry::default();
    registry.observe(pod("a", &[ADDRESS]));
    let (outcome, lost) = registry.register(ip(ADDRESS), "a", sha(TOKEN));
    assert!(matches!(outcome, Outcome::Bound(_)) && lost.is_empty());
    registry
}

fn uid_at(registry: &Registry, address: &str) -> Option<String> {
    registry.lookup(ip(address)).ok().map(|run| run.pod_uid.clone())
}

fn uids(lost: &[Arc<Run>]) -> Vec<&str> {
    lost.iter().map(|run| run.pod_uid.as_str()).collect()
}

#[test]
fn a_registered_pod_is_found_by_its_address() {
    let registry = bound();
    let run = registry.lookup(ip(ADDRESS)).unwrap();
    assert_eq!(
        (run.sandbox.as_str(), run.policy.as_str()),
        ("sandbox-of-a", "default")
    );
    // Listeners on both families give IPv4 peers in IPv6 form.
    assert_eq!(uid_at(&registry, "::ffff:10.0.0.7"), Some("a".to_owned()));
    assert_eq!(registry.lookup(ip("10.0.0.8")), Err(Deny::UnknownSandbox));
}

#[test]
fn a_pod_that_did_not_register_is_unknown() {
    let mut registry = Registry::default();
    registry.observe(pod("a", &[ADDRESS]));
    assert_eq!(registry.lookup(ip(ADDRESS)), Err(Deny::UnknownSandbox));
    assert_eq!(
        registry.pod_at(ip(ADDRESS)).map(|pod| pod.uid.as_str()),
        Some("a")
    );
}

#[test]
fn a_registration_needs_the_watch_to_agree() {
    let mut registry = Registry::default();
    let register = |registry: &mut Registry, address: &str| registry.register(ip(address), "a", sha(TOKEN)).0;
    assert!(matches!(register(&mut registry, ADDRESS), Outcome::Retry(_)));
    registry.observe(pod("a", &[]));
    assert!(matches!(register(&mut registry, ADDRESS), Outcome::Retry(_)));
    registry.observe(pod("a", &["10.0.0.9"]));
    assert!(matches!(register(&mut registry, ADDRESS), Outcome::Refused(_)));
    registry.observe(Pod {
        host_network: true,
        ..pod("a", &[ADDRESS])
    });
    assert!(matches!(register(&mut registry, ADDRESS), Outcome::Refused(_)));
    registry.observe(Pod {
        ended: true,
        ..pod("a", &[ADDRESS])
    });
    assert!(matches!(register(&mut registry, ADDRESS), Outcome::Refused(_)));
    assert_eq!(registry.lookup(ip(ADDRESS)), Err(Deny::UnknownSandbox));
    registry.observe(pod("a", &[ADDRESS]));
    assert!(matches!(register(&mut registry, ADDRESS), Outcome::Bound(_)));
}

#[test]
fn registering_again_with_the_same_token_changes_nothing() {
    let mut registry = bound();
    let before = Arc::clone(registry.lookup(ip(ADDRESS)).unwrap());
    let (outcome, lost) = registry.register(ip(ADDRESS), "a", sha(TOKEN));
    assert!(matches!(&outcome, Outcome::Bound(run) if Arc::ptr_eq(run, &before)) && lost.is_empty());
}

#[test]
fn a_second_token_for_a_pod_unbinds_it_for_ever() {
    let mut registry = bound();
    let (outcome, lost) = registry.register(ip(ADDRESS), "a", sha("two"));
    assert!(matches!(outcome, Outcome::Refused(_)));
    assert_eq!(uids(&lost), ["a"]);
    for token in [TOKEN, "two", "three"] {
        let (outcome, lost) = registry.register(ip(ADDRESS), "a", sha(token));
        assert!(matches!(outcome, Outcome::Refused(_)) && lost.is_empty());
    }
    registry.observe(pod("a", &[ADDRESS]));
    assert_eq!(registry.lookup(ip(ADDRESS)), Err(Deny::UnknownSandbox));
    // Another pod gets the address when this one is gone.
    registry.forget("a");
    registry.observe(pod("b", &[ADDRESS]));
    assert!(matches!(
        registry.register(ip(ADDRESS), "b", sha("two")).0,
        Outcome::Bound(_)
    ));
}

#[test]
fn two_living_pods_at_one_address_both_lose_it_until_one_is_gone() {
    let mut registry = bound();
    assert_eq!(uids(&registry.observe(pod("b", &[ADDRESS]))), ["a"]);
    assert_eq!(registry.lookup(ip(ADDRESS)), Err(Deny::UnknownSandbox));
    assert!(matches!(
        registry.register(ip(ADDRESS), "b", sha("two")).0,
        Outcome::Retry(_)
    ));
    assert!(matches!(
        registry.register(ip(ADDRESS), "a", sha(TOKEN)).0,
        Outcome::Retry(_)
    ));
    assert!(
        registry
            .observe(Pod {
                ended: true,
                ..pod("a", &[ADDRESS])
            })
            .is_empty()
    );
    assert_eq!(uid_at(&registry, ADDRESS), Some("b".to_owned()));
}

#[test]
fn the_survivor_of_a_conflict_has_its_address_again() {
    let mut registry = bound();
    registry.observe(pod("b", &[ADDRESS]));
    registry.forget("b");
    assert_eq!(uid_at(&registry, ADDRESS), Some("a".to_owned()));
}

#[test]
fn a_pod_that_ends_goes_or_moves_loses_its_address() {
    for change in [
        Pod {
            ended: true,
            ..pod("a", &[ADDRESS])
        },
        Pod {
            host_network: true,
            ..pod("a", &[ADDRESS])
        },
        pod("a", &["10.0.0.9"]),
        pod("a", &[]),
    ] {
        let mut registry = bound();
        assert_eq!(uids(&registry.observe(change.clone())), ["a"], "{change:?}");
        assert_eq!(registry.lookup(ip(ADDRESS)), Err(Deny::UnknownSandbox));
        // And not even back at its address does it have what it registered before.
        registry.observe(pod("a", &[ADDRESS]));
        assert_eq!(registry.lookup(ip(ADDRESS)), Err(Deny::UnknownSandbox));
    }
    let mut registry = bound();
    assert_eq!(uids(&registry.forget("a")), ["a"]);
    assert_eq!(registry.lookup(ip(ADDRESS)), Err(Deny::UnknownSandbox));
    assert_eq!(registry.uids().count(), 0);
}

#[test]
fn a_pod_whose_labels_change_is_no_run_any_more() {
    let mut registry = bound();
    let relabelled = Pod {
        policy: "wide-open".to_owned(),
        ..pod("a", &[ADDRESS])
    };
    assert_eq!(uids(&registry.observe(relabelled)), ["a"]);
    assert!(matches!(
        registry.register(ip(ADDRESS), "a", sha(TOKEN)).0,
        Outcome::Refused(_)
    ));
    registry.observe(pod("a", &[ADDRESS]));
    assert_eq!(registry.lookup(ip(ADDRESS)), Err(Deny::UnknownSandbox));
}

#[test]
fn a_pod_that_is_seen_again_unchanged_stays_bound() {
    let mut registry = bound();
    let before = Arc::clone(registry.lookup(ip(ADDRESS)).unwrap());
    assert!(registry.observe(pod("a", &[ADDRESS])).is_empty());
    assert!(Arc::ptr_eq(registry.lookup(ip(ADDRESS)).unwrap(), &before));
}

#[test]
fn a_pod_of_two_families_is_found_by_both_addresses() {
    let mut registry = Registry::default();
    registry.observe(pod("a", &[ADDRESS, "fd00::7"]));
    assert!(matches!(
        registry.register(ip("fd00::7"), "a", sha(TOKEN)).0,
        Outcome::Bound(_)
    ));
    assert_eq!(uid_at(&registry, ADDRESS), Some("a".to_owned()));
    assert_eq!(uids(&registry.observe(pod("b", &["fd00::7"]))), ["a"]);
    assert_eq!(uid_at(&registry, ADDRESS), Some("a".to_owned()));
    assert_eq!(uid_at(&registry, "fd00::7"), None);
}

#[test]
fn a_token_is_its_runs_or_wrong() {
    let registry = bound();
    let run = registry.lookup(ip(ADDRESS)).unwrap();
    assert_eq!(run.check_token(TOKEN), Ok(()));
    for wrong in ["", "two", "One", "one ", &"a".repeat(1_000_000)] {
        assert_eq!(run.check_token(wrong), Err(Deny::TokenWrong));
    }
}

#[test]
fn hashes_are_read_in_one_form() {
    let text = hex(&sha(TOKEN));
    assert_eq!(parse_sha256(&text), Some(sha(TOKEN)));
    for wrong in [
        "",
        "ab",
        &text[1..],
        &text.to_uppercase(),
        &format!("{text}0"),
        &"g".repeat(64),
        &"ä".repeat(32),
    ] {
        assert_eq!(parse_sha256(wrong), None, "{wrong}");
    }
}

#[derive(Clone, Debug)]
enum Step {
    Observe(Pod),
    Forget(String),
    Register(IpAddr, String, Sha),
}

fn any_step() -> impl Strategy<Value = Step> {
    let uid = || proptest::sample::select(vec!["a", "b", "c"]);
    let address = || proptest::sample::select(vec!["10.0.0.1", "10.0.0.2", "fd00::1"]);
    let token = proptest::sample::select(vec!["one", "two"]);
    let observed =
        (uid(), proptest::collection::vec(address(), 0..3), 0..8_u8).prop_map(|(uid, addresses, flags)| {
            Step::Observe(Pod {
                ended: flags == 1,
                host_network: flags == 2,
                policy: if flags == 3 { "other" } else { "default" }.to_owned(),
                ..pod(uid, &addresses)
            })
        });
    prop_oneof![
        4 => observed,
        1 => uid().prop_map(|uid| Step::Forget(uid.to_owned())),
        4 => (address(), uid(), token).prop_map(|(address, uid, token)| Step::Register(ip(address), uid.to_owned(), sha(token))),
    ]
}

proptest! {
    #[test]
    fn an_address_is_bound_only_to_the_one_living_pod_that_has_it(steps in proptest::collection::vec(any_step(), 0..60)) {
        let mut registry = Registry::default();
        // What the watch shows, and which tokens were registered for each life of a pod.
        let mut pods: HashMap<String, Pod> = HashMap::new();
        let mut bound: HashSet<(IpAddr, String)> = HashSet::new();
        for step in steps {
            let lost = match step {
                Step::Observe(pod) => {
                    pods.insert(pod.uid.clone(), pod.clone());
                    registry.observe(pod)
                }
                Step::Forget(uid) => {
                    pods.remove(&uid);
                    registry.forget(&uid)
                }
                Step::Register(address, uid, sha) => registry.register(address, &uid, sha).1,
            };
            let mut now = HashSet::new();
            for address in ["10.0.0.1", "10.0.0.2", "fd00::1"].map(ip) {
                let Ok(run) = registry.lookup(address) else { continue };
                let holders: Vec<&Pod> = pods.values().filter(|pod| !pod.ended && !pod.host_network && pod.addresses.contains(&address)).collect();
                prop_assert_eq!(holders.len(), 1);
                prop_assert_eq!(&run.pod_uid, &holders[0].uid);
                prop_assert_eq!(&run.policy, &holders[0].policy);
                now.insert((address, run.pod_uid.clone()));
            }
            // Whoever lost an address was told of, so that what it had open is closed.
            for (_, uid) in bound.difference(&now) {
                prop_assert!(lost.iter().any(|run| run.pod_uid == *uid), "{} was lost and not told of", uid);
            }
            bound = now;
        }
        prop_assert_eq!(registry.pods.len(), pods.len());
        prop_assert!(registry.at.values().all(|uids| !uids.is_empty()));
    }
}
