//! What a refusal of the quota means.

use super::*;

#[test]
fn what_no_empty_namespace_could_hold_is_told_from_what_waits() {
    let table = [
        ("requested: pods=1, used: pods=1, limited: pods=1", false),
        (
            "requested: limits.cpu=600m,limits.memory=160Mi, used: limits.cpu=1,limits.memory=1Gi, limited: limits.cpu=1,limits.memory=1Gi",
            false,
        ),
        (
            "requested: limits.cpu=600m,limits.memory=2Gi, used: limits.cpu=1,limits.memory=0, limited: limits.cpu=1,limits.memory=1Gi",
            true,
        ),
        (
            "requested: limits.cpu=1100m, used: limits.cpu=0, limited: limits.cpu=1",
            true,
        ),
        ("requested: pods=1, used: pods=0, limited: pods=0", true),
        // Of two quotas that refuse, one is told; in another form it is none of ours to read.
        ("requested: everything", false),
        ("", false),
    ];
    for (said, above) in table {
        let message = format!("pods \"a\" is forbidden: exceeded quota: agentsandbox-policy-default, {said}");
        assert_eq!(is_above_quota(&message), above, "{said}");
    }
}
