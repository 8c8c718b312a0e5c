//! Steps: commands in a session, recorded and counted; and the live state of any run.

use std::time::Duration;

use agentsandbox_api::names::{CONTAINER_RECORDER, PATH_SUPERVISOR_IN_IMAGE};
use agentsandbox_api::run::LiveState;
pub use agentsandbox_api::step::{EXIT_REFUSED, EXIT_TIMEOUT};
use k8s_openapi::api::core::v1::Pod;
use kube::Resource;
use kube::api::AttachParams;
use kube::core::Request;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt, DuplexStream};

use crate::exec::{self, End, Input};
use crate::{Error, Result, Sandbox, verdict};

/// How a refusal begins, on standard error.
const REFUSED: &str = "sandbox-supervisor: step refused: ";
/// Most bytes of a status.
const STATUS_MAX: usize = 256 << 10;
/// How long after a step's own time limit its end must be reported.
const GRACE: Duration = Duration::from_secs(30);

/// A command to run in a session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    options: Vec<String>,
    argv: Vec<String>,
    timeout: Option<Duration>,
    stdin: bool,
    input: Vec<u8>,
    detached: bool,
}

impl Step {
    /// Program and arguments. No shell is involved.
    #[must_use]
    pub fn new<S: Into<String>>(argv: impl IntoIterator<Item = S>) -> Self {
        Self {
            options: Vec::new(),
            argv: argv.into_iter().map(Into::into).collect(),
            timeout: None,
            stdin: false,
            input: Vec::new(),
            detached: false,
        }
    }

    /// The step, and all it started, ends with exit code [`EXIT_TIMEOUT`] after so many seconds. That its end is
    /// reported is waited for 30 s longer; without a limit, as long as the session lasts.
    #[must_use]
    pub fn timeout_seconds(mut self, seconds: u32) -> Self {
        self.timeout = Some(Duration::from_secs(seconds.into()));
        self.option(["--timeout".to_owned(), seconds.to_string()])
    }

    /// An environment entry. Reserved names are refused.
    #[must_use]
    pub fn env(self, name: &str, value: &str) -> Self {
        self.option(["--env".to_owned(), format!("{name}={value}")])
    }

    /// Working directory; made if it is missing in a writable folder.
    #[must_use]
    pub fn working_dir(self, path: impl Into<String>) -> Self {
        self.option(["--workdir".to_owned(), path.into()])
    }

    /// The step reads what is written to [`RunningStep::stdin`]. Give a command only what it reads, or a time limit:
    /// where it ends before it has read all, container runtimes may report its end late.
    #[must_use]
    pub fn stdin(mut self) -> Self {
        self.stdin = true;
        self
    }

    /// The step reads this, see [`stdin`](Self::stdin). For [`Sandbox::step`].
    #[must_use]
    pub fn input(self, bytes: impl Into<Vec<u8>>) -> Self {
        let mut step = self.stdin();
        step.input = bytes.into();
        step
    }

    /// Leave it running: the step's number is printed, and the exit code says only whether it was started.
    #[must_use]
    pub fn detach(mut self) -> Self {
        self.detached = true;
        self
    }

    fn option<const N: usize>(mut self, words: [String; N]) -> Self {
        self.options.extend(words);
        self
    }

    fn input_kind(&self) -> Input {
        match (self.stdin, self.detached) {
            (true, _) => Input::Passed,
            (false, true) => Input::None,
            (false, false) => Input::Held,
        }
    }

    fn words(&self) -> Vec<String> {
        // A caller that leaves closes standard input; without `--attended` nothing tells the recorder.
        let kind = match self.input_kind() {
            Input::Passed => Some("--stdin"),
            Input::Held => Some("--attended"),
            Input::None => None,
        };
        let detach = self.detached.then_some("--detach");
        let own = ["step"].into_iter().chain(kind).chain(detach).map(str::to_owned);
        own.chain(self.options.iter().cloned())
            .chain(["--".to_owned()])
            .chain(self.argv.iter().cloned())
            .collect()
    }
}

/// A step that runs. Dropped, its connection is closed, which ends the step unless it reads standard input (then only
/// that ends) or is detached.
pub struct RunningStep {
    /// Its standard input, if it was asked for; end it by `shutdown`, or by dropping it.
    pub stdin: Option<DuplexStream>,
    /// Its standard output. It must be read or dropped, or the step stands still.
    pub stdout: Option<DuplexStream>,
    /// Its standard error. It must be read or dropped, or the step stands still.
    pub stderr: Option<DuplexStream>,
    end: End,
    sandbox: Sandbox,
}

impl RunningStep {
    /// Its exit code, once it has ended: the command's own, 128 + signal if a signal ended it, [`EXIT_TIMEOUT`] if it
    /// ran out of time, [`EXIT_REFUSED`] if it was refused. Streams that were not taken are dropped.
    pub async fn wait(self) -> Result<i32> {
        drop((self.stdin, self.stdout, self.stderr));
        match self.end.exit_code().await {
            Err(error @ Error::Disconnected(_)) => Err(self.sandbox.explained(error).await),
            outcome => outcome,
        }
    }
}

/// What a step came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StepOutput {
    /// Its exit code.
    pub exit_code: i32,
    /// What it printed: text of the sandbox, not to be trusted.
    pub stdout: Vec<u8>,
    /// What it printed as errors: text of the sandbox, not to be trusted.
    pub stderr: Vec<u8>,
}

impl StepOutput {
    /// The refusal that it is, if it is one: the last line of standard error says so. A command could imitate one.
    pub(crate) fn refused(self) -> Result<Self> {
        if self.exit_code == EXIT_REFUSED {
            let text = String::from_utf8_lossy(&self.stderr);
            let last = text.trim_end().lines().next_back().unwrap_or_default();
            if let Some(refusal) = last.strip_prefix(REFUSED) {
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
    /// Starts a step. A step is never tried again by itself.
    pub async fn start_step(&self, step: &Step) -> Result<RunningStep> {
        self.exec(step.words(), step.input_kind(), step.timeout).await
    }

    /// Takes a step to its end and keeps what it prints, at most `limit` bytes of each stream.
    pub async fn step(&self, step: &Step, limit: usize) -> Result<StepOutput> {
        let running = self.start_step(step).await?;
        output(running, &step.input, limit).await?.refused()
    }

    /// The run as it stands now. Works for runs with a command as well, and is no step.
    pub async fn live(&self) -> Result<LiveState> {
        let running = self
            .exec(vec!["status".to_owned()], Input::None, Some(Duration::ZERO))
            .await?;
        let output = output(running, &[], STATUS_MAX).await?;
        if output.exit_code != 0 {
            return Err(Error::Recorder(
                String::from_utf8_lossy(&output.stderr).trim().to_owned(),
            ));
        }
        serde_json::from_slice(&output.stdout).map_err(|error| Error::Recorder(error.to_string()))
    }

    /// Runs the supervisor in the recorder container. Its end must be reported within `most` and a grace.
    pub(crate) async fn exec(
        &self,
        words: Vec<String>,
        input: Input,
        most: Option<Duration>,
    ) -> Result<RunningStep> {
        let pod = self.pod_name().await?;
        let parameters = AttachParams::default()
            .container(CONTAINER_RECORDER)
            .stdin(input != Input::None)
            .stdout(true)
            .stderr(true)
            .tty(false);
        let command = [PATH_SUPERVISOR_IN_IMAGE.to_owned()].into_iter().chain(words);
        let request = Request::new(Pod::url_path(&(), Some(self.namespace())))
            .exec(&pod, command, &parameters)
            .map_err(kube::Error::BuildRequest)?;
        let connection = match self.client.connect(request).await {
            Ok(connection) => connection,
            Err(error) => return Err(self.explained(error.into()).await),
        };
        if input == Input::Passed && !connection.supports_stream_close() {
            return Err(Error::OldApiServer);
        }
        let started = exec::start(connection.into_stream(), input, most.map(|most| most + GRACE));
        Ok(RunningStep {
            stdin: started.stdin,
            stdout: Some(started.stdout),
            stderr: Some(started.stderr),
            end: started.end,
            sandbox: self.clone(),
        })
    }

    /// Why nothing came of a command in the sandbox: in one that has ended the runtime's words say little.
    async fn explained(&self, error: Error) -> Error {
        if matches!(error.api_code(), Some(401 | 403)) {
            return error;
        }
        match self.object().await.ok().as_ref().and_then(verdict) {
            Some(reason) => Error::RunEnded {
                name: self.name().to_owned(),
                reason: reason.to_string(),
            },
            None => error,
        }
    }
}

/// Takes what runs to its end.
async fn output(mut running: RunningStep, input: &[u8], limit: usize) -> Result<StepOutput> {
    let (stdin, stdout, stderr) = (running.stdin.take(), running.stdout.take(), running.stderr.take());
    let give = async {
        if let Some(mut stdin) = stdin {
            // A command may end without reading all.
            let _ = stdin.write_all(input).await;
            let _ = stdin.shutdown().await;
        }
        Ok(())
    };
    let ((), stdout, stderr) = tokio::try_join!(give, collect(stdout, limit), collect(stderr, limit))?;
    let exit_code = running.wait().await?;
    Ok(StepOutput {
        exit_code,
        stdout,
        stderr,
    })
}

/// All of a stream, if it is no longer than `limit`.
pub(crate) async fn collect(stream: Option<impl AsyncRead + Unpin>, limit: usize) -> Result<Vec<u8>> {
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

    #[test]
    fn options_come_before_the_command_whatever_it_is() {
        let step = Step::new(["echo", "--stdin"])
            .timeout_seconds(5)
            .env("A", "b c")
            .working_dir("/tmp")
            .stdin();
        assert_eq!(
            step.words().join("|"),
            "step|--stdin|--timeout|5|--env|A=b c|--workdir|/tmp|--|echo|--stdin"
        );
        assert_eq!(Step::new(["x"]).words(), ["step", "--attended", "--", "x"]);
        assert_eq!(Step::new(["x"]).detach().words(), ["step", "--detach", "--", "x"]);
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
            output(
                "some output\nsandbox-supervisor: step refused: SessionEnded: the run has ended\n",
                "x"
            )
            .refused()
            .is_err()
        );
    }
}

#[cfg(test)]
#[path = "step_tests.rs"]
mod served;
