//! `kubectl sandbox`, as a user calls it.

use std::path::PathBuf;
use std::process::Output;

use agentsandbox_api::reason::Reason;
use agentsandbox_api::sandbox::AgentSandbox;
use e2e::harness::{AGENT_IMAGE, repository};
use e2e::plugin::{folder, path, plugin, text};
use e2e::{Harness, HarnessError};
use k8s_openapi::api::core::v1::{Namespace, Pod, ResourceQuota, ServiceAccount};
use k8s_openapi::api::rbac::v1::{Role, RoleBinding};
use kube::Api;
use kube::api::{ListParams, Patch, PatchParams};
use serde_json::{Value, json};

fn example(name: &str) -> PathBuf {
    repository().join("examples").join(name)
}

fn check(files: &[&str]) -> Output {
    let mut command = plugin().unwrap();
    command.args(["policy", "check"]);
    command.args(files.iter().map(|file| example(file)));
    command.output().unwrap()
}

#[test]
fn policies_are_explained_and_sandboxes_judged_without_a_cluster() {
    let good = check(&["00-policies.yaml", "01-python-job.yaml"]);
    assert_eq!(
        good.status.code(),
        Some(0),
        "{}{}",
        text(&good.stdout),
        text(&good.stderr)
    );
    assert!(text(&good.stdout).contains("AgentSandbox python-job: would be accepted"));
    let bad = check(&["00-policies.yaml", "08-too-much.yaml"]);
    assert_eq!(bad.status.code(), Some(1), "{}", text(&bad.stdout));
    assert!(
        text(&bad.stdout).contains("WOULD BE REJECTED"),
        "{}",
        text(&bad.stdout)
    );
    let none = plugin()
        .unwrap()
        .args(["policy", "check", "/dev/null"])
        .output()
        .unwrap();
    assert_eq!(none.status.code(), Some(2));
    assert!(
        text(&none.stderr).contains("error: no SandboxPolicy"),
        "{}",
        text(&none.stderr)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_doctor_proves_what_holds_and_names_what_lacks() {
    let harness = Harness::start("doctor").await.unwrap();
    harness.usual_policies().await.unwrap();
    let doctor = |more: &[&str]| {
        let output = plugin()
            .unwrap()
            .args(["doctor", "-o", "json", "-n", &harness.namespace])
            .args(more)
            .env("KUBECONFIG", harness.cluster.kubeconfig())
            .output()
            .unwrap();
        let checks: Vec<Value> = serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|error| panic!("{error}: {}{}", text(&output.stdout), text(&output.stderr)));
        (output.status.code(), checks)
    };
    let of = |checks: &[Value], what: &str| {
        let found = checks.iter().find(|check| check["check"] == what);
        found
            .unwrap_or_else(|| panic!("no {what} in {checks:#?}"))
            .clone()
    };

    let (code, checks) = doctor(&["--policy", "gvisor"]);
    assert_eq!(code, Some(0), "{checks:#?}");
    for what in [
        "API server",
        "AgentSandbox",
        "operator",
        "policy gvisor",
        "quotas",
        "your rights",
        "admission",
        "proof",
        "isolation",
        "network",
    ] {
        assert_eq!(of(&checks, what)["outcome"], "ok", "{what}: {checks:#?}");
    }
    // The cluster has no virtual machines.
    let classes = of(&checks, "runtime classes");
    assert_eq!(classes["outcome"], "warning", "{classes}");
    for class in ["gvisor (runsc)", "runc (runc)"] {
        assert!(classes["found"].as_str().unwrap().contains(class), "{classes}");
    }
    assert!(
        of(&checks, "isolation")["found"]
            .to_string()
            .contains("UserspaceKernel")
    );
    // It removes what it made.
    let left = harness
        .api::<AgentSandbox>()
        .list(&ListParams::default())
        .await
        .unwrap();
    let left: Vec<_> = left
        .items
        .iter()
        .filter(|sandbox| sandbox.metadata.deletion_timestamp.is_none())
        .collect();
    assert!(left.is_empty(), "{left:#?}");

    let (code, checks) = doctor(&["--policy", "no-such", "--no-probe"]);
    assert_eq!(code, Some(1));
    assert_eq!(of(&checks, "policy no-such")["outcome"], "failed");

    // A policy of somebody else's that widens what sandboxes may reach.
    let foreign = json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"name": "everybody"}, "spec": {"podSelector": {}, "egress": [{}], "policyTypes": ["Egress"]},
    });
    harness
        .create::<k8s_openapi::api::networking::v1::NetworkPolicy>(foreign)
        .await
        .unwrap();
    let (code, checks) = doctor(&["--policy", "gvisor"]);
    assert_eq!(code, Some(1));
    assert!(
        of(&checks, "network policies")["found"]
            .to_string()
            .contains("everybody")
    );
    assert!(of(&checks, "proof")["found"].to_string().contains("not tried"));

    // Every namespace has a ConfigMap with the cluster's certificate.
    let quota = json!({
        "apiVersion": "v1", "kind": "ResourceQuota",
        "metadata": {"name": "full"}, "spec": {"hard": {"configmaps": "1"}},
    });
    harness.create::<ResourceQuota>(quota).await.unwrap();
    harness
        .eventually("the quota's figures", || async {
            let quota = harness.api::<ResourceQuota>().get("full").await?;
            let used = quota.status.and_then(|status| status.used).unwrap_or_default();
            Ok(used.get("configmaps").filter(|used| used.0 == "1").map(|_| ()))
        })
        .await
        .unwrap();
    let (_, checks) = doctor(&["--policy", "gvisor", "--no-probe"]);
    let quotas = of(&checks, "quotas");
    assert_eq!(quotas["outcome"], "warning", "{quotas}");
    assert_eq!(quotas["found"], "used up: full (configmaps: 1)");
    harness.finish().await.unwrap();
}

/// What kubectl does to complete `kubectl sandbox …`.
#[test]
fn kubectl_is_told_what_completes_a_word() {
    let here = folder("complete").unwrap();
    let program = plugin().unwrap().get_program().to_owned();
    let link = here.join("kubectl_complete-sandbox");
    std::os::unix::fs::symlink(program, &link).unwrap();
    let answer = |words: &[&str]| {
        let output = std::process::Command::new(&link).args(words).output().unwrap();
        assert!(output.status.success(), "{}", text(&output.stderr));
        let told = text(&output.stdout);
        told.lines()
            .map(|line| line.split('\t').next().unwrap().to_owned())
            .collect::<Vec<_>>()
    };
    assert_eq!(answer(&["aud"]), ["audit", ":4"]);
    assert_eq!(answer(&["audit", "tools", "--den"]), ["--denied", ":4"]);
    assert_eq!(
        answer(&["list", "-o", ""]),
        ["json", "yaml", "wide", "name", ":4"]
    );
    assert_eq!(answer(&["verify", ""]), [":0"]);
    std::fs::remove_dir_all(&here).unwrap();
}

/// Runs it, which must succeed; returns standard output.
fn succeeds(harness: &Harness, arguments: &[&str]) -> String {
    harness.succeed(arguments).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_passes_on_output_and_exit_code_and_cleans_up() {
    let harness = Harness::start("cli-run").await.unwrap();
    harness.usual_policies().await.unwrap();
    let script = "cat given; printf '\\033[1m\\377'; echo err >&2; exit 7";
    let here = folder("run").unwrap();
    std::fs::write(here.join("given"), "from here\n").unwrap();
    let file = format!("given={}", path(&here, "given"));
    let run = ["run", AGENT_IMAGE, "--policy", "gvisor", "--rm", "--file", &file];
    let output = harness
        .plugin(&run)
        .unwrap()
        .args(["--", "sh", "-c", script])
        .output()
        .unwrap();
    let told = text(&output.stderr);
    assert_eq!(output.status.code(), Some(7), "{told}");
    // Into a pipe goes every byte.
    for part in [&b"from here\n"[..], b"\x1b[1m\xff", b"err\n"] {
        let found = output.stdout.windows(part.len()).any(|window| window == part);
        assert!(found, "{:?}: {:?}", text(part), text(&output.stdout));
    }
    assert!(told.contains("created") && told.contains("NonZeroExit"), "{told}");
    harness
        .eventually("the end of the sandbox", || async {
            let left = harness.api::<AgentSandbox>().list(&ListParams::default()).await?;
            Ok(left.items.is_empty().then_some(()))
        })
        .await
        .unwrap();

    let quiet = harness
        .call(&[
            "run",
            AGENT_IMAGE,
            "-p",
            "runc",
            "-q",
            "--name",
            "quiet",
            "--",
            "echo",
            "hi",
        ])
        .unwrap();
    assert_eq!(quiet, (0, "hi\n".to_owned(), String::new()));
    for logs in [&["logs", "quiet"][..], &["logs", "-f", "quiet"]] {
        assert_eq!(succeeds(&harness, logs), "hi\n");
    }
    let (code, stdout, _) = harness.call(&["logs", "no-such"]).unwrap();
    assert_eq!((code, stdout.as_str()), (2, ""));
    let row = harness.row(&["list"], "quiet").unwrap();
    assert_eq!(row[1..5], ["Succeeded", "Completed", "0", "runc"], "{row:?}");
    let late = harness
        .call(&[
            "run",
            AGENT_IMAGE,
            "-p",
            "runc",
            "--rm",
            "--timeout",
            "1",
            "--",
            "sleep",
            "60",
        ])
        .unwrap();
    assert_eq!(late.0, 124, "{late:?}");
    let (code, _, told) = harness
        .call(&["run", AGENT_IMAGE, "-p", "no-such", "--", "true"])
        .unwrap();
    assert_eq!(code, 2);
    assert!(
        told.contains("no policy named no-such") && told.contains("gvisor, runc"),
        "{told}"
    );
    let (code, _, told) = harness.call(&["get", "no-such"]).unwrap();
    assert_eq!(code, 2);
    assert!(
        told.contains("no sandbox named no-such") && told.contains("next:  kubectl sandbox list"),
        "{told}"
    );
    std::fs::remove_dir_all(&here).unwrap();
    harness.finish().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interrupt_stops_the_run_and_rerun_runs_it_again() {
    let harness = Harness::start("cli-stop").await.unwrap();
    harness.usual_policies().await.unwrap();
    let mut run = harness
        .plugin(&[
            "run",
            AGENT_IMAGE,
            "-p",
            "gvisor",
            "--name",
            "long",
            "--",
            "sleep",
            "50",
        ])
        .unwrap()
        .spawn()
        .unwrap();
    harness.running("long").await.unwrap();
    let process = nix::unistd::Pid::from_raw(i32::try_from(run.id()).unwrap());
    nix::sys::signal::kill(process, nix::sys::signal::Signal::SIGINT).unwrap();
    assert_eq!(run.wait().unwrap().code(), Some(130));
    let status = harness.finished("long").await.unwrap();
    assert_eq!(status.result.unwrap().reason, Some(Reason::Stopped));
    assert_eq!(harness.call(&["wait", "long"]).unwrap().0, 0);
    for what in ["--for=succeeded", "--for=ready", "--for=started"] {
        let (code, _, told) = harness.call(&["wait", "long", what]).unwrap();
        assert_eq!(code, 1, "{what}: {told}");
        assert!(told.contains("Stopped"), "{what}: {told}");
    }
    let (code, _, told) = harness.call(&["top", "long"]).unwrap();
    assert_eq!(code, 2, "{told}");
    let (code, _, told) = harness
        .call(&["wait", "long", "--for=deleted", "--timeout", "1"])
        .unwrap();
    assert_eq!(code, 124, "{told}");

    succeeds(&harness, &["rerun", "long", "--run-id", "second"]);
    let status = harness
        .when("long", "its second run", |status| {
            status.run_id.as_deref() == Some("second") && e2e::harness::is(status, "Ready", "True")
        })
        .await
        .unwrap();
    assert_eq!(status.result, None);
    let (code, _, told) = harness.call(&["rerun", "long", "--run-id", "second"]).unwrap();
    assert_eq!(code, 2);
    assert!(told.contains("has this id already"), "{told}");
    assert!(succeeds(&harness, &["top"]).contains("long "));
    succeeds(&harness, &["stop", "long"]);
    let status = harness.finished("long").await.unwrap();
    assert_eq!(status.result.unwrap().reason, Some(Reason::Stopped));
    harness.finish().await.unwrap();
}

/// An agent controller that uses the plugin has no kubeconfig.
#[tokio::test]
async fn in_a_pod_it_is_its_service_account() {
    let harness = Harness::start("in-pod").await.unwrap();
    harness.usual_policies().await.unwrap();
    let spec = json!({"policyRef": {"name": "runc"}, "command": ["true"]});
    harness.sandbox("job", spec).await.unwrap();
    let may = json!({"apiGroups": ["agentsandbox.dev"], "resources": ["agentsandboxes"], "verbs": ["list"]});
    let named = json!({"name": "controller"});
    let namespace = &harness.namespace;
    harness
        .create::<ServiceAccount>(json!({"metadata": named}))
        .await
        .unwrap();
    harness
        .create::<Role>(json!({"metadata": named, "rules": [may]}))
        .await
        .unwrap();
    let binding = json!({
        "metadata": named,
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "controller"},
        "subjects": [{"kind": "ServiceAccount", "name": "controller", "namespace": namespace}],
    });
    harness.create::<RoleBinding>(binding).await.unwrap();
    // The node is this machine, and its files no sandbox's.
    let privileged = json!({"metadata": {"labels": {"pod-security.kubernetes.io/enforce": "privileged"}}});
    Api::<Namespace>::all(harness.client.clone())
        .patch(namespace, &PatchParams::default(), &Patch::Merge(privileged))
        .await
        .unwrap();
    let program = plugin().unwrap().get_program().to_owned();
    let pod = json!({
        "metadata": named,
        "spec": {
            "serviceAccountName": "controller", "restartPolicy": "Never",
            "containers": [{
                "name": "plugin", "image": AGENT_IMAGE, "command": ["/plugin", "list", "-o", "name"],
                "volumeMounts": [{"name": "plugin", "mountPath": "/plugin", "readOnly": true}],
            }],
            "volumes": [{"name": "plugin", "hostPath": {"path": program.to_str().unwrap(), "type": "File"}}],
        },
    });
    // Admission hears of the label some time after the API server has said that it is set.
    harness
        .eventually("a pod that admission lets pass", || async {
            match harness.create::<Pod>(pod.clone()).await {
                Ok(pod) => Ok(Some(pod)),
                Err(HarnessError::Kube(kube::Error::Api(status))) if status.code == 403 => Ok(None),
                Err(error) => Err(error),
            }
        })
        .await
        .unwrap();
    let phase = harness
        .eventually("the pod's end", || async {
            let status = harness.api::<Pod>().get("controller").await?.status;
            let phase = status.and_then(|status| status.phase);
            Ok(phase.filter(|phase| ["Succeeded", "Failed"].contains(&phase.as_str())))
        })
        .await
        .unwrap();
    let said = harness.kubectl(&["logs", "controller"]).unwrap();
    assert_eq!(
        (phase.as_str(), said.trim()),
        ("Succeeded", "agentsandbox/job"),
        "{said}"
    );
    harness.finish().await.unwrap();
}
