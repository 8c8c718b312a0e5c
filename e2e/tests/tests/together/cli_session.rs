//! `kubectl sandbox` in a session: steps, files, its page and its log.

use std::io::Write;
use std::process::Stdio;

use e2e::Harness;
use e2e::harness::AGENT_IMAGE;
use e2e::plugin::{folder, path, text};
use serde_json::Value;

/// Runs it, which must succeed; returns standard output.
fn succeeds(harness: &Harness, arguments: &[&str]) -> String {
    harness.succeed(arguments).unwrap()
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
    a_detached_step_goes_on(&harness).await;
    it_is_listed(&harness);
    it_is_shown(&harness);
    what_it_uses_stands_beside_what_it_may(&harness);
    what_was_refused_is_told_alone(&harness).await;
    let steps = succeeds(&harness, &["audit", "tools", "--kind", "step"]);
    assert!(steps.contains("step 1 ends: exit code 3"), "{steps}");
    let mut command = harness.plugin(&["audit", "-f", "tools"]).unwrap();
    let followed = command.stdout(Stdio::piped()).spawn().unwrap();
    succeeds(&harness, &["stop", "tools"]);
    harness.finished("tools").await.unwrap();
    let followed = text(&followed.wait_with_output().unwrap().stdout);
    let (code, _, told) = harness.call(&["exec", "tools", "--", "true"]).unwrap();
    assert_eq!(code, 125, "{told}");
    assert!(told.contains("has ended (Stopped)"), "{told}");
    // A run that is ended from outside keeps its log as any other.
    for log in [followed, succeeds(&harness, &["audit", "tools"])] {
        assert!(
            log.contains("step 1: sh -c") && log.contains("run ends: Stopped"),
            "{log}"
        );
    }
    the_log_is_verified(&harness, &succeeds(&harness, &["audit", "-o", "json", "tools"]));
    harness.finish().await.unwrap();
}

async fn a_detached_step_goes_on(harness: &Harness) {
    let script = "sleep 1; echo later > detached";
    let number = succeeds(harness, &["exec", "tools", "--detach", "--", "sh", "-c", script]);
    let number: u64 = number.trim_end().parse().unwrap();
    harness
        .eventually("the end of the detached step", || async {
            let (_, printed, _) = harness.call(&["exec", "tools", "--", "cat", "detached"])?;
            Ok((printed == "later\n").then_some(()))
        })
        .await
        .unwrap();
    let steps = succeeds(harness, &["audit", "tools", "--kind", "step"]);
    assert!(
        steps.contains(&format!("step {number}: sh -c {script}")),
        "{steps}"
    );
}

fn it_is_listed(harness: &Harness) {
    let columns = ["NAME", "PHASE", "REASON", "EXIT", "POLICY", "DURATION", "AGE"];
    assert_eq!(harness.row(&["list"], "NAME").unwrap(), columns);
    let row = harness.row(&["list"], "tools").unwrap();
    assert_eq!(
        row[..6],
        ["tools", "Running", "Running", "-", "gvisor", "-"],
        "{row:?}"
    );
    assert!(
        row[6].starts_with(|first: char| first.is_ascii_digit()),
        "{row:?}"
    );

    let wide = ["list", "-o", "wide"];
    let more = ["ISOLATION", "RUNTIME", "NODE", "IMAGE"];
    assert_eq!(
        harness.row(&wide, "NAME").unwrap(),
        [&columns[..], &more].concat()
    );
    let row = harness.row(&wide, "tools").unwrap();
    assert_eq!(
        (row[8].as_str(), row[10].as_str()),
        ("gvisor", AGENT_IMAGE),
        "{row:?}"
    );

    let list: Value = serde_json::from_str(&succeeds(harness, &["list", "-o", "json"])).unwrap();
    assert_eq!(list["kind"], "List");
    assert_eq!(list["items"].as_array().unwrap().len(), 1, "{list}");
    is_the_whole_object(&list["items"][0]);
    assert_eq!(succeeds(harness, &["list", "-o", "name"]), "agentsandbox/tools\n");
    is_read_as_yaml(harness, "list.yaml", &succeeds(harness, &["list", "-o", "yaml"]));
}

fn it_is_shown(harness: &Harness) {
    // There is no wider page.
    for arguments in [&["get", "tools"][..], &["get", "tools", "-o", "wide"]] {
        let page = succeeds(harness, arguments);
        for part in [
            "verdict    Running",
            "isolation  no weaker",
            "network    closed",
            "time ",
            "last steps",
        ] {
            assert!(page.contains(part), "{part}: {page}");
        }
    }
    let object = succeeds(harness, &["get", "tools", "-o", "json"]);
    is_the_whole_object(&serde_json::from_str(&object).unwrap());
    is_read_as_yaml(
        harness,
        "get.yaml",
        &succeeds(harness, &["get", "tools", "-o", "yaml"]),
    );
}

fn is_the_whole_object(object: &Value) {
    assert_eq!(object["kind"], "AgentSandbox", "{object}");
    assert_eq!(object["metadata"]["name"], "tools", "{object}");
    assert_eq!(object["spec"]["image"], AGENT_IMAGE, "{object}");
    assert_eq!(object["status"]["phase"], "Running", "{object}");
}

/// kubectl finds the sandbox in a manifest.
fn is_read_as_yaml(harness: &Harness, name: &str, manifest: &str) {
    // JSON would be YAML too.
    assert!(manifest.starts_with("apiVersion: "), "{manifest}");
    let here = folder("yaml").unwrap();
    let file = path(&here, name);
    std::fs::write(&file, manifest).unwrap();
    let read = harness.kubectl(&["get", "-f", &file, "-o", "name"]).unwrap();
    assert_eq!(read, "agentsandbox.agentsandbox.dev/tools\n", "{manifest}");
    std::fs::remove_dir_all(&here).unwrap();
}

fn what_it_uses_stands_beside_what_it_may(harness: &Harness) {
    let head = [
        "NAME",
        "TIME",
        "CPU",
        "MEMORY",
        "DISK",
        "PROCESSES",
        "STEPS",
        "TOKENS",
        "EGRESS",
    ];
    assert_eq!(harness.row(&["top"], "NAME").unwrap(), head);
    let row = harness.row(&["top", "tools"], "tools").unwrap();
    for (column, ceiling) in [(1, "10m"), (3, "128Mi"), (4, "128Mi"), (5, "64")] {
        let (used, most) = row[column].split_once('/').unwrap();
        assert_eq!(most, ceiling, "{row:?}");
        assert!(used.starts_with(|first: char| first.is_ascii_digit()), "{row:?}");
    }
    // It has run, and holds memory; no step runs at the moment.
    for column in [1, 2, 3] {
        let used = row[column].split('/').next().unwrap();
        assert!(
            used.contains(|digit: char| ('1'..='9').contains(&digit)),
            "{row:?}"
        );
    }
    let steps: u64 = row[6].parse().unwrap();
    assert!(steps >= 5, "{row:?}");
    assert_eq!(row[7..], ["-", "-"], "{row:?}");
}

async fn what_was_refused_is_told_alone(harness: &Harness) {
    assert_eq!(succeeds(harness, &["audit", "tools", "--denied"]), "");
    let attack = "kill -9 1 || echo refused";
    assert_eq!(
        succeeds(harness, &["exec", "tools", "--", "sh", "-c", attack]),
        "refused\n"
    );
    let denied = harness
        .eventually("a record of what was refused", || async {
            let denied = harness.succeed(&["audit", "tools", "--denied"])?;
            Ok((!denied.is_empty()).then_some(denied))
        })
        .await
        .unwrap();
    let is_refusal = |line: &str| line.contains("] refused: kill(1, 9)");
    assert!(denied.lines().all(is_refusal), "{denied}");
    let whole = succeeds(harness, &["audit", "tools"]);
    assert!(whole.lines().any(is_refusal), "{whole}");
    assert!(whole.contains(attack) && whole.lines().count() > denied.lines().count());
}

fn files_go_in_and_come_out(harness: &Harness) {
    let here = folder("cp").unwrap();
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
    for source in ["tools:no-such", "tools:in/sub/link"] {
        let (code, _, told) = harness.call(&["cp", source, &path(&here, "none")]).unwrap();
        assert_eq!(code, 2, "{source}: {told}");
    }
    std::fs::remove_dir_all(&here).unwrap();
}

fn the_log_is_verified(harness: &Harness, log: &str) {
    let here = folder("verify").unwrap();
    let (whole, changed, object) = (
        path(&here, "log"),
        path(&here, "changed"),
        path(&here, "object.yaml"),
    );
    std::fs::write(&whole, log).unwrap();
    std::fs::write(&changed, log.replacen("\"exitCode\":3", "\"exitCode\":0", 1)).unwrap();
    std::fs::write(&object, succeeds(harness, &["get", "tools", "-o", "yaml"])).unwrap();
    assert!(succeeds(harness, &["verify", &whole, "tools"]).starts_with("whole"));
    assert!(succeeds(harness, &["verify", &whole, "--object", &object]).starts_with("whole"));
    let (code, stdout, _) = harness.call(&["verify", &changed, "tools"]).unwrap();
    assert_eq!(code, 1);
    assert!(stdout.starts_with("broken at line "), "{stdout}");
    std::fs::remove_dir_all(&here).unwrap();
}
