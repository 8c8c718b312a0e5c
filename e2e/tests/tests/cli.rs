//! `kubectl sandbox`, as a user calls it.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};

use agentsandbox_api::reason::Reason;
use agentsandbox_api::sandbox::AgentSandbox;
use e2e::Harness;
use e2e::harness::{AGENT_IMAGE, repository};
use e2e::plugin::{plugin, text};
use kube::api::ListParams;
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
        "proof",
        "isolation",
        "network",
    ] {
        assert_eq!(of(&checks, what)["outcome"], "ok", "{checks:#?}");
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
    harness.finish().await.unwrap();
}

/// Runs it, which must succeed; returns standard output.
fn succeeds(harness: &Harness, arguments: &[&str]) -> String {
    let (code, stdout, stderr) = harness.call(arguments).unwrap();
    assert_eq!(code, 0, "{arguments:?}: {stdout}{stderr}");
    stdout
}

/// A folder of this test alone.
fn folder(name: &str) -> PathBuf {
    let folder = std::env::temp_dir().join(format!("cli-{name}-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    folder
}

fn path(folder: &Path, name: &str) -> String {
    folder.join(name).to_str().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_passes_on_output_and_exit_code_and_cleans_up() {
    let harness = Harness::start("cli-run").await.unwrap();
    harness.usual_policies().await.unwrap();
    let script = "cat given; printf '\\033[1m\\377'; echo err >&2; exit 7";
    let here = folder("run");
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
    let (code, _, told) = harness.call(&["wait", "long", "--for=succeeded"]).unwrap();
    assert_eq!(code, 1, "{told}");
    assert!(told.contains("Stopped"), "{told}");
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

#[tokio::test(flavor = "multi_thread")]
async fn a_session_is_worked_in_and_its_log_verified() {
    let harness = Harness::start("cli-session").await.unwrap();
    harness.usual_policies().await.unwrap();
    let made = succeeds(
        &harness,
        &[
            "run",
            AGENT_IMAGE,
            "-p",
            "gvisor",
            "--session",
            "600",
            "-t",
            "600",
            "--name",
            "tools",
        ],
    );
    assert_eq!(made, "agentsandbox/tools\n");

    let step = harness
        .call(&[
            "exec",
            "tools",
            "--",
            "sh",
            "-c",
            "echo out; echo err >&2; exit 3",
        ])
        .unwrap();
    assert_eq!(step, (3, "out\n".to_owned(), "err\n".to_owned()));
    let there = succeeds(
        &harness,
        &[
            "exec",
            "tools",
            "-e",
            "A=b c",
            "-w",
            "/workspace/new",
            "--",
            "sh",
            "-c",
            "echo $A $PWD",
        ],
    );
    assert_eq!(there, "b c /workspace/new\n");
    assert_eq!(
        harness
            .call(&["exec", "tools", "--timeout", "1", "--", "sleep", "60"])
            .unwrap()
            .0,
        124
    );
    let mut sort = harness.plugin(&["exec", "tools", "-i", "--", "sort"]).unwrap();
    let mut sort = sort.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    sort.stdin.take().unwrap().write_all(b"b\na\n").unwrap();
    assert_eq!(text(&sort.wait_with_output().unwrap().stdout), "a\nb\n");

    files_go_in_and_come_out(&harness);
    assert!(succeeds(&harness, &["list"]).contains("tools  Running"));
    let page = succeeds(&harness, &["get", "tools"]);
    for part in [
        "verdict    Running",
        "isolation  no weaker",
        "network    closed",
        "time ",
        "last steps",
    ] {
        assert!(page.contains(part), "{part}: {page}");
    }
    let followed = harness
        .plugin(&["audit", "-f", "tools"])
        .unwrap()
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    succeeds(&harness, &["stop", "tools"]);
    harness.finished("tools").await.unwrap();
    let followed = text(&followed.wait_with_output().unwrap().stdout);
    assert!(
        followed.contains("step 1: sh -c") && followed.contains("run ends: Stopped"),
        "{followed}"
    );
    the_log_is_told_and_verified(&harness);
    harness.finish().await.unwrap();
}

fn files_go_in_and_come_out(harness: &Harness) {
    let here = folder("cp");
    std::fs::create_dir_all(here.join("data/sub")).unwrap();
    let bytes: Vec<u8> = (0..=255).cycle().take(300_000).collect();
    std::fs::write(here.join("data/sub/file"), &bytes).unwrap();
    succeeds(harness, &["cp", &path(&here, "data"), "tools:in"]);
    let hostile = "ln -s /etc/passwd in/sub/link; mkfifo in/pipe; wc -c < in/sub/file";
    assert_eq!(
        succeeds(harness, &["exec", "tools", "--", "sh", "-c", hostile]).trim(),
        "300000"
    );
    let (code, _, told) = harness.call(&["cp", "tools:in", &path(&here, "again")]).unwrap();
    assert_eq!(code, 0, "{told}");
    assert!(told.contains("1 left out"), "{told}");
    assert!(std::fs::read(here.join("again/sub/file")).unwrap() == bytes);
    assert!(std::fs::symlink_metadata(here.join("again/sub/link")).is_err());
    let (code, _, told) = harness
        .call(&["cp", "tools:no-such", &path(&here, "none")])
        .unwrap();
    assert_eq!(code, 2, "{told}");
    std::fs::remove_dir_all(&here).unwrap();
}

fn the_log_is_told_and_verified(harness: &Harness) {
    let here = folder("verify");
    let denied = succeeds(harness, &["audit", "tools", "--denied"]);
    assert_eq!(denied, "");
    let steps = succeeds(harness, &["audit", "tools", "--kind", "step"]);
    assert!(steps.contains("step 1 ends: exit code 3"), "{steps}");
    let log = succeeds(harness, &["audit", "tools", "-o", "json"]);
    let (whole, changed, object) = (
        path(&here, "log"),
        path(&here, "changed"),
        path(&here, "object.yaml"),
    );
    std::fs::write(&whole, &log).unwrap();
    std::fs::write(&changed, log.replacen("\"exitCode\":3", "\"exitCode\":0", 1)).unwrap();
    std::fs::write(&object, succeeds(harness, &["get", "tools", "-o", "yaml"])).unwrap();
    assert!(succeeds(harness, &["verify", &whole, "tools"]).starts_with("whole"));
    assert!(succeeds(harness, &["verify", &whole, "--object", &object]).starts_with("whole"));
    let (code, stdout, _) = harness.call(&["verify", &changed, "tools"]).unwrap();
    assert_eq!(code, 1);
    assert!(stdout.starts_with("broken at line "), "{stdout}");
    std::fs::remove_dir_all(&here).unwrap();
}
