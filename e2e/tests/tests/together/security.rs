//! Attacks from inside a sandbox and from beside it. Each names the rule that it tries to break.

use agentsandbox_api::condition::types;
use agentsandbox_api::names;
use agentsandbox_api::reason::Reason;
use agentsandbox_api::sandbox::{AgentSandbox, RunResult};
use e2e::Harness;
use e2e::harness::{name_of, process_of, reason_of};
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use kube::api::PostParams;
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
    harness
        .patch::<Pod>(
            &relabelled,
            json!({"metadata": {"labels": {"agentsandbox.dev/policy": "other"}}}),
        )
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
            &kube::api::PatchParams::default(),
            &kube::api::Patch::Strategic(intruder),
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
    let operator = "--as=system:serviceaccount:agentsandbox-system:agentsandbox-operator";
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
