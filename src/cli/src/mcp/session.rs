//! Where tools work: a session sandbox, or in tests something that stands for it.

use std::sync::Arc;
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
    stage: Arc<Mutex<Stage>>,
}

/// How far a session is.
enum Stage {
    Wanted,
    Made(Sandbox),
    Over,
}

impl Session {
    /// The session that this object asks for.
    pub fn new(sandboxes: Sandboxes, wanted: AgentSandbox) -> Self {
        Self {
            sandboxes,
            wanted,
            stage: Arc::new(Mutex::new(Stage::Wanted)),
        }
    }

    /// The sandbox, once it takes steps.
    pub async fn begin(&self) -> Result<Sandbox, String> {
        let sandbox = self.make().await?;
        let ready = sandbox.wait(Until::Ready, Some(START), |_| {}).await;
        match agentsandbox_client::verdict(&ready.map_err(|error| told(&error))?) {
            Some(reason) => Err(format!("the session has ended: {reason}")),
            None => Ok(sandbox),
        }
    }

    async fn make(&self) -> Result<Sandbox, String> {
        let (stage, sandboxes, wanted) = (self.stage.clone(), self.sandboxes.clone(), self.wanted.clone());
        // On its own: who asked may leave meanwhile, and a sandbox that nobody knows would not be deleted.
        let making = tokio::spawn(async move {
            let mut stage = stage.lock().await;
            match &*stage {
                Stage::Made(sandbox) => Ok(sandbox.clone()),
                Stage::Over => Err("the session is over".to_owned()),
                Stage::Wanted => {
                    let sandbox = sandboxes.create(wanted).await.map_err(|error| told(&error))?;
                    *stage = Stage::Made(sandbox.clone());
                    Ok(sandbox)
                }
            }
        });
        making.await.map_err(|error| error.to_string())?
    }

    /// Deletes the sandbox, if it was made or is being made. None is made after this.
    pub async fn end(&self) -> Result<(), Error> {
        let mut stage = self.stage.lock().await;
        match std::mem::replace(&mut *stage, Stage::Over) {
            Stage::Made(sandbox) => match sandbox.delete().await {
                Err(Error::NotFound { .. } | Error::Deleted { .. }) => Ok(()),
                deleted => deleted,
            },
            Stage::Wanted | Stage::Over => Ok(()),
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

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use agentsandbox_client::SandboxBuilder;
    use serde_json::json;

    use super::*;
    use crate::fake_api;

    #[tokio::test]
    async fn a_session_that_is_left_while_it_is_made_is_deleted_and_none_is_made_after_its_end() {
        let asked: Arc<Mutex<Vec<String>>> = Arc::default();
        let requests = asked.clone();
        let (posted, mut post) = tokio::sync::mpsc::unbounded_channel();
        let answer = move |request: &str| {
            let verb = request.split(' ').next().unwrap_or_default().to_owned();
            if verb == "POST" {
                posted.send(()).unwrap();
                std::thread::sleep(Duration::from_millis(200));
            }
            requests.lock().unwrap().push(verb);
            let object = json!({"apiVersion": "agentsandbox.dev/v1alpha1", "kind": "AgentSandbox",
                "metadata": {"name": "mcp-1", "uid": "1"}, "spec": {"image": "x"}});
            (200, object.to_string())
        };
        let config = kube::Config::new(fake_api::serve(answer).parse().unwrap());
        let sandboxes = Sandboxes::new(kube::Client::try_from(config).unwrap(), "ns");
        let wanted = SandboxBuilder::new("x").generate_name("mcp-").session(60).build();
        let session = Arc::new(Session::new(sandboxes, wanted));
        let beginning = tokio::spawn({
            let session = session.clone();
            async move { session.begin().await }
        });
        post.recv().await.unwrap();
        beginning.abort();
        session.end().await.unwrap();
        assert_eq!(*asked.lock().unwrap(), ["POST", "DELETE"]);
        assert_eq!(session.begin().await.err().unwrap(), "the session is over");
        assert_eq!(*asked.lock().unwrap(), ["POST", "DELETE"]);
    }
}
