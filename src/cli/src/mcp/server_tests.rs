//! The tools, as the official client calls them.

use std::collections::BTreeMap;
use std::sync::Mutex;

use futures::FutureExt;
use futures::future::BoxFuture;
use rmcp::model::CallToolRequestParams;
use rmcp::service::RunningService;
use rmcp::{RoleClient, ServiceExt};
use serde_json::{Value, json};

use super::*;

/// A place in memory: files, and one command that says how it was called.
#[derive(Default)]
struct Fake {
    files: Mutex<BTreeMap<String, Vec<u8>>>,
}

impl Workplace for Fake {
    fn run(&self, command: Command) -> BoxFuture<'_, Result<StepOutput, String>> {
        let outcome = match command.argv.first().map(String::as_str) {
            Some("refused") => Err("step refused: StepBudgetExceeded: all are used".to_owned()),
            _ => Ok(StepOutput {
                exit_code: i32::from(command.argv.contains(&"no-such".to_owned())) * 2,
                stdout: format!("{command:?}").into_bytes(),
                stderr: b"err\xff".to_vec(),
            }),
        };
        std::future::ready(outcome).boxed()
    }

    fn write(&self, path: String, content: String) -> BoxFuture<'_, Result<(), String>> {
        self.files.lock().unwrap().insert(path, content.into_bytes());
        std::future::ready(Ok(())).boxed()
    }

    fn read(&self, path: String) -> BoxFuture<'_, Result<Vec<u8>, String>> {
        let found = self.files.lock().unwrap().get(&path).cloned();
        std::future::ready(found.ok_or_else(|| format!("no such file: {path}"))).boxed()
    }
}

async fn client(fake: Fake) -> RunningService<RoleClient, ()> {
    let (near, far) = tokio::io::duplex(64 << 10);
    tokio::spawn(async move {
        let server = Server::new(Arc::new(fake)).serve(far).await.unwrap();
        server.waiting().await.unwrap();
    });
    ().serve(near).await.unwrap()
}

async fn call(
    client: &RunningService<RoleClient, ()>,
    tool: &'static str,
    arguments: Value,
) -> (bool, String) {
    let Value::Object(arguments) = arguments else {
        panic!("arguments are an object");
    };
    let request = CallToolRequestParams::new(tool).with_arguments(arguments);
    let result = client.call_tool(request).await.unwrap();
    let text = result.content[0].as_text().unwrap().text.clone();
    (result.is_error == Some(true), text)
}

#[tokio::test]
async fn an_agent_finds_four_tools_and_what_they_take() {
    let client = client(Fake::default()).await;
    let tools = client.list_all_tools().await.unwrap();
    let mut names: Vec<&str> = tools.iter().map(|tool| tool.name.as_ref()).collect();
    names.sort_unstable();
    assert_eq!(names, ["list_files", "read_file", "run_command", "write_file"]);
    let run = tools.iter().find(|tool| tool.name == "run_command").unwrap();
    assert_eq!(run.input_schema["required"], json!(["command"]));
    client.cancel().await.unwrap();
}

#[tokio::test]
async fn commands_return_their_end_and_refusals_are_errors() {
    let client = client(Fake::default()).await;
    let (is_error, text) = call(
        &client,
        "run_command",
        json!({"command": ["echo", "hi"], "stdin": "x", "timeout_seconds": 999_999, "working_dir": "/tmp"}),
    )
    .await;
    assert!(!is_error);
    assert_eq!(
        text,
        "exit code 0\n[stdout]\nCommand { argv: [\"echo\", \"hi\"], stdin: Some(\"x\"), timeout_seconds: 3600, \
         working_dir: Some(\"/tmp\") }\n[stderr]\nerr\u{fffd}\n"
    );
    let (is_error, text) = call(&client, "run_command", json!({"command": ["refused"]})).await;
    assert!(is_error && text.contains("StepBudgetExceeded"), "{text}");
    let (is_error, text) = call(&client, "list_files", json!({})).await;
    assert!(
        !is_error && text.contains(r#"["ls", "-lA", "--", "."]"#),
        "{text}"
    );
    let (is_error, text) = call(&client, "list_files", json!({"path": "no-such"})).await;
    assert!(is_error && text.starts_with("exit code 2"), "{text}");
    client.cancel().await.unwrap();
}

#[tokio::test]
async fn files_are_written_and_read_as_text() {
    let fake = Fake::default();
    fake.files
        .lock()
        .unwrap()
        .insert("binary".to_owned(), vec![0xff, 0]);
    let client = client(fake).await;
    let written = call(&client, "write_file", json!({"path": "a", "content": "é"})).await;
    assert_eq!(written, (false, "wrote 2 bytes to a".to_owned()));
    assert_eq!(
        call(&client, "read_file", json!({"path": "a"})).await,
        (false, "é".to_owned())
    );
    let (is_error, text) = call(&client, "read_file", json!({"path": "binary"})).await;
    assert!(is_error && text.contains("2 bytes"), "{text}");
    assert!(call(&client, "read_file", json!({"path": "none"})).await.0);
    client.cancel().await.unwrap();
}
