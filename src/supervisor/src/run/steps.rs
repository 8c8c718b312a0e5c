//! The steps of a session: starts them as it would a command, passes their data on, and ends them.
//!
//! A step ends when its own process does. What it started and left behind lives on, unless the step was cancelled or
//! ran out of time; output of such processes after the step's end is dropped.

use std::collections::{BTreeMap, VecDeque};
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::process::Stdio;
use std::time::{Duration, Instant};

use agentsandbox_api::run::{CommandSpec, FromSupervisor};
use agentsandbox_api::step::{EXIT_TIMEOUT, StepCommand, StepEnd, StepNews, StepOrder, WINDOW_BYTES};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;

use super::capture::Capturing;
use super::child::{self, NotStarted, Start};
use super::files;
use super::tree;
use crate::protocol::Channel;
use crate::sys::{self, Awaited};

/// Pipes of ended steps that processes still hold open; beyond that the oldest is closed.
const LINGERING_MAX: usize = 64;
/// Output is read in pieces of at most this.
const READ_BYTES: usize = 16 << 10;
/// Credit is given in pieces of at least this.
const CREDIT_BYTES: usize = WINDOW_BYTES / 4;

/// All steps that have not ended.
#[derive(Default)]
pub struct Steps {
    running: BTreeMap<u64, Step>,
    lingering: VecDeque<std::fs::File>,
}

/// One step.
struct Step {
    pid: i32,
    stdin: Option<std::fs::File>,
    /// Input that its process has not taken yet.
    input: VecDeque<u8>,
    input_ended: bool,
    /// Taken, and not said yet.
    taken: usize,
    stdout: Option<std::fs::File>,
    stderr: Option<std::fs::File>,
    /// How much of its output the recorder has room for.
    room: usize,
    kill_at: Option<Instant>,
    timed_out: bool,
    ended: Option<i32>,
}

impl Steps {
    /// Does what the recorder asks.
    pub fn obey(
        &mut self,
        spec: &CommandSpec,
        number: u64,
        order: StepOrder,
        capturing: &Capturing,
        channel: &mut Channel,
    ) {
        match order {
            StepOrder::Start(command) => {
                let started = start(spec, number, &command, capturing);
                self.started(number, started, channel);
            }
            StepOrder::Cancel => {
                if let Some(step) = self.running.remove(&number) {
                    // The number of a process that was reaped may be another's by now.
                    tree::kill(step.ended.is_none().then_some(step.pid), number);
                    // If it still lives it is reaped later, and nobody waits for it.
                    let code = step.ended.unwrap_or(128 + libc::SIGKILL);
                    say(channel, number, StepNews::Ended(end_of(code)));
                }
            }
            StepOrder::Input(data) => {
                if let Some(step) = self.running.get_mut(&number)
                    && let Ok(data) = BASE64.decode(data)
                {
                    step.input.extend(data);
                }
            }
            StepOrder::InputEnd => {
                if let Some(step) = self.running.get_mut(&number) {
                    step.input_ended = true;
                }
            }
            StepOrder::Credit(bytes) => {
                if let Some(step) = self.running.get_mut(&number) {
                    step.room = step.room.saturating_add(bytes as usize).min(WINDOW_BYTES);
                }
            }
        }
    }

    fn started(&mut self, number: u64, step: Result<Step, NotStarted>, channel: &mut Channel) {
        match step {
            Ok(step) => {
                let pid = u32::try_from(step.pid).unwrap_or_default();
                self.running.insert(number, step);
                say(channel, number, StepNews::Started(pid));
            }
            Err(NotStarted { exit_code, message }) => {
                say(channel, number, StepNews::Ended(StepEnd { exit_code, message }));
            }
        }
    }

    /// Takes note that a child was reaped.
    pub fn reaped(&mut self, ended: sys::Ended) {
        if let Some(step) = self.running.values_mut().find(|step| step.pid == ended.pid) {
            let signal = ended.signal.unwrap_or(libc::SIGKILL);
            step.ended = Some(ended.code.unwrap_or(128 + signal));
        }
    }

    /// Moves what can be moved, ends what is due.
    pub fn serve(&mut self, channel: &mut Channel) {
        let now = Instant::now();
        let mut over = Vec::new();
        for (number, step) in &mut self.running {
            step.take_input(channel, *number);
            if step.ended.is_none() && step.kill_at.is_some_and(|at| now >= at) {
                step.timed_out = true;
                step.kill_at = None;
                tree::kill(Some(step.pid), *number);
            }
            let stalled = step.pass_output(channel, *number);
            if let Some(code) = step.ended
                && !stalled
            {
                over.push((*number, if step.timed_out { EXIT_TIMEOUT } else { code }));
            }
        }
        for (number, code) in over {
            if let Some(step) = self.running.remove(&number) {
                self.lingering.extend(step.stdout.into_iter().chain(step.stderr));
            }
            say(channel, number, StepNews::Ended(end_of(code)));
        }
        self.lingering.retain_mut(drop_output);
        let excess = self.lingering.len().saturating_sub(LINGERING_MAX);
        self.lingering.drain(..excess);
    }

    /// What to wait for.
    pub fn awaited(&self) -> Vec<Awaited<'_>> {
        let mut awaited: Vec<Awaited<'_>> = self
            .lingering
            .iter()
            .map(|pipe| Awaited::read(pipe.as_fd()))
            .collect();
        for step in self.running.values() {
            if let Some(stdin) = step.stdin.as_ref().filter(|_| !step.input.is_empty()) {
                awaited.push(Awaited {
                    fd: stdin.as_fd(),
                    read: false,
                    write: true,
                });
            }
            if step.room > 0 {
                let pipes = [&step.stdout, &step.stderr].into_iter().flatten();
                awaited.extend(pipes.map(|pipe| Awaited::read(pipe.as_fd())));
            }
        }
        awaited
    }

    /// How long the next time limit is away, if any.
    pub fn next_deadline(&self) -> Option<Duration> {
        let next = self.running.values().filter_map(|step| step.kill_at).min()?;
        Some(next.saturating_duration_since(Instant::now()))
    }
}

impl Step {
    fn take_input(&mut self, channel: &mut Channel, number: u64) {
        while !self.input.is_empty() {
            let Some(stdin) = &mut self.stdin else {
                // Its process has closed it: what comes is dropped, as by a pipe without a reader.
                self.taken += self.input.len();
                self.input.clear();
                break;
            };
            match stdin.write(self.input.as_slices().0) {
                Ok(length) => {
                    self.input.drain(..length);
                    self.taken += length;
                }
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(_) => self.stdin = None,
            }
        }
        if self.input_ended && self.input.is_empty() {
            self.stdin = None;
        }
        if self.taken >= CREDIT_BYTES || (self.taken > 0 && self.input.is_empty()) {
            let taken = u32::try_from(self.taken).unwrap_or(u32::MAX);
            self.taken = 0;
            say(channel, number, StepNews::Credit(taken));
        }
    }

    /// Passes on what there is, as far as the recorder has room; whether something may have to wait.
    fn pass_output(&mut self, channel: &mut Channel, number: u64) -> bool {
        let mut buffer = [0; READ_BYTES];
        for is_error in [false, true] {
            let pipe = if is_error {
                &mut self.stderr
            } else {
                &mut self.stdout
            };
            while let Some(open) = pipe {
                if self.room == 0 {
                    return true;
                }
                let most = self.room.min(READ_BYTES);
                match open.read(&mut buffer[..most]) {
                    Ok(0) => *pipe = None,
                    Ok(length) => {
                        self.room -= length;
                        let data = BASE64.encode(&buffer[..length]);
                        let news = if is_error {
                            StepNews::Error(data)
                        } else {
                            StepNews::Output(data)
                        };
                        say(channel, number, news);
                    }
                    Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                    Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => break,
                    Err(_) => *pipe = None,
                }
            }
        }
        false
    }
}

fn start(
    spec: &CommandSpec,
    number: u64,
    command: &StepCommand,
    capturing: &Capturing,
) -> Result<Step, NotStarted> {
    let failed = |message: String| NotStarted {
        exit_code: agentsandbox_api::run::EXIT_NOT_EXECUTABLE,
        message,
    };
    let working_dir = command.working_dir.as_deref().unwrap_or(&spec.working_dir);
    if !std::path::Path::new(working_dir).is_dir() {
        files::make_working_dir(working_dir).map_err(failed)?;
    }
    let mut env = spec.env.clone();
    env.extend(command.env.clone());
    let pipes = |error: std::io::Error| failed(format!("the step's pipes: {error}"));
    let (stdin, to_stdin) = input_of(command.stdin).map_err(pipes)?;
    let (stdout, from_stdout) = output_of(command.detached).map_err(pipes)?;
    let (stderr, from_stderr) = output_of(command.detached).map_err(pipes)?;
    let pid = child::spawn(
        spec,
        Start {
            argv: &command.argv,
            env: &env,
            working_dir,
            step: Some(number),
            stdio: [stdin, stdout, stderr],
        },
        capturing,
    )?;
    Ok(Step {
        pid,
        stdin: to_stdin,
        input: VecDeque::new(),
        input_ended: false,
        taken: 0,
        stdout: from_stdout,
        stderr: from_stderr,
        room: WINDOW_BYTES,
        kill_at: command
            .timeout_seconds
            .and_then(|seconds| Instant::now().checked_add(Duration::from_secs(seconds.into()))),
        timed_out: false,
        ended: None,
    })
}

/// A step's standard input, and our end of it if it has any.
fn input_of(open: bool) -> std::io::Result<(Stdio, Option<std::fs::File>)> {
    if !open {
        return Ok((Stdio::null(), None));
    }
    let (reader, writer) = std::io::pipe()?;
    Ok((reader.into(), Some(ours(writer.into())?)))
}

/// A step's standard output or error, and our end of it unless it goes where the container's goes.
fn output_of(detached: bool) -> std::io::Result<(Stdio, Option<std::fs::File>)> {
    if detached {
        return Ok((Stdio::inherit(), None));
    }
    let (reader, writer) = std::io::pipe()?;
    Ok((writer.into(), Some(ours(reader.into())?)))
}

/// Our end of a pipe, on which nothing waits.
fn ours(pipe: OwnedFd) -> std::io::Result<std::fs::File> {
    sys::never_wait(pipe.as_fd())?;
    Ok(pipe.into())
}

/// Drops what was written into the pipe of an ended step; whether somebody still holds it.
fn drop_output(pipe: &mut std::fs::File) -> bool {
    let mut buffer = [0; 4096];
    // Bounded, so that a process that writes without end does not hold up everything else.
    for _ in 0..16 {
        match pipe.read(&mut buffer) {
            Ok(0) => return false,
            Ok(_) => {}
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return error.kind() == std::io::ErrorKind::WouldBlock,
        }
    }
    true
}

fn end_of(exit_code: i32) -> StepEnd {
    StepEnd {
        exit_code,
        message: String::new(),
    }
}

/// A recorder that is gone is noticed where it is listened to; one that is slow delays nothing here. What waits for it
/// is bounded by the steps' windows.
fn say(channel: &mut Channel, step: u64, news: StepNews) {
    let _ = channel.queue(&FromSupervisor::Step { step, news });
}
