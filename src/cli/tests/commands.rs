//! What commands say and how they end: the program itself, against an API server that answers from a script.

// Clippy takes only functions marked #[test] for tests; this whole file is one.
#![allow(clippy::unwrap_used)]

#[path = "../src/fake_api.rs"]
mod fake_api;

use std::io::Read;
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::handshake::server::{Request, Response};
use tokio_tungstenite::tungstenite::{Message, accept_hdr};

const PROGRAM: &str = env!("CARGO_BIN_EXE_kubectl-sandbox");

/// Runs the program; the test's name keeps its kubeconfig apart from those of others. The way to a server on this machine
/// leads through no proxy.
fn ran(test: &str, answer: impl fake_api::Answer, arguments: &[&str]) -> Output {
    program(test, &fake_api::serve(answer), arguments)
        .output()
        .unwrap()
}

fn program(test: &str, server: &str, arguments: &[&str]) -> Command {
    let config = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "fake",
        "clusters": [{"name": "fake", "cluster": {"server": server}}],
        "users": [{"name": "fake", "user": {}}],
        "contexts": [{"name": "fake", "context": {"cluster": "fake", "user": "fake", "namespace": "ns"}}],
    });
    let file = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("{test}.kubeconfig"));
    std::fs::write(&file, config.to_string()).unwrap();
    let mut command = Command::new(PROGRAM);
    command
        .arg("--kubeconfig")
        .arg(file)
        .args(arguments)
        .env("HTTPS_PROXY", "http://proxy.invalid:3128")
        .stdin(Stdio::null());
    command
}

fn told(output: &Output) -> (Option<i32>, String, String) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

fn sandbox(name: &str, status: &Value) -> Value {
    json!({
        "apiVersion": "agentsandbox.dev/v1alpha1", "kind": "AgentSandbox",
        "metadata": {"name": name, "namespace": "ns", "uid": name},
        "spec": {"image": "x", "command": ["y"]}, "status": status,
    })
}

fn list(items: &[Value]) -> fake_api::Answered {
    let list = json!({"apiVersion": "agentsandbox.dev/v1alpha1", "kind": "AgentSandboxList",
                      "metadata": {"resourceVersion": "1"}, "items": items});
    (200, list.to_string())
}

fn refused(code: u16, reason: &str, message: &str) -> fake_api::Answered {
    let status = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "reason": reason, "message": message});
    (code, status.to_string())
}

#[test]
fn a_quiet_run_says_why_there_is_no_exit_code() {
    let answer = |request: &str| {
        if request.contains("/sandboxpolicies/") {
            return refused(404, "NotFound", "no policy");
        }
        let condition = |type_: &str, status: &str| {
            json!({"type": type_, "status": status, "reason": "PolicyRejected", "message": "m",
                   "lastTransitionTime": "2026-01-01T00:00:00Z"})
        };
        let status = json!({
            "runId": "", "phase": "Failed",
            "result": {"reason": "PolicyRejected", "message": "spec.image is not allowed"},
            "conditions": [condition("Finished", "True"), condition("Succeeded", "False")],
        });
        (200, sandbox("job", &status).to_string())
    };
    let (code, out, error) = told(&ran(
        "quiet",
        answer,
        &["run", "x", "-q", "--name", "job", "--", "y"],
    ));
    assert_eq!((code, out.as_str()), (Some(125), ""), "{error}");
    assert_eq!(
        error,
        "job: PolicyRejected: spec.image is not allowed\njob: next: kubectl sandbox get job\n"
    );
}

#[test]
fn stop_tries_all_and_reports_each() {
    let answer = |request: &str| {
        if request.contains("/agentsandboxes/gone") {
            return refused(404, "NotFound", "not found");
        }
        let name = if request.contains("/one") { "one" } else { "two" };
        (200, sandbox(name, &json!({})).to_string())
    };
    let (code, out, error) = told(&ran("stop", answer, &["stop", "gone", "one", "gone-too", "two"]));
    assert_eq!(code, Some(2));
    assert_eq!(
        out,
        "agentsandbox/one is asked to stop\nagentsandbox/two is asked to stop\n"
    );
    for name in ["gone", "gone-too"] {
        assert!(
            error.contains(&format!("error: no sandbox named {name} in namespace ns")),
            "{error}"
        );
    }
}

#[test]
fn top_fails_for_what_does_not_run_and_where_none_can_be_asked() {
    let running = json!({"runId": "", "phase": "Running", "podName": "one-sb00000000"});
    let answer = move |request: &str| {
        if request.contains("/exec") {
            return refused(403, "Forbidden", "pods is forbidden");
        }
        if request.contains("/sandboxpolicies/") {
            return refused(404, "NotFound", "no policy");
        }
        if request.contains("/agentsandboxes/one") {
            return (200, sandbox("one", &running).to_string());
        }
        list(&[
            sandbox("one", &running),
            sandbox("two", &json!({"phase": "Failed"})),
        ])
    };
    let (code, out, error) = told(&ran("top-absent", answer.clone(), &["top", "two", "three"]));
    assert_eq!((code, out.as_str()), (Some(2), ""), "{error}");
    assert!(
        error.contains("does not run in namespace ns: two, three"),
        "{error}"
    );
    let (code, out, error) = told(&ran("top-unreadable", answer, &["top"]));
    assert_eq!((code, out.as_str()), (Some(2), ""), "{error}");
    assert!(error.starts_with("one: pods is forbidden"), "{error}");
    let (code, _, error) = told(&ran("top-none", |_: &str| list(&[]), &["top"]));
    assert_eq!(
        (code, error.as_str()),
        (Some(0), "No such sandbox runs in namespace ns.\n")
    );
}

#[test]
fn a_doctor_whom_nobody_hears_ends_quietly_and_one_who_sees_little_says_what_to_name() {
    let forbidden = |_: &str| refused(403, "Forbidden", "no");
    for format in [&["doctor", "--no-probe"][..], &["doctor", "-o", "json"]] {
        let mut doctor = program("doctor", &fake_api::serve(forbidden), format);
        let mut doctor = doctor
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        drop(doctor.stdout.take());
        let (code, _, error) = told(&doctor.wait_with_output().unwrap());
        assert_eq!((code, error.as_str()), (Some(141), ""), "{format:?}");
    }
    let version = |request: &str| {
        if !request.contains("/version") {
            return refused(403, "Forbidden", "no");
        }
        let version = json!({"major": "1", "minor": "36", "gitVersion": "", "gitCommit": "", "gitTreeState": "",
                             "buildDate": "", "goVersion": "", "compiler": "", "platform": ""});
        (200, version.to_string())
    };
    let (code, out, error) = told(&ran("doctor-blind", version, &["doctor"]));
    assert_eq!(code, Some(0), "{out}{error}");
    assert!(out.contains("with --image and --command"), "{out}");
}

/// A session whose steps print without end.
#[allow(clippy::result_large_err, reason = "the handshake asks for this type")]
fn endless(connection: TcpStream) {
    let mut head = [0; 1024];
    let length = connection.peek(&mut head).unwrap();
    if !String::from_utf8_lossy(&head[..length]).contains("/exec?") {
        let session = sandbox("tools", &json!({"runId": "", "podName": "tools-sb00000000"}));
        fake_api::respond(connection, &move |_: &str| (200, session.to_string())).unwrap();
        return;
    }
    let protocol = |_: &Request, mut response: Response| {
        let v5 = "v5.channel.k8s.io".parse().unwrap();
        response.headers_mut().insert("sec-websocket-protocol", v5);
        Ok(response)
    };
    let mut socket = accept_hdr(connection, protocol).unwrap();
    let piece = [&[1][..], &[b'y'; 4096]].concat();
    while socket.send(Message::binary(piece.clone())).is_ok() {}
}

#[test]
fn a_step_whose_output_nobody_reads_any_more_ends_quietly_with_141() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let server = format!("http://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for connection in listener.incoming() {
            std::thread::spawn(|| endless(connection.unwrap()));
        }
    });
    let mut exec = program("unread", &server, &["exec", "tools", "--", "yes"]);
    let mut exec = exec
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    exec.stdout.take().unwrap().read_exact(&mut [0; 8]).unwrap();
    let (code, _, error) = told(&exec.wait_with_output().unwrap());
    assert_eq!((code, error.as_str()), (Some(141), ""));
}
