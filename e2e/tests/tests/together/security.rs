//! Attacks from inside a sandbox and from beside it. Each names the rule that it tries to break.

use std::io::Write;
use std::process::Stdio;

use agentsandbox_api::condition::types;
use agentsandbox_api::names;
use agentsandbox_api::reason::Reason;
use agentsandbox_api::sandbox::{AgentSandbox, RunResult};
use e2e::Harness;
use e2e::harness::{name_of, process_of, reason_of};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::networking::v1::NetworkPolicy;
use kube::ResourceExt;
use kube::api::{Patch, PatchParams, PostParams};
use sandbox_operator::build::short_hash;
use serde_json::{Value, json};

async fn result(harness: &Harness, name: &str, policy: &str, command: Value) -> RunResult {
    harness
        .sandbox(name, json!({"policyRef": {"name": policy}, "command": command}))
        .await
        .unwrap();
    harness.finished(name).await.unwrap().result.unwrap()
}

fn python(code: &str) -> Value {
    json!(["python3", "-c", code])
}

#[tokio::test]
async fn a_command_can_neither_forge_nor_silence_its_record() {
    let harness = Harness::start("forge").await.unwrap();
    harness.usual_policies().await.unwrap();
    let forged = r#"{"version":1,"started":true,"reason":"Completed","exitCode":0}"#;
    for policy in ["runc", "gvisor"] {
        let code = format!("open('/dev/termination-log', 'w').write('{forged}'); raise SystemExit(3)");
        let forging = result(&harness, &format!("forge-{policy}"), policy, python(&code)).await;
        assert_eq!(
            (forging.reason, forging.exit_code),
            (Some(Reason::NonZeroExit), Some(3)),
            "{policy}"
        );

        // No signal reaches process 1 from inside.
        let kill = "import os, signal, time\nfor s in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGKILL):\n  try:\n    os.kill(1, s)\n    raise SystemExit(9)\n  except PermissionError: pass\ntime.sleep(1)\nopen(os.environ['SANDBOX_OUTPUT'], 'w').write('alive')";
        let killing = result(&harness, &format!("kill-{policy}"), policy, python(kill)).await;
        assert_eq!(
            (killing.reason, killing.output.as_deref()),
            (Some(Reason::Completed), Some("alive")),
            "{policy}: {killing:?}"
        );

        // Nobody else can take the port by which the recorder says that it has begun.
        let port = names::PORT_STARTUP;
        let take = format!(
            "import socket, os\nresult = 'taken'\ntry:\n  s = socket.socket(); s.bind(('0.0.0.0', {port})); s.listen()\nexcept OSError: result = 'refused'\nopen(os.environ['SANDBOX_OUTPUT'], 'w').write(result)"
        );
        let taking = result(&harness, &format!("ports-{policy}"), policy, python(&take)).await;
        assert_eq!(taking.output.as_deref(), Some("refused"), "{policy}: {taking:?}");
    }
    harness.finish().await.unwrap();
}

#[tokio::test]
async fn process_1_and_the_recorder_are_out_of_reach() {
    let harness = Harness::start("reach").await.unwrap();
    harness.usual_policies().await.unwrap();
    let code = "import os\nfound = []\nfor p in ('/proc/1/mem', '/proc/1/environ', '/proc/1/fd/0', '/var/run/recorder/begun', '/var/run/secrets/kubernetes.io/serviceaccount/token'):\n  try:\n    open(p, 'rb').read(1); found.append(p)\n  except OSError: pass\nfor p in ('/.sandbox/sandbox-supervisor', '/etc/passwd', '/proc/1/mem', '/usr/bin/x', '/.sandbox/x'):\n  try:\n    open(p, 'ab'); found.append('write ' + p)\n  except OSError: pass\nfound += [n for n in os.environ if n.startswith('KUBERNETES') or n.startswith('SANDBOX_RUN')]\nopen(os.environ['SANDBOX_OUTPUT'], 'w').write('|'.join(found))";
    for policy in ["runc", "gvisor"] {
        let found = result(&harness, &format!("reach-{policy}"), policy, python(code)).await;
        assert_eq!(found.reason, Some(Reason::Completed), "{found:?}");
        assert_eq!(found.output.as_deref(), Some(""), "{policy}: {found:?}");
    }
    harness.finish().await.unwrap();
}

#[tokio::test]
async fn an_images_volume_voids_the_run() {
    let harness = Harness::start("volume").await.unwrap();
    harness.usual_policies().await.unwrap();
    harness
        .sandbox("volume", json!({"policyRef": {"name": "runc"}, "image": "agent-sandbox.local/with-volume:dev", "command": ["/testtool", "exit", "0"]}))
        .await
        .unwrap();
    let found = harness.finished("volume").await.unwrap().result.unwrap();
    assert_eq!(found.reason, Some(Reason::UnexpectedMount), "{found:?}");
    assert!(found.message.unwrap().contains("/data"));
    assert_eq!(found.exit_code, None);
    harness.finish().await.unwrap();
}

#[tokio::test]
async fn a_pod_that_is_changed_during_its_run_ends_it() {
    let harness = Harness::start("tamper").await.unwrap();
    harness.usual_policies().await.unwrap();
    let command = json!({"policyRef": {"name": "runc"}, "command": ["sleep", "100"]});
    harness.sandbox("relabelled", command).await.unwrap();
    harness.running("relabelled").await.unwrap();
    let relabelled = name_of(&harness.pods_of("relabelled").await.unwrap()[0]);
    for change in [
        json!({"metadata": {"labels": {"agentsandbox.dev/policy": "other"}}}),
        json!({"metadata": {"labels": {"agentsandbox.dev/sandbox": null}}}),
        json!({"metadata": {"annotations": {"agentsandbox.dev/ended-because": "Completed"}}}),
        json!({"metadata": {"annotations": {"io.katacontainers.config.hypervisor.default_vcpus": "9"}}}),
        json!({"metadata": {"finalizers": null}}),
        json!({"metadata": {"ownerReferences": null}}),
        json!({"spec": {"activeDeadlineSeconds": 1}}),
    ] {
        let refused = harness
            .patch::<Pod>(&relabelled, change.clone())
            .await
            .unwrap_err();
        assert!(
            refused.to_string().contains("agentsandbox-pods"),
            "{change}: {refused}"
        );
    }
    let image = json!([{"op": "replace", "path": "/spec/initContainers/0/image", "value": "agent-sandbox.local/testtool:dev"}]);
    let image: Patch<()> = Patch::Json(serde_json::from_value(image).unwrap());
    let refused = harness
        .api::<Pod>()
        .patch(&relabelled, &PatchParams::default(), &image)
        .await
        .unwrap_err();
    assert!(refused.to_string().contains("agentsandbox-pods"), "{refused}");
    // What is not the operator's anybody may add; a label selects, so the operator itself ends the run.
    harness
        .patch::<Pod>(
            &relabelled,
            json!({"metadata": {"annotations": {"team": "other"}}}),
        )
        .await
        .unwrap();
    harness
        .patch::<Pod>(&relabelled, json!({"metadata": {"labels": {"team": "other"}}}))
        .await
        .unwrap();
    let found = harness.finished("relabelled").await.unwrap().result.unwrap();
    assert_eq!(found.reason, Some(Reason::PodMutated), "{found:?}");
    harness.finish().await.unwrap();
}

#[tokio::test]
async fn no_container_is_added_to_a_running_pod() {
    let harness = Harness::start("intruder").await.unwrap();
    harness.usual_policies().await.unwrap();
    let command = json!({"policyRef": {"name": "runc"}, "command": ["sleep", "100"]});
    harness.sandbox("debugged", command).await.unwrap();
    harness.running("debugged").await.unwrap();
    let debugged = name_of(&harness.pods_of("debugged").await.unwrap()[0]);
    let intruder = json!({"spec": {"ephemeralContainers": [{"name": "intruder", "image": "agent-sandbox.local/testtool:dev", "args": ["exit", "0"],
        "securityContext": {"runAsNonRoot": true, "runAsUser": 65532, "allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}, "seccompProfile": {"type": "RuntimeDefault"}}}]}});
    let refused = harness
        .api::<Pod>()
        .patch_subresource(
            "ephemeralcontainers",
            &debugged,
            &PatchParams::default(),
            &Patch::Strategic(intruder),
        )
        .await
        .unwrap_err();
    assert!(refused.to_string().contains("agentsandbox-exec"), "{refused}");
    harness.finish().await.unwrap();
}

#[tokio::test]
async fn a_foreign_pod_of_the_name_that_a_run_needs_is_no_run() {
    let harness = Harness::start("conflict").await.unwrap();
    harness.usual_policies().await.unwrap();
    let sandbox = harness
        .sandbox(
            "job",
            json!({"policyRef": {"name": "runc"}, "command": ["true"], "suspend": true}),
        )
        .await
        .unwrap();
    let name = format!("job-sb{}", short_hash(&format!("{}/", sandbox.uid().unwrap())));
    let pod: Pod = serde_json::from_value(json!({"metadata": {"name": name}, "spec": {
        "restartPolicy": "Never", "securityContext": {"runAsNonRoot": true, "runAsUser": 65532, "seccompProfile": {"type": "RuntimeDefault"}},
        "containers": [{"name": "main", "image": "agent-sandbox.local/testtool:dev", "imagePullPolicy": "Never", "args": ["exit", "0"],
            "securityContext": {"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}}}]}})).unwrap();
    harness.api().create(&PostParams::default(), &pod).await.unwrap();
    harness
        .patch::<AgentSandbox>("job", json!({"spec": {"suspend": false}}))
        .await
        .unwrap();
    let status = harness.finished("job").await.unwrap();
    assert_eq!(reason_of(&status, types::SUCCEEDED), Reason::PodConflict.as_str());
    harness.finish().await.unwrap();
}

/// The operator's account, as an administrator borrows it.
const OPERATOR: &str = "--as=system:serviceaccount:agentsandbox-system:agentsandbox-operator";

/// Creates an object by kubectl, with these flags besides; what it said if it failed.
fn created(harness: &Harness, object: &Value, flags: &[&str]) -> Result<(), String> {
    let mut kubectl = harness.cluster.kubectl();
    let mut kubectl = kubectl
        .args(["-n", &harness.namespace, "create", "-f", "-"])
        .args(flags)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let text = object.to_string();
    kubectl.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    let output = kubectl.wait_with_output().unwrap();
    if output.status.success() {
        Ok(())
    } else {
        Err(String::from_utf8_lossy(&output.stderr).into_owned())
    }
}

/// A pod with the name, the labels and the owner of a sandbox's first run, and a command of its own.
fn forged(sandbox: &AgentSandbox) -> Value {
    let (name, uid) = (
        sandbox.metadata.name.clone().unwrap(),
        sandbox.metadata.uid.clone().unwrap(),
    );
    json!({"apiVersion": "v1", "kind": "Pod",
    "metadata": {
        "name": format!("{name}-sb{}", short_hash(&format!("{uid}/"))),
        "labels": {"agentsandbox.dev/sandbox": name, "agentsandbox.dev/policy": "runc",
            "app.kubernetes.io/managed-by": "agentsandbox-operator"},
        "finalizers": ["agentsandbox.dev/result"],
        "ownerReferences": [{"apiVersion": "agentsandbox.dev/v1alpha1", "kind": "AgentSandbox", "name": name,
            "uid": uid, "controller": true, "blockOwnerDeletion": false}],
    },
    "spec": {
        "restartPolicy": "Never", "automountServiceAccountToken": false,
        "securityContext": {"runAsNonRoot": true, "runAsUser": 65532, "seccompProfile": {"type": "RuntimeDefault"}},
        "containers": [{"name": "agent", "image": "agent-sandbox.local/testtool:dev", "imagePullPolicy": "Never", "args": ["exit", "0"],
            "securityContext": {"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}}}],
    }})
}

async fn suspended(harness: &Harness) -> AgentSandbox {
    let spec = json!({"policyRef": {"name": "runc"}, "command": ["true"], "suspend": true});
    harness.sandbox("job", spec).await.unwrap()
}

/// Rule 7.
#[tokio::test]
async fn a_forged_pod_is_refused_and_the_operators_own_account_forges_no_verdict() {
    let harness = Harness::start("forgery").await.unwrap();
    harness.usual_policies().await.unwrap();
    let forged = forged(&suspended(&harness).await);
    let changes: [fn(&mut Value); 4] = [
        |_| {},
        |pod| pod["metadata"]["labels"] = json!({}),
        |pod| pod["metadata"]["ownerReferences"] = json!([]),
        |pod| {
            pod["metadata"]["ownerReferences"] = json!([]);
            pod["metadata"]["labels"] = json!({"agentsandbox.dev/policy": "runc"});
        },
    ];
    for change in changes {
        let mut pod = forged.clone();
        change(&mut pod);
        let refused = created(&harness, &pod, &[]).expect_err("refused");
        assert!(refused.contains("agentsandbox-pods"), "{pod}: {refused}");
    }
    let mut plain = forged.clone();
    plain["metadata"] = json!({"name": "plain"});
    created(&harness, &plain, &[]).unwrap();
    let dressed = json!({"metadata": {"labels": {"agentsandbox.dev/sandbox": "job"}}});
    let refused = harness.patch::<Pod>("plain", dressed).await.unwrap_err();
    assert!(refused.to_string().contains("agentsandbox-pods"), "{refused}");

    created(&harness, &forged, &[OPERATOR]).unwrap();
    let status = harness.finished("job").await.unwrap();
    assert_eq!(reason_of(&status, types::SUCCEEDED), Reason::PodConflict.as_str());
    harness.without_pods("job").await.unwrap();
    harness.finish().await.unwrap();
}

#[tokio::test]
async fn the_operators_account_hands_no_secret_to_a_container() {
    let harness = Harness::start("environment").await.unwrap();
    harness.usual_policies().await.unwrap();
    let pod = forged(&suspended(&harness).await);
    let deployment = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "agentsandbox-gateway"},
    "spec": {"selector": {"matchLabels": {"app": "x"}}, "template": {
        "metadata": {"labels": {"app": "x"}},
        "spec": {"serviceAccountName": "agentsandbox-gateway", "securityContext": {"runAsNonRoot": true},
            "containers": [{"name": "gateway", "image": "agent-sandbox.local/testtool:dev",
                "securityContext": {"readOnlyRootFilesystem": true, "allowPrivilegeEscalation": false, "privileged": false,
                    "capabilities": {"drop": ["ALL"]}}}]},
    }}});
    let entry = |source: Value| json!({"env": [{"name": "X", "valueFrom": source}]});
    for (object, container, policy) in [
        (pod, "/spec/containers/0", "agentsandbox-operator-pods"),
        (
            deployment,
            "/spec/template/spec/containers/0",
            "agentsandbox-operator-gateways",
        ),
    ] {
        let answer = |part: &Value| {
            let mut object = object.clone();
            let container = object.pointer_mut(container).unwrap().as_object_mut().unwrap();
            container.extend(part.as_object().unwrap().clone());
            created(&harness, &object, &[OPERATOR, "--dry-run=server"])
        };
        answer(&json!({"env": [{"name": "X", "value": "x"}]})).unwrap();
        answer(&entry(json!({"fieldRef": {"fieldPath": "metadata.uid"}}))).unwrap();
        for part in [
            entry(json!({"secretKeyRef": {"name": "s", "key": "k"}})),
            entry(json!({"configMapKeyRef": {"name": "s", "key": "k"}})),
            json!({"envFrom": [{"secretRef": {"name": "s"}}]}),
        ] {
            let refused = answer(&part).expect_err("refused");
            assert!(refused.contains(policy), "{part}: {refused}");
        }
    }
    harness.finish().await.unwrap();
}

#[tokio::test]
async fn no_proxy_leads_to_a_sandbox_and_its_resources_stay() {
    let harness = Harness::start("proxied").await.unwrap();
    harness.usual_policies().await.unwrap();
    let command = json!({"policyRef": {"name": "runc"}, "command": ["sleep", "100"]});
    harness.sandbox("job", command).await.unwrap();
    harness.running("job").await.unwrap();
    let pod = name_of(&harness.pods_of("job").await.unwrap()[0]);
    let port = names::PORT_STARTUP;
    for name in [pod.clone(), format!("{pod}:{port}"), format!("http:{pod}:{port}")] {
        let path = format!(
            "/api/v1/namespaces/{}/pods/{name}/proxy/started",
            harness.namespace
        );
        let refused = harness
            .kubectl(&["get", "--raw", &path])
            .expect_err("refused")
            .to_string();
        assert!(refused.contains("agentsandbox-exec"), "{name}: {refused}");
    }
    let amounts = json!({"cpu": "300m"});
    let more = json!({"spec": {"containers": [{"name": "agent", "resources": {"limits": amounts, "requests": amounts}}]}});
    let refused = harness
        .api::<Pod>()
        .patch_subresource("resize", &pod, &PatchParams::default(), &Patch::Strategic(more))
        .await
        .unwrap_err();
    assert!(refused.to_string().contains("agentsandbox-exec"), "{refused}");
    harness.finish().await.unwrap();
}

/// The garbage collector takes the owner off the pod.
#[tokio::test]
async fn a_pod_can_still_be_left_behind_by_its_sandbox() {
    let harness = Harness::start("orphan").await.unwrap();
    harness.usual_policies().await.unwrap();
    let command = json!({"policyRef": {"name": "runc"}, "command": ["sleep", "100"]});
    harness.sandbox("job", command).await.unwrap();
    harness.running("job").await.unwrap();
    harness
        .kubectl(&[
            "delete",
            "agentsandbox",
            "job",
            "--cascade=orphan",
            "--wait=false",
        ])
        .unwrap();
    harness
        .eventually("a pod without an owner", || async {
            let pods = harness.pods_of("job").await?;
            let alone = pods.first().is_some_and(|pod| pod.owner_references().is_empty());
            Ok(alone.then_some(()))
        })
        .await
        .unwrap();
    harness.finish().await.unwrap();
}

#[tokio::test]
async fn a_network_policy_under_a_name_of_ours_ends_the_run_that_it_opens() {
    let harness = Harness::start("disguised").await.unwrap();
    harness.usual_policies().await.unwrap();
    let command = json!({"policyRef": {"name": "runc"}, "command": ["sleep", "100"]});
    harness.sandbox("job", command).await.unwrap();
    harness.running("job").await.unwrap();
    let own: NetworkPolicy = harness.api().get("agentsandbox-policy-runc").await.unwrap();
    let disguised = json!({
        "metadata": {"name": "agentsandbox-policy-none", "ownerReferences": own.owner_references()},
        "spec": {"podSelector": {}, "policyTypes": ["Egress"],
            "egress": [{"to": [{"ipBlock": {"cidr": "203.0.113.7/32"}}]}]},
    });
    harness.create::<NetworkPolicy>(disguised).await.unwrap();
    let found = harness.finished("job").await.unwrap().result.unwrap();
    assert_eq!(found.reason, Some(Reason::NetworkNotIsolated), "{found:?}");
    assert!(found.message.unwrap().contains("agentsandbox-policy-none"));
    harness.finish().await.unwrap();
}

#[tokio::test]
async fn text_of_the_sandbox_is_made_harmless_or_left_out() {
    let harness = Harness::start("text").await.unwrap();
    harness.usual_policies().await.unwrap();
    let code = "import os, sys\nopen(os.environ['SANDBOX_OUTPUT'], 'w').write('\\x1b[31mred\\x1b[0m \\u202eturned\\x00')\nsys.stderr.write('\\x1b]0;title\\x07bad\\n'); sys.exit(1)";
    let shown = result(&harness, "shown", "gvisor", python(code)).await;
    assert_eq!(shown.output.as_deref(), Some("red turned"));
    assert!(shown.message.unwrap().ends_with(": bad"));
    harness
        .sandbox(
            "hidden",
            json!({"policyRef": {"name": "gvisor"}, "command": python(code), "result": {"capture": "None"}}),
        )
        .await
        .unwrap();
    let hidden = harness.finished("hidden").await.unwrap().result.unwrap();
    assert_eq!(hidden.output, None);
    assert!(!hidden.message.unwrap().contains("bad"));
    harness.finish().await.unwrap();
}

/// Rule 6, of an account that may patch the whole status as far as its role goes.
async fn a_gateway_writes_its_own_part_of_a_status(harness: &Harness, gateway: &str) {
    harness
        .sandbox("held", json!({"command": ["true"], "suspend": true}))
        .await
        .unwrap();
    let patch = |status: &Value| {
        let change = json!({"status": status}).to_string();
        let flags = [
            "--subresource=status",
            "--type=merge",
            "--field-manager=agentsandbox-gateway",
        ];
        let arguments = ["patch", "agentsandbox", "held", "-p", &change, gateway];
        harness.kubectl(&[arguments.as_slice(), &flags].concat())
    };
    let own = json!({"egress": {"allowed": 7}});
    patch(&own).unwrap();
    for foreign in [
        json!({"phase": "Succeeded"}),
        json!({"phase": "Succeeded", "egress": {"allowed": 8}}),
        json!({"result": {"reason": "Completed"}}),
    ] {
        let refused = patch(&foreign).expect_err("refused").to_string();
        assert!(
            refused.contains("agentsandbox-gateway-writes"),
            "{foreign}: {refused}"
        );
    }
    let held = harness.api::<AgentSandbox>().get("held").await.unwrap();
    let egress = held.status.unwrap_or_default().egress.unwrap_or_default();
    assert_eq!(egress.allowed, 7);
}

#[tokio::test]
async fn rights_are_as_small_as_the_manifests_say() {
    let harness = Harness::start("rights").await.unwrap();
    let operator = OPERATOR;
    let account = format!("{}:agentsandbox-gateway", harness.namespace);
    let gateway = &format!("--as=system:serviceaccount:{account}");
    // As the operator binds it where a policy needs a gateway.
    let subject = format!("--serviceaccount={account}");
    harness
        .kubectl(&[
            "create",
            "rolebinding",
            "gateway",
            "--clusterrole=agentsandbox-gateway",
            &subject,
        ])
        .unwrap();
    harness
        .kubectl(&[
            "create",
            "rolebinding",
            "jane",
            "--clusterrole=edit",
            "--user=jane",
        ])
        .unwrap();
    for (verb, what, who, allowed) in [
        ("get", "secrets", operator, false),
        ("list", "secrets", operator, false),
        ("create", "pods --subresource=exec", operator, false),
        ("update", "agentsandboxes.agentsandbox.dev", operator, false),
        ("patch", "agentsandboxes.agentsandbox.dev", operator, false),
        ("bind", "clusterroles.rbac.authorization.k8s.io", operator, false),
        (
            "escalate",
            "clusterroles.rbac.authorization.k8s.io",
            operator,
            false,
        ),
        ("create", "pods", operator, true),
        ("get", "secrets", gateway, false),
        ("list", "secrets", gateway, false),
        ("patch", "agentsandboxes.agentsandbox.dev", gateway, false),
        (
            "patch",
            "agentsandboxes.agentsandbox.dev --subresource=status",
            gateway,
            true,
        ),
        ("create", "agentsandboxes.agentsandbox.dev", "--as=jane", true),
        ("create", "sandboxpolicies.agentsandbox.dev", "--as=jane", false),
        ("update", "sandboxpolicies.agentsandbox.dev", "--as=jane", false),
        (
            "update",
            "agentsandboxes.agentsandbox.dev --subresource=status",
            "--as=jane",
            false,
        ),
    ] {
        let question: Vec<&str> = ["auth", "can-i", verb]
            .into_iter()
            .chain(what.split(' '))
            .chain([who])
            .collect();
        let said = harness.kubectl(&question);
        assert_eq!(
            said.is_ok_and(|said| said.trim() == "yes"),
            allowed,
            "{who} {verb} {what}"
        );
    }
    // Rule 6: of what it may create, only what its own objects look like.
    for what in [
        "rolebinding own-rights --clusterrole=agentsandbox-gateway --serviceaccount=default:default",
        "deployment other --image=agent-sandbox.local/agent:1",
        "service clusterip other --tcp=80",
    ] {
        let creation: Vec<&str> = ["create"]
            .into_iter()
            .chain(what.split(' '))
            .chain([operator])
            .collect();
        let refused = harness.kubectl(&creation).expect_err(what).to_string();
        assert!(refused.contains("ValidatingAdmissionPolicy"), "{what}: {refused}");
    }
    a_gateway_writes_its_own_part_of_a_status(&harness, gateway).await;
    harness.finish().await.unwrap();
}

#[tokio::test]
async fn every_run_has_a_user_of_its_own_and_root_needs_a_vm() {
    let harness = Harness::start("users").await.unwrap();
    harness.usual_policies().await.unwrap();
    let code = "import os; open(os.environ['SANDBOX_OUTPUT'], 'w').write(str(os.getuid()))";
    let one = result(&harness, "one", "runc", python(code))
        .await
        .output
        .unwrap();
    let other = result(&harness, "other", "runc", python(code))
        .await
        .output
        .unwrap();
    assert_ne!(one, other);
    assert!(one.parse::<u32>().unwrap() >= 1_000_000_000);
    let policy = harness
        .policy(
            "root",
            json!({"isolation": {"runtimeClassName": "runc", "minimum": "Container", "allowRoot": true}}),
        )
        .await
        .unwrap();
    let ready = policy
        .status
        .unwrap()
        .conditions
        .into_iter()
        .find(|c| c.type_ == types::READY)
        .unwrap();
    assert_eq!(ready.status, "False");
    assert!(ready.message.contains("allowRoot"));
    harness.finish().await.unwrap();
}

/// Rule 18: only the recorder's first instance counts. A recorder that dies takes its run along, and the instance that
/// the kubelet starts next can't speak for it.
#[tokio::test]
async fn a_recorder_that_dies_ends_the_run_and_its_successor_reports_no_success() {
    let harness = Harness::start("recorder").await.unwrap();
    harness.usual_policies().await.unwrap();
    harness
        .sandbox(
            "job",
            json!({"policyRef": {"name": "runc"}, "command": ["sleep", "8"]}),
        )
        .await
        .unwrap();
    harness.running("job").await.unwrap();
    let pod = harness.pods_of("job").await.unwrap().remove(0);
    let recorder = process_of(&pod, "sandbox-supervisor record").expect("the recorder runs");
    nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(recorder),
        nix::sys::signal::Signal::SIGKILL,
    )
    .unwrap();
    let found = harness.finished("job").await.unwrap().result.unwrap();
    assert_eq!(found.reason, Some(Reason::SandboxLost), "{found:?}");
    assert!(process_of(&pod, "sleep").is_none(), "the command ended with it");
    harness.finish().await.unwrap();
}

/// The limit on processes holds where the kernel counts them per user (runc) and where the supervisor does (gVisor).
#[tokio::test]
async fn no_more_processes_than_allowed_can_live() {
    let harness = Harness::start("processes").await.unwrap();
    harness.usual_policies().await.unwrap();
    let code = "import os, time\nmade = 0\nfor _ in range(200):\n  try:\n    if os.fork() == 0: time.sleep(30); os._exit(0)\n    made += 1\n  except OSError: break\nopen(os.environ['SANDBOX_OUTPUT'], 'w').write(str(made)); time.sleep(2)";
    for policy in ["runc", "gvisor"] {
        let name = format!("forks-{policy}");
        let spec =
            json!({"policyRef": {"name": policy}, "command": python(code), "resources": {"processes": 20}});
        harness.sandbox(&name, spec).await.unwrap();
        let status = harness.finished(&name).await.unwrap();
        let (result, usage) = (status.result.unwrap(), status.usage.unwrap());
        let contained = match result.reason {
            Some(Reason::Completed) => result.output.unwrap().parse::<u32>().unwrap() < 20,
            other => other == Some(Reason::ProcessLimitExceeded),
        };
        assert!(contained, "{policy}: {:?} {:?}", result.reason, usage);
        println!("{policy}: {:?}, peak {:?}", result.reason, usage.processes_peak);
    }
    harness.finish().await.unwrap();
}

#[tokio::test]
async fn files_without_a_name_count_too() {
    let harness = Harness::start("nameless").await.unwrap();
    harness.usual_policies().await.unwrap();
    let code = "import os, time\nheld = []\nfor number in range(4):\n  held.append(open('file', 'wb', buffering=0)); os.unlink('file')\n  for _ in range(50): held[-1].write(b'x' * (1 << 20)); time.sleep(0.02)\ntime.sleep(10)";
    for policy in ["runc", "gvisor"] {
        let found = result(&harness, &format!("holds-{policy}"), policy, python(code)).await;
        assert_eq!(
            found.reason,
            Some(Reason::DiskLimitExceeded),
            "{policy}: {found:?}"
        );
    }
    harness.finish().await.unwrap();
}
