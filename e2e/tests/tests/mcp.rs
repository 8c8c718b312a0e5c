//! `kubectl sandbox mcp`, as an agent's host starts it: one JSON-RPC message a line.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Stdio};

use agentsandbox_api::sandbox::AgentSandbox;
use e2e::Harness;
use e2e::harness::AGENT_IMAGE;
use kube::api::ListParams;
use serde_json::{Value, json};

/// The program and both ends of its pipes.
struct Agent {
    program: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
    asked: u64,
}

impl Agent {
    fn start(harness: &Harness) -> Self {
        let arguments = [
            "mcp",
            "--image",
            AGENT_IMAGE,
            "--policy",
            "gvisor",
            "--timeout",
            "600",
        ];
        let mut program = harness
            .plugin(&arguments)
            .unwrap()
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut agent = Self {
            stdin: program.stdin.take().unwrap(),
            stdout: BufReader::new(program.stdout.take().unwrap()),
            program,
            asked: 0,
        };
        let client = json!({"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "e2e", "version": "1"}});
        let server = agent.ask("initialize", &client);
        assert_eq!(server["serverInfo"]["name"], "agentsandbox", "{server}");
        agent.send(&json!({"jsonrpc": "2.0", "method": "notifications/initialized"}));
        agent
    }

    fn send(&mut self, message: &Value) {
        writeln!(self.stdin, "{message}").unwrap();
    }

    fn ask(&mut self, method: &str, parameters: &Value) -> Value {
        self.asked += 1;
        let id = self.asked;
        self.send(&json!({"jsonrpc": "2.0", "id": id, "method": method, "params": parameters}));
        loop {
            let mut line = String::new();
            assert!(
                self.stdout.read_line(&mut line).unwrap() > 0,
                "no answer to {method}"
            );
            let message: Value = serde_json::from_str(&line).unwrap();
            if message["id"] == id {
                return message["result"].clone();
            }
        }
    }

    fn call(&mut self, tool: &str, arguments: &Value) -> (bool, String) {
        let result = self.ask("tools/call", &json!({"name": tool, "arguments": arguments}));
        let text = result["content"][0]["text"]
            .as_str()
            .unwrap_or_default()
            .to_owned();
        (result["isError"] == true, text)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_works_in_a_session_that_ends_with_its_connection() {
    let harness = Harness::start("mcp").await.unwrap();
    harness.usual_policies().await.unwrap();
    let mut agent = Agent::start(&harness);
    let written = agent.call(
        "write_file",
        &json!({"path": "data/main.py", "content": "print(6 * 7)"}),
    );
    assert!(!written.0, "{}", written.1);
    let ran = agent.call("run_command", &json!({"command": ["python3", "data/main.py"]}));
    assert_eq!(ran, (false, "exit code 0\n[stdout]\n42\n".to_owned()));
    let read = agent.call("read_file", &json!({"path": "/workspace/data/main.py"}));
    assert_eq!(read, (false, "print(6 * 7)".to_owned()));
    let (is_error, listed) = agent.call("list_files", &json!({"path": "data"}));
    assert!(!is_error && listed.contains("main.py"), "{listed}");
    let (is_error, why) = agent.call("read_file", &json!({"path": "no-such"}));
    assert!(is_error && !why.is_empty());

    let sandboxes = harness
        .api::<AgentSandbox>()
        .list(&ListParams::default())
        .await
        .unwrap();
    assert_eq!(sandboxes.items.len(), 1);
    drop(agent.stdin);
    assert_eq!(agent.program.wait().unwrap().code(), Some(0));
    harness
        .eventually("the end of the session", || async {
            let left = harness.api::<AgentSandbox>().list(&ListParams::default()).await?;
            Ok(left.items.is_empty().then_some(()))
        })
        .await
        .unwrap();
    harness.finish().await.unwrap();
}
