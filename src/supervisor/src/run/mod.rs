//! Process 1 of the agent container: starts the user's command on the recorder's word, bounds it, ends it with
//! everything it started, and reports.

mod capture;
mod changes;
mod child;
mod disk;
mod evidence;
mod files;
mod steps;
mod tree;
mod trust;
mod usage;
mod watch;

use std::io::Read;
use std::net::{Ipv4Addr, TcpStream};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use agentsandbox_api::action::Action;
use agentsandbox_api::names;
use agentsandbox_api::reason::Reason;
use agentsandbox_api::run::{
    CommandSpec, EXIT_NO_GO, Ended, FromRecorder, FromSupervisor, OUTPUT_MAX_BYTES, Report,
    STDERR_TAIL_MAX_BYTES,
};
use agentsandbox_api::step::StepOrder;

use crate::protocol::{Channel, FROM_RECORDER_MAX, Received};
use crate::sys::{self, Awaited, Reaped, Signals};
use crate::text;
use capture::Capturing;
use changes::Before;
use child::{Child, NotStarted};
use disk::DiskWatch;
use steps::Steps;
use usage::Meter;
use watch::{Foreign, Warnings};

/// How long the recorder may take to listen.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);
/// How long the recorder may take to decide: it bounds its own probe far below this.
const GO_TIMEOUT: Duration = Duration::from_mins(10);
/// From the polite signal to the last one.
const GRACE: Duration = Duration::from_secs(2);
/// How often the run's use is looked at.
const TICK: Duration = Duration::from_millis(50);
/// A kernel that does not bound memory inside (gVisor) is helped from this share of the limit on, in percent.
const MEMORY_GUARD_PERCENT: u64 = 95;

/// So many messages of the recorder are heard before everything else gets its turn.
const MESSAGES_AT_ONCE: usize = 32;
/// Exit code of a session that something ended before it was idle: that of SIGTERM, as in a shell.
const EXIT_ENDED: i32 = 128 + libc::SIGTERM;

/// Runs one command, or the steps of a session; returns the exit code that the container shall have.
pub fn run() -> i32 {
    sys::forbid_dumping();
    let taken = [libc::SIGTERM, libc::SIGINT, libc::SIGQUIT, libc::SIGHUP];
    let Ok(signals) = Signals::take(&taken) else {
        return no_go("signals can't be taken");
    };
    let Some(mut channel) = connect() else {
        return no_go("the recorder does not answer");
    };
    if channel.send(&FromSupervisor::Hello(evidence::gather())).is_err() {
        return no_go("the recorder is gone");
    }
    let capturing = match Capturing::begin() {
        Ok(capturing) => capturing,
        Err(error) => return no_go(&format!("system calls can't be filtered: {error}")),
    };
    if channel.send(&FromSupervisor::Capture(capturing.means())).is_err() {
        return no_go("the recorder is gone");
    }
    match await_go(&mut channel, &signals) {
        Ok(spec) => Run::new(*spec, signals, channel, capturing).finish(),
        Err(why) => no_go(&why),
    }
}

fn no_go(why: &str) -> i32 {
    eprintln!("sandbox-supervisor: the command was not started: {why}");
    EXIT_NO_GO
}

fn connect() -> Option<Channel> {
    let begun = Instant::now();
    while begun.elapsed() < CONNECT_TIMEOUT {
        if let Ok(stream) = TcpStream::connect((Ipv4Addr::LOCALHOST, names::PORT_CONTROL)) {
            return Channel::new(stream, FROM_RECORDER_MAX).ok();
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    None
}

fn await_go(channel: &mut Channel, signals: &Signals) -> Result<Box<CommandSpec>, String> {
    let begun = Instant::now();
    loop {
        match channel.receive::<FromRecorder>() {
            Received::Message(FromRecorder::Go(spec)) => return Ok(spec),
            Received::Message(
                FromRecorder::NoGo { reason, message } | FromRecorder::Stop { reason, message },
            ) => {
                return Err(format!("{reason}: {message}"));
            }
            Received::Broken => return Err("the recorder is gone".to_owned()),
            // Before the go there is nothing that could trust anybody.
            Received::Message(
                FromRecorder::Trust { .. }
                | FromRecorder::Step { .. }
                | FromRecorder::Report
                | FromRecorder::Taken { .. },
            )
            | Received::Nothing => {}
        }
        while let Some(signal) = signals.next() {
            if signal.number == libc::SIGTERM && signal.from_outside {
                return Err("the pod is being deleted".to_owned());
            }
        }
        if begun.elapsed() > GO_TIMEOUT {
            return Err("the recorder does not decide".to_owned());
        }
        sys::wait_readable(
            &[channel.stream().as_fd(), signals.as_fd()],
            Duration::from_secs(1),
        );
    }
}

/// Why the run is being ended by us.
struct Ending {
    reason: Reason,
    message: String,
    /// When the last signal goes out.
    kill_at: Instant,
    killed: bool,
}

struct Run {
    spec: CommandSpec,
    signals: Signals,
    channel: Channel,
    recorder_gone: bool,
    meter: Meter,
    disk: DiskWatch,
    capturing: Capturing,
    warnings: Warnings,
    foreign: Foreign,
    /// The workspace before the command.
    before: Option<Before>,
    begun: Instant,
    ending: Option<Ending>,
    main_end: Option<sys::Ended>,
    steps: Steps,
    enforced: Instant,
}

impl Run {
    fn new(spec: CommandSpec, signals: Signals, channel: Channel, capturing: Capturing) -> Self {
        let disk = DiskWatch::new(vec![
            (names::PATH_WORKSPACE.into(), spec.workspace_bytes),
            (names::PATH_TMP.into(), spec.tmp_bytes),
        ]);
        let meter = Meter::new();
        let begun = Instant::now();
        Self {
            spec,
            signals,
            channel,
            recorder_gone: false,
            meter,
            disk,
            capturing,
            warnings: Warnings::default(),
            foreign: Foreign::new(),
            before: None,
            begun,
            ending: None,
            main_end: None,
            steps: Steps::default(),
            enforced: begun,
        }
    }

    fn finish(mut self) -> i32 {
        let prepared = files::write_all(&self.spec.files)
            .and_then(|()| files::make_working_dir(&self.spec.working_dir))
            .and_then(|()| self.spec.certificate.as_deref().map_or(Ok(()), trust::install));
        self.before = Some(Before::take(names::PATH_WORKSPACE));
        let started = match prepared {
            Ok(()) if self.spec.session => Ok(None),
            Ok(()) => child::start(&self.spec, &self.capturing).map(Some),
            Err(message) => Err(NotStarted {
                exit_code: agentsandbox_api::run::EXIT_NOT_EXECUTABLE,
                message,
            }),
        };
        match started {
            Ok(child) => self.watch_over(child.as_ref()),
            Err(NotStarted { exit_code, message }) => {
                eprintln!("sandbox-supervisor: {message}");
                let ended = Ended {
                    reason: Some(Reason::NonZeroExit),
                    exit_code,
                    message,
                    ..Ended::default()
                };
                let _ = self
                    .channel
                    .send(&FromSupervisor::Started { at_ms: sys::now_ms() });
                let _ = self.channel.send(&FromSupervisor::Ended(Box::new(ended)));
                exit_code
            }
        }
    }

    /// Watches over the command, or over a session.
    fn watch_over(&mut self, child: Option<&Child>) -> i32 {
        self.begun = Instant::now();
        if self
            .channel
            .send(&FromSupervisor::Started { at_ms: sys::now_ms() })
            .is_err()
        {
            self.lose_recorder();
        }
        while !self.step(child) {}
        let wall = self.begun.elapsed();
        end_everything(&self.capturing);
        let changes = self.before.take().map(Before::compare).unwrap_or_default();
        let figures = self
            .capturing
            .finish((!self.recorder_gone).then_some(&mut self.channel), changes);
        let mut ended = self.account(child, wall);
        (ended.unreadable, ended.lost) = (figures.unreadable, figures.lost);
        if !self.recorder_gone {
            let _ = self.channel.send(&FromSupervisor::Ended(Box::new(ended.clone())));
        }
        ended.exit_code
    }

    /// One look at everything; whether the run is over.
    fn step(&mut self, child: Option<&Child>) -> bool {
        self.take_signals(child);
        if self.reap(child) {
            // Steps that have just ended still have something to say.
            self.steps.serve(&mut self.channel);
            return true;
        }
        self.hear_recorder(child);
        self.steps.serve(&mut self.channel);
        if self.enforced.elapsed() >= TICK || self.ending.is_some() {
            self.enforced = Instant::now();
            self.enforce(child);
        }
        self.tell();
        let mut awaited = self.steps.awaited();
        awaited.push(Awaited::read(self.signals.as_fd()));
        awaited.extend(self.capturing.awaited());
        // A connection that is broken is noticed where it is read.
        let _ = self.channel.flush();
        if !self.recorder_gone {
            awaited.push(Awaited {
                fd: self.channel.stream().as_fd(),
                read: true,
                write: self.channel.queued() > 0,
            });
        }
        sys::wait(&awaited, TICK.min(self.steps.next_deadline().unwrap_or(TICK)));
        false
    }

    /// Sends the recorder what was seen, as far as it takes it.
    fn tell(&mut self) {
        if let Some(message) = self.capturing.failure() {
            self.end_now(Reason::AuditUnavailable, message);
        }
        if !self.recorder_gone && self.capturing.pump(&mut self.channel).is_err() {
            self.lose_recorder();
        }
    }

    /// Reaps whatever has ended; whether the command itself has, or nothing is left.
    fn reap(&mut self, main: Option<&Child>) -> bool {
        loop {
            match self.capturing.reap() {
                Reaped::One(ended) if main.is_some_and(|main| main.pid == ended.pid) => {
                    self.main_end = Some(ended);
                    return true;
                }
                Reaped::One(ended) => {
                    self.steps.reaped(ended);
                }
                Reaped::NoneYet => return false,
                // A session without a process waits for its next step, unless it is being ended.
                Reaped::NoChildren => return main.is_some() || self.ending.is_some(),
            }
        }
    }

    /// A signal is believed only from outside the pid namespace: the command runs as the same user as process 1.
    fn take_signals(&mut self, child: Option<&Child>) {
        while let Some(signal) = self.signals.next() {
            if signal.from_outside && signal.number == libc::SIGTERM {
                self.end(child, Reason::Stopped, "ended from outside by SIGTERM".to_owned());
            }
        }
    }

    fn hear_recorder(&mut self, child: Option<&Child>) {
        // What is whole already would wake nobody; the bound leaves time for everything else.
        for _ in 0..MESSAGES_AT_ONCE {
            if self.recorder_gone {
                return;
            }
            match self.channel.receive::<FromRecorder>() {
                Received::Message(FromRecorder::Stop { reason, message }) => self.end(child, reason, message),
                Received::Message(FromRecorder::Trust { certificate }) => {
                    if let Err(error) = trust::install(&certificate) {
                        eprintln!("sandbox-supervisor: the egress gateway's new certificate: {error}");
                    }
                }
                Received::Message(FromRecorder::Step { step, order }) => {
                    if self.spec.session && (self.ending.is_none() || !matches!(order, StepOrder::Start(_))) {
                        self.steps
                            .obey(&self.spec, step, order, &self.capturing, &mut self.channel);
                    }
                }
                Received::Message(FromRecorder::Report) => self.report(),
                Received::Message(FromRecorder::Taken { messages }) => self.capturing.taken(messages),
                Received::Broken => self.lose_recorder(),
                Received::Nothing => return,
                Received::Message(FromRecorder::Go(_) | FromRecorder::NoGo { .. }) => {}
            }
        }
    }

    fn report(&mut self) {
        let (processes, _) = self.meter.sample();
        let report = Report {
            usage: self.meter.usage(self.begun.elapsed()),
            memory_bytes: Meter::memory_now(),
            processes: Some(processes),
            disk_bytes: self.disk.used(),
        };
        let _ = self.channel.send(&FromSupervisor::Report(Box::new(report)));
    }

    /// Without a recorder nobody watches: everything ends at once.
    fn lose_recorder(&mut self) {
        self.recorder_gone = true;
        let message = "the recorder is gone".to_owned();
        self.ending = Some(Ending {
            reason: Reason::SandboxLost,
            message,
            kill_at: Instant::now(),
            killed: false,
        });
    }

    fn enforce(&mut self, child: Option<&Child>) {
        let now = Instant::now();
        if let Some(ending) = &mut self.ending {
            if now >= ending.kill_at {
                sys::kill_everything();
                if !ending.killed {
                    self.capturing.note(Action::Signal {
                        signal: libc::SIGKILL,
                        reason: ending.reason,
                    });
                }
                ending.killed = true;
                // Whatever is born meanwhile dies in the next round.
                ending.kill_at = now + TICK;
            }
            return;
        }
        let runtime = u64::from(self.spec.runtime_seconds);
        if self.begun.elapsed() >= Duration::from_secs(runtime) {
            return self.end(
                child,
                Reason::DeadlineExceeded,
                format!(
                    "the {} ran for {runtime} s, its limit",
                    if self.spec.session { "session" } else { "command" }
                ),
            );
        }
        let required = self.spec.audit;
        let unreadable = self.capturing.figures().unreadable;
        if unreadable > 0 && (required.commands || required.files || required.network) {
            let message =
                "a process made itself unreadable, so what it does can't be captured as the policy demands";
            return self.end_now(Reason::AuditUnavailable, message.to_owned());
        }
        let (processes, memory) = self.meter.sample();
        self.warn(processes, memory);
        if processes > u64::from(self.spec.processes) {
            let message = format!(
                "{processes} processes and threads, at most {} are allowed",
                self.spec.processes
            );
            return self.end_now(Reason::ProcessLimitExceeded, message);
        }
        let guarded = self.spec.memory_bytes / 100 * MEMORY_GUARD_PERCENT;
        if let Some(memory) = memory.filter(|memory| *memory > guarded) {
            let message = format!(
                "{memory} bytes of memory in use, the limit is {}",
                self.spec.memory_bytes
            );
            return self.end_now(Reason::OomKilled, message);
        }
        if let Some(over) = self.disk.check() {
            self.end_now(Reason::DiskLimitExceeded, over);
        }
    }

    /// Says once of each resource that it is nearly used up, and of each process that it is not ours.
    fn warn(&mut self, processes: u64, memory: Option<u64>) {
        let disk = self.disk.used();
        let memory = memory.or_else(usage::memory);
        let spec = &self.spec;
        let used = [
            ("memory", memory.unwrap_or_default(), spec.memory_bytes),
            ("processes", processes, spec.processes.into()),
            (
                "disk",
                disk.unwrap_or_default(),
                spec.workspace_bytes.saturating_add(spec.tmp_bytes),
            ),
            (
                "time",
                self.begun.elapsed().as_secs(),
                spec.runtime_seconds.into(),
            ),
        ];
        for (resource, used, limit) in used {
            if let Some(warning) = self.warnings.check(resource, used, limit) {
                self.capturing.note(warning);
            }
        }
        for action in self.foreign.look() {
            self.capturing.note(action);
        }
    }

    /// Ends the run politely: the command may still write down what it knows.
    fn end(&mut self, child: Option<&Child>, reason: Reason, message: String) {
        if self.ending.is_none() {
            match child {
                Some(child) => sys::signal_group(child.pid, libc::SIGTERM),
                None => sys::ask_everything_to_end(),
            }
            self.capturing.note(Action::Signal {
                signal: libc::SIGTERM,
                reason,
            });
            self.ending = Some(Ending {
                reason,
                message,
                kill_at: Instant::now() + GRACE,
                killed: false,
            });
        }
    }

    /// Ends the run without grace: it is using up what others need.
    fn end_now(&mut self, reason: Reason, message: String) {
        if self.ending.is_some() {
            return;
        }
        sys::kill_everything();
        self.capturing.note(Action::Signal {
            signal: libc::SIGKILL,
            reason,
        });
        self.ending = Some(Ending {
            reason,
            message,
            kill_at: Instant::now() + TICK,
            killed: true,
        });
    }

    /// A session has no command whose exit could be told; only one that was idle has ended by itself.
    fn account_for_session(&mut self, wall: Duration) -> Ended {
        let (reason, message) = self
            .ending
            .take()
            .map_or((Reason::SandboxLost, String::new()), |ending| {
                (ending.reason, ending.message)
            });
        Ended {
            reason: Some(reason),
            exit_code: if reason.is_success() { 0 } else { EXIT_ENDED },
            message,
            output: self.spec.capture.then(output).flatten(),
            usage: self.meter.usage(wall),
            ..Ended::default()
        }
    }

    fn account(&mut self, child: Option<&Child>, wall: Duration) -> Ended {
        let Some(child) = child else {
            return self.account_for_session(wall);
        };
        let stderr = child.stderr_tail();
        let (code, signal) = self
            .main_end
            .map_or((None, Some(libc::SIGKILL)), |end| (end.code, end.signal));
        let exit_code = code.unwrap_or_else(|| 128 + signal.unwrap_or(libc::SIGKILL));
        let oom = self.meter.was_oom_killed();
        let (reason, message) = match self.ending.take() {
            Some(ending) => (ending.reason, ending.message),
            None if oom && (signal == Some(libc::SIGKILL) || exit_code == 137) => (
                Reason::OomKilled,
                "the kernel ended the command at its memory limit".to_owned(),
            ),
            None if signal == Some(libc::SIGXFSZ) => (
                Reason::DiskLimitExceeded,
                "the command tried to write a file larger than its workspace".to_owned(),
            ),
            None => match (exit_code, signal) {
                (0, _) => (Reason::Completed, String::new()),
                (_, Some(signal)) => (
                    Reason::Signaled,
                    format!("the command was ended by signal {signal}"),
                ),
                (code, None) if oom => (
                    Reason::NonZeroExit,
                    format!(
                        "the command ended with exit code {code}, after the kernel ended a process of it at the memory limit"
                    ),
                ),
                (code, None) => (
                    Reason::NonZeroExit,
                    format!("the command ended with exit code {code}"),
                ),
            },
        };
        Ended {
            reason: Some(reason),
            exit_code,
            signal,
            message,
            stderr_tail: if self.spec.capture && exit_code != 0 {
                text::tail(&text::sanitised(&stderr), STDERR_TAIL_MAX_BYTES)
            } else {
                String::new()
            },
            output: self.spec.capture.then(output).flatten(),
            usage: self.meter.usage(wall),
            unreadable: 0,
            lost: 0,
        }
    }
}

/// Kills everything in the namespace, and waits until it is gone. A fork bomb loses: the signal reaches all
/// processes at once, and a child that is being made inherits it.
fn end_everything(capturing: &Capturing) {
    let begun = Instant::now();
    loop {
        sys::kill_everything();
        match capturing.reap() {
            Reaped::NoChildren => return,
            Reaped::One(_) => {}
            Reaped::NoneYet => std::thread::sleep(Duration::from_millis(1)),
        }
        // A process that can't be killed hangs in the kernel; the kubelet ends the container.
        if begun.elapsed() > Duration::from_secs(5) {
            return;
        }
    }
}

/// What the command left as its output.
fn output() -> Option<String> {
    let file = sys::open_untrusted(names::PATH_OUTPUT).ok()?;
    if !file.metadata().ok()?.is_file() {
        return None;
    }
    let mut bytes = Vec::new();
    file.take(4 * OUTPUT_MAX_BYTES as u64)
        .read_to_end(&mut bytes)
        .ok()?;
    Some(text::head(&text::sanitised(&bytes), OUTPUT_MAX_BYTES))
}
