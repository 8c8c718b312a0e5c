//! Where tools work: a session sandbox, or in tests something that stands for it.

use std::time::Duration;

use agentsandbox_api::sandbox::AgentSandbox;
use agentsandbox_client::{Error, Sandbox, Sandboxes, Step, StepOutput, Until};
use futures::future::BoxFuture;
use tokio::sync::Mutex;

/// Longest wait for the session's start. The operator gives up earlier, but for a full quota.
const START: Duration = Duration::from_mins(10);
/// Most bytes kept of each stream of a command, and most of a file.
pub const TEXT_MAX: usize = 1 << 20;
/// Permission bits of files that are written.
const FILE_MODE: u32 = 0o644;

/// A command to run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Command {
    /// Program and arguments.
    pub argv: Vec<String>,
    /// What it reads.
    pub stdin: Option<String>,
    /// Its time limit.
    pub timeout_seconds: u32,
    /// Its working directory, if it is not the workspace.
    pub working_dir: Option<String>,
}

/// Where tools work. Errors are for the agent to read.
pub trait Workplace: Send + Sync + 'static {
    /// Runs a command to its end.
    fn run(&self, command: Command) -> BoxFuture<'_, Result<StepOutput, String>>;
    /// Writes a file.
    fn write(&self, path: String, content: String) -> BoxFuture<'_, Result<(), String>>;
    /// Reads a file.
    fn read(&self, path: String) -> BoxFuture<'_, Result<Vec<u8>, String>>;
}

/// A session sandbox, made when it is first needed.
pub struct Session {
    sandboxes: Sandboxes,
    wanted: AgentSandbox,
    made: Mutex<Option<Sandbox>>,
}

impl Session {
    /// The session that this object asks for.
    pub fn new(sandboxes: Sandboxes, wanted: AgentSandbox) -> Self {
        Self {
            sandboxes,
            wanted,
            made: Mutex::new(None),
        }
    }

    /// The sandbox, once it takes steps.
    pub async fn begin(&self) -> Result<Sandbox, String> {
        let sandbox = self.make().await.map_err(|error| told(&error))?;
        let ready = sandbox.wait(Until::Ready, Some(START), |_| {}).await;
        match agentsandbox_client::verdict(&ready.map_err(|error| told(&error))?) {
            Some(reason) => Err(format!("the session has ended: {reason}")),
            None => Ok(sandbox),
        }
    }

    async fn make(&self) -> Result<Sandbox, Error> {
        let mut made = self.made.lock().await;
        if let Some(sandbox) = &*made {
            return Ok(sandbox.clone());
        }
        let sandbox = self.sandboxes.create(self.wanted.clone()).await?;
        *made = Some(sandbox.clone());
        Ok(sandbox)
    }

    /// Deletes the sandbox, if it was made.
    pub async fn end(&self) -> Result<(), Error> {
        match self.made.lock().await.take() {
            Some(sandbox) => match sandbox.delete().await {
                Err(Error::NotFound { .. } | Error::Deleted { .. }) => Ok(()),
                deleted => deleted,
            },
            None => Ok(()),
        }
    }
}

fn told(error: &Error) -> String {
    match error {
        Error::Kube(kube::Error::Api(status)) => status.message.clone(),
        other => other.to_string(),
    }
}

impl Workplace for Session {
    fn run(&self, command: Command) -> BoxFuture<'_, Result<StepOutput, String>> {
        Box::pin(async move {
            let mut step = Step::new(command.argv).timeout_seconds(command.timeout_seconds);
            if let Some(input) = command.stdin {
                step = step.input(input);
            }
            if let Some(folder) = command.working_dir {
                step = step.working_dir(folder);
            }
            let sandbox = self.begin().await?;
            sandbox.step(&step, TEXT_MAX).await.map_err(|error| match error {
                Error::OutputTooLong { limit } => {
                    format!("the command printed more than {limit} bytes: let it write to a file, and read parts of it")
                }
                error => told(&error),
            })
        })
    }

    fn write(&self, path: String, content: String) -> BoxFuture<'_, Result<(), String>> {
        Box::pin(async move {
            let sandbox = self.begin().await?;
            let written = sandbox.write_file(&path, content.into_bytes(), FILE_MODE).await;
            written.map_err(|error| told(&error))
        })
    }

    fn read(&self, path: String) -> BoxFuture<'_, Result<Vec<u8>, String>> {
        Box::pin(async move {
            let sandbox = self.begin().await?;
            let content = sandbox.read_file(&path, TEXT_MAX as u64).await;
            content.map_err(|error| told(&error))
        })
    }
}
