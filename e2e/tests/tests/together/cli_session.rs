//! `kubectl sandbox` in a session: steps, files, its page and its log.

use std::io::Write;
use std::process::Stdio;

use e2e::Harness;
use e2e::harness::AGENT_IMAGE;
use e2e::plugin::{folder, path, text};

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
    assert_eq!(succeeds(&harness, &["audit", "tools", "--denied"]), "");
    let steps = succeeds(&harness, &["audit", "tools", "--kind", "step"]);
    assert!(steps.contains("step 1 ends: exit code 3"), "{steps}");
    let mut command = harness.plugin(&["audit", "-f", "tools"]).unwrap();
    let followed = command.stdout(Stdio::piped()).spawn().unwrap();
    succeeds(&harness, &["stop", "tools"]);
    harness.finished("tools").await.unwrap();
    let followed = text(&followed.wait_with_output().unwrap().stdout);
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
    let (code, _, told) = harness
        .call(&["cp", "tools:no-such", &path(&here, "none")])
        .unwrap();
    assert_eq!(code, 2, "{told}");
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
