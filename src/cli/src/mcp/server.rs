//! The tools.

use std::sync::Arc;

use agentsandbox_client::StepOutput;
use rmcp::handler::server::router::tool::ToolRouter;
use rmcp::handler::server::wrapper::Parameters;
use rmcp::model::{CallToolResult, ContentBlock, Implementation, ServerCapabilities, ServerConfig};
use rmcp::{ServerHandler, tool, tool_handler, tool_router};
use schemars::JsonSchema;
use serde::Deserialize;

use super::session::{Command, Workplace};

/// Time limit of a command that names none, in seconds.
const TIMEOUT: u32 = 120;
/// Longest time limit of a command, in seconds.
const TIMEOUT_MAX: u32 = 3600;

/// What an agent is told of the tools as a whole.
const INSTRUCTIONS: &str = "Commands and files of one sandbox, which lasts as long as this connection: files, installed \
    packages and background processes stay from call to call. The working directory is /workspace; only /workspace and \
    /tmp can be written. The network is closed but for what the sandbox's policy allows.";

/// A command to run.
#[derive(Debug, Deserialize, JsonSchema)]
struct RunCommand {
    /// Program and arguments. No shell is involved: for one, pass `sh`, `-c` and the script.
    command: Vec<String>,
    /// What the command reads from standard input.
    #[serde(default)]
    stdin: Option<String>,
    /// Seconds after which the command is ended with exit code 124; 120 if absent, at most 3600.
    #[serde(default)]
    timeout_seconds: Option<u32>,
    /// Absolute path of the working directory; /workspace if absent.
    #[serde(default)]
    working_dir: Option<String>,
}

/// A text file to write.
#[derive(Debug, Deserialize, JsonSchema)]
struct WriteFile {
    /// Where, below /workspace or /tmp; relative paths start at /workspace. Folders above it are made.
    path: String,
    /// The whole content.
    content: String,
}

/// A text file to read.
#[derive(Debug, Deserialize, JsonSchema)]
struct ReadFile {
    /// The file; relative paths start at /workspace.
    path: String,
}

/// A folder to list.
#[derive(Debug, Deserialize, JsonSchema)]
struct ListFiles {
    /// The folder; /workspace if absent.
    #[serde(default)]
    path: Option<String>,
}

/// The tools of one place.
pub struct Server<W: Workplace> {
    workplace: Arc<W>,
    tool_router: ToolRouter<Self>,
}

#[tool_router]
impl<W: Workplace> Server<W> {
    /// Tools that work there.
    pub fn new(workplace: Arc<W>) -> Self {
        Self {
            workplace,
            tool_router: Self::tool_router(),
        }
    }

    #[tool(
        description = "Run a command in the sandbox and return its exit code, standard output and standard error."
    )]
    async fn run_command(&self, Parameters(asked): Parameters<RunCommand>) -> CallToolResult {
        let command = Command {
            argv: asked.command,
            stdin: asked.stdin,
            timeout_seconds: asked.timeout_seconds.unwrap_or(TIMEOUT).clamp(1, TIMEOUT_MAX),
            working_dir: asked.working_dir,
        };
        answer(self.workplace.run(command).await.map(|output| report(&output)))
    }

    #[tool(description = "Write a text file in the sandbox, in place of one that is there.")]
    async fn write_file(&self, Parameters(asked): Parameters<WriteFile>) -> CallToolResult {
        let done = format!("wrote {} bytes to {}", asked.content.len(), asked.path);
        answer(
            self.workplace
                .write(asked.path, asked.content)
                .await
                .map(|()| done),
        )
    }

    #[tool(description = "Read a text file of the sandbox, of at most 1 MiB.")]
    async fn read_file(&self, Parameters(asked): Parameters<ReadFile>) -> CallToolResult {
        let content = self.workplace.read(asked.path).await;
        answer(content.and_then(|bytes| {
            let length = bytes.len();
            String::from_utf8(bytes)
                .map_err(|_| format!("the file is no text: {length} bytes that are not UTF-8"))
        }))
    }

    #[tool(description = "List a folder of the sandbox with kinds, sizes and times, as `ls -lA` does.")]
    async fn list_files(&self, Parameters(asked): Parameters<ListFiles>) -> CallToolResult {
        let folder = asked.path.unwrap_or_else(|| ".".to_owned());
        let command = Command {
            argv: ["ls", "-lA", "--", &folder].map(str::to_owned).to_vec(),
            timeout_seconds: TIMEOUT,
            ..Command::default()
        };
        answer(
            self.workplace
                .run(command)
                .await
                .and_then(|output| match output.exit_code {
                    0 => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
                    _ => Err(report(&output)),
                }),
        )
    }
}

#[tool_handler(router = self.tool_router)]
impl<W: Workplace> ServerHandler for Server<W> {
    fn get_info(&self) -> ServerConfig {
        ServerConfig::new(ServerCapabilities::builder().enable_tools().build())
            .with_server_info(Implementation::new("agentsandbox", env!("CARGO_PKG_VERSION")))
            .with_instructions(INSTRUCTIONS)
    }
}

fn answer(outcome: Result<String, String>) -> CallToolResult {
    match outcome {
        Ok(text) => CallToolResult::success(vec![ContentBlock::text(text)]),
        Err(why) => CallToolResult::error(vec![ContentBlock::text(why)]),
    }
}

/// What came of a command, for an agent to read.
fn report(output: &StepOutput) -> String {
    let mut text = format!("exit code {}\n", output.exit_code);
    for (name, bytes) in [("stdout", &output.stdout), ("stderr", &output.stderr)] {
        if !bytes.is_empty() {
            text += &["[", name, "]\n", &String::from_utf8_lossy(bytes)].concat();
            if !text.ends_with('\n') {
                text.push('\n');
            }
        }
    }
    text
}

#[cfg(test)]
#[path = "server_tests.rs"]
mod tests;
