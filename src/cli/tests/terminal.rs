//! What reaches a terminal, and what a pipe: the program itself, on a terminal that `script` (util-linux) gives it.

// Clippy takes only functions marked #[test] for tests; this whole file is one.
#![allow(clippy::unwrap_used)]

#[path = "../src/fake_api.rs"]
mod fake_api;

use std::path::PathBuf;
use std::process::{Command, Stdio};

use serde_json::json;

const PROGRAM: &str = env!("CARGO_BIN_EXE_kubectl-sandbox");
/// What a terminal would act on: it clears the screen, sets the title, and writes from right to left.
const HOSTILE: &str = "\u{1b}[2J\u{1b}]0;owned\u{7}\u{202e}";
const WRITTEN_OUT: &str = r"\u{1b}[2J\u{1b}]0;owned\u{7}\u{202e}";

fn file(name: &str, text: &str) -> String {
    let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(name);
    std::fs::write(&path, text).unwrap();
    path.display().to_string()
}

fn printed(command: &mut Command) -> String {
    for name in ["NO_COLOR", "CLICOLOR", "CLICOLOR_FORCE"] {
        command.env_remove(name);
    }
    let output = command
        .env("TERM", "xterm")
        .stdin(Stdio::null())
        .output()
        .unwrap();
    String::from_utf8(output.stdout).unwrap()
}

fn into_a_pipe(arguments: &[&str]) -> String {
    printed(Command::new(PROGRAM).args(arguments))
}

/// Words before the program set its environment.
fn on_a_terminal(environment: &str, arguments: &[&str]) -> String {
    let words: Vec<String> = [PROGRAM]
        .iter()
        .chain(arguments)
        .map(|word| format!("'{word}'"))
        .collect();
    let command = format!("{environment} exec {}", words.join(" "));
    printed(Command::new("script").args(["--quiet", "--return", "--command", &command, "/dev/null"]))
}

#[test]
fn colours_reach_terminals_only_and_none_where_they_are_not_wanted() {
    let log = file("colours.log", "");
    let arguments = ["verify", log.as_str()];
    let coloured = on_a_terminal("", &arguments);
    assert!(coloured.contains("\u{1b}[32munbroken\u{1b}[0m"), "{coloured:?}");
    for plain in [on_a_terminal("NO_COLOR=1", &arguments), into_a_pipe(&arguments)] {
        assert!(plain.starts_with("unbroken, but"), "{plain:?}");
        assert!(!plain.contains('\u{1b}'), "{plain:?}");
    }
}

#[test]
fn what_a_sandbox_prints_is_written_out_on_a_terminal_and_goes_into_a_pipe_as_it_is() {
    let server = fake_api::serve(|request| {
        if request.contains("/pods/job-sb00000000/log") {
            return (200, format!("{HOSTILE}\n"));
        }
        let sandbox = json!({
            "apiVersion": "agentsandbox.dev/v1alpha1", "kind": "AgentSandbox",
            "metadata": {"name": "job", "namespace": "ns", "uid": "1"},
            "spec": {"image": "x", "command": ["y"]},
            "status": {"runId": "", "phase": "Succeeded", "podName": "job-sb00000000"},
        });
        (200, sandbox.to_string())
    });
    let config = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "fake",
        "clusters": [{"name": "fake", "cluster": {"server": server}}],
        "users": [{"name": "fake", "user": {}}],
        "contexts": [{"name": "fake", "context": {"cluster": "fake", "user": "fake", "namespace": "ns"}}],
    });
    let config = file("terminal.kubeconfig", &config.to_string());
    let arguments = ["--kubeconfig", &config, "logs", "job"];
    assert_eq!(on_a_terminal("", &arguments), format!("{WRITTEN_OUT}\r\n"));
    assert_eq!(into_a_pipe(&arguments), format!("{HOSTILE}\n"));
}

#[test]
fn what_a_manifest_says_is_written_out_on_a_terminal() {
    let sandbox = json!({
        "apiVersion": "agentsandbox.dev/v1alpha1", "kind": "AgentSandbox",
        "metadata": {"name": format!("one{HOSTILE}")}, "spec": {"image": "x", "command": ["y"]},
    });
    let sandbox = file("hostile.json", &sandbox.to_string());
    let told = on_a_terminal("", &["policy", "check", &sandbox]);
    assert!(
        told.contains(&format!("AgentSandbox one{WRITTEN_OUT}: WOULD BE REFUSED")),
        "{told:?}"
    );
    assert!(!told.contains('\u{1b}'), "{told:?}");
}
