//! Starts the user's command, bounded, in a session of its own, and passes its standard error on.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use agentsandbox_api::gateway::{CA_VARIABLES, PATH_CA_BUNDLE, PATH_WGETRC, WGETRC_VARIABLE};
use agentsandbox_api::names;
use agentsandbox_api::run::{CommandSpec, EXIT_NOT_EXECUTABLE, EXIT_NOT_FOUND};

use super::capture::Capturing;
use super::usage::own_tasks;
use crate::sys::{self, Limit};

/// How much of standard error is remembered.
const TAIL_BYTES: usize = 4096;

/// A command that could not be started.
pub struct NotStarted {
    /// The exit code a shell would give.
    pub exit_code: i32,
    /// Why.
    pub message: String,
}

/// The running command.
pub struct Child {
    /// Its process id, and that of its session and group.
    pub pid: i32,
    tail: Receiver<Vec<u8>>,
}

impl Child {
    /// The last of its standard error, once everything that could write to it has ended. The container's log may
    /// stall; the run's end does not wait for it longer than this.
    pub fn stderr_tail(&self) -> Vec<u8> {
        self.tail.recv_timeout(Duration::from_secs(2)).unwrap_or_default()
    }
}

/// A process to start: the command, or a step.
pub struct Start<'a> {
    /// Program and arguments.
    pub argv: &'a [String],
    /// Entries of the environment, beside the image's own.
    pub env: &'a BTreeMap<String, String>,
    /// Working directory.
    pub working_dir: &'a str,
    /// Number of the step.
    pub step: Option<u64>,
    /// Standard input, output and error.
    pub stdio: [Stdio; 3],
}

/// Starts the command.
pub fn start(spec: &CommandSpec, capturing: &Capturing) -> Result<Child, NotStarted> {
    let (mut errors, stderr) = std::io::pipe().map_err(|error| not_started("", &spec.working_dir, &error))?;
    let (send, tail) = channel();
    // Before the command, so that no task of the command can be counted in its place.
    std::thread::spawn(move || {
        let _ = send.send(pass_on(&mut errors));
    });
    let pid = spawn(
        spec,
        Start {
            argv: &spec.argv,
            env: &spec.env,
            working_dir: &spec.working_dir,
            step: None,
            stdio: [Stdio::null(), Stdio::inherit(), stderr.into()],
        },
        capturing,
    )?;
    Ok(Child { pid, tail })
}

/// Starts a process of the run's user, bounded, in a session and group of its own; its number. Every one is born here.
pub fn spawn(spec: &CommandSpec, start: Start<'_>, capturing: &Capturing) -> Result<i32, NotStarted> {
    let Some((program, arguments)) = start.argv.split_first() else {
        return Err(NotStarted {
            exit_code: EXIT_NOT_FOUND,
            message: "the command is empty".to_owned(),
        });
    };
    let [stdin, stdout, stderr] = start.stdio;
    let mut command = Command::new(resolve(program, start.env, start.working_dir)?);
    command
        .arg0(program)
        .args(arguments)
        .current_dir(start.working_dir)
        .stdin(stdin)
        .stdout(stdout)
        .stderr(stderr);
    for (name, _) in std::env::vars_os() {
        if name.to_str().is_none_or(names::is_reserved_env) {
            command.env_remove(name);
        }
    }
    command
        .env("HOME", names::PATH_WORKSPACE)
        .env("TMPDIR", names::PATH_TMP);
    if spec.certificate.is_some() {
        command.envs(CA_VARIABLES.map(|name| (name, PATH_CA_BUNDLE)));
        command.env(WGETRC_VARIABLE, PATH_WGETRC);
    }
    command.envs(start.env);
    command.env(names::ENV_OUTPUT, names::PATH_OUTPUT);
    if let Some(step) = start.step {
        command.env(names::ENV_STEP, step.to_string());
    }
    let (processes, file_size, root) = (
        // The kernel counts all tasks of the user, the supervisor's too.
        u64::from(spec.processes) + own_tasks(),
        spec.workspace_bytes.max(spec.tmp_bytes),
        spec.uid == 0,
    );
    sys::before_exec(&mut command, move || {
        sys::new_session()?;
        sys::unblock_signals()?;
        sys::set_limit(Limit::Core, 0)?;
        sys::set_limit(Limit::FileSize, file_size)?;
        // The kernel does not bind user 0 by it; the supervisor counts instead.
        if root {
            Ok(())
        } else {
            sys::set_limit(Limit::Processes, processes)
        }
    });
    capturing
        .spawn(command, start.argv)
        .map_err(|error| not_started(program, start.working_dir, &error))
}

/// Copies untouched, and keeps the end.
fn pass_on(pipe: &mut impl Read) -> Vec<u8> {
    let (mut tail, mut buffer) = (Vec::new(), [0; 8192]);
    let out = std::io::stderr();
    loop {
        match pipe.read(&mut buffer) {
            Ok(0) => return tail,
            Ok(length) => {
                // A log that can't be written must not end the run.
                // The lock lasts for this write alone: the main loop has something to say as well.
                let _ = out.lock().write_all(&buffer[..length]);
                tail.extend_from_slice(&buffer[..length]);
                if tail.len() > 2 * TAIL_BYTES {
                    tail.drain(..tail.len() - TAIL_BYTES);
                }
            }
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(_) => return tail,
        }
    }
}

/// Finds a program as a shell would.
fn resolve(program: &str, env: &BTreeMap<String, String>, working_dir: &str) -> Result<PathBuf, NotStarted> {
    if program.contains('/') {
        let path = Path::new(working_dir).join(program);
        return if path.exists() {
            Ok(path)
        } else {
            Err(NotStarted {
                exit_code: EXIT_NOT_FOUND,
                message: format!("{program}: no such file in the image"),
            })
        };
    }
    let search = env.get("PATH").cloned().or_else(|| std::env::var("PATH").ok());
    let search =
        search.unwrap_or_else(|| "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".to_owned());
    search
        .split(':')
        .map(|folder| Path::new(folder).join(program))
        .find(|path| path.is_file())
        .ok_or_else(|| NotStarted {
            exit_code: EXIT_NOT_FOUND,
            message: format!("{program}: not found in the image's PATH ({search})"),
        })
}

fn not_started(program: &str, working_dir: &str, error: &std::io::Error) -> NotStarted {
    if !Path::new(working_dir).is_dir() {
        return NotStarted {
            exit_code: EXIT_NOT_EXECUTABLE,
            message: format!("workingDir {working_dir}: no such folder"),
        };
    }
    NotStarted {
        exit_code: EXIT_NOT_EXECUTABLE,
        message: format!("{program}: {error}"),
    }
}
