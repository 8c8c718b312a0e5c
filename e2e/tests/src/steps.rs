//! Steps of a session, as `kubectl exec` takes them.

use std::io::{Read, Write};
use std::process::{Child, Command, Stdio};

use crate::Harness;
use crate::harness::{HarnessError, Result};

/// What came of a step.
#[derive(Debug)]
pub struct Outcome {
    /// Exit code.
    pub code: i32,
    /// Standard output.
    pub stdout: Vec<u8>,
    /// Standard error.
    pub stderr: String,
}

impl Outcome {
    /// Standard output as text.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }
}

/// A session that takes steps.
#[derive(Clone)]
pub struct Session {
    harness: Harness,
    pod: String,
}

impl Session {
    /// The session of a sandbox, once it takes steps.
    pub async fn of(harness: &Harness, sandbox: &str) -> Result<Self> {
        let status = harness.running(sandbox).await?;
        Ok(Self {
            harness: harness.clone(),
            pod: status.pod_name.unwrap_or_default(),
        })
    }

    /// The pod's name.
    #[must_use]
    pub fn pod(&self) -> &str {
        &self.pod
    }

    /// `kubectl exec` into the recorder.
    #[must_use]
    pub fn exec(&self, options: &[&str], arguments: &[&str]) -> Command {
        let mut command = self.harness.cluster.kubectl();
        command
            .args(["-n", &self.harness.namespace, "exec"])
            .args(options)
            .args([&self.pod, "-c", "recorder", "--", "/sandbox-supervisor"])
            .args(arguments);
        command
    }

    /// Takes a step without input.
    pub fn step(&self, arguments: &[&str]) -> Result<Outcome> {
        self.with_input(arguments, None)
    }

    /// Takes a step of a shell.
    pub fn shell(&self, script: &str) -> Result<Outcome> {
        self.step(&["step", "--", "sh", "-c", script])
    }

    /// Takes a step, with input if any.
    pub fn with_input(&self, arguments: &[&str], input: Option<&[u8]>) -> Result<Outcome> {
        let options: &[&str] = if input.is_some() { &["-i"] } else { &[] };
        let mut child = self.begin(&mut self.exec(options, arguments))?;
        let stdin = child.stdin.take();
        let input = input.map(<[u8]>::to_vec);
        let writer = std::thread::spawn(move || {
            if let (Some(mut stdin), Some(input)) = (stdin, input) {
                let _ = stdin.write_all(&input);
            }
        });
        let mut stderr = child.stderr.take();
        let errors = std::thread::spawn(move || {
            let mut text = Vec::new();
            if let Some(stderr) = &mut stderr {
                let _ = stderr.read_to_end(&mut text);
            }
            text
        });
        let output = child.wait_with_output().map_err(HarnessError::Program)?;
        let stderr = errors.join().unwrap_or_default();
        let _ = writer.join();
        Ok(Outcome {
            code: output.status.code().unwrap_or(-1),
            stdout: output.stdout,
            stderr: String::from_utf8_lossy(&stderr).into_owned(),
        })
    }

    /// Begins a step.
    pub fn begin(&self, command: &mut Command) -> Result<Child> {
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(HarnessError::Program)
    }
}
