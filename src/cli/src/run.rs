//! `kubectl sandbox run`.

use std::path::Path;
use std::time::Duration;

use agentsandbox_api::policy::SandboxPolicy;
use agentsandbox_api::reason::Reason;
use agentsandbox_api::sandbox::{AgentSandbox, RunResult};
use agentsandbox_client::{Error, Sandbox, SandboxBuilder, Until};
use clap::Args;
use kube::{Api, ResourceExt};

use crate::connection::Connected;
use crate::exec::pair;
use crate::failure::{self, Failure};
use crate::term::{self, shown};
use crate::{logs, wait};

/// Permission bits of files that are passed in.
const FILE_MODE: i32 = 0o644;

/// Run a command in a sandbox of its own, print what it prints, and exit as it does.
///
/// What happens until it runs is told on standard error. Ctrl-C stops the run; a second one leaves without waiting for
/// its end. The exit code is the command's own; 124 at the deadline; 130 if it was stopped; 125 if there is none,
/// because the policy, the network, the isolation or the cluster did not let it run to its end.
#[derive(Args, Debug)]
#[allow(clippy::struct_excessive_bools, reason = "each is a flag of the command line")]
#[command(after_help = "Examples:
  kubectl sandbox run python:3.13-slim --rm -- python3 -c 'print(6 * 7)'
  kubectl sandbox run python:3.13-slim --policy strict --memory 256Mi --file main.py=./main.py -- python3 main.py
  kubectl sandbox run python:3.13-slim --session 300 --name tools     takes steps: kubectl sandbox exec")]
pub struct Run {
    /// Container image.
    image: String,
    /// The policy that bounds it.
    #[arg(short, long, default_value = "default", value_name = "NAME")]
    policy: String,
    /// Its name; made up if absent.
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// An entry of the environment. Secrets do not belong here.
    #[arg(short, long, value_name = "NAME=VALUE", value_parser = pair)]
    env: Vec<(String, String)>,
    /// A text file of this machine, written into the workspace before the command starts; 64 KiB in all.
    #[arg(short, long, value_name = "PATH=FILE", value_parser = pair)]
    file: Vec<(String, String)>,
    /// Working directory.
    #[arg(short, long, value_name = "DIR")]
    workdir: Option<String>,
    /// CPUs, such as 500m.
    #[arg(long, value_name = "QUANTITY")]
    cpu: Option<String>,
    /// Memory, such as 512Mi.
    #[arg(long, value_name = "QUANTITY")]
    memory: Option<String>,
    /// Everything it may write to disk, such as 1Gi.
    #[arg(long, value_name = "QUANTITY")]
    disk: Option<String>,
    /// Most processes and threads at once.
    #[arg(long, value_name = "COUNT")]
    processes: Option<i32>,
    /// Wall-clock limit, in seconds.
    #[arg(short, long, value_name = "SECONDS")]
    timeout: Option<i32>,
    /// Most model tokens.
    #[arg(long, value_name = "COUNT")]
    tokens: Option<i64>,
    /// Most steps.
    #[arg(long, value_name = "COUNT")]
    steps: Option<i64>,
    /// Run no command and take steps, until none came for so many seconds. Returns once it takes them.
    #[arg(long, value_name = "SECONDS", conflicts_with_all = ["command", "detach", "rm"])]
    session: Option<i32>,
    /// Delete the sandbox at the end.
    #[arg(long)]
    rm: bool,
    /// Print its name and leave it running.
    #[arg(short, long, conflicts_with = "rm")]
    detach: bool,
    /// Longest wait for the start, in seconds (exit code 124); as long as it takes if absent.
    #[arg(long, value_name = "SECONDS")]
    start_timeout: Option<u64>,
    /// Say nothing on standard error but errors, and why there is no exit code to pass on.
    #[arg(short, long)]
    quiet: bool,
    /// Let a terminal act on what the command prints.
    #[arg(long)]
    raw: bool,
    /// Program and arguments. No shell is involved.
    #[arg(last = true, value_name = "COMMAND", required_unless_present = "session")]
    command: Vec<String>,
}

impl Run {
    /// Runs; returns the exit code.
    pub async fn run(&self, connected: &Connected) -> Result<u8, Failure> {
        let wanted = self.object()?;
        must_exist(connected, &self.policy).await?;
        let sandbox = connected.sandboxes().create(wanted).await?;
        if self.detach {
            term::print(&format!("agentsandbox/{}\n", sandbox.name()))?;
            return Ok(0);
        }
        let outcome = self.follow(&sandbox).await;
        if self.rm
            && let Err(error) = sandbox.delete().await
        {
            anstream::eprintln!(
                "{} was not deleted: {}",
                sandbox.name(),
                shown(&error.to_string())
            );
        }
        outcome.map_err(Failure::without_exit_code)
    }

    fn object(&self) -> Result<AgentSandbox, Failure> {
        let mut builder = SandboxBuilder::new(&self.image).policy(&self.policy);
        builder = match &self.name {
            Some(name) => builder.name(name),
            None => builder.generate_name("run-"),
        };
        builder = match self.session {
            Some(seconds) => builder.session(seconds),
            None => builder.command(self.command.clone()),
        };
        for (name, value) in &self.env {
            builder = builder.env(name, value);
        }
        for (path, file) in &self.file {
            builder = builder.file(path, text_of(Path::new(file))?, FILE_MODE);
        }
        for (given, set) in [
            (&self.workdir, SandboxBuilder::working_dir as fn(_, String) -> _),
            (&self.cpu, SandboxBuilder::cpu),
            (&self.memory, SandboxBuilder::memory),
            (&self.disk, SandboxBuilder::ephemeral_storage),
        ] {
            if let Some(value) = given {
                builder = set(builder, value.clone());
            }
        }
        for (given, set) in [
            (self.processes, SandboxBuilder::processes as fn(_, i32) -> _),
            (self.timeout, SandboxBuilder::runtime_seconds),
        ] {
            if let Some(value) = given {
                builder = set(builder, value);
            }
        }
        for (given, set) in [
            (self.tokens, SandboxBuilder::tokens as fn(_, i64) -> _),
            (self.steps, SandboxBuilder::steps),
        ] {
            if let Some(value) = given {
                builder = set(builder, value);
            }
        }
        Ok(builder.build())
    }

    /// Follows the run to its end; Ctrl-C stops it.
    async fn follow(&self, sandbox: &Sandbox) -> Result<u8, Failure> {
        let mut stopped = false;
        let watching = self.watch(sandbox);
        tokio::pin!(watching);
        loop {
            tokio::select! {
                code = &mut watching => return code,
                _ = tokio::signal::ctrl_c() => {
                    if stopped {
                        return Ok(failure::INTERRUPTED);
                    }
                    stopped = true;
                    sandbox.stop().await?;
                    self.say(sandbox, "is asked to stop; Ctrl-C again leaves at once");
                }
            }
        }
    }

    async fn watch(&self, sandbox: &Sandbox) -> Result<u8, Failure> {
        self.say(sandbox, "created");
        let report = wait::reporter(sandbox.name(), self.quiet);
        let timeout = self.start_timeout.map(Duration::from_secs);
        let ready = sandbox.wait(Until::Ready, timeout, report).await?;
        let ended = agentsandbox_client::verdict(&ready).is_some();
        if self.session.is_some() && !ended {
            term::print(&format!("agentsandbox/{}\n", sandbox.name()))?;
            return Ok(0);
        }
        if ready
            .status
            .as_ref()
            .is_some_and(|status| status.pod_name.is_some())
        {
            match logs::print(sandbox, true, self.raw).await {
                Ok(()) => {}
                Err(failure) if failure.code == failure::FAILED => {
                    complain(sandbox, &format!("the output is lost: {}", failure.message));
                }
                Err(failure) => return Err(failure),
            }
        }
        let finished = sandbox.wait(Until::Finished, None, |_| {}).await?;
        let result = finished
            .status
            .and_then(|status| status.result)
            .unwrap_or_default();
        let code = exit_code(&result);
        if code == failure::NO_EXIT_CODE {
            complain(sandbox, &verdict(&result));
            complain(sandbox, &format!("next: kubectl sandbox get {}", sandbox.name()));
        } else if code != 0 {
            self.say(sandbox, &verdict(&result));
        }
        Ok(code)
    }

    fn say(&self, sandbox: &Sandbox, text: &str) {
        if !self.quiet {
            complain(sandbox, text);
        }
    }
}

/// Says it also where silence was asked for.
fn complain(sandbox: &Sandbox, text: &str) {
    anstream::eprintln!("{}: {text}", sandbox.name());
}

/// A policy that is not there may come later: the sandbox would wait for it. Who types its name means one that is.
async fn must_exist(connected: &Connected, policy: &str) -> Result<(), Failure> {
    let policies: Api<SandboxPolicy> = Api::namespaced(connected.client.clone(), &connected.namespace);
    match policies.get_opt(policy).await {
        // Without an object of this name the built-in policy holds.
        Ok(None) if policy != "default" => {
            let known = policies
                .list(&kube::api::ListParams::default())
                .await
                .map(|list| list.items);
            let known: Vec<String> = known
                .unwrap_or_default()
                .iter()
                .map(ResourceExt::name_any)
                .collect();
            let next = if known.is_empty() {
                "there is none; leave --policy out for the built-in one, or see docs/quickstart.md".to_owned()
            } else {
                format!("take one of these: {}", known.join(", "))
            };
            Err(Failure::new(format!(
                "no policy named {policy} in namespace {}",
                connected.namespace
            ))
            .next(next))
        }
        Err(kube::Error::Api(status)) if status.is_forbidden() => Ok(()),
        Err(error) => Err(Error::from(error).into()),
        Ok(_) => Ok(()),
    }
}

fn text_of(file: &Path) -> Result<String, Failure> {
    std::fs::read_to_string(file).map_err(|error| {
        Failure::new(format!("{}: {error}", file.display()))
            .next("only text can be passed in; kubectl sandbox cp moves any file into a session")
    })
}

/// The verdict in one line.
fn verdict(result: &RunResult) -> String {
    let reason = result.reason.map(|reason| reason.to_string()).unwrap_or_default();
    let message = result.message.as_deref().unwrap_or_default();
    match message.lines().next() {
        Some(line) if !line.is_empty() => format!("{reason}: {}", shown(line)),
        _ => reason,
    }
}

/// The exit code that a run passes on.
fn exit_code(result: &RunResult) -> u8 {
    let own = result.exit_code.and_then(|code| u8::try_from(code).ok());
    match (result.reason, own) {
        (Some(reason), own) if reason.is_success() => own.unwrap_or_default(),
        (Some(Reason::NonZeroExit | Reason::Signaled | Reason::OomKilled), Some(code)) if code > 0 => code,
        (Some(Reason::DeadlineExceeded), _) => failure::TIMED_OUT,
        (Some(Reason::Stopped), _) => failure::INTERRUPTED,
        _ => failure::NO_EXIT_CODE,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_codes_are_the_commands_own_or_say_why_there_is_none() {
        for (reason, own, expected) in [
            (Reason::Completed, Some(0), 0),
            (Reason::NonZeroExit, Some(3), 3),
            (Reason::Signaled, Some(139), 139),
            (Reason::OomKilled, Some(137), 137),
            (Reason::OomKilled, None, 125),
            (Reason::DeadlineExceeded, Some(137), 124),
            (Reason::Stopped, Some(143), 130),
            (Reason::PolicyRejected, None, 125),
            (Reason::SandboxLost, Some(0), 125),
        ] {
            let result = RunResult {
                reason: Some(reason),
                exit_code: own,
                ..RunResult::default()
            };
            assert_eq!(exit_code(&result), expected, "{reason}");
        }
        assert_eq!(exit_code(&RunResult::default()), 125);
    }

    #[test]
    fn a_verdict_is_one_line_and_safe_to_show() {
        let result = RunResult {
            reason: Some(Reason::NonZeroExit),
            message: Some("exit code 3\nTraceback".to_owned()),
            ..RunResult::default()
        };
        assert_eq!(verdict(&result), "NonZeroExit: exit code 3");
    }
}
