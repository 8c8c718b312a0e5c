//! Steps: commands in a session, recorded and counted; and the live state of any run.

use std::pin::Pin;

use agentsandbox_api::names::{CONTAINER_RECORDER, PATH_SUPERVISOR_IN_IMAGE};
use agentsandbox_api::run::LiveState;
pub use agentsandbox_api::step::EXIT_REFUSED;
use futures::future::BoxFuture;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Status;
use kube::api::{AttachParams, AttachedProcess};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};

use crate::{Error, Result, Sandbox};

/// How a refusal begins, on standard error.
const REFUSED: &str = "sandbox-supervisor: step refused: ";
/// Most bytes of a status.
const STATUS_MAX: usize = 256 << 10;
/// Buffer of each stream, in bytes.
const STREAM_BUFFER: usize = 64 << 10;

/// A command to run in a session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    options: Vec<String>,
    argv: Vec<String>,
    stdin: bool,
}

impl Step {
    /// Program and arguments. No shell is involved.
    #[must_use]
    pub fn new<S: Into<String>>(argv: impl IntoIterator<Item = S>) -> Self {
        Self {
            options: Vec::new(),
            argv: argv.into_iter().map(Into::into).collect(),
            stdin: false,
        }
    }

    /// The step ends with exit code 124 after so many seconds.
    #[must_use]
    pub fn timeout_seconds(self, seconds: u32) -> Self {
        self.option(["--timeout".to_owned(), seconds.to_string()])
    }

    /// An environment entry.
    #[must_use]
    pub fn env(self, name: &str, value: &str) -> Self {
        self.option(["--env".to_owned(), format!("{name}={value}")])
    }

    /// Working directory.
    #[must_use]
    pub fn working_dir(self, path: impl Into<String>) -> Self {
        self.option(["--workdir".to_owned(), path.into()])
    }

    /// The step reads what is written to [`RunningStep::stdin`].
    #[must_use]
    pub fn stdin(mut self) -> Self {
        self.stdin = true;
        self.option(["--stdin".to_owned()])
    }

    /// Leave it running: the step's number is printed, and the exit code says only whether it was started.
    #[must_use]
    pub fn detach(self) -> Self {
        self.option(["--detach".to_owned()])
    }

    fn option<const N: usize>(mut self, words: [String; N]) -> Self {
        self.options.extend(words);
        self
    }

    fn words(&self) -> Vec<String> {
        let mut words = vec![PATH_SUPERVISOR_IN_IMAGE.to_owned(), "step".to_owned()];
        words.extend(self.options.clone());
        words.push("--".to_owned());
        words.extend(self.argv.clone());
        words
    }
}

/// A stream from a step.
pub type Reader = Pin<Box<dyn AsyncRead + Send>>;
/// A stream to a step.
pub type Writer = Pin<Box<dyn AsyncWrite + Send>>;

/// A step that runs. Dropped, its connection breaks, which ends the step unless it is detached.
pub struct RunningStep {
    /// Its standard input, if it was asked for; end it by `shutdown`.
    pub stdin: Option<Writer>,
    /// Its standard output. It must be read, or the step stands still.
    pub stdout: Option<Reader>,
    /// Its standard error. It must be read, or the step stands still.
    pub stderr: Option<Reader>,
    status: BoxFuture<'static, Option<Status>>,
    // Holds the connection.
    process: AttachedProcess,
}

impl RunningStep {
    /// Its exit code, once it has ended. 124 if it ran out of time, [`EXIT_REFUSED`] if it was refused.
    pub async fn wait(self) -> Result<i32> {
        let Some(status) = self.status.await else {
            let why = self.process.join().await.err();
            return Err(Error::Disconnected(
                why.map(|error| error.to_string()).unwrap_or_default(),
            ));
        };
        exit_code(&status)
    }
}

/// The exit code that the kubelet reports.
fn exit_code(status: &Status) -> Result<i32> {
    if status.status.as_deref() == Some("Success") {
        return Ok(0);
    }
    let causes = status
        .details
        .as_ref()
        .and_then(|details| details.causes.as_deref());
    causes
        .unwrap_or_default()
        .iter()
        .find(|cause| cause.reason.as_deref() == Some("ExitCode"))
        .and_then(|cause| cause.message.as_deref()?.parse().ok())
        .ok_or_else(|| Error::Disconnected(status.message.clone().unwrap_or_default()))
}

/// What a step came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StepOutput {
    /// Its exit code.
    pub exit_code: i32,
    /// What it printed.
    pub stdout: Vec<u8>,
    /// What it printed as errors.
    pub stderr: Vec<u8>,
}

impl StepOutput {
    /// The refusal that it is, if it is one. A command could imitate one.
    pub(crate) fn refused(self) -> Result<Self> {
        if self.exit_code == EXIT_REFUSED && self.stdout.is_empty() {
            let text = String::from_utf8_lossy(&self.stderr);
            if let Some(refusal) = text.trim_end().strip_prefix(REFUSED) {
                let (reason, message) = refusal.split_once(": ").unwrap_or((refusal, ""));
                return Err(Error::StepRefused {
                    reason: reason.to_owned(),
                    message: message.to_owned(),
                });
            }
        }
        Ok(self)
    }
}

impl Sandbox {
    /// Starts a step.
    pub async fn start_step(&self, step: &Step) -> Result<RunningStep> {
        self.exec(step.words(), step.stdin).await
    }

    /// Takes a step to its end and keeps what it prints, at most `limit` bytes of each stream.
    pub async fn step(&self, step: &Step, limit: usize) -> Result<StepOutput> {
        self.exec_output(step.words(), limit).await?.refused()
    }

    /// The run as it stands now. Works for runs with a command as well.
    pub async fn live(&self) -> Result<LiveState> {
        let words = vec![PATH_SUPERVISOR_IN_IMAGE.to_owned(), "status".to_owned()];
        let output = self.exec_output(words, STATUS_MAX).await?;
        if output.exit_code != 0 {
            return Err(Error::Recorder(
                String::from_utf8_lossy(&output.stderr).trim().to_owned(),
            ));
        }
        serde_json::from_slice(&output.stdout).map_err(|error| Error::Recorder(error.to_string()))
    }

    pub(crate) async fn exec(&self, words: Vec<String>, stdin: bool) -> Result<RunningStep> {
        let pod = self.pod_name().await?;
        let parameters = AttachParams::default()
            .container(CONTAINER_RECORDER)
            .stdin(stdin)
            .stdout(true)
            .stderr(true)
            .tty(false)
            .max_stdin_buf_size(STREAM_BUFFER)
            .max_stdout_buf_size(STREAM_BUFFER)
            .max_stderr_buf_size(STREAM_BUFFER);
        let mut process = self.pods().exec(&pod, words, &parameters).await?;
        let status = process
            .take_status()
            .ok_or_else(|| Error::Disconnected(String::new()))?;
        Ok(RunningStep {
            stdin: process.stdin().map(|stream| Box::pin(stream) as Writer),
            stdout: process.stdout().map(|stream| Box::pin(stream) as Reader),
            stderr: process.stderr().map(|stream| Box::pin(stream) as Reader),
            status: Box::pin(status),
            process,
        })
    }

    pub(crate) async fn exec_output(&self, words: Vec<String>, limit: usize) -> Result<StepOutput> {
        let mut running = self.exec(words, false).await?;
        let (stdout, stderr) = (running.stdout.take(), running.stderr.take());
        let (stdout, stderr) = tokio::try_join!(collect(stdout, limit), collect(stderr, limit))?;
        Ok(StepOutput {
            exit_code: running.wait().await?,
            stdout,
            stderr,
        })
    }
}

/// All of a stream, if it is no longer than `limit`.
pub(crate) async fn collect(stream: Option<Reader>, limit: usize) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    if let Some(stream) = stream {
        stream.take(limit as u64 + 1).read_to_end(&mut bytes).await?;
    }
    if bytes.len() > limit {
        return Err(Error::OutputTooLong { limit });
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn status(value: serde_json::Value) -> Status {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn exit_codes_come_from_the_status() {
        assert_eq!(exit_code(&status(json!({"status": "Success"}))).unwrap(), 0);
        let failed = json!({"status": "Failure", "reason": "NonZeroExitCode",
            "details": {"causes": [{"reason": "ExitCode", "message": "3"}]}});
        assert_eq!(exit_code(&status(failed)).unwrap(), 3);
        let broken = json!({"status": "Failure", "message": "container not found"});
        assert!(exit_code(&status(broken)).is_err());
    }

    #[test]
    fn options_come_before_the_command_whatever_it_is() {
        let step = Step::new(["echo", "--stdin"])
            .timeout_seconds(5)
            .env("A", "b c")
            .working_dir("/tmp")
            .stdin();
        assert_eq!(
            step.words()[1..],
            [
                "step",
                "--timeout",
                "5",
                "--env",
                "A=b c",
                "--workdir",
                "/tmp",
                "--stdin",
                "--",
                "echo",
                "--stdin"
            ]
        );
    }

    #[test]
    fn a_refusal_is_an_error_and_another_125_is_not() {
        let output = |stderr: &str, stdout: &str| StepOutput {
            exit_code: 125,
            stdout: stdout.into(),
            stderr: stderr.into(),
        };
        let refused = output(
            "sandbox-supervisor: step refused: StepBudgetExceeded: all 5 steps are used\n",
            "",
        );
        assert!(
            matches!(refused.refused(), Err(Error::StepRefused { reason, .. }) if reason == "StepBudgetExceeded")
        );
        assert!(output("no such thing\n", "").refused().is_ok());
        assert!(
            output("sandbox-supervisor: step refused: a: b", "x")
                .refused()
                .is_ok()
        );
    }
}
