//! Life of a run beside the scenarios: waiting, stopping, running again, policies that change, quotas, bad input.

use std::os::unix::fs::PermissionsExt;

use agentsandbox_api::condition::{reasons, types};
use agentsandbox_api::policy::SandboxPolicy;
use agentsandbox_api::reason::Reason;
use agentsandbox_api::sandbox::{AgentSandbox, Phase};
use e2e::Harness;
use e2e::harness::{is, message_of, name_of, reason_of};
use k8s_openapi::api::core::v1::{ConfigMap, PersistentVolume, PersistentVolumeClaim, Pod};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use kube::Api;
use kube::api::{DeleteParams, PostParams};
use serde_json::json;

fn sleeper(policy: &str, seconds: &str) -> serde_json::Value {
    json!({"policyRef": {"name": policy}, "command": ["sleep", seconds]})
}

#[tokio::test]
async fn a_run_is_stopped_suspended_and_run_again_only_by_its_run_id() {
    let harness = Harness::start("lifecycle").await.unwrap();
    harness.usual_policies().await.unwrap();
    let mut spec = sleeper("runc", "100");
    spec["suspend"] = true.into();
    harness.sandbox("job", spec).await.unwrap();
    let status = harness
        .when("job", "suspended", |s| s.phase == Some(Phase::Suspended))
        .await
        .unwrap();
    assert_eq!(reason_of(&status, types::READY), reasons::SUSPENDED);
    assert!(harness.pods_of("job").await.unwrap().is_empty());

    harness
        .patch::<AgentSandbox>("job", json!({"spec": {"suspend": false}}))
        .await
        .unwrap();
    let running = harness.running("job").await.unwrap();
    assert!(is(&running, types::NETWORK_ISOLATED, "True"));
    harness
        .patch::<AgentSandbox>("job", json!({"spec": {"stop": true}}))
        .await
        .unwrap();
    let stopped = harness.finished("job").await.unwrap();
    assert_eq!(stopped.result.as_ref().unwrap().reason, Some(Reason::Stopped));

    // Nothing but another runId runs it again.
    harness
        .patch::<AgentSandbox>(
            "job",
            json!({"spec": {"stop": false}, "metadata": {"labels": {"touched": "yes"}}}),
        )
        .await
        .unwrap();
    harness
        .patch::<AgentSandbox>("job", json!({"spec": {"runId": "second", "command": ["true"]}}))
        .await
        .unwrap();
    let second = harness
        .when("job", "the second verdict", |s| {
            s.run_id.as_deref() == Some("second") && is(s, types::FINISHED, "True")
        })
        .await
        .unwrap();
    assert_eq!(second.result.unwrap().reason, Some(Reason::Completed));
    assert_ne!(second.pod_uid, stopped.pod_uid);
    harness.finish().await.unwrap();
}

#[tokio::test]
async fn a_sandbox_deleted_in_any_phase_leaves_nothing() {
    let harness = Harness::start("deletion").await.unwrap();
    harness.usual_policies().await.unwrap();
    let mut suspended = sleeper("runc", "1");
    suspended["suspend"] = true.into();
    harness.sandbox("suspended", suspended).await.unwrap();
    harness
        .sandbox(
            "waiting",
            json!({"policyRef": {"name": "nowhere"}, "command": ["true"]}),
        )
        .await
        .unwrap();
    harness
        .sandbox("running", sleeper("gvisor", "100"))
        .await
        .unwrap();
    harness
        .sandbox(
            "finished",
            json!({"policyRef": {"name": "runc"}, "command": ["true"]}),
        )
        .await
        .unwrap();
    harness.running("running").await.unwrap();
    harness.finished("finished").await.unwrap();
    harness.sandbox("starting", sleeper("runc", "100")).await.unwrap();
    for name in ["suspended", "waiting", "starting", "running", "finished"] {
        harness
            .api::<AgentSandbox>()
            .delete(name, &DeleteParams::default())
            .await
            .unwrap();
    }
    for name in ["suspended", "waiting", "starting", "running", "finished"] {
        harness.without_pods(name).await.unwrap();
        assert!(
            harness
                .api::<AgentSandbox>()
                .get_opt(name)
                .await
                .unwrap()
                .is_none()
        );
    }
    harness.finish().await.unwrap();
}

#[tokio::test]
async fn a_policy_tightened_or_deleted_during_a_run_ends_it() {
    let harness = Harness::start("tighten").await.unwrap();
    harness.usual_policies().await.unwrap();
    harness
        .sandbox("tightened", sleeper("gvisor", "100"))
        .await
        .unwrap();
    harness.sandbox("orphaned", sleeper("runc", "100")).await.unwrap();
    harness.running("tightened").await.unwrap();
    harness.running("orphaned").await.unwrap();
    harness
        .patch::<SandboxPolicy>(
            "gvisor",
            json!({"spec": {"images": {"allow": ["reg.example/other"]}}}),
        )
        .await
        .unwrap();
    harness
        .api::<SandboxPolicy>()
        .delete("runc", &DeleteParams::default())
        .await
        .unwrap();
    let tightened = harness.finished("tightened").await.unwrap().result.unwrap();
    assert_eq!(tightened.reason, Some(Reason::PolicyRejected));
    assert!(tightened.message.unwrap().contains("spec.image"));
    let orphaned = harness.finished("orphaned").await.unwrap().result.unwrap();
    assert_eq!(orphaned.reason, Some(Reason::PolicyDeleted));
    // The namespace-wide deny outlives every policy.
    let deny: NetworkPolicy = harness.api().get("agentsandbox-deny-all").await.unwrap();
    assert!(deny.metadata.owner_references.is_none());
    harness.finish().await.unwrap();
}

#[tokio::test]
async fn the_quota_holds_and_the_queue_goes_by_age() {
    let harness = Harness::start("quota").await.unwrap();
    harness
        .policy("default", json!({"isolation": {"runtimeClassName": "runc", "minimum": "Container"}, "quota": {"sandboxes": 1, "memory": "512Mi"},
            "defaults": {"resources": {"memory": "64Mi"}}}))
        .await
        .unwrap();
    harness
        .eventually("the quota", || async {
            let quota: Option<k8s_openapi::api::core::v1::ResourceQuota> =
                harness.api().get_opt("agentsandbox-policy-default").await?;
            Ok(quota.and_then(|quota| quota.status?.hard).map(|_| ()))
        })
        .await
        .unwrap();
    // The oldest never fits, and nobody waits for it.
    harness
        .sandbox(
            "huge",
            json!({"command": ["true"], "resources": {"memory": "600Mi"}}),
        )
        .await
        .unwrap();
    let huge = harness
        .when("huge", "a status", |s| s.phase.is_some())
        .await
        .unwrap();
    assert_eq!(reason_of(&huge, types::READY), reasons::QUOTA_TOO_SMALL);
    assert!(is(&huge, types::STALLED, "True"));
    let names = ["first", "second", "third"];
    for name in names {
        harness
            .sandbox(name, json!({"command": ["sleep", "2"]}))
            .await
            .unwrap();
        // Ages are told apart by the second.
        harness
            .when(name, "a status", |s| s.phase.is_some())
            .await
            .unwrap();
        tokio::time::sleep(std::time::Duration::from_millis(1100)).await;
    }
    let queued = harness
        .when("third", "queued", |s| s.phase == Some(Phase::Queued))
        .await
        .unwrap();
    assert!(is(&queued, types::ACCEPTED, "True"));
    assert_eq!(reason_of(&queued, types::READY), reasons::QUOTA_EXCEEDED);
    let mut starts = Vec::new();
    for name in names {
        let status = harness.finished(name).await.unwrap();
        assert_eq!(
            status.result.as_ref().unwrap().reason,
            Some(Reason::Completed),
            "{name}"
        );
        starts.push((status.start_time.unwrap().0, status.completion_time.unwrap().0));
    }
    for pair in starts.windows(2) {
        assert!(
            pair[1].0 >= pair[0].1,
            "one at a time, in order of age: {starts:?}"
        );
    }
    harness.finish().await.unwrap();
}

#[tokio::test]
async fn only_one_policy_of_a_namespace_can_have_a_quota() {
    let harness = Harness::start("overlap").await.unwrap();
    let spec =
        json!({"isolation": {"runtimeClassName": "runc", "minimum": "Container"}, "quota": {"sandboxes": 5}});
    harness.policy("older", spec.clone()).await.unwrap();
    tokio::time::sleep(std::time::Duration::from_millis(1100)).await;
    harness.policy("younger", spec).await.unwrap();
    let condition = |policy: &SandboxPolicy, type_: &str, reason: &str| {
        policy
            .status
            .iter()
            .flat_map(|s| &s.conditions)
            .any(|c| c.type_ == type_ && c.reason == reason)
    };
    harness
        .policy_when("younger", |p| {
            condition(p, types::QUOTA_READY, reasons::QUOTA_OVERLAPS)
        })
        .await
        .unwrap();
    harness
        .policy_when("older", |p| condition(p, types::READY, reasons::IN_FORCE))
        .await
        .unwrap();
    harness
        .sandbox(
            "held",
            json!({"policyRef": {"name": "younger"}, "command": ["true"]}),
        )
        .await
        .unwrap();
    harness
        .sandbox(
            "free",
            json!({"policyRef": {"name": "older"}, "command": ["true"]}),
        )
        .await
        .unwrap();
    let held = harness
        .when("held", "held", |s| {
            reason_of(s, types::ACCEPTED) == reasons::POLICY_NOT_READY
        })
        .await
        .unwrap();
    assert!(message_of(&held, types::ACCEPTED).contains("older"));
    assert_eq!(
        harness.finished("free").await.unwrap().result.unwrap().reason,
        Some(Reason::Completed)
    );
    assert!(
        harness
            .events_on("younger")
            .await
            .unwrap()
            .contains(&reasons::QUOTA_OVERLAPS.to_owned())
    );
    harness.finish().await.unwrap();
}

#[tokio::test]
async fn what_is_missing_is_named_and_waited_for() {
    let harness = Harness::start("missing").await.unwrap();
    harness
        .policy(
            "no-class",
            json!({"isolation": {"runtimeClassName": "no-such-class", "minimum": "Container"}}),
        )
        .await
        .unwrap();
    harness
        .sandbox(
            "no-policy",
            json!({"policyRef": {"name": "later"}, "command": ["true"]}),
        )
        .await
        .unwrap();
    harness
        .sandbox(
            "no-class",
            json!({"policyRef": {"name": "no-class"}, "command": ["true"]}),
        )
        .await
        .unwrap();
    let status = harness
        .when("no-policy", "PolicyNotFound", |s| {
            reason_of(s, types::ACCEPTED) == reasons::POLICY_NOT_FOUND
        })
        .await
        .unwrap();
    assert_eq!(
        message_of(&status, types::ACCEPTED),
        "SandboxPolicy later does not exist in this namespace"
    );
    let status = harness
        .when("no-class", "RuntimeClassNotFound", |s| {
            reason_of(s, types::ACCEPTED) == reasons::RUNTIME_CLASS_NOT_FOUND
        })
        .await
        .unwrap();
    assert_eq!(
        message_of(&status, types::ACCEPTED),
        "RuntimeClass no-such-class does not exist in this cluster"
    );
    assert!(is(&status, types::STALLED, "True"));
    assert!(
        harness
            .events_on("no-class")
            .await
            .unwrap()
            .contains(&reasons::RUNTIME_CLASS_NOT_FOUND.to_owned())
    );
    harness
        .policy(
            "later",
            json!({"isolation": {"runtimeClassName": "runc", "minimum": "Container"}}),
        )
        .await
        .unwrap();
    assert_eq!(
        harness
            .finished("no-policy")
            .await
            .unwrap()
            .result
            .unwrap()
            .reason,
        Some(Reason::Completed)
    );
    harness.finish().await.unwrap();
}

#[tokio::test]
async fn bad_programs_and_images_end_with_a_message() {
    let harness = Harness::start("bad-input").await.unwrap();
    harness.usual_policies().await.unwrap();
    let runc = |command: serde_json::Value| json!({"policyRef": {"name": "runc"}, "command": command});
    harness
        .sandbox("not-found", runc(json!(["no-such-program"])))
        .await
        .unwrap();
    harness
        .sandbox("not-executable", runc(json!(["/etc/passwd"])))
        .await
        .unwrap();
    let mut no_image = runc(json!(["true"]));
    no_image["image"] = "agent-sandbox.local/no-such-image:1".into();
    harness.sandbox("no-image", no_image).await.unwrap();
    let not_found = harness.finished("not-found").await.unwrap().result.unwrap();
    assert_eq!(
        (not_found.reason, not_found.exit_code),
        (Some(Reason::NonZeroExit), Some(127))
    );
    assert!(
        not_found
            .message
            .unwrap()
            .contains("no-such-program: not found in the image's PATH")
    );
    let not_executable = harness.finished("not-executable").await.unwrap().result.unwrap();
    assert_eq!(
        (not_executable.reason, not_executable.exit_code),
        (Some(Reason::NonZeroExit), Some(126))
    );
    let no_image = harness.finished("no-image").await.unwrap().result.unwrap();
    assert_eq!(no_image.reason, Some(Reason::ImagePullFailed));
    assert!(no_image.message.unwrap().contains("the image can't be pulled"));
    harness.finish().await.unwrap();
}

#[tokio::test]
async fn a_foreign_network_policy_that_widens_ours_keeps_sandboxes_from_starting_and_ends_running_ones() {
    let harness = Harness::start("widening").await.unwrap();
    harness.usual_policies().await.unwrap();
    harness.sandbox("before", sleeper("runc", "100")).await.unwrap();
    harness.running("before").await.unwrap();
    harness
        .network_policy(
            "allow-everything",
            json!({"podSelector": {}, "policyTypes": ["Egress"], "egress": [{}]}),
        )
        .await
        .unwrap();
    let before = harness.finished("before").await.unwrap().result.unwrap();
    assert_eq!(before.reason, Some(Reason::NetworkNotIsolated));
    harness
        .sandbox(
            "after",
            json!({"policyRef": {"name": "runc"}, "command": ["true"]}),
        )
        .await
        .unwrap();
    let after = harness
        .when("after", "NetworkWidened", |s| {
            reason_of(s, types::ACCEPTED) == reasons::NETWORK_WIDENED
        })
        .await
        .unwrap();
    assert!(message_of(&after, types::ACCEPTED).contains("allow-everything"));
    assert!(harness.pods_of("after").await.unwrap().is_empty());
    harness
        .api::<NetworkPolicy>()
        .delete("allow-everything", &DeleteParams::default())
        .await
        .unwrap();
    assert_eq!(
        harness.finished("after").await.unwrap().result.unwrap().reason,
        Some(Reason::Completed)
    );
    harness.finish().await.unwrap();
}

/// The API server keeps a time of managed fields that it can't be told itself in RFC 3339.
#[tokio::test]
async fn who_writes_one_network_policy_ends_the_watch_of_none() {
    let harness = Harness::start("late").await.unwrap();
    harness
        .network_policy(
            "late",
            json!({"podSelector": {"matchLabels": {"app": "none"}}, "policyTypes": ["Ingress"]}),
        )
        .await
        .unwrap();
    let entry = |field: &str, value: &str| json!({"op": "replace", "path": format!("/metadata/managedFields/0/{field}"), "value": value});
    let late = json!([entry("time", "9999-12-31T23:59:59-12:00"), entry("manager", "late"), entry("operation", "Apply"),
        {"op": "add", "path": "/metadata/annotations", "value": {"late": "yes"}}]);
    let late = late.to_string();
    harness
        .kubectl(&["patch", "networkpolicy", "late", "--type=json", "-p", &late])
        .unwrap();
    let shown = harness
        .kubectl(&[
            "get",
            "networkpolicy",
            "late",
            "-o",
            "yaml",
            "--show-managed-fields",
        ])
        .unwrap();
    assert!(shown.contains("10000-01-01T11:59:59Z"), "{shown}");
    // Both need network policies that are seen after it: a new namespace's own, and one of somebody else's.
    harness.usual_policies().await.unwrap();
    harness.sandbox("a", sleeper("runc", "100")).await.unwrap();
    harness.running("a").await.unwrap();
    harness
        .network_policy(
            "wide",
            json!({"podSelector": {}, "policyTypes": ["Ingress"], "ingress": [{}]}),
        )
        .await
        .unwrap();
    let ended = harness.finished("a").await.unwrap().result.unwrap();
    assert_eq!(ended.reason, Some(Reason::NetworkNotIsolated));
    harness.finish().await.unwrap();
}

#[tokio::test]
async fn our_network_policies_are_put_right_when_somebody_changes_them() {
    let harness = Harness::start("repair").await.unwrap();
    harness.usual_policies().await.unwrap();
    for name in ["agentsandbox-deny-all", "agentsandbox-policy-runc"] {
        harness
            .patch::<NetworkPolicy>(name, json!({"spec": {"egress": [{}]}}))
            .await
            .unwrap();
        harness
            .eventually("the repair", || async {
                let policy: NetworkPolicy = harness.api().get(name).await?;
                Ok(policy
                    .spec
                    .and_then(|spec| spec.egress)
                    .is_none_or(|rules| rules.is_empty())
                    .then_some(()))
            })
            .await
            .unwrap();
    }
    harness.finish().await.unwrap();
}

#[tokio::test]
async fn config_maps_reach_a_run_only_if_they_are_labelled_for_it() {
    let harness = Harness::start("files").await.unwrap();
    harness.usual_policies().await.unwrap();
    let map: ConfigMap = serde_json::from_value(json!({"metadata": {"name": "code"}, "data": {"main.py": "print(open('/workspace/in/data.txt').read())", "data.txt": "42"}})).unwrap();
    harness.api().create(&PostParams::default(), &map).await.unwrap();
    harness
        .sandbox(
            "job",
            json!({"policyRef": {"name": "gvisor"}, "command": ["python3", "in/main.py"],
        "files": [{"path": "in", "configMapRef": {"name": "code"}}]}),
        )
        .await
        .unwrap();
    let status = harness
        .when("job", "InputNotUsable", |s| {
            reason_of(s, types::ACCEPTED) == reasons::INPUT_NOT_USABLE
        })
        .await
        .unwrap();
    assert!(message_of(&status, types::ACCEPTED).contains("agentsandbox.dev/usable-by-sandboxes"));
    harness
        .patch::<ConfigMap>(
            "code",
            json!({"metadata": {"labels": {"agentsandbox.dev/usable-by-sandboxes": "true"}}}),
        )
        .await
        .unwrap();
    let result = harness.finished("job").await.unwrap();
    assert_eq!(result.result.unwrap().reason, Some(Reason::Completed));
    let logs = harness
        .kubectl(&[
            "logs",
            &name_of(&harness.pods_of("job").await.unwrap()[0]),
            "-c",
            "agent",
        ])
        .unwrap();
    assert_eq!(logs.trim(), "42");
    harness.finish().await.unwrap();
}

/// Rule 3: a claim is usable only if the policy names it and its label consents, and never in two live runs.
#[tokio::test]
async fn a_claim_belongs_to_one_live_run_and_keeps_what_that_left() {
    let harness = Harness::start("claim").await.unwrap();
    let folder = harness.cluster.kubeconfig().with_file_name(&harness.namespace);
    std::fs::create_dir_all(&folder).unwrap();
    // Nobody changes the owner of a folder of the host: every run has a user of its own.
    std::fs::set_permissions(&folder, std::fs::Permissions::from_mode(0o777)).unwrap();
    let volume: PersistentVolume =
        serde_json::from_value(json!({"metadata": {"name": harness.namespace}, "spec": {
            "capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteOnce"], "storageClassName": "",
            "hostPath": {"path": folder}, "claimRef": {"name": "data", "namespace": harness.namespace},
        }}))
        .unwrap();
    let volumes: Api<PersistentVolume> = Api::all(harness.client.clone());
    volumes.create(&PostParams::default(), &volume).await.unwrap();
    let claim: PersistentVolumeClaim = serde_json::from_value(json!({"metadata": {"name": "data"}, "spec": {
        "accessModes": ["ReadWriteOnce"], "storageClassName": "", "volumeName": harness.namespace,
        "resources": {"requests": {"storage": "1Gi"}},
    }}))
    .unwrap();
    harness
        .api()
        .create(&PostParams::default(), &claim)
        .await
        .unwrap();
    harness
        .policy("default", json!({"isolation": {"runtimeClassName": "gvisor", "minimum": "UserspaceKernel"},
            "defaults": {"resources": {"cpu": "200m", "memory": "128Mi"}}, "workspace": {"persistentVolumeClaims": ["data"]}}))
        .await
        .unwrap();
    let user = |command: &str| json!({"command": ["sh", "-c", command], "workspace": {"persistentVolumeClaim": {"claimName": "data"}}});
    let unusable = |name: &'static str, why: &'static str| {
        let harness = &harness;
        async move {
            let status = harness
                .when(name, why, |s| {
                    reason_of(s, types::ACCEPTED) == reasons::INPUT_NOT_USABLE
                })
                .await
                .unwrap();
            let message = message_of(&status, types::ACCEPTED).to_owned();
            assert!(message.contains(why), "{message}");
        }
    };
    harness
        .sandbox("first", user("echo 42 > answer; sleep 8"))
        .await
        .unwrap();
    unusable("first", "does not carry the label").await;
    harness
        .patch::<PersistentVolumeClaim>(
            "data",
            json!({"metadata": {"labels": {"agentsandbox.dev/usable-by-sandboxes": "true"}}}),
        )
        .await
        .unwrap();
    harness.running("first").await.unwrap();
    harness
        .sandbox("second", user("cp answer $SANDBOX_OUTPUT"))
        .await
        .unwrap();
    unusable("second", "is in use by the live run of pod first-").await;
    harness.finished("first").await.unwrap();
    let second = harness.finished("second").await.unwrap().result.unwrap();
    assert_eq!(second.output.as_deref().map(str::trim), Some("42"), "{second:?}");
    harness.finish().await.unwrap();
    volumes
        .delete(&volume.metadata.name.unwrap(), &DeleteParams::default())
        .await
        .unwrap();
}

#[tokio::test]
async fn names_at_their_longest_work() {
    let harness = Harness::start("longest").await.unwrap();
    let (sandbox, policy) = ("s".repeat(52), "p".repeat(52));
    harness
        .policy(
            &policy,
            json!({"isolation": {"runtimeClassName": "gvisor", "minimum": "UserspaceKernel"}, "quota": {"sandboxes": 1},
                "defaults": {"resources": {"cpu": "200m"}}}),
        )
        .await
        .unwrap();
    let spec = json!({"policyRef": {"name": policy}, "command": ["true"], "runId": "r".repeat(64)});
    harness.sandbox(&sandbox, spec).await.unwrap();
    let result = harness.finished(&sandbox).await.unwrap().result.unwrap();
    assert_eq!(result.reason, Some(Reason::Completed), "{result:?}");
    harness.finish().await.unwrap();
}

#[tokio::test]
async fn a_namespace_with_sandboxes_in_every_phase_can_be_deleted() {
    let harness = Harness::start("namespace").await.unwrap();
    harness.usual_policies().await.unwrap();
    harness
        .sandbox("running", sleeper("gvisor", "100"))
        .await
        .unwrap();
    harness
        .sandbox(
            "finished",
            json!({"policyRef": {"name": "runc"}, "command": ["true"]}),
        )
        .await
        .unwrap();
    harness.running("running").await.unwrap();
    harness.finished("finished").await.unwrap();
    assert!(!harness.pods_of("running").await.unwrap().is_empty());
    let _: Vec<Pod> = harness.pods_of("finished").await.unwrap();
    harness.finish().await.unwrap();
}

#[tokio::test]
async fn the_operator_never_writes_spec_or_metadata_of_a_users_object() {
    let harness = Harness::start("no-spec").await.unwrap();
    harness.usual_policies().await.unwrap();
    harness
        .sandbox(
            "job",
            json!({"policyRef": {"name": "runc"}, "command": ["true"], "ttlSecondsAfterFinished": 0}),
        )
        .await
        .unwrap();
    harness
        .when("job", "expiry", |s| is(s, types::EXPIRED, "True"))
        .await
        .unwrap();
    let sandbox = harness.api::<AgentSandbox>().get("job").await.unwrap();
    assert!(sandbox.metadata.finalizers.is_none());
    let managers = sandbox.metadata.managed_fields.unwrap();
    let ours: Vec<_> = managers
        .iter()
        .filter(|entry| entry.manager.as_deref() == Some("agentsandbox-operator"))
        .collect();
    assert!(!ours.is_empty());
    assert!(
        ours.iter()
            .all(|entry| entry.subresource.as_deref() == Some("status")),
        "{ours:?}"
    );
    harness.finish().await.unwrap();
}
